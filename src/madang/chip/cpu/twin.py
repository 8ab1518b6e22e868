"""A simulated machine: a tree of /proc and /sys files that the cpu driver reads instead of the kernel's.

Owns the tree and its faults. Refuses to know the driver; both meet in the kernel's formats. Its cpuinfo states
the vendor `MadangTwin`, so that whatever is read from it is marked as simulated.
"""

from pathlib import Path

from madang.chip.cpu.codec import TWIN_VENDOR

_TICKS_PER_S = 100  # USER_HZ
_ENERGY_WRAP_UJ = 262_143_328_850  # what an Intel package states


class CpuTwin:
    """One simulated machine on disk.

    Args:
        root: an empty folder.
        cpus: how many processors it has.
        memory_bytes: how much memory it has.
    """

    def __init__(self, root: Path, *, cpus: int = 4, memory_bytes: int = 16 * 1024**3) -> None:
        self.root = root
        self._cpus = cpus
        self._memory_bytes = memory_bytes
        self._busy_ticks = self._idle_ticks = 0
        self._energy_uj = 0
        self._throttle_count = 0
        self._write_still()
        self.advance(1.0)

    def advance(
        self,
        elapsed_s: float,
        *,
        utilisation: float = 0.0,
        temperature_c: float = 45.0,
        power_w: float = 40.0,
        memory_free_bytes: int | None = None,
    ) -> None:
        """Let time pass on the simulated machine."""
        ticks = round(elapsed_s * _TICKS_PER_S * self._cpus)
        self._busy_ticks += round(ticks * utilisation)
        self._idle_ticks += ticks - round(ticks * utilisation)
        self._energy_uj = (self._energy_uj + round(power_w * elapsed_s * 1e6)) % (_ENERGY_WRAP_UJ + 1)
        free_bytes = self._memory_bytes // 2 if memory_free_bytes is None else memory_free_bytes
        self.write("proc/stat", f"cpu  {self._busy_ticks} 0 0 {self._idle_ticks} 0 0 0 0 0 0\n")
        self.write(
            "proc/meminfo", f"MemTotal: {self._memory_bytes // 1024} kB\nMemAvailable: {free_bytes // 1024} kB\n"
        )
        self.write("sys/class/hwmon/hwmon0/temp1_input", f"{round(temperature_c * 1000)}\n")
        self.write("sys/class/powercap/intel-rapl:0/energy_uj", f"{self._energy_uj}\n")

    def throttle(self) -> None:
        """Fault: the package is throttled once more."""
        self._throttle_count += 1
        path = "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count"
        self.write(path, f"{self._throttle_count}\n")

    def limit(self, *, cpus: float | None = None, memory_bytes: int | None = None, used_bytes: int = 0) -> None:
        """Put the machine's processes under cgroup v2 limits."""
        self.write("sys/fs/cgroup/cgroup.controllers", "cpu memory\n")
        self.write("proc/self/cgroup", "0::/madang/node\n")
        quota = "max" if cpus is None else str(round(cpus * 100_000))
        self.write("sys/fs/cgroup/madang/cpu.max", f"{quota} 100000\n")
        self.write("sys/fs/cgroup/madang/node/memory.max", "max\n" if memory_bytes is None else f"{memory_bytes}\n")
        self.write("sys/fs/cgroup/madang/node/memory.current", f"{used_bytes}\n")

    def remove(self, path: str) -> None:
        """Fault: a file is gone, as after a driver was unloaded."""
        (self.root / path).unlink()

    def garble(self, path: str, data: bytes = b"\xff\x00nonsense\n") -> None:
        """Fault: a file holds nonsense."""
        (self.root / path).write_bytes(data)

    def forbid(self, path: str) -> None:
        """Fault: a file cannot be read; a folder in its place fails for every user, root included."""
        (self.root / path).unlink()
        (self.root / path).mkdir()

    def write(self, path: str, text: str) -> None:
        """Set the content of one simulated file."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")

    def _write_still(self) -> None:
        blocks = [
            f"processor\t: {number}\nvendor_id\t: {TWIN_VENDOR}\nmodel name\t: Simulated CPU\n"
            for number in range(self._cpus)
        ]
        self.write("proc/cpuinfo", "\n".join(blocks))
        self.write("proc/self/status", f"Name:\tnode\nCpus_allowed_list:\t0-{self._cpus - 1}\n")
        self.write("proc/self/cgroup", "0::/\n")
        self.write("sys/class/hwmon/hwmon0/name", "coretemp\n")
        self.write("sys/class/powercap/intel-rapl:0/name", "package-0\n")
        self.write("sys/class/powercap/intel-rapl:0/max_energy_range_uj", f"{_ENERGY_WRAP_UJ}\n")
        self.write("sys/class/powercap/intel-rapl:0/constraint_0_power_limit_uw", "125000000\n")
        self.write("proc/sys/kernel/osrelease", "6.8.0-madangtwin\n")
        self.write("sys/devices/system/node/node0/cpulist", f"0-{self._cpus - 1}\n")
        self.write("sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count", "0\n")
        for number in range(self._cpus):
            self.write(f"sys/devices/system/cpu/cpu{number}/cpufreq/scaling_cur_freq", "2500000\n")
