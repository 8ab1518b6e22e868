"""Who is told of an alarm, when, how often it is tried, and what the message says.

Owns notices on their way: bounded in number and attempts, held back in a flood. Refuses to know how an alarm stands
beyond its state, and channels beyond their names. Called by `machine.alarm` at the end of each of its steps.
"""

from collections.abc import Iterable

import msgspec

from madang.machine.alarm_book import Outstanding, Track
from madang.machine.alarm_events import Notice
from madang.machine.alarm_plan import AlarmSettings
from madang.model import AlarmPriority, AlarmRole, AlarmRule, AlarmState

ANSWER_S = 60.0
"""How long an answer to a notice is waited for (engineering value)."""

SETTLE_S = 5.0
"""How long the notice of an alarm that another may explain waits for that one (engineering value: two polls)."""

_PRIORITY_KO = {
    AlarmPriority.CRITICAL: "긴급",
    AlarmPriority.HIGH: "높음",
    AlarmPriority.MEDIUM: "보통",
    AlarmPriority.LOW: "낮음",
}
_WHAT_KO = {
    "raised": "경보 발생",
    "returned": "경보 해제",
    "escalated": "아직 아무도 확인하지 않은 경보",
    "flood": "경보 폭주: 긴급 경보만 알립니다",
}
_WHAT_EN = {
    "raised": "alarm",
    "returned": "over",
    "escalated": "nobody has acknowledged",
    "flood": "alarm flood, only critical ones are told",
}


def make_notices(
    rule: AlarmRule, track: Track, what: str, now_s: float, settings: AlarmSettings, *, level: int = 0
) -> list[Outstanding]:
    """Return one notice for each channel that takes this priority, due now or when its cause had time to show.

    Critical ones do not wait, but for lost cooling: with the mains gone it is seen before the slower UPS says so.
    """
    is_now = rule.priority is AlarmPriority.CRITICAL and rule.role is not AlarmRole.COOLING
    may_wait = what == "raised" and rule.role is not AlarmRole.NONE and not is_now
    due_s = now_s + (SETTLE_S if may_wait else 0.0)
    text_ko, text_en = _write(rule, track, what)
    return [
        Outstanding(
            notice=Notice(
                notice_id=f"{rule.key}#{what}#{level}#{now_s:.3f}#{channel}",
                channel=channel,
                level=level,
                key=rule.key,
                priority=rule.priority,
                what=what,
                at_s=now_s,
                text_ko=text_ko,
                text_en=text_en,
            ),
            due_s=due_s,
        )
        for channel, least in settings.channels
        if rule.priority.rank <= least.rank
    ]


def _write(rule: AlarmRule, track: Track, what: str) -> tuple[str, str]:
    value = "" if track.value is None else f" = {track.value:g}"
    where = f"{rule.key.point or rule.key.equipment}{value}"
    ko = rule.title_ko or rule.title_en or rule.key.condition
    en = rule.title_en or rule.key.condition
    return (
        f"[{rule.key.site}] {_WHAT_KO[what]} ({_PRIORITY_KO[rule.priority]}): {ko}, {where}",
        f"[{rule.key.site}] {_WHAT_EN[what]} ({rule.priority}): {en}, {where}",
    )


def bound_notices(
    outstanding: list[Outstanding], settings: AlarmSettings
) -> tuple[list[Outstanding], list[Outstanding]]:
    """Return what is kept and what is given up; the least urgent and oldest goes first."""
    excess = len(outstanding) - settings.notices_max
    if excess <= 0:
        return outstanding, []
    worst = sorted(outstanding, key=lambda one: (-one.notice.priority.rank, one.notice.at_s))[:excess]
    ids = {one.notice.notice_id for one in worst}
    return [one for one in outstanding if one.notice.notice_id not in ids], worst


def advance(
    outstanding: Iterable[Outstanding], now_s: float, settings: AlarmSettings, states: dict[str, AlarmState]
) -> tuple[list[Outstanding], list[Notice], list[Outstanding]]:
    """Return what is still on its way, what is to be sent now and what is given up.

    The first notice of an alarm that is suppressed, shelved or over by the time it is due is not sent.
    """
    kept: list[Outstanding] = []
    sent: list[Notice] = []
    given_up: list[Outstanding] = []
    for waiting in outstanding:
        one = waiting
        if one.due_s > now_s:
            kept.append(one)
            continue
        if one.is_sent:
            one = fail(one, now_s, settings)
            if one.attempts >= settings.attempts_max:
                given_up.append(one)
            else:
                kept.append(one)
            continue
        is_moot = one.notice.what == "raised" and states.get(str(one.notice.key)) is not AlarmState.UNACKNOWLEDGED
        if is_moot and one.attempts == 0:
            continue
        sent.append(one.notice)
        kept.append(msgspec.structs.replace(one, is_sent=True, due_s=now_s + ANSWER_S))
    return kept, sent, given_up


def fail(one: Outstanding, now_s: float, settings: AlarmSettings) -> Outstanding:
    """Return a notice after an attempt that did not arrive: due again after a pause that doubles, up to a bound."""
    attempts = one.attempts + 1
    pause_s = min(settings.retry_s * 2.0 ** min(one.attempts, 30), settings.retry_s_max)
    return msgspec.structs.replace(one, attempts=attempts, is_sent=False, due_s=now_s + pause_s)
