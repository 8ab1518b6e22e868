"""What is asked for when the mains are gone: time bought first, then an orderly end while there is power for it.

Owns the proposer `power_loss`. Refuses to act. Called once a second with everything known.

    on battery          | at once: batch shed; after spill_after_s: spill
    rack by rack, the least urgent first, clinical last:
      drain             | when the runtime left covers only this rack's drain and the stops from here on
      stop              | when it is drained, or the runtime left covers only the stops from here on
    mains back          | for return_s without a break: nothing is shed, drained nodes resume;
                        | stopped ones when the battery has charge_back_percent

The runtime left is our own p10 estimate less a margin and the way of an order. A device's "battery low" alone starts
nothing: devices say it with a full battery. A runtime that nobody knows any more is the last one that was known, run
down `blind_speed` times as fast as time; one that was never known is `blind_runtime_s` from the loss on. Mains that
are lost while a UPS says that it is fed, as by a generator, shed batch only. Silence is not mains: what was lost stays
lost until a usable reading says otherwise.
"""

import msgspec

from madang.core import NodeId
from madang.model import NodeState, PriorityClass, Request, Verb
from madang.policy.facility.signs import Sign
from madang.policy.power.asking import ask_nodes, ask_shed, ask_spill
from madang.policy.power.topology import Topology
from madang.policy.power.view import NodeLoad, Signs, View, least_urgent_first, value_of

NAME = "power_loss"


class LossRules(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds; engineering values."""

    spill_after_s: float = 30.0
    margin_s: float = 60.0
    latency_s: float = 15.0
    return_s: float = 60.0
    charge_back_percent: float = 50.0
    blind_runtime_s: float = 180.0
    blind_speed: float = 2.0


class LossMemory(msgspec.Struct, frozen=True, kw_only=True):
    """Since when the mains are gone, since when back, and who was asked to drain and to stop on the way.

    Attributes:
        runtime_s, known_s: the last runtime that was known since the loss, and when.
    """

    lost_s: float | None = None
    back_s: float | None = None
    runtime_s: float | None = None
    known_s: float = 0.0
    draining: tuple[NodeId, ...] = ()
    stopping: tuple[NodeId, ...] = ()


def propose_loss(
    memory: LossMemory, view: View, signs: Signs, topology: Topology, rules: LossRules
) -> tuple[LossMemory, list[Request]]:
    """Return the next memory and what is asked for now."""
    is_lost = signs.says(Sign.UTILITY_LOST, Sign.ON_BATTERY)
    is_unheard = signs.is_silent(Sign.UTILITY_LOST) or signs.is_silent(Sign.ON_BATTERY)
    if is_lost and not signs.says(Sign.ON_BATTERY) and _is_ups_heard(signs, topology):
        # The UPS says that it is fed: by a generator, or for as long as nobody knows. No battery is counted yet.
        return _hold_on(msgspec.structs.replace(memory, back_s=None), topology, view)
    if is_lost:
        if memory.lost_s is None:
            memory = msgspec.structs.replace(memory, lost_s=view.now_s, runtime_s=None)
        memory = msgspec.structs.replace(memory, back_s=None)
        return _propose_battery(memory, view, topology, rules)
    if is_unheard:
        memory = msgspec.structs.replace(memory, back_s=None)
        return _propose_battery(memory, view, topology, rules) if memory.lost_s is not None else (memory, [])
    back_s = view.now_s if memory.back_s is None else memory.back_s
    memory = msgspec.structs.replace(memory, back_s=back_s)
    if view.now_s - back_s < rules.return_s:
        return _hold_on(memory, topology, view) if memory.lost_s is not None else (memory, [])
    return _propose_return(memory, view, rules)


def _is_ups_heard(signs: Signs, topology: Topology) -> bool:
    able = {
        point.equipment_id
        for point, readings in topology.sign_points
        if any(one.sign is Sign.ON_BATTERY for one in readings)
    }
    return bool(able - set(signs.silent.get(Sign.ON_BATTERY, ())))


def _hold_on(memory: LossMemory, topology: Topology, view: View) -> tuple[LossMemory, list[Request]]:
    """Keep asking for what was asked for, and for nothing more."""
    asked = [ask_shed(NAME, topology, PriorityClass.BATCH, reason="the mains were lost")]
    asked += ask_spill(NAME, topology, view, reason="the mains were lost")
    return memory, asked


def _propose_battery(
    memory: LossMemory, view: View, topology: Topology, rules: LossRules
) -> tuple[LossMemory, list[Request]]:
    assert memory.lost_s is not None
    on_battery_s = max(0.0, view.now_s - memory.lost_s)
    known_s = value_of(view.runtime_s)
    if known_s is not None:
        memory = msgspec.structs.replace(memory, runtime_s=known_s, known_s=view.now_s)
    left_s = _find_runtime_s(memory, view.now_s, rules) - rules.margin_s - rules.latency_s
    asked = [ask_shed(NAME, topology, PriorityClass.BATCH, reason="the mains are lost")]
    if on_battery_s >= rules.spill_after_s:
        asked += ask_spill(NAME, topology, view, reason="the mains are lost")
    draining, stopping = set(memory.draining), set(memory.stopping)
    stops_s = 0.0
    # From the last rack back: what has to be left when a rack's turn comes is known only so.
    for nodes in reversed(order_racks(view, topology)):
        loads = [view.nodes.get(node) or NodeLoad(node=node) for node in nodes]
        stops_s += max(load.stop_s for load in loads)
        if left_s <= stops_s + max(load.drain_s for load in loads):
            draining |= set(nodes)
        if left_s <= stops_s:
            stopping |= set(nodes)
        stopping |= {load.node for load in loads if load.node in draining and load.is_drained}
    memory = msgspec.structs.replace(
        memory, draining=tuple(sorted(draining | stopping)), stopping=tuple(sorted(stopping))
    )
    asked += ask_nodes(NAME, Verb.DRAIN, memory.draining, reason="the battery lasts only for an orderly end")
    asked += ask_nodes(NAME, Verb.STOP, memory.stopping, reason="the battery lasts only for an orderly end")
    return memory, asked


def _find_runtime_s(memory: LossMemory, now_s: float, rules: LossRules) -> float:
    """Return how long the battery lasts from now, in seconds, by what was last known of it."""
    if memory.runtime_s is not None:
        return memory.runtime_s - rules.blind_speed * max(0.0, now_s - memory.known_s)
    return rules.blind_runtime_s - max(0.0, now_s - (memory.lost_s or 0.0))


def recall_loss(memory: LossMemory, now_s: float, rules: LossRules) -> LossMemory:
    """Return what a program that begins anew should remember of an earlier life's loss of mains.

    A program that runs has power. When the battery that it left behind cannot have lasted until now, the mains were
    back meanwhile, whatever nobody has said yet; taken for lost, they would stop every node at the first look.
    """
    if memory.lost_s is None or _find_runtime_s(memory, now_s, rules) > 0.0:
        return memory
    return LossMemory()


def order_racks(view: View, topology: Topology) -> list[tuple[NodeId, ...]]:
    """Return the racks' nodes in the order in which they end: the rack whose most urgent node is least so first."""
    order = {node: place for place, node in enumerate(least_urgent_first(view, topology, topology.nodes))}
    racks = [nodes for nodes in topology.racks.values() if nodes]
    return sorted(racks, key=lambda nodes: max(order[node] for node in nodes))


def _propose_return(memory: LossMemory, view: View, rules: LossRules) -> tuple[LossMemory, list[Request]]:
    charge = value_of(view.charge_percent)
    is_charged = charge is not None and charge >= rules.charge_back_percent
    waiting = [
        node
        for node, load in view.nodes.items()
        if load.state is not NodeState.RUN and (is_charged or load.state is NodeState.DRAIN)
    ]
    is_done = all(load.state is NodeState.RUN for load in view.nodes.values())
    # Who was asked to go is remembered until all are back: the mains may be lost again on the way.
    memory = LossMemory(back_s=memory.back_s) if is_done else msgspec.structs.replace(memory, lost_s=None)
    return memory, ask_nodes(NAME, Verb.RESUME, sorted(waiting), reason="the mains are back")
