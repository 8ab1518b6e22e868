"""A chip: one accelerator as its driver allocates it. Refuses to know how it is read."""

from enum import StrEnum

import msgspec

from madang.core import ChipId, NodeId


class ChipHealth(StrEnum):
    """What a driver concluded from its last reading."""

    OK = "ok"
    DEGRADED = "degraded"
    FAILED = "failed"
    UNKNOWN = "unknown"


class Chip(msgspec.Struct, frozen=True, kw_only=True):
    """One chip and its newest reading; a quantity that could not be read is None, never zero.

    Attributes:
        chip_id: stable across reboots (serial or PCI identity), unique in its node.
        node: the node that holds it.
        kind: the driver's name: `cpu`, `furiosa`, `rebellions`, `nvidia`.
        model: the vendor's product name.
        memory_bytes: memory that engines may use in all; 0 only where it could not be read and health says so.
        memory_free_bytes: of it, free at `observed_at_s`.
        engines_max: how many engines may share it; 1 means exclusive.
        health: the driver's verdict, `reason` says why when it is not ok.
        utilisation: 0 to 1.
        temperature_c, power_w: newest readings.
        is_simulated: true when a twin answered.
        observed_at_s: wall time of the reading.
        serial: as printed on the card; empty where unknown.
        pci_address: domain:bus:device.function, lower case.
        numa_node: of the processor it is attached to.
        group: chips with the same group are one card and are only given together (Rebellions `sid`).
        cores: parts that may be given apart (Furiosa PEs).
        core_sets: which sets of cores may be given; empty: the whole chip only.
        cores_occupied: cores that some program has opened, whosever it is; None where the driver cannot tell.
        clock_mhz: newest reading.
        power_w_max: the limit that is configured, not the TDP.
        throttle_reasons: why it runs slower than it could, in the vendor's words.
        driver_version, firmware_version, sdk_version: empty where unknown.
        incompatibility: why this combination of versions must not be used; empty when it may.
    """

    chip_id: ChipId
    node: NodeId
    kind: str
    model: str
    memory_bytes: int
    memory_free_bytes: int | None = None
    engines_max: int = 1
    health: ChipHealth = ChipHealth.UNKNOWN
    reason: str = ""
    utilisation: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    is_simulated: bool = False
    is_cordoned: bool = False
    observed_at_s: float = 0.0
    serial: str = ""
    pci_address: str = ""
    numa_node: int | None = None
    group: str = ""
    cores: int = 1
    core_sets: tuple[tuple[int, ...], ...] = ()
    cores_occupied: tuple[int, ...] | None = None
    clock_mhz: float | None = None
    power_w_max: float | None = None
    throttle_reasons: tuple[str, ...] = ()
    driver_version: str = ""
    firmware_version: str = ""
    sdk_version: str = ""
    incompatibility: str = ""
