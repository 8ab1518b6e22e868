"""What is remembered of a site's alarms between two steps, and how that looks from outside.

Owns the shapes that survive the site program. Refuses to change them: `machine.alarm` does.
"""

import msgspec

from madang.machine.alarm_events import Notice
from madang.machine.alarm_plan import AlarmPlan
from madang.model import Alarm, AlarmKey, AlarmState, Condition


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """The newest usable sample of a point."""

    at_s: float
    value: float
    word: str = ""


class Track(msgspec.Struct, frozen=True, kw_only=True):
    """One alarm.

    Attributes:
        is_met, met_s: what the last usable reading says, and since when readings say so without a gap.
        begun_s, clear_s: when the condition was first seen to hold, this time or the last, and when it was last seen
            not to hold before that; None: never.
        is_active: after delays and latch.
        stands: one of the first four states.
        is_out: out of service.
        cause: name of its root cause; empty without.
        raises_s: when it was raised of late.
        level: how often it was escalated since it was raised.
        anchor: of RATE: instant and value from which the change is counted.
    """

    is_met: bool = False
    met_s: float = 0.0
    begun_s: float | None = None
    clear_s: float | None = None
    is_active: bool = False
    stands: AlarmState = AlarmState.NORMAL
    raised_s: float | None = None
    acknowledged_s: float | None = None
    who: str = ""
    shelved_until_s: float | None = None
    is_out: bool = False
    cause: str = ""
    raises_s: tuple[float, ...] = ()
    is_chattering: bool = False
    level: int = 0
    value: float | None = None
    anchor: tuple[float, float] | None = None

    @property
    def state(self) -> AlarmState:
        """The state that the operator sees."""
        if self.is_out:
            return AlarmState.OUT_OF_SERVICE
        if self.shelved_until_s is not None:
            return AlarmState.SHELVED
        return AlarmState.SUPPRESSED if self.cause and self.is_active else self.stands


class Outstanding(msgspec.Struct, frozen=True, kw_only=True):
    """A notice that has not arrived; `due_s`: when it is sent, or when no answer is waited for any longer."""

    notice: Notice
    due_s: float
    attempts: int = 0
    is_sent: bool = False


class AlarmBook(msgspec.Struct, frozen=True, kw_only=True):
    """All alarms of a site; tracks by the key's words.

    Attributes:
        heard: by point.
        powered_s: by equipment, when a reading last showed that it has power; of a UPS, on its input.
        started_s: when it was first asked to judge in this life.
        sequence: of the newest journal entry.
        announced_s: when alarms were announced of late, for the flood count.
    """

    tracks: dict[str, Track] = {}
    heard: dict[str, Heard] = {}
    powered_s: dict[str, float] = {}
    started_s: float | None = None
    sequence: int = 0
    outstanding: tuple[Outstanding, ...] = ()
    announced_s: tuple[float, ...] = ()
    is_flood: bool = False


def resume(stored: AlarmBook, plan: AlarmPlan) -> AlarmBook:
    """Return the book of an earlier life under the rules of now: silence is counted anew, what stood stands.

    Alarms whose rule is gone are forgotten; notices on their way are sent once more.
    """
    return msgspec.structs.replace(
        stored,
        tracks={name: track for name, track in stored.tracks.items() if name in plan.rules},
        outstanding=tuple(
            msgspec.structs.replace(one, is_sent=False, due_s=0.0)
            for one in stored.outstanding
            if str(one.notice.key) in plan.rules
        ),
        started_s=None,
    )


def is_heard(book: AlarmBook, plan: AlarmPlan, point: str, now_s: float) -> bool:
    """Return whether a point gave a usable reading that is not stale."""
    heard = book.heard.get(point)
    return heard is not None and now_s - heard.at_s <= plan.stale_s.get(point, 0.0)


def show(book: AlarmBook, plan: AlarmPlan, now_s: float) -> tuple[Alarm, ...]:
    """Return every alarm that is not normal, roots before their children, the most urgent and newest first."""
    children: dict[str, list[AlarmKey]] = {}
    for name, track in book.tracks.items():
        if track.cause:
            children.setdefault(track.cause, []).append(plan.rules[name].key)
    shown = []
    for name, track in book.tracks.items():
        if track.state is AlarmState.NORMAL:
            continue
        rule = plan.rules[name]
        is_about_silence = rule.condition in (Condition.COMMS_LOSS, Condition.READING_LOST)
        shown.append(
            Alarm(
                key=rule.key,
                priority=rule.priority,
                state=track.state,
                is_active=track.is_active,
                is_known=is_about_silence or is_heard(book, plan, rule.key.point, now_s),
                t_raise_s=track.raised_s,
                t_ack_s=track.acknowledged_s,
                acknowledged_by=track.who,
                shelved_until_s=track.shelved_until_s,
                cause=plan.rules[track.cause].key if track.cause else None,
                cause_of=tuple(children.get(name, ())),
                is_chattering=track.is_chattering,
                value=track.value,
                title_ko=rule.title_ko,
                title_en=rule.title_en,
            )
        )
    return tuple(
        sorted(shown, key=lambda one: (one.cause is not None, one.priority.rank, -(one.t_raise_s or 0.0), str(one.key)))
    )
