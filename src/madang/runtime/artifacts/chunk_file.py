"""A file that is fetched in chunks: its bytes at their places, and a journal of the chunks that are safe.

Owns both files and the order in which they become durable. Refuses to judge chunks: only verified ones are handed in.
Called by the transfer, which writes, and by whoever serves a file that is still being fetched.

    <sha256>.data      the bytes, as long as the whole file from the start, with holes
    <sha256>.journal   MDGCHNK1, the SHA-256 of what the manifest says of the file, then a record of eight bytes for
                       each finished chunk: its index and a CRC-32 over manifest and index, little endian

A chunk is finished when its record is in the journal. Records are written after `fdatasync` of the bytes that they
speak of, so that a kill or a lost power leaves a finished chunk or nothing; a record that was torn is no record.
"""

import contextlib
import hashlib
import os
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from madang.core import Unavailable
from madang.runtime.files import sync_folder
from madang.wire.artifacts import FileChunks

_MAGIC = b"MDGCHNK1"
_HEADER_BYTES = 40
_RECORD_BYTES = 8
_encoder = msgspec.json.Encoder(order="sorted")


class ChunkFile:
    """One file on its way, opened for writing; `close` it.

    Threads may write different chunks at once; `flush` may run beside them.
    """

    def __init__(self, folder: Path, file: FileChunks) -> None:
        """Open what an earlier life left, or begin.

        Raises:
            Unavailable: naming the path that cannot be written.
        """
        self.file = file
        self.data_path, self.journal_path = data_path(folder, file.sha256), journal_path(folder, file.sha256)
        self._digest = _digest_of(file)
        self._lock = threading.Lock()
        self._flush_lock = threading.Lock()
        self._unsynced: list[int] = []
        with explained(self.data_path):
            folder.mkdir(parents=True, exist_ok=True)
            self.finished = read_finished(folder, file)
            self._data = os.open(self.data_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._journal = os.open(self.journal_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                self._begin(folder)
            except OSError:
                self.close()
                raise

    def _begin(self, folder: Path) -> None:
        whole_bytes = _HEADER_BYTES
        if self.finished:
            # A torn record at the end would shift those after it.
            records = (os.fstat(self._journal).st_size - _HEADER_BYTES) // _RECORD_BYTES
            whole_bytes = _HEADER_BYTES + records * _RECORD_BYTES
            os.ftruncate(self._journal, whole_bytes)
        else:
            os.ftruncate(self._journal, 0)
            os.pwrite(self._journal, _MAGIC + self._digest, 0)
        os.fsync(self._journal)
        os.lseek(self._journal, whole_bytes, os.SEEK_SET)
        # After the journal: one that an earlier file left must not speak of a fresh file full of holes.
        os.ftruncate(self._data, self.file.size_bytes)
        sync_folder(folder)

    def write(self, index: int, data: memoryview) -> None:
        """Put a verified chunk at its place; it is finished once flushed."""
        start, size_bytes = self.file.span_of(index)
        assert len(data) == size_bytes
        with explained(self.data_path):
            done_bytes = 0
            while done_bytes < size_bytes:
                done_bytes += os.pwrite(self._data, data[done_bytes:], start + done_bytes)
        with self._lock:
            self._unsynced.append(index)

    def flush(self) -> None:
        """Make what was written durable, then say so in the journal."""
        with self._flush_lock:
            with self._lock:
                indices, self._unsynced = self._unsynced, []
            if not indices:
                return
            with explained(self.data_path):
                os.fdatasync(self._data)
                os.write(self._journal, b"".join(_record(self._digest, index) for index in indices))
                os.fdatasync(self._journal)
            with self._lock:
                self.finished |= set(indices)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Read bytes that were written before; return how many."""
        return os.preadv(self._data, [buffer], offset)

    def find_wrong(self) -> list[int]:
        """Return the finished chunks whose bytes on disk are not what the manifest says; reads the whole file."""
        wrong = []
        buffer = memoryview(bytearray(self.file.chunk_bytes))
        for index in sorted(self.finished):
            start, size_bytes = self.file.span_of(index)
            got = self.read_into(start, buffer[:size_bytes])
            if hashlib.sha256(buffer[:got]).hexdigest() != self.file.chunk_sha256s[index]:
                wrong.append(index)
        return wrong

    def forget(self, indices: list[int]) -> None:
        """Take chunks for missing again: their bytes on disk went bad."""
        with explained(self.journal_path), self._flush_lock:
            self.finished -= set(indices)
            os.ftruncate(self._journal, _HEADER_BYTES)
            os.lseek(self._journal, _HEADER_BYTES, os.SEEK_SET)
            os.write(self._journal, b"".join(_record(self._digest, index) for index in sorted(self.finished)))
            os.fsync(self._journal)

    def remove(self) -> None:
        """Remove the journal, and the bytes if they are still here."""
        self.journal_path.unlink(missing_ok=True)
        self.data_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close both files; what was not flushed is not finished."""
        os.close(self._data)
        os.close(self._journal)


def data_path(folder: Path, sha256: str) -> Path:
    """Return where the bytes of an unfinished file lie."""
    return folder / f"{sha256}.data"


def journal_path(folder: Path, sha256: str) -> Path:
    """Return where the journal of an unfinished file lies."""
    return folder / f"{sha256}.journal"


def read_finished(folder: Path, file: FileChunks) -> set[int]:
    """Return the finished chunks; none when there is no journal, or one that speaks of another manifest."""
    path = data_path(folder, file.sha256)
    try:
        journal = journal_path(folder, file.sha256).read_bytes()
        if path.stat().st_size != file.size_bytes:
            return set()
    except OSError:
        return set()
    digest = _digest_of(file)
    if journal[:_HEADER_BYTES] != _MAGIC + digest:
        return set()
    found = set()
    for offset in range(_HEADER_BYTES, len(journal) - _RECORD_BYTES + 1, _RECORD_BYTES):
        index = int.from_bytes(journal[offset : offset + 4], "little")
        if index < file.chunks and journal[offset : offset + _RECORD_BYTES] == _record(digest, index):
            found.add(index)
    return found


def _digest_of(file: FileChunks) -> bytes:
    return hashlib.sha256(
        _encoder.encode((file.sha256, file.size_bytes, file.chunk_bytes, file.chunk_sha256s))
    ).digest()


def _record(digest: bytes, index: int) -> bytes:
    number = index.to_bytes(4, "little")
    return number + zlib.crc32(digest + number).to_bytes(4, "little")


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raise what the operating system says of `path` as Unavailable."""
    try:
        yield
    except OSError as error:
        raise Unavailable(
            f"cannot write {error.filename or path}: {error.strerror}",
            next_step="free space or mend the permission, or set MADANG_CACHE to another folder",
        ) from error
