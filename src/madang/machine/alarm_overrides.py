"""A site's own word on its alarms: rules that its file adds, changes or takes away.

Owns how an override meets the rules that a model makes. Refuses to know files. Called once when a site starts.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase

import msgspec

from madang.model import AlarmKey, AlarmPriority, AlarmRule, Condition, SiteModel
from madang.model.facility_site import AlarmOverride


def override_rules(
    model: SiteModel, rules: Iterable[AlarmRule], overrides: Iterable[AlarmOverride]
) -> tuple[AlarmRule, ...]:
    """Return the rules with a site's own word on them; of overrides of one rule the last holds.

    A pattern names points; each point that it matches gets its rule changed, or a rule of its own where there is
    none. An override of STATE changes every rule of that point on a state.
    """
    found = {rule.key: rule for rule in rules}
    for one in overrides:
        for point in model.points:
            if not any(fnmatchcase(point.point_id, pattern) for pattern in one.points):
                continue
            condition = Condition(one.condition)
            known = [key for key, rule in found.items() if key.point == point.point_id and rule.condition is condition]
            if not one.is_enabled:
                for key in known:
                    del found[key]
            elif known:
                for key in known:
                    found[key] = _change(found[key], one)
            else:
                key = AlarmKey(model.site, point.equipment_id, point.point_id, one.condition)
                made = AlarmRule(key=key, condition=condition, priority=AlarmPriority.MEDIUM, source="the site's file")
                found[key] = _change(made, one)
    return tuple(found.values())


def _change(rule: AlarmRule, one: AlarmOverride) -> AlarmRule:
    stated = {
        "priority": None if one.priority is None else AlarmPriority(one.priority),
        "limit": one.limit,
        "words": one.words or None,
        "other": one.other or None,
        "deadband": one.deadband,
        "on_delay_s": one.on_delay_s,
        "off_delay_s": one.off_delay_s,
        "is_latching": one.is_latching,
        "title_ko": one.title_ko or None,
        "title_en": one.title_en or None,
    }
    return msgspec.structs.replace(rule, **{name: value for name, value in stated.items() if value is not None})
