"""Calls to engines and peers: pooled keep-alive connections, time limits, and cancelling at once.

Owns sockets towards upstreams. Refuses to know what is asked and to try anything again, but for one case that is no
failure: a pooled connection that the upstream had closed before our request reached it is replaced by a fresh one.
The relay's legs call it. Reuse is counted, since a pool that never reuses looks healthy and costs three times as much.
"""

import asyncio
import ssl
from collections.abc import Callable
from functools import partial

from madang.core import Rejected
from madang.gateway.metrics import Meter
from madang.gateway.target import Failure, Receiver, Target, TimeLimits
from madang.gateway.upstream_connection import UpstreamConnection

CONNECTIONS_MAX = 2560
IDLE_PER_TARGET_MAX = 256
IDLE_S_MAX = 30.0
SWEEP_PERIOD_S = 5.0
LATE_S = 0.2
"""A timer that fires this much after its time shows that the loop was busy, not that the other side was slow."""
LOOKS_MAX = 3
"""How often the limit of a connect is given again for that."""


class Call:
    """One request to one upstream."""

    __slots__ = (
        "_connection",
        "_is_over",
        "_pool",
        "_task",
        "is_paused",
        "is_resent",
        "limits",
        "receiver",
        "request",
        "take_chunk",
        "target",
    )

    def __init__(
        self, pool: "UpstreamPool", target: Target, request: bytes, receiver: Receiver, limits: TimeLimits
    ) -> None:
        """Make a call that is not under way yet.

        Attributes:
            is_paused: its reader takes nothing now.
            is_resent: it was sent before, on a connection that closed without a word: the upstream may know it.
            take_chunk: where a receiver wants whole chunks of a body as they come, framing and all, it is shown each
                read that may be one and says whether it took it; else the parser has it.
        """
        self._pool = pool
        self._connection: UpstreamConnection | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_over = False
        self.is_paused = self.is_resent = False
        self.take_chunk: Callable[[bytes], bool] | None = None
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

    def attach(self, connection: UpstreamConnection) -> None:
        """Send the request on a connection."""
        self._task = None
        self._connection = connection
        connection.begin(self)

    def restart(self) -> None:
        """The pooled connection had been closed by the upstream: use a fresh one."""
        self._connection = None
        self.is_resent = True
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


class _Patience:
    """The limit of one connect, which a loop that is late itself does not hold against the other side.

    When thousands begin at once, timers are due before the loop has looked at what came in meanwhile.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: asyncio.Timeout, wait_s: float) -> None:
        self._loop = loop
        self._limit = limit
        self._wait_s = wait_s
        self._looks = 1
        self._handle = loop.call_later(wait_s, self._look)

    def _look(self) -> None:
        late_s = self._loop.time() - self._handle.when()
        if late_s > LATE_S and self._looks < LOOKS_MAX:
            self._looks += 1
            self._handle = self._loop.call_later(self._wait_s, self._look)
        else:
            self._limit.reschedule(self._loop.time())

    def end(self) -> None:
        """Watch no longer."""
        self._handle.cancel()


class UpstreamPool:
    """Idle connections by target, and new ones when there is none."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        spawn: Callable[..., "asyncio.Task[None]"],
        meter: Meter,
        connect_timeout_s: float,
        *,
        connections_max: int = CONNECTIONS_MAX,
        context: Callable[[], ssl.SSLContext] = ssl.create_default_context,
    ) -> None:
        """Make a pool.

        Args:
            loop: runs its connections.
            spawn: starts a task under the worker's task group.
            meter: counts connections, reuse and stale ones.
            connect_timeout_s: limit of one connect, a handshake of TLS included.
            connections_max: open at once, idle ones and those being opened included.
            context: returns how certificates are judged; asked when first needed, and again while it raises Rejected.
        """
        self.loop = loop
        self.meter = meter
        self._spawn = spawn
        self._connect_timeout_s = connect_timeout_s
        self._connections_max = connections_max
        self._opening = self.open_count = 0
        self._make_context = context
        self._context: ssl.SSLContext | None = None
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
        if self._opening + self.open_count >= self._connections_max and not self._close_one_idle():
            reason = f"{self._connections_max} connections to engines and peers are open, as many as there may be"
            call.fail(Failure.CONNECT, reason)
            return
        connection = UpstreamConnection(self, call.target)
        task = self._spawn(self._connect(call, connection))
        self._opening += 1
        task.add_done_callback(partial(self._on_ended, connection))
        call.wait_for(task)

    async def _connect(self, call: Call, connection: UpstreamConnection) -> None:
        try:
            async with asyncio.timeout(None) as limit:
                patience = _Patience(self.loop, limit, self._connect_timeout_s)
                try:
                    host, port, is_secure = call.target
                    await self.loop.create_connection(
                        lambda: connection,
                        host,
                        port,
                        ssl=self._secure() if is_secure else None,
                    )
                finally:
                    patience.end()
        except TimeoutError:
            call.fail(Failure.CONNECT, f"no connection to {call.target} within {self._connect_timeout_s:g} s")
        except OSError as error:
            call.fail(Failure.CONNECT, f"no connection to {call.target}: {error.strerror or error}")
        except Rejected as error:  # the file of roots cannot be used now
            call.fail(Failure.CONNECT, f"no connection to {call.target}: {error.message}")
        else:
            self.meter.upstream_opened += 1
            if call.is_over:
                connection.abort()
            elif connection.is_usable:
                call.attach(connection)
            else:
                call.fail(Failure.CLOSED, f"{call.target} closed the connection at once")

    def note_open(self) -> None:
        """A connection is made; called by it, so that none counts twice while its task still runs."""
        self._opening -= 1
        self.open_count += 1

    def _on_ended(self, connection: UpstreamConnection, _task: "asyncio.Task[None]") -> None:
        if not connection.was_opened:
            self._opening -= 1

    def _secure(self) -> ssl.SSLContext:
        if self._context is None:
            self._context = self._make_context()
        return self._context

    def _close_one_idle(self) -> bool:
        """Make room by closing an idle connection to somebody else; False when none is idle."""
        for idle in self._idle.values():
            if idle:
                idle.pop(0).abort()
                return True
        return False

    def release(self, connection: UpstreamConnection) -> None:
        """Keep a connection for the next call, or close it when there are enough."""
        idle = self._idle.setdefault(connection.target, [])
        if len(idle) >= IDLE_PER_TARGET_MAX:
            connection.abort()
            return
        connection.idle_since = self.loop.time()
        idle.append(connection)
        if self._sweeper is None:
            self._sweeper = self.loop.call_later(SWEEP_PERIOD_S, self._sweep)

    def forget(self, connection: UpstreamConnection) -> None:
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
