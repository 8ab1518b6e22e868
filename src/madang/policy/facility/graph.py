"""A site's model, indexed: who feeds, cools, holds and measures whom, and what flows where.

Owns walks over the graph and the one way in which draws add up along feeds. Refuses to know limits and readings.
Called by the check of site files and by every derived fact.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping

import msgspec

from madang.model import Edge, EdgeKind, Equipment, EquipmentKind, Point, PointKind, Quantity, SiteModel
from madang.policy.facility.signs import Reading, list_readings

SOURCES = frozenset({EquipmentKind.UTILITY, EquipmentKind.GENERATOR, EquipmentKind.PHOTOVOLTAIC})
"""Where power comes from."""
CARRIERS = frozenset(
    {
        EquipmentKind.TRANSFER_SWITCH,
        EquipmentKind.UPS,
        EquipmentKind.PANEL,
        EquipmentKind.BREAKER,
        EquipmentKind.RACK_PDU,
    }
)
"""What power goes through; their rating is what they carry."""
IT_LOADS = frozenset({EquipmentKind.SERVER, EquipmentKind.STORAGE, EquipmentKind.SWITCH})
COOLING_LOADS = frozenset({EquipmentKind.COOLING_UNIT, EquipmentKind.CHILLER, EquipmentKind.CDU, EquipmentKind.PUMP})
LOADS = IT_LOADS | COOLING_LOADS
"""What takes power; their rating is what they draw at most."""
PHASES = ("L1", "L2", "L3")
_COMMANDED = (PointKind.SETPOINT, PointKind.COMMAND)
_INLETS = (("inlet", "intake"), ("ambient", "room", "cold_aisle"))


class Flow(msgspec.Struct, frozen=True, kw_only=True):
    """What goes through a piece of equipment.

    Attributes:
        phases_w: of a three-phase one, by phase; of a single-phase one the first is all of it.
    """

    power_w: float
    phases_w: tuple[float, float, float]


class SiteGraph:
    """A site's model, indexed. It only remembers walks; edges to equipment that is not there are left out."""

    def __init__(self, model: SiteModel) -> None:
        """Index the model. Cost: equipment plus edges plus points."""
        self.model = model
        self.by_id: dict[str, Equipment] = {one.equipment_id: one for one in model.equipment}
        self.points: dict[str, Point] = {point.point_id: point for point in model.points}
        into: dict[tuple[EdgeKind, str], list[Edge]] = defaultdict(list)
        out: dict[tuple[EdgeKind, str], list[Edge]] = defaultdict(list)
        for edge in model.edges:
            if edge.source in self.by_id and edge.target in self.by_id:
                into[edge.kind, edge.target].append(edge)
                out[edge.kind, edge.source].append(edge)
        self._into = {key: tuple(edges) for key, edges in into.items()}
        self._out = {key: tuple(edges) for key, edges in out.items()}
        self._reached: dict[tuple[EdgeKind, str, bool], frozenset[str]] = {}
        self._points_of: dict[str, list[Point]] = defaultdict(list)
        for point in model.points:
            self._points_of[point.equipment_id].append(point)
        self._sign_points: dict[str, tuple[tuple[Point, tuple[Reading, ...]], ...]] = {}
        self.order, self.loop = self._sort()

    def feeds(self, target: str) -> tuple[Edge, ...]:
        """Return the edges that feed a piece of equipment: its cords, in the file's order."""
        return self._into.get((EdgeKind.FEEDS, target), ())

    def fed(self, source: str) -> tuple[Edge, ...]:
        """Return the edges by which a piece of equipment feeds others."""
        return self._out.get((EdgeKind.FEEDS, source), ())

    def sources(self, kind: EdgeKind, target: str) -> tuple[str, ...]:
        """Return who acts on a piece of equipment directly."""
        return tuple(edge.source for edge in self._into.get((kind, target), ()))

    def targets(self, kind: EdgeKind, source: str) -> tuple[str, ...]:
        """Return what a piece of equipment acts on directly."""
        return tuple(edge.target for edge in self._out.get((kind, source), ()))

    def above(self, kind: EdgeKind, target: str) -> frozenset[str]:
        """Return whatever acts on a piece of equipment, however far away."""
        return self._reach(kind, target, is_up=True)

    def below(self, kind: EdgeKind, source: str) -> frozenset[str]:
        """Return whatever a piece of equipment acts on, however far away."""
        return self._reach(kind, source, is_up=False)

    def coolers_of(self, equipment_id: str) -> frozenset[str]:
        """Return the units that cool a piece of equipment, its rack or a room around it."""
        places = {equipment_id} | self.above(EdgeKind.CONTAINS, equipment_id)
        return frozenset(source for place in places for source in self.sources(EdgeKind.COOLS, place))

    def points_of(self, equipment_id: str, quantity: Quantity, contexts: Collection[str] = ()) -> tuple[Point, ...]:
        """Return the points of a piece of equipment that read a quantity, in one of the contexts where some are given.

        Those of an earlier context come first. What is commanded reads nothing: a setpoint is no temperature.
        """
        found = [
            point
            for point in self._points_of.get(equipment_id, ())
            if point.quantity is quantity and point.kind not in _COMMANDED
        ]
        if not contexts:
            return tuple(found)
        wanted = list(contexts)
        return tuple(sorted((p for p in found if p.context in wanted), key=lambda point: wanted.index(point.context)))

    def sign_points(self, equipment_id: str) -> tuple[tuple[Point, tuple[Reading, ...]], ...]:
        """Return the points of a piece of equipment that can show signs, and how these are read off them."""
        known = self._sign_points.get(equipment_id)
        if known is None:
            kind = self.by_id[equipment_id].kind
            read = ((point, list_readings(point, kind)) for point in self._points_of.get(equipment_id, ()))
            known = self._sign_points[equipment_id] = tuple((point, how) for point, how in read if how)
        return known

    def inlets_in(self, place: str) -> tuple[Point, ...]:
        """Return the points that read what equipment in a place breathes: its inlets, or else its air."""
        inside = (place, *sorted(self.below(EdgeKind.CONTAINS, place)))
        names = dict.fromkeys((*inside, *(meter for one in inside for meter in self.sources(EdgeKind.MEASURES, one))))
        for contexts in _INLETS:
            found = [point for one in names for point in self.points_of(one, Quantity.TEMPERATURE, contexts)]
            if found:
                return tuple(found)
        return ()

    def has_points(self, equipment_id: str) -> bool:
        """Return whether anything is read of a piece of equipment, by itself or by a meter on it."""
        return any(self._points_of.get(one) for one in (equipment_id, *self.sources(EdgeKind.MEASURES, equipment_id)))

    def meters_on(self, equipment_id: str) -> tuple[str, ...]:
        """Return what measures a piece of equipment and nothing else."""
        meters = self.sources(EdgeKind.MEASURES, equipment_id)
        return tuple(meter for meter in meters if len(self.targets(EdgeKind.MEASURES, meter)) == 1)

    def measured_by(self, point_id: str) -> tuple[str, ...]:
        """Return the equipment whose draw a point reads: of a meter what it measures, else the point's own."""
        point = self.points.get(point_id)
        if point is None:
            return ()
        return self.targets(EdgeKind.MEASURES, point.equipment_id) or (point.equipment_id,)

    def of_kind(self, kinds: Collection[EquipmentKind]) -> tuple[Equipment, ...]:
        """Return the equipment of some kinds, in the file's order."""
        return tuple(one for one in self.model.equipment if one.kind in kinds)

    def _reach(self, kind: EdgeKind, start: str, *, is_up: bool) -> frozenset[str]:
        """Return whatever is reached; remembered, since the graph does not change."""
        known = self._reached.get((kind, start, is_up))
        if known is not None:
            return known
        seen: set[str] = set()
        queue = [start]
        while queue:
            name = queue.pop()
            for one in self.sources(kind, name) if is_up else self.targets(kind, name):
                if one not in seen:
                    seen.add(one)
                    queue.append(one)
        return self._reached.setdefault((kind, start, is_up), frozenset(seen))

    def _sort(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the equipment with sources before what they feed, and what is in or behind a loop of feeds."""
        waiting = {name: len(self.feeds(name)) for name in self.by_id}
        ready = [name for name, count in waiting.items() if not count]
        order: list[str] = []
        while ready:
            name = ready.pop()
            order.append(name)
            for edge in self.fed(name):
                waiting[edge.target] -= 1
                if not waiting[edge.target]:
                    ready.append(edge.target)
        left = [name for name in self.by_id if name not in set(order)]
        looped = tuple(name for name in left if name in self.below(EdgeKind.FEEDS, name))
        return (*order, *left), looped


def live_equipment(graph: SiteGraph, lost: Collection[str] = ()) -> frozenset[str]:
    """Return what has power when some equipment is lost.

    A UPS lives without its input, from its battery. What nothing feeds at all is a source. In a loop of feeds nothing
    lives.
    """
    alive: set[str] = set()
    for name in graph.order:
        feeds = graph.feeds(name)
        is_fed = not feeds or any(edge.source in alive for edge in feeds)
        if name not in lost and (is_fed or graph.by_id[name].kind is EquipmentKind.UPS):
            alive.add(name)
    return frozenset(alive)


def flow(graph: SiteGraph, draws_w: Mapping[str, float], lost: Collection[str] = ()) -> dict[str, Flow]:
    """Return what goes through every piece of equipment.

    A draw divides over the cords that live by their shares, evenly where none are given; a transfer switch takes all
    from its first live source. Losses of conversion are not counted. What has no power draws nothing. Cost: equipment
    plus edges.

    Args:
        graph: the site.
        draws_w: of the equipment that takes power itself.
        lost: equipment that gives nothing.
    """
    alive = live_equipment(graph, lost)
    phases = {name: [0.0, 0.0, 0.0] for name in graph.by_id}
    for name in reversed(graph.order):
        through = phases[name]
        own = draws_w.get(name, 0.0) if name in alive else 0.0
        for index, part in enumerate(_spread(own, graph.by_id[name].ratings.phases)):
            through[index] += part
        for edge, share in _live_shares(graph, name, alive):
            _add(graph, edge, [part * share for part in through], phases[edge.source])
    return {name: Flow(power_w=sum(parts), phases_w=(parts[0], parts[1], parts[2])) for name, parts in phases.items()}


def _spread(power_w: float, phases: int) -> Iterable[float]:
    return (power_w / 3,) * 3 if phases == 3 else (power_w, 0.0, 0.0)


def _live_shares(graph: SiteGraph, name: str, alive: Collection[str]) -> list[tuple[Edge, float]]:
    edges = [edge for edge in graph.feeds(name) if edge.source in alive]
    if not edges or name not in alive:
        return []
    if graph.by_id[name].kind is EquipmentKind.TRANSFER_SWITCH:
        return [(edges[0], 1.0)]
    if any(edge.share is None for edge in edges) or not sum(edge.share or 0.0 for edge in edges):
        return [(edge, 1 / len(edges)) for edge in edges]
    whole = sum(edge.share or 0.0 for edge in edges)
    return [(edge, (edge.share or 0.0) / whole) for edge in edges]


def _add(graph: SiteGraph, edge: Edge, parts: list[float], into: list[float]) -> None:
    """Add what an edge carries to its source, on the phase that the edge names."""
    source, target = graph.by_id[edge.source].ratings.phases, graph.by_id[edge.target].ratings.phases
    if source != 3:
        into[0] += sum(parts)
    elif edge.phase in PHASES:
        into[PHASES.index(edge.phase)] += sum(parts)
    elif target == 3:
        for index, part in enumerate(parts):
            into[index] += part
    else:
        # Nobody said which phase it hangs on; the check of the file has.
        for index, part in enumerate(_spread(sum(parts), 3)):
            into[index] += part
