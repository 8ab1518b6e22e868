"""A replica under any order of events: invariants at each step, and recovery once faults cease."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

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
SPECS = ("a", "b")


class FakeNode:
    """What a node would do with the effects: engines, fetches and probes that tests answer as they like."""

    def __init__(self):
        self.engines = {}  # launch -> spec, alive in the machine's eyes: no StartFailed or Exited was fed yet
        self.fetches = {}  # fetch -> spec, unanswered
        self.fetched = set()
        self.probes = []
        self.is_forgotten = False

    def perform(self, effect):
        match effect:
            case Fetch(fetch=fetch, spec_hash=spec):
                assert not self.engines, "a fetch for a start while an engine exists"
                self.fetches[fetch] = spec
            case CancelFetch(fetch=fetch):
                self.fetches.pop(fetch, None)
            case Launch(launch=launch, spec_hash=spec):
                assert not self.engines, "two engines for one replica"
                assert spec in self.fetched, "launched before the artifact was fetched"
                self.engines[launch] = spec
            case Probe(launch=launch):
                assert launch in self.engines
                self.probes.append(launch)
            case Terminate(launch=launch) | Kill(launch=launch):
                assert launch in self.engines, "a signal to an engine that is gone"
            case Forget():
                assert not self.engines
                self.is_forgotten = True
            case _:
                raise AssertionError(effect)


class ReplicaLife(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.state = ReplicaState()
        self.now_ns = s_to_ns(5)
        self.node = FakeNode()
        self.seed = 0

    def feed(self, event):
        self.seed += 1
        self.state, effects = step(self.state, event, self.now_ns, self.seed, RULES)
        for effect in effects:
            self.node.perform(effect)

    @precondition(lambda self: self.state == ReplicaState())
    @rule(spec=st.sampled_from(SPECS), launch=st.integers(1, 5))
    def find_a_running_engine(self, spec, launch):
        self.state = adopt(spec, launch, self.now_ns, RULES)
        self.node.engines[launch] = spec
        self.node.fetched.add(spec)

    @rule(spec=st.sampled_from(SPECS))
    def plan(self, spec):
        self.feed(Planned(spec))
        self.node.is_forgotten = False

    @rule()
    def unplan(self):
        self.feed(Unplanned())

    @rule()
    def ask_restart(self):
        self.feed(RestartAsked())

    @rule(pass_s=st.sampled_from([0.01, 0.3, 1.0, 2.0, 6.0, 40.0, 130.0]))
    def pass_time(self, pass_s):
        self.now_ns += s_to_ns(pass_s)
        self.feed(Tick())

    @rule(is_ok=st.booleans(), fetch=st.integers(0, 3))
    def answer_fetch(self, is_ok, fetch):
        number = min(self.node.fetches, default=fetch)
        spec = self.node.fetches.pop(number, None)
        if is_ok and spec is not None:
            self.node.fetched.add(spec)
        if is_ok and spec is None:
            return  # an answer nobody asked for says nothing about the cache
        self.feed(Fetched(number) if is_ok else FetchFailed(number, "no source"))

    @rule(age=st.integers(0, 2), is_ok=st.booleans())
    def answer_start(self, age, is_ok):
        launch = self.state.launch - age
        if not is_ok and launch in self.node.engines:
            del self.node.engines[launch]
        elif is_ok is False:
            return
        self.feed(Started(launch) if is_ok else StartFailed(launch, "no memory"))

    @rule(is_ok=st.booleans(), is_idle=st.booleans())
    def answer_probe(self, is_ok, is_idle):
        if self.node.probes:
            launch = self.node.probes.pop(0)
            self.feed(ProbeOk(launch, is_idle) if is_ok else ProbeFailed(launch, "slow"))

    @rule()
    def engine_dies(self):
        for launch in list(self.node.engines):
            del self.node.engines[launch]
            self.feed(Exited(launch, "signal SIGKILL"))

    @invariant()
    def agrees_with_the_node(self):
        state = self.state
        has_engine = state.phase in (Phase.STARTING, Phase.READY, Phase.DRAINING, Phase.STOPPING)
        assert (state.running is not None) == has_engine == bool(self.node.engines)
        assert len(self.node.engines) <= 1
        if state.phase is Phase.STOPPED:
            assert state.wanted is None
            assert self.node.is_forgotten
        if state.phase in (Phase.READY, Phase.BACKOFF, Phase.FETCHING):
            assert state.wanted is not None
        if state.phase is Phase.FETCHING:
            assert self.node.fetches.get(state.fetch) == state.wanted
        if state.phase in (Phase.BACKOFF, Phase.STOPPING):
            assert wake_ns(state) is not None

    def teardown(self):
        """Faults cease: the replica becomes ready within bounded time, or is forgotten when it is not wanted."""
        for _ in range(400):
            if self.state.phase is Phase.READY and self.state.running == self.state.wanted:
                return
            if self.state.wanted is None and self.state.phase in (Phase.STOPPED, Phase.PENDING):
                return
            self.behave()
            wake = wake_ns(self.state)
            self.now_ns = max(self.now_ns + 1, wake if wake is not None else 0)
            self.feed(Tick())
        raise AssertionError(f"neither ready nor forgotten: {self.state}")

    def behave(self):
        for fetch, spec in list(self.node.fetches.items()):
            del self.node.fetches[fetch]
            self.node.fetched.add(spec)
            self.feed(Fetched(fetch))
        for launch in list(self.node.engines):
            self.feed(Started(launch))
            if self.state.phase is Phase.STOPPING:
                del self.node.engines[launch]
                self.feed(Exited(launch, "signal SIGTERM"))
        probes, self.node.probes = self.node.probes, []
        for launch in probes:
            self.feed(ProbeOk(launch))


TestReplicaLife = ReplicaLife.TestCase
