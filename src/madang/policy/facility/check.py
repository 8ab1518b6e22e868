"""The check of a site: what its file says that cannot be, may not be, or is missing.

Owns the rules on cooling, meters, points and tables, and their order. Refuses to read files. Called by
`madang facility check` and by the site program before it takes a site file over. Cost: equipment times edges.
"""

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from itertools import pairwise

from madang.model import EdgeKind, Equipment, EquipmentKind, Point, PointKind, Quantity, SiteModel
from madang.model.facility_site import Actuator, ActuatorKind, ActuatorMode, PueMeters, SitePlan
from madang.policy.facility.check_power import check_power, groups_of, planned_draws_w
from madang.policy.facility.finding import Finding, find
from madang.policy.facility.graph import CARRIERS, IT_LOADS, LOADS, SiteGraph
from madang.policy.facility.limits import counted_cooling_w

_COOLERS = (EquipmentKind.COOLING_UNIT, EquipmentKind.CHILLER, EquipmentKind.CDU)
_MEASURED = LOADS | CARRIERS | {EquipmentKind.UTILITY, EquipmentKind.DOOR}
_UNMEASURED = frozenset({EquipmentKind.BREAKER, EquipmentKind.PANEL})
"""What seldom has a reading of its own; that others read the same current is enough."""
_CHARGE_STALE_S = 30.0
"""Three polls of 10 s: how often batteries are to be watched by the Korean guideline on protecting data centers
(집적정보통신시설 보호지침, 2024), which binds larger ones."""
_CAPS = frozenset({Quantity.POWER_LIMIT, Quantity.POWER})
_SWITCHES = frozenset({Quantity.STATE})
_ONLY_ON: dict[Quantity, frozenset[EquipmentKind]] = {
    Quantity.CHARGE: frozenset({EquipmentKind.UPS, EquipmentKind.BATTERY, EquipmentKind.CAMERA, EquipmentKind.SENSOR}),
    Quantity.RUNTIME: frozenset({EquipmentKind.UPS, EquipmentKind.BATTERY, EquipmentKind.GENERATOR}),
    Quantity.POWER_LIMIT: frozenset({EquipmentKind.SERVER, EquipmentKind.STORAGE, EquipmentKind.RACK_PDU})
    | {EquipmentKind.RACK, EquipmentKind.UPS},
}


def check_site(model: SiteModel, plan: SitePlan) -> tuple[Finding, ...]:
    """Return what is wrong with a site, the gravest first, then in the file's order."""
    graph = SiteGraph(model)
    rules: Iterable[Iterator[Finding]] = (
        check_power(graph),
        _cooling(graph),
        _measuring(graph),
        _safety(graph),
        _odd_points(graph),
        _actuators(graph, plan),
        _alarms(graph, plan),
        _batteries(graph, plan),
        _watched(graph, plan),
        _zones(graph, plan),
        _pue(graph, plan),
        _contract(graph, plan),
    )
    found = {(one.rule, one.place, *one.values.items()): one for rule in rules for one in rule}
    return tuple(sorted(found.values(), key=lambda one: one.severity.rank))


def _cooling(graph: SiteGraph) -> Iterator[Finding]:
    for one in graph.of_kind(IT_LOADS | {EquipmentKind.UPS}):
        if not graph.coolers_of(one.equipment_id):
            yield find("not_cooled", one.equipment_id)
    for one in graph.of_kind(_COOLERS):
        if one.ratings.cooling_w is None:
            yield find("cooling_unrated", one.equipment_id)
    draws = planned_draws_w(graph)
    for name, units in groups_of(graph).items():
        if units[0].kind not in _COOLERS or any(one.ratings.cooling_w is None for one in units):
            continue
        cooling = {one.equipment_id: one.ratings.cooling_w or 0.0 for one in units}
        needed = min(max(one.redundancy_needed for one in units), len(units))
        limit = counted_cooling_w(cooling, needed)
        heat = sum(draws[one.equipment_id] for one in graph.of_kind(IT_LOADS) if _is_cooled(graph, one, cooling))
        if heat > limit:
            yield find("cooling_short", units[0].equipment_id, group=name, load=heat, limit=limit)


def _is_cooled(graph: SiteGraph, one: Equipment, units: Iterable[str]) -> bool:
    return bool(graph.coolers_of(one.equipment_id) & set(units))


def _measuring(graph: SiteGraph) -> Iterator[Finding]:
    for one in graph.of_kind(_MEASURED - _UNMEASURED):
        if not graph.has_points(one.equipment_id):
            yield find("not_measured", one.equipment_id)
    for one in graph.model.equipment:
        meters = [name for name in graph.sources(EdgeKind.MEASURES, one.equipment_id) if _is_meter(graph, name)]
        if len(meters) > 1:
            yield find("meters_overlap", one.equipment_id, point=meters[0], other=meters[1])


def _is_meter(graph: SiteGraph, name: str) -> bool:
    return graph.by_id[name].kind is EquipmentKind.METER


def _safety(graph: SiteGraph) -> Iterator[Finding]:
    for kind in (EquipmentKind.SMOKE_DETECTOR, EquipmentKind.LEAK_DETECTOR):
        if not graph.of_kind((kind,)):
            yield find("no_detector", "site", other=kind.value)


def _odd_points(graph: SiteGraph) -> Iterator[Finding]:
    for point in graph.points.values():
        owner = graph.by_id.get(point.equipment_id)
        allowed = _ONLY_ON.get(point.quantity)
        if owner is not None and allowed is not None and owner.kind not in allowed:
            yield find(
                "odd_point", owner.equipment_id, point=point.point_id, has=point.quantity.value, what=owner.kind.value
            )


def _actuators(graph: SiteGraph, plan: SitePlan) -> Iterator[Finding]:
    taken: dict[str, str] = {}
    for one in plan.actuators:
        place = f"[actuator.{one.actuator_id}]"
        if one.point_id in taken:
            yield find("two_actuators", place, other=taken[one.point_id])
        taken.setdefault(one.point_id, one.actuator_id)
        if one.target not in _targets(graph):
            yield find("unknown_target", place, other=one.target, what="node, rack or equipment")
        if one.value_low is not None and one.value_high is not None and one.value_low > one.value_high:
            yield find("range_wrong", place, what=f"value_low {one.value_low:g} is above value_high {one.value_high:g}")
        if not one.readback_id:
            yield find("armed_blind" if one.mode is ActuatorMode.ARMED else "no_readback", place)
        yield from _actuator_points(graph, one, place)


def _targets(graph: SiteGraph) -> frozenset[str]:
    return frozenset(graph.by_id) | {one.node for one in graph.model.equipment if one.node}


def _actuator_points(graph: SiteGraph, one: Actuator, place: str) -> Iterator[Finding]:
    for name in filter(None, (one.point_id, one.readback_id)):
        if name not in graph.points:
            yield find("unknown_point", place, point=name)
    point, readback = graph.points.get(one.point_id), graph.points.get(one.readback_id)
    if point is None:
        return
    owner = graph.by_id.get(point.equipment_id)
    if owner is not None and owner.kind is EquipmentKind.FIRE_SUPPRESSION:
        yield find("fire_is_read", place)
    if point.kind not in (PointKind.SETPOINT, PointKind.COMMAND):
        yield find("not_commanded", place, point=point.point_id, what=point.kind.value)
    is_isolating = one.kind in (ActuatorKind.ISOLATE_ELECTRICAL, ActuatorKind.ISOLATE_LIQUID)
    if is_isolating and one.value_rest is None:
        yield find("no_release", place)
    if one.kind is ActuatorKind.CAP and point.quantity not in _CAPS:
        yield _misfit(place, point, "W")
    if is_isolating and point.quantity not in _SWITCHES:
        yield _misfit(place, point, "a state")
    if readback is not None and readback.unit != point.unit:
        yield _misfit(place, readback, point.unit or "a state")


def _misfit(place: str, point: Point, expected: str) -> Finding:
    return find("unit_misfit", place, point=point.point_id, has=point.unit or "a state", expected=expected)


def _alarms(graph: SiteGraph, plan: SitePlan) -> Iterator[Finding]:
    for rule in plan.alarms:
        place = f"[alarm.{rule.override_id}]"
        is_limit = rule.condition in ("high", "high_high", "low", "low_low", "rate", "discrepancy")
        for pattern in rule.points:
            points = [point for name, point in graph.points.items() if fnmatchcase(name, pattern)]
            if not points:
                yield find("no_match", place, point=pattern)
            for point in points:
                if (point.quantity is Quantity.STATE) == is_limit and rule.condition != "reading_lost":
                    yield _misfit(place, point, "a quantity with a limit" if is_limit else "a state")
        if rule.other and rule.other not in graph.points:
            yield find("unknown_point", place, point=rule.other)
        if min(rule.deadband or 0.0, rule.on_delay_s or 0.0, rule.off_delay_s or 0.0) < 0:
            yield find("range_wrong", place, what="deadband and delays are 0 or more")


def _batteries(graph: SiteGraph, plan: SitePlan) -> Iterator[Finding]:
    for battery in plan.batteries:
        place = f"[battery.{battery.ups}]"
        owner = graph.by_id.get(battery.ups)
        if owner is None or owner.kind is not EquipmentKind.UPS:
            yield find("unknown_target", place, other=battery.ups, what="UPS")
        if battery.energy_wh <= 0 or battery.rated_h <= 0:
            yield find("range_wrong", place, what="energy_wh and rated_h are above 0")
        if not (0 < battery.efficiency <= 1 and 0 < battery.health <= 1):
            yield find("range_wrong", place, what="efficiency and health are above 0 and at most 1")
        if battery.peukert is not None and not 1 <= battery.peukert <= 2:
            yield find("range_wrong", place, what="peukert is 1 to 2")
        table = battery.runtime_table
        is_falling = all(a[0] < b[0] and a[1] >= b[1] for a, b in pairwise(table))
        if not is_falling or any(power <= 0 or seconds <= 0 for power, seconds in table):
            yield find("range_wrong", place, what="runtime_table has rising watts above 0 with falling seconds")


def _watched(graph: SiteGraph, plan: SitePlan) -> Iterator[Finding]:
    """Yield the UPSs whose batteries nobody describes, or looks at often enough."""
    described = {battery.ups for battery in plan.batteries}
    for one in graph.of_kind((EquipmentKind.UPS,)):
        if one.equipment_id not in described:
            yield find("no_battery", one.equipment_id)
        for point in graph.points_of(one.equipment_id, Quantity.CHARGE):
            if point.stale_s > _CHARGE_STALE_S:
                yield find("battery_slow", one.equipment_id, what=f"{point.stale_s:.0f}")


def _zones(graph: SiteGraph, plan: SitePlan) -> Iterator[Finding]:
    for zone in plan.zones:
        place = f"[zone.{zone.place}]"
        if zone.place not in graph.by_id:
            yield find("unknown_target", place, other=zone.place, what="room or rack")
        if not 0 < zone.air_j_k <= zone.mass_j_k or zone.rise_k < 0:
            yield find("range_wrong", place, what="0 < air_j_k <= mass_j_k, and rise_k is 0 or more")
        if zone.place in graph.by_id and not graph.inlets_in(zone.place):
            yield find("no_inlet", zone.place)
    zoned = {zone.place for zone in plan.zones}
    for one in graph.of_kind((EquipmentKind.ROOM,)):
        if one.equipment_id not in zoned:
            yield find("no_zone", one.equipment_id)


def _pue(graph: SiteGraph, plan: SitePlan) -> Iterator[Finding]:
    for number, meters in enumerate(plan.pue, 1):
        place = f"[[pue]] {number}"
        if meters.category not in (1, 2, 3):
            yield find("range_wrong", place, what="category is 1, 2 or 3")
        names = (*meters.facility, *meters.it, *meters.it_check)
        for name in names:
            if name not in graph.points:
                yield find("unknown_point", place, point=name)
        points = [graph.points[name] for name in names if name in graph.points]
        expected = Quantity.ENERGY if points and points[0].quantity is Quantity.ENERGY else Quantity.POWER
        for point in points:
            if point.quantity is not expected:
                yield _misfit(place, point, "Wh" if expected is Quantity.ENERGY else "W")
        yield from _counted_twice(graph, meters, place)


def _counted_twice(graph: SiteGraph, meters: PueMeters, place: str) -> Iterator[Finding]:
    """Yield points of one sum of which one counts what the other counts already."""
    for names in (meters.facility, meters.it, meters.it_check):
        for index, name in enumerate(names):
            for other in names[index + 1 :]:
                for owner in graph.measured_by(name):
                    for second in graph.measured_by(other):
                        if owner == second or _is_above(graph, owner, second) or _is_above(graph, second, owner):
                            yield find("meter_twice", place, point=name, other=other, what=owner)


def _is_above(graph: SiteGraph, upper: str, lower: str) -> bool:
    return upper in graph.above(EdgeKind.FEEDS, lower)


def _contract(graph: SiteGraph, plan: SitePlan) -> Iterator[Finding]:
    contract = plan.contract
    if contract is None:
        return
    point = graph.points.get(contract.meter)
    if point is None:
        yield find("unknown_point", "[contract]", point=contract.meter)
    elif point.quantity is not Quantity.ENERGY:
        yield _misfit("[contract]", point, "Wh")
    if contract.power_w <= 0 or contract.idle_w < 0:
        yield find("range_wrong", "[contract]", what="power_w is above 0 and idle_w 0 or more")
