"""Classes of requests: who waits for whom when there is not enough for all."""

from enum import StrEnum


class PriorityClass(StrEnum):
    """How urgent a request is. Under overload the lower class is shed first."""

    __hash__ = str.__hash__  # Enum's own is a call of Python for each look-up

    CLINICAL = "clinical"
    INTERACTIVE = "interactive"
    BATCH = "batch"

    @property
    def rank(self) -> int:
        """0 for the most urgent."""
        return _RANKS[self]


def lower_of(first: PriorityClass, second: PriorityClass) -> PriorityClass:
    """Return the less urgent of two classes."""
    return first if _RANKS[first] >= _RANKS[second] else second


_RANKS = {PriorityClass.CLINICAL: 0, PriorityClass.INTERACTIVE: 1, PriorityClass.BATCH: 2}
