"""What the exporter of mobilint-device-plugin writes, to readings.

Owns the metrics and their units (its handler for /metrics). Refuses to fetch them and to raise: -1, which means
unreadable there, and anything that the quantity cannot have is None. Called by the mobilint driver.
"""

import math
import re

import msgspec

from madang.chip.values import as_text, in_range

_LINE = re.compile(r"mobilint_npu_([a-z_]{1,40})\{([^}]{0,2000})\}\s+(\S{1,40})\s*\Z")
_LABEL = re.compile(r'([a-z_]{1,40})="((?:[^"\\]|\\.){0,200})"')
_LINES_MAX = 10_000
_DEVICES_MAX = 64
_BOUNDS = {
    "temperature_celsius": (1.0, 150.0),
    "clock_npu_hz": (1e6, 1e11),
    "power_watts": (0.1, 1000.0),
    "memory_total_bytes": (float(1 << 26), float(1 << 42)),
    "memory_used_bytes": (0.0, float(1 << 42)),
    "utilization_ratio": (0.0, 1.0),
}


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """One device; `is_readable` is None where the exporter does not say."""

    device: str
    is_readable: bool | None = None
    model: str = ""
    driver: str = ""
    firmware: str = ""
    temperature_c: float | None = None
    clock_mhz: float | None = None
    power_w: float | None = None
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    utilisation: float | None = None


def parse_metrics(data: bytes) -> tuple[Reading, ...]:
    """Return the devices in a text of metrics, sorted by name."""
    numbers: dict[str, dict[str, float]] = {}
    infos: dict[str, dict[str, str]] = {}
    for line in data.decode("utf-8", errors="replace").splitlines()[:_LINES_MAX]:
        match = _LINE.match(line.strip())
        if match is None:
            continue
        labels = dict(_LABEL.findall(match[2]))
        device = labels.get("device", "")
        if not re.match(r"aries\d{1,4}\Z", device) or (device not in numbers and len(numbers) >= _DEVICES_MAX):
            continue
        values = numbers.setdefault(device, {})
        if match[1] == "info":
            infos[device] = {name: as_text(text) for name, text in labels.items()}
        elif (value := _parse_value(match[3])) is not None:
            values[match[1]] = value
    return tuple(_make(device, numbers[device], infos.get(device, {})) for device in sorted(numbers))


def _parse_value(text: str) -> float | None:
    """Return a sample's value; the text format of Prometheus writes floats with exponents, and NaN."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _make(device: str, numbers: dict[str, float], info: dict[str, str]) -> Reading:
    def get(name: str) -> float | None:
        return in_range(numbers.get(name), *_BOUNDS[name])

    clock_hz, total, used = get("clock_npu_hz"), get("memory_total_bytes"), get("memory_used_bytes")
    return Reading(
        device=device,
        is_readable=numbers["health"] == 1 if "health" in numbers else None,
        model=info.get("model", ""),
        driver=info.get("driver_version", ""),
        firmware=info.get("firmware_version", ""),
        temperature_c=get("temperature_celsius"),
        clock_mhz=None if clock_hz is None else clock_hz / 1e6,
        power_w=get("power_watts"),
        memory_total_bytes=None if total is None else int(total),
        memory_used_bytes=None if used is None or total is None or used > total else int(used),
        utilisation=get("utilization_ratio"),
    )
