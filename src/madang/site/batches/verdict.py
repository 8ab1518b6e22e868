"""What an answer of the gateway means for a line of a batch. Pure: one function, one table."""

from enum import Enum

import msgspec

QUOTA_WAIT_S_MAX = 120.0
"""A quota that is free again within this time is a rate; one that is not is a budget, and ends the batch."""


class Verdict(Enum):
    """What to do with the line."""

    DONE = "done"
    """Its result is an answer."""
    FAILED = "failed"
    """Its result is an error: asking again would bring the same."""
    WAIT = "wait"
    """Nothing ran: there is no room now."""
    AGAIN = "again"
    """Something may have run, without a result."""
    STOP = "stop"
    """No line of this batch may run any more."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the gateway said to one line.

    Attributes:
        status: 0 when it said nothing and may have done something, -1 when it was not reached.
        code: of OpenAI's error object; empty without one.
        message: of it.
        retry_after_s: when it said so.
        is_owner_refused: the key that made the batch opens nothing any more.
    """

    status: int
    body: bytes = b""
    code: str = ""
    message: str = ""
    retry_after_s: float | None = None
    is_owner_refused: bool = False


SILENT = 0
UNREACHED = -1
_WAITED_FOR = frozenset((401, 429, 503))
_TRIED_AGAIN = frozenset((SILENT, 408, 500, 502, 504))


def judge(answer: Answer) -> Verdict:
    """Return what an answer means."""
    if 200 <= answer.status < 300:
        return Verdict.DONE
    if answer.is_owner_refused or answer.code == "residency_violation":
        return Verdict.STOP
    if answer.code == "quota_exceeded":
        wait_s = answer.retry_after_s
        return Verdict.WAIT if wait_s is not None and wait_s <= QUOTA_WAIT_S_MAX else Verdict.STOP
    # 401 else: the pass was not taken, since session keys of the two processes are a moment apart.
    if answer.status == UNREACHED or answer.status in _WAITED_FOR:
        return Verdict.WAIT
    return Verdict.AGAIN if answer.status in _TRIED_AGAIN else Verdict.FAILED
