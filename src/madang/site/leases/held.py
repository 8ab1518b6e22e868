"""One pot as the site process has it in memory: what is stored, and what is only known of late.

Owns rates of spending, what requests lack, and what the hub should be told. Refuses to store and to give. Called by
the keeper, which hands over the instant.
"""

from typing import Any

import msgspec

from madang.core import ns_to_s
from madang.machine.lease import Plan, SitePot, WorkerShare, note_worker
from madang.machine.lease_accounts import BudgetLine
from madang.machine.lease_periods import span_of
from madang.site.leases.rows import PotRow
from madang.site.leases.tables import SlotState
from madang.wire.leases import PotAsk
from madang.wire.purse import HINT_CUT, HINT_MORE, HINT_SPENT, PotEntry

REFILL_S = 5.0
"""A worker is given what it spends in so long, and twice what it has reserved."""
WISH_S = 60.0
"""The site asks for what it spends in so long."""
RATE_PERIOD_S = 1.0
RATE_WEIGHT = 0.3
NEED_AGAIN_S = 1.0
"""A need that is still published so long after it was met is another request's."""
RECALL_LASTS_S = 15.0
"""What others lack is held back for them so long after the hub's last word, and no longer when the fibre is cut."""
SHARED_PERIOD_S = 3.0
"""How often a site that holds money which others may lack asks whether they do: well within what the hub keeps of a
need, and about what a refused client waits before it comes again."""
RECALL_GAP_S = 0.5
RECALL_GAP_S_MAX = 8.0
HINT_WORDS = {HINT_MORE: "more", HINT_SPENT: "spent", HINT_CUT: "cut"}


class Need(msgspec.Struct):
    """What a request at one worker lacks.

    Attributes:
        amount: as the worker published it.
        target: what the worker must have at hand for that request.
        met_ns: since when it has it; 0 while it has not.
    """

    amount: int
    target: int
    met_ns: int = 0


class Held(msgspec.Struct):
    """One pot in memory.

    Attributes:
        row: as it is stored, but for what was spent since.
        line: the budget that it is of; None when that is no more, or not this site's any more.
        is_over: its period is past: it settles, and gives nothing.
        needs, reserved: by life of a worker that lives.
        rate: micro-won spent a second, of late.
        fresh: spent since `rate` was made.
        left: in all, by the hub's last word; None before it.
        is_due: it changed, and the hub should hear of it.
        asked_ns: when it last did.
        lacked: of a recall, what could not be handed back yet.
        recall_gap_s: until workers are asked again; doubles while nothing comes back.
    """

    row: PotRow
    line: BudgetLine | None = None
    is_over: bool = False
    needs: dict[str, Need] = {}
    reserved: dict[str, int] = {}
    rate: float = 0.0
    rate_at_ns: int = 0
    fresh: int = 0
    left: int | None = None
    is_due: bool = True
    asked_ns: int = 0
    lacked: int = 0
    lacked_at_ns: int = 0
    recalled_ns: int = 0
    recall_gap_s: float = 0.0
    short: int = 0
    hint: int = HINT_MORE

    @property
    def pot(self) -> SitePot:
        """Its state."""
        return self.row.pot

    @property
    def is_giving(self) -> bool:
        """Whether workers are given of it."""
        return self.line is not None and not self.is_over

    @property
    def is_shared(self) -> bool:
        """Whether sites take of it by need, so that others may lack what is here."""
        return self.line is not None and self.line.plan is Plan.DEMAND

    def is_ask_due(self, now_ns: int) -> bool:
        """Return whether the hub should hear of it: it changed, or others may lack what is here."""
        is_old = ns_to_s(now_ns - self.asked_ns) >= SHARED_PERIOD_S
        return self.is_due or (is_old and self.is_shared and self.is_giving and self.pot.left > 0)

    def hear(self, pot: SitePot, life: str, state: SlotState, now_ns: int, *, is_live: bool) -> SitePot:
        """Return `pot` after what a worker published, and remember what it lacks and reserved."""
        after = note_worker(pot, life, returned=state.returned, spent=state.spent)
        self.fresh += after.spent - pot.spent
        since_s = ns_to_s(now_ns - self.rate_at_ns)
        if self.fresh and since_s >= RATE_PERIOD_S:
            self.rate += RATE_WEIGHT * (self.fresh / min(since_s, WISH_S) - self.rate)
            self.rate_at_ns, self.fresh = now_ns, 0
        self.is_due = True
        if not is_live:
            return after
        self.reserved[life] = state.reserved
        known = self.needs.get(life)
        if not state.needed:
            self.needs.pop(life, None)
        elif known is None or known.amount != state.needed:
            self.needs[life] = Need(amount=state.needed, target=self._at_hand(after, life) + state.needed)
        return after

    def forget_lives(self, live: frozenset[str]) -> None:
        """Keep nothing of workers that do not live."""
        self.needs = {life: need for life, need in self.needs.items() if life in live}
        self.reserved = {life: amount for life, amount in self.reserved.items() if life in live}

    def _at_hand(self, pot: SitePot, life: str) -> int:
        share = pot.shares.get(life, WorkerShare())
        return share.held - share.spent - self.reserved.get(life, 0)

    def follow_needs(self, pot: SitePot, now_ns: int) -> None:
        """Notice which needs were met; one that is still published long after that is another request's."""
        for life, need in self.needs.items():
            at_hand = self._at_hand(pot, life)
            if at_hand < need.target:
                need.met_ns = 0
            elif not need.met_ns:
                need.met_ns = now_ns
            elif ns_to_s(now_ns - need.met_ns) >= NEED_AGAIN_S:
                need.target, need.met_ns = at_hand + need.amount, 0

    def list_needs(self, pot: SitePot) -> dict[str, int]:
        """Return what workers lack now, by life."""
        lacks = {life: need.target - self._at_hand(pot, life) for life, need in self.needs.items()}
        return {life: lack for life, lack in lacks.items() if lack > 0}

    def rate_of(self, now_ns: int) -> float:
        """Return micro-won a second, falling when nothing is spent any more."""
        idle_s = ns_to_s(now_ns - self.rate_at_ns)
        return self.rate if idle_s < REFILL_S else self.rate * REFILL_S / idle_s

    def list_spending(self, live: frozenset[str], now_ns: int) -> dict[str, int]:
        """Return what each worker that lives should have at hand for what it spends until it is refilled."""
        rate = self.rate_of(now_ns)
        return {life: int(2 * self.reserved.get(life, 0) + REFILL_S * rate) for life in live}

    def held_back(self, now_ns: int) -> int:
        """Return what is kept from the workers here because others lack it."""
        is_old = ns_to_s(now_ns - self.lacked_at_ns) > RECALL_LASTS_S
        return 0 if is_old else self.lacked

    def is_recall_due(self, short: int, now_ns: int) -> bool:
        """Return whether to ask workers and hub again because so much lacks, and count that it was done."""
        if short > self.short:
            self.recall_gap_s = 0.0
        self.short = short
        if not short or ns_to_s(now_ns - self.recalled_ns) < self.recall_gap_s:
            return False
        self.recalled_ns = now_ns
        self.recall_gap_s = min(RECALL_GAP_S_MAX, max(RECALL_GAP_S, 2 * self.recall_gap_s))
        return True

    def recallable(self, pot: SitePot, live: frozenset[str]) -> frozenset[str]:
        """Return the lives that have something unreserved; those in need keep it, unless others elsewhere lack it."""
        kept = {} if self.lacked else self.list_needs(pot)
        return frozenset(life for life in live if life not in kept and self._at_hand(pot, life) > 0)

    def ask(self, live: frozenset[str], now_ns: int) -> PotAsk:
        """Return what to say to the hub."""
        pot = self.pot
        if not self.is_giving:
            return PotAsk(key=self.row.key, granted=pot.granted, returned=pot.returned, spent=pot.spent)
        wish = int(2 * sum(self.reserved.values()) + WISH_S * self.rate_of(now_ns))
        # An even part is all that a site can get: nobody shall give back for it what it would not be granted.
        lack = (
            0
            if self.line is not None and self.line.plan is Plan.EVEN
            else max(self.list_needs(pot).values(), default=0)
        )
        needed = max(0, lack - max(0, pot.free))
        # What workers hold that do not live, nobody can spend now.
        at_hand = max(0, pot.free) + sum(self._at_hand(pot, life) for life in live)
        is_low = needed > 0 or (self.is_shared and at_hand < wish // 2)
        return PotAsk(
            key=self.row.key,
            granted=pot.granted,
            returned=pot.returned,
            spent=pot.spent,
            needed=needed,
            wished=max(0, wish - max(0, at_hand)) + needed if is_low else 0,
        )

    def choose_hint(self, *, is_cut: bool) -> int:
        """Return what a client that is refused should expect."""
        if is_cut:
            return HINT_CUT
        lacked = max((need.amount for need in self.needs.values()), default=1)
        return HINT_SPENT if self.left is not None and self.left < lacked else HINT_MORE

    def entry(self) -> PotEntry:
        """Return its line in the workers' directory."""
        key = self.row.key
        starts_at_s = span_of(key.period, key.label)[0]
        return PotEntry(
            key=key,
            number=self.row.number,
            slot=self.row.slot,
            starts_at_s=starts_at_s,
            ends_at_s=self.row.ends_at_s,
        )

    def show(self) -> dict[str, Any]:
        """Return it for people."""
        pot, key = self.pot, self.row.key
        return {
            "scope": key.scope.value,
            "account": key.account,
            "period": key.period.value,
            "label": key.label,
            "is_overdraw": key.is_overdraw,
            "starts_at_s": span_of(key.period, key.label)[0],
            "ends_at_s": self.row.ends_at_s,
            "plan": None if self.line is None else self.line.plan.value,
            "budget_micro_won": None if self.line is None else self.line.limit,
            "held_micro_won": pot.granted - pot.returned,
            "spent_micro_won": pot.spent,
            "reserved_micro_won": sum(self.reserved.values()),
            "left_micro_won": max(0, pot.left),
            "unassigned_micro_won": max(0, pot.free),
            "needed_micro_won": max(self.list_needs(pot).values(), default=0),
            "left_everywhere_micro_won": self.left,
            "state": HINT_WORDS[self.hint],
        }
