"""The outbox and what feeds it, in SQL: usage events wait here until the hub has stored them.

Owns its rows, the offsets of imported segments and the site's own totals, all changed in one transaction, so that
each step can be repeated. Refuses to read files and to send. Called by the importer, the forwarder and the API.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from madang.model import Outcome, UsageEvent
from madang.site.segments import SegmentRead
from madang.site.tables import OUTBOX, USAGE_SEGMENT, USAGE_TOTAL
from madang.wire.bus import BATCH_BYTES_MAX, USAGE_EVENTS_PER_BATCH_MAX

TOTAL_DAYS_KEPT = 400
"""Daily totals are for the operator's own view of a year; the ledger at the hub keeps for ever."""
TOTAL_ROWS_MAX = 10_000


class SegmentState(msgspec.Struct, frozen=True, kw_only=True):
    """How far a segment is imported, and how many damaged places were met."""

    offset_bytes: int = 0
    gaps: int = 0


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """The oldest rows, ready to be sent.

    Attributes:
        batch_id: SHA-256 over the event ids: the same rows give the same id, whenever they are sent again.
        seqs: rows, to be deleted once the hub has stored them.
        payload: the whole message.
    """

    batch_id: str
    seqs: tuple[int, ...]
    payload: bytes


class OutboxState(msgspec.Struct, frozen=True, kw_only=True):
    """How many events wait, and since when the oldest does, wall time; None when none does."""

    rows: int
    oldest_at_s: float | None


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """What storing readings did: events that were new, and events that had come before."""

    added: int
    repeated: int


class _Message(msgspec.Struct, kw_only=True, tag_field="kind", tag="usage_batch"):
    """UsageBatch with its events already encoded; field order as there."""

    site: str
    batch_id: str
    events: list[msgspec.Raw]
    version: int = 1


OnAdded = Callable[[sa.Connection, Sequence[UsageEvent], float], None]
"""Told of events that are new, within their transaction, with the wall time; it may refuse all by raising."""


def store_reads(
    connection: sa.Connection, reads: Sequence[SegmentRead], now_s: float, on_added: OnAdded | None = None
) -> Stored:
    """Put events into the outbox and move the segments' offsets, in the caller's transaction."""
    events = {event.event_id: event for read in reads for event in read.events}
    added: set[str] = set()
    if events:
        rows = [
            {"event_id": event_id, "payload": msgspec.json.encode(_make_finite(event)), "appended_at_s": now_s}
            for event_id, event in events.items()
        ]
        statement = insert(OUTBOX).on_conflict_do_nothing().returning(OUTBOX.c.event_id)
        added = set(connection.scalars(statement, rows))
        fresh = [event for event_id, event in events.items() if event_id in added]
        _add_totals(connection, fresh)
        if on_added is not None and fresh:
            on_added(connection, fresh, now_s)
    for read in reads:
        _move_offset(connection, read, now_s)
    return Stored(added=len(added), repeated=sum(len(read.events) for read in reads) - len(added))


def _make_finite(event: UsageEvent) -> UsageEvent:
    """Return the event with 0 for every number that JSON cannot carry: one such would cost its whole batch."""
    values = msgspec.structs.asdict(event)
    wrong = {name: 0.0 for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)}
    return msgspec.structs.replace(event, **wrong) if wrong else event


def _move_offset(connection: sa.Connection, read: SegmentRead, now_s: float) -> None:
    statement = insert(USAGE_SEGMENT).values(
        name=read.name, offset_bytes=read.end, events=len(read.events), gaps=len(read.gaps), updated_at_s=now_s
    )
    new = statement.excluded
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["name"],
            set_={
                "offset_bytes": new.offset_bytes,
                "events": USAGE_SEGMENT.c.events + new.events,
                "gaps": USAGE_SEGMENT.c.gaps + new.gaps,
                "updated_at_s": new.updated_at_s,
            },
        )
    )


def _add_totals(connection: sa.Connection, events: Sequence[UsageEvent]) -> None:
    sums: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for event in events:
        row = sums[event.tenant_id, event.service, _day(event.started_at_s)]
        row[0] += 1
        row[1] += event.outcome is Outcome.COMPLETED
        row[2] += event.prompt_tokens
        row[3] += event.completion_tokens
    names = ("events", "completed", "prompt_tokens", "completion_tokens")
    for (tenant_id, service, day), values in sums.items():
        statement = insert(USAGE_TOTAL).values(
            tenant_id=tenant_id, service=service, day=day, **dict(zip(names, values, strict=True))
        )
        raised = {name: USAGE_TOTAL.c[name] + statement.excluded[name] for name in names}
        connection.execute(statement.on_conflict_do_update(index_elements=["tenant_id", "service", "day"], set_=raised))


def _day(at_s: float) -> str:
    """Return the UTC day of a wall time; an impossible one counts as the first day."""
    try:
        return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d")
    except (ValueError, OverflowError, OSError):
        return "1970-01-01"


def read_segments(connection: sa.Connection) -> dict[str, SegmentState]:
    """Return how far every known segment is imported."""
    query = sa.select(USAGE_SEGMENT.c.name, USAGE_SEGMENT.c.offset_bytes, USAGE_SEGMENT.c.gaps)
    return {row.name: SegmentState(offset_bytes=row.offset_bytes, gaps=row.gaps) for row in connection.execute(query)}


def forget_segments(connection: sa.Connection, names: Sequence[str]) -> None:
    """Forget segments whose files are gone; names never come again, for each life of a worker has its own."""
    for name in names:
        connection.execute(USAGE_SEGMENT.delete().where(USAGE_SEGMENT.c.name == name))


def read_batch(connection: sa.Connection, site: str) -> Batch | None:
    """Return the oldest events that fit into one message, or None when none waits."""
    query = (
        sa.select(OUTBOX.c.seq, OUTBOX.c.event_id, OUTBOX.c.payload)
        .order_by(OUTBOX.c.seq)
        .limit(USAGE_EVENTS_PER_BATCH_MAX)
    )
    seqs: list[int] = []
    ids: list[str] = []
    payloads: list[msgspec.Raw] = []
    size_bytes = 1024
    for row in connection.execute(query):
        size_bytes += len(row.payload) + 1
        # The first always goes: no single event is near the bound.
        if seqs and size_bytes > BATCH_BYTES_MAX:
            break
        seqs.append(row.seq)
        ids.append(row.event_id)
        payloads.append(msgspec.Raw(row.payload))
    if not seqs:
        return None
    batch_id = hashlib.sha256("\n".join(ids).encode()).hexdigest()
    message = _Message(site=site, batch_id=batch_id, events=payloads)
    return Batch(batch_id=batch_id, seqs=tuple(seqs), payload=msgspec.json.encode(message))


def forget_batch(connection: sa.Connection, batch: Batch) -> None:
    """Delete the rows of a batch that the hub has stored."""
    connection.execute(OUTBOX.delete().where(OUTBOX.c.seq.in_(batch.seqs)))


def read_outbox_state(connection: sa.Connection) -> OutboxState:
    """Return depth and age; counts all rows, so it is for the start and for checks."""
    rows = connection.scalar(sa.select(sa.func.count()).select_from(OUTBOX)) or 0
    return OutboxState(rows=rows, oldest_at_s=read_oldest(connection))


def read_oldest(connection: sa.Connection) -> float | None:
    """Return since when the oldest event waits, wall time."""
    return connection.scalar(sa.select(OUTBOX.c.appended_at_s).order_by(OUTBOX.c.seq).limit(1))


def read_totals(connection: sa.Connection, tenant_id: str = "") -> list[dict[str, object]]:
    """Return daily totals, newest day first, of one tenant or of all."""
    query = sa.select(USAGE_TOTAL).order_by(USAGE_TOTAL.c.day.desc(), USAGE_TOTAL.c.tenant_id, USAGE_TOTAL.c.service)
    if tenant_id:
        query = query.where(USAGE_TOTAL.c.tenant_id == tenant_id)
    return [dict(row._mapping) for row in connection.execute(query.limit(TOTAL_ROWS_MAX))]


def prune_totals(connection: sa.Connection, now_s: float) -> None:
    """Forget totals of days longer ago than TOTAL_DAYS_KEPT."""
    oldest = _day(now_s - TOTAL_DAYS_KEPT * 86_400)
    connection.execute(USAGE_TOTAL.delete().where(USAGE_TOTAL.c.day < oldest))
