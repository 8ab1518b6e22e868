"""Money leases: what a hub grants to sites, and a site to its gateway workers, so that nobody spends a won twice.

Owns the arithmetic of one pot: one budget of one account in one period. Refuses to know clocks, messages and
databases. Called by the hub's and the site's lease shells; `gateway.purse` is the worker's side of it.

Every number that travels only ever rises: what was granted, handed back and spent since the pot began. Whoever
receives keeps the largest he saw, so that messages that are lost, repeated or reordered change nothing.

Invariants, at every instant and after any restart from what was durable before an effect:

* a worker's spent and reserved money never exceeds what it holds (granted less handed back);
* what a site's workers hold together never exceeds what the site holds;
* what sites hold together, as the hub knows it, is never raised above the limit. So all spending ever stays within
  `limit + overshoot`, where `overshoot` is what sites hold beyond a limit that was lowered after they got it.

One thing breaks the first of them: a request that costs more than was reserved for it, because a price rose on its way.
What a holder says it spent beyond what it holds is taken from what nobody holds, and is overshoot where that lacks.

A holder is a site in one life of its database: a site that lost its database starts with nothing, and what its former
life held counts as spent.
"""

from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum

import msgspec

SHARE_OF_FREE = 2
"""A site that asks gets at most this part of what nobody holds, unless one request needs more."""
NEED_LASTS_S = 15.0
"""For how long money is kept, and asked back from others, for a site that then fell silent."""


class Plan(StrEnum):
    """How a pot is divided among sites."""

    WHOLE = "whole"
    EVEN = "even"
    DEMAND = "demand"


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """What the hub knows of one holder; micro-won since the pot began, each number only rises but `needed`.

    Attributes:
        granted, returned: what it got and handed back.
        spent: of that, as it last said.
        needed: what one request there lacks, as it last said.
        heard_at_s: when it last said anything, wall time of the hub; a need that is older than NEED_LASTS_S is none.
    """

    site: str
    granted: int = 0
    returned: int = 0
    spent: int = 0
    needed: int = 0
    heard_at_s: float = 0.0

    @property
    def held(self) -> int:
        """What it may spend in all, what it has spent included."""
        return self.granted - self.returned


class HubPot(msgspec.Struct, frozen=True, kw_only=True):
    """One pot as the hub keeps it.

    Attributes:
        limit: the budget now.
        prior: what was spent before the pot began, as far as the ledger knew.
        holdings: by holder.
    """

    limit: int
    prior: int = 0
    holdings: dict[str, Holding] = {}

    @property
    def held(self) -> int:
        """What all holders may spend in all, or have spent where that is more, and what was spent before them."""
        return self.prior + sum(max(holding.held, holding.spent) for holding in self.holdings.values())

    @property
    def free(self) -> int:
        """What nobody holds."""
        return max(0, self.limit - self.held)

    @property
    def overshoot(self) -> int:
        """How far all spending can exceed the limit, at most."""
        return max(0, self.held - self.limit)

    @property
    def spent(self) -> int:
        """What is known to be spent."""
        return self.prior + sum(holding.spent for holding in self.holdings.values())


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What a holder says of itself, and what it would like.

    Attributes:
        granted, returned, spent: as the site has them, durable before they are said.
        needed: what one request lacks; 0 when none waits.
        wished: what it would like to have at hand by its recent spending.
    """

    site: str
    holder: str
    granted: int = 0
    returned: int = 0
    spent: int = 0
    needed: int = 0
    wished: int = 0


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """What the hub says to a holder.

    Attributes:
        granted: since the pot began.
        recall: what others lack: hand back what nobody here needs, up to it.
        left: what is not known to be spent, over all sites.
    """

    granted: int
    recall: int
    left: int


def answer(pot: HubPot, ask: Ask, plan: Plan, sites: Iterable[str], now_s: float) -> tuple[HubPot, Grant]:
    """Return the pot after an ask, and what to say once that is durable.

    Args:
        pot: as it is.
        ask: what came.
        plan: how the pot is divided.
        sites: the sites that may spend of it now; one that may not gets nothing, and is asked for what it has.
        now_s: wall time of the hub.
    """
    known = pot.holdings.get(ask.holder, Holding(site=ask.site))
    holding = Holding(
        site=ask.site,
        granted=max(known.granted, ask.granted),  # a hub whose database was restored learns what it gave
        returned=max(known.returned, ask.returned),
        spent=max(known.spent, ask.spent),
        needed=ask.needed,
        heard_at_s=now_s,
    )
    pot = msgspec.structs.replace(pot, holdings={**pot.holdings, ask.holder: holding})
    legal = frozenset(sites)
    if ask.site in legal and ask.granted >= holding.granted:  # else an earlier grant is still on its way
        more = _size(pot, ask, plan, len(legal), now_s)
        holding = msgspec.structs.replace(holding, granted=holding.granted + more)
        pot = msgspec.structs.replace(pot, holdings={**pot.holdings, ask.holder: holding})
    recall = _recall(pot, ask.holder, legal, now_s)
    return pot, Grant(granted=holding.granted, recall=recall, left=max(0, pot.limit - pot.spent))


def _size(pot: HubPot, ask: Ask, plan: Plan, sites: int, now_s: float) -> int:
    free = pot.free
    if plan is Plan.WHOLE:
        return free
    if plan is Plan.EVEN:
        own = sum(one.held for one in pot.holdings.values() if one.site == ask.site)
        return max(0, min(free, pot.limit // sites - own))
    first = _first_in_need(pot, now_s)
    if first != ask.holder:
        free = max(0, free - pot.holdings[first].needed) if first else free
    if ask.needed > free:
        return 0  # crumbs help nobody; others are asked to hand back first
    is_new = pot.holdings[ask.holder].granted == 0
    base = free // (SHARE_OF_FREE * sites) if is_new or ask.wished else 0
    return max(ask.needed, base, min(ask.wished, free // SHARE_OF_FREE))


def _first_in_need(pot: HubPot, now_s: float) -> str:
    """Return the holder for whom others hand back; always the same one of several, so that two never take turns."""
    needy = (name for name, one in pot.holdings.items() if one.needed and now_s - one.heard_at_s <= NEED_LASTS_S)
    return min(needy, default="")


def _recall(pot: HubPot, holder: str, legal: frozenset[str], now_s: float) -> int:
    """Return what a holder shall hand back if it can: the excess over the limit, or what the first in need lacks."""
    own = pot.holdings[holder]
    unspent = max(0, own.held - own.spent)
    if own.site not in legal:
        return unspent
    first = _first_in_need(pot, now_s)
    lacked = 0 if first in ("", holder) else pot.holdings[first].needed - pot.free
    return max(0, min(unspent, max(pot.held - pot.limit, lacked)))


class WorkerShare(msgspec.Struct, frozen=True, kw_only=True):
    """What the site knows of one life of one worker; all numbers only rise."""

    granted: int = 0
    returned: int = 0
    spent: int = 0

    @property
    def held(self) -> int:
        """What it may spend in all, what it has spent included."""
        return self.granted - self.returned


class SitePot(msgspec.Struct, frozen=True, kw_only=True):
    """One pot as a site keeps it, durable before any of it is told to anybody.

    Attributes:
        granted: by the hub.
        returned: to the hub.
        shares: by worker life.
    """

    granted: int = 0
    returned: int = 0
    shares: dict[str, WorkerShare] = {}

    @property
    def free(self) -> int:
        """What no worker holds."""
        return self.granted - self.returned - sum(share.held for share in self.shares.values())

    @property
    def spent(self) -> int:
        """What workers said they spent."""
        return sum(share.spent for share in self.shares.values())

    @property
    def left(self) -> int:
        """What is not known to be spent."""
        return self.granted - self.returned - self.spent


def take_grant(pot: SitePot, granted: int) -> SitePot:
    """Return the pot after the hub's word."""
    return pot if granted <= pot.granted else msgspec.structs.replace(pot, granted=granted)


def note_worker(pot: SitePot, life: str, *, returned: int, spent: int) -> SitePot:
    """Return the pot after what a worker published; a table that says more than was granted is not believed."""
    share = pot.shares.get(life, WorkerShare())
    returned = max(share.returned, min(returned, share.granted))
    spent = max(share.spent, spent)
    if (returned, spent) == (share.returned, share.spent):
        return pot
    changed = msgspec.structs.replace(share, returned=returned, spent=spent)
    return msgspec.structs.replace(pot, shares={**pot.shares, life: changed})


def write_off(pot: SitePot, lives: Collection[str]) -> SitePot:
    """Return the pot with everything spent that workers' lives hold whose tables are gone: nobody can know better."""
    lost = {
        life: msgspec.structs.replace(share, spent=max(share.spent, share.held))
        for life, share in pot.shares.items()
        if life not in lives and share.spent < share.held
    }
    return msgspec.structs.replace(pot, shares={**pot.shares, **lost}) if lost else pot


def issue(pot: SitePot, life: str, amount: int) -> SitePot:
    """Return the pot after giving a worker as much of `amount` as is free; tell it once this is durable."""
    amount = min(amount, pot.free)
    if amount <= 0:
        return pot
    share = pot.shares.get(life, WorkerShare())
    changed = msgspec.structs.replace(share, granted=share.granted + amount)
    return msgspec.structs.replace(pot, shares={**pot.shares, life: changed})


def hand_back(pot: SitePot, amount: int) -> SitePot:
    """Return the pot after giving up as much of `amount` as no worker holds; tell the hub once this is durable."""
    amount = min(amount, pot.free)
    return pot if amount <= 0 else msgspec.structs.replace(pot, returned=pot.returned + amount)


def plan_issue(
    pot: SitePot, live: Mapping[str, int], needs: Mapping[str, int], floor_max: int | None = None
) -> dict[str, int]:
    """Return what to give to which worker now.

    Args:
        pot: as it is.
        live: of each worker that lives, what it spends in the time a refill takes, micro-won.
        needs: what a request at a worker lacks.
        floor_max: the most that a worker is kept above without spending anything; None means without limit.

    A worker in need comes first. The others are kept above what they spend in that time and, so that a first request
    need not wait, above an even part of half of what is left. What a worker holds when the machine loses power counts
    as spent, so that part should be no more than first requests take.
    """
    free, gifts = pot.free, {}
    for life, needed in sorted(needs.items()):
        if 0 < needed <= free:
            gifts[life] = needed
            free -= needed
    floor = max(0, pot.left) // (2 * max(1, len(live)))
    if floor_max is not None:
        floor = min(floor, floor_max)
    for life, spending in sorted(live.items()):
        share = pot.shares.get(life, WorkerShare())
        at_hand = share.held - share.spent + gifts.get(life, 0)
        wanted = max(min(floor, free), spending)
        if at_hand * 2 < wanted:
            gift = min(free, wanted - at_hand)
            if gift > 0:
                gifts[life] = gifts.get(life, 0) + gift
                free -= gift
    return gifts
