"""A tenant's request that the site's own process answers: files, batches, receipts.

Owns the routes that go this way, the limits on it and the passing of bytes both ways without keeping them: an upload
flows through in pieces, at the pace of whichever side is slower. Refuses to know what is asked and to judge who asks:
the tenants' port has done that. A client that leaves ends the call at once.
"""

import asyncio
import re
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NamedTuple

from madang.core import MadangError, Rejected, RequestId
from madang.gateway.access import residency_error
from madang.gateway.deadline import Deadline
from madang.gateway.exchange import Exchange
from madang.gateway.feed import Caller, Desired
from madang.gateway.relay import Relay, id_fields
from madang.gateway.site_call import SiteCall
from madang.gateway.target import Target, parse_target
from madang.policy.routing import legal_sites
from madang.runtime.files import read_secret
from madang.runtime.telemetry import EventLog
from madang.wire.openai_errors import ApiError, ErrorCode
from madang.wire.site_leg import (
    DATA_CLASS_FIELD,
    INTERNAL_PREFIX,
    KEY_FIELD,
    PROJECT_FIELD,
    REQUEST_ID_FIELD,
    TENANT_FIELD,
)

CALLS_MAX = 64
"""At once for one worker; each holds at most some hundred kilobytes."""
FIRST_BYTE_S = 60.0
"""From the end of the request to the answer's head; a deletion of many megabytes syncs a disk."""
HELD_BYTES_MAX = 64 * 1024
"""A smaller answer is sent whole, with its length."""
RETRY_S = 2.0
_PATH = re.compile(r"(?:/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+\Z")
_PASSED_ON = (b"content-type", b"content-disposition", b"cache-control", b"retry-after", b"x-madang-receipt")


class SiteRoute(NamedTuple):
    """A part of the tenant API that the site process answers.

    Attributes:
        prefix: the path, and all below it.
        methods: what it takes.
        is_upload: bodies of a POST to the prefix itself are large and are streamed.
        needs_chips: only a site that can work has it; a mere entry names such sites.
    """

    prefix: str
    methods: tuple[str, ...]
    is_upload: bool = False
    needs_chips: bool = False


SITE_ROUTES = (
    SiteRoute("/v1/files", ("GET", "POST", "DELETE"), is_upload=True, needs_chips=True),
    SiteRoute("/v1/batches", ("GET", "POST"), needs_chips=True),
    SiteRoute("/v1/receipts", ("GET",)),
)


def find_site_route(path: str, method: str) -> SiteRoute | None:
    """Return the route of a path, None when it is no site's; raises ApiError 404 or 405."""
    for route in SITE_ROUTES:
        if path != route.prefix and not path.startswith(route.prefix + "/"):
            continue
        if not _PATH.match(path):
            raise ApiError(ErrorCode.INVALID_REQUEST, f"there is nothing at {path[:100]}", status=404)
        if method not in route.methods:
            allow = ", ".join(route.methods)
            raise ApiError(ErrorCode.INVALID_REQUEST, f"{route.prefix} takes {allow}", status=405, allow=allow)
        return route
    return None


class SiteLink:
    """The way to the site process, shared by the requests of a worker."""

    def __init__(
        self, relay: Relay, spawn: Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"], log: EventLog
    ) -> None:
        """Prepare the way.

        Args:
            relay: settings and loop.
            spawn: starts a task under the worker's task group.
            log: told when the site process cannot be asked, once, and of its recovery.

        Raises:
            Rejected: `site_api_url` is not `http://host:port`, or the token's file is there and cannot be used.
        """
        settings = relay.settings
        self._log = log
        self._trouble = ""
        self.relay = relay
        self.spawn = spawn
        self.calls = 0
        self.target = _target(settings.site_api_url)
        self._token_file = settings.site_api_token_file
        if self._token_file is not None and not _is_missing(self._token_file):
            self._read_token(self._token_file)

    def warning(self) -> str:
        """Return what keeps the site process from being asked; empty while nothing does.

        The token's file is the site process's to make, at its first start, which may come after ours.
        """
        if (self.target is None) is not (self._token_file is None):
            return "site_api_url and site_api_token_file: one is set without the other; files and batches answer 503"
        if self._token_file is None or not _is_missing(self._token_file):
            return ""
        return f"site_api_token_file {self._token_file} is not there yet: files, batches and receipts answer 503"

    def _read_token(self, path: Path) -> str:
        """Return the token; raises Rejected naming the file."""
        try:
            token = read_secret(path).decode()
        except UnicodeDecodeError as error:
            raise Rejected(f"site_api_token_file {path} holds no text") from error
        except MadangError as error:
            raise Rejected(f"site_api_token_file: {error.message}", next_step=error.next_step) from error
        if not token or not token.isprintable():
            raise Rejected(f"site_api_token_file {path} holds no token")
        return token

    def open(self, exchange: Exchange, caller: Caller, request_id: RequestId, route: SiteRoute) -> "SiteLeg":
        """Begin to hand a request over; raises ApiError when it may not or cannot go this way."""
        desired = self.relay.desired()
        if caller.is_transit:
            raise residency_error(desired, caller.residency, caller.data_class)
        if route.needs_chips and desired.site is not None and desired.site.is_entry_only:
            raise _elsewhere(desired, caller, route)
        if self.target is None or self._token_file is None:
            raise ApiError(
                ErrorCode.NO_REPLICA,
                f"{route.prefix} is not served by site {self.relay.site}: its gateway knows no way to its site process "
                "(settings site_api_url and site_api_token_file)",
            )
        if self.calls >= CALLS_MAX:
            message = f"{self.calls} requests to {route.prefix} and the like are in progress here; try again"
            raise ApiError(ErrorCode.OVERLOADED, message, retry_after_s=RETRY_S)
        try:
            token = self._read_token(self._token_file)
        except MadangError as error:
            self.note_trouble(str(error))
            # The path is the operator's to know, not the tenant's.
            raise _unreachable(self.relay.site, "no token for it") from error
        return SiteLeg(self, self.target, exchange, _head_fields(caller, request_id, token), request_id, route)

    def note_trouble(self, reason: str) -> None:
        """Remember why the last call got no answer, empty when it got one, and say so when that is news."""
        if bool(reason) != bool(self._trouble):
            if reason:
                self._log.warning("gateway_site_process_silent", reason=reason)
            else:
                self._log.info("gateway_site_process_answers")
        self._trouble = reason


def _is_missing(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False  # whoever reads it says why it cannot be
    return False


def _target(url: str) -> Target | None:
    try:
        return parse_target(url) if url else None
    except ValueError as error:
        raise Rejected(f"settings key site_api_url: {error}") from error


def _elsewhere(desired: Desired, caller: Caller, route: SiteRoute) -> ApiError:
    """Return the error of an entry without chips: a batch belongs to the site that keeps and runs it."""
    sites = [
        {"name": site.name, "url": site.tenant_url}
        for site in legal_sites(caller.residency, caller.data_class, desired.sites.values())
        if site.tenant_url and not site.is_entry_only
    ]
    where = ", ".join(f"{site['name']} {site['url']}" for site in sites) or "no site of this federation"
    return ApiError(
        ErrorCode.UNSUPPORTED,
        f"{route.prefix} belongs to the site that keeps the data; {desired.site_name} is only an entry; use: {where}",
        details={"sites": sites},
    )


def _unreachable(site: str, reason: str) -> ApiError:
    message = f"the site process of {site} cannot be asked: {reason}"
    return ApiError(ErrorCode.NO_REPLICA, message, retry_after_s=RETRY_S)


def _head_fields(caller: Caller, request_id: RequestId, token: str) -> bytes:
    return (
        f"authorization: Bearer {token}\r\n{TENANT_FIELD}: {caller.tenant_id}\r\n"
        f"{PROJECT_FIELD}: {caller.project_id}\r\n{KEY_FIELD}: {caller.key_id}\r\n"
        f"{REQUEST_ID_FIELD}: {request_id}\r\n{DATA_CLASS_FIELD}: {caller.data_class.value}\r\n"
    ).encode()


class SiteLeg:
    """One request on its way to the site process and back.

    States: `gathering` (a small body is not here yet), `connecting`, `open` (bytes flow), `over`.
    """

    def __init__(
        self,
        link: SiteLink,
        target: Target,
        exchange: Exchange,
        fields: bytes,
        request_id: RequestId,
        route: SiteRoute,
    ) -> None:
        """Listen to the client; an upload is connected at once, anything else when its body is here."""
        self._link = link
        self._relay = link.relay
        self._target = target
        self._exchange = exchange
        self._fields = fields
        self._request_id = request_id
        self._route = route
        self._call: SiteCall | None = None
        self._task: asyncio.Task[None] | None = None
        self._waiting: list[bytes] = []
        self._held: list[bytes] | None = None
        self._status = 0
        self._answer_fields = b""
        self._is_over = self._is_body_over = self._is_upload_paused = False
        self._deadline = Deadline(self._relay.loop)
        settings = self._relay.settings
        self.bytes_max = settings.upload_bytes_max
        self.timeout_s = settings.upload_timeout_s
        link.calls += 1
        exchange.listener = self
        head = exchange.head
        if route.is_upload and head.has_body and head.path == route.prefix:
            exchange.upload = self
            self._connect(None if head.is_chunked else head.content_length)

    # --- the client's side

    def on_piece(self, data: bytes) -> None:
        """Pass a piece of an upload on; until there is a connection, let the client wait."""
        if self._is_over:
            return
        if self._call is None:
            self._waiting.append(data)
            self._pause_upload(True)
            return
        self._call.send(data)
        if not self._is_upload_paused:
            self._await_client()

    def on_end(self, body: bytes) -> None:
        """Take the last of the request's body: all of it, or the last piece of an upload."""
        if self._is_over:
            return
        self._is_body_over = True
        if self._exchange.upload is None:
            self._waiting.append(body)
            self._connect(len(body))
        elif self._call is None:
            self._waiting.append(body)
        else:
            self._call.send(body)
            self._call.finish()
            self._await_answer()

    def on_gone(self) -> None:
        """The client left."""
        self._relay.meter.clients_gone += 1
        self._end()

    def on_writable(self, is_writable: bool) -> None:
        """Let the site process wait for the client."""
        if self._call is None or self._is_over:
            return
        self._call.pause(not is_writable)
        if not is_writable:
            self._deadline.clear()  # the connection has a limit of its own for a client that does not read
        elif self._status:
            self._await_more()

    # --- the way there

    def _connect(self, length: int | None) -> None:
        head = self._exchange.head
        content_type = head.fields.get(b"content-type", b"")
        framing = b"transfer-encoding: chunked\r\n" if length is None else b"content-length: %d\r\n" % length
        request = b"%b %b%b%b HTTP/1.1\r\nhost: %b\r\nconnection: close\r\n%b%b%b\r\n" % (
            head.method.encode(),
            INTERNAL_PREFIX.encode(),
            head.path.encode(),
            head.query.encode(),
            str(self._target).encode(),
            b"content-type: %b\r\n" % content_type if content_type else b"",
            framing,
            self._fields,
        )
        self._task = self._link.spawn(self._dial(request, is_chunked=length is None))

    async def _dial(self, request: bytes, *, is_chunked: bool) -> None:
        limit_s = self._relay.settings.connect_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                _, call = await self._relay.loop.create_connection(
                    lambda: SiteCall(self, is_chunked=is_chunked), self._target.host, self._target.port
                )
        except TimeoutError:
            self._task = None
            self._fail(f"no connection within {limit_s:g} s")
            return
        except OSError as error:
            self._task = None
            self._fail(f"no connection: {error.strerror or error}")
            return
        self._task = None
        if self._is_over:
            call.abort()
            return
        self._call = call
        call.open(request)
        waiting, self._waiting = self._waiting, []
        for data in waiting:
            call.send(data)
        if self._is_body_over:
            call.finish()
            self._await_answer()
        else:
            self._await_client()
            self._pause_upload(False)

    def _pause_upload(self, is_paused: bool) -> None:
        self._is_upload_paused = is_paused
        self._exchange.pause_upload(is_paused)

    def _await_client(self) -> None:
        self._deadline.set(self._relay.settings.body_timeout_s, self._on_slow_client)

    def _await_answer(self) -> None:
        if not self._status:
            self._deadline.set(FIRST_BYTE_S, self._on_silence)

    def _await_more(self) -> None:
        self._deadline.set(self._relay.settings.stall_timeout_s, self._on_silence)

    def _on_slow_client(self) -> None:
        self._answer_error(ApiError(ErrorCode.TIMEOUT, "the request's body took too long", status=408))

    def _on_silence(self) -> None:
        self._fail("it does not answer")

    # --- the way back

    def on_site_writable(self, is_writable: bool) -> None:
        """Let the client wait for the site process."""
        if self._is_over or self._is_body_over:
            return
        self._pause_upload(not is_writable)
        if is_writable:
            self._await_client()
        else:
            self._deadline.set(self._relay.settings.stall_timeout_s, self._on_silence)

    def on_site_head(self, status: int, fields: dict[bytes, bytes]) -> None:
        """Begin the answer; a short one is kept until it is whole."""
        if status == 401:
            # The tenant's key was good: it is our token that the site process does not take.
            self._fail("it does not take the gateway's token")
            return
        self._link.note_trouble("")
        self._status = status
        passed_on = b"".join(b"%b: %b\r\n" % (name, fields[name]) for name in _PASSED_ON if name in fields)
        self._answer_fields = (
            passed_on + id_fields(self._request_id) + b"x-madang-site: %b\r\n" % self._relay.site.encode()
        )
        length = fields.get(b"content-length", b"")
        if length.isdigit() and int(length) <= HELD_BYTES_MAX:
            self._held = []
        else:
            self._count(status)
            self._exchange.start(status, self._answer_fields)
        self._await_more()

    def on_site_data(self, data: bytes) -> None:
        """Pass a piece of the answer on."""
        if self._is_over:
            return
        if self._held is not None:
            self._held.append(data)
        else:
            self._exchange.send(data)
        self._await_more()

    def on_site_end(self) -> None:
        """End the answer."""
        if self._is_over:
            return
        self._end()
        if self._held is None:
            self._exchange.end()
        else:
            self._count(self._status)
            self._exchange.respond(self._status, self._answer_fields, b"".join(self._held))

    def on_site_failed(self, reason: str) -> None:
        """Say so, or cut an answer that has begun."""
        self._fail(reason)

    def _fail(self, reason: str) -> None:
        if self._is_over:
            return
        self._link.note_trouble(reason)
        if self._status and self._held is None:
            self._end()
            self._exchange.cut()
            return
        self._answer_error(_unreachable(self._relay.site, reason))

    def _answer_error(self, error: ApiError) -> None:
        self._end()
        self._count(error.status)
        self._exchange.fail(error, id_fields(self._request_id))

    def _count(self, status: int) -> None:
        self._relay.meter.count_request(self._route.prefix, status, self._relay.site)

    def _end(self) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._link.calls -= 1
        self._waiting.clear()
        self._deadline.stop()
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if self._call is not None:
            self._call.abort()
