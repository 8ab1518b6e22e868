"""Encrypted blobs on the site's disk: written whole or not at all, read in pieces.

Owns the folder and what a crash may leave in it. Refuses to know tenants and rows: whoever calls keeps sealed keys. All
of it blocks and belongs on a thread. A blob is written beside its name, synced, and renamed; at a start what no row
knows is removed.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from madang.core import Entropy, Fault, Unavailable
from madang.runtime.files import sync_folder
from madang.site.files.crypt import (
    CHUNK_BYTES,
    HEADER_BYTES,
    KEY_BYTES,
    MAGIC,
    NONCE_BYTES,
    PREFIX_BYTES,
    TAG_BYTES,
    ChunkCipher,
    open_key,
    seal_key,
)

PIECE_CHUNKS = 16
"""Chunks that one read returns together: a megabyte."""
_SUFFIX = ".blob"
_UNFINISHED = ".new"


class BlobWriter:
    """One blob being written."""

    def __init__(self, path: Path, key: bytes, prefix: bytes, context: str) -> None:
        self._path = path
        self._temporary = path.with_name(path.name + _UNFINISHED)
        self._cipher = ChunkCipher(key, prefix, context)
        self._pending = bytearray()
        self.size_bytes = 0
        try:
            self._file: BinaryIO = os.fdopen(
                os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb"
            )
            self._file.write(MAGIC + prefix)
        except OSError as error:
            raise _unwritable(self._temporary, error) from error

    def write(self, data: bytes) -> None:
        """Take more of the content; raises Unavailable when the disk does not."""
        self.size_bytes += len(data)
        self._pending += data
        # One chunk stays back: only at the end is it known which one is the last.
        while len(self._pending) > CHUNK_BYTES:
            chunk = bytes(self._pending[:CHUNK_BYTES])
            del self._pending[:CHUNK_BYTES]
            self._put(self._cipher.seal(chunk, is_last=False))

    def finish(self) -> None:
        """Make the blob durable under its name."""
        self._put(self._cipher.seal(bytes(self._pending), is_last=True))
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._temporary, self._path)
            sync_folder(self._path.parent)
        except OSError as error:
            self.abort()
            raise _unwritable(self._path, error) from error

    def abort(self) -> None:
        """Leave nothing behind."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _put(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            self.abort()
            raise _unwritable(self._temporary, error) from error


class BlobStore:
    """The folder of blobs, and the master key."""

    def __init__(self, folder: Path, master: bytes, entropy: Entropy) -> None:
        self._folder = folder
        self._master = master
        self._entropy = entropy

    def make_key(self, blob_id: str) -> bytes:
        """Return a fresh sealed key for a blob."""
        fresh = self._entropy.token_bytes(KEY_BYTES)
        return seal_key(self._master, fresh, blob_id, self._entropy.token_bytes(NONCE_BYTES))

    def open_key(self, blob_id: str, sealed_key: bytes) -> bytes:
        """Return a blob's key; raises Fault when it does not open."""
        return open_key(self._master, sealed_key, blob_id)

    def writer(self, blob_id: str, sealed_key: bytes) -> BlobWriter:
        """Begin to write a blob; raises Unavailable when its folder does not take it."""
        key = self.open_key(blob_id, sealed_key)
        return BlobWriter(self._path(blob_id), key, self._entropy.token_bytes(PREFIX_BYTES), blob_id)

    def read(self, blob_id: str, sealed_key: bytes) -> Iterator[bytes]:
        """Yield a blob's content, a megabyte at a time; what is yielded is what was stored.

        Raises:
            Fault: the blob is missing, damaged, shortened or another's.
        """
        key = self.open_key(blob_id, sealed_key)
        try:
            with self._path(blob_id).open("rb") as file:
                left = os.fstat(file.fileno()).st_size - HEADER_BYTES
                header = file.read(HEADER_BYTES)
                if left < TAG_BYTES or header[: len(MAGIC)] != MAGIC:
                    raise Fault(f"{blob_id} is damaged: it has no header")
                cipher = ChunkCipher(key, header[len(MAGIC) :], blob_id)
                while left > 0:
                    piece = file.read(min(left, PIECE_CHUNKS * (CHUNK_BYTES + TAG_BYTES)))
                    if not piece:
                        raise Fault(f"{blob_id} became shorter while it was read")
                    left -= len(piece)
                    yield b"".join(_open_chunks(cipher, piece, is_end=left == 0))
        except OSError as error:
            raise Fault(f"{blob_id} cannot be read: {error.strerror}") from error

    def remove(self, blob_id: str) -> None:
        """Remove a blob; without its key it was unreadable before."""
        try:
            self._path(blob_id).unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(self._path(blob_id), error) from error

    def remove_unknown(self, known: frozenset[str]) -> int:
        """Remove what a crash left: unfinished blobs, and those that no row knows; return how many."""
        removed = 0
        for path in self._folder.iterdir():
            if path.suffix == _UNFINISHED or (path.suffix == _SUFFIX and path.stem not in known):
                path.unlink(missing_ok=True)
                removed += 1
        return removed

    def _path(self, blob_id: str) -> Path:
        return self._folder / (blob_id + _SUFFIX)


def _open_chunks(cipher: ChunkCipher, piece: bytes, *, is_end: bool) -> Iterator[bytes]:
    step = CHUNK_BYTES + TAG_BYTES
    for at in range(0, len(piece), step):
        yield cipher.open(piece[at : at + step], is_last=is_end and at + step >= len(piece))


def _unwritable(path: Path, error: OSError) -> Unavailable:
    return Unavailable(
        f"cannot write {path.name} in {path.parent}: {error.strerror}",
        next_step="free space on its disk",
        retry_after_s=5.0,
    )
