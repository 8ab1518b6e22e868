"""The worker's purse: money that the site process granted to this worker, reserved before work and settled after.

Owns the worker's table and what is taken from it. Refuses to know requests, prices and the hub: `admission` says how
much, `site.leases` grants. A dead site process stops nobody while there is money here, and a worker that is killed
finds its table again: what it had reserved counts as spent, since nobody can know what of it was.

An account without a budget is not in the index, so its requests cost one look-up.
"""

import asyncio
import contextlib
from pathlib import Path
from typing import NamedTuple

import msgspec

from madang.core import Clock, Entropy, Rejected, Unavailable
from madang.gateway.feed import Desired
from madang.gateway.locks import take_lock
from madang.model import Budget, PriorityClass
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

Line = tuple[Scope, str, Period]
"""One budget of one account."""


class Shortage(msgspec.Struct, frozen=True, kw_only=True):
    """Why a request may not begin.

    Attributes:
        scope, account, period: the budget that lacks the most urgent part.
        ends_at_s: when its period ends, wall time; None where no lease of it is here at all.
        hint: HINT_MORE, HINT_SPENT or HINT_CUT.
    """

    scope: Scope
    account: str
    period: Period
    ends_at_s: float | None
    hint: int


class _Part(NamedTuple):
    """What was taken from one budget: from the pot itself, and from the overdraw of its period."""

    pot: PotEntry
    period: Period
    amount: int
    over: int


class Reservation:
    """What one request took; settle it once."""

    __slots__ = ("_overdraws", "_parts", "_purse")

    def __init__(self, purse: "Purse", parts: list[_Part], overdraws: dict[Period, tuple[PotEntry, int]]) -> None:
        self._purse = purse
        self._parts = parts
        self._overdraws = overdraws

    def settle(self, charge: int) -> int:
        """Put back what was not spent and return the part of the charge beyond a budget, micro-won."""
        beyond: dict[Period, int] = {}
        for part in self._parts:
            spent = charge if part.over == 0 else min(charge, part.amount)
            self._purse.settle(part.pot, part.amount, spent)
            if charge > spent:
                beyond[part.period] = max(beyond.get(part.period, 0), charge - spent)
        for period, (pot, amount) in self._overdraws.items():
            self._purse.settle(pot, amount, beyond.get(period, 0))
        self._parts, self._overdraws = [], {}
        return max(beyond.values(), default=0)


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
        self._grants: MappedWords | None = None
        self._directory_seen: tuple[int, int, int] | None = None
        self._pots: tuple[PotEntry, ...] = ()
        self._current: dict[tuple[Scope, str, Period, bool], PotEntry] = {}
        self._turn_at_s = 0.0
        self._desired: Desired | None = None
        self._lines: dict[str, tuple[Line, ...]] = {}
        self._recalls_seen: dict[int, int] = {}
        self._recalls = 0
        self._needs: dict[int, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.is_broken = False

    def _adopt(self, boot: int, life: int) -> None:
        words = self._words
        if words[MAGIC_WORD] != MAGIC or words[BOOT_WORD] != boot or not words[LIFE_WORD]:
            words[MAGIC_WORD] = 0
            for index in range(LIFE_WORD, len(words)):
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
        """Give the tables back."""
        if self._timer is not None:
            self._timer.cancel()
        self._own.close()
        if self._grants is not None:
            self._grants.close()

    # --- what the request path asks

    def lines_of(self, desired: Desired, tenant_id: str, project_id: str) -> tuple[Line, ...]:
        """Return the budgets that a request draws on; empty for most."""
        if desired is not self._desired:
            self._index(desired)
        if not self._lines:
            return ()
        return self._lines.get("t:" + tenant_id, ()) + self._lines.get("p:" + project_id, ())

    def reserve(
        self, lines: tuple[Line, ...], amount: int, tenant_id: str, *, may_overdraw: bool
    ) -> Reservation | Shortage:
        """Take `amount` micro-won from every budget, or say which one lacks it and take nothing.

        Args:
            lines: as `lines_of` returned them.
            amount: the most that the request can cost.
            tenant_id: whose overdraw it is.
            may_overdraw: the request is of class `clinical`.
        """
        self._turn()
        parts: list[_Part] = []
        overs: dict[Period, int] = {}
        shortage: Shortage | None = None
        for line in lines:
            scope, account, period = line
            pot = self._current.get((scope, account, period, False))
            left = 0 if pot is None else max(0, self._left(pot))
            lacking = amount - left
            if pot is None or (lacking > 0 and not may_overdraw):
                shortage = self._note_need(line, pot, lacking) if shortage is None else shortage
                continue
            parts.append(_Part(pot, period, min(amount, left), max(0, lacking)))
            if lacking > 0:
                overs[period] = max(overs.get(period, 0), lacking)
        overdraws: dict[Period, tuple[PotEntry, int]] = {}
        for period, over in overs.items():
            pot = self._current.get((Scope.TENANT, tenant_id, period, True))
            left = 0 if pot is None else max(0, self._left(pot))
            if pot is None or over > left:
                shortage = shortage or self._note_need((Scope.TENANT, tenant_id, period), pot, over - left)
            else:
                overdraws[period] = pot, over
        if shortage is not None:
            return shortage
        for part in parts:
            self._words[self._base(part.pot) + RESERVED] += part.amount
        for pot, over in overdraws.values():
            self._words[self._base(pot) + RESERVED] += over
        return Reservation(self, parts, overdraws)

    def settle(self, pot: PotEntry, reserved: int, spent: int) -> None:
        """Turn a reservation into what was spent; the period is the one in which it was made."""
        base = HEAD_WORDS + pot.slot * WORKER_WORDS
        words = self._words
        if words[base + NUMBER] != pot.number:
            return  # long over, and its slot another pot's
        # Spent first: a worker killed in between has spent rather too much than too little.
        words[base + SPENT] += spent
        words[base + RESERVED] = max(0, words[base + RESERVED] - reserved)

    def spent_of(self, pot: PotEntry) -> int:
        """Return what this worker spent of a pot."""
        return self._words[self._base(pot) + SPENT]

    # --- the tables

    def _left(self, pot: PotEntry) -> int:
        base = self._base(pot)
        words = self._words
        return self._granted(pot) - words[base + RETURNED] - words[base + SPENT] - words[base + RESERVED]

    def _granted(self, pot: PotEntry) -> int:
        if self._grants is None:
            return 0
        words = self._grants.words
        base = HEAD_WORDS + pot.slot * GRANT_WORDS
        granted: int = words[base + GRANTED] if words[base + NUMBER] == pot.number else 0
        is_sure = words[LIFE_WORD] == self.life and words[base + NUMBER] == pot.number
        return granted if is_sure else 0

    def _base(self, pot: PotEntry) -> int:
        """Return where a pot is in the own table, clearing a slot that was another's."""
        base = HEAD_WORDS + pot.slot * WORKER_WORDS
        words = self._words
        if words[base + NUMBER] != pot.number:
            words[base + NUMBER] = 0
            words[base + SPENT] = words[base + RESERVED] = words[base + RETURNED] = words[base + NEEDED] = 0
            words[base + NUMBER] = pot.number
            words[USED_WORD] = max(words[USED_WORD], pot.slot + 1)
        return base

    def _note_need(self, line: Line, pot: PotEntry | None, lacking: int) -> Shortage:
        scope, account, period = line
        if pot is None:
            return Shortage(scope=scope, account=account, period=period, ends_at_s=None, hint=HINT_MORE)
        base = self._base(pot)
        self._words[base + NEEDED] = max(self._words[base + NEEDED], lacking)
        self._needs[pot.slot] = self._loop.time() + NEED_LASTS_S
        hint = self._hint(pot)
        return Shortage(scope=scope, account=account, period=period, ends_at_s=pot.ends_at_s, hint=hint)

    def _hint(self, pot: PotEntry) -> int:
        if self._grants is None:
            return HINT_MORE
        words, base = self._grants.words, HEAD_WORDS + pot.slot * GRANT_WORDS
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
        self._pots = tuple(pot for pot in directory.pots if 0 <= pot.slot < SLOTS_MAX)
        self._turn_at_s = 0.0

    def _turn(self) -> None:
        """Choose the pots of the present periods; anew when one begins or ends."""
        now_s = self._clock.wall_s()
        if now_s < self._turn_at_s:
            return
        self._current = {}
        turn_at_s = float("inf")
        for pot in self._pots:
            if pot.starts_at_s <= now_s < pot.ends_at_s:
                key = pot.key
                self._current[key.scope, key.account, key.period, key.is_overdraw] = pot
                turn_at_s = min(turn_at_s, pot.ends_at_s)
            elif now_s < pot.starts_at_s:
                turn_at_s = min(turn_at_s, pot.starts_at_s)
        self._turn_at_s = turn_at_s

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
        for pot in self._pots:
            recall = grants.words[HEAD_WORDS + pot.slot * GRANT_WORDS + RECALL]
            if recall == self._recalls_seen.get(pot.number, 0):
                continue
            left = self._left(pot)
            if left > 0:
                self._words[self._base(pot) + RETURNED] += left
            self._recalls_seen[pot.number] = recall
        if len(self._recalls_seen) > 2 * SLOTS_MAX:
            known = {pot.number for pot in self._pots}
            self._recalls_seen = {number: seen for number, seen in self._recalls_seen.items() if number in known}

    def _forget_needs(self) -> None:
        if not self._needs:
            return
        now = self._loop.time()
        for slot in [slot for slot, until in self._needs.items() if until < now]:
            del self._needs[slot]
            self._words[HEAD_WORDS + slot * WORKER_WORDS + NEEDED] = 0

    def _index(self, desired: Desired) -> None:
        lines: dict[str, tuple[Line, ...]] = {}
        for tenant in desired.tenants.values():
            if tenant.budget != _NO_BUDGET:
                lines["t:" + tenant.tenant_id] = _lines(Scope.TENANT, tenant.tenant_id, tenant.budget)
        for project in desired.projects.values():
            if project.budget != _NO_BUDGET:
                lines["p:" + project.project_id] = _lines(Scope.PROJECT, project.project_id, project.budget)
        self._desired, self._lines = desired, lines


_NO_BUDGET = Budget()


def _lines(scope: Scope, account: str, budget: Budget) -> tuple[Line, ...]:
    found = []
    if budget.day_micro_won is not None:
        found.append((scope, account, Period.DAY))
    if budget.month_micro_won is not None:
        found.append((scope, account, Period.MONTH))
    return tuple(found)


def may_overdraw(priority: PriorityClass) -> bool:
    """Return whether requests of a class may go beyond a budget."""
    return priority is PriorityClass.CLINICAL
