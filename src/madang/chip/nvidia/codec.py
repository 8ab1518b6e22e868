"""What NVML returns, to chips.

Owns units, ranges, names of clock event reasons and the verdict. Refuses to call NVML and to raise: a value that is
missing or cannot be is None. Called by the nvidia driver, which hands over plain Python values.
"""

from collections.abc import Mapping

import msgspec

from madang.chip.compatibility import find_incompatibility
from madang.chip.inventory import SeenChip
from madang.chip.manifest import Manifest
from madang.chip.pci import PciFunction
from madang.chip.values import as_number, as_text, in_range, is_serial, is_twin, parse_pci_address, slug
from madang.core import ChipId, NodeId
from madang.model import Chip, ChipHealth

KIND = "nvidia"
CLOCK_EVENTS = (
    (0x01, "gpu_idle"),
    (0x02, "applications_clocks_setting"),
    (0x04, "sw_power_cap"),
    (0x08, "hw_slowdown"),
    (0x10, "sync_boost"),
    (0x20, "sw_thermal_slowdown"),
    (0x40, "hw_thermal_slowdown"),
    (0x80, "hw_power_brake_slowdown"),
    (0x100, "display_clock_setting"),
    (0x200, "board_limit"),
    (0x400, "reliability"),
)
"""nvmlClocksEventReason* (nvidia-ml-py 13); the last two are there as nvmlClocksThrottleReason*, the older name."""
_NOT_THROTTLING = frozenset({"gpu_idle", "applications_clocks_setting", "display_clock_setting", "sync_boost"})
_MEMORY_BYTES_MIN, _MEMORY_BYTES_MAX = 1 << 26, 1 << 42
_TEMPERATURE_C_MIN, _TEMPERATURE_C_MAX = 1.0, 150.0
_POWER_W_MIN, _POWER_W_MAX = 0.5, 3000.0
_CLOCK_MHZ_MAX = 10_000.0

Raw = Mapping[str, object]
"""What the driver collected of one GPU, by the names in its table; None where NVML gave an error."""


def parse_clock_events(value: object) -> tuple[str, ...]:
    """Return why the clocks are held down, without the reasons that are no throttling."""
    mask = as_number(value)
    if mask is None or not 0 <= mask < 1 << 53:
        return ()
    bits = int(mask)
    known = dict(CLOCK_EVENTS)
    names = [known.get(1 << bit, f"reason 0x{1 << bit:x}") for bit in range(bits.bit_length()) if bits >> bit & 1]
    return tuple(name for name in names if name not in _NOT_THROTTLING)


def parse_cuda_version(value: object) -> str:
    """Return `12.4` for 12040."""
    number = as_number(value)
    if number is None or not 1000 <= number < 1_000_000:
        return ""
    return f"CUDA {int(number) // 1000}.{int(number) % 1000 // 10}"


def read_gpus(
    raws: tuple[Raw, ...] | None,
    trouble: str,
    functions: tuple[PciFunction, ...],
    manifest: Manifest,
    node: NodeId,
    wall_s: float,
    *,
    is_twin_machine: bool,
) -> tuple[SeenChip, ...]:
    """Return every GPU that NVML or the PCI bus shows, sorted by chip id.

    Args:
        raws: one mapping a GPU; None when NVML cannot be used, `trouble` says why.
        trouble: why the reading is not whole.
        functions: GPUs on the PCI bus.
        manifest: rules.
        node: whose chips these are.
        wall_s: wall time of the reading.
        is_twin_machine: whether the machine says that it is simulated.
    """
    by_address = {function.address: function for function in functions if not function.is_virtual}
    seen: list[SeenChip] = []
    for raw in raws or ():
        address = parse_pci_address(as_text(raw.get("bus_id")))
        if not address and not as_text(raw.get("uuid")):
            continue  # nothing says which one this is; the bus still shows where it was
        seen.append(_view(raw, by_address.pop(address, None), manifest, node, wall_s, is_twin_machine=is_twin_machine))
    for function in by_address.values():
        health = ChipHealth.UNKNOWN if raws is None else ChipHealth.FAILED
        reason = trouble if raws is None else f"the GPU is at {function.address}, but NVML does not list it"
        chip = Chip(
            chip_id=ChipId(f"{KIND}-pci-{slug(function.address)}"),
            node=node,
            kind=KIND,
            model=f"NVIDIA device {function.pci_id}",
            memory_bytes=0,
            health=health,
            reason=reason or "NVML gave no answer",
            is_simulated=is_twin_machine,
            observed_at_s=wall_s,
            pci_address=function.address,
            numa_node=function.numa_node,
        )
        seen.append(SeenChip(chip=chip, name="", cpus=function.cpus))
    return tuple(sorted(seen, key=lambda gpu: gpu.chip.chip_id))


def _view(
    raw: Raw, function: PciFunction | None, manifest: Manifest, node: NodeId, wall_s: float, *, is_twin_machine: bool
) -> SeenChip:
    serial, uuid, model = as_text(raw.get("serial")), as_text(raw.get("uuid")), as_text(raw.get("name"))
    address = parse_pci_address(as_text(raw.get("bus_id")))
    identity = serial if is_serial(serial) else uuid or f"pci-{address}"
    total = in_range(as_number(raw.get("memory_total")), _MEMORY_BYTES_MIN, _MEMORY_BYTES_MAX)
    free = in_range(as_number(raw.get("memory_free")), 0, total or 0)
    percent = in_range(as_number(raw.get("utilisation")), 0, 100)
    health, reason = judge(raw, total)
    versions = {
        "model": model,
        "driver": as_text(raw.get("driver")),
        "firmware": as_text(raw.get("firmware")),
        "sdk": parse_cuda_version(raw.get("cuda")),
    }
    chip = Chip(
        chip_id=ChipId(f"{KIND}-{slug(identity)}"),
        node=node,
        kind=KIND,
        model=model or "NVIDIA GPU",
        memory_bytes=int(total or 0),
        memory_free_bytes=None if free is None or total is None else int(free),
        health=health,
        reason=reason,
        utilisation=None if percent is None else percent / 100,
        temperature_c=in_range(as_number(raw.get("temperature")), _TEMPERATURE_C_MIN, _TEMPERATURE_C_MAX),
        power_w=_milli(raw.get("power"), _POWER_W_MIN, _POWER_W_MAX),
        is_simulated=is_twin_machine or is_twin(serial, uuid, model),
        observed_at_s=wall_s,
        serial=serial,
        pci_address=address,
        numa_node=function.numa_node if function else None,
        clock_mhz=in_range(as_number(raw.get("clock")), 1.0, _CLOCK_MHZ_MAX),
        power_w_max=_milli(raw.get("power_limit"), _POWER_W_MIN, _POWER_W_MAX),
        throttle_reasons=parse_clock_events(raw.get("clock_events")),
        driver_version=versions["driver"],
        firmware_version=versions["firmware"],
        sdk_version=versions["sdk"],
        incompatibility=find_incompatibility(manifest.compatibility, versions),
    )
    return SeenChip(chip=chip, name=uuid, cpus=function.cpus if function else ())


def _milli(value: object, low: float, high: float) -> float | None:
    number = as_number(value)
    return None if number is None else in_range(number / 1000, low, high)


def judge(raw: Raw, total: float | None) -> tuple[ChipHealth, str]:
    """Return the verdict on one GPU, the gravest reason first."""
    if raw.get("is_lost"):
        return ChipHealth.FAILED, "NVML says that the GPU is lost: it fell off the bus"
    if raw.get("remap_failure") in (True, 1):
        return ChipHealth.FAILED, "remapping of a broken memory row failed"
    errors = as_number(raw.get("ecc_uncorrected"))
    if errors:
        return ChipHealth.FAILED, f"{errors:.0f} uncorrected ECC errors since the driver was loaded"
    if total is None:
        return ChipHealth.UNKNOWN, "NVML gives no memory size"
    if raw.get("remap_pending") in (True, 1):
        return ChipHealth.DEGRADED, "a memory row is remapped only after the GPU is reset"
    reasons = parse_clock_events(raw.get("clock_events"))
    if reasons:
        return ChipHealth.DEGRADED, f"throttled: {', '.join(reasons)}"
    return ChipHealth.OK, ""


def recognise(gpu: SeenChip, known: tuple[Chip, ...]) -> SeenChip:
    """Return a GPU that only the bus shows under the identity that it had there when NVML still worked."""
    if gpu.name:
        return gpu
    for chip in known:
        if chip.pci_address == gpu.chip.pci_address and chip.chip_id != gpu.chip.chip_id:
            same = msgspec.structs.replace(
                gpu.chip, chip_id=chip.chip_id, model=chip.model, serial=chip.serial, memory_bytes=chip.memory_bytes
            )
            return msgspec.structs.replace(gpu, chip=same)
    return gpu
