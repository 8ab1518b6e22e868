"""Alarms: what they are named, how they stand, the rules that make them and what is written down of them.

Owns the shapes, and the states of ISA-18.2 / IEC 62682. Refuses to know when an alarm changes: `madang.machine.alarm`
does.
"""

from enum import StrEnum

import msgspec

from madang.core import SiteId


class AlarmPriority(StrEnum):
    """How soon a person has to act."""

    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"

    @property
    def rank(self) -> int:
        """0 for the most urgent."""
        return list(AlarmPriority).index(self)


class AlarmState(StrEnum):
    """How an alarm stands for the operator.

    The last three lie over the first four, which go on beneath: an alarm that is taken from its shelf while its
    condition holds is unacknowledged.
    """

    NORMAL = "normal"
    UNACKNOWLEDGED = "unacknowledged"
    ACKNOWLEDGED = "acknowledged"
    RETURNED = "returned"
    """The condition is over and nobody has acknowledged that it was."""
    SHELVED = "shelved"
    SUPPRESSED = "suppressed"
    """By design: another alarm, its root cause, says the same."""
    OUT_OF_SERVICE = "out_of_service"


class Condition(StrEnum):
    """What is wrong with a point or a piece of equipment."""

    HIGH = "high"
    HIGH_HIGH = "high_high"
    LOW = "low"
    LOW_LOW = "low_low"
    STATE = "state"
    RATE = "rate"
    DISCREPANCY = "discrepancy"
    READING_LOST = "reading_lost"
    """The point gives no usable reading."""
    COMMS_LOSS = "comms_loss"
    """No point of the equipment does, or none of those that one of its devices reads."""


class AlarmRole(StrEnum):
    """What an alarm can explain, or be explained by, along the graph of a site."""

    NONE = "none"
    """Nothing explains it: leak, smoke, doors."""
    SUPPLY = "supply"
    """The supply is weaker: on battery, one feed gone. What it feeds goes on."""
    OUTAGE = "outage"
    """What it feeds has no power."""
    COOLING = "cooling"
    TEMPERATURE = "temperature"
    READING = "reading"
    SILENCE = "silence"


class AlarmKey(msgspec.Struct, frozen=True):
    """The name of an alarm.

    Attributes:
        point: the point's id; empty where the whole equipment is meant.
        condition: a `Condition`, or of a state what it says: `on_battery`, `door_forced`; where one of several devices
            is silent, `comms_loss:` and its name.
    """

    site: SiteId
    equipment: str
    point: str
    condition: str

    def __str__(self) -> str:
        return f"{self.site}/{self.equipment}/{self.point or '-'}/{self.condition}"


class AlarmRule(msgspec.Struct, frozen=True, kw_only=True):
    """When an alarm is raised and when it is over.

    Attributes:
        limit: of HIGH, LOW and their stronger kinds in the point's unit; of RATE a change in a minute, either way;
            of DISCREPANCY the difference from `other`.
        words: of STATE: words, lower case, that mean trouble; a number without a word is trouble when it is not 0.
        is_rise: of RATE: a rise alone counts; what fell is a counter that began anew, and is compared from there.
        other: of DISCREPANCY: the point to compare with.
        over: of COMMS_LOSS: the points that one of several devices reads; empty for all of the equipment.
        deadband: how far inside the limit the value must come back, in the point's unit.
        on_delay_s: how long the condition must hold before the alarm is raised.
        off_delay_s: how long it must be seen to be over before the alarm returns.
        is_latching: it stays active until a person resets it after the condition is over.
        title_ko, title_en: what the operator reads.
        source: where the numbers come from.
    """

    key: AlarmKey
    condition: Condition
    priority: AlarmPriority
    limit: float = 0.0
    words: tuple[str, ...] = ()
    is_rise: bool = False
    other: str = ""
    over: tuple[str, ...] = ()
    deadband: float = 0.0
    on_delay_s: float = 0.0
    off_delay_s: float = 0.0
    is_latching: bool = False
    role: AlarmRole = AlarmRole.NONE
    title_ko: str = ""
    title_en: str = ""
    source: str = ""


class Alarm(msgspec.Struct, frozen=True, kw_only=True):
    """One alarm as others see it.

    Attributes:
        is_active: the condition holds, or it latches; also while shelved, suppressed or out of service.
        is_known: false while its point gives no usable reading: the state is the last one known, not the present.
        t_raise_s, t_ack_s: wall time; None before.
        cause: its root cause, while that is active.
        cause_of: the alarms whose root cause it is.
        is_chattering: it came and went too often; it is held until it has been quiet.
        value: what raised it.
    """

    key: AlarmKey
    priority: AlarmPriority
    state: AlarmState
    is_active: bool
    is_known: bool = True
    t_raise_s: float | None = None
    t_ack_s: float | None = None
    acknowledged_by: str = ""
    shelved_until_s: float | None = None
    cause: AlarmKey | None = None
    cause_of: tuple[AlarmKey, ...] = ()
    is_chattering: bool = False
    value: float | None = None
    title_ko: str = ""
    title_en: str = ""


class JournalEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One transition of one alarm.

    Attributes:
        sequence: counts from 1 at each site, without holes.
        what: `raised`, `returned`, `acknowledged`, `shelved`, …
        who: the person; empty for the machine.
    """

    sequence: int
    at_s: float
    key: AlarmKey
    what: str
    was: AlarmState
    now: AlarmState
    who: str = ""
    reason: str = ""
    value: float | None = None
