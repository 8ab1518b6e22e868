"""The site process's hands on the workers' purse tables.

Owns the grant table of each worker and the view of the worker's own table. Refuses to decide amounts. Reading one that
did not change costs one comparison.
"""

import contextlib
import fcntl
import os
import struct
from pathlib import Path

import msgspec

from madang.core import Unavailable
from madang.runtime.mapped_words import MappedWords
from madang.site.locks import take_shared
from madang.wire.purse import (
    BOOT_WORD,
    GRANT_WORDS,
    GRANTED,
    GRANTS_BYTES,
    HEAD_WORDS,
    HINT,
    LIFE_WORD,
    MAGIC,
    MAGIC_WORD,
    NUMBER,
    RECALL,
    RECALLS_WORD,
    SLOTS_MAX,
    USED_WORD,
    WORKER_BYTES,
    WORKER_NAME,
    WORKER_WORDS,
    grants_name,
    worker_name,
)

WORKERS_MAX = 256
_SLOT = struct.Struct("<6Q")


class SlotState(msgspec.Struct, frozen=True, gc=False):
    """What a worker published of one pot."""

    number: int
    spent: int
    reserved: int
    returned: int
    needed: int


class WorkerTables:
    """Both tables of one worker."""

    def __init__(self, folder: Path, worker: int) -> None:
        """Map them; raises Unavailable when the worker's is not there yet."""
        self.worker = worker
        self._own = MappedWords(folder / worker_name(worker), WORKER_BYTES, is_writer=False)
        try:
            self._grants = MappedWords(folder / grants_name(worker), GRANTS_BYTES, is_writer=True)
        except Unavailable:
            self._own.close()
            raise
        self.inode = self._own.inode
        self._seen = b""
        self._life = 0

    @property
    def life(self) -> str:
        """The life of the worker's table, empty while there is none."""
        words = self._own.words
        life: int = words[LIFE_WORD]
        return f"{self.worker}.{life:x}" if words[MAGIC_WORD] == MAGIC and life else ""

    def is_of(self, boot: int) -> bool:
        """Return whether the table was begun since the machine started."""
        return bool(self._own.words[BOOT_WORD] == boot)

    def is_live(self) -> bool:
        """Return whether the worker's process lives."""
        if not take_shared(self._own.descriptor):
            return True
        with contextlib.suppress(OSError):
            fcntl.flock(self._own.descriptor, fcntl.LOCK_UN)
        return False

    def read_changes(self) -> list[tuple[int, SlotState]]:
        """Return the slots that changed since the last time, each with what it says now."""
        used = min(self._own.words[USED_WORD], SLOTS_MAX)
        data = bytes(self._own.words[HEAD_WORDS : HEAD_WORDS + used * WORKER_WORDS])
        if data == self._seen:
            return []
        seen, self._seen = self._seen, data
        size = _SLOT.size
        changed = []
        for slot in range(used):
            at = slot * size
            if data[at : at + size] != seen[at : at + size]:
                number, spent, reserved, returned, needed, _ = _SLOT.unpack_from(data, at)
                changed.append((slot, SlotState(number, spent, reserved, returned, needed)))
        return changed

    def forget(self) -> None:
        """Have every slot reported again."""
        self._seen = b""

    def begin_life(self) -> bool:
        """Clear the grants when the worker's life is a new one; return whether it was."""
        life: int = self._own.words[LIFE_WORD]
        if life == self._life:
            return False
        words = self._grants.words
        if words[LIFE_WORD] != life:
            words[LIFE_WORD] = 0
            for index in range(HEAD_WORDS, len(words)):
                if words[index]:
                    words[index] = 0
            words[LIFE_WORD] = life
        self._life = life
        self.forget()
        return True

    def grant(self, slot: int, number: int, granted: int) -> None:
        """Tell the worker what it was granted of a pot since its life began; it never falls."""
        base = self._claim(slot, number)
        words = self._grants.words
        words[base + GRANTED] = max(words[base + GRANTED], granted)

    def hint(self, slot: int, number: int, hint: int) -> None:
        """Tell the worker what a client should expect."""
        self._grants.words[self._claim(slot, number) + HINT] = hint

    def recall(self, slot: int, number: int) -> None:
        """Ask the worker to give back what it has not reserved of a pot."""
        words = self._grants.words
        words[self._claim(slot, number) + RECALL] += 1
        words[RECALLS_WORD] += 1

    def _claim(self, slot: int, number: int) -> int:
        base = HEAD_WORDS + slot * GRANT_WORDS
        words = self._grants.words
        if words[base + NUMBER] != number:
            words[base + NUMBER] = 0
            words[base + GRANTED] = words[base + RECALL] = words[base + HINT] = 0
            words[base + NUMBER] = number
        return base

    def close(self) -> None:
        """Give both back."""
        self._own.close()
        self._grants.close()


def find_workers(folder: Path) -> dict[int, int]:
    """Return the workers that have a table, with the inode of each.

    Raises:
        Unavailable: the folder cannot be read; that is not the same as no tables, with which money would be gone.
    """
    found: dict[int, int] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                match = WORKER_NAME.match(entry.name)
                if match and int(match[1]) < WORKERS_MAX:
                    found[int(match[1])] = entry.inode()
    except OSError as error:
        raise Unavailable(f"cannot look for purses in {folder}: {error.strerror}") from error
    return found


def open_tables(folder: Path, worker: int) -> WorkerTables | None:
    """Return a worker's tables, None while they cannot be mapped: it is just being made."""
    try:
        return WorkerTables(folder, worker)
    except Unavailable:
        return None
