"""Clients that ask again as soon as they were answered, and what they saw.

Owns the clients' side of every measure. Refuses to know who answers. Called by the bench, in its own process, on the
core where the synthetic engine runs.
"""

import asyncio
import contextlib
import ssl
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import msgspec

_OK = b"HTTP/1.1 200"
_END = b"0\r\n\r\n"
_OPEN_S_MAX = 20.0


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """One way of asking.

    Attributes:
        name: in the report.
        mode: of the synthetic engine.
        connections: clients, each with one request in flight.
        is_stream: whether the client asks for a stream.
        warm_s: how long it runs before it is measured.
        measure_s: how long it is measured.
        stagger_s: clients begin spread over this time.
        think_s: pause between an answer and the next request.
        is_tls: over TLS.
    """

    name: str
    mode: str
    connections: int
    is_stream: bool
    warm_s: float
    measure_s: float
    stagger_s: float = 0.0
    think_s: float = 0.0
    is_tls: bool = False

    def scaled(self, factor: float) -> "Load":
        """Return the same load for longer or shorter."""
        return msgspec.structs.replace(self, measure_s=self.measure_s * factor)


@dataclass
class Seen:
    """What clients saw while it was measured.

    Attributes:
        done: whole answers.
        bad: answers other than 200, and connections lost.
        first_s: time to the first byte of content, per answer.
        rest_s: from the first to the last byte.
        deliveries: reads in which content came.
        duration_s: of the measure.
    """

    done: int = 0
    bad: int = 0
    first_s: "array[float]" = field(default_factory=lambda: array("d"))
    rest_s: "array[float]" = field(default_factory=lambda: array("d"))
    deliveries: int = 0
    duration_s: float = 0.0


class Client(asyncio.Protocol):
    """One client on one connection."""

    def __init__(self, request: bytes, seen: Seen, load: Load) -> None:
        self.request, self.seen, self.think_s = request, seen, load.think_s
        self.receive = self._receive_stream if load.is_stream else self._receive_plain
        self.call_later = asyncio.get_running_loop().call_later
        self.left = 0
        self.whole_bytes = -1
        self.head = self.tail = b""
        self.sent_s = self.first_s = 0.0
        self.is_over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def ask(self) -> None:
        """Send the request."""
        if self.is_over:
            return
        self.first_s = 0.0
        self.sent_s = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.receive(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.seen.bad += not self.is_over

    def stop(self) -> None:
        """Leave, whatever is in flight."""
        self.is_over = True
        self.transport.abort()

    def _receive_plain(self, data: bytes) -> None:
        if len(data) == self.whole_bytes and not self.left and data.startswith(_OK):
            # As long as the last one that was whole: most answers end here.
            self.first_s = time.perf_counter()
            self._note()
            return
        if self.left:
            self.left -= len(data)
        else:
            now_s = time.perf_counter()
            data = self.head + data
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self.head = data
                return
            self.head = b""
            self.first_s = now_s
            self.seen.bad += not data.startswith(_OK)
            head = data[:end].lower()
            at = head.find(b"content-length:")
            if at < 0:
                self.receive = self._receive_stream
                self._receive_stream(data)
                return
            whole_bytes = int(head[at + 15 :].split(b"\r\n", 1)[0]) + end + 4
            self.left = whole_bytes - len(data)
            self.whole_bytes = whole_bytes if self.left == 0 else -1
        if self.left == 0:
            self._note()

    def _receive_stream(self, data: bytes) -> None:
        self.seen.deliveries += 1
        if not self.first_s:
            # The head alone is no content: wait for the first event.
            self.head += data
            if b"\ndata:" in self.head or b"\n{" in self.head:
                self.first_s = time.perf_counter()
                if not self.head.startswith(_OK):
                    # Refused: an error need not end as a stream does, so this client is done.
                    self.seen.bad += 1
                    self.stop()
                self.head = b""
        self.tail = data if len(data) >= len(_END) else self.tail + data
        if self.tail.endswith(_END):
            self.tail = b""
            self._note()

    def _note(self) -> None:
        seen = self.seen
        seen.done += 1
        seen.first_s.append(self.first_s - self.sent_s)
        seen.rest_s.append(time.perf_counter() - self.first_s)
        if self.think_s:
            self.call_later(self.think_s, self.ask)
        else:
            self.ask()


async def run_load(
    load: Load,
    port: int,
    request: bytes,
    on_begin: Callable[[], None],
    on_end: Callable[[], None],
    tls: ssl.SSLContext | None = None,
) -> Seen:
    """Ask for a while and return what was seen between `on_begin` and `on_end`."""
    loop = asyncio.get_running_loop()
    seen = Seen()
    clients: list[Client] = []
    try:
        for _ in range(load.connections):
            client = Client(request, seen, load)
            async with asyncio.timeout(_OPEN_S_MAX):
                await loop.create_connection(lambda client=client: client, "127.0.0.1", port, ssl=tls)
            clients.append(client)
        for client in clients:
            client.ask()
            if load.stagger_s:
                await asyncio.sleep(load.stagger_s / load.connections)
        await asyncio.sleep(load.warm_s)
        on_begin()
        seen.done = seen.deliveries = 0
        seen.first_s, seen.rest_s = array("d"), array("d")
        begun_s = time.perf_counter()
        await asyncio.sleep(load.measure_s)
        seen.duration_s = time.perf_counter() - begun_s
        result = Seen(
            seen.done, seen.bad, array("d", seen.first_s), array("d", seen.rest_s), seen.deliveries, seen.duration_s
        )
        on_end()
        return result
    finally:
        for client in clients:
            client.stop()
        await asyncio.sleep(0.05)


async def until_answered(port: int, request: bytes, wait_s: float, find_trouble: Callable[[], str]) -> None:
    """Ask until the answer is 200; raises TimeoutError with the last answer, or why there will be none."""
    deadline_s = time.monotonic() + wait_s
    last = b"no connection"
    while time.monotonic() < deadline_s and not find_trouble():
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(5):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    writer.write(request)
                    last = await reader.read(4096)
                finally:
                    writer.close()
            if last.startswith(_OK):
                return
        await asyncio.sleep(0.1)
    raise TimeoutError(f"port {port} did not answer with 200 within {wait_s} s: {last[:500]!r} {find_trouble()}")
