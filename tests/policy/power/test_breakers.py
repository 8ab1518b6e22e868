"""No breaker's limit is ever exceeded, whatever fails: what is promised, and that the test can fail.

Promised, under the assumptions that `policy.power.authority_nodes` states:

- no breaker trips and none is above its rating for more than 120 s;
- while every BMC does as told (and 120 s after), none is above its rating at all;
- servers on a UPS are off before its battery is empty, where the UPS is read while the mains are lost; no inlet passes
  40 degrees, where cooling or inlet was read when the cooling was lost.
"""

import math
import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.policy.power.faults import run_hours
from tests.policy.power.oracle_world import RATINGS_W, TAU_S, TRIP
from tests.policy.power.power_site import TOPOLOGY, Site

from madang.policy.power.budget import Claim, allot
from madang.policy.power.state import AuthorityRules
from madang.policy.power.topology import CURVE, REACT_S, Limit, bear_ratio, bear_s

SEEDS = [*range(20), secrets.randbelow(10**9)]
DEEP_HOURS = 1000


@pytest.mark.parametrize("seed", SEEDS)
def test_hours_of_random_faults(seed):
    _, _, problem = run_hours(seed, 2)
    assert not problem, f"seed {seed}: {problem}"


@pytest.mark.deep
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(10))
def test_ten_thousand_hours_of_random_faults(part):
    seed = 1_000_000 + part
    _, _, problem = run_hours(seed, DEEP_HOURS)
    assert not problem, f"seed {seed}: {problem}"


def test_without_an_armed_authority_the_same_site_trips():
    site = Site(rules=AuthorityRules())
    for server in site.world.servers.values():
        server.load_w = 2000.0
    site.world.is_live["brk_b"] = False
    site.run(900)
    assert site.world.trips


def test_every_bmc_lying_at_once_is_within_the_curve():
    site = Site(has_proposers=False).settle()
    for server in site.world.servers.values():
        server.load_w, server.ignores = 2000.0, True
    site.world.is_live["brk_b"] = False
    longest_s = 0.0
    for _ in range(400):
        site.tick()
        longest_s = max(longest_s, *site.world.over_s.values())
    assert site.world.trips == []
    assert 0.0 < longest_s <= REACT_S


def test_the_feed_that_is_left_carries_both():
    site = Site(has_proposers=False).settle()
    for server in site.world.servers.values():
        server.load_w = 2000.0
    site.run(60)
    site.world.is_live["brk_a"] = False
    site.run(5)
    assert site.world.load_of("brk_b") <= 0.8 * RATINGS_W["brk_b"] * 1.05


def test_the_curve_that_is_counted_on_and_the_oracles_breaker():
    ratio = bear_ratio(REACT_S)
    warm_s = TAU_S * math.log((ratio**2 - 0.8**2) / (ratio**2 - TRIP))
    assert REACT_S <= warm_s < bear_s(ratio), "the oracle's is warm and weaker than the standard's, and bears it still"
    assert bear_s(1.0) == math.inf
    assert [bear_s(ratio) for ratio, _ in CURVE] == pytest.approx([seconds for _, seconds in CURVE])
    assert bear_ratio(REACT_S) == 1.45
    assert bear_s(3.0) == 0.0


@given(
    plates=st.lists(st.floats(100.0, 3000.0), min_size=1, max_size=8),
    leasts=st.lists(st.floats(0.0, 1.0), min_size=8, max_size=8),
    urgencies=st.lists(st.integers(0, 3), min_size=8, max_size=8),
    rooms=st.lists(st.floats(0.0, 20000.0), min_size=3, max_size=3),
    members=st.lists(st.integers(1, 255), min_size=3, max_size=3),
)
def test_shares_never_exceed_any_room_and_the_urgent_are_not_worse_off(plates, leasts, urgencies, rooms, members):
    names = [f"n{i}" for i in range(len(plates))]
    claims = {
        name: Claim(w_min=plate * least, w_max=plate, urgency=urgency)
        for name, plate, least, urgency in zip(names, plates, leasts, urgencies, strict=False)
    }
    limits = [
        Limit(
            equipment_id=f"b{i}", rating_w=1.0, plan_w=1.0, bear_w=1.0, fixed_w=0.0,
            nodes=tuple(name for j, name in enumerate(names) if mask >> j & 1),
        )
        for i, mask in enumerate(members)
    ]  # fmt: skip
    going = sorted(names, key=lambda name: (-claims[name].urgency, name))
    given_w, out = allot(limits, rooms, claims, going)
    assert set(given_w) | set(out) == set(names)
    assert not set(given_w) & set(out)
    for limit, room in zip(limits, rooms, strict=True):
        assert sum(given_w.get(name, 0.0) for name in limit.nodes) <= room + 1e-3
    for name, watts in given_w.items():
        assert claims[name].w_min - 1e-6 <= watts <= claims[name].w_max + 1e-6
    for name in out:
        whole = {**{one: claims[one].w_min for one in given_w}, name: claims[name].w_min}
        assert any(
            sum(whole.get(one, 0.0) for one in limit.nodes) > room for limit, room in zip(limits, rooms, strict=True)
        )
    for name, watts in given_w.items():
        if watts < claims[name].w_max - 1e-3:
            # Nobody less urgent has more than the least on a breaker that holds this one down.
            tight = [
                limit
                for limit, room in zip(limits, rooms, strict=True)
                if name in limit.nodes and sum(given_w.get(one, 0.0) for one in limit.nodes) >= room - 1e-2
            ]
            assert tight
            assert any(
                all(
                    given_w[one] <= claims[one].w_min + 1e-2
                    for one in limit.nodes
                    if one in given_w and claims[one].urgency > claims[name].urgency
                )
                for limit in tight
            )


def test_the_index_knows_what_hangs_where():
    names = {limit.equipment_id: limit for limit in TOPOLOGY.limits}
    assert set(names) == {"ups", "brk_a", "brk_b"}
    assert names["brk_a"].plan_w == 7200.0
    assert names["brk_a"].meter == "brk_a.power"
    assert set(names["brk_b"].nodes) == {"n1", "n2", "n3", "n4"}
    assert TOPOLOGY.cooling[0].units
    assert list(TOPOLOGY.racks) == ["rack2", "rack1"] or list(TOPOLOGY.racks) == ["rack1", "rack2"]
