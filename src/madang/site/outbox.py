"""The outbox and what feeds it, in SQL: usage events wait here until the hub has stored them.

Owns its rows, the offsets of imported segments and the site's own totals, all changed in one transaction, so that
each step can be repeated. Refuses to read files and to send. Called by the importer, the forwarder and the API.

A row is a bundle of events that were imported together, ready for a message: at thousands of events a second a row
for each cost ten times what all else here does. Events of one import that are the same are kept once. One that comes
again in a later import, from a segment that somebody put back, goes to the hub again, and the ledger enters it once.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
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
BUNDLE_BYTES_MAX = BATCH_BYTES_MAX - 1024
"""Of the events in a message; the rest of it is smaller than what is left."""
DAY_S = 86_400
_RAISE_TOTALS = """
INSERT INTO usage_total
  (tenant_id, service, day, events, completed, prompt_tokens, completion_tokens, audio_s, images, samples)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (tenant_id, service, day) DO UPDATE SET
  events = events + excluded.events,
  completed = completed + excluded.completed,
  prompt_tokens = prompt_tokens + excluded.prompt_tokens,
  completion_tokens = completion_tokens + excluded.completion_tokens,
  audio_s = audio_s + excluded.audio_s,
  images = images + excluded.images,
  samples = samples + excluded.samples
"""
_encoder = msgspec.json.Encoder()


class SegmentState(msgspec.Struct, frozen=True, kw_only=True):
    """How far a segment is imported, and how many damaged places were met."""

    offset_bytes: int = 0
    gaps: int = 0


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """The oldest bundles, ready to be sent.

    Attributes:
        batch_id: SHA-256 over the events: the same ones give the same id, whenever they are sent again.
        first_seq, last_seq: rows, to be deleted once the hub has stored them.
        events: how many events they hold.
        payload: the whole message.
    """

    batch_id: str
    first_seq: int
    last_seq: int
    events: int
    payload: bytes


class OutboxState(msgspec.Struct, frozen=True, kw_only=True):
    """How many events wait, and since when the oldest does, wall time; None when none does."""

    events: int
    oldest_at_s: float | None


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """What storing readings did: events that were new, and events that had come before."""

    added: int
    repeated: int


class _Message(msgspec.Struct, kw_only=True, tag_field="kind", tag="usage_batch"):
    """UsageBatch with its events already encoded; field order as there."""

    site: str
    batch_id: str
    events: msgspec.Raw
    version: int = 1


OnAdded = Callable[[sa.Connection, Sequence[UsageEvent], float], None]
"""Told of events that are new, within their transaction, with the wall time; it may refuse all by raising."""


def store_reads(
    connection: sa.Connection, reads: Sequence[SegmentRead], now_s: float, on_added: OnAdded | None = None
) -> Stored:
    """Put events into the outbox and move the segments' offsets, in the caller's transaction."""
    fresh = list({event.event_id: event for read in reads for event in read.events}.values())
    if fresh:
        fresh = [event if _is_finite(event) else _make_finite(event) for event in fresh]
        rows = [(len(items), b",".join(items), now_s) for items in _bundle(fresh)]
        connection.exec_driver_sql("INSERT INTO outbox_bundle (events, payload, appended_at_s) VALUES (?, ?, ?)", rows)
        _add_totals(connection, fresh)
        if on_added is not None:
            on_added(connection, fresh, now_s)
    for read in reads:
        _move_offset(connection, read, now_s)
    return Stored(added=len(fresh), repeated=sum(len(read.events) for read in reads) - len(fresh))


def _bundle(events: Sequence[UsageEvent]) -> Iterator[list[bytes]]:
    """Yield the events' JSON in lists that fit into one message each; no single event is near the bound."""
    items: list[bytes] = []
    room = BUNDLE_BYTES_MAX
    for event in events:
        item = _encoder.encode(event)
        room -= len(item) + 1
        if items and (room < 0 or len(items) == USAGE_EVENTS_PER_BATCH_MAX):
            yield items
            items, room = [], BUNDLE_BYTES_MAX - len(item) - 1
        items.append(item)
    yield items


def _is_finite(event: UsageEvent) -> bool:
    """Return whether JSON can carry an event's numbers; a sum with infinity or no-number is neither finite."""
    return math.isfinite(event.started_at_s + event.duration_s + (event.ttft_s or 0.0))


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
    sums: dict[tuple[str, str, float], list[int]] = defaultdict(lambda: [0, 0, 0, 0, 0, 0, 0])
    for event in events:
        row = sums[event.tenant_id, event.service, event.started_at_s // DAY_S]
        row[0] += 1
        row[1] += event.outcome is Outcome.COMPLETED
        row[2] += event.prompt_tokens
        row[3] += event.completion_tokens
        row[4] -= -event.audio_ms // 1000  # begun seconds, as they are charged
        row[5] += event.images
        row[6] += event.samples
    connection.exec_driver_sql(
        _RAISE_TOTALS,
        [(tenant_id, service, _day(day * DAY_S), *row) for (tenant_id, service, day), row in sums.items()],
    )


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
    """Return the oldest bundles that fit into one message, or None when none waits."""
    rows = connection.exec_driver_sql(
        "SELECT seq, events, length(payload) FROM outbox_bundle ORDER BY seq LIMIT ?", (USAGE_EVENTS_PER_BATCH_MAX,)
    ).all()
    if not rows:
        return None
    first, last = rows[0][0], rows[0][0]
    count, size_bytes = rows[0][1], rows[0][2]
    for seq, events, length in rows[1:]:
        count += events
        size_bytes += length + 1
        if count > USAGE_EVENTS_PER_BATCH_MAX or size_bytes > BUNDLE_BYTES_MAX:
            count -= events
            break
        last = seq
    payloads = connection.exec_driver_sql(
        "SELECT payload FROM outbox_bundle WHERE seq BETWEEN ? AND ? ORDER BY seq", (first, last)
    ).scalars()
    joined = b",".join(payloads)
    batch_id = hashlib.sha256(joined).hexdigest()
    message = _Message(site=site, batch_id=batch_id, events=msgspec.Raw(b"[" + joined + b"]"))
    return Batch(batch_id=batch_id, first_seq=first, last_seq=last, events=count, payload=_encoder.encode(message))


def forget_batch(connection: sa.Connection, batch: Batch) -> None:
    """Delete the rows of a batch that the hub has stored."""
    connection.exec_driver_sql("DELETE FROM outbox_bundle WHERE seq BETWEEN ? AND ?", (batch.first_seq, batch.last_seq))


def read_outbox_state(connection: sa.Connection) -> OutboxState:
    """Return depth and age; counts all rows, so it is for the start and for checks."""
    events = connection.scalar(sa.select(sa.func.sum(OUTBOX.c.events))) or 0
    return OutboxState(events=events, oldest_at_s=read_oldest(connection))


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
    oldest = _day(now_s - TOTAL_DAYS_KEPT * DAY_S)
    connection.execute(USAGE_TOTAL.delete().where(USAGE_TOTAL.c.day < oldest))
