"""Keeps one container for as long as it lives: the process that the shim starts in an engine's place.

Owns the container of one replica: takes over the one of the very same launch, removes any other of the replica, makes
and starts a new one, carries its log to ours and connections to its socket, stops and removes it. Refuses to restart.
Its life hangs on ours: the container holds one connection to us and ends when it is gone for ten seconds, so that no
death of shim or node leaves a chip held.
"""

import asyncio
import contextlib
import hashlib
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from madang.core import Conflict, MadangError, Rejected, Unavailable
from madang.engine.container_api import ContainerClient
from madang.engine.container_plan import FOLDER_LABEL, LAUNCH_LABEL, REPLICA_LABEL, ContainerLaunch
from madang.engine.vendor_start import ENGINE_SOCKET, LIFE_SOCKET

_POLL_S = 0.05
_LIFE_S_MAX = 60.0
_READ_BYTES = 65536
_CONNECTIONS_MAX = 512
_ENDED_BADLY = 1


class ContainerKeeper:
    """One container."""

    def __init__(self, launch: ContainerLaunch, client: ContainerClient) -> None:
        self._launch = launch
        self._client = client
        self._run = Path(launch.run_folder)
        self._relays: set[asyncio.Task[None]] = set()

    async def run(self, stop: asyncio.Event) -> int:
        """Live as long as the container and return its exit code; end it when `stop` is set."""
        self._run.mkdir(mode=0o700, exist_ok=True)
        container = await self._take_over() or await self._make()
        server = await asyncio.start_server(self._accept, self._launch.host, self._launch.port)
        ended = asyncio.create_task(self._client.wait(container))
        others = [asyncio.create_task(self._copy_log(container)), asyncio.create_task(self._hold_life())]
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait((ended, stopping), return_when=asyncio.FIRST_COMPLETED)
            server.close()
            if not ended.done():
                await self._client.stop(container, self._launch.term_s)
            code = await ended
            with contextlib.suppress(TimeoutError):  # the last words are worth a moment
                await asyncio.wait_for(asyncio.shield(others[0]), 1.0)
            return code
        finally:
            for task in (*others, ended, stopping, *self._relays):
                task.cancel()
            await asyncio.gather(*others, ended, stopping, *self._relays, return_exceptions=True)
            await self._client.remove(container)

    async def _take_over(self) -> str | None:
        """Return the running container of this very launch; every other one of the replica is removed first."""
        labels = self._launch.body["Labels"]
        same = {name: labels[name] for name in (REPLICA_LABEL, FOLDER_LABEL)}
        kept = None
        for container, is_running, found in await self._client.find(same):
            if is_running and kept is None and found.get(LAUNCH_LABEL) == self._identity():
                kept = container
                print(f"took over container {container}", file=sys.stderr, flush=True)
            else:
                await self._client.remove(container)
        return kept

    async def _make(self) -> str:
        for name in (ENGINE_SOCKET, LIFE_SOCKET):
            (self._run / name).unlink(missing_ok=True)
        await self._client.check_image(self._launch.body["Image"])
        try:
            container = await self._client.create(self._launch.name, await self._body())
        except Conflict as error:
            raise Unavailable(f"{error}: a container of that name is none of ours, or is being removed") from error
        await self._client.start(container)
        return container

    async def _body(self) -> Mapping[str, Any]:
        body, seccomp = self._launch.body, self._launch.seccomp
        options = list(body["HostConfig"]["SecurityOpt"])
        if seccomp == "unconfined":
            options.append("seccomp=unconfined")
        elif seccomp.startswith("/"):
            is_path = await self._client.is_podman()
            options.append(f"seccomp={seccomp if is_path else _read_text(seccomp)}")
        labels = {**body["Labels"], LAUNCH_LABEL: self._identity()}
        return {**body, "Labels": labels, "HostConfig": {**body["HostConfig"], "SecurityOpt": options}}

    def _identity(self) -> str:
        """Return what tells this launch from another: everything it asks for, and its key."""
        digest = hashlib.sha256(msgspec.json.encode(self._launch, order="deterministic"))
        digest.update(Path(self._launch.key_file).read_bytes())
        return digest.hexdigest()

    async def _copy_log(self, container: str) -> None:
        async for text in self._client.logs(container):
            sys.stderr.buffer.write(text)
            sys.stderr.buffer.flush()

    async def _hold_life(self) -> None:
        """Hold the connection on which the container's life hangs, anew whenever it breaks."""
        waited_s = 0.0
        while waited_s < _LIFE_S_MAX:
            try:
                reader, writer = await asyncio.open_unix_connection(str(self._run / LIFE_SOCKET))
            except OSError:
                await asyncio.sleep(_POLL_S)
                waited_s += _POLL_S
                continue
            waited_s = 0.0
            try:
                await reader.read(1)
            finally:
                writer.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._relays.add(task)
        try:
            if len(self._relays) <= _CONNECTIONS_MAX:
                inside = await asyncio.open_unix_connection(str(self._run / ENGINE_SOCKET))
                await _join((reader, writer), inside)
        except (OSError, asyncio.CancelledError):
            pass  # nothing listens inside, or all ends: the client sees a closed connection, as with any engine
        finally:
            self._relays.discard(task)
            writer.close()


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Rejected(f"seccomp profile {path} cannot be read: {error}") from error


Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _join(one: Ends, other: Ends) -> None:
    """Carry bytes both ways until either side ends."""
    flows = [asyncio.create_task(_flow(one[0], other[1])), asyncio.create_task(_flow(other[0], one[1]))]
    try:
        await asyncio.wait(flows, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for flow in flows:
            flow.cancel()
        await asyncio.gather(*flows, return_exceptions=True)
        other[1].close()


async def _flow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_READ_BYTES):
        writer.write(data)
        await writer.drain()


async def run(launch: ContainerLaunch) -> int:
    """Keep the container until SIGTERM or its own end."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with ContainerClient(Path(launch.socket)) as client:
        try:
            code = await ContainerKeeper(launch, client).run(stop)
        except MadangError as error:
            print(error, file=sys.stderr, flush=True)
            return _ENDED_BADLY
    print(f"the container ended with {code}", file=sys.stderr, flush=True)
    return code


def main(argv: list[str]) -> int:
    """Run one launch, given as JSON."""
    os.umask(0o077)
    return asyncio.run(run(msgspec.json.decode(argv[0], type=ContainerLaunch)))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
