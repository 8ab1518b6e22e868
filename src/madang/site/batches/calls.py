"""A line of a batch, put to the site's own gateway as any request: with a pass, through its peer port.

Owns the pass and the words on the wire. Refuses to judge answers and to reach an engine by any other way: so lease,
meter, residency, price and receipt hold for batches as for all else. The pass is under a session of the site with
itself, which only the site process and its gateway hold.
"""

import hashlib
import ssl
from collections.abc import Callable

import httpx
import msgspec

from madang.core import Clock, RequestId, ServiceName, SiteId
from madang.model import ApiKey, Tenant
from madang.site.batches.state import Batch
from madang.site.batches.verdict import SILENT, UNREACHED, Answer
from madang.wire.feed import PeerSession
from madang.wire.passes import PASS_HEADER, Pass, seal_pass

PASS_LIFETIME_S = 10.0
ANSWER_BYTES_MAX = 128 * 1024 * 1024
CONNECT_S = 2.0
SILENCE_S = 15.0
"""The gateway gives a sign every second until the answer begins."""
TRIES_STRIDE = 4
"""Attempt numbers that one try may use: the gateway makes up to three attempts at a request."""
TRIES_MAX = 24
"""So that the last try's attempt numbers stay below 100."""


class _ErrorBody(msgspec.Struct, frozen=True):
    code: str | None = None
    message: str = ""
    madang: dict[str, msgspec.Raw] = {}


class _ErrorAnswer(msgspec.Struct, frozen=True):
    error: _ErrorBody


def attempt_of(tries: int) -> int:
    """Return the number of the first attempt of a line's n-th try, from 1.

    It is higher than any before, so that it replaces whatever an earlier try did in the ledger.
    """
    return 1 + TRIES_STRIDE * (tries - 1)


class GatewayCalls:
    """The way from the batches to the gateway."""

    def __init__(
        self,
        *,
        site: str,
        url: str,
        find_sessions: Callable[[], tuple[PeerSession, ...]],
        keys: dict[str, ApiKey],
        tenants: dict[str, Tenant],
        clock: Clock,
        connections_max: int,
    ) -> None:
        """Prepare the way.

        Args:
            site: our name.
            url: our gateway's peer port.
            find_sessions: our sessions with ourselves, the one to sign with first.
            keys: applied state, live.
            tenants: the same.
            clock: for the pass.
            connections_max: at once.
        """
        self._site = SiteId(site)
        self._find_sessions = find_sessions
        self._keys = keys
        self._tenants = tenants
        self._clock = clock
        self._client = httpx.AsyncClient(
            base_url=url,
            timeout=httpx.Timeout(SILENCE_S, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=connections_max, max_keepalive_connections=connections_max),
            trust_env=False,
            verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),  # plain HTTP inside the site: no certificates are loaded
        )

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def ask(self, batch: Batch, request_id: RequestId, tries: int, body: bytes) -> Answer:
        """Return what the gateway says to one line; does not raise for a gateway that is away."""
        key = self._keys.get(batch.key_id)
        if key is None:
            return Answer(status=401, code="invalid_key", message=_gone(batch), is_owner_refused=True)
        sessions = self._find_sessions()
        if not sessions:
            return Answer(status=UNREACHED, message="no session with the own gateway yet")
        sealed = seal_pass(self._pass(batch, key, request_id, tries, body, sessions[0]), sessions[0].key)
        headers = {"content-type": "application/json", PASS_HEADER: sealed}
        try:
            async with self._client.stream("POST", batch.endpoint, content=body, headers=headers) as response:
                return await _read(response)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            return Answer(status=UNREACHED, message=f"the gateway is not reached: {error}")
        except httpx.HTTPError as error:
            return Answer(status=SILENT, message=f"the gateway's answer broke off: {error!r}")

    def _pass(
        self, batch: Batch, key: ApiKey, request_id: RequestId, tries: int, body: bytes, session: PeerSession
    ) -> Pass:
        now_s = self._clock.wall_s()
        tenant = self._tenants.get(batch.tenant_id)
        return Pass(
            request_id=request_id,
            attempt=attempt_of(tries),
            tenant_id=batch.tenant_id,
            key_id=batch.key_id,
            service=ServiceName(""),
            residency=key.residency,
            data_class=(batch.data_class if tenant is None else tenant.data_class).value,
            entry_site=self._site,
            serving_site=self._site,
            hops=0,
            issued_at_s=now_s,
            deadline_s=now_s + PASS_LIFETIME_S,
            path=batch.endpoint,
            is_stream=False,
            body_sha256=hashlib.sha256(body).digest(),
            kid=session.kid,
        )


def _gone(batch: Batch) -> str:
    return f"the key {batch.key_id} that made this batch is not known any more"


async def _read(response: httpx.Response) -> Answer:
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > ANSWER_BYTES_MAX:
            return Answer(status=SILENT, message=f"the answer is over {ANSWER_BYTES_MAX} bytes")
    status, content = response.status_code, bytes(body)
    if status < 400:
        return Answer(status=status, body=content)
    try:
        error = msgspec.json.decode(content, type=_ErrorAnswer).error
    except msgspec.MsgspecError:
        error = _ErrorBody()
    wait = response.headers.get("retry-after", "")
    return Answer(
        status=status,
        body=content,
        code=error.code or "",
        message=error.message,
        retry_after_s=float(wait) if wait.isdigit() else None,
        is_owner_refused="owner" in error.madang,
    )
