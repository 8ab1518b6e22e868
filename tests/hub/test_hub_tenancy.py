"""Projects, what keys may do, and prices: their rules, and where they become known."""

import asyncio

import msgspec
import pytest
import sqlalchemy as sa
from tests.hub.hub_harness import fake_site, leaf_sites, running_hub, until
from tests.hub.test_hub_facts import (  # noqa: F401 - fixtures
    CITY,
    CLINIC,
    ENTROPY,
    MODEL,
    actions,
    enrol,
    generations,
    held,
    put_tenant,
    three_sites,
)

from madang.core import Conflict, Rejected
from madang.hub import desired_store, facts_admin, keys_admin, prices_admin, tenancy_admin
from madang.hub.keys_admin import KeyLimits, KeyRequest
from madang.hub.prices_admin import TARIFFS_MAX, TariffRequest
from madang.hub.tables import API_KEY, KEY_POLICY, TARIFF
from madang.hub.tenancy_admin import BUDGET_MICRO_WON_MAX
from madang.model import (
    ApiKey,
    Budget,
    KeyPolicy,
    PriorityClass,
    Project,
    Residency,
    ResidencyScope,
    Service,
    Tariff,
)
from madang.policy.pricing import day_start_s, kst_day
from madang.runtime.admin_http import NotFound

WARD = Project(
    project_id="ward", tenant_id="clinic", title="병동", budget=Budget(day_micro_won=10, month_micro_won=100)
)
TODAY_S = day_start_s("2026-11-28") + 3600.0


def put_project(change, project=WARD, may_replace=False):
    return change(lambda c: tenancy_admin.put_project(c, project, may_replace=may_replace))


def make_key(change, key_id="k", tenant_id="clinic", **fields):
    request = KeyRequest(tenant_id=tenant_id, key_id=key_id, **fields)
    return change(lambda c: keys_admin.create_key(c, request, ENTROPY))


def set_policy(change, key_id="k", **fields):
    return change(lambda c: keys_admin.set_key_policy(c, key_id, KeyLimits(**fields)))


def put_service(change, name="chat"):
    change(lambda c: facts_admin.put_model(c, MODEL))
    change(lambda c: facts_admin.put_service(c, Service(name=name, model="qwen2.5")))


def where(store, kind, item_id):
    return [str(site) for site in generations(store) if (kind, item_id) in held(store, site)]


def fact(store, site, kind, item_id, shape):
    return msgspec.json.decode(held(store, site)[kind, item_id].spec, type=shape)


# --- who gets to know what


def test_projects_and_policies_are_known_where_their_tenant_is_and_move_with_it(store, change, three_sites):  # noqa: F811
    put_tenant(change, CLINIC)
    put_project(change)
    make_key(change, project_id="ward", requests_per_minute=5)
    assert where(store, "project", "ward") == where(store, "key_policy", "k") == ["daegu"]
    assert len(where(store, "key", "k")) == 4
    assert fact(store, "daegu", "project", "ward", Project) == WARD
    policy = fact(store, "daegu", "key_policy", "k", KeyPolicy)
    assert (policy.project_id, policy.requests_per_minute, policy.tokens_per_minute) == ("ward", 5, None)
    moved = Residency(scope=ResidencyScope.REGION, places=("honam",))
    put_tenant(change, msgspec.structs.replace(CLINIC, residency=moved), may_replace=True)
    assert where(store, "project", "ward") == where(store, "key_policy", "k") == ["gwangju"]
    assert store.write_now(lambda c: desired_store.replan(c, 2000.0)) == {}, "a partial plan equals the whole"


def test_every_site_knows_of_every_key_whether_it_has_a_policy(store, change, three_sites):  # noqa: F811
    put_tenant(change, CLINIC)
    make_key(change)
    assert all(fact(store, site, "key", "k", ApiKey).has_policy for site in generations(store))
    # As a database of an older release has it.
    store.write_now(lambda c: c.execute(KEY_POLICY.delete()))
    store.write_now(lambda c: desired_store.replan(c, 2000.0))
    assert not any(fact(store, site, "key", "k", ApiKey).has_policy for site in generations(store))
    view = store.write_now(lambda c: keys_admin.read_key_view(c, "k"))
    assert (view.has_policy, view.priority, view.project_id) == (False, None, "")
    assert set_policy(change).has_policy
    assert all(fact(store, site, "key", "k", ApiKey).has_policy for site in generations(store))
    assert where(store, "key_policy", "k") == ["daegu"]


def test_a_tariff_is_known_everywhere(store, change, three_sites):  # noqa: F811
    put_service(change)
    tariff, is_new = change(lambda c: prices_admin.put_tariff(c, price("2026-12-01")), TODAY_S)
    assert is_new
    assert where(store, "tariff", tariff.tariff_id) == ["daegu", "gumi", "gwangju", "national"]
    assert fact(store, "national", "tariff", "chat.interactive.2026-12-01", Tariff) == tariff
    change(lambda c: prices_admin.delete_tariff(c, tariff.tariff_id), TODAY_S)
    assert where(store, "tariff", tariff.tariff_id) == []
    assert actions(store)[-2:] == ["tariff.put", "tariff.delete"]


@pytest.mark.peer
def test_all_of_it_travels_to_a_site_within_two_seconds(tmp_path):
    asyncio.run(asyncio.wait_for(travel(tmp_path), 115))


async def travel(folder):
    async with running_hub(folder) as hub, leaf_sites(hub, "daegu") as (leaf,), fake_site(leaf) as site:
        for path, body in (
            ("tenants", CLINIC),
            ("models", MODEL),
            ("projects", WARD),
            ("keys", KeyRequest(tenant_id="clinic", key_id="k", project_id="ward")),
        ):
            await hub.call("POST", f"/api/v1/{path}", msgspec.to_builtins(body))
        service = Service(name="chat", model="qwen2.5")
        await hub.call("PUT", "/api/v1/services/chat", msgspec.to_builtins(service))
        made = await hub.call("POST", "/api/v1/tariffs", msgspec.to_builtins(price("2999-12-31")))
        wanted = {("project", "ward"), ("key_policy", "k"), ("tariff", made["tariff_id"])}
        await until(lambda: has(site, wanted), "the site has project, policy and tariff")
        await hub.call("PUT", "/api/v1/keys/k/policy", {"streams_max": 1})
        await until(lambda: has(site, wanted, b'"streams_max":1'), "the site has the new limit", 2)


async def has(site, wanted, text=b""):
    await site.pull()
    live = site.live()
    return wanted <= set(live) and text in live["key_policy", "k"]


# --- projects and budgets


def test_a_project_is_made_once_and_replaced_by_name(store, change):
    put_tenant(change, CLINIC)
    put_tenant(change, CITY)
    assert put_project(change) == (WARD, True)
    assert put_project(change) == (WARD, False)
    wider = msgspec.structs.replace(WARD, budget=Budget())
    with pytest.raises(Conflict, match="exists and differs"):
        put_project(change, wider)
    assert put_project(change, wider, may_replace=True) == (wider, False)
    with pytest.raises(Conflict, match="belongs to tenant clinic"):
        put_project(change, msgspec.structs.replace(WARD, tenant_id="city"), may_replace=True)
    with pytest.raises(NotFound):
        put_project(change, msgspec.structs.replace(WARD, project_id="x", tenant_id="nobody"))
    assert actions(store).count("project.put") == 2
    assert store.write_now(lambda c: tenancy_admin.list_projects(c, "clinic")) == (wider,)
    assert store.write_now(lambda c: tenancy_admin.list_projects(c, "city")) == ()


def test_a_tenant_has_a_bounded_number_of_projects(change, monkeypatch):
    monkeypatch.setattr(tenancy_admin, "PROJECTS_PER_TENANT_MAX", 20)
    put_tenant(change, CLINIC)

    def fill(c):
        for number in range(20):
            tenancy_admin.put_project(c, msgspec.structs.replace(WARD, project_id=f"p{number}"), may_replace=False)

    change(fill)
    with pytest.raises(Conflict, match="the most allowed"):
        put_project(change, msgspec.structs.replace(WARD, project_id="more"))
    put_project(change, msgspec.structs.replace(WARD, project_id="p1", title="other"), may_replace=True)


def test_a_project_with_live_keys_stays_and_a_tenant_with_projects_too(store, change, three_sites):  # noqa: F811
    put_tenant(change, CLINIC)
    put_project(change)
    make_key(change, "old", project_id="ward")
    make_key(change, "moves", project_id="ward")
    for step in (
        lambda: change(lambda c: keys_admin.revoke_key(c, "old")),
        lambda: set_policy(change, "moves"),
    ):
        with pytest.raises(Conflict, match=r"not revoked, such as (old|moves)"):
            change(lambda c: tenancy_admin.delete_project(c, "ward"))
        step()
    with pytest.raises(Conflict, match="not revoked, such as moves"):
        change(lambda c: facts_admin.delete_tenant(c, "clinic"))
    change(lambda c: keys_admin.revoke_key(c, "moves"))
    with pytest.raises(Conflict, match="projects, such as ward"):
        change(lambda c: facts_admin.delete_tenant(c, "clinic"))
    change(lambda c: tenancy_admin.delete_project(c, "ward"))
    assert where(store, "project", "ward") == where(store, "key_policy", "old") == []
    with pytest.raises(NotFound):
        change(lambda c: tenancy_admin.delete_project(c, "ward"))
    change(lambda c: facts_admin.delete_tenant(c, "clinic"))
    for table in (API_KEY, KEY_POLICY):
        assert store.write_now(lambda c, t=table: c.scalar(sa.select(sa.func.count()).select_from(t))) == 0
    assert {kind for site in generations(store) for kind, _ in held(store, site)} == {"site"}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"budget": Budget(day_micro_won=-1)}, "day_micro_won is -1"),
        ({"budget": Budget(month_micro_won=BUDGET_MICRO_WON_MAX + 1)}, "month_micro_won"),
        ({"budget": Budget(day_micro_won=11, month_micro_won=10)}, "more than a whole month"),
        ({"overdraw_micro_won": -5}, "overdraw_micro_won is -5"),
        ({"overdraw_micro_won": BUDGET_MICRO_WON_MAX + 1}, "overdraw_micro_won"),
    ],
)
def test_amounts_that_cannot_be_are_named(change, fields, said):
    with pytest.raises(Rejected, match=said):
        put_tenant(change, msgspec.structs.replace(CLINIC, **fields))
    put_tenant(change, CLINIC)
    if "budget" in fields:
        with pytest.raises(Rejected, match=said):
            put_project(change, msgspec.structs.replace(WARD, **fields))


@pytest.mark.parametrize(
    "budget",
    [
        Budget(day_micro_won=0),
        Budget(day_micro_won=10, month_micro_won=10),
        Budget(month_micro_won=BUDGET_MICRO_WON_MAX),
        Budget(),
    ],
)
def test_amounts_at_their_bounds_are_taken(change, budget):
    tenant = msgspec.structs.replace(CLINIC, budget=budget, overdraw_micro_won=BUDGET_MICRO_WON_MAX)
    assert put_tenant(change, tenant) == (tenant, True)


# --- what a key may do


@pytest.mark.parametrize(
    ("highest", "asked", "given"),
    [
        ("clinical", None, "interactive"),
        ("interactive", None, "interactive"),
        ("batch", None, "batch"),
        ("clinical", "clinical", "clinical"),
        ("interactive", "batch", "batch"),
    ],
)
def test_a_key_is_of_the_class_asked_for_and_of_the_middle_one_else(change, highest, asked, given):
    put_tenant(change, msgspec.structs.replace(CLINIC, priority=PriorityClass(highest)))
    made = make_key(change, priority=asked and PriorityClass(asked))
    assert made.priority == given
    assert made.has_policy


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"priority": PriorityClass.CLINICAL}, Rejected, "above the highest of tenant clinic, interactive"),
        ({"requests_per_minute": 0}, Rejected, "requests_per_minute is 0"),
        ({"tokens_per_minute": -3}, Rejected, "tokens_per_minute is -3"),
        ({"tokens_per_minute": 10**9 + 1}, Rejected, "tokens_per_minute"),
        ({"streams_max": 10**6 + 1}, Rejected, "streams_max"),
        ({"services": ("chat", "chat")}, Rejected, "each once"),
        ({"services": ("none",)}, Rejected, "services names 'none', which does not exist"),
        ({"sites": ("nowhere",)}, Rejected, "sites names 'nowhere', which does not exist"),
        ({"project_id": "park"}, Rejected, "belongs to another tenant"),
        ({"project_id": "none"}, NotFound, "project 'none' does not exist"),
    ],
)
def test_limits_that_cannot_be_are_named_and_nothing_is_left(
    store,
    change,
    three_sites,  # noqa: F811
    fields,
    error,
    said,
):
    put_service(change)
    put_tenant(change, CLINIC)
    put_tenant(change, CITY)
    put_project(change, Project(project_id="park", tenant_id="city", title="Park"))
    with pytest.raises(error, match=said):
        make_key(change, **fields)
    with pytest.raises(NotFound):
        store.write_now(lambda c: keys_admin.read_key_view(c, "k"))
    make_key(change)
    before = generations(store)
    with pytest.raises(error, match=said):
        set_policy(change, **fields)
    assert generations(store) == before


def test_a_policy_is_replaced_whole_and_the_same_again_changes_nothing(store, change, three_sites):  # noqa: F811
    put_service(change)
    put_tenant(change, CLINIC)
    put_project(change)
    fields = {"project_id": "ward", "services": ("chat",), "sites": ("daegu",), "streams_max": 2}
    made = make_key(change, requests_per_minute=60, **fields)
    assert (made.requests_per_minute, made.services) == (60, ("chat",))
    view = set_policy(change, tokens_per_minute=1000, **fields)
    assert (view.requests_per_minute, view.tokens_per_minute, view.sites) == (None, 1000, ("daegu",))
    assert view == store.write_now(lambda c: keys_admin.list_keys(c, "clinic"))[0]
    before = generations(store)
    set_policy(change, tokens_per_minute=1000, **fields)
    assert (generations(store), actions(store).count("key.policy")) == (before, 1)
    policy = fact(store, "daegu", "key_policy", "k", KeyPolicy)
    assert (policy.tokens_per_minute, policy.streams_max, policy.project_id) == (1000, 2, "ward")
    change(lambda c: keys_admin.revoke_key(c, "k"))
    with pytest.raises(Conflict, match="revoked"):
        set_policy(change)


def test_a_lower_class_of_a_tenant_lowers_its_keys_and_a_higher_one_raises_none(store, change, three_sites):  # noqa: F811
    put_tenant(change, msgspec.structs.replace(CLINIC, priority=PriorityClass.CLINICAL))
    make_key(change, "er", priority=PriorityClass.CLINICAL)
    make_key(change, "desk")
    make_key(change, "night", priority=PriorityClass.BATCH)

    def classes():
        return [str(fact(store, "daegu", "key_policy", key, KeyPolicy).priority) for key in ("er", "desk", "night")]

    put_tenant(change, CLINIC, may_replace=True)
    assert classes() == ["interactive", "interactive", "batch"]
    assert actions(store)[-2:] == ["tenant.put", "key.policy"]
    put_tenant(change, msgspec.structs.replace(CLINIC, priority=PriorityClass.BATCH), may_replace=True)
    assert classes() == ["batch"] * 3
    put_tenant(change, msgspec.structs.replace(CLINIC, priority=PriorityClass.CLINICAL), may_replace=True)
    assert classes() == ["batch"] * 3


# --- prices


def price(day, priority=PriorityClass.INTERACTIVE, **fields):
    values = {"prompt_micro_won_per_million": 500_000_000, "completion_micro_won_per_million": 1_500_000_000, **fields}
    return TariffRequest(service="chat", priority=priority, valid_from=day, **values)


def put_price(change, request, now_s=TODAY_S):
    return change(lambda c: prices_admin.put_tariff(c, request), now_s)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (price("2026-11-27"), "today is 2026-11-28 in Korea"),
        (price("2026-13-01"), "not valid"),
        (price("2026-W48-6"), "not valid"),
        (price("20261128"), "not valid"),
        (price("2026-12-01", prompt_micro_won_per_million=-1), "prompt_micro_won_per_million is -1"),
        (price("2026-12-01", request_micro_won=10**12 + 1), "request_micro_won"),
        (price("2026-12-01", audio_second_micro_won=10**9 + 1), "audio_second_micro_won"),
        (price("2026-12-01", image_micro_won=10**9 + 1), "image_micro_won"),
        (price("2026-12-01", sample_micro_won=-1), "sample_micro_won is -1"),
        (msgspec.structs.replace(price("2026-12-01"), service="none"), "service 'none' does not exist"),
        (msgspec.structs.replace(price("2026-12-01"), service="No!"), "service name"),
    ],
)
def test_a_price_that_cannot_be_is_named(change, request_, said):
    put_service(change)
    with pytest.raises(Rejected, match=said):
        put_price(change, request_)


def test_a_day_begins_at_korean_midnight(change):
    put_service(change)
    midnight_s = day_start_s("2026-11-29")
    assert kst_day(midnight_s - 1) == "2026-11-28"
    with pytest.raises(Rejected, match="valid_from is over"):
        put_price(change, price("2026-11-28"), midnight_s)
    assert put_price(change, price("2026-11-29"), midnight_s)[1]


def test_a_price_that_has_begun_stays_and_one_that_has_not_may_change(store, change):
    put_service(change)
    dearer = {"completion_micro_won_per_million": 2_000_000_000}
    assert put_price(change, price("2026-11-30"))[1]
    replaced, is_new = put_price(change, price("2026-11-30", **dearer))
    assert (is_new, replaced.completion_micro_won_per_million) == (False, 2_000_000_000)
    put_price(change, price("2026-11-28"))
    assert put_price(change, price("2026-11-28"))[1] is False, "the same again"
    with pytest.raises(Conflict, match="has begun"):
        put_price(change, price("2026-11-28", **dearer))
    with pytest.raises(Conflict, match="has begun"):
        change(lambda c: prices_admin.delete_tariff(c, "chat.interactive.2026-11-28"), TODAY_S)
    change(lambda c: prices_admin.delete_tariff(c, "chat.interactive.2026-11-30"), TODAY_S)
    with pytest.raises(NotFound):
        change(lambda c: prices_admin.delete_tariff(c, "chat.interactive.2026-11-30"), TODAY_S)
    put_price(change, price("2026-11-28", priority=PriorityClass.CLINICAL))
    ids = [one.tariff_id for one in store.write_now(lambda c: prices_admin.list_tariffs(c, "chat"))]
    assert ids == ["chat.clinical.2026-11-28", "chat.interactive.2026-11-28"]
    assert store.write_now(lambda c: prices_admin.list_tariffs(c, "other")) == []


def test_the_longest_id_of_a_tariff_reaches_a_site(store, change, three_sites):  # noqa: F811
    name = "s" * 63
    put_service(change, name)
    tariff, _ = put_price(change, msgspec.structs.replace(price("2026-12-01"), service=name))
    assert where(store, "tariff", tariff.tariff_id)[0] == "daegu"


def test_the_price_book_is_bounded(store, change):
    put_service(change)
    put_price(change, price("2026-12-01"))
    rows = [
        {"tariff_id": f"old.batch.{number}", "service": "old", "spec": "{}", "created_at_s": 0.0}
        for number in range(TARIFFS_MAX - 1)
    ]
    store.write_now(lambda c: c.execute(TARIFF.insert(), rows))
    with pytest.raises(Conflict, match="the most allowed"):
        put_price(change, price("2026-12-02"))
    put_price(change, price("2026-12-01", request_micro_won=1))
