"""Moves usage and readings of meters from the stream to the database: commit first, acknowledge after.

Owns the consumer `ingest`. Refuses to judge events (`madang.hub.ledger` does) and readings (`madang.hub.meter_rows`).
Whatever is delivered twice is entered once; whatever is not entered is not acknowledged and comes again; what is
malformed is recorded, then ended, so that it comes no more.
"""

import asyncio

import msgspec
import sqlalchemy as sa

from madang.core import Clock, Conflict, Fault, Rejected, Unavailable
from madang.hub.jetstream import ACK, TERM, JetStream, StreamMessage, StreamState
from madang.hub.ledger import Entered, IngestFloor, Refusal, enter, judge_batch, read_floor, write_floor
from madang.hub.meter_rows import enter_meters, judge_meters
from madang.hub.metrics import HubMetrics
from madang.hub.streams import USAGE_CONSUMER, USAGE_STREAM, usage_consumer, usage_stream
from madang.hub.trouble import Trouble
from madang.model import UsageEvent
from madang.runtime.bus import Bus
from madang.runtime.store import Store
from madang.runtime.telemetry import EventLog
from madang.wire.bus import MeterBatch, meters_subject, site_of_subject

_MESSAGES_PER_COMMIT_MAX = 8
_PULL_PENDING_MAX = 256
_WAIT_S = 5.0
_RETRY_S = 1.0
_CHECK_PERIOD_S = 30.0
_FILL_WARNING = 0.8


class Ingest:
    """Pulls usage and enters it."""

    def __init__(
        self,
        *,
        store: Store,
        bus: Bus,
        jetstream: JetStream,
        stream_bytes_max: int,
        metrics: HubMetrics,
        clock: Clock,
        log: EventLog,
    ) -> None:
        """Prepare; call before the bus runs.

        Args:
            store: the hub's database.
            bus: the hub's connection in account FED.
            jetstream: JetStream on that connection.
            stream_bytes_max: bound of the stream.
            metrics: counts events.
            clock: wall time of entries.
            log: gets changes of state.
        """
        self._store = store
        self._bus = bus
        self._jetstream = jetstream
        self._stream_bytes_max = stream_bytes_max
        self._metrics = metrics
        self._clock = clock
        self._log = log
        self._pull = jetstream.listen("usage", pending_max=_PULL_PENDING_MAX)
        self._is_nearly_full = False
        self._begun_at = ""
        self._trouble = Trouble(log, failed="ingest_paused", works="ingest_running")

    @property
    def problem(self) -> str:
        """Return why nothing is pulled, empty while pulling works."""
        return self._trouble.reason

    async def run(self) -> None:
        """Ingest until cancelled."""
        while True:
            await self._bus.wait_connected()
            try:
                await self._prepare()
                self._trouble.note_success()
                await self._pull_for(_CHECK_PERIOD_S)
            except (Unavailable, Conflict, Fault) as error:
                self._trouble.note_failure(str(error))
                await asyncio.sleep(_RETRY_S)

    async def _prepare(self) -> None:
        """Make the stream and the consumer again if somebody deleted them, and see how full the stream is."""
        state = await self._jetstream.ensure_stream(usage_stream(self._stream_bytes_max))
        await self._prepare_consumer(state)
        fill = state.bytes / self._stream_bytes_max
        self._metrics.usage_stream_fill.set(fill)
        if (fill >= _FILL_WARNING) is not self._is_nearly_full:
            self._is_nearly_full = not self._is_nearly_full
            event = "usage_stream_nearly_full" if self._is_nearly_full else "usage_stream_has_room"
            self._log.warning(event, fill=round(fill, 3), bytes_max=self._stream_bytes_max)

    async def _prepare_consumer(self, state: StreamState) -> None:
        """Begin at the database's floor when the program starts or the consumer is new; else remember the floor.

        A message is acknowledged after its commit, so the consumer's floor is one that the database has reached. A
        database that was restored from an older copy has an older floor, and gets again what it lacks.
        """
        floor = await self._store.read(lambda c: read_floor(c, USAGE_STREAM))
        if floor.created != state.created or floor.seq > state.last_seq:
            floor = IngestFloor(created=state.created, seq=0)
        acknowledged = await self._jetstream.ack_floor(USAGE_STREAM, USAGE_CONSUMER)
        if self._begun_at != state.created or acknowledged is None:
            await self._jetstream.delete_consumer(USAGE_STREAM, USAGE_CONSUMER)
            await self._jetstream.ensure_consumer(USAGE_STREAM, usage_consumer(floor.seq + 1))
            self._begun_at = state.created
            self._log.info("ingest_begins", seq=floor.seq + 1)
        elif acknowledged != floor.seq:
            reached = IngestFloor(created=state.created, seq=acknowledged)
            await self._store.write(lambda c: write_floor(c, USAGE_STREAM, reached))

    async def _pull_for(self, duration_s: float) -> None:
        loop = asyncio.get_running_loop()
        end_s = loop.time() + duration_s
        while loop.time() < end_s:
            messages = await self._pull.fetch(
                USAGE_STREAM, USAGE_CONSUMER, batch=_MESSAGES_PER_COMMIT_MAX, wait_s=_WAIT_S
            )
            if messages:
                await self._enter(messages)

    async def _enter(self, messages: list[StreamMessage]) -> None:
        # Decoding thousands of events would hold up heartbeats and the admin API.
        judged = await asyncio.to_thread(_judge_all, messages)
        now_s = self._clock.wall_s()
        entered = await self._store.write(lambda c: _enter_all(c, judged, now_s))
        for message, verdict in zip(messages, judged.verdicts, strict=True):
            await self._pull.answer(message, verdict)
        counter = self._metrics.ledger_events
        counter.labels("inserted").inc(entered.inserted)
        counter.labels("duplicate").inc(entered.duplicates)
        counter.labels("refused").inc(entered.refused)
        if entered.refused:
            self._log.warning("usage_refused", refused=entered.refused, subjects=sorted({m.subject for m in messages}))


class _Judged(msgspec.Struct, frozen=True, kw_only=True):
    """What some messages hold, and how each of them is answered once that is committed."""

    events: list[UsageEvent]
    meters: list[MeterBatch]
    refusals: list[Refusal]
    verdicts: list[bytes]


def _judge_all(messages: list[StreamMessage]) -> _Judged:
    judged = _Judged(events=[], meters=[], refusals=[], verdicts=[])
    for message in messages:
        site = _site_of(message.subject)
        if message.subject == meters_subject(site):
            readings = judge_meters(site, message.data)
            if isinstance(readings, MeterBatch):
                judged.meters.append(readings)
                judged.verdicts.append(ACK)
            else:
                judged.refusals.append(readings)
                judged.verdicts.append(TERM)
            continue
        good, bad = judge_batch(site, message.data)
        judged.events.extend(good)
        judged.refusals.extend(bad)
        is_malformed = any(refusal.what == "batch" for refusal in bad)
        judged.verdicts.append(TERM if is_malformed else ACK)
    return judged


def _enter_all(connection: sa.Connection, judged: _Judged, now_s: float) -> Entered:
    altered = enter_meters(connection, judged.meters, now_s)
    return enter(connection, judged.events, [*judged.refusals, *altered], now_s)


def _site_of(subject: str) -> str:
    try:
        return site_of_subject(subject)
    except Rejected:
        return ""
