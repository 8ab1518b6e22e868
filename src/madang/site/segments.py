"""The workers' usage segments as files: which there are, what is new in them, and which are finished.

Owns reading, the test whether a writer lives, removal and quarantine. Refuses to write events anywhere: what was
read is handed over, and a segment is removed only when told that all of it is stored. Blocking; called by the
importer on a thread.

A worker holds an exclusive flock on the segment that it writes, takes it before the first byte, and never writes
to a segment again that it let go. So a lock that is free on a segment with content means: nothing will be added.
An empty one is left alone for a while, for its writer may be just about to take the lock.
"""

import contextlib
import fcntl
import os
import re
from pathlib import Path

import msgspec

from madang.core import Unavailable
from madang.model import UsageEvent
from madang.wire.usage_log import MAGIC, Gap, scan_records

CHUNK_BYTES_MAX = 1024 * 1024
"""Read from one segment at a time: some two thousand events."""
SEGMENTS_MAX = 10_000
"""Looked at in one pass; the rest waits for the next."""
EMPTY_KEPT_S = 10.0
QUARANTINE_FOLDER = "quarantine"
_NAME = re.compile(r"w[0-9]{1,3}-[0-9a-f]{1,32}-[0-9]{1,12}\.log\Z")


class SegmentRead(msgspec.Struct, frozen=True, kw_only=True):
    """What one reading of a segment gave.

    Attributes:
        name: of the file.
        start: offset at which the reading began.
        end: offset up to which everything is settled.
        events: between the two.
        gaps: damaged places between the two; offsets count from the start of the file.
    """

    name: str
    start: int
    end: int
    events: tuple[UsageEvent, ...]
    gaps: tuple[Gap, ...]


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """A segment to which nothing will be added and of which everything that is whole was stored.

    Attributes:
        name: of the file.
        tail_bytes: at its end, no whole record: what a crash cut off.
        is_quarantined: it was kept for people to look at, in the folder `quarantine`, instead of removed.
    """

    name: str
    tail_bytes: int
    is_quarantined: bool


class SegmentFolder:
    """The usage folder of one site."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._idle: dict[str, tuple[int, int, bool]] = {}

    def list_names(self) -> list[str]:
        """Return the names of all segments in order; raises Unavailable naming the folder."""
        try:
            names = os.listdir(self._folder)
        except OSError as error:
            raise Unavailable(
                f"cannot read usage folder {self._folder}: {error.strerror}", next_step="mend its permission"
            ) from error
        return sorted(filter(_NAME.match, names))[:SEGMENTS_MAX]

    def read(self, name: str, start: int) -> SegmentRead | None:
        """Return what is new in a segment from offset `start`, or None when there is nothing whole.

        Raises:
            Unavailable: the file cannot be read.
        """
        try:
            with (self._folder / name).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size <= start or size < len(MAGIC):
                    return None
                is_held = _is_held(file.fileno())
                if self._idle.get(name) == (start, size, is_held):
                    return None
                # The size is taken after the lock was seen free: then it is final.
                size = os.fstat(file.fileno()).st_size
                file.seek(start)
                data = file.read(CHUNK_BYTES_MAX)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Unavailable(f"cannot read usage segment {name}: {error.strerror}") from error
        is_end = not is_held and start + len(data) >= size
        found = _scan(name, start, data, is_end=is_end)
        if found is None:
            # Nothing whole yet: do not scan the same bytes ten times a second.
            self._idle[name] = (start, size, is_held)
        return found

    def finish(self, name: str, stored: int, *, has_gaps: bool, now_s: float) -> Finished | None:
        """Remove or quarantine a segment if nothing will be added and all that is whole was stored.

        Args:
            name: of the file.
            stored: offset up to which everything is stored, durably.
            has_gaps: whether damage was found in it, now or in an earlier life.
            now_s: wall time.

        Raises:
            Unavailable: it cannot be moved or removed.
        """
        path = self._folder / name
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_size < len(MAGIC) and now_s - status.st_mtime < EMPTY_KEPT_S:
                    return None
                if not _take(file.fileno()):
                    return None
                file.seek(stored)
                data = file.read(CHUNK_BYTES_MAX)
                if data and _scan(name, stored, data, is_end=True) is not None:
                    return None
                is_strange = has_gaps or not _has_magic(path, status.st_size)
                if is_strange:
                    self._quarantine(path)
                else:
                    path.unlink()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Unavailable(f"cannot remove usage segment {path}: {error.strerror}") from error
        self._idle.pop(name, None)
        tail_bytes = len(data.removeprefix(MAGIC) if stored == 0 else data)
        return Finished(name=name, tail_bytes=tail_bytes, is_quarantined=is_strange)

    def _quarantine(self, path: Path) -> None:
        folder = self._folder / QUARANTINE_FOLDER
        folder.mkdir(mode=0o700, exist_ok=True)
        path.rename(folder / path.name)


def _scan(name: str, start: int, data: bytes, *, is_end: bool) -> SegmentRead | None:
    """Return what is whole in `data`, or None; at the start of a file the magic is stepped over first."""
    skipped = len(MAGIC) if start == 0 else 0
    scan = scan_records(data[skipped:], is_end=is_end)
    gaps = tuple(Gap(offset=start + skipped + gap.offset, size_bytes=gap.size_bytes) for gap in scan.gaps)
    if skipped and data[:skipped] != MAGIC and scan.events:
        gaps = (Gap(offset=0, size_bytes=skipped), *gaps)
    if not scan.used_bytes:
        return None
    return SegmentRead(name=name, start=start, end=start + skipped + scan.used_bytes, events=scan.events, gaps=gaps)


def _has_magic(path: Path, size: int) -> bool:
    """Return whether a file is one of this release's; one too short to say so holds no record."""
    if size < len(MAGIC):
        return True
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _is_held(descriptor: int) -> bool:
    """Return whether a live process holds the exclusive lock of an open file."""
    if not _take(descriptor):
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def _take(descriptor: int) -> bool:
    """Take a shared lock if nobody holds the exclusive one."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


COUNTERS = 256
_TABLE_BYTES = COUNTERS * 4
_TABLE_NAME = re.compile(r"inflight-[0-9]{1,3}\.bin\Z")
_TABLES_MAX = 256


def sum_in_flight(folder: Path) -> list[int]:
    """Return requests in flight by slot, over the tables of all live gateway workers in the feed folder."""
    totals = [0] * COUNTERS
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = sorted(filter(_TABLE_NAME.match, os.listdir(folder)))[:_TABLES_MAX]
    for name in names:
        # A worker that starts or ends meanwhile is seen the next time, a quarter of a second later.
        with contextlib.suppress(OSError), (folder / name).open("rb") as file:
            data = file.read(_TABLE_BYTES)
            # The lock is looked at only where it decides, so that it is hardly ever in a starting worker's way.
            if len(data) == _TABLE_BYTES and any(data) and _is_held(file.fileno()):
                for slot in range(COUNTERS):
                    totals[slot] += int.from_bytes(data[4 * slot : 4 * slot + 4], "little")
    return totals
