"""Which drivers there are, and making one of a device.

Owns the list and the lazy import: a site pays only for the protocols that its file names, and an absent library is
said by name. Refuses to know protocols. Called by the poller, by the check of site files and by the plant twin.

Every folder's `driver.py` has `make_driver(device, profile, secret, clock) -> EquipmentDriver`; every `twin.py` has
`make_twin(device, profile, secret, plant) -> Twin`, which listens where `device.address` says (port 0: a free one)
and has `fault(TwinFault | None)`. A folder whose devices tell something by themselves has, in the module that
`LISTENERS` names, `make_listener(host, port, devices, secrets, clock) -> Listener`.
"""

import importlib
from collections.abc import Mapping, Sequence
from types import ModuleType

from madang.core import Clock, Rejected, Unavailable
from madang.facility.contract import Device, EquipmentDriver, Listener, PlantPort, Secret, Twin
from madang.facility.profile import Profile

DRIVERS = ("bacnet", "modbus", "mqtt", "nut", "opcua", "prometheus", "redfish", "snmp")
RELINQUISHERS = frozenset({"bacnet"})
"""Drivers that are `RelinquishingDriver`s: what a site file says is checked before any of them is made."""
LISTENERS = {"snmp": "traps"}
"""Drivers whose devices are listened to, and the module of each that does."""


def make_driver(device: Device, profile: Profile, secret: Secret, clock: Clock) -> EquipmentDriver:
    """Return a driver for a device; raises Rejected for an unknown driver, Unavailable when its library is absent."""
    driver: EquipmentDriver = _load(device.driver, "driver").make_driver(device, profile, secret, clock)
    return driver


def make_twin(device: Device, profile: Profile, secret: Secret, plant: PlantPort) -> Twin:
    """Return a twin that answers as the device would; raises as `make_driver` does."""
    twin: Twin = _load(device.driver, "twin").make_twin(device, profile, secret, plant)
    return twin


def make_listener(
    driver: str, host: str, port: int, devices: Sequence[Device], secrets: Mapping[str, Secret], clock: Clock
) -> Listener:
    """Return what hears a driver's devices; raises Rejected for a driver without one, or a secret without its words.

    Args:
        driver: one of `LISTENERS`.
        host: to listen on.
        port: to listen on; 0: a free one.
        devices: who is believed; those of other drivers are passed over.
        secrets: by device id.
        clock: time.
    """
    if driver not in LISTENERS:
        raise Rejected(f"nobody listens to devices of {driver!r}", next_step=f"use one of {', '.join(LISTENERS)}")
    heard = [device for device in devices if device.driver == driver]
    listener: Listener = _load(driver, LISTENERS[driver]).make_listener(host, port, heard, secrets, clock)
    return listener


def _load(driver: str, module: str) -> ModuleType:
    if driver not in DRIVERS:
        raise Rejected(f"there is no equipment driver {driver!r}", next_step=f"use one of {', '.join(DRIVERS)}")
    try:
        return importlib.import_module(f"madang.facility.{driver}.{module}")
    except ModuleNotFoundError as error:
        raise Unavailable(
            f"the equipment driver {driver} needs the package {error.name}",
            next_step="install madang with the extra `facility`",
        ) from error
