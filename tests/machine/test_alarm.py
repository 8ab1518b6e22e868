"""The life of an alarm, playbook by playbook."""

import msgspec
import pytest
from tests.machine.alarm_world import MODEL, SERVERS, Desk, hot, key, rule, state

from madang.machine.alarm_book import AlarmBook, resume
from madang.machine.alarm_defaults import default_rules
from madang.machine.alarm_events import (
    Acknowledge,
    Delivered,
    PutBack,
    Refuse,
    Reset,
    Sampled,
    Shelve,
    TakeOut,
    Tick,
    Undelivered,
    Unshelve,
)
from madang.machine.alarm_notices import ANSWER_S
from madang.machine.alarm_plan import AlarmSettings
from madang.model import AlarmPriority, AlarmRole, AlarmState, Condition, Point, PointKind, Quality, Quantity, Sample

S = AlarmState
C = AlarmPriority.CRITICAL
T1 = "server1.temperature_inlet"
HOT = key("server1", "temperature_inlet", "high_high")
LEAK = key("leak1", "state", "leak")


def leak_rule():
    return rule(
        "leak1", "state", Condition.STATE, named="leak", words=("leak",), is_latching=True,
        priority=AlarmPriority.CRITICAL,
    )  # fmt: skip


def test_the_four_states_in_their_order():
    desk = Desk(hot())
    desk.read(T1, 33.0)
    assert desk.state(HOT) is S.UNACKNOWLEDGED
    desk.feed(Acknowledge(HOT, "kim"))
    assert desk.state(HOT) is S.ACKNOWLEDGED
    desk.read(T1, 25.0, after_s=1)
    assert desk.state(HOT) is S.NORMAL
    desk.read(T1, 33.0, after_s=120)
    desk.read(T1, 25.0, after_s=1)
    assert desk.state(HOT) is S.RETURNED
    desk.feed(Acknowledge(HOT, "kim"))
    assert desk.state(HOT) is S.NORMAL
    assert desk.whats() == ["raised", "acknowledged", "returned", "raised", "returned", "acknowledged"]
    assert [entry.sequence for entry in desk.journal] == [1, 2, 3, 4, 5, 6]
    assert desk.journal[1].who == "kim"


def test_a_deadband_and_delays_keep_a_flickering_value_quiet():
    desk = Desk(hot(deadband=0.5, on_delay_s=5.0, off_delay_s=10.0))
    desk.run(4, (T1, 33.0))
    assert desk.state(HOT) is S.NORMAL
    desk.run(1, (T1, 31.0))
    desk.run(5, (T1, 33.0))
    assert desk.state(HOT) is S.NORMAL, "the delay begins anew"
    desk.run(1, (T1, 33.0))
    assert desk.state(HOT) is S.UNACKNOWLEDGED
    desk.run(30, (T1, 31.8))
    assert desk.state(HOT) is S.UNACKNOWLEDGED, "31.8 is within the deadband of 32"
    desk.run(9, (T1, 31.4))
    assert desk.state(HOT) is S.UNACKNOWLEDGED
    desk.run(2, (T1, 31.4))
    assert desk.state(HOT) is S.RETURNED


def test_an_alarm_is_raised_after_its_delay_even_when_the_device_falls_silent():
    desk = Desk(hot(on_delay_s=5.0))
    desk.read(T1, 33.0)
    desk.run(6)
    assert desk.state(HOT) is S.UNACKNOWLEDGED


@pytest.mark.parametrize("quality", [Quality.BAD, Quality.STALE])
def test_bad_and_stale_samples_and_silence_end_nothing(quality):
    desk = Desk(hot(off_delay_s=5.0))
    desk.read(T1, 33.0)
    for _ in range(100):
        desk.read(T1, 20.0, quality=quality, after_s=1)
        desk.feed(Tick())
    assert desk.state(HOT) is S.UNACKNOWLEDGED
    (shown,) = desk.shown()
    assert shown.is_active
    assert not shown.is_known, "it is said that nobody knows whether it is still so"
    desk.run(5, (T1, 20.0))
    assert desk.state(HOT) is S.UNACKNOWLEDGED, "it must be seen over for the whole delay"
    desk.run(1, (T1, 20.0))
    assert desk.state(HOT) is S.RETURNED


def test_one_good_reading_before_a_silence_does_not_end_an_alarm():
    desk = Desk(hot(off_delay_s=60.0))
    desk.read(T1, 33.0)
    desk.read(T1, 20.0, after_s=1)
    desk.run(100)
    desk.read(T1, 20.0)
    assert desk.state(HOT) is S.UNACKNOWLEDGED


def test_samples_out_of_order_and_too_old_are_passed_over():
    desk = Desk(hot())
    desk.read(T1, 33.0)
    desk.read(T1, 20.0, at_s=desk.now_s - 1)
    assert desk.state(HOT) is S.UNACKNOWLEDGED
    desk.run(20)
    desk.read(T1, 20.0, at_s=desk.now_s - 15)
    assert desk.state(HOT) is S.UNACKNOWLEDGED


def test_a_latching_alarm_waits_for_a_person_who_has_looked():
    desk = Desk(leak_rule())
    desk.read("leak1.state", 1, "leak")
    assert desk.feed(Reset(LEAK, "kim")) == [Refuse(LEAK, "nobody has acknowledged it yet")]
    desk.feed(Acknowledge(LEAK, "kim"))
    assert "not seen to be over" in desk.feed(Reset(LEAK, "kim"))[0].reason
    desk.read("leak1.state", 0, "dry", after_s=5)
    assert desk.state(LEAK) is S.ACKNOWLEDGED, "a detector that has dried is no repaired pipe"
    desk.run(60)
    assert "not seen to be over" in desk.feed(Reset(LEAK, "kim"))[0].reason, "nobody has heard of it for a minute"
    desk.read("leak1.state", 0, "dry")
    desk.feed(Reset(LEAK, "kim"))
    assert desk.state(LEAK) is S.NORMAL
    assert desk.whats()[-1] == "reset"


def test_three_times_a_minute_is_chattering_and_damped():
    desk = Desk(hot())
    for _ in range(3):
        desk.read(T1, 33.0, after_s=5)
        desk.read(T1, 20.0, after_s=5)
    assert desk.whats() == ["raised", "returned", "raised", "returned", "chattering"]
    raised = len(desk.journal)
    for _ in range(20):
        desk.read(T1, 33.0, after_s=5)
        desk.read(T1, 20.0, after_s=5)
    assert len(desk.journal) == raised, "held while it chatters"
    assert desk.shown()[0].is_chattering
    assert desk.state(HOT) is S.UNACKNOWLEDGED
    desk.run(61, (T1, 20.0))
    assert desk.state(HOT) is S.RETURNED
    assert not desk.shown()[0].is_chattering


def test_the_shelf_is_for_a_time_and_not_for_what_latches():
    desk = Desk(hot(), leak_rule())
    desk.read(T1, 33.0)
    assert "at most 28800 s" in desk.feed(Shelve(HOT, "kim", desk.now_s + 30000, "work"))[0].reason
    desk.feed(Shelve(HOT, "kim", desk.now_s + 100, "sensor is being changed"))
    assert desk.state(HOT) is S.SHELVED
    assert desk.shown()[0].is_active, "shelved is listed, not gone"
    desk.run(99, (T1, 33.0))
    assert desk.state(HOT) is S.SHELVED
    desk.run(1, (T1, 33.0))
    assert desk.state(HOT) is S.UNACKNOWLEDGED
    desk.feed(Shelve(HOT, "kim", desk.now_s + 100, "again"))
    desk.read(T1, 20.0, after_s=1)
    desk.feed(Unshelve(HOT, "kim"))
    assert desk.state(HOT) is S.NORMAL
    assert "not shelved" in desk.feed(Shelve(LEAK, "kim", desk.now_s + 100, "noise"))[0].reason


def test_a_clock_that_is_set_back_lengthens_no_shelf_and_loses_no_alarm():
    desk = Desk(hot(on_delay_s=5.0))
    desk.read(T1, 33.0)
    desk.now_s -= 100000.0
    desk.run(6, (T1, 33.0))
    assert desk.state(HOT) is S.UNACKNOWLEDGED
    desk.feed(Shelve(HOT, "kim", desk.now_s + 100, "work"))
    desk.now_s -= 100000.0
    desk.feed(Tick())
    assert desk.state(HOT) is S.UNACKNOWLEDGED


def test_out_of_service_and_back():
    desk = Desk(hot())
    desk.feed(TakeOut(HOT, "kim", "sensor broken"))
    desk.read(T1, 33.0)
    assert desk.state(HOT) is S.OUT_OF_SERVICE
    assert desk.sent == []
    desk.feed(PutBack(HOT, "kim"))
    assert desk.state(HOT) is S.UNACKNOWLEDGED
    assert isinstance(desk.feed(PutBack(HOT, "kim"))[0], Refuse)
    assert isinstance(desk.feed(Acknowledge(key("x", "y", "z"), "kim"))[0], Refuse)


def power_rules():
    yield rule("utility", "state", Condition.STATE, words=("lost",), role=AlarmRole.SUPPLY)
    yield rule("pdu", "state", Condition.STATE, words=("off",), role=AlarmRole.OUTAGE)
    yield rule("chiller", "state", Condition.STATE, words=("failed",), role=AlarmRole.COOLING)
    for name in SERVERS:
        yield rule(name, "", Condition.COMMS_LOSS, role=AlarmRole.SILENCE, priority=AlarmPriority.MEDIUM)
        yield hot(name)


def test_the_root_cause_stands_on_top_and_its_children_stay_visible():
    desk = Desk(*power_rules())
    servers = [(f"{name}.temperature_inlet", 33.0) for name in SERVERS]
    desk.run(1, ("utility.state", 1, "lost"), ("chiller.state", 1, "failed"), *servers)
    alarms = desk.shown()
    assert alarms[0].key == key("utility", "state", "state")
    assert alarms[0].state is S.UNACKNOWLEDGED
    assert len(alarms[0].cause_of) == 5
    assert [one.state for one in alarms[1:]] == [S.SUPPRESSED] * 5
    assert {one.cause for one in alarms[1:]} == {alarms[0].key}
    desk.run(10, ("utility.state", 0, "normal"), ("chiller.state", 1, "failed"), *servers)
    alarms = {one.key: one for one in desk.shown()}
    assert alarms[key("chiller", "state", "state")].state is S.UNACKNOWLEDGED, "what lasts is told"
    assert alarms[key("server1", "temperature_inlet", "high_high")].cause == key("chiller", "state", "state")


def test_what_a_ups_carries_does_not_explain_silence_and_what_a_dead_pdu_feeds_does():
    desk = Desk(*power_rules())
    everything = [(f"{name}.temperature_inlet", 25.0) for name in SERVERS]
    desk.run(1, *everything)
    desk.run(15, ("utility.state", 1, "lost"), ("pdu.state", 0, "on"), *everything[1:])
    assert desk.state(key("server1", "", "comms_loss")) is S.UNACKNOWLEDGED
    desk.run(15, ("utility.state", 1, "lost"), ("pdu.state", 1, "off"))
    for name in SERVERS:
        assert desk.state(key(name, "", "comms_loss")) is S.SUPPRESSED


def test_an_urgent_alarm_is_not_put_behind_a_lesser_one_nor_behind_one_out_of_service():
    urgent = hot("server1", priority=AlarmPriority.CRITICAL)
    chiller = rule("chiller", "state", Condition.STATE, words=("failed",), role=AlarmRole.COOLING)
    desk = Desk(chiller, urgent, hot("server2"))
    reads = [("chiller.state", 1, "failed"), (T1, 33.0), ("server2.temperature_inlet", 33.0)]
    desk.run(1, *reads)
    assert desk.state(HOT) is S.UNACKNOWLEDGED
    assert desk.state(key("server2", "temperature_inlet", "high_high")) is S.SUPPRESSED
    desk.feed(TakeOut(chiller.key, "kim", "being replaced"))
    assert desk.state(key("server2", "temperature_inlet", "high_high")) is S.UNACKNOWLEDGED


def test_silence_is_an_alarm_of_its_own_and_never_normal():
    comms = rule("server1", "", Condition.COMMS_LOSS, role=AlarmRole.SILENCE)
    lost = rule("server1", "temperature_inlet", Condition.READING_LOST, role=AlarmRole.READING)
    desk = Desk(hot(), comms, lost)
    desk.run(59)
    assert desk.shown() == (), "the first reading may take its time"
    desk.run(3)
    assert desk.state(comms.key) is S.UNACKNOWLEDGED
    assert desk.state(lost.key) is S.SUPPRESSED
    desk.run(1, (T1, 25.0))
    assert desk.state(comms.key) is S.RETURNED
    desk.run(11)
    assert desk.state(comms.key) is S.UNACKNOWLEDGED, "stale after ten seconds"


def test_one_of_two_devices_that_falls_silent_is_told_and_explains_what_it_read():
    points = tuple(
        Point(
            point_id=f"server1.{name}",
            equipment_id="server1",
            name=name,
            kind=PointKind.SETPOINT if name == "limit_power" else PointKind.SENSOR,
            quantity=Quantity.POWER if name == "limit_power" else Quantity.TEMPERATURE,
            stale_s=10.0,
        )
        for name in ("temperature_inlet", "temperature_outlet", "temperature_ambient", "limit_power")
    )
    bmc, host = ("temperature_inlet", "temperature_outlet", "limit_power"), ("temperature_ambient",)
    devices = {f"server1.{name}": "bmc" for name in bmc} | {f"server1.{name}": "host" for name in host}
    model = msgspec.structs.replace(MODEL, points=points)
    rules = default_rules(model, devices)
    silences = {one.key.condition: one.over for one in rules if one.condition is Condition.COMMS_LOSS}
    assert silences == {
        "comms_loss": (),
        "comms_loss:bmc": ("server1.temperature_inlet", "server1.temperature_outlet"),
        "comms_loss:host": ("server1.temperature_ambient",),
    }
    assert not any(":" in one.key.condition for one in default_rules(model, dict.fromkeys(devices, "bmc")))
    desk = Desk(*rules, model=model)
    both = [(f"server1.temperature_{name}", 25.0) for name in ("inlet", "outlet", "ambient")]
    desk.run(30, *both)
    assert desk.shown() == ()
    desk.run(60, both[2])
    assert standing(desk) == ["daegu/server1/-/comms_loss:bmc"]
    assert desk.state(key("server1", "", "comms_loss")) is S.NORMAL, "the other one answers"
    assert desk.state(key("server1", "temperature_inlet", "reading_lost")) is S.SUPPRESSED
    desk.run(60)
    assert standing(desk) == ["daegu/server1/-/comms_loss"], "both are silent: that is one alarm"
    desk.run(30, *both)
    assert not any(one.is_active for one in desk.shown())


def standing(desk):
    return [str(one.key) for one in desk.shown() if one.is_active and one.cause is None]


def test_rates_and_discrepancies():
    fast = rule("server1", "temperature_inlet", Condition.RATE, limit=2.0)
    apart = rule("server2", "temperature_inlet", Condition.DISCREPANCY, limit=5.0, other="server3.temperature_inlet")
    desk = Desk(fast, apart)
    for second in range(130):
        desk.run(1, (T1, 20.0 + second * 1.5 / 60))
    assert desk.state(fast.key) is S.NORMAL
    for second in range(130):
        desk.run(1, (T1, 24.0 - second * 2.5 / 60))
    assert desk.state(fast.key) is S.UNACKNOWLEDGED, "falling counts too"
    desk.run(1, ("server2.temperature_inlet", 30.0))
    assert desk.state(apart.key) is S.NORMAL, "there is nothing to compare with"
    desk.run(1, ("server3.temperature_inlet", 24.0))
    assert desk.state(apart.key) is S.UNACKNOWLEDGED


def test_a_notice_is_tried_a_bounded_number_of_times():
    settings = AlarmSettings(channels=(("webhook", AlarmPriority.LOW),), attempts_max=3, escalate_s=())
    desk = Desk(leak_rule(), settings=settings)
    desk.read("leak1.state", 1, "leak")
    (notice,) = desk.sent
    assert "누수" not in notice.text_en
    assert notice.text_ko.startswith("[daegu] 경보 발생 (긴급)")
    desk.feed(Undelivered(notice.notice_id, "refused"), after_s=1)
    desk.run(4)
    assert len(desk.sent) == 1
    desk.run(2)
    assert len(desk.sent) == 2
    assert desk.sent[1] == notice, "the same one, so that a receiver can tell"
    desk.run(int(ANSWER_S) + 11)
    assert len(desk.sent) == 3, "no answer is no delivery"
    desk.feed(Undelivered(notice.notice_id, "refused"))
    desk.run(1000)
    assert len(desk.sent) == 3
    assert desk.whats() == ["raised", "notice_given_up"]


def test_what_nobody_acknowledges_goes_one_level_up_and_not_for_ever():
    settings = AlarmSettings(
        channels=(("webhook", AlarmPriority.LOW),), escalate_s=((AlarmPriority.CRITICAL, 300.0),), levels_max=2
    )
    desk = Desk(leak_rule(), settings=settings)
    desk.read("leak1.state", 1, "leak")
    for _ in range(2000):
        desk.run(1)
        for notice in desk.sent:
            desk.feed(Delivered(notice.notice_id))
    assert [notice.level for notice in desk.sent] == [0, 1, 2]
    assert desk.whats() == ["raised", "escalated", "escalated"]


def test_a_child_whose_cause_comes_late_is_not_told():
    desk = Desk(*power_rules())
    desk.run(1, (T1, 33.0))
    assert desk.sent == []
    desk.run(2, (T1, 33.0), ("chiller.state", 1, "failed"))
    desk.run(10, (T1, 33.0), ("chiller.state", 1, "failed"))
    assert [notice.key for notice in desk.sent] == [key("chiller", "state", "state")]


def test_lost_cooling_is_told_when_the_ups_had_time_to_say_why():
    cooling = rule("chiller", "state", Condition.STATE, words=("failed",), role=AlarmRole.COOLING, priority=C)
    battery = rule("ups", "state", Condition.STATE, words=("on_battery",), role=AlarmRole.SUPPLY, priority=C)
    desk = Desk(cooling, battery)
    well = (("ups.state", 0, "normal"), ("chiller.state", 0, "running"))
    desk.run(3, *well)
    desk.run(3, ("ups.state", 0, "normal"), ("chiller.state", 1, "failed"))
    desk.run(20, ("ups.state", 1, "on_battery"), ("chiller.state", 1, "failed"))
    assert [notice.key for notice in desk.sent] == [battery.key]
    assert desk.state(cooling.key) is S.SUPPRESSED
    alone = Desk(cooling, battery)
    alone.run(3, *well)
    alone.run(10, ("ups.state", 0, "normal"), ("chiller.state", 1, "failed"))
    assert [notice.key for notice in alone.sent] == [cooling.key], "told all the same"


def test_a_reading_that_proves_a_cause_wrong_brings_its_children_up_and_a_clock_set_back_does_not_keep_them():
    cooling = rule("chiller", "state", Condition.STATE, words=("failed",), role=AlarmRole.COOLING, priority=C)
    utility = rule("utility", "state", Condition.STATE, words=("lost",), role=AlarmRole.SUPPLY)
    battery = rule("ups", "state", Condition.STATE, words=("on_battery",), role=AlarmRole.SUPPLY, priority=C)
    desk = Desk(cooling, battery, utility)
    now = (("ups.state", 1, "on_battery"), ("chiller.state", 1, "failed"))
    desk.run(3, *now)
    assert desk.state(cooling.key) is S.SUPPRESSED
    desk.run(4, *now, ("utility.state", 0, "normal"))
    assert desk.state(cooling.key) is S.UNACKNOWLEDGED, "nothing moved but the utility's word"
    assert desk.whats(cooling.key) == ["raised", "suppressed", "unsuppressed"]
    other = Desk(cooling, battery, utility)
    other.run(3, *now)
    other.now_s -= 500.0
    other.run(8, *now, ("utility.state", 0, "normal"))
    assert other.state(cooling.key) is S.UNACKNOWLEDGED


def test_in_a_flood_only_critical_alarms_are_told():
    rules = [hot(name) for name in SERVERS]
    settings = AlarmSettings(channels=(("webhook", AlarmPriority.LOW),), flood_raises=3)
    desk = Desk(*rules, leak_rule(), settings=settings)
    desk.run(10, *[(f"{name}.temperature_inlet", 33.0) for name in SERVERS])
    assert desk.book.is_flood
    assert [notice.what for notice in desk.sent].count("flood") == 1
    told = len(desk.sent)
    desk.run(1, ("leak1.state", 1, "leak"))
    assert len(desk.sent) == told + 1
    assert desk.sent[-1].key == LEAK
    desk.run(700)
    assert not desk.book.is_flood


def test_the_book_survives_the_program():
    desk = Desk(hot(), leak_rule())
    desk.read(T1, 33.0)
    desk.feed(Acknowledge(HOT, "kim"))
    desk.read("leak1.state", 1, "leak")
    stored = msgspec.json.decode(msgspec.json.encode(desk.book), type=AlarmBook)
    desk.book = resume(stored, desk.plan)
    assert desk.state(HOT) is S.ACKNOWLEDGED
    sequence = desk.book.sequence
    desk.now_s += 3600
    desk.feed(Tick())
    assert desk.state(LEAK) is S.UNACKNOWLEDGED
    desk.read(T1, 20.0)
    assert desk.state(HOT) is S.NORMAL
    assert desk.book.sequence == sequence + 1 + ("escalated" in desk.whats())


def test_a_program_that_begins_anew_takes_nobody_for_silent_before_it_has_asked():
    silent, comms = key("server1", "temperature_inlet", "reading_lost"), key("server1", "", "comms_loss")
    desk = Desk(*default_rules(MODEL))
    desk.read(T1, 20.0)
    desk.feed(Tick())
    # The devices end first: silence is about to be told when the program ends.
    desk.now_s += desk.plan.stale_s[T1] - 0.5
    desk.feed(Tick())
    assert desk.state(comms) is S.NORMAL
    desk.book = resume(msgspec.json.decode(msgspec.json.encode(desk.book), type=AlarmBook), desk.plan)
    desk.now_s += 1200.0
    for _ in range(20):
        desk.now_s += 0.5
        desk.feed(Tick())
        assert desk.state(silent) is S.NORMAL
        assert desk.state(comms) is S.NORMAL
    desk.now_s += 1200.0
    desk.feed(Tick())
    desk.now_s += 60.0
    desk.feed(Tick())
    assert desk.state(comms) is S.UNACKNOWLEDGED, "who stays silent is told of"
    desk.book = resume(desk.book, desk.plan)
    for _ in range(600):
        desk.now_s += 0.5
        desk.feed(Tick())
        assert desk.state(comms) is S.UNACKNOWLEDGED, "and stands through the next life until heard"


def test_a_site_has_alarms_without_writing_any():
    rules = {str(one.key): one for one in default_rules(MODEL)}
    leak = rules["daegu/leak1/leak1.state/leak"]
    assert leak.is_latching
    assert leak.on_delay_s == 0.0
    assert leak.words == ("alarm", "critical", "detected", "leak", "leak_detected", "warning", "wet")
    inlet = rules["daegu/server1/server1.temperature_inlet/high_high"]
    assert (inlet.limit, inlet.deadband) == (32.0, 0.5)
    assert "ASHRAE" in inlet.source
    assert rules["daegu/ups/ups.state/on_battery"].role is AlarmRole.SUPPLY
    assert rules["daegu/server1/-/comms_loss"].condition is Condition.COMMS_LOSS
    assert rules["daegu/server1/server1.temperature_inlet/reading_lost"].priority is AlarmPriority.LOW
    health = state("server1", {0: "ok", 1: "warning", 2: "critical"}, name="state_health")
    (general,) = [
        one
        for one in default_rules(msgspec.structs.replace(MODEL, points=(health,)))
        if one.condition is Condition.STATE
    ]
    assert "critical" in general.words
    assert "warning" not in general.words
    desk = Desk(*rules.values())
    desk.run(10, ("ups.state", 1, "on_battery"))
    assert desk.state(key("ups", "state", "on_battery")) is S.UNACKNOWLEDGED


def test_samples_of_unknown_points_are_harmless():
    desk = Desk(hot())
    sample = Sample(point_id="x.y", value=1.0, quality=Quality.GOOD, observed_at_s=desk.now_s)
    assert desk.feed(Sampled((sample,))) == []
    assert desk.book.heard == {}
