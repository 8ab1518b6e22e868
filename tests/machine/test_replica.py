"""Playbooks of a replica's life: events in, effects out."""

import msgspec
import pytest

from madang.core import s_to_ns
from madang.machine.replica import ReplicaRules, ReplicaState, adopt, step, wake_ns
from madang.machine.replica_events import (
    CancelFetch,
    Exited,
    Fetch,
    Fetched,
    FetchFailed,
    Forget,
    Kill,
    Launch,
    Planned,
    Probe,
    ProbeFailed,
    ProbeOk,
    RestartAsked,
    Started,
    StartFailed,
    Terminate,
    Tick,
    Unplanned,
)
from madang.model import ReplicaPhase as Phase

RULES = ReplicaRules()


class Play:
    """Feeds events to one replica and keeps what came out of the last."""

    def __init__(self, state=None):
        self.state = state or ReplicaState()
        self.now_ns = s_to_ns(1000)
        self.effects = ()

    def feed(self, event, seed=1):
        self.state, self.effects = step(self.state, event, self.now_ns, seed, RULES)
        return self

    def wait(self, duration_s):
        self.now_ns += s_to_ns(duration_s)
        return self

    def tick_after(self, duration_s):
        return self.wait(duration_s).feed(Tick())

    def to_starting(self, spec="a"):
        return self.feed(Planned(spec)).feed(Fetched(self.state.fetch)).feed(Started(self.state.launch))

    def to_ready(self, spec="a"):
        self.to_starting(spec).feed(Tick())
        assert self.effects == (Probe(self.state.launch),)
        return self.feed(ProbeOk(self.state.launch))

    def probe(self, event):
        """Let the next probe be due and answer it."""
        self.now_ns = max(self.now_ns, self.state.probe_ns)
        self.feed(Tick())
        assert self.effects == (Probe(self.state.launch),)
        return self.feed(event)

    @property
    def phase(self):
        return self.state.phase


def test_a_planned_replica_is_fetched_started_probed_and_ready():
    play = Play().feed(Planned("a"))
    assert (play.phase, play.effects) == (Phase.FETCHING, (Fetch(1, "a"),))
    play.feed(Fetched(1))
    assert (play.phase, play.effects) == (Phase.STARTING, (Launch(1, "a"),))
    assert play.tick_after(1).effects == ()  # nothing to probe before the process runs
    play.feed(Started(1)).feed(Tick())
    assert play.effects == (Probe(1),)
    play.feed(ProbeFailed(1, "loading"))
    assert (play.phase, play.state.reason) == (Phase.STARTING, "loading")
    play.probe(ProbeOk(1))
    assert (play.phase, play.state.reason, play.effects) == (Phase.READY, "", ())


def test_planning_the_same_again_changes_nothing():
    play = Play().to_ready()
    before = play.state
    assert play.feed(Planned("a")).state == before
    assert play.effects == ()


def test_a_failed_fetch_is_tried_again_later_with_its_reason():
    play = Play().feed(Planned("a")).feed(FetchFailed(1, "no source"))
    assert (play.phase, play.state.reason, play.effects) == (Phase.BACKOFF, "no source", ())
    assert play.tick_after(0.4).phase is Phase.BACKOFF
    assert play.tick_after(0.7).effects == (Fetch(2, "a"),)


def test_back_off_grows_and_stays_capped():
    play = Play().feed(Planned("a"))
    delays = []
    for seed in range(12):
        play.feed(FetchFailed(play.state.fetch, "no source"), seed=seed)
        delays.append((play.state.deadline_ns - play.now_ns) / 1e9)
        play.now_ns = play.state.deadline_ns
        play.feed(Tick())
        assert isinstance(play.effects[0], Fetch)
    assert delays[0] <= 1.0
    assert delays[3] > delays[0]
    assert max(delays) <= RULES.backoff_s_max
    assert delays[-1] >= RULES.backoff_s_max / 2


def test_a_ready_engine_that_dies_is_started_again_at_once_and_the_next_time_after_a_pause():
    play = Play().to_ready().wait(2).feed(Exited(1, "signal SIGKILL"))
    assert (play.phase, play.effects) == (Phase.STARTING, (Launch(2, "a"),))
    assert play.state.reason == "signal SIGKILL"
    play.feed(Started(2)).probe(ProbeOk(2)).wait(2).feed(Exited(2, "signal SIGKILL"))
    assert (play.phase, play.effects) == (Phase.BACKOFF, ())
    # A long good life wipes the slate.
    play.now_ns = play.state.deadline_ns
    play.feed(Tick()).feed(Fetched(play.state.fetch)).feed(Started(3)).probe(ProbeOk(3))
    play.wait(RULES.stable_after_s).feed(Exited(3, "signal SIGSEGV"))
    assert play.effects == (Launch(4, "a"),)


def test_an_engine_that_never_was_ready_backs_off():
    play = Play().to_starting().feed(Exited(1, "exit 1"))
    assert (play.phase, play.state.reason) == (Phase.BACKOFF, "exit 1")
    play = Play().feed(Planned("a")).feed(Fetched(1)).feed(StartFailed(1, "no memory"))
    assert (play.phase, play.state.reason, play.state.running) == (Phase.BACKOFF, "no memory", None)


def test_a_start_that_takes_too_long_is_ended_and_tried_again():
    play = Play().to_starting().probe(ProbeFailed(1, "loading")).tick_after(RULES.start_s_max)
    assert (play.phase, play.effects) == (Phase.STOPPING, (Terminate(1),))
    assert play.state.reason == "not ready within 120 s: loading"
    assert play.tick_after(RULES.stop_s_max).effects == (Kill(1),)
    assert play.tick_after(RULES.stop_s_max).effects == (Kill(1),)
    play.feed(Exited(1, "signal SIGKILL"))
    assert play.phase is Phase.BACKOFF
    assert play.state.reason.startswith("not ready")


def test_a_sick_engine_is_ended_and_replaced():
    play = Play().to_ready()
    for _ in range(RULES.probe_failures_max - 1):
        play.probe(ProbeFailed(1, "status 500"))
        assert play.phase is Phase.READY
    play.probe(ProbeFailed(1, "status 500"))
    assert (play.phase, play.effects, play.state.reason) == (Phase.STOPPING, (Terminate(1),), "sick: status 500")
    assert play.feed(Exited(1, "signal SIGTERM")).effects == (Launch(2, "a"),)


def test_one_good_probe_forgives_bad_ones():
    play = Play().to_ready()
    for _ in range(3):
        play.probe(ProbeFailed(1, "slow")).probe(ProbeFailed(1, "slow")).probe(ProbeOk(1))
    assert play.phase is Phase.READY


def test_a_probe_that_is_never_answered_counts_as_failed():
    play = Play().to_ready()
    for _ in range(RULES.probe_failures_max):
        play.tick_after(RULES.ready_probe_s)
        assert play.effects == (Probe(1),)
        play.tick_after(RULES.probe_s_max)
    assert play.phase is Phase.STOPPING


def test_an_unplanned_replica_drains_until_idle_then_stops_and_is_forgotten():
    play = Play().to_ready().feed(Unplanned())
    assert (play.phase, play.effects) == (Phase.DRAINING, ())
    play.probe(ProbeOk(1, is_idle=True))
    assert play.phase is Phase.DRAINING  # a gateway may still choose it from its feed
    play.wait(RULES.drain_settle_s).probe(ProbeOk(1, is_idle=False))
    assert play.phase is Phase.DRAINING
    play.probe(ProbeOk(1, is_idle=True))
    assert (play.phase, play.effects) == (Phase.STOPPING, (Terminate(1),))
    play.feed(Exited(1, "signal SIGTERM"))
    assert (play.phase, play.effects, play.state.running) == (Phase.STOPPED, (Forget(),), None)


def test_a_drain_ends_at_its_deadline():
    play = Play().to_ready().feed(Unplanned()).probe(ProbeOk(1, is_idle=False))
    play.tick_after(RULES.drain_s_max)
    assert (play.phase, play.effects) == (Phase.STOPPING, (Terminate(1),))


def test_a_replica_that_is_wanted_again_while_draining_goes_on():
    play = Play().to_ready().feed(Unplanned()).feed(Planned("a"))
    assert (play.phase, play.effects) == (Phase.READY, ())
    assert play.feed(Exited(1, "x")).effects == (Launch(2, "a"),)


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_unplanning_before_ready_leaves_nothing(steps):
    play = Play().feed(Planned("a"))
    if steps == 0:
        assert play.feed(Unplanned()).effects == (CancelFetch(1), Forget())
        assert play.feed(Fetched(1)).effects == ()
    elif steps == 1:
        play.feed(Fetched(1)).feed(Unplanned())
        assert play.effects == (Terminate(1),)
        assert play.feed(Started(1)).phase is Phase.STOPPING
        assert play.feed(Exited(1, "x")).effects == (Forget(),)
    else:
        assert play.feed(FetchFailed(1, "x")).feed(Unplanned()).effects == (Forget(),)
    assert play.phase is Phase.STOPPED


def test_another_specification_drains_the_old_engine_and_fetches_the_new_artifact():
    play = Play().to_ready("a").feed(Planned("b"))
    assert play.phase is Phase.DRAINING
    play.wait(RULES.drain_settle_s).probe(ProbeOk(1)).feed(Exited(1, "signal SIGTERM"))
    assert (play.phase, play.effects) == (Phase.FETCHING, (Fetch(2, "b"),))
    assert play.feed(Fetched(2)).effects == (Launch(2, "b"),)


def test_another_specification_while_fetching_cancels_the_fetch():
    play = Play().feed(Planned("a")).feed(Planned("b"))
    assert play.effects == (CancelFetch(1), Fetch(2, "b"))
    assert play.feed(Fetched(1)).effects == ()
    assert play.feed(Fetched(2)).effects == (Launch(1, "b"),)


def test_a_restart_drains_a_ready_engine_and_ends_a_back_off():
    play = Play().to_ready().feed(RestartAsked())
    assert play.phase is Phase.DRAINING
    assert play.feed(Planned("a")).phase is Phase.DRAINING  # the same plan again does not cancel it
    play.wait(RULES.drain_settle_s).probe(ProbeOk(1)).feed(Exited(1, "signal SIGTERM"))
    assert play.effects == (Fetch(2, "a"),)
    play.feed(FetchFailed(2, "x")).feed(RestartAsked())
    assert play.effects == (Fetch(3, "a"),)


def test_an_adopted_engine_is_ready_after_a_good_probe_and_keeps_its_launch():
    play = Play(adopt("a", 7, s_to_ns(1000), RULES)).feed(Planned("a"))
    assert (play.phase, play.effects) == (Phase.STARTING, ())
    play.probe(ProbeOk(7))
    assert (play.phase, play.state.launch) == (Phase.READY, 7)
    assert play.feed(Exited(7, "x")).effects == (Launch(8, "a"),)


def test_events_of_an_older_launch_are_ignored():
    play = Play().to_ready().feed(Exited(1, "x")).feed(Started(2))
    before = play.state
    for event in (Exited(1, "x"), Started(1), StartFailed(1, "x"), ProbeOk(1), ProbeFailed(1, "x")):
        assert play.feed(event).state == before
        assert play.effects == ()


def test_wake_says_when_a_tick_matters():
    play = Play()
    assert wake_ns(play.state) is None
    play.to_starting()
    assert wake_ns(play.state) == play.now_ns
    play.feed(Tick())
    assert wake_ns(play.state) == play.now_ns + s_to_ns(RULES.probe_s_max)


def test_a_step_never_changes_the_state_it_was_given():
    state = ReplicaState()
    kept = msgspec.structs.replace(state)
    step(state, Planned("a"), 1, 1, RULES)
    assert state == kept
