"""The site's lease keeper: money from the hub into pots, from pots into the workers' tables, and back.

Owns the site's pots. Refuses to do their arithmetic (`machine.lease`) and to admit requests (gateway workers do).
Every change is durable before anybody is told of it, so that a restart at any instant forgets no won: what is handed
to a worker is stored first, what is handed back to the hub is stored first, and what was spent is in the workers'
tables, which outlive this process.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec
import sqlalchemy as sa

from madang.core import Clock, Entropy, MadangError, SiteId, ns_to_s
from madang.machine.lease import Plan, SitePot, hand_back, issue, note_worker, plan_issue, take_grant, write_off
from madang.machine.lease_accounts import BudgetLine, list_lines
from madang.machine.lease_periods import DAY_S, span_of
from madang.model.lease import PotKey
from madang.runtime.files import replace_file
from madang.runtime.telemetry import EventLog
from madang.site.desired import DesiredView
from madang.site.guard import GuardedStore
from madang.site.leases.rows import PotRow, add_pots, read_life, read_pots, remove_pots, save_pots
from madang.site.leases.tables import SlotState, WorkerTables, find_workers, open_tables
from madang.site.signal import Signal
from madang.wire.leases import PotAnswer, PotAsk
from madang.wire.purse import (
    DIRECTORY_FILE,
    HINT_CUT,
    HINT_MORE,
    HINT_SPENT,
    SLOTS_MAX,
    PotEntry,
    PurseDirectory,
    encode_directory,
)

REFILL_S = 5.0
"""A worker is given what it spends in so long, and twice what it has reserved."""
WISH_S = 60.0
"""The site asks for what it spends in so long."""
RATE_WEIGHT = 0.3
NEAR_S = 2 * DAY_S
"""A pot is in the workers' tables from so long before its period begins until so long after it ended."""
KEPT_S = 3 * DAY_S
"""A pot is forgotten so long after its period ended; nothing can settle in it by then."""
RECALL_GAP_S = 0.5


class Held(msgspec.Struct):
    """One pot in memory.

    Attributes:
        row: as it is stored.
        line: the budget that it is of; None when that is no more.
        needs: what requests at workers lack, by life.
        reserved: by life.
        rate: micro-won spent a second, of late.
        left: in all, by the hub's last word; None before it.
        is_due: the hub should hear of it.
        lacked: a recall that is not yet met.
    """

    row: PotRow
    line: BudgetLine | None = None
    needs: dict[str, int] = {}
    reserved: dict[str, int] = {}
    rate: float = 0.0
    rate_at_ns: int = 0
    left: int | None = None
    is_due: bool = True
    is_changed: bool = True
    lacked: int = 0
    recalled_ns: int = 0
    hint: int = HINT_MORE

    @property
    def pot(self) -> SitePot:
        """Its state."""
        return self.row.pot

    @property
    def needed(self) -> int:
        """What the neediest request lacks."""
        return max(self.needs.values(), default=0)


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
            view: applied desired state, for budgets.
            is_linked: whether the hub is reached.
            clock: wall time says which period is; monotonic time for rates.
            entropy: names a new database.
            log: gets what is out of the ordinary.
        """
        self._site = SiteId(site)
        self._folder = feed_dir
        self._boot = boot
        self._store = store
        self._view = view
        self._is_linked = is_linked
        self._clock = clock
        self._entropy = entropy
        self._log = log
        self._lock = asyncio.Lock()
        self._held: dict[PotKey, Held] = {}
        self._by_slot: dict[int, Held] = {}
        self._workers: dict[int, WorkerTables] = {}
        self._live: set[str] = set()
        self._seen: tuple[int, str] = (-1, "")
        self._looked_ns = 0
        self._is_directory_new = True
        self.life = ""
        self.woken = Signal()

    async def load(self) -> None:
        """Take what an earlier life stored; raises as the store does."""
        fresh = self._entropy.token_bytes(8).hex()
        self.life = await self._store.write(lambda connection: read_life(connection, fresh))
        for row in await self._store.read(read_pots):
            self._hold(row)

    def _hold(self, row: PotRow) -> Held:
        held = self._held[row.key] = Held(row=row)
        if row.slot >= 0:
            self._by_slot[row.slot] = held
        return held

    @property
    def pots(self) -> list[Held]:
        """Every pot, for the hub's talk and for people."""
        return list(self._held.values())

    # --- ten times a second

    async def tick(self) -> None:
        """Follow budgets and periods, hear the workers, and give them what they lack; raises as the store does."""
        async with self._lock:
            await self._follow_budgets()
            self._find_workers()
            changed = self._hear_workers()
            await self._give(changed)
            self._write_directory()

    async def _follow_budgets(self) -> None:
        """Make the pots that should exist, when desired state changed or a Korean day began."""
        now_s = self._clock.wall_s()
        seen = (self._view.generation, f"{now_s // DAY_S}/{(now_s + 9 * 3600) // DAY_S}")
        if seen == self._seen:
            return
        lines = self._lines()
        wanted = {key: line for line in lines for key in line.keys(now_s)}
        missing = [(key, span_of(key.period, key.label)[1]) for key in wanted if key not in self._held]
        over = [held for held in self._held.values() if held.row.ends_at_s + KEPT_S < now_s]

        def write(connection: sa.Connection) -> list[PotRow]:
            remove_pots(connection, [held.row.number for held in over])
            return add_pots(connection, missing)

        rows = await self._store.write(write) if missing or over else []
        for held in over:
            del self._held[held.row.key]
            self._by_slot.pop(held.row.slot, None)
        for row in rows:
            self._hold(row)
        for key, held in self._held.items():
            held.line = wanted.get(key)
            held.is_due = held.is_changed = True
        await self._give_slots(now_s)
        self._seen = seen
        self._is_directory_new = True
        self.woken.rise()

    def _lines(self) -> list[BudgetLine]:
        projects: dict[str, list[object]] = {}
        for project in self._view.projects.values():
            projects.setdefault(project.tenant_id, []).append(project)
        found: list[BudgetLine] = []
        for tenant in self._view.tenants.values():
            lines = list_lines(tenant, projects.get(tenant.tenant_id, []), self._view.sites.values())  # type: ignore[arg-type]
            found += [line for line in lines if self._site in line.sites]
        return found

    async def _give_slots(self, now_s: float) -> None:
        near = [held for held in self._held.values() if held.row.slot < 0 and self._is_near(held.row, now_s)]
        given = []
        slot = 0
        for held in sorted(near, key=lambda one: one.row.number):
            while slot in self._by_slot:
                slot += 1
            if slot >= SLOTS_MAX:
                self._log.error("lease_slots_used_up", slots=SLOTS_MAX, pots=len(self._held))
                break
            given.append((held, slot))
            slot += 1
        if not given:
            return
        rows = [(held.row.number, slot, held.pot) for held, slot in given]
        await self._store.write(lambda connection: save_pots(connection, rows))
        for held, slot in given:
            held.row = msgspec.structs.replace(held.row, slot=slot)
            self._by_slot[slot] = held

    def _is_near(self, row: PotRow, now_s: float) -> bool:
        starts_at_s = span_of(row.key.period, row.key.label)[0]
        return starts_at_s - NEAR_S <= now_s <= row.ends_at_s + NEAR_S

    # --- workers

    def _find_workers(self) -> None:
        """Once a second: who has a table, whose life is which, and who lives."""
        now_ns = self._clock.monotonic_ns()
        if self._looked_ns and ns_to_s(now_ns - self._looked_ns) < 1.0:
            return
        self._looked_ns = now_ns
        found = find_workers(self._folder)
        for worker, tables in list(self._workers.items()):
            if found.get(worker) != tables.inode:
                tables.close()
                del self._workers[worker]
        for worker in found:
            if worker not in self._workers:
                tables = open_tables(self._folder, worker)
                if tables is not None:
                    self._workers[worker] = tables
        live = set()
        for tables in self._workers.values():
            if tables.begin_life():
                self._tell_worker(tables)
            if tables.life and tables.is_of(self._boot) and tables.is_live():
                live.add(tables.life)
        if live != self._live:
            self._live = live
            for held in self._by_slot.values():
                held.is_changed = True

    def _tell_worker(self, tables: WorkerTables) -> None:
        """Write everything that a life was ever granted into its table."""
        for slot, held in self._by_slot.items():
            share = held.pot.shares.get(tables.life)
            if share is not None:
                tables.grant(slot, held.row.number, share.granted)
            held.is_changed = True

    def _hear_workers(self) -> dict[PotKey, SitePot]:
        """Return the pots after what workers published; not yet durable."""
        changed: dict[PotKey, SitePot] = {}
        for tables in self._workers.values():
            life = tables.life
            for slot, state in tables.read_changes() if life else ():
                held = self._by_slot.get(slot)
                if held is None or held.row.number != state.number:
                    continue
                before = changed.get(held.row.key, held.pot)
                changed[held.row.key] = self._hear(held, before, life, state)
        return changed

    def _hear(self, held: Held, before: SitePot, life: str, state: SlotState) -> SitePot:
        after = note_worker(before, life, returned=state.returned, spent=state.spent)
        now_ns = self._clock.monotonic_ns()
        took_s = max(0.05, ns_to_s(now_ns - held.rate_at_ns))
        spent = after.spent - before.spent
        if spent > 0:
            rate = spent / min(took_s, WISH_S)
            held.rate += RATE_WEIGHT * (rate - held.rate)
            held.rate_at_ns = now_ns
        held.needs[life] = state.needed
        held.reserved[life] = state.reserved
        held.is_changed = held.is_due = True
        return after

    async def _give(self, changed: dict[PotKey, SitePot]) -> None:
        """Give workers what they lack, durable first, then in their tables."""
        gifts: list[tuple[Held, SitePot]] = []
        for held in self._by_slot.values():
            if not held.is_changed and held.row.key not in changed:
                continue
            heard = changed.get(held.row.key, held.pot)
            after = self._issue(held, heard)
            held.is_changed = False
            if _is_told(after) != _is_told(held.pot):
                gifts.append((held, after))
            else:
                held.row = msgspec.structs.replace(held.row, pot=after)  # only spent more, which the table remembers
            self._recall_if_short(held, after)
        if gifts:
            rows = [(held.row.number, held.row.slot, pot) for held, pot in gifts]
            try:
                await self._store.write(lambda connection: save_pots(connection, rows))
            except MadangError:
                for held, _ in gifts:
                    held.is_changed = True
                for tables in self._workers.values():
                    tables.forget()
                raise
        for held, pot in gifts:
            held.row = msgspec.structs.replace(held.row, pot=pot)
            self._publish(held)
            if held.lacked:
                held.is_due = True
                self.woken.rise()

    def _issue(self, held: Held, pot: SitePot) -> SitePot:
        lives = {tables.life for tables in self._workers.values()}
        pot = write_off(pot, lives)
        if held.line is None:
            return pot
        spending = {life: int(2 * held.reserved.get(life, 0) + REFILL_S * self._rate(held)) for life in self._live}
        needs = {life: need for life, need in held.needs.items() if life in self._live}
        for life, amount in plan_issue(pot, spending, needs).items():
            pot = issue(pot, life, amount)
        return pot

    def _rate(self, held: Held) -> float:
        """Return micro-won a second, falling when nothing is spent any more."""
        idle_s = ns_to_s(self._clock.monotonic_ns() - held.rate_at_ns)
        return held.rate if idle_s < REFILL_S else held.rate * REFILL_S / idle_s

    def _recall_if_short(self, held: Held, pot: SitePot) -> None:
        """Ask workers to give back where a request, here or elsewhere, lacks more than is free."""
        short = max(held.needed, held.lacked)
        now_ns = self._clock.monotonic_ns()
        if short <= pot.free or ns_to_s(now_ns - held.recalled_ns) < RECALL_GAP_S:
            held.is_changed = held.is_changed or short > pot.free
            return
        held.is_changed = True
        held.is_due = True
        self.woken.rise()
        held.recalled_ns = now_ns
        for tables in self._workers.values():
            if tables.life in pot.shares:
                tables.recall(held.row.slot, held.row.number)

    def _publish(self, held: Held) -> None:
        for tables in self._workers.values():
            share = held.pot.shares.get(tables.life)
            if share is not None:
                tables.grant(held.row.slot, held.row.number, share.granted)

    # --- the hub

    def list_asks(self, *, is_all: bool) -> list[PotAsk]:
        """Return what the hub should hear: pots of which something changed, or all of the present and to come."""
        now_s = self._clock.wall_s()
        asks = []
        for held in self._held.values():
            if held.line is None or held.row.ends_at_s < now_s or not (is_all or held.is_due):
                continue
            held.is_due = False
            asks.append(self._ask(held))
        return asks

    def _ask(self, held: Held) -> PotAsk:
        pot = held.pot
        wish = int(2 * sum(held.reserved.values()) + WISH_S * self._rate(held))
        needed = max(0, held.needed - max(0, pot.free))
        is_low = bool(needed) or (held.line is not None and held.line.plan is Plan.DEMAND and pot.left < wish // 2)
        return PotAsk(
            key=held.row.key,
            granted=pot.granted,
            returned=pot.returned,
            spent=pot.spent,
            needed=needed,
            wished=max(0, wish - max(0, pot.left)) + needed if is_low else 0,
        )

    async def take_answers(self, answers: tuple[PotAnswer, ...]) -> None:
        """Follow the hub's word, durable first; raises as the store does."""
        async with self._lock:
            changes: list[tuple[Held, SitePot]] = []
            for answer in answers:
                held = self._held.get(answer.key)
                if held is None or not answer.has_budget:
                    continue
                held.left = answer.left
                held.lacked = max(0, answer.recall)
                after = take_grant(held.pot, answer.granted)
                if answer.recall:
                    after = hand_back(after, answer.recall)
                if after != held.pot:
                    changes.append((held, after))
                self._set_hint(held, after)
                if held.lacked:
                    held.is_changed = True
            if changes:
                rows = [(held.row.number, held.row.slot, pot) for held, pot in changes]
                await self._store.write(lambda connection: save_pots(connection, rows))
            for held, pot in changes:
                held.lacked = max(0, held.lacked - (pot.returned - held.pot.returned))
                held.is_due = held.is_due or pot.returned > held.pot.returned
                held.row = msgspec.structs.replace(held.row, pot=pot)
                held.is_changed = True

    def note_cut(self) -> None:
        """The hub cannot be asked: clients should not expect more than is here."""
        for held in self._by_slot.values():
            self._set_hint(held, held.pot)

    def _set_hint(self, held: Held, pot: SitePot) -> None:
        if not self._is_linked():
            hint = HINT_CUT
        elif held.left is not None and held.left < max(1, held.needed):
            hint = HINT_SPENT
        else:
            hint = HINT_MORE
        if hint == held.hint or held.row.slot < 0:
            return
        held.hint = hint
        for tables in self._workers.values():
            tables.hint(held.row.slot, held.row.number, hint)

    # --- the directory

    def _write_directory(self) -> None:
        if not self._is_directory_new:
            return
        pots = tuple(
            PotEntry(
                key=held.row.key,
                number=held.row.number,
                slot=slot,
                starts_at_s=span_of(held.row.key.period, held.row.key.label)[0],
                ends_at_s=held.row.ends_at_s,
            )
            for slot, held in sorted(self._by_slot.items())
        )
        data = encode_directory(PurseDirectory(pots=pots))
        replace_file(self._folder / DIRECTORY_FILE, data)
        self._is_directory_new = False

    def close(self) -> None:
        """Give the tables back."""
        for tables in self._workers.values():
            tables.close()
        self._workers = {}


def _is_told(pot: SitePot) -> tuple[int, int, tuple[tuple[str, int, int], ...]]:
    """Return what must be durable before anybody acts on it: all but what was spent."""
    shares = tuple((life, share.granted, share.returned) for life, share in sorted(pot.shares.items()))
    return pot.granted, pot.returned, shares
