"""The conversation about money: what is asked when, and what a hub that is silent, refuses or is strange changes."""

import asyncio
import contextlib
import functools

from tests.hub.hub_harness import until
from tests.site.lease_bench import Bench, BenchClock, make_site, make_tariff, make_tenant

from madang.core import ProjectId, Unavailable
from madang.model import Budget, Project
from madang.runtime.bus import BusMessage
from madang.site.leases.talk import LeaseTalk
from madang.site.link import HubLink
from madang.wire.leases import POTS_PER_ASK_MAX, LeaseAnswer, decode_ask, encode_lease


class RunningClock(BenchClock):
    """Time goes on with the loop, from the bench's noon."""

    def monotonic_ns(self):
        return int((self.now_s + asyncio.get_running_loop().time()) * 1e9)


class FakeBus:
    """Plays bus and hub: answers with a hub in memory, or as a test says."""

    def __init__(self, hub):
        self.hub = hub
        self.asks = []
        self.refuse = None
        self.reply = None

    async def wait_connected(self):
        pass

    async def request(self, subject, data, *, timeout_s):
        ask = decode_ask(data)
        assert subject == f"lease.{ask.site}"
        assert timeout_s > 0
        self.asks.append(ask)
        if self.refuse is not None:
            raise self.refuse
        answer = self.reply(ask) if self.reply is not None else self.hub.answer(ask)
        return BusMessage(subject="_INBOX", data=encode_lease(answer), reply="", headers={})


class Talking:
    def __init__(self, bench):
        self.bench = bench
        self.bus = FakeBus(bench.hub)
        self.link = HubLink(bench.clock, bench.log)
        self.talk = LeaseTalk(site=bench.site, keeper=bench.keeper, bus=self.bus, link=self.link, log=bench.log)

    @contextlib.asynccontextmanager
    async def running(self):
        loops = [asyncio.create_task(loop) for loop in self.talk.loops().values()]
        purse = asyncio.create_task(self._run_purses())
        try:
            yield
        finally:
            for task in (*loops, purse):
                task.cancel()
            await asyncio.gather(*loops, purse, return_exceptions=True)

    async def _run_purses(self):
        while True:
            for worker in self.bench.purses.values():
                worker.tick()
            await asyncio.sleep(0.02)


def talking(play):
    @functools.wraps(play)
    def test(tmp_path):
        async def main():
            async with Bench(tmp_path / "daegu", clock=RunningClock()) as bench:
                bench.set(make_site("daegu"), make_site("gumi"), make_tariff(250), make_tenant(1000))
                bench.start_worker()
                spoken = Talking(bench)
                async with spoken.running():
                    await play(spoken)

        asyncio.run(main())

    del test.__wrapped__
    return test


@talking
async def test_money_arrives_and_what_is_spent_is_told(spoken):
    bench = spoken.bench
    await until(lambda: bench.take(100), "a grant reached the purse")
    await until(lambda: bench.hub_pot().held == 1000, "the hub knows")
    bench.take(50).settle(50)
    await until(lambda: bench.hub_pot().spent == 50, "the hub hears what was spent")
    assert spoken.link.state == "connected", "an answer is a contact"


@talking
async def test_a_hub_that_is_away_stops_nothing_and_is_told_everything_afterwards(spoken):
    bench = spoken.bench
    await until(lambda: bench.take(100), "a grant reached the purse")
    spoken.bus.refuse = Unavailable("nobody listens, says the test")
    bench.take(50).settle(50)
    await until(lambda: spoken.talk.asks_failed_total >= 2, "it is asked again")
    await until(lambda: bench.row()["state"] == "cut", "clients are told")
    assert bench.take(50) is not None, "what is here is spent"
    spoken.bus.refuse = None
    await until(lambda: bench.hub_pot().spent == 50, "nothing was forgotten")
    await until(lambda: bench.row()["state"] == "more", "clients are told")
    assert bench.events().count("leases_not_refilled") == 1
    assert bench.events().count("leases_refilled") == 1


@talking
async def test_an_error_of_the_hub_and_an_answer_to_another_life_grant_nothing(spoken):
    bench, bus = spoken.bench, spoken.bus
    bus.reply = lambda ask: LeaseAnswer(life=ask.life, error="the disk is full")
    await until(lambda: spoken.talk.asks_failed_total >= 1, "the refusal is counted")
    bus.reply = lambda ask: LeaseAnswer(life="another", pots=bus.hub.answer(ask).pots)
    asked = len(bus.asks)
    await until(lambda: len(bus.asks) > asked + 1, "it is asked again")
    assert bench.row()["held_micro_won"] == 0
    bus.reply = None
    bench.set(make_tenant(2000))
    await until(lambda: bench.row()["held_micro_won"] == 2000, "the right answer is taken")


@talking
async def test_many_pots_are_told_in_several_messages(spoken):
    bench, bus = spoken.bench, spoken.bus
    bench.set(
        *(
            Project(
                project_id=ProjectId(f"p{number}"),
                tenant_id="clinic",
                title="p",
                budget=Budget(day_micro_won=10, month_micro_won=10),
            )
            for number in range(20)
        )
    )
    await until(lambda: bench.keeper.pots > POTS_PER_ASK_MAX, "the pots are there")
    await until(
        lambda: all(row["held_micro_won"] for row in bench.keeper.list_budgets(is_all=True)), "every pot is leased"
    )
    sizes = [len(ask.pots) for ask in bus.asks]
    assert max(sizes) == POTS_PER_ASK_MAX


@talking
async def test_a_store_that_cannot_be_written_is_said_once_and_tried_again(spoken):
    bench = spoken.bench
    await until(lambda: bench.take(100), "a grant reached the purse")
    bench.store.fail_before = True
    bench.set(make_tenant(5000))
    writes = bench.store.writes
    await until(lambda: bench.store.writes > writes + 2, "it is tried again")
    assert bench.row()["held_micro_won"] == 1000
    bench.store.fail_before = False
    await until(lambda: bench.row()["held_micro_won"] == 5000, "it goes on by itself")
