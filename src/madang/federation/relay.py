"""The relay that stands for the WAN: every way between two sites, and from a site to the hub, leads through it.

Owns those sockets and what `madang wan` asked for, kept in `wan.json` and applied again after a restart. Refuses
to look into the bytes, and to be known: no other program can ask whether the WAN is cut. Run by the supervisor
as `python -m madang.federation.relay --config FILE`; commanded over a unix socket that only its owner may open.
"""

import argparse
import asyncio
import signal
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import cast

import msgspec

from madang.core import MadangError, Rejected, Unavailable
from madang.federation.relay_settings import (
    CONTROL_SOCKET,
    MODES_FILE,
    LinkMode,
    LinkState,
    RelayLink,
    RelaySettings,
    WanCommand,
    WanModes,
    WanReply,
    mode_of_link,
    sites_of,
)
from madang.runtime.clock import SystemClock
from madang.runtime.control_socket import LINE_BYTES_MAX, answer_with, ask_control, open_control
from madang.runtime.files import replace_file
from madang.runtime.listening import open_listener
from madang.runtime.settings import load_settings
from madang.runtime.telemetry import EventLog

_DIAL_TIMEOUT_S = 5.0
_RESET_WAIT_S = 2.0
_SWEEP_S = 1.0
_TCP_CLOSED = (7, 8)  # TCP_CLOSE, TCP_CLOSE_WAIT of net/tcp_states.h
_LINGER_NONE = struct.pack("ii", 1, 0)  # socket(7): close sends RST and drops what is unsent


class _Half(asyncio.Protocol):
    """One of the two connections of a pair. It reads only while nothing holds it."""

    def __init__(self, link: "_Link", pair: "_Pair | None" = None) -> None:
        self._link = link
        self.pair = pair
        self.other: _Half | None = None
        self.transport: asyncio.Transport | None = None
        self.has_ended = False
        self._holds: set[str] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=self._link.buffer_bytes_max)
        if self.pair is None:
            self.pair = self._link.accept(self)

    def data_received(self, data: bytes) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        self.has_ended = True
        other = self.other
        if other is None or other.transport is None or other.has_ended:
            return False  # both directions have ended: close
        other.transport.write_eof()
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        if self.pair is not None:
            self.pair.lose(self, is_reset=error is not None)

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.hold("slow")

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.release("slow")

    def hold(self, reason: str) -> None:
        self._holds.add(reason)
        if self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()

    def release(self, reason: str) -> None:
        self._holds.discard(reason)
        if not self._holds and self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def is_deserted(self) -> bool:
        """Return whether the other end has closed, as the kernel knows without anybody reading."""
        if self.transport is None:
            return True
        raw = self.transport.get_extra_info("socket")
        return bool(raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in _TCP_CLOSED)

    def close(self, *, is_reset: bool) -> None:
        if self.transport is None:
            return
        if is_reset:
            raw = self.transport.get_extra_info("socket")
            with suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
            self.transport.abort()
        else:
            self.transport.close()


class _Pair:
    """A client's connection and ours to the target, one life."""

    def __init__(self, link: "_Link", client: _Half) -> None:
        self._link = link
        self._client = client
        self._target: _Half | None = None
        self._dial: asyncio.Task[None] | None = None
        client.hold("dial")

    def enter(self, mode: LinkMode) -> None:
        """Take a new mode of the link into account."""
        if mode is LinkMode.CUT:
            self.end(is_reset=True)
            return
        for half in self._halves():
            if mode is LinkMode.HOLE:
                half.hold("hole")
            else:
                half.release("hole")
        if mode is LinkMode.OK and self._dial is None:
            self._dial = self._link.tasks.create_task(self._connect())

    async def _connect(self) -> None:
        target = _Half(self._link, self)
        target.other = self._client
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_DIAL_TIMEOUT_S):
                await loop.create_connection(lambda: target, self._link.host, self._link.facts.target_port)
        except (OSError, TimeoutError):
            self.end(is_reset=True)
            return
        self._target = target
        self._client.other = target
        if self._link.mode is LinkMode.HOLE:
            target.hold("hole")
        self._client.release("dial")

    def sweep(self) -> None:
        """End a pair whose client gave up before it was ever connected; nobody reads its end of stream."""
        if self._target is None and self._dial is None and self._client.is_deserted():
            self.end(is_reset=True)

    def _halves(self) -> list[_Half]:
        return [half for half in (self._client, self._target) if half is not None]

    def lose(self, lost: _Half, *, is_reset: bool) -> None:
        """One connection is gone: end the other in the same manner."""
        for half in self._halves():
            if half is not lost:
                half.close(is_reset=is_reset)
        self._settle()

    def end(self, *, is_reset: bool) -> None:
        """End both connections, now."""
        if self._dial is not None and self._dial is not asyncio.current_task():
            self._dial.cancel()
        for half in self._halves():
            half.close(is_reset=is_reset)
        self._settle()

    def _settle(self) -> None:
        if all(half.transport is None for half in self._halves()):
            if self._dial is not None and self._dial is not asyncio.current_task():
                self._dial.cancel()
            self._link.forget(self)


class _Link:
    """One way between two ends."""

    def __init__(self, facts: RelayLink, settings: RelaySettings, tasks: asyncio.TaskGroup) -> None:
        self.facts = facts
        self.host = settings.host
        self.buffer_bytes_max = settings.buffer_bytes_max
        self.tasks = tasks
        self.mode = LinkMode.CUT
        self._connections_max = settings.connections_max
        self._pairs: set[_Pair] = set()
        self._server: asyncio.Server | None = None
        self._empty = asyncio.Event()

    async def enter(self, mode: LinkMode) -> None:
        """Change the mode; returns when sockets are as the mode says."""
        self.mode = mode
        if mode is LinkMode.CUT:
            if self._server is not None:
                self._server.close()
                self._server = None
        elif self._server is None:
            # A listener whose backlog is full refuses; closing it is the only way to refuse on purpose.
            listener = open_listener(self.host, self.facts.listen_port)
            self._server = await asyncio.get_running_loop().create_server(lambda: _Half(self), sock=listener)
        for pair in list(self._pairs):
            pair.enter(mode)
        if mode is LinkMode.CUT and self._pairs:
            self._empty.clear()
            await asyncio.wait_for(self._empty.wait(), _RESET_WAIT_S)

    def accept(self, client: _Half) -> _Pair:
        """Take a new connection in."""
        pair = _Pair(self, client)
        self._pairs.add(pair)
        if self.mode is LinkMode.CUT or len(self._pairs) > self._connections_max:
            pair.end(is_reset=True)
        else:
            pair.enter(self.mode)
        return pair

    def sweep(self) -> None:
        """Forget clients that gave up while the link is a hole, which would pile up with their retries."""
        if self.mode is LinkMode.HOLE:
            for pair in list(self._pairs):
                pair.sweep()

    def forget(self, pair: _Pair) -> None:
        """A pair has ended."""
        self._pairs.discard(pair)
        if not self._pairs:
            self._empty.set()

    def state(self) -> LinkState:
        """Return what is true of it now."""
        return LinkState(
            site=self.facts.site,
            other=self.facts.other,
            purpose=self.facts.purpose,
            mode=self.mode,
            connections=len(self._pairs),
            is_listening=self._server is not None,
        )


class Relay:
    """All links and the control socket.

    Args:
        settings: what to relay.
        log: where changes of mode are written.
    """

    def __init__(self, settings: RelaySettings, log: EventLog) -> None:
        self._settings = settings
        self._log = log
        self._links: list[_Link] = []
        self._modes = read_modes(settings.run_dir)

    async def run(self, stop: asyncio.Event) -> None:
        """Relay until `stop`; raises Rejected when a port is taken."""
        async with asyncio.TaskGroup() as tasks:
            self._links = [_Link(facts, self._settings, tasks) for facts in self._settings.links]
            try:
                await self._apply()
                control = await asyncio.start_unix_server(
                    answer_with(self._serve_line, self._log),
                    sock=open_control(self._settings.run_dir, CONTROL_SOCKET),
                    limit=LINE_BYTES_MAX,
                )
                async with control:
                    self._log.info("relay_ready", links=len(self._links))
                    while not stop.is_set():
                        with suppress(TimeoutError):
                            await asyncio.wait_for(stop.wait(), _SWEEP_S)
                        for link in self._links:
                            link.sweep()
            finally:
                for link in self._links:
                    await link.enter(LinkMode.CUT)

    async def _apply(self) -> None:
        for link in self._links:
            mode = mode_of_link(link.facts, self._modes)
            if mode is not link.mode:
                await link.enter(mode)

    async def _serve_line(self, line: bytes) -> bytes:
        return msgspec.json.encode(await self._obey(line))

    async def _obey(self, line: bytes) -> WanReply:
        try:
            command = msgspec.json.decode(line, type=WanCommand)
            if command.verb == "set":
                await self._set(command.site, command.mode)
            elif command.verb != "status":
                raise Rejected(f"verb {command.verb!r} is unknown: expected set or status")
        except (MadangError, msgspec.MsgspecError) as error:
            return self._reply(str(error))
        return self._reply("")

    async def _set(self, site: str, mode: LinkMode) -> None:
        known = sites_of(self._settings.links)
        if site not in known:
            raise Rejected(f"site {site!r} is not of this federation", next_step=f"choose one of {', '.join(known)}")
        modes = {**self._modes, site: mode}
        write_modes(self._settings.run_dir, modes)
        self._modes = modes
        await self._apply()
        self._log.info("wan_mode", site=site, mode=mode)

    def _reply(self, error: str) -> WanReply:
        modes = {site: self._modes.get(site, LinkMode.OK) for site in sites_of(self._settings.links)}
        return WanReply(modes=modes, links=tuple(link.state() for link in self._links), error=error)


def read_modes(run_dir: Path) -> dict[str, LinkMode]:
    """Return what was asked for last, by site; empty when nothing ever was."""
    path = run_dir / MODES_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=WanModes).modes
    except FileNotFoundError:
        return {}
    except msgspec.MsgspecError as error:
        raise Rejected(f"{path} is damaged: {error}", next_step="remove it; every link is then whole") from error


def write_modes(run_dir: Path, modes: dict[str, LinkMode]) -> None:
    """Keep what was asked for, so that a restarted relay applies it again."""
    replace_file(run_dir / MODES_FILE, msgspec.json.encode(WanModes(modes=modes)))


def send_command(run_dir: Path, command: WanCommand) -> WanReply:
    """Command a running relay and return its answer; raises Unavailable without one, Rejected when it refuses."""
    try:
        line = ask_control(run_dir, CONTROL_SOCKET, msgspec.json.encode(command))
    except OSError as error:
        raise Unavailable(
            f"the relay of the embedded federation in {run_dir.parent} does not answer: {error.strerror or error}",
            next_step="start it with: madang up",
        ) from error
    try:
        reply = msgspec.json.decode(line, type=WanReply)
    except msgspec.MsgspecError as error:
        raise Unavailable("the relay ended before it answered", next_step="try again") from error
    if reply.error:
        raise Rejected(reply.error)
    return reply


def main(config: Path) -> int:
    """Run the relay until SIGTERM and return the exit status."""
    log = EventLog(SystemClock(), program="relay")
    status = 0
    try:
        asyncio.run(_run(load_settings(RelaySettings, config, env_prefix="MADANG_RELAY_"), log))
    except* MadangError as group:
        log.error("relay_failed", reason="; ".join(_reasons(group)))
        status = 1
    return status


def _reasons(group: BaseExceptionGroup[BaseException]) -> list[str]:
    found: list[str] = []
    for error in group.exceptions:
        found += _reasons(error) if isinstance(error, BaseExceptionGroup) else [str(error)]
    return found


async def _run(settings: RelaySettings, log: EventLog) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await Relay(settings, log).run(stop)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m madang.federation.relay")
    parser.add_argument("--config", type=Path, required=True)
    sys.exit(main(parser.parse_args().config))
