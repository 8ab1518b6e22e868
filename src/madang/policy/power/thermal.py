"""What is asked for when heat cannot be carried away: less of it, at the cause, before any inlet is hot.

Owns the proposer `thermal`. Refuses to act. Called once a second with everything known.

    level | entered when                                              | asked for
    ------|-----------------------------------------------------------|----------------------------------------------
    1     | a cooling group has fewer units than it needs, a flow is  | batch shed, spill; nodes without clinical
          | lost or the supply is warm; margin < 5 K                  | requests to the least that caps reach
    2     | margin < 3 K, or 120 s to the limit; level 1 and nobody   | clinical nodes to 70 % of their name plates
          | knows the margin; 300 s without any word of either        |
    3     | margin < 1.5 K, or 30 s to the limit                      | clinical nodes to the least; the others drained
    4     | margin < 0 K                                              | the others stopped, clinical nodes drained
    5     | margin < -3 K                                             | all stopped: equipment is in danger

Where it was bad when the margin became unknown, the level rises every `blind_s`, to 4. A level is entered at once and
left downwards, one at a time, when the margin is 1.5 K better than where it was entered and has been so for `calm_s`.
What a level saves also takes its own sign away: a capped room has time again, until the cap is gone. So one that comes
back within the wait after another was left is held twice as long as that, up to `calm_s_max`, until the cause is gone.
Where a cause was seen to be over and the margin is as good as no level wants it, only the first step takes the whole
wait and the others `quick_s`: a site whose cooling came back with the mains is not kept small for want of steps.
Two thresholds, the less urgent first, is what POLCA (arXiv 2308.12908) does with frequencies. At 10 kW a rack the
inlet passes its limit tens of seconds after a compressor stops (engineering estimate), hence the cause and not the
inlet. Air inlets stay below 35 degrees (ASHRAE class A2) with the limit at 32.
"""

import msgspec

from madang.core import NodeId
from madang.model import EquipmentKind, NodeState, PriorityClass, Quantity, Request, Verb
from madang.policy.facility.signs import Sign
from madang.policy.power.asking import ask_caps, ask_nodes, ask_shed, ask_spill, cap_of
from madang.policy.power.topology import CoolingGroup, Topology
from madang.policy.power.view import Signs, View, sample_of, value_of

NAME = "thermal"

_DEFAULT_REASON = "the thermal margin is small or not known"
_COOLERS = frozenset({EquipmentKind.COOLING_UNIT, EquipmentKind.CHILLER, EquipmentKind.CDU, EquipmentKind.PUMP})


class ThermalRules(msgspec.Struct, frozen=True, kw_only=True):
    """Margins in kelvin by level, seconds to the limit by level, and the rest; engineering values.

    Attributes:
        flow_ratio: of a rated flow below which it counts as lost.
        supply_c_max: a supply warmer than this is a cause.
        clinical_part: of the name plate, at level 2.
        calm_s: how long it has to be better before a level is left.
        calm_s_max: the longest that becomes where levels come back.
        quick_s: the same for the second and later steps, where the cause is over and the margin is wide.
        blind_s: how long nobody may know the margin before the worst is taken to be on its way.
    """

    margins_k: tuple[float, ...] = (5.0, 3.0, 1.5, 0.0, -3.0)
    times_s: tuple[float, ...] = (0.0, 120.0, 30.0, 0.0, 0.0)
    hysteresis_k: float = 1.5
    calm_s: float = 120.0
    calm_s_max: float = 3600.0
    quick_s: float = 30.0
    flow_ratio: float = 0.2
    supply_c_max: float = 27.0
    clinical_part: float = 0.7
    blind_s: float = 300.0


class ThermalMemory(msgspec.Struct, frozen=True, kw_only=True):
    """The level, since when it could be one lower, since when nobody knows the margin and which level was then.

    Attributes:
        left_s: when a level was last left.
        wait_s: how long it has to be better now; 0 for the rules' own.
        has_cause: whether something was wrong with the cooling at the last look.
        is_over: it was, was seen to be over, and no level was entered since; `is_quick`: and one was left since.
    """

    level: int = 0
    calm_s: float | None = None
    reason: str = ""
    unknown_s: float | None = None
    unknown_level: int = 0
    left_s: float | None = None
    wait_s: float = 0.0
    has_cause: bool = False
    is_over: bool = False
    is_quick: bool = False


def propose_thermal(
    memory: ThermalMemory, view: View, signs: Signs, topology: Topology, rules: ThermalRules
) -> tuple[ThermalMemory, list[Request]]:
    """Return the next memory and what is asked for now."""
    cause = find_cause(view, signs, topology, rules)
    if value_of(view.thermal_margin_k) is not None:
        memory = msgspec.structs.replace(memory, unknown_s=None)
        level = _find_level(view, cause, rules)
    else:
        if memory.unknown_s is None:
            memory = msgspec.structs.replace(memory, unknown_s=view.now_s, unknown_level=memory.level)
        is_unread = signs.is_silent(Sign.COOLING_LOST)
        level = _find_blind_level(memory, view, rules, has_cause=bool(cause), is_unread=is_unread)
    memory = _note_cause(memory, cause)
    if level > memory.level:
        wait_s = _next_wait_s(memory, view, rules)
        memory = msgspec.structs.replace(memory, wait_s=wait_s, is_over=False, is_quick=False)
    if level >= memory.level and level > 0:
        memory = msgspec.structs.replace(memory, level=level, calm_s=None)
    elif memory.level > 0:
        memory = _calm_down(memory, view, level, rules)
    return memory, _ask(memory, view, topology, rules)


def _note_cause(memory: ThermalMemory, cause: str) -> ThermalMemory:
    """Take what is wrong now as the reason; what is wrong no longer is told as over for as long as a level is held."""
    if cause:
        return msgspec.structs.replace(memory, reason=cause, has_cause=True, is_over=False, is_quick=False)
    if memory.has_cause:
        over = f"{memory.reason}; over, held until it is calm"
        return msgspec.structs.replace(memory, reason=over, has_cause=False, is_over=True, wait_s=0.0, left_s=None)
    return memory if memory.level > 0 else msgspec.structs.replace(memory, reason="")


def _next_wait_s(memory: ThermalMemory, view: View, rules: ThermalRules) -> float:
    """Return how long it has to be better before the level that is entered now is left."""
    wait_s = memory.wait_s or rules.calm_s
    if memory.left_s is None or view.now_s - memory.left_s >= wait_s:
        return rules.calm_s
    return min(2.0 * wait_s, rules.calm_s_max)


def find_cause(view: View, signs: Signs, topology: Topology, rules: ThermalRules) -> str:
    """Return what is wrong with the cooling, in words; empty when nothing that is read is."""
    for group in topology.cooling:
        lost = [unit for unit in group.units if _is_lost(unit, view, signs, topology, rules)]
        if lost and group.nodes and len(group.units) - len(lost) < group.needed:
            return _describe(group, lost)
    return ""


def _describe(group: CoolingGroup, lost: list[str]) -> str:
    return f"cooling lost: {', '.join(lost)}; {group.name} needs {group.needed} of {len(group.units)}"


def _is_lost(unit: str, view: View, signs: Signs, topology: Topology, rules: ThermalRules) -> bool:
    if unit in signs.said.get(Sign.COOLING_LOST, ()):
        return True
    rated = topology.equipment[unit].ratings.flow_l_min
    for point in topology.points.values():
        if point.equipment_id != unit:
            continue
        sample = sample_of(view, topology, point.point_id)
        if sample is None or sample.value is None:
            continue
        if point.quantity is Quantity.FLOW and rated and sample.value < rules.flow_ratio * rated:
            return True
        is_supply = "supply" in (point.context or point.name)
        if point.quantity is Quantity.TEMPERATURE and is_supply and sample.value > rules.supply_c_max:
            return True
    return False


def _find_level(view: View, cause: str, rules: ThermalRules) -> int:
    margin_k, time_s = value_of(view.thermal_margin_k), value_of(view.time_to_limit_s)
    assert margin_k is not None
    level = 1 if cause else 0
    for place, (least_k, least_s) in enumerate(zip(rules.margins_k, rules.times_s, strict=True), start=1):
        is_soon = time_s is not None and 0.0 <= time_s < least_s
        if margin_k < least_k or is_soon:
            level = max(level, place)
    return level


def _find_blind_level(
    memory: ThermalMemory, view: View, rules: ThermalRules, *, has_cause: bool, is_unread: bool
) -> int:
    """Return the level while nobody knows the margin: up with time where it is known to be bad, caps alone if not."""
    assert memory.unknown_s is not None
    steps = int(max(0.0, view.now_s - memory.unknown_s) // rules.blind_s)
    if has_cause or memory.unknown_level > 0:
        return min(4, max(memory.unknown_level, 2 if has_cause else 1) + steps)
    return 2 if is_unread and steps > 0 else 0


def _calm_down(memory: ThermalMemory, view: View, level: int, rules: ThermalRules) -> ThermalMemory:
    """Go down one level when it has been better for long enough; what is not known is not better."""
    margin_k = value_of(view.thermal_margin_k)
    entered_k = rules.margins_k[memory.level - 1]
    is_better = margin_k is not None and margin_k >= entered_k + rules.hysteresis_k and level < memory.level
    if not is_better:
        return msgspec.structs.replace(memory, calm_s=None)
    since_s = view.now_s if memory.calm_s is None else memory.calm_s
    is_wide = margin_k is not None and margin_k >= rules.margins_k[0] + rules.hysteresis_k
    wait_s = rules.quick_s if memory.is_quick and is_wide else memory.wait_s or rules.calm_s
    if view.now_s - since_s < wait_s:
        return msgspec.structs.replace(memory, calm_s=since_s)
    is_quick = memory.is_over and memory.level > 1
    return msgspec.structs.replace(memory, level=memory.level - 1, calm_s=None, left_s=view.now_s, is_quick=is_quick)


def _ask(memory: ThermalMemory, view: View, topology: Topology, rules: ThermalRules) -> list[Request]:
    level, reason = memory.level, memory.reason or _DEFAULT_REASON
    clinical = [node for node, load in view.nodes.items() if PriorityClass.CLINICAL in load.classes]
    others = [node for node in topology.nodes if node not in clinical]
    parts: dict[NodeId, float] = {}
    if level >= 1:
        parts |= dict.fromkeys(others, 0.0)
    if level >= 2:
        parts |= dict.fromkeys(clinical, rules.clinical_part if level == 2 else 0.0)
    wanted_w: dict[str, float] = {}
    for node, part in parts.items():
        cap_w = cap_of(view.nodes.get(node), topology.nodes[node].name_plate_w, part)
        if cap_w is not None:
            wanted_w[node] = cap_w
    asked = ask_caps(NAME, wanted_w, view, reason=reason)
    margin_k = value_of(view.thermal_margin_k)
    if level == 0 and (margin_k is None or margin_k < rules.margins_k[0]):
        return []  # what is not known to be better takes nothing back
    if level >= 1:
        asked.append(ask_shed(NAME, topology, PriorityClass.BATCH, reason=reason))
        asked += ask_spill(NAME, topology, view, reason=reason)
    if level >= 3:
        asked += ask_nodes(NAME, Verb.DRAIN, others + (clinical if level >= 4 else []), reason=reason)
    if level >= 4:
        asked += ask_nodes(NAME, Verb.STOP, others + (clinical if level >= 5 else []), reason=reason)
    if level == 0:
        waiting = [node for node, load in view.nodes.items() if load.state is not NodeState.RUN]
        asked += ask_nodes(NAME, Verb.RESUME, sorted(waiting), reason="the cooling is back")
    return asked
