"""What the words of state points mean: on battery, leak, somebody inside.

Owns the one vocabulary that derived facts, alarms, proposers and the authority share. Refuses to know profiles: these
name their states in the words below, or name a point after a sign (`state_on_battery`) and say yes or no.
"""

from enum import StrEnum

import msgspec

from madang.model import EquipmentKind, Point, PointKind, Quantity, Sample

K = EquipmentKind


class Sign(StrEnum):
    """What a state point can tell."""

    UTILITY_LOST = "utility_lost"
    ON_BATTERY = "on_battery"
    BATTERY_LOW = "battery_low"
    OUTPUT_LOST = "output_lost"
    BREAKER_OPEN = "breaker_open"
    COOLING_LOST = "cooling_lost"
    LEAK = "leak"
    SMOKE = "smoke"
    FIRE_RELEASED = "fire_released"
    DOOR_FORCED = "door_forced"
    DOOR_OPEN = "door_open"
    OCCUPIED = "occupied"
    ISOLATE_ELECTRICAL = "isolate_electrical"
    ISOLATE_LIQUID = "isolate_liquid"


SAFETY = frozenset({Sign.LEAK, Sign.SMOKE, Sign.FIRE_RELEASED, Sign.DOOR_FORCED, Sign.DOOR_OPEN})
"""Signs of danger to people and equipment: whatever else is wrong, they speak for themselves."""

GIVES_NOTHING = (Sign.UTILITY_LOST, Sign.OUTPUT_LOST, Sign.BREAKER_OPEN, Sign.COOLING_LOST)
"""Signs by which equipment says that nothing comes from it."""


class _Row(msgspec.Struct, frozen=True):
    """Where a sign is looked for.

    Attributes:
        kinds: equipment that can show it by a word of a point of its own state.
        words: that mean it.
        names: parts of a point's name by which yes, or one of the words, means it.
        is_bound: such names count on equipment of these kinds only.
        takes_yes: a point of such a name means it by yes too. Of a part's own state yes means that it runs.
    """

    sign: Sign
    kinds: frozenset[EquipmentKind]
    words: frozenset[str]
    names: tuple[str, ...]
    is_bound: bool = False
    takes_yes: bool = True


def _row(
    sign: Sign,
    kinds: tuple[EquipmentKind, ...],
    words: str,
    names: str,
    *,
    is_bound: bool = False,
    takes_yes: bool = True,
) -> _Row:
    return _Row(sign, frozenset(kinds), frozenset(words.split()), tuple(names.split()), is_bound, takes_yes)


_COOLING = (K.COOLING_UNIT, K.CHILLER, K.CDU, K.PUMP)
_MAINS = (K.UTILITY, K.TRANSFER_SWITCH)
_ROWS = (
    _row(Sign.UTILITY_LOST, _MAINS, "lost absent failed outage dead off", "utility_lost mains_lost"),
    _row(Sign.UTILITY_LOST, _MAINS, "lost absent failed outage dead off", "power_lost", is_bound=True),
    _row(Sign.ON_BATTERY, (K.UPS,), "on_battery battery discharging ob", "on_battery"),
    _row(
        Sign.BATTERY_LOW, (K.UPS, K.BATTERY), "battery_low low depleted lb",
        "battery_low state_battery", is_bound=True,
    ),
    _row(Sign.OUTPUT_LOST, (K.UPS, K.RACK_PDU, K.PANEL), "off none output_off dead", "output_lost output_off"),
    _row(Sign.BREAKER_OPEN, (K.BREAKER,), "open tripped off", "breaker_open alarm_breaker"),
    _row(
        Sign.COOLING_LOST, _COOLING, "off failed fail fault stopped tripped lost critical",
        "cooling_lost alarm_compressor alarm_flow power_lost", is_bound=True,
    ),
    # A compressor that is merely off may be so because it is cool enough.
    _row(
        Sign.COOLING_LOST, _COOLING, "failed fail fault tripped locked_out", "state_compressor", is_bound=True,
        takes_yes=False,
    ),
    _row(Sign.LEAK, (K.LEAK_DETECTOR,), "leak wet detected leak_detected alarm warning critical", "leak"),
    _row(Sign.SMOKE, (K.SMOKE_DETECTOR,), "smoke gas detected fire alarm warning critical", "smoke"),
    _row(Sign.FIRE_RELEASED, (K.FIRE_SUPPRESSION,), "released discharged activated", "fire_released alarm_fire"),
    _row(
        Sign.DOOR_FORCED, (K.DOOR,), "forced forced_open intrusion tamper hardware_intrusion tampering_detected",
        "door_forced state_forced intrusion",
    ),
    _row(Sign.DOOR_OPEN, (K.DOOR,), "open held held_open", "door_open"),
    _row(
        Sign.OCCUPIED, (K.ROOM, K.INTERLOCK), "occupied inside present lockout locked_out",
        "occupied occupancy lockout",
    ),
    _row(Sign.ISOLATE_ELECTRICAL, (K.INTERLOCK,), "isolate_electrical", "isolate_electrical"),
    _row(Sign.ISOLATE_LIQUID, (K.INTERLOCK,), "isolate_liquid", "isolate_liquid"),
)  # fmt: skip
_OWN = frozenset({"state", "state_unit", "state_pump", "state_output", "state_source", "state_open", "state_mode"})
"""Points of the state of a whole piece of equipment. Of parts (a compressor that rests, an outlet that nobody uses, a
health that the maker sums up) words alone say too little: those count by their names only."""
_DETECTORS = frozenset({K.LEAK_DETECTOR, K.SMOKE_DETECTOR, K.DOOR})
_YES = frozenset({"yes", "on", "true", "active", "alarm", "1"})
_NO = frozenset({"no", "off", "false", "inactive", "normal", "ok", "clear", "0"})


def can_show(point: Point, kind: EquipmentKind) -> frozenset[Sign]:
    """Return the signs that a point of equipment of this kind can show; none for what is commanded."""
    if point.quantity is not Quantity.STATE or point.kind in (PointKind.COMMAND, PointKind.SETPOINT):
        return frozenset()
    named = frozenset(row.sign for row in _ROWS if _is_named(row, point, kind))
    if named or point.name not in _OWN:
        return named
    words = {_plain(word) for word in point.states.values()}
    return frozenset(row.sign for row in _ROWS if kind in row.kinds and (not words or words & row.words))


def words_of(sign: Sign, point: Point, kind: EquipmentKind) -> tuple[str, ...]:
    """Return the words of a point that mean a sign, sorted, for an alarm's rule."""
    named = _find_named(sign, point, kind)
    if named is None:
        return tuple(sorted(next(row for row in _ROWS if row.sign is sign).words))
    return tuple(sorted((_YES | named.words) - _NO if named.takes_yes else named.words))


class Reading(msgspec.Struct, frozen=True):
    """How one sign is read off a point; `is_bare`: a number without a word means it when it is not 0."""

    sign: Sign
    words: frozenset[str]
    is_bare: bool


def list_readings(point: Point, kind: EquipmentKind) -> tuple[Reading, ...]:
    """Return how each sign that a point can show is read.

    A detector that gives bare numbers means trouble by anything but 0; of other equipment nobody knows, unless the
    point is named after the sign.
    """
    made = []
    for sign in sorted(can_show(point, kind)):
        named = _find_named(sign, point, kind)
        is_bare = kind in _DETECTORS if named is None else named.takes_yes
        made.append(Reading(sign, frozenset(words_of(sign, point, kind)), is_bare))
    return tuple(made)


def read_signs(readings: tuple[Reading, ...], sample: Sample) -> frozenset[Sign]:
    """Return what a usable sample of a state point tells; nothing for a sample that is not usable."""
    return tell(readings, sample.value, sample.text) if sample.is_usable else frozenset()


def tell(readings: tuple[Reading, ...], value: float | None, word: str) -> frozenset[Sign]:
    """Return what a value of a state point and its word tell, whatever may be believed of them."""
    if value is None:
        return frozenset()
    plain = _plain(word)
    return frozenset(one.sign for one in readings if (plain in one.words if plain else one.is_bare and value != 0.0))


def _find_named(sign: Sign, point: Point, kind: EquipmentKind) -> _Row | None:
    return next((row for row in _ROWS if row.sign is sign and _is_named(row, point, kind)), None)


def _is_named(row: _Row, point: Point, kind: EquipmentKind) -> bool:
    return (kind in row.kinds or not row.is_bound) and any(part in point.name for part in row.names)


def _plain(word: str) -> str:
    return word.strip().lower().replace(" ", "_").replace("-", "_")
