"""A listening port: what its connections share, and what is done with their requests.

Owns the limits, the count of connections and their end. Refuses to read bytes: each connection does.
"""

import asyncio
from collections.abc import Callable
from email.utils import formatdate
from typing import Protocol

import msgspec

from madang.core import Clock
from madang.gateway.body_pool import BodyPool
from madang.gateway.exchange import Exchange
from madang.gateway.http1 import ServerConnection
from madang.gateway.origins import NO_VISIT, REFUSALS_MAX, Origins, Visit
from madang.gateway.settings import GatewaySettings


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a client may ask of a connection; see GatewaySettings for each."""

    head_bytes_max: int
    headers_max: int
    body_bytes_max: int
    head_timeout_s: float
    body_timeout_s: float
    idle_timeout_s: float
    write_timeout_s: float
    connections_max: int

    @classmethod
    def from_settings(cls, settings: GatewaySettings, connections_max: int) -> "Limits":
        """Return the limits that a gateway's settings name, for so many connections."""
        return cls(
            head_bytes_max=settings.head_bytes_max,
            headers_max=settings.headers_max,
            body_bytes_max=min(settings.body_bytes_max, settings.body_memory_bytes_max),
            head_timeout_s=settings.head_timeout_s,
            body_timeout_s=settings.body_timeout_s,
            idle_timeout_s=settings.idle_timeout_s,
            write_timeout_s=settings.stall_timeout_s,
            connections_max=connections_max,
        )


class Handler(Protocol):
    """What a port does with requests."""

    def on_head(self, exchange: Exchange) -> None:
        """A head is complete; answer now to refuse before the body is read."""

    def on_body(self, exchange: Exchange, body: bytes) -> None:
        """The body is complete; called once, unless the head was answered."""


class Port:
    """What the connections of one listening socket share."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        handler: Handler,
        limits: Limits,
        on_reject: Callable[[int], None],
        bodies: BodyPool,
        origins: Origins | None = None,
    ) -> None:
        """Make a port.

        Args:
            loop: runs its connections.
            clock: tells the date.
            handler: is handed the requests.
            limits: hold for each connection.
            on_reject: told the status of each request that HTTP itself refuses.
            bodies: what the connections of this port and others may hold together.
            origins: how many connections one address may have; None for any number.

        Attributes:
            refusals: connections that were refused for want of room.
        """
        self.loop = loop
        self.handler = handler
        self.limits = limits
        self.on_reject = on_reject
        self.bodies = bodies
        self.is_draining = False
        self.refusals = 0
        self._origins = origins or Origins(0)
        self._clock = clock
        self._connections: set[ServerConnection] = set()
        self._is_empty = asyncio.Event()
        self._date_s = 0
        self._date_line = b""

    def enter(self, address: object, waiting: int) -> Visit | None:
        """Return the place of a connection that was accepted, None where it is closed without a word.

        Args:
            address: as `accept` returned it.
            waiting: connections that were accepted and have no protocol yet.
        """
        if self.room - waiting <= -REFUSALS_MAX:
            self.refusals += 1
            return None
        return self._origins.enter(address)

    def connect(self, visit: Visit = NO_VISIT) -> ServerConnection:
        """Return the protocol for a new connection."""
        return ServerConnection(self, visit)

    @property
    def refusals_by_reason(self) -> dict[str, int]:
        """How many connections were refused, for want of room and for their address."""
        return {"full": self.refusals, "address": self._origins.refusals}

    def date_line(self) -> bytes:
        """Return the Date field, made once a second."""
        now_s = int(self._clock.wall_s())
        if now_s != self._date_s:
            self._date_s = now_s
            self._date_line = f"date: {formatdate(now_s, usegmt=True)}\r\n".encode()
        return self._date_line

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    @property
    def room(self) -> int:
        """How many more may be open; below zero while some are being refused."""
        return self.limits.connections_max - len(self._connections)

    def admit(self, connection: ServerConnection) -> bool:
        """Count a new connection; False when there are too many."""
        self._connections.add(connection)
        if not connection.visit.is_welcome:
            return False
        is_room = len(self._connections) <= self.limits.connections_max
        self.refusals += not is_room
        return is_room

    def forget(self, connection: ServerConnection) -> None:
        """Drop a connection that is gone."""
        self._connections.discard(connection)
        connection.visit.leave()
        if self.is_draining and not self._connections:
            self._is_empty.set()

    def drain(self) -> None:
        """Close idle connections now and the others after their answer."""
        self.is_draining = True
        if not self._connections:
            self._is_empty.set()
        for connection in tuple(self._connections):
            connection.drain()

    async def wait_empty(self) -> None:
        """Wait until the last connection is gone, after `drain`."""
        await self._is_empty.wait()

    def abort(self) -> None:
        """Close everything at once, at the end of the patience for a drain."""
        for connection in tuple(self._connections):
            connection.abort()
