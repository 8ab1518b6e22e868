"""A small HTTP/1.1 server for engines of our own: limits on every size and time, keep-alive, streams.

Owns connections and framing (through h11). Refuses to know any endpoint. Used by the embedding engine and by the
engines' twins, whose imports must stay few. Listens on loopback, behind the gateway; it is no tenant's door.
"""

import asyncio
import contextlib
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import h11

_READ_BYTES = 65536
_STOP_S = 1.0
_GONE_POLL_S = 0.05


@dataclass(frozen=True)
class Limits:
    """Bounds of one server.

    Attributes:
        head_bytes_max, body_bytes_max: over them 431 and 413.
        read_s_max: to receive one request once its first byte is there.
        idle_s_max: between requests of a connection.
        connections_max: over it the newest gets 503.
    """

    head_bytes_max: int = 32 * 1024
    body_bytes_max: int = 4 * 1024 * 1024
    read_s_max: float = 30.0
    idle_s_max: float = 75.0
    connections_max: int = 128


@dataclass(frozen=True)
class HttpRequest:
    """One request, read whole; `is_gone` tells whether its client has left meanwhile."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    is_gone: Callable[[], bool]

    def has_key(self, key: str) -> bool:
        """Return whether the request carries the bearer token `key`."""
        given = self.headers.get("authorization", "").encode("latin-1")
        return hmac.compare_digest(given, f"Bearer {key}".encode())

    async def until_gone(self) -> None:
        """Wait until the client has left."""
        while not self.is_gone():  # noqa: ASYNC110  a stream reader has no event for its end
            await asyncio.sleep(_GONE_POLL_S)


@dataclass(frozen=True)
class HttpAnswer:
    """One answer: a body, or chunks while they come."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    chunks: AsyncIterator[bytes] | None = None
    headers: dict[str, str] = field(default_factory=dict)


Handler = Callable[[HttpRequest], Awaitable[HttpAnswer]]


def json_answer(value: Any, status: int = 200) -> HttpAnswer:
    """Return a JSON answer."""
    return HttpAnswer(status, json.dumps(value, ensure_ascii=False, allow_nan=False).encode())


def error_answer(status: int, code: str, message: str, kind: str = "invalid_request_error") -> HttpAnswer:
    """Return OpenAI's error object."""
    return json_answer({"error": {"message": message, "type": kind, "code": code, "param": None}}, status)


class _Refused(Exception):
    """A request that cannot be read; the connection is closed after its answer."""

    def __init__(self, answer: HttpAnswer) -> None:
        super().__init__(answer.status)
        self.answer = answer


class HttpHost:
    """Serves one handler on one address."""

    def __init__(self, handler: Handler, limits: Limits | None = None) -> None:
        self._handler = handler
        self._limits = limits or Limits()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port; raises OSError when it is taken."""
        self._server = await asyncio.start_server(self._accept, host, port, limit=self._limits.body_bytes_max)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Close the port and give requests in flight a moment."""
        assert self._server is not None
        self._server.close()
        if self._tasks:
            _, pending = await asyncio.wait(self._tasks, timeout=_STOP_S)
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, h11.LocalProtocolError, TimeoutError):
            pass  # the client left, or sent nothing more: nobody is there to be told
        finally:
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=self._limits.head_bytes_max)
        while True:
            try:
                request = await self._read(connection, reader, writer)
            except _Refused as refused:
                await _send(connection, writer, refused.answer, is_last=True)
                return
            if request is None:
                return
            if len(self._tasks) > self._limits.connections_max:
                answer = error_answer(503, "overloaded", "too many connections", "server_error")
                await _send(connection, writer, answer, is_last=True)
                return
            await _send(connection, writer, await self._handler(request))
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return
            connection.start_next_cycle()

    async def _read(
        self, connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> HttpRequest | None:
        head: h11.Request | None = None
        body = bytearray()
        limits = self._limits
        deadline_s = limits.idle_s_max
        async with asyncio.timeout(deadline_s) as deadline:
            while True:
                event = _next_event(connection)
                if event is h11.NEED_DATA:
                    if connection.they_are_waiting_for_100_continue:
                        writer.write(connection.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
                    data = await reader.read(_READ_BYTES)
                    if head is None and data:
                        deadline.reschedule(asyncio.get_running_loop().time() + limits.read_s_max)
                    connection.receive_data(data)
                elif isinstance(event, h11.Request):
                    head = event
                    _check_head(event, limits)
                elif isinstance(event, h11.Data):
                    body += event.data
                    if len(body) > limits.body_bytes_max:
                        raise _too_large(limits.body_bytes_max)
                elif isinstance(event, h11.EndOfMessage):
                    assert head is not None
                    return _make_request(head, bytes(body), reader)
                else:
                    return None


def _next_event(connection: h11.Connection) -> Any:
    try:
        return connection.next_event()
    except h11.RemoteProtocolError as error:
        raise _Refused(error_answer(error.error_status_hint, "invalid_request", f"no HTTP: {error}")) from error


def _check_head(head: h11.Request, limits: Limits) -> None:
    # h11 bounds a head that comes in pieces; one that came whole is counted here.
    if len(head.target) + sum(len(name) + len(value) for name, value in head.headers) > limits.head_bytes_max:
        raise _Refused(error_answer(431, "invalid_request", f"the head is over {limits.head_bytes_max} bytes"))
    for name, value in head.headers:
        if name == b"content-length" and int(value) > limits.body_bytes_max:
            raise _too_large(limits.body_bytes_max)


def _too_large(bytes_max: int) -> _Refused:
    return _Refused(error_answer(413, "request_too_large", f"the body is over {bytes_max} bytes"))


def _make_request(head: h11.Request, body: bytes, reader: asyncio.StreamReader) -> HttpRequest:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
    path = head.target.decode("latin-1").partition("?")[0]
    return HttpRequest(head.method.decode("latin-1"), path, headers, body, reader.at_eof)


async def _send(
    connection: h11.Connection, writer: asyncio.StreamWriter, answer: HttpAnswer, *, is_last: bool = False
) -> None:
    headers = [("content-type", answer.content_type), *answer.headers.items()]
    if answer.chunks is None:
        headers.append(("content-length", str(len(answer.body))))
    if is_last:
        headers.append(("connection", "close"))
    writer.write(connection.send(h11.Response(status_code=answer.status, headers=headers)) or b"")
    if answer.chunks is None:
        writer.write(connection.send(h11.Data(data=answer.body)) or b"")
    else:
        async for chunk in answer.chunks:
            writer.write(connection.send(h11.Data(data=chunk)) or b"")
            await writer.drain()
    writer.write(connection.send(h11.EndOfMessage()) or b"")
    await writer.drain()
