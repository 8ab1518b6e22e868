"""Real hub, real sites, real purses: projects, limits and prices reach the feed, and money the workers' tables."""

import asyncio

from tests.hub.hub_harness import until

from madang.gateway.purse import Purse
from madang.gateway.reservation import Draw, Shortage
from madang.model import PriorityClass
from madang.model.lease import Period, Scope
from madang.policy.pricing import kst_day
from madang.runtime.clock import SystemClock, SystemEntropy
from madang.runtime.machine_boot import read_boot
from madang.runtime.telemetry import EventLog

WON = 1_000_000


async def until_found(find):
    """Wait until `find` finds something, and return that."""
    found = []

    def look():
        if not found and (one := find()) is not None:
            found.append(one)
        return found

    await until(look, "the purse is filled")
    return found[0]


async def _make_clinic(hub):
    """Make a clinic of one site with budgets and a price; returns its key's id."""
    await hub.call("POST", "/api/v1/models", {"name": "m", "task": "chat", "title": "M", "licence": "MIT"})
    await hub.call("PUT", "/api/v1/services/chat", {"name": "chat", "model": "m"})
    price = {"service": "chat", "priority": "clinical", "valid_from": kst_day(SystemClock().wall_s() + 5)}
    await hub.call("POST", "/api/v1/tariffs", {**price, "completion_micro_won_per_million": 1200 * WON})
    tenant = {
        "tenant_id": "clinic",
        "title": "c",
        "residency": {"scope": "site", "places": ["daegu"]},
        "priority": "clinical",
        "budget": {"day_micro_won": 1000 * WON, "month_micro_won": 9000 * WON},
        "overdraw_micro_won": 50 * WON,
    }
    await hub.call("POST", "/api/v1/tenants", tenant)
    project = {"project_id": "ward", "tenant_id": "clinic", "title": "w", "budget": {"day_micro_won": 70 * WON}}
    await hub.call("POST", "/api/v1/projects", project)
    made = await hub.call("POST", "/api/v1/keys", {"tenant_id": "clinic", "project_id": "ward", "priority": "clinical"})
    return made["key_id"]


async def _check_told(daegu, gumi, key_id):
    def is_told():
        snapshot = daegu.snapshot()
        return snapshot is not None and [policy.key_id for policy in snapshot.key_policies] == [key_id]

    await until(is_told, "the gateway's feed has the key's policy")
    assert [one.project_id for one in daegu.snapshot().projects] == ["ward"]
    assert [one.priority for one in daegu.snapshot().tariffs] == [PriorityClass.CLINICAL]
    await until(lambda: gumi.snapshot() and gumi.snapshot().tariffs, "prices go to every site")
    assert not gumi.snapshot().projects
    assert not gumi.snapshot().key_policies


async def _check_leased(daegu):
    async def is_leased():
        rows = (await daegu.get("/api/v1/budgets"))["budgets"]
        held = {(row["scope"], row["period"], row["is_overdraw"]): row["held_micro_won"] for row in rows}
        return held == {
            ("tenant", "day", False): 1000 * WON,
            ("tenant", "month", False): 9000 * WON,
            ("tenant", "day", True): 50 * WON,
            ("tenant", "month", True): 50 * WON,
            ("project", "day", False): 70 * WON,
        }

    await until(is_leased, "the budget of one site is leased home whole")


def _open_purse(daegu):
    return Purse(
        daegu.settings.feed_dir,
        0,
        loop=asyncio.get_running_loop(),
        clock=SystemClock(),
        entropy=SystemEntropy(),
        log=EventLog(SystemClock(), (daegu.folder / "purse.log").open("w")),
        boot=read_boot(),
    )


async def _play(world):
    hub, daegu, gumi = world.hub, world.daegu, world.gumi
    await _check_told(daegu, gumi, await _make_clinic(hub))
    await _check_leased(daegu)
    purse = _open_purse(daegu)
    purse.start()
    try:
        lines = (
            (Scope.TENANT, "clinic", Period.DAY),
            (Scope.TENANT, "clinic", Period.MONTH),
            (Scope.PROJECT, "ward", Period.DAY),
        )

        def take():
            found = purse.reserve(Draw(lines, "clinic"), 60 * WON, SystemClock().wall_s(), may_overdraw=False)
            return None if isinstance(found, Shortage) else found

        taken = await until_found(take)
        daegu.kill()
        taken.settle(33 * WON)
        daegu.start()

        async def is_known():
            rows = (await hub.call("GET", "/api/v1/tenants/clinic/budgets"))["budgets"]
            spent = {(row["scope"], row["period"], row["is_overdraw"]): row["spent_micro_won"] for row in rows}
            return spent["tenant", "day", False] == spent["project", "day", False] == 33 * WON

        await until(daegu.is_serving, "the site is back")
        await until(is_known, "the hub hears what was spent while the site process was dead")
        text = (await daegu.client.get("/metrics")).text
        assert "madang_site_lease_pots " in text
        assert "madang_site_lease_asks_failed_total" in text
        assert "clinic" not in text
    finally:
        purse.close()
        purse._log._stream.close()


def test_money_goes_from_the_hub_to_a_worker_and_what_is_spent_comes_back(world):
    world.run(_play(world))
