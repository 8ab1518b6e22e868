"""Thousands of clients in one process: those that keep a connection and say nothing, and those that read a stream.

Made for the soak tests, so each costs little and checks only what they ask: that an answer is 200 and whole, how many
events came, and when.
"""

import asyncio
import ssl
import time
from array import array
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

AT_ONCE = 64
"""Connections being opened at once."""
_TURNS = 20
P = TypeVar("P", bound="Client")


class Client(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.held = b""
        self.is_lost = False
        self.waiter: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_exception(ConnectionError(f"closed after {self.held[-300:]!r}"))

    def ask(self, request: bytes) -> "asyncio.Future[bytes]":
        """Send a request; the future is its whole answer, or what a subclass makes of it."""
        self.waiter = self.loop.create_future()
        self.held = b""
        self.transport.write(request)
        return self.waiter

    def tell(self, value: bytes) -> None:
        assert self.waiter is not None
        if not self.waiter.done():
            self.waiter.set_result(value)


class Asker(Client):
    """Waits for answers that have a length."""

    def data_received(self, data: bytes) -> None:
        self.held += data
        head, mark, body = self.held.partition(b"\r\n\r\n")
        if mark and len(body) >= int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]):
            self.tell(self.held)


class Reader(Client):
    """Reads one stream; `gaps_s` are the times between its reads."""

    def __init__(self, gaps_s: array) -> None:
        super().__init__()
        self.events = 0
        self.last_s = 0.0
        self.gaps_s = gaps_s

    def data_received(self, data: bytes) -> None:
        now_s = self.loop.time()
        if self.last_s:
            self.gaps_s.append(now_s - self.last_s)
        self.last_s = now_s
        if not self.held and not data.startswith(b"HTTP/1.1 200 ") and self.waiter is not None:
            self.waiter.set_exception(AssertionError(f"answered {data[:300]!r}"))
            return
        held = self.held + data
        self.events += held.count(b"data: ") - self.held.count(b"data: ")
        self.held = held[-40:]
        if held.endswith(b"\r\n0\r\n\r\n"):
            self.tell(held)


async def connect(make: Callable[[], P], count: int, port: int, context: ssl.SSLContext | None = None) -> list[P]:
    """Open `count` connections, some at once."""
    loop = asyncio.get_running_loop()
    gate = asyncio.Semaphore(AT_ONCE)

    async def one() -> P:
        async with gate:
            name = "localhost" if context else None
            _, client = await loop.create_connection(make, "127.0.0.1", port, ssl=context, server_hostname=name)
            return client

    return await asyncio.gather(*(one() for _ in range(count)))


async def ask_all(clients: Sequence[Client], request: bytes) -> list[bytes]:
    """Let each client ask, some at once, and return their answers; fails when one is not 200."""
    answers: list[bytes] = []
    for start in range(0, len(clients), AT_ONCE):
        answers += await asyncio.gather(*(one.ask(request) for one in clients[start : start + AT_ONCE]))
    bad = [answer[:300] for answer in answers if not answer.startswith(b"HTTP/1.1 200 ")]
    assert not bad, (len(bad), bad[0])
    return answers


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that `share` of the values are not above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def leave(clients: Sequence[Client]) -> None:
    """Close connections, and wait until the loop has let go of them: one that is left would fail the test."""
    for client in clients:
        client.transport.abort()
    for _ in range(6000):
        if all(client.is_lost for client in clients):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("connections stay open for a minute after they were closed")


class Slow(Client):
    """Sends a head a byte at a time and never ends it; `lives_s` are how long each was let."""

    def __init__(self, lives_s: array) -> None:
        super().__init__()
        self.lives_s = lives_s
        self.sent = 0
        self.is_told = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.began_s = self.loop.time()

    def drip(self) -> None:
        """Send one more byte."""
        if not self.transport.is_closing():
            self.transport.write(b"GET /v1/models HTTP/1.1\r\nx-slow: "[self.sent : self.sent + 1] or b"x")
            self.sent += 1

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"HTTP/1.1 408 "):
            self.is_told = True
            self.lives_s.append(self.loop.time() - self.began_s)


class SlowCrowd:
    """So many slow clients, each replaced when it is closed."""

    def __init__(self, count: int, port: int, period_s: float, spread_s: float) -> None:
        self.count, self.port, self.period_s, self.spread_s = count, port, period_s, spread_s
        self.lives_s = array("d")
        self.clients: list[Slow] = []
        self.lost_untold = 0
        self.is_over = False
        self.is_here = asyncio.Event()

    async def run(self) -> None:
        """Drip until told to stop; clients come and drip in turns, so that the load is even."""
        gap_s = self.period_s / _TURNS
        each = max(1, round(self.count * gap_s / self.spread_s))
        turn = 0
        while not self.is_over:
            self._drip(self.clients[turn::_TURNS])
            turn = (turn + 1) % _TURNS
            missing = min(each * 2, self.count - len(self.clients))
            self.clients += await connect(lambda: Slow(self.lives_s), missing, self.port)
            if len(self.clients) >= self.count:
                self.is_here.set()
            await asyncio.sleep(gap_s)
        await leave(self.clients)

    def _drip(self, clients: list[Slow]) -> None:
        for client in clients:
            if client.is_lost:
                self.lost_untold += not client.is_told
                self.clients.remove(client)
            else:
                client.drip()


async def time_requests(clients: Sequence[Client], request: bytes, for_s: float, pause_s: float) -> array:
    """Let clients ask again and again for a while; returns how long each answer took, in seconds."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + for_s
    took_s = array("d")

    async def one(client: Client) -> None:
        while loop.time() < end_s:
            began_s = time.perf_counter()  # uvloop's own clock counts milliseconds
            answer = await client.ask(request)
            took_s.append(time.perf_counter() - began_s)
            assert answer.startswith(b"HTTP/1.1 200 "), answer[:300]
            await asyncio.sleep(pause_s)

    await asyncio.gather(*(one(client) for client in clients))
    return took_s
