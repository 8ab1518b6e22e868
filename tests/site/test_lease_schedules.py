"""Money under random schedules: two sites, their workers and a hub, each killed, cut and robbed at any step.

No won is handed out twice and none is spent beyond the budget, whatever is lost, repeated or restarted; and once all
is well again, the hub knows at least what was spent, and exactly that if nothing was lost for good.
"""

import asyncio
import contextlib

import pytest
from tests.depth import depth
from tests.site.lease_bench import (
    GUMI,
    HOME,
    SHARED,
    Bench,
    make_site,
    make_tariff,
    make_tenant,
)

from madang.core import Draw, Unavailable
from madang.wire.leases import LeaseAsk
from madang.wire.purse import worker_name

STEPS = 160
LIMIT = 2000
WORKERS = 2


class Play:
    """One run. `spent` and `reserved` are the truth, which no part of the system is asked for."""

    def __init__(self, seed, sites, *, is_gentle):
        self.draw = Draw(seed)
        self.sites = sites
        self.is_gentle = is_gentle
        self.kept = []
        self.spent = 0
        self.answers = []

    def pick(self, below):
        return self.draw.below(below)

    async def step(self):
        site = self.sites[self.pick(len(self.sites))]
        worker = self.pick(WORKERS)
        acts = (
            (30, self.take),
            (16, self.settle),
            (20, self.tick),
            (16, self.ask),
            (4, self.lose_answer),
            (4, self.repeat_answer),
            (3, self.kill_worker),
            (4, self.start_worker),
            (3, self.restart_site),
            (8, self.break_store),
        )
        if not self.is_gentle:
            acts += ((1, self.lose_power), (1, self.lose_table), (1, self.lose_database))
        at = self.pick(sum(weight for weight, _ in acts))
        for weight, act in acts:
            at -= weight
            if at < 0:
                await act(site, worker)
                break
        site.clock.now_s += self.pick(20) / 10
        self.check()

    async def take(self, site, worker):
        if worker in site.purses:
            amount = 1 + self.pick(120)
            taken = site.take(amount, worker=worker)
            if taken is not None:
                self.kept.append((site, worker, amount, taken))

    async def settle(self, _site, _worker):
        if self.kept:
            _, _, amount, taken = self.kept.pop(self.pick(len(self.kept)))
            charge = self.pick(amount + 1)
            taken.settle(charge)
            self.spent += charge

    async def tick(self, site, _worker):
        with contextlib.suppress(Unavailable):
            await site.tick(1.1)

    async def ask(self, site, _worker):
        with contextlib.suppress(Unavailable):
            await site.ask_hub(is_all=self.pick(4) == 0)

    async def lose_answer(self, site, _worker):
        asks = site.keeper.list_asks(is_all=True)
        answer = site.hub.answer(LeaseAsk(site=site.site, life=site.keeper.life, pots=tuple(asks)))
        self.answers.append((site, answer))
        site.keeper.mark_due(asks)

    async def repeat_answer(self, _site, _worker):
        """An answer comes late, or once more."""
        if self.answers:
            site, answer = self.answers[self.pick(len(self.answers))]
            if answer.life == site.keeper.life:
                with contextlib.suppress(Unavailable):
                    await site.keeper.take_answers(answer.pots)

    async def kill_worker(self, site, worker):
        """What ran there may have cost anything up to what was reserved: the worst is taken."""
        if worker in site.purses:
            site.kill_worker(worker)
            self.drop(site, worker)

    def drop(self, site, worker):
        for one in [one for one in self.kept if one[:2] == (site, worker)]:
            self.kept.remove(one)
            self.spent += one[2]

    async def start_worker(self, site, worker):
        if worker not in site.purses:
            site.start_worker(worker)

    async def restart_site(self, site, _worker):
        await site.restart()

    async def break_store(self, site, _worker):
        store = site.store
        store.fail_before, store.fail_after = self.pick(5) == 0, self.pick(5) == 0

    async def lose_power(self, site, _worker):
        """The tables are of another boot; what they say is older than the truth in the worst case."""
        site.stop()
        for worker in list(site.purses):
            site.kill_worker(worker)
            self.drop(site, worker)
        site.boot += 1
        await site.start()

    async def lose_table(self, site, worker):
        if worker in site.purses:
            site.kill_worker(worker)
            self.drop(site, worker)
        (site.folder / worker_name(worker)).unlink(missing_ok=True)

    async def lose_database(self, site, _worker):
        site.lose_database()
        await site.start()

    def check(self):
        reserved = sum(amount for _, _, amount, _ in self.kept)
        assert self.spent + reserved <= LIMIT
        for pot in self.sites[0].hub.pots.values():
            assert pot.held <= LIMIT
        for site in self.sites:
            for held in site.keeper._held.values():
                assert held.pot.free >= 0, held.pot

    async def heal(self):
        """All is well again: everybody runs, and every request ends."""
        while self.kept:
            await self.settle(None, None)
        for site in self.sites:
            site.store.fail_before = site.store.fail_after = False
            for worker in range(WORKERS):
                await self.start_worker(site, worker)
        for _ in range(3):
            for site in self.sites:
                await site.turn()
                await site.ask_hub(is_all=True)
        self.check()


def play(folder, seed, residency, *, is_gentle):
    folder.mkdir(exist_ok=True)

    async def main():
        async with contextlib.AsyncExitStack() as stack:
            daegu = await stack.enter_async_context(Bench(folder / "daegu"))
            sites = [daegu]
            facts = [make_site("daegu"), make_site("gumi"), make_tariff(250), make_tenant(LIMIT, residency=residency)]
            daegu.set(*facts)
            if residency is SHARED:
                gumi = Bench(folder / "gumi", view=daegu.view, hub=daegu.hub, clock=daegu.clock, site=GUMI)
                sites.append(await stack.enter_async_context(gumi))
            for site in sites:
                for worker in range(WORKERS):
                    site.start_worker(worker)
            run = Play(seed, sites, is_gentle=is_gentle)
            for _ in range(STEPS):
                await run.step()
            await run.heal()
            (pot,) = [pot for key, pot in daegu.hub.pots.items() if key.label == "2026-09-24"]
            lives = {f"{site.site}/{site.keeper.life}" for site in sites}
            known = sum(one.spent if name in lives else one.held for name, one in pot.holdings.items())
            assert known >= run.spent, "what a lost database held counts as spent"
            if is_gentle:
                assert pot.spent == run.spent
            return run

    return asyncio.run(main())


@pytest.mark.parametrize("residency", [HOME, SHARED], ids=["home", "shared"])
@pytest.mark.parametrize("is_gentle", [True, False], ids=["killed", "robbed"])
@pytest.mark.parametrize("seed", range(depth(3, 6)))
def test_no_won_is_spent_twice_or_beyond_the_budget(tmp_path, seed, residency, is_gentle):
    run = play(tmp_path, seed, residency, is_gentle=is_gentle)
    assert run.spent > 0 or not is_gentle, "something happened"
