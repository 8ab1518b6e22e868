"""Writes down what energy meters read at each quarter of an hour, so that money can be traced back to readings.

Owns the table of readings. Refuses to make up what was not read: a meter that gave nothing at its instant has a row
without a value. Called by the site program; read by the admin API and by the attribution of energy to tenants.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import sqlalchemy as sa

from madang.core import Clock, Unavailable
from madang.machine.sample_book import SampleBook
from madang.model import PointKind, Quality, Quantity
from madang.model.facility_site import SupplyContract
from madang.site.desired import read_meta, write_meta
from madang.site.guard import GuardedStore
from madang.site.tables import METER_READING

INTERVAL_S = 900
"""KEPCO meters demand over quarters of an hour."""
LATE_S = 5.0
"""How long after the instant its reading is taken: polls run every few seconds."""
KEEP_DAYS = 1100.0
"""Three years: the limitation of claims for charges is three years (Korean Civil Act, article 163)."""
ROWS_MAX = 20_000
TERMS_MAX = 50
"""Contracts that are remembered with when they began; a site changes its contract once in years."""
_RETRY_S = 5.0
_TERMS = "meter_terms"


class SiteTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What was agreed with the utility from one reading on.

    Attributes:
        from_at_s: the first reading under it; 0: whatever was before.
        tables: the site's own tariff files by name, as they are written.
    """

    from_at_s: int = 0
    contract: SupplyContract
    tables: dict[str, str] = {}


def read_terms(connection: sa.Connection) -> list[SiteTerms]:
    """Return the contracts under which readings were taken, oldest first."""
    text = read_meta(connection, _TERMS)
    return msgspec.json.decode(text, type=list[SiteTerms]) if text else []


def _note_terms(connection: sa.Connection, terms: SiteTerms, at_s: int) -> None:
    """Note that readings are taken under a contract from now on, unless they are already."""
    known = read_terms(connection)
    last = known[-1] if known else None
    if last is None or (last.contract, last.tables) != (terms.contract, terms.tables):
        known.append(msgspec.structs.replace(terms, from_at_s=at_s if known else 0))
        write_meta(connection, _TERMS, msgspec.json.encode(known[-TERMS_MAX:]).decode())


class MeterLog:
    """The readings of one site."""

    def __init__(self, *, book: SampleBook, store: GuardedStore, clock: Clock, terms: SiteTerms | None = None) -> None:
        """Prepare; `terms` are noted with the first reading under them."""
        self._terms = terms
        self._book = book
        self._store = store
        self._clock = clock
        self.points = tuple(
            point.point_id
            for point in book.points.values()
            if point.quantity is Quantity.ENERGY and point.kind is PointKind.METER
        )

    async def run(self, on_written: Callable[[], None] = lambda: None) -> None:
        """Write for ever, a few seconds after each quarter of an hour."""
        while True:
            now_s = self._clock.wall_s()
            at_s = int((now_s - LATE_S) // INTERVAL_S + 1) * INTERVAL_S
            await asyncio.sleep(max(0.0, at_s + LATE_S - now_s))
            while True:
                try:
                    await self.write(at_s)
                    break
                except Unavailable:
                    # The guarded store has said so. A reading that is late says when it was read.
                    await asyncio.sleep(_RETRY_S)
            on_written()

    async def write(self, at_s: int) -> None:
        """Write down what every meter reads now, for the instant `at_s`; repeating it changes nothing."""
        now_s = self._clock.wall_s()
        rows = []
        for point_id in self.points:
            sample = self._book.sample(point_id, now_s)
            is_usable = sample is not None and sample.is_usable
            rows.append(
                {
                    "point_id": point_id,
                    "at_s": at_s,
                    "value_wh": sample.value if sample is not None and is_usable else None,
                    "read_at_s": sample.observed_at_s if sample is not None and is_usable else None,
                    "quality": sample.quality.value if sample is not None else Quality.BAD.value,
                    "is_simulated": self._book.points[point_id].is_simulated,
                }
            )

        def write(connection: sa.Connection) -> None:
            if self._terms is not None:
                _note_terms(connection, self._terms, at_s)
            if rows:
                connection.execute(METER_READING.insert().prefix_with("OR IGNORE"), rows)
            connection.execute(METER_READING.delete().where(METER_READING.c.at_s < now_s - KEEP_DAYS * 86_400.0))

        await self._store.write(write)

    async def read(self, *, since_s: float, until_s: float, point_id: str = "") -> list[dict[str, Any]]:
        """Return readings in a span, by meter and instant, at most `ROWS_MAX`."""

        def read(connection: sa.Connection) -> list[dict[str, Any]]:
            query = sa.select(METER_READING).where(METER_READING.c.at_s >= since_s, METER_READING.c.at_s <= until_s)
            if point_id:
                query = query.where(METER_READING.c.point_id == point_id)
            query = query.order_by(METER_READING.c.point_id, METER_READING.c.at_s).limit(ROWS_MAX)
            return [dict(row._mapping) for row in connection.execute(query)]

        return await self._store.read(read)

    async def read_ends(self, *, since_s: float, until_s: float) -> list[dict[str, Any]]:
        """Return the readings of the first and of the last instant in a span at which anything was written down."""

        def read(connection: sa.Connection) -> list[dict[str, Any]]:
            at_s = METER_READING.c.at_s
            ends = connection.execute(
                sa.select(sa.func.min(at_s), sa.func.max(at_s)).where(at_s >= since_s, at_s <= until_s)
            ).one()
            query = sa.select(METER_READING).where(at_s.in_([end for end in ends if end is not None])).limit(ROWS_MAX)
            return [dict(row._mapping) for row in connection.execute(query.order_by(at_s))]

        return await self._store.read(read)
