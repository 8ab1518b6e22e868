"""What the alarms of one site are judged by: its rules, who owns which point, and who supplies and cools whom.

Owns the index that `machine.alarm` reads at every step, and whether a reading meets a condition. Refuses to know how
an alarm stands; which alarm explains which is said by `madang.policy.facility.causes`. Made once for a site's model;
called by `machine.alarm`.
"""

from collections import defaultdict
from collections.abc import Iterable

import msgspec

from madang.model import AlarmPriority, AlarmRole, AlarmRule, Condition, SiteModel
from madang.policy.facility.causes import CauseIndex
from madang.policy.facility.graph import SiteGraph


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
        causes: who supplies and cools whom.
        losses: rules on a supply that tells, when it is lost, that others have no power.
    """

    settings: AlarmSettings
    rules: dict[str, AlarmRule]
    touched: dict[str, tuple[str, ...]]
    stale_s: dict[str, float]
    points: dict[str, tuple[str, ...]]
    causes: CauseIndex
    losses: tuple[str, ...]


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
    causes = CauseIndex(SiteGraph(model))
    return AlarmPlan(
        settings=settings or AlarmSettings(),
        rules=by_key,
        touched={point: tuple(found) for point, found in touched.items()},
        stale_s={point_id: point.stale_s for point_id, point in watched.items()},
        points={equipment: tuple(found) for equipment, found in points.items()},
        causes=causes,
        losses=tuple(
            name
            for name, rule in by_key.items()
            if rule.role is AlarmRole.SUPPLY and causes.outages.tells(rule.key.equipment)
        ),
    )


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
