"""What power, cooling and safety allow a site to do now, and what was asked and done about it.

Owns the shapes that proposers, the authority, the gateway's feed and the planner share. Refuses to know how any of
it is decided: `madang.policy.facility` does.
"""

from enum import StrEnum

import msgspec

from madang.core import NodeId, SiteId
from madang.model.facility import Quality
from madang.model.priority import PriorityClass


class SafetyState(StrEnum):
    """How the box is, worst first when several hold: `max(..., key=rank)`."""

    NORMAL = "normal"
    DEGRADED = "degraded"
    EMERGENCY = "emergency"
    ISOLATED = "isolated"

    @property
    def rank(self) -> int:
        """0 for normal."""
        return list(SafetyState).index(self)


class NodeState(StrEnum):
    """What a node may do."""

    RUN = "run"
    DRAIN = "drain"
    STOP = "stop"


class NodeEnvelope(msgspec.Struct, frozen=True, kw_only=True):
    """What one server may do; `power_w_max` None: nothing but its name plate limits it."""

    node: NodeId
    state: NodeState = NodeState.RUN
    power_w_max: float | None = None
    reason: str = ""


class RackEnvelope(msgspec.Struct, frozen=True, kw_only=True):
    """What one rack may draw; `derating` 1 is all of it, 0 nothing."""

    rack: str
    power_w_max: float | None = None
    derating: float = 1.0
    reason: str = ""


class Fact(msgspec.Struct, frozen=True, kw_only=True):
    """A derived number with what is needed to believe it.

    Attributes:
        value: None where it cannot be said; `reason` says why.
        age_s: of the oldest sample that it rests on.
    """

    value: float | None
    quality: Quality
    age_s: float = 0.0
    reason: str = ""


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """What a site may do now.

    A reader that finds it older than `valid_until_s` acts as if it said `shed_from` batch and no new placements:
    the safe thing, since nobody knows.

    Attributes:
        generation: higher is newer; receivers refuse older ones.
        shed_from: requests of this class and less urgent ones are refused with 429; None: nobody is.
        is_spilling: prefer peers for whatever residency lets go.
        accepts_placements: false while new replicas must not come.
        causes: what led here, the root cause first, as alarm keys or words.
    """

    site: SiteId
    generation: int
    issued_at_s: float
    valid_until_s: float
    safety: SafetyState = SafetyState.NORMAL
    shed_from: PriorityClass | None = None
    is_spilling: bool = False
    accepts_placements: bool = True
    power_w_max: float | None = None
    racks: tuple[RackEnvelope, ...] = ()
    nodes: tuple[NodeEnvelope, ...] = ()
    headroom_w: Fact = Fact(value=None, quality=Quality.BAD)
    runtime_s: Fact = Fact(value=None, quality=Quality.BAD)
    thermal_margin_k: Fact = Fact(value=None, quality=Quality.BAD)
    time_to_limit_s: Fact = Fact(value=None, quality=Quality.BAD)
    causes: tuple[str, ...] = ()
    is_simulated: bool = False


class Verb(StrEnum):
    """What can be asked of a site; fire suppression has none, it is only read."""

    CAP = "cap"
    UNCAP = "uncap"
    SHED = "shed"
    SPILL = "spill"
    DRAIN = "drain"
    STOP = "stop"
    RESUME = "resume"
    SETPOINT = "setpoint"
    ISOLATE_ELECTRICAL = "isolate_electrical"
    ISOLATE_LIQUID = "isolate_liquid"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What a proposer asks for.

    Attributes:
        request_id: repeating one is harmless.
        requester: the policy (`power_loss`, `thermal`, `peak_shaving`, …) or the person.
        target: node, rack, equipment, or the site's name.
        value: watts of a cap, rank of a class, setpoint; None where the verb has none.
        ttl_s: when it lapses unless it is asked for again.
        reason: for the audit.
    """

    request_id: str
    requester: str
    verb: Verb
    target: str
    value: float | None = None
    ttl_s: float = 30.0
    reason: str = ""


class ActionState(StrEnum):
    """How far an action came."""

    REFUSED = "refused"
    OBSERVED = "observed"
    """Its actuator is not armed: what would have been done was written down only."""
    AWAITING = "awaiting"
    """A second person or the interlock has not agreed yet."""
    SENT = "sent"
    CONFIRMED = "confirmed"
    """The read-back agrees."""
    UNCONFIRMED = "unconfirmed"
    LAPSED = "lapsed"


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a request."""

    action_id: str
    request: Request
    state: ActionState
    at_s: float
    until_s: float
    reason: str = ""
    before: float | None = None
    readback: float | None = None
