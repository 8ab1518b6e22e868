"""Who decides at a site: each request checked against the topology, the rules and what is known, and what follows.

Owns every decision on power, cooling and safety actuators, and the envelope. Refuses to propose, to act, and to know
the time. Called once a second by the site's facility shell, which stores the state, writes every action into the audit
and performs those in state SENT, in order.

What holds of every decision:

- Lowest cap wins; safety goes before cost: what one requester wants drained or stopped only that one or a person
  takes back, and only where nobody else wants it.
- Silence raises nothing: a cap that nobody asks for any more stays as it is until its requester or a person takes it
  back, and never lies above the node's share of its breakers; drains and stops stay likewise. Shedding and spilling
  lapse with their TTL, to batch shed while the site is not safe. BMCs keep the last cap when this program dies, and
  readers of an envelope that ran out shed batch by themselves. A setpoint falls back to its safe value, or is let go.
- Nothing is raised, resumed or taken back on readings that are stale or bad.
- While somebody is inside, a door is open or forced, or nobody can tell, nothing is switched: no isolation, no
  setpoint, no start. Caps, drains and orderly stops go on; they switch no circuit.
- Isolation wants the interlock's word or a second person's; a person ends it (RESUME of that equipment) when detectors
  are read and say that nothing is wrong any more.
- An actuator that is not armed is observed: what would have been done is told, and counted as not done.
- Fire suppression is read, never driven.
"""

import math
from collections.abc import Iterable

import msgspec

from madang.core import NodeId
from madang.model import Action, ActionState, EquipmentKind, PriorityClass, Request, Verb
from madang.policy.facility.signs import Sign
from madang.policy.power.authority_envelope import is_emergency, make_envelope
from madang.policy.power.authority_nodes import run_nodes
from madang.policy.power.authority_reads import is_fresh, state_of
from madang.policy.power.state import (
    AUTHORITY,
    POLICIES,
    Approve,
    AuthorityRules,
    AuthorityState,
    Decision,
    Hold,
    Work,
)
from madang.policy.power.topology import Topology
from madang.policy.power.view import View, read_all_signs

_ISOLATIONS = {Verb.ISOLATE_ELECTRICAL: Sign.ISOLATE_ELECTRICAL, Verb.ISOLATE_LIQUID: Sign.ISOLATE_LIQUID}
_SWITCHING = frozenset({Verb.SETPOINT, Verb.RESUME, *_ISOLATIONS})
_OF_NODES = frozenset({Verb.CAP, Verb.UNCAP, Verb.DRAIN, Verb.STOP, Verb.RESUME})
_LIQUID = frozenset({EquipmentKind.CDU, EquipmentKind.PUMP, EquipmentKind.CHILLER, EquipmentKind.COOLING_UNIT})
_ELECTRICAL = frozenset(
    {
        EquipmentKind.UTILITY,
        EquipmentKind.UPS,
        EquipmentKind.BATTERY,
        EquipmentKind.PANEL,
        EquipmentKind.BREAKER,
        EquipmentKind.RACK_PDU,
        EquipmentKind.TRANSFER_SWITCH,
        EquipmentKind.PHOTOVOLTAIC,
        EquipmentKind.GENERATOR,
    }
)
_TOLD_MAX = 4096


def decide(
    state: AuthorityState,
    requests: Iterable[Request],
    approvals: Iterable[Approve],
    view: View,
    topology: Topology,
    rules: AuthorityRules,
) -> Decision:
    """Return what is to be done now, what is refused and why, and the envelope.

    `requests` are what was asked since the last decision; repeating one is harmless and keeps it alive. The state is to
    be stored before the actions are performed.
    """
    work = Work(state, view, read_all_signs(view, topology), topology, rules)
    _lapse(work)
    for request in requests:
        _take(work, request)
    _approve(work, approvals)
    run_nodes(work, _tell)
    generation = max(state.generation + 1, int(view.now_s))
    envelope = make_envelope(work, generation)
    next_state = AuthorityState(
        holds=work.holds,
        nodes=work.nodes,
        limits=work.limits,
        ids=dict(list(work.ids.items())[-rules.ids_max :]),
        awaiting=work.awaiting,
        isolated=tuple(work.isolated),
        told=dict(list(work.told.items())[-_TOLD_MAX:]),
        generation=generation,
        started_s=state.started_s if state.started_s is not None else view.now_s,
    )
    return Decision(state=next_state, actions=tuple(work.actions), envelope=envelope)


def actuator_of(verb: Verb, target: str) -> str:
    """Return the name by which an actuator is armed: `node1.cap`, `node1.state`, `daegu.shed`, `cdu.isolate_liquid`."""
    if verb in (Verb.CAP, Verb.UNCAP):
        return f"{target}.cap"
    if verb in (Verb.DRAIN, Verb.STOP, Verb.RESUME):
        return f"{target}.state"
    return f"{target}.{verb.value}"


def is_locked_out(work: Work) -> str:
    """Return why nothing may be switched now; empty when it may."""
    if work.signs.says(Sign.OCCUPIED):
        return "somebody is inside"
    if work.signs.says(Sign.DOOR_FORCED, Sign.DOOR_OPEN):
        return "a door is open or was forced: somebody may be inside"
    if any(work.signs.is_silent(sign) for sign in (Sign.OCCUPIED, Sign.DOOR_OPEN, Sign.DOOR_FORCED)):
        return "nobody can tell whether somebody is inside: a door or presence point is not read"
    return ""


def _tell(work: Work, verb: Verb, target: str, value: float | None, state: ActionState, reason: str) -> bool:
    """Say what the authority itself orders, once for each change; returns whether it is to be performed."""
    is_armed = actuator_of(verb, target) in work.rules.armed
    if state is ActionState.SENT and not is_armed:
        state = ActionState.OBSERVED
    action_id = f"{AUTHORITY}/{verb.value}/{target}"
    told = f"{state.value}:{value}:{'' if state is ActionState.OBSERVED else work.now_s}"
    if work.told.get(action_id) != told:
        work.told.pop(action_id, None)
        work.told[action_id] = told
        shown = None if verb is Verb.STOP else value
        request = Request(
            request_id=f"{action_id}/{work.now_s:.3f}", requester=AUTHORITY, verb=verb, target=target, value=shown,
            reason=reason,
        )  # fmt: skip
        _say(work, request, state, work.now_s + work.rules.valid_s, reason)
    return is_armed


def _say(work: Work, request: Request, state: ActionState, until_s: float, reason: str = "") -> None:
    work.actions.append(
        Action(
            action_id=request.request_id,
            request=request,
            state=state,
            at_s=work.now_s,
            until_s=until_s,
            reason=reason or request.reason,
        )
    )


# Requests


def _key_of(request: Request) -> str:
    return f"{request.requester}/{request.verb.value}/{request.target}"


def _take(work: Work, request: Request) -> None:
    known = work.ids.get(request.request_id)
    is_other = known is not None and _key_of(known) + str(known.value) != _key_of(request) + str(request.value)
    reason = f"the id {request.request_id} was used for something else" if is_other else ""
    reason = reason or _find_reason(work, request)
    if reason:
        _refuse(work, request, reason)
        return
    work.ids.pop(request.request_id, None)
    work.ids[request.request_id] = request
    work.told.pop(f"refused/{_key_of(request)}", None)
    until_s = work.now_s + request.ttl_s
    match request.verb:
        case Verb.UNCAP:
            _uncap(work, request)
        case Verb.RESUME if request.target in work.isolated:
            _release(work, request)
        case Verb.RESUME:
            _resume(work, request)
        case Verb.DRAIN | Verb.STOP:
            _put_down(work, request)
        case Verb.ISOLATE_ELECTRICAL | Verb.ISOLATE_LIQUID:
            if request.target not in work.isolated:
                if request.request_id not in work.awaiting:
                    _say(work, request, ActionState.AWAITING, until_s, "the interlock or a second person has to agree")
                work.awaiting[request.request_id] = Hold(request=request, until_s=until_s)
        case _:
            _hold(work, request, until_s)


def _refuse(work: Work, request: Request, reason: str) -> None:
    """Say a refusal; the same one asked again each second is said once."""
    key = f"refused/{_key_of(request)}"
    if work.told.get(key) != f"{request.request_id}:{reason}":
        work.told[key] = f"{request.request_id}:{reason}"
        _say(work, request, ActionState.REFUSED, work.now_s, reason)


def _find_reason(work: Work, request: Request) -> str:
    """Return why a request is refused; empty when it is not."""
    if not 0.0 < request.ttl_s <= work.rules.ttl_s_max:
        return f"a TTL of {request.ttl_s:g} s is not within 0 to {work.rules.ttl_s_max:g} s"
    target = work.topology.equipment.get(request.target.partition(".")[0])
    if target is not None and target.kind is EquipmentKind.FIRE_SUPPRESSION:
        return "fire suppression is read, never driven"
    if request.verb in _SWITCHING and (lock := is_locked_out(work)) and not _is_idle_resume(work, request):
        return f"nothing is switched: {lock}"
    if request.verb is Verb.RESUME and request.target in work.isolated:
        return _find_reason_of_release(work, request)
    if request.verb in _OF_NODES:
        return _find_reason_of_nodes(work, request)
    if request.verb in _ISOLATIONS:
        kinds = _LIQUID if request.verb is Verb.ISOLATE_LIQUID else _ELECTRICAL
        if target is None or request.target != target.equipment_id or target.kind not in kinds:
            return f"{request.target} is nothing that {request.verb.value} can be asked of"
        return ""
    if request.verb is Verb.SETPOINT:
        return _find_reason_of_setpoint(work, request)
    return _find_reason_of_site(work, request)


def _find_reason_of_release(work: Work, request: Request) -> str:
    """Return why an isolation stays: only a person ends it, and only when what led to it is seen to be over."""
    if request.requester in POLICIES:
        return "what was isolated only a person brings back"
    causes = (Sign.LEAK, Sign.SMOKE, Sign.FIRE_RELEASED)
    if work.signs.says(*causes):
        return f"{request.target} stays isolated: leak, smoke or a released suppression is still told"
    if any(work.signs.is_silent(sign) for sign in causes):
        return f"{request.target} stays isolated: a detector is not read, so nobody can tell whether it is over"
    return ""


def _find_reason_of_site(work: Work, request: Request) -> str:
    if request.target != work.topology.site:
        return f"{request.verb.value} is asked of the site {work.topology.site}, not of {request.target}"
    if request.verb is Verb.SHED:
        ranks = [one.rank for one in PriorityClass]
        if request.value not in ranks:
            return f"shed wants the rank of a class, one of {ranks}"
        if request.value == PriorityClass.CLINICAL.rank and request.requester in POLICIES:
            return "the clinical class is not shed by any policy"
    return ""


def _find_reason_of_setpoint(work: Work, request: Request) -> str:
    allowed = work.rules.setpoints.get(request.target)
    if allowed is None or request.target not in work.topology.points:
        return f"{request.target} is no setpoint that the rules allow"
    if request.value is None or not allowed.low <= request.value <= allowed.high:
        return f"{request.target}: {request.value} is not within {allowed.low:g} to {allowed.high:g}"
    return ""


def _nodes_of(work: Work, target: str) -> tuple[NodeId, ...]:
    if target == work.topology.site:
        return tuple(work.topology.nodes)
    if target in work.topology.racks:
        return work.topology.racks[target]
    return (NodeId(target),) if target in work.topology.nodes else ()


def _find_reason_of_nodes(work: Work, request: Request) -> str:
    nodes = _nodes_of(work, request.target)
    if not nodes:
        return f"{request.target} is no node, rack or site here"
    if request.verb is Verb.CAP:
        return _find_reason_of_cap(work, request, nodes)
    if request.verb in (Verb.UNCAP, Verb.RESUME) and not _is_idle_resume(work, request):
        unread = [node for node in nodes if not is_fresh(work, node)]
        if unread:
            return f"no cap is lifted and nothing resumed on readings that are stale or bad: {', '.join(unread)}"
    if request.verb is Verb.RESUME and request.requester in POLICIES and is_emergency(work):
        return "no policy resumes anything in an emergency"
    return ""


def _find_reason_of_cap(work: Work, request: Request, nodes: tuple[NodeId, ...]) -> str:
    least_w = most_w = 0.0
    for node in nodes:
        load, plate_w = work.view.nodes.get(node), work.topology.nodes[node].name_plate_w
        if len(nodes) == 1 and (load is None or not load.can_cap):
            return f"{node} takes no caps: drain it instead"
        least_w += load.cap_w_min if load and load.can_cap else plate_w
        most_w += plate_w
    if request.value is None or not math.isfinite(request.value) or request.value <= 0.0:
        return f"a cap wants watts, not {request.value}"
    if len(nodes) == 1 and not least_w <= request.value <= most_w:
        return f"{request.target}: {request.value:g} W is not within {least_w:g} to {most_w:g} W: to go lower, drain it"
    return ""


# What is granted


def _hold(work: Work, request: Request, until_s: float) -> None:
    key = _key_of(request)
    before = work.holds.get(key)
    is_new = before is None or before.is_lapsed or before.request.value != request.value
    since_s = work.now_s if before is None or is_new else before.since_s
    work.holds[key] = Hold(request=request, until_s=until_s, since_s=since_s)
    if is_new:
        # Caps become orders to nodes, shedding and spilling are in the envelope; a setpoint is written.
        is_armed = request.verb is Verb.CAP or actuator_of(request.verb, request.target) in work.rules.armed
        granted = ActionState.SENT if request.verb is Verb.SETPOINT else ActionState.CONFIRMED
        _say(work, request, granted if is_armed else ActionState.OBSERVED, until_s)


def _uncap(work: Work, request: Request) -> None:
    """Take back one's own cap; a person takes back lapsed ones of others too."""
    for key, hold in list(work.holds.items()):
        if hold.request.verb is not Verb.CAP or hold.request.target != request.target:
            continue
        is_orphan = hold.is_lapsed and request.requester not in POLICIES
        if hold.request.requester == request.requester or is_orphan:
            del work.holds[key]
            _say(work, request, ActionState.CONFIRMED, work.now_s, f"taken back from {hold.request.requester}")


def _put_down(work: Work, request: Request) -> None:
    field = "drains" if request.verb is Verb.DRAIN else "stops"
    is_new = False
    for node in _nodes_of(work, request.target):
        reasons = getattr(work.nodes[node], field)
        if request.requester not in reasons:
            is_new = True
            work.change(node, **{field: {**reasons, request.requester: request.reason}})
    if is_new:
        _say(work, request, ActionState.CONFIRMED, work.now_s + request.ttl_s, "granted; the node's order follows")


def _is_idle_resume(work: Work, request: Request) -> bool:
    """Return whether there is nothing that this requester could take back; such requests are passed over."""
    if request.verb is not Verb.RESUME or request.requester not in POLICIES:
        return False
    books = [work.nodes[node] for node in _nodes_of(work, request.target)]
    return bool(books) and all(request.requester not in (*book.drains, *book.stops) for book in books)


def _resume(work: Work, request: Request) -> None:
    is_person = request.requester not in POLICIES
    for node in _nodes_of(work, request.target):
        book = work.nodes[node]
        mine = set(book.drains) | set(book.stops) if is_person else {request.requester}
        drains = {who: why for who, why in book.drains.items() if who not in mine}
        stops = {who: why for who, why in book.stops.items() if who not in mine}
        if (drains, stops) == (book.drains, book.stops):
            continue
        work.change(node, drains=drains, stops=stops)
        if is_person and book.is_untrue:
            work.change(node, is_untrue=False, tries=0, over=0, ordered_w=None)
        left = state_of(work.nodes[node])
        reason = "" if left.value == "run" else f"others still want it to {left.value}"
        _say(work, request, ActionState.CONFIRMED, work.now_s, reason)


def _release(work: Work, request: Request) -> None:
    """End an isolation; the shell writes the actuator's value at rest."""
    work.isolated.remove(request.target)
    is_armed = any(actuator_of(verb, request.target) in work.rules.armed for verb in _ISOLATIONS)
    _say(work, request, ActionState.SENT if is_armed else ActionState.OBSERVED, work.now_s + work.rules.valid_s)


def _lapse(work: Work) -> None:
    for key, hold in list(work.holds.items()):
        if hold.is_lapsed or work.now_s < hold.until_s:
            continue
        request = hold.request
        if request.verb is Verb.CAP:
            work.holds[key] = msgspec.structs.replace(hold, is_lapsed=True)
            _say(work, request, ActionState.LAPSED, work.now_s, "nobody asks for it any more: the cap stays")
            continue
        was_in_force = hold is _find_setpoint(work, request.target)
        del work.holds[key]
        _say(work, request, ActionState.LAPSED, work.now_s, "nobody asks for it any more")
        if was_in_force and request.target in work.rules.setpoints:
            _fall_back(work, request.target)
    for request_id, hold in list(work.awaiting.items()):
        if work.now_s >= hold.until_s:
            del work.awaiting[request_id]
            _say(work, hold.request, ActionState.LAPSED, work.now_s, "nobody agreed in time")


def _find_setpoint(work: Work, target: str) -> Hold | None:
    """Return the request that is in force for a setpoint: of those who ask for one the last to change its mind."""
    holds = [one for one in work.holds.values() if one.request.verb is Verb.SETPOINT and one.request.target == target]
    return max(holds, key=lambda one: one.since_s, default=None)


def _fall_back(work: Work, target: str) -> None:
    """Write what another one still wants of a setpoint, else its safe value, or let it go where it has none."""
    left = _find_setpoint(work, target)
    value = work.rules.setpoints[target].safe if left is None else left.request.value
    if left is not None:
        reason = f"back to what {left.request.requester} still asks for"
    else:
        reason = "back to its safe value" if value is not None else "let go: the device falls back by itself"
    _tell(work, Verb.SETPOINT, target, value, ActionState.SENT, reason)


def _approve(work: Work, approvals: Iterable[Approve]) -> None:
    who_of = {one.request_id: one.who for one in approvals}
    for request_id, hold in list(work.awaiting.items()):
        request = hold.request
        agreed = "the interlock" if work.signs.says(_ISOLATIONS[request.verb]) else who_of.get(request_id, "")
        if not agreed or agreed == request.requester or agreed in POLICIES:
            continue
        lock = is_locked_out(work)
        if lock:
            _refuse(work, request, f"nothing is switched: {lock}")
            continue
        del work.awaiting[request_id]
        is_armed = actuator_of(request.verb, request.target) in work.rules.armed
        if is_armed:
            work.isolated.append(request.target)
        state = ActionState.SENT if is_armed else ActionState.OBSERVED
        _say(work, request, state, hold.until_s, f"agreed to by {agreed}: {request.reason}")
