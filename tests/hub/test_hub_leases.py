"""Money leases at the hub: durable before they are answered, bounded by the budget, and nobody speaks for another."""

import asyncio
import contextlib
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
import sqlalchemy as sa
from tests.hub.hub_harness import Hub, LeafSite, connected, fails_to_arrive, leaf_sites, running_hub, until
from tests.hub.test_hub_facts import CITY, CLINIC, enrol, put_tenant, three_sites  # noqa: F401 - fixtures
from tests.hub.usage_events import make_event

from madang.core import Rejected, Unavailable
from madang.hub import facts_admin, tenancy_admin
from madang.hub.bootstrap import hub_paths, prepare_hub
from madang.hub.lease_rows import prune
from madang.hub.leases import KEPT_S, grant
from madang.hub.ledger import enter
from madang.hub.money_views import show_budgets
from madang.hub.seeds import ACCOUNT_NAME, load_seeds
from madang.hub.tables import LEASE
from madang.machine.lease_periods import DAY_S, label_of, span_of
from madang.model import Budget, Project, Residency, ResidencyScope
from madang.model.lease import Period, PotKey, Scope
from madang.runtime.clock import SystemClock, SystemEntropy
from madang.runtime.nats import (
    KeyRole,
    format_creds,
    make_seed,
    mint_account,
    mint_scoped_user,
    public_key,
    site_role,
)
from madang.runtime.store import Store, sqlite_url
from madang.wire.leases import LeaseAsk, PotAsk, decode_answer, decode_ask, encode_lease, lease_subject

NOW_S = 1_790_000_000.0
DAY = label_of(Period.DAY, NOW_S)
CITY_DAY = PotKey(scope=Scope.TENANT, account="city", period=Period.DAY, label=DAY)
CLINIC_DAY = PotKey(scope=Scope.TENANT, account="clinic", period=Period.DAY, label=DAY)


def with_budget(tenant, day=None, month=None, **fields):
    return msgspec.structs.replace(tenant, budget=Budget(day_micro_won=day, month_micro_won=month), **fields)


def ask(store, site, key, *, life="1", now_s=NOW_S, **numbers):
    """Ask about one pot, as the hub does for a message."""
    asked = LeaseAsk(site=site, life=life, pots=(PotAsk(key=key, **numbers),))
    return store.write_now(lambda c: grant(c, [asked], now_s))[0][0]


def budgets(store, tenant, now_s=NOW_S):
    rows = store.write_now(lambda c: show_budgets(c, tenant, now_s))["budgets"]
    return {(row["scope"], row["account"], row["period"], row["is_overdraw"]): row for row in rows}


def charge(store, number, micro_won, **fields):
    event = make_event(number, started_at_s=NOW_S, charge_micro_won=micro_won, **fields)
    store.write_now(lambda c: enter(c, [event], [], NOW_S))


# --- one pot


def test_the_home_site_of_a_tenant_gets_the_whole_budget_and_others_nothing(store, change, three_sites):  # noqa: F811
    put_tenant(change, with_budget(CLINIC, 1000, 5000))
    for period, limit in ((Period.DAY, 1000), (Period.MONTH, 5000)):
        key = PotKey(scope=Scope.TENANT, account="clinic", period=period, label=label_of(period, NOW_S))
        assert ask(store, "daegu", key).granted == limit
        assert ask(store, "gumi", key, needed=10, wished=10).granted == 0


def test_shared_money_is_never_granted_twice_and_recalled_for_whoever_needs_it(store, change, three_sites):  # noqa: F811
    put_tenant(change, with_budget(CITY, 1000))
    first = ask(store, "daegu", CITY_DAY, needed=900)
    assert first.granted == 900
    assert ask(store, "gumi", CITY_DAY, needed=200).granted == 0
    assert ask(store, "daegu", CITY_DAY, granted=900, spent=100).recall == 100, "what gumi lacks beyond what is free"
    back = ask(store, "daegu", CITY_DAY, granted=900, spent=100, returned=100)
    assert (back.recall, back.left) == (0, 900)
    assert ask(store, "gumi", CITY_DAY, needed=200).granted == 200
    row = budgets(store, "city")["tenant", "city", "day", False]
    assert (row["granted_micro_won"], row["free_micro_won"], row["spent_micro_won"]) == (1000, 0, 100)
    assert row["outstanding_micro_won"] == 900
    assert row["overshoot_max_micro_won"] == 0
    assert row["sites"] == [
        {"site": "daegu", "granted_micro_won": 800, "spent_micro_won": 100},
        {"site": "gumi", "granted_micro_won": 200, "spent_micro_won": 0},
    ]


def test_an_ask_that_comes_twice_is_granted_once(store, change, three_sites):  # noqa: F811
    put_tenant(change, with_budget(CITY, 1000))
    assert [ask(store, "daegu", CITY_DAY, needed=300).granted for _ in range(3)] == [300, 300, 300]


def test_several_asks_in_one_commit_see_each_other(store, change, three_sites):  # noqa: F811
    put_tenant(change, with_budget(CITY, 1000))
    said = [
        LeaseAsk(site=site, life="1", pots=(PotAsk(key=CITY_DAY, needed=600),)) for site in ("daegu", "gumi", "daegu")
    ]
    answers = store.write_now(lambda c: grant(c, said, NOW_S))
    assert [pots[0].granted for pots in answers] == [600, 0, 600]


def test_a_site_that_lost_its_database_starts_with_nothing_and_its_former_life_counts(
    store,
    change,
    three_sites,  # noqa: F811
):
    put_tenant(change, with_budget(CLINIC, 1000))
    assert ask(store, "daegu", CLINIC_DAY, life="1").granted == 1000
    assert ask(store, "daegu", CLINIC_DAY, life="2", needed=1).granted == 0


@pytest.mark.parametrize(
    "key",
    [
        msgspec.structs.replace(CITY_DAY, account="nobody"),
        msgspec.structs.replace(CITY_DAY, scope=Scope.PROJECT),
        msgspec.structs.replace(CITY_DAY, period=Period.MONTH, label=label_of(Period.MONTH, NOW_S)),
        msgspec.structs.replace(CITY_DAY, is_overdraw=True),
        msgspec.structs.replace(CITY_DAY, label=label_of(Period.DAY, NOW_S + 5 * DAY_S)),
        msgspec.structs.replace(CITY_DAY, label=label_of(Period.DAY, NOW_S - 5 * DAY_S)),
        msgspec.structs.replace(CITY_DAY, label="never"),
    ],
)
def test_a_pot_without_a_budget_or_of_another_time_is_none_and_leaves_no_row(
    store,
    change,
    three_sites,  # noqa: F811
    key,
):
    put_tenant(change, with_budget(CITY, 1000))
    answer = ask(store, "daegu", key, needed=5)
    assert (answer.has_budget, answer.granted) == (False, 0)
    assert store.write_now(lambda c: c.scalar(sa.select(sa.func.count()).select_from(LEASE))) == 0


def test_a_budget_in_mid_period_begins_with_what_the_ledger_knows(store, change, three_sites):  # noqa: F811
    put_tenant(change, CITY)
    charge(store, 1, 400, tenant_id="city")
    charge(store, 2, 50, tenant_id="clinic")
    put_tenant(change, with_budget(CITY, 1000), may_replace=True)
    assert budgets(store, "city")["tenant", "city", "day", False]["free_micro_won"] == 600, "before anybody asked"
    assert ask(store, "daegu", CITY_DAY, needed=601).granted == 0
    assert ask(store, "daegu", CITY_DAY, needed=600).granted == 600


def test_what_was_spent_while_a_budget_was_away_counts_when_it_is_back(store, change):
    def put(tenant):
        change(lambda c: facts_admin.put_tenant(c, tenant, may_replace=True), NOW_S)

    put(with_budget(CITY, 1000))
    assert ask_free(store) == 1000
    put(CITY)
    charge(store, 1, 300, tenant_id="city")
    put(with_budget(CITY, 1000))
    assert ask_free(store) == 700


def ask_free(store):
    # Without a site that may spend of it nothing is granted, and the pot is made all the same.
    assert ask(store, "daegu", CITY_DAY).granted == 0
    return budgets(store, "city")["tenant", "city", "day", False]["free_micro_won"]


def test_a_lowered_budget_shows_its_overshoot_and_recalls_it(store, change, three_sites):  # noqa: F811
    put_tenant(change, with_budget(CLINIC, 1000, overdraw_micro_won=70))
    assert ask(store, "daegu", CLINIC_DAY).granted == 1000
    put_tenant(change, with_budget(CLINIC, 600, overdraw_micro_won=70), may_replace=True)
    row = budgets(store, "clinic")["tenant", "clinic", "day", False]
    assert (row["overshoot_max_micro_won"], row["overdraw_micro_won"]) == (470, 70)
    assert ask(store, "daegu", CLINIC_DAY, granted=1000, spent=100).recall == 400
    ask(store, "daegu", CLINIC_DAY, granted=1000, spent=100, returned=400)
    row = budgets(store, "clinic")["tenant", "clinic", "day", False]
    assert (row["overshoot_max_micro_won"], row["granted_micro_won"]) == (70, 600)


def test_an_overdraw_is_divided_evenly_and_bounds_all_budgets_of_a_period_together(
    store,
    change,
    three_sites,  # noqa: F811
):
    put_tenant(change, with_budget(CITY, 1000, overdraw_micro_won=400))
    change(
        lambda c: tenancy_admin.put_project(
            c,
            Project(project_id="er", tenant_id="city", title="ER", budget=Budget(day_micro_won=10)),
            may_replace=False,
        )
    )
    key = msgspec.structs.replace(CITY_DAY, is_overdraw=True)
    assert [ask(store, site, key).granted for site in ("daegu", "gumi", "gwangju", "national")] == [100] * 4
    rows = budgets(store, "city")
    assert rows["tenant", "city", "day", False]["overshoot_max_micro_won"] == 400
    assert rows["project", "er", "day", False]["overshoot_max_micro_won"] == 400
    assert rows["tenant", "city", "day", True]["free_micro_won"] == 0


def test_money_at_a_site_that_may_no_longer_spend_it_is_asked_back(store, change, three_sites):  # noqa: F811
    put_tenant(change, with_budget(CLINIC, 1000))
    ask(store, "daegu", CLINIC_DAY)
    moved = Residency(scope=ResidencyScope.SITE, places=("gumi",))
    put_tenant(change, with_budget(CLINIC, 1000, residency=moved), may_replace=True)
    assert ask(store, "gumi", CLINIC_DAY).granted == 0
    assert ask(store, "daegu", CLINIC_DAY, granted=1000, spent=10).recall == 990
    ask(store, "daegu", CLINIC_DAY, granted=1000, spent=10, returned=990)
    assert ask(store, "gumi", CLINIC_DAY).granted == 990


def test_a_report_without_news_is_not_written(store, change, three_sites):  # noqa: F811
    put_tenant(change, with_budget(CITY, 1000))
    heard = sa.select(LEASE.c.heard_at_s).where(LEASE.c.holder != "")
    ask(store, "daegu", CITY_DAY)
    granted = ask(store, "daegu", CITY_DAY, now_s=NOW_S + 1).granted
    ask(store, "daegu", CITY_DAY, now_s=NOW_S + 2, granted=granted)
    assert store.write_now(lambda c: c.scalar(heard)) == NOW_S
    ask(store, "daegu", CITY_DAY, now_s=NOW_S + 3, granted=granted, spent=1)
    assert store.write_now(lambda c: c.scalar(heard)) == NOW_S + 3


def test_pots_are_kept_for_a_year_after_their_period(store, change, three_sites):  # noqa: F811
    put_tenant(change, with_budget(CITY, 1000))
    ask(store, "daegu", CITY_DAY)
    ends_at_s = span_of(Period.DAY, DAY)[1]
    count = sa.select(sa.func.count()).select_from(LEASE)
    store.write_now(lambda c: prune(c, ends_at_s))
    assert store.write_now(lambda c: c.scalar(count)) == 2
    store.write_now(lambda c: prune(c, ends_at_s + 1))
    assert store.write_now(lambda c: c.scalar(count)) == 0
    assert KEPT_S > 366 * DAY_S


def copy_database(source, target):
    """Copy a database as a backup does, while it is in use."""
    with contextlib.closing(sqlite3.connect(source)) as old, contextlib.closing(sqlite3.connect(target)) as new:
        old.backup(new)


def test_a_hub_restored_from_an_older_copy_learns_what_it_had_granted(store, change, three_sites, tmp_path):  # noqa: F811
    if store.engine.dialect.name != "sqlite":
        pytest.skip("copied as SQLite is; what follows does not depend on the kind of database")
    put_tenant(change, with_budget(CITY, 1000))
    early = ask(store, "daegu", CITY_DAY, needed=100).granted
    copy_database(tmp_path / "hub.db", tmp_path / "copy.db")
    late = ask(store, "daegu", CITY_DAY, granted=early, needed=600).granted
    assert late == early + 600
    restored = Store(sqlite_url(tmp_path / "copy.db"))
    try:
        assert ask(restored, "daegu", CITY_DAY, granted=late, spent=50).granted >= late
        row = budgets(restored, "city")["tenant", "city", "day", False]
        assert row["granted_micro_won"] >= late
        assert ask(restored, "gumi", CITY_DAY, needed=1000 - late + 1).granted == 0
    finally:
        restored.close()


def test_two_hubs_over_one_database_never_grant_the_same_won(store, database_url, change, three_sites):  # noqa: F811
    put_tenant(change, with_budget(CITY, 1000))
    other = Store(database_url)
    try:
        with ThreadPoolExecutor(8) as pool:
            asked = [
                pool.submit(ask, (store, other)[number % 2], site, CITY_DAY, life=str(number), needed=7, wished=50)
                for number in range(60)
                for site in ("daegu", "gumi", "gwangju")
            ]
            granted = [future.result().granted for future in asked]
    finally:
        other.close()
    row = budgets(store, "city")["tenant", "city", "day", False]
    assert sum(granted) == row["granted_micro_won"]
    assert 970 < row["granted_micro_won"] <= 1000, "what is left is kept for whoever needs it first"


# --- the conversation


def run(scenario):
    asyncio.run(asyncio.wait_for(scenario, 115))


CITY_JSON = {
    "tenant_id": "city",
    "title": "City",
    "residency": {"scope": "nation", "places": ["kr"]},
    "budget": {"day_micro_won": 1000, "month_micro_won": 5000},
}


async def request(bus, subject, *pots, site="site_a", life="1", timeout_s=3.0):
    data = encode_lease(LeaseAsk(site=site, life=life, pots=pots))
    return decode_answer((await bus.request(subject, data, timeout_s=timeout_s)).data)


def today(hub_now_s, **fields):
    return PotAsk(key=msgspec.structs.replace(CITY_DAY, label=label_of(Period.DAY, hub_now_s)), **fields)


@pytest.mark.peer
def test_a_grant_is_durable_before_its_answer_and_nobody_asks_for_another(tmp_path):
    run(converse(tmp_path))


async def converse(folder):
    async with running_hub(folder) as hub, leaf_sites(hub, "site_a", "site_b") as (leaf_a, leaf_b):
        await hub.call("POST", "/api/v1/tenants", CITY_JSON)
        a, b = leaf_a.bus(), leaf_b.bus()
        async with connected(a), connected(b):
            now_s = SystemClock().wall_s()
            first = await request(a, "lease.site_a", today(now_s, needed=600))
            assert (first.life, first.error, first.pots[0].granted) == ("1", "", 600)
            # Killed and started again, it knows what it had granted.
            await hub.stop()
            await hub.start()
            await until(hub.is_ready, "hub is ready again")
            other = await request(b, "lease.site_b", today(now_s, needed=600), site="site_b")
            assert (other.error, other.pots[0].granted) == ("", 0)
            shown = await hub.call("GET", "/api/v1/tenants/city/budgets")
            day = next(row for row in shown["budgets"] if row["period"] == "day")
            assert (day["granted_micro_won"], day["sites"][0]["site"]) == (600, "site_a")
            await names_another(hub, a, now_s)


async def names_another(hub, a, now_s):
    forged = await request(a, "lease.site_a", today(now_s, granted=5, returned=5), site="site_b")
    assert "names site 'site_b'" in forged.error
    assert forged.pots == ()
    odd = PotAsk(key=msgspec.structs.replace(CITY_DAY, account="c\0"))
    data = encode_lease(LeaseAsk(site="site_b", life="1", pots=(today(now_s, granted=10**15, spent=10**15),)))
    assert await fails_to_arrive(a, "lease.site_b", data)
    garbage = decode_answer((await a.request("lease.site_a", b"{}", timeout_s=3)).data)
    assert "no lease ask" in garbage.error
    # What one database or another would choke on would fail the asks that share its commit.
    for bad in (await request(a, "lease.site_a", life="a\0"), await request(a, "lease.site_a", odd)):
        assert "is not valid" in bad.error
    shown = await hub.call("GET", "/api/v1/tenants/city/budgets")
    assert all(row["spent_micro_won"] == 0 for row in shown["budgets"])
    assert await hub.metric("madang_hub_lease_asks_total", result="refused") == 4
    again = await request(a, "lease.site_a", today(now_s, granted=600, spent=1))
    assert again.error == ""


@pytest.mark.peer
def test_a_site_that_an_older_release_enrolled_may_ask_without_joining_again(tmp_path):
    run(upgrade(tmp_path))


def older_role():
    """The role of a site before there were leases."""
    role = msgspec.json.decode(msgspec.json.encode(site_role()))
    allowed = role["template"]["pub"]["allow"]
    allowed.remove("lease.{{name()}}")
    return role


async def upgrade(folder):
    hub = Hub(folder)
    paths = hub_paths(hub.settings)
    seeds = load_seeds(paths.keys)
    old = mint_account(
        seeds.operator,
        seeds.account_key,
        ACCOUNT_NAME,
        issued_at_s=1000,
        has_jetstream=True,
        scoped_keys={public_key(seeds.role): older_role()},
    )
    paths.account_jwt.write_text(old)
    prepare_hub(hub.settings)
    user = make_seed(KeyRole.USER, SystemEntropy().token_bytes(32))
    token = mint_scoped_user(seeds.role, seeds.account_key, public_key(user), "site_a", issued_at_s=1000)
    leaf = LeafSite(hub, "site_a", format_creds(token, user))
    try:
        await hub.nats.start()
        await leaf.nats.start()
        await until(leaf.is_linked, "the site is linked under the older role")
        a = leaf.bus()
        async with connected(a):
            await hub.start()
            await until(hub.is_ready, "hub is ready")
            await until(lambda: is_answered(a), "the site may ask")
    finally:
        if hub.task is not None:
            await hub.stop()
        leaf.nats.kill()
        hub.nats.kill()
        await hub.client.aclose()
        hub.events.close()


async def is_answered(bus):
    try:
        return not (await request(bus, "lease.site_a", timeout_s=0.5)).error
    except Unavailable:
        return False


# --- the messages


def test_messages_come_back_as_they_were_and_the_subject_names_the_site():
    said = LeaseAsk(site="daegu", life="1", pots=(PotAsk(key=CITY_DAY, granted=5, returned=1, spent=2, needed=3),))
    assert decode_ask(encode_lease(said)) == said
    assert lease_subject("daegu") == "lease.daegu"


@pytest.mark.parametrize(
    "pot",
    [
        PotAsk(key=CITY_DAY, granted=-1),
        PotAsk(key=CITY_DAY, spent=2**53 + 1),
        PotAsk(key=CITY_DAY, granted=1, returned=2),
    ],
)
def test_numbers_that_cannot_be_are_refused(pot):
    with pytest.raises(Rejected, match="impossible"):
        decode_ask(encode_lease(LeaseAsk(site="daegu", life="1", pots=(pot,))))
