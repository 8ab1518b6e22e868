"""Files and batches of a site on a real database and disk, with a gateway that a test plays.

The site's own process around them is played by the bench: it serves the internal API in memory and runs the loops.
"""

import asyncio
import contextlib
import functools
import json
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from madang.core import KeyId, ServiceName, SiteId, TenantId
from madang.model import ApiKey, Assignment, Residency, ResidencyScope, Service, Site, Tenant
from madang.runtime.admin_http import AdminServer
from madang.runtime.clock import SystemClock, SystemEntropy
from madang.runtime.store import Store, sqlite_url, upgrade_schema
from madang.runtime.telemetry import EventLog
from madang.site.app import MIGRATIONS
from madang.site.bootstrap import prepare_site
from madang.site.desired import DesiredView
from madang.site.guard import GuardedStore
from madang.site.internal import make_internal_app
from madang.site.settings import SiteSettings
from madang.site.tenant_data import TenantData, make_tenant_data
from madang.wire.feed import PeerSession
from madang.wire.passes import Pass, open_pass

TOKEN = b"t"
MODEL = "qwen"
SESSION = PeerSession(kid="own:test", key=b"k" * 32, expires_at_s=9e9)
ANYWHERE = Residency(scope=ResidencyScope.ANY)


class ShiftedClock(SystemClock):
    """The system's clock, moved by a test."""

    shift_s = 0.0

    def wall_s(self) -> float:
        return super().wall_s() + self.shift_s


@dataclass
class FakeGateway:
    """Plays the gateway's peer port: answers lines as a test says, and keeps what it was asked."""

    answer: Callable[[dict[str, Any]], Awaitable[Response]] | None = None
    asked: list[tuple[Pass, dict[str, Any]]] = field(default_factory=list)
    in_flight: int = 0
    in_flight_max: int = 0
    url: str = ""

    async def take(self, request: Request) -> Response:
        body = json.loads(await request.body())
        found = open_pass(
            request.headers["x-madang-pass"], {SESSION.kid: SESSION.key}, now_s=SystemClock().wall_s(), skew_s=1e9
        )
        self.asked.append((found, body))
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight_max, self.in_flight)
        try:
            if self.answer is not None:
                return await self.answer(body)
            return completion(body)
        finally:
            self.in_flight -= 1

    async def serve(self) -> AdminServer:
        app = Starlette(routes=[Route("/v1/chat/completions", self.take, methods=["POST"])])
        server = AdminServer(app, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{await server.start()}"
        return server


@functools.cache
def empty_database() -> bytes:
    """The bytes of a migrated database: making one takes longer than most tests."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "site.db"
        database = Store(sqlite_url(path))
        upgrade_schema(database.engine, MIGRATIONS)
        database.close()
        return path.read_bytes()


def completion(body: dict[str, Any]) -> Response:
    """An answer that says the question again."""
    text = body["messages"][0]["content"]
    return Response(json.dumps({"object": "chat.completion", "choices": [{"message": {"content": f"re: {text}"}}]}))


def refusal(status: int, code: str, message: str = "no", **madang: object) -> Response:
    error: dict[str, Any] = {"message": message, "type": "t", "param": None, "code": code}
    if madang:
        error["madang"] = madang
    return Response(json.dumps({"error": error}), status_code=status)


class Bench:
    """One site's files and batches; `restart` begins another life on the same disk."""

    def __init__(self, folder: Path, gateway: FakeGateway, clock: ShiftedClock, **settings: Any) -> None:
        self.folder = folder
        self.gateway = gateway
        self.clock = clock
        self.settings = SiteSettings(
            name="daegu",
            region="yeongnam",
            state_dir=folder,
            feed_dir=folder / "feed",
            usage_dir=folder / "usage",
            own_gateway_url=gateway.url,
            **settings,
        )
        self.view = DesiredView()
        self.view.sites["daegu"] = Site(name=SiteId("daegu"), region="yeongnam")
        for tenant in ("clinic", "city"):
            self.view.keys[f"{tenant}-key"] = ApiKey(
                key_id=KeyId(f"{tenant}-key"), sha256="0" * 64, tenant_id=TenantId(tenant), residency=ANYWHERE
            )
            self.view.tenants[tenant] = Tenant(tenant_id=TenantId(tenant), title=tenant, residency=ANYWHERE)
        self.view.services[MODEL] = Service(name=ServiceName(MODEL), model="m")
        self.view.assignments[MODEL] = Assignment(service=ServiceName(MODEL), replicas=1)
        self.loads: tuple[Any, ...] = ()
        self.data: TenantData
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        prepare_site(self.settings)
        path = self.folder / "site.db"
        if not path.exists():
            path.write_bytes(empty_database())
        self._database = Store(sqlite_url(path))
        log = EventLog(self.clock)
        self.data = make_tenant_data(
            settings=self.settings,
            store=GuardedStore(self._database, log),
            view=self.view,
            peers=SimpleNamespace(own_sessions=lambda: (SESSION,)),  # type: ignore[arg-type]
            find_loads=lambda: self.loads,
            clock=self.clock,
            entropy=SystemEntropy(),
            log=log,
            batch_wait_s_min=0.02,
        )
        await self.data.prepare()
        app = make_internal_app(self.data.routes(), TOKEN, log)
        self._client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://site")
        self._tasks = [asyncio.create_task(loop) for loop in self.data.loops().values()]

    async def stop(self) -> None:
        """End as if killed: nothing is tidied."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.data.close()
        await self._client.aclose()
        self._database.close()

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    async def ask(self, method: str, path: str, tenant: str = "clinic", **more: Any) -> httpx.Response:
        headers = {
            "authorization": f"Bearer {TOKEN.decode()}",
            "x-madang-tenant": tenant,
            "x-madang-project": "p",
            "x-madang-key": f"{tenant}-key",
            "x-madang-request-id": "daegu-" + "0" * 32,
            "x-madang-data-class": "sensitive",
        }
        return await self._client.request(method, "/internal" + path, headers=headers, **more)

    async def upload(self, content: bytes, tenant: str = "clinic", **fields: str) -> httpx.Response:
        form = {"purpose": "batch", **fields}
        return await self.ask("POST", "/v1/files", tenant, data=form, files={"file": ("in.jsonl", content)})

    async def batch(self, content: bytes, tenant: str = "clinic", **fields: Any) -> dict[str, Any]:
        """Upload an input and make a batch of it."""
        uploaded = await self.upload(content, tenant)
        assert uploaded.status_code == 200, uploaded.text
        body = {
            "input_file_id": uploaded.json()["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            **fields,
        }
        made = await self.ask("POST", "/v1/batches", tenant, json=body)
        assert made.status_code == 200, made.text
        return dict(made.json())

    async def show(self, batch_id: str, tenant: str = "clinic") -> dict[str, Any]:
        return dict((await self.ask("GET", f"/v1/batches/{batch_id}", tenant)).json())

    async def until(self, batch_id: str, *statuses: str, tenant: str = "clinic") -> dict[str, Any]:
        async def look() -> dict[str, Any] | None:
            shown = await self.show(batch_id, tenant)
            return shown if shown["status"] in statuses else None

        return await until(look, f"{batch_id} is {' or '.join(statuses)}")

    async def results(self, file_id: str, tenant: str = "clinic") -> dict[str, dict[str, Any]]:
        """The lines of a result file by custom_id; each may stand there once."""
        answer = await self.ask("GET", f"/v1/files/{file_id}/content", tenant)
        assert answer.status_code == 200, answer.text
        lines = [json.loads(line) for line in answer.text.splitlines()]
        found = {line["custom_id"]: line for line in lines}
        assert len(found) == len(lines), "a custom_id stands twice in a result file"
        return found


async def until(look: Callable[[], Awaitable[Any]], what: str, deadline_s: float = 60.0) -> Any:
    """Return what `look` returns once it is true."""
    try:
        async with asyncio.timeout(deadline_s):
            while not (found := await look()):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            return found
    except TimeoutError:
        raise AssertionError(f"not within {deadline_s} s: {what}") from None


@contextlib.asynccontextmanager
async def running_bench(folder: Path, **settings: Any) -> AsyncIterator[Bench]:
    gateway = FakeGateway()
    server = await gateway.serve()
    bench = Bench(folder, gateway, ShiftedClock(), **settings)
    await bench.start()
    try:
        yield bench
    finally:
        await bench.stop()
        await server.stop()


def lines(*texts: str, **changes: Any) -> bytes:
    """An input with one request a text, whose custom_id is its number."""
    rows = [
        {
            "custom_id": f"c{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": MODEL, "messages": [{"role": "user", "content": text}]},
            **changes,
        }
        for number, text in enumerate(texts)
    ]
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)
