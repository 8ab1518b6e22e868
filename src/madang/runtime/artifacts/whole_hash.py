"""The SHA-256 of a whole file while its chunks come: hashed in order, from what is on disk, as far as it has come.

Owns the order and the reading. Refuses to know sources. Called by the transfer, in a thread of its own. Reading back
what was just written costs a copy from the page cache, and finds what the disk's own path did to the bytes.
"""

import hashlib
import threading

from madang.core import Unavailable
from madang.runtime.artifacts.chunk_file import ChunkFile

_READ_BYTES = 1024 * 1024


class WholeHash:
    """Follows the chunks that are there without a gap from the beginning."""

    def __init__(self, chunk_file: ChunkFile) -> None:
        self._chunks = chunk_file
        self._seen = set(chunk_file.finished)
        self._changed = threading.Condition()
        self._is_stopped = False
        self._digest = ""

    def see(self, chunk: int) -> None:
        """Note that a chunk was written."""
        with self._changed:
            self._seen.add(chunk)
            self._changed.notify_all()

    def stop(self) -> None:
        """End the thread early."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    def follow(self) -> None:
        """Hash until the end of the file or until stopped; runs in the thread."""
        file = self._chunks.file
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(min(_READ_BYTES, file.chunk_bytes)))
        for chunk in range(file.chunks):
            if not self._wait_for(chunk):
                return
            offset, size_bytes = file.span_of(chunk)
            end = offset + size_bytes
            while offset < end:
                got = self._chunks.read_into(offset, buffer[: min(len(buffer), end - offset)])
                if got == 0:
                    raise Unavailable(f"{self._chunks.data_path} ends at byte {offset}: something else cut it")
                digest.update(buffer[:got])
                offset += got
        with self._changed:
            self._digest = digest.hexdigest()
            self._changed.notify_all()

    def result(self, wait_s: float) -> str | None:
        """Wait so long for the end and return the hex digest, or None when it is not there yet."""
        with self._changed:
            self._changed.wait_for(lambda: self._digest, wait_s)
            return self._digest or None

    def _wait_for(self, chunk: int) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: chunk in self._seen or self._is_stopped)
            return not self._is_stopped
