"""The bus with a real nats-server: what survives a lost connection, and what must not."""

import asyncio
import contextlib
import io
import json
import subprocess
import time

import pytest
import uvloop

from madang.core import Unavailable
from madang.runtime.bus import Bus, BusLogin, NoResponders
from madang.runtime.clock import SystemClock, SystemEntropy
from madang.runtime.nats import nats_server_path
from madang.runtime.telemetry import EventLog
from madang.testing.ports import free_port

pytestmark = pytest.mark.peer

DEADLINE_S = 60


class Server:
    """A nats-server with one user, on a free port that it keeps over restarts."""

    def __init__(self, folder):
        self.port = free_port()
        self.config = folder / "nats.conf"
        self.process = None
        self.write_config("secret")

    def write_config(self, password):
        users = f'users: [{{user: "u", password: "{password}", permissions: {{publish: {{deny: "denied"}}}}}}]'
        self.config.write_text(f'listen: "127.0.0.1:{self.port}"\nauthorization {{ {users} }}\n')

    def start(self):
        self.process = subprocess.Popen(
            [nats_server_path(), "-c", self.config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def kill(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path):
    made = Server(tmp_path)
    made.start()
    yield made
    made.kill()


class Client:
    """A bus and what it logged."""

    def __init__(self, server, password="secret"):
        self.text = io.StringIO()
        self.password = password
        self.bus = Bus(
            url=f"nats://127.0.0.1:{server.port}",
            name="test",
            inbox_prefix="_INBOX.test",
            login=lambda: BusLogin(user="u", password=self.password),
            clock=SystemClock(),
            entropy=SystemEntropy(),
            log=EventLog(SystemClock(), self.text),
        )

    def events(self):
        return [json.loads(line)["event"] for line in self.text.getvalue().splitlines()]

    @contextlib.asynccontextmanager
    async def running(self):
        task = asyncio.create_task(self.bus.run())
        try:
            yield self.bus
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def play(scene):
    async def bounded():
        async with asyncio.timeout(DEADLINE_S):
            await scene()

    asyncio.run(bounded())


async def until(condition):
    """Wait for a condition; `play` bounds the whole scene."""
    while True:
        if condition():
            return
        await asyncio.sleep(0.01)


def test_inboxes_are_subscribed_again_and_a_publish_without_connection_is_not_kept(server):
    async def scene():
        client = Client(server)
        inbox = client.bus.listen("a.*", pending_max=10)
        async with client.running() as bus:
            await bus.wait_connected()
            await bus.publish("a.1", b"one", headers={"k": "v"})
            first = await inbox.next()
            assert (first.subject, first.data, dict(first.headers)) == ("a.1", b"one", {"k": "v"})
            server.kill()
            await until(lambda: not bus.is_connected)
            with pytest.raises(Unavailable, match="not connected"):
                await bus.publish("a.2", b"two")
            with pytest.raises(Unavailable):
                await bus.request("a.2", b"two", timeout_s=1)
            server.start()
            await bus.wait_connected()
            await bus.publish("a.3", b"three")
            assert (await inbox.next()).data == b"three"
            assert inbox.next_nowait() is None
            assert bus.connections == 2
        assert client.events().count("bus_lost") == 1
        assert "bus_complaint" not in client.events(), "a lost connection is said once"

    play(scene)


def test_a_client_that_fails_to_close_is_noticed_and_replaced(server):
    async def scene():
        client = Client(server)
        async with client.running() as bus:
            await bus.wait_connected()
            broken = bus._client

            def fail(_data):
                raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")

            # What it still had to send fails as it closes, and it forgets to say that it is closed.
            broken._transport.writelines = fail
            broken._pending.append(b"PING\r\n")
            broken._pending_data_size += 6
            server.kill()
            await until(lambda: "bus_lost" in client.events())
            server.start()
            await until(lambda: bus.connections == 2)

    play(scene)


@pytest.mark.deep
def test_a_program_that_hung_longer_than_its_server_waits_connects_again(server):
    async def scene():
        server.kill()
        server.config.write_text(server.config.read_text() + 'ping_interval: "500ms"\nping_max: 1\n')
        server.start()
        client, has_begun = Client(server), asyncio.Event()

        async def talk():
            with contextlib.suppress(Unavailable):
                for _ in range(50):
                    await client.bus.publish("a.1", bytes(100_000))
                    has_begun.set()
                    await asyncio.sleep(0)

        async with client.running() as bus:
            await bus.wait_connected()
            for _ in range(8):
                before = bus.connections
                talks = [asyncio.create_task(talk()) for _ in range(3)]
                await has_begun.wait()
                has_begun.clear()
                time.sleep(2.5)  # noqa: ASYNC251 - the hang itself
                await until(lambda before=before: bus.connections > before and bus.is_connected)
                await asyncio.gather(*talks)

    async def bounded():
        async with asyncio.timeout(DEADLINE_S):
            await scene()

    uvloop.run(bounded())  # the transports whose closing the client does not survive are uvloop's


def test_a_server_that_is_not_there_yet_is_waited_for(server):
    async def scene():
        server.kill()
        client = Client(server)
        async with client.running() as bus:
            await until(lambda: "bus_unreachable" in client.events())
            server.start()
            await bus.wait_connected()
        assert client.events() == ["bus_unreachable", "bus_connected"]
        assert "ConnectionRefused" in client.text.getvalue(), "the reason is the operating system's"

    play(scene)


def test_a_changed_password_is_picked_up(server):
    async def scene():
        other = Client(server)
        async with other.running():
            await other.bus.wait_connected()
        client = Client(server, password="wrong")
        async with client.running() as bus:
            await until(lambda: "bus_unreachable" in client.events())
            assert not bus.is_connected
            client.password = "secret"
            await bus.wait_connected()
        assert "Authorization Violation" in client.text.getvalue()
        assert "secret" not in client.text.getvalue()
        assert "secret" not in repr(BusLogin(user="u", password="secret"))

    play(scene)


def test_a_request_says_whether_nobody_listens_or_nobody_answers(server):
    async def scene():
        client, other = Client(server), Client(server)
        silent = other.bus.listen("silent", pending_max=10)
        asked = other.bus.listen("asked", pending_max=10)
        async with client.running() as bus, other.running() as peer:
            await bus.wait_connected()
            await peer.wait_connected()
            with pytest.raises(NoResponders):
                await bus.request("nobody", b"", timeout_s=5)
            with pytest.raises(Unavailable, match="no answer") as caught:
                await bus.request("silent", b"", timeout_s=0.05)
            assert not isinstance(caught.value, NoResponders)
            assert (await silent.next()).reply.startswith("_INBOX.test.")
            question = asyncio.create_task(bus.request("asked", b"?", timeout_s=5))
            await peer.publish((await asked.next()).reply, b"!")
            assert (await question).data == b"!"

    play(scene)


def test_a_publish_by_reply_gets_the_servers_status(server):
    async def scene():
        client = Client(server)
        name = client.bus.make_inbox_name()
        inbox = client.bus.listen(f"{name}.*", pending_max=10)
        async with client.running() as bus:
            await bus.wait_connected()
            await bus.publish("nobody", b"", reply=f"{name}.1")
            answer = await inbox.next()
            assert (answer.status, answer.subject) == ("503", f"{name}.1")

    play(scene)


def test_a_denied_publish_is_said_once_for_each_text(server):
    async def scene():
        client = Client(server)
        async with client.running() as bus:
            await bus.wait_connected()
            for _ in range(5):
                await bus.publish("denied", b"")
            await until(lambda: "bus_complaint" in client.events())
            with pytest.raises(NoResponders):
                await bus.request("nobody", b"", timeout_s=5)
            assert bus.is_connected
        assert client.events().count("bus_complaint") == 1

    play(scene)


def test_an_inbox_drops_the_newest_over_its_bound_and_counts_it(server):
    async def scene():
        client = Client(server)
        inbox = client.bus.listen("a", pending_max=3)
        async with client.running() as bus:
            await bus.wait_connected()
            for number in range(10):
                await bus.publish("a", str(number).encode())
            with pytest.raises(NoResponders):
                await bus.request("nobody", b"", timeout_s=5)
            await until(lambda: inbox.dropped == 7)
            assert [inbox.next_nowait().data for _ in range(3)] == [b"0", b"1", b"2"]
            assert inbox.next_nowait() is None

    play(scene)


def test_what_is_larger_than_the_server_takes_is_refused(server):
    async def scene():
        client = Client(server)
        async with client.running() as bus:
            await bus.wait_connected()
            with pytest.raises(Unavailable, match="cannot publish"):
                await bus.publish("a", b"x" * (1024 * 1024 + 1))
            assert bus.is_connected

    play(scene)
