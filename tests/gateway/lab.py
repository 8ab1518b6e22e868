"""A small laboratory: real gateway workers on real loopback sockets, fed by files, with fake engines behind them.

Everything runs on one uvloop in a thread of its own, so that tests are plain blocking clients. `Lab.run` carries a
coroutine over; `wait_until` waits for a condition with a deadline.
"""

import asyncio
import hashlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import uvloop
from tests.gateway.fake_engine import FakeEngine

from madang.core import Clock, KeyId, ServiceName, SiteId, TenantId
from madang.gateway.app import GatewayWorker
from madang.gateway.settings import GatewaySettings
from madang.gateway.usage_log import Disk
from madang.model import (
    ApiKey,
    Budget,
    CatalogEntry,
    DataClass,
    KeyPolicy,
    PriorityClass,
    Project,
    ReplicaPhase,
    Residency,
    ResidencyScope,
    Service,
    Site,
    Tariff,
    Task,
    Tenant,
    UsageEvent,
)
from madang.runtime.clock import SystemClock, SystemEntropy
from madang.runtime.files import replace_file
from madang.runtime.telemetry import EventLog
from madang.wire.bus import ServiceLoad
from madang.wire.feed import (
    LIVE_FILE,
    SNAPSHOT_FILE,
    GatewayLive,
    GatewaySnapshot,
    LocalReplica,
    Peer,
    PeerSession,
    encode_feed,
)
from madang.wire.usage_log import MAGIC, decode_records

T = TypeVar("T")
CHAT = "qwen"
EMBED = "e5"
WAIT_S = 60.0


def make_key(name: str) -> str:
    """The text of a key that this name always gets."""
    secret = hashlib.sha256(name.encode()).hexdigest()[:43]
    return f"mdg_{name}_{secret}"


def wait_until(condition: Callable[[], T], what: str, deadline_s: float = WAIT_S) -> T:
    """Return the condition's value once it is true; fail naming `what` when it stays false."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        threading.Event().wait(0.002)
    raise AssertionError(f"not within {deadline_s} s: {what}")


@dataclass
class LabTenant:
    name: str
    residency: Residency
    is_revoked: bool = False
    expires_at_s: float | None = None
    data_class: DataClass = DataClass.SENSITIVE
    is_redirect_wanted: bool = False
    budget: Budget = field(default_factory=Budget)
    priority: PriorityClass = PriorityClass.INTERACTIVE
    overdraw_micro_won: int = 0
    has_policy: bool = False

    @property
    def key(self) -> str:
        return make_key(self.name)


def residency(scope: str, *places: str, transit: bool = False) -> Residency:
    return Residency(scope=ResidencyScope(scope), places=places, is_transit_granted=transit)


CLINIC = LabTenant("clinic", residency("site", "daegu"))
PARTS = LabTenant("parts", residency("region", "yeongnam"))
CITY = LabTenant("city", residency("nation", "kr"))
TENANTS = [CLINIC, PARTS, CITY]


class Log:
    """Collects events, for tests that look at them."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def write(self, text: str) -> None:
        self.events.append(json.loads(text))

    def flush(self) -> None:
        pass

    def named(self, event: str) -> list[dict[str, Any]]:
        return [one for one in self.events if one["event"] == event]


@dataclass
class LabSite:
    """One site: a worker, its files, its engines."""

    lab: "Lab"
    name: str
    region: str
    folder: Path
    is_entry_only: bool = False
    worker: GatewayWorker | None = None
    settings: GatewaySettings | None = None
    sockets: dict[str, socket.socket] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    replicas: list[LocalReplica] = field(default_factory=list)
    peers: list[str] = field(default_factory=list)
    peer_urls: dict[str, str] = field(default_factory=dict)
    digest_age_s: float = 0.1
    data_class_max: DataClass = DataClass.SENSITIVE
    round_trips_s: dict[str, float] = field(default_factory=dict)
    loads: tuple[ServiceLoad, ...] | None = None
    generation: int = 1
    closed_reason: str = ""
    own_sessions: tuple[PeerSession, ...] = ()
    log: Log = field(default_factory=Log)

    @property
    def feed_dir(self) -> Path:
        return self.folder / "feed"

    @property
    def usage_dir(self) -> Path:
        return self.folder / "usage"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['tenant']}"

    @property
    def fact(self) -> Site:
        return Site(
            name=SiteId(self.name),
            region=self.region,
            tenant_url=self.url,
            is_entry_only=self.is_entry_only,
            data_class_max=self.data_class_max,
        )

    def add_replica(
        self, engine: FakeEngine, service: str = CHAT, slots: int = 4, features: tuple[str, ...] = ()
    ) -> LocalReplica:
        replica = LocalReplica(
            replica_id=f"{self.name}-{service}-{len(self.replicas)}",
            service=service,
            phase=ReplicaPhase.READY,
            endpoint=engine.endpoint,
            engine_key="engine-secret",
            chip_kind="cpu",
            slots=slots,
            slot=len(self.replicas),
            features=features,
        )
        self.replicas.append(replica)
        return replica

    def own_loads(self) -> tuple[ServiceLoad, ...]:
        if self.loads is not None:
            return self.loads
        services = {replica.service for replica in self.replicas}
        return tuple(
            ServiceLoad(
                service=service,
                replicas_ready=sum(one.service == service for one in self.replicas),
                slots=sum(one.slots for one in self.replicas if one.service == service),
                in_flight=0,
            )
            for service in sorted(services)
        )

    def write_feed(self) -> None:
        self.feed_dir.mkdir(parents=True, exist_ok=True)
        lab = self.lab
        snapshot = GatewaySnapshot(
            site=SiteId(self.name),
            generation=self.generation,
            sites=tuple(site.fact for site in lab.sites.values()),
            keys=tuple(
                ApiKey(
                    key_id=KeyId(tenant.name),
                    sha256=hashlib.sha256(tenant.key.encode()).hexdigest(),
                    tenant_id=TenantId(tenant.name),
                    residency=tenant.residency,
                    expires_at_s=tenant.expires_at_s,
                    is_revoked=tenant.is_revoked,
                    data_class=tenant.data_class,
                    is_redirect_wanted=tenant.is_redirect_wanted,
                    has_policy=tenant.has_policy,
                )
                for tenant in lab.tenants
            ),
            tenants=tuple(
                Tenant(
                    tenant_id=TenantId(tenant.name),
                    title=tenant.name,
                    residency=tenant.residency,
                    data_class=tenant.data_class,
                    budget=tenant.budget,
                    priority=tenant.priority,
                    overdraw_micro_won=tenant.overdraw_micro_won,
                )
                for tenant in lab.tenants
            ),
            services=tuple(lab.services),
            models=tuple(lab.models),
            projects=tuple(lab.projects),
            key_policies=tuple(lab.key_policies),
            tariffs=tuple(lab.tariffs),
        )
        replace_file(self.feed_dir / SNAPSHOT_FILE, encode_feed(snapshot))
        live = GatewayLive(
            written_ns=time.monotonic_ns(),
            boot_id="b",
            replicas=tuple(self.replicas),
            peers=tuple(self._peer(name) for name in self.peers),
            admission_closed_reason=self.closed_reason,
            own_sessions=self.own_sessions,
        )
        replace_file(self.feed_dir / LIVE_FILE, encode_feed(live), mode=0o600)

    def _peer(self, name: str) -> Peer:
        other = self.lab.sites[name]
        return Peer(
            site=SiteId(name),
            url=self.peer_urls.get(name, f"http://127.0.0.1:{other.ports['peer']}"),
            digest_age_s=self.digest_age_s,
            services=other.own_loads(),
            sessions=(session_between(self.name, name),),
            round_trip_s=self.round_trips_s.get(name, -1.0),
        )

    def refresh(self) -> None:
        """Write the feed anew and wait until the worker uses it."""
        assert self.worker is not None
        self.write_feed()

        def is_seen() -> bool:
            feed = self.worker.feed
            feed_live = feed.live
            return feed_live is not None and feed.desired is not None and feed_live.written_ns >= self._written_ns()

        wait_until(is_seen, "the worker reads its feed")

    def _written_ns(self) -> int:
        return msgspec.msgpack.decode((self.feed_dir / LIVE_FILE).read_bytes())["written_ns"]

    def events(self) -> list[UsageEvent]:
        """Every usage event on this site's disk."""
        found: list[UsageEvent] = []
        for path in sorted(self.usage_dir.glob("w*.log")):
            data = path.read_bytes()
            if data[: len(MAGIC)] == MAGIC:
                found += decode_records(data[len(MAGIC) :])[0]
        return found

    # --- clients

    def connect(self, port: str = "tenant", timeout_s: float = WAIT_S) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.ports[port]), timeout=timeout_s)

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        key: str | None = None,
        port: str = "tenant",
        headers: dict[str, str] | None = None,
    ) -> "Answer":
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[port], timeout=WAIT_S)
        sent = dict(headers or {})
        if key is not None:
            sent["Authorization"] = f"Bearer {key}"
        data = None
        if body is not None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        try:
            connection.request(method, path, data, sent)
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def chat(self, tenant: LabTenant, **fields: object) -> "Answer":
        body = {"model": CHAT, "messages": [{"role": "user", "content": "대한민국의 수도는?"}], **fields}
        return self.request("POST", "/v1/chat/completions", body, key=tenant.key)


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]

    @property
    def events(self) -> list[str]:
        return [event.removeprefix("data: ") for event in self.body.decode().split("\n\n") if event]


def session_between(one: str, other: str) -> PeerSession:
    pair = "/".join(sorted((one, other)))
    return PeerSession(kid=f"epoch/{pair}", key=hashlib.sha256(pair.encode()).digest(), expires_at_s=time.time() + 600)


class Lab:
    """Sites on one loop in one thread; use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sites: dict[str, LabSite] = {}
        self.tenants = list(TENANTS)
        self.services = [
            Service(name=ServiceName(CHAT), model="chat-model"),
            Service(name=ServiceName(EMBED), model="embed-model"),
        ]
        self.models = [
            CatalogEntry(name="chat-model", task=Task.CHAT, title="t", licence="l"),
            CatalogEntry(name="embed-model", task=Task.EMBEDDING, title="t", licence="l"),
        ]
        self.projects: list[Project] = []
        self.key_policies: list[KeyPolicy] = []
        self.tariffs: list[Tariff] = []
        self.engines: list[FakeEngine] = []
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._main, name="lab")
        self._failure: BaseException | None = None

    def __enter__(self) -> "Lab":
        self._thread.start()
        self._ready.wait(WAIT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive(), "the lab does not stop"
        for site in self.sites.values():
            for held in site.sockets.values():
                held.close()
        if self._failure is not None:
            raise self._failure

    def _main(self) -> None:
        try:
            uvloop.run(self._live())
        except BaseException as error:
            self._failure = error
            self._ready.set()

    async def _live(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.bugs: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _loop, context: self.bugs.append(context))
        self._stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            self.tasks = tasks
            self._ready.set()
            await self._stop.wait()
            for site in self.sites.values():
                if site.worker is not None:
                    await site.worker.stop()
            for engine in self.engines:
                await engine.stop()
        await asyncio.sleep(0.01)  # closed transports leave the loop
        assert not self.bugs, self.bugs

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(WAIT_S)

    def engine(self, **fields: Any) -> FakeEngine:
        async def make() -> FakeEngine:
            return await FakeEngine(**fields).start()

        engine = self.run(make())
        self.engines.append(engine)
        return engine

    def site(self, name: str = "daegu", region: str = "yeongnam", *, is_entry_only: bool = False) -> LabSite:
        """Make a site and bind its sockets; `start` runs its worker."""
        site = LabSite(self, name, region, self.folder / name, is_entry_only)
        for port in ("tenant", "peer", "admin"):
            held = socket.socket()
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(("127.0.0.1", 0))
            held.listen(128)
            held.setblocking(False)
            site.sockets[port] = held
            site.ports[port] = held.getsockname()[1]
        self.sites[name] = site
        return site

    def start(
        self,
        site: LabSite,
        *,
        disk: Disk | None = None,
        is_fed: bool = True,
        clock: Clock | None = None,
        **settings: Any,
    ) -> GatewayWorker:
        """Run a site's worker; its feed is written first unless told otherwise."""
        site.settings = GatewaySettings(
            site=site.name,
            feed_dir=site.feed_dir,
            usage_dir=site.usage_dir,
            **{"drain_timeout_s": 1.0, "idle_timeout_s": 5.0, **settings},
        )
        if is_fed:
            site.write_feed()

        async def make() -> GatewayWorker:
            worker = GatewayWorker(
                site.settings,
                0,
                clock=clock or SystemClock(),
                entropy=SystemEntropy(),
                log=EventLog(SystemClock(), site.log),
                tasks=self.tasks,
                sockets={name: held.dup() for name, held in site.sockets.items()},
                disk=disk,
            )
            await worker.start()
            return worker

        site.worker = self.run(make())
        return site.worker

    def stop(self, site: LabSite) -> None:
        """End a site's worker, as SIGTERM does."""
        assert site.worker is not None
        self.run(site.worker.stop())
        site.worker = None
