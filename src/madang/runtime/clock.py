"""The system's clock and entropy: the only place of the product that reads either."""

import secrets
import time


class SystemClock:
    """Clock of this machine.

    Both are the system's own functions: a request asks some ten times, and a method of ours would cost as much again.

    Attributes:
        monotonic_ns: returns CLOCK_MONOTONIC in nanoseconds, which all processes of the machine share.
        wall_s: returns the wall time in seconds.
    """

    monotonic_ns = staticmethod(time.monotonic_ns)
    wall_s = staticmethod(time.time)


class SystemEntropy:
    """Entropy of the operating system."""

    def token_bytes(self, count: int) -> bytes:
        """Return `count` unpredictable bytes."""
        return secrets.token_bytes(count)

    def seed64(self) -> int:
        """Return a seed in [0, 2**64)."""
        return secrets.randbits(64)
