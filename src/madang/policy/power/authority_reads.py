"""What read-backs show of each node and breaker: what it may draw, whether it obeys, whether it is off.

Owns the bound on each node's draw: how it falls and rises. Refuses to order anything. Called by
`policy.power.authority_nodes` before it looks for room.
"""

from collections.abc import Callable

from madang.core import NodeId
from madang.model import ActionState, NodeState, Verb
from madang.policy.power.state import AUTHORITY, NodeBook, Work
from madang.policy.power.topology import Limit
from madang.policy.power.view import NodeLoad, is_read, sample_of, value_of

Tell = Callable[[Work, Verb, str, float | None, ActionState, str], bool]
"""Say an order or what became of it; returns whether it is to be performed (its actuator is armed)."""


def state_of(book: NodeBook) -> NodeState:
    """Return what a node is to do."""
    if book.stops:
        return NodeState.STOP
    return NodeState.DRAIN if book.drains else NodeState.RUN


def is_off(work: Work, node: NodeId) -> bool:
    """Return whether a node that is to be stopped was seen to be off."""
    if not work.nodes[node].stops or node not in work.switchable:
        return False
    load = work.view.nodes.get(node)
    return load is not None and load.is_on is False


def is_fresh(work: Work, node: NodeId) -> bool:
    """Return whether a node's draw and cap are read, and every metered breaker above it is."""
    load = work.view.nodes.get(node)
    if load is None or value_of(load.power_w) is None or not is_read(load.cap_w):
        return False
    meters = [work.topology.limits[i].meter for i in work.topology.limits_of[node]]
    return all(sample_of(work.view, work.topology, meter) is not None for meter in meters if meter)


def least_w_of(work: Work, node: NodeId) -> float:
    """Return the lowest cap that a node's BMC takes; its name plate where nothing is known of it."""
    load, plate_w = work.view.nodes.get(node), work.topology.nodes[node].name_plate_w
    return min(load.cap_w_min, plate_w) if load else plate_w


def want_state(work: Work, node: NodeId, state: NodeState, reason: str) -> None:
    """Note that the authority itself wants a node drained or stopped."""
    book = work.nodes[node]
    if state is NodeState.STOP and AUTHORITY not in book.stops:
        work.change(node, stops={**book.stops, AUTHORITY: reason})
    elif state is NodeState.DRAIN and AUTHORITY not in book.drains:
        work.change(node, drains={**book.drains, AUTHORITY: reason})


def is_unconfirmed(work: Work, book: NodeBook) -> bool:
    """Return whether a lower cap waits for its read-back longer than it may."""
    if book.is_confirmed or book.ordered_w is None or book.bound_w <= book.ordered_w + 1.0:
        return False
    return work.now_s - book.lowered_s >= work.rules.tries_max * work.rules.confirm_s


def read_back(work: Work, node: NodeId, tell: Tell) -> None:
    """Compare what was ordered of a node with what is read, and bound what it may draw."""
    load, book, plate_w = work.view.nodes.get(node), work.nodes[node], work.topology.nodes[node].name_plate_w
    if load is None:
        return
    power_w, cap_w = value_of(load.power_w), value_of(load.cap_w)
    if node not in work.old.nodes and load.is_on is False:
        # Why it is off is not known any more: it comes back like one that went for want of room.
        book = work.change(node, stops={AUTHORITY: "it was off when the authority began"})
    if power_w is not None:
        book = work.change(node, read_s=work.now_s)
    if is_off(work, node):
        book = work.change(node, bound_w=min(work.rules.standby_w, plate_w), over=0, is_stopped=True)
        if not book.is_confirmed and is_cap_read(load, book):
            work.change(node, is_confirmed=True, tries=0)
            tell(work, Verb.CAP, node, book.ordered_w, ActionState.CONFIRMED, "")
        return
    if load.is_on and book.is_stopped:
        book = work.change(node, is_stopped=False)
    if load.is_on is not False and _was_off(work, book):
        book = work.change(node, bound_w=plate_w, is_confirmed=False)
    if is_read(load.cap_w):
        book = _compare_cap(work, node, cap_w, power_w, tell)
    _watch_draw(work, node, load, power_w)


def is_cap_read(load: NodeLoad, book: NodeBook) -> bool:
    """Return whether a BMC says that it holds the cap that was ordered, or a lower one."""
    cap_w = value_of(load.cap_w)
    return cap_w is not None and book.ordered_w is not None and cap_w <= book.ordered_w + 1.0


def _was_off(work: Work, book: NodeBook) -> bool:
    """Return whether a bound is that of a server that is off."""
    return book.bound_w <= work.rules.standby_w


def _compare_cap(work: Work, node: NodeId, cap_w: float | None, power_w: float | None, tell: Tell) -> NodeBook:
    book, plate_w = work.nodes[node], work.topology.nodes[node].name_plate_w
    if book.ordered_w is None and cap_w is not None and not book.is_untrue:
        # A cap from an earlier life: it is taken for ours, and has to be shown true like any other.
        book = work.change(node, ordered_w=cap_w, ordered_s=work.now_s, lowered_s=work.now_s, tries=1)
    if cap_w is None or book.ordered_w is None or cap_w > book.ordered_w + 1.0:
        lost_w = plate_w if cap_w is None else min(plate_w, cap_w)
        since_s = work.now_s if book.is_confirmed else book.lowered_s
        return work.change(node, bound_w=max(book.bound_w, lost_w), lowered_s=since_s, is_confirmed=False)
    is_within = power_w is not None and power_w <= _allowed_w(work, book.ordered_w)
    # A BMC shows a cap before it acts: what is lower counts only when it had the time to, and was measured since.
    waited_s = work.now_s - work.view.nodes[node].power_w.age_s - book.ordered_s
    is_seen = book.ordered_w >= book.bound_w or waited_s >= work.rules.act_s
    if not book.is_confirmed and is_within and is_seen and not book.is_untrue:
        book = work.change(node, bound_w=book.ordered_w, is_confirmed=True, tries=0)
        tell(work, Verb.CAP, node, book.ordered_w, ActionState.CONFIRMED, "")
    return book


def _watch_draw(work: Work, node: NodeId, load: NodeLoad, power_w: float | None) -> None:
    book, plate_w = work.nodes[node], work.topology.nodes[node].name_plate_w
    observed_s = work.now_s - load.power_w.age_s
    if power_w is not None and observed_s > book.over_s:
        is_over = book.bound_w < plate_w and power_w > _allowed_w(work, book.bound_w)
        book = work.change(node, over=book.over + 1 if is_over else 0, over_s=observed_s)
    if not book.is_untrue and (book.over >= 2 or _is_ignored(work, book, load)):
        book = work.change(node, is_untrue=True, is_confirmed=False, over=0)
    if book.is_untrue:
        work.change(node, bound_w=plate_w)
        want_state(work, node, NodeState.DRAIN, "it ignores its cap")
    elif is_unconfirmed(work, book):
        want_state(work, node, NodeState.DRAIN, "its cap cannot be confirmed")


def _is_ignored(work: Work, book: NodeBook, load: NodeLoad) -> bool:
    """Return whether a BMC that answers was told its cap as often as it is worth, and does not hold or keep it."""
    is_late = work.now_s - book.ordered_s >= work.rules.confirm_s
    is_seen = value_of(load.power_w) is not None and is_read(load.cap_w)
    return is_seen and is_late and book.tries >= work.rules.tries_max and is_unconfirmed(work, book)


def _allowed_w(work: Work, cap_w: float) -> float:
    return cap_w * (1.0 + work.rules.tolerance_ratio) + work.rules.tolerance_w


def read_limit(work: Work, limit: Limit) -> None:
    """Count the readings in a row in which a breaker is above its rating."""
    sample = sample_of(work.view, work.topology, limit.meter) if limit.meter else None
    book = work.limits[limit.equipment_id]
    if sample is not None and sample.value is not None and sample.observed_at_s > book.over_s:
        over = book.over + 1 if sample.value > limit.rating_w else 0
        work.change_limit(limit.equipment_id, read_s=work.now_s, over=over, over_s=sample.observed_at_s)
