"""Grants money to sites: hears `lease.<site>`, answers once the grant is durable.

Owns that conversation. Refuses to size grants (`machine.lease`) and to believe a site about another: NATS lets a
site publish only under its own name.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import sqlalchemy as sa

from madang.core import Clock, MadangError, Rejected, Unavailable, check_entity_id, check_site_name
from madang.hub.desired_store import read_projects, read_projects_of, read_sites, read_tenants
from madang.hub.lease_rows import lock_pots, prune, write_holdings
from madang.hub.metrics import HubMetrics
from madang.machine.lease import Ask, Holding, HubPot, answer
from madang.machine.lease_accounts import BudgetLine, list_lines
from madang.machine.lease_periods import DAY_S, labels_ahead
from madang.model import Project
from madang.model.lease import Period, PotKey, Scope
from madang.runtime.bus import Bus, BusMessage
from madang.runtime.store import Store
from madang.runtime.telemetry import EventLog
from madang.wire.bus import site_of_subject
from madang.wire.leases import (
    LEASE_SUBJECTS,
    LeaseAnswer,
    LeaseAsk,
    PotAnswer,
    PotAsk,
    decode_ask,
    encode_lease,
)

KEPT_S = 400 * DAY_S
"""Pots stay in the database for a year and a month after their period, for whoever asks what was leased."""
_PENDING_MAX = 1024
_ASKS_PER_COMMIT_MAX = 32
"""Asks that wait are answered together: one commit for all of them."""
_PRUNE_PERIOD_S = 3600.0


class Leases:
    """Grants."""

    def __init__(self, *, store: Store, bus: Bus, metrics: HubMetrics, clock: Clock, log: EventLog) -> None:
        """Prepare; call before the bus runs.

        Args:
            store: the hub's database.
            bus: the hub's connection in account FED.
            metrics: counts asks.
            clock: wall time says which periods are.
            log: gets what is refused.
        """
        self._store = store
        self._bus = bus
        self._metrics = metrics
        self._clock = clock
        self._log = log
        self._inbox = bus.listen(LEASE_SUBJECTS, pending_max=_PENDING_MAX)
        self._prune_at_s = 0.0

    async def run(self) -> None:
        """Answer until cancelled."""
        while True:
            messages = [await self._inbox.next()]
            while len(messages) < _ASKS_PER_COMMIT_MAX and (more := self._inbox.next_nowait()) is not None:
                messages.append(more)
            for message, reply in await self._answer(messages):
                await self._send(message, reply)

    async def _send(self, message: BusMessage, reply: LeaseAnswer) -> None:
        self._metrics.lease_asks.labels("refused" if reply.error else "answered").inc()
        if reply.error:
            self._log.warning("lease_refused", subject=message.subject, reason=reply.error)
        if not message.reply:
            return
        try:
            await self._bus.publish(message.reply, encode_lease(reply))
        except Unavailable as error:
            # The grant is durable; the site asks again and hears of it then.
            self._log.warning("lease_answer_lost", subject=message.subject, reason=error.message)

    async def _answer(self, messages: Sequence[BusMessage]) -> list[tuple[BusMessage, LeaseAnswer]]:
        asks: list[tuple[BusMessage, LeaseAsk]] = []
        replies: list[tuple[BusMessage, LeaseAnswer]] = []
        for message in messages:
            try:
                asks.append((message, _read_ask(message)))
            except Rejected as error:
                replies.append((message, _refuse("", error)))
        if not asks:
            return replies
        try:
            granted = await self._grant([ask for _, ask in asks])
        except MadangError as error:
            return replies + [(message, _refuse(ask.life, error)) for message, ask in asks]
        pairs = zip(asks, granted, strict=True)
        return replies + [(message, LeaseAnswer(life=ask.life, pots=pots)) for (message, ask), pots in pairs]

    async def _grant(self, asks: Sequence[LeaseAsk]) -> list[tuple[PotAnswer, ...]]:
        now_s = self._clock.wall_s()
        is_prune_due = now_s >= self._prune_at_s

        def transact(connection: sa.Connection) -> list[tuple[PotAnswer, ...]]:
            if is_prune_due:
                prune(connection, now_s - KEPT_S)
            return grant(connection, asks, now_s)

        granted = await self._store.write(transact)
        if is_prune_due:
            self._prune_at_s = now_s + _PRUNE_PERIOD_S
        return granted


def _read_ask(message: BusMessage) -> LeaseAsk:
    """Return the ask in a message; raises Rejected for one that could harm those it shares a commit with."""
    ask = decode_ask(message.data)
    if ask.site != site_of_subject(message.subject):
        raise Rejected(f"lease ask names site {ask.site[:40]!r} on {message.subject}")
    check_site_name(ask.site)
    check_entity_id("life", ask.life)
    for said in ask.pots:
        check_entity_id(said.key.scope.value, said.key.account)
    return ask


def _refuse(life: str, error: MadangError) -> LeaseAnswer:
    return LeaseAnswer(life=life, error=error.message[:200])


def grant(connection: sa.Connection, asks: Sequence[LeaseAsk], now_s: float) -> list[tuple[PotAnswer, ...]]:
    """Return the answers to asks, each in the order of its pots, with everything stored in the caller's transaction."""
    lines = _lines_by_pot(connection, {said.key for ask in asks for said in ask.pots}, now_s)
    old = lock_pots(connection, {key: line.limit for key, line in lines.items()}, now_s)
    pots = dict(old)
    changed: dict[tuple[PotKey, str], Holding] = {}
    answers = [tuple(_grant_pot(ask, said, lines, pots, changed, now_s) for said in ask.pots) for ask in asks]
    write_holdings(connection, old, changed)
    return answers


def _lines_by_pot(connection: sa.Connection, keys: Iterable[PotKey], now_s: float) -> dict[PotKey, BudgetLine]:
    """Return the budget of each pot that has one and is of this time; reads only the tenants that are named."""
    lines = _read_lines(connection, keys)
    found: dict[PotKey, BudgetLine] = {}
    for key in keys:
        line = lines.get((key.scope, key.account, key.period, key.is_overdraw))
        # From the day before: a site's clock, and a request that began before midnight, may be behind.
        if line is not None and key.label in labels_ahead(key.period, now_s - DAY_S, line.ahead + 2):
            found[key] = line
    return found


def _read_lines(connection: sa.Connection, keys: Iterable[PotKey]) -> dict[tuple[Scope, str, Period, bool], BudgetLine]:
    accounts: dict[Scope, set[str]] = defaultdict(set)
    for key in keys:
        accounts[key.scope].add(key.account)
    owners = {str(project.tenant_id) for project in read_projects(connection, accounts[Scope.PROJECT])}
    tenants = read_tenants(connection, accounts[Scope.TENANT] | owners)
    projects: dict[str, list[Project]] = defaultdict(list)
    for project in read_projects_of(connection, [tenant.tenant_id for tenant in tenants]):
        projects[project.tenant_id].append(project)
    sites = read_sites(connection)
    return {
        (line.scope, line.account, line.period, line.is_overdraw): line
        for tenant in tenants
        for line in list_lines(tenant, projects[tenant.tenant_id], sites)
    }


def _grant_pot(
    ask: LeaseAsk,
    said: PotAsk,
    lines: Mapping[PotKey, BudgetLine],
    pots: dict[PotKey, HubPot],
    changed: dict[tuple[PotKey, str], Holding],
    now_s: float,
) -> PotAnswer:
    """Return the answer about one pot; replaces it in `pots`, for whoever else asks of it in this transaction."""
    key = said.key
    line = lines.get(key)
    if line is None:
        return PotAnswer(key=key, has_budget=False)
    holder = f"{ask.site}/{ask.life}"
    told = Ask(
        site=ask.site,
        holder=holder,
        granted=said.granted,
        returned=said.returned,
        spent=said.spent,
        needed=said.needed,
        wished=said.wished,
    )
    known = pots[key].holdings.get(holder)
    pots[key], found = answer(pots[key], told, line.plan, line.sites, now_s)
    holding = pots[key].holdings[holder]
    # When it was heard matters for a need alone; a report without news is no reason to write.
    if known is None or holding.needed or holding != msgspec.structs.replace(known, heard_at_s=now_s):
        changed[key, holder] = holding
    return PotAnswer(key=key, granted=found.granted, recall=found.recall, left=found.left)
