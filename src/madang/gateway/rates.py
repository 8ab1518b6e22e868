"""What keys used of their limits at this site: counted by each worker, summed over all.

Owns one file per worker, `rates-<worker>.bin` in the feed folder: a table of keys with their requests and tokens of two
minutes and the requests under way. Only its worker writes it, under a lock that dies with the process; the others map
it and add it to their own. Refuses to know limits and answers: `key_rates` does.

The arithmetic is `machine.rates`. Two workers that admit at the same instant may each take the last place, so a limit
is exceeded by at most one request for each further worker. A worker that died counts on for what it admitted in these
minutes, but not for what it had under way. Time is the machine's monotonic clock, which all of its processes share.

A key that has used nothing for two minutes loses its slot to another. SLOTS_MAX keys fit; where PROBES_MAX slots in a
row are all in use, a key is told to come again.
"""

import os
import re
import struct
from pathlib import Path

from madang.core import Clock, Unavailable
from madang.gateway.locks import is_locked, take_lock
from madang.machine.rates import MINUTE_MS, aged
from madang.runtime.mapped_words import MappedWords

SLOTS_MAX = 16_384
PROBES_MAX = 32
WORKERS_MAX = 256
MINUTE_NS = MINUTE_MS * 1_000_000
DEAD_KEPT_MS = 2 * MINUTE_MS
"""How long the table of a dead worker is still read; by then all it admitted has faded."""

# Words of the head, then of each slot.
_MAGIC = 0x3130_5345_5441_524D
"""`MRATES01`, little-endian."""
_HEAD_WORDS = 8
_MAGIC_WORD, _BOOT_WORD, _CLAIMS_WORD = 0, 1, 2
"""CLAIMS rises whenever a slot gets another key: until then a reader's look-up stays right."""
_SLOT_WORDS = 8
_KEY, _MINUTE, _REQUESTS, _TOKENS, _STREAMS = 0, 1, 2, 4, 6
"""The former minute's requests and tokens stand behind the present one's."""
_BYTES = 8 * (_HEAD_WORDS + SLOTS_MAX * _SLOT_WORDS)
_COUNTS = struct.Struct("<6Q")
Counts = tuple[int, int, int, int, int]
"""Requests, requests before, tokens, tokens before, requests under way."""
_NAME = re.compile(r"rates-([0-9]{1,3})\.bin\Z")


class Tally:
    """One key's counts as this worker keeps them; the table has the same."""

    __slots__ = ("base", "minute", "requests", "requests_before", "streams", "tokens", "tokens_before")

    def __init__(self, base: int, words: memoryview) -> None:
        """Take over what the table says.

        Attributes:
            base: where it is in the table; -1 once its slot is another key's.
        """
        self.base = base
        self.minute: int = words[base + _MINUTE]
        self.requests: int = words[base + _REQUESTS]
        self.requests_before: int = words[base + _REQUESTS + 1]
        self.tokens: int = words[base + _TOKENS]
        self.tokens_before: int = words[base + _TOKENS + 1]
        self.streams: int = words[base + _STREAMS]


class Claim:
    """What one request took; end it once.

    Attributes:
        tokens: that it was counted for.
        fields: header lines that say how the key stands.
    """

    __slots__ = ("_minute", "_table", "_tally", "fields", "tokens")

    def __init__(self, table: "RateTable", tally: Tally, tokens: int, fields: bytes) -> None:
        self._table = table
        self._tally = tally
        self._minute = tally.minute
        self.tokens = tokens
        self.fields = fields

    def end(self, tokens: int) -> None:
        """The request is over and used `tokens`, whatever it was expected to use."""
        self._table.give_back(self._tally, self._minute, 0, self.tokens - tokens)

    def undo(self) -> None:
        """The request does not begin after all."""
        self._table.give_back(self._tally, self._minute, 1, self.tokens)


class _Other:
    """Another worker's table as this one reads it."""

    __slots__ = ("bases", "claims", "dead_since_ms", "table", "words")

    def __init__(self, table: MappedWords) -> None:
        self.table = table
        self.words = table.words
        self.bases: dict[int, int] = {}
        self.claims = -1
        self.dead_since_ms: int | None = None


class RateTable:
    """One worker's counts, and a view of the other workers'."""

    def __init__(self, folder: Path, worker: int, *, boot: int, clock: Clock) -> None:
        """Take over this worker's file, or make it; what a former process had under way is over.

        Args:
            folder: of the feed.
            worker: its number.
            boot: of the machine; minutes of another boot mean nothing.
            clock: counts minutes.

        Attributes:
            now_ns: the clock that minutes are counted by.
            others: tables of the other workers, by file name.

        Raises:
            Unavailable: the file cannot be made, or another live worker of this number holds it.
        """
        self._folder = folder
        self._path = folder / f"rates-{worker}.bin"
        self._boot = boot
        self.now_ns = clock.monotonic_ns
        self._own = MappedWords(self._path, _BYTES, is_writer=True)
        try:
            take_lock(self._own.descriptor)
        except OSError as error:
            self._own.close()
            raise Unavailable(f"rates of worker {worker} are held by another process") from error
        self._words = words = self._own.words
        if words[_MAGIC_WORD]:
            self._adopt(is_known=words[_MAGIC_WORD] == _MAGIC and words[_BOOT_WORD] == boot)
        words[_BOOT_WORD], words[_MAGIC_WORD] = boot, _MAGIC
        self.others: dict[str, _Other] = {}
        self._tallies: dict[int, Tally] = {}
        self._is_closed = False

    def _adopt(self, *, is_known: bool) -> None:
        words = self._words
        for base in range(_HEAD_WORDS, len(words), _SLOT_WORDS):
            if words[base + _KEY]:
                words[base + _STREAMS] = 0
                if not is_known:
                    words[base + _KEY] = 0
        words[_CLAIMS_WORD] += 1

    def tally_of(self, key: int, minute: int) -> Tally | None:
        """Return a key's counts here; None where there is no place for them."""
        tally = self._tallies.get(key)
        if tally is not None:
            return tally
        words = self._words
        free = None
        for base in _places(key):
            found = words[base + _KEY]
            if found == key:
                free = base
                break
            if free is None and (not found or self._is_idle(base, minute)):
                free = base
            if not found:
                break
        if free is None:
            return None
        if words[free + _KEY] != key:
            self._give_slot(free, key, minute)
        tally = self._tallies[key] = Tally(free, words)
        return tally

    def _is_idle(self, base: int, minute: int) -> bool:
        written = self._words[base + _MINUTE]
        return not self._words[base + _STREAMS] and not minute - 1 <= written <= minute

    def _give_slot(self, base: int, key: int, minute: int) -> None:
        words = self._words
        former = self._tallies.pop(words[base + _KEY], None)
        if former is not None:
            former.base = -1
        words[base + _KEY] = 0
        for index in range(base + _MINUTE, base + _SLOT_WORDS):
            words[index] = 0
        words[base + _MINUTE] = minute
        words[base + _KEY] = key
        words[_CLAIMS_WORD] += 1

    def turn(self, tally: Tally, minute: int) -> None:
        """Begin the present minute in a key's counts."""
        minutes = minute - tally.minute
        tally.requests, tally.requests_before = aged(tally.requests, tally.requests_before, minutes)
        tally.tokens, tally.tokens_before = aged(tally.tokens, tally.tokens_before, minutes)
        tally.minute = minute
        words, base = self._words, tally.base
        words[base + _REQUESTS + 1], words[base + _TOKENS + 1] = tally.requests_before, tally.tokens_before
        words[base + _REQUESTS], words[base + _TOKENS] = tally.requests, tally.tokens
        words[base + _MINUTE] = minute

    def add_others(self, key: int, minute: int, counts: Counts) -> Counts:
        """Return what the other workers counted for a key added to `counts`."""
        requests, requests_before, tokens, tokens_before, streams = counts
        for other in self.others.values():
            words = other.words
            if words[_CLAIMS_WORD] != other.claims:
                other.bases.clear()
                other.claims = words[_CLAIMS_WORD]
            at = other.bases.get(key)
            if at is None:
                at = _find(other, key)
            if at < 0:
                continue
            written, one, before, used, used_before, under_way = _COUNTS.unpack_from(words, 8 * (at + _MINUTE))
            if other.dead_since_ms is None:
                streams += under_way
            if written == minute:
                requests, requests_before = requests + one, requests_before + before
                tokens, tokens_before = tokens + used, tokens_before + used_before
            elif written == minute - 1:
                requests_before += one
                tokens_before += used
        return requests, requests_before, tokens, tokens_before, streams

    def take(self, tally: Tally, tokens: int) -> None:
        """Count a request that begins."""
        words, base = self._words, tally.base
        tally.requests = words[base + _REQUESTS] = tally.requests + 1
        tally.tokens = words[base + _TOKENS] = tally.tokens + tokens
        tally.streams = words[base + _STREAMS] = tally.streams + 1

    def give_back(self, tally: Tally, minute: int, requests: int, tokens: int) -> None:
        """Count a request out, and take back what it was counted for too much; its slot was kept for it."""
        if self._is_closed:
            return
        words, base = self._words, tally.base
        tally.streams = words[base + _STREAMS] = tally.streams - 1
        now = self.now_ns() // MINUTE_NS
        if now != tally.minute:
            self.turn(tally, now)
        if minute == now:
            left = tally.tokens - tokens
            tally.tokens = words[base + _TOKENS] = max(0, left)
            if requests:
                tally.requests = words[base + _REQUESTS] = tally.requests - requests
        elif minute == now - 1:
            tally.requests_before = words[base + _REQUESTS + 1] = tally.requests_before - requests
            tally.tokens_before = words[base + _TOKENS + 1] = max(0, tally.tokens_before - tokens)

    def refresh(self) -> None:
        """Find the other workers' files, and which of their owners live."""
        now_ms = self.now_ns() // 1_000_000
        found = sorted(entry.name for entry in os.scandir(self._folder) if _NAME.match(entry.name))[:WORKERS_MAX]
        for name in found:
            if name != self._path.name and name not in self.others:
                self._map(name)
        for name, other in tuple(self.others.items()):
            if is_locked(other.table.descriptor):
                other.dead_since_ms = None
            elif other.dead_since_ms is None:
                other.dead_since_ms = now_ms
            if name not in found or (other.dead_since_ms is not None and now_ms - other.dead_since_ms > DEAD_KEPT_MS):
                del self.others[name]
                other.table.close()

    def _map(self, name: str) -> None:
        try:
            table = MappedWords(self._folder / name, _BYTES, is_writer=False)
        except Unavailable:
            return  # being made, or gone again
        words = table.words
        is_live = is_locked(table.descriptor)
        if words[_MAGIC_WORD] == _MAGIC and words[_BOOT_WORD] == self._boot and is_live:
            self.others[name] = _Other(table)
        else:
            table.close()

    def close(self) -> None:
        """Give the files back; nothing of this worker is under way any more."""
        self._is_closed = True
        self._own.close()
        for other in self.others.values():
            other.table.close()
        self.others.clear()


def _places(key: int) -> range:
    """Return the bases where a key may be; the last slots of the table have fewer."""
    first = key % (SLOTS_MAX - PROBES_MAX)
    start = _HEAD_WORDS + first * _SLOT_WORDS
    return range(start, start + PROBES_MAX * _SLOT_WORDS, _SLOT_WORDS)


def _find(other: _Other, key: int) -> int:
    """Return where a key is in another worker's table, -1 where it is not, and remember that."""
    words, base = other.words, -1
    for place in _places(key):
        found = words[place + _KEY]
        if found == key:
            base = place
        if found == key or not found:
            break
    other.bases[key] = base
    return base
