"""Errors classed by what the caller does next.

Owns the four classes. Refuses to know transports: whoever stands at a boundary translates foreign exceptions
into these with `from`, naming operation and target. Anything else that is raised is a bug.
"""


class MadangError(Exception):
    """Base of the four; carries a message for people and the next step to take.

    Attributes:
        message: what failed, where, and what was expected.
        next_step: what the reader can do; may be empty.
    """

    def __init__(self, message: str, *, next_step: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.message} ({self.next_step})" if self.next_step else self.message


class Rejected(MadangError):
    """The request is wrong: fix it before trying again."""


class Conflict(MadangError):
    """The request was based on an older state: re-read, re-plan, try again."""


class Unavailable(MadangError):
    """Not now or not here: try later or elsewhere.

    Attributes:
        retry_after_s: when a retry may succeed, in seconds; None when unknown.
    """

    def __init__(self, message: str, *, next_step: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message, next_step=next_step)
        self.retry_after_s = retry_after_s


class Fault(MadangError):
    """A part is broken: cordon it."""
