"""Thermal margin and time to the limit come from the cause; dew points agree with tables."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.policy.small_site import SERVERS, add, edge, equipment, point, read, sample, small_site

from madang.model import EdgeKind, EquipmentKind, PointKind, Quality, Quantity
from madang.model.facility_site import ThermalClass, ThermalZone
from madang.policy.facility.thermal import (
    HORIZON_S,
    LIMITS,
    condensation_margin,
    dew_point,
    dew_point_c,
    thermal_facts,
    time_to_limit_s,
)

CONTAINER = ThermalZone(place="room", mass_j_k=1_200_000, air_j_k=32_600)
COOL = {f"{name}.temperature_inlet": 21.0 for name in SERVERS} | {f"{name}.power": 1000.0 for name in SERVERS}
FAILED = {f"cooling_{n}.state_unit": sample(f"cooling_{n}.state_unit", 4.0, text="failed") for n in (1, 2)}


def test_a_unit_that_stops_makes_time_finite_while_every_inlet_still_reads_well() -> None:
    well = thermal_facts(read(small_site(), COOL), CONTAINER)
    assert (well.margin_k.value, well.time_to_limit_s.value, well.causes) == (14.0, HORIZON_S, ())
    assert well.margin_k.quality is Quality.GOOD
    failed = thermal_facts(read(small_site(), COOL | FAILED), CONTAINER)
    assert failed.margin_k.value == 14.0, "no inlet has moved yet"
    assert failed.causes == ("cooling_1", "cooling_2")
    assert failed.surplus_w.value == 3000
    assert failed.time_to_limit_s.value == pytest.approx(14 * 32_600 / 3000)
    one = thermal_facts(read(small_site(), COOL | {"cooling_1.state_unit": FAILED["cooling_1.state_unit"]}), CONTAINER)
    assert (one.causes, one.time_to_limit_s.value) == (("cooling_1",), HORIZON_S), "the other one suffices"


@pytest.mark.parametrize("quality", [Quality.GOOD, Quality.STALE])
def test_a_unit_that_said_that_it_stopped_and_fell_silent_still_stands(quality: Quality) -> None:
    said = sample("cooling_1.state_unit", 4.0, text="Failed", quality=quality)
    found = thermal_facts(read(small_site(), COOL | {"cooling_1.state_unit": said}), CONTAINER)
    assert found.causes == ("cooling_1",)
    nothing = sample("cooling_1.state_unit", None, text="failed", quality=Quality.BAD)
    assert thermal_facts(read(small_site(), COOL | {"cooling_1.state_unit": nothing}), CONTAINER).causes == ()


def test_the_warmest_inlet_counts_and_a_missing_one_is_a_doubt() -> None:
    values = COOL | {"s2.temperature_inlet": 30.0, "s3.temperature_inlet": None}
    found = thermal_facts(read(small_site(), values), CONTAINER)
    assert (found.inlet_c.value, found.margin_k.value) == (30.0, 5.0)
    assert found.margin_k.quality is Quality.UNCERTAIN
    nothing = thermal_facts(read(small_site(), {}), CONTAINER)
    assert (nothing.margin_k.value, nothing.time_to_limit_s.value) == (None, None)


def test_inlets_that_rise_faster_than_the_balance_says_count() -> None:
    found = thermal_facts(read(small_site(), COOL), CONTAINER, slope_k_s=0.1)
    assert found.time_to_limit_s.value == pytest.approx(140)
    assert "rises" in found.time_to_limit_s.reason


def test_limits_are_those_of_the_classes() -> None:
    a2 = LIMITS[ThermalClass.A2]
    assert (a2.caution_c, a2.warning_c, a2.critical_c, a2.drain_c) == (27, 30, 32, 35)
    assert (LIMITS[ThermalClass.H1].caution_c, LIMITS[ThermalClass.H1].drain_c) == (22, 25)
    zone = ThermalZone(place="room", mass_j_k=1e6, air_j_k=1e4, thermal_class=ThermalClass.H1)
    assert thermal_facts(read(small_site(), COOL), zone).limit_c == 25
    own = ThermalZone(place="room", mass_j_k=1e6, air_j_k=1e4, limit_c=30.0)
    assert thermal_facts(read(small_site(), COOL), own).margin_k.value == 9


@pytest.mark.parametrize(
    ("heat_w", "limit_c", "simulated_s"),
    [(40_000, 32, 10), (40_000, 35, 20), (40_000, 40, 140), (20_000, 32, 20), (20_000, 35, 50), (20_000, 40, 310)],
)
def test_it_is_on_the_short_side_of_a_finer_model_and_near_it(
    heat_w: float, limit_c: float, simulated_s: float
) -> None:
    """Times of a model with four nodes (equipment, hot and cold aisle, unit), 33 °C outside, from 20.7 °C."""
    found = time_to_limit_s(limit_c - 20.7, heat_w, heat_w, CONTAINER)
    assert 0.4 * simulated_s <= found <= 1.2 * simulated_s


heats = st.floats(0, 60_000)


@given(st.floats(-5, 40), heats, heats, st.floats(0, 20_000), st.floats(0, 10))
def test_more_heat_less_cooling_or_less_margin_never_lasts_longer(
    margin_k: float, heat_w: float, cooling_w: float, more_w: float, less_k: float
) -> None:
    base = time_to_limit_s(margin_k, heat_w - cooling_w, heat_w, CONTAINER)
    assert 0 <= base <= HORIZON_S
    assert time_to_limit_s(margin_k, heat_w + more_w - cooling_w, heat_w + more_w, CONTAINER) <= base + 1e-6
    assert time_to_limit_s(margin_k, heat_w - cooling_w + min(more_w, cooling_w), heat_w, CONTAINER) <= base + 1e-6
    assert time_to_limit_s(margin_k - less_k, heat_w - cooling_w, heat_w, CONTAINER) <= base + 1e-6


@pytest.mark.parametrize(
    ("temperature_c", "humidity", "expected_c"), [(20, 50, 9.27), (25, 60, 16.70), (30, 80, 26.17), (21.6, 51, 11.05)]
)
def test_dew_points_agree_with_psychrometric_tables(temperature_c: float, humidity: float, expected_c: float) -> None:
    assert dew_point_c(temperature_c, humidity) == pytest.approx(expected_c, abs=0.06)


@given(st.floats(-45, 60), st.floats(0.1, 100), st.floats(0, 50))
def test_the_dew_point_is_below_the_air_and_rises_with_humidity(t: float, humidity: float, more: float) -> None:
    low, high = dew_point_c(t, humidity), dew_point_c(t, min(humidity + more, 100))
    assert low is not None
    assert high is not None
    assert low <= high + 1e-9
    assert high <= t + 1e-6


@pytest.mark.parametrize(("t", "humidity"), [(20, 0), (20, 101), (200, 50), (-80, 50)])
def test_what_is_no_air_has_no_dew_point(t: float, humidity: float) -> None:
    assert dew_point_c(t, humidity) is None


def wet_site():
    return add(
        small_site(),
        pieces=[equipment("probe", EquipmentKind.SENSOR), equipment("loop", EquipmentKind.CDU)],
        edges=[edge(EdgeKind.MEASURES, "probe", "room")],
        points=[
            point("probe.temperature", Quantity.TEMPERATURE, context="ambient"),
            point("probe.humidity", Quantity.HUMIDITY),
            point("loop.temperature_supply", Quantity.TEMPERATURE, context="supply"),
            point("loop.setpoint", Quantity.TEMPERATURE, PointKind.SETPOINT, "supply"),
        ],
    )


def test_condensation_is_the_coldest_supply_over_the_dew_point() -> None:
    values = {"probe.temperature": 25.0, "probe.humidity": 60.0, "loop.temperature_supply": 18.0, "loop.setpoint": 5.0}
    readings = read(wet_site(), values)
    assert dew_point(readings, "room").value == pytest.approx(16.70, abs=0.06)
    assert condensation_margin(readings, "room", "loop").value == pytest.approx(1.30, abs=0.06)
    dry = read(wet_site(), {**values, "probe.humidity": None})
    assert condensation_margin(dry, "room", "loop").value is None
    read_itself = add(wet_site(), points=[point("probe.dew_point", Quantity.DEW_POINT)])
    assert dew_point(read(read_itself, {**values, "probe.dew_point": 12.0}), "room").value == 12
