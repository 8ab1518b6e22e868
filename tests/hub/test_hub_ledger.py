"""The ledger: once each, whatever is repeated, reordered or forged; the highest attempt is billed."""

import itertools

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.hub.usage_events import make_batch
from tests.hub.usage_events import make_event as event

from madang.hub import ledger
from madang.hub.ledger import enter, find_problem, judge_batch, read_events, read_refusals, read_totals, sum_usage
from madang.hub.tables import LEDGER, LEDGER_REFUSED
from madang.model import Outcome


def batch(*events, site="daegu"):
    return make_batch(site, *events)


def put(store, *events, refusals=()):
    return store.write_now(lambda c: enter(c, events, refusals, 5.0))


def billed(store):
    rows = store.write_now(lambda c: read_events(c, after=0, limit=1000))
    return {row["event_id"] for row in rows if not row["is_superseded"]}


def test_every_field_of_an_event_is_a_column(store):
    original = event(
        outcome=Outcome.CLIENT_GONE, ttft_s=None, is_streamed=True, replica_id="r", chip_kind="cpu", hops=1
    )
    put(store, original)
    row = store.write_now(lambda c: read_events(c, after=None, limit=1))[0]
    assert {name: row[name] for name in msgspec.structs.asdict(original)} == msgspec.structs.asdict(original)
    assert set(LEDGER.c.keys()) - set(row) == set()


def test_repeats_change_nothing(store):
    first = put(store, event(1), event(2))
    again = put(store, event(2), event(1), event(3), event(3))
    assert (first.inserted, first.duplicates) == (2, 0)
    assert (again.inserted, again.duplicates, again.refused) == (1, 3, 0)
    assert store.write_now(read_totals) == ledger.LedgerTotals(events=3, requests=3, refused=0)


@pytest.mark.parametrize("order", list(itertools.permutations([1, 2, 3])))
def test_the_highest_attempt_is_billed_in_any_order(store, order):
    for attempt in order:
        put(store, event(1, attempt, site=f"s{attempt}"))
    assert billed(store) == {event(1, 3).event_id}
    assert store.write_now(read_totals).requests == 1


def test_attempts_in_one_batch_and_other_requests_do_not_disturb_each_other(store):
    put(store, event(1, 1), event(1, 2), event(2, 1))
    assert billed(store) == {event(1, 2).event_id, event(2, 1).event_id}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), max_size=6),
        max_size=6,
    )
)
def test_any_deliveries_give_the_same_ledger(store, deliveries):
    store.write_now(lambda c: (c.execute(LEDGER.delete()), c.execute(LEDGER_REFUSED.delete())))
    for delivery in deliveries:
        put(store, *(event(number, attempt) for number, attempt in delivery))
    seen = {pair for delivery in deliveries for pair in delivery}
    highest = {number: max(a for n, a in seen if n == number) for number, _ in seen}
    totals = store.write_now(read_totals)
    assert (totals.events, totals.requests, totals.refused) == (len(seen), len(highest), 0)
    assert billed(store) == {event(number, attempt).event_id for number, attempt in highest.items()}
    sums = store.write_now(lambda c: sum_usage(c, tenant_id=None, since_s=None, until_s=None, group_by=()))[0]
    assert sums["prompt_tokens"] == 10 * len(highest)


@pytest.mark.parametrize("is_one_delivery", [True, False])
def test_the_same_id_with_other_content_is_recorded_and_the_first_stands(store, is_one_delivery):
    if is_one_delivery:
        result = put(store, event(1), event(1, completion_tokens=9999))
        assert (result.inserted, result.duplicates, result.refused) == (1, 0, 1)
    else:
        put(store, event(1))
        result = put(store, event(1, completion_tokens=9999))
        assert (result.inserted, result.duplicates, result.refused) == (0, 0, 1)
    refused = store.write_now(lambda c: read_refusals(c, limit=10))
    assert "other content" in refused[0]["why"]
    assert '"completion_tokens":9999' in refused[0]["raw"]
    sums = store.write_now(lambda c: sum_usage(c, tenant_id=None, since_s=None, until_s=None, group_by=()))[0]
    assert sums["completion_tokens"] == 5


def test_good_events_of_a_batch_pass_and_the_rest_is_named():
    good, bad = judge_batch("daegu", batch(event(1), event(2, site="gumi"), event(3)))
    assert [item.event_id for item in good] == [event(1).event_id, event(3).event_id]
    assert [(item.what, item.event_id) for item in bad] == [("event", event(2).event_id)]
    assert "gumi" in bad[0].why


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not a UsageBatch"),
        (b"\xff\x00", "not a UsageBatch"),
        (b'{"kind":"heartbeat"}', "not a UsageBatch"),
        (batch(event(1), site="gumi"), "batch names site 'gumi', but came from 'daegu'"),
    ],
)
def test_what_is_no_batch_of_that_site_is_refused_whole(data, said):
    good, bad = judge_batch("daegu", data)
    assert good == []
    assert [item.what for item in bad] == ["batch"]
    assert said in bad[0].why


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"site": "gumi"}, "serving site"),
        ({"entry_site": "gumi"}, "entry site"),
        ({"attempt": 2}, "not its request id and attempt"),
        ({"event_id": "nonsense"}, "malformed"),
        ({"request_id": "nonsense"}, "malformed"),
        ({"prompt_tokens": -1}, "prompt_tokens"),
        ({"completion_tokens": 2**63}, "completion_tokens"),
        ({"duration_s": -0.1}, "duration_s"),
        ({"hops": 1000}, "hops"),
        ({"tenant_id": "x" * 64}, "tenant_id"),
        ({"model": "a\0b"}, "model"),
    ],
)
def test_an_event_that_cannot_be_is_named(fields, said):
    assert find_problem(event(1), "daegu") == ""
    assert said in find_problem(
        event(1, **fields) if "attempt" not in fields else msgspec.structs.replace(event(1), **fields), "daegu"
    )


def test_refusals_are_counted_once_each_cut_and_bounded(store, monkeypatch):
    monkeypatch.setattr(ledger, "REFUSED_ROWS_MAX", 3)
    for number in range(5):
        _, bad = judge_batch("daegu", b"x" * 100_000 + bytes([65 + number]) * number)
        put(store, refusals=bad)
    _, bad = judge_batch("daegu", b"y\0" * 10)
    for _ in range(4):
        put(store, refusals=bad)
    rows = store.write_now(lambda c: read_refusals(c, limit=10))
    assert len(rows) <= 3
    assert rows[0]["times"] == 4
    assert all(len(row["raw"]) <= ledger.RAW_CHARS_MAX for row in rows)


@given(st.binary(max_size=300))
def test_any_bytes_are_judged(data):
    good, bad = judge_batch("daegu", data)
    assert bool(good) is not bool(bad) or good == []


def test_money_that_cannot_be_is_not_believed():
    data = make_batch(
        "daegu",
        event(1, charge_micro_won=-1),
        event(2, charge_micro_won=5, overdraw_micro_won=6),
        event(3, charge_micro_won=5, overdraw_micro_won=5),
    )
    good, bad = judge_batch("daegu", data)
    assert [item.charge_micro_won for item in good] == [5]
    assert [refusal.why.split(" is ")[0] for refusal in bad] == ["charge_micro_won", "overdraw_micro_won"]


def test_sums_by_group_span_and_tenant(store):
    day_s = 86400
    put(
        store,
        event(1, started_at_s=day_s * 10 + 1.5),
        event(2, started_at_s=day_s * 11 - 0.5, tenant_id="parts"),
        event(3, started_at_s=day_s * 11, audio_ms=1_001, images=3, samples=4),
        event(4, 1, started_at_s=day_s * 11, charge_micro_won=7, project_id="er"),
        event(4, 2, started_at_s=day_s * 11 + 5, completion_tokens=100, charge_micro_won=50, project_id="er"),
    )

    def ask(group_by=(), tenant_id=None, since_s=None, until_s=None):
        return store.write_now(
            lambda c: sum_usage(c, tenant_id=tenant_id, since_s=since_s, until_s=until_s, group_by=group_by)
        )

    assert ask()[0] == {
        "requests": 4,
        "events": 5,
        "prompt_tokens": 40,
        "completion_tokens": 115,
        "audio_s": 2,
        "images": 3,
        "samples": 4,
        "charge_micro_won": 50,
        "superseded": 1,
    }
    assert {row["project"]: row["charge_micro_won"] for row in ask(["project"])} == {"": 0, "er": 50}
    days = ask(["day"])
    assert [(row["day"], row["requests"]) for row in days] == [(day_s * 10, 2), (day_s * 11, 2)]
    assert [row["tenant"] for row in ask(["tenant", "day"])] == ["clinic", "clinic", "parts"]
    assert ask(tenant_id="parts")[0]["requests"] == 1
    assert ask(since_s=day_s * 11)[0]["requests"] == 2
    assert ask(until_s=day_s * 11)[0]["requests"] == 2
    assert ask(["model"], tenant_id="nobody") == []
    assert ask(tenant_id="nobody")[0]["events"] == 0
