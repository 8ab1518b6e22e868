"""The usage event: what one attempt to serve one request consumed. No content, ever.

The serving site emits it. Its id is the request id and the attempt; of several attempts at one request the
last is billed, since an entry gateway moves on only after giving up on the one before.
"""

from enum import StrEnum

import msgspec

from madang.core import EventId, KeyId, ProjectId, RequestId, ServiceName, SiteId, TenantId
from madang.model.priority import PriorityClass


class Outcome(StrEnum):
    """How an attempt ended."""

    __hash__ = str.__hash__  # Enum's own is a call of Python for each look-up

    COMPLETED = "completed"
    CLIENT_GONE = "client_gone"
    UPSTREAM_FAILED = "upstream_failed"
    ABANDONED = "abandoned"


class UsageEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt at one request.

    Attributes:
        event_id: `<request id>.<attempt>`.
        entry_site: where the request entered; `site` served it.
        started_at_s: wall time at the serving site.
        ttft_s, duration_s: durations at the serving gateway, seconds; ttft_s is None without a token.
        is_estimated: true when the engine gave no usage and tokens were counted from chunks.
        hops: gateways between entry and serving site, 0 or 1.
        audio_ms: length of the sound that was heard, milliseconds; at most what was reserved, a second for 500 bytes.
        images, samples: rows of the batch that was computed; in one of them, as the catalog entry's unit says.
        tariff_id: what it was charged by; empty where no tariff is.
        charge_micro_won: its price, net of VAT.
        overdraw_micro_won: the part of the charge beyond a budget that class `clinical` was let to spend.
        artifact_sha256: hash of the model's main file; empty where the engine is not ours to know.
    """

    event_id: EventId
    request_id: RequestId
    attempt: int
    tenant_id: TenantId
    key_id: KeyId
    service: ServiceName
    model: str
    endpoint: str
    entry_site: SiteId
    site: SiteId
    replica_id: str = ""
    chip_kind: str = ""
    outcome: Outcome = Outcome.COMPLETED
    prompt_tokens: int = 0
    completion_tokens: int = 0
    is_estimated: bool = False
    is_streamed: bool = False
    hops: int = 0
    started_at_s: float = 0.0
    ttft_s: float | None = None
    duration_s: float = 0.0
    project_id: ProjectId = ProjectId("")
    priority: PriorityClass = PriorityClass.INTERACTIVE
    audio_ms: int = 0
    tariff_id: str = ""
    charge_micro_won: int = 0
    overdraw_micro_won: int = 0
    artifact_sha256: str = ""
    images: int = 0
    samples: int = 0
