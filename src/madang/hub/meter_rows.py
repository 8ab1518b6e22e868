"""What sites' billed registers said: which readings are believed, once each, and by which contract they are priced.

Owns the tables `meter_reading` and `meter_terms`. Refuses to change a reading that is there and to know streams. Called
by ingest and by the view of energy.
"""

import math

import msgspec
import sqlalchemy as sa

from madang.core import Rejected
from madang.facility.tariff_files import make_tariff_book
from madang.hub.ledger import RAW_CHARS_MAX, Refusal, insert_or_ignore, refuse
from madang.hub.tables import METER_READING, METER_TERMS
from madang.model.facility_site import SupplyContract
from madang.policy.facility.site_month import QUARTER_S, USABLE, StoredReading, Terms
from madang.wire.bus import METER_ROWS_PER_BATCH_MAX, TABLES_BYTES_MAX, MeterBatch, MeterRow, decode

_SECONDS_MAX = 10**11
_WH_MAX = 1e15
_TEXT_MAX = {"point_id": 128, "quality": 16}
_FIELDS = ("value_wh", "read_at_s", "quality", "is_simulated")


class _Spec(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `meter_terms` as it is stored."""

    contract: SupplyContract
    tables: dict[str, str]


def judge_meters(subject_site: str, data: bytes) -> MeterBatch | Refusal:
    """Return a message of readings if all of it is believed, else why not: a site sends nothing that it would mend."""
    try:
        batch = decode(data, MeterBatch)
        if batch.site != subject_site:
            raise Rejected(f"batch names site {batch.site[:40]!r}, but came from {subject_site!r}")
        if not 0 < len(batch.rows) <= METER_ROWS_PER_BATCH_MAX:
            raise Rejected(f"{len(batch.rows)} readings, expected 1 to {METER_ROWS_PER_BATCH_MAX}")
        if sum(len(text.encode()) for text in batch.tables.values()) > TABLES_BYTES_MAX:
            raise Rejected(f"tariff tables of more than {TABLES_BYTES_MAX} bytes")
        for row in batch.rows:
            _check(row, batch.contract.meter)
        make_tariff_book(batch.tables)
    except Rejected as error:
        raw = data[:RAW_CHARS_MAX].decode(errors="replace")
        return refuse(subject_site, "meters", "", error.message, raw)
    return batch


def _check(row: MeterRow, meter: str) -> None:
    for name, length in _TEXT_MAX.items():
        text = getattr(row, name)
        if len(text) > length or "\0" in text:
            raise Rejected(f"{name} is longer than {length} characters or holds NUL")
    if row.point_id != meter:
        raise Rejected(f"a reading of {row.point_id[:40]!r}, but {meter[:40]!r} is billed")
    if row.at_s % QUARTER_S or not 0 < row.at_s < _SECONDS_MAX:
        raise Rejected(f"a reading at {row.at_s}: expected a quarter of an hour")
    for value, most in ((row.value_wh, _WH_MAX), (row.read_at_s, float(_SECONDS_MAX))):
        if value is not None and not (math.isfinite(value) and 0 <= value <= most):
            raise Rejected(f"{value} in the reading at {row.at_s}, expected 0 to {most:g}")
    if row.value_wh is not None and (row.read_at_s is None or row.quality not in USABLE):
        raise Rejected(f"a value of quality {row.quality!r} at {row.at_s}, read at {row.read_at_s}")


def enter_meters(connection: sa.Connection, batches: list[MeterBatch], now_s: float) -> list[Refusal]:
    """Enter readings in the caller's transaction; return those that are there with other content.

    Repeating it changes nothing, in whichever order batches come.
    """
    refusals = []
    for batch in batches:
        known = _read_known(connection, batch)
        for row in batch.rows:
            if row.at_s in known and known[row.at_s] != _values(row):
                name = f"{row.point_id}@{row.at_s}"
                raw = msgspec.json.encode(row).decode()
                refusals.append(refuse(batch.site, "meters", name, "the reading is there with other content", raw))
        rows = [
            {
                "site": batch.site,
                "point_id": row.point_id,
                "at_s": row.at_s,
                **dict(zip(_FIELDS, _values(row), strict=True)),
                "received_at_s": now_s,
            }
            for row in batch.rows
        ]
        connection.execute(insert_or_ignore(connection, METER_READING, "site", "point_id", "at_s"), rows)
        _enter_terms(connection, batch)
    return refusals


def _values(row: MeterRow) -> tuple[object, ...]:
    return tuple(getattr(row, name) for name in _FIELDS)


def _read_known(connection: sa.Connection, batch: MeterBatch) -> dict[int, tuple[object, ...]]:
    instants = [row.at_s for row in batch.rows]
    query = sa.select(METER_READING).where(
        METER_READING.c.site == batch.site,
        METER_READING.c.point_id == batch.contract.meter,
        METER_READING.c.at_s.between(min(instants), max(instants)),
    )
    return {row.at_s: tuple(getattr(row, name) for name in _FIELDS) for row in connection.execute(query)}


def _enter_terms(connection: sa.Connection, batch: MeterBatch) -> None:
    """Note a contract from its first reading on, unless it holds there already."""
    from_at_s = min(row.at_s for row in batch.rows)
    spec = msgspec.json.encode(_Spec(contract=batch.contract, tables=batch.tables), order="deterministic").decode()
    query = sa.select(METER_TERMS.c.spec).where(METER_TERMS.c.site == batch.site, METER_TERMS.c.from_at_s <= from_at_s)
    holds = connection.scalar(query.order_by(METER_TERMS.c.from_at_s.desc()).limit(1))
    if holds != spec:
        values = {"site": batch.site, "from_at_s": from_at_s, "spec": spec}
        connection.execute(insert_or_ignore(connection, METER_TERMS, "site", "from_at_s").values(**values))


def read_terms(connection: sa.Connection, site: str) -> list[Terms]:
    """Return a site's contracts, oldest first; raises Rejected for tables that this release cannot read."""
    query = sa.select(METER_TERMS).where(METER_TERMS.c.site == site).order_by(METER_TERMS.c.from_at_s)
    found = []
    for row in connection.execute(query):
        spec = msgspec.json.decode(row.spec, type=_Spec)
        found.append(Terms(from_at_s=row.from_at_s, contract=spec.contract, book=make_tariff_book(spec.tables)))
    return found


def read_stored(connection: sa.Connection, site: str, points: set[str], span_s: tuple[int, int]) -> list[StoredReading]:
    """Return what some registers of a site said within a span, both ends included, oldest first."""
    query = sa.select(
        METER_READING.c.point_id, METER_READING.c.at_s, *(METER_READING.c[name] for name in _FIELDS)
    ).where(
        METER_READING.c.site == site,
        METER_READING.c.point_id.in_(sorted(points)),
        METER_READING.c.at_s.between(*span_s),
    )
    return [StoredReading(**row._mapping) for row in connection.execute(query.order_by(METER_READING.c.at_s))]
