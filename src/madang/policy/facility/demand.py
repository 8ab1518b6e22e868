"""The demand of a metering interval: what the utility will bill as the peak, and what may still be drawn.

Owns the interval and the forecast to its end. Refuses to shed. Called by the site program and by peak shaving. KEPCO
meters demand as the mean of 15 minutes, which begin with the quarters of an hour.
"""

import math
from collections.abc import Sequence

import msgspec

from madang.model import Fact, Quality
from madang.policy.facility.readings import unknown

INTERVAL_S = 900.0
"""KEPCO, Basic Supply Terms and Conditions: maximum demand is the mean power of 15 minutes."""
_GAP_S_MAX = 120.0
"""A hole in the readings of that length makes a forecast doubtful."""


class PowerReading(msgspec.Struct, frozen=True, kw_only=True):
    """The draw at the boundary at an instant."""

    at_s: float
    power_w: float


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """One metering interval as it runs.

    Attributes:
        begins_at_s, ends_at_s: wall time.
        so_far_w: mean of the part that is over.
        forecast_w: mean at its end if the draw stays.
        allowed_w: what may be drawn from now to its end, on average, to stay within the limit; None without one.
            Negative: the limit is lost whatever is done.
    """

    begins_at_s: float
    ends_at_s: float
    so_far_w: Fact
    forecast_w: Fact
    allowed_w: Fact


def interval_of(now_s: float) -> tuple[float, float]:
    """Return the ends of the metering interval that an instant is in. Korea's offset is whole quarters."""
    begins_at_s = math.floor(now_s / INTERVAL_S) * INTERVAL_S
    return begins_at_s, begins_at_s + INTERVAL_S


def demand(readings: Sequence[PowerReading], now_s: float, limit_w: float | None = None) -> Demand:
    """Return the interval that runs, from readings of power, oldest first; each holds until the next one.

    Readings of before the interval only serve to know its beginning. A hole longer than two minutes, also between the
    newest reading and now, makes the facts uncertain; when the newest is older than an interval they are not known.
    """
    begins_at_s, ends_at_s = interval_of(now_s)
    known = [one for one in readings if one.at_s <= now_s]
    steps = _steps(known, begins_at_s, now_s) if known and now_s - known[-1].at_s <= INTERVAL_S else []
    if not steps:
        nothing = unknown("no reading of the power at the boundary in the last interval")
        return Demand(
            begins_at_s=begins_at_s, ends_at_s=ends_at_s, so_far_w=nothing, forecast_w=nothing, allowed_w=nothing
        )
    covered_s = sum(until_s - from_s for from_s, until_s, _ in steps)
    energy_ws = sum((until_s - from_s) * power_w for from_s, until_s, power_w in steps)
    passed_s, left_s = now_s - begins_at_s, ends_at_s - now_s
    last_w = steps[-1][2]
    mean_w = energy_ws / covered_s if covered_s > 0 else last_w
    age_s = now_s - known[-1].at_s
    hole_s = max(passed_s - covered_s, age_s, *(until_s - from_s for from_s, until_s, _ in steps))
    is_doubtful = hole_s > _GAP_S_MAX
    quality = Quality.UNCERTAIN if is_doubtful else Quality.GOOD
    reason = f"a hole of {hole_s:.0f} s in the readings" if is_doubtful else ""

    def fact(value: float) -> Fact:
        return Fact(value=value, quality=quality, age_s=age_s, reason=reason)

    so_far_ws = mean_w * passed_s
    allowed = unknown("no limit of demand is set")
    if limit_w is not None:
        allowed = fact((limit_w * INTERVAL_S - so_far_ws) / left_s)
    return Demand(
        begins_at_s=begins_at_s,
        ends_at_s=ends_at_s,
        so_far_w=fact(mean_w),
        forecast_w=fact((so_far_ws + last_w * left_s) / INTERVAL_S),
        allowed_w=allowed,
    )


def _steps(known: Sequence[PowerReading], begins_at_s: float, now_s: float) -> list[tuple[float, float, float]]:
    """Return from when to when which power held, within the interval."""
    steps = []
    for one, after in zip(known, [*(later.at_s for later in known[1:]), now_s], strict=True):
        from_s, until_s = max(one.at_s, begins_at_s), max(after, begins_at_s)
        if until_s > from_s or (one is known[-1] and one.at_s >= begins_at_s):
            steps.append((from_s, until_s, one.power_w))
    return steps
