"""A host's disks, links, memory and clock have alarms without writing any; counters are judged by their rise."""

import msgspec
import pytest
from tests.machine.alarm_world import MODEL, Desk

from madang.facility.profile import list_profiles, load_profile
from madang.machine.alarm_defaults import default_rules
from madang.model import AlarmPriority, AlarmState, Condition, Quantity

P = AlarmPriority
C = Condition
HOST = "server1"
SILENCE = (C.READING_LOST, C.COMMS_LOSS)


def points_of(profile_name):
    profile = load_profile("prometheus", profile_name)
    parts = {spec.part: HOST for spec in profile.points if spec.part}
    return tuple(spec.point(HOST, parts, poll_s=5.0, is_simulated=True) for spec in profile.points)


def rules_of(*points):
    return default_rules(msgspec.structs.replace(MODEL, points=points))


def rules_on(name, profile="node_exporter"):
    found = [one for one in points_of(profile) if one.name == name]
    return {one.condition: one for one in rules_of(*found) if one.condition not in SILENCE}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("level_data", {C.HIGH: (90.0, P.MEDIUM), C.HIGH_HIGH: (97.0, P.CRITICAL)}),
        ("alarm_read_only_root", {C.STATE: (0.0, P.CRITICAL)}),
        ("alarm_lost_root", {C.STATE: (0.0, P.HIGH)}),
        ("health_nvme_2", {C.LOW: (20.0, P.MEDIUM), C.LOW_LOW: (5.0, P.HIGH)}),
        ("spare_nvme_2", {}),
        ("alarm_spare_nvme_0", {C.STATE: (0.0, P.HIGH)}),
        ("alarm_smart_disk_3", {C.STATE: (0.0, P.HIGH)}),
        ("errors_media_nvme_0", {C.RATE: (0.0, P.HIGH)}),
        ("temperature_nvme_0", {C.HIGH: (70.0, P.MEDIUM)}),
        ("state_link_1", {C.STATE: (0.0, P.HIGH)}),
        ("errors_in_link_1", {C.RATE: (10.0, P.MEDIUM)}),
        ("load_memory", {C.HIGH: (95.0, P.MEDIUM)}),
        ("errors_uncorrected", {C.RATE: (0.0, P.CRITICAL)}),
        ("state_clock", {C.STATE: (0.0, P.HIGH)}),
        ("duration_clock_error", {C.HIGH: (1.0, P.MEDIUM)}),
        ("duration_up", {}),
        ("temperature_chip", {}),
    ],
)
def test_what_is_alarmed_at_which_limit(name, expected):
    rules = rules_on(name)
    assert {condition: (rule.limit, rule.priority) for condition, rule in rules.items()} == expected
    for rule in rules.values():
        assert rule.title_ko
        assert rule.title_en
        assert rule.source


@pytest.mark.parametrize("profile", list_profiles("prometheus"))
def test_every_state_of_a_host_has_a_rule_whose_words_it_can_say(profile):
    for point in points_of(profile):
        if point.quantity is not Quantity.STATE:
            continue
        [rule] = rules_on(point.name, profile).values()
        assert set(rule.words) & set(point.states.values()), point.name


def raised_by(name, *values, profile="node_exporter", word=lambda value: "", every_s=30):
    """Return by condition the alarms that stand after a point read these values, one each half minute."""
    rules = rules_on(name, profile).values()
    desk = Desk(*rules, model=msgspec.structs.replace(MODEL, points=points_of(profile)))
    for value in values:
        desk.run(every_s, (f"{HOST}.{name}", value, word(value)))
    return {one.condition for one in rules if desk.state(one.key) is not AlarmState.NORMAL}


def test_a_file_system_is_nearly_full_and_then_full():
    assert raised_by("level_root", 89.9, 89.9, 89.9, 89.9) == set()
    assert raised_by("level_root", 91.0, 91.0, 91.0, 91.0) == {C.HIGH}
    assert raised_by("level_root", 97.5, 97.5, 97.5, 97.5) == {C.HIGH, C.HIGH_HIGH}


def test_a_drive_is_worn_and_then_worn_out():
    assert raised_by("health_nvme_0", 21.0, 21.0, 21.0, 21.0) == set()
    assert raised_by("health_nvme_0", 19.0, 19.0, 19.0, 19.0) == {C.LOW}
    assert raised_by("health_nvme_0", -20.0, -20.0, -20.0, -20.0) == {C.LOW, C.LOW_LOW}


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("state_link_0", "up", "down"),
        ("state_clock", "synchronised", "unsynchronised"),
        ("alarm_read_only_root", "clear", "active"),
    ],
)
def test_a_word_of_trouble_is_an_alarm(name, good, bad):
    words = {0.0: good, 1.0: bad}
    assert raised_by(name, *[0.0] * 14, word=words.get) == set()
    assert raised_by(name, *[1.0] * 14, word=words.get) == {C.STATE}


@pytest.mark.parametrize(
    ("name", "values", "is_raised"),
    [
        ("errors_in_link_0", (5e6, 5e6 + 4, 5e6 + 8, 5e6 + 12, 5e6 + 16), False),
        ("errors_in_link_0", (5e6, 5e6 + 6, 5e6 + 12, 5e6 + 18, 5e6 + 24), True),
        # The host was started anew: the counters began at nothing, and that is no error.
        ("errors_in_link_0", (5e6, 5e6, 0, 0, 0, 0), False),
        ("errors_in_link_0", (5e6, 5e6, 0, 6, 12, 18), True),
        ("errors_media_nvme_0", (3, 3, 3, 3, 3, 3), False),
        ("errors_media_nvme_0", (3, 3, 4, 4, 4, 4), True),
        ("errors_uncorrected", (0, 0, 1, 1, 1), True),
    ],
)
def test_a_counter_is_judged_by_its_rise(name, values, is_raised):
    assert raised_by(name, *map(float, values)) == ({C.RATE} if is_raised else set())


def test_what_a_counter_rose_by_while_nobody_read_it_is_told_afterwards():
    [rule] = rules_on("errors_media_nvme_0").values()
    desk = Desk(rule, model=msgspec.structs.replace(MODEL, points=points_of("node_exporter")))
    point = f"{HOST}.errors_media_nvme_0"
    desk.run(70, (point, 3.0))
    desk.now_s += 86_400
    desk.run(70, (point, 3.0))
    assert desk.state(rule.key) is AlarmState.NORMAL
    desk.now_s += 86_400
    desk.run(70, (point, 4.0))
    assert desk.state(rule.key) is AlarmState.UNACKNOWLEDGED
    desk.run(300, (point, 4.0))
    assert desk.state(rule.key) is AlarmState.UNACKNOWLEDGED, "it latches: a person looks at the drive"


def test_what_its_exporter_no_longer_lists_is_gone_and_a_silent_exporter_is_one_alarm():
    points = points_of("node_exporter")
    named = [one for one in points if one.name in ("level_root", "level_data", "state_link_0", "health_nvme_0")]
    rules = rules_of(*named)
    lost = {one.key.point.partition(".")[2]: one for one in rules if one.condition is C.READING_LOST}
    assert {one.priority for one in lost.values()} == {P.MEDIUM}
    desk = Desk(*rules, model=msgspec.structs.replace(MODEL, points=tuple(named)))
    reads = [(f"{HOST}.level_root", 40.0), (f"{HOST}.state_link_0", 1.0, "up"), (f"{HOST}.health_nvme_0", 90.0)]
    desk.run(30, *reads, (f"{HOST}.level_data", 40.0))
    desk.run(60, *reads)
    standing = {name for name, rule in lost.items() if desk.state(rule.key) is not AlarmState.NORMAL}
    assert standing == {"level_data"}
    desk.run(60)
    active = {str(one.key): one.state for one in desk.shown() if one.is_active}
    [top] = [name for name, state in active.items() if state is not AlarmState.SUPPRESSED]
    assert top.endswith(C.COMMS_LOSS.value)
    assert len(active) == 1 + len(named)
