"""How many connections a worker takes: what its files allow, what is named, and that no flood stops it for good."""

import asyncio
import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from tests.gateway.lab import CITY, Lab, Log, wait_until
from tests.gateway.raw import RawClient, chat_body, post
from tests.gateway.worker_process import WorkerProcess

from madang.core import Rejected
from madang.gateway.acceptor import Acceptor
from madang.gateway.file_budget import CONNECTIONS_LEAST, OTHER_FILES, plan_files
from madang.gateway.origins import NO_VISIT, REFUSALS_MAX, Visit
from madang.gateway.settings import GatewaySettings
from madang.runtime.clock import SystemClock
from madang.runtime.telemetry import EventLog

SETTINGS = GatewaySettings(
    site="daegu", feed_dir=Path("f"), usage_dir=Path("u"), connections_max=1000, upstreams_max=100
)
OTHERS = 200 + OTHER_FILES


@pytest.mark.parametrize("allowed", [None, 1000 + OTHERS, 10**6])
def test_enough_files(allowed: int | None) -> None:
    budget = plan_files(SETTINGS, allowed)
    assert (budget.connections_max, budget.shortfall, budget.wanted) == (1000, "", 1000 + OTHERS)


def test_a_shortfall_costs_connections_and_is_named() -> None:
    budget = plan_files(SETTINGS, 999 + OTHERS)
    assert budget.connections_max == 999
    assert f"only {999 + OTHERS} of {1000 + OTHERS} files" in budget.shortfall
    assert "only 999 of 1000 connections" in budget.shortfall
    assert plan_files(SETTINGS, OTHERS + CONNECTIONS_LEAST).connections_max == CONNECTIONS_LEAST
    with pytest.raises(Rejected, match=f"{OTHERS + CONNECTIONS_LEAST} is the least"):
        plan_files(SETTINGS, OTHERS + CONNECTIONS_LEAST - 1)


def test_the_defaults_fit_a_usual_hard_limit() -> None:
    settings = GatewaySettings(site="daegu", feed_dir=Path("f"), usage_dir=Path("u"))
    assert plan_files(settings, 20_000).shortfall == ""


@pytest.fixture
def worker(lab: Lab) -> Iterator[WorkerProcess]:
    site = lab.site()
    site.add_replica(lab.engine())
    site.write_feed()
    one = WorkerProcess(site, files_max=400, connections_max=1000, connections_per_address_max=0, upstreams_max=16)
    try:
        yield one.wait_ready()
    finally:
        one.kill()


@pytest.mark.peer
def test_a_flood_of_connections_leaves_a_worker_that_takes_more_later(worker: WorkerProcess) -> None:
    site = worker.site
    ready = site.request("GET", "/readyz", port="admin")
    room = 400 - 32 - OTHER_FILES
    assert ready.status == 200, "a shortfall is told, and what there is room for is served"
    assert ready.json["warnings"] == [plan_files_warning(room)]
    assert [one["shortfall"] for one in worker.log if one["event"] == "gateway_file_limit_low"] == ready.json[
        "warnings"
    ]
    with ExitStack() as held:
        clients = [held.enter_context(closing(RawClient(site.connect()))) for _ in range(room)]
        wait_until(lambda: f"madang_gateway_open_connections {room}.0" in metrics(site), "all are taken")
        refused = [held.enter_context(closing(RawClient(site.connect()))) for _ in range(200)]
        answers = [one.rest() for one in refused]
        told = [one for one in answers if one.startswith(b"HTTP/1.1 429 ")]
        assert len(told) >= 1
        assert all(one.startswith(b"HTTP/1.1 429 ") or one == b"" for one in answers)
        assert len(told) <= REFUSALS_MAX + 200 // 2
        assert site.request("GET", "/readyz", port="admin").status == 200
        clients[0].send(post(chat_body(), CITY.key))
        assert clients[0].answer().status == 200, "who is connected is served"
    wait_until(lambda: "madang_gateway_open_connections 0.0" in metrics(site), "all have left")
    assert site.chat(CITY).status == 200
    assert [one["event"] for one in worker.log if one["level"] == "error"] == []


def plan_files_warning(room: int) -> str:
    wanted = 1000 + 32 + OTHER_FILES
    return (
        f"only 400 of {wanted} files may be open, so only {room} of 1000 connections are taken; "
        "raise the hard limit of open files"
    )


def metrics(site: object) -> str:
    return site.request("GET", "/metrics", port="admin").body.decode()


class FakeFullListener:
    """A listening socket whose process has no file left, `failures` times."""

    def __init__(self, failures: int) -> None:
        self._real = socket.create_server(("127.0.0.1", 0))
        self.address = self._real.getsockname()
        self.failures = failures

    def accept(self) -> tuple[socket.socket, object]:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return self._real.accept()

    def setblocking(self, is_blocking: bool) -> None:
        self._real.setblocking(is_blocking)

    def fileno(self) -> int:
        return self._real.fileno()

    def close(self) -> None:
        self._real.close()


class Greeter(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(b"hello")
        transport.close()


class Room:
    def enter(self, address: object, waiting: int) -> Visit:
        return NO_VISIT

    def connect(self, visit: Visit) -> asyncio.Protocol:
        return Greeter()


def test_a_process_without_files_goes_on_when_there_are_some(lab: Lab) -> None:
    listener = FakeFullListener(failures=2)
    log = Log()

    async def start() -> Acceptor:
        acceptor = Acceptor(
            listener, Room(), loop=lab.loop, spawn=lab.tasks.create_task, log=EventLog(SystemClock(), log)
        )
        acceptor.start()
        return acceptor

    acceptor = lab.run(start())
    with socket.create_connection(listener.address, timeout=10) as client:
        assert client.recv(10) == b"hello"
    assert listener.failures == 0
    assert [one["event"] for one in log.events] == ["gateway_cannot_accept", "gateway_accepts_again"]
    lab.loop.call_soon_threadsafe(acceptor.close)
    wait_until(lambda: listener.fileno() == -1, "it is closed")
