"""A site's model as decisions need it: which servers hang on which breaker, in which rack, under which cooling.

Owns the index and the limits: what a breaker, feed or UPS may carry and for how long it bears more. Refuses to know
readings. Made once for a model; read by the proposers and the authority.

A server on two feeds counts wholly on each: when one feed is lost, all of it is on the other.
"""

import math
from collections import defaultdict
from itertools import pairwise

import msgspec

from madang.core import NodeId, SiteId
from madang.model import EdgeKind, Equipment, EquipmentKind, Point, Quantity, SiteModel
from madang.policy.facility.limits import POWER_FACTOR_ASSUMED
from madang.policy.facility.signs import Reading, list_readings

K = EquipmentKind

CURVE = ((1.13, 3600.0), (1.45, 290.0), (2.55, 1.0))
"""Least time that a breaker bears a multiple of its rating, from cold.

The corners at 1.13 (an hour without tripping) and 2.55 (a second at least) are IEC 60898-1's for thermal release; that
between lies on a straight line through them in logarithms, rounded down (engineering estimate). Below the first it
never trips; above the last nothing is promised.
"""

REACT_S = 120.0
"""Within this time the authority has ended any draw above a rating: a reading (5 s), a second one to believe it (5 s),
a cap that must be read back (10 s), a forced stop that acts after 5.5 s on the one BMC emulator that was timed and is
ordered twice (20 s), and as long again in hand for readings that are gone (60 s)."""

PLAN_RATIO = 0.8
"""A breaker carries at most 80 % of its rating continuously (practice for loads of three hours and more)."""

NAME_PLATE_W = 2000.0
"""Taken for a server whose name plate nobody wrote down (engineering value, on the high side)."""

PHASES = ("L1", "L2", "L3")

_CONSUMERS = frozenset(
    {K.SERVER, K.STORAGE, K.SWITCH, K.COOLING_UNIT, K.CHILLER, K.CDU, K.PUMP, K.CAMERA, K.DOOR, K.SENSOR}
)
_BEARS = {K.UPS: 1.25}
"""Overload that is borne for ten minutes: 125 % by double-conversion UPSs as they are sold; 110 % is taken for
generators, feeds and all else without a curve (engineering estimates). They are planned with 90 %."""
_TRIPPING = frozenset({K.BREAKER, K.PANEL, K.RACK_PDU})


class Spot(msgspec.Struct, frozen=True, kw_only=True):
    """Where a node is; `order`: of its rack, in the order of the model."""

    node: NodeId
    equipment_id: str
    rack: str
    order: int
    name_plate_w: float


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """What one breaker, feed or UPS, or a phase of it (`panel/L1`), may carry.

    Attributes:
        rating_w: continuous.
        plan_w: what caps may add up to, with `fixed_w`.
        bear_w: what name plates may add up to: the most that its curve bears for `REACT_S`.
        fixed_w: name plates of what is not a node.
        meter: the point that reads what it carries; empty without.
    """

    equipment_id: str
    rating_w: float
    plan_w: float
    bear_w: float
    fixed_w: float
    nodes: tuple[NodeId, ...]
    meter: str = ""


class CoolingGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Units that stand in for each other, and the nodes that live on them."""

    name: str
    units: tuple[str, ...]
    needed: int
    nodes: tuple[NodeId, ...]


class Topology(msgspec.Struct, frozen=True, kw_only=True):
    """The index; `above`: by equipment all that feeds, cools, contains it or is measured by it."""

    site: SiteId
    equipment: dict[str, Equipment]
    points: dict[str, Point]
    nodes: dict[NodeId, Spot]
    racks: dict[str, tuple[NodeId, ...]]
    limits: tuple[Limit, ...]
    limits_of: dict[NodeId, tuple[int, ...]]
    cooling: tuple[CoolingGroup, ...]
    feeds: dict[str, frozenset[str]]
    """By equipment, all that it feeds, however far."""
    cools: dict[str, frozenset[str]]
    measures: dict[str, tuple[str, ...]]
    sign_points: tuple[tuple[Point, tuple[Reading, ...]], ...]
    """The points that can show signs, and how these are read off them."""


def bear_s(ratio: float) -> float:
    """Return how long a cold breaker bears a multiple of its rating, at least."""
    if ratio < CURVE[0][0]:
        return math.inf
    for (low, low_s), (high, high_s) in pairwise(CURVE):
        if ratio <= high:
            part = math.log(ratio / low) / math.log(high / low)
            return low_s * math.exp(part * math.log(high_s / low_s))
    return 0.0


def bear_ratio(seconds: float) -> float:
    """Return the largest multiple of its rating, to 1/100 and at most 1.45, that a breaker bears for so long."""
    steps = [n / 100.0 for n in range(100, 146)]
    return max(ratio for ratio in steps if bear_s(ratio) >= seconds)


def rating_of(equipment: Equipment) -> float | None:
    """Return what it may carry continuously, in watts: the least of what its name plate says.

    Volt-amperes and amperes carry less than as many watts; the power factor is the one that headroom assumes.
    """
    ratings = equipment.ratings
    found = [ratings.power_w] if ratings.power_w else []
    if ratings.apparent_va:
        found.append(ratings.apparent_va * POWER_FACTOR_ASSUMED)
    if ratings.current_a and ratings.voltage_v:
        found.append(ratings.current_a * ratings.voltage_v * ratings.phases * POWER_FACTOR_ASSUMED)
    return min(found) if found else None


def index_site(model: SiteModel) -> Topology:
    """Return the index of a model. Cost: equipment times edges."""
    equipment = {one.equipment_id: one for one in model.equipment}
    rack_order = {one.rack: 0 for one in model.equipment if one.rack}
    rack_order = {rack: order for order, rack in enumerate(rack_order)}
    nodes = {
        one.node: Spot(
            node=one.node,
            equipment_id=one.equipment_id,
            rack=one.rack,
            order=rack_order.get(one.rack, len(rack_order)),
            name_plate_w=one.ratings.power_w or NAME_PLATE_W,
        )
        for one in model.equipment
        if one.kind is K.SERVER and one.node
    }
    feeds = _reach(model, (EdgeKind.FEEDS,))
    cools = _reach(model, (EdgeKind.COOLS, EdgeKind.CONTAINS))
    limits = tuple(limit for one in model.equipment for limit in _make_limits(one, equipment, model))
    measures: dict[str, list[str]] = defaultdict(list)
    for edge in model.edges:
        if edge.kind is EdgeKind.MEASURES:
            measures[edge.source].append(edge.target)
    return Topology(
        site=model.site,
        equipment=equipment,
        points={point.point_id: point for point in model.points},
        nodes=nodes,
        racks={
            rack: tuple(spot.node for spot in nodes.values() if spot.rack == rack)
            for rack in [*rack_order, *({""} if any(not spot.rack for spot in nodes.values()) else ())]
        },
        limits=limits,
        limits_of={node: tuple(i for i, one in enumerate(limits) if node in one.nodes) for node in nodes},
        cooling=_make_groups(equipment, nodes, cools),
        feeds=feeds,
        cools=cools,
        measures={source: tuple(targets) for source, targets in measures.items()},
        sign_points=tuple(
            (point, readings)
            for point in model.points
            if point.equipment_id in equipment
            and (readings := list_readings(point, equipment[point.equipment_id].kind))
        ),
    )


def _reach(model: SiteModel, kinds: tuple[EdgeKind, ...]) -> dict[str, frozenset[str]]:
    below: dict[str, set[str]] = defaultdict(set)
    for edge in model.edges:
        if edge.kind in kinds:
            below[edge.source].add(edge.target)
    if EdgeKind.CONTAINS in kinds:
        for one in model.equipment:
            if one.rack:
                below[one.rack].add(one.equipment_id)
    found = {}
    for one in model.equipment:
        seen: set[str] = set()
        queue = [one.equipment_id]
        while queue:
            for target in below.get(queue.pop(), ()):
                if target not in seen:
                    seen.add(target)
                    queue.append(target)
        found[one.equipment_id] = frozenset(seen)
    return found


def _make_limits(one: Equipment, equipment: dict[str, Equipment], model: SiteModel) -> list[Limit]:
    """Return the limit of a carrier, and one for each phase where it has three: a phase is lost like all of it."""
    rating_w = rating_of(one)
    if one.kind in _CONSUMERS or one.kind is K.BATTERY or rating_w is None:
        return []
    phases = _walk_down(model, one.equipment_id)
    fed = [equipment[name] for name in sorted(phases) if name in equipment]
    nodes = [other for other in fed if other.kind is K.SERVER and other.node]
    if not nodes:
        return []
    others = [other for other in fed if other.kind in _CONSUMERS and not other.node]
    made = [_limit(one, one.equipment_id, rating_w, nodes, sum(_plate_w(other) for other in others), model)]
    for phase in PHASES if one.ratings.phases == 3 else ():
        # A server without a phase counts wholly on each: nobody wrote down how it divides.
        on_phase = [node for node in nodes if phases[node.equipment_id] & {phase, ""}]
        fixed_w = sum(
            _plate_w(other) * (1.0 if phase in phases[other.equipment_id] else 1.0 / 3.0)
            for other in others
            if phases[other.equipment_id] & {phase, ""}
        )
        if on_phase:
            made.append(_limit(one, f"{one.equipment_id}/{phase}", rating_w / 3.0, on_phase, fixed_w, model, phase))
    return made


def _limit(
    one: Equipment,
    name: str,
    rating_w: float,
    nodes: list[Equipment],
    fixed_w: float,
    model: SiteModel,
    phase: str = "",
) -> Limit:
    ratio, bear = (PLAN_RATIO, bear_ratio(REACT_S)) if one.kind in _TRIPPING else (0.9, _BEARS.get(one.kind, 1.1))
    return Limit(
        equipment_id=name,
        rating_w=rating_w,
        plan_w=rating_w * ratio,
        bear_w=rating_w * bear,
        fixed_w=fixed_w,
        nodes=tuple(node.node for node in nodes),
        meter=_find_meter(one, model, (f"power_{phase.lower()}",) if phase else ("power", "power_output")),
    )


def _plate_w(one: Equipment) -> float:
    return one.ratings.power_w or 0.0


def _walk_down(model: SiteModel, start: str) -> dict[str, set[str]]:
    """Return, by equipment that is fed from here, the phases that its current flows on; "": all three."""
    edges: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for edge in model.edges:
        if edge.kind is EdgeKind.FEEDS:
            edges[edge.source].append((edge.target, edge.phase))
    found: dict[str, set[str]] = defaultdict(set)
    queue = [(start, "")]
    while queue:
        source, phase = queue.pop()
        for target, edge_phase in edges[source]:
            if (edge_phase or phase) not in found[target]:
                found[target].add(edge_phase or phase)
                queue.append((target, edge_phase or phase))
    return found


def _find_meter(one: Equipment, model: SiteModel, names: tuple[str, ...]) -> str:
    owners = [one.equipment_id]
    owners += [e.source for e in model.edges if e.kind is EdgeKind.MEASURES and e.target == one.equipment_id]
    for point in model.points:
        if point.equipment_id in owners and point.quantity is Quantity.POWER and point.name in names:
            return point.point_id
    return ""


def _make_groups(
    equipment: dict[str, Equipment], nodes: dict[NodeId, Spot], cools: dict[str, frozenset[str]]
) -> tuple[CoolingGroup, ...]:
    members: dict[str, list[Equipment]] = defaultdict(list)
    for one in equipment.values():
        if one.kind in (K.COOLING_UNIT, K.CHILLER, K.CDU, K.PUMP):
            members[one.redundancy_group or one.equipment_id].append(one)
    groups = []
    for name, units in members.items():
        reached = frozenset().union(*(cools[unit.equipment_id] for unit in units))
        groups.append(
            CoolingGroup(
                name=name,
                units=tuple(unit.equipment_id for unit in units),
                needed=max(unit.redundancy_needed for unit in units),
                nodes=tuple(node for node, spot in nodes.items() if spot.equipment_id in reached),
            )
        )
    return tuple(groups)
