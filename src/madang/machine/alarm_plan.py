"""What the alarms of one site are judged by: its rules, who owns which point, and who supplies and cools whom.

Owns the index that `machine.alarm` reads at every step, whether a reading meets a condition, and which alarm explains
which. Refuses to know how an alarm stands. Made once for a site's model; called by `machine.alarm`.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping

import msgspec

from madang.model import AlarmPriority, AlarmRole, AlarmRule, Condition, EdgeKind, SiteModel

_EXPLAINS = {
    AlarmRole.SUPPLY: frozenset({AlarmRole.SUPPLY, AlarmRole.COOLING}),
    AlarmRole.OUTAGE: frozenset({AlarmRole.SUPPLY, AlarmRole.OUTAGE, AlarmRole.COOLING, AlarmRole.SILENCE}),
}
"""By role, the roles that it explains in what its equipment feeds. A UPS on battery carries its load: it explains lost
inputs, and no silence."""

_COOLING_EXPLAINS = frozenset({AlarmRole.COOLING, AlarmRole.TEMPERATURE})
"""What a cooling alarm explains in what its equipment cools."""


class AlarmSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds and channels; times in seconds. Figures without a source are engineering values.

    Attributes:
        chatter_raises: as often raised within `chatter_s` an alarm chatters (three a minute, ISA-18.2 practice);
            it is then held until its condition was away for `quiet_s`.
        shelve_s_max: longest time on the shelf: one shift.
        flood_raises, flood_s: more alarms than that within that time are a flood (EEMUA 191: ten in ten minutes);
            until it ebbs only critical ones are notified, each flood once.
        channels: where notices go, and down to which priority.
        escalate_s: by priority, how long nobody may acknowledge before the next level is told; none: never.
        levels_max: how often that happens.
        attempts_max, retry_s, retry_s_max: of one notice; the pause doubles.
        notices_max: notices on their way at once; beyond it the least urgent and oldest is given up.
        silent_s: how long new equipment may be unheard before that is an alarm.
    """

    chatter_raises: int = 3
    chatter_s: float = 60.0
    quiet_s: float = 60.0
    shelve_s_max: float = 8 * 3600.0
    flood_raises: int = 10
    flood_s: float = 600.0
    channels: tuple[tuple[str, AlarmPriority], ...] = (
        ("webhook", AlarmPriority.LOW),
        ("email", AlarmPriority.HIGH),
    )
    escalate_s: tuple[tuple[AlarmPriority, float], ...] = (
        (AlarmPriority.CRITICAL, 300.0),
        (AlarmPriority.HIGH, 900.0),
    )
    levels_max: int = 2
    attempts_max: int = 5
    retry_s: float = 5.0
    retry_s_max: float = 300.0
    notices_max: int = 256
    silent_s: float = 60.0


class AlarmPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The rules of a site, indexed.

    Attributes:
        rules: by the key's words.
        touched: by point, the rules that its samples can change.
        stale_s: of every point that a rule looks at.
        points: by equipment, its points that rules look at.
        fed_by, cooled_by: by equipment, whatever stands above it, however far.
        is_simulated: by point.
    """

    settings: AlarmSettings
    rules: dict[str, AlarmRule]
    touched: dict[str, tuple[str, ...]]
    stale_s: dict[str, float]
    points: dict[str, tuple[str, ...]]
    fed_by: dict[str, frozenset[str]]
    cooled_by: dict[str, frozenset[str]]


def plan_alarms(model: SiteModel, rules: Iterable[AlarmRule], settings: AlarmSettings | None = None) -> AlarmPlan:
    """Return the index; of rules with the same key the last one holds. Cost: equipment times edges."""
    by_key = {str(rule.key): rule for rule in rules}
    touched: dict[str, list[str]] = defaultdict(list)
    for name, rule in by_key.items():
        for point_id in filter(None, (rule.key.point, rule.other)):
            touched[point_id].append(name)
    silent = {rule.key.equipment for rule in by_key.values() if rule.condition is Condition.COMMS_LOSS}
    watched = {one.point_id: one for one in model.points if one.point_id in touched or one.equipment_id in silent}
    points: dict[str, list[str]] = defaultdict(list)
    for point in watched.values():
        points[point.equipment_id].append(point.point_id)
    feeds = [(edge.source, edge.target) for edge in model.edges if edge.kind is EdgeKind.FEEDS]
    cools = [(edge.source, edge.target) for edge in model.edges if edge.kind in (EdgeKind.COOLS, EdgeKind.CONTAINS)]
    cools += [(one.rack, one.equipment_id) for one in model.equipment if one.rack]
    # What measures something is where that is.
    measures = [(edge.target, edge.source) for edge in model.edges if edge.kind is EdgeKind.MEASURES]
    names = [one.equipment_id for one in model.equipment]
    return AlarmPlan(
        settings=settings or AlarmSettings(),
        rules=by_key,
        touched={point: tuple(found) for point, found in touched.items()},
        stale_s={point_id: point.stale_s for point_id, point in watched.items()},
        points={equipment: tuple(found) for equipment, found in points.items()},
        fed_by=_list_above(names, feeds + measures),
        cooled_by=_list_above(names, cools + measures),
    )


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


def is_met(rule: AlarmRule, value: float, word: str, other: float | None, *, was_met: bool) -> bool | None:
    """Return whether a usable reading meets a rule's condition; None when it cannot be said.

    A condition that was met stays met until the value is back inside the limit by the deadband. RATE is not judged
    here: its value is the change in a minute already.
    """
    band = rule.deadband if was_met else 0.0
    match rule.condition:
        case Condition.HIGH | Condition.HIGH_HIGH:
            return value > rule.limit - band
        case Condition.LOW | Condition.LOW_LOW:
            return value < rule.limit + band
        case Condition.STATE:
            return (word.lower() in rule.words) if word else value != 0.0
        case Condition.RATE:
            return abs(value) > rule.limit - band
        case Condition.DISCREPANCY:
            return None if other is None else abs(value - other) > rule.limit - band
    return None


def find_causes(plan: AlarmPlan, active: Mapping[str, bool]) -> dict[str, str]:
    """Return, by active alarm that another one explains, its root cause.

    An alarm is never put behind a less urgent one, and one that nothing explains is nobody's child. Alarms that
    explain each other in a circle are all left standing. Cost: the square of the active alarms.

    Args:
        plan: the site's rules.
        active: by name of an active alarm, whether it may explain others (one out of service may not).
    """
    parents = {
        name: [
            other
            for other, may_explain in active.items()
            if may_explain and other != name and _explains(plan, plan.rules[other], plan.rules[name])
        ]
        for name in active
    }
    causes = {}
    for name in active:
        roots = _find_roots(name, parents)
        if roots:
            causes[name] = min(roots, key=lambda root: (plan.rules[root].priority.rank, root))
    return causes


def _explains(plan: AlarmPlan, cause: AlarmRule, effect: AlarmRule) -> bool:
    if cause.priority.rank > effect.priority.rank:
        return False
    above, below = cause.key.equipment, effect.key.equipment
    if effect.role is AlarmRole.READING:
        return cause.role is AlarmRole.SILENCE and above == below
    if effect.role in _EXPLAINS.get(cause.role, ()) and above in plan.fed_by.get(below, ()):
        return True
    is_cooling = cause.role is AlarmRole.COOLING and effect.role in _COOLING_EXPLAINS
    return is_cooling and above in plan.cooled_by.get(below, ())


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
