"""Accounts with budgets and the pots that their money is leased from. Refuses to grant: `madang.machine.lease` does."""

from enum import StrEnum

import msgspec


class Scope(StrEnum):
    """Whose account it is."""

    TENANT = "tenant"
    PROJECT = "project"


class Period(StrEnum):
    """How long a budget lasts."""

    DAY = "day"
    MONTH = "month"


class PotKey(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """Names one budget of one account in one period.

    Attributes:
        account: id of the tenant or project.
        label: `YYYY-MM-DD` or `YYYY-MM`, Korean time.
        is_overdraw: what class `clinical` may spend beyond the tenant's and its projects' budgets of that period.
    """

    scope: Scope
    account: str
    period: Period
    label: str
    is_overdraw: bool = False

    @property
    def text(self) -> str:
        """The key in one word, for tables."""
        return f"{self.scope}/{self.account}/{self.period}/{self.label}" + ("/overdraw" if self.is_overdraw else "")
