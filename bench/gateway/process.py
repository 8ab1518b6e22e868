"""Programs that the bench starts: on which core they run, what they used of it, and their end."""

import os
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
import psutil

PEER_CORE, LOAD_CORE = 0, 1
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_END_S = 15.0


class Usage(msgspec.Struct, frozen=True):
    """What a group of processes used since they began: CPU seconds, and resident MiB now."""

    cpu_s: float
    rss_mib: float


class Program:
    """One process and whatever it starts."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        core: int,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                cwd=cwd,
                env={**os.environ, **(env or {})},
                preexec_fn=lambda: os.sched_setaffinity(0, {core}),
            )
        self.log = log

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_running(self) -> bool:
        return self._process.poll() is None

    def tail(self) -> str:
        """Return the end of its log."""
        return self.log.read_text(errors="replace")[-2000:]

    def stop(self) -> None:
        """End it and whatever it has started."""
        children = tree(self.pid)[1:]
        if self.is_running():
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for pid in children:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def tree(pid: int) -> list[int]:
    """Return a process and its descendants, those that are alive."""
    try:
        process = psutil.Process(pid)
        return [pid, *(child.pid for child in process.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def usage_of(pids: Iterable[int]) -> Usage:
    """Return what processes used, their threads included; one that has ended counts as nothing."""
    ticks = pages = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        ticks += int(fields[11]) + int(fields[12])
        pages += int(fields[21])
    return Usage(ticks * _TICK_S, pages * os.sysconf("SC_PAGESIZE") / 2**20)
