"""The in-flight table: how many requests each replica of this site works on, counted across worker processes.

Owns one file per worker, `inflight-<worker>.bin` in the feed folder: INFLIGHT_SLOTS little-endian u32 counters,
indexed by LocalReplica.slot, mapped into memory. Only its worker writes it, under an exclusive flock that dies with
the process; readers (other workers, the site process) sum the files whose lock is held. A torn read is impossible
for an aligned word, and a count that is a moment old is no harm. The machines that this runs on are little-endian,
so a word is read and written as it lies.
"""

import mmap
import os
import re
import struct
from pathlib import Path

from madang.core import Unavailable
from madang.gateway.locks import is_locked, take_lock

INFLIGHT_SLOTS = 256
FILE_BYTES = INFLIGHT_SLOTS * 4
WORKERS_MAX = 256
_WORD = struct.Struct("<I")
_NAME = re.compile(r"inflight-[0-9]{1,3}\.bin\Z")


class InFlightTable:
    """One worker's counters, and a view of the other workers'."""

    def __init__(self, folder: Path, worker: int) -> None:
        """Create or take over this worker's file.

        Raises:
            Unavailable: the file cannot be written, or another live worker of the same number holds it.
        """
        self._folder = folder
        self._path = folder / f"inflight-{worker}.bin"
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Unavailable(f"cannot write {self._path}: {error.strerror}") from error
        try:
            take_lock(self._descriptor)
            os.ftruncate(self._descriptor, FILE_BYTES)
            self._own = mmap.mmap(self._descriptor, FILE_BYTES)
        except OSError as error:
            os.close(self._descriptor)
            raise Unavailable(
                f"cannot take {self._path}: {error.strerror}",
                next_step="is another gateway worker of this number running?",
            ) from error
        self._own[:] = bytes(FILE_BYTES)
        self._words = memoryview(self._own).cast("I")
        self._others: dict[Path, tuple[int, mmap.mmap]] = {}

    def add(self, slot: int, change: int) -> None:
        """Count a request in (1) or out (-1)."""
        if 0 <= slot < INFLIGHT_SLOTS:
            self._words[slot] = max(self._words[slot] + change, 0)

    def total(self, slot: int) -> int:
        """Return the requests in flight of a slot over all live workers."""
        if not 0 <= slot < INFLIGHT_SLOTS:
            return 0
        count = self._words[slot]
        if self._others:
            at = slot * 4
            for _, table in self._others.values():
                count += _WORD.unpack_from(table, at)[0]
        return count

    def refresh(self) -> None:
        """Find the other workers' files; a file whose lock is free belongs to nobody alive and does not count."""
        found = sorted(path for path in self._folder.iterdir() if _NAME.match(path.name) and path != self._path)[
            :WORKERS_MAX
        ]
        for path in found:
            if path not in self._others:
                self._map(path)
        for path in tuple(self._others):
            descriptor, table = self._others[path]
            if path not in found or not is_locked(descriptor):
                table.close()
                os.close(descriptor)
                del self._others[path]

    def _map(self, path: Path) -> None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return  # gone again, or not ours to read: it then counts as nobody's
        if os.fstat(descriptor).st_size == FILE_BYTES and is_locked(descriptor):
            self._others[path] = descriptor, mmap.mmap(descriptor, FILE_BYTES, prot=mmap.PROT_READ)
        else:
            os.close(descriptor)

    def close(self) -> None:
        """Give the files back; the counters are zero from now on."""
        self._own[:] = bytes(FILE_BYTES)
        self._words.release()
        self._own.close()
        os.close(self._descriptor)
        for descriptor, table in self._others.values():
            table.close()
            os.close(descriptor)
        self._others.clear()
