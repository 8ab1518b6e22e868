"""A time limit that is moved often and met seldom.

Owns one timer of the loop. Moving a limit further away, or lifting it, costs no call to the loop: the timer that is
already set looks at the newest limit when it fires. Connections and calls hold one each.
"""

import asyncio
from collections.abc import Callable


class Deadline:
    """One limit at a time; setting a new one replaces the one before."""

    __slots__ = ("_callback", "_due", "_handle", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due: float | None = None
        self._callback: Callable[[], None] | None = None
        self._handle: asyncio.TimerHandle | None = None

    def set(self, delay_s: float, callback: Callable[[], None]) -> None:
        """Call `callback` in `delay_s` seconds unless the limit is moved or lifted before."""
        due = self._loop.time() + delay_s
        self._due, self._callback = due, callback
        handle = self._handle
        if handle is not None:
            if handle.when() <= due:
                return
            handle.cancel()
        self._handle = self._loop.call_at(due, self._fire)

    def prolong(self, delay_s: float) -> None:
        """Move a limit that is set to `delay_s` seconds from now, which must not be nearer; without one, do nothing."""
        if self._due is not None:
            self._due = self._loop.time() + delay_s

    def clear(self) -> None:
        """Lift the limit; the timer stays for the next one."""
        self._due = self._callback = None

    def stop(self) -> None:
        """Lift the limit and give the timer back, at the end of a life."""
        self.clear()
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _fire(self) -> None:
        self._handle = None
        due, callback = self._due, self._callback
        if due is None or callback is None:
            return
        if due > self._loop.time() + 0.001:
            self._handle = self._loop.call_at(due, self._fire)
            return
        self.clear()
        callback()
