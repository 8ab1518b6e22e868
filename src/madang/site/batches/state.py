"""What a batch is and how it looks to OpenAI's clients.

Owns the shape and its stored form. Refuses to act. A batch goes from `validating` to `in_progress` to `finalizing`, and
from there to where its `ending` says; `failed` is also reached from `validating`, without results.
"""

from enum import StrEnum

import msgspec

from madang.core import KeyId, ProjectId, TenantId
from madang.model import DataClass
from madang.wire.openai import Endpoint

ENDPOINTS = (Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.EMBEDDINGS, Endpoint.RESPONSES)
WINDOW = "24h"
WINDOW_S = 24 * 3600.0
ERRORS_MAX = 50
"""Lines that a refused input names; the rest is counted."""


class BatchStatus(StrEnum):
    """OpenAI's."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    CANCELLING = "cancelling"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"

    @property
    def is_over(self) -> bool:
        """Whether nothing will change any more."""
        return self in (self.COMPLETED, self.FAILED, self.EXPIRED, self.CANCELLED)


class BatchError(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with a batch, or with one line of its input."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """One batch.

    Attributes:
        tenant_id, project_id, key_id: who made it; its lines are theirs.
        expires_at_s: when its window closes.
        output_lifetime_s: of the result files; None is the site's own.
        ending: what it becomes after `finalizing`.
        stopped: why lines were left out, when not for the client's wish or the window's end.
        times: of each status, by OpenAI's names (`in_progress_at` and so on), wall time.
    """

    batch_id: str
    tenant_id: TenantId
    project_id: ProjectId
    key_id: KeyId
    data_class: DataClass
    endpoint: str
    input_file_id: str
    created_at_s: float
    expires_at_s: float
    metadata: dict[str, str] | None = None
    output_lifetime_s: float | None = None
    status: BatchStatus = BatchStatus.VALIDATING
    ending: BatchStatus = BatchStatus.COMPLETED
    model: str = ""
    total: int = 0
    completed: int = 0
    failed: int = 0
    errors: tuple[BatchError, ...] = ()
    stopped: BatchError | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    times: dict[str, float] = {}

    def become(self, status: BatchStatus, now_s: float) -> "Batch":
        """Return the batch in another status, with its time."""
        return msgspec.structs.replace(self, status=status, times={**self.times, f"{status}_at": now_s})


_TIMES = tuple(f"{status}_at" for status in BatchStatus if status is not BatchStatus.VALIDATING)


def show_batch(batch: Batch) -> dict[str, object]:
    """Return a batch as OpenAI's clients know it."""
    is_cancelling = batch.status is BatchStatus.FINALIZING and batch.ending is BatchStatus.CANCELLED
    errors = [*batch.errors, *([] if batch.stopped is None else [batch.stopped])]
    shown: dict[str, object] = {
        "id": batch.batch_id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": batch.model or None,
        "errors": {"object": "list", "data": errors} if errors else None,
        "input_file_id": batch.input_file_id,
        "completion_window": WINDOW,
        "status": BatchStatus.CANCELLING if is_cancelling else batch.status,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "created_at": int(batch.created_at_s),
        "expires_at": int(batch.expires_at_s),
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "metadata": batch.metadata,
    }
    for name in _TIMES:
        shown[name] = int(batch.times[name]) if name in batch.times else None
    return shown


def encode_batch(batch: Batch) -> bytes:
    """Return the stored form."""
    return msgspec.json.encode(batch)


def decode_batch(data: bytes) -> Batch:
    """Return the batch in a stored form, which only this program writes."""
    return msgspec.json.decode(data, type=Batch)
