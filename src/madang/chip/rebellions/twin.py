"""Simulated Rebellions cards: the PCI bus, the kernel driver's sysfs, and an `rbln-smi` of their own.

Owns what they write, in the shapes of the vendor's versions, and their faults. Refuses to know the driver. The sid
of each card begins with `MadangTwin`, so that nothing read from here is ever taken for a real card.
"""

import json
from pathlib import Path

import msgspec

from madang.chip.twin_machine import TwinMachine
from madang.chip.values import TWIN_VENDOR

TOOL = "/usr/bin/rbln-smi"
_PCI_IDS = {
    "RBLN-CA12": "1eff:1120",
    "RBLN-CA22": "1eff:1220",
    "RBLN-CA25": "1eff:1250",
    "RBLN-CR03": "1eff:2030",
}
_DEVICES_PER_CARD = {"RBLN-CA25": 4}
_DRAM_BYTES = {"RBLN-CR03": 150_323_855_360}
_ATOM_DRAM_BYTES = 16_877_879_296  # what a real CA22 shows
_HELD_RATIO = 0.9
"""Of the memory of a device that it opens an engine is said to take so much."""
_ZERO_UUID = "00000000-0000-0000-0000-000000000000"


class TwinDevice(msgspec.Struct, kw_only=True):
    """One simulated device; change its fields, then call `refresh`.

    Attributes:
        sid: of its card.
        address: where it is on the bus.
        numa_node, cpus: what it is near to.
        temperature, power: as text with the vendor's suffix.
        utilisation, memory_used_bytes: its readings.
        is_held: whether some process has it open.
        is_stuck: whether its memory stays in use when the process that opened it has ended.
        status: the tool's word.
        status_number: the kernel driver's number.
        vfs: virtual functions that are enabled on it.
        is_listed: whether the vendor's tool shows it.
    """

    sid: str
    address: str
    numa_node: int = 1
    cpus: str = "0-1"
    temperature: str = "37C"
    power: str = "19400000uW"
    utilisation: float = 0.0
    memory_used_bytes: int = 0
    is_held: bool = False
    is_stuck: bool = False
    status: str = "normal"
    status_number: int = 0
    vfs: int = 0
    is_listed: bool = True


class RebellionsTwin:
    """Simulated cards of one machine.

    Args:
        root: the machine's folder; other twins may share it.
        cards: how many.
        product: `RBLN-CA22` and the like; an ATOM-Max (`RBLN-CA25`) has four devices a card.
        sdk: 1 or 2, whose types of fields the tool has.
    """

    def __init__(self, root: Path, *, cards: int = 1, product: str = "RBLN-CA22", sdk: int = 2) -> None:
        self.machine = TwinMachine(root)
        self.root = root
        self.product = product
        self.sdk = sdk
        self.driver_version = "3.0.0"
        per_card = _DEVICES_PER_CARD.get(product, 1)
        self.devices = [
            TwinDevice(sid=f"{TWIN_VENDOR}{card:06d}", address=f"0000:{0x21 + card * per_card + part:02x}:00.0")
            for card in range(cards)
            for part in range(per_card)
        ]
        for device in self.devices:
            pci_id = _PCI_IDS[product]
            self.machine.add_pci(device.address, pci_id, numa_node=device.numa_node, cpus=device.cpus)
        self.refresh()

    def refresh(self) -> None:
        """Write what the machine shows now."""
        for index, device in enumerate(self.devices):
            folder = f"/sys/class/rebellions/rbln{index}"
            total = self._total_bytes
            for name, text in (
                ("status", str(device.status_number)),
                ("kernel_version", self.driver_version),
                ("fw_ver", "3.2.2"),
                ("card_name", self.product),
                ("dram_used", str(device.memory_used_bytes)),
                ("dram_total", str(total)),
            ):
                self.machine.write(f"{folder}/{name}", f"{text}\n")
            self.machine.link(f"{folder}/device", f"../../../{device.address}")
            self.machine.write(f"/sys/bus/pci/devices/{device.address}/sriov_numvfs", f"{device.vfs}\n")
        listed = [self._describe(index, device) for index, device in enumerate(self.devices) if device.is_listed]
        answer = {"KMD_version": self.driver_version, "devices": listed, "contexts": self._contexts()}
        self.machine.install(TOOL, {"-j": json.dumps(answer)})

    def add_devices(self) -> None:
        """Let the machine have the device nodes that engines' twins open."""
        for index in range(len(self.devices)):
            self.machine.add_device(f"/dev/rbln{index}")

    def follow(self) -> None:
        """Show the memory in use of devices that processes have open by now, or that are stuck."""
        is_changed = False
        for index, device in enumerate(self.devices):
            is_held = bool(self.machine.find_holder(f"/dev/rbln{index}")) or (device.is_stuck and device.is_held)
            if is_held != device.is_held:
                is_changed = True
                device.is_held = is_held
                device.memory_used_bytes = round(self._total_bytes * _HELD_RATIO) if is_held else 0
        if is_changed:
            self.refresh()

    def work(self, number: int, *, utilisation: float = 0.95, memory_used_bytes: int = 12_000_000_000) -> None:
        """Let a device work: 19.4 W idle and 68.7 W at 95 % were measured on a real CA22."""
        device = self.devices[number]
        device.utilisation, device.memory_used_bytes = utilisation, memory_used_bytes
        device.power = f"{round((19.4 + 51.9 * utilisation) * 1e6)}uW"
        device.temperature = f"{37 + round(20 * utilisation)}C"
        self.refresh()

    def lose(self, number: int) -> None:
        """Fault: a device falls off the bus; those behind it are numbered anew."""
        self.machine.remove_pci(self.devices[number].address)
        for index in range(len(self.devices)):
            self.machine.remove(f"/sys/class/rebellions/rbln{index}")
        del self.devices[number]
        self.refresh()

    def fault(self, number: int) -> None:
        """Fault: the kernel driver gave up on a device (an ECC error, a firmware that hangs)."""
        self.devices[number].status, self.devices[number].status_number = "fault", 3
        self.refresh()

    def overheat(self, number: int) -> None:
        """Fault: a device is hot enough to throttle."""
        self.devices[number].temperature = "93C"
        self.refresh()

    def divide(self) -> None:
        """Fault: a tool of another version than the daemon's divides by 1000 once too often."""
        for device in self.devices:
            device.temperature, device.power = "0.037C", "19400uW"
        self.refresh()

    def mismatch(self) -> None:
        """Fault: a kernel driver that is older than the cards."""
        self.driver_version = "1.2.92"
        self.refresh()

    @property
    def _total_bytes(self) -> int:
        return _DRAM_BYTES.get(self.product, _ATOM_DRAM_BYTES)

    def _describe(self, index: int, device: TwinDevice) -> dict[str, object]:
        is_old = self.sdk == 1
        return {
            "group_id": "0",
            "npu": str(index) if is_old else index,
            "name": self.product,
            "sid": device.sid,
            "uuid": _ZERO_UUID,
            "device": f"rbln{index}",
            "status": device.status,
            "fw_ver": "3.2.2",
            "pci": {
                "dev": _PCI_IDS[self.product].partition(":")[2],
                "bus_id": device.address,
                "numa_node": str(device.numa_node),
                "link_speed": "32.0GT/s",
                "link_width": "8",
            },
            "temperature": device.temperature,
            "card_power": device.power,
            **({} if is_old else {"pstate": "P14"}),
            "memory": {"used": str(device.memory_used_bytes), "total": str(self._total_bytes)},
            "util": f"{device.utilisation * 100:.1f}",
            "board_info": "",
            "location": 0,
        }

    def _contexts(self) -> list[dict[str, object]]:
        """Return what runs; the fields have other names in older versions."""
        names = ("cmd", "memory") if self.sdk == 1 else ("process", "memalloc")
        return [
            {
                "ctx_id": "1",
                "npu": str(index),
                names[0]: "python3",
                "pid": 4242 + index,
                names[1]: f"{device.memory_used_bytes}",
                "status": "run",
            }
            for index, device in enumerate(self.devices)
            if device.memory_used_bytes and device.is_listed
        ]
