"""Traces by option: one span for a request and one for each attempt, sent to an OpenTelemetry collector.

Owns the spans, their names and their attributes (OpenTelemetry's semantic conventions for HTTP and for generative AI
where those name a thing). Refuses to know prompts, answers, tenants and keys: a trace leaves the cabinet. Requests of
data class `classified` are never traced, and the context of their caller ends here: passed on, it would have engines
and peers record spans of them, and tracestate holds words of the caller's own. Without the option the context of any
other is passed on untouched, which costs one look into a dictionary.

The exporter runs in a thread of its own with a bounded queue: a collector that is away costs spans, which are counted
by the library, and never a request.
"""

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from madang.core import Unavailable
from madang.gateway.settings import GatewaySettings
from madang.policy.residency import HANDLING
from madang.wire.trace_context import (
    TRACEPARENT,
    TRACESTATE,
    TRACESTATE_BYTES_MAX,
    TraceParent,
    parse_traceparent,
)

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

    from madang.gateway.errand import Errand

QUEUE_SPANS_MAX = 8192
EXPORT_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 2.0


class RequestTrace(Protocol):
    """A request's place in a trace."""

    def fields(self) -> str:
        """Return the header lines for the upstream of the attempt under way; empty without a trace."""

    def attempt(self, target: str) -> None:
        """An attempt begins, at a replica or a site of this name."""

    def attempt_failed(self, failure: str) -> None:
        """The attempt under way ended before the first byte of its answer."""

    def end(self, status: int, details: Mapping[str, Any]) -> None:
        """The request is over; what comes later is not heard."""


class PassedTrace:
    """A caller's context that is passed on as it came."""

    __slots__ = ("_fields",)

    def __init__(self, fields: str) -> None:
        self._fields = fields

    def fields(self) -> str:
        """See RequestTrace."""
        return self._fields

    def attempt(self, target: str) -> None:
        """See RequestTrace."""

    def attempt_failed(self, failure: str) -> None:
        """See RequestTrace."""

    def end(self, status: int, details: Mapping[str, Any]) -> None:
        """See RequestTrace."""


NO_TRACE: RequestTrace = PassedTrace("")


def pass_on(fields: Mapping[bytes, bytes]) -> RequestTrace:
    """Return a trace that only carries a caller's context to the upstream."""
    parent = parse_traceparent(fields.get(TRACEPARENT))
    if parent is None:
        return NO_TRACE
    return PassedTrace(_lines(parent, fields.get(TRACESTATE, b"")))


def _lines(parent: TraceParent, state: bytes) -> str:
    lines = f"traceparent: {parent.encode().decode()}\r\n"
    if state and len(state) <= TRACESTATE_BYTES_MAX and state.isascii():
        lines += f"tracestate: {state.decode()}\r\n"
    return lines


class SpanTrace:
    """A request that is recorded: its span, and the span of the attempt under way."""

    __slots__ = ("_attempt", "_state", "_tracer", "span")

    def __init__(self, tracer: "Tracer", span: "Span", state: bytes) -> None:
        self._tracer = tracer
        self.span = span
        self._attempt: Span | None = None
        self._state = state

    def fields(self) -> str:
        """See RequestTrace."""
        context = (self._attempt or self.span).get_span_context()
        parent = TraceParent(context.trace_id, context.span_id, context.trace_flags.sampled)
        return _lines(parent, self._state)

    def attempt(self, target: str) -> None:
        """See RequestTrace."""
        from opentelemetry.trace import SpanKind, set_span_in_context

        self._attempt = self._tracer.start_span(
            "attempt", set_span_in_context(self.span), SpanKind.CLIENT, {"madang.target": target}
        )

    def attempt_failed(self, failure: str) -> None:
        """See RequestTrace."""
        if self._attempt is not None:
            _fail(self._attempt, failure)
            self._attempt.end()
            self._attempt = None

    def end(self, status: int, details: Mapping[str, Any]) -> None:
        """See RequestTrace."""
        if self._attempt is not None:
            self._attempt.end()
            self._attempt = None
        if not self.span.is_recording():
            return
        self.span.set_attributes({"http.response.status_code": status, **details})
        if status >= 500:
            _fail(self.span, str(status))
        self.span.end()


def _fail(span: "Span", error_type: str) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_attribute("error.type", error_type)
    span.set_status(Status(StatusCode.ERROR))


class Tracing:
    """Where requests get their traces; without a collector, contexts are passed on."""

    def __init__(self, settings: GatewaySettings) -> None:
        """Start the exporter when a collector is set.

        Raises:
            Unavailable: a collector is set, and the library is not installed.
        """
        self._site = settings.site
        self._provider: Any = None
        self._tracer: Tracer | None = None
        if settings.otlp_traces_url:
            self._provider = _start_exporter(settings)
            self._tracer = self._provider.get_tracer("madang.gateway")

    def begin(self, fields: Mapping[bytes, bytes], errand: "Errand") -> RequestTrace:
        """Return the trace of a request with these header fields."""
        tracer = self._tracer
        if tracer is None and TRACEPARENT not in fields:
            return NO_TRACE
        if not HANDLING[errand.data_class].is_debug_sampled:
            return NO_TRACE  # nor is the caller's context passed on: an engine or a peer might record it
        if tracer is None:
            return pass_on(fields)
        from opentelemetry.trace import SpanKind

        parent = parse_traceparent(fields.get(TRACEPARENT))
        state = b"" if parent is None else fields.get(TRACESTATE, b"")
        attributes = {
            "http.request.method": errand.endpoint.method,
            "http.route": errand.endpoint.value,
            "madang.request_id": errand.request_id,
            "madang.site": self._site,
            "madang.entry_site": errand.entry_site,
            "madang.priority": errand.priority.value,
        }
        name = f"{errand.endpoint.method} {errand.endpoint.value}"
        span = tracer.start_span(name, _context(parent), SpanKind.SERVER, attributes)
        return SpanTrace(tracer, span, state)

    def stop(self) -> None:
        """Send what is queued, within STOP_TIMEOUT_S; a collector that does not answer is left behind."""
        if self._provider is not None:
            last = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
            last.start()
            last.join(STOP_TIMEOUT_S)


def _context(parent: TraceParent | None) -> Any:
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    if parent is None:
        return Context()
    flags = TraceFlags(TraceFlags.SAMPLED if parent.is_sampled else TraceFlags.DEFAULT)
    return set_span_in_context(NonRecordingSpan(SpanContext(parent.trace_id, parent.span_id, True, flags)), Context())


def _start_exporter(settings: GatewaySettings) -> Any:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    except ImportError as error:
        raise Unavailable(
            f"otlp_traces_url is set, but {error.name} is not installed",
            next_step="install madang[tracing], or unset otlp_traces_url",
        ) from error
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(settings.trace_ratio)),
        resource=Resource.create({"service.name": "madang-gateway", "madang.site": settings.site}),
        shutdown_on_exit=False,
    )
    exporter = OTLPSpanExporter(endpoint=settings.otlp_traces_url, timeout=EXPORT_TIMEOUT_S)
    provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=QUEUE_SPANS_MAX))
    return provider
