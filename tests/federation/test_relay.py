"""The relay with real sockets: what cut, hole and heal are, as both ends see it."""

import asyncio
import contextlib
import os
import socket
import stat
import struct
import time

import pytest

from madang.core import Rejected, Unavailable
from madang.federation.relay import Relay, read_modes, send_command
from madang.federation.relay_settings import LinkMode, RelayLink, RelaySettings, WanCommand
from madang.runtime.clock import SystemClock
from madang.runtime.telemetry import EventLog
from madang.testing.ports import free_port

pytestmark = pytest.mark.peer

HOST = "127.0.0.1"
LIMIT_S = 60.0


async def until(condition):
    deadline = time.monotonic() + LIMIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline, "condition did not come true in time"
        await asyncio.sleep(0.005)
    return found


class Target:
    """A real echo program that remembers what reached it."""

    def __init__(self):
        self.received = bytearray()
        self.writers = []
        self.ended = 0

    async def serve(self, reader, writer):
        self.writers.append(writer)
        try:
            while data := await reader.read(65536):
                self.received += data
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            self.ended += 1
            writer.close()


def sockets_on(ports):
    """Rows of the system's socket table, other than listeners, that touch any of the ports."""
    wanted = {f"{port:04X}" for port in ports}
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table.readlines()[1:]]
    return [row for row in rows if {row[1][-4:], row[2][-4:]} & wanted and row[3] != "0A"]


def untouched_port():
    """Return a free port that no socket touches, nor one that another test's connection left to wait for its time."""
    ports = (free_port() for _ in range(100))
    return next(port for port in ports if not sockets_on([port]))


@contextlib.asynccontextmanager
async def relaying(tmp_path, names=(("daegu", "gumi"),), **changes):
    """Yield (relay's links by names, target); every link leads to the one target."""
    target = Target()
    server = await asyncio.start_server(target.serve, HOST, 0)
    target_port = server.sockets[0].getsockname()[1]
    links = tuple(
        RelayLink(site=site, other=other, purpose="peer", listen_port=untouched_port(), target_port=target_port)
        for site, other in names
    )
    settings = RelaySettings(run_dir=tmp_path, links=links, **changes)
    stop = asyncio.Event()
    task = asyncio.create_task(Relay(settings, EventLog(SystemClock())).run(stop))
    try:
        await until(lambda: (tmp_path / "wan.sock").exists() or task.done())
        yield {(link.site, link.other): link.listen_port for link in links}, target
    finally:
        stop.set()
        await asyncio.wait_for(task, LIMIT_S)
        server.close()


async def command(tmp_path, verb, site="", mode=LinkMode.OK):
    return await asyncio.to_thread(send_command, tmp_path, WanCommand(verb=verb, site=site, mode=mode))


async def connect(port):
    return await asyncio.wait_for(asyncio.open_connection(HOST, port), LIMIT_S)


async def echo(stream, text):
    reader, writer = stream
    writer.write(text)
    return await asyncio.wait_for(reader.readexactly(len(text)), LIMIT_S)


def test_bytes_pass_both_ways_and_an_end_of_stream_passes_too(tmp_path):
    async def play():
        async with relaying(tmp_path) as (ports, target):
            stream = await connect(ports["daegu", "gumi"])
            payload = os.urandom(3_000_000)
            echoed = asyncio.create_task(stream[0].read(-1))
            stream[1].write(payload)
            stream[1].write_eof()
            assert await asyncio.wait_for(echoed, LIMIT_S) == payload
            stream[1].close()
            await until(lambda: target.ended == 1)

    asyncio.run(play())


def test_cut_resets_both_ends_refuses_anew_and_leaves_no_socket(tmp_path):
    async def play():
        async with relaying(tmp_path) as (ports, target):
            port = ports["daegu", "gumi"]
            reader, writer = stream = await connect(port)
            assert await echo(stream, b"before") == b"before"
            await command(tmp_path, "set", "daegu", LinkMode.CUT)
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(reader.read(), LIMIT_S)
            await until(lambda: target.ended == 1)
            assert target.writers[0].get_extra_info("socket").fileno() == -1
            with pytest.raises(ConnectionRefusedError):
                await connect(port)
            assert sockets_on([port]) == []
            writer.close()

    asyncio.run(play())


def test_cut_reaches_every_way_of_the_site_and_no_other(tmp_path):
    names = (("daegu", "hub"), ("daegu", "gumi"), ("gumi", "daegu"), ("gumi", "hub"))

    async def play():
        async with relaying(tmp_path, names) as (ports, _):
            reply = await command(tmp_path, "set", "daegu", LinkMode.CUT)
            assert {(link.site, link.other): link.is_listening for link in reply.links} == {
                ("daegu", "hub"): False,
                ("daegu", "gumi"): False,
                ("gumi", "daegu"): False,
                ("gumi", "hub"): True,
            }
            stream = await connect(ports["gumi", "hub"])
            assert await echo(stream, b"still whole") == b"still whole"
            stream[1].close()

    asyncio.run(play())


def test_heal_lets_new_connections_through_and_is_repeatable(tmp_path):
    async def play():
        async with relaying(tmp_path) as (ports, _):
            for _ in range(3):
                await command(tmp_path, "set", "daegu", LinkMode.CUT)
                await command(tmp_path, "set", "daegu", LinkMode.CUT)
                await command(tmp_path, "set", "daegu", LinkMode.OK)
                await command(tmp_path, "set", "daegu", LinkMode.OK)
                stream = await connect(ports["daegu", "gumi"])
                assert await echo(stream, b"after") == b"after"
                stream[1].close()

    asyncio.run(play())


def test_a_hole_keeps_sockets_open_and_passes_nothing_until_healed(tmp_path):
    async def play():
        async with relaying(tmp_path) as (ports, target):
            port = ports["daegu", "gumi"]
            old = await connect(port)
            assert await echo(old, b"before") == b"before"
            await command(tmp_path, "set", "gumi", LinkMode.HOLE)
            old[1].write(b"into the hole")
            target.writers[0].write(b"out of the hole")
            new = await connect(port)
            new[1].write(b"new")
            # Whatever were forwarded would have arrived by the time that the relay answers twice.
            await until_connections(tmp_path, 2)
            await until_connections(tmp_path, 2)
            assert bytes(target.received) == b"before"
            assert len(target.writers) == 1
            for reader, _ in (old, new):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(reader.read(1), 0.05)
            await command(tmp_path, "set", "gumi", LinkMode.OK)
            assert await asyncio.wait_for(old[0].readexactly(28), LIMIT_S) == b"out of the holeinto the hole"
            assert await asyncio.wait_for(new[0].readexactly(3), LIMIT_S) == b"new"
            old[1].close()
            new[1].close()

    asyncio.run(play())


def test_clients_that_give_up_in_a_hole_do_not_pile_up(tmp_path):
    async def play():
        async with relaying(tmp_path) as (ports, target):
            await command(tmp_path, "set", "daegu", LinkMode.HOLE)
            patient = await connect(ports["daegu", "gumi"])
            for _ in range(5):
                _, writer = await connect(ports["daegu", "gumi"])
                writer.write(b"said before it left")
                writer.close()
            await until(lambda: len(sockets_on([ports["daegu", "gumi"]])) == 2)  # both ends of the patient one
            await command(tmp_path, "set", "daegu", LinkMode.OK)
            assert await echo(patient, b"waited") == b"waited"
            assert bytes(target.received) == b"waited"
            patient[1].close()

    asyncio.run(play())


def test_a_hole_that_becomes_a_cut_resets_what_it_held(tmp_path):
    async def play():
        async with relaying(tmp_path) as (ports, _):
            await command(tmp_path, "set", "daegu", LinkMode.HOLE)
            reader, writer = await connect(ports["daegu", "gumi"])
            await until_connections(tmp_path, 1)
            await command(tmp_path, "set", "daegu", LinkMode.CUT)
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(reader.read(), LIMIT_S)
            writer.close()

    asyncio.run(play())


async def until_connections(tmp_path, count):
    deadline = time.monotonic() + LIMIT_S
    while sum(link.connections for link in (await command(tmp_path, "status")).links) != count:
        assert time.monotonic() < deadline


def test_a_reset_passes_through(tmp_path):
    async def play():
        async with relaying(tmp_path) as (ports, target):
            stream = await connect(ports["daegu", "gumi"])
            assert await echo(stream, b"x") == b"x"
            raw = target.writers[0].get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            target.writers[0].transport.abort()
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(stream[0].read(), LIMIT_S)
            stream[1].close()
            await until_connections(tmp_path, 0)

    asyncio.run(play())


def test_a_target_that_refuses_looks_like_a_reset(tmp_path):
    async def play():
        dead = RelayLink(site="a", other="b", purpose="peer", listen_port=untouched_port(), target_port=free_port())
        stop = asyncio.Event()
        settings = RelaySettings(run_dir=tmp_path, links=(dead,))
        task = asyncio.create_task(Relay(settings, EventLog(SystemClock())).run(stop))
        await until(lambda: (tmp_path / "wan.sock").exists())
        reader, writer = await connect(dead.listen_port)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), LIMIT_S)
        writer.close()
        stop.set()
        await asyncio.wait_for(task, LIMIT_S)

    asyncio.run(play())


def test_a_slow_receiver_pauses_the_sender(tmp_path):
    async def play():
        async with relaying(tmp_path, buffer_bytes_max=64 * 1024) as (ports, target):
            raw = socket.socket()
            raw.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(raw, (HOST, ports["daegu", "gumi"]))
            sent = 0
            # The client never reads its echo: after socket buffers and the relay's own are full, it is paused.
            with contextlib.suppress(TimeoutError):
                while sent < 200_000_000:
                    await asyncio.wait_for(loop.sock_sendall(raw, b"x" * 1_000_000), 0.5)
                    sent += 1_000_000
            assert sent < 100_000_000
            raw.close()
            await until(lambda: target.ended == 1)

    asyncio.run(play())


def test_connections_over_the_limit_are_closed(tmp_path):
    async def play():
        async with relaying(tmp_path, connections_max=2) as (ports, _):
            kept = [await connect(ports["daegu", "gumi"]) for _ in range(2)]
            for stream in kept:
                assert await echo(stream, b"in") == b"in"
            reader, writer = await connect(ports["daegu", "gumi"])
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(reader.read(), LIMIT_S)
            for _, each in (*kept, (None, writer)):
                each.close()

    asyncio.run(play())


def test_modes_outlive_the_relay(tmp_path):
    async def play():
        async with relaying(tmp_path) as (_, _target):
            await command(tmp_path, "set", "gumi", LinkMode.CUT)
        assert read_modes(tmp_path) == {"gumi": LinkMode.CUT}
        (tmp_path / "wan.sock").unlink()
        async with relaying(tmp_path) as (ports, _target):
            with pytest.raises(ConnectionRefusedError):
                await connect(ports["daegu", "gumi"])
            reply = await command(tmp_path, "status")
            assert reply.modes == {"daegu": LinkMode.OK, "gumi": LinkMode.CUT}
            assert reply.links[0].mode is LinkMode.CUT

    asyncio.run(play())


def test_bad_commands_name_what_is_wrong_and_change_nothing(tmp_path):
    async def play():
        async with relaying(tmp_path) as (ports, _):
            with pytest.raises(Rejected, match=r"'busan' is not of this federation .*daegu"):
                await command(tmp_path, "set", "busan", LinkMode.CUT)
            with pytest.raises(Rejected, match="verb 'burn' is unknown"):
                await command(tmp_path, "burn")
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "wan.sock"))
            writer.write(b"not json\n")
            assert b"error" in await asyncio.wait_for(reader.read(), LIMIT_S)
            writer.close()
            stream = await connect(ports["daegu", "gumi"])
            assert await echo(stream, b"whole") == b"whole"
            stream[1].close()

    asyncio.run(play())


def test_the_control_socket_is_its_owners_even_in_a_deep_folder(tmp_path):
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)

    async def play():
        async with relaying(deep):
            assert stat.S_IMODE((deep / "wan.sock").stat().st_mode) == 0o600
            assert (await command(deep, "status")).error == ""

    asyncio.run(play())


def test_without_a_relay_the_next_step_is_named(tmp_path):
    with pytest.raises(Unavailable, match="does not answer") as caught:
        send_command(tmp_path, WanCommand(verb="status"))
    assert "madang up" in caught.value.next_step
