"""Which budgets a tenant has, which sites may spend of them, and how each is divided among them.

Owns that derivation, so that hub and site never differ in it. Refuses to grant. Called by both lease shells.
"""

from collections.abc import Iterable, Iterator

import msgspec

from madang.core import SiteId
from madang.machine.lease import Plan
from madang.machine.lease_periods import HOME_DAYS_AHEAD, HOME_MONTHS_AHEAD, SHARED_AHEAD, labels_ahead
from madang.model import Budget, Project, Site, Tenant
from madang.model.lease import Period, PotKey, Scope
from madang.policy.residency import allowed_sites


class BudgetLine(msgspec.Struct, frozen=True, kw_only=True):
    """One budget of one account, or the overdraw of a tenant, in every period of a kind.

    Attributes:
        limit: micro-won in each period.
        sites: that may spend of it.
    """

    scope: Scope
    account: str
    period: Period
    limit: int
    sites: frozenset[SiteId]
    is_overdraw: bool = False

    @property
    def plan(self) -> Plan:
        """How it is divided: a budget that one site alone spends of is leased there whole."""
        if self.is_overdraw:
            return Plan.EVEN
        return Plan.WHOLE if len(self.sites) == 1 else Plan.DEMAND

    @property
    def ahead(self) -> int:
        """How many periods beyond the present one are granted in advance."""
        if self.plan is Plan.DEMAND:
            return SHARED_AHEAD
        return HOME_DAYS_AHEAD if self.period is Period.DAY else HOME_MONTHS_AHEAD

    def keys(self, wall_s: float) -> Iterator[PotKey]:
        """Yield the pots that should exist now."""
        for label in labels_ahead(self.period, wall_s, self.ahead):
            yield PotKey(
                scope=self.scope,
                account=self.account,
                period=self.period,
                label=label,
                is_overdraw=self.is_overdraw,
            )


def list_lines(tenant: Tenant, projects: Iterable[Project], sites: Iterable[Site]) -> list[BudgetLine]:
    """Return every budget of a tenant and of its projects, and the overdraw of each period that has one."""
    legal = allowed_sites(tenant.residency, tenant.data_class, sites)
    lines = list(_of(Scope.TENANT, tenant.tenant_id, tenant.budget, legal))
    for project in projects:
        lines += _of(Scope.PROJECT, project.project_id, project.budget, legal)
    if tenant.overdraw_micro_won > 0:
        for period in sorted({line.period for line in lines}):
            lines.append(
                BudgetLine(
                    scope=Scope.TENANT,
                    account=tenant.tenant_id,
                    period=period,
                    limit=tenant.overdraw_micro_won,
                    sites=legal,
                    is_overdraw=True,
                )
            )
    return lines


def _of(scope: Scope, account: str, budget: Budget, legal: frozenset[SiteId]) -> Iterator[BudgetLine]:
    for period, limit in ((Period.DAY, budget.day_micro_won), (Period.MONTH, budget.month_micro_won)):
        if limit is not None:
            yield BudgetLine(scope=scope, account=account, period=period, limit=limit, sites=legal)
