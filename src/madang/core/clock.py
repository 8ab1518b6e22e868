"""Time and chance as constructor arguments of shells.

Owns the two protocols. Refuses to know any real clock: `madang.runtime.clock` has the system's, tests have
virtual ones. Brains never hold either; they get an instant and a seed with each event.
"""

from typing import Protocol


class Clock(Protocol):
    """Where a shell reads time."""

    def monotonic_ns(self) -> int:
        """Nanoseconds since an arbitrary origin that all processes of one machine share, never going back."""
        ...

    def wall_s(self) -> float:
        """Seconds since 1970-01-01T00:00:00Z; may jump when the machine's clock is set."""
        ...


class Entropy(Protocol):
    """Where a shell gets unpredictable bytes and seeds."""

    def token_bytes(self, count: int) -> bytes:
        """Return `count` unpredictable bytes."""
        ...

    def seed64(self) -> int:
        """Return a seed in [0, 2**64) to hand to a brain."""
        ...
