"""A file of 64-bit words, mapped into memory: one process writes it, others read.

Owns opening and mapping. Refuses to know what a word means. Aligned words are read and written whole; the machines
that this runs on are little-endian, so a word is read and written as it lies. Called by the site process and by
gateway workers.
"""

import mmap
import os
from pathlib import Path

from madang.core import Unavailable

WORD_BYTES = 8
WORD_MAX = 2**64 - 1


class MappedWords:
    """The words of one file; index them as `table.words[i]`."""

    def __init__(self, path: Path, size_bytes: int, *, is_writer: bool) -> None:
        """Map a file; a writer makes it, filled up with zeros.

        Attributes:
            words: all of the file.
            descriptor: of the open file, for locks.

        Raises:
            Unavailable: it cannot be opened, or a reader finds another size: it is not there yet.
        """
        flags = (os.O_RDWR | os.O_CREAT) if is_writer else os.O_RDONLY
        try:
            self.descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Unavailable(f"cannot open {path}: {error.strerror}") from error
        try:
            if is_writer:
                os.ftruncate(self.descriptor, size_bytes)
            elif os.fstat(self.descriptor).st_size != size_bytes:
                raise Unavailable(f"{path} is not complete yet")
            protection = mmap.PROT_READ | (mmap.PROT_WRITE if is_writer else 0)
            self._map = mmap.mmap(self.descriptor, size_bytes, prot=protection)
        except OSError as error:
            os.close(self.descriptor)
            raise Unavailable(f"cannot map {path}: {error.strerror}") from error
        except Unavailable:
            os.close(self.descriptor)
            raise
        self.words = memoryview(self._map).cast("Q")
        self.inode = os.fstat(self.descriptor).st_ino

    def close(self) -> None:
        """Give the file back."""
        self.words.release()
        self._map.close()
        os.close(self.descriptor)
