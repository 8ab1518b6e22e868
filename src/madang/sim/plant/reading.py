"""What a plant's points read and take, by quantity, context and the words of states.

Owns the way from equipment to a point's value, so that one plant answers whatever profile a site file names. Refuses
to know protocols. Values are in the point's unit; a state is the number that the profile gives its word.
"""

import math
import zlib
from collections.abc import Callable

from madang.core import Rejected
from madang.facility.contract import Device
from madang.facility.profile import PointSpec, Profile
from madang.model import EquipmentKind, PointKind, Quantity
from madang.sim.plant.electrical import LOW_BATTERY, POWER_FACTOR, Ups
from madang.sim.plant.host import CONTEXTS, read_host
from madang.sim.plant.plant import FREQUENCY_HZ, VOLTAGE_V, Plant
from madang.sim.plant.thermal import CoolingUnit

RUNTIME_MAX_S = 86_400.0
SUPPLY_HIGH_K = 8.0
"""By which supply air exceeds its setpoint before a unit calls it too warm."""
WORN = 0.6
"""Health at which a battery is to be replaced; makers say 60 to 80 %."""
BATTERY_VOLT_FULL = 273.0
"""Of a string of 20 blocks of 12 V on float charge."""
WANDER_K = 0.15
WANDER_PARTS = {
    Quantity.VOLTAGE: 0.005,
    Quantity.FREQUENCY: 0.0003,
    Quantity.POWER: 0.003,
    Quantity.CURRENT: 0.003,
    Quantity.FLOW: 0.01,
}
"""By how much what is measured wanders around what is, within the classes of usual sensors. Engineering estimate."""


class DevicePort:
    """A device's points as a twin asks for them."""

    def __init__(self, plant: Plant, device: Device, profile: Profile) -> None:
        self._plant = plant
        self._device_id = device.device_id
        self._points: dict[str, tuple[str, PointSpec]] = {}
        for spec in profile.points:
            point_id = spec.point_id(device.equipment, device.parts)
            if point_id:
                self._points[spec.name] = (point_id.partition(".")[0], spec)

    def get(self, name: str) -> float | None:
        """Return a point's value now; None for what the plant does not have."""
        found = self._points.get(name)
        if found is None:
            return None
        value = read(self._plant, *found)
        return value if value is None else self._wander(name, found[1], value)

    def _wander(self, name: str, spec: PointSpec, value: float) -> float:
        """Return a measured value as a sensor shows it: never quite still, so that a stuck one stands out."""
        if spec.kind in (PointKind.SETPOINT, PointKind.COMMAND) or value == 0.0:
            return value
        phase = zlib.crc32(f"{self._device_id}.{name}".encode())
        swing = 0.75 * math.sin(self._plant.now_s / 97.0 + phase) + 0.25 * math.sin(self._plant.now_s / 7.3 + phase)
        if spec.quantity is Quantity.TEMPERATURE:
            return value + WANDER_K * swing
        return value * (1.0 + WANDER_PARTS.get(spec.quantity, 0.0) * swing)

    def set(self, name: str, value: float) -> None:
        """Command a point; raises Rejected for one that is not there or takes no command."""
        if name not in self._points:
            raise Rejected(f"the device has no point {name!r}")
        command(self._plant, *self._points[name], value)


def read(plant: Plant, equipment_id: str, spec: PointSpec) -> float | None:
    """Return what a point of a piece of equipment reads; None where the plant has no such thing."""
    one = plant.equipment.get(equipment_id)
    if one is None:
        return None
    if spec.context in CONTEXTS:
        return read_host(plant, equipment_id, spec)
    if spec.quantity is Quantity.STATE:
        return _find_state(spec, state_words(plant, equipment_id, spec))
    if equipment_id in plant.upses:
        return _read_ups(plant, equipment_id, spec)
    if equipment_id in plant.room.units:
        return _read_cooling(plant, equipment_id, spec)
    if equipment_id in plant.servers:
        return _read_server(plant, equipment_id, spec)
    if spec.quantity in _AIR:
        return _read_air(plant, one.rack, spec)
    return _read_electrical(plant, plant.measured_by(equipment_id), spec)


def command(plant: Plant, equipment_id: str, spec: PointSpec, value: float) -> None:
    """Take a command; raises Rejected for what cannot be commanded."""
    if spec.kind not in (PointKind.SETPOINT, PointKind.COMMAND):
        raise Rejected(f"{equipment_id}.{spec.base_name} is read only")
    word = spec.states.get(str(int(value)), "").lower()
    server, unit = plant.servers.get(equipment_id), plant.room.units.get(equipment_id)
    if server is not None and spec.quantity is Quantity.POWER_LIMIT:
        server.cap_w = value if value > 0.0 else None
    elif server is not None and word and "limit" in spec.base_name:
        server.cap_w = None if word in ("disabled", "off") else server.cap_w or server.power_w_rated
    elif server is not None and word:
        server.is_on = "on" in word.replace("_", " ").split()
        server.is_shut_by_heat = False
    elif unit is not None and spec.quantity is Quantity.TEMPERATURE:
        unit.setpoint_c = value
    elif unit is not None and spec.quantity is Quantity.LOAD:
        unit.capacity_limit = value / 100.0
    elif unit is not None and word:
        unit.is_commanded = word in _ON_WORDS
    elif word:
        plant.flag(equipment_id, "off", is_set=word not in _ON_WORDS)
    else:
        raise Rejected(f"the plant knows no command {equipment_id}.{spec.base_name}")


_ON_WORDS = ("on", "run", "running", "start", "closed", "enabled", "auto", "automatic")
_AIR = (Quantity.TEMPERATURE, Quantity.HUMIDITY, Quantity.DEW_POINT)
_PHASES = ("l1", "l2", "l3")


def _find_state(spec: PointSpec, words: tuple[str, ...]) -> float | None:
    numbers = {word.lower(): float(number) for number, word in spec.states.items()}
    for word in words:
        for known, number in numbers.items():
            if known.replace(" ", "_") == word:
                return number
    return None


def state_words(plant: Plant, equipment_id: str, spec: PointSpec) -> tuple[str, ...]:
    """Return the words that fit a piece of equipment's state, the most telling first."""
    one = plant.equipment[equipment_id]
    flags = tuple(sorted(plant.flags.get(equipment_id, ())))
    name = spec.base_name
    if equipment_id in plant.upses:
        return _ups_words(plant.upses[equipment_id], name, has_input=plant.is_live(equipment_id))
    if equipment_id in plant.room.units:
        return _cooling_words(plant.room.units[equipment_id], name)
    if equipment_id in plant.servers:
        if any(part in name for part in ("alarm", "leak", "intrusion")):
            return _QUIET
        is_on = plant.servers[equipment_id].power_w > 20.0
        if "limit" in name or "control_mode" in name:
            return ("automatic",) if plant.servers[equipment_id].cap_w is not None else ("disabled",)
        if "health" in name:
            return ("ok", "normal", "good")
        return ("on", "running", "enabled") if is_on else ("off", "stopped", "disabled")
    if one.kind in _FLAGGED:
        is_forced = one.kind is EquipmentKind.DOOR and any(part in name for part in ("forced", "intrusion"))
        meant = ("forced",) if is_forced else _ALARM_WORDS
        active = any(flag in meant for flag in flags)
        return (*flags, *_FLAGGED[one.kind][0], *_ALARM) if active else (*_FLAGGED[one.kind][1], *_QUIET)
    if equipment_id in plant.breakers and plant.breakers[equipment_id].is_open:
        return ("open", "tripped", "off", "alarm")
    if one.kind is EquipmentKind.TRANSFER_SWITCH:
        return _transfer_words(plant, equipment_id, name)
    is_live = plant.is_live(plant.measured_by(equipment_id))
    return ("on", "closed", "up", "ok", "normal", "present") if is_live else ("off", "open", "down", "lost", "absent")


_ALARM = ("alarm", "critical", "active", "on", "warning")
_QUIET = ("normal", "ok", "inactive", "clear", "off", "none")
_ALARM_WORDS = ("leak", "smoke", "open", "forced", "inside", "discharged", "lost", "tripped", "alarm")
_FLAGGED: dict[EquipmentKind, tuple[tuple[str, ...], tuple[str, ...]]] = {
    EquipmentKind.DOOR: (("open", "forced"), ("closed",)),
    EquipmentKind.LEAK_DETECTOR: (("leak", "wet"), ("dry",)),
    EquipmentKind.SMOKE_DETECTOR: (("smoke", "fire"), ("clear",)),
    EquipmentKind.FIRE_SUPPRESSION: (("discharged",), ("armed",)),
    EquipmentKind.CAMERA: (("lost",), ("up",)),
    EquipmentKind.INTERLOCK: (("inside", "locked_out", "locked"), ("nobody", "released", "unlocked")),
    EquipmentKind.SENSOR: (("alarm",), ("normal",)),
}


def _transfer_words(plant: Plant, equipment_id: str, name: str) -> tuple[str, ...]:
    if "mode" in name:
        return ("automatic", "auto", "normal")
    source = plant.source_of(equipment_id)
    return (source.value, "normal", "on") if source is not None else ("off", "none", "lost")


def _ups_answer(ups: Ups, name: str) -> tuple[str, ...]:
    """Return yes or no where a point asks for one; empty where it names a state."""
    said = {
        "on_battery": ups.is_on_battery,
        "battery_low": ups.battery.charge <= LOW_BATTERY,
        "charging": ups.battery.charge < 1.0 and not ups.is_on_battery,
        "bypass": ups.is_bypassed or ups.is_broken,
        "overload": ups.load > 1.0,
        "replace": ups.battery.health < WORN,
    }
    for part, is_so in said.items():
        if part in name:
            return _YES if is_so else _NO
    return _NO if "alarm" in name or "shutdown" in name else ()


_YES = ("yes", "active", "alarm", "on")
_NO = ("no", "clear", "inactive", "off", "normal")


def _ups_words(ups: Ups, name: str, *, has_input: bool) -> tuple[str, ...]:
    yes_or_no = _ups_answer(ups, name)
    if yes_or_no:
        return yes_or_no
    if "battery" in name:
        if ups.battery.charge <= 0.0:
            return ("depleted", "battery_depleted", "low", "battery_low")
        if ups.battery.charge <= LOW_BATTERY:
            return ("low", "battery_low")
        if ups.is_on_battery and "status" not in name:
            return ("discharging", "normal", "battery_normal")
        return ("normal", "battery_normal", "charging", "float", "ok")
    if not has_input:
        return ("none", "off", "output_off")
    if ups.is_on_battery:
        return ("battery", "on_battery", "onbattery", "ob")
    if ups.is_bypassed or ups.is_broken:
        return ("bypass", "on_bypass")
    return ("normal", "online", "on_line", "ol", "on")


def _cooling_words(unit: CoolingUnit, name: str) -> tuple[str, ...]:
    if "alarm" in name or "fault" in name:
        troubles = {
            "compressor": unit.is_broken,
            "fault": unit.is_broken,
            "power": not unit.is_powered,
            "temperature_high": unit.supply_c > unit.setpoint_c + SUPPLY_HIGH_K,
        }
        is_active = any(is_so for part, is_so in troubles.items() if part in name)
        return (*_ALARM, "fault", "failed") if is_active else (*_QUIET,)
    if "fan" in name:
        return ("on", "running") if unit.fans_powered else ("off", "stopped")
    if unit.is_broken:
        return ("fault", "failed", "alarm", "off", "stopped", "standby")
    if unit.is_running:
        return ("on", "running", "run", "cooling", "normal")
    return ("off", "stopped", "standby", "idle")


def _read_ups(plant: Plant, name: str, spec: PointSpec) -> float | None:
    ups, context = plant.upses[name], spec.context.lower()
    is_input, is_battery = "input" in context, "battery" in context
    share = 3.0 if plant.equipment[name].ratings.phases == 3 and _is_phase(spec) else 1.0
    has_input = ups.input_w > 0.0 or not ups.is_on_battery
    volts = 0.0 if is_input and not has_input else VOLTAGE_V
    readers: dict[Quantity, Callable[[], float]] = {
        Quantity.POWER: lambda: (ups.input_w if is_input else ups.output_w) / share,
        Quantity.POWER_APPARENT: lambda: (ups.input_w if is_input else ups.output_w) / POWER_FACTOR / share,
        Quantity.CURRENT: lambda: (ups.input_w if is_input else ups.output_w) / POWER_FACTOR / VOLTAGE_V / share,
        Quantity.VOLTAGE: lambda: BATTERY_VOLT_FULL * (0.85 + 0.15 * ups.battery.charge) if is_battery else volts,
        Quantity.FREQUENCY: lambda: FREQUENCY_HZ if volts else 0.0,
        Quantity.LOAD: lambda: 100.0 * ups.load,
        Quantity.CHARGE: lambda: 100.0 * ups.battery.charge,
        Quantity.HEALTH: lambda: 100.0 * ups.battery.health,
        Quantity.RUNTIME: lambda: min(ups.runtime_s(), RUNTIME_MAX_S),
        Quantity.DURATION: lambda: ups.on_battery_s,
        Quantity.TEMPERATURE: lambda: 25.0,
        Quantity.ENERGY: lambda: plant.energy_j[name] / 3600.0,
        Quantity.POWER_FACTOR: lambda: POWER_FACTOR,
        Quantity.COUNT: lambda: 0.0,
        Quantity.POWER_LIMIT: lambda: ups.power_w_rated,
    }
    reader = readers.get(spec.quantity)
    return reader() if reader else None


def _read_cooling(plant: Plant, name: str, spec: PointSpec) -> float | None:
    unit, room, context = plant.room.units[name], plant.room, spec.context.lower()
    words = f"{context} {spec.base_name}"
    is_setpoint = spec.kind in (PointKind.SETPOINT, PointKind.COMMAND) or "setpoint" in words
    if spec.quantity is Quantity.TEMPERATURE:
        if is_setpoint:
            return unit.setpoint_c
        if "return" in words or "exhaust" in words:
            return room.hot_c
        return room.outdoor_c if "outdoor" in words or "ambient" in words else unit.supply_c
    readers: dict[Quantity, Callable[[], float]] = {
        Quantity.POWER: lambda: plant.power_w.get(name, 0.0),
        Quantity.SPEED: lambda: 100.0 if unit.fans_powered else 0.0,
        Quantity.LOAD: lambda: 100.0 * (unit.capacity_limit if is_setpoint else unit.heat_w / unit.capacity_w),
        Quantity.LEVEL: lambda: 100.0 * unit.heat_w / unit.capacity_w,
        Quantity.ENERGY: lambda: plant.energy_j[name] / 3600.0,
        Quantity.HUMIDITY: lambda: _humidity(room.hot_c if "return" in words else unit.supply_c),
        Quantity.POWER_LIMIT: lambda: unit.capacity_at_w(room.outdoor_c),
        Quantity.COUNT: lambda: 0.0,
    }
    reader = readers.get(spec.quantity)
    return reader() if reader else None


def _read_server(plant: Plant, name: str, spec: PointSpec) -> float | None:
    server, rack = plant.servers[name], plant.equipment[name].rack
    words = f"{spec.context} {spec.base_name}".lower()
    if spec.quantity is Quantity.POWER_LIMIT:
        if "min" in words:
            return server.cap_w_min
        if "max" in words:
            return server.power_w_rated
        return server.cap_w or server.power_w_rated
    if spec.quantity is Quantity.TEMPERATURE:
        air = plant.room.racks.get(rack)
        if "exhaust" in words or "outlet" in words:
            return air.exhaust_c if air else None
        return (air.metal_c + 20.0 if air else None) if "cpu" in words or "chip" in words else plant.inlet_c(rack)
    readers: dict[Quantity, Callable[[], float]] = {
        Quantity.POWER: lambda: server.power_w,
        Quantity.POWER_APPARENT: lambda: server.power_w / POWER_FACTOR,
        Quantity.ENERGY: lambda: plant.energy_j[name] / 3600.0,
        Quantity.LOAD: lambda: 100.0 * server.power_w / server.power_w_rated,
        Quantity.SPEED: lambda: min(100.0, 40.0 + 60.0 * server.power_w / server.power_w_rated),
        Quantity.HUMIDITY: lambda: _humidity(plant.inlet_c(rack)),
        Quantity.DEW_POINT: lambda: ROOM_DEW_POINT_C,
        Quantity.HEALTH: lambda: 100.0,
        Quantity.CURRENT: lambda: server.power_w / POWER_FACTOR / VOLTAGE_V,
        Quantity.VOLTAGE: lambda: VOLTAGE_V if server.power_w > 0.0 else 0.0,
    }
    reader = readers.get(spec.quantity)
    return reader() if reader else None


ROOM_DEW_POINT_C = 9.0
"""The room is closed, so its moisture stays: the dew point is constant until a cooling coil is below it."""


def _humidity(dry_c: float) -> float:
    """Return relative humidity in % at the room's dew point (Magnus formula, Sonntag's constants 17.62 and 243.12)."""

    def pressure(at_c: float) -> float:
        return math.exp(17.62 * at_c / (243.12 + at_c))

    return min(100.0, 100.0 * pressure(ROOM_DEW_POINT_C) / pressure(dry_c))


def _read_air(plant: Plant, rack: str, spec: PointSpec) -> float | None:
    words = f"{spec.context} {spec.base_name}".lower()
    if "outdoor" in words:
        dry_c = plant.room.outdoor_c
    elif "hot" in words or "return" in words or "exhaust" in words:
        dry_c = plant.room.hot_c
    else:
        dry_c = plant.inlet_c(rack)
    if spec.quantity is Quantity.TEMPERATURE:
        return dry_c
    return _humidity(dry_c) if spec.quantity is Quantity.HUMIDITY else ROOM_DEW_POINT_C


def _is_phase(spec: PointSpec) -> bool:
    words = f"{spec.context} {spec.base_name}".lower()
    return any(phase in words for phase in _PHASES)


def _read_electrical(plant: Plant, name: str, spec: PointSpec) -> float | None:
    one = plant.equipment[name]
    share = float(one.ratings.phases) if _is_phase(spec) else 1.0
    power_w, is_live = plant.power_w.get(name, 0.0), plant.is_live(name)
    readers: dict[Quantity, Callable[[], float]] = {
        Quantity.POWER: lambda: power_w / share,
        Quantity.POWER_APPARENT: lambda: power_w / POWER_FACTOR / share,
        Quantity.POWER_REACTIVE: lambda: power_w * math.tan(math.acos(POWER_FACTOR)) / share,
        Quantity.CURRENT: lambda: plant.current_a(name),
        Quantity.VOLTAGE: lambda: VOLTAGE_V if is_live else 0.0,
        Quantity.FREQUENCY: lambda: FREQUENCY_HZ if is_live else 0.0,
        Quantity.POWER_FACTOR: lambda: POWER_FACTOR,
        Quantity.ENERGY: lambda: plant.energy_j[name] / 3600.0,
        Quantity.LOAD: lambda: 100.0 * power_w / one.ratings.power_w if one.ratings.power_w else 0.0,
        Quantity.COUNT: lambda: 0.0,
        Quantity.POWER_LIMIT: lambda: one.ratings.power_w or 0.0,
    }
    reader = readers.get(spec.quantity)
    return reader() if reader else None
