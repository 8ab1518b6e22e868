"""The site's loops about money: with its workers ten times a second, with the hub when there is something to say.

Owns when. Refuses to know amounts: the keeper does. A hub that is away stops nothing but new grants.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

from madang.core import MadangError, SiteId, Unavailable
from madang.runtime.bus import Bus
from madang.runtime.telemetry import EventLog
from madang.site.leases.keeper import LeaseKeeper
from madang.site.link import HubLink
from madang.wire.leases import POTS_PER_ASK_MAX, LeaseAsk, PotAsk, decode_answer, encode_lease, lease_subject

WORKER_PERIOD_S = 0.1
ASK_PERIOD_S = 1.0
ASK_GAP_S = 0.2
"""The least time between two asks: a need is told at once, but not every need by a message of its own."""
ALL_PERIOD_S = 60.0
ANSWER_TIMEOUT_S = 3.0


class LeaseTalk:
    """Runs the keeper."""

    def __init__(self, *, site: str, keeper: LeaseKeeper, bus: Bus, link: HubLink, log: EventLog) -> None:
        """Prepare.

        Args:
            site: our name.
            keeper: loaded before the loops run.
            bus: to the hub.
            link: told of every answer.
            log: gets what stops refilling, once, and its recovery.

        Attributes:
            keeper: the same.
            asks_total, asks_failed_total: messages to the hub, and those that it did not grant.
        """
        self._site = site
        self.keeper = keeper
        self._bus = bus
        self._link = link
        self._log = log
        self._troubled: set[str] = set()
        self.asks_total = 0
        self.asks_failed_total = 0

    def loops(self) -> dict[str, Coroutine[Any, Any, None]]:
        """Return both loops by name."""
        return {"lease_workers": self.run_workers(), "lease_hub": self.run_hub()}

    async def run_workers(self) -> None:
        """Keep the workers' tables filled, for ever."""
        while True:
            try:
                await self.keeper.tick()
                self._note("workers", "")
            except MadangError as error:
                self._note("workers", str(error))
            await asyncio.sleep(WORKER_PERIOD_S)

    async def run_hub(self) -> None:
        """Tell the hub what changed, and everything once a minute, for ever."""
        loop = asyncio.get_running_loop()
        all_at = 0.0
        while True:
            seen = self.keeper.woken.level
            await self._bus.wait_connected()
            is_all = loop.time() >= all_at
            try:
                await self._ask_all(self.keeper.list_asks(is_all=is_all))
                all_at = loop.time() + ALL_PERIOD_S if is_all else all_at
                self._note("hub", "")
            except MadangError as error:
                all_at = 0.0
                self._note("hub", str(error))
            await asyncio.sleep(ASK_GAP_S)
            await self.keeper.woken.wait(seen, ASK_PERIOD_S)

    async def _ask_all(self, asks: list[PotAsk]) -> None:
        """Tell the hub, a message at a time; what does not reach it is told again."""
        for start in range(0, len(asks), POTS_PER_ASK_MAX):
            try:
                await self._ask(asks[start : start + POTS_PER_ASK_MAX])
            except MadangError:
                self.asks_failed_total += 1
                self.keeper.note_asked(is_answered=False)
                self.keeper.mark_due(asks[start:])
                raise
            self.keeper.note_asked(is_answered=True)

    async def _ask(self, asks: list[PotAsk]) -> None:
        self.asks_total += 1
        ask = LeaseAsk(site=SiteId(self._site), life=self.keeper.life, pots=tuple(asks))
        message = await self._bus.request(lease_subject(self._site), encode_lease(ask), timeout_s=ANSWER_TIMEOUT_S)
        answer = decode_answer(message.data)
        self._link.note_contact()
        if answer.error:
            raise Unavailable(f"the hub grants nothing now: {answer.error}")
        if answer.life != self.keeper.life:
            raise Unavailable(f"the hub answered to life {answer.life!r}, not to {self.keeper.life!r}")
        await self.keeper.take_answers(answer.pots)

    def _note(self, what: str, trouble: str) -> None:
        if bool(trouble) == (what in self._troubled):
            return
        if trouble:
            self._troubled.add(what)
            self._log.warning("leases_not_refilled", what=what, reason=trouble)
        else:
            self._troubled.discard(what)
            self._log.info("leases_refilled", what=what)
