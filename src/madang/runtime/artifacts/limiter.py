"""Waits that keep transfers within a rate: one bucket for the whole line, one for each source.

Owns the buckets and the waiting. Refuses the arithmetic (`madang.machine.token_bucket`). Called by the threads that
receive; one limiter serves all transfers of a program.
"""

import threading
from collections.abc import Callable

from madang.core import Clock
from madang.machine.token_bucket import TokenBucket, fill_bucket, take_bytes

_SOURCES_MAX = 256


class RateLimiter:
    """Bytes a second, for all sources together and for each; 0 means no limit.

    Args:
        clock: where time is read.
        line_bytes_s: of all sources together.
        source_bytes_s: of each source.
    """

    def __init__(self, clock: Clock, *, line_bytes_s: int = 0, source_bytes_s: int = 0) -> None:
        self._clock = clock
        self._rates = (line_bytes_s, source_bytes_s)
        self._lock = threading.Lock()
        self._line: TokenBucket | None = None
        self._sources: dict[str, TokenBucket] = {}

    @property
    def is_limited(self) -> bool:
        """Return whether there is any limit; without one, bytes are read in the largest pieces."""
        return any(self._rates)

    def take(self, source: str, count: int, wait: Callable[[float], bool]) -> None:
        """Note that bytes came, and wait until the next may.

        Args:
            source: who sent them.
            count: how many.
            wait: sleeps for so many seconds; returns True when the transfer is not wanted any more.
        """
        if not self.is_limited:
            return
        with self._lock:
            now_ns = self._clock.monotonic_ns()
            line = self._line or fill_bucket(self._rates[0], now_ns)
            one = self._sources.get(source) or fill_bucket(self._rates[1], now_ns)
            self._line, line_ns = take_bytes(line, count, now_ns)
            if len(self._sources) >= _SOURCES_MAX:
                self._sources.clear()
            self._sources[source], source_ns = take_bytes(one, count, now_ns)
        wait_ns = max(line_ns, source_ns)
        if wait_ns:
            wait(wait_ns / 1e9)
