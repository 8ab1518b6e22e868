"""What is ordered of each node: caps, drains, stops and starts, how often, and when one may be raised or started.

Owns the conditions of everything that lets a node draw more. Refuses to decide who has to go. Called by
`policy.power.authority_nodes` after it has found room.
"""

from madang.core import NodeId
from madang.model import ActionState, NodeState, Verb
from madang.policy.power.authority_reads import Tell, is_cap_read, is_fresh, is_off, state_of
from madang.policy.power.state import AUTHORITY, NodeBook, Work
from madang.policy.power.view import NodeLoad, is_read


def move_node(work: Work, node: NodeId, tell: Tell) -> None:
    """Order what leads to the state that is wanted."""
    load, book = work.view.nodes.get(node), work.nodes[node]
    if state_of(book) is not NodeState.RUN and book.drain_s is None:
        book = work.change(node, drain_s=work.now_s)
        tell(work, Verb.DRAIN, node, None, ActionState.SENT, _why(book))
    if load is not None and AUTHORITY in book.drains and not book.stops and _has_drained(work, load, book):
        # Nothing is kept up that has to go anyway once nobody is served by it.
        book = work.change(node, stops={AUTHORITY: book.drains[AUTHORITY]})
    if book.stops:
        _stop(work, node, load, tell)
    elif load is not None and load.is_on is False and book.is_stopped:
        _start(work, node, tell)
    elif state_of(book) is NodeState.RUN and book.drain_s is not None:
        work.change(node, drain_s=None, state_tries=0)
        tell(work, Verb.RESUME, node, None, ActionState.SENT, "nobody wants it drained any more")


def _has_drained(work: Work, load: NodeLoad, book: NodeBook) -> bool:
    return book.drain_s is not None and (load.is_drained or work.now_s - book.drain_s >= load.drain_s)


def _stop(work: Work, node: NodeId, load: NodeLoad | None, tell: Tell) -> None:
    book = work.nodes[node]
    if load is not None and load.is_on is False:
        if book.state_tries:
            work.change(node, state_tries=0)
            tell(work, Verb.STOP, node, None, ActionState.CONFIRMED, "")
        return
    pause_s = work.rules.confirm_s * min(max(book.state_tries, 1), 6)
    if book.state_tries and work.now_s - book.state_s < pause_s:
        return
    if book.state_tries >= 2:
        tell(work, Verb.STOP, node, None, ActionState.UNCONFIRMED, f"still on after {book.state_tries} orders")
    if tell(work, Verb.STOP, node, float(book.state_tries), ActionState.SENT, _why(book)):
        work.change(node, state_s=work.now_s, state_tries=book.state_tries + 1)


def _start(work: Work, node: NodeId, tell: Tell) -> None:
    book = work.nodes[node]
    if work.now_s - book.state_s < work.rules.confirm_s or not _may_start(work, node):
        return
    if tell(work, Verb.RESUME, node, None, ActionState.SENT, "started"):
        first_w = _first_w(work, node)
        work.change(node, state_s=work.now_s, drain_s=None, state_tries=0, bound_w=first_w, is_confirmed=False)


def _why(book: NodeBook) -> str:
    return "; ".join(f"{who}: {why}" for who, why in {**book.drains, **book.stops}.items())


def order_cap(work: Work, node: NodeId, want_w: float, tell: Tell, *, is_raise: bool) -> None:
    """Order a cap: a lower one at once and again until it is read back, a higher one where that is safe."""
    load, book = work.view.nodes.get(node), work.nodes[node]
    if load is None or not load.can_cap:
        return
    want_w, last_w = float(int(want_w)), book.ordered_w
    if is_raise:
        _raise_cap(work, node, want_w, tell)
        return
    if last_w is not None:
        want_w = min(want_w, last_w)
    is_new = last_w is None or want_w <= last_w - 1.0
    pause_s = work.rules.confirm_s * min(max(book.tries, 1), 6)
    is_due = not book.is_confirmed and work.now_s - book.ordered_s >= pause_s
    if not is_new and not is_due:
        return
    if not is_new:
        tell(work, Verb.CAP, node, want_w, ActionState.UNCONFIRMED, "not read back in time")
    why = "its share of what the breakers above it may carry" if is_new else "once more"
    if tell(work, Verb.CAP, node, want_w, ActionState.SENT, why):
        # An order to a BMC that does not answer says nothing of whether it obeys.
        tries = 1 if is_new else book.tries + is_read(load.cap_w)
        _note_order(work, node, want_w, tries=tries)


def _raise_cap(work: Work, node: NodeId, want_w: float, tell: Tell) -> None:
    book = work.nodes[node]
    if book.ordered_w is None or want_w <= book.ordered_w or not _may_raise(work, node, want_w):
        return
    if tell(work, Verb.CAP, node, want_w, ActionState.SENT, "room again"):
        work.change(node, bound_w=max(book.bound_w, want_w), raised_s=work.now_s)
        _note_order(work, node, want_w, tries=1)


def _note_order(work: Work, node: NodeId, cap_w: float, *, tries: int) -> None:
    book = work.nodes[node]
    since_s = work.now_s if book.is_confirmed or book.ordered_w is None else book.lowered_s
    work.change(node, ordered_w=cap_w, ordered_s=work.now_s, lowered_s=since_s, tries=tries, is_confirmed=False)


def _may_raise(work: Work, node: NodeId, want_w: float) -> bool:
    book = work.nodes[node]
    if book.is_untrue or not book.is_confirmed or book.stops or not is_fresh(work, node):
        return False
    if want_w < (book.ordered_w or 0.0) * 1.02 or work.now_s - book.raised_s < work.rules.raise_s:
        return False
    for i in work.topology.limits_of[node]:
        limit = work.topology.limits[i]
        others_w = sum(work.nodes[one].bound_w for one in limit.nodes if one != node)
        if limit.fixed_w + others_w + want_w > limit.plan_w:
            return False
    return True


def is_borne(work: Work, node: NodeId) -> bool:
    """Return whether every breaker above a node bears its name plate beside those of all that run."""
    for i in work.topology.limits_of[node]:
        limit = work.topology.limits[i]
        running = [one for one in limit.nodes if one == node or not is_off(work, one)]
        if limit.fixed_w + sum(work.topology.nodes[one].name_plate_w for one in running) > limit.bear_w:
            return False
    return True


def _may_start(work: Work, node: NodeId) -> bool:
    """Return whether what a node can draw when it is started fits beside what the others can draw now."""
    if not is_fresh(work, node) or not is_borne(work, node):
        return False
    first_w = _first_w(work, node)
    for i in work.topology.limits_of[node]:
        limit = work.topology.limits[i]
        others_w = sum(work.nodes[one].bound_w for one in limit.nodes if one != node)
        if limit.fixed_w + others_w + first_w > limit.plan_w:
            return False
    return True


def _first_w(work: Work, node: NodeId) -> float:
    """Return what a server can draw when it is started: its cap where its BMC holds that, else its name plate."""
    book = work.nodes[node]
    is_capped = not book.is_untrue and is_cap_read(work.view.nodes[node], book)
    return book.ordered_w if is_capped and book.ordered_w is not None else work.topology.nodes[node].name_plate_w
