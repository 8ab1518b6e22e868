"""The forwarder: when the oldest usage events go to the hub, and how long to hold still when they did not arrive.

Owns one gate for everything that is sent. Refuses to know rows, messages and sockets. Called by the site process,
which performs the effects and feeds each outcome back.

| state   | event                          | next    | effects                                            |
|---------|--------------------------------|---------|----------------------------------------------------|
| IDLE    | Woken, rows wait and connected | SENDING | Send                                               |
| IDLE    | Woken, otherwise               | IDLE    | -                                                  |
| SENDING | Woken                          | SENDING | -                                                  |
| SENDING | Answered STORED                | SETTLING| Forget                                             |
| SENDING | Answered otherwise             | HOLDING | HoldUntil, and Report when the trouble is new      |
| SETTLING| Woken                          | SETTLING| -                                                  |
| SETTLING| Forgotten                      | IDLE    | Report when a trouble is over                      |
| SETTLING| Answered NOT_FORGOTTEN         | HOLDING | HoldUntil, and Report when the trouble is new      |
| HOLDING | Woken before the instant       | HOLDING | HoldUntil                                          |
| HOLDING | Woken at or after it           | as IDLE | as IDLE                                            |

Invariants: at most one batch is between Send and its outcome; rows are forgotten only after the hub said that it
stored them; while HOLDING nothing is sent, whatever wakes the machine.
"""

from enum import StrEnum

import msgspec

from madang.core import s_to_ns
from madang.machine.backoff import choose_backoff_s

NEAR_BASE_S = 0.1
NEAR_MAX_S = 0.8
"""Bounds while the link is down: an attempt costs one local message, and a heal is to be noticed within a second."""
FAR_BASE_S = 0.25
FAR_MAX_S = 5.0
"""Bounds while the hub answers, but not with a stored batch: an attempt costs the WAN and the hub."""


class Trouble(StrEnum):
    """Why usage does not flow, as the site's API shows it; empty while it does."""

    NONE = ""
    HUB_UNREACHABLE = "hub_unreachable"
    NO_ANSWER = "no_answer"
    IN_PROCESS = "in_process"
    STREAM_FULL = "stream_full"
    REFUSED = "refused"
    NOT_FORGOTTEN = "not_forgotten"


class Phase(StrEnum):
    """Where the forwarder stands."""

    IDLE = "idle"
    SENDING = "sending"
    SETTLING = "settling"
    HOLDING = "holding"


class ForwardState(msgspec.Struct, frozen=True, kw_only=True):
    """The machine's whole state; `failures` counts failures in a row, `hold_until_ns` counts while HOLDING."""

    phase: Phase = Phase.IDLE
    failures: int = 0
    hold_until_ns: int = 0
    trouble: Trouble = Trouble.NONE


class Woken(msgspec.Struct, frozen=True, kw_only=True):
    """Something may have changed: rows came, the connection came back, or time passed."""

    has_rows: bool
    is_connected: bool


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """How sending, or forgetting, ended; `trouble` is NONE when the hub stored the batch."""

    trouble: Trouble
    seed: int = 0


class Forgotten(msgspec.Struct, frozen=True, kw_only=True):
    """The rows of the stored batch are gone from the outbox."""


class Send(msgspec.Struct, frozen=True, kw_only=True):
    """Send the oldest rows as one batch and report with Answered."""


class Forget(msgspec.Struct, frozen=True, kw_only=True):
    """Delete the rows of the batch that was stored and report with Forgotten or Answered NOT_FORGOTTEN."""


class HoldUntil(msgspec.Struct, frozen=True, kw_only=True):
    """Wake the machine at this instant."""

    instant_ns: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Tell people once that a trouble began, changed, or (NONE) is over."""

    trouble: Trouble


Event = Woken | Answered | Forgotten
Effect = Send | Forget | HoldUntil | Report


def step(state: ForwardState, event: Event, now_ns: int) -> tuple[ForwardState, tuple[Effect, ...]]:
    """Return the next state and what to do, in order."""
    if isinstance(event, Woken):
        return _on_woken(state, event, now_ns)
    if isinstance(event, Forgotten):
        assert state.phase is Phase.SETTLING
        report = (Report(trouble=Trouble.NONE),) if state.trouble is not Trouble.NONE else ()
        return ForwardState(), report
    if event.trouble is Trouble.NONE:
        assert state.phase is Phase.SENDING
        return msgspec.structs.replace(state, phase=Phase.SETTLING), (Forget(),)
    assert state.phase in (Phase.SENDING, Phase.SETTLING)
    return _hold(state, event, now_ns)


def _on_woken(state: ForwardState, event: Woken, now_ns: int) -> tuple[ForwardState, tuple[Effect, ...]]:
    if state.phase in (Phase.SENDING, Phase.SETTLING):
        return state, ()
    if state.phase is Phase.HOLDING and now_ns < state.hold_until_ns:
        return state, (HoldUntil(instant_ns=state.hold_until_ns),)
    if event.has_rows and event.is_connected:
        return msgspec.structs.replace(state, phase=Phase.SENDING), (Send(),)
    return msgspec.structs.replace(state, phase=Phase.IDLE), ()


def _hold(state: ForwardState, event: Answered, now_ns: int) -> tuple[ForwardState, tuple[Effect, ...]]:
    failures = state.failures + 1
    is_near = event.trouble is Trouble.HUB_UNREACHABLE
    delay_s = choose_backoff_s(
        failures,
        event.seed,
        base_s=NEAR_BASE_S if is_near else FAR_BASE_S,
        max_s=NEAR_MAX_S if is_near else FAR_MAX_S,
    )
    until_ns = now_ns + s_to_ns(delay_s)
    held = ForwardState(phase=Phase.HOLDING, failures=failures, hold_until_ns=until_ns, trouble=event.trouble)
    report = (Report(trouble=event.trouble),) if event.trouble is not state.trouble else ()
    return held, (*report, HoldUntil(instant_ns=until_ns))
