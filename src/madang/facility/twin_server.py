"""The port of a twin that is spoken to over TCP: bounded, on the address that it is given, and gone when it is stopped.

Owns the listening socket and the connections. Refuses to know what is said on them. Called by twins.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable

from madang.core import Unavailable

_READ_LIMIT = 64 * 1024

Converse = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class TwinServer:
    """Lets one twin converse with whoever connects.

    Args:
        what: the twin, for messages, such as `a NUT twin`.
        converse: speaks with one client until it is over.
        connections_max: at a time; one more is closed without a word.
        unreadable: what `converse` raises for a client that does not speak the protocol; it is left without a word.
        read_limit: of what is buffered of one client, in bytes.
        tls: for a twin with a certificate.
    """

    def __init__(
        self,
        what: str,
        converse: Converse,
        *,
        connections_max: int,
        unreadable: tuple[type[Exception], ...] = (),
        read_limit: int = _READ_LIMIT,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._what = what
        self._converse = converse
        self._connections_max = connections_max
        self._leaves: tuple[type[Exception], ...] = (OSError, TimeoutError, asyncio.IncompleteReadError, *unreadable)
        self._read_limit = read_limit
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port (0 asks for a free one); raises Unavailable when it is taken."""
        try:
            self._server = await asyncio.start_server(self._accept, host, port, ssl=self._tls, limit=self._read_limit)
        except OSError as error:
            raise Unavailable(
                f"{self._what} cannot listen on {host}:{port}: {error.strerror}",
                next_step="end the program that holds the port, or give the twin another one",
            ) from error
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Close the port and every connection."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "a server calls it in a task"
        self._tasks.add(task)
        try:
            if len(self._tasks) <= self._connections_max:
                await self._converse(reader, writer)
        except self._leaves:
            pass  # the client left, or does not speak the protocol: nobody is there to be told
        except asyncio.CancelledError:
            pass  # `stop` ends it; raised on, the stream server would log it as a failure
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            self._tasks.discard(task)
