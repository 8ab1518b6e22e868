"""A hub with its real NATS server and real leaf servers of sites, on free loopback ports, for tests.

The hub runs inside the test's event loop; only `FakeSite` is not real: it speaks the site's side of the protocol,
so that these tests need no site process.
"""

import asyncio
import contextlib
import hashlib
import os
import socket
import subprocess
from pathlib import Path

import httpx
import msgspec
from tests import loopback

from madang.core import Unavailable
from madang.hub.app import run_hub
from madang.hub.bootstrap import prepare_hub
from madang.hub.settings import HubSettings
from madang.runtime.bus import Bus, BusLogin
from madang.runtime.clock import SystemClock, SystemEntropy
from madang.runtime.nats import SiteNats, nats_server_path, render_site_conf
from madang.runtime.telemetry import EventLog
from madang.testing.ports import free_port
from madang.wire import bus as wire

TOKEN = "test-admin-token"
DEADLINE_S = 60.0
"""When a wait is given up: it tells a hang from a slow machine, so it is far beyond what anything takes."""


async def until(condition, what, deadline_s=DEADLINE_S):
    """Wait until `condition()` (plain or async) is true; fails naming `what`."""
    end = asyncio.get_running_loop().time() + deadline_s
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        assert asyncio.get_running_loop().time() < end, f"not within {deadline_s} s: {what}"
        await asyncio.sleep(0.02)


class NatsProcess:
    """A real nats-server."""

    def __init__(self, config: Path, port: int, log: Path):
        self.config, self.port, self.log = config, port, log
        self.process = None

    async def start(self):
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: ASYNC220
                [nats_server_path(), "-c", self.config], stdout=log, stderr=log
            )
        await until(self.is_listening, f"nats-server of {self.config} listens: {self.log.read_text()[-500:]}")

    def is_listening(self):
        assert self.process.poll() is None, self.log.read_text()[-1000:]
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


class Hub:
    """A hub and its NATS server."""

    def __init__(self, folder: Path, **settings):
        self.folder = folder
        self.settings = HubSettings(
            state_dir=folder / "hub",
            port=free_port(),
            nats_port=free_port(),
            nats_leaf_port=free_port(),
            nats_monitor_port=free_port(),
            admin_token_sha256=hashlib.sha256(TOKEN.encode()).hexdigest(),
            **{"usage_stream_bytes_max": 2**28, **settings},
        )
        self.nats = NatsProcess(prepare_hub(self.settings).nats_config, self.settings.nats_port, folder / "hub.log")
        self.url = f"http://127.0.0.1:{self.settings.port}"
        self.events = (folder / "hub-events.jsonl").open("a")
        self.log = EventLog(SystemClock(), self.events)
        self.task = None
        self.client = httpx.AsyncClient(
            base_url=self.url, headers={"authorization": f"Bearer {TOKEN}"}, timeout=10, verify=loopback.NOBODY
        )

    async def start(self):
        """Start the hub program in this loop."""
        self.task = asyncio.create_task(run_hub(self.settings, SystemClock(), SystemEntropy(), self.log))
        await until(self.is_serving, "hub serves")

    async def is_serving(self):
        if self.task.done():
            self.task.result()
        try:
            return (await self.client.get("/healthz")).status_code == 200
        except httpx.TransportError:
            return False

    async def is_ready(self):
        return (await self.client.get("/readyz")).status_code == 200

    async def stop(self):
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task
        self.task = None

    async def call(self, method, path, body=None, *, expect=(200, 201)):
        answer = await self.client.request(method, path, json=body)
        assert answer.status_code in expect, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json()

    async def metric(self, name, **labels):
        text = (await self.client.get("/metrics")).text
        wanted = name + ("{" + ",".join(f'{k}="{v}"' for k, v in labels.items()) + "}" if labels else "")
        for line in text.splitlines():
            if line.startswith(wanted + " "):
                return float(line.rsplit(" ", 1)[1])
        return 0.0

    def bus(self, creds="hub.creds", name="probe"):
        """A second connection with the hub's own rights, to look and to break things."""
        return make_bus(
            self.settings.nats_port, f"_INBOX.{name}", creds_path=str(self.settings.state_dir / "nats" / creds)
        )


def make_bus(port, inbox, **login):
    return Bus(
        url=f"nats://127.0.0.1:{port}",
        name="test",
        inbox_prefix=inbox,
        login=lambda: BusLogin(**login),
        clock=SystemClock(),
        entropy=SystemEntropy(),
        log=EventLog(SystemClock(), open(os.devnull, "w")),
    )


@contextlib.asynccontextmanager
async def connected(bus):
    """Run a bus for the time of a block."""
    task = asyncio.create_task(bus.run())
    try:
        async with asyncio.timeout(DEADLINE_S):
            await bus.wait_connected()
        yield bus
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        bus._log._stream.close()


@contextlib.asynccontextmanager
async def running_hub(folder, **settings):
    """A hub whose NATS server runs, ready."""
    hub = Hub(folder, **settings)
    try:
        await hub.nats.start()
        await hub.start()
        await until(hub.is_ready, "hub is ready")
        yield hub
    finally:
        if hub.task is not None:
            await hub.stop()
        hub.nats.kill()
        await hub.client.aclose()
        hub.events.close()


def identity(name):
    return hashlib.sha256(name.encode()).hexdigest()


class LeafSite:
    """A site's real nats-server, linked to the hub with credentials from enrolment."""

    def __init__(self, hub, name, creds, edit_conf=None):
        self.hub, self.name, self.creds = hub, name, creds
        self.port = free_port()
        folder = hub.folder / name
        folder.mkdir(exist_ok=True)
        self.creds_file = folder / "leaf.creds"
        self.creds_file.write_text(creds)
        self.monitor_port = free_port()
        facts = SiteNats(
            site=name,
            host="127.0.0.1",
            port=self.port,
            monitor_port=self.monitor_port,
            hub_leaf_urls=(f"nats://127.0.0.1:{hub.settings.nats_leaf_port}",),
            creds_file=self.creds_file,
            users={"site": "local-password"},
            system_users={"system": "system-password"},
        )
        config = folder / "nats.conf"
        conf = render_site_conf(facts)
        config.write_text(edit_conf(hub.folder, name, conf) if edit_conf else conf)
        self.nats = NatsProcess(config, self.port, folder / "nats.log")

    def bus(self, inbox=None):
        return make_bus(self.port, inbox or f"_INBOX.{self.name}", user="site", password="local-password")

    async def is_linked(self):
        async with httpx.AsyncClient(verify=loopback.NOBODY) as client:
            try:
                answer = await client.get(f"http://127.0.0.1:{self.monitor_port}/leafz")
            except httpx.TransportError:
                return False
        return answer.json().get("leafnodes", 0) > 0


async def enrol(hub, name, **fields):
    body = {"name": name, "region": "yeongnam", "identity_ed25519": identity(name), **fields}
    return await hub.call("POST", "/api/v1/sites", body)


@contextlib.asynccontextmanager
async def leaf_sites(hub, *names, edit_conf=None):
    """Enrol sites, start their servers, wait until usage can pass from each to the hub's stream."""
    leafs = []
    try:
        for name in names:
            creds = (await enrol(hub, name))["creds"]
            leaf = LeafSite(hub, name, creds, edit_conf)
            leafs.append(leaf)
            await leaf.nats.start()
        for leaf in leafs:
            await until(leaf.is_linked, f"{leaf.name} is linked")
        yield leafs
    finally:
        for leaf in leafs:
            leaf.nats.kill()


class FakeSite:
    """Plays a site process: applies desired state in memory, obeys resync, and can be told to heartbeat."""

    def __init__(self, leaf, bus):
        self.name, self.bus = leaf.name, bus
        self.items = {}
        self.generation = 0
        self.resyncs = 0
        self.parts = {}
        self.deliveries = bus.listen(f"_INBOX.{leaf.name}.pull.*", pending_max=1000)
        self.commands = bus.listen(f"cmd.{leaf.name}.>", pending_max=100)

    async def pull(self):
        """Pull and apply once; returns how many items came."""
        subject = f"$JS.hub.API.CONSUMER.MSG.NEXT.KV_desired.{self.name}"
        body = msgspec.json.encode({"batch": 100, "no_wait": True})
        count = 0
        await self.bus.publish(subject, body, reply=f"_INBOX.{self.name}.pull.{self.generation}")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                while True:
                    message = await self.deliveries.next()
                    if message.status:
                        break
                    self.apply(wire.decode_desired(message.data))
                    await self.bus.publish(message.reply, b"+ACK")
                    count += 1
        return count

    def apply(self, item):
        key = (item.kind, item.item_id)
        known = self.items.get(key)
        if known is None or item.generation > known.generation:
            self.items[key] = item
            self.generation = max(self.generation, item.generation)

    async def obey(self):
        while True:
            message = await self.commands.next()
            part = wire.decode(message.data, wire.ResyncPart)
            self.parts.setdefault(part.resync_id, {})[part.part] = part
            parts = self.parts[part.resync_id]
            if len(parts) == part.parts:
                self.items = {(i.kind, i.item_id): i for p in parts.values() for i in p.items}
                self.generation = part.generation
                self.resyncs += 1
            await self.bus.publish(message.reply, wire.encode(wire.CommandReply(is_ok=True)))

    def live(self):
        return {key: bytes(item.spec) for key, item in self.items.items() if not item.is_deleted}

    def state_hash(self):
        return wire.state_hash({key: item.sha256 for key, item in self.items.items() if not item.is_deleted})

    async def heartbeat(self, seq=0, **fields):
        values = {
            "site": self.name,
            "boot_id": "b",
            "seq": seq,
            "sent_at_s": 0.0,
            "applied_generation": self.generation,
            "state_hash": self.state_hash(),
            "outbox_depth": 7,
            "oldest_unsent_age_s": 1.5,
        }
        await self.bus.publish(f"hb.{self.name}", wire.encode(wire.Heartbeat(**{**values, **fields})))


@contextlib.asynccontextmanager
async def fake_site(leaf):
    bus = leaf.bus()
    site = FakeSite(leaf, bus)
    async with connected(bus):
        task = asyncio.create_task(site.obey())
        try:
            yield site
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def js_api(bus, subject, body=None):
    """Call the hub's JetStream API with full rights, for arranging and looking."""
    answer = await bus.request(f"$JS.API.{subject}", msgspec.json.encode(body) if body else b"", timeout_s=5)
    return msgspec.json.decode(answer.data)


async def fails_to_arrive(bus, subject, data=b"{}", timeout_s=0.6):
    """Whether a request from a site gets no answer at all."""
    try:
        await bus.request(subject, data, timeout_s=timeout_s)
    except Unavailable:
        return True
    return False
