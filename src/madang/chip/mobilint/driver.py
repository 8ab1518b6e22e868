"""Reads Mobilint cards from the exporter of the vendor's device plugin and from the PCI bus.

Owns which function is which device. Refuses to interpret metrics (the codec does) and to hang with the exporter.
Called by the node program every few seconds.
"""

import re
import urllib.request
from collections.abc import Callable

from madang.chip.contract import ChipGrant
from madang.chip.host import TOOL_BYTES_MAX, Host, Patience
from madang.chip.inventory import Inventory, SeenChip, grant
from madang.chip.manifest import load_manifest
from madang.chip.mobilint import codec
from madang.chip.pci import PciFunction, find_functions, is_twin_machine
from madang.chip.values import is_twin, slug
from madang.core import ChipId, Clock, NodeId, Unavailable
from madang.model import Chip, ChipHealth

KIND = "mobilint"
VENDOR = "209f"
METRICS_URL = "http://127.0.0.1:9400/metrics"
_FETCH_S_MAX = 3.0
_DEVICE = re.compile(r"aries\d{1,4}\Z")


def fetch_metrics(url: str = METRICS_URL) -> bytes:
    """Return what the exporter writes; raises Unavailable where it does not answer."""
    # Without proxies: this is the machine itself.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_FETCH_S_MAX) as answer:
            data: bytes = answer.read(TOOL_BYTES_MAX)
            return data
    except (OSError, ValueError) as error:
        raise Unavailable(
            f"the exporter of mobilint-device-plugin does not answer at {url}: {error}",
            next_step="run the vendor's device plugin on this node",
        ) from error


class MobilintDriver:
    """The mobilint driver of one node.

    Args:
        node: whose chips these are.
        clock: time.
        host: the machine.
        fetch: returns the exporter's text.
    """

    kind = KIND

    def __init__(self, node: NodeId, clock: Clock, host: Host, fetch: Callable[[], bytes] = fetch_metrics) -> None:
        self._node = node
        self._clock = clock
        self._host = host
        self._fetch = fetch
        self._manifest = load_manifest(__package__ or "madang.chip.mobilint")
        self._files = Patience("reading sysfs of Mobilint cards")
        self._exporter = Patience("the exporter of mobilint-device-plugin")
        self._inventory = Inventory(clock)

    async def read(self) -> tuple[Chip, ...]:
        """Return every card; one that is gone is failed, and one that cannot be asked is unknown."""
        functions: tuple[tuple[PciFunction, str], ...] = ()
        readings: tuple[codec.Reading, ...] = ()
        trouble, is_simulated = "", False
        try:
            functions, is_simulated = await self._files.call(self._read_files)
            if functions:
                readings = codec.parse_metrics(await self._exporter.call(self._fetch))
        except Unavailable as error:
            trouble = error.message
        wall_s = self._clock.wall_s()
        seen: list[SeenChip] = []
        for function, device in functions:
            reading = _match(device, functions, readings)
            chip = self._view(function, device, reading, trouble, wall_s, is_simulated=is_simulated)
            seen.append(SeenChip(chip=chip, name=reading.device if reading else device, cpus=function.cpus))
        on_bus = tuple(function for function, _ in functions)
        return self._inventory.take(seen, wall_s, functions=on_bus, trouble=trouble)

    def grant(self, chip_ids: tuple[ChipId, ...]) -> ChipGrant:
        """Return `ariesN` for each card; `dev_no` of the vendor's runtime is its number."""
        return grant(self._inventory.find(chip_ids))

    def _read_files(self) -> tuple[tuple[tuple[PciFunction, str], ...], bool]:
        found = [function for function in find_functions(self._host, VENDOR) if not function.is_virtual]
        return tuple((function, self._find_device(function)) for function in found), is_twin_machine(self._host)

    def _find_device(self, function: PciFunction) -> str:
        """Return the character device below a function, where its driver made it a child of it."""
        folder = f"/sys/bus/pci/devices/{function.address}"
        for entry in self._host.names(folder):
            for name in self._host.names(f"{folder}/{entry}"):
                if _DEVICE.match(name):
                    return name
        return ""

    def _view(
        self,
        function: PciFunction,
        device: str,
        reading: codec.Reading | None,
        trouble: str,
        wall_s: float,
        *,
        is_simulated: bool,
    ) -> Chip:
        health, reason = _judge(reading, trouble, device)
        total = (reading.memory_total_bytes if reading else None) or 0
        used = reading.memory_used_bytes if reading else None
        card = self._manifest.find_card(function.pci_id)
        model = (reading.model if reading else "") or (card.product if card else f"device {function.pci_id}")
        return Chip(
            chip_id=ChipId(f"{KIND}-pci-{slug(function.address)}"),
            node=self._node,
            kind=KIND,
            model=model,
            memory_bytes=total,
            memory_free_bytes=None if used is None else total - used,
            health=health,
            reason=reason,
            utilisation=reading.utilisation if reading else None,
            temperature_c=reading.temperature_c if reading else None,
            power_w=reading.power_w if reading else None,
            is_simulated=is_simulated or is_twin(model),
            observed_at_s=wall_s,
            pci_address=function.address,
            numa_node=function.numa_node,
            clock_mhz=reading.clock_mhz if reading else None,
            driver_version=reading.driver if reading else "",
            firmware_version=reading.firmware if reading else "",
        )


def _match(
    device: str, functions: tuple[tuple[PciFunction, str], ...], readings: tuple[codec.Reading, ...]
) -> codec.Reading | None:
    """Return the reading of one function: by its device's name, or because there is but one of each."""
    by_name = next((reading for reading in readings if device and reading.device == device), None)
    if by_name is None and not device and len(functions) == len(readings) == 1:
        return readings[0]
    return by_name


def _judge(reading: codec.Reading | None, trouble: str, device: str) -> tuple[ChipHealth, str]:
    if trouble:
        return ChipHealth.UNKNOWN, trouble
    if reading is None and device:
        return ChipHealth.FAILED, f"the exporter does not list {device}"
    if reading is None:
        return ChipHealth.UNKNOWN, "which of the exporter's devices this is, is not known"
    if reading.is_readable is not True:
        return ChipHealth.FAILED, f"the exporter cannot read {reading.device}"
    if reading.memory_total_bytes is None:
        return ChipHealth.UNKNOWN, f"the exporter gives no memory size of {reading.device}"
    return ChipHealth.OK, ""
