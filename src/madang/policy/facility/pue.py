"""PUE, power usage effectiveness: what comes in over what the IT equipment takes, at an instant or over an interval.

Owns the ratio and when it may not be said. Refuses to fill holes: too little of the IT energy seen, or meters that
disagree, give no number. ISO/IEC 30134-2, current edition, defines PUE over a year, with three categories of where IT
is measured; what is computed here over less is an interim PUE, and at an instant a ratio of powers only.
"""

from collections.abc import Callable, Iterable, Mapping

import msgspec

from madang.model import Fact, Quality, Sample
from madang.model.facility_site import PueMeters
from madang.policy.facility.graph import IT_LOADS, SiteGraph
from madang.policy.facility.readings import Readings, derive, unknown

COVERAGE_MIN = 0.95
"""Part of the IT energy that has to be measured. Engineering rule: below it the doubt is larger than what anybody
improves."""
DOUBT_PART = 0.05
REFUSE_PART = 0.10
"""Two measurements of the same IT draw that differ by more are doubted, then refused. The outlets of a recorded APC
AP8641 add up to within 10 % of the device's own power."""
_WINDOW_TOLERANCE = 0.01


class Pue(msgspec.Struct, frozen=True, kw_only=True):
    """PUE of one category.

    Attributes:
        facility, it: W at an instant, Wh over an interval.
        coverage: part of the IT draw that was measured, 0 to 1.
        begins_at_s, ends_at_s: the interval; equal at an instant.
    """

    category: int
    pue: Fact
    facility: Fact
    it: Fact
    coverage: float
    begins_at_s: float
    ends_at_s: float


def pue_instant(readings: Readings, meters: PueMeters) -> Pue:
    """Return the ratio of powers now; `meters` has to name power points for that, energy ones give no value."""

    def read(name: str) -> Fact:
        point = readings.graph.points.get(name)
        if point is None or point.unit != "W":
            return unknown(f"{name} is no point that reads watts")
        return readings.fact(point)

    return _ratio(readings.graph, meters, read, readings.now_s, readings.now_s)


def pue_interim(
    graph: SiteGraph,
    meters: PueMeters,
    begin: Mapping[str, Sample],
    end: Mapping[str, Sample],
    window_s: tuple[float, float],
) -> Pue:
    """Return PUE over an interval, from what energy registers said at its two ends.

    Args:
        graph: the site.
        meters: energy points.
        begin: samples of the registers nearest to the interval's begin.
        end: likewise at its end.
        window_s: wall times of the ends; a register read more than 1 % of the interval away from one is not used.
    """
    begins_at_s, ends_at_s = window_s
    slack_s = _WINDOW_TOLERANCE * (ends_at_s - begins_at_s)

    def read(name: str) -> Fact:
        first, last = begin.get(name), end.get(name)
        point = graph.points.get(name)
        if point is None or point.unit != "Wh":
            return unknown(f"{name} is no point that reads watt-hours")
        if first is None or last is None or not (first.is_usable and last.is_usable):
            return unknown(f"{name} was not read at both ends of the interval")
        late_s = max(abs(first.observed_at_s - begins_at_s), abs(last.observed_at_s - ends_at_s))
        if late_s > slack_s:
            return unknown(f"{name} was read {late_s:.0f} s away from an end of the interval")
        energy_wh = (last.value or 0.0) - (first.value or 0.0)
        if energy_wh < 0:
            return unknown(f"{name} ran backwards: it was reset or replaced")
        worst = Quality.GOOD if first.quality is last.quality is Quality.GOOD else Quality.UNCERTAIN
        return Fact(value=energy_wh, quality=worst, reason=last.reason or first.reason)

    return _ratio(graph, meters, read, begins_at_s, ends_at_s)


def energy_meters(graph: SiteGraph, plan: Iterable[PueMeters]) -> tuple[PueMeters, ...]:
    """Return where PUE is measured in watt-hours: as named, or by the registers beside the points that are named.

    One whose points have no register beside them is left as it is, so that its PUE says why there is none.
    """
    found: dict[PueMeters, None] = {}
    for meters in plan:
        groups = (meters.facility, meters.it, meters.it_check)
        names = [tuple(_register(graph, name) or name for name in group) for group in groups]
        found[PueMeters(category=meters.category, facility=names[0], it=names[1], it_check=names[2])] = None
    return tuple(found)


def _register(graph: SiteGraph, name: str) -> str:
    """Return the energy register that counts what a point reads; empty without one."""
    point = graph.points.get(name)
    if point is None or point.unit == "Wh":
        return name
    suffix = point.name.removeprefix("power")
    beside = graph.points.get(f"{point.equipment_id}.energy{suffix}")
    return beside.point_id if beside is not None and beside.unit == "Wh" else ""


def _ratio(
    graph: SiteGraph, meters: PueMeters, read: Callable[[str], Fact], begins_at_s: float, ends_at_s: float
) -> Pue:
    facility = _sum([read(name) for name in meters.facility])
    its = {name: read(name) for name in meters.it}
    measured = derive(sum(fact.value or 0.0 for fact in its.values()), [f for f in its.values() if f.value is not None])
    hours = (ends_at_s - begins_at_s) / 3600 or 1.0
    missing = _missing_w(graph, its) * hours
    whole = (measured.value or 0.0) + missing
    coverage = (measured.value or 0.0) / whole if whole else 0.0
    check = _sum([read(name) for name in meters.it_check]) if meters.it_check else None
    return Pue(
        category=meters.category,
        pue=_judge(facility, measured, coverage, check),
        facility=facility,
        it=measured,
        coverage=coverage,
        begins_at_s=begins_at_s,
        ends_at_s=ends_at_s,
    )


def _judge(facility: Fact, it: Fact, coverage: float, check: Fact | None) -> Fact:
    parts = [facility, it]
    if facility.value is None:
        return unknown(f"what comes in is not known: {facility.reason}", parts)
    if not it.value:
        return unknown("no IT draw was measured", parts)
    if coverage < COVERAGE_MIN:
        return unknown(f"{coverage:.0%} of the IT draw is measured; {COVERAGE_MIN:.0%} are needed", parts)
    if facility.value < it.value:
        return unknown("the IT equipment takes more than comes in: it lives on a battery, or a meter is wrong", parts)
    ratio = facility.value / it.value
    if check is None:
        return derive(ratio, parts)
    if check.value is None:
        return derive(ratio, [*parts, check], "the second measurement of IT is not there")
    apart = abs(check.value - it.value) / max(check.value, it.value)
    if apart > REFUSE_PART:
        return unknown(f"two measurements of IT differ by {apart:.0%}", [*parts, check])
    if apart > DOUBT_PART:
        doubt = Fact(value=apart, quality=Quality.UNCERTAIN, reason=f"two measurements of IT differ by {apart:.0%}")
        return derive(ratio, [*parts, doubt])
    return derive(ratio, [*parts, check])


def _sum(facts: list[Fact]) -> Fact:
    """Return a sum, which is not known when a part is not."""
    if not facts:
        return unknown("no point is named")
    for fact in facts:
        if fact.value is None:
            return fact
    return derive(sum(fact.value or 0.0 for fact in facts), facts)


def _missing_w(graph: SiteGraph, its: Mapping[str, Fact]) -> float:
    """Return what IT equipment draws at most, by its name plate, on cords that no usable point covers."""
    measured = {owner for name, fact in its.items() if fact.value is not None for owner in graph.measured_by(name)}
    covered: dict[str, float] = {}
    for name in graph.order:
        # What hangs on two PDUs of which one is read is covered by half.
        feeds = graph.feeds(name)
        above = sum(covered.get(edge.source, 0.0) for edge in feeds) / len(feeds) if feeds else 0.0
        covered[name] = 1.0 if name in measured else above
    return sum((one.ratings.power_w or 0.0) * (1 - covered[one.equipment_id]) for one in graph.of_kind(IT_LOADS))
