"""Whatever is asked and whatever fails, in whatever order: what holds of every decision."""

from hypothesis import given
from hypothesis import strategies as st
from tests.policy.power.faults import Faults
from tests.policy.power.oracle_world import LEAST_W, NODES, PLATE_W
from tests.policy.power.power_site import RULES, TOPOLOGY, Site

from madang.core import NodeId
from madang.model import ActionState, Fact, PriorityClass, Quality, Request, Verb
from madang.policy.power.authority_reads import is_fresh, is_off
from madang.policy.power.proposers import ProposerMemory, ProposerRules, propose_all
from madang.policy.power.shaving import DemandEvent, PeakRules
from madang.policy.power.state import POLICIES, Approve, Work
from madang.policy.power.view import Demand, read_all_signs

TARGETS = [
    *NODES,
    "rack1",
    "rack2",
    "daegu",
    "cdu",
    "ups",
    "brk_a",
    "fire",
    "crac.setpoint_supply",
    "fire.state",
    "x",
    "",
]
REQUESTS = st.builds(
    Request,
    request_id=st.sampled_from(["a", "b", "c", "d", "e", "f"]),
    requester=st.sampled_from([*POLICIES, "kim", "lee"]),
    verb=st.sampled_from(list(Verb)),
    target=st.sampled_from(TARGETS),
    value=st.one_of(st.none(), st.sampled_from([0.0, 1.0, 2.0, 20.0, 700.0, 1200.0, 1900.0, -1.0, float("nan"), 1e12])),
    ttl_s=st.sampled_from([0.0, 3.0, 30.0, 900.0, 1e9]),
)
APPROVALS = st.builds(
    Approve, request_id=st.sampled_from(["a", "b", "c", "d"]), who=st.sampled_from(["kim", "lee", "thermal"])
)
FAULTS = st.sampled_from(
    [
        *("load", "surge", "feed", "utility", "cooling", "node_meter", "breaker_meter", "ignores", "loses_cap"),
        *("slow", "silent", "enters", "blind_signs"),
    ]
)
STEPS = st.lists(
    st.tuples(
        st.lists(REQUESTS, max_size=3),
        st.lists(APPROVALS, max_size=1),
        st.none() | FAULTS,
        st.sampled_from([1, 1, 5, 20]),
    ),
    min_size=1,
    max_size=12,
)


@given(steps=STEPS, seed=st.integers(0, 1000), proposes=st.booleans())
def test_what_holds_of_every_decision(steps, seed, proposes):
    site = Site(seed, has_proposers=proposes)
    faults = Faults(site, seed)
    site.wants_repair = False
    for server in site.world.servers.values():
        server.load_w = 1200.0
    for requests, approvals, fault, seconds in steps:
        if fault:
            getattr(faults, fault)()
        for second in range(seconds):
            faults.settle_due()
            before, generation = site.state, site.envelope.generation if site.envelope else 0
            site.tick(*(requests if second == 0 else ()), approvals=approvals if second == 0 else ())
            assert site.envelope.generation > generation
            check(site, before)


def check(site, before):
    # What the decision saw: the world has not moved since it was read.
    view = site.world.view(site.envelope, before.holds)
    work = Work(site.state, view, read_all_signs(view, TOPOLOGY), TOPOLOGY, RULES)
    for action in site.actions:
        request = action.request
        assert action.state is ActionState.REFUSED or not request.target.startswith("fire")
        assert action.state is not ActionState.SENT or request.requester == "authority" or request.verb is not Verb.CAP
        if action.state is not ActionState.SENT:
            continue
        is_switching = request.verb in (Verb.ISOLATE_ELECTRICAL, Verb.ISOLATE_LIQUID, Verb.SETPOINT)
        is_fallback = request.verb is Verb.SETPOINT and request.requester == "authority"
        if is_switching and not is_fallback:
            assert not site.world.is_occupied
            assert site.world.are_signs_read
        if request.verb is Verb.CAP:
            check_cap(site, work, before, request)
    if site.envelope.shed_from is PriorityClass.CLINICAL:
        shedders = [hold.request for hold in site.state.holds.values() if hold.request.verb is Verb.SHED]
        assert any(one.requester not in POLICIES and one.value == 0.0 for one in shedders)
    for book in site.state.nodes.values():
        assert 0.0 < book.bound_w <= PLATE_W


def check_cap(site, work, before, request):
    node = NodeId(request.target)
    assert LEAST_W <= request.value <= PLATE_W
    known = before.nodes.get(node)
    if known is None or known.ordered_w is None or request.value <= known.ordered_w:
        return
    assert is_fresh(work, node), "raised on readings that are stale or bad"
    caps = [hold.request for hold in site.state.holds.values() if hold.request.verb is Verb.CAP]
    assert all(request.value <= one.value for one in caps if one.target == node), "the lowest cap wins"
    for i in TOPOLOGY.limits_of[node]:
        limit = TOPOLOGY.limits[i]
        assert sum(site.state.nodes[one].bound_w for one in limit.nodes) + limit.fixed_w <= limit.plan_w
        books = {one: site.state.nodes[one] for one in limit.nodes}
        assert all(is_off(work, one) or book.is_stopped or book.bound_w >= LEAST_W for one, book in books.items())


FACTS = st.builds(
    Fact,
    value=st.none() | st.floats(-100.0, 100000.0),
    quality=st.sampled_from(list(Quality)),
    age_s=st.sampled_from([0.0, 10.0, 100.0]),
)


@given(
    facts=st.lists(FACTS, min_size=7, max_size=7),
    elapsed_s=st.floats(0.0, 900.0),
    faults=st.lists(FAULTS, max_size=6),
    held=st.lists(st.sampled_from([f"{who}/cap/{node}" for who in POLICIES for node in ("n1", "daegu")]), max_size=5),
    ticks=st.integers(1, 5),
)
def test_proposers_take_any_view_and_ask_only_in_form(facts, elapsed_s, faults, held, ticks):
    import msgspec

    site = Site(has_proposers=False)
    for fault in faults:
        getattr(Faults(site, 1), fault)()
    site.tick()
    view = msgspec.structs.replace(
        site.world.view(site.envelope, held),
        runtime_s=facts[0],
        charge_percent=facts[1],
        thermal_margin_k=facts[2],
        time_to_limit_s=facts[3],
        demand=Demand(elapsed_s=elapsed_s, energy_wh=facts[4], power_w=facts[5]),
    )
    event = DemandEvent(event_id="e", start_s=view.now_s, end_s=view.now_s + 60, site_w_max=5000.0)
    rules = ProposerRules(peak=PeakRules(target_w=8000.0), events=(event,))
    memory = ProposerMemory()
    for _ in range(ticks):
        view = msgspec.structs.replace(view, now_s=view.now_s + 30.0)
        memory, asked = propose_all(memory, view, TOPOLOGY, rules)
        for request in asked:
            assert request.requester in POLICIES
            assert 0.0 < request.ttl_s <= RULES.ttl_s_max
            assert request.verb is not Verb.SHED or request.value > 0.0
            if request.verb is Verb.CAP and request.target in NODES:
                assert LEAST_W <= request.value <= PLATE_W
    assert msgspec.json.decode(msgspec.json.encode(memory), type=ProposerMemory) == memory
