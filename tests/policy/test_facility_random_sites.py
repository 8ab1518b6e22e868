"""Any graph that a file can describe, however wrong: the check answers, facts give no number that is none."""

import math

from hypothesis import given
from hypothesis import strategies as st
from tests.policy.small_site import NOW_S

from madang.core import NodeId, SiteId
from madang.model import (
    UNITS,
    Edge,
    EdgeKind,
    Equipment,
    EquipmentKind,
    Point,
    PointKind,
    Quality,
    Ratings,
    Sample,
    SiteModel,
)
from madang.model.facility_site import Battery, Chemistry, PueMeters, SitePlan, ThermalZone
from madang.policy.facility.check import check_site
from madang.policy.facility.graph import SiteGraph, flow
from madang.policy.facility.readings import Readings
from madang.policy.facility.site_facts import site_facts

NAMES = tuple("abcdefgh")
names = st.sampled_from(NAMES)
ratings = st.none() | st.sampled_from([0.0, 1.0, 220.0, 5000.0])
pieces = st.builds(
    Equipment,
    equipment_id=names,
    kind=st.sampled_from(EquipmentKind),
    node=st.sampled_from([NodeId(""), NodeId("n")]),
    ratings=st.builds(
        Ratings,
        power_w=ratings,
        apparent_va=ratings,
        current_a=ratings,
        voltage_v=ratings,
        cooling_w=ratings,
        phases=st.sampled_from([1, 3]),
    ),
    redundancy_group=st.sampled_from(["", "g"]),
    redundancy_needed=st.integers(0, 3),
    is_critical=st.booleans(),
)
edges = st.builds(
    Edge,
    kind=st.sampled_from(EdgeKind),
    source=names,
    target=names,
    feed=st.sampled_from(["", "A", "B"]),
    phase=st.sampled_from(["", "L1", "L2", "L3"]),
    share=st.none() | st.sampled_from([0.0, 0.5, 1.0]),
)
points = st.builds(
    lambda owner, quantity, context: Point(
        point_id=f"{owner}.{quantity}_{context}",
        equipment_id=owner,
        name=f"{quantity}_{context}",
        kind=PointKind.SENSOR,
        quantity=quantity,
        context=context,
    ),
    names,
    st.sampled_from(list(UNITS)),
    st.sampled_from(["", "input", "output", "inlet", "supply", "L1"]),
)
models = st.builds(
    lambda equipment, edges, points: SiteModel(
        site=SiteId("x"), equipment=tuple(equipment), edges=tuple(edges), points=tuple(points)
    ),
    st.lists(pieces, min_size=1, max_size=8, unique_by=lambda one: one.equipment_id),
    st.lists(edges, max_size=16),
    st.lists(points, max_size=16, unique_by=lambda one: one.point_id),
)


def plan_of(model: SiteModel) -> SitePlan:
    """Return a plan that names everything that can be named, fitting or not."""
    read = tuple(point.point_id for point in model.points)
    return SitePlan(
        batteries=tuple(Battery(ups=name, energy_wh=100, chemistry=Chemistry.LI_ION) for name in NAMES[:3]),
        zones=tuple(ThermalZone(place=name, mass_j_k=1e5, air_j_k=1e3) for name in NAMES[:3]),
        pue=(PueMeters(category=1, facility=read[:2], it=read[2:], it_check=read[1:]),),
    )


@given(models, st.lists(st.floats(-1e6, 1e6) | st.none(), min_size=16, max_size=16), st.sets(names, max_size=2))
def test_no_site_breaks_the_check_or_the_facts(model: SiteModel, values, lost) -> None:
    plan = plan_of(model)
    for finding in check_site(model, plan):
        assert finding.why()
        assert finding.why("ko")
        assert "{" not in finding.why() + finding.why("ko") + finding.next_step() + finding.next_step("ko")
    samples = {
        point.point_id: Sample(
            point_id=point.point_id,
            value=value,
            quality=Quality.BAD if value is None else Quality.GOOD,
            observed_at_s=NOW_S - 1,
        )
        for point, value in zip(model.points, values, strict=False)
    }
    found = site_facts(Readings(SiteGraph(model), samples, NOW_S), plan, lost=lost)
    facts = [
        found.headroom_w,
        found.runtime_s,
        found.thermal_margin_k,
        found.time_to_limit_s,
        found.pue,
        *(one.headroom for one in found.headrooms),
        *(one.p10_s for one in found.runtimes.values()),
    ]
    for fact in facts:
        assert fact.value is None or math.isfinite(fact.value)
        assert fact.value is not None or (fact.reason and fact.quality in (Quality.BAD, Quality.STALE))
    assert found.pue.value is None or found.pue.value >= 1


@given(models, st.dictionaries(names, st.floats(0, 1e5), max_size=8), st.sets(names, max_size=3))
def test_no_flow_makes_power_or_sends_it_through_what_is_lost(model: SiteModel, draws, lost) -> None:
    graph = SiteGraph(model)
    flows = flow(graph, draws, lost)
    total = sum(watts for name, watts in draws.items() if name in graph.by_id)
    for name, one in flows.items():
        assert name not in lost or one.power_w == 0
        if not graph.loop:
            assert -1e-6 <= one.power_w <= total + 1e-6
        assert math.isclose(sum(one.phases_w), one.power_w, abs_tol=1e-6)
