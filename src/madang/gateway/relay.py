"""What every request of a worker shares, and who failed a moment ago.

Owns nothing itself: it hands the parts to the journeys and builds the view that routing looks at. Refuses to
choose: `madang.policy.routing` does.
"""

import asyncio

import msgspec

from madang.core import Clock, Entropy, EventId, ReplicaId, RequestId, SiteId, draw_unit, make_request_id
from madang.gateway.access_log import AccessLog
from madang.gateway.admission import Admission
from madang.gateway.feed import Desired, FeedWatcher, Live
from madang.gateway.inflight import InFlightTable
from madang.gateway.metrics import Meter
from madang.gateway.settings import GatewaySettings
from madang.gateway.target import TimeLimits
from madang.gateway.tracing import Tracing
from madang.gateway.upstream import UpstreamPool
from madang.gateway.usage_log import UsageLog
from madang.machine.retry_budget import RetryBudget
from madang.model import PriorityClass
from madang.policy.routing import PeerChoice, ReplicaChoice, Route, ToPeer, ToReplica, View
from madang.runtime.telemetry import EventLog
from madang.wire.openai_errors import ApiError, ErrorCode

SUSPECT_S = 2.0
"""How long a replica or peer that just failed stands behind the others; about an engine's restart."""
SUSPECTS_MAX = 1024
LOG_RETRY_S = 2.0
_ID_BYTES, _IDS_PER_DRAW = 10, 64
"""Chance in a request id, and how many are drawn from the system at once: a draw costs as much as an id."""
START_RETRY_S = 1.0
_DURATION_WEIGHT = 0.05
"""Of one request in the mean of durations: about the last twenty count."""


class Suspects:
    """Routes that failed a moment ago. They stay possible: only the order changes."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._until: dict[Route, float] = {}

    def add(self, route: Route) -> bool:
        """Note a failure; returns whether it is news."""
        is_news = route not in self._until
        if len(self._until) >= SUSPECTS_MAX:
            self._until.clear()  # forgetting costs one more failed attempt each
        self._until[route] = self._loop.time() + SUSPECT_S
        return is_news

    def clear(self, route: Route) -> bool:
        """Note a success; returns whether it is news."""
        return bool(self._until) and self._until.pop(route, None) is not None

    def is_suspect(self, route: Route) -> bool:
        """Return whether a route failed less than SUSPECT_S ago."""
        until = self._until.get(route)
        if until is None:
            return False
        if until < self._loop.time():
            del self._until[route]
            return False
        return True

    def __bool__(self) -> bool:
        return bool(self._until)


class Relay:
    """The parts of one worker, as its requests need them."""

    def __init__(
        self,
        *,
        settings: GatewaySettings,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        entropy: Entropy,
        feed: FeedWatcher,
        pool: UpstreamPool,
        inflight: InFlightTable,
        usage: UsageLog,
        access: AccessLog,
        meter: Meter,
        tracing: Tracing,
        admission: Admission,
        log: EventLog,
    ) -> None:
        """Keep the parts; see their modules."""
        self.settings = settings
        self.loop = loop
        self.clock = clock
        self.entropy = entropy
        self.feed = feed
        self.pool = pool
        self.inflight = inflight
        self.usage = usage
        self.access = access
        self.meter = meter
        self.tracing = tracing
        self.admission = admission
        self._log = log
        self._chance = b""
        self._durations_s: dict[str, float] = {}
        self.suspects = Suspects(loop)
        self.retries = RetryBudget()
        self.site = SiteId(settings.site)
        self.limits = TimeLimits(settings.first_byte_timeout_s, settings.stall_timeout_s)

    def new_request_id(self) -> RequestId:
        """Return a fresh request id that names this site as the entry."""
        if not self._chance:
            self._chance = self.entropy.token_bytes(_ID_BYTES * _IDS_PER_DRAW)
        drawn, self._chance = self._chance[:_ID_BYTES], self._chance[_ID_BYTES:]
        return make_request_id(self.site, int(self.clock.wall_s() * 1000), drawn)

    def desired(self) -> Desired:
        """Return the newest snapshot; raises ApiError 503 before the first one."""
        if self.feed.desired is None or self.feed.live is None:
            raise ApiError(
                ErrorCode.NO_REPLICA,
                f"site {self.site} is starting: its gateway has no snapshot yet",
                retry_after_s=START_RETRY_S,
            )
        return self.feed.desired

    def check_open(self) -> None:
        """Raise ApiError 429 when new work must not be taken: what it uses could not be written down."""
        if self.usage.failure or self.access.failure:
            raise log_error(self.usage.failure or self.access.failure)
        live = self.feed.live
        if live is not None and live.admission_closed_reason:
            raise ApiError(
                ErrorCode.OVERLOADED,
                f"site {self.site} takes no new requests: {live.admission_closed_reason}",
                retry_after_s=LOG_RETRY_S,
            )

    def view(self, desired: Desired, live: Live, service: str) -> View:
        """Return the world as routing needs it for one service; cost linear in its replicas."""
        suspects = self.suspects
        replicas = []
        for live_replica in live.replicas.get(service, ()):
            replica = live_replica.replica
            replica_id = ReplicaId(replica.replica_id)
            is_suspect = bool(suspects) and suspects.is_suspect(ToReplica(replica_id))
            in_flight = self.inflight.total(replica.slot)
            replicas.append(ReplicaChoice(replica_id, replica.slots, in_flight, is_suspect, replica.data_class_max))
        peers = live.choices.get(service, ())
        if suspects:
            peers = tuple(map(self._judge, peers))
        duration_s = self._durations_s.get(service, 0.0)
        if not live.envelope_until_ns:
            return View(
                site=self.site, sites=desired.sites, replicas=tuple(replicas), peers=peers, duration_s=duration_s
            )
        has_run_out = self.clock.monotonic_ns() > live.envelope_until_ns
        return View(
            site=self.site,
            sites=desired.sites,
            replicas=tuple(replicas),
            peers=peers,
            duration_s=duration_s,
            shed_from=live.shed_from or (PriorityClass.BATCH if has_run_out else None),
            is_spilling=live.is_spilling or has_run_out,
        )

    def may_retry(self) -> bool:
        """Return whether one more attempt may be made for a request whose attempt failed, and count it."""
        is_allowed = self.retries.take(self.loop.time())
        self.meter.retries_refused += not is_allowed
        return is_allowed

    def learn_duration(self, service: str, duration_s: float) -> None:
        """Remember how long requests of a service take of late; the catalog bounds how many services there are."""
        known_s = self._durations_s.get(service, duration_s)
        self._durations_s[service] = known_s + _DURATION_WEIGHT * (duration_s - known_s)

    def tell(self, seed: int, **facts: object) -> None:
        """Say a request in the log when it is among the share that is; its seed decides, so all its lines are."""
        if draw_unit(seed) < self.settings.debug_ratio:
            self._log.info("gateway_request", **facts)

    def note_failure(self, route: Route, failure: str, reason: str) -> None:
        """Put a route behind the others for a while, and say so when it is news."""
        if self.suspects.add(route):
            self._log.warning("gateway_route_failing", route=_name(route), failure=failure, reason=reason)

    def note_success(self, route: Route) -> None:
        """Believe a route again, and say so when it is news."""
        if self.suspects.clear(route):
            self._log.info("gateway_route_answers", route=_name(route))

    def _judge(self, peer: PeerChoice) -> PeerChoice:
        if not self.suspects.is_suspect(ToPeer(peer.site)):
            return peer
        return msgspec.structs.replace(peer, is_suspect=True)


def _name(route: Route) -> str:
    return f"site {route.site}" if isinstance(route, ToPeer) else f"replica {route.replica_id}"


def log_error(reason: str) -> ApiError:
    """Return the 429 for a usage log that cannot be written."""
    return ApiError(
        ErrorCode.OVERLOADED, f"usage cannot be recorded, so nothing is served: {reason}", retry_after_s=LOG_RETRY_S
    )


def id_fields(request_id: RequestId) -> bytes:
    """Return the header line that names a request."""
    return b"x-request-id: %b\r\n" % request_id.encode()


def origin_fields(request_id: RequestId, site: SiteId, chip_kind: str, event_id: EventId) -> bytes:
    """Return the header lines that say who served a request."""
    return (
        f"x-request-id: {request_id}\r\nx-madang-site: {site}\r\n"
        f"x-madang-chip: {chip_kind}\r\nx-madang-receipt: {event_id}\r\n"
    ).encode()
