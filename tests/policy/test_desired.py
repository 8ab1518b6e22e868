"""Who gets which item, what a difference is, and what a heartbeat calls for."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.model import (
    ApiKey,
    Assignment,
    CatalogEntry,
    DataClass,
    KeyPolicy,
    PriorityClass,
    Project,
    Residency,
    ResidencyScope,
    Service,
    Site,
    Tariff,
    Tenant,
)
from madang.model.artifact import Task
from madang.policy.desired import (
    GENERATION_JUMP_MAX,
    MOVING_S_MAX,
    RESYNC_BACKOFF_S_MAX,
    HubFacts,
    SyncTrack,
    Verdict,
    diff_desired,
    judge_heartbeat,
    note_resync,
    plan_desired,
)
from madang.policy.residency import is_allowed, may_pass_through

SITES = st.lists(
    st.builds(
        Site,
        name=st.sampled_from(["daegu", "gumi", "gwangju", "national"]),
        region=st.sampled_from(["yeongnam", "honam"]),
        nation=st.sampled_from(["kr", "jp"]),
        is_entry_only=st.booleans(),
        is_cordoned=st.booleans(),
    ),
    unique_by=lambda site: site.name,
    max_size=4,
)
RESIDENCIES = st.builds(
    Residency,
    scope=st.sampled_from(ResidencyScope),
    places=st.lists(st.sampled_from(["daegu", "gumi", "yeongnam", "honam", "kr", "jp"]), max_size=2).map(tuple),
    is_transit_granted=st.booleans(),
)
TENANTS = st.lists(
    st.builds(
        Tenant,
        tenant_id=st.sampled_from(["clinic", "parts", "city"]),
        title=st.just("t"),
        residency=RESIDENCIES,
        data_class=st.sampled_from(DataClass),
    ),
    unique_by=lambda tenant: tenant.tenant_id,
    max_size=3,
)
SERVICES = st.lists(
    st.builds(
        Service,
        name=st.sampled_from(["chat", "embed"]),
        model=st.just("m"),
        tenants=st.lists(st.sampled_from(["clinic", "parts", "city"]), max_size=2, unique=True).map(tuple),
        sites=st.lists(st.sampled_from(["daegu", "gumi"]), max_size=2, unique=True).map(tuple),
        replicas_per_site=st.integers(0, 2),
    ),
    unique_by=lambda service: service.name,
    max_size=2,
)
FACTS = st.builds(
    HubFacts,
    sites=SITES.map(tuple),
    tenants=TENANTS.map(tuple),
    services=SERVICES.map(tuple),
    keys=st.just(
        (
            ApiKey(
                key_id="k",
                sha256="0" * 64,
                tenant_id="clinic",
                residency=Residency(scope=ResidencyScope.SITE, places=("daegu",)),
            ),
        )
    ),
    models=st.just((CatalogEntry(name="m", task=Task.CHAT, title="m", licence="x"),)),
    projects=st.just(
        tuple(Project(project_id=f"p{tenant}", tenant_id=tenant, title="p") for tenant in ("clinic", "city", "gone"))
    ),
    key_policies=st.just(
        tuple(KeyPolicy(key_id=f"k{tenant}", tenant_id=tenant, project_id="") for tenant in ("clinic", "city", "gone"))
    ),
    tariffs=st.just(
        (Tariff(tariff_id="t", service="chat", priority=PriorityClass.BATCH, valid_from="2026-11-28"),),
    ),
    placed=st.sets(st.tuples(st.sampled_from(["chat", "embed"]), st.sampled_from(["daegu", "gumi"]))).map(frozenset),
)


@given(FACTS)
def test_a_tenant_is_known_only_where_its_residency_allows(facts):
    plan = plan_desired(facts)
    assert set(plan) == {site.name for site in facts.sites}
    for site in facts.sites:
        held = {item_id for kind, item_id in plan[site.name] if kind == "tenant"}
        for tenant in facts.tenants:
            rule = (tenant.residency, tenant.data_class, site)
            may_hold = is_allowed(*rule) or may_pass_through(*rule)
            assert (tenant.tenant_id in held) is may_hold


@given(FACTS)
def test_projects_and_policies_are_known_where_their_tenant_is_and_nowhere_else(facts):
    for items in plan_desired(facts).values():
        for fact in (*facts.projects, *facts.key_policies):
            key = ("project", fact.project_id) if isinstance(fact, Project) else ("key_policy", fact.key_id)
            assert (items.get(key) == fact) is (("tenant", fact.tenant_id) in items)
            assert (key in items) is (("tenant", fact.tenant_id) in items)


@given(FACTS)
def test_every_site_gets_every_site_key_service_model_and_tariff(facts):
    everywhere = {("site", site.name) for site in facts.sites}
    everywhere |= {("key", key.key_id) for key in facts.keys}
    everywhere |= {("service", service.name) for service in facts.services}
    everywhere |= {("model", model.name) for model in facts.models}
    everywhere |= {("tariff", tariff.tariff_id) for tariff in facts.tariffs}
    for items in plan_desired(facts).values():
        assert {key for key in items if key[0] not in ("tenant", "project", "key_policy", "assignment")} == everywhere


@given(FACTS)
def test_assignments_obey_chips_cordon_and_residency(facts):
    tenants = {tenant.tenant_id: tenant for tenant in facts.tenants}
    plan = plan_desired(facts)
    for site in facts.sites:
        for service in facts.services:
            fact = plan[site.name].get(("assignment", service.name))
            if fact is None:
                continue
            assert fact == Assignment(service=service.name, replicas=service.replicas_per_site)
            assert service.replicas_per_site > 0
            assert not site.is_entry_only
            assert not site.is_cordoned or (service.name, site.name) in facts.placed
            assert not service.sites or site.name in service.sites
            if service.tenants and not service.sites:
                assert any(
                    is_allowed(tenants[t].residency, tenants[t].data_class, site)
                    for t in service.tenants
                    if t in tenants
                )


@given(FACTS)
def test_a_part_of_the_facts_gives_that_part_of_the_plan(facts):
    whole = plan_desired(facts)
    part = plan_desired(HubFacts(sites=facts.sites, keys=facts.keys))
    for site, items in part.items():
        keys_only = {key: fact for key, fact in items.items() if key[0] == "key"}
        assert keys_only == {key: fact for key, fact in whole[site].items() if key[0] == "key"}


KEYS = st.tuples(st.sampled_from(["key", "site"]), st.sampled_from("abcde"))
CURRENT = st.dictionaries(KEYS, st.one_of(st.none(), st.sampled_from(["1", "2"])))
WANTED = st.dictionaries(KEYS, st.sampled_from(["1", "2"]))


@given(CURRENT, WANTED, st.integers(0, 1000))
def test_a_difference_applied_gives_what_is_wanted(current, wanted, generation):
    difference = diff_desired(current, wanted, generation)
    after = dict(current)
    after |= {key: wanted[key] for key in difference.changed}
    after |= dict.fromkeys(difference.removed)
    assert {key: digest for key, digest in after.items() if digest is not None} == wanted
    assert not set(difference.changed) & set(difference.removed)
    assert difference.generation == generation + bool(difference)
    again = diff_desired(after, wanted, difference.generation)
    assert not again
    assert again.generation == difference.generation


@given(CURRENT, WANTED)
def test_a_tombstone_is_made_once_and_can_live_again(current, wanted):
    difference = diff_desired(current, wanted, 1)
    for key in difference.removed:
        assert current[key] is not None
    for key, digest in current.items():
        if digest is None:
            assert key not in difference.removed
            assert (key in difference.changed) is (key in wanted)


def beat(track, now_s, generation, digest, wanted=(5, "good")):
    return judge_heartbeat(
        track,
        now_s=now_s,
        applied_generation=generation,
        applied_hash=digest,
        wanted_generation=wanted[0],
        wanted_hash=wanted[1],
    )


def test_a_site_that_holds_what_is_wanted_is_in_sync_at_any_older_generation():
    assert beat(SyncTrack(), 0.0, 5, "good")[1] is Verdict.IN_SYNC
    assert beat(SyncTrack(), 0.0, 3, "good")[1] is Verdict.IN_SYNC


def test_a_difference_that_stands_still_is_repaired_at_the_second_heartbeat():
    track, verdict = beat(SyncTrack(), 0.0, 5, "bad")
    assert verdict is Verdict.WAIT
    assert beat(track, 2.0, 5, "bad")[1] is Verdict.RESYNC


def test_a_site_that_advances_is_left_alone():
    track = SyncTrack()
    for step in range(20):
        track, verdict = beat(track, step * 2.0, step, f"h{step}", wanted=(100, "good"))
        assert verdict is Verdict.WAIT


def test_a_site_that_moves_without_advancing_is_repaired_in_bounded_time():
    track, now_s = SyncTrack(), 0.0
    verdict = Verdict.WAIT
    while verdict is Verdict.WAIT:
        track, verdict = beat(track, now_s, 5, f"h{now_s}")
        now_s += 2.0
    assert verdict is Verdict.RESYNC
    assert now_s <= MOVING_S_MAX + 4.0


def test_resyncs_back_off_and_being_in_sync_forgets_them():
    track, now_s, orders = SyncTrack(), 0.0, []
    while len(orders) < 9:
        track, verdict = beat(track, now_s, 5, "bad")
        if verdict is Verdict.RESYNC:
            orders.append(now_s)
            track = note_resync(track, now_s)
        now_s += 2.0
        assert now_s < 1000
    gaps = [later - earlier for earlier, later in itertools.pairwise(orders)]
    assert gaps == sorted(gaps)
    assert gaps[-1] >= RESYNC_BACKOFF_S_MAX
    assert gaps[-1] <= RESYNC_BACKOFF_S_MAX + 4.0
    track, _ = beat(track, now_s, 5, "good")
    assert track.resyncs == 0


@pytest.mark.parametrize(
    ("ahead", "verdict"),
    [(1, Verdict.JUMP), (GENERATION_JUMP_MAX, Verdict.JUMP), (GENERATION_JUMP_MAX + 1, Verdict.ABSURD)],
)
def test_a_site_ahead_of_the_hub_is_followed_within_reason(ahead, verdict):
    assert beat(SyncTrack(), 0.0, 5 + ahead, "bad")[1] is verdict
