"""The bus: one NATS connection of a program, made anew whenever it is lost, and the inboxes that survive that.

Owns connecting, subscribing again, bounded inboxes, and the translation of NATS errors. Refuses to know subjects
and messages. Called by hub and site.

The client's own reconnection is off: it would keep what was published while disconnected and send it later,
acknowledgements included, and a connection that it gives up on stays dead. Here a publish without a connection
fails at once, and a lost connection is replaced by a new one for as long as `run` runs.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping

import msgspec

from madang.core import Clock, Entropy, Unavailable
from madang.machine.backoff import choose_backoff_s
from madang.runtime.nats_client import Client, Msg, drop_socket, errors
from madang.runtime.telemetry import EventLog

STATUS_HEADER = "Status"
"""Header of a message without content that a server sends, such as 503 (nobody listens)."""
NO_RESPONDERS = "503"

_CONNECT_TIMEOUT_S = 3.0
_PUBLISH_TIMEOUT_S = 2.0
_CLOSE_TIMEOUT_S = 2.0
_PING_PERIOD_S = 5  # with two unanswered pings a hole is noticed in about 15 s; the client's default is 4 minutes
_PINGS_UNANSWERED_MAX = 2
_LOOK_PERIOD_S = 1.0
_RETRY_BASE_S = 0.05
_RETRY_MAX_S = 1.0
_BROKEN = (errors.Error, OSError, TimeoutError, RuntimeError)
"""How a connection fails under the client; RuntimeError is uvloop's for a transport that is closed already."""
_INBOX_BYTES_MAX = 64 * 1024 * 1024
_COMPLAINTS_MAX = 32


class BusLogin(msgspec.Struct, frozen=True, kw_only=True):
    """How to log in: a user and password, or the path of a credentials file. Its `repr` shows no secret."""

    user: str = ""
    password: str = ""
    creds_path: str = ""

    def __repr__(self) -> str:
        return f"BusLogin(user={self.user!r}, creds_path={self.creds_path!r})"


class BusMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message as it came; `headers` are empty when it had none."""

    subject: str
    data: bytes
    reply: str = ""
    headers: Mapping[str, str] = {}

    @property
    def status(self) -> str:
        """Return the server's status code, or an empty string for a message of a program."""
        return self.headers.get(STATUS_HEADER, "")


class Inbox:
    """Messages of one subscription, oldest first; over its bound the newest are dropped and counted."""

    def __init__(self, subject: str, pending_max: int) -> None:
        self.subject = subject
        self.dropped = 0
        self._queue: asyncio.Queue[BusMessage] = asyncio.Queue(pending_max)

    async def next(self) -> BusMessage:
        """Return the next message, waiting for it; bound the wait with `asyncio.timeout`."""
        return await self._queue.get()

    def next_nowait(self) -> BusMessage | None:
        """Return the next message if one is here."""
        try:
            return self._queue.get_nowait()
        except asyncio.QueueEmpty:
            return None

    async def deliver(self, message: Msg) -> None:
        """Take a message from the client; never raises and never waits."""
        made = BusMessage(
            subject=message.subject, data=message.data, reply=message.reply, headers=message.headers or {}
        )
        try:
            self._queue.put_nowait(made)
        except asyncio.QueueFull:
            self.dropped += 1


class Bus:
    """A program's connection to its NATS server."""

    def __init__(
        self,
        *,
        url: str,
        name: str,
        inbox_prefix: str,
        login: Callable[[], BusLogin],
        clock: Clock,
        entropy: Entropy,
        log: EventLog,
    ) -> None:
        """Prepare a connection; `run` makes it.

        Args:
            url: `nats://host:port`.
            name: shown by the server's monitor.
            inbox_prefix: first tokens of every reply subject; a site's must be `_INBOX.<site>`, or replies from
                the hub do not reach it.
            login: asked at every connection, so that a changed password is picked up; may raise Unavailable.
            clock: for the time a connection was last seen.
            entropy: seeds of the back-off and names of inboxes.
            log: gets the change of state, once each way.
        """
        self._url = url
        self._name = name
        self._inbox_prefix = inbox_prefix
        self._login = login
        self._clock = clock
        self._entropy = entropy
        self._log = log
        self._client: Client | None = None
        self._inboxes: list[Inbox] = []
        self._lost = asyncio.Event()
        self._connected = asyncio.Event()
        self._complaints: set[str] = set()
        self._reason = ""
        self.connections = 0
        """Connections made so far."""

    @property
    def is_connected(self) -> bool:
        """Return whether the program's own server is reached (the hub behind it may still be away)."""
        return self._client is not None and self._client.is_connected

    async def wait_connected(self) -> None:
        """Return once a connection is there."""
        await self._connected.wait()

    def listen(self, subject: str, *, pending_max: int) -> Inbox:
        """Return an inbox of `subject`, subscribed at every connection made from now on; call before `run`."""
        assert self._client is None, "listen before run, so that every connection has every subscription"
        inbox = Inbox(subject, pending_max)
        self._inboxes.append(inbox)
        return inbox

    def make_inbox_name(self) -> str:
        """Return a reply subject of this program that nobody can guess, without a last token."""
        return f"{self._inbox_prefix}.{self._entropy.token_bytes(12).hex()}"

    async def run(self) -> None:
        """Connect and stay connected until cancelled."""
        failures = 0
        while True:
            try:
                async with self._connection() as client:
                    failures = 0
                    await self._wait_lost(client)
                    self._log.warning("bus_lost", url=self._url, reason=self._reason)
            except Unavailable as error:
                failures += 1
                if failures == 1:
                    self._log.warning("bus_unreachable", url=self._url, reason=error.message)
                delay_s = choose_backoff_s(failures, self._entropy.seed64(), base_s=_RETRY_BASE_S, max_s=_RETRY_MAX_S)
                await asyncio.sleep(delay_s)

    async def _wait_lost(self, client: Client) -> None:
        """Return when a connection is lost.

        The client says so, unless its own closing fails: what it still had to send raises on a transport that uvloop
        has closed already, as after a hang of the whole program, and its callbacks are never called. So its state is
        looked at too.
        """
        while client.is_connected:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_PERIOD_S):
                    await self._lost.wait()
                return

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[Client]:
        client = Client()
        try:
            with _heeding_cancellation():
                await self._connect(client)
            self._client = client
            self.connections += 1
            self._connected.set()
            self._log.info("bus_connected", url=self._url, connection=self.connections)
            yield client
        finally:
            self._client = None
            self._connected.clear()
            await self._close(client)

    async def _connect(self, client: Client) -> None:
        self._lost = lost = asyncio.Event()
        self._complaints = set()
        self._reason = ""

        async def on_closed() -> None:
            lost.set()

        login = self._login()
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                await client.connect(
                    self._url,
                    name=self._name,
                    user=login.user or None,
                    password=login.password or None,
                    user_credentials=login.creds_path or None,
                    inbox_prefix=self._inbox_prefix,
                    # Zero would mean to try for ever inside the client; one more trial is the least it can do.
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    connect_timeout=2,
                    ping_interval=_PING_PERIOD_S,
                    max_outstanding_pings=_PINGS_UNANSWERED_MAX,
                    flush_timeout=_PUBLISH_TIMEOUT_S,
                    closed_cb=on_closed,
                    disconnected_cb=on_closed,
                    error_cb=self._on_error,
                )
                for inbox in self._inboxes:
                    await client.subscribe(inbox.subject, cb=inbox.deliver, pending_bytes_limit=_INBOX_BYTES_MAX)
                await client.flush(int(_PUBLISH_TIMEOUT_S))
        except _BROKEN as error:
            # The client's own error says only that no server was left to try; the reason came before it.
            reason = self._reason or str(error) or type(error).__name__
            raise Unavailable(f"NATS at {self._url} cannot be used: {reason}") from error

    async def _close(self, client: Client) -> None:
        try:
            with _heeding_cancellation():
                async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                    await client.close()
        except _BROKEN as error:
            self._log.warning("bus_close_failed", url=self._url, reason=repr(error))
        finally:
            drop_socket(client)

    async def _on_error(self, error: Exception) -> None:
        """Log what the server or client complains of, once per connection and text, bounded."""
        text = f"{type(error).__name__}: {error}"[:300]
        if not self.is_connected or isinstance(error, errors.StaleConnectionError | OSError):
            self._reason = text
            return
        if text in self._complaints or len(self._complaints) >= _COMPLAINTS_MAX:
            return
        self._complaints.add(text)
        self._log.warning("bus_complaint", url=self._url, reason=text)

    async def publish(
        self, subject: str, data: bytes, *, reply: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        """Hand a message to the server; no proof that anybody got it.

        Raises:
            Unavailable: there is no connection, or the server does not take it in time. Nothing is kept for later.
        """
        client = self._require_client(subject)
        try:
            with _heeding_cancellation():
                async with asyncio.timeout(_PUBLISH_TIMEOUT_S):
                    await client.publish(subject, data, reply=reply, headers=dict(headers) if headers else None)
        except _BROKEN as error:
            raise Unavailable(f"cannot publish on {subject}: {error or type(error).__name__}") from error

    async def request(
        self, subject: str, data: bytes, *, timeout_s: float, headers: Mapping[str, str] | None = None
    ) -> BusMessage:
        """Publish and return the first answer.

        Raises:
            NoResponders: nobody listens: the link to whoever would is down; known at once.
            Unavailable: no connection, or no answer within `timeout_s` (a denied publish looks the same).
        """
        client = self._require_client(subject)
        try:
            with _heeding_cancellation():
                answer = await client.request(
                    subject, data, timeout=timeout_s, headers=dict(headers) if headers else None
                )
        except errors.NoRespondersError as error:
            raise NoResponders(f"nobody listens on {subject}", retry_after_s=_RETRY_MAX_S) from error
        except _BROKEN as error:
            raise Unavailable(f"no answer on {subject}: {error or type(error).__name__}") from error
        return BusMessage(subject=answer.subject, data=answer.data, reply=answer.reply, headers=answer.headers or {})

    def _require_client(self, subject: str) -> Client:
        client = self._client
        if client is None or not client.is_connected:
            raise Unavailable(f"cannot use {subject}: NATS at {self._url} is not connected")
        return client


class NoResponders(Unavailable):
    """Nobody listens on the subject now: whoever would is not linked."""


@contextlib.contextmanager
def _heeding_cancellation() -> Iterator[None]:
    """Raise a cancellation that came within the block and was swallowed there.

    The client waits with `asyncio.wait_for`, which up to Python 3.11 returns the result instead when both come in
    one turn of the loop; the task would go on, and whoever cancelled it would wait for ever.
    """
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    try:
        yield
    finally:
        if task.cancelling() > before:
            raise asyncio.CancelledError
