"""Starts engines behind shims, finds the ones that already run, and tells when they have ended.

Owns the shims, the engines' ports and keys. Refuses to decide when to start or end anything (the replica machine
does). Called by the keepers of replicas.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from madang.chip.contract import ChipGrant
from madang.core import Clock, Draw, Entropy, Unavailable
from madang.engine.contract import EngineDriver, LaunchRequest
from madang.model import ReplicaSpec
from madang.node import records, shim
from madang.node.records import NONCE_VARIABLE, EngineRecord, read_engine_record, replica_folder
from madang.node.settings import NodeSettings
from madang.runtime.files import read_secret, write_secret

HOST = "127.0.0.1"
# Below the kernel's own choice for outgoing connections, which could take a port while its engine restarts.
_PORT_FIRST, _PORT_COUNT = 20000, 12000
_PORT_TRIES_MAX = 200
_ENGINE_NICE = 2
"""Engines use every core they get; the control plane beside them must still answer."""
_LOG_BYTES_MAX = 4 * 1024 * 1024
_READY_S = 5.0
_TERM_S = 6.0
"""A shim gives its engine five seconds before it kills it."""
_END_S = 2.0
_POLL_S = 0.02
_KEY_BYTES = 32
_REASON_BYTES = 2000
_REASON_CHARS = 300


class Engine:
    """One engine that was started or found."""

    def __init__(self, record: EngineRecord, key: str, folder: Path) -> None:
        self.record = record
        self.key = key
        self.endpoint = f"http://{record.host}:{record.port}"
        self._folder = folder

    def is_gone(self) -> bool:
        """Return whether neither engine nor shim lives; an engine whose shim was killed is ended on the way."""
        _reap(self.record.shim.pid)
        if records.is_shim_alive(self.record):
            return False
        if records.is_engine_alive(self.record):
            records.terminate(self.record)
            return False
        return True

    def terminate(self) -> None:
        """Ask it to end."""
        records.terminate(self.record)

    def kill(self) -> None:
        """End it."""
        records.kill(self.record)

    def exit_reason(self) -> str:
        """Return how it ended and the last thing it said."""
        record = read_engine_record(self._folder)
        is_same = record is not None and record.nonce == self.record.nonce
        how = record.exit if is_same and record is not None and record.exit else "killed together with its shim"
        said = _last_line(self._folder / "engine.log")
        return f"{how}: {said}" if said and not how.startswith("signal") else how


class EngineHost:
    """The engines of one node."""

    def __init__(self, settings: NodeSettings, clock: Clock, entropy: Entropy) -> None:
        self._settings = settings
        self._clock = clock
        self._entropy = entropy

    async def launch(
        self,
        driver: EngineDriver,
        spec: ReplicaSpec,
        spec_hash: str,
        number: int,
        files: Mapping[str, Path],
        grant: ChipGrant,
    ) -> Engine:
        """Start an engine for a replica that has none, and return once its process runs.

        Raises:
            Unavailable: naming what failed.
        """
        folder = replica_folder(self._settings.state_dir, spec.replica_id)
        before = read_engine_record(folder)
        if before is not None:
            await self.end(before)
        key = self._entropy.token_bytes(_KEY_BYTES).hex()
        nonce = self._entropy.token_bytes(16).hex()
        port = self._choose_port(before.port if before is not None else 0)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (folder / "record.json").unlink(missing_ok=True)
        except OSError as error:
            raise Unavailable(f"cannot prepare {folder}: {error.strerror}") from error
        write_secret(folder / "key", key.encode())
        request = self._make_request(spec, files, grant, port, folder / "key")
        launch = self._make_launch(driver, request, folder, grant)
        launch |= {"spec_hash": spec_hash, "nonce": nonce, "launch": number}
        launch["env"][NONCE_VARIABLE] = nonce
        write_secret(folder / "launch.json", msgspec.json.encode(launch))
        pid = await self._spawn(folder, launch["env"])
        record = read_engine_record(folder)
        if record is None or record.nonce != nonce or record.shim.pid != pid:
            raise Unavailable(f"the shim of {spec.replica_id} left no record in {folder}")
        return Engine(record, key, folder)

    def adopt(self, record: EngineRecord) -> Engine | None:
        """Return a running engine that was started before this program, or None when it is not whole."""
        folder = replica_folder(self._settings.state_dir, record.replica_id)
        if not (records.is_shim_alive(record) and records.is_engine_alive(record)):
            return None
        try:
            key = read_secret(folder / "key").decode("ascii")
        except (Unavailable, UnicodeDecodeError):
            return None  # without its key nobody can use it
        return Engine(record, key, folder)

    async def end(self, record: EngineRecord) -> None:
        """End whatever lives of a record; raises Unavailable when it survives SIGKILL."""
        for end, wait_s in ((records.terminate, _TERM_S), (records.kill, _END_S)):
            if not _is_alive(record):
                return
            end(record)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    while _is_alive(record):  # noqa: ASYNC110  an adopted shim is no child: nothing signals its end
                        await asyncio.sleep(_POLL_S)
        if _is_alive(record):
            raise Unavailable(f"engine {record.engine.pid} of {record.replica_id} does not end")

    def find_remains(self, replica_id: str) -> EngineRecord | None:
        """Return the record of a replica's engine of which anything lives."""
        record = read_engine_record(replica_folder(self._settings.state_dir, replica_id))
        return record if record is not None and _is_alive(record) else None

    def records(self) -> list[EngineRecord]:
        """Return every record on disk."""
        return records.list_records(self._settings.state_dir)

    def forget(self, replica_id: str) -> None:
        """Remove what is kept of a replica without an engine."""
        shutil.rmtree(replica_folder(self._settings.state_dir, replica_id), ignore_errors=True)

    def _make_request(
        self, spec: ReplicaSpec, files: Mapping[str, Path], grant: ChipGrant, port: int, key_file: Path
    ) -> LaunchRequest:
        settings = self._settings
        return LaunchRequest(
            spec=spec,
            files=dict(files),
            host=HOST,
            port=port,
            key_file=key_file,
            devices=grant.devices,
            device_env=grant.env,
            threads=settings.engine_threads or grant.cpu_threads,
            prefill_threads=settings.engine_prefill_threads or grant.cpu_threads,
            private_bytes_max=settings.engine_memory_bytes_max,
        )

    def _make_launch(
        self, driver: EngineDriver, request: LaunchRequest, folder: Path, grant: ChipGrant
    ) -> dict[str, Any]:
        plan = driver.plan_launch(request)
        return {
            "replica_id": request.spec.replica_id,
            "host": request.host,
            "port": request.port,
            "argv": plan.argv,
            "env": dict(os.environ) | plan.env,
            "cwd": str(folder),
            "log": str(folder / "engine.log"),
            "log_bytes_max": _LOG_BYTES_MAX,
            "record": str(folder / "record.json"),
            "lock": str(folder / "lock"),
            "chip_locks": grant.locks,
            "private_bytes_max": plan.private_bytes_max,
            "open_files_max": plan.open_files_max,
            "nice": _ENGINE_NICE,
            "cpus": grant.cpus,
            "term_s": driver.times.term_s_max,
        }

    async def _spawn(self, folder: Path, env: Mapping[str, str]) -> int:
        """Start the shim and wait for its word; posix_spawn, since no object of ours may own the process."""
        ready, report = os.pipe()
        log = folder / "shim.log"
        actions: list[tuple[Any, ...]] = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
            (os.POSIX_SPAWN_DUP2, report, shim.READY_FD),
        ]
        argv = [sys.executable, "-I", "-S", str(shim.__file__), str(folder / "launch.json")]
        try:
            if report == shim.READY_FD:
                os.set_inheritable(report, True)  # dup2 onto itself would leave it closed on exec
            pid = os.posix_spawn(  # noqa: ASYNC221  a millisecond, without forking this process's memory
                argv[0], argv, dict(env), file_actions=actions, setsid=True, setsigdef=(signal.SIGPIPE,)
            )
        except OSError as error:
            os.close(ready)
            raise Unavailable(f"cannot start the shim in {folder}: {error.strerror}") from error
        finally:
            os.close(report)
        said = await _read_pipe(ready, _READY_S)
        if said != b"ok":
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            _reap(pid, is_blocking=True)
            why = said.decode(errors="replace") or _last_line(log) or f"no word within {_READY_S:g} s"
            raise Unavailable(f"the shim in {folder} did not start: {why}")
        return pid

    def _choose_port(self, kept: int) -> int:
        if kept and _is_port_free(kept):
            return kept
        draw = Draw(self._entropy.seed64())
        for _ in range(_PORT_TRIES_MAX):
            port = _PORT_FIRST + draw.below(_PORT_COUNT)
            if _is_port_free(port):
                return port
        raise Unavailable(f"no free port found between {_PORT_FIRST} and {_PORT_FIRST + _PORT_COUNT}")


def _is_alive(record: EngineRecord) -> bool:
    _reap(record.shim.pid)
    return records.is_any_alive(record)


def _reap(pid: int, *, is_blocking: bool = False) -> None:
    # A shim that an earlier program started is not our child; the machine's init waits for it.
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0 if is_blocking else os.WNOHANG)


def _is_port_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((HOST, port))
            trial.listen(1)
        except OSError:
            return False
    return True


async def _read_pipe(descriptor: int, wait_s: float) -> bytes:
    """Return what comes on a pipe until its end or the time is over, and close it."""
    os.set_blocking(descriptor, False)
    loop = asyncio.get_running_loop()
    said = bytearray()
    ended = asyncio.Event()

    def on_readable() -> None:
        with contextlib.suppress(BlockingIOError):
            data = os.read(descriptor, 4096)
            said.extend(data)
            if not data:
                loop.remove_reader(descriptor)
                ended.set()

    loop.add_reader(descriptor, on_readable)
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    return bytes(said)


def _last_line(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - _REASON_BYTES, 0))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    said = [line.strip() for line in lines if line.strip()]
    return said[-1][:_REASON_CHARS] if said else ""
