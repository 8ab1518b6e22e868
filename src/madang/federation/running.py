"""Starts and ends the embedded federation's processes from outside: its supervisor, and what a crash left.

Owns the checks before a start and the proof after a stop. Refuses to wait for anything to answer: that is
`madang.federation.waiting`. Called by `madang up`, `down` and `status`.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

from madang.core import Conflict, Rejected, Unavailable
from madang.federation.environment import choose_environment
from madang.federation.layout import HOST, Layout, node_settings
from madang.federation.supervise import FAILURE_FILE
from madang.node.bootstrap import stop_engines
from madang.runtime.leftovers import await_end, end_processes, find_leftovers, read_record
from madang.runtime.listening import check_port_free, describe_holder
from madang.runtime.process import ProcessRef, is_alive, send_signal
from madang.runtime.supervision import MARKER_VARIABLE

_DISK_BYTES_MIN = 256 * 1024 * 1024
"""What logs, databases and NATS stores of a small federation need before they are bounded; models not counted."""
_START_WAIT_S = 15.0
_STOP_WAIT_S = 45.0
"""Seven ranks of processes at five seconds each at the worst, and a margin."""
_TERM_WAIT_S = 6.0
_POLL_S = 0.02


def marker(layout: Layout) -> str:
    """Return what every process of this federation carries in its environment."""
    return str(layout.run_dir)


@contextlib.contextmanager
def exclusive(layout: Layout) -> Iterator[None]:
    """Hold the right to start or stop this federation; raises Conflict when another command has it."""
    path = layout.run_dir / "command.lock"
    try:
        layout.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Unavailable(
            f"cannot write {path}: {error.strerror}",
            next_step="mend the permission or free space, or choose another place with --state",
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode() or "?"
            raise Conflict(
                f"another madang command (pid {holder}) is starting or stopping the federation in {layout.state_dir}",
                next_step="wait for it, or end it, and try again",
            ) from None
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def find_supervisor(layout: Layout) -> ProcessRef | None:
    """Return the live supervisor of this federation, or None."""
    record = read_record(layout.record_path)
    return record.supervisor if record is not None and is_alive(record.supervisor) else None


def retry_now(layout: Layout) -> None:
    """Have the supervisor start at once whatever waits out a back-off."""
    supervisor = find_supervisor(layout)
    if supervisor is not None:
        send_signal(supervisor, signal.SIGUSR1)


def check_machine(layout: Layout) -> None:
    """Raise unless ports and disk are there; every port in use is named with its holder, not only the first."""
    taken: list[str] = []
    for port, purpose in layout.ports().items():
        try:
            check_port_free(HOST, port, purpose)
        except Rejected as error:
            taken.append(error.message)
    if taken:
        raise Rejected(
            "; ".join(taken[:5]) + (f"; and {len(taken) - 5} more" if len(taken) > 5 else ""),
            next_step=f"end what holds them, or move the federation: madang up --base-port {layout.base_port + 100}",
        )
    free = shutil.disk_usage(layout.run_dir).free
    if free < _DISK_BYTES_MIN:
        raise Unavailable(
            f"{layout.state_dir} has {free // 2**20} MiB free: expected {_DISK_BYTES_MIN // 2**20} MiB or more",
            next_step="free space, or choose another place with --state",
        )


def clean_leftovers(layout: Layout, *, term_wait_s: float = _TERM_WAIT_S) -> int:
    """End what a dead supervisor left, engines excepted, which are adopted; return how many processes that were."""
    record = read_record(layout.record_path)
    refs = find_leftovers(record, marker(layout), is_detached_kept=True)
    _end(refs, term_wait_s)
    return len(refs)


def _end(refs: list[ProcessRef], term_wait_s: float = _TERM_WAIT_S) -> None:
    remaining = end_processes(refs, term_wait_s=term_wait_s)
    if remaining:
        pids = ", ".join(str(ref.pid) for ref in remaining)
        raise Unavailable(
            f"processes {pids} of an earlier start do not end, not even killed",
            next_step="look at what they wait for: cat /proc/PID/stack; a reboot ends them",
        )


def start_supervisor(layout: Layout, *, wait_s: float = _START_WAIT_S) -> None:
    """Start the detached supervisor and return once it has taken over, waiting at most `wait_s`.

    Raises:
        Unavailable: with its own reason when it did not come up.
    """
    layout.record_path.unlink(missing_ok=True)
    failure = layout.run_dir / FAILURE_FILE
    failure.unlink(missing_ok=True)
    log_path = layout.log_dir / "supervisor.log"
    output = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        started = subprocess.run(
            (sys.executable, "-P", "-m", "madang.federation.supervise", "--run-dir", str(layout.run_dir)),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=layout.run_dir,
            env=choose_environment(os.environ, layout) | {MARKER_VARIABLE: marker(layout)},
            timeout=_START_WAIT_S,
            check=False,
        )
    finally:
        os.close(output)
    deadline_ns = time.monotonic_ns() + round(wait_s * 1e9)
    while find_supervisor(layout) is None:
        if failure.exists():
            raise Unavailable(failure.read_text(encoding="utf-8"))
        if started.returncode or time.monotonic_ns() > deadline_ns:
            raise Unavailable("the supervisor did not start", next_step=f"read {log_path}")
        time.sleep(_POLL_S)


def stop_everything(layout: Layout) -> int:
    """End supervisor, programs and engines in order, and prove it; return how many processes there were.

    Raises:
        Unavailable: naming what remains all the same.
    """
    record = read_record(layout.record_path)
    count = len(find_leftovers(record, marker(layout), is_detached_kept=False))
    if record is not None and send_signal(record.supervisor, signal.SIGTERM):
        await_end([record.supervisor], _STOP_WAIT_S)
    _end(find_leftovers(record, marker(layout), is_detached_kept=True))
    for site in layout.sites:
        if not site.is_entry_only:
            stop_engines(node_settings(layout, site))
    _end(find_leftovers(record, marker(layout), is_detached_kept=False))
    if count:
        _prove_ports_free(layout)
    layout.record_path.unlink(missing_ok=True)
    (layout.run_dir / "wan.sock").unlink(missing_ok=True)
    return count


def _prove_ports_free(layout: Layout) -> None:
    for port, purpose in layout.ports().items():
        try:
            check_port_free(HOST, port, purpose)
        except Rejected as error:
            raise Unavailable(
                f"all processes of the federation have ended, but port {port} is held by {describe_holder(port)}",
                next_step="that program is not ours; end it before the next madang up",
            ) from error
