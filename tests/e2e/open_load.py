"""Requests at a given rate over kept connections, and which of them were answered whole.

The rate is offered, whatever becomes of the answers: when all connections are busy, what is due waits up to BACKLOG_S
and is then forgotten.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import cast

CONNECTIONS = 384
TICK_S = 0.005
BACKLOG_S = 10.0
PATIENCE_S = 15.0
RETRY_S = 0.05


class _Client(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, load: "OpenLoad") -> None:
        self.load = load
        self.held = b""
        self.asked_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.load.free.append(self)

    def ask(self, request: bytes, now_s: float) -> None:
        self.held = b""
        self.asked_s = now_s
        self.load.busy.add(self)
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        held = self.held = self.held + data
        head, mark, body = held.partition(b"\r\n\r\n")
        if not mark:
            return
        if b"\ntransfer-encoding: chunked" in head:
            if not body.endswith(b"\r\n0\r\n\r\n"):
                return
        elif len(body) < int(field(head, b"content-length")):
            return
        self.load.busy.discard(self)
        self.load.note(head, body)
        if b"\nconnection: close" in head:
            self.transport.close()
        else:
            self.load.free.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.load.lose(self)


def field(head: bytes, name: bytes) -> bytes:
    """Return a field of an answer's head."""
    return head.partition(b"\n" + name + b": ")[2].partition(b"\r\n")[0]


class OpenLoad:
    """A load at one port.

    Attributes:
        completed: ids of requests whose answers came whole, with status 200.
        refused: other answers, by status and first words.
        unclear: requests whose connection was lost before the answer was whole.
        overdue: requests that had no answer within PATIENCE_S.
        offered: requests that were sent.
    """

    def __init__(self, port: int, requests: Sequence[bytes], rate_hz: float) -> None:
        self.port, self.requests, self.rate_hz = port, requests, rate_hz
        self.completed: list[str] = []
        self.refused: Counter[str] = Counter()
        self.unclear = self.overdue = self.offered = self.forgotten = 0
        self.free: list[_Client] = []
        self.busy: set[_Client] = set()
        self._is_over = False
        self._tasks: set[asyncio.Task[None]] = set()

    def note(self, head: bytes, body: bytes) -> None:
        """Count an answer that is whole."""
        status = int(head[9:12])
        if status != 200:
            words = body.partition(b'"message":"')[2][:60].decode(errors="replace")
            self.refused[f"{status} {words}"] += 1
        elif b"\ntransfer-encoding: chunked" in head and b"data: [DONE]" not in body:
            self.unclear += 1
        else:
            self.completed.append(field(head, b"x-request-id").decode())

    def lose(self, client: _Client) -> None:
        """Count a connection that is gone, and open another."""
        if client in self.busy:
            self.busy.discard(client)
            self.unclear += 1
        with contextlib.suppress(ValueError):
            self.free.remove(client)
        if not self._is_over:
            self._spawn()

    def _spawn(self) -> None:
        task = asyncio.ensure_future(self._connect())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._is_over:
            try:
                await loop.create_connection(lambda: _Client(self), "127.0.0.1", self.port)
            except OSError:
                await asyncio.sleep(RETRY_S)
            else:
                return

    async def run(self, for_s: float, acts: Sequence[tuple[float, Callable[[], object]]] = ()) -> None:
        """Offer the load for a time, and do each of `acts` when its second has come."""
        loop = asyncio.get_running_loop()
        for _ in range(CONNECTIONS):
            self._spawn()
        await asyncio.gather(*self._tasks)
        began_s = loop.time()
        to_come = sorted(acts, key=lambda act: act[0])
        done = 0  # sent or forgotten
        while (now_s := loop.time()) < began_s + for_s:
            while to_come and to_come[0][0] <= now_s - began_s:
                to_come.pop(0)[1]()
            due = int((now_s - began_s) * self.rate_hz) - done
            late = max(0, due - int(BACKLOG_S * self.rate_hz))
            self.forgotten += late
            count = min(due - late, len(self.free))
            done += late + count
            for _ in range(count):
                self.free.pop(0).ask(self.requests[self.offered % len(self.requests)], now_s)
                self.offered += 1
            self._give_up(now_s)
            await asyncio.sleep(TICK_S)
        end_s = loop.time() + PATIENCE_S
        while self.busy and loop.time() < end_s:
            await asyncio.sleep(TICK_S)
            self._give_up(loop.time())
        self._is_over = True
        for client in (*self.free, *self.busy):
            client.transport.abort()
        await asyncio.sleep(TICK_S)

    def _give_up(self, now_s: float) -> None:
        for client in [one for one in self.busy if now_s - one.asked_s > PATIENCE_S]:
            self.overdue += 1
            client.transport.abort()
