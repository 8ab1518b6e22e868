"""The newest readings of points: what is too old is stale, what comes late is left out, and the past is bounded."""

from hypothesis import given
from hypothesis import strategies as st

from madang.machine.sample_book import HISTORY_MAX, SampleBook
from madang.model import Point, PointKind, Quality, Quantity, Sample

POWER = Point(
    point_id="s1.power", equipment_id="s1", name="power", kind=PointKind.METER, quantity=Quantity.POWER, stale_s=10.0
)


def sample(value, at_s, quality=Quality.GOOD, point="s1.power"):
    value = None if quality is Quality.BAD else value
    return Sample(point_id=point, value=value, quality=quality, observed_at_s=at_s)


def test_a_point_that_never_read_anything_is_bad_and_has_no_number():
    found = SampleBook([POWER]).samples(5.0)["s1.power"]
    assert (found.value, found.quality, found.reason) == (None, Quality.BAD, "not read yet")


def test_what_is_not_heard_again_becomes_stale_and_bad_stays_bad():
    book = SampleBook([POWER])
    book.take([sample(5.0, 100.0)])
    assert book.sample("s1.power", 110.0).quality is Quality.GOOD
    old = book.sample("s1.power", 110.1)
    assert (old.quality, old.value) == (Quality.STALE, 5.0)
    assert not old.is_usable
    book.take([sample(None, 111.0, Quality.BAD)])
    assert book.sample("s1.power", 500.0).quality is Quality.BAD


def test_changes_are_told_once_and_strangers_are_passed_over():
    book = SampleBook([POWER])
    assert [one.value for one in book.take([sample(5.0, 1.0), sample(9.0, 1.0, point="x.power")])] == [5.0]
    assert book.take([sample(5.0, 2.0)]) == []
    assert len(book.take([sample(5.0, 3.0, Quality.UNCERTAIN)])) == 1
    assert set(book.samples(3.0)) == {"s1.power"}


def test_a_device_that_reorders_does_not_turn_time_back():
    book = SampleBook([POWER])
    book.take([sample(5.0, 10.0)])
    assert book.take([sample(4.0, 9.0)]) == []
    assert book.sample("s1.power", 10.0).value == 5.0
    assert book.past("s1.power") == ((10.0, 5.0),)


@given(st.lists(st.tuples(st.floats(0.0, 5000.0), st.floats(-1e6, 1e6), st.booleans()), max_size=50))
def test_the_past_goes_forward_and_holds_nothing_but_what_was_read(readings):
    book = SampleBook([POWER])
    for at_s, value, is_bad in readings:
        book.take([sample(value, at_s, Quality.BAD if is_bad else Quality.GOOD)])
    past = book.past("s1.power")
    assert list(past) == sorted(past, key=lambda one: one[0])
    assert set(past) <= {(at_s, value) for at_s, value, is_bad in readings if not is_bad}


def test_the_past_is_bounded():
    book = SampleBook([POWER])
    for second in range(HISTORY_MAX + 100):
        book.take([sample(float(second), float(second))])
    past = book.past("s1.power")
    assert len(past) == HISTORY_MAX
    assert past[-1] == (HISTORY_MAX + 99.0, HISTORY_MAX + 99.0)
