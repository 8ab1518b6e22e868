"""PUE is said where enough is measured and meters agree, and nowhere else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.policy.small_site import NOW_S, SERVERS, read, sample, small_site

from madang.model import Quality
from madang.model.facility_site import PueMeters
from madang.policy.facility.graph import SiteGraph
from madang.policy.facility.pue import pue_instant, pue_interim

CHECK = tuple(f"{name}.power" for name in SERVERS)
AT_PDU = PueMeters(category=2, facility=("meter.power",), it=("pdu_a.power", "pdu_b.power"), it_check=CHECK)
AT_SERVERS = PueMeters(category=3, facility=("meter.power",), it=CHECK)
ENERGY = PueMeters(category=2, facility=("meter.energy",), it=("pdu_a.energy", "pdu_b.energy"))


def values(facility=4500.0, pdu=1500.0, server=1000.0):
    servers = {f"{name}.power": server for name in SERVERS}
    return {"meter.power": facility, "pdu_a.power": pdu, "pdu_b.power": pdu, **servers}


def test_the_ratio_of_powers_now() -> None:
    found = pue_instant(read(small_site(), values()), AT_PDU)
    assert (found.category, found.pue.value, found.coverage) == (2, pytest.approx(1.5), 1.0)
    assert found.pue.quality is Quality.GOOD
    assert found.pue.age_s == pytest.approx(1)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"meter.power": None}, "what comes in is not known"),
        ({"meter.power": 2000.0}, "a meter is wrong"),
        ({"pdu_a.power": None}, "50% of the IT draw is measured"),
        ({"pdu_a.power": 0.0, "pdu_b.power": 0.0}, "no IT draw"),
        ({"s1.power": 100.0}, "two measurements of IT differ by 30%"),
    ],
)
def test_it_is_refused(changed, reason: str) -> None:
    found = pue_instant(read(small_site(), {**values(), **changed}), AT_PDU)
    assert (found.pue.value, found.pue.quality) == (None, Quality.BAD)
    assert reason in found.pue.reason


def test_meters_that_differ_a_little_are_doubted() -> None:
    found = pue_instant(read(small_site(), values(pdu=1600.0)), AT_PDU)
    assert found.pue.quality is Quality.UNCERTAIN
    assert "differ by 6%" in found.pue.reason
    gone = pue_instant(read(small_site(), {**values(), "s1.power": None}), AT_PDU)
    assert gone.pue.value == pytest.approx(1.5)
    assert "second measurement" in gone.pue.reason


@given(st.floats(1, 5000), st.integers(0, 3))
def test_less_than_95_percent_of_it_measured_gives_no_number(server_w: float, missing: int) -> None:
    model = small_site(server_w=5000)
    powers = {f"{name}.power": (None if number < missing else server_w) for number, name in enumerate(SERVERS)}
    found = pue_instant(read(model, {**powers, "meter.power": 20_000.0}), AT_SERVERS)
    assert 0 <= found.coverage <= 1
    assert (found.pue.value is not None) == (found.coverage >= 0.95)
    assert (missing == 0) == (found.coverage == 1)


def interim(begin, end, hours=1.0):
    first, last = (
        {name: sample(name, value, age_s=age_s) for name, value in one.items()}
        for one, age_s in ((begin, hours * 3600), (end, 0))
    )
    window = (NOW_S - hours * 3600, NOW_S)
    return pue_interim(SiteGraph(small_site()), ENERGY, first, last, window)


REGISTERS = {"meter.energy": 100_000.0, "pdu_a.energy": 50_000.0, "pdu_b.energy": 60_000.0}


def after(**more):
    return {name: value + more.get(name.partition(".")[0], 0.0) for name, value in REGISTERS.items()}


def test_over_an_interval_it_is_energy_by_energy() -> None:
    found = interim(REGISTERS, after(meter=3300, pdu_a=1500, pdu_b=1500))
    assert found.pue.value == pytest.approx(1.1)
    assert (found.facility.value, found.it.value) == (3300, 3000)
    assert found.ends_at_s - found.begins_at_s == 3600


@pytest.mark.parametrize(
    ("begin", "end", "reason"),
    [
        (REGISTERS, {**after(meter=3300, pdu_a=1500, pdu_b=1500), "meter.energy": 5.0}, "ran backwards"),
        (REGISTERS, {"pdu_a.energy": 51_500.0, "pdu_b.energy": 61_500.0}, "both ends"),
        ({**REGISTERS, "meter.energy": None}, after(meter=1, pdu_a=1), "both ends"),
    ],
)
def test_a_register_that_fails_gives_no_number(begin, end, reason: str) -> None:
    found = interim(begin, end)
    assert found.pue.value is None
    assert reason in found.pue.reason


def test_a_register_that_was_read_too_late_is_not_used() -> None:
    last = {name: sample(name, value, age_s=120) for name, value in after(meter=3, pdu_a=1, pdu_b=1).items()}
    first = {name: sample(name, value, age_s=3600) for name, value in REGISTERS.items()}
    found = pue_interim(SiteGraph(small_site()), ENERGY, first, last, (NOW_S - 3600, NOW_S))
    assert found.pue.value is None
    assert "120 s away" in found.pue.reason


def test_powers_are_not_energies() -> None:
    assert "watts" in pue_instant(read(small_site(), values()), ENERGY).facility.reason
    found = pue_interim(SiteGraph(small_site()), AT_PDU, {}, {}, (0.0, 3600.0))
    assert "watt-hours" in found.facility.reason


@given(st.floats(1, 10_000), st.floats(0.3, 5000), st.floats(0, 5000))
def test_more_at_the_boundary_is_never_a_better_pue(it: float, facility: float, more: float) -> None:
    def ratio(boundary_w: float) -> float | None:
        readings = read(small_site(), {"meter.power": boundary_w, "pdu_a.power": it / 2, "pdu_b.power": it / 2})
        meters = PueMeters(category=2, facility=AT_PDU.facility, it=AT_PDU.it)
        return pue_instant(readings, meters).pue.value

    low, high = ratio(facility), ratio(facility + more)
    if low is not None:
        assert low >= 1
        assert high is not None
        assert high >= low
