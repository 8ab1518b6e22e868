"""Causes and what follows from them: mains, cooling, leak, smoke, peaks."""

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.policy.power.oracle_world import BATTERY_WH, LEAST_W, NODES, SINGLE
from tests.policy.power.power_site import TOPOLOGY, Site

from madang.model import ActionState, Fact, NodeState, PriorityClass, Quality, SafetyState, Verb
from madang.policy.power.loss import LossMemory, LossRules, recall_loss
from madang.policy.power.proposers import ProposerRules, propose_all
from madang.policy.power.shaving import DemandEvent, PeakRules
from madang.policy.power.state import Approve
from madang.policy.power.thermal import ThermalMemory, ThermalRules, propose_thermal
from madang.policy.power.view import Demand, read_all_signs


def calm_site(load_w=500.0, **values):
    site = Site(**values)
    for server in site.world.servers.values():
        server.load_w = load_w
    return site.settle(120)


def test_a_quiet_site_is_left_alone():
    site = calm_site()
    site.run(300)
    assert site.log == []
    assert site.envelope.safety is SafetyState.NORMAL
    assert site.envelope.shed_from is None
    assert site.envelope.accepts_placements


def test_mains_lost_sheds_at_once_ends_in_order_and_comes_back():
    site = calm_site(1500.0)
    site.world.has_utility = False
    site.tick()
    assert site.envelope.shed_from is PriorityClass.BATCH
    assert not site.envelope.accepts_placements
    assert not site.envelope.is_spilling
    site.run(31)
    assert site.envelope.is_spilling
    for _ in range(3600):
        site.tick()
        if not any(server.is_on for server in site.world.servers.values()):
            break
    assert not any(server.is_on for server in site.world.servers.values())
    assert site.world.cut_nodes == [], "nobody was cut off"
    stops = [node for node in site.sent(Verb.STOP) if site.world.servers[node].loses_stops == 0]
    assert set(stops[:2]) == set(SINGLE), "the rack of the batch class went first"
    drains = site.sent(Verb.DRAIN)
    assert drains.index("n5") < drains.index("n1")
    assert site.world.battery_wh > 0.0

    site.world.has_utility = True
    site.run(120)
    assert not any(server.is_on for server in site.world.servers.values()), "the battery is empty still"
    site.world.battery_wh = BATTERY_WH * 0.6
    site.run(180)
    assert all(server.is_on for server in site.world.servers.values())
    assert all(node.state is NodeState.RUN for node in site.envelope.nodes)
    assert site.envelope.shed_from is None
    assert site.world.trips == []


def test_a_short_loss_drains_nobody_and_flapping_mains_stay_lost():
    site = calm_site()
    for _ in range(6):
        site.world.has_utility = False
        site.run(5)
        site.world.has_utility = True
        site.run(20)
        assert site.envelope.shed_from is PriorityClass.BATCH, "back for twenty seconds only"
    assert site.sent(Verb.DRAIN) == []
    site.run(100)
    assert site.envelope.shed_from is None


def test_on_battery_without_any_word_of_the_runtime_the_end_comes_early():
    site = calm_site()
    site.world.is_runtime_read = False
    site.world.has_utility = False
    site.run(120)
    assert set(site.sent(Verb.DRAIN)) == set(NODES)
    site.run(120)
    assert not any(server.is_on for server in site.world.servers.values())


def test_a_runtime_that_is_heard_no_more_runs_down_from_the_last_that_was():
    site = calm_site()
    site.world.has_utility = False
    site.run(5)
    site.world.is_runtime_read = False
    known_s = site.memory.loss.runtime_s
    assert known_s > 600.0, "there is far more than who never knew would take"
    site.run(200)
    assert site.sent(Verb.DRAIN) == []
    site.run(int(known_s / 2.0))
    assert not any(server.is_on for server in site.world.servers.values())
    assert site.world.cut_nodes == [], "nobody was cut off"


@given(lost_s=st.floats(0.0, 1e5), runtime_s=st.none() | st.floats(0.0, 1e5), away_s=st.floats(0.0, 1e6))
def test_a_program_that_begins_anew_recalls_a_loss_that_may_last_still(lost_s, runtime_s, away_s):
    rules = LossRules()
    memory = LossMemory(lost_s=0.0, runtime_s=runtime_s, known_s=lost_s, draining=("n1",))
    recalled = recall_loss(memory, lost_s + away_s, rules)
    lasts_s = rules.blind_runtime_s - lost_s if runtime_s is None else runtime_s / rules.blind_speed
    assert recalled == (memory if away_s < lasts_s else LossMemory()) or away_s == pytest.approx(lasts_s)
    assert recall_loss(LossMemory(), away_s, rules) == LossMemory()


def test_what_was_lost_stays_lost_while_nobody_can_see():
    site = calm_site()
    site.world.has_utility = False
    site.run(10)
    site.world.has_utility = True
    site.world.are_signs_read = False
    site.run(300)
    assert site.envelope.shed_from is PriorityClass.BATCH


def test_cooling_lost_caps_within_five_seconds_of_the_cause():
    site = calm_site(1500.0)
    inlet_c = site.world.inlet_c
    site.world.has_cooling = False
    site.run(5)
    others = [site.world.servers[node].active_w for node in ("n3", "n4", "n5", "n6")]
    assert others == [LEAST_W] * 4
    assert site.world.servers["n1"].active_w > 1500.0, "the clinical class keeps what it has"
    assert site.envelope.shed_from is PriorityClass.BATCH
    assert site.envelope.is_spilling
    assert site.world.inlet_c < inlet_c + 1.0, "long before any inlet is hot"


def test_heat_that_goes_on_drains_and_stops_before_equipment_is_in_danger_and_is_left_in_steps():
    site = calm_site(1500.0)
    site.world.heat_j_per_k = 3e5
    site.world.has_cooling = False
    site.run(1200)
    assert site.world.inlet_c < 36.0
    assert not site.world.servers["n5"].is_on
    hot_c = site.world.inlet_c
    site.world.has_cooling = True
    site.run(20)
    assert not site.world.servers["n5"].is_on, "not at the first good reading"
    site.run(1200)
    assert site.world.inlet_c < hot_c
    assert all(server.is_on for server in site.world.servers.values())
    assert site.envelope.shed_from is None
    assert site.world.trips == []


def test_an_unknown_margin_neither_lifts_nor_ends_anything():
    site = calm_site()
    view = msgspec.structs.replace(
        site.world.view(site.envelope, ("thermal/cap/n5",)), thermal_margin_k=Fact(value=None, quality=Quality.BAD)
    )
    signs = read_all_signs(view, TOPOLOGY)
    memory, asked = propose_thermal(ThermalMemory(), view, signs, TOPOLOGY, ThermalRules())
    assert (memory.level, asked) == (0, [])
    hot = ThermalMemory(level=2, reason="hot")
    memory, asked = propose_thermal(hot, view, signs, TOPOLOGY, ThermalRules())
    assert memory.level == 2
    view = msgspec.structs.replace(view, now_s=view.now_s + 300.0)
    memory, asked = propose_thermal(memory, view, signs, TOPOLOGY, ThermalRules())
    assert memory.level == 3, "where it was bad already, the worst is taken to be on its way"
    assert Verb.DRAIN in {request.verb for request in asked}


def test_a_leak_asks_to_shut_off_the_liquid_and_leaves_what_it_cools():
    site = calm_site()
    site.world.signs["leak1"] = 1
    site.run(3)
    awaiting = site.told(Verb.ISOLATE_LIQUID, ActionState.AWAITING)
    assert [action.request.target for action in awaiting] == ["cdu"]
    assert set(site.sent(Verb.DRAIN)) == set(SINGLE), "rack2 alone"
    assert site.envelope.safety is SafetyState.EMERGENCY
    site.tick(approvals=(Approve(request_id=awaiting[0].request.request_id, who="kim"),))
    assert site.sent(Verb.ISOLATE_LIQUID) == ["cdu"]
    site.run(60)
    assert [site.world.servers[node].is_on for node in NODES] == [True] * 4 + [False] * 2
    site.world.signs["leak1"] = 0
    site.run(300)
    assert not site.world.servers["n5"].is_on, "a person brings it back"


def test_smoke_leaves_everything_and_asks_for_the_current():
    site = calm_site()
    site.world.signs["smoke1"] = 1
    site.run(60)
    assert not any(server.is_on for server in site.world.servers.values())
    awaiting = site.told(Verb.ISOLATE_ELECTRICAL, ActionState.AWAITING)
    assert [action.request.target for action in awaiting] == ["ups"]
    assert site.sent(Verb.ISOLATE_ELECTRICAL) == []
    assert all(action.request.target != "fire" for action in site.log)


def with_demand(site, power_w, energy_wh=0.0, elapsed_s=0.0, quality=Quality.GOOD):
    view = site.world.view(site.envelope, site.state.holds)
    demand = Demand(
        elapsed_s=elapsed_s,
        energy_wh=Fact(value=energy_wh, quality=quality),
        power_w=Fact(value=power_w, quality=quality),
    )
    return msgspec.structs.replace(view, demand=demand)


def test_the_fifteen_minute_peak_is_shaved_with_what_is_left_of_it():
    site = calm_site(1200.0)
    rules = ProposerRules(peak=PeakRules(target_w=8000.0))
    memory, asked = propose_all(site.memory, with_demand(site, 7000.0, 0.0, 0.0), TOPOLOGY, rules)
    assert asked == ()
    view = with_demand(site, 7000.0, 1500.0, 600.0)  # 500 Wh in 300 s are left: 6000 W
    memory, asked = propose_all(memory, view, TOPOLOGY, rules)
    caps = [request for request in asked if request.verb is Verb.CAP]
    assert [request.target for request in caps] == ["daegu"]
    drawn_w = sum(load.power_w.value for load in view.nodes.values())
    assert caps[0].value <= drawn_w - (7000.0 - 0.95 * 6000.0)
    assert Verb.SHED in {request.verb for request in asked}
    view = with_demand(site, 7000.0, 1500.0, 600.0, quality=Quality.STALE)
    assert propose_all(memory, view, TOPOLOGY, rules)[1] == (), "what nobody reads changes nothing"


def test_demand_response_is_dated_and_taken_back():
    site = calm_site(1200.0)
    event = DemandEvent(event_id="e1", start_s=site.world.now_s, end_s=site.world.now_s + 60, site_w_max=5000.0)
    rules = ProposerRules(events=(event,))
    _, asked = propose_all(site.memory, with_demand(site, 7000.0), TOPOLOGY, rules)
    assert {request.verb for request in asked} == {Verb.CAP, Verb.SHED}
    view = with_demand(site, 7000.0)
    view = msgspec.structs.replace(view, now_s=event.end_s, held=("demand_response/cap/daegu",))
    _, asked = propose_all(site.memory, view, TOPOLOGY, rules)
    assert [request.verb for request in asked] == [Verb.UNCAP]


def test_a_feed_above_its_planned_load_is_relieved_by_the_less_urgent():
    site = calm_site(1500.0)
    view = site.world.view(site.envelope, site.state.holds)
    sample = msgspec.structs.replace(view.samples["brk_a.power"], value=7600.0)
    view = msgspec.structs.replace(view, samples={**view.samples, "brk_a.power": sample})
    _, asked = propose_all(site.memory, view, TOPOLOGY, ProposerRules())
    caps = {request.target: request.value for request in asked if request.verb is Verb.CAP}
    drawn = {node: load.power_w.value for node, load in view.nodes.items()}
    assert caps["n1"] >= int(drawn["n1"])
    saved_w = sum(drawn[node] - caps[node] for node in caps)
    assert saved_w >= 7600.0 - 0.95 * 7200.0


def test_a_level_that_takes_its_own_sign_away_comes_back_ever_more_rarely():
    site = calm_site()
    site.world.has_cooling = False
    site.run(1)
    view = site.world.view(site.envelope)
    signs = read_all_signs(view, TOPOLOGY)
    rules = ThermalRules()
    memory, entries, before = ThermalMemory(), [], 0
    for second in range(4 * 3600):
        # The cap of level 2 gives the room all the time there is; without it the limit is a minute away.
        time_s = 86_400.0 if memory.level >= 2 else 60.0
        known = {
            "thermal_margin_k": Fact(value=8.0, quality=Quality.GOOD),
            "time_to_limit_s": Fact(value=time_s, quality=Quality.GOOD),
        }
        now = msgspec.structs.replace(view, now_s=view.now_s + second, **known)
        memory, _ = propose_thermal(memory, now, signs, TOPOLOGY, rules)
        if memory.level > before:
            entries.append(second)
        before = memory.level
    gaps = [later - earlier for earlier, later in itertools.pairwise(entries)]
    assert gaps[0] <= rules.calm_s + 5.0
    assert all(later >= min(1.9 * earlier, rules.calm_s_max) for earlier, later in itertools.pairwise(gaps))
    assert len(entries) <= 10

    well = read_all_signs(calm_site().world.view(site.envelope), TOPOLOGY)
    memory, _ = propose_thermal(memory, now, well, TOPOLOGY, rules)
    assert memory.wait_s == 0.0, "with the end of the cause the waits are short again"
    assert "over" in memory.reason, "nobody is sent to a unit that runs"
    length = len(memory.reason)
    for _ in range(5):
        memory, _ = propose_thermal(memory, now, signs, TOPOLOGY, rules)
        assert "over" not in memory.reason, "it is lost again"
        memory, _ = propose_thermal(memory, now, well, TOPOLOGY, rules)
        assert len(memory.reason) == length, "said once, however often it comes and goes"


def leave_levels(*, has_lost_cooling, margin_k):
    """Enter level 3, let all be well, and return after how many seconds each level was left."""
    site = calm_site()
    well = read_all_signs(site.world.view(site.envelope), TOPOLOGY)
    site.world.has_cooling = False
    site.run(1)
    view = site.world.view(site.envelope)
    lost = read_all_signs(view, TOPOLOGY) if has_lost_cooling else well
    memory, left, now_s = ThermalMemory(), [], view.now_s

    def look(margin_k, signs):
        known = {
            "thermal_margin_k": Fact(value=margin_k, quality=Quality.GOOD),
            "time_to_limit_s": Fact(value=86_400.0, quality=Quality.GOOD),
        }
        now = msgspec.structs.replace(view, now_s=now_s, **known)
        return propose_thermal(memory, now, signs, TOPOLOGY, ThermalRules())[0]

    memory = look(1.0, lost)
    assert memory.level == 3
    for second in range(1000):
        before, now_s = memory.level, view.now_s + second
        memory = look(margin_k, well)
        if memory.level < before:
            left.append(second)
    assert memory.level == 0
    return left


def test_with_the_cooling_back_and_a_wide_margin_only_the_first_step_takes_its_whole_time():
    quick = leave_levels(has_lost_cooling=True, margin_k=9.0)
    assert quick == [120, 151, 182]
    assert leave_levels(has_lost_cooling=False, margin_k=9.0) == [120, 241, 362], "nobody knows why it was hot"
