"""Simulated HyperAccel LPU cards: the PCI bus and the vendor's runtime folder, which is all that is known of them.

Owns the tree and its faults. Refuses to know the driver.
"""

from pathlib import Path

from madang.chip.twin_machine import TwinMachine


class HyperaccelTwin:
    """Simulated cards of one machine.

    Args:
        root: the machine's folder; other twins may share it.
        cards: how many.
    """

    def __init__(self, root: Path, *, cards: int = 1) -> None:
        self.machine = TwinMachine(root)
        self.addresses = [f"0000:{0x61 + number:02x}:00.0" for number in range(cards)]
        self.machine.write("/opt/hyperdex/version", "1.6\n")
        for number, address in enumerate(self.addresses):
            self.machine.add_pci(address, "10ee:505c", numa_node=0, cpus="0-1")
            self.machine.link(f"/sys/bus/pci/drivers/xclmgmt/{address}", f"../../devices/{address}")
            work = address.removesuffix(".0") + ".1"
            self.machine.add_pci(work, "10ee:505d", numa_node=0, cpus="0-1")
            self.machine.write(f"/sys/bus/pci/devices/{work}/drm/renderD{128 + number}/dev", "226:128\n")

    def lose(self, number: int) -> None:
        """Fault: a card falls off the bus."""
        address = self.addresses.pop(number)
        self.machine.remove(f"/sys/bus/pci/drivers/xclmgmt/{address}")
        self.machine.remove_pci(address)

    def uninstall(self) -> None:
        """Fault: the vendor's runtime is not there."""
        self.machine.remove("/opt/hyperdex")
