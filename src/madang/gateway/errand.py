"""What a journey and its legs agree on: who is served, how an attempt fails, and what an attempt can be told.

Owns these shapes and the words in which a failure reaches a client. Refuses to act.
"""

from enum import StrEnum
from typing import Protocol

import msgspec

from madang.core import KeyId, ProjectId, RequestId, SiteId, TenantId
from madang.gateway.feed import LiveReplica
from madang.model import DataClass, Outcome, PriorityClass, Residency
from madang.policy.routing import Refusal, RefusalReason
from madang.wire.openai import Endpoint
from madang.wire.openai_answers import TokenCount
from madang.wire.openai_errors import ApiError, ErrorCode

NO_REPLICA_RETRY_S = 5.0
HELD_RETRY_S = 1.0


class Errand(msgspec.Struct, frozen=True, kw_only=True):
    """A request before its body is known.

    Attributes:
        first_attempt: number of the first attempt made here.
        service: what the body must name, when the pass of a peer says so; else empty.
        hops: gateways passed before this one.
        is_transit: the body may not be read here.
        is_bound: no other site is asked, whatever residency allows.
        priority: its class.
        path: what was asked, where that names more than the endpoint; else empty.
        project_id: whose budget it uses; empty for none.
        is_admitted: a peer has judged limits and budgets, and pays.
        charge_day, covered_micro_won: as that peer's pass has them; see `madang.wire.passes`.
    """

    request_id: RequestId
    tenant_id: TenantId
    key_id: KeyId
    residency: Residency
    data_class: DataClass
    entry_site: SiteId
    endpoint: Endpoint
    first_attempt: int = 1
    service: str = ""
    hops: int = 0
    is_transit: bool = False
    is_bound: bool = False
    priority: PriorityClass = PriorityClass.INTERACTIVE
    project_id: ProjectId = ProjectId("")
    is_admitted: bool = False
    charge_day: int = 0
    covered_micro_won: int = -1
    path: str = ""

    @property
    def asked_path(self) -> str:
        """The path under which an upstream is asked the same."""
        return self.path or self.endpoint.value

    @property
    def is_from_peer(self) -> bool:
        """Whether a peer's gateway is the client."""
        return self.hops > 0


NOTHING = TokenCount(0, 0, False)


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """What a leg knows of an attempt that ended, for its usage event."""

    outcome: Outcome
    count: TokenCount = NOTHING
    replica: LiveReplica | None = None
    first_token_ns: int | None = None
    audio_ms: int = 0
    images: int = 0
    samples: int = 0


def ignore_durable(_reason: str) -> None:
    """Wait for nothing: no byte hangs on this event."""


class AttemptFailure(StrEnum):
    """Why an attempt ended before the first byte of its answer."""

    CONNECT = "connect"
    CLOSED = "closed"
    TIMEOUT = "timeout"
    PROTOCOL = "protocol"
    STATUS = "status"
    LOADING = "loading"
    NO_SESSION = "no_session"
    REFUSED = "refused"
    SILENT = "silent"

    @property
    def may_have_run(self) -> bool:
        """Whether a peer may have done the work all the same."""
        return self not in (AttemptFailure.CONNECT, AttemptFailure.NO_SESSION, AttemptFailure.REFUSED)


_BY_FAILURE = {
    AttemptFailure.TIMEOUT: ErrorCode.TIMEOUT,
    AttemptFailure.CLOSED: ErrorCode.UPSTREAM_FAILED,
    AttemptFailure.PROTOCOL: ErrorCode.UPSTREAM_FAILED,
    AttemptFailure.STATUS: ErrorCode.UPSTREAM_FAILED,
}


def exhausted_error(service: str, site: SiteId, failure: AttemptFailure, attempts: int) -> ApiError:
    """Return the error for a request whose every attempt failed, by the last of them."""
    code = _BY_FAILURE.get(failure, ErrorCode.NO_REPLICA)
    tried = "attempt" if attempts == 1 else f"{attempts} attempts, the last of them"
    return ApiError(
        code,
        f"no answer from {service or 'any legal site'} by way of site {site}: {tried} failed ({failure})",
        retry_after_s=NO_REPLICA_RETRY_S if code is ErrorCode.NO_REPLICA else None,
    )


def refusal_error(service: str, site: SiteId, refusal: Refusal) -> ApiError:
    """Return the error for a request that nobody is asked to serve; residency and clear links have their own."""
    assert refusal.reason not in (RefusalReason.RESIDENCY, RefusalReason.CLEAR_LINK)
    what = service or "this request"
    if refusal.reason is RefusalReason.OVERLOADED:
        message = f"every replica of {what} that site {site} may use is full"
        return ApiError(ErrorCode.OVERLOADED, message, retry_after_s=refusal.retry_after_s)
    message = f"no replica of {what} is ready at site {site} or at another site that the tenant's residency allows"
    return ApiError(ErrorCode.NO_REPLICA, message, retry_after_s=refusal.retry_after_s)


def held_error() -> ApiError:
    """Return the 503 for an answer that cannot be kept until it is whole."""
    message = "too many answers are being held here until they are whole; try again, or ask for a stream"
    return ApiError(ErrorCode.OVERLOADED, message, status=503, retry_after_s=HELD_RETRY_S)


class Leg(Protocol):
    """One attempt under way."""

    def start(self) -> None:
        """Send it."""

    def on_gone(self) -> None:
        """The client left: stop the upstream at once and write down what was used."""

    def on_writable(self, is_writable: bool) -> None:
        """The client can or cannot take more."""
