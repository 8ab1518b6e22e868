"""The site's lease keeper: money from the hub into pots, from pots into the workers' tables, and back.

Owns the site's pots. Refuses to do their arithmetic (`machine.lease`) and to admit requests (gateway workers do).
Every change is durable before anybody is told of it, so that a restart at any instant forgets no won: what is handed
to a worker is stored first, what is handed back to the hub is stored first, and what was spent is in the workers'
tables, which outlive this process. Nothing is written when nothing but that was told.

A site whose database was lost begins with no pots under another name; until desired state was applied again, the
workers go on with what its former life gave them, which the hub counts as spent.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from madang.core import Clock, Entropy, MadangError, SiteId
from madang.machine.lease import SitePot, hand_back, issue, plan_issue, take_grant, write_off
from madang.machine.lease_accounts import BudgetLine, list_lines
from madang.machine.lease_periods import DAY_S, span_of
from madang.model import Project
from madang.model.lease import Period, PotKey, Scope
from madang.policy.pricing import kst_day, worst_charge_micro_won
from madang.runtime.files import replace_file
from madang.runtime.telemetry import EventLog
from madang.site.desired import DesiredView
from madang.site.guard import GuardedStore
from madang.site.leases.held import Held
from madang.site.leases.rows import (
    Mark,
    PotRow,
    add_pots,
    begin_life,
    read_mark,
    read_pots,
    remove_pots,
    save_pots,
)
from madang.site.leases.workers import Workers
from madang.site.signal import Signal
from madang.wire.leases import PotAnswer, PotAsk
from madang.wire.purse import DIRECTORY_FILE, SLOTS_MAX, PurseDirectory, encode_directory

MARK_FILE = "lease-mark.json"
NEAR_S = 2 * DAY_S
"""A pot is in the workers' tables from so long before its period begins."""
KEPT_S = 3 * DAY_S
"""A pot is forgotten so long after its period ended; nothing can settle in it by then."""
SETTLING_S = DAY_S
"""For so long after its period the hub hears of what settles in a pot, and is given back what it asks for."""
FLOOR_REQUESTS = 256
"""A worker is kept above so many of the dearest requests. Power loss costs what workers hold: nobody knows what of it
was spent. So that is little beside a budget, and enough that first requests need not wait."""
CONTEXT_TOKENS = 8192
BYTES_PER_TOKEN = 4
AUDIO_MS = 60_000
"""What the dearest request reads and writes where its service does not say."""

_Budget = tuple[Scope, str, Period, bool]
_Change = tuple[Held, SitePot]


class LeaseKeeper:
    """All pots of one site. One event loop; a lock keeps each change and its write together."""

    def __init__(
        self,
        *,
        site: str,
        feed_dir: Path,
        boot: int,
        store: GuardedStore,
        view: DesiredView,
        is_linked: Callable[[], bool],
        clock: Clock,
        entropy: Entropy,
        log: EventLog,
    ) -> None:
        """Prepare; `load` first, then `tick` now and then.

        Args:
            site: our name.
            feed_dir: where the workers' tables are.
            boot: of the machine.
            store: where pots are durable.
            view: applied desired state, for budgets and prices.
            is_linked: whether the hub is reached.
            clock: wall time says which period is; monotonic time for rates.
            entropy: names a new database.
            log: gets what is out of the ordinary.

        Attributes:
            life: names the database.
            woken: rises when the hub should hear something at once.
        """
        self._site = SiteId(site)
        self._directory = feed_dir / DIRECTORY_FILE
        self._mark = feed_dir / MARK_FILE
        self._store = store
        self._view = view
        self._is_linked = is_linked
        self._clock = clock
        self._entropy = entropy
        self._log = log
        self._lock = asyncio.Lock()
        self._held: dict[PotKey, Held] = {}
        self._by_slot: dict[int, Held] = {}
        self._stirred: set[PotKey] = set()
        self._seen: tuple[str, str] = ("", "")
        self._floor = 0
        self._is_cut = False
        self._has_failed = False
        self._is_directory_new = True
        self._is_full = False
        self.workers = Workers(feed_dir, boot, clock)
        self.life = ""
        self.woken = Signal()

    async def load(self) -> None:
        """Take what an earlier life stored; raises as the store does."""
        fresh = self._entropy.token_bytes(8).hex()
        mark = read_mark(self._mark)
        self.life, is_older = await self._store.write(lambda connection: begin_life(connection, fresh, mark))
        if is_older:
            self._log.error("lease_database_restored", next_step="what it held before counts as spent at the hub")
        for row in await self._store.read(read_pots):
            self._hold(row)

    def _hold(self, row: PotRow) -> None:
        held = self._held[row.key] = Held(row=row)
        if row.slot >= 0:
            self._by_slot[row.slot] = held

    @property
    def pots(self) -> int:
        """How many there are."""
        return len(self._held)

    @property
    def pots_short(self) -> int:
        """In how many a request lacks money now."""
        return sum(bool(held.list_needs(held.pot)) for held in self._by_slot.values())

    def list_budgets(self, *, is_all: bool) -> list[dict[str, Any]]:
        """Return what is held, spent and left here, by pot; of the present periods unless all are wanted."""
        now_s = self._clock.wall_s()
        rows = [held.show() for _, held in sorted(self._held.items()) if is_all or held.line is not None]
        return [row for row in rows if is_all or row["starts_at_s"] <= now_s < row["ends_at_s"]]

    # --- ten times a second

    async def tick(self) -> None:
        """Follow budgets and periods, hear the workers, and give them what they lack.

        Raises:
            MadangError: as the store does, or a file cannot be read or written; nothing is lost, and the next tick
                does what this one could not.
        """
        if not self._view.generation:
            return
        async with self._lock:
            await self._follow_budgets()
            self._follow_workers()
            self._follow_link()
            await self._give(self._hear_workers())
            self._write_directory()

    async def _follow_budgets(self) -> None:
        """Make the pots that should exist, when desired state changed or a Korean day began."""
        now_s = self._clock.wall_s()
        seen = (self._view.state_hash, kst_day(now_s))
        if seen == self._seen:
            return
        lines = {_budget_of(line): line for line in self._lines()}
        wanted = {key: None for line in lines.values() for key in line.keys(now_s)}
        missing = [(key, span_of(key.period, key.label)[1]) for key in wanted if key not in self._held]
        forgotten = [held for held in self._held.values() if held.row.ends_at_s + KEPT_S < now_s]

        def write(connection: sa.Connection) -> list[PotRow]:
            remove_pots(connection, [held.row.number for held in forgotten])
            return add_pots(connection, missing, self.life)

        rows = await self._store.write(write) if missing or forgotten else []
        for held in forgotten:
            del self._held[held.row.key]
            self._by_slot.pop(held.row.slot, None)
        for row in rows:
            self._hold(row)
        for key, held in self._held.items():
            held.line = lines.get((key.scope, key.account, key.period, key.is_overdraw))
            held.is_over = held.row.ends_at_s <= now_s
            held.is_due = True
            self._stirred.add(key)
        self._floor = FLOOR_REQUESTS * self._find_dearest()
        await self._give_slots(now_s)
        self._seen = seen
        self._is_directory_new = True
        self.woken.rise()

    def _lines(self) -> Iterable[BudgetLine]:
        projects: dict[str, list[Project]] = {}
        for project in self._view.projects.values():
            projects.setdefault(project.tenant_id, []).append(project)
        sites = tuple(self._view.sites.values())
        for tenant in self._view.tenants.values():
            lines = list_lines(tenant, projects.get(tenant.tenant_id, ()), sites)
            yield from (line for line in lines if self._site in line.sites)

    def _find_dearest(self) -> int:
        """Return what one request can cost at most, over every tariff; micro-won."""
        dearest = 0
        for tariff in self._view.tariffs.values():
            service = self._view.services.get(tariff.service)
            tokens = (service.context_tokens if service is not None else 0) or CONTEXT_TOKENS
            cost = worst_charge_micro_won(tariff, BYTES_PER_TOKEN * tokens, tokens, AUDIO_MS)
            dearest = max(dearest, cost)
        return dearest

    async def _give_slots(self, now_s: float) -> None:
        """Put pots into the tables whose period is near."""
        near = [held for held in self._held.values() if held.row.slot < 0 and _is_near(held.row, now_s)]
        free = (slot for slot in range(SLOTS_MAX) if slot not in self._by_slot)
        given = list(zip(sorted(near, key=lambda one: one.row.number), free, strict=False))
        is_full = len(given) < len(near)
        if is_full and not self._is_full:
            self._log.error("lease_slots_used_up", slots=SLOTS_MAX, pots=len(self._held))
        self._is_full = is_full
        if not given:
            return
        rows = [(held.row.number, slot, held.pot) for held, slot in given]
        await self._store.write(lambda connection: save_pots(connection, rows))
        for held, slot in given:
            held.row = msgspec.structs.replace(held.row, slot=slot)
            self._by_slot[slot] = held

    # --- workers

    def _follow_workers(self) -> None:
        begun, has_changed = self.workers.look()
        for tables in begun:
            for slot, held in self._by_slot.items():
                share = held.pot.shares.get(tables.life)
                if share is not None:
                    tables.grant(slot, held.row.number, share.granted)
                if held.hint:
                    tables.hint(slot, held.row.number, held.hint)
        if has_changed:
            for held in self._by_slot.values():
                held.forget_lives(self.workers.live)
                self._stirred.add(held.row.key)

    def _hear_workers(self) -> dict[PotKey, SitePot]:
        """Return the pots after what workers published; not yet durable."""
        changed: dict[PotKey, SitePot] = {}
        now_ns = self._clock.monotonic_ns()
        for life, slot, state in self.workers.read_changes():
            held = self._by_slot.get(slot)
            if held is None or held.row.number != state.number:
                continue
            before = changed.get(held.row.key, held.pot)
            is_live = life in self.workers.live
            changed[held.row.key] = held.hear(before, life, state, now_ns, is_live=is_live)
        return changed

    async def _give(self, heard: dict[PotKey, SitePot]) -> None:
        """Give workers what they lack, durable first, then in their tables."""
        changes: list[_Change] = []
        now_ns = self._clock.monotonic_ns()
        stirred, self._stirred = self._stirred | heard.keys(), set()
        for key in stirred:
            held = self._held.get(key)
            if held is None or held.row.slot < 0:
                continue
            after = self._issue(held, heard.get(key, held.pot), now_ns)
            if _told(after) != _told(held.pot):
                changes.append((held, after))
            else:
                held.row = msgspec.structs.replace(held.row, pot=after)  # only spent more, which the table remembers
            self._seek(held, after, now_ns)
        await self._store_all(changes)
        for held, pot in changes:
            self.workers.publish(held.row.slot, held.row.number, pot)
            if held.lacked:  # workers gave back: the hub can have it now
                self._wake(held)

    def _issue(self, held: Held, pot: SitePot, now_ns: int) -> SitePot:
        pot = write_off(pot, [life for life in pot.shares if not self.workers.is_gone(life)])
        if not held.is_giving:
            return pot
        held.follow_needs(pot, now_ns)
        live = self.workers.live
        for_here = hand_back(pot, held.held_back(now_ns))
        gifts = plan_issue(for_here, held.list_spending(live, now_ns), held.list_needs(pot), self._floor)
        for life, amount in gifts.items():
            pot = issue(pot, life, amount)
        return pot

    def _seek(self, held: Held, pot: SitePot, now_ns: int) -> None:
        """Where more lacks than is free, here or elsewhere, ask workers to give back, and the hub for more."""
        needed = max(held.list_needs(pot).values(), default=0) if held.is_giving else 0
        short = max(0, needed + held.held_back(now_ns) - max(0, pot.free))
        if held.is_recall_due(short, now_ns):
            self.workers.recall(held.row.slot, held.row.number, held.recallable(pot, self.workers.live))
            self._wake(held)
        if short or held.needs:
            self._stirred.add(held.row.key)
        self._hint(held)

    def _wake(self, held: Held) -> None:
        held.is_due = True
        self.woken.rise()

    async def _store_all(self, changes: Collection[_Change]) -> None:
        """Make pots durable, then take them for true; raises as the store does, and then they are tried again."""
        if not changes:
            return
        rows = [(held.row.number, held.row.slot, pot) for held, pot in changes]
        try:
            writes = await self._store.write(lambda connection: save_pots(connection, rows))
            # Not durable: after power loss it is older than the database, which then is believed.
            replace_file(self._mark, msgspec.json.encode(Mark(life=self.life, writes=writes)), mode=0o600)
        except MadangError:
            self._stirred.update(held.row.key for held, _ in changes)
            self.workers.forget()
            raise
        for held, pot in changes:
            held.row = msgspec.structs.replace(held.row, pot=pot)

    # --- the hub

    def list_asks(self, *, is_all: bool) -> list[PotAsk]:
        """Return what the hub should hear now: pots that are due, or all that are near."""
        now_s, now_ns = self._clock.wall_s(), self._clock.monotonic_ns()
        asks = []
        for held in self._held.values():
            is_wanted = held.is_ask_due(now_ns) or (is_all and (held.row.slot >= 0 or held.left is None))
            has_something = held.line is not None or held.pot.granted > 0
            if is_wanted and has_something and now_s < held.row.ends_at_s + SETTLING_S:
                asks.append(held.ask(self.workers.live, now_ns))
                held.asked_ns = now_ns
            held.is_due = False
        return asks

    def mark_due(self, asks: Iterable[PotAsk]) -> None:
        """Have the hub told again what did not reach it."""
        for ask in asks:
            held = self._held.get(ask.key)
            if held is not None:
                held.is_due = True

    async def take_answers(self, answers: Iterable[PotAnswer]) -> None:
        """Follow the hub's word, durable first; raises as the store does."""
        async with self._lock:
            changes: list[_Change] = []
            for answer in answers:
                held = self._held.get(answer.key)
                if held is None or not answer.has_budget:
                    continue
                after = hand_back(take_grant(held.pot, answer.granted), max(0, answer.recall))
                held.left = max(0, answer.left)
                held.lacked = max(0, answer.recall - (after.returned - held.pot.returned))
                held.lacked_at_ns = self._clock.monotonic_ns()
                self._stirred.add(answer.key)
                if after.returned > held.pot.returned:
                    self._wake(held)
                if after != held.pot:
                    held.is_due = True  # the hub grants no more before it hears that this arrived
                    changes.append((held, after))
                self._hint(held)
            await self._store_all(changes)

    def note_asked(self, *, is_answered: bool) -> None:
        """Remember whether the hub answered: clients should not expect more than is here while it does not."""
        self._has_failed = not is_answered

    def _follow_link(self) -> None:
        is_cut = self._has_failed or not self._is_linked()
        if is_cut != self._is_cut:
            self._is_cut = is_cut
            for held in self._by_slot.values():
                self._hint(held)

    def _hint(self, held: Held) -> None:
        hint = held.choose_hint(is_cut=self._is_cut)
        if hint != held.hint and held.row.slot >= 0:
            held.hint = hint
            self.workers.hint(held.row.slot, held.row.number, hint)

    # --- the directory

    def _write_directory(self) -> None:
        """Tell workers which pots there are; their grants are in the tables by then. Not durable: a start rewrites."""
        if not self._is_directory_new:
            return
        pots = tuple(held.entry() for _, held in sorted(self._by_slot.items()))
        replace_file(self._directory, encode_directory(PurseDirectory(pots=pots)), mode=0o600)
        self._is_directory_new = False

    def close(self) -> None:
        """Give the tables back."""
        self.workers.close()


def _budget_of(line: BudgetLine) -> _Budget:
    return line.scope, line.account, line.period, line.is_overdraw


def _is_near(row: PotRow, now_s: float) -> bool:
    return span_of(row.key.period, row.key.label)[0] - NEAR_S <= now_s < row.ends_at_s


def _told(pot: SitePot) -> tuple[int, int, tuple[tuple[str, int, int], ...]]:
    """Return what must be durable before anybody acts on it: all but what was spent."""
    shares = tuple((life, share.granted, share.returned) for life, share in sorted(pot.shares.items()))
    return pot.granted, pot.returned, shares
