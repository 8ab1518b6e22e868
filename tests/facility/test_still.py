"""Values that stand still where they should move are doubted, and only those."""

from hypothesis import given
from hypothesis import strategies as st

from madang.facility.profile import PointSpec, to_sample
from madang.facility.still import StillWatch
from madang.model import Quality, Quantity

SPEC = PointSpec(name="voltage", quantity=Quantity.VOLTAGE, ref="x", still_s=60)


def judge(watch, value, now_s, spec=SPEC, reason=""):
    return watch.judge(spec, to_sample(spec, "ups.voltage", value, now_s=now_s, reason=reason), int(now_s * 1e9))


def test_a_value_is_doubted_after_its_time_and_believed_when_it_moves():
    watch = StillWatch()
    assert judge(watch, 230.1, 0).quality is Quality.GOOD
    assert judge(watch, 230.1, 60).quality is Quality.GOOD
    doubted = judge(watch, 230.1, 61)
    assert (doubted.quality, doubted.value, doubted.reason) == (
        Quality.UNCERTAIN,
        230.1,
        "it has not moved for 61 s: a stuck reading",
    )
    assert judge(watch, 230.2, 62).quality is Quality.GOOD
    assert judge(watch, 230.2, 122).quality is Quality.GOOD


def test_a_bad_reading_between_does_not_make_a_stuck_one_move():
    watch = StillWatch()
    judge(watch, 230.1, 0)
    assert judge(watch, None, 30).quality is Quality.BAD
    assert judge(watch, 230.1, 61).quality is Quality.UNCERTAIN


def test_another_doubt_is_not_replaced():
    watch = StillWatch()
    judge(watch, 230.1, 0, reason="an estimate")
    assert judge(watch, 230.1, 90, reason="an estimate").reason == "an estimate"


@given(st.lists(st.tuples(st.sampled_from([1.0, 2.0, None]), st.integers(0, 100)), max_size=30))
def test_points_without_a_time_are_never_doubted(readings):
    plain = PointSpec(name="voltage", quantity=Quantity.VOLTAGE, ref="x")
    watch, now_s = StillWatch(), 0
    for value, step_s in readings:
        now_s += step_s
        assert judge(watch, value, now_s, plain).quality is not Quality.UNCERTAIN
