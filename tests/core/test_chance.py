from hypothesis import given
from hypothesis import strategies as st

from madang.core import Draw, draw_unit, mix64

seeds = st.integers(0, 2**64 - 1)


def test_mix64_agrees_with_the_published_splitmix64_sequence():
    # The first outputs of SplitMix64 seeded with 1234567 (java.util.SplittableRandom's reference vector).
    gamma = 0x9E3779B97F4A7C15
    got = [mix64((1234567 + i * gamma) % 2**64) for i in range(3)]
    assert got == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(seeds, st.integers(0, 1000))
def test_draws_lie_in_the_unit_interval_and_repeat(seed, index):
    value = draw_unit(seed, index)
    assert 0.0 <= value < 1.0
    assert draw_unit(seed, index) == value


@given(seeds, st.integers(1, 1000), st.integers(1, 30))
def test_below_stays_below_its_bound(seed, bound, count):
    draw = Draw(seed)
    assert all(0 <= draw.below(bound) < bound for _ in range(count))


@given(seeds)
def test_an_extra_draw_of_another_event_shifts_nothing(seed):
    first = Draw(seed)
    expected = [first.unit() for _ in range(4)]
    Draw(seed ^ 1).unit()
    again = Draw(seed)
    assert [again.unit() for _ in range(4)] == expected
