"""The site's lease keeper with real purses on the other side of its tables: money arrives, is counted and comes back.

What both sides do under random schedules and crashes is in `test_lease_schedules`.
"""

import asyncio
import functools

import pytest
from tests.site.lease_bench import (
    CLINIC,
    DAEGU,
    DAY_LINE,
    DAY_S,
    GUMI,
    MONTH_LINE,
    NOON_S,
    SHARED,
    Bench,
    make_site,
    make_tariff,
    make_tenant,
)

from madang.core import ProjectId, Unavailable
from madang.model import Budget, Project, Residency, ResidencyScope
from madang.model.lease import Period, Scope
from madang.site.leases.held import HINT_WORDS
from madang.wire.purse import DIRECTORY_FILE, HINT_CUT, HINT_MORE, HINT_SPENT, worker_name


def on_bench(play):
    """Run a play on a bench with one worker."""

    @functools.wraps(play)
    def test(tmp_path):
        async def main():
            async with Bench(tmp_path / "daegu") as bench:
                bench.set(make_site("daegu"), make_site("gumi"), make_tariff(250))
                bench.start_worker()
                await play(bench)

        asyncio.run(main())

    # pytest would take what the play takes for fixtures.
    del test.__wrapped__
    return test


async def funded(bench, day=1000, month=None, **fields):
    bench.set(make_tenant(day, month, **fields))
    await bench.turn(2)


@on_bench
async def test_a_budget_of_one_site_is_leased_home_whole_and_reaches_a_purse(bench):
    await funded(bench, 1000, 20_000)
    assert bench.row()["held_micro_won"] == 1000
    assert bench.row("month")["held_micro_won"] == 20_000
    assert bench.take(400, lines=(DAY_LINE, MONTH_LINE)) is not None
    assert bench.row()["plan"] == "whole"


@on_bench
async def test_what_is_spent_is_heard_and_told_to_the_hub(bench):
    await funded(bench)
    bench.take(100).settle(70)
    kept = bench.take(50)
    await bench.turn()
    assert bench.row()["spent_micro_won"] == 70
    assert bench.row()["reserved_micro_won"] == 50
    assert bench.hub_pot().spent == 70
    kept.settle(0)
    await bench.turn()
    assert bench.row()["left_micro_won"] == 930
    assert bench.row()["left_everywhere_micro_won"] == 930


@on_bench
async def test_nothing_is_written_while_nothing_but_spending_goes_on(bench):
    await funded(bench)
    await bench.turn(3)
    writes = bench.store.writes
    await bench.turn(30, seconds=0.2)
    for _ in range(10):
        bench.take(1).settle(1)
        await bench.turn(seconds=0.2)
    assert bench.store.writes == writes
    assert bench.row()["spent_micro_won"] == 10


@on_bench
async def test_a_request_that_lacks_money_gets_what_it_lacks_and_no_more(bench):
    await funded(bench, 100_000)
    bench.start_worker(1)
    await bench.turn(2)
    held = [bench.purses[worker] for worker in (0, 1)]
    before = bench.row()["unassigned_micro_won"]
    assert bench.shortage(40_000).hint == HINT_MORE
    await bench.tick(0.1)
    await bench.tick(0.1)
    first = bench.take(40_000)
    assert first is not None
    for _ in range(5):
        await bench.tick(0.1)
    taken = before - bench.row()["unassigned_micro_won"]
    assert taken < 2 * 40_000 + 20_000, "a need that is published for seconds is met once, beside the usual refill"
    assert len(held) == 2
    first.settle(0)


@on_bench
async def test_money_at_another_worker_is_called_back_for_a_request(bench):
    bench.set(make_tariff(10**9))
    await funded(bench, 100)
    bench.start_worker(1)
    await bench.turn(3)
    assert bench.take(90, worker=1) is None
    for _ in range(3):
        await bench.tick(0.6)
    assert bench.take(90, worker=1) is not None
    assert bench.row()["left_micro_won"] == 100


@pytest.mark.parametrize("flag", ["fail_before", "fail_after"])
def test_a_grant_is_durable_before_a_purse_has_it(tmp_path, flag):
    @on_bench
    async def play(bench):
        await funded(bench, 5000)
        bench.shortage(4900)
        setattr(bench.store, flag, True)
        for _ in range(3):
            with pytest.raises(Unavailable):
                await bench.tick()
            bench.shortage(4900)
        setattr(bench.store, flag, False)
        assert await bench.get(4900) is not None
        await bench.restart()
        await bench.turn(2)
        assert bench.take(200) is None
        assert bench.hub_pot().held == 5000

    play(tmp_path)


@on_bench
async def test_an_answer_that_cannot_be_stored_is_asked_for_again(bench):
    bench.set(make_tenant(1000))
    await bench.tick()
    bench.store.fail_before = True
    with pytest.raises(Unavailable):
        await bench.ask_hub()
    assert bench.row()["held_micro_won"] == 0
    bench.store.fail_before = False
    await bench.turn()
    assert bench.row()["held_micro_won"] == 1000


@on_bench
async def test_a_killed_worker_finds_its_table_and_what_it_reserved_counts_as_spent(bench):
    await funded(bench)
    bench.take(100)
    bench.take(30).settle(30)
    bench.kill_worker()
    await bench.turn()
    assert bench.row()["spent_micro_won"] == 30, "nobody knows yet what of the rest it did"
    bench.start_worker()
    await bench.turn()
    assert bench.row()["spent_micro_won"] == 130
    assert bench.take(200) is not None


@on_bench
async def test_a_killed_site_process_hands_nothing_out_twice(bench):
    bench.set(make_tariff(10**9))
    await funded(bench, 1000)
    bench.start_worker(1)
    await bench.turn(3)
    for _ in range(4):
        await bench.restart()
        await bench.turn(2)
    taken = sum(1 for _ in range(3) for worker in (0, 1) if bench.take(250, worker=worker) is not None)
    assert taken * 250 <= 1000


@on_bench
async def test_after_power_loss_what_workers_held_counts_as_spent_and_is_little(bench):
    await funded(bench, 10**9)
    (await bench.get(1000)).settle(1000)
    await bench.turn()
    bench.stop()
    bench.kill_worker()
    bench.boot = 8
    await bench.start()
    await bench.turn(2)
    lost = bench.row()["spent_micro_won"]
    assert 1000 <= lost < 10**9 // 100, "a small part of the day's budget"
    bench.start_worker()
    await bench.turn(2)
    assert await bench.get(1000) is not None
    assert bench.row()["spent_micro_won"] == lost


@on_bench
async def test_a_table_that_vanishes_counts_as_spent(bench):
    await funded(bench)
    bench.kill_worker()
    held = bench.row()["held_micro_won"] - bench.row()["unassigned_micro_won"]
    (bench.folder / worker_name(0)).unlink()
    await bench.turn()
    assert bench.row()["spent_micro_won"] == held > 0
    bench.start_worker()
    await bench.turn()
    assert bench.take(bench.row()["left_micro_won"] // 4) is not None


@on_bench
async def test_a_folder_that_cannot_be_read_writes_nothing_off(bench):
    await funded(bench)
    moved = bench.folder.with_name("elsewhere")
    bench.folder.rename(moved)
    with pytest.raises(Unavailable, match="cannot look for purses"):
        await bench.tick()
    moved.rename(bench.folder)
    await bench.turn(2)
    assert bench.row()["spent_micro_won"] == 0
    assert bench.take(100) is not None


@on_bench
async def test_a_lost_database_begins_again_and_what_it_held_counts_as_spent_at_the_hub(bench):
    await funded(bench, 1000, 30_000)
    bench.take(10, lines=(DAY_LINE, MONTH_LINE)).settle(10)
    await bench.turn()
    old = {row.number for row in bench.purses[0]._entries}
    life = bench.keeper.life
    bench.lose_database()
    await bench.start()
    bench.view._clear()
    bench.view.generation = 0
    await bench.tick()
    assert bench.take(10, lines=(DAY_LINE, MONTH_LINE)) is not None, "workers go on while nothing is known"
    bench.set(make_site("daegu"), make_site("gumi"), make_tariff(250), make_tenant(2000, 30_000))
    await bench.turn(3)
    assert bench.keeper.life != life
    assert not old & {row.number for row in bench.purses[0]._entries}, "no pot inherits what workers know of another"
    assert bench.row()["held_micro_won"] == 1000, "a budget of 2000 less what the former life held"
    assert bench.hub_pot().held == 2000
    assert bench.take(400) is not None
    assert bench.take(700) is None


@on_bench
async def test_a_database_restored_from_a_copy_is_taken_for_a_lost_one(bench):
    bench.set(make_tenant(1000, residency=SHARED))
    await bench.turn(3)
    bench.stop()
    copy = (bench.folder / "site.db").read_bytes()
    assert not list(bench.folder.glob("site.db-*")), "closed, so nothing is in its log"
    await bench.start()
    life = bench.keeper.life
    bench.set(make_tenant(100, residency=SHARED))
    await bench.turn(4)
    assert bench.row()["held_micro_won"] == 100, "handed back, which the copy does not know"
    bench.set(make_tenant(1000, residency=SHARED))
    async with Bench(
        bench.folder.parent / "gumi", view=bench.view, hub=bench.hub, clock=bench.clock, site=GUMI
    ) as gumi:
        gumi.start_worker()
        await gumi.turn(3)
        bench.stop()
        (bench.folder / "site.db").write_bytes(copy)
        await bench.start()
        assert bench.keeper.life != life
        assert bench.events().count("lease_database_restored") == 1
        await bench.turn(3)
        held = bench.row()["held_micro_won"] + gumi.row()["held_micro_won"]
        assert held + bench.hub_pot().holdings[f"daegu/{life}"].held <= 1000
    await bench.restart()
    assert bench.events().count("lease_database_restored") == 1, "the new life is its own"


@on_bench
async def test_a_budget_that_is_lowered_is_handed_back(bench):
    await funded(bench, 1000)
    bench.take(300).settle(300)
    bench.set(make_tenant(400))
    for _ in range(4):
        await bench.turn()
    assert bench.row()["held_micro_won"] == 400
    assert bench.hub_pot().held == 400
    assert bench.take(200) is None
    bench.set(make_tenant(1000))
    await bench.turn(3)
    assert bench.row()["held_micro_won"] == 1000


@on_bench
async def test_a_budget_that_is_lowered_below_what_is_spent_gives_back_what_it_can(bench):
    await funded(bench, 1000)
    (await bench.get(600)).settle(600)
    kept = await bench.get(100)
    bench.set(make_tenant(500))
    await bench.turn(5)
    assert bench.hub_pot().held == 700
    assert bench.hub_pot().overshoot == 200
    kept.settle(40)
    await bench.turn(12)
    assert bench.hub_pot().held == 640
    assert bench.take(1) is None


@on_bench
async def test_a_budget_that_is_removed_gives_nothing_more_and_goes_on_where_it_was(bench):
    await funded(bench, 1000)
    bench.take(100).settle(100)
    bench.set(make_tenant())
    await bench.turn(3)
    assert bench.keeper.list_budgets(is_all=False) == []
    bench.set(make_tenant(1000))
    await bench.turn(3)
    assert bench.row()["spent_micro_won"] == 100
    assert bench.row()["held_micro_won"] == 1000
    bench.set(("tenant", CLINIC))
    await bench.turn(3)
    assert bench.keeper.list_budgets(is_all=False) == []


@on_bench
async def test_a_tenant_that_moves_takes_what_is_left_along(bench):
    await funded(bench, 1000)
    bench.take(100).settle(100)
    elsewhere = make_tenant(1000, residency=Residency(scope=ResidencyScope.SITE, places=("gumi",)))
    async with Bench(
        bench.folder.parent / "gumi", view=bench.view, hub=bench.hub, clock=bench.clock, site=GUMI
    ) as gumi:
        gumi.start_worker()
        bench.set(elsewhere)
        for _ in range(6):
            await bench.turn()
            taken = gumi.take(300)
            if taken is not None:
                taken.settle(0)
            await gumi.turn()
        assert gumi.row()["held_micro_won"] == 900
        assert bench.hub_pot().held == 1000
        assert gumi.take(300) is not None


@on_bench
async def test_two_sites_share_and_one_in_need_gets_what_the_other_has(bench):
    bench.set(make_tenant(1000, residency=SHARED))
    async with Bench(
        bench.folder.parent / "gumi", view=bench.view, hub=bench.hub, clock=bench.clock, site=GUMI
    ) as gumi:
        gumi.start_worker()
        for _ in range(3):
            await bench.turn()
            await gumi.turn()
        assert bench.row()["held_micro_won"] > 0
        assert gumi.take(900) is None
        for _ in range(8):
            await gumi.turn()
            await bench.turn()
        assert gumi.take(900) is not None
        await gumi.turn()
        assert bench.take(150) is None
        assert bench.hub_pot().held <= 1000


@on_bench
async def test_money_held_back_for_others_is_free_again_when_the_hub_is_gone(bench):
    bench.set(make_tenant(1000, residency=SHARED))
    await bench.turn(3)
    (await bench.get(200)).settle(200)
    bench.set(make_tenant(200, residency=SHARED))
    await bench.tick()
    await bench.ask_hub()
    bench.is_linked = False
    held = bench.row()["held_micro_won"]
    for _ in range(20):
        await bench.tick()
    assert await bench.get((held - 200) // 2) is not None, "within what the site still holds, as the overshoot says"


@on_bench
async def test_the_next_day_is_there_when_it_begins_and_the_last_one_still_settles(bench):
    await funded(bench, 1000)
    kept = bench.take(100)
    bench.clock.now_s = NOON_S + DAY_S / 2 - 1
    await bench.tick(0.9)
    bench.is_linked = False
    assert bench.row()["label"] == "2026-09-24"
    await bench.tick(0.2)
    assert bench.row()["label"] == "2026-09-25"
    assert bench.take(100) is not None, "the site was cut off when the day turned"
    kept.settle(80)
    bench.is_linked = True
    await bench.turn(2)
    assert bench.hub_pot(label="2026-09-24").spent == 80
    assert bench.hub_pot(label="2026-09-25").spent == 0
    assert bench.row(label="2026-09-24")["spent_micro_won"] == 80


@on_bench
async def test_a_clinic_cut_off_for_a_month_has_every_days_budget(bench):
    await funded(bench, 1000, 20_000, overdraw=500)
    bench.is_linked = False
    for _ in range(31):
        bench.clock.now_s += DAY_S
        for _ in range(3):
            await bench.tick()
        assert bench.take(400) is not None, bench.row()
    slots = [pot.slot for pot in bench.purses[0]._entries]
    assert len(slots) == len(set(slots)) < 40, "pots that are over leave the tables"


@on_bench
async def test_clinical_overdraw_is_leased_and_flagged(bench):
    await funded(bench, 100, overdraw=50)
    bench.take(100, may_overdraw=False)
    for _ in range(3):
        await bench.turn()
    if bench.row()["unassigned_micro_won"]:
        bench.shortage(1)
    assert bench.row(is_overdraw=True)["held_micro_won"] == 50


@on_bench
async def test_projects_have_budgets_of_their_own(bench):
    project = Project(project_id=ProjectId("ward"), tenant_id=CLINIC, title="w", budget=Budget(day_micro_won=70))
    bench.set(make_tenant(1000), project)
    await bench.turn(2)
    assert bench.row(scope="project")["held_micro_won"] == 70
    assert bench.take(20, lines=((Scope.PROJECT, "ward", Period.DAY), DAY_LINE)) is not None
    bench.set(("project", "ward"))
    await bench.turn()
    assert [row["scope"] for row in bench.keeper.list_budgets(is_all=False)] == ["tenant"]


@on_bench
async def test_a_client_is_told_whether_more_can_come(bench):
    await funded(bench, 1000)
    bench.take(999)
    for _ in range(3):
        await bench.turn()
    bench.take(999)
    bench.take(1000 - 999)
    await bench.turn(2)
    assert HINT_WORDS[HINT_MORE] == bench.row()["state"]
    bench.is_linked = False
    await bench.tick()
    await bench.tick(0.1)
    assert bench.shortage(5000).hint == HINT_CUT
    bench.kill_worker()
    bench.start_worker()
    await bench.restart()
    await bench.tick()
    await bench.tick(0.1)
    assert bench.shortage(5000).hint == HINT_CUT, "a worker that starts anew hears it too"
    bench.is_linked = True
    await bench.turn(3)
    assert bench.shortage(5000).hint == HINT_SPENT


@on_bench
async def test_a_dead_workers_need_is_nobodys(bench):
    await funded(bench, 1000)
    bench.shortage(5000)
    await bench.turn()
    assert bench.keeper.pots_short == 1
    bench.kill_worker()
    await bench.turn()
    assert bench.keeper.pots_short == 0
    assert bench.keeper.workers.count == 0


@on_bench
async def test_the_hub_hears_of_what_changed_and_now_and_then_of_all(bench):
    await funded(bench, 1000, 20_000)
    assert await bench.ask_hub() == []
    bench.take(10).settle(10)
    await bench.tick()
    asks = bench.keeper.list_asks(is_all=False)
    assert [(ask.key.period, ask.key.label, ask.spent) for ask in asks] == [("day", "2026-09-24", 10)]
    assert bench.keeper.list_asks(is_all=False) == []
    bench.keeper.mark_due(asks)
    assert bench.keeper.list_asks(is_all=False) == asks
    every = {(ask.key.period, ask.key.label) for ask in bench.keeper.list_asks(is_all=True)}
    assert every == {
        ("day", "2026-09-24"),
        ("day", "2026-09-25"),
        ("day", "2026-09-26"),
        ("month", "2026-09"),
    }


@on_bench
async def test_a_directory_that_cannot_be_written_is_tried_again(bench):
    await funded(bench)
    path = bench.folder / DIRECTORY_FILE
    path.unlink()
    path.mkdir()
    (path / "x").touch()
    bench.set(make_tenant(2000))
    with pytest.raises(Unavailable):
        await bench.tick()
    (path / "x").unlink()
    path.rmdir()
    await bench.turn(2)
    assert path.is_file()
    assert bench.row()["held_micro_won"] == 2000


def test_a_site_that_was_never_linked_writes_no_directory(tmp_path):
    async def main():
        async with Bench(tmp_path / "daegu") as bench:
            await bench.tick()
            assert not (bench.folder / DIRECTORY_FILE).exists()
            assert bench.site == DAEGU

    asyncio.run(main())
