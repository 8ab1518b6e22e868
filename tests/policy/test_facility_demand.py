"""The demand of 15 minutes: its mean so far, at its end, and what may still be drawn."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.model import Quality
from madang.policy.facility.demand import INTERVAL_S, PowerReading, demand, interval_of

START_S = 1_764_000_000.0 // INTERVAL_S * INTERVAL_S


def steady(power_w: float, until_s: float, step_s: float = 10.0, from_s: float = 0.0) -> list[PowerReading]:
    count = int((until_s - from_s) / step_s) + 1
    return [PowerReading(at_s=START_S + from_s + n * step_s, power_w=power_w) for n in range(count)]


def test_intervals_are_the_quarters_of_korean_hours() -> None:
    assert interval_of(START_S) == (START_S, START_S + 900)
    assert interval_of(START_S + 899.9) == (START_S, START_S + 900)
    assert (START_S + 9 * 3600) % 900 == 0


def test_a_steady_draw_is_its_own_demand() -> None:
    found = demand(steady(5000, 300), START_S + 300, 8000)
    assert (found.so_far_w.value, found.forecast_w.value) == (pytest.approx(5000), pytest.approx(5000))
    assert found.allowed_w.value == pytest.approx((8000 * 900 - 5000 * 300) / 600)
    assert found.so_far_w.quality is Quality.GOOD


def test_a_step_shows_in_the_forecast_first() -> None:
    readings = steady(2000, 590) + steady(8000, 600, from_s=600)
    found = demand(readings, START_S + 600, 4000)
    assert found.so_far_w.value == pytest.approx(2000)
    assert found.forecast_w.value == pytest.approx((2000 * 600 + 8000 * 300) / 900)
    assert found.allowed_w.value == pytest.approx((4000 * 900 - 2000 * 600) / 300)


def test_a_limit_that_is_lost_already_is_said() -> None:
    found = demand(steady(9000, 800), START_S + 800, 5000)
    assert found.allowed_w.value is not None
    assert found.allowed_w.value < 0


def test_holes_are_doubted_and_nothing_is_nothing() -> None:
    holed = demand(steady(5000, 100) + steady(5000, 600, from_s=500), START_S + 600)
    assert holed.so_far_w.quality is Quality.UNCERTAIN
    assert "400 s" in holed.so_far_w.reason
    assert holed.allowed_w.value is None
    silent = demand(steady(5000, 100), START_S + 400)
    assert silent.so_far_w.quality is Quality.UNCERTAIN
    late = demand(steady(5000, -100, from_s=-300), START_S + 100)
    assert (late.forecast_w.value, late.forecast_w.quality) == (pytest.approx(5000), Quality.UNCERTAIN)
    assert demand(steady(5000, -100, from_s=-300), START_S + 10_000).forecast_w.value is None
    assert demand([], START_S).so_far_w.value is None


def test_a_reading_of_before_knows_the_beginning() -> None:
    found = demand(steady(3000, -5, from_s=-5) + steady(5000, 10, from_s=10), START_S + 10)
    assert found.so_far_w.value == pytest.approx(3000)


@given(st.lists(st.floats(0, 50_000), min_size=1, max_size=89), st.floats(1, 60_000))
def test_keeping_to_what_is_allowed_keeps_the_limit(powers: list[float], limit_w: float) -> None:
    readings = [PowerReading(at_s=START_S + n * 10, power_w=power) for n, power in enumerate(powers)]
    now_s = readings[-1].at_s + 10
    found = demand(readings, now_s, limit_w)
    assert found.so_far_w.value is not None
    assert found.allowed_w.value is not None
    assert min(powers) - 1e-6 <= found.so_far_w.value <= max(powers) + 1e-6
    mean = (found.so_far_w.value * (now_s - START_S) + found.allowed_w.value * (START_S + 900 - now_s)) / 900
    assert mean == pytest.approx(limit_w, rel=1e-6, abs=1e-3)
