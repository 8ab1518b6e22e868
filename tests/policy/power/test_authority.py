"""What the authority grants, refuses and does, one case after another."""

import msgspec
import pytest
from tests.policy.power.oracle_world import LEAST_W, NODES
from tests.policy.power.power_site import RULES, TOPOLOGY, Site

from madang.core import NodeId
from madang.model import ActionState, NodeState, PriorityClass, Quality, Request, SafetyState, Verb
from madang.policy.power.authority import decide
from madang.policy.power.state import Approve, AuthorityRules, AuthorityState, Setpoint


def want(verb, target, value=None, *, who="kim", ttl_s=60.0, request_id=""):
    return Request(
        request_id=request_id or f"{who}/{verb}/{target}/{value}", requester=who, verb=verb, target=target, value=value,
        ttl_s=ttl_s, reason="because",
    )  # fmt: skip


def reasons(site):
    return [action.reason for action in site.told(state=ActionState.REFUSED)]


@pytest.fixture
def site():
    return Site(has_proposers=False).settle()


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (want(Verb.CAP, "n9", 1000.0), "no node, rack or site"),
        (want(Verb.CAP, "n1", 300.0), "not within 600 to 2000 W: to go lower, drain it"),
        (want(Verb.CAP, "n1", 2001.0), "not within 600 to 2000 W"),
        (want(Verb.CAP, "n1", float("nan")), "wants watts"),
        (want(Verb.CAP, "n1", 1000.0, ttl_s=1e6), "TTL"),
        (want(Verb.CAP, "n1", 1000.0, ttl_s=0.0), "TTL"),
        (want(Verb.SHED, "daegu", 7.0), "rank of a class"),
        (want(Verb.SHED, "daegu", 0.0, who="thermal"), "clinical class is not shed by any policy"),
        (want(Verb.SHED, "n1", 2.0), "asked of the site daegu"),
        (want(Verb.SETPOINT, "crac.setpoint_supply", 30.0), "not within 18 to 27"),
        (want(Verb.SETPOINT, "brk_a.power", 20.0), "no setpoint that the rules allow"),
        (want(Verb.ISOLATE_LIQUID, "ups"), "nothing that isolate_liquid can be asked of"),
        (want(Verb.ISOLATE_ELECTRICAL, "n1"), "nothing that isolate_electrical can be asked of"),
        (want(Verb.ISOLATE_ELECTRICAL, "fire"), "fire suppression is read, never driven"),
        (want(Verb.SETPOINT, "fire.state", 1.0), "fire suppression is read, never driven"),
    ],
)
def test_what_is_refused_and_why(site, request_, told):
    site.tick(request_)
    (reason,) = reasons(site)
    assert told in reason
    site.tick(request_)
    assert len(reasons(site)) == 1, "said once"
    assert site.sent(Verb.CAP) == []


def test_the_lowest_cap_wins_and_is_read_back(site):
    site.tick(want(Verb.CAP, "n1", 1200.0), want(Verb.CAP, "n1", 900.0, who="lee"))
    site.run(15)
    assert site.world.servers["n1"].active_w == 900.0
    confirmed = site.told(Verb.CAP, ActionState.CONFIRMED)
    assert [one.request.value for one in confirmed if one.request.target == "n1"] == [1200.0, 900.0, 900.0]
    assert site.world.servers["n3"].active_w > LEAST_W, "what n1 gives up is shared out"
    site.log.clear()
    site.run(40, want(Verb.CAP, "n1", 1200.0), want(Verb.UNCAP, "n1", who="lee"))
    assert site.world.servers["n1"].active_w == 1200.0


def test_repeating_a_request_is_harmless_and_its_id_is_its_own(site):
    first = want(Verb.CAP, "n1", 900.0, request_id="r1")
    site.tick(first)
    state = site.state
    site.log.clear()
    site.run(10, first)
    assert [action.state for action in site.log if action.request.target == "n1"] == [ActionState.CONFIRMED]
    assert site.state.holds.keys() == state.holds.keys()
    site.tick(want(Verb.CAP, "n1", 1500.0, request_id="r1"))
    assert "was used for something else" in reasons(site)[0]


def test_a_cap_that_nobody_asks_for_any_more_stays(site):
    site.tick(want(Verb.CAP, "n1", 900.0, ttl_s=10.0))
    site.run(120)
    assert [action.request.verb for action in site.told(state=ActionState.LAPSED)] == [Verb.CAP]
    assert site.world.servers["n1"].active_w == 900.0
    site.run(40, want(Verb.UNCAP, "n1", who="lee"))
    assert site.world.servers["n1"].active_w > 900.0, "a person takes back what is nobody's"


def test_shedding_lapses_with_its_ttl(site):
    site.tick(want(Verb.SHED, "daegu", 1.0, ttl_s=10.0))
    assert site.envelope.shed_from is PriorityClass.INTERACTIVE
    site.run(11)
    assert site.envelope.shed_from is None


@pytest.mark.parametrize("fault", ["stale", "bad"])
@pytest.mark.parametrize("meter", ["node", "breaker"])
def test_no_cap_is_raised_and_nothing_resumed_on_readings_that_are_stale_or_bad(site, fault, meter):
    site.tick(want(Verb.CAP, "n1", 900.0), want(Verb.DRAIN, "n1"))
    site.run(20)
    if meter == "node":
        site.world.servers["n1"].meter = fault
    else:
        site.world.meters["brk_a"] = fault
    site.run(20)
    site.log.clear()
    site.run(60, want(Verb.UNCAP, "n1"), want(Verb.RESUME, "n1"))
    assert all("stale or bad" in reason for reason in reasons(site))
    assert len(reasons(site)) == 2
    assert site.world.servers["n1"].active_w == 900.0
    assert site.node("n1").state is not NodeState.RUN
    site.world.servers["n1"].meter = site.world.meters["brk_a"] = "good"
    site.run(60, want(Verb.UNCAP, "n1"), want(Verb.RESUME, "n1"))
    assert site.world.servers["n1"].active_w > 900.0
    assert site.node("n1").state is NodeState.RUN


def test_nothing_is_switched_while_somebody_is_inside_or_nobody_can_tell(site):
    for trouble in ("is_occupied", "are_signs_read"):
        setattr(site.world, trouble, trouble == "is_occupied")
        site.log.clear()
        site.tick(
            want(Verb.ISOLATE_LIQUID, "cdu"), want(Verb.ISOLATE_ELECTRICAL, "ups"),
            want(Verb.SETPOINT, "crac.setpoint_supply", 22.0), want(Verb.RESUME, "n1"), want(Verb.CAP, "n2", 700.0),
        )  # fmt: skip
        assert len(reasons(site)) == 4
        assert all("nothing is switched" in reason for reason in reasons(site))
        assert site.sent(Verb.SETPOINT) == []
        setattr(site.world, trouble, trouble != "is_occupied")
    site.run(5)
    assert site.world.servers["n2"].active_w == 700.0, "a cap switches nothing"


def test_isolation_wants_the_interlock_or_a_second_person(site):
    asked = want(Verb.ISOLATE_LIQUID, "cdu", request_id="r1")
    site.run(5, asked)
    assert [action.state for action in site.log] == [ActionState.AWAITING]
    site.tick(approvals=(Approve(request_id="r1", who="kim"),))
    assert site.sent(Verb.ISOLATE_LIQUID) == [], "not the one who asked"
    site.world.is_occupied = True
    site.tick(approvals=(Approve(request_id="r1", who="lee"),))
    assert site.sent(Verb.ISOLATE_LIQUID) == [], "somebody went in"
    site.world.is_occupied = False
    site.tick(approvals=(Approve(request_id="r1", who="lee"),))
    assert site.sent(Verb.ISOLATE_LIQUID) == ["cdu"]
    assert site.envelope.safety is SafetyState.ISOLATED
    site.run(5, asked)
    assert site.sent(Verb.ISOLATE_LIQUID) == ["cdu"], "once"


def test_an_isolation_is_ended_by_a_person_when_detectors_say_that_it_is_over(site):
    site.tick(want(Verb.ISOLATE_LIQUID, "cdu", request_id="r1"))
    site.tick(approvals=(Approve(request_id="r1", who="lee"),))
    assert site.envelope.safety is SafetyState.ISOLATED
    site.log.clear()
    site.tick(want(Verb.RESUME, "cdu", who="safety"))
    assert [action.state for action in site.log] == [ActionState.REFUSED], "no policy ends it"
    site.world.signs["leak1"] = 1
    site.tick(want(Verb.RESUME, "cdu"))
    assert site.log[-1].state is ActionState.REFUSED
    assert site.envelope.safety is SafetyState.ISOLATED
    site.world.signs["leak1"] = 0
    site.log.clear()
    site.tick(want(Verb.RESUME, "cdu", request_id="r9"))
    assert ("cdu", ActionState.SENT) in [(action.request.target, action.state) for action in site.log]
    assert site.envelope.safety is not SafetyState.ISOLATED


def test_the_interlock_agrees_by_itself_and_nobody_agreeing_lapses(site):
    site.run(2, want(Verb.ISOLATE_LIQUID, "cdu"))
    site.world.signs["interlock"] = 1
    site.tick()
    assert site.sent(Verb.ISOLATE_LIQUID) == ["cdu"]
    site.log.clear()
    site.tick(want(Verb.ISOLATE_ELECTRICAL, "ups", ttl_s=10.0))
    site.run(11)
    assert [action.state for action in site.log] == [ActionState.AWAITING, ActionState.LAPSED]


def test_a_setpoint_falls_back_to_its_safe_value(site):
    site.tick(want(Verb.SETPOINT, "crac.setpoint_supply", 24.0, ttl_s=10.0))
    site.run(11)
    values = [action.request.value for action in site.told(Verb.SETPOINT, ActionState.SENT)]
    assert values == [24.0, 20.0]


def test_of_two_who_want_a_setpoint_the_later_is_heard_and_then_the_one_who_still_asks(site):
    target = "crac.setpoint_supply"
    site.tick(want(Verb.SETPOINT, target, 24.0, who="kim", ttl_s=60.0))
    site.run(3)
    site.tick(want(Verb.SETPOINT, target, 22.0, who="lee", ttl_s=10.0))
    site.run(8)
    site.tick(want(Verb.SETPOINT, target, 24.0, who="kim", ttl_s=60.0))
    site.run(5)
    sent = [(one.request.requester, one.request.value) for one in site.told(Verb.SETPOINT, ActionState.SENT)]
    assert sent == [("kim", 24.0), ("lee", 22.0), ("authority", 24.0)], "asking again for the same is no change of mind"
    site.run(61)
    assert [one.request.value for one in site.told(Verb.SETPOINT, ActionState.SENT)][3:] == [20.0]


def test_who_was_last_to_want_a_setpoint_is_known_after_a_restart(site):
    target = "crac.setpoint_supply"
    site.tick(want(Verb.SETPOINT, target, 22.0, who="lee", ttl_s=60.0))
    site.run(3)
    site.tick(want(Verb.SETPOINT, target, 24.0, who="kim", ttl_s=10.0))
    # As the site stores it: keys in order, which is not that of who came when.
    stored = msgspec.json.encode(site.state, order="deterministic")
    site.state = msgspec.json.decode(stored, type=type(site.state))
    site.run(12)
    sent = [(one.request.requester, one.request.value) for one in site.told(Verb.SETPOINT, ActionState.SENT)]
    assert sent == [("lee", 22.0), ("kim", 24.0), ("authority", 22.0)]


def test_a_setpoint_that_another_has_overruled_lapses_without_a_word_to_the_device(site):
    target = "crac.setpoint_supply"
    site.tick(want(Verb.SETPOINT, target, 24.0, who="kim", ttl_s=5.0))
    site.tick(want(Verb.SETPOINT, target, 22.0, who="lee", ttl_s=60.0))
    site.run(10)
    assert [one.request.value for one in site.told(Verb.SETPOINT, ActionState.SENT)] == [24.0, 22.0]
    assert len(site.told(Verb.SETPOINT, ActionState.LAPSED)) == 1


@pytest.mark.parametrize("has_rule", [True, False])
def test_a_setpoint_without_a_safe_value_is_let_go_and_one_that_left_the_rules_is_left_alone(has_rule):
    target = "crac.setpoint_supply"
    freed = {target: Setpoint(low=18.0, high=27.0, safe=None)}
    site = Site(has_proposers=False, rules=msgspec.structs.replace(RULES, setpoints=freed))
    site.tick(want(Verb.SETPOINT, target, 24.0, ttl_s=10.0))
    if not has_rule:
        site.rules = msgspec.structs.replace(RULES, setpoints={})
    site.run(11)
    sent = [(one.request.requester, one.request.value) for one in site.told(Verb.SETPOINT, ActionState.SENT)]
    assert sent == [("kim", 24.0), ("authority", None)][: 1 + has_rule]
    assert site.told(Verb.SETPOINT, ActionState.LAPSED)


def test_an_actuator_that_is_not_armed_is_observed_and_counted_as_not_done():
    site = Site(has_proposers=False, rules=AuthorityRules())
    for server in site.world.servers.values():
        server.load_w = 1000.0
    site.run(20, want(Verb.SHED, "daegu", 2.0), want(Verb.DRAIN, "n6"))
    assert site.sent(Verb.CAP) == []
    assert site.sent(Verb.DRAIN) == []
    assert site.told(Verb.CAP, ActionState.OBSERVED)
    assert site.envelope.shed_from is None
    assert site.node("n6").state is NodeState.RUN
    assert "observed only" in site.node("n6").reason
    assert all(book.bound_w == 2000.0 for book in site.state.nodes.values())
    observed = len(site.told(state=ActionState.OBSERVED))
    site.run(20, want(Verb.SHED, "daegu", 2.0), want(Verb.DRAIN, "n6"))
    assert len(site.told(state=ActionState.OBSERVED)) <= observed + 12, "said at changes only"


def test_a_bmc_that_ignores_its_cap_is_counted_whole_drained_and_stopped(site):
    site.world.servers["n5"].ignores = True
    site.world.servers["n5"].load_w = 1900.0
    site.run(15)
    assert site.state.nodes[NodeId("n5")].is_untrue
    assert site.node("n5").state is NodeState.DRAIN
    assert "it ignores its cap" in site.node("n5").reason
    assert sum(book.bound_w for book in site.state.nodes.values()) <= 7200.0, "others made room"
    site.run(60)
    assert not site.world.servers["n5"].is_on
    site.world.servers["n5"].ignores = False
    site.run(300)
    assert not site.world.servers["n5"].is_on, "until a person has looked"
    site.run(60, want(Verb.RESUME, "n5"))
    assert site.world.servers["n5"].is_on
    assert site.node("n5").state is NodeState.RUN


def test_a_cap_that_is_not_read_back_is_ordered_again_and_leads_to_a_drain(site):
    site.world.servers["n5"].is_silent = True
    site.tick(want(Verb.CAP, "n5", LEAST_W, ttl_s=900.0))
    site.run(60)
    assert site.told(Verb.CAP, ActionState.UNCONFIRMED)
    assert site.node("n5").state is not NodeState.RUN
    assert not site.state.nodes[NodeId("n5")].is_untrue, "an order that did not arrive was not ignored"
    site.world.servers["n5"].is_silent = False
    site.run(180)
    assert site.world.servers["n5"].active_w == LEAST_W
    assert site.node("n5").state is NodeState.RUN, "it answers and obeys"


def test_what_one_wants_stopped_another_does_not_resume(site):
    site.tick(want(Verb.STOP, "n6", who="power_loss"), want(Verb.STOP, "n6", who="thermal"))
    site.run(10)
    assert not site.world.servers["n6"].is_on
    site.run(40, want(Verb.RESUME, "n6", who="peak_shaving"), want(Verb.RESUME, "n6", who="thermal"))
    assert not site.world.servers["n6"].is_on
    assert "power_loss" in site.node("n6").reason
    site.run(60, want(Verb.RESUME, "n6", who="power_loss"))
    assert site.world.servers["n6"].is_on


def test_envelopes_only_become_newer_also_after_the_state_was_lost(site):
    generation = site.envelope.generation
    site.tick()
    assert site.envelope.generation > generation
    generation = site.envelope.generation
    site.state = AuthorityState()
    site.tick()
    assert site.envelope.generation >= generation
    assert site.envelope.valid_until_s > site.envelope.issued_at_s


def test_the_state_survives_the_program_and_nothing_is_raised_by_that(site):
    site.tick(want(Verb.CAP, "n1", 900.0, ttl_s=900.0), want(Verb.STOP, "n6"))
    site.run(90)
    site.state = msgspec.json.decode(msgspec.json.encode(site.state), type=AuthorityState)
    site.log.clear()
    site.run(60)
    assert site.sent(Verb.CAP) == []
    assert site.world.servers["n1"].active_w == 900.0
    assert not site.world.servers["n6"].is_on


def test_a_lost_state_begins_with_name_plates_and_what_bmcs_hold():
    site = Site(has_proposers=False).settle()
    for server in site.world.servers.values():
        server.load_w = 2000.0
    site.run(60, want(Verb.STOP, "n6"))
    site.state = AuthorityState()
    for _ in range(120):
        site.tick()
        assert site.world.load_of("brk_a") <= 7200.0
        assert site.world.load_of("brk_b") <= 4800.0
    assert site.world.servers["n6"].is_on, "why it was off is not known any more, and there is room"


def test_the_same_view_gives_the_same_decision(site):
    view = site.world.view(site.envelope, site.state.holds)
    asked = (want(Verb.CAP, "n1", 900.0), want(Verb.DRAIN, "rack2"))
    first = decide(site.state, asked, (), view, TOPOLOGY, RULES)
    assert decide(site.state, asked, (), view, TOPOLOGY, RULES) == first


def test_caps_on_a_rack_and_on_the_site_are_shared_the_urgent_first(site):
    site.run(40, want(Verb.CAP, "rack1", 4000.0))
    caps = site.caps_w()
    assert sum(caps[node] for node in ("n1", "n2", "n3", "n4")) <= 4000.0
    assert caps["n1"] == caps["n2"] == 1400.0
    assert caps["n3"] == caps["n4"] == LEAST_W
    site.run(40, want(Verb.CAP, "daegu", 3600.0), want(Verb.CAP, "rack1", 4000.0))
    assert set(site.caps_w().values()) == {LEAST_W}


def test_an_unread_breaker_over_unread_nodes_counts_with_name_plates():
    site = Site(has_proposers=False).settle()
    site.world.meters["brk_b"] = "stale"
    for node in NODES[:4]:
        site.world.servers[node].meter = "stale"
    site.run(120)
    off = [node for node in NODES if not site.world.servers[node].is_on]
    assert off, "8000 W of name plates and nobody looking, on a breaker of 6000 W"
    assert "n1" not in off
    assert all(server.meter in ("good", "stale") for server in site.world.servers.values())


def test_quality_bad_facts_are_no_values(site):
    view = site.world.view(site.envelope)
    nodes = {
        node: msgspec.structs.replace(load, power_w=msgspec.structs.replace(load.power_w, quality=Quality.BAD))
        for node, load in view.nodes.items()
    }
    view = msgspec.structs.replace(view, nodes=nodes, now_s=view.now_s + 60)
    decision = decide(site.state, (want(Verb.UNCAP, "n1"),), (), view, TOPOLOGY, RULES)
    assert decision.actions[0].state is ActionState.REFUSED
