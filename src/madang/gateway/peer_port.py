"""The peer port: requests that other sites' gateways hand over.

Owns the judgement of passes. A pass is believed when its MAC verifies under a session that this site agreed on with
the very site it names as entry, it names this site as the one to serve, and nobody has used it before; whether the
tenant's data may be here is judged again from this site's own facts. Refuses to hand anything on: a request that
came over a hop is served by a replica here or refused, explicitly and at once.

The site process comes this way too, with lines of batches: under a session of the site with itself, without a hop, and
only to replicas of this site. The key in whose name it asks is judged here, since no entry has done so.

The replay guard is per worker. A replay that reaches another worker runs an inference again, but cannot be billed
twice: its usage event has the same id.
"""

import hashlib
from collections import OrderedDict
from typing import NoReturn

from madang.core import KeyId, Rejected, RequestId, SiteId, site_of_request
from madang.gateway.access_log import FIELD_CHARS_MAX
from madang.gateway.errand import Errand
from madang.gateway.exchange import Exchange
from madang.gateway.feed import OWN, Caller, Desired, Live
from madang.gateway.journey import Journey
from madang.gateway.peer_leg import REFUSED_FIELD
from madang.gateway.relay import Relay
from madang.gateway.site_leg import SiteLeg, SiteLink, find_site_route
from madang.model import DataClass, PriorityClass
from madang.model.priority import lower_of
from madang.policy.residency import is_allowed, stricter
from madang.wire.openai import Endpoint
from madang.wire.openai_errors import ApiError, ErrorCode
from madang.wire.passes import HEARTBEAT_PERIOD_S, HOPS_MAX, PASS_HEADER, PROBE_PATH, Pass, open_pass
from madang.wire.surface import find_endpoint

SKEW_S = 30.0
LIFETIME_MAX_S = 60.0
"""A pass of longer life would have to be remembered for longer."""
PASSES_REMEMBERED_MAX = 131_072
"""Passes live PASS_LIFETIME_S plus the skew on both sides, so this holds about 1,800 a second for one worker."""
PEER_LABEL = "peer"
"""What an access record calls the peer port, where a pass was refused."""
_RECEIPTS = "/v1/receipts/"
_PASS_FIELD = PASS_HEADER.encode()


class ReplayGuard:
    """Passes that were used, until they are too old to be used again."""

    def __init__(self, capacity: int = PASSES_REMEMBERED_MAX) -> None:
        self._capacity = capacity
        self._until: OrderedDict[tuple[str, int], float] = OrderedDict()

    def admit(self, request_id: str, attempt: int, until_s: float, now_s: float) -> bool:
        """Return whether a pass is new, and remember it; a full memory admits nothing.

        Args:
            request_id: of the pass.
            attempt: of the pass.
            until_s: wall time after which it is refused for its age alone.
            now_s: wall time.
        """
        while self._until and next(iter(self._until.values())) < now_s:
            self._until.popitem(last=False)
        key = (request_id, attempt)
        if key in self._until or len(self._until) >= self._capacity:
            return False
        self._until[key] = until_s
        return True


class PeerPort:
    """Handler of the peer port."""

    def __init__(self, relay: Relay, site_link: SiteLink | None = None) -> None:
        self._relay = relay
        self._site_link = site_link
        self._guard = ReplayGuard()

    def on_head(self, exchange: Exchange) -> None:
        """Judge a pass; accept it with 102 before its body is here, or refuse it."""
        if exchange.head.path == PROBE_PATH and exchange.head.method == "HEAD":
            exchange.respond(200, b"", b"")
            return
        try:
            found = self._judge(exchange)
            endpoint = find_endpoint(exchange.head)
            if endpoint is None:
                self._hand_over(exchange, found)
                return
            errand = self._errand(found, endpoint)
        except ApiError as error:
            self._relay.access.refuse_unknown("", ("", ""), exchange.address, PEER_LABEL, error.status)
            self._refuse(exchange, error)
            return
        who = Caller(
            key_id=found.key_id,
            tenant_id=found.tenant_id,
            residency=found.residency,
            data_class=errand.data_class,
            project_id=errand.project_id,
        )
        origin = f"site:{errand.entry_site}"
        exchange.access = self._relay.access.open(errand.request_id, who, origin, errand.endpoint.value)
        journey = Journey(self._relay, exchange, errand)
        journey.body_sha256 = found.body_sha256
        self._beat(exchange)

    def on_body(self, exchange: Exchange, body: bytes) -> None:
        """Serve the request if its body is the one that the pass covers."""
        journey = exchange.listener
        if isinstance(journey, SiteLeg):
            journey.on_end(body)
            return
        assert isinstance(journey, Journey)
        if hashlib.sha256(body).digest() != journey.body_sha256:
            self._relay.meter.count_peer_refusal("body")
            journey.answer_error(ApiError(ErrorCode.INVALID_REQUEST, "the body is not the one that the pass covers"))
            return
        journey.begin(body)

    def _hand_over(self, exchange: Exchange, found: Pass) -> None:
        """Let the site process answer what another site's tenant asks of it: a receipt."""
        route = find_site_route(found.path, exchange.head.method)
        if route is None or self._site_link is None or exchange.head.has_body:
            _refuse_pass("this site answers no such request")
        who = Caller(
            key_id=found.key_id,
            tenant_id=found.tenant_id,
            residency=found.residency,
            data_class=judge_residency(found, self._relay.desired()),
        )
        request_id = RequestId(found.request_id)
        asked = found.path[:FIELD_CHARS_MAX]
        exchange.access = self._relay.access.open(request_id, who, f"site:{found.entry_site}", asked)
        self._site_link.open(exchange, who, request_id, route)

    def _beat(self, exchange: Exchange) -> None:
        """Give a sign of life now and every second until the answer begins."""
        if exchange.is_over or exchange.is_begun:
            return
        exchange.tell_processing()
        self._relay.loop.call_later(HEARTBEAT_PERIOD_S, self._beat, exchange)

    def _judge(self, exchange: Exchange) -> Pass:
        head = exchange.head
        desired = self._relay.desired()
        live = self._relay.feed.live
        assert live is not None
        self._relay.check_open()
        header = head.fields.get(_PASS_FIELD)
        is_receipt = head.method == "GET" and head.path.startswith(_RECEIPTS)
        if not (is_receipt or find_endpoint(head) is not None) or header is None:
            _refuse_pass("this port takes requests of other sites' gateways, each with a pass")
        now_s = self._relay.clock.wall_s()
        keys = {
            kid: session.key for kid, (_, session) in live.sessions.items() if session.expires_at_s + SKEW_S > now_s
        }
        try:
            found = open_pass(header.decode("latin-1"), keys, now_s=now_s, skew_s=SKEW_S)
            entry_of_id = site_of_request(found.request_id)
        except Rejected as error:
            raise ApiError(ErrorCode.INVALID_KEY, error.message) from error
        self._check_ends(found, live, entry_of_id, head.path)
        judge_residency(found, desired)
        if not found.hops:
            _check_owner(desired, found.key_id, now_s)
        if found.service and not live.replicas.get(found.service):
            message = f"site {self._relay.site} has no ready replica of {found.service}"
            raise ApiError(ErrorCode.NO_REPLICA, message, retry_after_s=1.0)
        if not self._guard.admit(_guarded(found), found.attempt, found.deadline_s + SKEW_S, now_s):
            _refuse_pass("the pass was used before")
        return found

    def _check_ends(self, found: Pass, live: Live, entry_of_id: SiteId, path: str) -> None:
        """A session vouches for one pair of sites, and a pass for one request on one path."""
        partner, _ = live.sessions[found.kid]
        is_own = partner == OWN
        partner = self._relay.site if is_own else partner
        if found.serving_site != self._relay.site:
            _refuse_pass(f"the pass is for site {found.serving_site}")
        if found.entry_site != partner or entry_of_id != partner:
            _refuse_pass(f"the pass names entry {found.entry_site} under a session with {partner}")
        if found.path != path:
            _refuse_pass("the pass is for another path")
        if found.deadline_s - found.issued_at_s > LIFETIME_MAX_S:
            _refuse_pass(f"the pass lives longer than {LIFETIME_MAX_S:g} s")
        is_far = found.hops == 0 if is_own else 1 <= found.hops <= HOPS_MAX
        if not is_far or not 1 <= found.attempt <= 99:
            _refuse_pass("the pass has impossible hops or attempts")

    def _errand(self, found: Pass, endpoint: Endpoint) -> Errand:
        desired = self._relay.desired()
        priority, project_id = PriorityClass.BATCH, found.project_id
        if found.hops:
            priority = class_of_pass(found)
        is_admitted = found.hops > 0 and found.is_admitted
        if not is_admitted:
            terms = self._relay.admission.terms_of(desired, found.key_id, found.tenant_id)
            priority, project_id = lower_of(priority, terms.priority), terms.project_id
        return Errand(
            request_id=RequestId(found.request_id),
            tenant_id=found.tenant_id,
            key_id=found.key_id,
            residency=found.residency,
            data_class=judge_residency(found, desired),
            entry_site=found.entry_site,
            endpoint=endpoint,
            path="" if found.path == endpoint.value else found.path,
            first_attempt=found.attempt,
            service=found.service,
            hops=found.hops,
            is_bound=found.hops == 0,
            priority=priority,
            project_id=project_id,
            is_admitted=is_admitted,
            charge_day=found.charge_day if is_admitted else 0,
            covered_micro_won=found.covered_micro_won,
        )

    def _refuse(self, exchange: Exchange, error: ApiError) -> None:
        self._relay.meter.count_peer_refusal(error.code.value)
        fields = b"%b: %b\r\n" % (REFUSED_FIELD, error.code.value.encode())
        exchange.fail(error, fields)


def judge_residency(found: Pass, desired: Desired) -> DataClass:
    """Return the class of what was handed over, the highest that pass, key and tenant name.

    Raises:
        ApiError: 401 for a class that is not known here; 403 unless the pass and this site's own copies of the key and
            of the tenant all allow this site.
    """
    try:
        data_class = DataClass(found.data_class)
    except ValueError as error:
        raise ApiError(ErrorCode.INVALID_KEY, "the pass has a data class that is not known here") from error
    key, tenant = desired.keys_by_id.get(found.key_id), desired.tenants.get(found.tenant_id)
    for copy in (key, tenant):
        if copy is not None and copy.data_class is not None:
            data_class = stricter(data_class, copy.data_class)
    residencies = [one.residency for one in (found, key, tenant) if one is not None]
    site, policy = desired.site, desired.key_policies.get(found.key_id)
    is_barred = policy is not None and policy.sites and desired.site_name not in policy.sites
    if is_barred or site is None or not all(is_allowed(residency, data_class, site) for residency in residencies):
        message = f"the tenant's residency forbids site {desired.site_name}"
        raise ApiError(ErrorCode.RESIDENCY_VIOLATION, message)
    return data_class


def class_of_pass(found: Pass) -> PriorityClass:
    """Return the class that an entry gave a request; raises ApiError 401 for one that is not known here."""
    try:
        return PriorityClass(found.priority)
    except ValueError as error:
        raise ApiError(ErrorCode.INVALID_KEY, "the pass has a priority that is not known here") from error


def _guarded(found: Pass) -> str:
    """Return what a pass is remembered by: the site's own may ask again for a line of a batch that had no room."""
    return found.request_id if found.hops else f"{found.request_id}@{found.issued_at_s}"


def _check_owner(desired: Desired, key_id: KeyId, now_s: float) -> None:
    """Refuse what runs in the name of a key that opens nothing any more; no entry has judged it before.

    The answer names the owner, so that the site process can tell it from a pass that is not believed.
    """
    key = desired.keys_by_id.get(key_id)
    if key is None or key.is_revoked or (key.expires_at_s is not None and now_s >= key.expires_at_s):
        message = f"the API key {key_id}, in whose name this runs, is unknown, revoked or expired"
        raise ApiError(ErrorCode.INVALID_KEY, message, details={"owner": key_id})


def _refuse_pass(message: str) -> NoReturn:
    raise ApiError(ErrorCode.INVALID_KEY, message)
