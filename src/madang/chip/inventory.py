"""What a driver knows of its chips between readings, whatever the vendor, and what is granted of them.

Owns the newest reading with the names that grants need, the chips that were lost, the serials by place, and the
refusal of chips that are not there. Refuses to read anything, to read a clock, and to know vendors: what a device is
called is the driver's. Called by chip drivers.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from madang.chip.contract import ChipGrant
from madang.chip.pci import PciFunction
from madang.chip.roster import Roster, StuckWatch
from madang.core import ChipId, Clock, Conflict
from madang.model import Chip


class SeenChip(msgspec.Struct, frozen=True, kw_only=True):
    """A chip and what a grant needs of it.

    Attributes:
        name: by which the vendor's software selects it now; empty where that is not known.
        cpus: CPUs near to it.
    """

    chip: Chip
    name: str
    cpus: tuple[int, ...] = ()


class Inventory:
    """The chips of one driver.

    Args:
        clock: time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: dict[ChipId, SeenChip] = {}
        self._serials: dict[str, str] = {}
        self._roster = Roster()
        self._stuck = StuckWatch()

    @property
    def serials(self) -> Mapping[str, str]:
        """Return the serial by PCI address from all readings so far, for when the vendor's tool is silent."""
        return self._serials

    @property
    def seen(self) -> tuple[SeenChip, ...]:
        """Return the chips of the newest reading."""
        return tuple(self._seen.values())

    def take(
        self, seen: Iterable[SeenChip], wall_s: float, *, functions: tuple[PciFunction, ...] = (), trouble: str = ""
    ) -> tuple[Chip, ...]:
        """Note a reading and return its chips, stuck ones degraded and lost ones failed, sorted by id.

        Args:
            seen: what was read.
            wall_s: when.
            functions: what the PCI bus shows.
            trouble: why the reading is not whole.
        """
        self._seen = {one.chip.chip_id: one for one in seen}
        chips = tuple(one.chip for one in self._seen.values())
        self._serials |= {chip.pci_address: chip.serial for chip in chips if chip.pci_address and chip.serial}
        found = self._stuck.judge(chips, self._clock.monotonic_ns())
        return self._roster.settle(found, wall_s, functions=functions, trouble=trouble)

    def find(self, chip_ids: Sequence[ChipId]) -> tuple[SeenChip, ...]:
        """Return chips in the order asked for; raises Conflict when one is not there or has no name now."""
        missing = [chip_id for chip_id in chip_ids if chip_id not in self._seen or not self._seen[chip_id].name]
        if missing or not chip_ids:
            here = ", ".join(self._seen) or "none"
            raise Conflict(f"chips {', '.join(missing) or '(none asked for)'} are not here: this node has {here}")
        return tuple(self._seen[chip_id] for chip_id in chip_ids)

    def find_core_set(self, chip_id: ChipId, cores: Sequence[int]) -> tuple[SeenChip, tuple[int, ...]]:
        """Return a chip and one of its core sets, ascending; raises Conflict when it is none that may be given."""
        (one,) = self.find((chip_id,))
        wanted = tuple(sorted(cores))
        if wanted not in one.chip.core_sets:
            known = "; ".join(_list(each) for each in one.chip.core_sets) or "none"
            raise Conflict(f"cores {_list(wanted)} of chip {chip_id} are not a set that may be given; it has {known}")
        return one, wanted


def grant(
    chips: Sequence[SeenChip],
    name_device: Callable[[SeenChip], str] = lambda one: one.name,
    env: Mapping[str, str] | None = None,
) -> ChipGrant:
    """Return the grant of whole chips, with the CPUs that are near to any of them."""
    cpus = tuple(sorted({cpu for one in chips for cpu in one.cpus}))
    devices = tuple(name_device(one) for one in chips)
    return ChipGrant(devices=devices, env=dict(env or {}), cpus=cpus, cpu_threads=max(len(cpus), 1))


def grant_part(one: SeenChip, cores: Sequence[int], device: str) -> ChipGrant:
    """Return the grant of some cores of a chip: all CPUs near to it, and of their threads the cores' share."""
    threads = len(one.cpus) * len(cores) // one.chip.cores
    return ChipGrant(devices=(device,), cpus=one.cpus, cpu_threads=max(threads, 1))


def _list(cores: Sequence[int]) -> str:
    return ", ".join(str(core) for core in cores) or "(none)"
