"""The fetching of one file in chunks from several sources: who is asked for what, and who is not asked any more.

Owns the choice of chunk and source, the rest that a failed source gets, and when to give up. Refuses to know sockets,
files, hashes and clocks: `madang.runtime.artifacts.transfer` asks, verifies and stores, and says here what came of it.

States of a chunk: missing, asked of one source (and, once it came, being judged), finished. Of a source: idle, asked,
resting, out.

| event | effects |
|---|---|
| Began, Ticked | Ask of every idle source that may be asked; GaveUp when there is none left or patience ends |
| ChunkStored | Finished with the last one |
| ChunkWrong | Blamed, the first time for a source; the source goes behind all others, and out at the third time |
| SourceEnded | the next Ask |
| SourceBroke | the source rests, longer each time in a row, or is out for good |

Invariants: a finished chunk is never asked for; a chunk is asked of one source at a time, and a source for one span at
a time; a source that sent a wrong chunk is asked only while no cleaner one answers; Finished comes once, when every
chunk is finished, and nothing after it.
"""

from collections.abc import Collection, Sequence
from enum import StrEnum

import msgspec

from madang.machine.backoff import choose_backoff_s

SPAN_CHUNKS_MAX = 32
"""Of one request: 128 MiB. Long enough that asking costs nothing, short enough that sources share the rest fairly."""
STRIKES_MAX = 3
"""Wrong chunks of one source, after which it is not asked any more: a flipped bit happens once, not three times."""
REST_BASE_S, REST_MAX_S = 0.1, 5.0
"""A cut link is tried again soon, and at most every five seconds as long as patience lasts."""
SILENT_BREAKS = 3
"""Failures in a row, after which a source that sent a wrong chunk is better than one that sends none."""
SOURCES_MAX = 16


class Began(msgspec.Struct, frozen=True):
    """The transfer starts."""


class Ticked(msgspec.Struct, frozen=True):
    """Time has passed."""


class ChunkStored(msgspec.Struct, frozen=True):
    """A chunk of a source was right and is on its way to the disk."""

    source: int
    chunk: int


class ChunkWrong(msgspec.Struct, frozen=True):
    """A chunk of a source was not what the manifest says; its source sends on."""

    source: int
    chunk: int


class SourceEnded(msgspec.Struct, frozen=True):
    """An answer is over.

    Attributes:
        came: how many chunks of the span came whole, from its beginning. They are being judged, or were; the rest is
            missing again.
    """

    source: int
    came: int


class SourceBroke(msgspec.Struct, frozen=True):
    """An answer failed.

    Attributes:
        came: as in SourceEnded.
        reason: for people.
        is_final: asking again cannot help, such as a source that does not have the file.
        retry_after_s: the source's own wish; None leaves it to us.
    """

    source: int
    came: int
    reason: str
    is_final: bool = False
    retry_after_s: float | None = None


class Ask(msgspec.Struct, frozen=True):
    """Ask a source for consecutive chunks."""

    source: int
    first: int
    count: int


class Blamed(msgspec.Struct, frozen=True):
    """Say once that a source sent a wrong chunk and goes behind the others."""

    source: int
    chunk: int


class Finished(msgspec.Struct, frozen=True):
    """Every chunk is there."""


class GaveUp(msgspec.Struct, frozen=True):
    """It cannot be fetched now; what is finished stays. `reasons` by source, empty for one that never failed."""

    reasons: tuple[str, ...]


Event = Began | Ticked | ChunkStored | ChunkWrong | SourceEnded | SourceBroke
Effect = Ask | Blamed | Finished | GaveUp


class _Phase(StrEnum):
    IDLE = "idle"
    ASKED = "asked"
    RESTING = "resting"
    OUT = "out"


class _Source(msgspec.Struct):
    phase: _Phase = _Phase.IDLE
    strikes: int = 0
    breaks: int = 0
    until_ns: int = 0
    reason: str = ""
    span: range = range(0)
    asked: set[int] = msgspec.field(default_factory=set)


class Transfer:
    """The machine of one file.

    Args:
        chunks: how many the file has.
        finished: those that are there already.
        sources: how many there are; they are known by their index, the preferred one first.
        at_once: how many are asked at the same time.
        patience_s: for how long nothing may come before it gives up.
    """

    def __init__(
        self, chunks: int, finished: Collection[int], sources: int, *, at_once: int = 1, patience_s: float = 60.0
    ) -> None:
        assert chunks > 0
        assert 0 <= sources <= SOURCES_MAX
        self._free = sorted(set(range(chunks)) - set(finished), reverse=True)
        self._left = len(self._free)
        self._sources = [_Source() for _ in range(sources)]
        self._at_once = max(1, at_once)
        self._patience_ns = round(patience_s * 1e9)
        self._moved_ns: int | None = None
        self._is_over = False

    @property
    def is_over(self) -> bool:
        """Return whether Finished or GaveUp was returned."""
        return self._is_over

    def step(self, event: Event, now_ns: int, seed: int = 0) -> Sequence[Effect]:
        """Return what follows from an event; after the end, nothing."""
        if self._is_over:
            return ()
        if self._moved_ns is None:
            self._moved_ns = now_ns
        effects: list[Effect] = []
        match event:
            case ChunkStored():
                self._take(event, now_ns)
            case ChunkWrong():
                effects += self._blame(event)
            case SourceEnded(source, came):
                self._release(source, came, _Phase.IDLE)
            case SourceBroke():
                self._rest(event, now_ns, seed)
            case Began() | Ticked():
                pass
        if self._left == 0:
            self._is_over = True
            return [*effects, Finished()]
        effects += self._ask(now_ns)
        return [*effects, *self._judge(now_ns)]

    def wake_ns(self) -> int | None:
        """Return when a Ticked is due, or None when none is."""
        if self._is_over or self._moved_ns is None:
            return None
        resting = [source.until_ns for source in self._sources if source.phase is _Phase.RESTING]
        return min([*resting, self._moved_ns + self._patience_ns])

    def _take(self, event: ChunkStored, now_ns: int) -> None:
        source = self._sources[event.source]
        if event.chunk in source.asked:
            source.asked.discard(event.chunk)
            source.breaks = 0
            self._left -= 1
            self._moved_ns = now_ns

    def _blame(self, event: ChunkWrong) -> Sequence[Effect]:
        source = self._sources[event.source]
        if event.chunk not in source.asked:
            return ()
        source.asked.discard(event.chunk)
        self._give_back({event.chunk})
        source.strikes += 1
        source.reason = f"chunk {event.chunk} has another hash than the manifest says"
        if source.strikes >= STRIKES_MAX and source.phase is not _Phase.ASKED:
            source.phase = _Phase.OUT
        return (Blamed(event.source, event.chunk),) if source.strikes == 1 else ()

    def _release(self, index: int, came: int, phase: _Phase) -> None:
        source = self._sources[index]
        lost = source.asked.intersection(source.span[came:])
        self._give_back(lost)
        source.asked -= lost
        source.span = range(0)
        source.phase = _Phase.OUT if source.strikes >= STRIKES_MAX else phase

    def _rest(self, event: SourceBroke, now_ns: int, seed: int) -> None:
        source = self._sources[event.source]
        self._release(event.source, event.came, _Phase.OUT if event.is_final else _Phase.RESTING)
        source.reason = event.reason
        source.breaks += 1
        rest_s = event.retry_after_s
        if rest_s is None:
            rest_s = choose_backoff_s(source.breaks, seed, base_s=REST_BASE_S, max_s=REST_MAX_S)
        source.until_ns = now_ns + round(rest_s * 1e9)

    def _give_back(self, chunks: Collection[int]) -> None:
        if chunks:
            # Highest first, so that the lowest are taken from the end.
            self._free = sorted({*self._free, *chunks}, reverse=True)

    def _ask(self, now_ns: int) -> list[Effect]:
        for source in self._sources:
            if source.phase is _Phase.RESTING and source.until_ns <= now_ns:
                source.phase = _Phase.IDLE
        effects: list[Effect] = []
        while self._free:
            index = self._choose_source()
            if index is None:
                break
            first, count = self._cut_span()
            self._sources[index].phase = _Phase.ASKED
            self._sources[index].span = range(first, first + count)
            self._sources[index].asked |= set(self._sources[index].span)
            effects.append(Ask(index, first, count))
        return effects

    def _choose_source(self) -> int | None:
        """Return the best idle source, unless enough are asked or a cleaner one is busy or rests a moment."""
        asked = sum(source.phase is _Phase.ASKED for source in self._sources)
        usable = [index for index, source in enumerate(self._sources) if source.phase is not _Phase.OUT]
        if asked >= self._at_once or not usable:
            return None
        ranks = {index: (self._is_silent(index), self._sources[index].strikes) for index in usable}
        best = [index for index in usable if ranks[index] == min(ranks.values())]
        idle = [index for index in best if self._sources[index].phase is _Phase.IDLE]
        return idle[0] if idle else None

    def _is_silent(self, index: int) -> bool:
        return self._sources[index].breaks >= SILENT_BREAKS

    def _cut_span(self) -> tuple[int, int]:
        """Take the lowest run of free chunks, no longer than one source's share of what is not finished."""
        usable = sum(source.phase in (_Phase.IDLE, _Phase.ASKED) for source in self._sources)
        share = -(-self._left // min(self._at_once, max(1, usable)))
        most = max(1, min(SPAN_CHUNKS_MAX, share))
        first = self._free.pop()
        count = 1
        while count < most and self._free and self._free[-1] == first + count:
            self._free.pop()
            count += 1
        return first, count

    def _judge(self, now_ns: int) -> Sequence[Effect]:
        """Give up when nobody may be asked any more, or nothing has come for too long."""
        assert self._moved_ns is not None
        is_out = all(source.phase is _Phase.OUT for source in self._sources)
        if not is_out and now_ns - self._moved_ns < self._patience_ns:
            return ()
        self._is_over = True
        return (GaveUp(tuple(source.reason for source in self._sources)),)
