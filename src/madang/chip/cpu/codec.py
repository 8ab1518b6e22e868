"""Kernel text to readings: /proc, /sys and cgroup files as bytes in, numbers or None out.

Owns the formats (proc(5), sysfs thermal and hwmon, powercap, cgroup v1 and v2). Refuses to open files and to
raise: what is not understood is None, never zero. Called by the cpu driver.
"""

import math

import msgspec

from madang.chip.values import TWIN_VENDOR as TWIN_VENDOR
from madang.chip.values import as_number, in_range
from madang.chip.values import parse_cpu_list as parse_cpu_list
from madang.chip.values import parse_int as parse_int

_TEMPERATURE_C_MIN, _TEMPERATURE_C_MAX = -40.0, 150.0
_CLOCK_MHZ_MIN, _CLOCK_MHZ_MAX = 10.0, 20_000.0
_POWER_W_MAX = 10_000.0
_LIMIT_BYTES_MAX = 1 << 62  # cgroup v1 writes about 2**63 for "no limit"


class CpuInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What /proc/cpuinfo says of the whole machine."""

    model: str
    vendor: str
    count: int
    clock_mhz: float | None = None


class MemoryInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What /proc/meminfo says, in bytes."""

    total_bytes: int | None
    available_bytes: int | None


class CpuTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Clock ticks since boot, over all processors."""

    busy_ticks: int
    total_ticks: int


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")


def parse_cpuinfo(data: bytes) -> CpuInfo:
    """Return model, vendor and number of processors; ARM kernels name an implementer instead of a model."""
    found: dict[str, str] = {}
    count = 0
    for line in _text(data).splitlines():
        key, sign, value = line.partition(":")
        name = key.strip()
        if not sign:
            continue
        count += name == "processor"
        found.setdefault(name, " ".join(value.split())[:120])
    vendor = found.get("vendor_id") or found.get("CPU implementer") or ""
    model = found.get("model name") or found.get("Model") or "unknown CPU"
    clock_mhz = in_range(as_number(found.get("cpu MHz")), _CLOCK_MHZ_MIN, _CLOCK_MHZ_MAX)
    return CpuInfo(model=model, vendor=vendor, count=count, clock_mhz=clock_mhz)


def parse_meminfo(data: bytes) -> MemoryInfo:
    """Return total and available memory; the kernel writes kibibytes."""
    found: dict[str, int] = {}
    for line in data.splitlines():
        fields = line.split()
        if len(fields) == 3 and fields[2] == b"kB":
            value = parse_int(fields[1])
            if value is not None:
                found[_text(fields[0])] = value * 1024
    return MemoryInfo(total_bytes=found.get("MemTotal:"), available_bytes=found.get("MemAvailable:"))


def parse_stat(data: bytes) -> CpuTimes | None:
    """Return busy and total ticks from the `cpu ` line of /proc/stat; idle and iowait are not busy."""
    for line in data.splitlines():
        fields = line.split()
        if len(fields) < 5 or fields[0] != b"cpu":
            continue
        ticks = [parse_int(field) for field in fields[1:9]]
        if any(tick is None for tick in ticks):
            return None
        numbers = [tick or 0 for tick in ticks]
        idle_ticks = sum(numbers[3:5])
        return CpuTimes(busy_ticks=sum(numbers) - idle_ticks, total_ticks=sum(numbers))
    return None


def utilisation(before: CpuTimes | None, after: CpuTimes | None) -> float | None:
    """Return the share of busy ticks between two readings, 0 to 1, or None when nothing can be said."""
    if before is None or after is None:
        return None
    total_ticks = after.total_ticks - before.total_ticks
    busy_ticks = after.busy_ticks - before.busy_ticks
    # iowait may run backwards (proc(5)), and counters start anew after a restore.
    if total_ticks <= 0 or busy_ticks < 0:
        return None
    return min(busy_ticks / total_ticks, 1.0)


def parse_millidegrees(data: bytes) -> float | None:
    """Return degrees Celsius from a sysfs temperature, or None when it is no plausible one."""
    text = data.strip()
    value = parse_int(text.removeprefix(b"-"))
    if value is None:
        return None
    celsius = (-value if text.startswith(b"-") else value) / 1000
    return celsius if _TEMPERATURE_C_MIN <= celsius <= _TEMPERATURE_C_MAX else None


def parse_kilohertz(data: bytes) -> float | None:
    """Return MHz from a cpufreq value."""
    value = parse_int(data)
    return None if value is None else in_range(value / 1000, _CLOCK_MHZ_MIN, _CLOCK_MHZ_MAX)


def parse_microwatts(data: bytes) -> float | None:
    """Return watts from a powercap limit."""
    value = parse_int(data)
    return None if value is None else in_range(value / 1e6, 1.0, _POWER_W_MAX)


def is_node(name: str) -> bool:
    """Return whether a name in /sys/devices/system/node is that of a NUMA node."""
    return name.startswith("node") and name.removeprefix("node").isdecimal()


def power_w(before_uj: int | None, after_uj: int | None, wrap_uj: int | None, elapsed_ns: int) -> float | None:
    """Return mean power between two readings of an energy counter that wraps to zero after `wrap_uj`."""
    if before_uj is None or after_uj is None or elapsed_ns <= 0:
        return None
    energy_uj = after_uj - before_uj
    if energy_uj < 0:
        if wrap_uj is None or before_uj > wrap_uj:
            return None
        energy_uj += wrap_uj + 1
    return energy_uj * 1000 / elapsed_ns


def parse_allowed_cpus(data: bytes) -> tuple[int, ...]:
    """Return the CPUs that /proc/<pid>/status allows."""
    for line in data.splitlines():
        if line.startswith(b"Cpus_allowed_list:"):
            return parse_cpu_list(line.partition(b":")[2])
    return ()


def parse_cgroup_path(data: bytes, controller: str) -> str | None:
    """Return the path of this process in a cgroup hierarchy.

    Args:
        data: content of /proc/self/cgroup.
        controller: a version 1 controller such as `memory`, or the empty string for version 2.
    """
    for line in _text(data).splitlines():
        fields = line.split(":", 2)
        if len(fields) == 3 and controller in fields[1].split(",") and fields[2].startswith("/"):
            path = fields[2]
            return None if ".." in path.split("/") or "\0" in path else path
    return None


def parse_cpu_max(data: bytes) -> float | None:
    """Return how many CPUs a cgroup v2 `cpu.max` allows, or None for no limit."""
    fields = data.split()
    return cpu_quota(fields[0], fields[1]) if len(fields) == 2 else None


def cpu_quota(quota_us: bytes, period_us: bytes) -> float | None:
    """Return how many CPUs a quota per period allows, or None for no limit (`max` or -1)."""
    quota, period = parse_int(quota_us), parse_int(period_us)
    return quota / period if quota and period else None


def parse_memory_limit(data: bytes) -> int | None:
    """Return a cgroup's memory limit in bytes, or None for no limit."""
    value = parse_int(data)
    return value if value is not None and value < _LIMIT_BYTES_MAX else None


def threads_of(cpus: tuple[int, ...], quota_cpus: float | None) -> int:
    """Return how many threads are worth running at once: allowed CPUs, or the quota rounded up, at least 1."""
    count = max(len(cpus), 1)
    return count if quota_cpus is None else max(min(count, math.ceil(quota_cpus)), 1)
