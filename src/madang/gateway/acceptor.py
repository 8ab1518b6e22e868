"""Takes connections from a listening socket, plain or with TLS, never more than there is room for.

Owns the accepting and the handshakes. Refuses to know what is said on a connection: the port's protocol does. Written
by hand because uvloop's own server stops accepting for good when the process once runs out of files, and lets any
number of handshakes hang. What is not accepted waits in the kernel's queue.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import msgspec

from madang.gateway.origins import Visit
from madang.runtime.telemetry import EventLog

ACCEPTS_PER_TURN = 64
"""Of one turn of the loop, so that a rush of clients does not keep those who are connected waiting."""
RETRY_S = 0.1
"""After the operating system refused one."""
WRITE_BUFFER_BYTES = 64 * 1024
"""Under TLS, as without; uvloop's own bound is eight times as large."""


class Doorway(Protocol):
    """What an acceptor needs of a port."""

    def enter(self, address: object, waiting: int) -> Visit | None:
        """Return the place of a connection that was accepted, None where there is none.

        Args:
            address: as `accept` returned it.
            waiting: connections that were accepted and have no protocol yet.
        """

    def connect(self, visit: Visit) -> asyncio.Protocol:
        """Return the protocol for a new connection, which then owns its place."""


class Secured(msgspec.Struct, frozen=True):
    """How connections are secured.

    Attributes:
        context: returns the context for a new connection.
        handshake_timeout_s: limit of one handshake, from the moment the connection is accepted.
        handshakes_max: at once; further connections wait in the kernel's queue.
        shutdown_timeout_s: limit of the end, in which the last of an answer leaves.
        on_result: told `ok`, `timeout` or `failed` of each.
    """

    context: Callable[[], ssl.SSLContext]
    handshake_timeout_s: float
    handshakes_max: int
    shutdown_timeout_s: float
    on_result: Callable[[str], None]


class _Place:
    """The place of one accepted connection; it waits until its protocol is made, and counts once."""

    def __init__(self, port: Doorway, visit: Visit, on_left: Callable[[], None]) -> None:
        self.visit = visit
        self._port = port
        self._on_left = on_left
        self._is_waiting = True

    def take(self) -> asyncio.Protocol:
        """Return the protocol: from now on the port counts the connection itself."""
        self.leave_queue()
        return self._port.connect(self.visit)

    def leave_queue(self) -> None:
        """Wait no longer."""
        if self._is_waiting:
            self._is_waiting = False
            self._on_left()


class Acceptor:
    """One listening socket."""

    def __init__(
        self,
        listener: socket.socket,
        port: Doorway,
        *,
        loop: asyncio.AbstractEventLoop,
        spawn: Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"],
        log: EventLog,
        secured: Secured | None = None,
    ) -> None:
        """Make an acceptor; `start` begins.

        Args:
            listener: is closed by `close`.
            port: makes protocols and says how many there may be.
            loop: runs them.
            spawn: starts a task under the worker's task group.
            log: told when the operating system refuses connections, and of the recovery.
            secured: None for plain connections.
        """
        listener.setblocking(False)
        self._listener = listener
        self._port = port
        self._loop = loop
        self._spawn = spawn
        self._log = log
        self._secured = secured
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting = 0
        self._is_listening = self._is_failing = self._is_closed = False
        self._retry: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Take connections from now on."""
        if not self._is_listening and not self._is_closed:
            self._is_listening = True
            self._loop.add_reader(self._listener.fileno(), self._accept)

    def close(self) -> None:
        """Take no more; handshakes in progress are cut, connections are not touched."""
        if self._is_closed:
            return
        self._pause()
        self._is_closed = True
        if self._retry is not None:
            self._retry.cancel()
        for task in tuple(self._tasks):
            task.cancel()
        self._listener.close()

    def _pause(self) -> None:
        if self._is_listening:
            self._is_listening = False
            self._loop.remove_reader(self._listener.fileno())

    def _accept(self) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            if self._secured is not None and len(self._tasks) >= self._secured.handshakes_max:
                self._pause()  # until one of them ends
                return
            try:
                connection, address = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue  # the client has left already
            except OSError as error:
                self._wait_for_files(error)
                return
            if self._is_failing:
                self._is_failing = False
                self._log.info("gateway_accepts_again")
            self._take(connection, address)

    def _wait_for_files(self, error: OSError) -> None:
        self._pause()
        self._retry = self._loop.call_later(RETRY_S, self.start)
        if not self._is_failing:
            self._is_failing = True
            self._log.error("gateway_cannot_accept", reason=error.strerror or str(error))

    def _take(self, connection: socket.socket, address: object) -> None:
        visit = self._port.enter(address, self._waiting)
        if visit is not None and self._secured is not None and not visit.is_welcome:
            visit.leave()  # to be told so, it would have to be given a handshake first
            visit = None
        if visit is None:
            connection.close()
            return
        connection.setblocking(False)
        self._waiting += 1
        place = _Place(self._port, visit, self._leave_queue)
        task = self._spawn(self._adopt(connection, place))
        self._tasks.add(task)
        task.add_done_callback(self._on_adopted)

    def _on_adopted(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        self.start()

    def _leave_queue(self) -> None:
        self._waiting -= 1

    async def _adopt(self, connection: socket.socket, place: _Place) -> None:
        secured = self._secured
        is_adopted = False
        try:
            if secured is None:
                await self._loop.connect_accepted_socket(place.take, connection)
                is_adopted = True
            else:
                is_adopted = await self._shake_hands(connection, place, secured)
        except OSError:
            connection.close()  # the client has left already
        finally:
            place.leave_queue()
            if not is_adopted:
                place.visit.leave()

    async def _shake_hands(self, connection: socket.socket, place: _Place, secured: Secured) -> bool:
        """Return whether a client ended its handshake in time."""
        result = "failed"
        try:
            transport, _protocol = await self._loop.connect_accepted_socket(
                place.take,
                connection,
                ssl=secured.context(),
                ssl_handshake_timeout=secured.handshake_timeout_s,
                ssl_shutdown_timeout=secured.shutdown_timeout_s,
            )
            transport.set_write_buffer_limits(WRITE_BUFFER_BYTES)
            result = "ok"
        except OSError as error:  # every error of TLS is one
            connection.close()
            if isinstance(error, ConnectionAbortedError):  # uvloop's word for a handshake that took too long
                result = "timeout"
        finally:
            secured.on_result(result)
        return result == "ok"
