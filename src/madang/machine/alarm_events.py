"""What happens to a site's alarms and what their machine orders: events and effects of `machine.alarm`.

Owns their shapes.
"""

from dataclasses import dataclass

import msgspec

from madang.model import AlarmKey, AlarmPriority, JournalEntry, Sample


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """One message about one alarm, to one channel.

    Attributes:
        notice_id: repeating one is harmless.
        channel: `webhook`, `email`, or what else the settings name.
        level: 0 for those on duty; each escalation goes one further.
        what: `raised`, `returned`, `escalated`, `flood`.
    """

    notice_id: str
    channel: str
    level: int
    key: AlarmKey
    priority: AlarmPriority
    what: str
    at_s: float
    text_ko: str
    text_en: str


# Events


@dataclass(frozen=True, slots=True)
class Sampled:
    """Points were read."""

    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; at least once a second."""


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """A person has seen it."""

    key: AlarmKey
    who: str


@dataclass(frozen=True, slots=True)
class Reset:
    """A person says that what a latching alarm stood for is over."""

    key: AlarmKey
    who: str


@dataclass(frozen=True, slots=True)
class Shelve:
    """A person does not want to hear of it until then."""

    key: AlarmKey
    who: str
    until_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class Unshelve:
    """A person wants to hear of it again."""

    key: AlarmKey
    who: str


@dataclass(frozen=True, slots=True)
class TakeOut:
    """A person works on it: out of service until it is put back."""

    key: AlarmKey
    who: str
    reason: str


@dataclass(frozen=True, slots=True)
class PutBack:
    """The work is done."""

    key: AlarmKey
    who: str


@dataclass(frozen=True, slots=True)
class Delivered:
    """A notice has arrived."""

    notice_id: str


@dataclass(frozen=True, slots=True)
class Undelivered:
    """A notice could not be delivered."""

    notice_id: str
    reason: str


Event = (
    Sampled
    | Tick
    | Acknowledge
    | Reset
    | Shelve
    | Unshelve
    | TakeOut
    | PutBack
    | Delivered
    | Undelivered
)  # fmt: skip

# Effects


@dataclass(frozen=True, slots=True)
class Write:
    """Put this into the journal; it is on disk before any notice is sent."""

    entry: JournalEntry


@dataclass(frozen=True, slots=True)
class Send:
    """Deliver this; answered by Delivered or Undelivered."""

    notice: Notice


@dataclass(frozen=True, slots=True)
class Refuse:
    """What a person asked for cannot be done."""

    key: AlarmKey
    reason: str


Effect = Write | Send | Refuse
