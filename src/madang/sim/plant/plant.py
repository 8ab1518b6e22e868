"""A site's plant as a whole: who feeds whom, what flows, what heats, what a fault changes.

Owns the walk over the graph of a site model and the state of every piece of equipment. Refuses to know protocols and
points: `madang.sim.plant.reading` names what is read. Called by the plant program in real time and by tests in
virtual time; deterministic, and it reads no clock.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from madang.core import Rejected
from madang.model import Edge, EdgeKind, Equipment, EquipmentKind, SiteModel
from madang.sim.plant.electrical import POWER_FACTOR, Battery, Breaker, Server, Ups
from madang.sim.plant.thermal import CoolingUnit, RackAir, RoomAir

STEP_S = 0.5
"""The longest step; see `madang.sim.plant.thermal` for why it suffices."""
IDLE_PART = 0.35
"""What a server draws at no load, of its rating, where the site model does not say."""
OTHER_PART = 0.6
"""What switches, storage and the like draw, of their rating."""
VOLTAGE_V = 220.0
FREQUENCY_HZ = 60.0
GENERATOR_START_S = 12.0
FAN_PART = 0.03
"""Of a cooling unit's capacity, what its fans take. Engineering estimate."""
METAL_J_PER_W = 30.0
"""Heat capacity of servers for each watt of their rating: 2400 kg at 500 J/(kg K) for 40 kW."""
_BREAKING = (EquipmentKind.BREAKER, EquipmentKind.RACK_PDU, EquipmentKind.PANEL)


@dataclass
class EnergyBook:
    """Electrical energy since the start, in joules."""

    utility_j: float = 0.0
    generator_j: float = 0.0
    consumed_j: float = 0.0
    losses_j: float = 0.0
    batteries_j: float = 0.0
    """What batteries gave (positive) or took (negative)."""

    @property
    def error(self) -> float:
        """What is missing, as a part of what came in."""
        came_in = self.utility_j + self.generator_j + self.batteries_j
        return abs(came_in - self.consumed_j - self.losses_j) / max(came_in, self.consumed_j, 1.0)


@dataclass
class Plant:
    """The state of everything, and one way to advance it.

    Attributes:
        is_utility_on: the grid gives power.
        flags: states that faults and people set, by equipment: `leak`, `smoke`, `open`, `forced`, `inside`, …
    """

    model: SiteModel
    room: RoomAir
    servers: dict[str, Server] = field(default_factory=dict)
    upses: dict[str, Ups] = field(default_factory=dict)
    breakers: dict[str, Breaker] = field(default_factory=dict)
    power_w: dict[str, float] = field(default_factory=dict)
    energy_j: dict[str, float] = field(default_factory=dict)
    live: dict[str, bool] = field(default_factory=dict)
    flags: dict[str, set[str]] = field(default_factory=dict)
    is_utility_on: bool = True
    generator_s: float = 0.0
    now_s: float = 0.0
    book: EnergyBook = field(default_factory=EnergyBook)

    def __post_init__(self) -> None:
        self.equipment: dict[str, Equipment] = {one.equipment_id: one for one in self.model.equipment}
        feeds = [edge for edge in self.model.edges if edge.kind is EdgeKind.FEEDS]
        self._into: dict[str, list[Edge]] = {name: [] for name in self.equipment}
        for edge in feeds:
            self._into[edge.target].append(edge)
        self._measured = {edge.source: edge.target for edge in self.model.edges if edge.kind is EdgeKind.MEASURES}
        self._order = _sort(self.equipment, self._into)
        self.energy_j = dict.fromkeys(self.equipment, 0.0)
        self._walk_down()

    def step(self, duration_s: float) -> None:
        """Advance by a duration, in steps of at most `STEP_S`."""
        left_s = duration_s
        while left_s > 1e-9:
            dt_s = min(left_s, STEP_S)
            self._step(dt_s)
            left_s -= dt_s

    def settle(self) -> None:
        """Go to a steady state of heat and power under the present load."""
        for server in self.servers.values():
            server.step(60.0, is_fed=True, inlet_c=20.0)
        self._walk_down()
        self._walk_up()
        self.room.settle(self._rack_heat())
        self.step(5.0)
        self.book = EnergyBook()
        self.energy_j = dict.fromkeys(self.equipment, 0.0)

    def _step(self, dt_s: float) -> None:
        self.now_s += dt_s
        has_generator = any(one.kind is EquipmentKind.GENERATOR for one in self.equipment.values())
        self.generator_s = 0.0 if self.is_utility_on or not has_generator else self.generator_s + dt_s
        self._walk_down()
        for name, server in self.servers.items():
            server.step(dt_s, is_fed=self.live[name], inlet_c=self.inlet_c(self.equipment[name].rack))
        for name, unit in self.room.units.items():
            unit.is_powered = unit.fans_powered = self.live[name]
        self._walk_up()
        self._keep_books(dt_s)
        for name, breaker in self.breakers.items():
            breaker.step(dt_s, self.current_a(name))
        self.room.step(dt_s, self._rack_heat())

    def inlet_c(self, rack: str) -> float:
        """Return the air temperature at a rack's inlet; the cold aisle's where there is no such rack."""
        found = self.room.racks.get(rack)
        return found.inlet_c if found else self.room.cold_c

    def current_a(self, name: str) -> float:
        """Return the current through a piece of equipment, for each phase."""
        one = self.equipment[name]
        volts = one.ratings.voltage_v or VOLTAGE_V
        return self.power_w.get(name, 0.0) / (volts * POWER_FACTOR * one.ratings.phases)

    def measured_by(self, name: str) -> str:
        """Return what a meter stands in for; anything else stands for itself."""
        return self._measured.get(name, name)

    def source_of(self, name: str) -> EquipmentKind | None:
        """Return the kind of the source that a transfer switch takes from now; None: none lives."""
        living = [edge.source for edge in self._into[name] if self.live[edge.source]]
        return self.equipment[living[0]].kind if living else None

    def is_live(self, name: str) -> bool:
        """Return whether something has power at its output."""
        return self.live[name]

    def flag(self, name: str, word: str, *, is_set: bool = True) -> None:
        """Set or clear a state that faults and people make; raises Rejected for unknown equipment."""
        if name not in self.equipment:
            raise Rejected(f"the plant has no equipment {name!r}", next_step="take one of the site file's")
        words = self.flags.setdefault(name, set())
        words.add(word) if is_set else words.discard(word)

    def has(self, name: str, word: str) -> bool:
        """Return whether a state is set."""
        return word in self.flags.get(name, ())

    def _gives(self, name: str, *, has_input: bool) -> bool:
        one = self.equipment[name]
        if self.has(name, "off"):
            return False
        if one.kind is EquipmentKind.UTILITY:
            return self.is_utility_on
        if one.kind is EquipmentKind.GENERATOR:
            return self.generator_s >= GENERATOR_START_S and not self.has(name, "broken")
        if name in self.breakers and self.breakers[name].is_open:
            return False
        if name in self.upses:
            return self.upses[name].gives(has_input=has_input)
        return has_input

    def _walk_down(self) -> None:
        for name in self._order:
            has_input = any(self.live[edge.source] for edge in self._into[name])
            self.live[name] = self._gives(name, has_input=has_input)

    def _has_input(self, name: str) -> bool:
        return any(self.live[edge.source] for edge in self._into[name])

    def _walk_up(self) -> None:
        """Add up what everybody draws, consumers first."""
        passing: dict[str, float] = dict.fromkeys(self.equipment, 0.0)
        for name in reversed(self._order):
            draw_w = self._draw_w(name, passing[name])
            self.power_w[name] = passing[name] if name in self.upses else draw_w
            living = [edge for edge in self._into[name] if self.live[edge.source]]
            for edge, part in _shares(living, self.equipment[name].kind):
                passing[edge.source] += draw_w * part

    def _draw_w(self, name: str, passing_w: float) -> float:
        one = self.equipment[name]
        if name in self.servers:
            return self.servers[name].power_w
        if name in self.room.units:
            return self.room.units[name].electrical_w(self.room.outdoor_c) if self.live[name] else 0.0
        if name in self.upses:
            ups = self.upses[name]
            ups.output_w = passing_w
            return ups.draw_w(has_input=self._has_input(name))
        own_w = OTHER_PART * (one.ratings.power_w or 0.0) if _is_consumer(one) and self.live[name] else 0.0
        return passing_w + own_w

    def _keep_books(self, dt_s: float) -> None:
        for name, power_w in self.power_w.items():
            self.energy_j[name] += power_w * dt_s
        for name, one in self.equipment.items():
            if one.kind is EquipmentKind.UTILITY:
                self.book.utility_j += self.power_w[name] * dt_s
            elif one.kind is EquipmentKind.GENERATOR:
                self.book.generator_j += self.power_w[name] * dt_s
            elif name in self.servers or name in self.room.units or _is_consumer(one):
                self.book.consumed_j += self.power_w[name] * dt_s
        for name, ups in self.upses.items():
            given_w = ups.step(dt_s, has_input=self._has_input(name))
            self.book.batteries_j += given_w * dt_s
            self.book.losses_j += (ups.input_w + given_w - ups.output_w) * dt_s if self.live[name] else 0.0

    def _rack_heat(self) -> dict[str, float]:
        heat = dict.fromkeys(self.room.racks, 0.0)
        for name, power_w in self.power_w.items():
            one = self.equipment[name]
            if one.rack in heat and (name in self.servers or _is_consumer(one)):
                heat[one.rack] += power_w
        return heat

    def set_load(self, load: Mapping[str, float]) -> None:
        """Set the utilisation of servers by name, 0 to 1."""
        for name, part in load.items():
            if name in self.servers:
                self.servers[name].utilisation = min(1.0, max(0.0, part))


def make_plant(
    model: SiteModel,
    *,
    outdoor_c: float = 20.0,
    volume_m3: float = 27.0,
    battery_wh: Mapping[str, float] | None = None,
) -> Plant:
    """Return the plant of a site in its steady state, everything on and healthy, servers at 30 %."""
    rated: dict[str, float] = {}
    plant_servers: dict[str, Server] = {}
    upses: dict[str, Ups] = {}
    breakers: dict[str, Breaker] = {}
    units: dict[str, CoolingUnit] = {}
    for one in model.equipment:
        ratings, name = one.ratings, one.equipment_id
        if one.kind is EquipmentKind.SERVER:
            power_w = ratings.power_w or 1000.0
            plant_servers[name] = Server(IDLE_PART * power_w, power_w, utilisation=0.3)
            rated[one.rack] = rated.get(one.rack, 0.0) + power_w
        elif one.kind is EquipmentKind.UPS:
            power_w = ratings.power_w or 10_000.0
            energy_wh = (battery_wh or {}).get(name) or ratings.energy_wh or power_w / 6
            battery = Battery(energy_wh * 3600.0, power_w_rated=power_w)
            upses[name] = Ups(power_w, battery)
        elif one.kind in (EquipmentKind.COOLING_UNIT, EquipmentKind.CHILLER):
            cooling_w = ratings.cooling_w or 20_000.0
            units[name] = CoolingUnit(cooling_w, fan_w=FAN_PART * cooling_w)
        elif one.kind in _BREAKING and ratings.current_a:
            breakers[name] = Breaker(ratings.current_a)
    racks = {rack: RackAir(power_w, METAL_J_PER_W * power_w) for rack, power_w in sorted(rated.items())}
    room = RoomAir(racks, units, volume_m3=volume_m3, outdoor_c=outdoor_c)
    plant = Plant(model, room, servers=plant_servers, upses=upses, breakers=breakers)
    plant.settle()
    return plant


def _is_consumer(one: Equipment) -> bool:
    return one.kind in (
        EquipmentKind.SWITCH,
        EquipmentKind.STORAGE,
        EquipmentKind.CAMERA,
        EquipmentKind.PUMP,
        EquipmentKind.CDU,
    )


def _shares(living: list[Edge], kind: EquipmentKind) -> list[tuple[Edge, float]]:
    """Return which part of a draw each living feed carries; a transfer switch takes the first that lives."""
    if not living:
        return []
    if kind is EquipmentKind.TRANSFER_SWITCH:
        return [(living[0], 1.0)]
    stated = [edge.share if edge.share is not None else 1.0 / len(living) for edge in living]
    total = sum(stated)
    if total <= 0.0:
        return [(edge, 1.0 / len(living)) for edge in living]
    return [(edge, part / total) for edge, part in zip(living, stated, strict=True)]


def _sort(equipment: Mapping[str, Equipment], into: Mapping[str, list[Edge]]) -> list[str]:
    """Return names so that who feeds comes before who is fed; raises Rejected for a loop."""
    order: list[str] = []
    left = {name: len(edges) for name, edges in into.items()}
    ready = sorted(name for name, count in left.items() if count == 0)
    while ready:
        name = ready.pop(0)
        order.append(name)
        for target, edges in into.items():
            hits = sum(1 for edge in edges if edge.source == name)
            if hits:
                left[target] -= hits
                if left[target] == 0:
                    ready.append(target)
    if len(order) < len(equipment):
        rest = ", ".join(sorted(set(equipment) - set(order)))
        raise Rejected(f"who feeds whom goes in a circle: {rest}", next_step="run `madang facility check FILE`")
    return order
