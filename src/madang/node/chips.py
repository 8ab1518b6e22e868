"""The chips of a node: read every few seconds, and granted to engines.

Owns the newest reading of each. Refuses to know vendors (drivers do) and placement (the site does). Called by the
node program.
"""

import asyncio
from collections.abc import Callable

from madang.chip.contract import ChipDriver, ChipGrant
from madang.core import ChipId, Conflict
from madang.model import Chip
from madang.runtime.telemetry import EventLog

READ_PERIOD_S = 5.0
_READ_S_MAX = 30.0


class ChipBook:
    """Reads chips through their drivers.

    Args:
        drivers: one a kind.
        on_reading: called with all chips after each round.
        log: where a change of health is written.
    """

    def __init__(
        self, drivers: tuple[ChipDriver, ...], on_reading: Callable[[tuple[Chip, ...]], None], log: EventLog
    ) -> None:
        self._drivers = drivers
        self._on_reading = on_reading
        self._log = log
        self._chips: dict[ChipId, tuple[Chip, ChipDriver]] = {}

    async def run(self) -> None:
        """Read for ever."""
        while True:
            await self.read()
            await asyncio.sleep(READ_PERIOD_S)

    async def read(self) -> None:
        """Read every chip once; a driver that hangs keeps its last reading, whose age shows."""
        for driver in self._drivers:
            try:
                async with asyncio.timeout(_READ_S_MAX):
                    found = await driver.read()
            except TimeoutError:
                self._log.error("chip_driver_hangs", kind=driver.kind, waited_s=_READ_S_MAX)
                continue
            self._take(driver, found)
        self._on_reading(tuple(chip for chip, _ in self._chips.values()))

    def _take(self, driver: ChipDriver, found: tuple[Chip, ...]) -> None:
        before = {chip_id: chip for chip_id, (chip, owner) in self._chips.items() if owner is driver}
        for chip_id in before.keys() - {chip.chip_id for chip in found}:
            del self._chips[chip_id]
            self._log.error("chip_vanished", chip_id=chip_id)
        for chip in found:
            self._chips[chip.chip_id] = (chip, driver)
            last = before.get(chip.chip_id)
            if last is None or last.health != chip.health:
                self._log.info("chip_health", chip_id=chip.chip_id, health=chip.health.value, reason=chip.reason)

    def kind_of(self, chip_ids: tuple[ChipId, ...]) -> str:
        """Return the kind of the first of these chips, empty while it is not known."""
        known = [self._chips[chip_id][0].kind for chip_id in chip_ids[:1] if chip_id in self._chips]
        return known[0] if known else ""

    def grant(self, chip_ids: tuple[ChipId, ...]) -> ChipGrant:
        """Return what an engine on these chips needs; raises Conflict when they are not here or of several kinds."""
        missing = [chip_id for chip_id in chip_ids if chip_id not in self._chips]
        if missing or not chip_ids:
            here = ", ".join(self._chips) or "none"
            raise Conflict(f"chips {', '.join(missing) or '(none asked for)'} are not on this node; it has {here}")
        drivers = {id(driver): driver for _, driver in (self._chips[chip_id] for chip_id in chip_ids)}
        if len(drivers) > 1:
            raise Conflict(f"chips {', '.join(chip_ids)} are of several kinds; an engine runs on one")
        return next(iter(drivers.values())).grant(chip_ids)
