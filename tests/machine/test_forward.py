"""The forwarder as playbooks, and as a stateful machine against a hub that fails in every way."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from madang.machine.backoff import choose_backoff_s
from madang.machine.forward import (
    FAR_MAX_S,
    NEAR_MAX_S,
    Answered,
    Forget,
    Forgotten,
    ForwardState,
    HoldUntil,
    Phase,
    Report,
    Send,
    Trouble,
    Woken,
    step,
)

READY = Woken(has_rows=True, is_connected=True)
STORED = Answered(trouble=Trouble.NONE)
TROUBLES = [trouble for trouble in Trouble if trouble is not Trouble.NONE]


def play(*events, now_ns=0):
    state, effects = ForwardState(), []
    for event in events:
        state, made = step(state, event, now_ns)
        effects.append(made)
    return state, effects


def test_a_batch_is_sent_stored_and_only_then_forgotten():
    state, effects = play(READY, STORED, Forgotten())
    assert effects == [(Send(),), (Forget(),), ()]
    assert state == ForwardState()


def test_nothing_is_sent_without_rows_or_without_a_connection():
    for woken in (Woken(has_rows=False, is_connected=True), Woken(has_rows=True, is_connected=False)):
        state, effects = play(woken)
        assert effects == [()]
        assert state.phase is Phase.IDLE


def test_a_failure_holds_everything_until_its_instant():
    state, effects = play(READY, Answered(trouble=Trouble.HUB_UNREACHABLE, seed=1))
    report, hold = effects[-1]
    assert report == Report(trouble=Trouble.HUB_UNREACHABLE)
    assert 0 < hold.instant_ns <= NEAR_MAX_S * 1e9
    before, made = step(state, READY, hold.instant_ns - 1)
    assert (before, made) == (state, (hold,))
    after, made = step(state, READY, hold.instant_ns)
    assert made == (Send(),)
    assert after.failures == 1, "the count goes on until a batch is stored"


def test_a_lasting_trouble_is_reported_once_and_its_end_once():
    state, reports, now_ns = ForwardState(), [], 0
    outcomes = [Trouble.NO_ANSWER] * 3 + [Trouble.STREAM_FULL] * 2 + [Trouble.NONE]
    for seed, trouble in enumerate(outcomes):
        state, _ = step(state, READY, now_ns)
        state, effects = step(state, Answered(trouble=trouble, seed=seed), now_ns)
        if trouble is Trouble.NONE:
            state, effects = step(state, Forgotten(), now_ns)
        reports += [effect.trouble for effect in effects if isinstance(effect, Report)]
        now_ns = max(now_ns, state.hold_until_ns)
    assert reports == [Trouble.NO_ANSWER, Trouble.STREAM_FULL, Trouble.NONE]


def test_the_back_off_grows_to_its_bound_and_stays_there():
    delays = [choose_backoff_s(failures, 7, base_s=0.1, max_s=0.8) for failures in range(1, 100)]
    assert delays == sorted(delays)
    assert 0.05 <= delays[0] <= 0.1
    assert 0.4 <= delays[-1] <= 0.8


class ForwarderModel(RuleBasedStateMachine):
    """Rows come, the hub stores or fails; the model keeps what is in the outbox and what the hub has."""

    def __init__(self):
        super().__init__()
        self.state = ForwardState()
        self.now_ns = 0
        self.waiting = 0
        self.in_flight = 0
        self.stored = 0
        self.forgotten = 0

    def feed(self, event):
        self.state, effects = step(self.state, event, self.now_ns)
        for effect in effects:
            if isinstance(effect, Send):
                assert self.in_flight == 0, "one batch at a time"
                assert self.now_ns >= self.state.hold_until_ns, "the gate is shut"
                self.in_flight = min(self.waiting, 500)
            elif isinstance(effect, Forget):
                assert self.stored >= self.in_flight
            elif isinstance(effect, HoldUntil):
                assert self.now_ns < effect.instant_ns <= self.now_ns + FAR_MAX_S * 1e9

    @rule(rows=st.integers(1, 2000))
    def append(self, rows):
        self.waiting += rows
        self.feed(Woken(has_rows=True, is_connected=True))

    @rule(is_connected=st.booleans(), later_ns=st.integers(0, 10**10))
    def wake(self, is_connected, later_ns):
        self.now_ns += later_ns
        self.feed(Woken(has_rows=self.waiting > 0, is_connected=is_connected))

    @precondition(lambda self: self.state.phase is Phase.SENDING)
    @rule()
    def store(self):
        self.stored += self.in_flight
        self.feed(Answered(trouble=Trouble.NONE))

    @precondition(lambda self: self.state.phase is Phase.SENDING)
    @rule(trouble=st.sampled_from(TROUBLES[:-1]), seed=st.integers(0, 2**64 - 1), was_stored=st.booleans())
    def fail(self, trouble, seed, was_stored):
        # The answer may be lost after the hub stored the batch: it then comes twice, and the ledger drops it.
        self.stored += self.in_flight if was_stored else 0
        self.in_flight = 0
        self.feed(Answered(trouble=trouble, seed=seed))

    @precondition(lambda self: self.state.phase is Phase.SETTLING)
    @rule(is_full=st.booleans(), seed=st.integers(0, 2**64 - 1))
    def forget(self, is_full, seed):
        if is_full:
            self.in_flight = 0
            self.feed(Answered(trouble=Trouble.NOT_FORGOTTEN, seed=seed))
            return
        self.waiting -= self.in_flight
        self.forgotten += self.in_flight
        self.in_flight = 0
        self.feed(Forgotten())

    @invariant()
    def nothing_is_forgotten_that_was_not_stored(self):
        assert self.forgotten <= self.stored
        assert self.waiting >= 0

    @invariant()
    def a_quiet_machine_with_rows_and_a_link_sends_in_the_end(self):
        state, effects = self.state, ()
        if state.phase in (Phase.IDLE, Phase.HOLDING):
            _, effects = step(state, READY, max(self.now_ns, state.hold_until_ns))
            assert effects == (Send(),)


ForwarderModel.TestCase.settings = settings(stateful_step_count=30)
TestForwarderModel = ForwarderModel.TestCase
