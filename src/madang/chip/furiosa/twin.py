"""Simulated FuriosaAI cards: the PCI bus, the kernel driver's sysfs, hwmon, and a `furiosa-smi` of their own.

Owns what they write, in the shapes of the vendor, and their faults. Refuses to know the driver. Serials begin with
`MadangTwin`, so that nothing read from here is ever taken for a real card.
"""

import json
from pathlib import Path

import msgspec

from madang.chip.pci import PCI_DEVICES
from madang.chip.twin_machine import TwinMachine
from madang.chip.values import TWIN_VENDOR

TOOL = "/usr/bin/furiosa-smi"
_DRAM_BYTES = 51_002_736_640  # what real RNGDs show
_PES = 8
_HELD_RATIO = 0.9
"""Of the memory of the PEs that it opens an engine is said to take so much."""
_THROTTLE_NAMES = "".join(
    f"0x{mask:08x} THROTTLE_{name}\n"
    for mask, name in (
        (0x01, "IDLE"),
        (0x02, "THERMAL_SLOWDOWN"),
        (0x04, "APP_POWER_CAP"),
        (0x08, "APP_CLOCK_CAP"),
        (0x10, "HW_CLOCK_CAP"),
        (0x20, "HW_BUS_LIMIT"),
        (0x40, "HW_POWER_CAP"),
        (0x80, "GOV_CLOCK_CAP"),
        (0x100, "OTHER"),
    )
)


class TwinCard(msgspec.Struct, kw_only=True):
    """One simulated card; change its fields, then call `refresh`.

    Attributes:
        serial, address: who and where it is.
        numa_node, cpus: what it is near to.
        temperature_c, power_w, clock_mhz, utilisation, memory_used_bytes: its readings; None is not told.
        pes_occupied: which PEs some process has open; None: all while memory is in use, else none.
        pes_stuck: PEs that stay occupied when the process that opened them has ended.
        liveness: the vendor's word.
        throttle_mask, power_limit_mw: as the kernel driver gives them.
        is_listed: whether the vendor's tool shows it.
        firmware: its version.
    """

    serial: str
    address: str
    numa_node: int = 0
    cpus: str = "0-1"
    temperature_c: float | None = 40.98
    power_w: float | None = 38.0
    clock_mhz: int = 2000
    utilisation: float = 0.0
    memory_used_bytes: int = 0
    pes_occupied: tuple[int, ...] | None = None
    pes_stuck: tuple[int, ...] = ()
    liveness: str = "alive"
    throttle_mask: int = 0
    power_limit_mw: int = 300_000
    is_listed: bool = True
    firmware: str = "2026.2.2, c96cc0d"

    @property
    def busy_pes(self) -> tuple[int, ...]:
        """Return the PEs that the vendor's software calls occupied."""
        if self.pes_occupied is not None:
            return self.pes_occupied
        return tuple(range(_PES)) if self.memory_used_bytes else ()


class FuriosaTwin:
    """Simulated cards of one machine.

    Args:
        root: the machine's folder; other twins may share it.
        cards: how many.
        arch: `rngd` or `warboy`.
    """

    def __init__(self, root: Path, *, cards: int = 1, arch: str = "rngd") -> None:
        self.machine = TwinMachine(root)
        self.root = root
        self.arch = arch
        self.tool_version = "2026.1.1"
        self.driver_version = "2026.3.1, e28c5c0"
        self.first_index = 0
        self.cards = [
            TwinCard(
                serial=f"{TWIN_VENDOR}-{arch.upper()}-{number:04d}",
                address=f"0000:{0x81 + number:02x}:00.0",
                numa_node=number * 2 // max(cards, 1),
            )
            for number in range(cards)
        ]
        if arch == "warboy":
            for card in self.cards:
                card.power_w, card.clock_mhz = 1.37, 2000
        for card in self.cards:
            pci_id = "1ed2:0001" if arch == "rngd" else "1ed2:0000"
            self.machine.add_pci(card.address, pci_id, numa_node=card.numa_node, cpus=card.cpus)
            self.machine.write("/sys/bus/pci/drivers/furiosa_rngd/bind", "")
            self.machine.link(f"{PCI_DEVICES}/{card.address}/driver", "../../drivers/furiosa_rngd")
        self.refresh()

    def refresh(self) -> None:
        """Write what the machine shows now."""
        for index, card in self._present():
            self._write_card(index, card)
        listed = [(index, card) for index, card in self._present() if card.is_listed]
        info = json.dumps([self._info(index, card) for index, card in listed], ensure_ascii=False)
        status = json.dumps([self._status(index, card) for index, card in listed])
        selector = "--format" if self.arch == "rngd" else "--output"
        version = f"furiosa-smi {self.tool_version}\ndevice driver {self.driver_version}\n"
        answers = {f"info {selector} json": info, f"status {selector} json": status, "version": version}
        self.machine.install(TOOL, answers)

    def add_devices(self) -> None:
        """Let the machine have a device node for each card, which engines' twins open PE by PE."""
        for index, _ in self._present():
            self.machine.add_device(_device(index))

    def follow(self) -> None:
        """Show as occupied, with their memory, the PEs that processes have open by now, and those that are stuck."""
        is_changed = False
        for index, card in self._present():
            held = {pe for pe in range(_PES) if self.machine.find_holder(_device(index), pe)}
            occupied = tuple(sorted(held | set(card.pes_stuck) & set(card.busy_pes)))
            if occupied != card.busy_pes:
                is_changed = True
                card.pes_occupied = occupied
                card.memory_used_bytes = round(_DRAM_BYTES / _PES * _HELD_RATIO) * len(occupied)
        if is_changed:
            self.refresh()

    def work(self, number: int, *, utilisation: float = 0.9, memory_used_bytes: int = 49_300_000_000) -> None:
        """Let a card work: about 38 W idle and 32.7 W for each busy PE, as was measured on a real one."""
        card = self.cards[number]
        card.utilisation, card.memory_used_bytes = utilisation, memory_used_bytes
        card.power_w = round(38.0 + 8 * 32.7 * utilisation)
        card.temperature_c = round(40.98 + 30 * utilisation, 2)
        self.refresh()

    def lose(self, number: int) -> None:
        """Fault: the card falls off the bus; those behind it are numbered anew, as after a reload of the driver."""
        for index, each in self._present():
            self.machine.remove(self._management(index))
            self.machine.remove(f"{PCI_DEVICES}/{each.address}/hwmon")
        card = self.cards[number]
        self.machine.remove_pci(card.address)
        self.cards.remove(card)
        self.refresh()

    def throttle(self, number: int) -> None:
        """Fault: a card runs under a lower power limit, as one of four did in a real server."""
        card = self.cards[number]
        card.throttle_mask, card.power_limit_mw, card.clock_mhz = 0x4, 225_000, 1700
        self.refresh()

    def kill(self, number: int) -> None:
        """Fault: the card's firmware no longer answers."""
        self.cards[number].liveness = "dead"
        self.refresh()

    def mismatch(self) -> None:
        """Fault: a newer SDK over an older kernel driver, which the vendor warns of."""
        self.tool_version = "2026.4.0"
        self.refresh()

    def _present(self) -> list[tuple[int, TwinCard]]:
        return list(enumerate(self.cards, self.first_index))

    def _management(self, index: int) -> str:
        if self.arch == "rngd":
            return f"/sys/class/rngd_mgmt/rngd!npu{index}mgmt"
        return f"/sys/class/npu_mgmt/npu{index}_mgmt"

    def _write_card(self, index: int, card: TwinCard) -> None:
        folder = self._management(index)
        for name, text in (
            ("platform_type", "FuriosaAI"),
            ("busname", card.address),
            ("device_sn", card.serial),
            ("device_uuid", self._uuid(card)),
            ("device_type", self.arch),
        ):
            self.machine.write(f"{folder}/{name}", f"{text}\n")
        if self.arch != "rngd":
            return
        for name, text in (
            ("fw_version", card.firmware),
            ("version", self.driver_version),
            ("dev", f"234:{index}"),
            ("device_state", "0" if card.liveness == "alive" else "1"),
            ("npu_governor", "performance"),
            ("power_limit_mw", str(card.power_limit_mw)),
            ("throttle_reason", f"0x{card.throttle_mask:08x}"),
            ("throttle_reason_list", _THROTTLE_NAMES),
        ):
            self.machine.write(f"{folder}/{name}", f"{text}\n")
        self._write_cores(index, card)
        self._write_sensors(index, card)

    def _write_cores(self, index: int, card: TwinCard) -> None:
        busy = card.busy_pes
        folder = self._management(index)
        self.machine.write(f"{folder}/npu_clocks", f"{card.clock_mhz * 1_000_000}\n" * _PES)
        self.machine.write(f"{folder}/pe_occupancy", "".join(f"{int(pe in busy)}\n" for pe in range(_PES)))
        share, rest = divmod(card.memory_used_bytes, max(len(busy), 1))
        for pe in range(_PES):
            used = share + (rest if pe == busy[0] else 0) if pe in busy else 0
            status = f"dram_capacity: {_DRAM_BYTES // _PES:#x}\ndram_usage: {used:#x}\n"
            path = f"/sys/class/rngd_mgmt/rngd!npu{index}pe{pe}/alloc_status"
            self.machine.write(path, f"{status}shared_capacity: 0x0\nshared_usage: 0x0\n")

    def _write_sensors(self, index: int, card: TwinCard) -> None:
        folder = f"{PCI_DEVICES}/{card.address}/hwmon/hwmon{index + 2}"
        for name, text in (
            ("name", f"rngd{index}"),
            ("temp1_label", "PEAK"),
            ("temp12_label", "AMBIENT"),
            ("temp12_input", "32000"),
            ("power1_label", "RMS_TOTAL"),
            ("power1_max", str(card.power_limit_mw * 1000)),
        ):
            self.machine.write(f"{folder}/{name}", f"{text}\n")
        if card.temperature_c is not None:
            self.machine.write(f"{folder}/temp1_input", f"{round(card.temperature_c * 1000)}\n")
        if card.power_w is not None:
            self.machine.write(f"{folder}/power1_average", f"{round(card.power_w * 1e6)}\n")

    def _info(self, index: int, card: TwinCard) -> dict[str, str]:
        fields = {
            "arch": self.arch,
            "dev_name": f"npu{index}",
            "device_uuid": self._uuid(card),
            "device_sn": card.serial,
            "firmware": card.firmware,
            "temperature": "N/A" if card.temperature_c is None else f"{card.temperature_c:.2f}°C",
            "power": "N/A" if card.power_w is None else f"{card.power_w:.2f} W",
            "core_clock": f"{card.clock_mhz}MHz",
            "governor": "Performance",
            "pci_bdf": card.address,
            "pci_dev": f"234:{index}",
        }
        return fields if self.arch == "rngd" else {"index": str(index), **fields, "pert": "1.7.0, 1694e18"}

    def _status(self, index: int, card: TwinCard) -> dict[str, object]:
        head = {"arch": self.arch, "device": f"npu{index}", "liveness": card.liveness}
        percent = card.utilisation * 100
        if self.arch != "rngd":
            cores = [{"idx": core, "status": "occupied" if percent else "available"} for core in range(2)]
            shares = [{"pe_core": core, "utilization": percent} for core in range(2)]
            return {"index": str(index), **head, "cores": cores, "pe_utilizations": shares}
        used = {"used_size": card.memory_used_bytes, "total_size": _DRAM_BYTES}
        memory = {"DRAM": {**used, "used_ratio": card.memory_used_bytes / _DRAM_BYTES}}
        busy = card.busy_pes
        pes = [{"pe_core": pe, "pe_occupancy": pe in busy, "pe_utilization": percent} for pe in range(_PES)]
        return {**head, "memory": memory, "pe_utilizations": pes}

    def _uuid(self, card: TwinCard) -> str:
        return f"00000000-0000-4000-8000-{int(card.serial.rpartition('-')[2]):012d}"


def _device(index: int) -> str:
    """Return the node that stands for all PEs of a card here; the kernel driver has one for each group of them."""
    return f"/dev/rngd/npu{index}mgmt"
