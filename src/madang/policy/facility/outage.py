"""What has no power when a UPS runs on its battery or a supply is lost, and which readings prove that wrong.

Owns the step from a sign up the feeds to what must be dead, and from there down to what hangs on it without a UPS.
Refuses to know alarms and time: `causes` brings both. Made once for a site's model.

A UPS on its battery tells that nothing comes in. Nobody says how far up that reaches, so several answers are kept, the
nearest first: its own sources; then each place above them without which it has no input, up to the utility. An answer
falls when anything that would be dead by it is seen to have power: a meter on the utility, another UPS on its input, a
cooling unit that draws. What any answer that still stands leaves dead is taken to be dead.
"""

from collections.abc import Collection, Iterable

import msgspec

from madang.model import EdgeKind, EquipmentKind, Point, Quantity
from madang.policy.facility.graph import SiteGraph, live_equipment
from madang.policy.facility.signs import Reading, Sign, tell

_PRESENT_RATIO = 0.5
"""Part of the nominal voltage above which there is power; a UPS leaves its input at 80 to 90 % (engineering value)."""
_PRESENT_V = 50.0
"""The same where no nominal voltage is written."""
_DRAW_RATIO, _DRAW_W = 0.02, 20.0
"""What a load takes of its rating, or in watts, that has power: more than its controls alone (engineering values)."""
_LOST_INPUT = frozenset({Sign.ON_BATTERY, Sign.UTILITY_LOST, Sign.OUTPUT_LOST})
_SAYS_NOTHING = frozenset({"other", "unknown", "none"})
_SUPPLIES = (EquipmentKind.UTILITY, EquipmentKind.TRANSFER_SWITCH)


class Cut(msgspec.Struct, frozen=True, kw_only=True):
    """One answer to how far up the power is gone.

    Attributes:
        lost: what gives nothing.
        dark: what has no power then, the lost and meters on them included; what a UPS carries has.
        on_battery: UPSs without any input then.
    """

    lost: frozenset[str]
    dark: frozenset[str]
    on_battery: frozenset[str]


class PowerPoint(msgspec.Struct, frozen=True, kw_only=True):
    """A point that can show that equipment has power.

    Attributes:
        equipment_id: what has it; of a UPS its input is meant.
        above: a value above it shows that; None: a state, by `readings`.
    """

    equipment_id: str
    above: float | None = None
    readings: tuple[Reading, ...] = ()

    def shows(self, value: float, word: str) -> bool:
        """Return whether a usable reading shows power."""
        if self.above is not None:
            return value > self.above
        return word.lower() not in _SAYS_NOTHING and not tell(self.readings, value, word) & _LOST_INPUT


class Outages:
    """The answers for each piece of equipment that can tell of lost power. Remembers what it has worked out."""

    def __init__(self, graph: SiteGraph) -> None:
        """Take the index of a model."""
        self.graph = graph
        self.power_points = dict(_list_power_points(graph))
        self._alive = live_equipment(graph)
        self._cuts: dict[str, tuple[Cut, ...]] = {}

    def tells(self, equipment_id: str) -> bool:
        """Return whether a lost supply of this equipment tells that others have no power."""
        one = self.graph.by_id.get(equipment_id)
        return one is not None and (one.kind is EquipmentKind.UPS or one.kind in _SUPPLIES)

    def cuts(self, equipment_id: str) -> tuple[Cut, ...]:
        """Return the answers when a UPS is on its battery, or a supply is lost: the nearest first, then by name.

        Cost, once for each: places above times edges.
        """
        known = self._cuts.get(equipment_id)
        if known is None:
            known = self._cuts[equipment_id] = tuple(self._find_cuts(equipment_id)) if self.tells(equipment_id) else ()
        return known

    def cut(self, lost: Collection[str]) -> Cut:
        """Return what has no power when some equipment gives nothing."""
        graph = self.graph
        alive = live_equipment(graph, lost)
        dark = self._alive - alive
        # A meter has the power of what it measures, unless it is fed itself.
        meters = frozenset(
            name
            for name in graph.by_id
            if not graph.feeds(name)
            and (measured := graph.targets(EdgeKind.MEASURES, name))
            and all(target in dark for target in measured)
        )
        upses = (one.equipment_id for one in graph.of_kind((EquipmentKind.UPS,)))
        return Cut(
            lost=frozenset(lost),
            dark=dark | meters,
            on_battery=frozenset(
                ups
                for ups in upses
                if ups not in dark and graph.feeds(ups) and all(edge.source in dark for edge in graph.feeds(ups))
            ),
        )

    def _find_cuts(self, equipment_id: str) -> Iterable[Cut]:
        if self.graph.by_id[equipment_id].kind is not EquipmentKind.UPS:
            yield self.cut((equipment_id,))
            return
        nearest = {edge.source for edge in self.graph.feeds(equipment_id)}
        if not nearest:
            return
        yield self.cut(nearest)
        for name in sorted(self.graph.above(EdgeKind.FEEDS, equipment_id)):
            if {name} == nearest:
                continue
            found = self.cut((name,))
            if equipment_id in found.on_battery:
                yield found


def _list_power_points(graph: SiteGraph) -> Iterable[tuple[str, PowerPoint]]:
    for one in graph.model.equipment:
        for point, readings in graph.sign_points(one.equipment_id):
            if any(reading.sign in (Sign.ON_BATTERY, Sign.UTILITY_LOST) for reading in readings):
                yield point.point_id, PowerPoint(equipment_id=one.equipment_id, readings=readings)
        for quantity in (Quantity.VOLTAGE, Quantity.POWER):
            for point in graph.points_of(one.equipment_id, quantity):
                made = _make_power_point(graph, point)
                if made is not None:
                    yield point.point_id, made


def _make_power_point(graph: SiteGraph, point: Point) -> PowerPoint | None:
    measured = graph.measured_by(point.point_id)
    owner = graph.by_id.get(measured[0]) if len(measured) == 1 else None
    if owner is None or owner.kind is EquipmentKind.BATTERY:
        return None
    is_input = point.context.startswith("input")
    if owner.kind is EquipmentKind.UPS and not (is_input or owner.equipment_id != point.equipment_id):
        return None
    ratings = owner.ratings
    if point.quantity is Quantity.VOLTAGE:
        above = ratings.voltage_v * _PRESENT_RATIO if ratings.voltage_v else _PRESENT_V
    else:
        above = max(ratings.power_w * _DRAW_RATIO, _DRAW_W) if ratings.power_w else _DRAW_W
    return PowerPoint(equipment_id=owner.equipment_id, above=above)
