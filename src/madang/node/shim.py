"""Keeps one engine: starts it with limits, writes its log, records it on disk, ends it, and dies with it.

Owns one engine process and its files. Refuses to import anything but the standard library, to restart and to
decide: it stays in memory beside every engine and must outlive the node program, which reads its record. Started
by the node program as `python -I -S shim.py LAUNCH.json` in a session of its own, with the writing end of a pipe
as descriptor 3, on which it reports `ok` once the record is written.

SIGTERM ends the engine (SIGTERM to its group, SIGKILL after `term_s`). The engine asks the kernel for SIGKILL
when its shim dies, so that a killed shim leaves nothing behind. The lock of the replica's folder is held as long
as the shim lives: there are never two engines for one replica. So are the locks of its chips: never two engines on
one card, even if whoever starts them lost its records.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import resource
import select
import signal
import sys
import time
from typing import Any

READY_FD = 3
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_READ_BYTES = 65536
_DESCRIPTORS_MAX = 65536
_CHECK_MS = 1000
"""How often the engine is looked at without a signal; a lost SIGCHLD must not keep a dead engine."""
_OOM_SCORE = b"500"
"""Engines are the largest processes and are started again; the control plane should not die for them."""


class RotatingLog:
    """A log of at most twice `bytes_max`; what cannot be written is dropped, for the engine must not wait."""

    def __init__(self, path: str, bytes_max: int) -> None:
        self._path = path
        self._bytes_max = bytes_max
        self._descriptor = -1
        self._size = 0

    def write(self, data: bytes) -> None:
        """Append `data`, rotating first when it would not fit."""
        with contextlib.suppress(OSError):
            if self._descriptor < 0:
                self._open()
            if self._size + len(data) > self._bytes_max:
                os.close(self._descriptor)
                self._descriptor = -1
                os.replace(self._path, self._path + ".1")
                self._open()
            self._size += os.write(self._descriptor, data)

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o600)
        self._size = os.fstat(self._descriptor).st_size


def start_ticks(pid: int) -> int:
    """Return the start time of a live process; as `madang.runtime.process`, which cannot be imported here."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        text = file.read()
    return int(text[text.rindex(b")") + 2 :].split()[19])


def main(path: str) -> int:
    """Run the engine that the launch file describes until it ends."""
    # Nothing that our ancestors left open may live as long as an engine does, least of all a listening socket.
    os.closerange(READY_FD + 1, _DESCRIPTORS_MAX)
    with open(path, encoding="utf-8") as file:
        launch: dict[str, Any] = json.load(file)
    lock = os.open(launch["lock"], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _report("another engine of this replica still lives")
    for chip_lock in launch.get("chip_locks", ()):
        try:
            # Held until this process ends; the descriptor is kept by nobody else.
            fcntl.flock(os.open(chip_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return _report(f"another engine still has the chip of {chip_lock}")
    waker = _catch_signals()
    output, engine_output = os.pipe()
    shim_pid = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become_engine(launch, shim_pid, engine_output)
    os.close(engine_output)
    record = {
        "version": 1,
        "replica_id": launch["replica_id"],
        "spec_hash": launch["spec_hash"],
        "nonce": launch["nonce"],
        "launch": launch["launch"],
        "host": launch["host"],
        "port": launch["port"],
        "shim": {"pid": shim_pid, "start_ticks": start_ticks(shim_pid)},
        # The child cannot be gone altogether before it is waited for, so its entry in /proc is there.
        "engine": {"pid": pid, "start_ticks": start_ticks(pid)},
        "exit": None,
    }
    try:
        _write_record(launch["record"], record)
    except OSError as error:
        os.kill(pid, signal.SIGKILL)
        return _report(f"cannot write {launch['record']}: {error.strerror}")
    _report("ok")
    status = _Watch(launch, pid, output, waker).run()
    record["exit"] = _describe(status)
    with contextlib.suppress(OSError):
        _write_record(launch["record"], record)
    return 0


def _report(text: str) -> int:
    with contextlib.suppress(OSError):
        os.write(READY_FD, text.encode())
        os.close(READY_FD)
    return 75  # sysexits.h EX_TEMPFAIL


def _catch_signals() -> int:
    waker, wake = os.pipe()
    os.set_blocking(waker, False)
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda _number, _frame: None)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    return waker


def _become_engine(launch: dict[str, Any], shim_pid: int, output: int) -> None:
    """Turn this child into the engine; never returns."""
    try:
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != shim_pid:
            os._exit(1)  # the shim died before the kernel was asked
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _limit(resource.RLIMIT_NOFILE, launch["open_files_max"])
        _limit(resource.RLIMIT_DATA, launch["private_bytes_max"])
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "wb") as file:
            file.write(_OOM_SCORE)
        os.nice(launch["nice"])
        if launch["cpus"]:
            with contextlib.suppress(OSError):  # a CPU may have gone offline since
                os.sched_setaffinity(0, launch["cpus"])
        nothing = os.open(os.devnull, os.O_RDONLY)
        for descriptor, target in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(descriptor, target)
        os.chdir(launch["cwd"])
        with contextlib.suppress(OSError):
            os.close(READY_FD)
        os.execve(launch["argv"][0], launch["argv"], launch["env"])  # noqa: S606  that is what a shim does
    except BaseException as error:  # whatever it is, this child must not go on as a second shim
        os.write(output, f"the engine could not be started: {error}\n".encode())
    finally:
        os._exit(127)


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (bound, bound))


def _write_record(path: str, record: dict[str, Any]) -> None:
    temporary = f"{path}.new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(record, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _describe(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exit {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


class _Watch:
    """The shim's loop: the engine's output, signals, and the deadline after SIGTERM."""

    def __init__(self, launch: dict[str, Any], pid: int, output: int, waker: int) -> None:
        self._pid = pid
        self._output = output
        self._waker = waker
        self._term_s = float(launch["term_s"])
        self._log = RotatingLog(launch["log"], launch["log_bytes_max"])
        self._kill_at_s: float | None = None
        os.set_blocking(output, False)

    def run(self) -> int:
        """Return the engine's wait status once it has ended and its group is gone."""
        poller = select.poll()
        poller.register(self._waker, select.POLLIN)
        poller.register(self._output, select.POLLIN)
        while True:
            for descriptor, _ in poller.poll(_CHECK_MS):
                if descriptor == self._waker:
                    self._take_signals()
                elif not self._copy_output():
                    poller.unregister(self._output)
            done, status = os.waitpid(self._pid, os.WNOHANG)
            if done:
                self._kill_group(signal.SIGKILL)
                self._copy_output()
                return status
            if self._kill_at_s is not None and time.monotonic() >= self._kill_at_s:
                self._kill_at_s = None
                self._kill_group(signal.SIGKILL)

    def _take_signals(self) -> None:
        with contextlib.suppress(BlockingIOError):
            if signal.SIGTERM in os.read(self._waker, _READ_BYTES) and self._kill_at_s is None:
                self._kill_group(signal.SIGTERM)
                self._kill_at_s = time.monotonic() + self._term_s

    def _copy_output(self) -> bool:
        """Move what the engine wrote to its log; return whether more may come."""
        try:
            while data := os.read(self._output, _READ_BYTES):
                self._log.write(data)
        except BlockingIOError:
            return True
        return False

    def _kill_group(self, number: signal.Signals) -> None:
        # Between fork and setpgid the child has no group yet.
        for send in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError):
                send(self._pid, number)
                return


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
