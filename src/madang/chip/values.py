"""What the codecs of all chips share: numbers with units, names, addresses and JSON of unknown shape.

Owns the tolerance: what is not understood is None or empty, never zero and never an exception. Refuses to know
vendors and to open anything. Called by codecs.
"""

import math
import re
from collections.abc import Mapping

import msgspec

TWIN_VENDOR = "MadangTwin"
"""Stands in serials, vendor names or versions of everything that a twin says, so that it is never taken for real."""

_CPUS_MAX = 65536
_TEXT_MAX = 120
_QUANTITY = re.compile(r"\s*([+-]?\d{1,30}(?:\.\d{1,30})?)\s*([^\s\d]{0,8})\s*\Z")
_ADDRESS = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])\Z")
_NOTHING = frozenset({"", "n/a", "na", "none", "null", "unknown", "-", "not available", "not supported"})


def is_twin(*texts: str) -> bool:
    """Return whether any of these texts was written by a twin."""
    return any(TWIN_VENDOR.lower() in text.lower() for text in texts)


def decode_text(data: bytes) -> str:
    """Return the stripped text of a small file or field; bytes that are not UTF-8 are replaced."""
    return "".join(sign if sign.isprintable() else " " for sign in data.decode("utf-8", errors="replace")).strip()


def decode_json(data: bytes) -> object:
    """Return the JSON value in `data`, or None when it is none."""
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError):
        return None


def as_table(value: object) -> Mapping[str, object]:
    """Return a JSON object, or an empty one in the place of anything else."""
    return value if isinstance(value, dict) else {}


def as_list(value: object) -> list[object]:
    """Return a JSON array, or an empty one in the place of anything else."""
    return value if isinstance(value, list) else []


def as_text(value: object) -> str:
    """Return a JSON string or integer as short printable text; words for "nothing" become empty."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return ""
    text = "".join(sign if sign.isprintable() else " " for sign in str(value)[:_TEXT_MAX]).strip()
    return "" if text.lower() in _NOTHING else text


def as_number(value: object) -> float | None:
    """Return a JSON number, or a string that holds nothing but one."""
    return as_quantity(value, {"": 1.0})


def as_quantity(value: object, units: Mapping[str, float]) -> float | None:
    """Return a quantity in the unit whose factor is 1.

    Args:
        value: a JSON number, or a string such as `148814000uW` or `38.00 W`.
        units: factor by lower-case suffix; a bare number is understood only where the empty suffix is among them.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        number, unit = float(value) if abs(value) < 1e300 else math.inf, ""
    elif isinstance(value, str) and (match := _QUANTITY.match(value)):
        number, unit = float(match[1]), match[2].lower().replace("µ", "u").replace("μ", "u")
    else:
        return None
    factor = units.get(unit)
    return number * factor if factor is not None and math.isfinite(number) else None


def in_range(value: float | None, low: float, high: float) -> float | None:
    """Return `value` if it is one that the quantity can have, else None."""
    return value if value is not None and low <= value <= high else None


class Ranges:
    """Checks the numbers of one card while it is decoded.

    Attributes:
        refused: what the quantity cannot have, in words.
        corrected: what came divided by 1000 and was multiplied again.
    """

    def __init__(self) -> None:
        self.refused: list[str] = []
        self.corrected: list[str] = []

    def check(self, what: str, value: float | None, low: float, high: float, unit: str) -> float | None:
        """Return a value if the quantity can have it; else None, and name it."""
        kept = in_range(value, low, high)
        if value is not None and kept is None:
            self.refused.append(f"{what} {value:g} {unit}")
        return kept

    def check_thousandth(self, what: str, value: float | None, low: float, high: float, unit: str) -> float | None:
        """Check a value that may have been divided by 1000 once too often; below `low` no live card can be."""
        if value is not None and 0 < value < low and (whole := in_range(value * 1000, low, high)) is not None:
            self.corrected.append(f"{what} {value:g} {unit}")
            return whole
        return self.check(what, value, low, high, unit)


def parse_int(data: bytes) -> int | None:
    """Return the one non-negative decimal integer in `data`, or None."""
    text = data.strip()
    return int(text) if 0 < len(text) <= 20 and text.isdigit() else None


def parse_cpu_list(data: bytes) -> tuple[int, ...]:
    """Return the CPUs of a list such as `0-3,8`, ascending; empty when it is malformed."""
    found: set[int] = set()
    for part in data.strip().split(b","):
        first_text, sign, last_text = part.partition(b"-")
        first = parse_int(first_text)
        last = parse_int(last_text) if sign else first
        if first is None or last is None or not first <= last < _CPUS_MAX:
            return ()
        found.update(range(first, last + 1))
    return tuple(sorted(found))


def parse_pci_address(text: str) -> str:
    """Return `domain:bus:device.function` in lower case with four digits of domain, or empty.

    NVML writes eight digits of domain, lspci often none.
    """
    match = _ADDRESS.match(text.strip().lower())
    if match is None:
        return ""
    domain = int(match[1] or "0", 16)
    return f"{domain:04x}:{match[2]}:{match[3]}.{match[4]}" if domain <= 0xFFFFFFFF else ""


def slug(text: str) -> str:
    """Return a text in the alphabet of ids: a-z, 0-9 and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def is_serial(text: str) -> bool:
    """Return whether a serial number can tell one card from another: not blank, not all zeros or the like."""
    signs = set(slug(text).replace("-", ""))
    return len(text) >= 4 and len(signs) > 1
