"""What a driver remembers between readings: which chips there were, and whether their readings still move.

Owns the memory, all of it bounded. Refuses to read a clock and to know vendors. Called by `madang.chip.inventory`.
"""

import msgspec

from madang.chip.pci import PciFunction
from madang.core import ChipId, ns_to_s
from madang.model import Chip, ChipHealth

LOST_MAX = 64
STUCK_S = 300.0
"""A sensor with the resolution of these cards (0.01 °C, or milliwatts) does not repeat itself for five minutes under
load; one that does is not being refreshed."""

_Numbers = tuple[float | None, ...]


class Roster:
    """Keeps chips that were seen and are no longer there, as failed ones, until they come back."""

    def __init__(self) -> None:
        self._last: dict[ChipId, Chip] = {}

    def settle(
        self, found: tuple[Chip, ...], wall_s: float, *, functions: tuple[PciFunction, ...] = (), trouble: str = ""
    ) -> tuple[Chip, ...]:
        """Return `found` and every lost chip, sorted by id.

        Args:
            found: this reading.
            wall_s: its wall time.
            functions: what the PCI bus shows; a function that became the parent of virtual ones is not lost.
            trouble: why the reading is not whole. If the bus shows nothing either, nobody knows whether chips that
                are missing are lost.
        """
        here = {chip.chip_id for chip in found}
        taken = {chip.pci_address for chip in found if chip.pci_address}
        given_away = {function.address for function in functions if function.vfs}
        is_blind = bool(trouble) and not functions
        lost = [
            _lose(chip, wall_s, trouble if is_blind else "")
            for chip_id, chip in self._last.items()
            # A card that was known by its place only, and now by its serial, is not lost.
            if chip_id not in here
            and chip.pci_address not in given_away
            and (chip.serial or chip.pci_address not in taken)
        ]
        self._last = {chip.chip_id: chip for chip in (*lost[-LOST_MAX:], *found)}
        return tuple(sorted(self._last.values(), key=lambda chip: chip.chip_id))


def _lose(chip: Chip, wall_s: float, trouble: str) -> Chip:
    where = f"; it was at {chip.pci_address}" if chip.pci_address else ""
    return msgspec.structs.replace(
        chip,
        health=ChipHealth.UNKNOWN if trouble else ChipHealth.FAILED,
        reason=trouble or f"the card is lost: neither the PCI bus nor the vendor's software shows it{where}",
        memory_free_bytes=None,
        cores_occupied=None,
        utilisation=None,
        temperature_c=None,
        power_w=None,
        clock_mhz=None,
        throttle_reasons=(),
        observed_at_s=wall_s,
    )


class StuckWatch:
    """Notices readings that stand still although the chip works."""

    def __init__(self) -> None:
        self._since: dict[ChipId, tuple[_Numbers, int]] = {}

    def judge(self, chips: tuple[Chip, ...], now_ns: int) -> tuple[Chip, ...]:
        """Return the chips, degraded where temperature, power, utilisation and clock have not moved for STUCK_S."""
        before, self._since = self._since, {}
        return tuple(self._judge_one(chip, now_ns, before.get(chip.chip_id)) for chip in chips)

    def _judge_one(self, chip: Chip, now_ns: int, before: tuple[_Numbers, int] | None) -> Chip:
        numbers = (chip.temperature_c, chip.power_w, chip.utilisation, chip.clock_mhz)
        since_ns = before[1] if before is not None and before[0] == numbers else now_ns
        self._since[chip.chip_id] = (numbers, since_ns)
        still_s = ns_to_s(now_ns - since_ns)
        is_telling = chip.temperature_c is not None and chip.power_w is not None and (chip.utilisation or 0) > 0
        if chip.health is not ChipHealth.OK or not is_telling or still_s < STUCK_S:
            return chip
        reason = f"temperature, power and utilisation have not moved for {still_s:.0f} s under load: a stuck reading"
        return msgspec.structs.replace(chip, health=ChipHealth.DEGRADED, reason=reason)
