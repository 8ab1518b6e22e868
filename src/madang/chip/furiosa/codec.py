"""What FuriosaAI's tool and kernel driver write, to readings.

Owns the formats: JSON of `furiosa-smi info` and `status` in the shapes for RNGD and for Warboy (all-smi's reader of
both, furiosa-smi 2026.x), the text of `version`, attributes of `rngd_mgmt` and hwmon (furiosa-smi-go; the bindings
furiosa-smi 2026.4.0 read the same files, and a test compares with them). Refuses to
open anything and to raise: what is not understood is None or empty, never zero; a number that the quantity cannot
have is None and named in `refused`. Called by the furiosa driver.
"""

import re
from collections.abc import Mapping, Sequence

import msgspec

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

_CARDS_MAX = 64
_CELSIUS = {"": 1.0, "c": 1.0, "°c": 1.0, "℃": 1.0}
_WATTS = {"w": 1.0, "mw": 1e-3, "uw": 1e-6}
_MEGAHERTZ = {"mhz": 1.0, "ghz": 1000.0, "hz": 1e-6}
_TEMPERATURE_C_MIN, _TEMPERATURE_C_MAX = -40.0, 130.0
_POWER_W_MIN, _POWER_W_MAX = 1.0, 1000.0  # idle cards draw 37 W; the connector (12VHPWR) carries 600 W
_CLOCK_MHZ_MAX = 5000.0  # about 2000 seen
_MEMORY_BYTES_MIN, _MEMORY_BYTES_MAX = 1 << 30, 1 << 42

THROTTLE_BITS = (
    (0x01, "idle"),
    (0x02, "thermal_slowdown"),
    (0x04, "app_power_cap"),
    (0x08, "app_clock_cap"),
    (0x10, "hw_clock_cap"),
    (0x20, "hw_bus_limit"),
    (0x40, "hw_power_cap"),
    (0x80, "gov_clock_cap or other_reason"),
    (0x100, "other_reason"),
)
"""Bits of `throttle_reason` as the bindings furiosa-smi 2026.4.0 decode them; furiosa-smi-py 2026.1.2 knew no
governor's cap and had other_reason at 0x80."""
_NOT_THROTTLING = frozenset({"", "idle", "none"})
_OCCUPANCY_WORDS = {"available": False, "occupied": True}
"""CoreStatus of the bindings; `status` of Warboy writes them as words."""


class Info(msgspec.Struct, frozen=True, kw_only=True):
    """One element of `furiosa-smi info`."""

    name: str
    arch: str = ""
    serial: str = ""
    uuid: str = ""
    firmware: str = ""
    pci_address: str = ""
    temperature_c: float | None = None
    power_w: float | None = None
    clock_mhz: float | None = None
    refused: tuple[str, ...] = ()


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """One element of `furiosa-smi status`.

    Attributes:
        liveness: the vendor's word in lower case.
        cores_occupied: PEs that some process has opened; None where it does not say so of every PE.
    """

    name: str
    liveness: str = ""
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    utilisation: float | None = None
    cores_occupied: tuple[int, ...] | None = None
    refused: tuple[str, ...] = ()


class Management(msgspec.Struct, frozen=True, kw_only=True):
    """Attributes of one card in sysfs, decoded.

    Attributes:
        state: "0" while the card is alive.
        cores_occupied: as in Status.
    """

    name: str
    pci_address: str = ""
    serial: str = ""
    uuid: str = ""
    model: str = ""
    firmware: str = ""
    driver: str = ""
    state: str = ""
    clock_mhz: float | None = None
    memory_used_bytes: int | None = None
    cores_occupied: tuple[int, ...] | None = None
    power_w_max: float | None = None
    throttle_reasons: tuple[str, ...] = ()


def parse_info(data: bytes) -> tuple[Info, ...] | None:
    """Return the cards of `info`, or None when the text is not a JSON array."""
    value = decode_json(data)
    if not isinstance(value, list):
        return None
    cards = [_parse_info_card(as_table(item)) for item in value[:_CARDS_MAX]]
    return tuple(card for card in cards if card.name)


def _parse_info_card(item: object) -> Info:
    table = as_table(item)
    ranges = Ranges()
    temperature_c = as_quantity(table.get("temperature"), _CELSIUS)
    power_w = as_quantity(table.get("power"), _WATTS)
    clock_mhz = as_quantity(table.get("core_clock"), _MEGAHERTZ)
    return Info(
        name=_name(table.get("dev_name")) or _name(table.get("index")),
        arch=as_text(table.get("arch")),
        serial=as_text(table.get("device_sn")),
        uuid=as_text(table.get("device_uuid")),
        firmware=as_text(table.get("firmware")),
        pci_address=parse_pci_address(as_text(table.get("pci_bdf"))),
        temperature_c=ranges.check("temperature", temperature_c, _TEMPERATURE_C_MIN, _TEMPERATURE_C_MAX, "°C"),
        power_w=ranges.check("power", power_w, _POWER_W_MIN, _POWER_W_MAX, "W"),
        clock_mhz=ranges.check("clock", clock_mhz, 0.0, _CLOCK_MHZ_MAX, "MHz"),
        refused=tuple(ranges.refused),
    )


def parse_status(data: bytes) -> tuple[Status, ...] | None:
    """Return the cards of `status`, or None when the text is not a JSON array."""
    value = decode_json(data)
    if not isinstance(value, list):
        return None
    cards = [_parse_status_card(as_table(item)) for item in value[:_CARDS_MAX]]
    return tuple(card for card in cards if card.name)


def _parse_status_card(item: object) -> Status:
    table = as_table(item)
    ranges = Ranges()
    dram = as_table(as_table(table.get("memory")).get("DRAM"))
    used, total = as_number(dram.get("used_size")), as_number(dram.get("total_size"))
    total = ranges.check("memory", total, _MEMORY_BYTES_MIN, _MEMORY_BYTES_MAX, "B")
    used = ranges.check("memory in use", used, 0, total if total is not None else _MEMORY_BYTES_MAX, "B")
    return Status(
        name=_name(table.get("device")) or _name(table.get("index")),
        liveness=as_text(table.get("liveness")).lower(),
        memory_used_bytes=None if used is None else int(used),
        memory_total_bytes=None if total is None else int(total),
        utilisation=_mean_utilisation(as_list(table.get("pe_utilizations")), ranges),
        cores_occupied=_find_occupied(table),
        refused=tuple(ranges.refused),
    )


def _mean_utilisation(items: list[object], ranges: Ranges) -> float | None:
    """Return the mean over all PEs, 0 to 1; one PE that cannot be read makes it unknown."""
    shares: list[float] = []
    for item in items[:_CARDS_MAX]:
        table = as_table(item)
        percent = as_number(table.get("pe_utilization", table.get("utilization")))
        # Measured over an interval, so slightly more than all of it is rounding.
        percent = ranges.check("utilisation", percent, 0.0, 101.0, "%")
        if percent is None:
            return None
        shares.append(min(percent / 100, 1.0))
    return sum(shares) / len(shares) if shares else None


def _find_occupied(table: Mapping[str, object]) -> tuple[int, ...] | None:
    """Return the PEs that are occupied: a boolean by PE on RNGD, a word by core on Warboy."""
    pes = [as_table(item) for item in as_list(table.get("pe_utilizations"))[:_CARDS_MAX]]
    told: list[tuple[object, object]] = [(pe.get("pe_core"), pe.get("pe_occupancy")) for pe in pes]
    if all(is_occupied is None for _, is_occupied in told):
        cores = [as_table(item) for item in as_list(table.get("cores"))[:_CARDS_MAX]]
        told = [(core.get("idx"), _OCCUPANCY_WORDS.get(as_text(core.get("status")).lower())) for core in cores]
    found: set[int] = set()
    for number, is_occupied in told:
        core = in_range(as_number(number), 0, _CARDS_MAX)
        if core is None or not isinstance(is_occupied, bool):
            return None
        found |= {int(core)} if is_occupied else set()
    return tuple(sorted(found)) if told else None


def _name(value: object) -> str:
    """Return `npu3` for `npu3`, `3` and 3."""
    match = re.match(r"(?:npu)?(\d{1,4})\Z", as_text(value))
    return f"npu{int(match[1])}" if match else ""


def parse_versions(data: bytes) -> tuple[str, str]:
    """Return the versions of the tool and of the kernel driver from `furiosa-smi version`; empty where absent."""
    tool = driver = ""
    for line in data[:4096].decode("utf-8", errors="replace").splitlines():
        text = decode_text(line.encode())
        if match := re.match(r"furiosa-smi\s+(\S.{0,60})\Z", text):
            tool = match[1]
        elif match := re.match(r"(?:device )?driver\s+(\S.{0,60})\Z", text):
            driver = match[1]
    return tool, driver


def parse_throttle(reason: bytes, names: bytes) -> tuple[str, ...]:
    """Return why a card is throttled, in the vendor's words in lower case.

    Args:
        reason: content of `throttle_reason`: a mask such as `0x00000004`.
        names: content of `throttle_reason_list`, lines that hold a mask and a name such as
            `THROTTLE_APP_POWER_CAP`; the driver's own names are preferred to ours.
    """
    text = decode_text(reason).lower()
    match = re.match(r"(?:0x([0-9a-f]{1,16})|(\d{1,18}))\Z", text)
    if match is None:
        return ()
    mask = int(match[1], 16) if match[1] else int(match[2])
    known = {**dict(THROTTLE_BITS), **_listed_names(names)}
    found = [known.get(1 << bit, f"reason 0x{1 << bit:x}") for bit in range(64) if mask >> bit & 1]
    return tuple(name for name in found if name not in _NOT_THROTTLING)


def _listed_names(data: bytes) -> dict[int, str]:
    found: dict[int, str] = {}
    for line in data[:4096].decode("utf-8", errors="replace").splitlines():
        mask = re.search(r"\b0x([0-9a-f]{1,16})\b", line, re.IGNORECASE)
        name = re.search(r"\b(?:THROTTLE_)?([A-Z][A-Z_]{2,40})\b", line)
        if mask and name and int(mask[1], 16).bit_count() == 1:
            found[int(mask[1], 16)] = name[1].lower()
    return found


def parse_clocks(data: bytes) -> float | None:
    """Return the slowest PE's clock in MHz from `npu_clocks`: hertz, one PE a line."""
    clocks = [parse_int(line) for line in data[:4096].splitlines()]
    known = [clock / 1e6 for clock in clocks if clock is not None]
    return in_range(min(known), 1.0, _CLOCK_MHZ_MAX) if known and len(known) == len(clocks) else None


def parse_memory_used(occupancy: bytes, pe_files: Sequence[bytes]) -> int | None:
    """Return the bytes in use on all PEs.

    Args:
        occupancy: content of `pe_occupancy`: 0 or 1, one PE a line. What is not occupied uses nothing.
        pe_files: content of `alloc_status` of each PE: lines such as `dram_usage: 0x1000`, hexadecimal.
    """
    occupied = parse_occupied(occupancy)
    if occupied is None:
        return None
    total = 0
    for number in occupied:
        used = _parse_pe_used(pe_files[number] if number < len(pe_files) else b"")
        if used is None:
            return None
        total += used
    return total if total <= _MEMORY_BYTES_MAX else None


def parse_occupied(occupancy: bytes) -> tuple[int, ...] | None:
    """Return the PEs that are occupied, by `pe_occupancy`: 0 or 1, one PE a line."""
    lines = [line.strip() for line in occupancy[:4096].splitlines()]
    if not lines or any(line not in (b"0", b"1") for line in lines):
        return None
    return tuple(number for number, line in enumerate(lines) if line == b"1")


def _parse_pe_used(data: bytes) -> int | None:
    found = dict(re.findall(rb"(dram_usage|shared_usage)\s*:\s*(?:0x)?([0-9a-f]{1,15})\b", data[:4096].lower()))
    return sum(int(value, 16) for value in found.values()) if len(found) == 2 else None


def parse_management(name: str, files: dict[str, bytes], pe_files: Sequence[bytes] = ()) -> Management:
    """Return a card's attributes from the files of its folder under /sys/class, and `alloc_status` of each PE."""
    text = {key: decode_text(value)[:120] for key, value in files.items()}
    limit_mw = parse_int(files.get("power_limit_mw", b""))
    return Management(
        name=_name(name),
        pci_address=parse_pci_address(text.get("busname", "")),
        serial=as_text(text.get("device_sn", "")),
        uuid=as_text(text.get("device_uuid", "")),
        model=as_text(text.get("device_type", "")),
        firmware=as_text(text.get("fw_version", "")),
        driver=as_text(text.get("version", "")),
        state=as_text(text.get("device_state", "")),
        clock_mhz=parse_clocks(files.get("npu_clocks", b"")),
        memory_used_bytes=parse_memory_used(files.get("pe_occupancy", b""), pe_files),
        cores_occupied=parse_occupied(files.get("pe_occupancy", b"")),
        power_w_max=in_range(None if limit_mw is None else limit_mw / 1000, _POWER_W_MIN, _POWER_W_MAX),
        throttle_reasons=parse_throttle(files.get("throttle_reason", b""), files.get("throttle_reason_list", b"")),
    )


def name_device(name: str, cores: Sequence[int] = ()) -> str:
    """Return what `furiosa-llm --devices` takes for a card, or for adjacent PEs of it: `npu:3`, `npu:3:5`, `npu:3:4-7`.

    Args:
        name: the card's name now, such as `npu3`.
        cores: ascending, each one more than the last; none for the whole card.
    """
    card = f"npu:{name.removeprefix('npu')}"
    if not cores:
        return card
    assert tuple(cores) == tuple(range(cores[0], cores[-1] + 1)), "a fused device is made of adjacent PEs"
    return f"{card}:{cores[0]}" if len(cores) == 1 else f"{card}:{cores[0]}-{cores[-1]}"


def find_sensor(labels: Mapping[str, bytes], wanted: str) -> str:
    """Return the sensor, such as `temp1`, whose label is `wanted`; labels are by file name, such as `temp1_label`."""
    names = [name for name, data in sorted(labels.items()) if decode_text(data) == wanted]
    return names[0].removesuffix("_label") if names else ""


def parse_hwmon_temperature(data: bytes) -> float | None:
    """Return degrees Celsius from millidegrees."""
    text = data.strip()
    value = parse_int(text.removeprefix(b"-"))
    if value is None:
        return None
    return in_range((-value if text.startswith(b"-") else value) / 1000, _TEMPERATURE_C_MIN, _TEMPERATURE_C_MAX)


def parse_hwmon_power(data: bytes) -> float | None:
    """Return watts from microwatts."""
    value = parse_int(data)
    return None if value is None else in_range(value / 1e6, _POWER_W_MIN, _POWER_W_MAX)
