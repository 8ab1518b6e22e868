"""The retry budget: how many further attempts a gateway worker may make for the requests it takes.

Owns one bucket of attempts. Refuses to know requests and why one failed. Called by a worker before each attempt but
the first of a request.

When engines fail because there is too much work, trying again multiplies the work: three attempts a request turn an
overload into a collapse. So each request earns a fifth of a retry, and a worker with few requests earns a few retries a
second, so that a single engine that dies is still gone around. (Finagle's and gRPC's retry throttling are of this
kind; their defaults are 20 % and ten a second, and ten tokens with a tenth of one earned by each success.)
"""

EARNED_PER_REQUEST = 0.2
EARNED_PER_S = 10.0
HELD_MAX = 100.0
"""What a burst may use: all requests of an engine with 64 slots that dies, and half as many again."""


class RetryBudget:
    """One worker's bucket.

    Invariants: it holds between 0 and HELD_MAX; over any time, attempts that were allowed are at most HELD_MAX, and
    EARNED_PER_REQUEST of the requests, and EARNED_PER_S of the seconds, added.
    """

    __slots__ = ("_held", "_seen_s")

    def __init__(self) -> None:
        """Start full."""
        self._held = HELD_MAX
        self._seen_s: float | None = None

    def earn(self) -> None:
        """Count a request that was taken."""
        self._held = min(HELD_MAX, self._held + EARNED_PER_REQUEST)

    def drain(self) -> None:
        """Forget what was saved up, as after a long storm."""
        self._held = 0.0

    def take(self, now_s: float) -> bool:
        """Return whether another attempt may be made at a monotonic instant, and count it if so."""
        seen_s = now_s if self._seen_s is None else self._seen_s
        self._held = min(HELD_MAX, self._held + EARNED_PER_S * max(0.0, now_s - seen_s))
        self._seen_s = max(seen_s, now_s)
        if self._held < 1.0:
            return False
        self._held -= 1.0
        return True
