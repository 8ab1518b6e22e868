"""Which chips, or which cores of a chip, one engine gets on one node.

Owns the choice, and the words for why there is none. Refuses to know nodes beside each other (placement does), time
and processes. Called by placement for every node it considers, and by the node's lease machine to check what it is
told.

A card is given whole: chips of one `group` are one card. A chip whose `engines_max` is above 1 and that has no
`core_sets` (a processor) is shared; every other chip, or core of a chip, has one engine at most. An engine's chips are
of one kind and model. Preferred, in this order: healthy before degraded, as little more than asked for as possible,
one NUMA node, PCI buses close to each other, the emptier of shared chips, cards and core sets whose giving leaves
larger wholes free; ties end at the names. The choice depends on what is there, never on the order in which it is told.
"""

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

import msgspec

from madang.core import ChipId
from madang.model import Chip, ChipHealth

_TOLD_MAX = 8
"""Chips that a reason names; a longer text is not read."""
_DOMAIN_BUSES = 256
"""Buses of one PCI domain: chips in different domains are further apart than any two in one."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What one engine needs.

    Attributes:
        kinds: chip drivers that will do.
        chips: how many chips, given whole.
        cores: how many cores of one chip suffice; 0 asks for whole chips.
        memory_bytes: over all its chips, spread evenly.
    """

    kinds: tuple[str, ...]
    chips: int = 1
    cores: int = 0
    memory_bytes: int = 0

    @property
    def chip_memory_bytes(self) -> int:
        """Return what it needs of each chip."""
        return -(-self.memory_bytes // max(1, self.chips))


class Use(msgspec.Struct, frozen=True, kw_only=True):
    """A chip, or some of its cores (none named: all), that `holder` has."""

    chip_id: ChipId
    holder: str
    cores: tuple[int, ...] = ()
    memory_bytes: int = 0


class Allocation(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine gets: whole chips, or `cores` of the only one."""

    chip_ids: tuple[ChipId, ...]
    cores: tuple[int, ...] = ()


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why an engine gets nothing; `blocked` says of every chip of the right kind what is in the way."""

    reason: str
    blocked: tuple[tuple[ChipId, str], ...] = ()


class _Card(msgspec.Struct, frozen=True, kw_only=True):
    """Chips that are only given together, by id, and what is taken of them."""

    chips: tuple[Chip, ...]
    uses: tuple[Use, ...]

    @property
    def ids(self) -> tuple[ChipId, ...]:
        return tuple(chip.chip_id for chip in self.chips)

    @property
    def is_degraded(self) -> bool:
        return any(chip.health is ChipHealth.DEGRADED for chip in self.chips)

    @property
    def kind_and_model(self) -> tuple[str, str]:
        return self.chips[0].kind, self.chips[0].model


def is_shared(chip: Chip) -> bool:
    """Return whether several engines may use the same cores of a chip."""
    return chip.engines_max > 1 and not chip.core_sets


def have_common_core(one: Sequence[int], other: Sequence[int]) -> bool:
    """Return whether two parts of one chip, each some of its cores or (none named) all of it, overlap."""
    return not one or not other or not set(one).isdisjoint(other)


def choose_chips(
    ask: Ask, chips: Iterable[Chip], uses: Iterable[Use], closed: Mapping[ChipId, str] | None = None
) -> Allocation | Refusal:
    """Return what an engine gets on a node, or why it gets nothing.

    Something is found whenever something may be given. Cost is the square of the number of cards.

    Args:
        ask: what it needs.
        chips: all chips of the node.
        uses: what is taken.
        closed: chips that take nothing new, with the reason.
    """
    cards = _list_cards([chip for chip in chips if chip.kind in ask.kinds], list(uses))
    if not cards:
        return Refusal(reason=f"no chip of kind {_join(ask.kinds)} is here")
    blocked: dict[ChipId, str] = {}
    usable: list[_Card] = []
    for card in cards:
        why = _find_closed(card, closed or {})
        if not why:
            usable.append(card)
        blocked |= {chip_id: why for chip_id in card.ids if why}
    found = _choose_cores(ask, usable, blocked) if ask.cores else _choose_cards(ask, usable, blocked)
    return found if found is not None else _refuse(ask, cards, blocked)


def has_enough_cores(ask: Ask, given: Allocation, chips: Iterable[Chip]) -> bool:
    """Return whether what an engine has is what it would be given: as many cores as the smallest set that will do."""
    if not ask.cores:
        return not given.cores
    wholes = [chip for chip in chips if chip.chip_id in given.chip_ids]
    count = len(given.cores) or sum(chip.cores for chip in wholes)
    fitting = [len(one) for chip in wholes for one in chip.core_sets if len(one) >= ask.cores]
    return count >= ask.cores and count <= min(fitting, default=count)


def find_obstacle(
    chip_ids: Sequence[ChipId],
    cores: Sequence[int],
    chips: Iterable[Chip],
    uses: Iterable[Use],
    chip_memory_bytes: int = 0,
) -> str:
    """Return why exactly these chips or cores cannot be an engine's; empty when they can.

    Cordons and incompatible versions are not looked at: they keep nobody from where he is.

    Args:
        chip_ids: the chips.
        cores: of the only chip; empty for all.
        chips: all chips of the node.
        uses: what others have.
        chip_memory_bytes: what is needed of each chip.
    """
    known = {chip.chip_id: chip for chip in chips}
    if not chip_ids:
        return "no chip is named"
    missing = [chip_id for chip_id in chip_ids if chip_id not in known]
    if missing:
        return f"{_name(missing)} not on this node; it has {', '.join(sorted(known)) or 'none'}"
    wanted = [known[chip_id] for chip_id in chip_ids]
    if len({(chip.kind, chip.model) for chip in wanted}) > 1:
        return f"chips {', '.join(chip_ids)} are of several kinds or models; an engine runs on one"
    taken = list(uses)
    cards = [card for card in _list_cards(known.values(), taken) if set(card.ids) & set(chip_ids)]
    for card in cards:
        left_out = [chip_id for chip_id in card.ids if chip_id not in chip_ids]
        if left_out:
            return f"{', '.join(left_out)} is on the same card ({card.chips[0].group}) and is only given with it"
    failed = next((chip for chip in wanted if chip.health is ChipHealth.FAILED), None)
    if failed is not None:
        return f"chip {failed.chip_id} has failed: {failed.reason}"
    if cores:
        return _find_core_obstacle(cards, tuple(cores), chip_memory_bytes)
    return next(filter(None, (_find_whole_obstacle(card, chip_memory_bytes) for card in cards)), "")


# Cards


def _list_cards(chips: Iterable[Chip], uses: Sequence[Use]) -> list[_Card]:
    """Return the cards, by the name of their first chip."""
    grouped: dict[tuple[str, str, str], list[Chip]] = {}
    for chip in sorted(chips, key=lambda chip: chip.chip_id):
        key = (chip.kind, "group", chip.group) if chip.group else (chip.kind, "chip", chip.chip_id)
        grouped.setdefault(key, []).append(chip)
    return [
        _Card(chips=tuple(members), uses=tuple(use for use in uses if use.chip_id in {one.chip_id for one in members}))
        for members in grouped.values()
    ]


def _find_closed(card: _Card, closed: Mapping[ChipId, str]) -> str:
    """Return why a card takes nothing new, empty when it does; a card is as good as its worst chip."""
    models = sorted({chip.model for chip in card.chips})
    if len(models) > 1:
        return f"its card has chips of several models ({', '.join(models)}); an engine runs on one"
    for chip in card.chips:
        where = "" if len(card.chips) == 1 else f"{chip.chip_id} of its card "
        if chip.chip_id in closed:
            return f"{where}cordoned: {closed[chip.chip_id]}"
        if chip.is_cordoned:
            return f"{where}cordoned"
        if chip.health not in (ChipHealth.OK, ChipHealth.DEGRADED):
            return f"{where}not healthy ({chip.health}{': ' if chip.reason else ''}{chip.reason})"
        if chip.incompatibility:
            return f"{where}incompatible: {chip.incompatibility}"
    return ""


def _find_whole_obstacle(card: _Card, chip_memory_bytes: int) -> str:
    """Return why an open card cannot be given whole, or shared once more."""
    for chip in card.chips:
        mine = [use for use in card.uses if use.chip_id == chip.chip_id]
        if not is_shared(chip):
            if mine:
                return f"leased to {', '.join(sorted({use.holder for use in mine}))}"
            left_bytes = chip.memory_bytes
        else:
            if len(mine) >= chip.engines_max:
                return f"all {chip.engines_max} engine places are taken"
            left_bytes = chip.memory_bytes - sum(use.memory_bytes for use in mine)
        if left_bytes < chip_memory_bytes or chip.engines_max < 1:
            return _lack(chip_memory_bytes, left_bytes) if chip.engines_max else "all 0 engine places are taken"
    return ""


def _lack(needed_bytes: int, left_bytes: int) -> str:
    return f"needs {needed_bytes} bytes of a chip's memory and {max(0, left_bytes)} are left"


# Whole chips


def _choose_cards(ask: Ask, cards: Sequence[_Card], blocked: dict[ChipId, str]) -> Allocation | None:
    free: dict[tuple[str, str], list[_Card]] = {}
    for card in cards:
        why = _find_whole_obstacle(card, ask.chip_memory_bytes)
        if why:
            blocked |= dict.fromkeys(card.ids, why)
        else:
            free.setdefault(card.kind_and_model, []).append(card)
    sets = [
        (chosen, alike)
        for alike in free.values()
        if sum(len(card.chips) for card in alike) >= ask.chips
        for chosen in _list_near_sets(ask.chips, alike)
    ]
    if not sets:
        return None
    best, _ = min(sets, key=lambda pair: _rank_cards(ask, *pair))
    return Allocation(chip_ids=tuple(sorted(chip_id for card in best for chip_id in card.ids)))


def _list_near_sets(count: int, cards: Sequence[_Card]) -> Iterable[tuple[_Card, ...]]:
    """Yield for every card a set around it that has `count` chips at least, and no card that it could do without."""
    for anchor in cards:
        around = sorted(cards, key=lambda card, a=anchor: (card is not a, card.is_degraded, *_distance(a, card)))  # type: ignore[misc]
        chosen: list[_Card] = []
        for card in around:
            if sum(len(one.chips) for one in chosen) >= count:
                break
            chosen.append(card)
        for card in sorted(chosen, key=lambda card: -len(card.chips)):
            if sum(len(one.chips) for one in chosen) - len(card.chips) >= count:
                chosen.remove(card)
        yield tuple(sorted(chosen, key=lambda card: card.ids))


def _distance(one: _Card, other: _Card) -> tuple[bool, int, tuple[ChipId, ...]]:
    return one.chips[0].numa_node != other.chips[0].numa_node, abs(_bus(one) - _bus(other)), other.ids


def _bus(card: _Card) -> int:
    """Return the place of a card's bus among all buses; numbers close to each other mostly share a switch."""
    parts = card.chips[0].pci_address.split(":")
    if len(parts) != 3:
        return 0
    try:
        return int(parts[0], 16) * _DOMAIN_BUSES + int(parts[1], 16)
    except ValueError:
        return 0


def _rank_cards(ask: Ask, chosen: Sequence[_Card], alike: Sequence[_Card]) -> tuple[object, ...]:
    chips = [chip for card in chosen for chip in card.chips]
    nodes = {card.chips[0].numa_node for card in chosen}
    buses = [_bus(card) for card in chosen]
    uses = [use for card in chosen for use in card.uses]
    # Taking from the NUMA node that has the fewest left keeps room for an engine that needs many near each other.
    left_near = sum(card not in chosen and card.chips[0].numa_node in nodes for card in alike)
    return (
        sum(card.is_degraded for card in chosen),
        len(chips) - ask.chips,
        len(nodes),
        max(buses) - min(buses),
        Fraction(len(uses), max(1, sum(chip.engines_max for chip in chips))),
        Fraction(sum(use.memory_bytes for use in uses), max(1, sum(chip.memory_bytes for chip in chips))),
        left_near,
        tuple(chip.chip_id for chip in chips),
    )


# Cores


def _choose_cores(ask: Ask, cards: Sequence[_Card], blocked: dict[ChipId, str]) -> Allocation | None:
    options: list[tuple[tuple[object, ...], Allocation]] = []
    for card in cards:
        found = [cores for cores in _list_core_choices(card) if not _find_core_fault(ask, card, cores)]
        if not found:
            every = [_find_core_fault(ask, card, cores) for cores in _list_core_choices(card)]
            blocked |= dict.fromkeys(card.ids, every[-1])
        options += [(_rank_cores(ask, card, cores), Allocation(chip_ids=card.ids, cores=cores)) for cores in found]
    return min(options, key=lambda option: option[0])[1] if options else None


def _list_core_choices(card: _Card) -> list[tuple[int, ...]]:
    """Return the core sets that may be given of a card, and the whole card, as no set, last."""
    chip = card.chips[0]
    sets = sorted({tuple(sorted(one)) for one in chip.core_sets}) if len(card.chips) == 1 else []
    return [*(one for one in sets if len(one) < chip.cores), ()]


def _find_core_fault(ask: Ask, card: _Card, cores: tuple[int, ...]) -> str:
    count = len(cores) or sum(chip.cores for chip in card.chips)
    if count < ask.cores:
        return f"needs {ask.cores} cores and {count} can be given together"
    if cores:
        return _find_core_obstacle([card], cores, ask.memory_bytes)
    return _find_whole_obstacle(card, ask.chip_memory_bytes)


def _find_core_obstacle(cards: Sequence[_Card], cores: tuple[int, ...], memory_bytes: int) -> str:
    """Return why exactly these cores of an open chip cannot be given."""
    chip = cards[0].chips[0]
    if len(cards) > 1 or len(cards[0].chips) > 1:
        return "cores are given of one chip at a time"
    if tuple(sorted(cores)) not in {tuple(sorted(one)) for one in chip.core_sets}:
        return f"cores {_list(cores)} of chip {chip.chip_id} are not a set that may be given"
    for use in cards[0].uses:
        if have_common_core(use.cores, cores):
            return f"cores {_list(cores)} leased to {use.holder}"
    left_bytes = chip.memory_bytes * len(cores) // max(1, chip.cores)
    return _lack(memory_bytes, left_bytes) if left_bytes < memory_bytes else ""


def _rank_cores(ask: Ask, card: _Card, cores: tuple[int, ...]) -> tuple[object, ...]:
    chip = card.chips[0]
    taken = {core for use in card.uses for core in use.cores}
    given = set(cores) or set(range(sum(one.cores for one in card.chips)))
    free = [set(one) for one in chip.core_sets if not set(one) & taken]
    broken = sum(bool(one & given) for one in free)
    # A chip that is in use already comes first: what stays whole can still be given whole.
    return card.is_degraded, len(given) - ask.cores, -len(taken), broken, card.ids, cores


# Words


def _refuse(ask: Ask, cards: Sequence[_Card], blocked: Mapping[ChipId, str]) -> Refusal:
    free = sorted(chip_id for card in cards for chip_id in card.ids if chip_id not in blocked)
    what = f"{ask.cores} cores of a chip" if ask.cores else f"{ask.chips} chip{'s' if ask.chips > 1 else ''}"
    told = [f"{chip_id} {why}" for chip_id, why in sorted(blocked.items())]
    more = [f"and {len(told) - _TOLD_MAX} more"] if len(told) > _TOLD_MAX else []
    of_models = " of one model" if ask.chips > 1 else ""
    return Refusal(
        reason=f"needs {what} of kind {_join(ask.kinds)}{of_models}, {len(free)} can be given"
        + (": " if told else "")
        + "; ".join([*told[:_TOLD_MAX], *more]),
        blocked=tuple(sorted(blocked.items())),
    )


def _join(kinds: Iterable[str]) -> str:
    return " or ".join(sorted(kinds)) or "(none named)"


def _name(chip_ids: Sequence[ChipId]) -> str:
    return f"chip{'s' if len(chip_ids) > 1 else ''} {', '.join(chip_ids)} {'are' if len(chip_ids) > 1 else 'is'}"


def _list(cores: Sequence[int]) -> str:
    return ", ".join(str(core) for core in sorted(cores))
