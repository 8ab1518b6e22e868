"""What may go wrong in a plant, on command.

Owns the kinds of faults and what each does to the plant. Refuses to know devices: how a twin misbehaves is
`madang.facility.contract.TwinFault`. Called by the plant program and by tests.
"""

from collections.abc import Callable
from typing import TypeVar

import msgspec

from madang.core import Rejected
from madang.sim.plant.host import CLOCK_LOST, DISK_FULL, DISK_READ_ONLY, DISK_WORN, LINK_DOWN
from madang.sim.plant.plant import Plant

_T = TypeVar("_T")


class PlantFault(msgspec.Struct, frozen=True, kw_only=True):
    """One fault, or its end.

    Attributes:
        kind: one of `KINDS`.
        target: the equipment; empty where the kind needs none.
        value: what the kind says.
        is_over: true ends it.
    """

    kind: str
    target: str = ""
    value: float = 0.0
    is_over: bool = False


def _utility(plant: Plant, fault: PlantFault) -> None:
    plant.is_utility_on = fault.is_over


def _cooling(plant: Plant, fault: PlantFault) -> None:
    _pick(plant.room.units, fault).is_broken = not fault.is_over


def _ups(plant: Plant, fault: PlantFault) -> None:
    _pick(plant.upses, fault).is_broken = not fault.is_over


def _battery(plant: Plant, fault: PlantFault) -> None:
    _pick(plant.upses, fault).battery.health = 1.0 if fault.is_over else min(1.0, max(0.01, fault.value))


def _charge(plant: Plant, fault: PlantFault) -> None:
    _pick(plant.upses, fault).battery.charge = 1.0 if fault.is_over else min(1.0, max(0.0, fault.value))


def _breaker(plant: Plant, fault: PlantFault) -> None:
    breaker = _pick(plant.breakers, fault)
    breaker.is_open = not fault.is_over
    breaker.heat = 0.0


def _caps(plant: Plant, fault: PlantFault) -> None:
    _pick(plant.servers, fault).ignores_caps = not fault.is_over


def _door(plant: Plant, fault: PlantFault) -> None:
    plant.flag(fault.target, "open", is_set=not fault.is_over)
    plant.room.is_door_open = not fault.is_over


def _forced(plant: Plant, fault: PlantFault) -> None:
    plant.flag(fault.target, "forced", is_set=not fault.is_over)
    _door(plant, fault)


def _flag(word: str) -> Callable[[Plant, PlantFault], None]:
    def act(plant: Plant, fault: PlantFault) -> None:
        plant.flag(fault.target, word, is_set=not fault.is_over)

    return act


def _outdoor(plant: Plant, fault: PlantFault) -> None:
    plant.room.outdoor_c = 20.0 if fault.is_over else fault.value


def _load(plant: Plant, fault: PlantFault) -> None:
    names = [fault.target] if fault.target else list(plant.servers)
    plant.set_load(dict.fromkeys(names, 0.3 if fault.is_over else fault.value))


KINDS: dict[str, tuple[Callable[[Plant, PlantFault], None], str]] = {
    "utility_lost": (_utility, "the grid gives no power"),
    "cooling_lost": (_cooling, "a cooling unit's compressor stands still"),
    "ups_broken": (_ups, "a UPS goes to bypass and has no battery"),
    "battery_aged": (_battery, "a battery holds only `value` (0 to 1) of what it held"),
    "battery_charge": (_charge, "a battery is charged to `value` (0 to 1)"),
    "breaker_open": (_breaker, "a breaker opens"),
    "caps_ignored": (_caps, "a server takes power caps and does not act"),
    "door_open": (_door, "a door is open"),
    "door_forced": (_forced, "a door was opened without leave"),
    "inside": (_flag("inside"), "somebody is inside"),
    "leak": (_flag("leak"), "a leak detector is wet"),
    "smoke": (_flag("smoke"), "a smoke detector sees smoke"),
    "discharged": (_flag("discharged"), "the fire suppression has discharged"),
    "camera_lost": (_flag("lost"), "a camera gives no picture"),
    DISK_FULL: (_flag(DISK_FULL), "the file systems of a host have 1.5 % left"),
    DISK_WORN: (_flag(DISK_WORN), "the disks of a host are used up, and say so"),
    DISK_READ_ONLY: (_flag(DISK_READ_ONLY), "a host's file systems and disks can only be read"),
    LINK_DOWN: (_flag(LINK_DOWN), "the links of a host have no carrier"),
    CLOCK_LOST: (_flag(CLOCK_LOST), "nobody sets a host's clock any more"),
    "outdoor": (_outdoor, "it is `value` degrees outside"),
    "load": (_load, "servers (all, or the target) are busy to `value` (0 to 1)"),
}
"""What each kind does, and its words."""


def apply_fault(plant: Plant, fault: PlantFault) -> None:
    """Begin or end a fault; raises Rejected for an unknown kind or target."""
    if fault.kind not in KINDS:
        raise Rejected(f"the plant knows no fault {fault.kind!r}", next_step=f"take one of {', '.join(KINDS)}")
    KINDS[fault.kind][0](plant, fault)


def _pick(found: dict[str, _T], fault: PlantFault) -> _T:
    if fault.target not in found:
        known = ", ".join(sorted(found)) or "none"
        raise Rejected(f"{fault.kind} needs a target of its kind, not {fault.target!r}", next_step=f"one of {known}")
    return found[fault.target]
