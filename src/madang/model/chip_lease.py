"""Who holds a chip, and why a chip takes nothing new: leases and cordons as node, site and people see them.

Owns their shapes. The life of a lease is `madang.machine.chip_lease`, the rules of automatic cordons are
`madang.machine.chip_watch`.
"""

from enum import StrEnum

import msgspec

from madang.core import ChipId, ReplicaId


class ChipLeaseState(StrEnum):
    """Where a lease stands; when it is over there is none."""

    LEASED = "leased"
    DRAINING = "draining"
    CLEARING = "clearing"
    """The engine is gone; the chip's memory was not seen to be free since."""


class ChipLease(msgspec.Struct, frozen=True, kw_only=True):
    """Chips, or cores of one chip, that a node has given to a replica and not got back yet.

    Attributes:
        cores: of the only chip; empty means all of the chips.
        memory_bytes: what the engine was promised of their memory.
        reason: why it is not over yet; empty while an engine runs in order.
    """

    holder: ReplicaId
    chip_ids: tuple[ChipId, ...]
    cores: tuple[int, ...] = ()
    state: ChipLeaseState = ChipLeaseState.LEASED
    memory_bytes: int = 0
    reason: str = ""


class CordonCause(StrEnum):
    """Why a chip takes nothing new."""

    BY_HAND = "by_hand"
    FAILED = "failed"
    DEGRADED = "degraded"
    THROTTLED = "throttled"
    INCOMPATIBLE = "incompatible"
    NOT_RELEASED = "not_released"
    """An engine does not end, or its memory was not freed."""
    ENGINE_DEATHS = "engine_deaths"


LEFT_BY_REPLICAS = frozenset({CordonCause.FAILED, CordonCause.NOT_RELEASED, CordonCause.ENGINE_DEATHS})
"""Causes under which an engine on the chip does no good: its replica moves when another place fits."""


class ChipCordon(msgspec.Struct, frozen=True, kw_only=True):
    """One reason for which a chip takes nothing new; a chip may have several.

    Attributes:
        reason: for people.
        by: `node` for a rule, else who did it.
        since_s: wall time.
        cores: where the reason lies, when it lies in some cores alone: the whole chip takes nothing new, but an engine
            on its other cores has no reason to leave. Empty: in the chip.
    """

    chip_id: ChipId
    cause: CordonCause
    reason: str
    by: str
    since_s: float
    cores: tuple[int, ...] = ()
