"""A small HTTP/1.1 client for probing engines on loopback.

Owns one request per connection, with limits on time and size. Refuses to retry and to follow. Called by engine
drivers. The gateway has its own relay; this one is for health, not for traffic.
"""

import asyncio
import contextlib
import urllib.parse
from typing import NamedTuple

import h11

from madang.core import Unavailable

_BODY_BYTES_MAX = 1024 * 1024
_READ_BYTES = 65536
SIMULATED_FIELD = b"x-madang-simulated"


class Answer(NamedTuple):
    """What came back; `is_simulated` when a twin said so."""

    status: int
    body: bytes
    is_simulated: bool


async def get(endpoint: str, path: str, *, key: str, timeout_s: float) -> tuple[int, bytes]:
    """Return status and body of a GET, as `fetch`."""
    answer = await fetch(endpoint, path, key=key, timeout_s=timeout_s)
    return answer.status, answer.body


async def fetch(endpoint: str, path: str, *, key: str, timeout_s: float) -> Answer:
    """Return the answer to a GET.

    Args:
        endpoint: `http://host:port`.
        path: target.
        key: bearer token.
        timeout_s: for the whole exchange.

    Raises:
        Unavailable: when nothing listens, nothing answers in time, or the answer is no HTTP.
    """
    parts = urllib.parse.urlsplit(endpoint)
    request = h11.Request(
        method="GET",
        target=path,
        headers=[("host", parts.netloc), ("authorization", f"Bearer {key}"), ("connection", "close")],
    )
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            connection = h11.Connection(h11.CLIENT)
            writer.write((connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b""))
            return await _read_answer(connection, reader)
    except TimeoutError as error:
        raise Unavailable(f"GET {path}: no answer within {timeout_s:g} s") from error
    except (OSError, h11.ProtocolError) as error:
        raise Unavailable(f"GET {path}: {error}") from error
    finally:
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _read_answer(connection: h11.Connection, reader: asyncio.StreamReader) -> Answer:
    status = 0
    is_simulated = False
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_READ_BYTES))
        elif isinstance(event, h11.Response):
            status = event.status_code
            is_simulated = (SIMULATED_FIELD, b"1") in event.headers
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > _BODY_BYTES_MAX:
                raise Unavailable(f"the answer is over {_BODY_BYTES_MAX} bytes")
        elif isinstance(event, h11.EndOfMessage):
            return Answer(status, bytes(body), is_simulated)
        elif isinstance(event, h11.ConnectionClosed):
            raise Unavailable("the connection was closed before an answer")
