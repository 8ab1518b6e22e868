"""The restart rule, the orders of starting and stopping, and the texts that cross processes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.core import Rejected
from madang.runtime.process import ProcessRef
from madang.runtime.supervision import (
    ProcessRecord,
    ProcessSpec,
    RestartPolicy,
    RestartState,
    SupervisorRecord,
    check_specs,
    choose_restart,
    decode_record,
    encode_record,
    format_listen_fds,
    parse_listen_fds,
    plan_stop,
)


def make_spec(tmp_path, name, **changes):
    return ProcessSpec(name=name, argv=("true",), cwd=tmp_path, log_path=tmp_path / f"{name}.log", **changes)


def test_first_restart_is_immediate_then_the_delay_doubles_up_to_the_limit():
    policy, state, delays = RestartPolicy(base_s=0.25, delay_s_max=5.0), RestartState(), []
    for _ in range(9):
        state, delay_s = choose_restart(policy, state, ran_s=0.1)
        delays.append(delay_s)
    assert delays == [0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0]


def test_a_healthy_run_clears_the_slate():
    policy = RestartPolicy(healthy_after_s=10.0)
    state = RestartState(failures=6)
    assert choose_restart(policy, state, ran_s=9.9)[1] > 0
    assert choose_restart(policy, state, ran_s=10.0) == (RestartState(failures=1), 0.0)


@given(failures=st.integers(0, 10**9), ran_s=st.floats(0, 1e9))
def test_the_delay_is_bounded_however_long_a_process_fails(failures, ran_s):
    policy = RestartPolicy()
    _, delay_s = choose_restart(policy, RestartState(failures=failures), ran_s)
    assert 0.0 <= delay_s <= policy.delay_s_max


def test_specs_are_checked_before_anything_starts(tmp_path):
    one, two = make_spec(tmp_path, "one", depends_on=("two",)), make_spec(tmp_path, "two")
    check_specs([one, two])
    with pytest.raises(Rejected, match="two processes are named 'two'"):
        check_specs([two, two])
    with pytest.raises(Rejected, match="depends on 'two', which is not supervised"):
        check_specs([one])
    with pytest.raises(Rejected, match="ring: one, two"):
        check_specs([one, make_spec(tmp_path, "two", depends_on=("one",))])


def test_the_highest_rank_stops_first(tmp_path):
    specs = [make_spec(tmp_path, name, rank=rank) for name, rank in (("hub", 0), ("gw_a", 2), ("site", 1), ("gw_b", 2))]
    assert [[spec.name for spec in group] for group in plan_stop(specs)] == [["gw_a", "gw_b"], ["site"], ["hub"]]


def test_listen_descriptors_round_trip_and_name_what_is_malformed():
    assert parse_listen_fds(format_listen_fds({"tenant": 3, "peer": 14})) == {"tenant": 3, "peer": 14}
    assert parse_listen_fds("") == {}
    with pytest.raises(Rejected, match=r"'tenant=x': expected name=descriptor"):
        parse_listen_fds("tenant=x")


def test_the_record_round_trips_and_refuses_a_newer_one(tmp_path):
    record = SupervisorRecord(
        supervisor=ProcessRef(pid=5, start_ticks=6),
        session=4,
        marker="/state",
        processes=(
            ProcessRecord(name="hub", log_path=tmp_path / "hub.log", ref=ProcessRef(pid=7, start_ticks=8), restarts=2),
            ProcessRecord(name="relay", log_path=tmp_path / "relay.log", last_exit="signal SIGKILL"),
        ),
    )
    assert decode_record(encode_record(record)) == record
    with pytest.raises(Rejected, match="version 2; this release knows 1"):
        decode_record(encode_record(record).replace(b'"version":1', b'"version":2'))
    with pytest.raises(Rejected, match="damaged"):
        decode_record(b'{"supervisor": 3}')
