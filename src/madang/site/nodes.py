"""What the site knows of its nodes, and what it wants of each.

Owns the newest observation of every node, cordons, plans with their generations, and the stored form of the last
two. Refuses to talk to nodes: `node_link` does. Called by the node links, the planner, the feed and the API.
"""

from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from madang.core import Clock, NodeId, SiteId, ns_to_s
from madang.model import ChipCordon, ReplicaObserved, ReplicaSpec
from madang.policy.placement import NodeView, Unplaced
from madang.site.facility.allowed import Allowed
from madang.site.signal import Signal
from madang.site.tables import NODE
from madang.wire.node_api import NodeObserved, NodePlan

OFFERED_UNTIL_S = 30.0
"""A node program that is silent so long is not being restarted: its engines are not offered to the gateway any more."""
LOST_AFTER_S = 120.0
"""After it the node's replicas are planned elsewhere, if another node has room."""

_READINGS: dict[str, Any] = {
    "memory_free_bytes": None,
    "utilisation": None,
    "temperature_c": None,
    "power_w": None,
    "clock_mhz": None,
    "throttle_reasons": (),
    "observed_at_s": 0.0,
}
"""What of a chip changes with every reading."""

_plan_encoder = msgspec.json.Encoder()
_plan_decoder = msgspec.json.Decoder(NodePlan)


class NodeState(msgspec.Struct, kw_only=True):
    """One node; mutable, owned by the site's event loop.

    Attributes:
        plan: what it shall run, as decided last; None until anything was decided.
        observed: newest observation of this life; None until one came.
        heard_ns: monotonic instant of the newest answer of any kind.
        since_ns: monotonic instant since which it is waited for, for a node not heard yet.
        trouble: why it does not answer; empty when it does.
        reason: why people cordoned it.
        chip_cordons: chips of it that people cordoned.
    """

    name: NodeId
    since_ns: int
    is_cordoned: bool = False
    is_draining: bool = False
    plan: NodePlan | None = None
    observed: NodeObserved | None = None
    heard_ns: int | None = None
    trouble: str = ""
    reason: str = ""
    chip_cordons: tuple[ChipCordon, ...] = ()


class NodeBook:
    """All nodes of the site."""

    def __init__(self, names: tuple[str, ...], clock: Clock, allowed: Allowed | None = None) -> None:
        """Start with nodes that were not heard.

        Attributes:
            nodes: by name; exactly those of the settings.
            unplaced: replicas without a place, from the newest plan.
            changed: rises when a replica, a chip's state, a cordon or a plan changes; not with every reading.
        """
        self._clock = clock
        self._allowed = Allowed(clock) if allowed is None else allowed
        self.nodes = {NodeId(name): NodeState(name=NodeId(name), since_ns=clock.monotonic_ns()) for name in names}
        self.unplaced: tuple[Unplaced, ...] = ()
        self.changed = Signal()

    def load(self, stored: dict[NodeId, tuple[bool, bool, NodePlan | None]]) -> None:
        """Take what an earlier life stored; nodes that left the settings are ignored."""
        for name, (is_cordoned, is_draining, plan) in stored.items():
            node = self.nodes.get(name)
            if node is not None:
                node.is_cordoned, node.is_draining, node.plan = is_cordoned, is_draining, plan

    def hear(self, name: NodeId, observed: NodeObserved) -> None:
        """Take an observation."""
        node = self.nodes[name]
        before, node.observed = node.observed, observed
        was_offered = self.silence_s(node) <= OFFERED_UNTIL_S
        node.heard_ns = self._clock.monotonic_ns()
        node.trouble = ""
        if before is None or not was_offered or _matter(before) != _matter(observed):
            self.changed.rise()

    def silence_s(self, node: NodeState) -> float:
        """Return how long a node has not answered, in seconds."""
        since_ns = node.since_ns if node.heard_ns is None else node.heard_ns
        return ns_to_s(self._clock.monotonic_ns() - since_ns)

    def views(self) -> tuple[NodeView, ...]:
        """Return the nodes as the planner sees them: what the envelope forbids is forbidden here."""
        limited, is_open = self._allowed.nodes(), self._allowed.accepts_placements()
        return tuple(
            NodeView(
                node=node.name,
                chips=node.observed.chips if node.observed is not None else (),
                is_observed=node.observed is not None,
                is_cordoned=node.is_cordoned or node.name in limited or not is_open,
                is_draining=node.is_draining or node.name in limited,
                is_lost=node.observed is not None and self.silence_s(node) > LOST_AFTER_S,
                cordons=self.cordons(node),
                leases=node.observed.leases if node.observed is not None else (),
            )
            for node in self.nodes.values()
        )

    def plans(self) -> dict[NodeId, tuple[ReplicaSpec, ...]]:
        """Return what each node was told last."""
        return {node.name: node.plan.replicas for node in self.nodes.values() if node.plan is not None}

    def node_cordons(self, node: NodeState) -> tuple[ChipCordon, ...]:
        """Return the chips that a node's own rules cordoned."""
        return node.observed.cordons if node.observed is not None else ()

    def cordons(self, node: NodeState) -> tuple[ChipCordon, ...]:
        """Return every cordon of a node's chips, by rule and by hand, by chip and cause."""
        return tuple(
            sorted((*self.node_cordons(node), *node.chip_cordons), key=lambda cordon: (cordon.chip_id, cordon.cause))
        )

    def chip_rows(self) -> list[dict[str, Any]]:
        """Return the chips of all nodes that were heard, each with its cordons and who holds it.

        A cordoned node's chips count as cordoned.
        """
        rows = []
        for node in self.nodes.values():
            for chip in node.observed.chips if node.observed is not None else ():
                cordons = [one for one in self.cordons(node) if one.chip_id == chip.chip_id]
                reasons = [f"{one.cause}: {one.reason}" for one in cordons]
                reasons += [f"node cordoned{': ' if node.reason else ''}{node.reason}"] if node.is_cordoned else []
                leases = node.observed.leases if node.observed is not None else ()
                rows.append(
                    {
                        **msgspec.to_builtins(chip),
                        "is_cordoned": chip.is_cordoned or bool(reasons),
                        "cordon_reason": "; ".join(reasons),
                        "cordons": msgspec.to_builtins(cordons),
                        "leases": [msgspec.to_builtins(one) for one in leases if chip.chip_id in one.chip_ids],
                    }
                )
        return rows

    def node_rows(self) -> list[dict[str, Any]]:
        """Return what people ordered of each node."""
        return [
            {
                "node": node.name,
                "is_cordoned": node.is_cordoned,
                "is_draining": node.is_draining,
                "cordon_reason": node.reason,
            }
            for node in self.nodes.values()
        ]

    def replicas(self) -> tuple[ReplicaObserved, ...]:
        """Return every replica that was seen, engine keys included; for this site's own use."""
        return tuple(
            replica for node in self.nodes.values() if node.observed is not None for replica in node.observed.replicas
        )

    def offered(self) -> tuple[ReplicaObserved, ...]:
        """Return the replicas that the gateway may be told of: those of nodes that answered lately."""
        return tuple(
            replica
            for node in self.nodes.values()
            if node.observed is not None and self.silence_s(node) <= OFFERED_UNTIL_S
            for replica in node.observed.replicas
        )

    @property
    def is_complete(self) -> bool:
        """Return whether every node was heard in this life."""
        return all(node.observed is not None for node in self.nodes.values())


def _matter(observed: NodeObserved) -> object:
    """Return what of an observation somebody acts on: all but progress and readings."""
    chips = [msgspec.structs.replace(chip, **_READINGS) for chip in observed.chips]
    replicas = [msgspec.structs.replace(replica, progress=None) for replica in observed.replicas]
    return (observed.boot_id, observed.plan_generation, chips, replicas, observed.leases, observed.cordons)


def make_plan(site: SiteId, node: NodeState, replicas: tuple[ReplicaSpec, ...]) -> NodePlan | None:
    """Return the plan that a node should have when it has to be another than it is, else None.

    A node that holds a newer generation than ours has it from an earlier database of this site: ours goes above it.
    """
    held = node.observed.plan_generation if node.observed is not None else 0
    generation = node.plan.generation if node.plan is not None else 0
    is_same = node.plan is not None and node.plan.replicas == replicas
    if is_same and held <= generation:
        return None
    return NodePlan(site=site, node=node.name, generation=max(held, generation) + 1, replicas=replicas)


def read_nodes(connection: sa.Connection) -> dict[NodeId, tuple[bool, bool, NodePlan | None]]:
    """Return cordon, drain and plan of every stored node; a plan that cannot be read counts as none."""
    found: dict[NodeId, tuple[bool, bool, NodePlan | None]] = {}
    for row in connection.execute(sa.select(NODE)):
        plan: NodePlan | None = None
        if row.plan:
            try:
                plan = _plan_decoder.decode(row.plan)
            except msgspec.MsgspecError:
                # Written by another release: the node's own generation then lifts the next one above it.
                plan = None
        found[NodeId(row.name)] = (row.is_cordoned, row.is_draining, plan)
    return found


def write_plan(connection: sa.Connection, plan: NodePlan, now_s: float) -> None:
    """Store a plan before it is handed out, so that no generation is ever used for two."""
    values = {"plan_generation": plan.generation, "plan": _plan_encoder.encode(plan), "changed_at_s": now_s}
    statement = insert(NODE).values(name=plan.node, is_cordoned=False, is_draining=False, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_=values))


def write_cordon(
    connection: sa.Connection, name: NodeId, *, is_cordoned: bool, is_draining: bool, now_s: float
) -> None:
    """Store whether a node takes new replicas and whether it is to be emptied."""
    values = {"is_cordoned": is_cordoned, "is_draining": is_draining, "changed_at_s": now_s}
    statement = insert(NODE).values(name=name, plan_generation=0, plan=b"", **values)
    connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_=values))
