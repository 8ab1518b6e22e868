"""One view of each FuriosaAI card from all that was read at one instant.

Owns who is believed about what, the card's identity and the verdict on its health. Refuses to read anything. Called
by the furiosa driver.
"""

from collections.abc import Mapping

import msgspec

from madang.chip.compatibility import find_incompatibility
from madang.chip.furiosa.codec import Info, Management, Status
from madang.chip.inventory import SeenChip
from madang.chip.manifest import Card, Manifest
from madang.chip.pci import PciFunction
from madang.chip.values import is_serial, is_twin, slug
from madang.core import ChipId, NodeId
from madang.model import Chip, ChipHealth

KIND = "furiosa"
_ALIVE_STATE = "0"
"""The one value of `device_state` that the vendor's bindings (furiosa-smi 2026.4.0) take for a living card."""


class Sensors(msgspec.Struct, frozen=True, kw_only=True):
    """What hwmon says of one card."""

    temperature_c: float | None = None
    power_w: float | None = None
    power_w_max: float | None = None


class Sources(msgspec.Struct, frozen=True, kw_only=True):
    """All that was read at one instant.

    Attributes:
        functions: from the PCI bus.
        info, status: from the tool; None where it gave none, `trouble` says why.
        tool_version, driver_version: from the tool.
        management: from sysfs.
        sensors: by PCI address.
        is_twin_machine: whether the machine says that it is simulated.
    """

    functions: tuple[PciFunction, ...] = ()
    info: tuple[Info, ...] | None = None
    status: tuple[Status, ...] | None = None
    trouble: str = ""
    tool_version: str = ""
    driver_version: str = ""
    management: tuple[Management, ...] = ()
    sensors: Mapping[str, Sensors] = {}
    is_twin_machine: bool = False


class _Parts(msgspec.Struct, frozen=True, kw_only=True):
    """All that belongs to one card."""

    address: str
    name: str
    serial: str
    function: PciFunction | None
    info: Info | None
    status: Status | None
    management: Management | None
    sensors: Sensors
    is_renumbered: bool


def merge(
    sources: Sources, manifest: Manifest, node: NodeId, wall_s: float, serials: Mapping[str, str]
) -> tuple[SeenChip, ...]:
    """Return every card, sorted by chip id.

    Args:
        sources: this reading.
        manifest: cards and rules.
        node: whose chips these are.
        wall_s: wall time of the reading.
        serials: serial by PCI address from earlier readings, for when the tool is silent.
    """
    cards = [_collect(sources, place, serials) for place in _places(sources)]
    counts: dict[str, int] = {}
    for card in cards:
        counts[card.serial] = counts.get(card.serial, 0) + 1
    seen = [_view(sources, card, counts[card.serial] == 1, manifest, node, wall_s) for card in cards]
    return tuple(sorted(seen, key=lambda card: card.chip.chip_id))


def _places(sources: Sources) -> list[tuple[str, str]]:
    """Return an address, or a name where no address is known, of every card that anything speaks of."""
    left_out = {function.address for function in sources.functions if function.is_virtual or function.vfs}
    addresses = {function.address for function in sources.functions}
    names: set[str] = set()
    known: list[Info | Management] = [*(sources.info or ()), *sources.management]
    for part in known:
        if part.pci_address:
            addresses.add(part.pci_address)
        else:
            names.add(part.name)
    named = {part.name for part in known if part.pci_address}
    return [(address, "") for address in sorted(addresses - left_out)] + [("", name) for name in sorted(names - named)]


def _collect(sources: Sources, place: tuple[str, str], serials: Mapping[str, str]) -> _Parts:
    address, name = place

    def is_it(part: Info | Management) -> bool:
        return part.pci_address == address if address else part.name == name

    info = next((part for part in sources.info or () if is_it(part)), None)
    management = next((part for part in sources.management if is_it(part)), None)
    # Both name the card by what it is now; if they differ, the driver was loaded anew between the two.
    is_renumbered = info is not None and management is not None and info.name != management.name
    name = name or (info.name if info else management.name if management else "")
    told = [part.serial for part in (info, management) if part is not None]
    candidates = [serial for serial in (*told, serials.get(address, "")) if is_serial(serial)]
    return _Parts(
        address=address,
        name=name,
        serial=next(iter(candidates), ""),
        function=next((function for function in sources.functions if function.address == address), None),
        info=info,
        status=None if is_renumbered else next((part for part in sources.status or () if part.name == name), None),
        management=management,
        sensors=sources.sensors.get(address) or Sensors(),
        is_renumbered=is_renumbered,
    )


def _view(
    sources: Sources, parts: _Parts, is_serial_unique: bool, manifest: Manifest, node: NodeId, wall_s: float
) -> SeenChip:
    function, info, status, management = parts.function, parts.info, parts.status, parts.management
    pci_id = function.pci_id if function else ""
    names = [*([info.arch] if info else []), *([management.model] if management else [])]
    card = manifest.find_card(pci_id, *names) or Card(product=next(filter(None, names), "") or f"device {pci_id}")
    health, reason = judge(sources, parts)
    versions = {
        "model": card.product,
        "driver": (management.driver if management else "") or sources.driver_version,
        "firmware": (info.firmware if info else "") or (management.firmware if management else ""),
        "sdk": sources.tool_version,
    }
    used = status.memory_used_bytes if status else management.memory_used_bytes if management else None
    total = (status.memory_total_bytes if status else None) or card.memory_bytes
    power_w = info.power_w if info else None
    temperature_c = info.temperature_c if info else None
    is_known = bool(parts.serial) and is_serial_unique
    identity = parts.serial if is_known else f"pci-{parts.address}" if parts.address else parts.name
    chip = Chip(
        chip_id=ChipId(f"{KIND}-{slug(identity)}"),
        node=node,
        kind=KIND,
        model=card.product,
        memory_bytes=total,
        memory_free_bytes=None if used is None else max(total - used, 0),
        health=health,
        reason=reason,
        utilisation=status.utilisation if status else None,
        temperature_c=parts.sensors.temperature_c if temperature_c is None else temperature_c,
        power_w=parts.sensors.power_w if power_w is None else power_w,
        is_simulated=sources.is_twin_machine or is_twin(parts.serial),
        observed_at_s=wall_s,
        serial=parts.serial,
        pci_address=parts.address,
        numa_node=function.numa_node if function else None,
        cores=card.cores,
        core_sets=card.core_sets,
        cores_occupied=_find_occupied(parts, card),
        clock_mhz=info.clock_mhz if info else management.clock_mhz if management else None,
        power_w_max=(management.power_w_max if management else None) or parts.sensors.power_w_max,
        throttle_reasons=management.throttle_reasons if management else (),
        driver_version=versions["driver"],
        firmware_version=versions["firmware"],
        sdk_version=versions["sdk"],
        incompatibility=find_incompatibility(manifest.compatibility, versions),
    )
    return SeenChip(chip=chip, name=parts.name, cpus=function.cpus if function else ())


def _find_occupied(parts: _Parts, card: Card) -> tuple[int, ...] | None:
    """Return the PEs that anybody says are occupied: one that is taken for idle would be given twice."""
    told = [part.cores_occupied for part in (parts.status, parts.management) if part is not None]
    known = [cores for cores in told if cores is not None]
    return tuple(sorted({core for cores in known for core in cores if core < card.cores})) if known else None


def judge(sources: Sources, parts: _Parts) -> tuple[ChipHealth, str]:
    """Return the verdict on one card, the gravest reason first."""
    return _find_failure(sources, parts) or _find_gap(sources, parts) or _find_weakness(parts) or (ChipHealth.OK, "")


def _find_failure(sources: Sources, parts: _Parts) -> tuple[ChipHealth, str] | None:
    liveness = parts.status.liveness if parts.status else ""
    state = parts.management.state if parts.management else ""
    if liveness and liveness != "alive":
        return ChipHealth.FAILED, f"furiosa-smi status says liveness {liveness!r}"
    if state and state != _ALIVE_STATE:
        return ChipHealth.FAILED, f"the kernel driver says device_state {state!r}, and not alive"
    if sources.info is not None and parts.info is None:
        return ChipHealth.FAILED, f"the card is at {parts.address or parts.name}, but furiosa-smi does not list it"
    return None


def _find_gap(sources: Sources, parts: _Parts) -> tuple[ChipHealth, str] | None:
    if sources.info is None or sources.status is None:
        return ChipHealth.UNKNOWN, sources.trouble or "furiosa-smi gave no answer"
    if parts.is_renumbered:
        return ChipHealth.UNKNOWN, "furiosa-smi and the kernel driver number the cards differently: driver reloaded"
    if parts.status is None:
        return ChipHealth.UNKNOWN, f"furiosa-smi status does not list {parts.name or parts.address}"
    if not parts.status.liveness:
        return ChipHealth.UNKNOWN, "furiosa-smi status gives no liveness"
    return None


def _find_weakness(parts: _Parts) -> tuple[ChipHealth, str] | None:
    refused = [*(parts.info.refused if parts.info else ()), *(parts.status.refused if parts.status else ())]
    if refused:
        return ChipHealth.DEGRADED, f"not plausible, so not used: {', '.join(refused)}"
    if parts.management and parts.management.throttle_reasons:
        limit_w = parts.management.power_w_max
        under = f" (power limit {limit_w:.0f} W)" if limit_w is not None else ""
        return ChipHealth.DEGRADED, f"throttled: {', '.join(parts.management.throttle_reasons)}{under}"
    return None
