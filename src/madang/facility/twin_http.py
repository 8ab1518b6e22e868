"""A small HTTP/1.1 server for twins of devices that speak it: bounded, on loopback, and able to misbehave.

Owns framing (through h11). Refuses to know what is said over it. Called by the twins of Redfish and
Prometheus, and by tests.
"""

import asyncio
import ssl
from collections.abc import Callable

import h11
import msgspec

from madang.facility.twin_server import TwinServer

_HEAD_BYTES_MAX = 16 * 1024
_BODY_BYTES_MAX = 256 * 1024
_READ_BYTES = 65536
_IDLE_S = 120.0
_CONNECTIONS_MAX = 64


class TwinRequest(msgspec.Struct, frozen=True):
    """One request, read whole; header names are lower case."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes


class TwinAnswer(msgspec.Struct, frozen=True):
    """One answer; `raw` replaces all of it by bytes that need be no HTTP, `is_held` never gives it."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = {}
    after_s: float = 0.0
    raw: bytes = b""
    is_held: bool = False


Handler = Callable[[TwinRequest], TwinAnswer]


class TwinHost:
    """Serves one handler on one address."""

    def __init__(self, handler: Handler, tls: ssl.SSLContext | None = None) -> None:
        self._handler = handler
        self._server = TwinServer(
            "a twin",
            self._serve,
            connections_max=_CONNECTIONS_MAX,
            unreadable=(h11.ProtocolError,),
            read_limit=_BODY_BYTES_MAX,
            tls=tls,
        )

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port; raises Unavailable when it is taken."""
        return await self._server.start(host, port)

    async def stop(self) -> None:
        """Close the port and every connection."""
        await self._server.stop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_BYTES_MAX)
        while (request := await _read(connection, reader)) is not None:
            answer = self._handler(request)
            if answer.is_held:
                await reader.read()  # until the client leaves
                return
            if answer.after_s:
                await asyncio.sleep(answer.after_s)
            if answer.raw:
                writer.write(answer.raw)
                await writer.drain()
                return
            _send(connection, writer, answer)
            await writer.drain()
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return
            connection.start_next_cycle()


async def _read(connection: h11.Connection, reader: asyncio.StreamReader) -> TwinRequest | None:
    """Return the next request; None when the client leaves or sends too much."""
    head: h11.Request | None = None
    body = bytearray()
    async with asyncio.timeout(_IDLE_S):
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(_READ_BYTES))
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > _BODY_BYTES_MAX:
                    return None
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                return _make_request(head, bytes(body))
            else:
                return None


def _make_request(head: h11.Request, body: bytes) -> TwinRequest:
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in head.headers}
    path, _, query = head.target.decode("latin-1").partition("?")
    return TwinRequest(head.method.decode("latin-1"), path, query, headers, body)


def _send(connection: h11.Connection, writer: asyncio.StreamWriter, answer: TwinAnswer) -> None:
    headers = [*answer.headers.items()]
    if answer.status != 204:
        headers.append(("Content-Length", str(len(answer.body))))
    writer.write(connection.send(h11.Response(status_code=answer.status, headers=headers)) or b"")
    if answer.body:
        writer.write(connection.send(h11.Data(data=answer.body)) or b"")
    writer.write(connection.send(h11.EndOfMessage()) or b"")
