"""The plant twin's physics: balances close, steps do not matter, and it behaves as boxes are known to."""

import copy
import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.depth import depth
from tests.sim.box import make_box

from madang.core import Rejected
from madang.sim.plant.electrical import TRIP_LEVEL, Battery, Breaker, Ups
from madang.sim.plant.faults import KINDS, PlantFault, apply_fault
from madang.sim.plant.plant import Plant, make_plant
from madang.sim.plant.thermal import cop

FULL = dict.fromkeys([f"server{n}" for n in range(4)], 1.0)


def do(plant: Plant, kind: str, target: str = "", value: float = 0.0, *, is_over: bool = False) -> None:
    apply_fault(plant, PlantFault(kind=kind, target=target, value=value, is_over=is_over))


def loaded(load: float = 1.0, **box: float) -> Plant:
    """A plant of one's own, in the steady state that settling takes a moment to reach."""
    return copy.deepcopy(_settled(load, **box))


@functools.cache
def _settled(load: float, **box: float) -> Plant:
    plant = make_plant(make_box(**box), outdoor_c=33.0)
    plant.set_load(dict.fromkeys(FULL, load))
    plant.settle()
    return plant


def time_to(plant: Plant, inlet_c: float, *, within_s: float = 900.0) -> float:
    start_s = plant.now_s
    while plant.inlet_c("r0") < inlet_c and plant.now_s - start_s < within_s:
        plant.step(0.5)
    return plant.now_s - start_s


def test_a_healthy_box_is_in_its_steady_state_and_everything_is_fed() -> None:
    plant = loaded()
    assert 19.0 < plant.inlet_c("r0") < 22.0
    assert plant.room.hot_c == pytest.approx(plant.room.cold_c + 12.0, abs=1.5)
    it_w = sum(server.power_w for server in plant.servers.values())
    assert it_w == pytest.approx(40_000.0, rel=0.01)
    assert plant.upses["ups_a"].output_w == pytest.approx(it_w / 2, rel=0.01)
    cooling_w = plant.power_w["cooler0"]
    assert plant.power_w["grid"] == pytest.approx(
        it_w + cooling_w + sum(u.loss_w(u.output_w) for u in plant.upses.values())
    )
    assert cooling_w == pytest.approx(
        plant.room.units["cooler0"].heat_w / cop(plant.room.units["cooler0"].supply_c, 33.0)
        + plant.room.units["cooler0"].fan_w,
        rel=1e-3,
    )
    before_c = plant.inlet_c("r0")
    plant.step(120.0)
    assert plant.inlet_c("r0") == pytest.approx(before_c, abs=0.1)


kinds = st.sampled_from(["utility_lost", "cooling_lost", "breaker_open", "outdoor", "load", "door_open", "ups_broken"])
targets = {"cooling_lost": "cooler0", "breaker_open": "pdu0a", "door_open": "door", "ups_broken": "ups_a"}


@settings(max_examples=depth(5, 100))
@given(st.lists(st.tuples(kinds, st.booleans(), st.floats(0.0, 1.0), st.floats(1.0, 60.0)), max_size=5))
def test_no_energy_comes_from_nowhere_and_none_is_lost(steps) -> None:
    plant = loaded(0.6)
    for kind, is_over, value, lasts_s in steps:
        do(plant, kind, targets.get(kind, ""), 45.0 * value if kind == "outdoor" else value, is_over=is_over)
        plant.step(lasts_s)
    plant.step(30.0)
    assert plant.book.error < 0.001
    assert plant.room.balance.error < 0.001


@pytest.mark.parametrize("kind", ["cooling_lost", "utility_lost"])
def test_the_size_of_steps_does_not_matter(kind: str) -> None:
    ends = []
    for step_s in (0.05, 0.25, 0.5):
        plant = loaded()
        do(plant, kind, targets.get(kind, ""))
        course = []
        for _ in range(3):
            for _ in range(int(20.0 / step_s)):
                plant._step(step_s)
            course.append(plant.inlet_c("r0"))
        ends.append(course)
    for course in ends[1:]:
        assert course == pytest.approx(ends[0], abs=0.25)


def test_lost_cooling_heats_fast_first_and_then_as_power_over_capacity_says() -> None:
    plant = loaded()
    do(plant, "cooling_lost", "cooler0")
    to_32_s = time_to(plant, 32.0)
    assert 5.0 < to_32_s < 40.0, "at 10 kW a rack the inlet passes 32 degrees within tens of seconds"
    plant.step(60.0)
    before_c, power_w = plant.inlet_c("r0"), sum(server.power_w for server in plant.servers.values())
    plant.step(20.0)
    slope = (plant.inlet_c("r0") - before_c) / 20.0
    metal_j_k = sum(rack.metal_j_k for rack in plant.room.racks.values())
    assert slope == pytest.approx(power_w / metal_j_k, rel=0.15)
    assert time_to(loaded_and_lost(0.2), 32.0) > to_32_s


def loaded_and_lost(load: float) -> Plant:
    plant = loaded(load)
    do(plant, "cooling_lost", "cooler0")
    return plant


def test_a_compressor_waits_before_it_starts_again() -> None:
    plant = loaded(0.1)
    do(plant, "cooling_lost", "cooler0")
    plant.step(10.0)
    do(plant, "cooling_lost", "cooler0", is_over=True)
    plant.step(100.0)
    assert plant.room.units["cooler0"].heat_w == 0.0
    plant.step(120.0)
    assert plant.room.units["cooler0"].heat_w > 0.0


def test_a_second_unit_takes_over() -> None:
    plant = loaded(units=2)
    do(plant, "cooling_lost", "cooler0")
    plant.step(400.0)
    assert plant.inlet_c("r0") < 27.0


def test_the_battery_carries_the_load_as_long_as_it_says_and_is_charged_again() -> None:
    plant = loaded(0.5, battery_wh=500.0)
    ups = plant.upses["ups_a"]
    do(plant, "utility_lost")
    plant.step(1.0)
    assert ups.is_on_battery
    assert not plant.is_live("grid")
    assert plant.is_live("server0")
    said_s = ups.runtime_s()
    plant.room.outdoor_c = 0.0
    start_s = plant.now_s
    while plant.is_live("server0") and plant.now_s - start_s < 2 * said_s:
        plant.step(1.0)
    assert plant.now_s - start_s == pytest.approx(said_s, rel=0.25), "fans take more as it gets warm"
    assert sum(server.power_w for server in plant.servers.values()) == 0.0
    do(plant, "utility_lost", is_over=True)
    plant.step(60.0)
    assert plant.is_live("server0")
    assert 0.0 < ups.battery.charge < 1.0


@given(st.floats(100.0, 50_000.0), st.floats(1.01, 3.0))
def test_more_load_empties_a_battery_sooner(power_w, factor) -> None:
    battery = Battery(3.6e7, power_w_rated=10_000.0)
    assert battery.runtime_s(power_w * factor) < battery.runtime_s(power_w)


def test_ups_efficiency_is_what_makers_state() -> None:
    ups = Ups(10_000.0, Battery(3.6e7, 10_000.0))
    for part, efficiency in ((0.10, 0.876), (0.25, 0.932), (0.50, 0.950), (1.0, 0.952)):
        out_w = part * 10_000.0
        assert out_w / (out_w + ups.loss_w(out_w)) == pytest.approx(efficiency, abs=0.003)


def test_when_a_feed_dies_the_other_carries_all() -> None:
    plant = loaded()
    before_w = plant.power_w["pdu0b"]
    do(plant, "breaker_open", "pdu0a")
    plant.step(2.0)
    assert plant.power_w["pdu0a"] == 0.0
    assert plant.power_w["pdu0b"] == pytest.approx(2 * before_w, rel=0.02)
    assert plant.is_live("server0")


@given(st.floats(0.1, 4.9))
def test_a_breaker_opens_sooner_the_more_flows_and_never_below_its_rating(part) -> None:
    breaker = Breaker(16.0)
    for _ in range(3600):
        breaker.step(1.0, 16.0 * part)
        if breaker.is_open:
            break
    assert breaker.is_open is (part * part > TRIP_LEVEL * 1.0001) or abs(part * part - TRIP_LEVEL) < 0.01


def test_a_cap_behaves_and_a_bmc_that_ignores_it_is_found_out_by_its_watts() -> None:
    plant = loaded()
    server = plant.servers["server0"]
    server.cap_w = 7_000.0
    plant.step(5.0)
    assert server.power_w == pytest.approx(7_000.0, rel=0.01)
    assert server.is_throttled
    server.cap_w = 100.0
    plant.step(5.0)
    assert server.power_w == pytest.approx(server.cap_w_min, rel=0.01), "a cap is good for a part of the range"
    do(plant, "caps_ignored", "server0")
    plant.step(5.0)
    assert server.power_w == pytest.approx(10_000.0, rel=0.01)


@settings(max_examples=depth(3, 50))
@given(st.floats(0.1, 0.8), st.floats(0.05, 0.2), st.floats(-10.0, 30.0), st.floats(1.0, 8.0))
def test_more_load_and_more_heat_outside_never_cool(load, more, outdoor_c, warmer_k) -> None:
    def inlet(load: float, outdoor_c: float) -> float:
        plant = make_plant(make_box(cooling_w=20_000.0), outdoor_c=outdoor_c)
        plant.set_load(dict.fromkeys(FULL, load))
        plant.step(120.0)
        return plant.inlet_c("r0")

    assert inlet(load + more, outdoor_c) >= inlet(load, outdoor_c) - 0.2
    assert inlet(load, outdoor_c + warmer_k) >= inlet(load, outdoor_c) - 0.05


def test_faults_name_what_they_need() -> None:
    plant = make_plant(make_box())
    with pytest.raises(Rejected, match="no fault"):
        do(plant, "earthquake")
    with pytest.raises(Rejected, match="cooler0"):
        do(plant, "cooling_lost", "server0")
    with pytest.raises(Rejected, match="no equipment"):
        do(plant, "leak", "nowhere")
    for kind in KINDS:
        assert KINDS[kind][1]


def test_a_circle_of_feeds_is_refused() -> None:
    model = make_box()
    looped = copy.replace(model) if hasattr(copy, "replace") else model
    first = next(edge for edge in looped.edges if edge.target == "pdu0a")
    back = type(first)(kind=first.kind, source="pdu0a", target="ups_a")
    with pytest.raises(Rejected, match="circle"):
        make_plant(type(model)(site=model.site, equipment=model.equipment, edges=(*model.edges, back), points=()))
