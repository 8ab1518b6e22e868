"""Builds: one worker at a time, bounded attempts, and nobody who lost a lease changes anything."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.core import Conflict, Rejected
from madang.machine.build import (
    LEASE_S,
    LOG_BYTES_MAX,
    cancel_build,
    choose_build,
    expire_build,
    fail_build,
    finish_build,
    hold_build,
    keep_end,
    request_build,
    take_build,
)
from madang.model import ArtifactFile, ArtifactKey
from madang.model.build import BuildOffer, BuildRequest, BuildState

KEY = ArtifactKey(model="qwen", chip_kind="furiosa", sdk="furiosa-2026.3", parallelism="tp4", context_tokens_max=8192)
REQUEST = BuildRequest(key=KEY, inputs={"weights": "ab" * 32}, artifact_id="fxb", engine="furiosa_llm", memory_bytes=1)
OFFERS = (BuildOffer(chip_kind="furiosa", sdk="furiosa-2026.3"),)
FILES = (ArtifactFile(name="model.fxb", size_bytes=1, sha256="cd" * 32),)


def asked(now_s=0.0, **changes):
    return request_build(None, msgspec.structs.replace(REQUEST, **changes), now_s)


def test_asking_twice_is_asking_once_and_other_inputs_are_a_conflict():
    build = asked()
    assert request_build(build, REQUEST, 9.0) is build
    with pytest.raises(Conflict, match="other inputs"):
        request_build(build, msgspec.structs.replace(REQUEST, inputs={}), 9.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"key": msgspec.structs.replace(KEY, sdk="")},
        {"attempts_max": 0},
        {"attempts_max": 11},
        {"memory_bytes": 0},
        {"inputs": {str(number): "" for number in range(65)}},
        {"inputs": {"x": "y" * 4096}},
    ],
)
def test_what_is_out_of_bounds_is_refused(changes):
    with pytest.raises(Rejected):
        asked(**changes)


def test_a_worker_gets_the_oldest_build_that_it_can_do():
    other = asked(1.0, key=msgspec.structs.replace(KEY, sdk="furiosa-2026.1"))
    late, early = asked(3.0, key=msgspec.structs.replace(KEY, revision="2")), asked(2.0)
    assert choose_build([other, late, early], OFFERS, 5.0) is early
    assert choose_build([other], OFFERS, 5.0) is None
    assert choose_build([take_build(early, "w", 5.0)], OFFERS, 5.0) is None


def test_a_heartbeat_lengthens_the_lease_and_silence_gives_the_build_to_another():
    build = take_build(asked(), "one", 0.0)
    build = hold_build(build, "one", 1, 100.0)
    assert expire_build(build, 100.0 + LEASE_S - 1) is build
    lost = expire_build(build, 100.0 + LEASE_S)
    assert lost.state is BuildState.QUEUED
    assert "silent" in lost.log
    assert choose_build([lost], OFFERS, lost.not_before_s - 1) is None
    again = take_build(lost, "two", lost.not_before_s)
    for said in (
        lambda: hold_build(again, "one", 1, 300.0),
        lambda: finish_build(again, "one", 1, FILES, 300.0),
        lambda: fail_build(again, "one", 1, "x", 300.0),
    ):
        with pytest.raises(Conflict, match="attempt 1 of one is over"):
            said()
    done = finish_build(again, "two", 2, FILES, 400.0)
    assert done.state is BuildState.DONE
    assert finish_build(done, "two", 2, FILES, 500.0) is done


def test_attempts_end_and_can_be_asked_for_again_with_older_workers_shut_out():
    build, now_s = asked(), 0.0
    for attempt in range(1, REQUEST.attempts_max + 1):
        now_s = build.not_before_s
        build = fail_build(take_build(build, "w", now_s), "w", attempt, f"error {attempt}", now_s)
    assert (build.state, build.log) == (BuildState.FAILED, "error 3")
    again = request_build(build, REQUEST, now_s)
    assert (again.state, again.attempt, again.first_attempt) == (BuildState.QUEUED, 3, 3)
    taken = take_build(again, "w", now_s)
    with pytest.raises(Conflict):
        hold_build(taken, "w", 3, now_s)
    assert fail_build(taken, "w", 4, "", now_s).state is BuildState.QUEUED


def test_a_failure_that_would_come_again_ends_at_once():
    build = take_build(asked(), "w", 0.0)
    assert fail_build(build, "w", 1, "no such model", 1.0, is_final=True).state is BuildState.FAILED


def test_what_is_over_cannot_be_cancelled_and_a_cancelled_build_is_taken_from_its_worker():
    cancelled = cancel_build(take_build(asked(), "w", 0.0), 1.0)
    with pytest.raises(Conflict):
        hold_build(cancelled, "w", 1, 2.0)
    with pytest.raises(Conflict, match="nothing to cancel"):
        cancel_build(cancelled, 2.0)


@given(st.text(max_size=300), st.integers(1, 400))
def test_the_end_of_a_log_is_kept_within_its_bound(text, times):
    log = (text + "\n오류\n") * times
    kept = keep_end(log)
    assert len(kept.encode()) <= LOG_BYTES_MAX
    assert log.encode(errors="replace").decode().endswith(kept)
    assert kept


def act(what, build, holder, now_s):
    """Return the build after an event, or the same when it does not apply."""
    match what:
        case "hold":
            return hold_build(build, *holder, now_s)
        case "finish":
            return finish_build(build, *holder, FILES, now_s)
        case "fail":
            return fail_build(build, *holder, "x", now_s)
        case "expire":
            return expire_build(build, now_s)
        case "cancel":
            return cancel_build(build, now_s)
        case "ask":
            return request_build(build, REQUEST, now_s)
    return build


EVENTS = ["take", "hold", "finish", "fail", "expire", "cancel", "ask"]


@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 500))))
def test_no_order_of_events_gives_a_build_to_two_or_more_attempts_than_allowed(events):
    build, now_s, holder, tries = asked(), 0.0, None, 0
    for number, (what, passed_s) in enumerate(events):
        now_s += passed_s
        before = build
        if what == "take" and choose_build([build], OFFERS, now_s):
            assert holder is None
            build = take_build(build, f"w{number}", now_s)
            holder, tries = (build.worker, build.attempt), tries + 1
            assert tries <= REQUEST.attempts_max
        else:
            try:
                # Without a holder, a worker of long ago speaks.
                build = act(what, build, holder or ("ghost", build.attempt), now_s)
            except Conflict:
                assert build is before
        if build.state is not BuildState.BUILDING:
            holder = None
        if build.first_attempt > before.first_attempt or (before.state, what) == (BuildState.CANCELLED, "ask"):
            tries = 0
        assert (build.state is BuildState.BUILDING) == (holder is not None)
        assert build.attempt >= before.attempt
