"""Which accelerators the PCI bus shows, whether or not a vendor's software works.

Owns the fields of /sys/bus/pci/devices that drivers use (Documentation/ABI/testing/sysfs-bus-pci of the kernel).
Refuses to know vendors. Called by chip drivers first of all: without a function of their vendor they do nothing.
"""

import msgspec

from madang.chip.host import Host
from madang.chip.values import decode_text, is_twin, parse_cpu_list, parse_int, parse_pci_address

SYS_VENDOR = "/sys/class/dmi/id/sys_vendor"
"""Where a machine names who made it (the kernel's dmi-id driver); a twin's machine says so there."""

PCI_DEVICES = "/sys/bus/pci/devices"
_NUMA_NODES_MAX = 1024


class PciFunction(msgspec.Struct, frozen=True, kw_only=True):
    """One PCI function.

    Attributes:
        address: domain:bus:device.function, lower case.
        pci_id: `vendor:device`, four lower-case hexadecimal digits each.
        class_code: six hexadecimal digits.
        numa_node: None where the firmware does not say.
        cpus: CPUs near to it.
        vfs: virtual functions that are enabled on it; a function that has some serves only as their parent.
        is_virtual: whether it is one of those.
    """

    address: str
    pci_id: str
    class_code: str = ""
    numa_node: int | None = None
    cpus: tuple[int, ...] = ()
    vfs: int = 0
    is_virtual: bool = False


def find_functions(host: Host, vendor: str) -> tuple[PciFunction, ...]:
    """Return every function of a vendor (four hexadecimal digits), sorted by address."""
    found: list[PciFunction] = []
    for name in host.names(PCI_DEVICES):
        folder = f"{PCI_DEVICES}/{name}"
        address = parse_pci_address(name)
        if not address or _hex_of(host.read(f"{folder}/vendor")) != vendor:
            continue
        found.append(
            PciFunction(
                address=address,
                pci_id=f"{vendor}:{_hex_of(host.read(f'{folder}/device'))}",
                class_code=_hex_of(host.read(f"{folder}/class")),
                numa_node=parse_numa_node(host.read(f"{folder}/numa_node")),
                cpus=parse_cpu_list(host.read(f"{folder}/local_cpulist")),
                vfs=parse_int(host.read(f"{folder}/sriov_numvfs")) or 0,
                is_virtual=bool(host.link(f"{folder}/physfn")),
            )
        )
    return tuple(sorted(found, key=lambda function: function.address))


def is_twin_machine(host: Host) -> bool:
    """Return whether this machine is a twin's."""
    return is_twin(decode_text(host.read(SYS_VENDOR)))


def parse_numa_node(data: bytes) -> int | None:
    """Return a NUMA node; the kernel writes -1 where it does not know."""
    node = parse_int(data)
    return node if node is not None and node < _NUMA_NODES_MAX else None


def _hex_of(data: bytes) -> str:
    return decode_text(data).lower().removeprefix("0x")[:8]
