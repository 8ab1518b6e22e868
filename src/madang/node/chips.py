"""The chips of a node: read every few seconds, and granted to engines.

Owns the newest reading of each. Refuses to know vendors (drivers do), leases (the desk does) and placement (the site
does). Called by the node program.
"""

import asyncio
import contextlib
from collections.abc import Callable

import msgspec

from madang.chip.contract import ChipDriver, ChipGrant, CoreDriver
from madang.core import ChipId, Clock, Conflict
from madang.model import Chip, ChipHealth
from madang.runtime.clock import SystemClock
from madang.runtime.telemetry import EventLog

_READ_S_MAX = 30.0
_VANISHED = "it was there and the driver does not find it any more"


class ChipBook:
    """Reads chips through their drivers.

    A chip that vanishes stays known as failed, for as long as this program runs: whoever looks for it finds out, and
    the rest of its card is not given without it.

    Args:
        drivers: one a kind.
        on_reading: called with all chips after each round.
        log: where a change of health is written.
        on_answer: called with what one driver answered, and the monotonic instant at which it was asked.
        is_hurried: whether the next reading is waited for.
        clock: time.
        period_s, hurry_period_s: between readings, and while the next one is waited for.
    """

    def __init__(
        self,
        drivers: tuple[ChipDriver, ...],
        on_reading: Callable[[tuple[Chip, ...]], None],
        log: EventLog,
        *,
        on_answer: Callable[[tuple[Chip, ...], int], None] = lambda _chips, _asked_ns: None,
        is_hurried: Callable[[], bool] = lambda: False,
        clock: Clock | None = None,
        period_s: float = 5.0,
        hurry_period_s: float = 1.0,
    ) -> None:
        self._drivers = drivers
        self._on_reading = on_reading
        self._on_answer = on_answer
        self._is_hurried = is_hurried
        self._log = log
        self._clock = clock or SystemClock()
        self._period_s, self._hurry_period_s = period_s, hurry_period_s
        self._chips: dict[ChipId, tuple[Chip, ChipDriver]] = {}
        self._hurry = asyncio.Event()

    async def run(self) -> None:
        """Read for ever."""
        while True:
            self._hurry.clear()
            await self.read()
            period_s = self._hurry_period_s if self._is_hurried() else self._period_s
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(period_s):
                    await self._hurry.wait()

    def hurry(self) -> None:
        """Let the next reading begin as soon as no other runs."""
        self._hurry.set()

    async def read(self) -> None:
        """Read every chip once; a driver that hangs keeps its last reading, whose age shows."""
        for driver in self._drivers:
            asked_ns = self._clock.monotonic_ns()
            try:
                async with asyncio.timeout(_READ_S_MAX):
                    found = await driver.read()
            except TimeoutError:
                self._log.error("chip_driver_hangs", kind=driver.kind, waited_s=_READ_S_MAX)
                continue
            self._take(driver, found)
            self._on_answer(tuple(chip for chip, owner in self._chips.values() if owner is driver), asked_ns)
        self._on_reading(tuple(chip for chip, _ in self._chips.values()))

    def _take(self, driver: ChipDriver, found: tuple[Chip, ...]) -> None:
        before = {chip_id: chip for chip_id, (chip, owner) in self._chips.items() if owner is driver}
        gone = [before[chip_id] for chip_id in before.keys() - {chip.chip_id for chip in found}]
        for chip in (*found, *(_vanish(chip) for chip in gone)):
            self._chips[chip.chip_id] = (chip, driver)
            last = before.get(chip.chip_id)
            if last is None or last.health != chip.health:
                self._log.info("chip_health", chip_id=chip.chip_id, health=chip.health.value, reason=chip.reason)
            if chip.reason == _VANISHED and last is not None and last.reason != _VANISHED:
                self._log.error("chip_vanished", chip_id=chip.chip_id)

    def kind_of(self, chip_ids: tuple[ChipId, ...]) -> str:
        """Return the kind of the first of these chips, empty while it is not known."""
        known = [self._chips[chip_id][0].kind for chip_id in chip_ids[:1] if chip_id in self._chips]
        return known[0] if known else ""

    def has(self, chip_id: str) -> bool:
        """Return whether a chip is known."""
        return chip_id in self._chips

    def grant(self, chip_ids: tuple[ChipId, ...], cores: tuple[int, ...] = ()) -> ChipGrant:
        """Return what an engine on these chips, or on these cores of the only one, needs.

        Raises Conflict when they are not here, of several kinds, or cannot be given apart.
        """
        here = [chip_id for chip_id, (chip, _) in self._chips.items() if chip.reason != _VANISHED]
        missing = [chip_id for chip_id in chip_ids if chip_id not in here]
        if missing or not chip_ids:
            named = ", ".join(missing) or "(none asked for)"
            raise Conflict(f"chips {named} are not on this node; it has {', '.join(here) or 'none'}")
        drivers = {id(driver): driver for _, driver in (self._chips[chip_id] for chip_id in chip_ids)}
        if len(drivers) > 1:
            raise Conflict(f"chips {', '.join(chip_ids)} are of several kinds; an engine runs on one")
        driver = next(iter(drivers.values()))
        if not cores:
            return driver.grant(chip_ids)
        if len(chip_ids) > 1 or not isinstance(driver, CoreDriver):
            raise Conflict(f"chips {', '.join(chip_ids)} are given whole; cores {cores} of them cannot be given apart")
        return driver.grant_cores(chip_ids[0], cores)


def _vanish(chip: Chip) -> Chip:
    """Return a chip of which nothing is known any more but that it was there."""
    return msgspec.structs.replace(
        chip,
        health=ChipHealth.FAILED,
        reason=_VANISHED,
        memory_free_bytes=None,
        cores_occupied=None,
        utilisation=None,
        temperature_c=None,
        power_w=None,
        clock_mhz=None,
        throttle_reasons=(),
    )
