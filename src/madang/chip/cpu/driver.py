"""Reads the machine's processors from /proc and /sys.

Owns which files are read. Refuses to interpret them (the codec does) and to invent: what is not readable is
None. Called by the node program every few seconds.
"""

import asyncio
import contextlib
from pathlib import Path

import msgspec

from madang.chip.contract import ChipGrant
from madang.chip.cpu import codec
from madang.core import ChipId, Clock, Conflict, NodeId
from madang.model import Chip, ChipHealth

CHIP_ID = ChipId("cpu0")
ENGINES_MAX = 8
"""Engines share processors well as long as they share weights; beyond this a small machine only thrashes."""
HOT_C = 95.0
"""Processors throttle at about 100 °C; from here on performance is not what was measured."""
_CPU_SENSORS = frozenset({"coretemp", "k10temp", "zenpower", "cpu_thermal", "x86_pkg_temp", "cpu-thermal"})
_SENSORS_MAX = 256
_CPUS = "sys/devices/system/cpu"


class _Energy(msgspec.Struct, frozen=True):
    """Energy counters by package: microjoules and where they wrap."""

    by_package: dict[str, tuple[int, int | None]]


class _Reading(msgspec.Struct, frozen=True, kw_only=True):
    """All files of one instant, decoded."""

    at_ns: int
    info: codec.CpuInfo
    memory: codec.MemoryInfo
    times: codec.CpuTimes | None
    temperature_c: float | None
    energy: _Energy
    cpus: tuple[int, ...]
    quota_cpus: float | None
    memory_limit_bytes: int | None
    memory_used_bytes: int | None
    clock_mhz: float | None
    power_w_max: float | None
    throttle_count: int | None
    numa_node: int | None
    kernel: str


class CpuDriver:
    """The cpu driver of one node.

    Args:
        node: whose chips these are.
        clock: time.
        root: where `proc` and `sys` lie.
    """

    kind = "cpu"

    def __init__(self, node: NodeId, clock: Clock, root: Path = Path("/")) -> None:
        self._node = node
        self._clock = clock
        self._root = root
        self._last: _Reading | None = None

    async def read(self) -> tuple[Chip, ...]:
        """Return the one chip, with utilisation and power averaged since the reading before."""
        # Sensors behind a slow bus may take a while.
        reading = await asyncio.to_thread(self._read_files)
        before, self._last = self._last, reading
        return (self._make_chip(before, reading),)

    def grant(self, chip_ids: tuple[ChipId, ...]) -> ChipGrant:
        """Return the CPUs that this process may use."""
        if self._last is None or chip_ids != (CHIP_ID,):
            raise Conflict(f"chips {', '.join(chip_ids) or '(none)'} are not here: this node has {CHIP_ID}")
        cpus = self._last.cpus
        return ChipGrant(devices=(CHIP_ID,), cpus=cpus, cpu_threads=codec.threads_of(cpus, self._last.quota_cpus))

    def _make_chip(self, before: _Reading | None, reading: _Reading) -> Chip:
        total_bytes, free_bytes = _memory(reading)
        throttle_reasons = _throttle_reasons(before, reading)
        health, reason = _judge(reading, throttle_reasons)
        return Chip(
            chip_id=CHIP_ID,
            node=self._node,
            kind=self.kind,
            model=f"{reading.info.model}, {codec.threads_of(reading.cpus, reading.quota_cpus)} threads",
            memory_bytes=total_bytes or 0,
            memory_free_bytes=free_bytes,
            engines_max=ENGINES_MAX,
            health=health,
            reason=reason,
            utilisation=codec.utilisation(before.times if before else None, reading.times),
            temperature_c=reading.temperature_c,
            power_w=_power_w(before, reading),
            is_simulated=reading.info.vendor == codec.TWIN_VENDOR,
            observed_at_s=self._clock.wall_s(),
            numa_node=reading.numa_node,
            clock_mhz=reading.clock_mhz,
            power_w_max=reading.power_w_max,
            throttle_reasons=throttle_reasons,
            driver_version=reading.kernel,
        )

    def _read_files(self) -> _Reading:
        quota_cpus, limit_bytes, used_bytes = self._read_cgroup()
        info = codec.parse_cpuinfo(self._bytes("proc/cpuinfo"))
        allowed = codec.parse_allowed_cpus(self._bytes("proc/self/status"))
        cpus = allowed or tuple(range(info.count))
        return _Reading(
            at_ns=self._clock.monotonic_ns(),
            info=info,
            memory=codec.parse_meminfo(self._bytes("proc/meminfo")),
            times=codec.parse_stat(self._bytes("proc/stat")),
            temperature_c=self._read_temperature(),
            energy=self._read_energy(),
            cpus=cpus,
            quota_cpus=quota_cpus,
            memory_limit_bytes=limit_bytes,
            memory_used_bytes=used_bytes,
            clock_mhz=self._read_clock(cpus) or info.clock_mhz,
            power_w_max=self._read_power_limit(),
            throttle_count=self._read_throttle_count(),
            numa_node=self._read_numa_node(),
            kernel=_name(self._bytes("proc/sys/kernel/osrelease"))[:80],
        )

    def _read_clock(self, cpus: tuple[int, ...]) -> float | None:
        """Return the mean clock of the CPUs that may be used, where the kernel scales it."""
        files = [f"{_CPUS}/cpu{cpu}/cpufreq/scaling_cur_freq" for cpu in cpus[:_SENSORS_MAX]]
        clocks = [codec.parse_kilohertz(self._bytes(path)) for path in files]
        known = [clock for clock in clocks if clock is not None]
        return sum(known) / len(known) if known and len(known) == len(clocks) else None

    def _read_power_limit(self) -> float | None:
        """Return the sum of the packages' long-term limits; None unless each has one."""
        folders = self._folders("sys/class/powercap")
        packages = [folder for folder in folders if _name(self._bytes(folder / "name")).startswith("package")]
        limits = [codec.parse_microwatts(self._bytes(one / "constraint_0_power_limit_uw")) for one in packages]
        known = [limit for limit in limits if limit is not None]
        return sum(known) if known and len(known) == len(limits) else None

    def _read_throttle_count(self) -> int | None:
        """Return how often the package of the first CPU was throttled since boot."""
        return codec.parse_int(self._bytes(f"{_CPUS}/cpu0/thermal_throttle/package_throttle_count"))

    def _read_numa_node(self) -> int | None:
        """Return the one NUMA node of the machine, or None where there are several or none is told."""
        nodes = [folder.name for folder in self._folders("sys/devices/system/node") if codec.is_node(folder.name)]
        return int(nodes[0].removeprefix("node")) if len(nodes) == 1 else None

    def _read_temperature(self) -> float | None:
        """Return the hottest processor sensor."""
        found: list[float | None] = []
        for folder in self._folders("sys/class/hwmon"):
            if _name(self._bytes(folder / "name")) in _CPU_SENSORS:
                inputs = sorted((self._root / folder).glob("temp*_input"))[:_SENSORS_MAX]
                found += [codec.parse_millidegrees(self._bytes(path)) for path in inputs]
        for folder in self._folders("sys/class/thermal"):
            if _name(self._bytes(folder / "type")) in _CPU_SENSORS:
                found.append(codec.parse_millidegrees(self._bytes(folder / "temp")))
        return max((value for value in found if value is not None), default=None)

    def _read_energy(self) -> _Energy:
        """Return the package counters of RAPL, which only root may read on most machines."""
        found: dict[str, tuple[int, int | None]] = {}
        for folder in self._folders("sys/class/powercap"):
            if not _name(self._bytes(folder / "name")).startswith("package"):
                continue
            energy_uj = codec.parse_int(self._bytes(folder / "energy_uj"))
            if energy_uj is not None:
                found[folder.name] = (energy_uj, codec.parse_int(self._bytes(folder / "max_energy_range_uj")))
        return _Energy(found)

    def _read_cgroup(self) -> tuple[float | None, int | None, int | None]:
        """Return the tightest CPU quota and memory limit of this process, and what is used under the latter."""
        own = self._bytes("proc/self/cgroup")
        base = Path("sys/fs/cgroup")
        path = codec.parse_cgroup_path(own, "")
        if path is not None and (self._root / base / "cgroup.controllers").exists():
            return self._read_cgroup_v2(base, path)
        cpu = base / "cpu" / (codec.parse_cgroup_path(own, "cpu") or "/").lstrip("/")
        memory = base / "memory" / (codec.parse_cgroup_path(own, "memory") or "/").lstrip("/")
        return (
            codec.cpu_quota(self._bytes(cpu / "cpu.cfs_quota_us"), self._bytes(cpu / "cpu.cfs_period_us")),
            codec.parse_memory_limit(self._bytes(memory / "memory.limit_in_bytes")),
            codec.parse_int(self._bytes(memory / "memory.usage_in_bytes")),
        )

    def _read_cgroup_v2(self, base: Path, path: str) -> tuple[float | None, int | None, int | None]:
        quotas: list[float] = []
        limits: list[tuple[int, int | None]] = []
        folder = base / path.lstrip("/")
        # A limit on any ancestor binds as well.
        for level in (folder, *folder.parents):
            if not level.is_relative_to(base):
                break
            quota = codec.parse_cpu_max(self._bytes(level / "cpu.max"))
            limit = codec.parse_memory_limit(self._bytes(level / "memory.max"))
            if quota is not None:
                quotas.append(quota)
            if limit is not None:
                limits.append((limit, codec.parse_int(self._bytes(level / "memory.current"))))
        limit_bytes, used_bytes = min(limits, key=lambda pair: pair[0], default=(None, None))
        return min(quotas, default=None), limit_bytes, used_bytes

    def _folders(self, path: str) -> list[Path]:
        with contextlib.suppress(OSError):
            return [Path(path) / folder.name for folder in sorted((self._root / path).iterdir())[:_SENSORS_MAX]]
        return []

    def _bytes(self, path: Path | str) -> bytes:
        # Absent, forbidden, or failing in the device: all mean that this quantity is not known.
        try:
            return (self._root / path).read_bytes()
        except OSError:
            return b""


def _name(data: bytes) -> str:
    return data.decode("utf-8", errors="replace").strip()


def _memory(reading: _Reading) -> tuple[int | None, int | None]:
    total_bytes, free_bytes = reading.memory.total_bytes, reading.memory.available_bytes
    limit_bytes, used_bytes = reading.memory_limit_bytes, reading.memory_used_bytes
    if limit_bytes is not None and (total_bytes is None or limit_bytes < total_bytes):
        total_bytes = limit_bytes
        if used_bytes is not None:
            left_bytes = max(limit_bytes - used_bytes, 0)
            free_bytes = left_bytes if free_bytes is None else min(free_bytes, left_bytes)
    return total_bytes, free_bytes


def _throttle_reasons(before: _Reading | None, reading: _Reading) -> tuple[str, ...]:
    if before is None or before.throttle_count is None or reading.throttle_count is None:
        return ()
    return ("thermal",) if reading.throttle_count > before.throttle_count else ()


def _judge(reading: _Reading, throttle_reasons: tuple[str, ...]) -> tuple[ChipHealth, str]:
    if reading.memory.total_bytes is None:
        return ChipHealth.UNKNOWN, "memory cannot be read from /proc/meminfo"
    if reading.times is None:
        return ChipHealth.UNKNOWN, "utilisation cannot be read from /proc/stat"
    if not reading.cpus:
        return ChipHealth.UNKNOWN, "no CPU is named in /proc/self/status or /proc/cpuinfo"
    if reading.temperature_c is not None and reading.temperature_c >= HOT_C:
        return ChipHealth.DEGRADED, f"{reading.temperature_c:.0f} °C; it throttles from {HOT_C:.0f} °C on"
    if throttle_reasons:
        return ChipHealth.DEGRADED, f"throttled since the last reading: {', '.join(throttle_reasons)}"
    return ChipHealth.OK, ""


def _power_w(before: _Reading | None, reading: _Reading) -> float | None:
    if before is None or not reading.energy.by_package:
        return None
    total_w = 0.0
    for package, (energy_uj, wrap_uj) in reading.energy.by_package.items():
        before_uj = before.energy.by_package.get(package, (None, None))[0]
        watts = codec.power_w(before_uj, energy_uj, wrap_uj, reading.at_ns - before.at_ns)
        if watts is None:
            return None
        total_w += watts
    return total_w
