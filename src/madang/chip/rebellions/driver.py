"""Reads Rebellions devices from the vendor's tool, its kernel driver and the PCI bus.

Owns what is asked and in which order. Refuses to interpret it (codec and merge do), to make RSD groups, and to hang
with a card that does. Called by the node program every few seconds.
"""

import msgspec

from madang.chip.contract import ChipGrant
from madang.chip.host import Host, Patience
from madang.chip.inventory import Inventory, grant
from madang.chip.manifest import load_manifest
from madang.chip.pci import find_functions, is_twin_machine
from madang.chip.rebellions import codec
from madang.chip.rebellions.merge import KIND, Sources, merge
from madang.chip.values import decode_text
from madang.core import ChipId, Clock, Conflict, NodeId, Unavailable
from madang.model import Chip

VENDOR = "1eff"
_FOLDERS = ("/usr/bin", "/run/rbln/driver/usr/bin", "/host/usr/bin", "/host/driver/usr/bin", "/usr/local/bin")
TOOLS = (
    *(f"{folder}/rbln-smi" for folder in _FOLDERS),
    "rbln-smi",
    *(f"{folder}/rbln-stat" for folder in _FOLDERS),
    "rbln-stat",
)
"""Where rblnlib-go looks, in its order, then /usr/local/bin (seen in the field) and PATH; then under the older name."""
_CLASS = "/sys/class/rebellions"
_ATTRIBUTES = ("status", "kernel_version", "fw_ver", "card_name", "dram_used", "dram_total")


class RebellionsDriver:
    """The rebellions driver of one node.

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
        self._manifest = load_manifest(__package__ or "madang.chip.rebellions")
        self._files = Patience("reading sysfs of Rebellions devices")
        self._inventory = Inventory(clock)

    async def read(self) -> tuple[Chip, ...]:
        """Return every device; one that is gone is failed, and one that cannot be asked is unknown."""
        try:
            sources = await self._files.call(self._read_files)
        except Unavailable as error:
            sources = Sources(trouble=error.message)
        if sources.functions or sources.attributes or self._host.has_tool(TOOLS):
            sources = await self._ask_tool(sources)
        wall_s = self._clock.wall_s()
        seen = merge(sources, self._manifest, self._node, wall_s, self._inventory.serials)
        return self._inventory.take(seen, wall_s, functions=sources.functions, trouble=sources.trouble)

    def grant(self, chip_ids: tuple[ChipId, ...]) -> ChipGrant:
        """Return `rblnN` for each device and the variables that make only these visible.

        A part of a card is refused: its devices share power, memory controller and fate.
        """
        devices = self._inventory.find(chip_ids)
        groups = {device.chip.group for device in devices} - {""}
        rest = [one.chip for one in self._inventory.seen if one.chip.chip_id not in chip_ids]
        left = [chip.chip_id for chip in rest if chip.group in groups]
        if left:
            raise Conflict(f"chips {', '.join(left)} are on the same card as some of these: all are given or none")
        numbers = ",".join(device.name.removeprefix("rbln") for device in devices)
        return grant(devices, env={"RBLN_VISIBLE_DEVICES": numbers, "RBLN_DEVICES": numbers})

    def _read_files(self) -> Sources:
        found: list[codec.Attributes] = []
        for device in self._host.names(_CLASS):
            folder = f"{_CLASS}/{device}"
            files = {name: self._host.read(f"{folder}/{name}") for name in _ATTRIBUTES}
            found.append(codec.parse_attributes(device, files, self._host.link(f"{folder}/device")))
        return Sources(
            functions=find_functions(self._host, VENDOR),
            attributes=tuple(one for one in found if one.device),
            is_twin_machine=is_twin_machine(self._host),
        )

    async def _ask_tool(self, sources: Sources) -> Sources:
        try:
            output = await self._host.run(TOOLS, ("-j",))
        except Unavailable as error:
            return msgspec.structs.replace(sources, trouble=error.message)
        answer = codec.parse_answer(output.stdout) if output.exit_code == 0 else None
        if answer is None:
            said = decode_text(output.stderr)[:200] or "no JSON object with devices"
            return msgspec.structs.replace(sources, trouble=f"rbln-smi -j ended with {output.exit_code}: {said}")
        return msgspec.structs.replace(sources, answer=answer)
