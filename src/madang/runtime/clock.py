"""The system's clock and entropy: the only place of the product that reads either."""

import secrets
import time


class SystemClock:
    """Clock of this machine; `monotonic_ns` is CLOCK_MONOTONIC, which all its processes share."""

    def monotonic_ns(self) -> int:
        """Return CLOCK_MONOTONIC in nanoseconds."""
        return time.monotonic_ns()

    def wall_s(self) -> float:
        """Return the wall time in seconds."""
        return time.time()


class SystemEntropy:
    """Entropy of the operating system."""

    def token_bytes(self, count: int) -> bytes:
        """Return `count` unpredictable bytes."""
        return secrets.token_bytes(count)

    def seed64(self) -> int:
        """Return a seed in [0, 2**64)."""
        return secrets.randbits(64)
