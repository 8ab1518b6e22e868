"""What a chip driver must do, whatever the chip.

Owns the protocol and what an engine is given of its chips. Refuses to know vendors and engines. Implemented by
each folder of `madang.chip`; called by the node program, the only owner of device handles.
"""

from typing import Protocol, runtime_checkable

import msgspec

from madang.core import ChipId
from madang.model import Chip


class ChipGrant(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine that is to run on certain chips must be told and given.

    Vendors number devices anew after a reset, so a grant holds only until the next reading.

    Attributes:
        devices: names by which the vendor's runtime selects exactly these chips, in the order asked for.
        env: environment variables that the runtime needs to see them.
        cpus: logical CPUs near to them; the engine is bound to these.
        cpu_threads: how many threads those CPUs may run at once, under the quota that was found.
        locks: files that the engine's shim holds locked while it lives; the node adds them.
    """

    devices: tuple[str, ...]
    env: dict[str, str] = {}
    cpus: tuple[int, ...] = ()
    cpu_threads: int = 1
    locks: tuple[str, ...] = ()


class ChipDriver(Protocol):
    """One kind of chip on one node."""

    @property
    def kind(self) -> str:
        """Return the driver's name, as artifacts and chips carry it."""
        ...

    async def read(self) -> tuple[Chip, ...]:
        """Return every chip with its newest reading, sorted by `chip_id`.

        A node without such chips gives an empty tuple. A chip that is there and cannot be read has health
        `failed` or `unknown` with a reason; a quantity that cannot be read is None. Raises nothing for broken
        hardware. Vendors' tools may take seconds, so it must not block the event loop.
        """
        ...

    def grant(self, chip_ids: tuple[ChipId, ...]) -> ChipGrant:
        """Return what an engine on these chips needs; raises Conflict when one was not in the last reading."""
        ...


@runtime_checkable
class CoreDriver(ChipDriver, Protocol):
    """A kind of chip whose cores may be given apart: its chips have `core_sets`."""

    def grant_cores(self, chip_id: ChipId, cores: tuple[int, ...]) -> ChipGrant:
        """Return what an engine on one of a chip's core sets needs; raises Conflict as `grant` does."""
        ...
