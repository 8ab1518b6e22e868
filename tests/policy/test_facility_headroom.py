"""Headroom: a double-corded load counts wholly on the survivor, N+1 truthfully, and nothing bad ever gives more."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.policy.small_site import SERVERS, add, change, equipment, feeds, point, read, sample, small_site

from madang.model import EquipmentKind, PointKind, Quality, Quantity
from madang.model.facility_site import SitePlan
from madang.policy.facility.check import check_site
from madang.policy.facility.graph import SiteGraph, flow
from madang.policy.facility.headroom import cooling_headroom, power_headroom, rack_headroom, site_headroom
from madang.policy.facility.limits import counted_cooling_w

draws = st.floats(0, 2000)


def rooms(model, values, lost=()):
    """Return headroom in W by place, of real power and cooling."""
    readings = read(model, values)
    found = (*power_headroom(readings, lost), *cooling_headroom(readings, lost))
    return {one.place: one for one in found if one.what in ("power", "cooling")}


def all_rooms(model, values, lost=()):
    """Return every headroom by place, kind and phase."""
    readings = read(model, values)
    found = (*power_headroom(readings, lost), *cooling_headroom(readings, lost))
    return {(one.place, one.what, one.phase): one for one in found}


def test_after_the_loss_of_one_ups_the_other_carries_everything() -> None:
    found = rooms(small_site(), {f"{name}.power": 800.0 for name in SERVERS})
    for name in ("ups_a", "ups_b"):
        assert found[name].load.value == pytest.approx(2400), "all of it, not half"
        assert found[name].headroom.value == pytest.approx(4000 - 2400)
        assert found[name].after_loss_of
        assert found[name].headroom.quality is Quality.GOOD
    assert found["utility"].load.value == pytest.approx(2400 + 3000), "nothing moves there; cooling by its name plate"
    assert found["utility"].headroom.quality is Quality.UNCERTAIN
    assert "name plate" in found["utility"].headroom.reason
    assert found["cooling"].limit == 4000, "one of two"
    assert found["cooling"].headroom.value == pytest.approx(1600)


def test_apparent_power_has_its_own_headroom() -> None:
    values = {f"{name}.power": 1000.0 for name in SERVERS}
    model = add(small_site(), points=[point("ups_a.power_factor", Quantity.POWER_FACTOR, context="output")])
    for factor, expected in ((0.8, 4000 / 0.9 - 3000 / 0.8), (-0.8, 4000 / 0.9 - 3000 / 0.8), (1.0, 4000 / 0.9 - 3000)):
        found = power_headroom(read(model, {**values, "ups_a.power_factor": factor}))
        (one,) = [one for one in found if (one.place, one.what) == ("ups_a", "apparent")]
        assert one.headroom.value == pytest.approx(expected)


def test_a_breaker_takes_80_percent_and_each_phase_its_own() -> None:
    found = power_headroom(read(small_site(), {f"{name}.power": 1000.0 for name in SERVERS}))
    phases = {one.phase: one for one in found if one.place == "panel" and one.what == "phase"}
    assert set(phases) == {"L1", "L2", "L3"}
    assert phases["L1"].limit == pytest.approx(0.8 * 50 * 220 * 0.95)
    # UPS A hangs on L1, UPS B on L2: after the loss of either, 3 kW are on the other's phase; cooling is on all.
    assert phases["L1"].load.value == pytest.approx(3000 + 1000)
    assert phases["L2"].load.value == pytest.approx(3000 + 1000)
    assert phases["L3"].load.value == pytest.approx(1000)


def test_what_is_lost_already_is_not_lost_once_more() -> None:
    values = {f"{name}.power": 800.0 for name in SERVERS}
    found = rooms(small_site(), values, ("ups_b",))
    assert found["ups_a"].load.value == pytest.approx(2400)
    assert found["ups_a"].after_loss_of == ""
    assert "ups_b" not in found


def test_a_transfer_switch_takes_from_its_first_live_source() -> None:
    model = add(
        small_site(),
        pieces=[
            equipment("ats", EquipmentKind.TRANSFER_SWITCH, power_w=9000, phases=3),
            equipment("gen", EquipmentKind.GENERATOR, power_w=8000, phases=3),
        ],
        edges=[feeds("utility", "ats"), feeds("gen", "ats"), feeds("ats", "x")],
    )
    model = add(model, pieces=[equipment("x", EquipmentKind.SERVER, power_w=500, phases=3)])
    graph = SiteGraph(model)
    assert flow(graph, {"x": 500.0})["gen"].power_w == 0
    assert flow(graph, {"x": 500.0}, ("utility",))["gen"].power_w == pytest.approx(500)
    assert rooms(model, {"x.power": 500.0})["gen"].headroom.value == pytest.approx(8000 - 500), "when the supply fails"


def test_what_hangs_there_unseen_counts_and_is_doubted() -> None:
    values = {f"{name}.power": 500.0 for name in SERVERS}
    seen = rooms(small_site(), {**values, "pdu_a.power": 760.0, "ups_a.power_output": 765.0})
    unseen = rooms(small_site(), {**values, "pdu_a.power": 1200.0})
    assert seen["ups_a"].headroom.quality is Quality.GOOD, "two meters differ by a little"
    assert unseen["ups_a"].load.value == pytest.approx(1500 + 450)
    assert unseen["ups_a"].headroom.quality is Quality.UNCERTAIN
    assert "more than what is known to hang on it" in unseen["ups_a"].headroom.reason
    assert unseen["ups_b"].headroom.quality is Quality.GOOD


def test_no_reading_is_the_name_plate_and_never_a_number_of_the_device() -> None:
    values = {"s1.power": 100.0, "s2.power": None, "s3.power": sample("s3.power", 5.0, age_s=300)}
    found = rooms(small_site(), values)
    assert found["ups_a"].load.value == pytest.approx(100 + 1000 + 1000)
    assert found["ups_a"].headroom.quality is Quality.UNCERTAIN
    assert "300 s old" in found["ups_a"].headroom.reason
    assert found["ups_a"].headroom.age_s == pytest.approx(1)


def test_a_cooling_unit_that_stands_still_is_gone_and_no_other_one_is_deducted() -> None:
    values = {f"{name}.power": 500.0 for name in SERVERS}
    stopped = {**values, "cooling_1.state_unit": sample("cooling_1.state_unit", 4.0, text="failed")}
    standby = {**values, "cooling_1.state_unit": sample("cooling_1.state_unit", 1.0, text="standby")}
    assert rooms(small_site(), standby)["cooling"].after_loss_of in ("cooling_1", "cooling_2")
    found = rooms(small_site(), stopped)["cooling"]
    assert (found.headroom.value, found.after_loss_of) == (pytest.approx(2500), "")
    assert rooms(small_site(), stopped, ("cooling_2",))["cooling"].headroom.value == pytest.approx(-1500)
    unrated = change(small_site(), "cooling_2", cooling_w=None)
    assert rooms(unrated, values)["cooling"].headroom.value is None


@given(st.lists(st.floats(0, 50_000), min_size=1, max_size=6), st.integers(0, 6))
def test_n_plus_1_is_what_remains_after_the_loss_of_the_largest(units: list[float], needed: int) -> None:
    by_name = {str(number): unit for number, unit in enumerate(units)}
    counted = counted_cooling_w(by_name, needed)
    spare = max(len(units) - needed, 0)
    assert counted == pytest.approx(sum(sorted(units, reverse=True)[spare:]))
    for lost in by_name:
        remaining = {name: unit for name, unit in by_name.items() if name != lost}
        assert counted_cooling_w(remaining, needed) >= counted - by_name[lost] - 1e-6


def test_a_rack_and_a_site_have_the_least_of_what_serves_them() -> None:
    model = small_site(cooling_w=2600)
    readings = read(model, {f"{name}.power": 800.0 for name in SERVERS})
    found = (*power_headroom(readings), *cooling_headroom(readings))
    assert rack_headroom(readings.graph, found, "rack").value == pytest.approx(200), "cooling is what is short"
    assert site_headroom(found, readings.graph).value == pytest.approx(200)
    assert rack_headroom(readings.graph, (), "rack").value is None


@given(st.tuples(draws, draws, draws), st.integers(0, 2), st.floats(0, 1000), st.floats(0, 5000))
def test_a_draw_that_rises_never_gives_headroom(before, index: int, more: float, pdu_w: float) -> None:
    model = small_site()
    after = [draw + (more if number == index else 0) for number, draw in enumerate(before)]
    lower, higher = (
        all_rooms(
            model, {"pdu_a.power": pdu_w, **{f"{name}.power": w for name, w in zip(SERVERS, values, strict=True)}}
        )
        for values in (before, after)
    )
    for place, one in lower.items():
        assert higher[place].headroom.value <= one.headroom.value + 1e-6, place


@given(st.tuples(draws, draws, draws), st.floats(500, 9000), st.floats(0, 5000))
def test_a_limit_that_falls_never_gives_headroom(values, ups_w: float, less: float) -> None:
    powers = {f"{name}.power": w for name, w in zip(SERVERS, values, strict=True)}
    large, small = (all_rooms(small_site(ups_w=w, cooling_w=w), powers) for w in (ups_w + less, ups_w))
    for place, one in large.items():
        assert small[place].headroom.value <= one.headroom.value + 1e-6


@given(st.tuples(draws, draws, draws), st.sampled_from(["ups_a", "pdu_b", "cooling_1"]))
def test_what_remains_after_a_loss_has_what_was_promised_before_it(values, lost: str) -> None:
    """The point of counting a loss in advance: when it comes, nothing is shorter than it was said to be."""
    powers = {f"{name}.power": w for name, w in zip(SERVERS, values, strict=True)}
    before, after = all_rooms(small_site(), powers), all_rooms(small_site(), powers, (lost,))
    for place, one in after.items():
        assert one.headroom.value >= before[place].headroom.value - 1e-6


@given(st.tuples(draws, draws, draws))
def test_nothing_is_lost_on_the_way_up(values) -> None:
    model = small_site()
    graph = SiteGraph(model)
    powers = dict(zip(SERVERS, values, strict=True))
    for lost in ((), ("ups_a",), ("pdu_b",)):
        flows = flow(graph, powers, lost)
        assert flows["utility"].power_w == pytest.approx(sum(values))
        assert sum(flows["panel"].phases_w) == pytest.approx(sum(values))
    assert flow(graph, powers, ("ups_a", "ups_b"))["utility"].power_w == 0, "what has no power draws nothing"


def test_the_check_and_headroom_say_the_same_at_the_name_plate() -> None:
    for server_w, is_right in ((1300.0, True), (1400.0, False)):
        model = small_site(server_w=server_w, cooling_w=9000)
        rules = {one.rule for one in check_site(model, SitePlan())}
        assert ("overloaded_after_loss" not in rules) is is_right
        found = rooms(model, {})
        assert (found["ups_a"].headroom.value >= 0) is is_right


def test_three_phase_powers_add_up_where_only_phases_are_read() -> None:
    model = add(
        small_site(),
        pieces=[equipment("big", EquipmentKind.UPS, power_w=9000, phases=3)],
        edges=[feeds("panel", "big")],
        points=[point(f"big.power_l{n}", Quantity.POWER, PointKind.METER, f"L{n}") for n in (1, 2, 3)],
    )
    readings = read(model, {"big.power_l1": 100.0, "big.power_l2": 200.0, "big.power_l3": 300.0})
    assert readings.power(readings.graph.by_id["big"]).value == 600
    model = add(model, points=[point("ups_a.power_l1", Quantity.POWER, PointKind.METER, "output L1")])
    single = read(model, {"ups_a.power_output": None, "ups_a.power_l1": 70.0})
    assert single.power(single.graph.by_id["ups_a"]).value == 70
    half = read(model, {"big.power_l1": 100.0, "big.power_l2": None, "big.power_l3": 300.0})
    assert half.power(half.graph.by_id["big"]).value is None


def test_the_order_of_sources_comes_before_what_they_feed() -> None:
    graph = SiteGraph(small_site())
    places = {name: number for number, name in enumerate(graph.order)}
    assert all(places[edge.source] < places[edge.target] for name in graph.by_id for edge in graph.feeds(name))
    assert graph.loop == ()
    assert len(set(pairwise(graph.order))) == len(graph.order) - 1


def test_an_outlet_is_all_of_a_load_with_one_cord_and_not_of_one_with_two() -> None:
    model = add(
        small_site(),
        pieces=[equipment("single", EquipmentKind.SWITCH, power_w=100)],
        edges=[feeds("pdu_a", "single")],
        points=[
            point("single.power", Quantity.POWER, PointKind.METER, "output"),
            point("s1.power_outlet", Quantity.POWER, PointKind.METER, "output"),
        ],
    )
    readings = read(model, {"single.power": 40.0, "s1.power_outlet": 300.0})
    assert readings.draw(readings.graph.by_id["single"]).value == 40
    assert readings.draw(readings.graph.by_id["s1"]).value == 1000, "its name plate, not half of what it takes"
