"""Which pots an account has: its periods in Korean time, the present one and those granted in advance.

Owns names and instants of periods. Refuses to know money and clocks. Called by the lease shells
of hub and site and by the worker's purse.
"""

from collections.abc import Iterator

from madang.core import Rejected
from madang.model.lease import Period
from madang.policy.pricing import day_start_s, kst_day, kst_month, month_span_s

DAY_S = 86_400.0
HOME_DAYS_AHEAD = 31
HOME_MONTHS_AHEAD = 2
"""For how long a site can be cut off before the budgets of those who live there end: a month."""
SHARED_AHEAD = 1
"""Of budgets that several sites share, the next period's first share is granted in advance, and no more."""


def label_of(period: Period, wall_s: float) -> str:
    """Return the name of the period that a wall time is in."""
    return kst_day(wall_s) if period is Period.DAY else kst_month(wall_s)


def span_of(period: Period, label: str) -> tuple[float, float]:
    """Return the wall times at which a period begins and ends; raises Rejected for a name that is none."""
    if period is Period.MONTH:
        return month_span_s(label)
    if len(label) != 10:
        raise Rejected(f"day {label[:20]!r} is not valid: expected YYYY-MM-DD")
    start_s = day_start_s(label)
    return start_s, start_s + DAY_S


def labels_ahead(period: Period, wall_s: float, ahead: int) -> Iterator[str]:
    """Yield the period of a wall time and the `ahead` ones after it."""
    at_s = wall_s
    for _ in range(ahead + 1):
        label = label_of(period, at_s)
        yield label
        at_s = span_of(period, label)[1] + 1.0
