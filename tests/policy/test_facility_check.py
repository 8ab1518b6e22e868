"""The check of a site finds each thing that was put wrong, and nothing in a site that is right."""

import msgspec
import pytest
from tests.policy.small_site import SERVERS, add, change, edge, equipment, feeds, point, small_site, without

from madang.model import EdgeKind, EquipmentKind, PointKind, Quantity, SiteModel
from madang.model.facility_site import (
    Actuator,
    ActuatorKind,
    ActuatorMode,
    AlarmOverride,
    Battery,
    PueMeters,
    SitePlan,
    SupplyContract,
    ThermalZone,
)
from madang.policy.facility.check import check_site
from madang.policy.facility.check_texts import TEXTS, Severity

PLAN = SitePlan(
    batteries=(Battery(ups="ups_a", energy_wh=5000), Battery(ups="ups_b", energy_wh=5000)),
    zones=(ThermalZone(place="room", mass_j_k=1e6, air_j_k=3e4),),
    pue=(PueMeters(category=2, facility=("meter.power",), it=("pdu_a.power", "pdu_b.power")),),
    contract=SupplyContract(tariff="t", power_w=20_000, meter="meter.energy"),
    actuators=tuple(
        Actuator(
            actuator_id=f"cap_{name}", kind=ActuatorKind.CAP, point_id=f"{name}.power_limit",
            readback_id=f"{name}.power_limit", target=f"node-{name}",
        )
        for name in SERVERS
    ),
    alarms=(AlarmOverride(override_id="inlet", points=("s*.temperature_inlet",), condition="high", limit=27.0),),
)  # fmt: skip


def found(model: SiteModel, plan: SitePlan = PLAN) -> dict[str, list[str]]:
    """Return the places by rule."""
    rules: dict[str, list[str]] = {}
    for one in check_site(model, plan):
        assert one.why()
        assert one.why("ko") != one.why()
        assert one.next_step()
        assert one.next_step("ko")
        rules.setdefault(one.rule, []).append(one.place)
    return rules


def test_a_site_that_is_right_has_no_findings() -> None:
    assert found(small_site()) == {}


BROKEN = {
    "unknown_equipment": lambda m: add(m, edges=[feeds("nobody", "s1")]),
    "feed_loop": lambda m: add(m, edges=[feeds("pdu_a", "ups_a")]),
    "not_fed": lambda m: without(m, edges=lambda e: e.kind is EdgeKind.FEEDS and e.target == "s1"),
    "phase_missing": lambda m: add(
        without(m, edges=lambda e: e.target == "ups_a" and e.kind is EdgeKind.FEEDS), edges=[feeds("panel", "ups_a")]
    ),
    "phase_too_few": lambda m: change(m, "pdu_a", phases=3),
    "phase_not_there": lambda m: add(
        without(m, edges=lambda e: e.source == "ups_a" and e.kind is EdgeKind.FEEDS),
        edges=[feeds("ups_a", "pdu_a", "A", "L2")],
    ),
    "voltage_differs": lambda m: change(m, "cooling_1", voltage_v=120),
    "feed_twice": lambda m: add(m, edges=[feeds("pdu_a", "s1", "A")]),
    "shares_wrong": lambda m: add(
        without(m, edges=lambda e: e.target == "s1" and e.kind is EdgeKind.FEEDS),
        edges=[feeds("pdu_a", "s1", "A", share=0.7), feeds("pdu_b", "s1", "B", share=0.7)],
    ),
    "same_feed": lambda m: add(
        without(m, edges=lambda e: e.target == "pdu_b"),
        edges=[feeds("ups_a", "pdu_b", "B"), edge(EdgeKind.CONTAINS, "rack", "pdu_b")],
    ),
    "same_label": lambda m: add(
        without(m, edges=lambda e: e.target == "s1" and e.kind is EdgeKind.FEEDS),
        edges=[feeds("pdu_a", "s1", "A"), feeds("pdu_b", "s1", "A")],
    ),
    "single_cord": lambda m: without(
        change(m, "s1", is_critical=True),
        edges=lambda e: e.kind is EdgeKind.FEEDS and (e.source, e.target) == ("pdu_b", "s1"),
    ),
    "group_short": lambda m: change(m, "cooling_1", redundancy_needed=3),
    "group_no_spare": lambda m: change(m, "ups_a", redundancy_needed=2),
    "no_group": lambda m: change(m, "ups_a", redundancy_group=""),
    "overloaded": lambda m: change(m, "utility", power_w=3000),
    "overloaded_after_loss": lambda m: change(m, "pdu_b", current_a=12),
    "not_cooled": lambda m: without(m, edges=lambda e: e.kind is EdgeKind.COOLS),
    "cooling_short": lambda m: change(m, "cooling_2", cooling_w=2500),
    "cooling_unrated": lambda m: change(m, "cooling_2", cooling_w=None),
    "not_rated": lambda m: change(m, "s1", power_w=None),
    "not_measured": lambda m: without(m, points=lambda p: p.equipment_id == "pdu_a"),
    "no_inlet": lambda m: without(m, points=lambda p: p.context == "inlet"),
    "no_detector": lambda m: without(m, equipment=lambda e: e.equipment_id == "smoke"),
    "meters_overlap": lambda m: add(
        m, pieces=[equipment("meter_2", EquipmentKind.METER)], edges=[edge(EdgeKind.MEASURES, "meter_2", "utility")]
    ),
    "battery_slow": lambda m: add(
        m, points=[msgspec.structs.replace(point("ups_a.charge", Quantity.CHARGE), stale_s=180.0)]
    ),
    "odd_point": lambda m: add(m, points=[point("s1.charge", Quantity.CHARGE)]),
    "unknown_point": lambda m: without(m, points=lambda p: p.point_id == "meter.energy"),
    "no_match": lambda m: without(m, points=lambda p: p.name == "temperature_inlet"),
}  # fmt: skip


@pytest.mark.parametrize("rule", BROKEN)
def test_what_was_put_wrong_in_the_graph_is_found(rule: str) -> None:
    assert rule in found(BROKEN[rule](small_site()))


def actuator(**values) -> SitePlan:
    base = {
        "actuator_id": "x", "kind": ActuatorKind.CAP, "point_id": "s1.power_limit", "readback_id": "s1.power_limit",
        "target": "s1",
    }  # fmt: skip
    return SitePlan(batteries=PLAN.batteries, zones=PLAN.zones, actuators=(Actuator(**{**base, **values}),))


PLANS = {
    "unknown_target": actuator(target="nobody"),
    "not_commanded": actuator(point_id="s1.power"),
    "no_readback": actuator(readback_id=""),
    "no_release": actuator(kind=ActuatorKind.ISOLATE_ELECTRICAL),
    "armed_blind": actuator(readback_id="", mode=ActuatorMode.ARMED),
    "unit_misfit": actuator(readback_id="s1.temperature_inlet"),
    "range_wrong": actuator(value_low=500.0, value_high=400.0),
    "two_actuators": SitePlan(actuators=actuator().actuators * 2),
    "meter_twice": SitePlan(
        pue=(PueMeters(category=2, facility=("meter.power",), it=("ups_a.power_output", "pdu_a.power")),)
    ),
    "no_battery": SitePlan(),
    "no_zone": SitePlan(),
}


@pytest.mark.parametrize("rule", PLANS)
def test_what_was_put_wrong_in_the_plan_is_found(rule: str) -> None:
    assert rule in found(small_site(), PLANS[rule])


def test_fire_suppression_is_never_driven() -> None:
    model = add(
        small_site(),
        pieces=[equipment("gas", EquipmentKind.FIRE_SUPPRESSION)],
        points=[point("gas.release", Quantity.STATE, PointKind.COMMAND)],
    )
    plan = actuator(point_id="gas.release", readback_id="", target="gas", kind=ActuatorKind.SETPOINT)
    assert "fire_is_read" in found(model, plan)


@pytest.mark.parametrize(
    ("battery", "zone"),
    [
        (Battery(ups="ups_a", energy_wh=0.0), ThermalZone(place="room", mass_j_k=1e6, air_j_k=3e4)),
        (Battery(ups="ups_a", energy_wh=1.0, health=1.5), ThermalZone(place="room", mass_j_k=1e6, air_j_k=3e4)),
        (Battery(ups="ups_a", energy_wh=1.0, peukert=0.5), ThermalZone(place="room", mass_j_k=1e6, air_j_k=3e4)),
        (
            Battery(ups="ups_a", energy_wh=1.0, runtime_table=((200.0, 100.0), (100.0, 200.0))),
            ThermalZone(place="room", mass_j_k=1e6, air_j_k=3e4),
        ),
        (Battery(ups="ups_a", energy_wh=1.0), ThermalZone(place="room", mass_j_k=1e4, air_j_k=3e4)),
    ],
)
def test_figures_that_cannot_be_are_found(battery: Battery, zone: ThermalZone) -> None:
    assert "range_wrong" in found(small_site(), SitePlan(batteries=(battery,), zones=(zone,)))


def test_the_gravest_come_first_and_every_rule_has_a_test() -> None:
    model = without(change(small_site(), "utility", power_w=3000), equipment=lambda e: e.equipment_id == "smoke")
    ranks = [one.severity.rank for one in check_site(model, SitePlan())]
    assert ranks == sorted(ranks)
    assert {Severity.ERROR.rank, Severity.WARNING.rank, Severity.NOTE.rank} <= set(ranks)
    assert set(TEXTS) == {*BROKEN, *PLANS, "fire_is_read", "overloaded_phase"}


def test_single_phase_loads_on_one_phase_are_found() -> None:
    heaters = [equipment(f"x{n}", EquipmentKind.SERVER, rack="rack", power_w=2500, voltage_v=220) for n in range(4)]
    model = add(
        change(small_site(), "utility", power_w=60_000),
        pieces=heaters,
        edges=[
            *(feeds("panel", one.equipment_id, phase="L1") for one in heaters),
            *(edge(EdgeKind.CONTAINS, "rack", one.equipment_id) for one in heaters),
        ],
    )
    assert "panel" in found(model)["overloaded_phase"]
