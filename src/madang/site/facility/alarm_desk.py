"""The site's alarms: feeds the machine with readings, ticks and people's words, and does what it orders.

Owns the loop, the journal in the database and the sending of notices. Refuses to decide when an alarm changes:
`madang.machine.alarm` does. Works with the hub away. What changed is on disk before a notice leaves and before a
person is answered.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import msgspec
import sqlalchemy as sa

from madang.core import Clock, Rejected, Unavailable
from madang.machine.alarm import step
from madang.machine.alarm_book import AlarmBook, resume, show
from madang.machine.alarm_events import (
    Delivered,
    Effect,
    Event,
    Notice,
    Refuse,
    Sampled,
    Send,
    Tick,
    Undelivered,
    Write,
)
from madang.machine.alarm_plan import AlarmPlan
from madang.model import Alarm, AlarmKey, JournalEntry, Sample
from madang.runtime.telemetry import EventLog
from madang.site.audit import AUDIT_LOG
from madang.site.desired import read_meta, write_meta
from madang.site.guard import GuardedStore
from madang.site.tables import ALARM_JOURNAL

TICK_S = 0.5
JOURNAL_DAYS = 730.0
"""As long as access records: who acknowledged what is evidence too."""
PRUNE_PERIOD_S = 3600.0
ROWS_PER_PAGE_MAX = 1000
SAMPLES_WAITING_MAX = 50_000
"""Ten seconds of the largest site; over it the oldest readings are left out, the newest of each point counts."""
_META = "alarm_book"
_book_decoder = msgspec.json.Decoder(AlarmBook)


def read_book(connection: sa.Connection, plan: AlarmPlan) -> AlarmBook:
    """Return the book of an earlier life under the rules of now."""
    text = read_meta(connection, _META)
    return resume(_book_decoder.decode(text), plan) if text else AlarmBook()


class AlarmDesk:
    """All alarms of one site."""

    def __init__(
        self,
        *,
        plan: AlarmPlan,
        store: GuardedStore,
        send: Callable[[Notice], Awaitable[None]],
        clock: Clock,
        log: EventLog,
    ) -> None:
        """Prepare the loops; `load` takes the earlier life.

        Args:
            plan: rules of the site.
            store: where book and journal are.
            send: delivers a notice; raises Unavailable when it cannot.
            clock: time.
            log: gets every transition.
        """
        self.plan = plan
        self._store = store
        self._send = send
        self._clock = clock
        self._log = log
        self._book = AlarmBook()
        self._samples: dict[str, Sample] = {}
        self._one_at_a_time = asyncio.Lock()
        self._sending: set[asyncio.Task[None]] = set()

    async def load(self) -> None:
        """Take what an earlier life stored."""
        self._book = await self._store.read(partial(read_book, plan=self.plan))

    def feed(self, samples: tuple[Sample, ...]) -> None:
        """Take readings; they are judged at the next tick."""
        for sample in samples:
            if sample.point_id in self._samples or len(self._samples) < SAMPLES_WAITING_MAX:
                self._samples[sample.point_id] = sample

    def list_alarms(self) -> tuple[Alarm, ...]:
        """Return every alarm that is not normal, roots first."""
        return show(self._book, self.plan, self._clock.wall_s())

    @property
    def is_flood(self) -> bool:
        """Return whether more come than a person can read."""
        return self._book.is_flood

    async def run(self) -> None:
        """Judge for ever."""
        pruned_s = 0.0
        while True:
            # Unavailable: the guarded store has said so. Nothing was taken: the same readings are judged again.
            with contextlib.suppress(Unavailable):
                await self.judge()
                if self._clock.wall_s() - pruned_s > PRUNE_PERIOD_S:
                    pruned_s = self._clock.wall_s()
                    await self._store.write(partial(_prune, before_s=pruned_s - JOURNAL_DAYS * 86_400.0))
            await asyncio.sleep(TICK_S)

    async def judge(self) -> None:
        """Judge what was read since the last time; raises Unavailable when the journal cannot be written."""
        samples = tuple(self._samples.values())
        await self._do([*([Sampled(samples)] if samples else []), Tick()])
        for sample in samples:
            if self._samples.get(sample.point_id) is sample:
                del self._samples[sample.point_id]

    async def say(self, event: Event, key: AlarmKey, who: str, what: str) -> None:
        """Do what a person asks for.

        Raises:
            Rejected: it cannot be done to this alarm now.
            Unavailable: it cannot be stored; then nothing changed.
        """
        if str(key) not in self.plan.rules:
            raise Rejected(f"there is no alarm {key}", next_step="madang alarm list")
        detail = {"alarm": str(key), "what": what}
        refusals = await self._do([event], audit=partial(_audit, who=who, what=what, detail=detail))
        if refusals:
            raise Rejected(refusals[0].reason)

    async def _do(
        self, events: list[Event], audit: Callable[[sa.Connection, float], None] | None = None
    ) -> list[Refuse]:
        async with self._one_at_a_time:
            now_s = self._clock.wall_s()
            book = self._book
            effects: list[Effect] = []
            for event in events:
                book, more = step(book, event, now_s, self.plan)
                effects.extend(more)
            refusals = [effect for effect in effects if isinstance(effect, Refuse)]
            entries = [effect.entry for effect in effects if isinstance(effect, Write)]
            sends = [effect.notice for effect in effects if isinstance(effect, Send)]
            if (entries or sends or audit) and not refusals:
                await self._store.write(partial(_store, book=book, entries=entries, audit=audit, now_s=now_s))
            self._book = book
        for entry in entries:
            self._log.info("alarm_changed", alarm=str(entry.key), what=entry.what, was=entry.was, now=entry.now)
        for notice in sends:
            self._start_sending(notice)
        return refusals

    def _start_sending(self, notice: Notice) -> None:
        # Bounded by the machine: it never has more notices on their way than its settings allow.
        task = asyncio.create_task(self._deliver(notice), name=f"notice_{notice.notice_id}")
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _deliver(self, notice: Notice) -> None:
        event: Event
        try:
            await self._send(notice)
            event = Delivered(notice.notice_id)
        except Unavailable as error:
            self._log.warning("notice_undelivered", notice=notice.notice_id, reason=error.message)
            event = Undelivered(notice.notice_id, error.message)
        try:
            await self._do([event])
        except Unavailable:
            # The guarded store has said so; the machine tries a notice again that nobody confirmed.
            return

    async def stop(self) -> None:
        """Send no longer."""
        for task in tuple(self._sending):
            task.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)

    async def read_journal(self, *, before: int, limit: int) -> list[dict[str, Any]]:
        """Return entries with a lower number than `before` (0: from the newest on), newest first."""

        def read(connection: sa.Connection) -> list[dict[str, Any]]:
            query = sa.select(ALARM_JOURNAL.c.entry).order_by(ALARM_JOURNAL.c.sequence.desc())
            if before:
                query = query.where(ALARM_JOURNAL.c.sequence < before)
            rows = connection.execute(query.limit(min(limit, ROWS_PER_PAGE_MAX)))
            return [msgspec.json.decode(row.entry) for row in rows]

        return await self._store.read(read)


def _store(
    connection: sa.Connection,
    *,
    book: AlarmBook,
    entries: list[JournalEntry],
    audit: Callable[[sa.Connection, float], None] | None,
    now_s: float,
) -> None:
    write_meta(connection, _META, msgspec.json.encode(book, order="deterministic").decode())
    for entry in entries:
        text = msgspec.json.encode(entry).decode()
        row = {"sequence": entry.sequence, "at_s": entry.at_s, "alarm": str(entry.key)[:256], "entry": text}
        connection.execute(ALARM_JOURNAL.insert().values(**row))
    if audit is not None:
        audit(connection, now_s)


def _audit(connection: sa.Connection, now_s: float, *, who: str, what: str, detail: dict[str, str]) -> None:
    AUDIT_LOG.append(connection, at_s=now_s, actor=who, action=f"alarm.{what}", target=detail["alarm"], detail=detail)


def _prune(connection: sa.Connection, *, before_s: float) -> None:
    connection.execute(ALARM_JOURNAL.delete().where(ALARM_JOURNAL.c.at_s < before_s))
