"""What a request takes from budgets: pots, the draw on them, the reservation, and the shortage where there is none.

Owns these shapes and how a charge is divided among the pots of one request. Refuses to know files: the purse gives a
pot its place in the worker's table and is told of every change.
"""

from typing import Protocol

import msgspec

from madang.model import Budget, Project, Tenant
from madang.model.lease import Period, Scope
from madang.wire.purse import (
    HEAD_WORDS,
    NEEDED,
    NUMBER,
    RESERVED,
    RETURNED,
    SPENT,
    USED_WORD,
    WORKER_WORDS,
    PotEntry,
)

Line = tuple[Scope, str, Period]
"""One budget of one account."""


class Shortage(msgspec.Struct, frozen=True, kw_only=True):
    """Why a request may not begin.

    Attributes:
        scope, account, period: the budget that lacks; of several, the one that lacks for longest.
        ends_at_s: when its period ends, wall time; None where no lease of it is here at all.
        hint: HINT_MORE, HINT_SPENT or HINT_CUT.
    """

    scope: Scope
    account: str
    period: Period
    ends_at_s: float | None
    hint: int


class Pot:
    """One pot as this worker uses it; the amounts are those of its table."""

    __slots__ = ("base", "entry", "granted", "number", "reserved", "returned", "spent")

    def __init__(self, entry: PotEntry, words: memoryview) -> None:
        """Find the pot in the worker's table, or give it a slot there that was another's."""
        self.entry = entry
        self.number = entry.number
        self.granted = 0
        self.base = base = HEAD_WORDS + entry.slot * WORKER_WORDS
        if words[base + NUMBER] != entry.number:
            words[base + NUMBER] = 0
            words[base + SPENT] = words[base + RESERVED] = words[base + RETURNED] = words[base + NEEDED] = 0
            words[base + NUMBER] = entry.number
            words[USED_WORD] = max(words[USED_WORD], entry.slot + 1)
        self.spent: int = words[base + SPENT]
        self.reserved: int = words[base + RESERVED]
        self.returned: int = words[base + RETURNED]

    @property
    def left(self) -> int:
        """What may be reserved; below zero where requests cost more than their worst case."""
        return self.granted - self.returned - self.spent - self.reserved


class Draw:
    """The budgets that some requests draw on, with the pots of the present periods once they were looked up."""

    __slots__ = ("lines", "overdraws", "pots", "tenant_id", "version")

    def __init__(self, lines: tuple[Line, ...], tenant_id: str) -> None:
        """Keep them.

        Attributes:
            lines: one for each budget.
            tenant_id: whose overdraw it is.
            pots: in the order of `lines`; None where nothing of one is here.
            overdraws: by period.
            version: of the purse, when they were looked up.
        """
        self.lines = lines
        self.tenant_id = tenant_id
        self.pots: tuple[Pot | None, ...] = ()
        self.overdraws: dict[Period, Pot | None] = {}
        self.version = -1


class Till(Protocol):
    """Where reservations are settled: the purse."""

    open_count: int

    def settle(self, pots: tuple[Pot, ...], reserved: int, spent: int) -> None:
        """Turn a reservation into what was spent, the same in each pot."""


class Reservation:
    """What one request took; settle it once.

    Attributes:
        covered: what the budgets cover; None where that is all of it.
    """

    __slots__ = ("_amount", "_pots", "_purse")

    covered: int | None = None

    def __init__(self, purse: Till, pots: tuple[Pot, ...], amount: int) -> None:
        self._purse = purse
        self._pots = pots
        self._amount = amount

    def settle(self, charge: int) -> None:
        """Put back what was not spent; called with nothing to spend for a request that was not served."""
        self._purse.settle(self._pots, self._amount, charge)
        self._purse.open_count -= 1


class OverdrawnReservation(Reservation):
    """What one request of class `clinical` took where budgets did not suffice."""

    __slots__ = ("_parts", "covered")

    def __init__(self, purse: Till, parts: list[tuple[Pot, int, int, int]], covered: int) -> None:
        """Keep it.

        Args:
            purse: it was taken from.
            parts: pot, what was reserved, and between which two amounts the charge is the pot's.
            covered: what the scarcest budget covers.
        """
        super().__init__(purse, (), 0)
        self._parts = parts
        self.covered: int = covered

    def settle(self, charge: int) -> None:
        """Put back what was not spent, in budgets first, then in the overdraw."""
        for pot, reserved, low, high in self._parts:
            self._purse.settle((pot,), reserved, max(0, min(charge, high) - low))
        self._purse.open_count -= 1


def budget_lines(tenant: Tenant | None, project: Project | None) -> tuple[Line, ...]:
    """Return the budgets that requests of a project draw on; empty for most."""
    lines: list[Line] = []
    if tenant is not None:
        lines += _lines(Scope.TENANT, tenant.tenant_id, tenant.budget)
    if project is not None:
        lines += _lines(Scope.PROJECT, project.project_id, project.budget)
    return tuple(lines)


def _lines(scope: Scope, account: str, budget: Budget) -> list[Line]:
    found: list[Line] = []
    if budget.day_micro_won is not None:
        found.append((scope, account, Period.DAY))
    if budget.month_micro_won is not None:
        found.append((scope, account, Period.MONTH))
    return found
