"""Money leases: no order of cuts, losses, repeats, restarts and changed budgets spends more than is stated."""

import msgspec
import pytest
from tests.machine.lease_world import COST_MAX, Machine, World

from madang.core import Rejected
from madang.machine.lease import Ask, HubPot, Plan, SitePot, answer, hand_back, issue, note_worker, take_grant
from madang.machine.lease_periods import label_of, labels_ahead, span_of
from madang.model.lease import Period

SCHEDULES = 1200
STEPS = 100


def run_schedules(count, machine=Machine, first=0):
    spent = 0
    for seed in range(first, first + count):
        plan = (Plan.DEMAND, Plan.DEMAND, Plan.EVEN, Plan.WHOLE)[seed % 4]
        world = World(seed, machine=machine, plan=plan)
        try:
            for _ in range(STEPS):
                world.step()
                world.check()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, plan {plan}: {error}") from error
        spent += world.spent
    return spent


def test_no_schedule_spends_beyond_the_budget_and_the_stated_overshoot():
    assert run_schedules(SCHEDULES) > SCHEDULES  # and money was spent at all


@pytest.mark.deep
def test_no_schedule_of_very_many_spends_beyond_the_stated_bound():
    run_schedules(40_000, first=SCHEDULES)


class GrantsTwice(Machine):
    """A hub that grants without looking at what it granted."""

    @staticmethod
    def answer(pot, ask, plan, sites, now_s):
        forgetful = msgspec.structs.replace(
            pot, holdings={ask.holder: pot.holdings[ask.holder]} if ask.holder in pot.holdings else {}
        )
        after, grant = answer(forgetful, ask, plan, sites, now_s)
        return msgspec.structs.replace(after, holdings={**pot.holdings, **after.holdings}), grant


class IssuesTwice(Machine):
    """A site that gives workers what it has handed back."""

    @staticmethod
    def hand_back(pot, amount):
        return msgspec.structs.replace(pot, returned=pot.returned + amount)


class BelievesTheLast(Machine):
    """A site that takes what a worker handed back for all that it ever got."""

    @staticmethod
    def issue(pot, life, amount):
        after = issue(pot, life, amount)
        share = after.shares.get(life)
        if share is None or not share.returned:
            return after
        again = msgspec.structs.replace(share, granted=share.granted + share.returned)
        return msgspec.structs.replace(after, shares={**after.shares, life: again})


@pytest.mark.parametrize("broken", [GrantsTwice, IssuesTwice, BelievesTheLast])
def test_a_broken_machine_is_caught(broken):
    with pytest.raises(AssertionError):
        run_schedules(SCHEDULES, machine=broken)


@pytest.mark.parametrize("seed", range(40))
def test_whoever_is_connected_gets_what_is_left(seed):
    world = World(seed, limit=1000)
    for _ in range(STEPS):
        world.step()
    world.legal = {site.name for site in world.sites}
    world.quiesce()
    site = world.sites[seed % 3]
    left = world.hub.limit - world.hub.spent
    cost = min(COST_MAX, left)
    if cost <= 0 or world.hub.overshoot:
        pytest.skip("the schedule spent it all")
    lost = sum(
        h.held - h.spent for name, h in world.hub.holdings.items() if name not in {s.holder for s in world.sites}
    )
    if left - lost < cost:
        pytest.skip("the rest lies with lives that are over")
    worker = site.workers[0]
    for other in world.sites:
        for one in other.workers:
            one.needed = 0
    if not worker.ask(cost):
        world.quiesce()
        assert worker.ask(cost), (world.hub, site.pot, vars(worker))


def test_a_cut_site_spends_at_most_what_it_holds():
    world = World(7, limit=900)
    world.quiesce()
    cut = world.sites[0]
    cut.is_cut = True
    held = cut.pot.granted - cut.pot.returned
    assert 0 < held < 900
    spent = 0
    for _ in range(held):
        world.refill(cut)
        if any(worker.ask(10) for worker in cut.workers):
            spent += 10
            assert spent <= held
    assert spent > held - 10 * len(cut.workers)


def test_a_site_scoped_budget_is_leased_home_whole():
    pot, grant = answer(HubPot(limit=500), Ask(site="a", holder="a/0"), Plan.WHOLE, {"a"}, 0.0)
    assert (grant.granted, pot.free, pot.overshoot) == (500, 0, 0)


def test_overdraw_is_split_evenly_in_advance():
    pot = HubPot(limit=100)
    for site in "abc":
        pot, grant = answer(pot, Ask(site=site, holder=f"{site}/0"), Plan.EVEN, set("abc"), 0.0)
        assert grant.granted == 33
    pot, grant = answer(pot, Ask(site="a", holder="a/1"), Plan.EVEN, set("abc"), 0.0)
    assert grant.granted == 0  # another life of a site gets no second part


def test_a_repeated_ask_and_a_late_answer_change_nothing():
    ask = Ask(site="a", holder="a/0", needed=50)
    pot, first = answer(HubPot(limit=1000), ask, Plan.DEMAND, {"a", "b"}, 0.0)
    again, second = answer(pot, ask, Plan.DEMAND, {"a", "b"}, 0.0)
    assert first.granted == second.granted >= 50
    assert again.held == pot.held
    site = take_grant(take_grant(SitePot(), first.granted), first.granted - 10)
    assert site.granted == first.granted


def test_a_hub_restored_from_an_older_copy_learns_what_it_gave():
    pot, _ = answer(HubPot(limit=100), Ask(site="a", holder="a/0", granted=80, spent=70), Plan.DEMAND, {"a"}, 0.0)
    assert pot.holdings["a/0"].granted >= 80
    assert pot.held <= 100


def test_a_lowered_budget_states_its_overshoot_and_asks_back():
    pot, grant = answer(HubPot(limit=1000), Ask(site="a", holder="a/0", needed=600), Plan.DEMAND, {"a"}, 0.0)
    pot = msgspec.structs.replace(pot, limit=200)
    assert pot.overshoot == grant.granted - 200
    pot, grant = answer(pot, Ask(site="a", holder="a/0", granted=grant.granted), Plan.DEMAND, {"a"}, 0.0)
    assert grant.recall == pot.held - 200
    site = hand_back(take_grant(SitePot(), grant.granted), grant.recall)
    ask = Ask(site="a", holder="a/0", granted=site.granted, returned=site.returned)
    pot, _ = answer(pot, ask, Plan.DEMAND, {"a"}, 0.0)
    assert pot.overshoot == 0


def test_what_was_spent_beyond_a_grant_is_taken_from_what_is_free_and_else_stated():
    """A request that a dearer price met on its way costs more than was reserved; nobody else may spend that again."""
    pot, grant = answer(HubPot(limit=1000), Ask(site="a", holder="a/0", needed=400), Plan.DEMAND, {"a", "b"}, 0.0)
    free = pot.free
    ask = Ask(site="a", holder="a/0", granted=grant.granted, spent=grant.granted + 90)
    pot, _ = answer(pot, ask, Plan.DEMAND, {"a", "b"}, 0.0)
    assert (pot.free, pot.overshoot) == (free - 90, 0)
    pot, rest = answer(pot, Ask(site="b", holder="b/0", needed=pot.free), Plan.DEMAND, {"a", "b"}, 0.0)
    assert grant.granted + 90 + rest.granted == 1000
    ask = Ask(site="b", holder="b/0", granted=rest.granted, spent=rest.granted + 7)
    pot, _ = answer(pot, ask, Plan.DEMAND, {"a", "b"}, 0.0)
    assert (pot.free, pot.overshoot, pot.spent) == (0, 7, 1007)


def test_a_site_that_may_no_longer_hold_it_gives_back():
    pot, grant = answer(HubPot(limit=100), Ask(site="a", holder="a/0"), Plan.DEMAND, {"a"}, 0.0)
    pot, grant = answer(pot, Ask(site="a", holder="a/0", granted=grant.granted, spent=10), Plan.DEMAND, {"b"}, 0.0)
    assert grant.recall == grant.granted - 10


def test_a_need_of_a_site_that_fell_silent_is_forgotten():
    pot = HubPot(limit=100)
    pot, _ = answer(pot, Ask(site="a", holder="a/0", granted=0, needed=200), Plan.DEMAND, {"a", "b"}, 0.0)
    pot, grant = answer(pot, Ask(site="b", holder="b/0", needed=60), Plan.DEMAND, {"a", "b"}, 1.0)
    assert grant.granted == 0
    pot, grant = answer(pot, Ask(site="b", holder="b/0", needed=60), Plan.DEMAND, {"a", "b"}, 60.0)
    assert grant.granted >= 60


def test_a_worker_cannot_hand_back_more_than_it_got():
    pot = issue(take_grant(SitePot(), 100), "0", 40)
    pot = note_worker(pot, "0", returned=1000, spent=0)
    assert (pot.free, pot.shares["0"].held) == (100, 0)


def test_periods_are_korean():
    midnight_s = 1_700_060_400.0  # 2023-11-16T00:00:00+09:00
    assert label_of(Period.DAY, midnight_s) == "2023-11-16"
    assert label_of(Period.DAY, midnight_s - 1) == "2023-11-15"
    assert span_of(Period.DAY, "2023-11-16") == (midnight_s, midnight_s + 86_400)
    assert list(labels_ahead(Period.MONTH, midnight_s, 2)) == ["2023-11", "2023-12", "2024-01"]
    assert list(labels_ahead(Period.DAY, midnight_s - 1, 1)) == ["2023-11-15", "2023-11-16"]
    for period, label in ((Period.DAY, "2023-11"), (Period.MONTH, "2023-11-01"), (Period.DAY, "")):
        with pytest.raises(Rejected):
            span_of(period, label)
