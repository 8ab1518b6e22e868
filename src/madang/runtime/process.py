"""What is true of a process: alive, and still the one that was started, by pid and start time.

Owns reading /proc. Refuses to end anything that it cannot identify: a pid alone is never enough, since pids are
used again.
"""

import os
import signal

import msgspec


class ProcessRef(msgspec.Struct, frozen=True, kw_only=True):
    """A process by pid and start time (clock ticks since boot, field 22 of /proc/<pid>/stat, proc(5))."""

    pid: int
    start_ticks: int


def start_ticks(pid: int) -> int | None:
    """Return the start time of a live process in clock ticks since boot, or None if there is none or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the command in parentheses and may contain anything; fields are counted after it.
    fields = text[text.rindex(b")") + 2 :].split()
    if fields[0] in (b"Z", b"X"):
        return None
    return int(fields[19])


def make_ref(pid: int) -> ProcessRef | None:
    """Return a reference to a live process, or None."""
    ticks = start_ticks(pid)
    return None if ticks is None else ProcessRef(pid=pid, start_ticks=ticks)


def is_alive(ref: ProcessRef) -> bool:
    """Return whether exactly that process still lives (a zombie does not)."""
    return start_ticks(ref.pid) == ref.start_ticks


def send_signal(ref: ProcessRef, number: signal.Signals, *, is_group: bool = False) -> bool:
    """Send a signal to exactly that process (or its group, which it must lead); return whether it was alive."""
    if not is_alive(ref):
        return False
    try:
        if is_group:
            os.killpg(ref.pid, number)
        else:
            os.kill(ref.pid, number)
    except ProcessLookupError:
        return False
    return True
