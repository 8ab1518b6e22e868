"""Listens for what devices tell by themselves, and hands each hint to the poller.

Owns the listeners' life, the counts, and what is said of listening. Refuses to know protocols and to read devices. A
port that is taken is tried again and polling goes on meanwhile: notifications make readings earlier, nothing rests on
them.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from madang.core import Unavailable
from madang.facility.contract import Hint, Listener
from madang.runtime.telemetry import EventLog

RETRY_S = 60.0
"""Between two tries to listen where the port is taken or not allowed."""
REPORT_S = 60.0
"""How often what brought about no reading of its own is logged, once for all of that time, when there was any."""
WOKE, MERGED = "woke", "merged"


class Notifications:
    """The listeners of one site.

    Args:
        listeners: by driver.
        tell: takes a hint; returns whether it brings about a reading of its own.
        log: gets what is listened to, and what was rejected.
        retry_s, report_s: for tests.
    """

    def __init__(
        self,
        listeners: Mapping[str, Listener],
        *,
        tell: Callable[[Hint], bool],
        log: EventLog,
        retry_s: float = RETRY_S,
        report_s: float = REPORT_S,
    ) -> None:
        self._listeners = dict(listeners)
        self._tell = tell
        self._log = log
        self._retry_s = retry_s
        self._report_s = report_s
        self._counts = {driver: {WOKE: 0, MERGED: 0} for driver in self._listeners}

    def list_drivers(self) -> dict[str, bool]:
        """Return whether the devices of each driver are heard now."""
        return {driver: listener.is_listening for driver, listener in self._listeners.items()}

    def count(self, driver: str) -> dict[str, int]:
        """Return how many notifications came since the start by what became of them.

        `woke`: a reading followed. `merged`: it shares the reading of another one. All others were not believed.
        """
        listener, counts = self._listeners[driver], self._counts[driver]
        return {WOKE: counts[WOKE], MERGED: counts[MERGED] + listener.merged, **listener.rejected}

    def loops(self) -> dict[str, Coroutine[Any, Any, None]]:
        """Return the loops by name; all of them run until cancelled. None where nobody is listened to."""
        found = {f"notifications_{driver}": self._run(driver) for driver in self._listeners}
        return found | ({"notifications_report": self._report()} if found else {})

    async def _run(self, driver: str) -> None:
        listener, counts = self._listeners[driver], self._counts[driver]
        if listener.deaf_to:
            self._log.warning(
                "devices_not_listened_to",
                devices=list(listener.deaf_to),
                reason="their addresses are names, and notifications are believed from addresses in digits only",
            )
        try:
            await self._start(driver)
            while True:
                hint = await listener.next_hint()
                counts[WOKE if self._tell(hint) else MERGED] += 1
        finally:
            await listener.stop()

    async def _start(self, driver: str) -> None:
        listener, is_told = self._listeners[driver], False
        while True:
            try:
                await listener.start()
            except Unavailable as error:
                if not is_told:
                    self._log.error("notifications_not_heard", driver=driver, reason=str(error))
                is_told = True
                await asyncio.sleep(self._retry_s)
                continue
            self._log.info("notifications_heard", driver=driver, address=listener.address)
            return

    async def _report(self) -> None:
        before = {driver: dict.fromkeys(self.count(driver), 0) for driver in self._listeners}
        while True:
            await asyncio.sleep(self._report_s)
            for driver in self._listeners:
                counts = self.count(driver)
                more = {what: number - before[driver][what] for what, number in counts.items()}
                before[driver] = counts
                self._say(driver, {what: number for what, number in more.items() if number and what != WOKE})

    def _say(self, driver: str, more: dict[str, int]) -> None:
        merged = more.pop(MERGED, 0)
        if merged:
            self._log.info("notifications_merged", driver=driver, period_s=self._report_s, count=merged)
        if more:
            self._log.warning("notifications_rejected", driver=driver, period_s=self._report_s, **more)
