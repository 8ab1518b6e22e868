"""One request's journey: from a whole body to an answer, over as many attempts as are allowed.

Owns the order of attempts, their numbers and what is written down about them. Refuses to choose a route (policy
does), to read an engine's answer (the legs do) and to judge who asks (the ports do). Both ports start journeys: the
tenants' port with a hop to spare, the peer port with none.

What is billed. The serving site emits one usage event for an attempt it began to serve; its id is the request id
and the attempt. The ledger bills only the highest attempt of a request. An entry gateway emits nothing for an
attempt that a peer served. But when it gives up after handing an attempt to a peer whose fate it cannot know, and
the client gets an error, it emits an event of the next attempt number, outcome `abandoned`, without tokens: so a
peer that finished the work after all is superseded, and nobody pays for an answer that nobody got. An attempt that
a replica here or another peer serves later supersedes by its number alone.
"""

from madang.core import EventId, ServiceName, make_event_id, ns_to_s
from madang.gateway.access import clear_link_error, residency_error
from madang.gateway.account import CHARGE_FIELD, NO_ACCOUNT
from madang.gateway.admission import QuotaError
from madang.gateway.engine_leg import GenerationLeg, WholeLeg
from madang.gateway.errand import AttemptFailure, Errand, Leg, Served, exhausted_error, ignore_durable, refusal_error
from madang.gateway.exchange import Exchange
from madang.gateway.feed import Desired, LiveReplica, service_of
from madang.gateway.legs import make_leg
from madang.gateway.metrics import ServiceMeter
from madang.gateway.peer_leg import REFUSED_FIELD, PeerLeg
from madang.gateway.relay import Relay, id_fields
from madang.gateway.rows import count_rows
from madang.gateway.tracing import NO_TRACE
from madang.gateway.usage_log import OnDurable
from madang.model import Outcome, Service, UsageEvent
from madang.policy.residency import HANDLING
from madang.policy.routing import Ask, Refusal, RefusalReason, Route, ToPeer, choose_route
from madang.wire.oip import InferRequest
from madang.wire.openai import ApiRequest, Endpoint, upstream_body
from madang.wire.openai_errors import ApiError, ErrorCode
from madang.wire.passes import HOPS_MAX
from madang.wire.plain_chat import PlainChat, plain_engine_body
from madang.wire.surface import read_request

ATTEMPTS_MAX = 3
"""Attempts at one request: a retry may run an inference twice, so it is bounded and counted."""
_SHED_STATUSES = frozenset((429, 503))
CLIENT_GONE_STATUS = 499
"""What logs of proxies say of a client that left; it is on no wire."""
_OUTCOME_STATUS = {
    Outcome.COMPLETED: 200,
    Outcome.CLIENT_GONE: CLIENT_GONE_STATUS,
    Outcome.UPSTREAM_FAILED: 502,
    Outcome.ABANDONED: 502,
}
_OTEL_NAMES = {
    "gen_ai_request_model": "gen_ai.request.model",
    "gen_ai_usage_input_tokens": "gen_ai.usage.input_tokens",
    "gen_ai_usage_output_tokens": "gen_ai.usage.output_tokens",
    "madang_chip": "madang.chip",
    "madang_site": "madang.served_by",
    "error_type": "error.type",
}


def unknown_model(name: str) -> ApiError:
    """Return the 404 for a service that does not exist for the tenant."""
    shown = name if len(name) <= 100 else name[:100] + "…"
    return ApiError(ErrorCode.MODEL_NOT_FOUND, f"no model '{shown}': see GET /v1/models", param="model")


def check_version(desired: Desired, service: Service, version: str) -> None:
    """Raise ApiError 404 for a version of a model that its catalog entry does not have."""
    known = desired.version_of(service)
    if version != known:
        shown = version if len(version) <= 100 else version[:100] + "…"
        message = f"model '{service.name}' has no version '{shown}'; it has {known}"
        raise ApiError(ErrorCode.MODEL_NOT_FOUND, message, param="version")


class Journey:
    """A request with a whole body and a client that waits."""

    __slots__ = (
        "_failure",
        "_has_unknown_fate",
        "_leg",
        "_route",
        "_seed",
        "_sent_ns",
        "_started_ns",
        "_started_s",
        "_tried",
        "account",
        "attempt",
        "body",
        "body_sha256",
        "errand",
        "exchange",
        "model",
        "relay",
        "request",
        "service",
        "trace",
    )

    def __init__(self, relay: Relay, exchange: Exchange, errand: Errand) -> None:
        """Prepare a journey and listen to the client from now on.

        Attributes:
            account: what it costs and holds, once it was admitted.
            attempt: number of the attempt under way.
            body: the client's, as it came.
            body_sha256: what a pass says the body's digest is; empty without a pass.
            request, service: what it asks for; None when this site may not read it.
            trace: its place in a trace.
        """
        self.relay = relay
        self.exchange = exchange
        self.errand = errand
        self.account = NO_ACCOUNT
        self.attempt = errand.first_attempt
        self.body = b""
        self.body_sha256 = b""
        self.request: ApiRequest | None = None
        self.service: Service | None = None
        self._leg: Leg | None = None
        self._route: Route | None = None
        self._tried: tuple[Route, ...] = ()
        self._failure: AttemptFailure | None = None
        self._has_unknown_fate = False
        self._started_ns = relay.clock.monotonic_ns()
        self._started_s = relay.clock.wall_s()
        self._sent_ns = self._started_ns
        self.trace = relay.tracing.begin(exchange.head.fields, errand)
        self._seed = int(errand.request_id[-16:], 16)
        exchange.listener = self

    # --- the way there

    def begin(self, body: bytes) -> None:
        """Read the body, unless it may only pass through, and make the first attempt."""
        self.body = body
        self.relay.retries.earn()
        try:
            self.relay.check_open()
            if not self.errand.is_transit:
                desired = self.relay.desired()
                request, service = self._read(desired, body)
                if self.errand.endpoint.is_metered:
                    self.account = self.relay.admission.open(desired, self.errand, request, service, len(body))
        except ApiError as error:
            self.answer_error(error)
            return
        self._next()

    def _read(self, desired: Desired, body: bytes) -> tuple[ApiRequest, Service]:
        errand = self.errand
        request = self.request = read_request(errand.endpoint, body, self.exchange.head)
        if errand.service and request.service != errand.service:
            raise ApiError(ErrorCode.INVALID_REQUEST, "the body names another model than the pass", param="model")
        service = self.service = service_of(desired, request.service, errand.tenant_id, errand.key_id)
        if service is None:
            raise unknown_model(request.service)
        if self.exchange.access is not None:
            self.exchange.access.service = service.name
        task = desired.task_of(service)
        if task is not None and task is not errand.endpoint.task:
            message = f"model '{service.name}' does {task}; {errand.endpoint} is for {errand.endpoint.task}"
            raise ApiError(ErrorCode.INVALID_REQUEST, message, param="model")
        if request.version:
            check_version(desired, service, request.version)
        if type(request.form) is InferRequest:
            count_rows(desired.model_of(service), request.form)  # refuses more than can be counted
        return request, service

    def _next(self) -> None:
        """Make the next attempt, or answer that there is none."""
        relay, errand = self.relay, self.errand
        if self._tried and (len(self._tried) >= ATTEMPTS_MAX or not relay.may_retry()):
            self._give_up(None)
            return
        desired, live = relay.feed.desired, relay.feed.live
        assert desired is not None
        assert live is not None
        name = self._service_name
        ask = Ask(
            service=name,
            residency=errand.residency,
            data_class=errand.data_class,
            hops_left=0 if errand.is_bound else HOPS_MAX - errand.hops,
            is_local_barred=errand.is_transit,
            priority=errand.priority,
        )
        route = choose_route(ask, relay.view(desired, live, name), self._tried, self._seed)
        if isinstance(route, Refusal):
            self._give_up(route)
            return
        self._route = route
        if isinstance(route, ToPeer):
            self._leg = PeerLeg(self, live.peers[route.site])
        else:
            replica = live.replicas_by_id[route.replica_id]
            if self.request is not None and not self.request.is_plain:
                self._leg = make_leg(self, replica)
            else:
                self._leg = WholeLeg(self, replica) if self._is_asked_whole(replica) else GenerationLeg(self, replica)
        self._sent_ns = relay.clock.monotonic_ns()
        self.trace.attempt(route.site if isinstance(route, ToPeer) else route.replica_id)
        self._leg.start()

    def attempt_failed(self, failure: AttemptFailure, reason: str) -> None:
        """An attempt ended before the first byte of its answer: try another; called by the leg."""
        route = self._route
        assert route is not None
        self._leg = None
        self._tried = (*self._tried, route)
        self._failure = failure
        self.trace.attempt_failed(failure.value)
        self.relay.meter.count_retry(self._service_name, failure.value)
        if failure is not AttemptFailure.REFUSED:
            self.relay.note_failure(route, failure.value, reason)
        if isinstance(route, ToPeer) and failure.may_have_run and self.errand.endpoint.is_metered:
            self._has_unknown_fate = True
        if not self.errand.is_from_peer:
            self.attempt += 1
        self._next()

    def attempt_broke(self, failure: AttemptFailure, reason: str) -> None:
        """An attempt ended after the first byte of its answer; called by the leg."""
        if self._route is not None:
            self.relay.note_failure(self._route, failure.value, reason)

    def attempt_answers(self) -> None:
        """The first byte of an attempt's answer came; called by the leg."""
        if self._route is not None:
            self.relay.note_success(self._route)

    # --- the way back

    def _give_up(self, refusal: Refusal | None) -> None:
        self.refuse(self._final_error(refusal))

    def refuse(self, error: ApiError) -> None:
        """Answer that nobody serves it here, and supersede what an earlier attempt may have done."""
        if self._has_unknown_fate:
            self.abandon(error)
        else:
            self.answer_error(error, is_elsewhere_better=True)

    def _final_error(self, refusal: Refusal | None) -> ApiError:
        name = self._service_name
        if self._failure is not None:
            return exhausted_error(name, self.relay.site, self._failure, len(self._tried))
        assert refusal is not None
        if refusal.reason is RefusalReason.RESIDENCY:
            return residency_error(self.relay.desired(), self.errand.residency, self.errand.data_class)
        if refusal.reason is RefusalReason.CLEAR_LINK:
            self.relay.meter.count_clear_link(refusal.sites, self.errand.data_class)
            return clear_link_error(self.relay.desired(), name, self.errand.data_class, refusal)
        return refusal_error(name, self.relay.site, refusal)

    def abandon(self, error: ApiError) -> None:
        """Supersede whatever a peer may have done, then answer with an error."""
        if not self.errand.endpoint.is_metered:
            self.answer_error(error)
            return
        self.record(Served(outcome=Outcome.ABANDONED), lambda reason: self.answer_error(error, has_event=not reason))

    def answer_error(self, error: ApiError, *, is_elsewhere_better: bool = False, has_event: bool = False) -> None:
        """Answer with an error; a peer is told when it should ask somebody else.

        Args:
            error: what to say.
            is_elsewhere_better: whether a peer should ask somebody else.
            has_event: whether the present attempt was written down, so that it has a receipt.
        """
        self.account.close(0, 0)  # unless an event has closed it
        fields = id_fields(self.errand.request_id) + self.account.fields
        if isinstance(error, QuotaError):
            fields += error.fields
        if has_event:
            fields += b"x-madang-site: %b\r\nx-madang-receipt: %b\r\n" % (
                self.relay.site.encode(),
                self.event_id.encode(),
            )
        if is_elsewhere_better and self.errand.is_from_peer:
            fields += b"%b: %b\r\n" % (REFUSED_FIELD, error.code.value.encode())
        self.count_answer(error.status, "")
        if error.status in _SHED_STATUSES:
            priority = self.errand.priority
            self.relay.meter.count_shed(self._service_name, priority, error.code.value)
        self.tell_end(error.status, error_type=error.code.value)
        self.exchange.fail(error, fields)

    def count_answer(self, status: int, site: str, chip_kind: str = "") -> None:
        """Count an answer in the metrics, by where it was served."""
        errand = self.errand
        service, priority = self._service_name, errand.priority
        self.relay.meter.count_request(errand.endpoint, status, site, service, chip_kind, priority)

    def tell_end(self, status: int, **details: str | float) -> None:
        """The request is over: end its trace, and say it in the log when it is among those that are told.

        Args:
            status: as the client got it, or 499 when it left before.
            details: by the names of OpenTelemetry's conventions, with `_` for `.`.
        """
        self._leg = None
        trace, relay = self.trace, self.relay
        if trace is NO_TRACE and not relay.settings.debug_ratio:
            return
        details["gen_ai_request_model"] = self._service_name
        trace.end(status, {_OTEL_NAMES.get(name, name): value for name, value in details.items()})
        if not HANDLING[self.errand.data_class].is_debug_sampled:
            return
        took_s = ns_to_s(relay.clock.monotonic_ns() - self._started_ns)
        relay.tell(
            self._seed,
            request_id=self.errand.request_id,
            endpoint=self.errand.endpoint.value,
            status=status,
            attempt=self.attempt,
            took_s=took_s,
            **details,
        )

    @property
    def _service_name(self) -> str:
        return "" if self.service is None else self.service.name

    def meter_at(self, replica: LiveReplica) -> ServiceMeter:
        """Return where what a replica does for this request is counted."""
        return self.relay.meter.of(self._service_name, replica.replica.chip_kind, self.errand.priority)

    def _is_asked_whole(self, replica: LiveReplica) -> bool:
        """Return whether an engine is asked for its answer in one piece."""
        request = self.request
        assert request is not None
        is_whole = replica.has_unstreamed_abort and request.is_plain and not request.is_stream
        return is_whole or request.endpoint is Endpoint.EMBEDDINGS

    def engine_body(self, *, is_whole: bool) -> bytes:
        """Return what an engine is sent, to answer in one piece or in a stream; raises ApiError when it cannot be."""
        assert self.request is not None
        assert self.service is not None
        plain = self.request.form
        if type(plain) is PlainChat:
            return plain_engine_body(plain, self.service, is_whole=is_whole)
        return upstream_body(self.request, self.service, is_whole=is_whole)

    @property
    def event_id(self) -> EventId:
        """The id of the event that the attempt under way will have."""
        return make_event_id(self.errand.request_id, self.attempt)

    @property
    def started_ns(self) -> int:
        """When the journey began, monotonic."""
        return self._started_ns

    def record(self, served: Served, on_durable: OnDurable) -> None:
        """Write an attempt down; `on_durable` is told once that is done, or why it is not."""
        relay, errand, service, replica = self.relay, self.errand, self.service, served.replica
        self._leg = None  # it is over, but for the words that wait until this is durable
        if served.outcome is Outcome.COMPLETED:
            self.exchange.tell_access(200)  # written before the event is durable, so before the answer is complete
        ended_ns = relay.clock.monotonic_ns()
        ttft_ns = None if served.first_token_ns is None else served.first_token_ns - self._started_ns
        charge = self._settle(served)
        event = UsageEvent(
            event_id=self.event_id,
            request_id=errand.request_id,
            attempt=self.attempt,
            tenant_id=errand.tenant_id,
            key_id=errand.key_id,
            service=ServiceName("") if service is None else service.name,
            model="" if service is None else service.model,
            endpoint=errand.endpoint,
            entry_site=errand.entry_site,
            site=relay.site,
            replica_id="" if replica is None else replica.replica.replica_id,
            chip_kind="" if replica is None else replica.replica.chip_kind,
            outcome=served.outcome,
            prompt_tokens=served.count.prompt_tokens,
            completion_tokens=served.count.completion_tokens,
            is_estimated=served.count.is_estimated,
            is_streamed=self.request is not None and self.request.is_stream,
            hops=errand.hops,
            project_id=errand.project_id,
            priority=errand.priority,
            tariff_id=self.account.tariff_id,
            charge_micro_won=charge,
            overdraw_micro_won=self.account.overdraw(charge),
            started_at_s=self._started_s,
            ttft_s=None if ttft_ns is None else ns_to_s(ttft_ns),
            duration_s=ns_to_s(ended_ns - self._started_ns),
            audio_ms=served.audio_ms,
            images=served.images,
            samples=served.samples,
        )
        if replica is not None:
            self._measure(event, self.meter_at(replica))
            self.tell_end(
                _OUTCOME_STATUS[event.outcome],
                gen_ai_usage_input_tokens=event.prompt_tokens,
                gen_ai_usage_output_tokens=event.completion_tokens,
                madang_chip=event.chip_kind,
            )
        relay.usage.append(event, on_durable)

    def _settle(self, served: Served) -> int:
        """Return what an attempt costs, settled here and, for a peer, told with the end of the answer."""
        count, account = served.count, self.account
        charge = account.charge(
            served.outcome,
            count.prompt_tokens,
            count.completion_tokens,
            served.audio_ms,
            served.images,
            served.samples,
        )
        tokens = count.prompt_tokens + count.completion_tokens
        account.close(charge, tokens)
        if self.errand.is_admitted:
            self.exchange.tail = b"%b: %d %d\r\n" % (CHARGE_FIELD, charge, tokens)
        return charge

    def _measure(self, event: UsageEvent, meter: ServiceMeter) -> None:
        meter.prompt_tokens += event.prompt_tokens
        meter.completion_tokens += event.completion_tokens
        meter.queue.observe(ns_to_s(self._sent_ns - self._started_ns))
        if event.ttft_s is not None:
            meter.ttft.observe(event.ttft_s)
            if event.completion_tokens > 1:
                meter.tpot.observe((event.duration_s - event.ttft_s) / (event.completion_tokens - 1))
        if event.outcome is Outcome.COMPLETED:
            self.relay.learn_duration(event.service, event.duration_s)

    def supersede_if_unknown(self) -> None:
        """The client left while nobody serves it: an earlier attempt of unknown fate must not be billed."""
        if self._has_unknown_fate:
            self.record(Served(outcome=Outcome.ABANDONED), ignore_durable)

    # --- the client's side

    def on_gone(self) -> None:
        """The client left before its answer was complete."""
        self.relay.meter.clients_gone += 1
        leg, self._leg = self._leg, None
        if leg is not None:
            leg.on_gone()
        self.account.close(0, 0)
        self.trace.end(CLIENT_GONE_STATUS, {})  # where the leg has not said more

    def on_writable(self, is_writable: bool) -> None:
        """Pass the client's pace on to the upstream."""
        if self._leg is not None:
            self._leg.on_writable(is_writable)
