"""Headroom: how much more may be drawn or cooled, counted as if the largest unit were lost already.

Owns the sums. Refuses to decide what is done about them. A double-corded load counts wholly on the cord that is left,
and N+1 is what remains after the loss of the largest unit: adding up the ratings of A and B is the usual mistake.
Called by the site program; property-tested: no draw that rises, no limit that falls and no unit that is lost ever
makes headroom larger.
"""

from collections.abc import Collection, Mapping

import msgspec

from madang.model import EdgeKind, Equipment, EquipmentKind, Fact, Quality, Quantity
from madang.policy.facility.check_power import groups_of, single_losses
from madang.policy.facility.graph import CARRIERS, IT_LOADS, PHASES, SOURCES, Flow, SiteGraph, flow
from madang.policy.facility.limits import POWER_FACTOR_ASSUMED, counted_cooling_w, limit_phase_w, limit_w
from madang.policy.facility.readings import Readings, derive, least, unknown

_COOLERS = (EquipmentKind.COOLING_UNIT, EquipmentKind.CHILLER, EquipmentKind.CDU)


class Headroom(msgspec.Struct, frozen=True, kw_only=True):
    """How much more one thing takes.

    Attributes:
        place: the equipment; of cooling the redundancy group, or the unit where it has none.
        what: `power`, `apparent`, `phase` or `cooling`.
        phase: of `phase`.
        limit: what it takes for hours: W, of `apparent` VA.
        load: what it has to take now, after the worst single loss.
        headroom: limit less load; negative when it is overloaded.
        after_loss_of: that loss; empty where none is worse than the present.
    """

    place: str
    what: str
    limit: float
    load: Fact
    headroom: Fact
    phase: str = ""
    after_loss_of: str = ""


def power_headroom(readings: Readings, lost: Collection[str] = ()) -> tuple[Headroom, ...]:
    """Return the headroom of every source, feed, breaker, PDU and UPS, and of their phases, that has a rating.

    Args:
        readings: of the site; a load without one counts with its name plate.
        lost: equipment that gives nothing already.
    """
    graph = readings.graph
    draws = readings.draws()
    draws_w, doubts = _with_unseen(readings, draws, lost)
    flows = {"": flow(graph, draws_w, lost)}
    for loss in single_losses(graph):
        if loss not in lost:
            flows[loss] = flow(graph, draws_w, (*lost, loss))
    found: list[Headroom] = []
    for one in graph.of_kind(SOURCES | CARRIERS):
        if one.equipment_id not in lost:
            parts = _parts(graph, one.equipment_id, draws, doubts)
            found += _of_equipment(readings, one, flows, parts)
    return tuple(found)


def _parts(graph: SiteGraph, name: str, draws: Mapping[str, Fact], doubts: Mapping[str, Fact]) -> list[Fact]:
    below = graph.below(EdgeKind.FEEDS, name) | {name}
    return [fact for facts in (draws, doubts) for owner, fact in facts.items() if owner in below]


def _with_unseen(
    readings: Readings, draws: Mapping[str, Fact], lost: Collection[str]
) -> tuple[dict[str, float], dict[str, Fact]]:
    """Return draws with what carriers read beyond their known loads put on them, and why that is doubtful.

    Something hangs there that the file does not name. It is counted where it was seen.
    """
    graph = readings.graph
    draws_w = {name: fact.value or 0.0 for name, fact in draws.items()}
    doubts: dict[str, Fact] = {}
    for name in reversed(graph.order):
        one = graph.by_id[name]
        if one.kind not in CARRIERS | SOURCES or name in lost:
            continue
        read = readings.power(one)
        if read.value is None:
            continue
        unseen_w = read.value - flow(graph, draws_w, lost)[name].power_w
        if unseen_w > 0:
            draws_w[name] = unseen_w
            if unseen_w > _UNSEEN_PART * read.value:
                reason = f"{name} gives {unseen_w:.0f} W more than what is known to hang on it"
                doubts[name] = Fact(value=unseen_w, quality=Quality.UNCERTAIN, age_s=read.age_s, reason=reason)
    return draws_w, doubts


_UNSEEN_PART = 0.05
"""Meters of two devices differ by a few percent; beyond that something is missing in the file. Engineering estimate."""


def _of_equipment(
    readings: Readings, one: Equipment, flows: Mapping[str, Mapping[str, Flow]], parts: list[Fact]
) -> list[Headroom]:
    name = one.equipment_id
    factor = readings.first(name, Quantity.POWER_FACTOR, ("output", "", "total")).value
    power_factor = min(max(abs(factor), _POWER_FACTOR_MIN), 1.0) if factor is not None else POWER_FACTOR_ASSUMED
    loads = {loss: by_name[name] for loss, by_name in flows.items()}
    found = []
    limit = limit_w(one, power_factor)
    if limit is not None:
        found.append(_worst(one, "power", limit, {loss: load.power_w for loss, load in loads.items()}, parts))
    if one.ratings.apparent_va is not None:
        apparent = {loss: load.power_w / power_factor for loss, load in loads.items()}
        found.append(_worst(one, "apparent", one.ratings.apparent_va, apparent, parts))
    per_phase = limit_phase_w(one, power_factor)
    if per_phase is not None and one.ratings.phases == 3:
        for index, phase in enumerate(PHASES):
            on_phase = {loss: load.phases_w[index] for loss, load in loads.items()}
            found.append(_worst(one, "phase", per_phase, on_phase, parts, phase))
    return found


_POWER_FACTOR_MIN = 0.5
"""A smaller reading comes from an idle line and says nothing about the load that matters."""


def _worst(
    one: Equipment, what: str, limit: float, loads: Mapping[str, float], parts: list[Fact], phase: str = ""
) -> Headroom:
    loss = max(loads, key=lambda name: (loads[name], name == ""))
    return Headroom(
        place=one.equipment_id,
        what=what,
        phase=phase,
        limit=limit,
        load=derive(loads[loss], parts),
        headroom=derive(limit - loads[loss], parts),
        after_loss_of=loss,
    )


def cooling_headroom(readings: Readings, lost: Collection[str] = ()) -> tuple[Headroom, ...]:
    """Return the headroom of every group of cooling units, and of units that stand alone.

    Units that say that they stand still count as lost, whatever inlets say. Heat is what the IT equipment in the
    places that they cool draws.
    """
    graph = readings.graph
    gone = frozenset(lost) | readings.stopped_coolers()
    draws = readings.draws()
    groups = {name: units for name, units in groups_of(graph).items() if units[0].kind in _COOLERS}
    groups |= {one.equipment_id: [one] for one in graph.of_kind(_COOLERS) if not one.redundancy_group}
    return tuple(_cooling(graph, name, units, gone, draws) for name, units in groups.items())


def _cooling(
    graph: SiteGraph, name: str, units: list[Equipment], gone: Collection[str], draws: Mapping[str, Fact]
) -> Headroom:
    ids = {one.equipment_id for one in units}
    heat = [draws[one.equipment_id] for one in graph.of_kind(IT_LOADS) if graph.coolers_of(one.equipment_id) & ids]
    running = {one.equipment_id: one.ratings.cooling_w or 0.0 for one in units if one.equipment_id not in gone}
    needed = max(one.redundancy_needed for one in units)
    limit = counted_cooling_w(running, needed)
    load = derive(sum(fact.value or 0.0 for fact in heat), heat)
    unrated = [one.equipment_id for one in units if one.ratings.cooling_w is None]
    fact = derive(limit - (load.value or 0.0), (load,))
    if unrated:
        fact = unknown(f"the cooling of {', '.join(unrated)} is not written", (load,))
    largest = max(running, key=lambda one: running[one], default="")
    return Headroom(
        place=name,
        what="cooling",
        limit=limit,
        load=load,
        headroom=fact,
        after_loss_of=largest if len(running) > needed else "",
    )


def rack_headroom(graph: SiteGraph, found: Collection[Headroom], rack: str) -> Fact:
    """Return how much more a rack may draw: the least of whatever feeds and cools what stands in it, in W.

    What hangs on two cords goes wholly through either of them after a loss, so no part of it may be deducted.
    """
    inside = graph.below(EdgeKind.CONTAINS, rack) | {rack}
    above = {upper for name in inside for upper in graph.above(EdgeKind.FEEDS, name)}
    coolers = {unit for name in inside for unit in graph.coolers_of(name)}
    places = above | inside | coolers | {graph.by_id[unit].redundancy_group for unit in coolers}
    return least(one.headroom for one in found if one.place in places and one.what in ("power", "cooling"))


def site_headroom(found: Collection[Headroom], graph: SiteGraph) -> Fact:
    """Return how much more the site may draw wherever it is drawn: the least of sources, UPSs and cooling, in W."""
    kinds = SOURCES | {EquipmentKind.UPS, EquipmentKind.TRANSFER_SWITCH}
    shared = {one.equipment_id for one in graph.of_kind(kinds)}
    return least(
        one.headroom for one in found if (one.what == "cooling") or (one.what == "power" and one.place in shared)
    )
