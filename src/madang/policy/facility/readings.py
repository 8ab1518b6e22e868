"""The newest samples of a site as facts: what may be believed of each, how old it is, and how doubts add up.

Owns staleness and the rule that a derived fact is as good as the worst of what it rests on. Refuses to know what is
derived. Called by every derived fact.
"""

from collections.abc import Collection, Iterable, Mapping

from madang.model import Equipment, Fact, Point, Quality, Quantity, Sample
from madang.policy.facility.graph import CARRIERS, COOLING_LOADS, LOADS, PHASES, SiteGraph
from madang.policy.facility.signs import Sign, tell

_WORST = (Quality.GOOD, Quality.SUBSTITUTED, Quality.UNCERTAIN, Quality.STALE, Quality.BAD)
_INPUT = ("input", "", "total", "chassis")
_OUTPUT = ("output", "", "total", "input")


class Readings:
    """The newest sample of each point, judged at one instant. Immutable once made."""

    def __init__(self, graph: SiteGraph, samples: Mapping[str, Sample], now_s: float) -> None:
        """Take the samples by point id; `now_s` is wall time."""
        self.graph = graph
        self.now_s = now_s
        self._samples = samples

    def sample(self, point_id: str) -> Sample | None:
        """Return the newest sample of a point as it came."""
        return self._samples.get(point_id)

    def fact(self, point: Point) -> Fact:
        """Return what may be said of a point now; no value where the sample is bad, stale or not there."""
        sample = self._samples.get(point.point_id)
        if sample is None:
            return Fact(value=None, quality=Quality.BAD, reason=f"{point.point_id} was never read")
        age_s = max(self.now_s - sample.observed_at_s, 0.0)
        if not sample.is_usable:
            return Fact(value=None, quality=sample.quality, age_s=age_s, reason=f"{point.point_id}: {sample.reason}")
        if age_s > point.stale_s:
            reason = f"{point.point_id} is {age_s:.0f} s old, allowed are {point.stale_s:.0f} s"
            return Fact(value=None, quality=Quality.STALE, age_s=age_s, reason=reason)
        return Fact(value=sample.value, quality=sample.quality, age_s=age_s, reason=sample.reason)

    def first(self, equipment_id: str, quantity: Quantity, contexts: Collection[str] = ()) -> Fact:
        """Return the first usable reading of a quantity of a piece of equipment, or why there is none.

        Its own points come before those of meters on it.
        """
        names = (equipment_id, *self.graph.meters_on(equipment_id))
        points = [point for name in names for point in self.graph.points_of(name, quantity, contexts)]
        facts = [self.fact(point) for point in points]
        usable = [fact for fact in facts if fact.value is not None]
        nothing = Fact(value=None, quality=Quality.BAD, reason=f"nothing reads the {quantity} of {equipment_id}")
        return (usable or facts or [nothing])[0]

    def power(self, one: Equipment) -> Fact:
        """Return the power that a load takes or a carrier gives, as it is read.

        Phases are added up where there is no reading of all of them.
        """
        contexts: tuple[str, ...] = _OUTPUT if one.kind in CARRIERS else _INPUT
        if one.kind not in CARRIERS and len(self.graph.feeds(one.equipment_id)) == 1:
            # What a PDU's outlet gives is all that a load with one cord takes; of two cords it is one.
            contexts = (*_INPUT, "output")
        whole = self.first(one.equipment_id, Quantity.POWER, contexts)
        if whole.value is not None:
            return whole
        phases = [
            self.first(one.equipment_id, Quantity.POWER, (name, f"output {name}"))
            for name in PHASES[: one.ratings.phases]
        ]
        parts = [fact.value for fact in phases if fact.value is not None]
        return derive(sum(parts), phases) if len(parts) == len(phases) else whole

    def draw(self, one: Equipment) -> Fact:
        """Return what a load draws: read, else its name plate, which is uncertain and the safe side."""
        read = self.power(one)
        if read.value is not None:
            return Fact(value=max(read.value, 0.0), quality=read.quality, age_s=read.age_s, reason=read.reason)
        if one.ratings.power_w is None:
            return read
        reason = f"{one.equipment_id}: its name plate taken, since {read.reason or 'it has no reading'}"
        return Fact(value=one.ratings.power_w, quality=Quality.UNCERTAIN, reason=reason)

    def draws(self) -> dict[str, Fact]:
        """Return what every load draws."""
        return {one.equipment_id: self.draw(one) for one in self.graph.of_kind(LOADS)}

    def stopped_coolers(self) -> frozenset[str]:
        """Return what cools and says that it gives nothing: a cause, seconds before any inlet shows it.

        What said so and fell silent still stands: silence is no cooling.
        """
        return frozenset(
            one.equipment_id for one in self.graph.of_kind(COOLING_LOADS) if self._is_stopped(one.equipment_id)
        )

    def _is_stopped(self, name: str) -> bool:
        said = ((self._samples.get(point.point_id), how) for point, how in self.graph.sign_points(name))
        return any(
            sample is not None and Sign.COOLING_LOST in tell(how, sample.value, sample.text) for sample, how in said
        )


def derive(value: float | None, parts: Iterable[Fact], reason: str = "") -> Fact:
    """Return a value as a fact that is as good as the worst, and as old as the oldest, of what it rests on."""
    known = tuple(parts)
    worst = max((fact.quality for fact in known), key=_WORST.index, default=Quality.GOOD)
    if value is not None and worst in (Quality.BAD, Quality.STALE):
        worst = Quality.UNCERTAIN
    reasons = dict.fromkeys(filter(None, (reason, *(fact.reason for fact in known))))
    return Fact(
        value=value,
        quality=worst,
        age_s=max((fact.age_s for fact in known), default=0.0),
        reason="; ".join(list(reasons)[:REASONS_MAX]),
    )


REASONS_MAX = 4
"""A fact names so many reasons; more would hide the first one."""


def unknown(reason: str, parts: Iterable[Fact] = ()) -> Fact:
    """Return a fact that cannot be said."""
    age_s = max((fact.age_s for fact in parts), default=0.0)
    return Fact(value=None, quality=Quality.BAD, age_s=age_s, reason=reason)


def least(facts: Iterable[Fact]) -> Fact:
    """Return the smallest of some facts; one that cannot be said makes the answer uncertain, all of them none."""
    known = tuple(facts)
    values = [fact.value for fact in known if fact.value is not None]
    if not values:
        return unknown(known[0].reason if known else "there is nothing to compare", known)
    smallest = min((fact for fact in known if fact.value is not None), key=lambda fact: fact.value or 0.0)
    missing = [fact for fact in known if fact.value is None]
    return derive(min(values), (smallest, *missing))
