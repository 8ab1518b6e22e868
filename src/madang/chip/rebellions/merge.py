"""One view of each Rebellions device from all that was read at one instant.

Owns who is believed about what, the device's identity and the verdict on its health. Refuses to read anything.
Called by the rebellions driver.
"""

from collections.abc import Mapping

import msgspec

from madang.chip.compatibility import find_incompatibility
from madang.chip.inventory import SeenChip
from madang.chip.manifest import Card, Manifest
from madang.chip.pci import PciFunction
from madang.chip.rebellions.codec import Answer, Attributes, Device, name_status
from madang.chip.values import is_twin, slug
from madang.core import ChipId, NodeId
from madang.model import Chip, ChipHealth

KIND = "rebellions"
_GOOD_WORDS = frozenset({"", "normal", "ready", "busy"})
_BAD_WORDS = ("fault", "error", "fail", "abnormal", "dead", "lost")
"""Parts of words in `status` that are taken for a failure; the vendor publishes only `normal`."""


class Sources(msgspec.Struct, frozen=True, kw_only=True):
    """All that was read at one instant.

    Attributes:
        functions: from the PCI bus.
        answer: from the tool; None where it gave none, `trouble` says why.
        attributes: from sysfs.
        is_twin_machine: whether the machine says that it is simulated.
    """

    functions: tuple[PciFunction, ...] = ()
    answer: Answer | None = None
    trouble: str = ""
    attributes: tuple[Attributes, ...] = ()
    is_twin_machine: bool = False


class _Parts(msgspec.Struct, frozen=True, kw_only=True):
    """All that belongs to one device."""

    address: str
    device: str
    sid: str
    function: PciFunction | None
    told: Device | None
    attributes: Attributes | None


def merge(
    sources: Sources, manifest: Manifest, node: NodeId, wall_s: float, sids: Mapping[str, str]
) -> tuple[SeenChip, ...]:
    """Return every device, sorted by chip id.

    Args:
        sources: this reading.
        manifest: cards and rules.
        node: whose chips these are.
        wall_s: wall time of the reading.
        sids: sid by PCI address from earlier readings, for when the tool is silent.
    """
    seen = [_view(sources, _collect(sources, place, sids), manifest, node, wall_s) for place in _places(sources)]
    return tuple(sorted(seen, key=lambda device: device.chip.chip_id))


def _places(sources: Sources) -> list[tuple[str, str]]:
    """Return an address, or a local name where no address is known, of every device that anything speaks of."""
    parts: list[Device | Attributes] = [*(sources.answer.devices if sources.answer else ()), *sources.attributes]
    left_out = {function.address for function in sources.functions if function.vfs}
    addresses = {function.address for function in sources.functions if not function.is_virtual}
    addresses |= {part.pci_address for part in parts if part.pci_address}
    placed = {part.device for part in parts if part.pci_address}
    names = {part.device for part in parts} - placed
    return [(address, "") for address in sorted(addresses - left_out)] + [("", name) for name in sorted(names)]


def _collect(sources: Sources, place: tuple[str, str], sids: Mapping[str, str]) -> _Parts:
    address, name = place

    def is_it(part: Device | Attributes) -> bool:
        return part.pci_address == address if address else part.device == name

    told = next((part for part in (sources.answer.devices if sources.answer else ()) if is_it(part)), None)
    name = name or (told.device if told else "")
    attributes = next((part for part in sources.attributes if is_it(part)), None) or next(
        (part for part in sources.attributes if name and part.device == name and not part.pci_address), None
    )
    return _Parts(
        address=address,
        device=name or (attributes.device if attributes else ""),
        sid=(told.sid if told else "") or sids.get(address, ""),
        function=next((function for function in sources.functions if function.address == address), None),
        told=told,
        attributes=attributes,
    )


def _view(sources: Sources, parts: _Parts, manifest: Manifest, node: NodeId, wall_s: float) -> SeenChip:
    told, attributes, function = parts.told, parts.attributes, parts.function
    name = (told.name if told else "") or (attributes.name if attributes else "")
    pci_id = function.pci_id if function else f"1eff:{told.pci_device}" if told else ""
    card = manifest.find_card("", name) or manifest.find_card(pci_id) or Card(product=name or f"device {pci_id}")
    versions = {
        "model": name or card.product,
        "driver": (sources.answer.driver if sources.answer else "") or (attributes.driver if attributes else ""),
        "firmware": (told.firmware if told else "") or (attributes.firmware if attributes else ""),
    }
    total, free = _memory(parts, card)
    health, reason = judge(sources, parts, card)
    temperature_c = told.temperature_c if told else None
    is_hot = temperature_c is not None and card.throttle_c is not None and temperature_c >= card.throttle_c
    numa_node = function.numa_node if function else None
    chip = Chip(
        chip_id=_identify(parts),
        node=node,
        kind=KIND,
        model=versions["model"],
        memory_bytes=total,
        memory_free_bytes=free,
        health=health,
        reason=reason,
        utilisation=told.utilisation if told else None,
        temperature_c=temperature_c,
        power_w=told.power_w if told else None,
        is_simulated=sources.is_twin_machine or is_twin(parts.sid),
        observed_at_s=wall_s,
        serial=parts.sid,
        pci_address=parts.address,
        numa_node=told.numa_node if numa_node is None and told else numa_node,
        group=f"{KIND}-{slug(parts.sid)}" if parts.sid else "",
        throttle_reasons=("thermal",) if is_hot else (),
        driver_version=versions["driver"],
        firmware_version=versions["firmware"],
        incompatibility=find_incompatibility(manifest.compatibility, versions),
    )
    return SeenChip(chip=chip, name=parts.device, cpus=function.cpus if function else ())


def _identify(parts: _Parts) -> ChipId:
    """Return an id from the card's sid and the device's place; the devices of one card share the sid."""
    place = parts.address or parts.device
    return ChipId(f"{KIND}-{slug(f'{parts.sid} {place}')}" if parts.sid else f"{KIND}-pci-{slug(place)}")


def _memory(parts: _Parts, card: Card) -> tuple[int, int | None]:
    for part in (parts.told, parts.attributes):
        if part is not None and part.memory_total_bytes is not None:
            used = part.memory_used_bytes
            return part.memory_total_bytes, None if used is None else max(part.memory_total_bytes - used, 0)
    return card.memory_bytes, None


def judge(sources: Sources, parts: _Parts, card: Card) -> tuple[ChipHealth, str]:
    """Return the verdict on one device, the gravest reason first."""
    return (_judge_status(sources, parts) or _judge_presence(sources, parts) or _judge_numbers(parts, card)) or (
        ChipHealth.OK,
        "",
    )


def _judge_status(sources: Sources, parts: _Parts) -> tuple[ChipHealth, str] | None:
    """Return what the words and numbers of the vendor's status mean, if they mean that it cannot be used."""
    told, attributes = parts.told, parts.attributes
    if told is not None and any(word in told.status for word in _BAD_WORDS):
        return ChipHealth.FAILED, f"rbln-smi says status {told.status!r}"
    if attributes is not None and attributes.status is not None:
        driver = attributes.driver or (sources.answer.driver if sources.answer else "")
        meaning = name_status(attributes.status, driver)
        if meaning == "fault":
            return ChipHealth.FAILED, f"the kernel driver says status {attributes.status}: fault"
        if meaning not in ("ready", "busy"):
            return ChipHealth.UNKNOWN, f"the kernel driver says status {attributes.status}: {meaning}"
    if told is not None and told.status not in _GOOD_WORDS:
        return ChipHealth.UNKNOWN, f"rbln-smi says status {told.status!r}, which is not known"
    return None


def _judge_presence(sources: Sources, parts: _Parts) -> tuple[ChipHealth, str] | None:
    if sources.answer is None:
        return ChipHealth.UNKNOWN, sources.trouble or "rbln-smi gave no answer"
    if parts.told is None:
        return ChipHealth.FAILED, f"the device is at {parts.address or parts.device}, but rbln-smi does not list it"
    if parts.attributes is not None and parts.attributes.device != parts.told.device:
        return ChipHealth.UNKNOWN, "rbln-smi and the kernel driver name the device differently: driver reloaded"
    has_number = parts.attributes is not None and parts.attributes.status is not None
    if not parts.told.status and not has_number:
        return ChipHealth.UNKNOWN, "neither rbln-smi nor the kernel driver gives a status"
    return None


def _judge_numbers(parts: _Parts, card: Card) -> tuple[ChipHealth, str] | None:
    told = parts.told
    if told is None:
        return None
    if told.refused:
        return ChipHealth.DEGRADED, f"not plausible, so not used: {', '.join(told.refused)}"
    if told.corrected:
        said = ", ".join(told.corrected)
        return ChipHealth.DEGRADED, f"a thousandth of what it can be, so multiplied: {said}; versions of tools differ"
    if card.throttle_c is not None and told.temperature_c is not None and told.temperature_c >= card.throttle_c:
        return ChipHealth.DEGRADED, f"{told.temperature_c:.0f} °C; it throttles from {card.throttle_c:.0f} °C on"
    return None
