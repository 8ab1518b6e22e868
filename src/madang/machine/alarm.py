"""The life of every alarm of a site, after ISA-18.2 / IEC 62682.

Owns every transition. Refuses to read devices, to send anything and to know the time: the site's alarm desk feeds
readings, ticks and people's words, writes the journal and delivers notices.

    state          | active | left by
    ---------------|--------|------------------------------------------------------------------------------
    normal         | no     | condition held for on_delay_s -> unacknowledged
    unacknowledged | yes    | acknowledge -> acknowledged; seen over for off_delay_s -> returned
    acknowledged   | yes    | seen over for off_delay_s -> normal
    returned       | no     | acknowledge -> normal; condition held -> unacknowledged
    shelved        | maybe  | its time, a person -> unacknowledged while active, else normal
    suppressed     | yes    | its root cause is over -> unacknowledged (acknowledged if it was); itself over -> normal
    out_of_service | maybe  | put back -> as from the shelf

A latching alarm is not over before a person resets it, which needs the condition seen to be over. Silence, and samples
that are bad or stale, end nothing: an alarm is over when usable samples say so, without a gap, for the off-delay.
Silence is an alarm of its own (reading lost, comms loss).

Invariants: one entry of the journal for each transition, numbered without holes; a suppressed alarm's cause is active,
suppressed by nobody and no less urgent; notices on their way and attempts are bounded.
"""

import msgspec

from madang.machine.alarm_book import AlarmBook, Heard, Track, is_heard
from madang.machine.alarm_events import (
    Acknowledge,
    Delivered,
    Effect,
    Event,
    PutBack,
    Refuse,
    Reset,
    Sampled,
    Send,
    Shelve,
    TakeOut,
    Tick,
    Undelivered,
    Unshelve,
    Write,
)
from madang.machine.alarm_notices import advance, bound_notices, fail, make_notices
from madang.machine.alarm_plan import AlarmPlan, is_met
from madang.model import AlarmKey, AlarmPriority, AlarmRule, AlarmState, Condition, JournalEntry, Sample
from madang.policy.facility.causes import SLACK_S, Standing, find_causes

Step = tuple[AlarmBook, tuple[Effect, ...]]

_RATE_S = 60.0
"""Over how long a change is taken (engineering value)."""


def step(book: AlarmBook, event: Event, now_s: float, plan: AlarmPlan) -> Step:
    """Return the next book and what to do; book and journal are stored before notices are sent."""
    return _Brain(book, now_s, plan).take(event)


class _Brain:
    """One step, with the book as it becomes."""

    def __init__(self, book: AlarmBook, now_s: float, plan: AlarmPlan) -> None:
        self.old = book
        self.plan = plan
        self.settings = plan.settings
        self.now_s = now_s
        self.tracks = dict(book.tracks)
        for name in plan.rules.keys() - self.tracks.keys():
            self.tracks[name] = Track()
        self.moved: set[str] = set()
        self.heard = dict(book.heard)
        self.powered_s = dict(book.powered_s)
        self.is_cause_in_doubt = False
        self.started_s = now_s if book.started_s is None else min(book.started_s, now_s)
        self.sequence = book.sequence
        self.outstanding = list(book.outstanding)
        self.announced_s = book.announced_s
        self.is_flood = book.is_flood
        self.effects: list[Effect] = []

    def take(self, event: Event) -> Step:
        match event:
            case Sampled(samples=samples):
                self._on_samples(samples)
            case Tick():
                self._on_tick()
            case Delivered(notice_id=notice_id):
                self.outstanding = [one for one in self.outstanding if one.notice.notice_id != notice_id]
            case Undelivered():
                self._on_undelivered(event)
            case _:
                self._on_word(event)
        if self.moved or self.is_cause_in_doubt:
            self._suppress()
        self._notify()
        return self._close()

    def _close(self) -> Step:
        book = AlarmBook(
            tracks=self.tracks,
            heard=self.heard,
            powered_s=self.powered_s,
            started_s=self.started_s,
            sequence=self.sequence,
            outstanding=tuple(self.outstanding),
            announced_s=self.announced_s,
            is_flood=self.is_flood,
        )
        return book, tuple(self.effects)

    def _on_tick(self) -> None:
        for point, heard in self.heard.items():
            if heard.at_s > self.now_s:  # the clock was set back
                self.heard[point] = msgspec.structs.replace(heard, at_s=self.now_s)
        for name, at_s in self.powered_s.items():
            self.powered_s[name] = min(at_s, self.now_s)
        self._judge_silence()
        for name in self.plan.rules:
            self._settle(name)
            self._expire_shelf(name)
            self._escalate(name)
        self._ebb()

    # Readings

    def _on_samples(self, samples: tuple[Sample, ...]) -> None:
        for sample in samples:
            if sample.point_id not in self.plan.stale_s or not sample.is_usable or sample.value is None:
                continue
            at_s = min(sample.observed_at_s, self.now_s)
            last = self.heard.get(sample.point_id)
            is_old = last is not None and at_s < min(last.at_s, self.now_s)
            if is_old or self.now_s - at_s > self.plan.stale_s[sample.point_id]:
                continue
            self.heard[sample.point_id] = Heard(at_s=at_s, value=sample.value, word=sample.text)
            self._watch_power(sample, at_s)
            had_gap = last is None or at_s - last.at_s > self.plan.stale_s[sample.point_id]
            for name in self.plan.touched.get(sample.point_id, ()):
                self._judge(name, at_s, last, had_gap=had_gap)

    def _watch_power(self, sample: Sample, at_s: float) -> None:
        """Remember that equipment is seen to have power; where a lost supply said otherwise, causes are sought anew."""
        point = self.plan.causes.outages.power_points.get(sample.point_id)
        if point is None or sample.value is None or not point.shows(sample.value, sample.text):
            return
        before_s = self.powered_s.get(point.equipment_id, 0.0)
        if at_s <= before_s:
            return
        self.powered_s[point.equipment_id] = at_s
        begun = (self.tracks[name].begun_s for name in self.plan.losses if self.tracks[name].is_active)
        self.is_cause_in_doubt |= any(at is not None and before_s <= at + SLACK_S < at_s for at in begun)

    def _judge(self, name: str, at_s: float, last: Heard | None, *, had_gap: bool) -> None:
        rule, track = self.plan.rules[name], self.tracks[name]
        heard = self.heard.get(rule.key.point)
        if heard is None:
            return
        value = heard.value
        other = self.heard.get(rule.other) if rule.other else None
        if rule.other and (other is None or self.now_s - other.at_s > self.plan.stale_s[rule.other]):
            return
        if rule.condition is Condition.RATE:
            rate = self._take_rate(name, heard, had_gap=had_gap, is_rise=rule.is_rise)
            if rate is None:
                return
            value = rate
        met = is_met(rule, value, heard.word, other.value if other else None, was_met=track.is_met)
        if met is not None:
            self._note(name, met, at_s, value, last.at_s if last is not None else None, had_gap=had_gap)

    def _take_rate(self, name: str, heard: Heard, *, had_gap: bool, is_rise: bool) -> float | None:
        """Return the change in a minute since the anchor, once that is old enough; then this reading is the anchor."""
        anchor = self.tracks[name].anchor
        # What a counter rose by during a gap is known when the gap is over, how a temperature moved is not.
        is_broken = anchor is not None and (heard.value < anchor[1] if is_rise else had_gap)
        if anchor is None or heard.at_s < anchor[0] or is_broken:
            self._change(name, anchor=(heard.at_s, heard.value))
            return None
        passed_s = heard.at_s - anchor[0]
        if passed_s < _RATE_S:
            return None
        self._change(name, anchor=(heard.at_s, heard.value))
        return (heard.value - anchor[1]) * 60.0 / passed_s

    def _note(
        self, name: str, met: bool, at_s: float, value: float | None, last_s: float | None, *, had_gap: bool
    ) -> None:
        """Take what a reading of `at_s` says; `last_s`: of the reading before."""
        track = self.tracks[name]
        if met and not track.is_met:
            self._change(name, begun_s=at_s, clear_s=last_s)
        is_new = met != track.is_met or track.met_s > self.now_s
        # After a gap nobody knows what was in between: being over is counted anew, trouble goes on.
        if is_new or (had_gap and not met):
            self._change(name, is_met=met, met_s=at_s)
        if met and not track.is_active:
            self._change(name, value=value)
        if met:
            self._settle(name)
        else:
            self._end_if_over(name, at_s)

    def _judge_silence(self) -> None:
        for name, rule in self.plan.rules.items():
            if rule.condition is Condition.READING_LOST:
                lost = self._is_silent(rule.key.point)
            elif rule.condition is Condition.COMMS_LOSS:
                points = self._points_of(rule)
                lost = bool(points) and all(self._is_silent(point) for point in points)
            else:
                continue
            # What an earlier life had raised stands until somebody is heard; what it was about to raise does not.
            lost = lost or (self.tracks[name].is_active and not self._is_any_heard(rule))
            self._note(name, lost, self.now_s, None, None, had_gap=False)

    def _is_silent(self, point: str) -> bool:
        stale_s = self.plan.stale_s.get(point, 0.0)
        if not self._is_heard_of(point):
            return self.now_s - self.started_s > max(self.settings.silent_s, stale_s)
        return self.now_s - self.heard[point].at_s > stale_s

    def _is_heard_of(self, point: str) -> bool:
        """Return whether a point was heard in this life; in an earlier one nobody listened at the end."""
        heard = self.heard.get(point)
        return heard is not None and heard.at_s >= self.started_s

    def _is_any_heard(self, rule: AlarmRule) -> bool:
        return any(self._is_heard_of(point) for point in self._points_of(rule))

    def _points_of(self, rule: AlarmRule) -> tuple[str, ...]:
        """Return the points whose silence a rule is about."""
        if rule.key.point:
            return (rule.key.point,)
        return rule.over or self.plan.points.get(rule.key.equipment, ())

    # Delays

    def _settle(self, name: str) -> None:
        """Raise an alarm whose condition has held for its on-delay."""
        track = self.tracks[name]
        if track.met_s > self.now_s:  # the clock was set back: a delay is at most served twice
            track = self._change(name, met_s=self.now_s)
        if track.begun_s is not None and track.begun_s > self.now_s:
            track = self._change(name, begun_s=self.now_s)
        held_s = self.now_s - track.met_s
        if track.is_met and not track.is_active and held_s >= self.plan.rules[name].on_delay_s:
            self._raise(name)

    def _raise(self, name: str) -> None:
        track = self.tracks[name]
        recent = [at for at in track.raises_s if 0.0 <= self.now_s - at <= self.settings.chatter_s]
        raises_s = (*recent, self.now_s)[-self.settings.chatter_raises :]
        chatters = len(raises_s) >= self.settings.chatter_raises
        self._move(
            name,
            "chattering" if chatters else "raised",
            is_active=True,
            stands=AlarmState.UNACKNOWLEDGED,
            raised_s=self.now_s,
            acknowledged_s=None,
            by="",
            level=0,
            raises_s=raises_s,
            is_chattering=chatters,
        )

    def _end_if_over(self, name: str, at_s: float) -> None:
        """End an alarm whose condition usable samples up to `at_s` say to be over for long enough."""
        rule, track = self.plan.rules[name], self.tracks[name]
        wait_s = max(rule.off_delay_s, self.settings.quiet_s if track.is_chattering else 0.0)
        if track.is_active and not rule.is_latching and at_s - track.met_s >= wait_s:
            self._end(name, "returned")

    def _end(self, name: str, what: str, who: str = "") -> None:
        track = self.tracks[name]
        is_open = track.state is AlarmState.UNACKNOWLEDGED
        stands = AlarmState.RETURNED if is_open else AlarmState.NORMAL
        self._move(name, what, who=who, is_active=False, is_chattering=False, stands=stands, level=0)

    # People

    def _on_word(self, event: Event) -> None:
        assert isinstance(event, Acknowledge | Reset | Shelve | Unshelve | TakeOut | PutBack)
        name = str(event.key)
        if name not in self.plan.rules:
            self.effects.append(Refuse(event.key, "there is no such alarm at this site"))
            return
        reason = self._take_word(event, name, self.tracks[name])
        if reason:
            self.effects.append(Refuse(event.key, reason))

    def _take_word(
        self, event: Acknowledge | Reset | Shelve | Unshelve | TakeOut | PutBack, name: str, track: Track
    ) -> str:
        match event:
            case Acknowledge(who=who):
                return self._on_acknowledge(name, track, who)
            case Reset(who=who):
                return self._on_reset(name, track, who)
            case Shelve():
                return self._on_shelve(event, name)
            case Unshelve(who=who):
                if track.shelved_until_s is None:
                    return "it is not on the shelf"
                self._uncover(name, "unshelved", who, shelf=True)
            case TakeOut(who=who, reason=reason):
                if track.is_out:
                    return "it is out of service already"
                self._move(name, "taken_out", who=who, reason=reason, is_out=True)
            case PutBack(who=who):
                if not track.is_out:
                    return "it is in service"
                self._uncover(name, "put_back", who, shelf=False)
        return ""

    def _on_acknowledge(self, name: str, track: Track, who: str) -> str:
        if track.stands is AlarmState.UNACKNOWLEDGED:
            stands = AlarmState.ACKNOWLEDGED
        elif track.stands is AlarmState.RETURNED:
            stands = AlarmState.NORMAL
        else:
            return f"there is nothing to acknowledge: it is {track.state}"
        self._move(name, "acknowledged", who=who, stands=stands, acknowledged_s=self.now_s, by=who)
        return ""

    def _on_reset(self, name: str, track: Track, who: str) -> str:
        rule = self.plan.rules[name]
        if not rule.is_latching or not track.is_active:
            return "there is nothing to reset"
        if track.stands is AlarmState.UNACKNOWLEDGED:
            return "nobody has acknowledged it yet"
        book = msgspec.structs.replace(self.old, heard=self.heard)
        if track.is_met or not is_heard(book, self.plan, rule.key.point, self.now_s):
            return "its condition is not seen to be over"
        self._end(name, "reset", who)
        return ""

    def _on_shelve(self, event: Shelve, name: str) -> str:
        rule = self.plan.rules[name]
        if rule.is_latching:
            return "an alarm that latches is not shelved: acknowledge it, remove its cause, reset it"
        if not self.now_s < event.until_s <= self.now_s + self.settings.shelve_s_max:
            return f"the shelf is for at most {self.settings.shelve_s_max:g} s from now"
        self._move(name, "shelved", who=event.who, reason=event.reason, shelved_until_s=event.until_s)
        return ""

    def _expire_shelf(self, name: str) -> None:
        until_s = self.tracks[name].shelved_until_s
        # A clock that is set back must not lengthen what a person allowed.
        if until_s is not None and not 0.0 < until_s - self.now_s <= self.settings.shelve_s_max:
            self._uncover(name, "shelf_expired", "", shelf=True)

    def _uncover(self, name: str, what: str, who: str, *, shelf: bool) -> None:
        track = self.tracks[name]
        stands = AlarmState.UNACKNOWLEDGED if track.is_active else AlarmState.NORMAL
        until_s = None if shelf else track.shelved_until_s
        self._move(name, what, who=who, stands=stands, shelved_until_s=until_s, is_out=shelf and track.is_out)

    # Causes

    def _suppress(self) -> None:
        active = {
            name: Standing(
                rule=self.plan.rules[name],
                begun_s=track.begun_s if track.begun_s is not None else track.raised_s or 0.0,
                clear_s=track.clear_s,
                is_met=track.is_met,
                is_out=track.is_out,
                is_shelved=track.shelved_until_s is not None,
                cause=track.cause,
            )
            for name, track in self.tracks.items()
            if track.is_active
        }
        known = {name: track.cause for name, track in self.tracks.items() if track.cause}
        if not known and len(active) < 2:
            return
        causes = find_causes(self.plan.causes, active, self.powered_s)
        for name in known.keys() | causes.keys():
            cause = causes.get(name, "")
            if cause != known.get(name, ""):
                what = "suppressed" if cause else "unsuppressed"
                self._move(name, what, reason=f"root cause {cause}" if cause else "its root cause is over", cause=cause)

    # Notices

    def _notify(self) -> None:
        for name in sorted(self.moved):
            before = self.old.tracks[name].state if name in self.old.tracks else AlarmState.NORMAL
            rule, track = self.plan.rules[name], self.tracks[name]
            if track.state is not before and track.state is AlarmState.UNACKNOWLEDGED:
                self._announce(name, rule, track)
            elif before in _ANNOUNCED and track.state in (AlarmState.RETURNED, AlarmState.NORMAL):
                self._queue(rule, track, "returned")
        if not self.outstanding:
            return
        names = {str(one.notice.key) for one in self.outstanding}
        states = {name: self.tracks[name].state for name in names}
        self.outstanding, sent, lost = advance(self.outstanding, self.now_s, self.settings, states)
        self.outstanding, dropped = bound_notices(self.outstanding, self.settings)
        kept = {one.notice.notice_id for one in self.outstanding}
        self.effects += [Send(notice) for notice in sent if notice.notice_id in kept]
        for one in (*lost, *dropped):
            self._write_notice(one.notice.key, f"to {one.notice.channel} after {one.attempts} attempts")

    def _announce(self, name: str, rule: AlarmRule, track: Track) -> None:
        recent = [at for at in self.announced_s if 0.0 <= self.now_s - at <= self.settings.flood_s]
        self.announced_s = (*recent, self.now_s)[-(self.settings.flood_raises + 1) :]
        if len(self.announced_s) > self.settings.flood_raises and not self.is_flood:
            self.is_flood = True
            self.outstanding += make_notices(rule, track, "flood", self.now_s, self.settings)
            self._write(name, "flood", track.state, reason=f"more than {self.settings.flood_raises} alarms")
        if not track.is_chattering:
            self._queue(rule, track, "raised")

    def _queue(self, rule: AlarmRule, track: Track, what: str, level: int = 0) -> None:
        if not self.is_flood or rule.priority is AlarmPriority.CRITICAL:
            self.outstanding += make_notices(rule, track, what, self.now_s, self.settings, level=level)

    def _ebb(self) -> None:
        recent = [at for at in self.announced_s if 0.0 <= self.now_s - at <= self.settings.flood_s]
        if self.is_flood and len(recent) <= self.settings.flood_raises // 2:
            self.is_flood = False

    def _escalate(self, name: str) -> None:
        track = self.tracks[name]
        if track.state is not AlarmState.UNACKNOWLEDGED or track.raised_s is None:
            return
        rule, level = self.plan.rules[name], track.level + 1
        after_s = dict(self.settings.escalate_s).get(rule.priority)
        if after_s is None or level > self.settings.levels_max or self.now_s - track.raised_s < level * after_s:
            return
        self._queue(rule, self._change(name, level=level), "escalated", level)
        self._write(name, "escalated", track.state, reason=f"level {level}")

    def _on_undelivered(self, event: Undelivered) -> None:
        kept = []
        for one in self.outstanding:
            if one.notice.notice_id != event.notice_id or not one.is_sent:
                kept.append(one)
                continue
            failed = fail(one, self.now_s, self.settings)
            if failed.attempts >= self.settings.attempts_max:
                self._write_notice(one.notice.key, f"to {one.notice.channel}: {event.reason}")
            else:
                kept.append(failed)
        self.outstanding = kept

    # The book

    def _change(self, name: str, **changes: object) -> Track:
        track = msgspec.structs.replace(self.tracks[name], **changes)
        self.tracks[name] = track
        return track

    def _move(
        self, name: str, what: str, *, who: str = "", reason: str = "", by: str | None = None, **changes: object
    ) -> None:
        was = self.tracks[name].state
        if by is not None:
            changes["who"] = by
        self._change(name, **changes)
        self.moved.add(name)
        self._write(name, what, was, who=who, reason=reason)

    def _write(self, name: str, what: str, was: AlarmState, *, who: str = "", reason: str = "") -> None:
        track = self.tracks[name]
        self._journal(self.plan.rules[name].key, what, was, track.state, who, reason, track.value)

    def _write_notice(self, key: AlarmKey, reason: str) -> None:
        state = self.tracks[str(key)].state
        self._journal(key, "notice_given_up", state, state, "", reason, None)

    def _journal(
        self, key: AlarmKey, what: str, was: AlarmState, now: AlarmState, who: str, reason: str, value: float | None
    ) -> None:
        self.sequence += 1
        self.effects.append(
            Write(
                JournalEntry(
                    sequence=self.sequence,
                    at_s=self.now_s,
                    key=key,
                    what=what,
                    was=was,
                    now=now,
                    who=who,
                    reason=reason,
                    value=value,
                )
            )
        )


_ANNOUNCED = (AlarmState.UNACKNOWLEDGED, AlarmState.ACKNOWLEDGED)
