"""The ledger: every usage event once, what was refused, and what both add up to.

Owns the tables `ledger` and `ledger_refused`, which events are believed, and which attempt of a request is billed.
Refuses to know streams. Called by ingest and by the admin API.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from madang.core import Rejected, parse_event_id, site_of_request
from madang.hub.tables import INGEST_FLOOR, LEDGER, LEDGER_REFUSED
from madang.model import UsageEvent
from madang.wire.bus import UsageBatch, decode

RAW_CHARS_MAX = 4096
WHY_CHARS_MAX = 512
REFUSED_ROWS_MAX = 100_000
EVENTS_PER_PAGE_MAX = 1000
_TOKENS_MAX = 2**40
_SECONDS_MAX = 1e11
_MICRO_WON_MAX = 10**15
"""A thousand million won for one request is a mistake; a million of them still add up within 64 bits."""
_IN_MAX = 500
_DAY_S = 86400

_TEXT_MAX = {column.name: column.type.length for column in LEDGER.columns if isinstance(column.type, sa.String)}
_EVENT_FIELDS = tuple(field.name for field in msgspec.structs.fields(UsageEvent))


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Something that came as usage and was not believed.

    Attributes:
        subject_site: the site whose credentials sent it.
        what: `batch`, `event` or `meters`.
        event_id: of the event, empty for a batch.
        why: what was wrong.
        raw: what came, cut.
    """

    subject_site: str
    what: str
    event_id: str
    why: str
    raw: str


def judge_batch(subject_site: str, data: bytes) -> tuple[list[UsageEvent], list[Refusal]]:
    """Return the events of a message that are believed and the refusals of the rest.

    Args:
        subject_site: the site that the subject names; NATS let nobody else publish there.
        data: the message.
    """
    try:
        batch = decode(data, UsageBatch)
        if batch.site != subject_site:
            raise Rejected(f"batch names site {batch.site[:40]!r}, but came from {subject_site!r}")
    except Rejected as error:
        raw = data[:RAW_CHARS_MAX].decode(errors="replace")
        return [], [refuse(subject_site, "batch", "", error.message, raw)]
    good: list[UsageEvent] = []
    refusals: list[Refusal] = []
    for event in batch.events:
        problem = find_problem(event, subject_site)
        if problem:
            raw = msgspec.json.encode(event).decode()
            refusals.append(refuse(subject_site, "event", event.event_id, problem, raw))
        else:
            good.append(event)
    return good, refusals


def refuse(site: str, what: str, event_id: str, why: str, raw: str) -> Refusal:
    """Return a refusal whose texts fit their columns."""
    # NUL is the one character that PostgreSQL cannot store as text.
    return Refusal(
        subject_site=site[:64],
        what=what,
        event_id=event_id[:80].replace("\0", "?"),
        why=why[:WHY_CHARS_MAX].replace("\0", "?"),
        raw=raw[:RAW_CHARS_MAX].replace("\0", "?"),
    )


def find_problem(event: UsageEvent, subject_site: str) -> str:
    """Return why an event is not believed, empty when it is."""
    if event.site != subject_site:
        return f"event names serving site {event.site[:40]!r}, but came from {subject_site!r}"
    try:
        request_id, attempt = parse_event_id(event.event_id)
        entry_site = site_of_request(event.request_id)
    except Rejected as error:
        return error.message
    if (request_id, attempt) != (event.request_id, event.attempt):
        return "event id is not its request id and attempt"
    if event.entry_site != entry_site:
        return f"entry site {event.entry_site[:40]!r} is not the one that the request id names, {entry_site!r}"
    for name, length in _TEXT_MAX.items():
        text = getattr(event, name, "")
        if len(text) > (length or 0) or "\0" in text:
            return f"{name} is longer than {length} characters or holds NUL"
    numbers = (
        ("prompt_tokens", event.prompt_tokens, _TOKENS_MAX),
        ("completion_tokens", event.completion_tokens, _TOKENS_MAX),
        ("hops", event.hops, 99),
        ("started_at_s", event.started_at_s, _SECONDS_MAX),
        ("duration_s", event.duration_s, _SECONDS_MAX),
        ("ttft_s", event.ttft_s or 0.0, _SECONDS_MAX),
        ("audio_ms", event.audio_ms, _TOKENS_MAX),
        ("images", event.images, _TOKENS_MAX),
        ("samples", event.samples, _TOKENS_MAX),
        ("charge_micro_won", event.charge_micro_won, _MICRO_WON_MAX),
        ("overdraw_micro_won", event.overdraw_micro_won, event.charge_micro_won),
    )
    for name, value, most in numbers:
        if not 0 <= value <= most:
            return f"{name} is {value}, expected 0 to {most}"
    return ""


class Entered(msgspec.Struct, frozen=True, kw_only=True):
    """What became of some events."""

    inserted: int
    duplicates: int
    refused: int


def enter(
    connection: sa.Connection, events: Sequence[UsageEvent], refusals: Sequence[Refusal], now_s: float
) -> Entered:
    """Enter events and refusals in the caller's transaction; repeating it changes nothing."""
    unique: dict[str, UsageEvent] = {}
    altered = [event for event in events if unique.setdefault(event.event_id, event) != event]
    known = _read_known(connection, list(unique))
    altered += [event for id_, event in unique.items() if id_ in known and known[id_] != _values(event)]
    new = [event for event_id, event in unique.items() if event_id not in known]
    if new:
        rows = [{**_values(event), "is_superseded": False, "received_at_s": now_s} for event in new]
        connection.execute(insert_or_ignore(connection, LEDGER, "event_id"), rows)
        _supersede(connection, {event.request_id for event in new})
    why = "event id is in the ledger with other content"
    others = [refuse(event.site, "event", event.event_id, why, _json(event)) for event in altered]
    note_refusals(connection, [*refusals, *others], now_s)
    return Entered(
        inserted=len(new), duplicates=len(events) - len(new) - len(altered), refused=len(refusals) + len(altered)
    )


def _values(event: UsageEvent) -> dict[str, Any]:
    return {**msgspec.structs.asdict(event), "outcome": event.outcome.value, "priority": event.priority.value}


def _json(event: UsageEvent) -> str:
    return msgspec.json.encode(event).decode()


def _read_known(connection: sa.Connection, event_ids: list[str]) -> dict[str, dict[str, Any]]:
    columns = [LEDGER.c[name] for name in _EVENT_FIELDS]
    known: dict[str, dict[str, Any]] = {}
    for start in range(0, len(event_ids), _IN_MAX):
        query = sa.select(*columns).where(LEDGER.c.event_id.in_(event_ids[start : start + _IN_MAX]))
        known |= {row.event_id: dict(row._mapping) for row in connection.execute(query)}
    return known


def insert_or_ignore(connection: sa.Connection, table: sa.Table, *unique: str) -> Any:
    """Return an insert that leaves a row with the same unique values alone: another hub may have been faster."""
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table).on_conflict_do_nothing(index_elements=unique)
    return sqlite.insert(table).on_conflict_do_nothing(index_elements=unique)


def whole(connection: sa.Connection, value: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
    """Return a value that is not negative, without its fraction."""
    if connection.dialect.name != "sqlite":
        # SQLite's cast cuts, and its floor is an optional part; PostgreSQL's cast rounds.
        value = sa.func.floor(value)
    return sa.cast(value, sa.BigInteger)


def _supersede(connection: sa.Connection, request_ids: Iterable[str]) -> None:
    """Bill the highest attempt of each request, in whichever order attempts came."""
    ids = sorted(request_ids)
    other = LEDGER.alias()
    for start in range(0, len(ids), _IN_MAX):
        chunk = ids[start : start + _IN_MAX]
        repeated = (
            sa.select(LEDGER.c.request_id)
            .where(LEDGER.c.request_id.in_(chunk))
            .group_by(LEDGER.c.request_id)
            .having(sa.func.count() > 1)
        )
        several = list(connection.scalars(repeated))
        if not several:
            continue
        highest = (
            sa.select(sa.func.max(other.c.attempt)).where(other.c.request_id == LEDGER.c.request_id).scalar_subquery()
        )
        connection.execute(
            LEDGER.update().where(LEDGER.c.request_id.in_(several)).values(is_superseded=LEDGER.c.attempt < highest)
        )


def note_refusals(connection: sa.Connection, refusals: Sequence[Refusal], now_s: float) -> None:
    """Remember what was refused, once each with how often it came."""
    for refusal in refusals:
        digest = hashlib.sha256(msgspec.json.encode(refusal)).hexdigest()
        seen = connection.execute(
            LEDGER_REFUSED.update()
            .where(LEDGER_REFUSED.c.digest == digest)
            .values(times=LEDGER_REFUSED.c.times + 1, received_at_s=now_s)
        )
        if seen.rowcount == 0:
            values = {**msgspec.structs.asdict(refusal), "digest": digest, "times": 1, "received_at_s": now_s}
            connection.execute(LEDGER_REFUSED.insert().values(**values))
    if refusals:
        newest = connection.scalar(sa.select(sa.func.max(LEDGER_REFUSED.c.row_id))) or 0
        connection.execute(LEDGER_REFUSED.delete().where(LEDGER_REFUSED.c.row_id <= newest - REFUSED_ROWS_MAX))


class IngestFloor(msgspec.Struct, frozen=True, kw_only=True):
    """Up to where a stream is in the ledger; `created` tells the stream from one made anew under its name."""

    created: str
    seq: int


def read_floor(connection: sa.Connection, stream: str) -> IngestFloor:
    """Return a stream's floor; nothing of an unknown stream is in the ledger."""
    row = connection.execute(sa.select(INGEST_FLOOR).where(INGEST_FLOOR.c.stream == stream)).first()
    return IngestFloor(created="", seq=0) if row is None else IngestFloor(created=row.created, seq=row.seq)


def write_floor(connection: sa.Connection, stream: str, floor: IngestFloor) -> None:
    """Remember a stream's floor."""
    connection.execute(INGEST_FLOOR.delete().where(INGEST_FLOOR.c.stream == stream))
    connection.execute(INGEST_FLOOR.insert().values(stream=stream, created=floor.created, seq=floor.seq))


class LedgerTotals(msgspec.Struct, frozen=True, kw_only=True):
    """The size of the ledger; `refused` counts what was not believed, once each."""

    events: int
    requests: int
    refused: int


def read_totals(connection: sa.Connection) -> LedgerTotals:
    """Return the size of the ledger; every request has exactly one event that is not superseded."""
    events, requests = connection.execute(
        sa.select(sa.func.count(), sa.func.count().filter(LEDGER.c.is_superseded.is_(False))).select_from(LEDGER)
    ).one()
    refused = connection.scalar(sa.select(sa.func.count()).select_from(LEDGER_REFUSED)) or 0
    return LedgerTotals(events=events, requests=requests, refused=refused)


GROUPS = ("tenant", "project", "service", "site", "model", "priority", "day")


def sum_usage(
    connection: sa.Connection,
    *,
    tenant_id: str | None,
    since_s: float | None,
    until_s: float | None,
    group_by: Sequence[str],
) -> list[dict[str, Any]]:
    """Return sums over the ledger, one row a group, in order of the group's values.

    Args:
        connection: a snapshot.
        tenant_id: only this tenant's.
        since_s: only requests that started at or after this wall time.
        until_s: only requests that started before this wall time.
        group_by: names of GROUPS; a day is a UTC day, shown as its first second.
    """
    day_s = whole(connection, LEDGER.c.started_at_s / _DAY_S) * _DAY_S
    columns = {
        "tenant": LEDGER.c.tenant_id,
        "project": LEDGER.c.project_id,
        "service": LEDGER.c.service,
        "site": LEDGER.c.site,
        "model": LEDGER.c.model,
        "priority": LEDGER.c.priority,
        "day": day_s,
    }
    groups = [columns[name].label(name) for name in group_by]
    billed = LEDGER.c.is_superseded.is_(False)
    sums = {
        "prompt_tokens": LEDGER.c.prompt_tokens,
        "completion_tokens": LEDGER.c.completion_tokens,
        "audio_s": (LEDGER.c.audio_ms + 999) // 1000,  # begun seconds, as they are charged
        "images": LEDGER.c.images,
        "samples": LEDGER.c.samples,
        "charge_micro_won": LEDGER.c.charge_micro_won,
    }
    query = sa.select(
        *groups,
        sa.func.count().filter(billed).label("requests"),
        sa.func.count().label("events"),
        *(sa.func.coalesce(sa.func.sum(value).filter(billed), 0).label(name) for name, value in sums.items()),
        sa.func.count().filter(LEDGER.c.is_superseded.is_(True)).label("superseded"),
    ).select_from(LEDGER)
    if tenant_id is not None:
        query = query.where(LEDGER.c.tenant_id == tenant_id)
    if since_s is not None:
        query = query.where(LEDGER.c.started_at_s >= since_s)
    if until_s is not None:
        query = query.where(LEDGER.c.started_at_s < until_s)
    query = query.group_by(*groups).order_by(*groups)
    return [_plain(dict(row._mapping)) for row in connection.execute(query)]


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row whose sums are integers; PostgreSQL's are decimals."""
    return {key: value if isinstance(value, str) else int(value) for key, value in row.items()}


def read_events(connection: sa.Connection, *, after: int | None, limit: int) -> list[dict[str, Any]]:
    """Return ledger rows: after a row id oldest first, or without one the newest first."""
    query = sa.select(LEDGER).limit(min(limit, EVENTS_PER_PAGE_MAX))
    query = query.order_by(LEDGER.c.row_id.desc()) if after is None else query.order_by(LEDGER.c.row_id)
    if after is not None:
        query = query.where(LEDGER.c.row_id > after)
    return [dict(row._mapping) for row in connection.execute(query)]


def read_refusals(connection: sa.Connection, *, limit: int) -> list[dict[str, Any]]:
    """Return what was refused, newest first."""
    query = sa.select(LEDGER_REFUSED).order_by(LEDGER_REFUSED.c.row_id.desc()).limit(min(limit, EVENTS_PER_PAGE_MAX))
    return [dict(row._mapping) for row in connection.execute(query)]
