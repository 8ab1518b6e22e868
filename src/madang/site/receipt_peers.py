"""Receipts of requests that entered here and were served elsewhere: asked of the sites that may have served them.

Owns the pass and the bounds on time and number. Refuses to ask sites that the tenant's residency does not allow: they
cannot have served. Each is asked through its gateway's peer port, as gateways ask each other, and looks only among its
own.
"""

import asyncio
import hashlib
import ssl
from collections.abc import Callable

import httpx

from madang.core import Clock, ServiceName, SiteId, site_of_request
from madang.model import ApiKey, Site
from madang.policy.residency import is_allowed
from madang.runtime.telemetry import EventLog
from madang.site.internal import InternalCaller
from madang.wire.feed import Peer
from madang.wire.passes import PASS_HEADER, Pass, seal_pass
from madang.wire.receipts import RECEIPT_BYTES_MAX

ASKED_MAX = 4
"""Tenants' questions that go out to other sites at once; further ones wait."""
SITES_MAX = 64
TIMEOUT_S = 3.0
PASS_LIFETIME_S = 10.0
LOCAL_QUERY = "local=1"
"""Tells a site to look only among its own, so that no question goes round."""


class PeerReceipts:
    """The way to other sites' receipts."""

    def __init__(
        self,
        *,
        site: str,
        list_peers: Callable[[], tuple[Peer, ...]],
        sites: dict[str, Site],
        keys: dict[str, ApiKey],
        clock: Clock,
        log: EventLog,
        roots: ssl.SSLContext | None = None,
    ) -> None:
        """Prepare; connections are made when somebody asks.

        Args:
            site: our name.
            list_peers: other sites with URL and sessions.
            sites: applied state, live.
            keys: the same.
            clock: for passes.
            log: told of a peer whose answer is no answer.
            roots: who vouches for peers that are dialled with TLS; None for the system's.
        """
        self._site = SiteId(site)
        self._list_peers = list_peers
        self._sites = sites
        self._keys = keys
        self._clock = clock
        self._log = log
        self._turns = asyncio.Semaphore(ASKED_MAX)
        self._roots = roots

    async def find(self, receipt_id: str, request_id: str, caller: InternalCaller) -> bytes | None:
        """Return a receipt of another site, or None when the request did not enter here or nobody has it."""
        key = self._keys.get(caller.key_id)
        if key is None or site_of_request(request_id) != self._site:
            return None
        peers = [peer for peer in self._list_peers() if self._may_have_served(peer, key, caller)][:SITES_MAX]
        if not peers:
            return None
        async with (
            self._turns,
            httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False, verify=self._trust(peers)) as client,
        ):
            answers = await asyncio.gather(*(self._ask(client, peer, key, receipt_id, caller) for peer in peers))
        return next((answer for answer in answers if answer is not None), None)

    def _trust(self, peers: list[Peer]) -> ssl.SSLContext:
        """Return whom to believe; the system's roots are loaded, once, only when some peer's port is TLS."""
        if self._roots is None and any(peer.url.startswith("https:") for peer in peers):
            self._roots = ssl.create_default_context()
        return self._roots or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    def _may_have_served(self, peer: Peer, key: ApiKey, caller: InternalCaller) -> bool:
        site = self._sites.get(peer.site)
        return site is not None and bool(peer.sessions) and is_allowed(key.residency, caller.data_class, site)

    async def _ask(
        self, client: httpx.AsyncClient, peer: Peer, key: ApiKey, receipt_id: str, caller: InternalCaller
    ) -> bytes | None:
        now_s = self._clock.wall_s()
        session = next((one for one in peer.sessions if one.expires_at_s > now_s), None)
        if session is None:
            return None
        path = f"/v1/receipts/{receipt_id}"
        sealed = Pass(
            request_id=caller.request_id,
            attempt=1,
            tenant_id=caller.tenant_id,
            key_id=caller.key_id,
            service=ServiceName(""),
            residency=key.residency,
            data_class=caller.data_class.value,
            entry_site=self._site,
            serving_site=peer.site,
            hops=1,
            issued_at_s=now_s,
            deadline_s=now_s + PASS_LIFETIME_S,
            path=path,
            is_stream=False,
            body_sha256=hashlib.sha256(b"").digest(),
            kid=session.kid,
        )
        try:
            answer = await client.get(
                f"{peer.url}{path}?{LOCAL_QUERY}", headers={PASS_HEADER: seal_pass(sealed, session.key)}
            )
        except httpx.HTTPError:
            return None  # away; whoever asks is told where else to look
        if answer.status_code == 200 and len(answer.content) <= RECEIPT_BYTES_MAX:
            return answer.content
        if answer.status_code != 404:
            self._log.warning("receipt_peer_refused", peer=peer.site, status=answer.status_code)
        return None
