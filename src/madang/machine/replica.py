"""The life of a replica on a node: fetched, started, ready, drained, stopped, and started again when it dies.

Owns every decision about one replica's engine. Refuses to touch files, processes and clocks: the node's keeper
feeds events in and performs the effects that come out. An event about an older launch or fetch is ignored.

    phase     | engine | left by
    ----------|--------|---------------------------------------------------------------------------------------
    pending   | no     | planned -> fetching
    fetching  | no     | fetched -> starting; fetch failed -> backoff; unplanned -> stopped
    starting  | yes    | probe ok -> ready; exited, start failed -> backoff; start deadline, unplanned -> stopping
    ready     | yes    | exited -> starting (first time) or backoff; probes failed -> stopping;
              |        | unplanned, planned otherwise, restart asked -> draining
    draining  | yes    | idle for the settle time, drain deadline -> stopping; planned again -> ready;
              |        | exited -> as stopping
    stopping  | yes    | exited -> stopped (unplanned), fetching (orderly), starting or backoff (it was sick)
    backoff   | no     | its end, restart asked -> fetching; unplanned -> stopped
    stopped   | no     | planned -> fetching

Invariants: an engine exists in at most one launch; Launch comes only after the artifact was fetched for that
specification; a stopped replica has no engine; while it is wanted it never gives up: it tries again at the
capped interval, and `reason` says why it had to.

Every start goes through a fetch, which costs nothing while the cache is whole and mends it when it is not; only
the immediate restart of an engine that had been ready skips it, for there seconds count.
"""

from typing import assert_never

import msgspec

from madang.core import s_to_ns
from madang.machine.backoff import choose_backoff_s
from madang.machine.replica_events import (
    CancelFetch,
    Effect,
    Event,
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
from madang.model import ReplicaPhase


class ReplicaRules(msgspec.Struct, frozen=True, kw_only=True):
    """How long things may take, in seconds. Engines whose models load for minutes bring longer ones.

    Attributes:
        start_s_max: from launch to ready.
        start_probe_s, ready_probe_s: between probes while starting or draining, and while ready.
        probe_s_max: a probe without verdict after that long has failed.
        probe_failures_max: failed probes in a row after which a ready engine is sick.
        drain_settle_s: an engine must be idle and this long out of the feed before it is stopped, so that a
            gateway that still chose it a moment ago is served.
        drain_s_max: after that, requests in flight are cut.
        stop_s_max: after SIGTERM, before SIGKILL, and between further SIGKILLs.
        backoff_base_s, backoff_s_max: see `choose_backoff_s`.
        stable_after_s: an engine that was ready this long starts with a clean slate when it dies.
    """

    start_s_max: float = 120.0
    start_probe_s: float = 0.25
    ready_probe_s: float = 1.0
    probe_s_max: float = 5.0
    probe_failures_max: int = 3
    drain_settle_s: float = 1.5
    drain_s_max: float = 30.0
    stop_s_max: float = 6.0
    backoff_base_s: float = 1.0
    backoff_s_max: float = 60.0
    stable_after_s: float = 30.0


class ReplicaState(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is remembered of one replica.

    Attributes:
        wanted: hash of the specification that is wanted, None when the replica is not.
        running: hash of the specification of the engine that may exist, None when there is none.
        fetched: hash of the specification whose artifact is in place.
        launch, fetch: numbers of the newest launch and fetch.
        failures: quick ends in a row.
        deadline_ns: when the phase ends by itself.
        probe_ns: when the next probe is due, or while one is out, when it counts as failed.
        is_orderly: the engine is being stopped on purpose, so its end is no failure.
    """

    phase: ReplicaPhase = ReplicaPhase.PENDING
    wanted: str | None = None
    running: str | None = None
    fetched: str | None = None
    launch: int = 0
    fetch: int = 0
    failures: int = 0
    reason: str = ""
    since_ns: int = 0
    ready_ns: int | None = None
    deadline_ns: int | None = None
    probe_ns: int | None = None
    is_probing: bool = False
    probe_failures: int = 0
    is_orderly: bool = False


Step = tuple[ReplicaState, tuple[Effect, ...]]

_WITH_ENGINE = frozenset({ReplicaPhase.STARTING, ReplicaPhase.READY, ReplicaPhase.DRAINING, ReplicaPhase.STOPPING})


def adopt(spec_hash: str, launch: int, now_ns: int, rules: ReplicaRules) -> ReplicaState:
    """Return the state of a replica whose engine was found running; it is ready after its first good probe."""
    return ReplicaState(
        phase=ReplicaPhase.STARTING,
        wanted=spec_hash,
        running=spec_hash,
        fetched=spec_hash,
        launch=launch,
        reason="adopted",
        since_ns=now_ns,
        deadline_ns=now_ns + s_to_ns(rules.start_s_max),
        probe_ns=now_ns,
    )


def wake_ns(state: ReplicaState) -> int | None:
    """Return when the next Tick matters, or None while only events do."""
    return min((at for at in (state.deadline_ns, state.probe_ns) if at is not None), default=None)


def step(state: ReplicaState, event: Event, now_ns: int, seed: int, rules: ReplicaRules) -> Step:
    """Return the next state and what to do; the effects are to be performed in their order.

    Args:
        state: the state before.
        event: what happened.
        now_ns: when, on the monotonic clock.
        seed: chance of this event.
        rules: time limits.
    """
    return _Brain(state, now_ns, seed, rules).take(event)


class _Brain:
    """One step: the state before, the instant, the seed and the rules, so that transitions read short."""

    def __init__(self, state: ReplicaState, now_ns: int, seed: int, rules: ReplicaRules) -> None:
        self.state = state
        self.now_ns = now_ns
        self.seed = seed
        self.rules = rules

    def take(self, event: Event) -> Step:
        match event:
            case Tick():
                return self._on_tick()
            case Planned(spec_hash=spec_hash):
                return self._on_planned(spec_hash)
            case Unplanned():
                return self._on_unplanned()
            case RestartAsked():
                return self._on_restart_asked()
            case Fetched() | FetchFailed():
                return self._on_fetch_end(event)
            case Started() | StartFailed() | Exited():
                return self._on_process(event)
            case ProbeOk() | ProbeFailed():
                return self._on_probe(event)
            case _:
                assert_never(event)

    # What is wanted

    def _on_planned(self, spec_hash: str) -> Step:
        state = self.state
        if state.wanted == spec_hash:
            return self._stay()
        wanted = self._with(wanted=spec_hash, failures=0)
        match state.phase:
            case ReplicaPhase.PENDING | ReplicaPhase.BACKOFF | ReplicaPhase.STOPPED:
                return wanted._fetch()
            case ReplicaPhase.FETCHING:
                return wanted._fetch(CancelFetch(state.fetch))
            case ReplicaPhase.STOPPING:
                return wanted._stay()
            case ReplicaPhase.DRAINING if state.running == spec_hash:
                return wanted._ready("wanted again")
            case ReplicaPhase.DRAINING:
                return wanted._stay()
            case ReplicaPhase.STARTING:
                return wanted._stop("planned otherwise", is_orderly=True)
            case ReplicaPhase.READY:
                return wanted._drain("planned otherwise")
            case _:
                assert_never(state.phase)

    def _on_unplanned(self) -> Step:
        state = self.state
        if state.wanted is None:
            return self._stay()
        unwanted = self._with(wanted=None)
        match state.phase:
            case ReplicaPhase.PENDING | ReplicaPhase.BACKOFF | ReplicaPhase.STOPPED:
                return unwanted._end()
            case ReplicaPhase.FETCHING:
                return unwanted._end(CancelFetch(state.fetch))
            case ReplicaPhase.STARTING:
                return unwanted._stop("not wanted any more", is_orderly=True)
            case ReplicaPhase.READY:
                return unwanted._drain("not wanted any more")
            case ReplicaPhase.DRAINING | ReplicaPhase.STOPPING:
                return unwanted._with(is_orderly=True)._stay()
            case _:
                assert_never(state.phase)

    def _on_restart_asked(self) -> Step:
        if self.state.phase is ReplicaPhase.READY:
            return self._drain("restart asked for")
        if self.state.phase is ReplicaPhase.BACKOFF:
            return self._with(failures=0)._fetch()
        return self._stay()

    # Fetching and starting

    def _on_fetch_end(self, event: Fetched | FetchFailed) -> Step:
        if self.state.phase is not ReplicaPhase.FETCHING or event.fetch != self.state.fetch:
            return self._stay()
        if isinstance(event, FetchFailed):
            return self._back_off(event.reason)
        return self._with(fetched=self.state.wanted)._launch()

    def _on_process(self, event: Started | StartFailed | Exited) -> Step:
        state = self.state
        if state.phase not in _WITH_ENGINE or event.launch != state.launch:
            return self._stay()
        if isinstance(event, Started):
            is_first = state.phase is ReplicaPhase.STARTING and state.probe_ns is None
            return (self._with(probe_ns=self.now_ns) if is_first else self)._stay()
        gone = self._with(running=None, probe_ns=None, is_probing=False, probe_failures=0, ready_ns=None)
        # A sick engine dies of our own signal, which explains nothing.
        reason = state.reason if state.phase is ReplicaPhase.STOPPING else event.reason
        if state.wanted is None:
            return gone._end()
        if state.is_orderly or state.wanted != state.running:
            return gone._fetch()
        if state.ready_ns is None or isinstance(event, StartFailed):
            return gone._back_off(reason)
        is_stable = self.now_ns - state.ready_ns >= s_to_ns(self.rules.stable_after_s)
        slate = gone._with(failures=0 if is_stable else state.failures)
        if slate.state.failures:
            return slate._back_off(reason)
        return slate._with(failures=1)._launch(reason)

    # Probes and time

    def _on_probe(self, event: ProbeOk | ProbeFailed) -> Step:
        state = self.state
        if event.launch != state.launch or not state.is_probing or state.phase not in _WITH_ENGINE:
            return self._stay()
        seen = self._with(is_probing=False, probe_ns=self._next_probe_ns())
        if isinstance(event, ProbeFailed):
            return seen._on_probe_failed(event.reason)
        seen = seen._with(probe_failures=0)
        if state.phase is ReplicaPhase.STARTING:
            return seen._ready("")
        is_settled = self.now_ns - state.since_ns >= s_to_ns(self.rules.drain_settle_s)
        if state.phase is ReplicaPhase.DRAINING and event.is_idle and is_settled:
            return seen._stop(state.reason, is_orderly=True)
        return seen._stay()

    def _on_probe_failed(self, reason: str) -> Step:
        state = self.state
        if state.phase is ReplicaPhase.STARTING:
            return self._with(reason=reason)._stay()
        failed = self._with(probe_failures=state.probe_failures + 1)
        if failed.state.probe_failures < self.rules.probe_failures_max:
            return failed._stay()
        return failed._stop(f"sick: {reason}", is_orderly=state.phase is ReplicaPhase.DRAINING)

    def _on_tick(self) -> Step:
        state = self.state
        if state.deadline_ns is not None and self.now_ns >= state.deadline_ns:
            return self._on_deadline()
        if state.probe_ns is None or self.now_ns < state.probe_ns or state.phase not in _WITH_ENGINE:
            return self._stay()
        if state.is_probing:
            return self._with(is_probing=False, probe_ns=self._next_probe_ns())._on_probe_failed(
                f"no answer within {self.rules.probe_s_max:g} s"
            )
        lost_ns = self.now_ns + s_to_ns(self.rules.probe_s_max)
        return self._with(is_probing=True, probe_ns=lost_ns)._stay(Probe(state.launch))

    def _on_deadline(self) -> Step:
        state = self.state
        match state.phase:
            case ReplicaPhase.BACKOFF:
                return self._fetch()
            case ReplicaPhase.STARTING:
                why = f": {state.reason}" if state.reason else ""
                return self._stop(f"not ready within {self.rules.start_s_max:g} s{why}", is_orderly=False)
            case ReplicaPhase.DRAINING:
                return self._stop(f"{state.reason}; drain took too long", is_orderly=True)
            case ReplicaPhase.STOPPING:
                again_ns = self.now_ns + s_to_ns(self.rules.stop_s_max)
                return self._with(deadline_ns=again_ns)._stay(Kill(state.launch))
            case _:
                raise AssertionError(f"no deadline in phase {state.phase}")

    def _next_probe_ns(self) -> int:
        is_ready = self.state.phase is ReplicaPhase.READY
        return self.now_ns + s_to_ns(self.rules.ready_probe_s if is_ready else self.rules.start_probe_s)

    # Transitions

    def _with(self, **changes: object) -> "_Brain":
        return _Brain(msgspec.structs.replace(self.state, **changes), self.now_ns, self.seed, self.rules)

    def _stay(self, *effects: Effect) -> Step:
        return self.state, effects

    def _enter(self, phase: ReplicaPhase, reason: str, timeout_s: float | None) -> "_Brain":
        deadline_ns = None if timeout_s is None else self.now_ns + s_to_ns(timeout_s)
        return self._with(phase=phase, reason=reason, since_ns=self.now_ns, deadline_ns=deadline_ns)

    def _fetch(self, *before: Effect) -> Step:
        wanted = self.state.wanted
        assert wanted is not None
        assert self.state.running is None
        fetch = self.state.fetch + 1
        entered = self._enter(ReplicaPhase.FETCHING, "", None)
        return entered._with(fetch=fetch, is_orderly=False)._stay(*before, Fetch(fetch, wanted))

    def _launch(self, reason: str = "") -> Step:
        wanted = self.state.wanted
        assert wanted is not None
        assert self.state.fetched == wanted
        assert self.state.running is None
        launch = self.state.launch + 1
        entered = self._enter(ReplicaPhase.STARTING, reason, self.rules.start_s_max)
        return entered._with(running=wanted, launch=launch, is_orderly=False)._stay(Launch(launch, wanted))

    def _ready(self, reason: str) -> Step:
        entered = self._enter(ReplicaPhase.READY, reason, None)
        ready_ns = self.now_ns if self.state.ready_ns is None else self.state.ready_ns
        return entered._with(ready_ns=ready_ns, is_orderly=False)._stay()

    def _back_off(self, reason: str) -> Step:
        failures = self.state.failures + 1
        rules = self.rules
        delay_s = choose_backoff_s(failures, self.seed, base_s=rules.backoff_base_s, max_s=rules.backoff_s_max)
        return self._enter(ReplicaPhase.BACKOFF, reason, delay_s)._with(failures=failures, is_orderly=False)._stay()

    def _drain(self, reason: str) -> Step:
        return self._enter(ReplicaPhase.DRAINING, reason, self.rules.drain_s_max)._with(is_orderly=True)._stay()

    def _stop(self, reason: str, *, is_orderly: bool) -> Step:
        entered = self._enter(ReplicaPhase.STOPPING, reason, self.rules.stop_s_max)
        stopping = entered._with(probe_ns=None, is_probing=False, is_orderly=is_orderly)
        return stopping._stay(Terminate(self.state.launch))

    def _end(self, *before: Effect) -> Step:
        return self._enter(ReplicaPhase.STOPPED, self.state.reason, None)._with(fetched=None)._stay(*before, Forget())
