"""What Rebellions' tool and kernel driver write, to readings.

Owns the formats: JSON of `rbln-smi -j` in the shapes of its versions (rblnlib-go, rbln_replaypulse 3.0.0), and the
attributes of /sys/class/rebellions. Refuses to open anything and to raise: what is not understood is None or empty,
never zero; a number that the quantity cannot have is None and named in `refused`. Called by the rebellions driver.
"""

import re

import msgspec

from madang.chip.compatibility import parse_version
from madang.chip.values import (
    Ranges,
    as_list,
    as_number,
    as_quantity,
    as_table,
    as_text,
    decode_json,
    decode_text,
    in_range,
    parse_int,
    parse_pci_address,
)

_DEVICES_MAX = 256
_CELSIUS = {"": 1.0, "c": 1.0, "°c": 1.0}
_WATTS = {"uw": 1e-6, "mw": 1e-3, "w": 1.0}
_TEMPERATURE_C_MIN, _TEMPERATURE_C_MAX = 1.0, 130.0
_POWER_W_MIN, _POWER_W_MAX = 1.0, 1000.0  # 6.1 W was seen idle; REBEL is to draw up to 600 W
_MEMORY_BYTES_MIN, _MEMORY_BYTES_MAX = 1 << 30, 1 << 42
_DATED_STATUS_DRIVER = (3, 2, 2)
"""The newest driver that is known to number its states without PROBING (RBLN-SW/k8s-device-plugin)."""


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """One element of `devices`.

    Attributes:
        name: the product, `RBLN-CA22`.
        device: the local name, `rbln0`.
        sid: what the devices of one card share; empty when absent or all zeros.
        status: the vendor's word in lower case.
        refused: numbers that were not plausible.
        corrected: numbers that came divided by 1000 and were multiplied again.
    """

    name: str
    device: str
    sid: str = ""
    status: str = ""
    firmware: str = ""
    pci_address: str = ""
    pci_device: str = ""
    numa_node: int | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    utilisation: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    refused: tuple[str, ...] = ()
    corrected: tuple[str, ...] = ()


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the tool says of the machine."""

    driver: str
    devices: tuple[Device, ...]


class Attributes(msgspec.Struct, frozen=True, kw_only=True):
    """One device in sysfs, decoded; `status` is the driver's number."""

    device: str
    pci_address: str = ""
    name: str = ""
    driver: str = ""
    firmware: str = ""
    status: int | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None


def parse_answer(data: bytes) -> Answer | None:
    """Return the devices of `rbln-smi -j`, or None when the text is no object with an array of devices."""
    table = as_table(decode_json(data))
    if not isinstance(table.get("devices"), list):
        return None
    devices = [_parse_device(as_table(item)) for item in as_list(table["devices"])[:_DEVICES_MAX]]
    return Answer(driver=as_text(table.get("KMD_version")), devices=tuple(one for one in devices if one.device))


def _parse_device(item: object) -> Device:
    table = as_table(item)
    pci, memory = as_table(table.get("pci")), as_table(table.get("memory"))
    ranges = Ranges()
    temperature_c = as_quantity(table.get("temperature"), _CELSIUS)
    power_w = as_quantity(table.get("card_power"), _WATTS)
    total = ranges.check("memory", as_number(memory.get("total")), _MEMORY_BYTES_MIN, _MEMORY_BYTES_MAX, "B")
    used_max = total if total is not None else _MEMORY_BYTES_MAX
    used = ranges.check("memory in use", as_number(memory.get("used")), 0, used_max, "B")
    percent = ranges.check("utilisation", as_number(table.get("util")), 0.0, 101.0, "%")
    numa = as_number(pci.get("numa_node"))
    return Device(
        name=as_text(table.get("name")),
        device=_device_name(as_text(table.get("device"))),
        sid=parse_sid(as_text(table.get("sid"))),
        status=as_text(table.get("status")).lower(),
        firmware=as_text(table.get("fw_ver")),
        pci_address=parse_pci_address(as_text(pci.get("bus_id"))),
        pci_device=as_text(pci.get("dev")).lower().removeprefix("0x"),
        numa_node=int(numa) if numa is not None and 0 <= numa < 1024 else None,
        temperature_c=ranges.check_thousandth(
            "temperature", temperature_c, _TEMPERATURE_C_MIN, _TEMPERATURE_C_MAX, "°C"
        ),
        power_w=ranges.check_thousandth("power", power_w, _POWER_W_MIN, _POWER_W_MAX, "W"),
        utilisation=None if percent is None else min(percent / 100, 1.0),
        memory_used_bytes=None if used is None else int(used),
        memory_total_bytes=None if total is None else int(total),
        refused=tuple(ranges.refused),
        corrected=tuple(ranges.corrected),
    )


def _device_name(text: str) -> str:
    return text if re.match(r"rbln\d{1,4}\Z", text) else ""


def parse_sid(text: str) -> str:
    """Return what tells cards apart, or empty for one that is all zeros or the like."""
    signs = set(text.lower()) - set("-_x ")
    return text if len(text) >= 4 and len(signs) > 1 else ""


def parse_attributes(device: str, files: dict[str, bytes], address: str) -> Attributes:
    """Return a device's attributes from the files of its folder, and the address that its link shows."""
    text = {name: decode_text(data)[:120] for name, data in files.items()}
    total = in_range(parse_int(files.get("dram_total", b"")), _MEMORY_BYTES_MIN, _MEMORY_BYTES_MAX)
    used = in_range(parse_int(files.get("dram_used", b"")), 0, total if total is not None else _MEMORY_BYTES_MAX)
    status = parse_int(files.get("status", b""))
    return Attributes(
        device=_device_name(device),
        pci_address=parse_pci_address(address),
        name=as_text(text.get("card_name", "")),
        driver=as_text(text.get("kernel_version", "")),
        firmware=as_text(text.get("fw_ver", "")),
        status=status if status is not None and status < 100 else None,
        memory_used_bytes=None if used is None else int(used),
        memory_total_bytes=None if total is None else int(total),
    )


def name_status(status: int, driver: str) -> str:
    """Return what a number of `status` means under this driver: `ready`, `busy`, `init`, `fault`, `finish`.

    A driver newer than any that is known may have inserted PROBING at 2 and moved the rest up; then both meanings
    are given, as in `fault or init`.
    """
    old = {0: "ready", 1: "busy", 2: "init", 3: "fault", 4: "finish"}
    new = {0: "ready", 1: "busy", 2: "probing", 3: "init", 4: "fault", 5: "finish"}
    version = parse_version(driver)
    if version and version <= _DATED_STATUS_DRIVER:
        return old.get(status, f"number {status}")
    meanings = dict.fromkeys(name for table in (old, new) if (name := table.get(status)))
    return " or ".join(meanings) or f"number {status}"
