"""`GET /v1/sites` and redirects: where else a tenant may go, told by the head of a request alone.

Owns both answers. Refuses to serve, and to read a byte of a body: a client that waits for `100 Continue` is sent on
before it sends one. What is legal is judged by `policy.residency`, what is near by `policy.nearest`.
"""

import re

import msgspec

from madang.core import RequestId
from madang.gateway.exchange import JSON_TYPE, Exchange
from madang.gateway.feed import Caller, Desired, Live
from madang.gateway.relay import Relay, id_fields
from madang.model import Site
from madang.policy.nearest import NEAR_MAX, LegalSite, SiteHealth, choose_redirect, rank_sites
from madang.policy.routing import is_peer_current, legal_sites
from madang.wire.http1 import RequestHead

SITES_PATH = "/v1/sites"
NEAR_FIELD = b"x-madang-near"
REDIRECT_OPTION = "redirect=1"
_NEAR_OPTION = "near="
_PLACE = re.compile(r"[a-z0-9_-]{1,32}\Z")
_NO_STORE = b"cache-control: no-store\r\n"


class SiteCard(msgspec.Struct, frozen=True, kw_only=True):
    """A legal site, as tenants are told of it.

    Attributes:
        base_url: what OpenAI's clients take.
        round_trip_ms: from the site that answers, None where it has not measured; a hint, not the client's own.
    """

    name: str
    region: str
    url: str
    base_url: str
    health: SiteHealth
    is_here: bool
    round_trip_ms: float | None


class SiteList(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `GET /v1/sites`: best first; `ordered_by` says on what ground."""

    object: str = "list"
    site: str
    ordered_by: str
    data: tuple[SiteCard, ...]


class NearestSites:
    """Answers what another site could do better."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def answer(self, exchange: Exchange, desired: Desired, caller: Caller, request_id: RequestId, label: str) -> bool:
        """Answer a request that is about sites, or that a better site shall have; return whether it was answered."""
        head = exchange.head
        if label == SITES_PATH:
            self._list(exchange, desired, caller, request_id)
            return True
        is_entry = desired.site is not None and desired.site.is_entry_only
        if not (is_entry and caller.is_redirect_wanted) and REDIRECT_OPTION not in _options(head):
            return False
        found = choose_redirect(self._rank(head, desired, caller))
        if found is None or found.is_here:
            return False
        self._redirect(exchange, found, request_id, label)
        return True

    def _list(self, exchange: Exchange, desired: Desired, caller: Caller, request_id: RequestId) -> None:
        cards = tuple(
            SiteCard(
                name=site.name,
                region=site.region,
                url=site.url,
                base_url=f"{site.url}/v1" if site.url else "",
                health=site.health,
                is_here=site.is_here,
                round_trip_ms=None if site.round_trip_s is None else round(site.round_trip_s * 1000, 2),
            )
            for site in self._rank(exchange.head, desired, caller)
        )
        ground = "near" if near_of(exchange.head) else "round_trip_from_site"
        found = SiteList(site=desired.site_name, ordered_by=ground, data=cards)
        self._relay.meter.count_request(SITES_PATH, 200, self._relay.site)
        exchange.respond(200, JSON_TYPE + _NO_STORE + id_fields(request_id), msgspec.json.encode(found))

    def _redirect(self, exchange: Exchange, found: LegalSite, request_id: RequestId, label: str) -> None:
        head = exchange.head
        rest = "&".join(one for one in _options(head) if one != REDIRECT_OPTION)
        location = f"{found.url}{head.path}{'?' if rest else ''}{rest}"
        body = msgspec.json.encode({"object": "site.redirect", "site": found.name, "url": found.url})
        fields = JSON_TYPE + _NO_STORE + id_fields(request_id) + b"location: %b\r\n" % location.encode()
        self._relay.meter.count_request(label, 307, self._relay.site)
        exchange.respond(307, fields, body)

    def _rank(self, head: RequestHead, desired: Desired, caller: Caller) -> list[LegalSite]:
        live = self._relay.feed.live
        legal = legal_sites(caller.residency, caller.data_class, desired.sites.values())
        return rank_sites((_describe(site, desired, live) for site in legal), near_of(head))


def near_of(head: RequestHead) -> tuple[str, ...]:
    """Return the sites and regions that a client says it is near to, nearest first; what is malformed is left out."""
    text = head.fields.get(NEAR_FIELD, b"").decode("latin-1")
    for option in _options(head):
        if option.startswith(_NEAR_OPTION):
            text = option.removeprefix(_NEAR_OPTION)
    names = (name.strip().lower() for name in text.split(",", NEAR_MAX)[:NEAR_MAX])
    return tuple(name for name in names if _PLACE.match(name))


def _options(head: RequestHead) -> list[str]:
    return head.query[1:].split("&") if head.query else []


def _describe(site: Site, desired: Desired, live: Live | None) -> LegalSite:
    if site.name == desired.site_name:
        health = SiteHealth.READY if live is not None and live.replicas else SiteHealth.EMPTY
        return LegalSite(
            name=site.name, region=site.region, url=site.tenant_url, health=health, is_here=True, round_trip_s=0.0
        )
    known = None if live is None else live.peers.get(site.name)
    health, round_trip_s = SiteHealth.SILENT, None
    if known is not None:
        peer = known.peer
        if is_peer_current(peer.digest_age_s):
            is_ready = any(load.replicas_ready for load in peer.services)
            health = SiteHealth.READY if is_ready else SiteHealth.EMPTY
        round_trip_s = peer.round_trip_s if peer.round_trip_s >= 0 else None
    return LegalSite(name=site.name, region=site.region, url=site.tenant_url, health=health, round_trip_s=round_trip_s)
