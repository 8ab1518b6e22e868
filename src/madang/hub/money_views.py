"""What people are shown of a tenant's money: its budgets as they are leased and spent, and its invoices.

Owns those two views. Refuses to change anything and to price (`madang.policy.pricing` does): a charge is what the
gateway that admitted a request entered in its usage event, and an invoice adds charges up.
"""

from typing import Any

import sqlalchemy as sa

from madang.hub.desired_store import read_projects_of, read_sites
from madang.hub.lease_rows import read_pot, sum_ledger
from madang.hub.tables import LEDGER
from madang.hub.tenancy_admin import read_tenant
from madang.machine.lease import HubPot
from madang.machine.lease_accounts import BudgetLine, list_lines
from madang.machine.lease_periods import label_of, span_of
from madang.model import MICRO_WON_PER_WON, VAT_PERMILLE, Outcome
from madang.model.lease import PotKey
from madang.policy.pricing import add_vat_won, kst_month, month_span_s


def show_budgets(connection: sa.Connection, tenant_id: str, now_s: float) -> dict[str, Any]:
    """Return a tenant's budgets and its projects' in the present periods, as they are leased and spent.

    Raises:
        NotFound: there is no such tenant.
    """
    tenant = read_tenant(connection, tenant_id)
    lines = list_lines(tenant, read_projects_of(connection, [tenant_id]), read_sites(connection))
    overdraws = {line.period: line.limit for line in lines if line.is_overdraw}
    rows = []
    for line in lines:
        key = _present_key(line, now_s)
        pot = read_pot(connection, key, line.limit)
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
                "granted_micro_won": pot.held - pot.prior,
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


def show_invoice(connection: sa.Connection, tenant_id: str, month: str, now_s: float) -> dict[str, Any]:
    """Return what a tenant owes for a Korean month, by when requests began; its lines add up to its sum exactly.

    Raises:
        NotFound: there is no such tenant.
        Rejected: the month is none.
    """
    read_tenant(connection, tenant_id)
    starts_at_s, ends_at_s = month_span_s(month)
    lines = _sum_lines(connection, tenant_id, starts_at_s, ends_at_s)
    sum_micro_won = sum(line["charge_micro_won"] for line in lines)
    net_won, vat_won = add_vat_won(sum_micro_won)
    return {
        "tenant_id": tenant_id,
        "month": kst_month(starts_at_s),
        "starts_at_s": starts_at_s,
        "ends_at_s": ends_at_s,
        "is_final": now_s >= ends_at_s,
        "lines": lines,
        "sum_micro_won": sum_micro_won,
        "overdraw_micro_won": sum(line["overdraw_micro_won"] for line in lines),
        "rounding_micro_won": net_won * MICRO_WON_PER_WON - sum_micro_won,
        "net_won": net_won,
        "vat_permille": VAT_PERMILLE,
        "vat_won": vat_won,
        "total_won": net_won + vat_won,
    }


def _sum_lines(connection: sa.Connection, tenant_id: str, starts_at_s: float, ends_at_s: float) -> list[dict[str, Any]]:
    """Return one line a service, class and tariff; sums of 64-bit integers, of billed attempts only."""
    groups = (LEDGER.c.service, LEDGER.c.priority, LEDGER.c.tariff_id)
    completed = LEDGER.c.outcome == Outcome.COMPLETED.value
    query = (
        sa.select(
            *groups,
            sa.func.count().label("requests"),
            sa.func.count().filter(completed).label("requests_completed"),
            sa.func.sum(LEDGER.c.prompt_tokens).label("prompt_tokens"),
            sa.func.sum(LEDGER.c.completion_tokens).label("completion_tokens"),
            sa.func.sum((LEDGER.c.audio_ms + 999) // 1000).label("audio_s"),
            sa.func.sum(LEDGER.c.images).label("images"),
            sa.func.sum(LEDGER.c.samples).label("samples"),
            sa.func.sum(LEDGER.c.charge_micro_won).label("charge_micro_won"),
            sa.func.sum(LEDGER.c.overdraw_micro_won).label("overdraw_micro_won"),
        )
        .where(
            LEDGER.c.tenant_id == tenant_id,
            LEDGER.c.started_at_s >= starts_at_s,
            LEDGER.c.started_at_s < ends_at_s,
            LEDGER.c.is_superseded.is_(False),
        )
        .group_by(*groups)
        .order_by(*groups)
    )
    # PostgreSQL's sums are decimals.
    return [
        {name: value if isinstance(value, str) else int(value) for name, value in row._mapping.items()}
        for row in connection.execute(query)
    ]
