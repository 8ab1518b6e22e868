"""What each node may draw and whether it runs: read-backs, caps, drains, stops and starts.

Owns the electrical promise. With B(n) the most that node n can draw as far as read-backs show, at every instant and
for every breaker, panel, PDU, UPS and feed:

1. A cap is raised only while the sum of B over what hangs below, that rise included, and of the name plates of what is
   no node, stays within the planned load (80 % of the rating). B falls when a lower cap was read back and the draw is
   within it, and rises with the order, so an unconfirmed exchange of watts counts twice.
2. Nodes run together only where the sum of their name plates stays within what the breaker's curve bears for
   `REACT_S`, so that whatever BMCs ignore, there is time to stop somebody.
3. A node that draws more than its cap allows, whose cap is not confirmed or lost, counts with its name plate: others
   are lowered to make room, it is drained, then stopped.
4. A breaker that is measured above its rating twice is relieved at once: everybody to the least, and one node after
   another stopped, the least urgent first. One that nobody can read, nor the nodes below it, counts with name plates
   of those nodes against the whole rating.

It rests on these: no server draws more than its name plate; what is fed and not written in the model is nothing; of two
meters over one load, its own and the breaker's, at most one lies, and then the other one is read; a stop (by the node
program, the BMC or the outlet) acts within 20 s, ordered twice; stopped servers stay off when power returns (the BMC's
restore policy).

Refuses to know why somebody asks for what. Called by `policy.power.authority`.
"""

from madang.core import NodeId
from madang.model import NodeState, Verb
from madang.policy.power.authority_orders import is_borne, move_node, order_cap
from madang.policy.power.authority_reads import (
    Tell,
    is_fresh,
    is_off,
    is_unconfirmed,
    least_w_of,
    read_back,
    read_limit,
    want_state,
)
from madang.policy.power.budget import Claim, allot
from madang.policy.power.state import AUTHORITY, Work
from madang.policy.power.topology import Limit


def run_nodes(work: Work, tell: Tell) -> None:
    """Read back, find room, and order what follows; lowering before raising."""
    for node in work.topology.nodes:
        read_back(work, node, tell)
    for limit in work.topology.limits:
        read_limit(work, limit)
    claims = _make_claims(work)
    given, shut = _share(work, claims)
    _relieve(work, shut)
    _make_room_again(work, claims)
    for node in work.topology.nodes:
        move_node(work, node, tell)
    for node in work.topology.nodes:
        order_cap(work, node, given.get(node, least_w_of(work, node)), tell, is_raise=False)
    for node in reversed(work.order(given)):
        order_cap(work, node, given[node], tell, is_raise=True)


def _make_claims(work: Work) -> dict[NodeId, Claim]:
    claims = {}
    for node, spot in work.topology.nodes.items():
        load, book = work.view.nodes.get(node), work.nodes[node]
        if is_off(work, node):
            continue
        is_willing = load is not None and load.can_cap and not book.is_untrue and not is_unconfirmed(work, book)
        is_willing = is_willing and f"{node}.cap" in work.rules.armed
        if load is None or not is_willing:
            claims[node] = Claim(w_min=book.bound_w, w_max=book.bound_w, urgency=load.urgency if load else 0)
            continue
        least_w = least_w_of(work, node)
        most_w = min(load.cap_w_max or spot.name_plate_w, spot.name_plate_w, _asked_w(work, node))
        claims[node] = Claim(w_min=least_w, w_max=max(least_w, most_w), urgency=load.urgency)
    return claims


def _asked_w(work: Work, node: NodeId) -> float:
    """Return the lowest cap that anybody asked for, lapsed ones included: silence lifts none."""
    caps = [hold.request for hold in work.holds.values() if hold.request.verb is Verb.CAP]
    return min((one.value for one in caps if one.target == node and one.value is not None), default=float("inf"))


def _share(work: Work, claims: dict[NodeId, Claim]) -> tuple[dict[NodeId, float], tuple[NodeId, ...]]:
    """Return each node's cap and who has to go: breakers first, then what was asked for racks and the site."""
    limits = list(work.topology.limits)
    rooms_w = [_room_w(work, limit) for limit in limits]
    relieved = {node for limit in limits if work.limits[limit.equipment_id].over >= 2 for node in limit.nodes}
    squeezed = {
        node: Claim(w_min=one.w_min, w_max=one.w_min, urgency=one.urgency) if node in relieved else one
        for node, one in claims.items()
    }
    going = work.order(claims)
    going.sort(key=lambda node: not work.nodes[node].stops)
    _, shut = allot(limits, rooms_w, squeezed, going)
    staying = {node: one for node, one in squeezed.items() if node not in shut}
    for name, asked_w in _list_group_caps(work):
        nodes = work.topology.racks.get(name, tuple(work.topology.nodes))
        limits.append(
            Limit(equipment_id=name, rating_w=asked_w, plan_w=asked_w, bear_w=asked_w, fixed_w=0.0, nodes=nodes)
        )
        # What cannot go lower is no reason to stop anybody: the proposer asks for drains.
        rooms_w.append(max(asked_w, sum(staying[node].w_min for node in nodes if node in staying)))
    given, _ = allot(limits, rooms_w, staying, ())
    return given, shut


def _list_group_caps(work: Work) -> list[tuple[str, float]]:
    return [
        (hold.request.target, hold.request.value)
        for hold in work.holds.values()
        if hold.request.verb is Verb.CAP
        and hold.request.value is not None
        and (hold.request.target in work.topology.racks or hold.request.target == work.topology.site)
    ]


def _room_w(work: Work, limit: Limit) -> float:
    off = sum(work.nodes[node].bound_w for node in limit.nodes if is_off(work, node))
    return limit.plan_w - limit.fixed_w - off


def _relieve(work: Work, shut: tuple[NodeId, ...]) -> None:
    """Drain and stop who has to go."""
    for node in shut:
        want_state(work, node, NodeState.DRAIN, "no room under a breaker")
    for limit in work.topology.limits:
        for node in _list_beyond(work, limit, limit.bear_w, plates=True):
            want_state(work, node, NodeState.DRAIN, "more name plates than its breaker bears")
        _relieve_worst(work, limit)
        _relieve_measured(work, limit)


def _relieve_worst(work: Work, limit: Limit) -> None:
    """Mind what could be drawn where nobody reads what is; a breaker that is read is minded by that."""
    book = work.limits[limit.equipment_id]
    beyond = _list_beyond(work, limit, limit.rating_w, plates=False) if _is_blind(work, limit) else []
    if not beyond:
        work.change_limit(limit.equipment_id, worst_s=None)
        return
    since_s = work.now_s if book.worst_s is None else book.worst_s
    work.change_limit(limit.equipment_id, worst_s=since_s)
    waited_s = work.now_s - since_s
    if waited_s >= work.rules.grace_s / 2:
        state = NodeState.STOP if waited_s >= work.rules.grace_s else NodeState.DRAIN
        for node in beyond:
            want_state(work, node, state, "its breaker could be above its rating")


def _relieve_measured(work: Work, limit: Limit) -> None:
    book = work.limits[limit.equipment_id]
    # Each stop needs a reading of after the one before it; what nobody reads any more is `_relieve_worst`'s.
    if book.over < 2 or book.over_s - book.stopped_s < work.rules.confirm_s:
        return
    running = [node for node in limit.nodes if not work.nodes[node].stops]
    # Who ignores a cap goes before who obeys, whatever it serves: it is why all are in danger.
    order = work.order(running)
    order.sort(key=lambda node: not work.nodes[node].is_untrue)
    if order:
        want_state(work, order[0], NodeState.STOP, "its breaker is above its rating")
        work.change_limit(limit.equipment_id, stopped_s=work.now_s)


def _is_blind(work: Work, limit: Limit) -> bool:
    return not limit.meter or work.now_s - work.limits[limit.equipment_id].read_s > work.rules.blind_s


def _list_beyond(work: Work, limit: Limit, most_w: float, *, plates: bool) -> list[NodeId]:
    """Return who has to go so that the worst of the others stays within `most_w`."""
    is_blind = _is_blind(work, limit)
    worst = {}
    for node in limit.nodes:
        book, plate_w = work.nodes[node], work.topology.nodes[node].name_plate_w
        is_unseen = is_blind and work.now_s - book.read_s > work.rules.blind_s
        is_worst = not is_off(work, node) and (plates or is_unseen)
        worst[node] = plate_w if is_worst else book.bound_w
    total_w = limit.fixed_w + sum(worst.values())
    beyond = []
    order = work.order([node for node in limit.nodes if not is_off(work, node)])
    order.sort(key=lambda node: not work.nodes[node].stops)
    for node in order:
        if total_w <= most_w:
            break
        if worst[node] > work.rules.standby_w:
            beyond.append(node)
            total_w -= worst[node] - work.rules.standby_w
    return beyond


def _make_room_again(work: Work, claims: dict[NodeId, Claim]) -> None:
    """Let one node that went for want of room come back where there is room for it now, the most urgent first."""
    waiting = [
        node
        for node, book in work.nodes.items()
        if AUTHORITY in (*book.stops, *book.drains) and not book.is_untrue and is_fresh(work, node)
    ]
    for node in reversed(work.order(waiting)):
        load, plate_w = work.view.nodes[node], work.topology.nodes[node].name_plate_w
        least_w = least_w_of(work, node) if load.can_cap and f"{node}.cap" in work.rules.armed else plate_w
        trial = {**claims, node: Claim(w_min=least_w, w_max=least_w)}
        limits = work.topology.limits
        rooms_w = [_room_w(work, limit) for limit in limits]
        _, shut = allot(limits, rooms_w, trial, tuple(trial))
        if not shut and is_borne(work, node) and _is_calm(work, node):
            book = work.nodes[node]
            work.change(node, drains=_without(book.drains, AUTHORITY), stops=_without(book.stops, AUTHORITY))
            return


def _is_calm(work: Work, node: NodeId) -> bool:
    names = [work.topology.limits[i].equipment_id for i in work.topology.limits_of[node]]
    books = [work.limits[name] for name in names]
    calm_s = 10 * work.rules.confirm_s
    return all(book.over == 0 and book.worst_s is None and work.now_s - book.stopped_s > calm_s for book in books)


def _without(reasons: dict[str, str], who: str) -> dict[str, str]:
    return {name: why for name, why in reasons.items() if name != who}
