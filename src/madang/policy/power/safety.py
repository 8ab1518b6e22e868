"""What is asked for on leak, smoke and released fire suppression.

Owns the proposer `safety`. Refuses to act, and to end anything: what it brought down a person brings back. It keeps no
memory: what it asks for stands at the authority until then. Called once a second with everything known.
"""

from madang.core import NodeId
from madang.model import EquipmentKind, PriorityClass, Request, Verb
from madang.policy.facility.signs import Sign
from madang.policy.power.asking import ask, ask_nodes, ask_shed, ask_spill
from madang.policy.power.topology import Topology
from madang.policy.power.view import Signs, View

NAME = "safety"

_LIQUID = frozenset({EquipmentKind.CDU, EquipmentKind.PUMP})
_ROOTS = (EquipmentKind.UPS, EquipmentKind.PANEL, EquipmentKind.UTILITY)


def propose_safety(view: View, signs: Signs, topology: Topology) -> list[Request]:
    """Return what is asked for now."""
    asked: list[Request] = []
    for detector in signs.said.get(Sign.LEAK, ()):
        asked += _on_leak(detector, view, topology)
    fires = [*signs.said.get(Sign.SMOKE, ()), *signs.said.get(Sign.FIRE_RELEASED, ())]
    if fires:
        asked += _on_fire(fires, view, topology)
    return list({request.request_id: request for request in asked}.values())


def _on_leak(detector: str, view: View, topology: Topology) -> list[Request]:
    """Shut off the liquid that the detector watches, all of it where nobody wrote that down, and leave its nodes."""
    reason = f"leak at {detector}"
    liquid = [one.equipment_id for one in topology.equipment.values() if one.kind in _LIQUID]
    watched = [name for name in topology.measures.get(detector, ()) if name in liquid]
    targets = watched or liquid
    reached = frozenset().union(*(topology.cools[target] for target in targets)) if targets else frozenset()
    rack = topology.equipment[detector].rack
    nodes = [
        node
        for node, spot in topology.nodes.items()
        if spot.equipment_id in reached or (rack and spot.rack == rack)
    ]  # fmt: skip
    asked = [ask(NAME, Verb.ISOLATE_LIQUID, target, reason=reason) for target in targets]
    asked.append(ask_shed(NAME, topology, PriorityClass.BATCH, reason=reason))
    asked += ask_spill(NAME, topology, view, reason=reason)
    return asked + _leave(nodes, view, reason)


def _on_fire(fires: list[str], view: View, topology: Topology) -> list[Request]:
    """Leave every node and ask for the current to be cut, at the highest place that feeds them."""
    reason = f"smoke or fire at {', '.join(fires)}"
    asked = [ask_shed(NAME, topology, PriorityClass.BATCH, reason=reason)]
    asked += ask_spill(NAME, topology, view, reason=reason)
    for kind in _ROOTS:
        roots = [one.equipment_id for one in topology.equipment.values() if one.kind is kind]
        if roots:
            asked += [ask(NAME, Verb.ISOLATE_ELECTRICAL, root, reason=reason) for root in roots]
            break
    return asked + _leave(list(topology.nodes), view, reason)


def _leave(nodes: list[NodeId], view: View, reason: str) -> list[Request]:
    drained = [node for node in nodes if node in view.nodes and view.nodes[node].is_drained]
    asked = ask_nodes(NAME, Verb.DRAIN, nodes, reason=reason)
    return asked + ask_nodes(NAME, Verb.STOP, drained, reason=reason)
