"""The worker's purse: money that the site process granted to this worker, reserved before work and settled after.

Owns the worker's table and what is taken from it. Refuses to know requests, prices and the hub: `admission` says how
much, `site.leases` grants. A dead site process stops nobody while there is money here, and a worker that is killed
finds its table again: what it had reserved counts as spent, since nobody can know what of it was.

This process is the only writer of its table, so it keeps the amounts as numbers of its own and only writes them to the
table. What it was granted it reads again before it says no.
"""

import asyncio
import contextlib
from pathlib import Path

from madang.core import Clock, Entropy, Rejected, Unavailable
from madang.gateway.locks import take_lock
from madang.gateway.reservation import Draw, Line, OverdrawnReservation, Pot, Reservation, Shortage
from madang.model.lease import Period, Scope
from madang.runtime.mapped_words import MappedWords
from madang.runtime.telemetry import EventLog
from madang.wire.purse import (
    BOOT_WORD,
    DIRECTORY_FILE,
    GRANT_WORDS,
    GRANTED,
    GRANTS_BYTES,
    HEAD_WORDS,
    HINT,
    HINT_CUT,
    HINT_MORE,
    HINT_SPENT,
    LIFE_WORD,
    MAGIC,
    MAGIC_WORD,
    NEEDED,
    NUMBER,
    RECALL,
    RECALLS_WORD,
    RESERVED,
    RETURNED,
    SLOTS_MAX,
    SPENT,
    USED_WORD,
    WORKER_BYTES,
    WORKER_WORDS,
    PotEntry,
    decode_directory,
    grants_name,
    worker_name,
)

TICK_S = 0.05
NEED_LASTS_S = 10.0
"""How long a refused request's lack is published: its client may come again after Retry-After."""
DIRECTORY_BYTES_MAX = 16 * 1024 * 1024

_PotName = tuple[Scope, str, Period, bool]
_URGENCY = {HINT_MORE: 0, HINT_CUT: 1, HINT_SPENT: 2}
_EVERYTHING = 2**62
"""Beyond what any request costs."""


class Purse:
    """One worker's money."""

    def __init__(
        self,
        folder: Path,
        worker: int,
        *,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        entropy: Entropy,
        log: EventLog,
        boot: int,
    ) -> None:
        """Take over this worker's table, or make it.

        Args:
            folder: of the feed.
            worker: its number.
            loop: for the tick.
            clock: wall time, which says in which period a request is.
            entropy: names a new life.
            log: gets a directory that cannot be read.
            boot: of the machine; a table of another boot is not believed.

        Attributes:
            life: of the table, which grants must name.
            open_count: reservations that are not settled.

        Raises:
            Unavailable: the table cannot be made, or another worker of this number lives.
        """
        self._folder = folder
        self._loop, self._clock, self._log = loop, clock, log
        self._grants_path = folder / grants_name(worker)
        self._own = MappedWords(folder / worker_name(worker), WORKER_BYTES, is_writer=True)
        try:
            take_lock(self._own.descriptor)
        except OSError as error:
            self._own.close()
            raise Unavailable(f"purse of worker {worker} is held by another process") from error
        self._words = self._own.words
        self._adopt(boot, (entropy.seed64() >> 1) + 1)
        self.life: int = self._words[LIFE_WORD]
        self.open_count = 0
        self._grants: MappedWords | None = None
        self._directory_seen: tuple[int, int, int] | None = None
        self._entries: tuple[PotEntry, ...] = ()
        self._current: dict[_PotName, PotEntry] = {}
        self._pots: dict[int, Pot] = {}
        self._turn_at_s = 0.0
        self._version = 0
        self._recalls_seen: dict[int, int] = {}
        self._recalls = 0
        self._needs: dict[int, float] = {}
        self._needed: dict[int, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False
        self.is_broken = False

    def _adopt(self, boot: int, life: int) -> None:
        words = self._words
        if words[MAGIC_WORD] != MAGIC or words[BOOT_WORD] != boot or not words[LIFE_WORD]:
            words[MAGIC_WORD] = 0
            # Slots before the head, which says how many there are: a start that is broken off begins again.
            used = HEAD_WORDS + min(words[USED_WORD], SLOTS_MAX) * WORKER_WORDS
            for index in (*range(HEAD_WORDS, used), *range(LIFE_WORD, HEAD_WORDS)):
                words[index] = 0
            words[BOOT_WORD], words[LIFE_WORD] = boot, life
            words[MAGIC_WORD] = MAGIC
            return
        for slot in range(min(words[USED_WORD], SLOTS_MAX)):
            base = HEAD_WORDS + slot * WORKER_WORDS
            words[base + SPENT] += words[base + RESERVED]
            words[base + RESERVED] = words[base + NEEDED] = 0

    def start(self) -> None:
        """Look at the site's tables now and every TICK_S."""
        self.tick()
        self._timer = self._loop.call_later(TICK_S, self.start)

    def close(self) -> None:
        """Give the tables back; what is settled later stays reserved, so counts as spent."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._own.close()
        if self._grants is not None:
            self._grants.close()
            self._grants = None

    # --- what the request path asks

    def reserve(self, draw: Draw, amount: int, now_s: float, *, may_overdraw: bool) -> Reservation | Shortage:
        """Take `amount` micro-won from every budget, or say which one lacks it and take nothing.

        Args:
            draw: whose budgets.
            amount: the most that the request can cost.
            now_s: wall time.
            may_overdraw: the request is of class `clinical`.
        """
        if now_s >= self._turn_at_s:
            self._turn(now_s)
        if draw.version != self._version:
            self._look_up(draw)
        pots = draw.pots
        for pot in pots:
            # As `left`, without the call.
            if pot is None or pot.granted - pot.returned - pot.spent - pot.reserved < amount:
                return self._reserve_scarce(draw, amount, may_overdraw)
        return self._take(pots, amount)  # type: ignore[arg-type]  # none of them is None

    def _take(self, pots: tuple[Pot, ...], amount: int) -> Reservation:
        words = self._words
        for pot in pots:
            pot.reserved = words[pot.base + RESERVED] = pot.reserved + amount
        self.open_count += 1
        return Reservation(self, pots, amount)

    def _reserve_scarce(self, draw: Draw, amount: int, may_overdraw: bool) -> Reservation | Shortage:
        """Reserve where a budget seemed to lack something: look again, then overdraw or refuse."""
        short: list[tuple[Line, Pot | None, int]] = []
        full: list[Pot] = []
        for line, pot in zip(draw.lines, draw.pots, strict=True):
            if pot is not None:
                self._learn(pot)
            left = 0 if pot is None else max(0, pot.left)
            if pot is not None and left >= amount:
                full.append(pot)
            else:
                short.append((line, pot, left))
        if not short:
            return self._take(tuple(full), amount)
        shortages = [self._note_need(line, pot, amount - left) for line, pot, left in short]
        worst = max(shortages, key=lambda one: _URGENCY.get(one.hint, 0))
        return self._overdraw(draw, amount, full, short) or worst if may_overdraw else worst

    def _overdraw(
        self, draw: Draw, amount: int, full: list[Pot], short: list[tuple[Line, Pot | None, int]]
    ) -> Reservation | None:
        """Take what budgets lack from the overdraw of their periods; None where that lacks too."""
        covered: dict[Period, int] = {}
        for (_, _, period), _, left in short:
            covered[period] = min(left, covered.get(period, left))
        parts = [(pot, amount, 0, _EVERYTHING) for pot in full]
        parts += [(pot, left, 0, left) for _, pot, left in short if pot is not None]
        for period, left in covered.items():
            pot = draw.overdraws[period]
            if pot is None:
                return None
            self._learn(pot)
            if pot.left < amount - left:
                self._note_need((Scope.TENANT, draw.tenant_id, period), pot, amount - left - max(0, pot.left))
                return None
            parts.append((pot, amount - left, left, _EVERYTHING))
        for pot, reserved, _, _ in parts:
            pot.reserved += reserved
            self._words[pot.base + RESERVED] = pot.reserved
        self.open_count += 1
        return OverdrawnReservation(self, parts, min(covered.values()))

    def settle(self, pots: tuple[Pot, ...], reserved: int, spent: int) -> None:
        """Turn a reservation into what was spent; the period is the one in which it was made."""
        if self._is_closed:
            return
        words = self._words
        for pot in pots:
            base = pot.base
            if words[base + NUMBER] != pot.number:
                continue  # the pot is long over, and its slot another's
            # Spent first: a worker killed in between has spent rather too much than too little.
            if spent:
                pot.spent = words[base + SPENT] = pot.spent + spent
            pot.reserved = words[base + RESERVED] = pot.reserved - reserved

    def spent_of(self, draw: Draw) -> tuple[int, ...]:
        """Return what this worker spent of each budget in its present period."""
        return tuple(0 if pot is None else pot.spent for pot in draw.pots)

    # --- the tables

    def _look_up(self, draw: Draw) -> None:
        draw.pots = tuple(self._find(*line, False) for line in draw.lines)
        draw.overdraws = {line[2]: self._find(Scope.TENANT, draw.tenant_id, line[2], True) for line in draw.lines}
        draw.version = self._version

    def _find(self, scope: Scope, account: str, period: Period, is_overdraw: bool) -> Pot | None:
        entry = self._current.get((scope, account, period, is_overdraw))
        return None if entry is None else self._open(entry)

    def _open(self, entry: PotEntry) -> Pot:
        pot = self._pots.get(entry.number)
        if pot is None:
            pot = self._pots[entry.number] = Pot(entry, self._words)
            self._learn(pot)
        return pot

    def _is_held(self, pot: Pot) -> bool:
        return pot.reserved > 0 and bool(self._words[pot.base + NUMBER] == pot.number)

    def _learn(self, pot: Pot) -> None:
        """See what was granted meanwhile; it never falls while this life lasts."""
        pot.granted = max(pot.granted, self._granted(pot))

    def _granted(self, pot: Pot) -> int:
        if self._grants is None:
            return 0
        words, number = self._grants.words, pot.number
        base = HEAD_WORDS + pot.entry.slot * GRANT_WORDS
        granted: int = words[base + GRANTED] if words[base + NUMBER] == number else 0
        # Whoever takes a slot clears its number first: the right one before and after vouches for what is between.
        return granted if words[LIFE_WORD] == self.life and words[base + NUMBER] == number else 0

    def _note_need(self, line: Line, pot: Pot | None, lacking: int) -> Shortage:
        scope, account, period = line
        if pot is None:
            return Shortage(scope=scope, account=account, period=period, ends_at_s=None, hint=HINT_MORE)
        at = pot.base + NEEDED
        self._words[at] = max(self._words[at], lacking)
        self._needs[pot.number] = self._loop.time() + NEED_LASTS_S
        self._needed[pot.number] = max(self._needed.get(pot.number, 0), max(0, pot.left) + lacking)
        ends_at_s = pot.entry.ends_at_s
        return Shortage(scope=scope, account=account, period=period, ends_at_s=ends_at_s, hint=self._hint(pot))

    def _hint(self, pot: Pot) -> int:
        if self._grants is None:
            return HINT_MORE
        words, base = self._grants.words, HEAD_WORDS + pot.entry.slot * GRANT_WORDS
        hint: int = words[base + HINT]
        return hint if words[base + NUMBER] == pot.number else HINT_MORE

    # --- what the tick does

    def tick(self) -> None:
        """See what the site process changed; without news two stat calls and a word."""
        self._read_directory()
        self._map_grants()
        self._obey_recalls()
        self._forget_needs()

    def _read_directory(self) -> None:
        path = self._folder / DIRECTORY_FILE
        try:
            status = path.stat()
            seen = (status.st_ino, status.st_mtime_ns, status.st_size)
            if seen == self._directory_seen:
                return
            self._directory_seen = seen
            if status.st_size > DIRECTORY_BYTES_MAX:
                raise Rejected(f"purse directory has {status.st_size} bytes, over {DIRECTORY_BYTES_MAX}")
            directory = decode_directory(path.read_bytes())
        except FileNotFoundError:
            return
        except (OSError, Rejected) as error:
            if not self.is_broken:
                self.is_broken = True
                self._log.error("gateway_purse_unreadable", path=str(path), reason=str(error))
            return
        self.is_broken = False
        self._entries = tuple(pot for pot in directory.pots if 0 <= pot.slot < SLOTS_MAX)
        numbers = {entry.number for entry in self._entries}
        # One with open reservations stays, so that no second one of its number ever counts beside it.
        self._pots = {number: pot for number, pot in self._pots.items() if number in numbers or self._is_held(pot)}
        self._turn_at_s = 0.0

    def _turn(self, now_s: float) -> None:
        """Choose the pots of the present periods; anew when one begins or ends."""
        self._current = {}
        turn_at_s = float("inf")
        for pot in self._entries:
            if pot.starts_at_s <= now_s < pot.ends_at_s:
                key = pot.key
                self._current[key.scope, key.account, key.period, key.is_overdraw] = pot
                turn_at_s = min(turn_at_s, pot.ends_at_s)
            elif now_s < pot.starts_at_s:
                turn_at_s = min(turn_at_s, pot.starts_at_s)
        self._turn_at_s = turn_at_s
        self._version += 1

    def _map_grants(self) -> None:
        grants = self._grants
        if grants is not None:
            with contextlib.suppress(OSError):
                if self._grants_path.stat().st_ino == grants.inode:
                    return
            self._grants = None
            grants.close()
        with contextlib.suppress(Unavailable):  # the site process has not made it yet
            self._grants = MappedWords(self._grants_path, GRANTS_BYTES, is_writer=False)

    def _obey_recalls(self) -> None:
        """Give back what no request has reserved where the site asks for it."""
        grants = self._grants
        if grants is None or grants.words[LIFE_WORD] != self.life or grants.words[RECALLS_WORD] == self._recalls:
            return
        self._recalls = grants.words[RECALLS_WORD]
        words = grants.words
        for entry in self._entries:
            base = HEAD_WORDS + entry.slot * GRANT_WORDS
            recall = words[base + RECALL]
            if words[base + NUMBER] != entry.number or recall == self._recalls_seen.get(entry.number, 0):
                continue
            pot = self._open(entry)
            self._learn(pot)
            left = pot.left
            if left > 0:
                pot.returned += left
                self._words[pot.base + RETURNED] = pot.returned
            self._recalls_seen[entry.number] = recall
        if len(self._recalls_seen) > 2 * SLOTS_MAX:
            known = {entry.number for entry in self._entries}
            self._recalls_seen = {number: seen for number, seen in self._recalls_seen.items() if number in known}

    def _forget_needs(self) -> None:
        if not self._needs:
            return
        """Publish a lack no longer when it is met, or old."""
        now = self._loop.time()
        for number, until in tuple(self._needs.items()):
            pot = self._pots.get(number)
            if pot is not None:
                self._learn(pot)
                if until >= now and pot.left < self._needed[number]:
                    continue
                self._words[pot.base + NEEDED] = 0
            del self._needs[number], self._needed[number]
