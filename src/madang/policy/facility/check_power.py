"""What the check of a site finds wrong with its feeds: loops, phases, cords, spares, overload.

Owns these rules. Refuses to know readings: draws are what name plates say. Called by `check`.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator

from madang.model import Edge, EdgeKind, Equipment, EquipmentKind
from madang.policy.facility.finding import Finding, find
from madang.policy.facility.graph import CARRIERS, LOADS, PHASES, SOURCES, SiteGraph, flow
from madang.policy.facility.limits import limit_phase_w, limit_w

_VOLTAGE_TOLERANCE = 0.10
"""Equipment is made for +-10 % (IEC 60038)."""


def check_power(graph: SiteGraph) -> Iterator[Finding]:
    """Yield what is wrong with the feeds; overload is only looked at where there is no loop."""
    yield from _edges_without_ends(graph)
    for name in graph.loop:
        yield find("feed_loop", name, other=", ".join(one for one in graph.loop if one != name) or name)
    for one in graph.model.equipment:
        yield from _supply(graph, one)
        yield from _cords(graph, one)
        for edge in graph.feeds(one.equipment_id):
            yield from _phase(graph, edge)
    yield from _groups(graph)
    if not graph.loop:
        yield from _overload(graph)


def _edges_without_ends(graph: SiteGraph) -> Iterator[Finding]:
    for edge in graph.model.edges:
        for end, other in ((edge.source, edge.target), (edge.target, edge.source)):
            if end not in graph.by_id:
                yield find("unknown_equipment", other, other=end)


def _supply(graph: SiteGraph, one: Equipment) -> Iterator[Finding]:
    """Yield whether power reaches it, and whether its plate is known."""
    if one.kind not in LOADS | CARRIERS:
        return
    above = graph.above(EdgeKind.FEEDS, one.equipment_id)
    if not any(graph.by_id[name].kind in SOURCES for name in above):
        yield find("not_fed", one.equipment_id)
    is_rated = limit_w(one) is not None if one.kind in CARRIERS else one.ratings.power_w is not None
    if not is_rated and one.kind is not EquipmentKind.PANEL:
        yield find("not_rated", one.equipment_id)


def _cords(graph: SiteGraph, one: Equipment) -> Iterator[Finding]:
    """Yield feeds that are counted twice, shares that do not add up, and cords that are no two."""
    feeds = graph.feeds(one.equipment_id)
    for (source, _), count in Counter((edge.source, edge.phase) for edge in feeds).items():
        if count > 1:
            yield find("feed_twice", one.equipment_id, other=source)
    shares = [edge.share for edge in feeds if edge.share is not None]
    if shares and (len(shares) < len(feeds) or abs(sum(shares) - 1) > 0.01):
        yield find("shares_wrong", one.equipment_id, sum=f"{sum(shares):g}")
    if one.is_critical and one.kind in LOADS and len(feeds) == 1:
        yield find("single_cord", one.equipment_id)
    if one.kind not in LOADS or len(feeds) < 2:
        return
    labels = {edge.feed for edge in feeds}
    if len(labels) == 1 and labels != {""}:
        yield find("same_label", one.equipment_id, other=labels.pop())
    shared = shared_splits(graph, one.equipment_id)
    if shared:
        yield find("same_feed", one.equipment_id, other=", ".join(sorted(shared)))


def shared_splits(graph: SiteGraph, name: str) -> frozenset[str]:
    """Return the UPSs, PDUs and whatever stands behind a UPS on which all cords of a piece of equipment hang.

    What all cords share before the UPSs (utility, transfer switch, main breaker) is how a small site is built.
    """
    chains = _chains(graph, name)
    common = chains[0].intersection(*chains) if chains else frozenset()
    return frozenset(one for one in common if _is_split(graph, one))


def _chains(graph: SiteGraph, name: str) -> list[frozenset[str]]:
    """Return, for each cord, all that it comes through."""
    return [graph.above(EdgeKind.FEEDS, edge.source) | {edge.source} for edge in graph.feeds(name)]


def _is_split(graph: SiteGraph, name: str) -> bool:
    if graph.by_id[name].kind in (EquipmentKind.UPS, EquipmentKind.RACK_PDU):
        return True
    return any(graph.by_id[one].kind is EquipmentKind.UPS for one in graph.above(EdgeKind.FEEDS, name))


def _phase(graph: SiteGraph, edge: Edge) -> Iterator[Finding]:
    source, target = graph.by_id[edge.source], graph.by_id[edge.target]
    if source.ratings.phases == 3 and target.ratings.phases == 1 and not edge.phase:
        yield find("phase_missing", edge.target, other=edge.source)
    if target.ratings.phases == 3 and (edge.phase or source.ratings.phases == 1):
        yield find("phase_too_few", edge.target, other=edge.source)
    has = {upper.phase for upper in graph.feeds(edge.source)} - {""}
    if source.ratings.phases == 1 and edge.phase and has and edge.phase not in has:
        yield find("phase_not_there", edge.target, phase=edge.phase, other=edge.source, has=", ".join(sorted(has)))
    own, given = target.ratings.voltage_v, source.ratings.voltage_v
    if own and given and abs(own - given) > _VOLTAGE_TOLERANCE * own:
        yield find("voltage_differs", edge.target, own=f"{own:g}", other=edge.source, has=f"{given:g}")


def groups_of(graph: SiteGraph) -> dict[str, list[Equipment]]:
    """Return the redundancy groups by name."""
    groups: dict[str, list[Equipment]] = defaultdict(list)
    for one in graph.model.equipment:
        if one.redundancy_group:
            groups[one.redundancy_group].append(one)
    return groups


def _groups(graph: SiteGraph) -> Iterator[Finding]:
    for name, units in groups_of(graph).items():
        needed = max(one.redundancy_needed for one in units)
        if len(units) < needed:
            yield find("group_short", units[0].equipment_id, group=name, count=len(units), needed=needed)
        elif len(units) == needed:
            yield find("group_no_spare", units[0].equipment_id, group=name, count=len(units))
    for one in graph.of_kind((EquipmentKind.UPS, EquipmentKind.COOLING_UNIT, EquipmentKind.CHILLER)):
        if not one.redundancy_group:
            yield find("no_group", one.equipment_id)


def planned_draws_w(graph: SiteGraph) -> dict[str, float]:
    """Return what every load draws at most, by its name plate; spare cooling units draw too, the worse case."""
    return {one.equipment_id: one.ratings.power_w or 0.0 for one in graph.of_kind(LOADS)}


def single_losses(graph: SiteGraph) -> tuple[str, ...]:
    """Return the equipment whose loss moves load to something else: it carries a cord of what has several."""
    found: set[str] = set()
    for one in graph.model.equipment:
        if len(graph.feeds(one.equipment_id)) < 2:
            continue
        chains = _chains(graph, one.equipment_id)
        found |= chains[0].union(*chains) - chains[0].intersection(*chains)
    return tuple(name for name in graph.by_id if name in found and graph.by_id[name].kind in SOURCES | CARRIERS)


def _overload(graph: SiteGraph) -> Iterator[Finding]:
    draws = planned_draws_w(graph)
    losses = single_losses(graph)
    flows = {loss: flow(graph, draws, (loss,)) for loss in losses}
    normal = flow(graph, draws)
    for one in graph.of_kind(CARRIERS | SOURCES):
        name, limit = one.equipment_id, limit_w(one)
        if limit is None:
            continue
        if normal[name].power_w > limit:
            yield find("overloaded", name, load=normal[name].power_w, limit=limit)
            continue
        phases = list(_overloaded_phases(one, normal[name].phases_w))
        yield from phases
        worst = max(losses, key=lambda loss: flows[loss][name].power_w, default="")
        if worst and not phases and flows[worst][name].power_w > limit:
            yield find("overloaded_after_loss", name, other=worst, load=flows[worst][name].power_w, limit=limit)


def _overloaded_phases(one: Equipment, phases_w: tuple[float, ...]) -> Iterator[Finding]:
    limit = limit_phase_w(one)
    if limit is None or one.ratings.phases != 3:
        return
    for phase, load_w in zip(PHASES, phases_w, strict=True):
        if load_w > limit:
            yield find("overloaded_phase", one.equipment_id, phase=phase, load=load_w, limit=limit)
