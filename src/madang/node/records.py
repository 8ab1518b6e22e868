"""What is on disk of each engine: its record, its launch file, its key, its logs, and who may be signalled.

Owns the folder of a replica and the proof that a process is the engine it is recorded as. Refuses to start
anything. Called by the engine host, and by `madang down` when the node program is dead.

    <state>/engines/<replica>/launch.json   what the shim was told, mode 0600
    <state>/engines/<replica>/record.json   written by the shim
    <state>/engines/<replica>/lock          held by the shim while it lives
    <state>/engines/<replica>/key           the engine's bearer token, mode 0600
    <state>/engines/<replica>/engine.log    and `.1`; shim.log
"""

import os
import re
import signal
from collections.abc import Collection
from pathlib import Path

import msgspec

from madang.core import Rejected
from madang.runtime.process import ProcessRef, is_alive, make_ref, send_signal

NONCE_VARIABLE = "MADANG_ENGINE_NONCE"
"""In the environment of shim and engine: the third proof, beside pid and start time, which repeat after a boot."""
RECORD_VERSION = 1
_REPLICA = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}\Z")


class EngineRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One engine as its shim recorded it.

    Attributes:
        spec_hash: what it was launched for.
        launch: number of the launch since the replica was planned.
        exit: how it ended, None while it runs or when its shim was killed.
    """

    replica_id: str
    spec_hash: str
    nonce: str
    launch: int
    host: str
    port: int
    shim: ProcessRef
    engine: ProcessRef
    exit: str | None = None
    version: int = RECORD_VERSION


def replica_folder(state_dir: Path, replica_id: str) -> Path:
    """Return the absolute folder of a replica; raises Rejected when its id cannot be a file name."""
    if not _REPLICA.match(replica_id):
        raise Rejected(f"replica id {replica_id[:80]!r} is not valid: expected 1 to 200 of letters, digits, '_-.'")
    return _engines_folder(state_dir) / replica_id


def _engines_folder(state_dir: Path) -> Path:
    # Absolute, for the path of a launch file also identifies its shim among all processes.
    return Path(os.path.abspath(state_dir)) / "engines"


def read_engine_record(folder: Path) -> EngineRecord | None:
    """Return the record in a replica's folder, or None when there is none that can be read."""
    try:
        record = msgspec.json.decode((folder / "record.json").read_bytes(), type=EngineRecord)
    except (OSError, msgspec.MsgspecError):
        # A damaged record names nobody; the lock still keeps a second engine away.
        return None
    return record if record.version == RECORD_VERSION else None


def list_records(state_dir: Path) -> list[EngineRecord]:
    """Return every readable record under a node's state, by replica id, of the living and the dead."""
    folders = sorted(path.parent for path in _engines_folder(state_dir).glob("*/record.json"))
    found = (read_engine_record(folder) for folder in folders)
    return [record for record in found if record is not None]


def find_strays(state_dir: Path, known: Collection[int]) -> list[ProcessRef]:
    """Return the live shims of a node's state whose pids are not `known`, found by their command lines.

    A shim takes a moment until it has written its record; whoever looks in that moment finds it only so.
    Cost: one read for every process of the machine.
    """
    prefix = f"{_engines_folder(state_dir)}{os.sep}".encode()
    found: list[ProcessRef] = []
    for entry in os.listdir("/proc"):
        if not entry.isdecimal() or int(entry) in known:
            continue
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                argv = file.read().rstrip(b"\0").split(b"\0")
        except OSError:
            continue  # ended meanwhile
        is_shim = len(argv) >= 2 and argv[-2].endswith(b"/shim.py") and argv[-1].startswith(prefix)
        ref = make_ref(int(entry)) if is_shim else None
        if ref is not None:
            found.append(ref)
    return found


def is_ours(ref: ProcessRef, nonce: str) -> bool:
    """Return whether exactly that process lives and carries the nonce."""
    if not is_alive(ref):
        return False
    try:
        with open(f"/proc/{ref.pid}/environ", "rb") as file:
            return f"{NONCE_VARIABLE}={nonce}".encode() in file.read().split(b"\0")
    except OSError:
        return False


def is_shim_alive(record: EngineRecord) -> bool:
    """Return whether the shim of a record lives."""
    return is_ours(record.shim, record.nonce)


def is_engine_alive(record: EngineRecord) -> bool:
    """Return whether the engine of a record lives."""
    return is_ours(record.engine, record.nonce)


def is_any_alive(record: EngineRecord) -> bool:
    """Return whether anything of a record lives."""
    return is_shim_alive(record) or is_engine_alive(record)


def terminate(record: EngineRecord) -> None:
    """Ask an engine to end through its shim; without a shim end it at once."""
    if is_shim_alive(record):
        send_signal(record.shim, signal.SIGTERM)
    elif is_engine_alive(record):
        send_signal(record.engine, signal.SIGKILL, is_group=True)


def kill(record: EngineRecord) -> None:
    """End an engine and its shim at once; works on stopped processes as well."""
    if is_engine_alive(record):
        send_signal(record.engine, signal.SIGKILL, is_group=True)
    if is_shim_alive(record):
        send_signal(record.shim, signal.SIGKILL)
