"""The worker's admin port: health, readiness and metrics, on the loopback side, never on the tenants' port."""

from collections.abc import Callable

import msgspec

from madang.gateway.exchange import JSON_TYPE, Exchange
from madang.gateway.feed import FeedWatcher
from madang.gateway.metrics import Meter
from madang.gateway.usage_log import UsageLog
from madang.wire.openai_errors import ApiError, ErrorCode

_TEXT_TYPE = b"content-type: text/plain; version=0.0.4; charset=utf-8\r\n"


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """What `/readyz` says; `reasons` is empty when ready.

    Attributes:
        warnings: what somebody should look at though requests are taken.
        feed_age_s: age of the live feed; a stale one is told and does not make the worker unready.
    """

    is_ready: bool
    reasons: list[str]
    warnings: list[str]
    generation: int | None
    feed_age_s: float | None


class AdminPort:
    """Handler of the admin port."""

    def __init__(
        self,
        feed: FeedWatcher,
        usage: UsageLog,
        meter: Meter,
        is_stopping: Callable[[], bool],
        warnings: Callable[[], list[str]] = list,
    ) -> None:
        self._feed = feed
        self._usage = usage
        self._meter = meter
        self._is_stopping = is_stopping
        self._warnings = warnings

    def on_head(self, exchange: Exchange) -> None:
        """Answer from the head alone."""
        head = exchange.head
        if head.path not in ("/healthz", "/readyz", "/metrics"):
            exchange.fail(ApiError(ErrorCode.INVALID_REQUEST, f"there is nothing at {head.path[:100]}", status=404))
        elif head.method not in ("GET", "HEAD"):
            exchange.fail(ApiError(ErrorCode.INVALID_REQUEST, "only GET", status=405, allow="GET, HEAD"))
        elif head.path == "/healthz":
            exchange.respond(200, JSON_TYPE, b'{"status":"ok"}')
        elif head.path == "/metrics":
            self._meter.is_ready = self.readiness().is_ready
            exchange.respond(200, _TEXT_TYPE, self._meter.render())
        else:
            state = self.readiness()
            exchange.respond(200 if state.is_ready else 503, JSON_TYPE, msgspec.json.encode(state))

    def on_body(self, exchange: Exchange, body: bytes) -> None:
        """Never called: every head is answered."""

    def readiness(self) -> Readiness:
        """Return whether the worker takes requests, and why not."""
        reasons = []
        if self._feed.desired is None:
            reasons.append("no snapshot of the site's desired state yet")
        if self._feed.live is None:
            reasons.append("no live feed of the site yet")
        if self._usage.failure:
            reasons.append(self._usage.failure)
        if self._is_stopping():
            reasons.append("stopping")
        age_s = self._feed.age_s()
        return Readiness(
            is_ready=not reasons,
            reasons=reasons,
            warnings=self._warnings(),
            generation=None if self._feed.desired is None else self._feed.desired.generation,
            feed_age_s=None if age_s is None else round(age_s, 3),
        )
