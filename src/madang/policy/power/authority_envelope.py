"""What a site says of itself: the envelope, made from what the authority knows and was asked.

Owns the step from holds, nodes and signs to the envelope. Refuses to decide on actuators. Called by
`policy.power.authority` at the end of each decision.
"""

from madang.core import NodeId
from madang.model import (
    Envelope,
    NodeEnvelope,
    NodeState,
    PriorityClass,
    RackEnvelope,
    SafetyState,
    Verb,
)
from madang.policy.facility.signs import Sign
from madang.policy.power.authority_reads import is_off, state_of
from madang.policy.power.state import Work
from madang.policy.power.view import value_of

_EMERGENCIES = (Sign.SMOKE, Sign.FIRE_RELEASED, Sign.LEAK)
_TROUBLES = (
    Sign.UTILITY_LOST,
    Sign.ON_BATTERY,
    Sign.BATTERY_LOW,
    Sign.OUTPUT_LOST,
    Sign.BREAKER_OPEN,
    Sign.COOLING_LOST,
    Sign.DOOR_FORCED,
)
_CAUSES_MAX = 16

RUNTIME_S_SHORT = 120.0
"""On battery with less than this left the site is in an emergency (engineering value)."""


def is_emergency(work: Work) -> bool:
    """Return whether something is wrong that stops whatever would make it worse."""
    if work.signs.says(*_EMERGENCIES):
        return True
    runtime_s = value_of(work.view.runtime_s)
    return work.signs.says(Sign.ON_BATTERY) and (runtime_s is None or runtime_s < RUNTIME_S_SHORT)


def find_safety(work: Work) -> SafetyState:
    """Return the worst state that holds."""
    if work.isolated:
        return SafetyState.ISOLATED
    if is_emergency(work):
        return SafetyState.EMERGENCY
    is_moved = any(state_of(book) is not NodeState.RUN for book in work.nodes.values())
    return SafetyState.DEGRADED if is_troubled(work) or is_moved else SafetyState.NORMAL


def is_troubled(work: Work) -> bool:
    """Return whether power, cooling or safety are less than whole, or nobody can tell."""
    if work.signs.says(*_TROUBLES, *_EMERGENCIES):
        return True
    return any(work.signs.is_silent(sign) for sign in (*_TROUBLES, *_EMERGENCIES))


def make_envelope(work: Work, generation: int) -> Envelope:
    """Return what the site may do now."""
    safety = find_safety(work)
    nodes = tuple(_make_node(work, node) for node in work.topology.nodes)
    watts = {one.node: one.power_w_max or 0.0 for one in nodes}
    racks = []
    for rack, members in work.topology.racks.items():
        plates_w = sum(work.topology.nodes[node].name_plate_w for node in members)
        allowed_w = sum(watts[node] for node in members)
        derating = min(1.0, allowed_w / plates_w) if plates_w else 1.0
        racks.append(RackEnvelope(rack=rack, power_w_max=allowed_w, derating=derating))
    return Envelope(
        site=work.topology.site,
        generation=generation,
        issued_at_s=work.now_s,
        valid_until_s=work.now_s + work.rules.valid_s,
        safety=safety,
        shed_from=_find_shed(work, safety),
        is_spilling=bool(_list_live(work, Verb.SPILL)),
        accepts_placements=not (work.isolated or is_troubled(work) or _list_live(work, Verb.SPILL)),
        power_w_max=sum(watts.values()),
        racks=tuple(racks),
        nodes=nodes,
        headroom_w=work.view.headroom_w,
        runtime_s=work.view.runtime_s,
        thermal_margin_k=work.view.thermal_margin_k,
        time_to_limit_s=work.view.time_to_limit_s,
        causes=_list_causes(work),
        is_simulated=work.view.is_simulated,
    )


def _make_node(work: Work, node: NodeId) -> NodeEnvelope:
    spot, book = work.topology.nodes[node], work.nodes[node]
    cap_w = spot.name_plate_w if book.ordered_w is None else min(book.ordered_w, spot.name_plate_w)
    is_armed = f"{node}.state" in work.rules.armed
    reason = "; ".join(f"{who}: {why}" for who, why in {**book.drains, **book.stops}.items())
    return NodeEnvelope(
        node=node,
        state=state_of(book) if is_armed else NodeState.RUN,
        power_w_max=0.0 if is_off(work, node) else cap_w,
        reason=reason if is_armed or not reason else f"observed only: {reason}",
    )


def _list_live(work: Work, verb: Verb) -> list[float | None]:
    """Return the values of what is asked for now by requests whose actuator is armed."""
    return [
        hold.request.value
        for hold in work.holds.values()
        if hold.request.verb is verb and f"{hold.request.target}.{verb.value}" in work.rules.armed
    ]


def _find_shed(work: Work, safety: SafetyState) -> PriorityClass | None:
    ranks = [int(value) for value in _list_live(work, Verb.SHED) if value is not None]
    if safety.rank >= SafetyState.EMERGENCY.rank and f"{work.topology.site}.shed" in work.rules.armed:
        ranks.append(PriorityClass.BATCH.rank)
    if not ranks:
        return None
    return next(one for one in PriorityClass if one.rank == min(ranks))


def _list_causes(work: Work) -> tuple[str, ...]:
    roots = [str(alarm.key) for alarm in work.view.alarms if alarm.is_active and alarm.cause is None]
    signs = [f"{name}: {sign.value}" for sign, names in sorted(work.signs.said.items()) for name in names]
    asked = [f"{hold.request.requester}: {hold.request.reason}" for hold in work.holds.values() if hold.request.reason]
    return tuple(dict.fromkeys([*roots, *signs, *asked]))[:_CAUSES_MAX]
