"""Sends what the billed register said to the hub's stream, oldest first, and remembers how far the stream has it.

Owns the place up to which readings were sent. Refuses to change or leave out a reading. Called by the site program. As
of usage: a batch goes as a request through the leaf, and only JetStream's acknowledgement moves the place on, so that a
site that was cut catches up, and what is sent twice is entered once.
"""

import hashlib

import sqlalchemy as sa

from madang.core import MadangError, SiteId, Unavailable
from madang.machine.forward import Trouble
from madang.runtime.bus import Bus
from madang.runtime.telemetry import EventLog
from madang.site.desired import read_meta, write_meta
from madang.site.facility.meters import SiteTerms, read_terms
from madang.site.forwarder import ANSWER_TIMEOUT_S, judge_answer
from madang.site.guard import GuardedStore
from madang.site.signal import Signal
from madang.site.tables import METER_READING
from madang.wire.bus import METER_ROWS_PER_BATCH_MAX, MeterBatch, MeterRow, encode, meters_subject

WAKE_S = 5.0
"""How long the sender waits before it looks again: readings come every quarter of an hour, and are not urgent."""
_SENT = "meters_sent"


class MeterSender:
    """The readings of one site on their way."""

    def __init__(self, *, site: SiteId, bus: Bus, store: GuardedStore, log: EventLog) -> None:
        self._site = site
        self._bus = bus
        self._store = store
        self._log = log
        self._is_failing = False
        self.written = Signal()

    async def run(self) -> None:
        """Send for ever."""
        while True:
            seen = self.written.level
            is_more = False
            if self._bus.is_connected:
                try:
                    is_more = await self.send()
                    self._note("")
                except MadangError as error:
                    self._note(error.message)
            if not is_more:
                await self.written.wait(seen, WAKE_S)

    async def send(self) -> bool:
        """Send the oldest readings that the hub's stream does not have; return whether there were any.

        Raises:
            Unavailable: they were not acknowledged; they stay.
        """
        batch = await self._store.read(lambda connection: next_batch(connection, self._site))
        if batch is None:
            return False
        payload = encode(batch)
        answer = await self._bus.request(
            meters_subject(self._site),
            payload,
            timeout_s=ANSWER_TIMEOUT_S,
            headers={"Nats-Msg-Id": f"meters-{hashlib.sha256(payload).hexdigest()}"},
        )
        trouble, words = judge_answer(answer.data)
        if trouble is not Trouble.NONE:
            raise Unavailable(f"the hub's stream did not take readings: {words}")
        sent = batch.rows[-1].at_s
        await self._store.write(lambda connection: write_meta(connection, _SENT, str(sent)))
        return True

    def _note(self, reason: str) -> None:
        if bool(reason) == self._is_failing:
            return
        self._is_failing = bool(reason)
        if reason:
            self._log.warning("meters_not_sent", reason=reason)
        else:
            self._log.info("meters_sent_again")


def next_batch(connection: sa.Connection, site: SiteId) -> MeterBatch | None:
    """Return the oldest readings of the billed register that were not sent, of one contract; None without any."""
    sent = int(read_meta(connection, _SENT) or -1)
    known = read_terms(connection)
    ends: list[int | None] = [*(one.from_at_s for one in known[1:]), None]
    for terms, end_s in zip(known, ends, strict=False):
        rows = _read_rows(connection, terms, max(sent + 1, terms.from_at_s), end_s)
        if rows:
            return MeterBatch(site=site, contract=terms.contract, tables=terms.tables, rows=rows)
    return None


def _read_rows(connection: sa.Connection, terms: SiteTerms, from_s: int, end_s: int | None) -> tuple[MeterRow, ...]:
    query = sa.select(METER_READING).where(
        METER_READING.c.point_id == terms.contract.meter, METER_READING.c.at_s >= from_s
    )
    if end_s is not None:
        query = query.where(METER_READING.c.at_s < end_s)
    query = query.order_by(METER_READING.c.at_s).limit(METER_ROWS_PER_BATCH_MAX)
    return tuple(MeterRow(**row._mapping) for row in connection.execute(query))
