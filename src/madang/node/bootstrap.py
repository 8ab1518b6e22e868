"""Prepares a node's folders and token, and lists or ends its engines when no node program runs.

Owns both. Refuses to start anything. Called by the embedded federation, by `madang site run --all` and by
`madang down`.
"""

import secrets
import signal
import time
from pathlib import Path

from madang.core import Unavailable
from madang.node.records import EngineRecord, find_strays, is_any_alive, kill, list_records, terminate
from madang.node.settings import NodeSettings
from madang.runtime.files import write_secret
from madang.runtime.process import is_alive, send_signal

_TERM_WAIT_S = 6.0
"""A shim gives its engine five seconds before it kills it."""
_KILL_WAIT_S = 2.0
_POLL_S = 0.02
_TOKEN_BYTES = 32


def prepare_node(settings: NodeSettings) -> None:
    """Create the folders of a node and its token, as far as they are absent; raises Unavailable naming the path."""
    try:
        settings.state_dir.mkdir(parents=True, exist_ok=True)
        (settings.state_dir / "engines").mkdir(mode=0o700, exist_ok=True)
        settings.cache_dir.mkdir(parents=True, exist_ok=True)
        settings.token_file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unavailable(
            f"cannot create {error.filename}: {error.strerror}", next_step="mend the permission of its parent folder"
        ) from error
    if not settings.token_file.exists():
        write_secret(settings.token_file, secrets.token_urlsafe(_TOKEN_BYTES).encode())


def list_engines(settings: NodeSettings) -> list[EngineRecord]:
    """Return the engines of a node that live, whether or not its program does."""
    return [record for record in list_records(settings.state_dir) if is_any_alive(record)]


def stop_engines(settings: NodeSettings) -> int:
    """End every engine recorded under a node's state and return how many lived; blocks for seconds.

    They are not drained: whoever calls this has closed the doors before.

    Raises:
        Unavailable: when one does not end even after SIGKILL.
    """
    engines = list_engines(settings)
    remaining = engines
    for end, wait_s in ((terminate, _TERM_WAIT_S), (kill, _KILL_WAIT_S)):
        for record in remaining:
            end(record)
        remaining = _await_end(remaining, wait_s)
    strays = end_strays(settings.state_dir, {record.shim.pid for record in engines})
    if remaining:
        raise Unavailable(
            f"{len(remaining)} engines do not end: " + ", ".join(str(record.engine.pid) for record in remaining),
            next_step="they wait inside the kernel; look at the machine's log",
        )
    return len(engines) + strays


def end_strays(state_dir: Path, known: set[int]) -> int:
    """End the shims that were starting when their node program died, and return how many; blocks for a moment.

    A killed shim takes its engine along, so SIGKILL at once is enough: nobody was served by it yet.
    """
    strays = find_strays(state_dir, known)
    for ref in strays:
        send_signal(ref, signal.SIGKILL)
    deadline_ns = time.monotonic_ns() + round(_KILL_WAIT_S * 1e9)
    while any(is_alive(ref) for ref in strays) and time.monotonic_ns() < deadline_ns:
        time.sleep(_POLL_S)
    return len(strays)


def _await_end(records: list[EngineRecord], wait_s: float) -> list[EngineRecord]:
    deadline_ns = time.monotonic_ns() + round(wait_s * 1e9)
    while (alive := [record for record in records if is_any_alive(record)]) and time.monotonic_ns() < deadline_ns:
        time.sleep(_POLL_S)
    return alive
