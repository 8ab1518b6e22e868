"""The view that decisions rest on: samples, derived facts and nodes of this instant, put together.

Owns the putting together and what was seen of a discharge. Refuses to decide. Called once a second by the authority's
shell.
"""

from collections.abc import Callable, Iterable

import msgspec

from madang.core import NodeId, SiteId
from madang.machine.sample_book import SampleBook
from madang.model import (
    Alarm,
    EquipmentKind,
    Fact,
    NodeState,
    Point,
    PointKind,
    PriorityClass,
    Quality,
    Quantity,
    SiteModel,
)
from madang.model.facility_site import ActuatorKind, SitePlan
from madang.policy.facility.demand import PowerReading, demand
from madang.policy.facility.graph import SiteGraph
from madang.policy.facility.readings import Readings
from madang.policy.facility.runtime import ChargeReading
from madang.policy.facility.signs import GIVES_NOTHING, Sign
from madang.policy.facility.site_facts import Discharge, SiteFacts, site_facts
from madang.policy.power.topology import Topology, index_site
from madang.policy.power.view import Demand, NodeLoad, View, read_all_signs

CHARGE_READINGS_MAX = 600
_NONE = Fact(value=None, quality=Quality.BAD, reason="nothing reads it")


class NodeUse(msgspec.Struct, frozen=True, kw_only=True):
    """What runs on a node, as the site program knows it.

    Attributes:
        is_drained: nothing is served on it and nothing is on its way.
        classes: of those that are served there.
    """

    is_drained: bool = False
    classes: tuple[PriorityClass, ...] = ()


class World:
    """One site's facility at each instant."""

    def __init__(self, model: SiteModel, plan: SitePlan, book: SampleBook) -> None:
        """Index the model once."""
        self.model = model
        self.plan = plan
        self.book = book
        self.topology: Topology = index_site(model)
        self.graph = SiteGraph(model)
        self.facts: SiteFacts | None = None
        self._points = {point.point_id: point for point in model.points}
        self._caps = {one.target: one for one in plan.actuators if one.kind is ActuatorKind.CAP}
        self._discharges: dict[str, list[ChargeReading]] = {}
        self._before: dict[str, float | None] = {}
        self._is_simulated = any(point.is_simulated for point in model.points)

    def look(
        self,
        now_s: float,
        *,
        states: dict[NodeId, NodeState],
        find_use: Callable[[NodeId], NodeUse],
        alarms: tuple[Alarm, ...],
        peers: Iterable[SiteId],
        held: Iterable[str] = (),
    ) -> View:
        """Return the view of this instant, and keep its derived facts.

        Args:
            now_s: wall time.
            states: what the authority last let nodes do.
            find_use: what runs on a node.
            alarms: that are not normal.
            peers: that could take requests now.
            held: keys of what the authority granted and nobody took back.
        """
        samples = self.book.samples(now_s)
        bare = View(now_s=now_s, samples=samples)
        signs = read_all_signs(bare, self.topology)
        lost = sorted({name for sign in GIVES_NOTHING for name in signs.said.get(sign, ())})
        readings = Readings(self.graph, samples, now_s)
        self._watch_batteries(readings, signs.said.get(Sign.ON_BATTERY, ()), now_s)
        facts = site_facts(readings, self.plan, lost=lost, discharges=self._list_discharges())
        self.facts = facts
        charges = [readings.first(one.ups, Quantity.CHARGE) for one in self.plan.batteries]
        return View(
            now_s=now_s,
            samples=samples,
            nodes={
                node: self._load(node, spot.equipment_id, readings, states, find_use)
                for node, spot in self.topology.nodes.items()
            },
            headroom_w=facts.headroom_w,
            runtime_s=facts.runtime_s,
            charge_percent=_lowest(charges),
            thermal_margin_k=facts.thermal_margin_k,
            time_to_limit_s=facts.time_to_limit_s,
            demand=self._demand(now_s),
            alarms=alarms,
            peers=tuple(peers),
            held=tuple(held),
            is_simulated=self._is_simulated,
        )

    def _load(
        self,
        node: NodeId,
        server: str,
        readings: Readings,
        states: dict[NodeId, NodeState],
        find_use: Callable[[NodeId], NodeUse],
    ) -> NodeLoad:
        use, cap = find_use(node), self._caps.get(str(node))
        lowest = self._read(readings, f"{server}.power_limit_min")
        highest = self._read(readings, f"{server}.power_limit_max")
        low_w = cap.value_low if cap is not None and cap.value_low is not None else lowest.value
        high_w = cap.value_high if cap is not None and cap.value_high is not None else highest.value
        return NodeLoad(
            node=node,
            power_w=readings.first(server, Quantity.POWER, ("input", "", "total")),
            cap_w=self._cap(readings, cap.readback_id or cap.point_id) if cap is not None else _NONE,
            cap_w_min=low_w or 0.0,
            cap_w_max=high_w or 0.0,
            can_cap=cap is not None,
            is_on=self._is_on(server, readings),
            state=states.get(node, NodeState.RUN),
            is_drained=use.is_drained,
            classes=use.classes,
        )

    def _read(self, readings: Readings, point_id: str) -> Fact:
        point = self._points.get(point_id)
        return _NONE if point is None else readings.fact(point)

    def _cap(self, readings: Readings, point_id: str) -> Fact:
        """Return the cap that is in force; a good fact without a value: the device answered that none is."""
        fact = self._read(readings, point_id)
        if fact.quality is Quality.UNCERTAIN and fact.value is not None and "not in force" in fact.reason:
            return msgspec.structs.replace(fact, value=None, quality=Quality.GOOD)
        return fact

    def _is_on(self, server: str, readings: Readings) -> bool | None:
        point = self._points.get(f"{server}.state_power")
        if point is None:
            return True  # what cannot be switched runs
        sample, fact = readings.sample(point.point_id), readings.fact(point)
        return None if fact.value is None or sample is None else sample.text != "off"

    def _watch_batteries(self, readings: Readings, on_battery: tuple[str, ...], now_s: float) -> None:
        for battery in self.plan.batteries:
            name = battery.ups
            if name not in on_battery:
                self._discharges.pop(name, None)
                fact = readings.first(name, Quantity.RUNTIME)
                self._before[name] = fact.value
                continue
            charge = readings.first(name, Quantity.CHARGE)
            if charge.value is not None:
                seen = self._discharges.setdefault(name, [])
                seen.append(ChargeReading(at_s=now_s, charge=charge.value / 100.0))
                del seen[:-CHARGE_READINGS_MAX]

    def _list_discharges(self) -> dict[str, Discharge]:
        return {
            name: Discharge(readings=tuple(seen), device_before_s=self._before.get(name))
            for name, seen in self._discharges.items()
        }

    def _demand(self, now_s: float) -> Demand:
        contract = self.plan.contract
        meter = self._points.get(contract.meter) if contract is not None else None
        if contract is None or meter is None:
            return Demand()
        powers = [
            point
            for point in self.model.points
            if point.equipment_id == meter.equipment_id
            and point.quantity is Quantity.POWER
            and point.name == "power"
            and point.kind is PointKind.METER
        ]
        if not powers:
            return Demand()
        seen = [PowerReading(at_s=at_s, power_w=value) for at_s, value in self.book.past(powers[0].point_id)]
        found = demand(seen, now_s, contract.demand_w_max or contract.power_w)
        elapsed_s = now_s - found.begins_at_s
        so_far, draw = found.so_far_w, Readings(self.graph, self.book.samples(now_s), now_s).fact(powers[0])
        energy_wh = None if so_far.value is None else so_far.value * elapsed_s / 3600.0
        return Demand(
            interval_s=found.ends_at_s - found.begins_at_s,
            elapsed_s=elapsed_s,
            energy_wh=msgspec.structs.replace(so_far, value=energy_wh),
            power_w=draw,
        )


def _lowest(facts: list[Fact]) -> Fact:
    known = [fact for fact in facts if fact.value is not None]
    if len(known) < len(facts) or not facts:
        return next((fact for fact in facts if fact.value is None), _NONE)
    return min(known, key=lambda fact: fact.value or 0.0)


def server_of(model: SiteModel, node: NodeId) -> str:
    """Return the equipment that a node program runs on; empty when the model has none."""
    servers = (one for one in model.equipment if one.kind is EquipmentKind.SERVER and one.node == node)
    return next((one.equipment_id for one in servers), "")


def power_command(points: Iterable[Point], server: str, *, is_on: bool) -> tuple[str, float] | None:
    """Return the point and the value that switch a server; None where nothing does."""
    for point in points:
        if point.equipment_id == server and point.name == "state_power" and point.kind is PointKind.COMMAND:
            wanted = "on" if is_on else "off"
            for number, word in point.states.items():
                if word == wanted:
                    return point.point_id, float(number)
    return None
