"""Finds and ends what a dead supervisor left behind, and only that.

Owns the identification: a process is ours when the record names its pid and start time, or when its environment
carries the marker of that supervisor. Refuses to end anything else. Called by `madang up` and `madang down`.
"""

import os
import signal
import time
from pathlib import Path

from madang.core import MadangError
from madang.runtime.process import ProcessRef, is_alive, make_ref, send_signal
from madang.runtime.supervision import MARKER_VARIABLE, SupervisorRecord, decode_record

_POLL_S = 0.02


def read_record(path: Path) -> SupervisorRecord | None:
    """Return the record at `path`, or None when there is none that this release can read."""
    try:
        return decode_record(path.read_bytes())
    except FileNotFoundError:
        return None
    except MadangError:
        # Damaged or foreign: the markers in the environment identify the processes just as well.
        return None


def find_marked(marker: str) -> list[ProcessRef]:
    """Return the live processes of this user, other than the caller, whose environment carries `marker`."""
    wanted = f"{MARKER_VARIABLE}={marker}".encode()
    found: list[ProcessRef] = []
    for entry in os.listdir("/proc"):
        if not entry.isdecimal() or int(entry) == os.getpid():
            continue
        try:
            with open(f"/proc/{entry}/environ", "rb") as file:
                variables = file.read().split(b"\0")
        except OSError:
            continue  # ended meanwhile, or another user's
        ref = make_ref(int(entry)) if wanted in variables else None
        if ref is not None:
            found.append(ref)
    return found


def find_leftovers(record: SupervisorRecord | None, marker: str, *, is_detached_kept: bool) -> list[ProcessRef]:
    """Return live processes that the record or the marker names, the supervisor itself included.

    Args:
        record: what the supervisor wrote down last, if anything.
        marker: what its children carry.
        is_detached_kept: leave out those in sessions of their own (engines), which the next start adopts. Without
            a record they cannot be told apart and are named too.
    """
    refs = {ref.pid: ref for ref in find_marked(marker)}
    if record is not None:
        if is_detached_kept:
            refs = {pid: ref for pid, ref in refs.items() if session_of(pid) == record.session}
        named = [record.supervisor, *(process.ref for process in record.processes if process.ref is not None)]
        refs |= {ref.pid: ref for ref in named if is_alive(ref) and ref.pid != os.getpid()}
    return sorted(refs.values(), key=lambda ref: ref.pid)


def session_of(pid: int) -> int | None:
    """Return the session id of a process, or None when it is gone."""
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def end_processes(refs: list[ProcessRef], *, term_wait_s: float, kill_wait_s: float = 2.0) -> list[ProcessRef]:
    """Send SIGTERM, wait, send SIGKILL, wait; return those that live all the same (uninterruptible)."""
    for number, wait_s in ((signal.SIGTERM, term_wait_s), (signal.SIGKILL, kill_wait_s)):
        refs = [ref for ref in refs if send_signal(ref, number)]
        refs = await_end(refs, wait_s)
        if not refs:
            break
    return refs


def await_end(refs: list[ProcessRef], wait_s: float) -> list[ProcessRef]:
    """Wait at most `wait_s` for processes to end and return those that did not."""
    deadline_ns = time.monotonic_ns() + round(wait_s * 1e9)
    while (alive := [ref for ref in refs if is_alive(ref)]) and time.monotonic_ns() < deadline_ns:
        time.sleep(_POLL_S)
    return alive
