"""All facts of a site together: the least of each is what envelopes carry."""

import pytest
from tests.policy.small_site import SERVERS, add, point, read, small_site
from tests.policy.test_facility_check import PLAN

from madang.model import Quality, Quantity
from madang.model.facility_site import PueMeters, SitePlan
from madang.policy.facility.runtime import ChargeReading
from madang.policy.facility.site_facts import Discharge, site_facts

WELL = (
    {f"{name}.power": 800.0 for name in SERVERS}
    | {f"{name}.temperature_inlet": 22.0 for name in SERVERS}
    | {"ups_a.power_output": 1200.0, "ups_b.power_output": 1200.0, "ups_a.charge": 100.0, "ups_b.charge": 60.0}
    | {"pdu_a.power": 1200.0, "pdu_b.power": 1200.0, "meter.power": 3600.0}
)


def site():
    return add(small_site(), points=[point(f"ups_{feed}.charge", Quantity.CHARGE) for feed in "ab"])


def test_the_least_of_each_is_the_sites() -> None:
    found = site_facts(read(site(), WELL), PLAN)
    assert found.runtime_s.value == found.runtimes["ups_b"].p10_s.value, "the one that is less charged"
    assert found.runtime_s.value < found.runtimes["ups_a"].p10_s.value
    assert found.thermal_margin_k.value == 13
    assert found.pue.value == pytest.approx(1.5)
    assert found.headroom_w.value == pytest.approx(1600), "a UPS after the loss of the other, and cooling"
    assert found.rack_headrooms_w == {"rack": found.rack_headrooms_w["rack"]}
    assert found.rack_headrooms_w["rack"].value == pytest.approx(1600)


def test_a_discharge_that_is_faster_than_thought_shortens_the_site() -> None:
    seen = Discharge(readings=[ChargeReading(at_s=n * 10.0, charge=1 - n * 0.02) for n in range(7)])
    before = site_facts(read(site(), WELL), PLAN)
    after = site_facts(read(site(), WELL), PLAN, discharges={"ups_a": seen})
    assert after.runtime_s.value < before.runtime_s.value


@pytest.mark.parametrize("said_w", [None, 0.0, 100.0])
def test_a_ups_that_says_too_little_is_not_believed(said_w) -> None:
    right = site_facts(read(site(), WELL), PLAN).runtimes["ups_a"]
    found = site_facts(read(site(), WELL | {"ups_a.power_output": said_w}), PLAN).runtimes["ups_a"]
    assert found.p10_s.value == pytest.approx(right.p10_s.value), "half of what the servers take, as they say"
    assert found.p10_s.quality is Quality.UNCERTAIN
    assert right.p10_s.quality is Quality.GOOD
    assert found.p10_s.reason


def test_a_site_about_which_nothing_is_known_says_so_and_gives_no_number() -> None:
    found = site_facts(read(site(), {}), PLAN)
    for fact in (found.runtime_s, found.thermal_margin_k, found.time_to_limit_s, found.pue):
        assert (fact.value, fact.quality) == (None, Quality.BAD)
        assert fact.reason
    bare = site_facts(read(site(), WELL), SitePlan())
    assert "no battery" in bare.runtime_s.reason
    assert "no meters" in bare.pue.reason
    assert bare.thermal_margin_k.value is None


def test_of_several_categories_the_highest_that_can_be_said_is_the_sites() -> None:
    at_servers = PueMeters(category=3, facility=("meter.power",), it=tuple(f"{name}.power" for name in SERVERS))
    energy = PueMeters(category=3, facility=("meter.energy",), it=("pdu_a.energy", "pdu_b.energy"))
    plan = SitePlan(pue=(*PLAN.pue, at_servers, energy))
    found = site_facts(read(site(), WELL), plan)
    assert [one.category for one in found.pues] == [2, 3]
    assert found.pue == found.pues[1].pue
    partly = site_facts(read(site(), {**WELL, "s1.power": None}), plan)
    assert partly.pues[1].pue.value is None
    assert partly.pue == partly.pues[0].pue
