"""Reads FuriosaAI cards from the vendor's tool, its kernel driver, hwmon and the PCI bus.

Owns what is asked and in which order. Refuses to interpret it (codec and merge do), to set anything on a card, and
to hang with a card that does. Called by the node program every few seconds.
"""

import contextlib
from typing import TypeVar

import msgspec

from madang.chip.contract import ChipGrant
from madang.chip.furiosa import codec
from madang.chip.furiosa.merge import KIND, Sensors, Sources, merge
from madang.chip.host import Host, Patience
from madang.chip.inventory import Inventory, grant, grant_part
from madang.chip.manifest import load_manifest
from madang.chip.pci import PCI_DEVICES, find_functions, is_twin_machine
from madang.chip.values import decode_text
from madang.core import ChipId, Clock, NodeId, Unavailable
from madang.model import Chip

VENDOR = "1ed2"
TOOLS = ("furiosa-smi",)
SELECTORS = ("--format", "--output")
"""How builds for RNGD and, before, for Warboy are asked for JSON; the newer one first, as all-smi does."""
_VERSIONS_EVERY = 60  # readings, so every five minutes
_CLASSES = (("/sys/class/rngd_mgmt", "rngd!npu", "mgmt"), ("/sys/class/npu_mgmt", "npu", "_mgmt"))
_ATTRIBUTES = (
    "busname",
    "device_sn",
    "device_uuid",
    "device_type",
    "fw_version",
    "version",
    "device_state",
    "power_limit_mw",
    "throttle_reason",
    "throttle_reason_list",
    "npu_clocks",
    "pe_occupancy",
)
_PES_MAX = 8
_TEMPERATURE, _POWER = "PEAK", "RMS_TOTAL"
"""Labels of the sensors that the vendor's own bindings read."""

T = TypeVar("T")


class FuriosaDriver:
    """The furiosa driver of one node.

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
        self._manifest = load_manifest(__package__ or "madang.chip.furiosa")
        self._files = Patience("reading sysfs of FuriosaAI cards")
        self._selector = ""
        self._versions = ("", "")
        self._readings = 0
        self._inventory = Inventory(clock)

    async def read(self) -> tuple[Chip, ...]:
        """Return every card; a card that is gone is failed, and one that cannot be asked is unknown."""
        try:
            sources = await self._files.call(self._read_files)
        except Unavailable as error:
            sources = Sources(trouble=error.message)
        if sources.functions or sources.management or self._host.has_tool(TOOLS):
            sources = await self._ask_tool(sources)
        wall_s = self._clock.wall_s()
        seen = merge(sources, self._manifest, self._node, wall_s, self._inventory.serials)
        return self._inventory.take(seen, wall_s, functions=sources.functions, trouble=sources.trouble)

    def grant(self, chip_ids: tuple[ChipId, ...]) -> ChipGrant:
        """Return `npu:N` for each card, as `furiosa-llm --devices` takes them, and the CPUs near to all of them."""
        return grant(self._inventory.find(chip_ids), lambda card: codec.name_device(card.name))

    def grant_cores(self, chip_id: ChipId, cores: tuple[int, ...]) -> ChipGrant:
        """Return `npu:N:A-B` for PEs that are one device of the kernel driver, and `npu:N` for all of a card."""
        card, wanted = self._inventory.find_core_set(chip_id, cores)
        if len(wanted) == card.chip.cores:
            return self.grant((chip_id,))
        return grant_part(card, wanted, codec.name_device(card.name, wanted))

    def _read_files(self) -> Sources:
        functions = find_functions(self._host, VENDOR)
        return Sources(
            functions=functions,
            management=tuple(self._read_management()),
            sensors={function.address: self._read_sensors(function.address) for function in functions},
            is_twin_machine=is_twin_machine(self._host),
        )

    def _read_sensors(self, address: str) -> Sensors:
        for entry in self._host.names(f"{PCI_DEVICES}/{address}/hwmon"):
            folder = f"{PCI_DEVICES}/{address}/hwmon/{entry}"
            names = [name for name in self._host.names(folder) if name.endswith("_label")]
            labels = {name: self._host.read(f"{folder}/{name}") for name in names}
            temperature, power = codec.find_sensor(labels, _TEMPERATURE), codec.find_sensor(labels, _POWER)
            return Sensors(
                temperature_c=codec.parse_hwmon_temperature(self._host.read(f"{folder}/{temperature}_input")),
                power_w=codec.parse_hwmon_power(self._host.read(f"{folder}/{power}_average")),
                power_w_max=codec.parse_hwmon_power(self._host.read(f"{folder}/{power}_max")),
            )
        return Sensors()

    def _read_management(self) -> list[codec.Management]:
        found: list[codec.Management] = []
        for folder, head, tail in _CLASSES:
            for entry in self._host.names(folder):
                number = entry.removeprefix(head).removesuffix(tail)
                if entry == f"{head}{number}{tail}" and number.isdigit():
                    files = {name: self._host.read(f"{folder}/{entry}/{name}") for name in _ATTRIBUTES}
                    pes = [f"{folder}/{head}{number}pe{pe}/alloc_status" for pe in range(_PES_MAX)]
                    pe_files = [self._host.read(path) for path in pes]
                    found.append(codec.parse_management(f"npu{number}", files, pe_files))
        return [card for card in found if card.name]

    async def _ask_tool(self, sources: Sources) -> Sources:
        info: tuple[codec.Info, ...] | None = None
        status: tuple[codec.Status, ...] | None = None
        trouble = sources.trouble
        try:
            info = _understood(codec.parse_info(await self._ask_json("info")), "info")
            status = _understood(codec.parse_status(await self._ask_json("status")), "status")
            await self._ask_versions()
        except Unavailable as error:
            trouble = error.message
        return msgspec.structs.replace(
            sources,
            info=info,
            status=status,
            trouble=trouble,
            tool_version=self._versions[0],
            driver_version=self._versions[1],
        )

    async def _ask_versions(self) -> None:
        """Ask for versions now and then: they change only when packages do."""
        if self._readings % _VERSIONS_EVERY == 0:
            with contextlib.suppress(Unavailable):
                self._versions = codec.parse_versions((await self._host.run(TOOLS, ("version",))).stdout)
        self._readings += 1

    async def _ask_json(self, subcommand: str) -> bytes:
        """Return what the tool writes as JSON; the option that selects it depends on the build."""
        said = ""
        for selector in [self._selector] if self._selector else SELECTORS:
            output = await self._host.run(TOOLS, (subcommand, selector, "json"))
            if output.exit_code == 0:
                self._selector = selector
                return output.stdout
            said = said or f"ended with status {output.exit_code}: {decode_text(output.stderr)[:200] or 'no reason'}"
        self._selector = ""
        raise Unavailable(f"furiosa-smi {subcommand} {said}")


def _understood(cards: tuple[T, ...] | None, subcommand: str) -> tuple[T, ...]:
    """Return the cards; raises Unavailable when the answer was none that we know."""
    if cards is None:
        raise Unavailable(f"furiosa-smi {subcommand} did not answer with a JSON array")
    return cards
