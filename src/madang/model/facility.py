"""What stands in a box beside the chips: equipment, how it hangs together, its points and what they read.

Owns the minimal form in which a site is described and observed. Refuses to know protocols, and how a quantity is
judged. The vocabulary is Redfish's (ReadingType, PhysicalContext), units are UCUM's: W, Wh, VA, V, A, Hz, Cel, K,
kPa, L/min, %, s, bit/s, 1.
"""

from enum import StrEnum

import msgspec

from madang.core import NodeId, SiteId


class EquipmentKind(StrEnum):
    """What a piece of equipment is."""

    UTILITY = "utility"
    GENERATOR = "generator"
    TRANSFER_SWITCH = "transfer_switch"
    PHOTOVOLTAIC = "photovoltaic"
    METER = "meter"
    UPS = "ups"
    BATTERY = "battery"
    PANEL = "panel"
    BREAKER = "breaker"
    RACK_PDU = "rack_pdu"
    RACK = "rack"
    SERVER = "server"
    STORAGE = "storage"
    SWITCH = "switch"
    COOLING_UNIT = "cooling_unit"
    CHILLER = "chiller"
    CDU = "cdu"
    PUMP = "pump"
    ROOM = "room"
    DOOR = "door"
    LEAK_DETECTOR = "leak_detector"
    SMOKE_DETECTOR = "smoke_detector"
    FIRE_SUPPRESSION = "fire_suppression"
    CAMERA = "camera"
    INTERLOCK = "interlock"
    SENSOR = "sensor"


class EdgeKind(StrEnum):
    """How one piece of equipment acts on another; the direction is from source to target."""

    FEEDS = "feeds"
    COOLS = "cools"
    CONTAINS = "contains"
    MEASURES = "measures"
    CONTROLS = "controls"


class Quantity(StrEnum):
    """What a point reads; the canonical unit of each is in `UNITS`."""

    POWER = "power"
    POWER_REACTIVE = "power_reactive"
    POWER_APPARENT = "power_apparent"
    POWER_LIMIT = "power_limit"
    ENERGY = "energy"
    VOLTAGE = "voltage"
    CURRENT = "current"
    FREQUENCY = "frequency"
    POWER_FACTOR = "power_factor"
    TEMPERATURE = "temperature"
    HUMIDITY = "humidity"
    DEW_POINT = "dew_point"
    FLOW = "flow"
    PRESSURE = "pressure"
    SPEED = "speed"
    LEVEL = "level"
    LOAD = "load"
    CHARGE = "charge"
    HEALTH = "health"
    RUNTIME = "runtime"
    DURATION = "duration"
    COUNT = "count"
    DATA_RATE = "data_rate"
    STATE = "state"


UNITS: dict[Quantity, str] = {
    Quantity.POWER: "W",
    Quantity.POWER_REACTIVE: "var",
    Quantity.POWER_APPARENT: "VA",
    Quantity.POWER_LIMIT: "W",
    Quantity.ENERGY: "Wh",
    Quantity.VOLTAGE: "V",
    Quantity.CURRENT: "A",
    Quantity.FREQUENCY: "Hz",
    Quantity.POWER_FACTOR: "1",
    Quantity.TEMPERATURE: "Cel",
    Quantity.HUMIDITY: "%",
    Quantity.DEW_POINT: "Cel",
    Quantity.FLOW: "L/min",
    Quantity.PRESSURE: "kPa",
    Quantity.SPEED: "%",
    Quantity.LEVEL: "%",
    Quantity.LOAD: "%",
    Quantity.CHARGE: "%",
    Quantity.HEALTH: "%",
    Quantity.RUNTIME: "s",
    Quantity.DURATION: "s",
    Quantity.COUNT: "1",
    Quantity.DATA_RATE: "bit/s",
    Quantity.STATE: "",
}
"""The unit in which every sample of a quantity is kept; drivers convert."""


class PointKind(StrEnum):
    """What a point is for."""

    SENSOR = "sensor"
    METER = "meter"
    STATUS = "status"
    ALARM = "alarm"
    SETPOINT = "setpoint"
    COMMAND = "command"


class Quality(StrEnum):
    """How far a sample may be believed.

    `uncertain`: plausible, with a doubt that `reason` names. `bad`: the device lied, answered half or not at all;
    there is no value. `stale`: older than the point allows. `substituted`: put in by a person or a model.
    """

    GOOD = "good"
    UNCERTAIN = "uncertain"
    BAD = "bad"
    STALE = "stale"
    SUBSTITUTED = "substituted"


class Ratings(msgspec.Struct, frozen=True, kw_only=True):
    """What the name plate says; None where it does not.

    Attributes:
        power_w, apparent_va: largest continuous output (of a UPS, PDU, breaker, feed) or input (of a consumer).
        current_a: of a breaker or feed, for each phase; planned with 80 % of it.
        voltage_v: phase to neutral.
        energy_wh: of a battery, new.
        cooling_w: sensible, at the design outdoor temperature.
        flow_l_min: of a pump or loop.
        phases: 1 or 3.
    """

    power_w: float | None = None
    apparent_va: float | None = None
    current_a: float | None = None
    voltage_v: float | None = None
    energy_wh: float | None = None
    cooling_w: float | None = None
    flow_l_min: float | None = None
    phases: int = 1


class Equipment(msgspec.Struct, frozen=True, kw_only=True):
    """One piece of equipment.

    Attributes:
        equipment_id: one token, `[a-z0-9_]+`, unique in its site.
        rack: the rack that holds it; empty outside of racks.
        node: of a server, the node program on it; empty for all others and for servers without one.
        redundancy_group: units that stand in for each other; with `redundancy_needed` of them the load is carried.
        redundancy_needed: N of N+1.
        is_critical: of a load: the box is not itself without it (network, management, fans on UPS).
    """

    equipment_id: str
    kind: EquipmentKind
    title: str = ""
    rack: str = ""
    node: NodeId = NodeId("")
    ratings: Ratings = Ratings()
    redundancy_group: str = ""
    redundancy_needed: int = 1
    is_critical: bool = False


class Edge(msgspec.Struct, frozen=True, kw_only=True):
    """One relation.

    Attributes:
        feed: of `feeds`: A or B; empty where there is one only.
        phase: of `feeds`: L1, L2, L3; empty for all.
        share: of `feeds`: the part of the target's draw on this edge in normal operation, 0 to 1.
    """

    kind: EdgeKind
    source: str
    target: str
    feed: str = ""
    phase: str = ""
    share: float | None = None


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that can be read or commanded.

    Attributes:
        point_id: `<equipment_id>.<name>`, unique in its site.
        name: `power`, `power_l1`, `temperature_inlet`, `state_on_battery`, …: as the profile calls it.
        context: where on the equipment: input, output, inlet, outlet, supply, return, ambient, battery, L1 …
        stale_s: a sample older than this is `stale`.
        states: of a STATE quantity: the word of each number.
        is_simulated: a twin answers it.
    """

    point_id: str
    equipment_id: str
    name: str
    kind: PointKind
    quantity: Quantity
    context: str = ""
    stale_s: float = 30.0
    states: dict[int, str] = {}
    is_simulated: bool = False

    @property
    def unit(self) -> str:
        """The unit of its samples."""
        return UNITS[self.quantity]


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One reading of one point, in the point's unit.

    Attributes:
        value: None exactly when the quality is `bad`.
        text: of a state: its word; else empty.
        reason: why the quality is not good.
        observed_at_s: wall time at which the device was read.
    """

    point_id: str
    value: float | None
    quality: Quality
    observed_at_s: float
    text: str = ""
    reason: str = ""

    @property
    def is_usable(self) -> bool:
        """True where a decision may rest on the value."""
        return self.value is not None and self.quality in (Quality.GOOD, Quality.UNCERTAIN, Quality.SUBSTITUTED)


class SiteModel(msgspec.Struct, frozen=True, kw_only=True):
    """A site as a graph, with its points."""

    site: SiteId
    equipment: tuple[Equipment, ...]
    edges: tuple[Edge, ...]
    points: tuple[Point, ...]
