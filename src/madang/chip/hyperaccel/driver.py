"""Finds HyperAccel LPU cards on the PCI bus.

Owns where they are looked for. Refuses to say anything about their state: nothing is published that could be read.
Called by the node program every few seconds.
"""

from madang.chip.contract import ChipGrant
from madang.chip.host import Host, Patience
from madang.chip.hyperaccel import codec
from madang.chip.inventory import Inventory, SeenChip, grant
from madang.chip.pci import is_twin_machine, parse_numa_node
from madang.chip.values import parse_cpu_list, slug
from madang.core import ChipId, Clock, NodeId, Unavailable
from madang.model import Chip, ChipHealth

KIND = "hyperaccel"
DRIVER = "/sys/bus/pci/drivers/xclmgmt"
RUNTIME = "/opt/hyperdex"
_DEVICES = "/sys/bus/pci/devices"
_REASON = "the vendor publishes nothing by which its state could be read"


class HyperaccelDriver:
    """The hyperaccel driver of one node.

    Args:
        node: whose chips these are.
        clock: time.
        host: the machine.
    """

    kind = KIND

    def __init__(self, node: NodeId, clock: Clock, host: Host) -> None:
        self._node = node
        self._clock = clock
        self._host = host
        self._files = Patience("reading sysfs of HyperAccel cards")
        self._inventory = Inventory(clock)

    async def read(self) -> tuple[Chip, ...]:
        """Return every card, with health unknown; one that is gone is failed."""
        trouble = ""
        seen: list[SeenChip] = []
        try:
            seen = await self._files.call(self._read_files)
        except Unavailable as error:
            trouble = error.message
        return self._inventory.take(seen, self._clock.wall_s(), trouble=trouble)

    def grant(self, chip_ids: tuple[ChipId, ...]) -> ChipGrant:
        """Return the render node of each card."""
        return grant(self._inventory.find(chip_ids))

    def _read_files(self) -> list[SeenChip]:
        if not self._host.names(RUNTIME):
            return []
        is_simulated = is_twin_machine(self._host)
        seen: list[SeenChip] = []
        for address in codec.parse_cards(self._host.names(DRIVER)):
            chip_id = ChipId(f"{KIND}-pci-{slug(address)}")
            render = codec.parse_render_node(self._host.names(f"{_DEVICES}/{codec.work_function(address)}/drm"))
            chip = Chip(
                chip_id=chip_id,
                node=self._node,
                kind=KIND,
                model="HyperAccel LPU (FPGA)",
                memory_bytes=0,
                health=ChipHealth.UNKNOWN,
                reason=_REASON,
                is_simulated=is_simulated,
                observed_at_s=self._clock.wall_s(),
                pci_address=address,
                numa_node=parse_numa_node(self._host.read(f"{_DEVICES}/{address}/numa_node")),
            )
            cpus = parse_cpu_list(self._host.read(f"{_DEVICES}/{address}/local_cpulist"))
            seen.append(SeenChip(chip=chip, name=render, cpus=cpus))
        return seen
