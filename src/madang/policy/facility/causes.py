"""Which alarm explains which, along what feeds, cools and holds the equipment of a site.

Owns the root cause of every active alarm. Refuses to know how an alarm came to be active and what follows from being
explained: `madang.machine.alarm` does. Made once for a site's model.

    cause                         | explains, where its equipment              | roles
    ------------------------------|--------------------------------------------|---------------------------------------
    the same, said elsewhere      | is the same                                | of one sign, or cooling
    high_high, low_low            | is the same point                          | high, low
    comms loss                    | is the same                                | lost readings
    supply lost or weaker         | feeds it                                   | supply; cooling without a UPS between
    a UPS on its battery, a lost  | shares with it what must be dead (`outage`)| supply, outage, cooling, silence
    utility                       |                                            |
    outage                        | feeds it, and it has no other supply alive | outage, cooling, silence; supply anyway
    cooling                       | cools it                                   | cooling, temperature

Nothing explains leak, smoke, fire and doors, nor the silence of what watches for them. Nothing is put behind something
less urgent. What was there before its cause is no consequence: where the supply was still seen well after equipment
had failed, that equipment stands for itself, and so does what is seen to have power after the loss.
"""

from collections import defaultdict
from collections.abc import Mapping

import msgspec

from madang.model import AlarmRole, AlarmRule, Condition, EdgeKind, EquipmentKind
from madang.policy.facility.graph import SiteGraph
from madang.policy.facility.outage import Cut, Outages
from madang.policy.facility.signs import SAFETY

SLACK_S = 5.0
"""A device shows what it saw up to so much later: management cards and UPS daemons refresh every few seconds
(engineering value)."""

_DEAD = frozenset({AlarmRole.SUPPLY, AlarmRole.OUTAGE, AlarmRole.COOLING, AlarmRole.SILENCE})
"""What equipment without power may say, or not say."""
_COOLING_EXPLAINS = frozenset({AlarmRole.COOLING, AlarmRole.TEMPERATURE})
_STRONGER = {Condition.HIGH: Condition.HIGH_HIGH, Condition.LOW: Condition.LOW_LOW}
_GUARDS = frozenset(
    {
        EquipmentKind.LEAK_DETECTOR,
        EquipmentKind.SMOKE_DETECTOR,
        EquipmentKind.FIRE_SUPPRESSION,
        EquipmentKind.DOOR,
        EquipmentKind.INTERLOCK,
    }
)


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """One active alarm at one instant.

    Attributes:
        begun_s: when its condition was first seen to hold.
        clear_s: when it was last seen not to hold before that; None: never.
        is_met: false while it is seen to be over and waits for its off-delay, or latches.
        is_out: out of service: it explains nothing.
        is_shelved: it heads no group of alarms that say the same: one on the shelf must not silence the others.
        cause: its root cause so far; empty without.
    """

    rule: AlarmRule
    begun_s: float
    clear_s: float | None = None
    is_met: bool = True
    is_out: bool = False
    is_shelved: bool = False
    cause: str = ""


class CauseIndex:
    """A site's equipment, indexed for causes.

    Attributes:
        fed_by, cooled_by: by equipment, whatever stands above it, however far. What measures something is where that
            is.
        fed_bare_by: as `fed_by`, by ways without a UPS.
    """

    def __init__(self, graph: SiteGraph) -> None:
        """Index the model. Cost: equipment times edges."""
        model = graph.model
        self.outages = Outages(graph)
        self.guards = frozenset(one.equipment_id for one in graph.of_kind(_GUARDS))
        feeds = [(edge.source, edge.target) for edge in model.edges if edge.kind is EdgeKind.FEEDS]
        cools = [(edge.source, edge.target) for edge in model.edges if edge.kind in (EdgeKind.COOLS, EdgeKind.CONTAINS)]
        cools += [(one.rack, one.equipment_id) for one in model.equipment if one.rack]
        measures = [(edge.target, edge.source) for edge in model.edges if edge.kind is EdgeKind.MEASURES]
        upses = {one.equipment_id for one in graph.of_kind((EquipmentKind.UPS,))}
        names = [one.equipment_id for one in model.equipment]
        self.fed_by = _list_above(names, feeds + measures)
        self.fed_bare_by = _list_above(names, [pair for pair in feeds + measures if pair[0] not in upses])
        self.cooled_by = _list_above(names, cools + measures)


def _list_above(names: list[str], pairs: list[tuple[str, str]]) -> dict[str, frozenset[str]]:
    above: dict[str, set[str]] = defaultdict(set)
    for source, target in pairs:
        above[target].add(source)
    found = {}
    for name in names:
        seen: set[str] = set()
        queue = [name]
        while queue:
            for source in above.get(queue.pop(), ()):
                if source not in seen:
                    seen.add(source)
                    queue.append(source)
        found[name] = frozenset(seen)
    return found


def find_causes(
    index: CauseIndex, active: Mapping[str, Standing], powered_s: Mapping[str, float] | None = None
) -> dict[str, str]:
    """Return, by active alarm that another one explains, its root cause.

    An alarm that nothing explains is nobody's child. Alarms that explain each other in a circle are all left standing.
    Cost: the square of the active alarms, and the graph for each lost supply.

    Args:
        index: of the site.
        active: by name.
        powered_s: by equipment, when it was last seen to have power.
    """
    look = _Look(index, active, powered_s or {})
    parents = {
        name: [other for other, cause in active.items() if not cause.is_out and other != name and look(other, name)]
        for name in active
    }
    causes = {}
    for name in active:
        roots = _find_roots(name, parents)
        if roots:
            causes[name] = min(roots, key=lambda root: (active[root].rule.priority.rank, root))
    return causes


class _Look:
    """Whether one active alarm explains another directly, at one instant."""

    def __init__(self, index: CauseIndex, active: Mapping[str, Standing], powered_s: Mapping[str, float]) -> None:
        self._index = index
        self._active = active
        self._powered_s = powered_s
        out = {one.rule.key.equipment for one in active.values() if one.rule.role is AlarmRole.OUTAGE}
        self._dark_by_outage = index.outages.cut(out).dark if out else frozenset()
        self._cuts = {
            name: self._standing_cuts(one)
            for name, one in active.items()
            if one.rule.role is AlarmRole.SUPPLY and index.outages.tells(one.rule.key.equipment)
        }

    def __call__(self, cause_name: str, effect_name: str) -> bool:
        cause, effect = self._active[cause_name], self._active[effect_name]
        if cause.rule.priority.rank > effect.rule.priority.rank or effect.rule.key.condition in SAFETY:
            return False
        if cause.rule.key.equipment == effect.rule.key.equipment:
            return _says_the_same(cause_name, cause, effect_name, effect)
        if cause.rule.role is AlarmRole.COOLING:
            above = self._index.cooled_by.get(effect.rule.key.equipment, ())
            return effect.rule.role in _COOLING_EXPLAINS and cause.rule.key.equipment in above
        if cause.rule.role not in (AlarmRole.SUPPLY, AlarmRole.OUTAGE) or effect.rule.role not in _DEAD:
            return False
        if effect.rule.key.equipment in self._index.guards or _was_before(effect, cause):
            return False
        if not cause.is_met:
            # What is seen to be over takes nothing new under itself, and lets go what it has when its alarm ends.
            return bool(effect.cause) and effect.cause in (cause_name, cause.cause)
        if cause.rule.role is AlarmRole.OUTAGE:
            return self._explains_outage(cause, effect)
        return self._explains_supply(cause, effect) or self._is_dark(cause_name, effect_name)

    def _explains_outage(self, cause: Standing, effect: Standing) -> bool:
        below = effect.rule.key.equipment
        if cause.rule.key.equipment not in self._index.fed_by.get(below, ()):
            return False
        return effect.rule.role is AlarmRole.SUPPLY or below in self._dark_by_outage

    def _explains_supply(self, cause: Standing, effect: Standing) -> bool:
        above, below = cause.rule.key.equipment, effect.rule.key.equipment
        if effect.rule.role is AlarmRole.SUPPLY:
            return above in self._index.fed_by.get(below, ())
        is_bare = above in self._index.fed_bare_by.get(below, ())
        return effect.rule.role is AlarmRole.COOLING and is_bare and not self._has_power(below, cause)

    def _is_dark(self, cause_name: str, effect_name: str) -> bool:
        """Return whether an alarm is of something that a lost supply leaves without power."""
        cause, effect = self._active[cause_name], self._active[effect_name]
        name = effect.rule.key.equipment
        for cut in self._cuts.get(cause_name, ()):
            if name in cut.dark:
                return True
            if name in cut.on_battery and effect.rule.role is AlarmRole.SUPPLY:
                # Of several UPSs on one lost supply the first to say so stands for them.
                return (cause.begun_s, cause_name) < (effect.begun_s, effect_name)
        return False

    def _standing_cuts(self, cause: Standing) -> tuple[Cut, ...]:
        """Return the answers that no reading of after the loss proves wrong."""
        return tuple(
            cut
            for cut in self._index.outages.cuts(cause.rule.key.equipment)
            if not any(self._has_power(name, cause) for name in (*cut.dark, *cut.on_battery))
        )

    def _has_power(self, equipment_id: str, cause: Standing) -> bool:
        return self._powered_s.get(equipment_id, 0.0) > cause.begun_s + SLACK_S


def _says_the_same(cause_name: str, cause: Standing, effect_name: str, effect: Standing) -> bool:
    """Return whether an alarm of the same equipment stands for another one: the more urgent, then the first."""
    rule, other = cause.rule, effect.rule
    if other.role is AlarmRole.READING:
        return rule.role is AlarmRole.SILENCE or other.key.point in rule.over
    if rule.key.point == other.key.point and _STRONGER.get(other.condition) is rule.condition:
        return True
    is_sign = rule.condition is Condition.STATE and rule.key.condition != Condition.STATE
    is_one_sign = is_sign and rule.key.condition == other.key.condition
    if cause.is_shelved or not (is_one_sign or rule.role is other.role is AlarmRole.COOLING):
        return False
    order = (rule.priority.rank, cause.begun_s, cause_name)
    return order < (other.priority.rank, effect.begun_s, effect_name)


def _was_before(effect: Standing, cause: Standing) -> bool:
    """Return whether an alarm's condition was seen when that of its cause was, later, still seen not to hold."""
    return cause.clear_s is not None and effect.begun_s + SLACK_S < cause.clear_s


def _find_roots(name: str, parents: Mapping[str, list[str]]) -> list[str]:
    seen = {name}
    queue = list(parents[name])
    roots = []
    while queue:
        one = queue.pop()
        if one in seen:
            continue
        seen.add(one)
        if parents[one]:
            queue += parents[one]
        else:
            roots.append(one)
    return roots
