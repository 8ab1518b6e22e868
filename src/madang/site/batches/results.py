"""The log of a batch's results while it runs: encrypted, append-only, durable line by line.

Owns its file. Refuses to know how lines run. What stands in it is done and is not run again; what does not, is not
done. All of it blocks and belongs on a thread.

A record is its length (four bytes, little endian), twelve random bytes, and the AES-256-GCM ciphertext of a kind byte,
the line's number (four bytes) and the result, bound to the batch. A crash may tear the last record: it is cut off.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from madang.core import Entropy, Fault, Unavailable
from madang.site.files.crypt import NONCE_BYTES

RECORD_BYTES_MAX = 160 * 1024 * 1024
"""Over the largest answer that a gateway passes on."""
_SIZE_BYTES = 4
_HEAD_BYTES = 5


class Result(NamedTuple):
    """One line's result; `is_error` ones go to the error file."""

    line: int
    is_error: bool
    data: bytes


class ResultLog:
    """The results of one batch."""

    def __init__(self, path: Path, key: bytes, batch_id: str, entropy: Entropy) -> None:
        self._path = path
        self._cipher = AESGCM(key)
        self._context = batch_id.encode()
        self._entropy = entropy

    def open(self) -> tuple[set[int], set[int]]:
        """Cut a torn end off and return the lines that are done well and those that failed.

        Raises:
            Fault: a record in the middle is damaged.
            Unavailable: the file cannot be had.
        """
        done: set[int] = set()
        failed: set[int] = set()
        end = 0
        for result, end in self._scan():  # noqa: B007 - where the last whole record ends
            (failed if result.is_error else done).add(result.line)
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.ftruncate(descriptor, end)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._unwritable(error) from error
        return done, failed

    def append(self, results: list[Result]) -> None:
        """Add results; they are durable when this returns. Raises Unavailable, and leaves none of them, otherwise."""
        data = b"".join(self._seal(result) for result in results)
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            try:
                self._put(descriptor, data)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._unwritable(error) from error

    def _put(self, descriptor: int, data: bytes) -> None:
        before = os.fstat(descriptor).st_size
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fdatasync(descriptor)
        except OSError:
            os.ftruncate(descriptor, before)  # half a record in the middle would make the rest unreadable
            raise

    def read(self) -> Iterator[Result]:
        """Yield all results in the order in which they came; raises Fault for a damaged record."""
        for result, _ in self._scan():
            yield result

    def remove(self) -> None:
        """Remove the log."""
        self._path.unlink(missing_ok=True)

    def _seal(self, result: Result) -> bytes:
        content = bytes([result.is_error]) + result.line.to_bytes(4, "little") + result.data
        nonce = self._entropy.token_bytes(NONCE_BYTES)
        sealed = nonce + self._cipher.encrypt(nonce, content, self._context)
        return len(sealed).to_bytes(_SIZE_BYTES, "little") + sealed

    def _scan(self) -> Iterator[tuple[Result, int]]:
        """Yield each whole record and where it ends; a torn last one ends the scan."""
        try:
            with self._path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                at = 0
                while at < size:
                    length = int.from_bytes(file.read(_SIZE_BYTES), "little")
                    end = at + _SIZE_BYTES + length
                    if end > size:
                        return
                    if not NONCE_BYTES < length <= RECORD_BYTES_MAX:
                        raise self._damaged(at)
                    result = self._open(file.read(length))
                    if result is None:
                        if end == size:
                            return  # its length reached the disk and its content did not
                        raise self._damaged(at)
                    yield result, end
                    at = end
        except FileNotFoundError:
            return
        except OSError as error:
            raise Fault(f"the results of {self._context.decode()} cannot be read: {error.strerror}") from error

    def _open(self, sealed: bytes) -> Result | None:
        try:
            content = self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], self._context)
        except InvalidTag:
            return None
        return Result(int.from_bytes(content[1:_HEAD_BYTES], "little"), bool(content[0]), content[_HEAD_BYTES:])

    def _damaged(self, at: int) -> Fault:
        return Fault(f"the results of {self._context.decode()} are damaged at byte {at}")

    def _unwritable(self, error: OSError) -> Unavailable:
        return Unavailable(
            f"the results of {self._context.decode()} cannot be written: {error.strerror}",
            next_step="free space on the site's disk",
            retry_after_s=5.0,
        )
