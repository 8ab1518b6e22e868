"""What happens to a node's chips and what their lease machine orders: events and effects of `machine.chip_lease`.

Owns their shapes.
"""

from dataclasses import dataclass

from madang.core import ChipId, ReplicaId
from madang.model import Chip

# Events


@dataclass(frozen=True, slots=True)
class Acquire:
    """A replica is about to start an engine on these chips; answered by Granted or Refused."""

    holder: ReplicaId
    chip_ids: tuple[ChipId, ...]
    cores: tuple[int, ...] = ()
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Adopt:
    """A replica's engine was found running on these chips; answered by Granted, or Refused when it must be ended."""

    holder: ReplicaId
    chip_ids: tuple[ChipId, ...]
    cores: tuple[int, ...] = ()
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Leaving:
    """The holder's engine is being drained or stopped."""

    holder: ReplicaId


@dataclass(frozen=True, slots=True)
class Staying:
    """The holder's engine serves after all."""

    holder: ReplicaId


@dataclass(frozen=True, slots=True)
class Gone:
    """No process of the holder's engine lives."""

    holder: ReplicaId


@dataclass(frozen=True, slots=True)
class Seen:
    """A driver answered: its chips, and the monotonic instant at which it was asked."""

    chips: tuple[Chip, ...]
    asked_ns: int


@dataclass(frozen=True, slots=True)
class Dismissed:
    """A person says that nothing is on this chip any more, whatever its memory says."""

    chip_id: ChipId


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = Acquire | Adopt | Leaving | Staying | Gone | Seen | Dismissed | Tick

# Effects


@dataclass(frozen=True, slots=True)
class Granted:
    """The holder has its chips: it may start one engine there once this is on disk."""

    holder: ReplicaId


@dataclass(frozen=True, slots=True)
class Refused:
    """The holder has nothing."""

    holder: ReplicaId
    reason: str


@dataclass(frozen=True, slots=True)
class Freed:
    """These chips or cores can be leased again."""

    chip_ids: tuple[ChipId, ...]


@dataclass(frozen=True, slots=True)
class Hold:
    """Cordon this chip: it, or these cores of it, were not given back within their time."""

    chip_id: ChipId
    reason: str
    cores: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Lift:
    """The reason of the last Hold is over."""

    chip_id: ChipId


Effect = Granted | Refused | Freed | Hold | Lift
