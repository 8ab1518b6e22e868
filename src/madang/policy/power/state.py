"""What the authority remembers between two decisions, what it is told, and what it answers.

Owns the shapes that survive the site program. Refuses to decide: `policy.power.authority` does.
"""

from collections.abc import Iterable

import msgspec

from madang.core import NodeId
from madang.model import Action, Envelope, Request
from madang.policy.power.topology import Topology
from madang.policy.power.view import Signs, View, least_urgent_first

POLICIES = ("power_loss", "thermal", "safety", "feed_headroom", "peak_shaving", "demand_response")
"""Names of requesters that are no persons; the shell gives them to nobody else."""

AUTHORITY = "authority"
"""The requester of what the authority does by itself."""


class Setpoint(msgspec.Struct, frozen=True, kw_only=True):
    """What may be written to one setpoint, and what it falls back to when nobody asks any more.

    Attributes:
        safe: None: the command is let go, and the device falls back by itself.
    """

    low: float
    high: float
    safe: float | None


class AuthorityRules(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds; times in seconds, engineering values unless said otherwise.

    Attributes:
        armed: actuators that are armed, as `actuator_of` names them; all others are observed only.
        setpoints: by point.
        ttl_s_max: of a request.
        act_s: how long a lowered cap may take to act after it can be read back: a BMC took 5.5 s to act where that
            was timed.
        confirm_s: until a cap must be read back and kept: that, and one poll.
        tries_max: how often a cap is ordered to a BMC that answers before it counts as ignored.
        blind_s: how long a node or a breaker may be unread before what they might draw is counted instead.
        grace_s: how long a breaker may be over its worst case before nodes are stopped without waiting for drains.
        raise_s: least time between two rises of one node's cap.
        tolerance_ratio, tolerance_w: by which a draw may exceed its cap: meters' errors and a controller's ripple.
        standby_w: what a server draws that is off.
        valid_s: how long an envelope holds.
        ids_max: request ids that are remembered.
    """

    armed: frozenset[str] = frozenset()
    setpoints: dict[str, Setpoint] = {}
    ttl_s_max: float = 900.0
    act_s: float = 6.0
    confirm_s: float = 12.0
    tries_max: int = 2
    blind_s: float = 30.0
    grace_s: float = 30.0
    raise_s: float = 30.0
    tolerance_ratio: float = 0.05
    tolerance_w: float = 20.0
    standby_w: float = 30.0
    valid_s: float = 10.0
    ids_max: int = 1024


class Approve(msgspec.Struct, frozen=True, kw_only=True):
    """A second person agrees to a request; the shell has made sure who it is."""

    request_id: str
    who: str


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """A request that was granted.

    Attributes:
        since_s: since when this value is asked for; of several who want a setpoint the latest is in force.
        is_lapsed: nobody asks for it any more, and nobody took it back.
    """

    request: Request
    until_s: float
    since_s: float = 0.0
    is_lapsed: bool = False


class NodeBook(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one node.

    Attributes:
        bound_w: the most that it can draw, as far as read-backs show; the name plate until a cap was confirmed.
        ordered_w, ordered_s, tries: the last cap, when it was ordered and how often.
        lowered_s: since when it waits for that cap to be read back, orders that were repeated included.
        is_confirmed: that cap was read back, and the draw is within it.
        raised_s: when its cap was last raised.
        over, over_s: readings in a row above what it may draw, and the instant of the last.
        is_untrue: it ignores its cap: counted with its name plate until a person has resumed it.
        read_s: when its own meter was last read.
        drains, stops: who wants that, and why.
        drain_s: since when it drains.
        state_s, state_tries: when stop or start was last ordered and how often.
        is_stopped: it was seen off after a stop, and not on since.
    """

    bound_w: float
    ordered_w: float | None = None
    ordered_s: float = 0.0
    lowered_s: float = 0.0
    tries: int = 0
    is_confirmed: bool = False
    raised_s: float = 0.0
    over: int = 0
    over_s: float = 0.0
    is_untrue: bool = False
    read_s: float = 0.0
    drains: dict[str, str] = {}
    stops: dict[str, str] = {}
    drain_s: float | None = None
    state_s: float = 0.0
    state_tries: int = 0
    is_stopped: bool = False


class LimitBook(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one limit.

    Attributes:
        read_s: when its meter was last read.
        over, over_s: readings in a row above the rating, and the instant of the last reading.
        worst_s: since when its worst case is above the rating.
        stopped_s: when a node was last stopped for it.
    """

    read_s: float = 0.0
    over: int = 0
    over_s: float = 0.0
    worst_s: float | None = None
    stopped_s: float = 0.0


class AuthorityState(msgspec.Struct, frozen=True, kw_only=True):
    """Everything; `told`: the last state of each action, so that each change is said once."""

    holds: dict[str, Hold] = {}
    nodes: dict[NodeId, NodeBook] = {}
    limits: dict[str, LimitBook] = {}
    ids: dict[str, Request] = {}
    awaiting: dict[str, Hold] = {}
    isolated: tuple[str, ...] = ()
    told: dict[str, str] = {}
    generation: int = 0
    started_s: float | None = None


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What follows: actions in the order in which they are to be taken; those in state SENT are to be performed."""

    state: AuthorityState
    actions: tuple[Action, ...]
    envelope: Envelope


class Work:
    """One decision while it is made."""

    def __init__(
        self, state: AuthorityState, view: View, signs: Signs, topology: Topology, rules: AuthorityRules
    ) -> None:
        self.old = state
        self.view = view
        self.signs = signs
        self.topology = topology
        self.rules = rules
        self.now_s = view.now_s
        self.holds = dict(state.holds)
        self.nodes = {
            node: state.nodes.get(node) or NodeBook(bound_w=spot.name_plate_w, read_s=view.now_s)
            for node, spot in topology.nodes.items()
        }
        self.limits = {
            one.equipment_id: state.limits.get(one.equipment_id) or LimitBook(read_s=view.now_s)
            for one in topology.limits
        }
        self.ids = dict(state.ids)
        self.awaiting = dict(state.awaiting)
        self.isolated = list(state.isolated)
        self.told = dict(state.told)
        self.actions: list[Action] = []
        order = least_urgent_first(view, topology, topology.nodes)
        self.switchable = frozenset(node for node in topology.nodes if f"{node}.state" in rules.armed)
        self._places = {node: place for place, node in enumerate(order)}

    def order(self, nodes: Iterable[NodeId]) -> list[NodeId]:
        """Return nodes in the order in which they go, as `least_urgent_first` does."""
        return sorted(nodes, key=self._places.__getitem__)

    def change(self, node: NodeId, **changes: object) -> NodeBook:
        """Replace what is known of a node."""
        book = msgspec.structs.replace(self.nodes[node], **changes)
        self.nodes[node] = book
        return book

    def change_limit(self, name: str, **changes: object) -> LimitBook:
        """Replace what is known of a limit."""
        book = msgspec.structs.replace(self.limits[name], **changes)
        self.limits[name] = book
        return book
