"""The importer: moves what gateway workers logged into the outbox, several times a second.

Owns the loop and what is said about damage. Refuses to parse and to hold events: segments give them, the outbox
keeps them, and both survive this process being killed between any two steps.

Each step can be repeated. Events and offset are stored in one transaction; a segment is removed only after the
offset that covers it is on disk; a row of a removed segment is forgotten later.
"""

import asyncio
import bisect
from collections.abc import Callable

import msgspec

from madang.core import Clock, Entropy, MadangError, Unavailable, ns_to_s
from madang.machine.backoff import choose_backoff_s
from madang.runtime.telemetry import EventLog
from madang.site.guard import GuardedStore
from madang.site.outbox import (
    OnAdded,
    OutboxState,
    SegmentState,
    Stored,
    forget_segments,
    read_oldest,
    read_outbox_state,
    read_segments,
    store_reads,
)
from madang.site.segments import CHUNK_BYTES_MAX, Finished, SegmentFolder, SegmentRead
from madang.site.signal import Signal

POLL_PERIOD_S = 0.1
GATHER_PERIOD_S = 0.25
"""From one import to the next while events come: a transaction costs as much as some hundred events do."""
FINISH_PERIOD_S = 1.0
"""How often finished segments are looked for; they are in nobody's way."""
READS_MAX = 8
"""Segments read for one transaction: with a chunk each, some 16,000 events."""
_RETRY_BASE_S = 0.1
_RETRY_MAX_S = 2.0


class OutboxGauge:
    """How much waits for the hub. Written by importer and forwarder in the site's one event loop."""

    def __init__(self) -> None:
        """Start empty, until `load`.

        Attributes:
            rows: events that wait.
            oldest_at_s: wall time at which the oldest was imported; None when none waits.
            grew: rises when events came.
        """
        self.rows = 0
        self.oldest_at_s: float | None = None
        self.grew = Signal()

    def load(self, state: OutboxState) -> None:
        """Take what the database holds."""
        self.rows, self.oldest_at_s = state.events, state.oldest_at_s

    def add(self, rows: int, now_s: float) -> None:
        """Count events in."""
        if rows:
            self.rows += rows
            self.oldest_at_s = now_s if self.oldest_at_s is None else self.oldest_at_s
            self.grew.rise()

    def remove(self, rows: int, oldest_at_s: float | None) -> None:
        """Count events out; `oldest_at_s` is of the oldest that is left."""
        self.rows -= rows
        self.oldest_at_s = oldest_at_s

    def oldest_age_s(self, now_s: float) -> float:
        """Return how long the oldest event has waited, in seconds; 0 when none does."""
        return 0.0 if self.oldest_at_s is None else max(0.0, now_s - self.oldest_at_s)


class IntakeCounts(msgspec.Struct, kw_only=True):
    """What the importer has met in this life, for metrics."""

    imported: int = 0
    repeated: int = 0
    damaged: int = 0
    tails: int = 0
    quarantined: int = 0


class Importer:
    """The loop over the usage folder."""

    def __init__(
        self,
        *,
        folder: SegmentFolder,
        store: GuardedStore,
        gauge: OutboxGauge,
        clock: Clock,
        entropy: Entropy,
        log: EventLog,
        on_added: OnAdded | None = None,
    ) -> None:
        self._folder = folder
        self._on_added = on_added
        self._store = store
        self._gauge = gauge
        self._clock = clock
        self._entropy = entropy
        self._log = log
        self._segments: dict[str, SegmentState] = {}
        self._trouble = ""
        self._has_caught_up = False
        self._last_read = ""
        self._is_behind = False
        self._finish_at_ns = 0
        self.counts = IntakeCounts()

    async def load(self) -> None:
        """Take the offsets and the outbox's depth from the database; before the first step."""
        self._segments = await self._store.read(read_segments)
        self._gauge.load(await self._store.read(read_outbox_state))

    async def run(self) -> None:
        """Import for ever; what cannot be read or written now is tried again, at a bounded pace."""
        failures = 0
        while True:
            begun_ns = self._clock.monotonic_ns()
            try:
                imported = await self.step()
            except MadangError as error:
                failures += 1
                self._note(str(error))
                seed = self._entropy.seed64()
                await asyncio.sleep(choose_backoff_s(failures, seed, base_s=_RETRY_BASE_S, max_s=_RETRY_MAX_S))
                continue
            failures = 0
            self._note("")
            if not imported:
                self._has_caught_up = True
                await asyncio.sleep(POLL_PERIOD_S)
            elif not self._is_behind:
                spent_s = ns_to_s(self._clock.monotonic_ns() - begun_ns)
                await asyncio.sleep(max(0.0, GATHER_PERIOD_S - spent_s))

    async def step(self) -> int:
        """Import what is there now, up to READS_MAX chunks; return how many chunks had something new.

        Raises:
            Unavailable: files cannot be read, or the database not written; nothing is lost by that.
        """
        reads, problem = await asyncio.to_thread(self._read)
        self._is_behind = any(read.end - read.start >= CHUNK_BYTES_MAX // 2 for read in reads)
        if reads:
            await self._keep(reads)
        if self._clock.monotonic_ns() >= self._finish_at_ns:
            self._finish_at_ns = self._clock.monotonic_ns() + round(FINISH_PERIOD_S * 1e9)
            await self._finish()
        if problem:
            raise Unavailable(problem)
        return len(reads)

    def _read(self) -> tuple[list[SegmentRead], str]:
        """Return new chunks, and why some segment could not be read; one bad file does not hold the others up."""
        reads: list[SegmentRead] = []
        problem = ""
        # Begin behind the last one read, so that no worker's stream of events holds another's up.
        names = self._folder.list_names()
        start = bisect.bisect_right(names, self._last_read)
        for name in names[start:] + names[:start]:
            state = self._segments.get(name, SegmentState())
            try:
                read = self._folder.read(name, state.offset_bytes)
            except Unavailable as error:
                problem = str(error)
                continue
            if read is not None:
                reads.append(read)
                self._last_read = name
            if len(reads) == READS_MAX:
                break
        return reads, problem

    async def _keep(self, reads: list[SegmentRead]) -> None:
        now_s = self._clock.wall_s()
        stored: Stored = await self._store.write(
            lambda connection: store_reads(connection, reads, now_s, self._on_added)
        )
        for read in reads:
            old = self._segments.get(read.name, SegmentState())
            self._segments[read.name] = SegmentState(offset_bytes=read.end, gaps=old.gaps + len(read.gaps))
            for gap in read.gaps:
                self.counts.damaged += 1
                self._log.error(
                    "usage_segment_damaged", segment=read.name, offset=gap.offset, size_bytes=gap.size_bytes
                )
        self.counts.imported += stored.added
        self.counts.repeated += stored.repeated
        self._gauge.add(stored.added, now_s)

    async def _finish(self) -> None:
        """Remove what is finished, and forget rows of segments that are gone."""
        finished = await asyncio.to_thread(self._finish_files)
        for one in finished:
            if one.tail_bytes:
                self.counts.tails += 1
                self._log.warning("usage_tail_dropped", segment=one.name, size_bytes=one.tail_bytes)
            if one.is_quarantined:
                self.counts.quarantined += 1
                self._log.error("usage_segment_quarantined", segment=one.name)
        names = set(await asyncio.to_thread(self._folder.list_names))
        gone = [name for name in self._segments if name not in names]
        if gone:
            await self._store.write(lambda connection: forget_segments(connection, gone))
            for name in gone:
                del self._segments[name]

    def _finish_files(self) -> list[Finished]:
        now_s = self._clock.wall_s()
        finished = []
        for name in self._folder.list_names():
            state = self._segments.get(name, SegmentState())
            done = self._folder.finish(name, state.offset_bytes, has_gaps=state.gaps > 0, now_s=now_s)
            if done is not None:
                finished.append(done)
        return finished

    def _note(self, trouble: str) -> None:
        """Log the beginning and the end of a trouble, once each."""
        if bool(trouble) != bool(self._trouble):
            tell: Callable[..., None] = self._log.error if trouble else self._log.info
            tell("usage_import_failed" if trouble else "usage_import_recovered", reason=trouble or self._trouble)
        self._trouble = trouble

    @property
    def is_behind(self) -> bool:
        """Whether events of long ago may still wait: since a start, or because nothing can be imported."""
        return not self._has_caught_up or bool(self._trouble)

    @property
    def trouble(self) -> str:
        """Why nothing is imported now; empty when all is well."""
        return self._trouble


async def refresh_oldest(store: GuardedStore, gauge: OutboxGauge, removed: int) -> None:
    """Count `removed` events out of the gauge, with the age of the oldest that is left."""
    gauge.remove(removed, await store.read(read_oldest))
