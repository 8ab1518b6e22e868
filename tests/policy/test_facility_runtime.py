"""A UPS's runtime: our own model, its p10, what a device may be believed, and what is measured in a discharge."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.model import Fact, Quality
from madang.model.facility_site import Battery, Chemistry
from madang.policy.facility.readings import unknown
from madang.policy.facility.runtime import ChargeReading, believe_device, full_runtime_s, measured_runtime_s, runtime

VRLA = Battery(ups="u", energy_wh=1000, rated_h=10, efficiency=0.9, health=0.8)
TABLE = Battery(ups="u", energy_wh=900, runtime_table=((500.0, 2700.0), (1000.0, 1140.0), (2000.0, 420.0)))
NOTHING = unknown("no reading")


def fact(value: float) -> Fact:
    return Fact(value=value, quality=Quality.GOOD, age_s=1.0)


def p10(battery: Battery, power: float, charge: float, health: float | None = 90.0, device: Fact = NOTHING) -> float:
    found = runtime(battery, fact(power), fact(charge), NOTHING if health is None else fact(health), device).p10_s
    assert found.value is not None
    return found.value


def test_the_model_is_energy_over_power_with_the_law_of_the_chemistry() -> None:
    at_rated_w = 100 * 0.9
    assert full_runtime_s(VRLA, at_rated_w) == pytest.approx(36_000), "its rated ten hours"
    ten_times = full_runtime_s(VRLA, 10 * at_rated_w)
    assert ten_times == pytest.approx(36_000 / 10 * 10**-0.20)
    lithium = Battery(ups="u", energy_wh=1000, rated_h=1, efficiency=0.9, chemistry=Chemistry.LI_ION)
    assert full_runtime_s(lithium, 1800) == pytest.approx(1000 / 2000 * 3600 * 2**-0.03)
    assert full_runtime_s(VRLA, 0) == 86_400


def test_the_makers_table_is_met_at_its_rows_and_short_between_and_beyond() -> None:
    for power_w, seconds in TABLE.runtime_table:
        assert full_runtime_s(TABLE, power_w) == pytest.approx(seconds)
    assert 420 < full_runtime_s(TABLE, 1500) < 1140
    assert full_runtime_s(TABLE, 4000) < 210, "twice the load is less than half the time"
    assert full_runtime_s(TABLE, 250) == pytest.approx(5400)


positive = st.floats(1, 50_000)


@given(st.sampled_from([VRLA, TABLE]), positive, st.floats(0, 50_000), st.floats(0, 100), st.floats(0, 100))
def test_more_load_less_charge_or_less_health_never_lasts_longer(
    battery: Battery, power: float, more: float, charge: float, health: float
) -> None:
    base = p10(battery, power, charge, health)
    assert p10(battery, power + more, charge, health) <= base + 1e-6
    assert p10(battery, power, charge * 0.9, health) <= base + 1e-6
    assert p10(battery, power, charge, health * 0.9) <= base + 1e-6


@given(positive, st.floats(0, 100), st.floats(-10, 200_000))
def test_the_p10_is_below_what_is_expected_and_never_above_a_plausible_device(
    power: float, charge: float, device_s: float
) -> None:
    found = runtime(VRLA, fact(power), fact(charge), NOTHING, fact(device_s))
    assert found.p10_s.value is not None
    assert found.expected_s.value is not None
    assert 0 <= found.p10_s.value <= found.expected_s.value
    if found.device_s.value is not None:
        assert found.p10_s.value <= found.device_s.value


def test_an_assumed_health_widens_the_spread_and_is_said() -> None:
    assert p10(VRLA, 500, 100, None) < p10(VRLA, 500, 100, 80.0)
    found = runtime(VRLA, fact(500), fact(100), NOTHING, NOTHING)
    assert "80% assumed" in found.p10_s.reason


@pytest.mark.parametrize(
    ("device_s", "charge", "before_s", "is_discharging", "is_believed"),
    [
        (1800.0, 100.0, None, False, True),
        (65_520.0, 100.0, None, False, True),
        (0.0, 100.0, None, False, False),
        (-60.0, 100.0, None, False, False),
        (3_932_100.0, 100.0, None, False, False),
        (10.0, 100.0, None, False, False),
        (10.0, 5.0, 600.0, True, True),
        (600.0, 80.0, 600.0, True, False),
        (590.0, 80.0, 600.0, True, True),
    ],
)
def test_a_device_is_believed_where_it_can_be_true(device_s, charge, before_s, is_discharging, is_believed) -> None:
    """65,520 s, 0 s and -1 minute at full charge on mains are what recorded UPSs say."""
    found = believe_device(fact(device_s), fact(charge), before_s, is_discharging=is_discharging)
    assert (found.value is not None) is is_believed
    assert bool(found.reason) is not is_believed


def discharge(rate_per_s: float, until_s: float, step_s: float = 5.0, noise: float = 0.0) -> list[ChargeReading]:
    count = int(until_s / step_s) + 1
    return [
        ChargeReading(at_s=n * step_s, charge=1 - rate_per_s * n * step_s + (noise if n % 2 else -noise))
        for n in range(count)
    ]


def test_after_30_seconds_the_measured_fall_counts() -> None:
    assert measured_runtime_s(discharge(0.001, 25)) == (None, 0.0)
    assert measured_runtime_s(discharge(0.0001, 40))[0] is None, "less than a step of the gauge"
    assert measured_runtime_s(discharge(-0.001, 60))[0] is None, "it rises"
    found, weight = measured_runtime_s(discharge(0.001, 60))
    assert found == pytest.approx((1 - 0.06) / 0.001)
    assert weight == pytest.approx(0.6)
    noisy, _ = measured_runtime_s(discharge(0.001, 120, noise=0.003))
    assert noisy == pytest.approx(880, rel=0.1)


def test_a_battery_that_falls_faster_than_the_model_says_is_believed_at_once() -> None:
    model = runtime(VRLA, fact(300), fact(94), fact(90), NOTHING).expected_s.value
    fast = runtime(VRLA, fact(300), fact(94), fact(90), NOTHING, discharge(0.001, 60)).expected_s.value
    slow = runtime(VRLA, fact(300), fact(94), fact(90), NOTHING, discharge(0.00012, 120)).expected_s.value
    assert model is not None
    assert fast == pytest.approx(940)
    assert slow is not None
    assert model < slow < 0.9856 / 0.00012, "one that falls more slowly only in part"


def test_without_load_or_charge_only_the_devices_word_is_left_and_doubted() -> None:
    found = runtime(VRLA, NOTHING, fact(100), fact(90), fact(1200))
    assert (found.expected_s.value, found.p10_s.value) == (1200, 600)
    assert found.p10_s.quality is Quality.UNCERTAIN
    idle = runtime(VRLA, fact(0), fact(100), fact(90), NOTHING)
    assert idle.p10_s.value is None, "recorded UPSs say 0 W under load: that is no day of runtime"
    assert "0 W" in idle.p10_s.reason
    silent = runtime(VRLA, NOTHING, fact(100), fact(90), fact(-1))
    assert (silent.p10_s.value, silent.p10_s.quality) == (None, Quality.BAD)
