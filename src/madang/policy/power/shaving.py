"""What is asked for to spare breakers and money: feeds' headroom, the 15-minute peak, demand response.

Owns the proposers `feed_headroom`, `peak_shaving` and `demand_response`. They are of one kind: a power that should not
be exceeded, and caps by which it is not. Refuse to act and to know prices. Called once a second with everything known.
"""

import msgspec

from madang.core import NodeId
from madang.model import PriorityClass, Request
from madang.policy.power.asking import ask_caps, ask_shed, ask_site_cap, cap_of
from madang.policy.power.budget import Claim, allot
from madang.policy.power.topology import Limit, Topology
from madang.policy.power.view import View, least_urgent_first, sample_of, value_of

HEADROOM = "feed_headroom"
PEAK = "peak_shaving"
RESPONSE = "demand_response"


class HeadroomRules(msgspec.Struct, frozen=True, kw_only=True):
    """As parts of the planned load: where caps begin and aim at, and where they end after `calm_s` (engineering)."""

    begin: float = 1.0
    aim: float = 0.95
    end: float = 0.85
    calm_s: float = 120.0


class HeadroomMemory(msgspec.Struct, frozen=True, kw_only=True):
    """By limit that was exceeded: what its nodes were capped to, and since when it has been calm."""

    caps_w: dict[str, dict[NodeId, float]] = {}
    calm_s: dict[str, float] = {}


def propose_headroom(
    memory: HeadroomMemory, view: View, topology: Topology, rules: HeadroomRules
) -> tuple[HeadroomMemory, list[Request]]:
    """Return caps that bring each metered feed back under its planned load, taken from the less urgent first.

    A meter that is not read changes nothing: what was asked for is asked for on.
    """
    caps_w, calm_s = dict(memory.caps_w), dict(memory.calm_s)
    for limit in topology.limits:
        sample = sample_of(view, topology, limit.meter) if limit.meter else None
        if sample is None or sample.value is None:
            continue
        name = limit.equipment_id
        if sample.value > rules.begin * limit.plan_w:
            shares_w = _share(limit, sample.value - rules.aim * limit.plan_w, view, topology)
            caps_w[name] = shares_w or caps_w.get(name, {})
            calm_s.pop(name, None)
        elif name in caps_w and sample.value < rules.end * limit.plan_w:
            if view.now_s - calm_s.setdefault(name, view.now_s) >= rules.calm_s:
                del caps_w[name], calm_s[name]
        else:
            calm_s.pop(name, None)
    wanted_w: dict[str, float] = {}
    for shares_w in caps_w.values():
        for node, watts in shares_w.items():
            wanted_w[node] = min(watts, wanted_w.get(node, watts))
    asked = ask_caps(HEADROOM, wanted_w, view, reason="a feed is above its planned load")
    return HeadroomMemory(caps_w=caps_w, calm_s=calm_s), asked


def _share(limit: Limit, excess_w: float, view: View, topology: Topology) -> dict[NodeId, float]:
    """Return caps that together are `excess_w` below what the limit's nodes draw now."""
    claims = {}
    for node in limit.nodes:
        load = view.nodes.get(node)
        power_w = value_of(load.power_w) if load else None
        least_w = cap_of(load, topology.nodes[node].name_plate_w, 0.0)
        if load is not None and power_w is not None and least_w is not None:
            claims[node] = Claim(w_min=least_w, w_max=max(least_w, power_w), urgency=load.urgency)
    room_w = sum(claim.w_max for claim in claims.values()) - excess_w
    room_w = max(room_w, sum(claim.w_min for claim in claims.values()))
    given, _ = allot([limit], [room_w], claims, least_urgent_first(view, topology, claims))
    return given


class PeakRules(msgspec.Struct, frozen=True, kw_only=True):
    """Attributes.

    target_w: mean power of an interval that must not be exceeded; 0: no shaving.
    begin, end: parts of what is still allowed at which caps begin and end (engineering values).
    shed: part beyond which batch is shed too.
    """

    target_w: float = 0.0
    begin: float = 0.95
    end: float = 0.8
    shed: float = 1.1
    calm_s: float = 60.0


class PeakMemory(msgspec.Struct, frozen=True, kw_only=True):
    """Whether caps are asked for, and since when they would not be needed."""

    is_shaving: bool = False
    calm_s: float | None = None


def propose_peak(
    memory: PeakMemory, view: View, topology: Topology, rules: PeakRules
) -> tuple[PeakMemory, list[Request]]:
    """Return what keeps the running interval's mean within its target. Unknown energy changes nothing."""
    demand = view.demand
    energy_wh, power_w = value_of(demand.energy_wh), value_of(demand.power_w)
    if not rules.target_w or energy_wh is None or power_w is None:
        return memory, []
    left_s = max(30.0, demand.interval_s - demand.elapsed_s)
    allowed_w = (rules.target_w * demand.interval_s - energy_wh * 3600.0) / left_s
    # The next interval begins with the load of this one's end: what was saved is not spent at its end.
    allowed_w = min(max(allowed_w, 0.0), 1.2 * rules.target_w)
    if power_w > rules.begin * allowed_w:
        memory = PeakMemory(is_shaving=True)
    elif memory.is_shaving and power_w < rules.end * allowed_w:
        since_s = view.now_s if memory.calm_s is None else memory.calm_s
        is_over = view.now_s - since_s >= rules.calm_s
        memory = PeakMemory() if is_over else PeakMemory(is_shaving=True, calm_s=since_s)
    elif memory.is_shaving:
        memory = PeakMemory(is_shaving=True)
    if not memory.is_shaving:
        return memory, ask_caps(PEAK, {}, view, reason="")
    reason = f"the metering interval must stay within {rules.target_w:g} W"
    asked = ask_site_cap(PEAK, view, topology, rules.begin * allowed_w, power_w, reason=reason)
    if power_w > rules.shed * allowed_w:
        asked.append(ask_shed(PEAK, topology, PriorityClass.BATCH, reason=reason))
    return memory, asked


class DemandEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A dated call for less: from when to when, wall time, the site draws at most this."""

    event_id: str
    start_s: float
    end_s: float
    site_w_max: float
    lead_s: float = 60.0


def propose_response(view: View, topology: Topology, events: tuple[DemandEvent, ...]) -> list[Request]:
    """Return what the events that are due ask for; after the last one, its caps are taken back."""
    due = [event for event in events if event.start_s - event.lead_s <= view.now_s < event.end_s]
    power_w = value_of(view.demand.power_w)
    if not due:
        return ask_caps(RESPONSE, {}, view, reason="")
    event = min(due, key=lambda one: (one.site_w_max, one.event_id))
    reason = f"demand response {event.event_id}"
    asked = [ask_shed(RESPONSE, topology, PriorityClass.BATCH, reason=reason)]
    if power_w is not None:
        asked += ask_site_cap(RESPONSE, view, topology, event.site_w_max, power_w, reason=reason)
    return asked
