"""Grants money to sites: hears `lease.<site>`, answers once the grant is durable.

Owns that conversation and the view of a tenant's budgets. Refuses to size grants (`machine.lease`) and to believe a
site about another: NATS lets a site publish only under its own name.
"""

from typing import Any

import sqlalchemy as sa

from madang.core import Clock, MadangError, Rejected, Unavailable, check_site_name
from madang.hub.desired_store import read_sites, read_tenants
from madang.hub.facts_admin import read_tenant
from madang.hub.lease_rows import make_pot, prune, read_holders, read_pot, sum_ledger, write_holding
from madang.machine.lease import Ask, HubPot, answer
from madang.machine.lease_accounts import BudgetLine, list_lines
from madang.machine.lease_periods import DAY_S, label_of, labels_ahead, span_of
from madang.model import Project, Tenant
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
_PENDING_MAX = 1024
_PRUNE_PERIOD_S = 3600.0


class Leases:
    """Grants."""

    def __init__(self, *, store: Store, bus: Bus, clock: Clock, log: EventLog) -> None:
        """Prepare; call before the bus runs."""
        self._store = store
        self._bus = bus
        self._clock = clock
        self._log = log
        self._inbox = bus.listen(LEASE_SUBJECTS, pending_max=_PENDING_MAX)
        self._prune_at_s = 0.0

    async def run(self) -> None:
        """Answer until cancelled."""
        while True:
            message = await self._inbox.next()
            reply = await self._answer(message)
            if not message.reply:
                continue
            try:
                await self._bus.publish(message.reply, encode_lease(reply))
            except Unavailable as error:
                # The grant is durable; the site asks again and hears of it then.
                self._log.warning("lease_answer_lost", subject=message.subject, reason=error.message)

    async def _answer(self, message: BusMessage) -> LeaseAnswer:
        life = ""
        now_s = self._clock.wall_s()
        try:
            ask = decode_ask(message.data)
            life = ask.life
            if ask.site != site_of_subject(message.subject):
                raise Rejected(f"lease ask names site {ask.site[:40]!r} on {message.subject}")
            check_site_name(ask.site)
            is_pruned = now_s >= self._prune_at_s
            pots = await self._store.write(lambda connection: grant(connection, ask, now_s, is_pruned=is_pruned))
            self._prune_at_s = now_s + _PRUNE_PERIOD_S if is_pruned else self._prune_at_s
        except MadangError as error:
            self._log.warning("lease_refused", subject=message.subject, reason=error.message)
            return LeaseAnswer(life=life, error=error.message[:200])
        return LeaseAnswer(life=ask.life, pots=pots)


def grant(connection: sa.Connection, ask: LeaseAsk, now_s: float, *, is_pruned: bool = False) -> tuple[PotAnswer, ...]:
    """Return the answers to an ask, with everything stored in the caller's transaction."""
    if is_pruned:
        prune(connection, now_s - KEPT_S)
    lines = _lines_by_account(connection)
    return tuple(_grant_pot(connection, ask, pot, lines, now_s) for pot in ask.pots)


Lines = dict[tuple[Scope, str, Period, bool], BudgetLine]


def _lines_by_account(connection: sa.Connection) -> Lines:
    sites = read_sites(connection)
    projects = _projects_by_tenant(connection)
    return {
        (line.scope, line.account, line.period, line.is_overdraw): line
        for tenant in read_tenants(connection)
        if _may_have_budget(tenant, projects)
        for line in list_lines(tenant, projects.get(tenant.tenant_id, ()), sites)
    }


def _may_have_budget(tenant: Tenant, projects: dict[str, list[Project]]) -> bool:
    return tenant.budget != type(tenant.budget)() or tenant.tenant_id in projects


def _projects_by_tenant(connection: sa.Connection) -> dict[str, list[Project]]:
    found: dict[str, list[Project]] = {}
    for project in read_projects(connection):
        if project.budget != type(project.budget)():
            found.setdefault(project.tenant_id, []).append(project)
    return found


def _grant_pot(connection: sa.Connection, ask: LeaseAsk, said: PotAsk, lines: Lines, now_s: float) -> PotAnswer:
    key = said.key
    line = lines.get((key.scope, key.account, key.period, key.is_overdraw))
    if line is None or key.label not in labels_ahead(key.period, now_s - DAY_S, line.ahead + 2):
        return PotAnswer(key=key, has_budget=False)
    pot = read_pot(connection, key, line.limit) or make_pot(connection, key, line.limit, now_s)
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
    pot, found = answer(pot, told, line.plan, line.sites, now_s)
    write_holding(connection, key, holder, pot.holdings[holder])
    return PotAnswer(key=key, granted=found.granted, recall=found.recall, left=found.left)


def show_budgets(connection: sa.Connection, tenant_id: str, now_s: float) -> dict[str, Any]:
    """Return a tenant's budgets and its projects' in the present periods, as they are leased and spent.

    Raises:
        NotFound: there is no such tenant.
    """
    tenant = read_tenant(connection, tenant_id)
    projects = [project for project in read_projects(connection) if project.tenant_id == tenant_id]
    lines = list_lines(tenant, projects, read_sites(connection))
    keys = [(line, _present_key(line, now_s)) for line in lines]
    held = read_holders(connection, [key for _, key in keys])
    overdraws = {line.period: line.limit for line in lines if line.is_overdraw}
    rows = []
    for line, key in keys:
        holders = held.get(key.text, {})
        prior = holders.pop("").spent if "" in holders else 0
        pot = HubPot(limit=line.limit, prior=prior, holdings=holders)
        # What class `clinical` may go beyond is bounded for all budgets of a period together.
        beyond = 0 if line.is_overdraw else overdraws.get(line.period, 0)
        rows.append(
            {
                "scope": line.scope.value,
                "account": line.account,
                "period": line.period.value,
                "label": key.label,
                "ends_at_s": span_of(key.period, key.label)[1],
                "is_overdraw": line.is_overdraw,
                "plan": line.plan.value,
                "budget_micro_won": line.limit,
                "granted_micro_won": pot.held - prior,
                "free_micro_won": pot.free,
                "spent_micro_won": pot.spent,
                "outstanding_micro_won": pot.held - pot.spent,
                "ledger_micro_won": 0 if line.is_overdraw else sum_ledger(connection, key),
                "overdraw_micro_won": beyond,
                "overshoot_max_micro_won": pot.overshoot + beyond,
                "sites": _by_site(pot),
            }
        )
    return {"tenant_id": tenant_id, "budgets": rows}


def _present_key(line: BudgetLine, now_s: float) -> PotKey:
    return PotKey(
        scope=line.scope,
        account=line.account,
        period=line.period,
        label=label_of(line.period, now_s),
        is_overdraw=line.is_overdraw,
    )


def _by_site(pot: HubPot) -> list[dict[str, Any]]:
    sites: dict[str, dict[str, Any]] = {}
    for one in pot.holdings.values():
        row = sites.setdefault(one.site, {"site": one.site, "granted_micro_won": 0, "spent_micro_won": 0})
        row["granted_micro_won"] += one.held
        row["spent_micro_won"] += one.spent
    return [sites[name] for name in sorted(sites)]


def read_projects(connection: sa.Connection) -> list[Project]:
    """Return every project."""
    return []
