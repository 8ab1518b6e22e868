"""Calls to engines and peers: pooled keep-alive connections, time limits, and cancelling at once.

Owns sockets towards upstreams. Refuses to know what is asked and to try anything again, but for one case that is no
failure: a pooled connection that the upstream had closed before our request reached it is replaced by a fresh one.
The relay's legs call it. Reuse is counted, since a pool that never reuses looks healthy and costs three times as much.
"""

import asyncio
from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple, Protocol, cast

import httptools

from madang.gateway.deadline import Deadline
from madang.gateway.metrics import Meter

IDLE_PER_TARGET_MAX = 256
IDLE_S_MAX = 30.0
SWEEP_PERIOD_S = 5.0
HEAD_FIELDS_MAX = 200


class Target(NamedTuple):
    """Where an upstream listens."""

    host: str
    port: int


def parse_target(url: str) -> Target:
    """Return host and port of `http://host:port`; raises ValueError when it is anything else."""
    scheme, _, rest = url.partition("://")
    host, colon, port = rest.rstrip("/").rpartition(":")
    if scheme != "http" or not colon or not host:
        raise ValueError(f"expected http://host:port, found {url!r}")
    return Target(host.strip("[]"), int(port))


class Failure(StrEnum):
    """How a call failed."""

    CONNECT = "connect"
    CLOSED = "closed"
    TIMEOUT = "timeout"
    PROTOCOL = "protocol"


class Receiver(Protocol):
    """Who hears of a call; after `on_end` or `on_failed` nothing more comes."""

    def on_informational(self, status: int) -> None:
        """An interim answer (1xx)."""

    def on_head(self, status: int, fields: dict[bytes, bytes]) -> None:
        """The answer's head; names in lower case."""

    def on_data(self, data: bytes) -> None:
        """A piece of the answer's body."""

    def on_end(self) -> None:
        """The answer is complete."""

    def on_failed(self, failure: Failure, reason: str) -> None:
        """There will be no complete answer."""


class TimeLimits(NamedTuple):
    """Limits of one call, in seconds: until the answer's head, then between pieces."""

    first_byte_s: float
    stall_s: float


class Call:
    """One request to one upstream."""

    __slots__ = ("_connection", "_is_over", "_pool", "_task", "is_paused", "limits", "receiver", "request", "target")

    def __init__(
        self, pool: "UpstreamPool", target: Target, request: bytes, receiver: Receiver, limits: TimeLimits
    ) -> None:
        self._pool = pool
        self._connection: UpstreamConnection | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_over = False
        self.is_paused = False
        self.target = target
        self.request = request
        self.receiver = receiver
        self.limits = limits

    @property
    def is_over(self) -> bool:
        """Whether it ended, failed or was cancelled."""
        return self._is_over

    def cancel(self) -> None:
        """Close the connection at once; the receiver hears nothing more."""
        if self._is_over:
            return
        self._is_over = True
        if self._task is not None:
            self._task.cancel()
        if self._connection is not None:
            self._connection.abort()

    def pause(self, is_paused: bool) -> None:
        """Stop or go on reading the answer, as its reader can take it."""
        self.is_paused = is_paused
        if self._connection is not None and not self._is_over:
            self._connection.pause(is_paused)

    # --- the pool's and the connection's side

    def wait_for(self, task: asyncio.Task[None]) -> None:
        """Remember the task that connects, to cancel it."""
        self._task = task

    def attach(self, connection: "UpstreamConnection") -> None:
        """Send the request on a connection."""
        self._task = None
        self._connection = connection
        connection.begin(self)

    def restart(self) -> None:
        """The pooled connection had been closed by the upstream: use a fresh one."""
        self._connection = None
        self._pool.open(self)

    def end(self) -> None:
        """The answer is complete."""
        self._is_over = True
        self.receiver.on_end()

    def fail(self, failure: Failure, reason: str) -> None:
        """Tell the receiver, once."""
        if not self._is_over:
            self._is_over = True
            self.receiver.on_failed(failure, reason)


class UpstreamPool:
    """Idle connections by target, and new ones when there is none."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        spawn: Callable[..., "asyncio.Task[None]"],
        meter: Meter,
        connect_timeout_s: float,
    ) -> None:
        """Make a pool.

        Args:
            loop: runs its connections.
            spawn: starts a task under the worker's task group.
            meter: counts connections, reuse and stale ones.
            connect_timeout_s: limit of one connect.
        """
        self.loop = loop
        self.meter = meter
        self._spawn = spawn
        self._connect_timeout_s = connect_timeout_s
        self._idle: dict[Target, list[UpstreamConnection]] = {}
        self._sweeper: asyncio.TimerHandle | None = None

    def call(self, target: Target, request: bytes, receiver: Receiver, limits: TimeLimits) -> Call:
        """Send `request` (head and body) to `target`; the receiver may hear of it before this returns."""
        call = Call(self, target, request, receiver, limits)
        idle = self._idle.get(target)
        while idle:
            connection = idle.pop()
            if connection.is_usable:
                self.meter.upstream_reused += 1
                call.attach(connection)
                return call
        self.open(call)
        return call

    def open(self, call: Call) -> None:
        """Connect for a call."""
        call.wait_for(self._spawn(self._connect(call)))

    async def _connect(self, call: Call) -> None:
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await self.loop.create_connection(
                    lambda: UpstreamConnection(self, call.target), *call.target
                )
        except TimeoutError:
            call.fail(Failure.CONNECT, f"no connection to {_show(call.target)} within {self._connect_timeout_s:g} s")
        except OSError as error:
            call.fail(Failure.CONNECT, f"no connection to {_show(call.target)}: {error.strerror or error}")
        else:
            self.meter.upstream_opened += 1
            if call.is_over:
                connection.abort()
            elif connection.is_usable:
                call.attach(connection)
            else:
                call.fail(Failure.CLOSED, f"{_show(call.target)} closed the connection at once")

    def release(self, connection: "UpstreamConnection") -> None:
        """Keep a connection for the next call, or close it when there are enough."""
        idle = self._idle.setdefault(connection.target, [])
        if len(idle) >= IDLE_PER_TARGET_MAX:
            connection.abort()
            return
        connection.idle_since = self.loop.time()
        idle.append(connection)
        if self._sweeper is None:
            self._sweeper = self.loop.call_later(SWEEP_PERIOD_S, self._sweep)

    def forget(self, connection: "UpstreamConnection") -> None:
        """Drop an idle connection that the upstream closed."""
        idle = self._idle.get(connection.target)
        if idle and connection in idle:
            idle.remove(connection)

    def close(self) -> None:
        """Close every idle connection."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for idle in self._idle.values():
            for connection in tuple(idle):
                connection.abort()
        self._idle.clear()

    def _sweep(self) -> None:
        """Close what was idle too long; targets without connections are forgotten, so the table stays small."""
        self._sweeper = None
        oldest = self.loop.time() - IDLE_S_MAX
        for target in tuple(self._idle):
            kept = []
            for connection in self._idle[target]:
                if connection.idle_since < oldest:
                    connection.abort()
                else:
                    kept.append(connection)
            if kept:
                self._idle[target] = kept
            else:
                del self._idle[target]
        if self._idle:
            self._sweeper = self.loop.call_later(SWEEP_PERIOD_S, self._sweep)


class UpstreamConnection(asyncio.Protocol):
    """One connection; serves one call at a time."""

    __slots__ = (
        "_call",
        "_deadline",
        "_fields",
        "_has_answer",
        "_has_heard",
        "_is_interim",
        "_is_keep_alive",
        "_is_message_over",
        "_is_open",
        "_is_reused",
        "_is_spoilt",
        "_parser",
        "_pool",
        "_transport",
        "idle_since",
        "target",
    )

    def __init__(self, pool: UpstreamPool, target: Target) -> None:
        self._pool = pool
        self.target = target
        self._is_open = False
        self.idle_since = 0.0
        self._call: Call | None = None
        self._deadline = Deadline(pool.loop)
        self._parser = httptools.HttpResponseParser(self)
        self._fields: dict[bytes, bytes] = {}
        self._is_reused = self._is_spoilt = False
        self._has_heard = self._has_answer = False
        self._is_interim = self._is_message_over = self._is_keep_alive = False
        self._transport: asyncio.Transport

    @property
    def is_usable(self) -> bool:
        """Whether a request may be sent on it: open, and the upstream has not said it will close."""
        return self._is_open and not self._transport.is_closing()

    def begin(self, call: Call) -> None:
        """Send a call's request."""
        self._call = call
        self._has_heard = self._has_answer = self._is_message_over = False
        self._deadline.set(call.limits.first_byte_s, self._on_timeout)
        self._transport.write(call.request)
        if call.is_paused:
            self.pause(True)

    def pause(self, is_paused: bool) -> None:
        """Stop or go on reading; a reader that is slow is not an upstream that stalls."""
        if not self.is_usable:
            return
        if is_paused:
            self._transport.pause_reading()
            self._deadline.clear()
        else:
            self._transport.resume_reading()
            if self._call is not None:
                self._deadline.set(self._call.limits.stall_s, self._on_timeout)

    def abort(self) -> None:
        """Close at once."""
        self._call = None
        self._is_open = False
        self._deadline.stop()
        self._transport.abort()

    # --- the loop's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but ancestry
        self._is_open = True

    def data_received(self, data: bytes) -> None:
        """Parse a piece of an answer."""
        call = self._call
        if call is None:
            # Nobody asked: an upstream that talks out of turn cannot be trusted with the next request.
            self._drop_idle()
            return
        self._has_heard = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            self._fail(Failure.PROTOCOL, f"the answer of {_show(self.target)} could not be taken")
            raise  # a receiver of ours broke, not the upstream
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(Failure.PROTOCOL, f"{_show(self.target)} sent no valid HTTP: {error}")
            return
        if self._call is not call:
            return  # cancelled meanwhile
        if self._is_message_over:
            self._finish(call)
        elif self._has_answer and not call.is_paused:
            self._deadline.set(call.limits.stall_s, self._on_timeout)

    def eof_received(self) -> bool:
        """Let the transport close."""
        return False

    def connection_lost(self, _exc: Exception | None) -> None:
        """End the call that was under way."""
        self._is_open = False
        self._deadline.stop()
        call, self._call = self._call, None
        if call is None:
            self._pool.forget(self)
        elif self._is_reused and not self._has_heard and not call.is_over:
            self._pool.meter.upstream_stale += 1
            call.restart()
        elif self._has_answer and self._ends_by_close():
            call.end()
        else:
            call.fail(Failure.CLOSED, f"{_show(self.target)} closed the connection before the answer was complete")

    # --- the parser's side

    def on_message_begin(self) -> None:
        """Begin an answer, interim or final; one more than was asked for spoils the connection."""
        if self._is_message_over:
            self._is_keep_alive = False
            self._is_spoilt = True
        self._fields = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a field; the last of several wins, none of those we read may be repeated."""
        if len(self._fields) < HEAD_FIELDS_MAX:
            self._fields[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Tell the receiver of the head."""
        call = self._call
        if call is None or self._is_spoilt:
            return
        status = self._parser.get_status_code()
        self._is_interim = 100 <= status < 200
        if self._is_interim:
            call.receiver.on_informational(status)
            return
        self._has_answer = True
        self._is_keep_alive = self._parser.should_keep_alive()
        call.receiver.on_head(status, self._fields)

    def on_body(self, data: bytes) -> None:
        """Tell the receiver of a piece, if it still listens."""
        if self._call is not None and not self._is_spoilt:
            self._call.receiver.on_data(data)

    def on_message_complete(self) -> None:
        """Note the end; told after the parser returned, since the receiver may start the next call at once."""
        if not self._is_interim and not self._is_spoilt:
            self._is_message_over = True
            self._is_keep_alive = self._parser.should_keep_alive()

    # --- ends

    def _finish(self, call: Call) -> None:
        self._call = None
        self._deadline.clear()
        if self._is_keep_alive and not call.is_paused:
            self._is_reused = True
            self._pool.release(self)
        else:
            self.abort()
        call.end()

    def _ends_by_close(self) -> bool:
        """Whether this answer has no length, so that the connection's end is its end (RFC 9112 section 6.3)."""
        return b"content-length" not in self._fields and b"transfer-encoding" not in self._fields

    def _on_timeout(self) -> None:
        call = self._call
        if call is None:
            return
        limit_s = call.limits.stall_s if self._has_answer else call.limits.first_byte_s
        self._fail(Failure.TIMEOUT, f"{_show(self.target)} sent nothing for {limit_s:g} s")

    def _fail(self, failure: Failure, reason: str) -> None:
        call = self._call
        self.abort()
        if call is not None:
            call.fail(failure, reason)

    def _drop_idle(self) -> None:
        self._pool.forget(self)
        self.abort()


def _show(target: Target) -> str:
    return f"{target.host}:{target.port}"
