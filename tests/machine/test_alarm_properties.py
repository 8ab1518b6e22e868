"""Whatever is read, said and delivered, in whatever order: what holds of every alarm at every step."""

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.machine.alarm_world import MODEL, Desk

from madang.machine.alarm_book import AlarmBook, resume, show
from madang.machine.alarm_defaults import default_rules
from madang.machine.alarm_events import (
    Acknowledge,
    Delivered,
    PutBack,
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
from madang.machine.alarm_plan import AlarmSettings
from madang.model import AlarmState, Quality, Sample

RULES = default_rules(MODEL)
KEYS = st.sampled_from([one.key for one in RULES])
POINTS = st.sampled_from([point for point in MODEL.points])
SETTINGS = AlarmSettings(notices_max=8, attempts_max=3, flood_raises=4)
WHO = st.sampled_from(["kim", "lee"])


class Alarms(RuleBasedStateMachine):
    """One site's alarms under anything that can happen to them."""

    @initialize()
    def begin(self):
        self.desk = Desk(*RULES, settings=SETTINGS)
        self.before = {}
        self.attempts = {}
        self.ended_without_reading = []

    def feed(self, event, after_s=0.0):
        active = {name for name, track in self.desk.book.tracks.items() if track.is_active}
        out = self.desk.feed(event, after_s)
        for effect in out:
            if isinstance(effect, Send):
                count = self.attempts.get(effect.notice.notice_id, 0) + 1
                self.attempts[effect.notice.notice_id] = count
        still = {name for name, track in self.desk.book.tracks.items() if track.is_active}
        self.last = (event, active - still, out)

    @rule(
        point=POINTS,
        value=st.sampled_from([0.0, 1.0, 2.0, 20.0, 31.0, 33.0]),
        quality=st.sampled_from(list(Quality)),
        age_s=st.sampled_from([0.0, 0.0, 0.0, 3.0, 30.0, -5.0]),
        after_s=st.sampled_from([0.0, 0.5, 5.0]),
    )
    def read(self, point, value, quality, age_s, after_s):
        self.desk.now_s += after_s
        sample = Sample(
            point_id=point.point_id,
            value=None if quality is Quality.BAD else value,
            quality=quality,
            text=point.states.get(int(value), "") if point.states else "",
            observed_at_s=self.desk.now_s - age_s,
        )
        self.feed(Sampled((sample,)))
        _, ended, _ = self.last
        for name in ended:
            assert sample.is_usable
            assert age_s <= point.stale_s
            assert self.desk.plan.rules[name].key.point == point.point_id

    @rule(after_s=st.sampled_from([0.0, 1.0, 10.0, 70.0, 400.0, 4000.0, -3.0, -5000.0]))
    def tick(self, after_s):
        self.feed(Tick(), after_s)
        _, ended, _ = self.last
        for name in ended:
            assert self.desk.plan.rules[name].condition in ("reading_lost", "comms_loss"), "time alone ends no alarm"

    @rule(alarm=KEYS, who=WHO, word=st.sampled_from([Acknowledge, Reset, Unshelve, PutBack]))
    def say(self, alarm, who, word):
        self.feed(word(alarm, who))

    @rule(alarm=KEYS, who=WHO, for_s=st.sampled_from([-1.0, 30.0, 3600.0, 1e6]))
    def shelve(self, alarm, who, for_s):
        self.feed(Shelve(alarm, who, self.desk.now_s + for_s, "because"))

    @rule(alarm=KEYS, who=WHO)
    def take_out(self, alarm, who):
        self.feed(TakeOut(alarm, who, "because"))

    @rule(draw=st.randoms(use_true_random=False), arrives=st.booleans())
    def answer(self, draw, arrives):
        if self.desk.sent:
            notice = draw.choice(self.desk.sent[-8:])
            self.feed(Delivered(notice.notice_id) if arrives else Undelivered(notice.notice_id, "refused"))

    @rule()
    def restart(self):
        stored = msgspec.json.decode(msgspec.json.encode(self.desk.book), type=AlarmBook)
        self.desk.book = resume(stored, self.desk.plan)

    @invariant()
    def the_journal_tells_all(self):
        if not hasattr(self, "desk"):
            return
        assert [entry.sequence for entry in self.desk.journal] == list(range(1, len(self.desk.journal) + 1))
        replayed = {}
        for entry in self.desk.journal:
            was = replayed.get(str(entry.key), AlarmState.NORMAL)
            assert entry.was is was, f"{entry} follows {was}"
            replayed[str(entry.key)] = entry.now
        for name, track in self.desk.book.tracks.items():
            assert track.state is replayed.get(name, AlarmState.NORMAL), name

    @invariant()
    def states_fit_activity(self):
        if not hasattr(self, "desk"):
            return
        for name, track in self.desk.book.tracks.items():
            if track.stands in (AlarmState.UNACKNOWLEDGED, AlarmState.ACKNOWLEDGED):
                assert track.is_active, name
            else:
                assert not track.is_active, name
            assert track.state is not AlarmState.SHELVED or not self.desk.plan.rules[name].is_latching

    @invariant()
    def a_cause_is_active_on_top_and_not_lesser(self):
        if not hasattr(self, "desk"):
            return
        tracks, rules = self.desk.book.tracks, self.desk.plan.rules
        for name, track in tracks.items():
            if track.cause:
                cause = tracks[track.cause]
                assert cause.is_active
                assert not cause.cause
                assert not cause.is_out
                assert rules[track.cause].priority.rank <= rules[name].priority.rank
        shown = show(self.desk.book, self.desk.plan, self.desk.now_s)
        listed = {str(one.key) for one in shown}
        assert listed >= {name for name, track in tracks.items() if track.is_active}, "children stay visible"

    @invariant()
    def what_is_kept_is_bounded(self):
        if not hasattr(self, "desk"):
            return
        book = self.desk.book
        assert len(book.outstanding) <= SETTINGS.notices_max
        assert len(book.announced_s) <= SETTINGS.flood_raises + 1
        assert all(len(track.raises_s) <= SETTINGS.chatter_raises for track in book.tracks.values())
        assert set(book.heard) <= set(self.desk.plan.stale_s)

    def teardown(self):
        entries = [effect for effect in getattr(self, "last", (0, 0, []))[2] if isinstance(effect, Write)]
        assert all(effect.entry.at_s == self.desk.now_s for effect in entries)


TestAlarms = Alarms.TestCase
TestAlarms.settings = settings(stateful_step_count=30)
