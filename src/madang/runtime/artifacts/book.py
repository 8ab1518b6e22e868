"""What a program fetches just now, and what came of all that it fetched: rows for people, counts for metrics.

Owns both. Refuses to fetch, to choose sources and to speak HTTP. Written by the threads that fetch, read by admin APIs
and metrics; a lock that is held for a few instructions lies between.

Sources are counted by name where there are few of them (sites, and what the settings name) and by kind where a catalog
may name any number, so that the labels of metrics stay bounded.
"""

import threading
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field

import msgspec

from madang.core import Clock, ns_to_s
from madang.model import ArtifactFile, FileTransfer, TransferState
from madang.runtime.artifacts.transfer import ChunkWatch

RATE_OVER_S = 5.0
_SAMPLE_EVERY_S = 0.1
ROWS_MAX = 256
"""Files that are shown; a site that wants more is shown the first of them."""
SOURCES_MAX = 64
OTHER = "other"
_NAMED = ("site ", "store ", "folder ")
_KINDS = {"http": "publisher", "package": "package", "system": "package", "recipe": "recipe"}


@dataclass
class SourceCounts:
    """What came of one source."""

    fetched_bytes: int = 0
    right_chunks: int = 0
    wrong_chunks: int = 0
    breaks: int = 0


@dataclass
class TransferCounts:
    """What came of all transfers of this life.

    Attributes:
        ended: by result: `done`, `failed`, `cancelled`.
        resumed: those that found something of an earlier try.
        resumed_bytes: what of it was not fetched again.
        seconds: they took, together.
    """

    ended: dict[str, int] = field(default_factory=lambda: {"done": 0, "failed": 0, "cancelled": 0})
    resumed: int = 0
    resumed_bytes: int = 0
    seconds: float = 0.0
    sources: dict[str, SourceCounts] = field(default_factory=dict)


@dataclass
class _Row:
    fact: FileTransfer
    began_ns: int = 0
    giver: str = ""
    samples: deque[tuple[int, int]] = field(default_factory=deque)


def label_of(source: str) -> str:
    """Return how a source is counted, given its name in words."""
    if source in ("disk", "site cache") or source.startswith(_NAMED):
        return source
    if source.endswith(" wheels"):
        return "index"
    return next((kind for word, kind in _KINDS.items() if source.startswith(word)), OTHER)


class TransferBook(ChunkWatch):
    """The transfers of one program."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._rows: dict[str, _Row] = {}
        self._counts = TransferCounts()

    # Of one file: wait*, then see*, then end

    def wait(self, file: ArtifactFile, done_bytes: int = 0) -> None:
        """Note that somebody else on the machine fetches it, and how far that is."""
        with self._lock:
            self._put(file, TransferState.WAITING, done_bytes=done_bytes)

    def see(self, file: ArtifactFile, source: str, done_bytes: int) -> None:
        """Note how far it is; what is there at the first call was kept from before.

        Args:
            file: which.
            source: who is asked, in words; who gave the last chunk is shown instead, once there is one.
            done_bytes: what is here.
        """
        now_ns = self._clock.monotonic_ns()
        with self._lock:
            row = self._rows.get(file.sha256)
            if row is None or row.fact.state is not TransferState.FETCHING:
                row = self._put(file, TransferState.FETCHING, kept_bytes=done_bytes)
                row.began_ns = now_ns
                self._counts.resumed += done_bytes > 0
                self._counts.resumed_bytes += done_bytes
            if not row.samples or ns_to_s(now_ns - row.samples[-1][0]) >= _SAMPLE_EVERY_S:
                row.samples.append((now_ns, done_bytes))
            while ns_to_s(now_ns - row.samples[0][0]) > RATE_OVER_S and len(row.samples) > 1:
                row.samples.popleft()
            row.fact = msgspec.structs.replace(row.fact, source=row.giver or source, done_bytes=done_bytes)

    def end(self, file: ArtifactFile, *, reason: str = "", is_cancelled: bool = False) -> None:
        """Note that a try is over: `reason` says why it failed, and stays to be seen until the next one.

        A file that another program brought is no transfer of ours, and not counted.
        """
        with self._lock:
            row = self._rows.pop(file.sha256, None)
            has_fetched = row is not None and row.fact.state is TransferState.FETCHING
            if has_fetched or reason or is_cancelled:
                self._counts.ended["cancelled" if is_cancelled else "failed" if reason else "done"] += 1
            if row is not None and row.began_ns:
                self._counts.seconds += ns_to_s(self._clock.monotonic_ns() - row.began_ns)
            if reason and not is_cancelled:
                done_bytes = row.fact.done_bytes if row is not None else 0
                self._put(file, TransferState.FAILED, done_bytes=done_bytes, reason=reason)

    def keep_only(self, sha256s: Collection[str]) -> None:
        """Remove what failed and is not wanted any more."""
        with self._lock:
            for sha256, row in list(self._rows.items()):
                if sha256 not in sha256s and row.fact.state is TransferState.FAILED:
                    del self._rows[sha256]

    def _put(
        self, file: ArtifactFile, state: TransferState, *, done_bytes: int = 0, kept_bytes: int = 0, reason: str = ""
    ) -> _Row:
        while len(self._rows) >= ROWS_MAX and file.sha256 not in self._rows:
            del self._rows[next(iter(self._rows))]
        row = self._rows[file.sha256] = _Row(
            FileTransfer(
                name=file.name,
                sha256=file.sha256,
                size_bytes=file.size_bytes,
                state=state,
                done_bytes=done_bytes or kept_bytes,
                kept_bytes=kept_bytes,
                reason=reason,
                began_at_s=self._clock.wall_s(),
            )
        )
        return row

    # Of sources

    def judged(self, sha256: str, source: str, size_bytes: int, *, is_right: bool) -> None:
        """Count a chunk."""
        with self._lock:
            counts, row = self._source(source), self._rows.get(sha256)
            if is_right:
                counts.right_chunks += 1
                counts.fetched_bytes += size_bytes
                if row is not None:
                    row.giver = source
                return
            counts.wrong_chunks += 1
            if row is not None:
                row.fact = msgspec.structs.replace(row.fact, wrong_chunks=row.fact.wrong_chunks + 1)

    def broke(self, source: str) -> None:
        """Count a failure or a refusal."""
        with self._lock:
            self._source(source).breaks += 1

    def came_whole(self, source: str, size_bytes: int) -> None:
        """Count the bytes of a file that came from one end to the other, verified as a whole."""
        with self._lock:
            self._source(source).fetched_bytes += size_bytes

    def _source(self, source: str) -> SourceCounts:
        label = label_of(source)
        if label not in self._counts.sources and len(self._counts.sources) >= SOURCES_MAX:
            label = OTHER
        return self._counts.sources.setdefault(label, SourceCounts())

    # Reading

    def rows(self) -> tuple[FileTransfer, ...]:
        """Return what is being fetched or failed last, by name."""
        now_ns = self._clock.monotonic_ns()
        with self._lock:
            found = [msgspec.structs.replace(row.fact, rate_bytes_s=_rate(row, now_ns)) for row in self._rows.values()]
        return tuple(sorted(found, key=lambda one: (one.name, one.sha256)))

    def counts(self) -> TransferCounts:
        """Return a copy of the counts."""
        with self._lock:
            sources = {label: SourceCounts(**vars(counts)) for label, counts in self._counts.sources.items()}
            return TransferCounts(
                ended=dict(self._counts.ended),
                resumed=self._counts.resumed,
                resumed_bytes=self._counts.resumed_bytes,
                seconds=self._counts.seconds,
                sources=sources,
            )


def _rate(row: _Row, now_ns: int) -> float:
    """Return bytes a second since the oldest sample that is young enough; nothing new lets it fall to 0."""
    young = [sample for sample in row.samples if ns_to_s(now_ns - sample[0]) <= RATE_OVER_S]
    if row.fact.state is not TransferState.FETCHING or not young:
        return 0.0
    since_ns, had_bytes = young[0]
    took_s = ns_to_s(now_ns - since_ns)
    return round((row.fact.done_bytes - had_bytes) / took_s, 1) if took_s > 0 else 0.0
