"""What a site file says beside the graph: actuators, alarms, batteries, thermal zones, meters and the contract.

Owns these shapes. Refuses to know files and how anything is decided from them. Made by `madang.facility.site_file`;
read by `madang.policy.facility`, by the alarm machine and by the site program.
"""

from enum import StrEnum
from typing import Literal

import msgspec


class ActuatorKind(StrEnum):
    """What commanding a point does to its target."""

    CAP = "cap"
    SETPOINT = "setpoint"
    ISOLATE_ELECTRICAL = "isolate_electrical"
    ISOLATE_LIQUID = "isolate_liquid"


class ActuatorMode(StrEnum):
    """Whether an actuator is used: in observe mode what would be done is only written down."""

    OBSERVE = "observe"
    ARMED = "armed"


class Actuator(msgspec.Struct, frozen=True, kw_only=True):
    """One point through which the site is changed.

    Attributes:
        target: the node, rack or equipment that it acts on.
        readback_id: the point that shows whether it happened; may be the commanded point itself.
        value_low, value_high: what may be commanded, in the point's unit; None: what the profile allows.
        value_rest: what it returns to when a request lapses or an isolation is ended; None: it is left alone.
        is_relinquished: of a setpoint, in place of `value_rest`: when a request lapses the command is let go, and what
            the device does by itself, or others of lower priority want, holds again.
        confirm_s: how long the device may take to act; management controllers take seconds.
    """

    actuator_id: str
    kind: ActuatorKind
    point_id: str
    target: str
    readback_id: str = ""
    mode: ActuatorMode = ActuatorMode.OBSERVE
    value_low: float | None = None
    value_high: float | None = None
    value_rest: float | None = None
    is_relinquished: bool = False
    confirm_s: float = 10.0


class AlarmOverride(msgspec.Struct, frozen=True, kw_only=True):
    """What a site file says about alarms: a rule of its own, or other figures for one that the program makes.

    Attributes:
        points: point ids; `*` stands for any part of one.
        limit: in the point's unit; of `rate` a change in a minute, of `discrepancy` the difference from `other`.
        words: of `state`: the words, lower case, that mean trouble.
        deadband: how far a value has to come back, in the point's unit.
        on_delay_s, off_delay_s: how long it must hold before it is raised, and before it returns.
        is_latching: it stays until a person resets it, though the condition is over.
        is_enabled: false: no such alarm here.

    None leaves a figure as the program has it.
    """

    override_id: str
    points: tuple[str, ...]
    condition: Literal["high", "high_high", "low", "low_low", "state", "rate", "discrepancy", "reading_lost"]
    priority: Literal["critical", "high", "medium", "low"] | None = None
    limit: float | None = None
    words: tuple[str, ...] = ()
    other: str = ""
    deadband: float | None = None
    on_delay_s: float | None = None
    off_delay_s: float | None = None
    is_latching: bool | None = None
    is_enabled: bool = True
    title_ko: str = ""
    title_en: str = ""


class Chemistry(StrEnum):
    """What a battery is made of."""

    VRLA = "vrla"
    LI_ION = "li_ion"


class Battery(msgspec.Struct, frozen=True, kw_only=True):
    """The battery behind a UPS.

    Attributes:
        ups: the UPS that discharges it.
        energy_wh: when new, discharged over `rated_h` hours.
        peukert: exponent; None takes the chemistry's.
        efficiency: of the inverter, 0 to 1.
        health: of its capacity when new, 0 to 1, where no point says it.
        runtime_table: of the maker, pairs of output watts and seconds, new and full; None of it: Peukert's law.
    """

    ups: str
    energy_wh: float
    chemistry: Chemistry = Chemistry.VRLA
    rated_h: float = 10.0
    peukert: float | None = None
    efficiency: float = 0.92
    health: float = 0.8
    runtime_table: tuple[tuple[float, float], ...] = ()


class ThermalClass(StrEnum):
    """Classes of ASHRAE TC 9.9, Thermal Guidelines for Data Processing Environments, 5th edition (2021)."""

    A1 = "A1"
    A2 = "A2"
    A3 = "A3"
    A4 = "A4"
    H1 = "H1"


class ThermalZone(msgspec.Struct, frozen=True, kw_only=True):
    """Air that equipment breathes together.

    Attributes:
        place: the room or rack.
        thermal_class: of the most delicate equipment in it.
        mass_j_k: heat capacity of what warms up with the air: equipment, racks, inner walls.
        air_j_k: heat capacity of the air alone.
        rise_k: by how much equipment is warmer than its inlet at full draw; what the inlet gains at once when
            nothing cools.
        limit_c: inlet temperature at which work has to be gone; None takes the class's.
    """

    place: str
    thermal_class: ThermalClass = ThermalClass.A2
    mass_j_k: float
    air_j_k: float
    rise_k: float = 16.0
    limit_c: float | None = None


class PueMeters(msgspec.Struct, frozen=True, kw_only=True):
    """Where PUE is measured: points of one quantity, power or energy, that add up.

    Attributes:
        category: 1 at the output of the UPS, 2 at the output of PDUs, 3 at the input of the IT equipment.
        facility: everything that comes in at the boundary.
        it: everything that the IT equipment takes.
        it_check: the same once more, measured elsewhere; compared, never added.
    """

    category: int
    facility: tuple[str, ...]
    it: tuple[str, ...]
    it_check: tuple[str, ...] = ()


class SupplyContract(msgspec.Struct, frozen=True, kw_only=True):
    """What the site agreed with its utility.

    Attributes:
        tariff: name of a class in the tariff book.
        power_w: contracted.
        meter: point of the energy register that is billed.
        demand_w_max: what a metering interval shall not exceed on average; None: the contract.
        idle_w: what the box draws while nobody asks anything; the operator's own part of the bill.
        base_by: what the base charge is for: the demand that is metered, or what was contracted (small low-voltage
            customers).
        tariff_files: of the site, beside its file; they add to the book that the program brings along.
    """

    tariff: str
    power_w: float
    meter: str
    demand_w_max: float | None = None
    idle_w: int = 0
    base_by: Literal["demand", "contract"] = "demand"
    tariff_files: tuple[str, ...] = ()


class SitePlan(msgspec.Struct, frozen=True, kw_only=True):
    """All that a site file says beside the graph and its devices."""

    actuators: tuple[Actuator, ...] = ()
    alarms: tuple[AlarmOverride, ...] = ()
    batteries: tuple[Battery, ...] = ()
    zones: tuple[ThermalZone, ...] = ()
    pue: tuple[PueMeters, ...] = ()
    contract: SupplyContract | None = None
