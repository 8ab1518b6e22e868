"""When a chip is cordoned by rule: in a row, for long enough, and never more than half of them for dying engines."""

from madang.core import ChipId, NodeId, s_to_ns
from madang.machine.chip_watch import ChipTrack, WatchRules, may_cordon_for_deaths, note_death, note_reading
from madang.model import Chip, ChipHealth, CordonCause

RULES = WatchRules(failed_readings=3, degraded_readings=4, throttled_s=10.0, deaths_max=3, deaths_s=60.0)


def chip(name="c", **changes):
    return Chip(chip_id=ChipId(name), node=NodeId("n"), kind="k", model="m", memory_bytes=1, **changes)


def watch(*readings, period_s=5.0):
    """Return the causes after each reading."""
    track, causes = ChipTrack(), []
    for index, changes in enumerate(readings):
        track, found = note_reading(track, chip(**changes), s_to_ns(index * period_s), RULES)
        causes.append([cause for cause, _ in found])
    return causes


OK, BAD = {"health": ChipHealth.OK}, {"health": ChipHealth.FAILED, "reason": "gone"}
WARM = {"health": ChipHealth.DEGRADED, "reason": "warm"}
UNKNOWN = {"health": ChipHealth.UNKNOWN}


def test_failure_counts_in_a_row():
    assert watch(BAD, BAD, OK, BAD, BAD) == [[]] * 5
    assert watch(BAD, BAD, BAD) == [[], [], [CordonCause.FAILED]]


def test_a_tool_that_hangs_neither_counts_nor_clears():
    assert watch(*[UNKNOWN] * 9) == [[]] * 9
    assert watch(BAD, BAD, UNKNOWN, BAD)[-1] == [CordonCause.FAILED]


def test_degraded_and_throttled_take_longer():
    assert watch(WARM, WARM, WARM, WARM)[-2:] == [[], [CordonCause.DEGRADED]]
    hot = {**OK, "throttle_reasons": ("thermal_slowdown",)}
    assert watch(hot, hot, hot)[-2:] == [[], [CordonCause.THROTTLED]]
    assert watch(hot, hot, OK, hot, hot) == [[]] * 5
    assert watch(*[{**OK, "throttle_reasons": ("IDLE",)}] * 5) == [[]] * 5


def test_versions_that_do_not_fit_count_at_once():
    _, ((cause, reason),) = note_reading(ChipTrack(), chip(incompatibility="driver 2 with firmware 3"), 0, RULES)
    assert (cause, reason) == (CordonCause.INCOMPATIBLE, "driver 2 with firmware 3")


def test_deaths_count_within_their_window():
    track, found = ChipTrack(), None
    for at_s in (0, 50, 70):
        track, found = note_death(track, s_to_ns(at_s), RULES)
    assert found is None
    _, found = note_death(track, s_to_ns(80), RULES)
    assert found == (CordonCause.ENGINE_DEATHS, "3 engines died on it within 30 s")


def test_at_most_half_of_a_kind_is_cordoned_for_deaths():
    chips = tuple(chip(name) for name in "abcd")
    assert may_cordon_for_deaths(chips[0], chips, frozenset())
    assert may_cordon_for_deaths(chips[0], chips, frozenset({ChipId("b")}))
    assert not may_cordon_for_deaths(chips[0], chips, frozenset({ChipId("b"), ChipId("c")}))
    assert not may_cordon_for_deaths(chips[0], chips[:1], frozenset())
