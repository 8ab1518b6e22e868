"""The tenants' port: what a tenant may ask for, and who may ask here at all.

Owns the order in which a request is judged: path, key, residency, from the head alone; only then is a byte of its
body taken. Refuses to serve: journeys do.
"""

from urllib.parse import unquote

from madang.core import RequestId
from madang.gateway.access import check_entry, identify, owner_of
from madang.gateway.access_log import FIELD_CHARS_MAX
from madang.gateway.admission import PRIORITY_FIELD, Terms, priority_of
from madang.gateway.errand import Errand
from madang.gateway.exchange import JSON_TYPE, Exchange
from madang.gateway.feed import Caller, Desired, service_of
from madang.gateway.journey import Journey, unknown_model
from madang.gateway.model_cards import make_card
from madang.gateway.nearest import SITES_PATH, NearestSites
from madang.gateway.oip_front import OipFront
from madang.gateway.once import IDEMPOTENCY_FIELD, OnceJourney, OnceTable
from madang.gateway.relay import Relay, id_fields
from madang.gateway.site_leg import SiteLeg, SiteLink, SiteRoute, find_site_route
from madang.policy.routing import Ask, Refusal, RefusalReason, choose_route
from madang.wire.oip_paths import OipQuestion, OipTarget, find_target, is_oip_path
from madang.wire.openai import Endpoint
from madang.wire.openai_answers import encode_model, encode_models
from madang.wire.openai_errors import ApiError, ErrorCode
from madang.wire.passes import HOPS_MAX

MODELS_PATH = "/v1/models"
_ENDPOINTS = {endpoint.value: endpoint for endpoint in Endpoint if not is_oip_path(endpoint.value)}


class TenantPort:
    """Handler of the tenants' port."""

    def __init__(self, relay: Relay, site_link: SiteLink) -> None:
        self._relay = relay
        self._site_link = site_link
        self._nearest = NearestSites(relay)
        self._oip = OipFront(relay)
        self._once = OnceTable(relay.settings.feed_dir / "once", relay.clock)

    def on_head(self, exchange: Exchange) -> None:
        """Judge a request by its head; what may go on gets a journey."""
        request_id = self._relay.new_request_id()
        label = "other"
        try:
            label, endpoint = _find(exchange)
            desired = self._relay.desired()
            authorization = exchange.head.fields.get(b"authorization")
            caller = identify(desired, authorization, self._relay.clock.wall_s())
            asked = exchange.head.path[:FIELD_CHARS_MAX] if isinstance(endpoint, SiteRoute) else label
            exchange.access = self._relay.access.open(request_id, caller, exchange.address, asked)
            if self._nearest.answer(exchange, desired, caller, request_id, label):
                return
            check_entry(desired, caller)
            if isinstance(endpoint, OipTarget) and isinstance(endpoint.asked, OipQuestion):
                self._oip.answer(exchange, desired, caller, request_id, endpoint, self._is_served)
                return
            terms = self._relay.admission.check(desired, caller)
            if endpoint is None:
                body = self._models(desired, caller, exchange.head.path)
                self._relay.meter.count_request(label, 200, self._relay.site)
                exchange.respond(200, JSON_TYPE + id_fields(request_id), body)
                return
            if exchange.head.fields.get(b"content-encoding", b"identity").lower() != b"identity":
                raise ApiError(ErrorCode.UNSUPPORTED, "a compressed request body is not supported here")
            if isinstance(endpoint, SiteRoute):
                self._site_link.open(exchange, caller, request_id, endpoint)
                return
            self._relay.check_open()
            errand = self._errand(request_id, caller, endpoint, terms, exchange)
            if IDEMPOTENCY_FIELD in exchange.head.fields:
                OnceJourney(self._relay, exchange, errand, self._once)
            else:
                Journey(self._relay, exchange, errand)
        except ApiError as error:
            if exchange.access is None:
                owner = owner_of(self._relay.feed.desired, exchange.head.fields.get(b"authorization"))
                self._relay.access.refuse_unknown(request_id, owner, exchange.address, label, error.status)
            self._relay.meter.count_request(label, error.status, "")
            is_close = error.code is ErrorCode.RESIDENCY_VIOLATION
            exchange.fail(error, id_fields(request_id), is_close=is_close)

    def on_body(self, exchange: Exchange, body: bytes) -> None:
        """Send a request on its journey."""
        journey = exchange.listener
        if isinstance(journey, SiteLeg):
            journey.on_end(body)
            return
        assert isinstance(journey, Journey)
        journey.begin(body)

    def _errand(
        self, request_id: RequestId, caller: Caller, target: Endpoint | OipTarget, terms: Terms, exchange: Exchange
    ) -> Errand:
        endpoint = target if isinstance(target, Endpoint) else target.asked
        assert isinstance(endpoint, Endpoint)
        path = exchange.head.path
        return Errand(
            request_id=request_id,
            tenant_id=caller.tenant_id,
            key_id=caller.key_id,
            residency=caller.residency,
            data_class=caller.data_class,
            entry_site=self._relay.site,
            endpoint=endpoint,
            is_transit=caller.is_transit,
            path="" if path == endpoint.value else path,
            priority=priority_of(exchange.head.fields.get(PRIORITY_FIELD), terms.priority),
            project_id=terms.project_id,
        )

    def _models(self, desired: Desired, caller: Caller, path: str) -> bytes:
        if path == MODELS_PATH:
            names = sorted(name for name in desired.services if self._is_served(desired, caller, name))
            return encode_models([make_card(desired, self._relay.feed.live, caller, name) for name in names])
        name = unquote(path.removeprefix(MODELS_PATH + "/"))
        if not self._is_served(desired, caller, name):
            raise unknown_model(name)
        return encode_model(make_card(desired, self._relay.feed.live, caller, name))

    def _is_served(self, desired: Desired, caller: Caller, name: str) -> bool:
        """Return whether the tenant may use a service and somebody legal serves it now, if only from a queue."""
        live = self._relay.feed.live
        if live is None or service_of(desired, name, caller.tenant_id, caller.key_id) is None:
            return False
        ask = Ask(
            service=name,
            residency=caller.residency,
            data_class=caller.data_class,
            hops_left=HOPS_MAX,
            is_local_barred=caller.is_transit,
        )
        route = choose_route(ask, self._relay.view(desired, live, name), (), 0)
        return not isinstance(route, Refusal) or route.reason is RefusalReason.OVERLOADED


def _find(exchange: Exchange) -> tuple[str, Endpoint | OipTarget | SiteRoute | None]:
    """Return a path's name in metrics and what it leads to, None for the list of models; raises ApiError 404 or 405."""
    head = exchange.head
    endpoint = _ENDPOINTS.get(head.path)
    if endpoint is not None:
        if head.method != "POST":
            raise ApiError(ErrorCode.INVALID_REQUEST, f"{head.path} takes POST", status=405, allow="POST")
        return endpoint.value, endpoint
    if is_oip_path(head.path):
        target = find_target(head)
        return target.asked.value, target
    if head.path == MODELS_PATH or (head.path.startswith(MODELS_PATH + "/") and len(head.path) > len(MODELS_PATH) + 1):
        if head.method not in ("GET", "HEAD"):
            raise ApiError(ErrorCode.INVALID_REQUEST, f"{MODELS_PATH} takes GET", status=405, allow="GET, HEAD")
        return MODELS_PATH, None
    if head.path == SITES_PATH:
        if head.method not in ("GET", "HEAD"):
            raise ApiError(ErrorCode.INVALID_REQUEST, f"{SITES_PATH} takes GET", status=405, allow="GET, HEAD")
        return SITES_PATH, None
    route = find_site_route(head.path, head.method)
    if route is not None:
        return route.prefix, route
    shown = head.path if len(head.path) <= 100 else head.path[:100] + "…"
    raise ApiError(ErrorCode.INVALID_REQUEST, f"there is nothing at {shown}", status=404)
