"""The purse: money is reserved before work, settled after, and survives whoever dies."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway.bank import Bank
from tests.gateway.lab import Log

from madang.core import Unavailable
from madang.gateway.purse import NEED_LASTS_S, Purse
from madang.gateway.reservation import Draw, Line, OverdrawnReservation, Reservation, Shortage
from madang.model.lease import Period, Scope
from madang.policy.pricing import day_start_s
from madang.runtime.clock import SystemEntropy
from madang.runtime.telemetry import EventLog
from madang.wire.purse import HINT_CUT, HINT_MORE, HINT_SPENT, PotEntry

MIDNIGHT_S = day_start_s("2026-12-01")
MONTH: Line = (Scope.TENANT, "clinic", Period.MONTH)
DAY: Line = (Scope.TENANT, "clinic", Period.DAY)
PROJECT: Line = (Scope.PROJECT, "triage", Period.MONTH)


class FakeClock:
    """A wall that a test moves."""

    def __init__(self) -> None:
        self.now_s = MIDNIGHT_S - 3600

    def wall_s(self) -> float:
        return self.now_s

    def monotonic_ns(self) -> int:
        return int(self.now_s * 1e9)


class Loop(asyncio.SelectorEventLoop):
    """Never runs; its time is the test's."""

    now_s = 0.0

    def time(self) -> float:
        return self.now_s


MakePurse = Callable[..., Purse]


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[Bank]:
    made = Bank(tmp_path)
    yield made
    made.close()


@pytest.fixture
def make(tmp_path: Path, loop: Loop, clock: FakeClock) -> Iterator[MakePurse]:
    made: list[Purse] = []

    def one(worker: int = 0, boot: int = 7) -> Purse:
        log = EventLog(clock, Log())
        made.append(Purse(tmp_path, worker, loop=loop, clock=clock, entropy=SystemEntropy(), log=log, boot=boot))
        return made[-1]

    yield one
    for purse in made:
        purse.close()


def draw(*lines: Line) -> Draw:
    return Draw(lines, "clinic")


def reserve(purse: Purse, what: Draw, amount: int, clock: FakeClock, *, is_clinical: bool = False) -> Reservation:
    found = purse.reserve(what, amount, clock.now_s, may_overdraw=is_clinical)
    assert isinstance(found, Reservation), found
    return found


def refused(purse: Purse, what: Draw, amount: int, clock: FakeClock, *, is_clinical: bool = False) -> Shortage:
    found = purse.reserve(what, amount, clock.now_s, may_overdraw=is_clinical)
    assert isinstance(found, Shortage)
    return found


def test_a_reservation_is_settled_by_what_was_spent(make: MakePurse, bank: Bank, clock: FakeClock) -> None:
    purse, pot = make(), bank.add("clinic")
    bank.grant(pot, 100)
    purse.tick()
    one, two = reserve(purse, draw(MONTH), 60, clock), reserve(purse, draw(MONTH), 40, clock)
    assert (bank.state(pot).reserved, purse.open_count) == (100, 2)
    assert refused(purse, draw(MONTH), 1, clock).hint == HINT_MORE
    one.settle(25)
    two.settle(0)
    state = bank.state(pot)
    assert (state.spent, state.reserved, purse.open_count) == (25, 0, 0)
    assert reserve(purse, draw(MONTH), 75, clock)


def test_all_budgets_or_none(make: MakePurse, bank: Bank, clock: FakeClock) -> None:
    purse, tenant, project = make(), bank.add("clinic"), bank.add("triage", scope=Scope.PROJECT)
    bank.grant(tenant, 100)
    bank.grant(project, 30)
    purse.tick()
    both = draw(MONTH, PROJECT)
    shortage = refused(purse, both, 50, clock)
    assert (shortage.scope, shortage.account, shortage.period) == (Scope.PROJECT, "triage", Period.MONTH)
    assert (bank.state(tenant).reserved, bank.state(project).reserved) == (0, 0)
    assert (bank.state(tenant).needed, bank.state(project).needed) == (0, 20)
    reserve(purse, both, 30, clock).settle(10)
    assert (bank.state(tenant).spent, bank.state(project).spent) == (10, 10)


def test_the_budget_that_lacks_for_longest_is_named(make: MakePurse, bank: Bank, clock: FakeClock) -> None:
    purse, day, month = make(), bank.add("clinic", period=Period.DAY), bank.add("clinic")
    purse.tick()
    for first, second, named in ((HINT_MORE, HINT_SPENT, Period.MONTH), (HINT_CUT, HINT_MORE, Period.DAY)):
        bank.tables().hint(day.slot, day.number, first)
        bank.tables().hint(month.slot, month.number, second)
        purse.tick()
        assert refused(purse, draw(DAY, MONTH), 1, clock).period is named
    assert refused(purse, draw((Scope.TENANT, "nobody", Period.DAY)), 1, clock).ends_at_s is None


def test_more_money_is_seen_at_once(make: MakePurse, bank: Bank, clock: FakeClock, loop: Loop) -> None:
    purse, pot = make(), bank.add("clinic")
    purse.tick()
    bank.tables()
    purse.tick()
    refused(purse, draw(MONTH), 50, clock)
    assert bank.state(pot).needed == 50
    bank.grant(pot, 30)
    refused(purse, draw(MONTH), 50, clock)
    bank.grant(pot, 50)
    purse.tick()
    assert bank.state(pot).needed == 0, "what is met is asked for no longer"
    reserve(purse, draw(MONTH), 50, clock)
    refused(purse, draw(MONTH), 50, clock)
    assert bank.state(pot).needed == 50
    loop.now_s += NEED_LASTS_S + 1
    purse.tick()
    assert bank.state(pot).needed == 0, "whoever lacked it has gone"


def test_a_day_ends_at_korean_midnight(make: MakePurse, bank: Bank, clock: FakeClock) -> None:
    purse = make()
    old = bank.add("clinic", period=Period.DAY, starts_at_s=MIDNIGHT_S - 86400, ends_at_s=MIDNIGHT_S)
    new = bank.add("clinic", period=Period.DAY, starts_at_s=MIDNIGHT_S, ends_at_s=MIDNIGHT_S + 86400)
    bank.grant(old, 100)
    bank.grant(new, 50)
    purse.tick()
    today = draw(DAY)
    clock.now_s = MIDNIGHT_S - 0.001
    running = reserve(purse, today, 100, clock)
    assert refused(purse, today, 1, clock).ends_at_s == MIDNIGHT_S
    clock.now_s = MIDNIGHT_S
    fresh = reserve(purse, today, 50, clock)
    running.settle(80)
    fresh.settle(5)
    assert (bank.state(old).spent, bank.state(new).spent) == (80, 5), "each in the day in which it was admitted"


def test_clinical_goes_beyond_a_budget(make: MakePurse, bank: Bank, clock: FakeClock) -> None:
    purse, pot = make(), bank.add("clinic")
    over = bank.add("clinic", is_overdraw=True)
    bank.grant(pot, 30)
    bank.grant(over, 100)
    purse.tick()
    refused(purse, draw(MONTH), 80, clock)
    found = reserve(purse, draw(MONTH), 80, clock, is_clinical=True)
    assert isinstance(found, OverdrawnReservation)
    assert found.covered == 30
    assert (bank.state(pot).reserved, bank.state(over).reserved) == (30, 50)
    found.settle(45)
    assert (bank.state(pot).spent, bank.state(over).spent, bank.state(over).reserved) == (30, 15, 0)
    reserve(purse, draw(MONTH), 85, clock, is_clinical=True).settle(0)
    shortage = refused(purse, draw(MONTH), 86, clock, is_clinical=True)
    assert (shortage.scope, shortage.period) == (Scope.TENANT, Period.MONTH)
    assert bank.state(over).needed == 1


def test_clinical_needs_no_pot_of_the_budget_itself(make: MakePurse, bank: Bank, clock: FakeClock) -> None:
    purse, over = make(), bank.add("clinic", is_overdraw=True)
    bank.grant(over, 100)
    purse.tick()
    reserve(purse, draw(MONTH), 80, clock, is_clinical=True).settle(45)
    assert bank.state(over).spent == 45
    refused(purse, draw(MONTH), 1, clock)


@given(
    lefts=st.lists(st.integers(0, 100), min_size=4, max_size=4),
    overs=st.lists(st.integers(0, 100), min_size=2, max_size=2),
    amount=st.integers(0, 120),
    share=st.floats(0, 1),
)
def test_every_won_is_somewhere(
    tmp_path_factory: pytest.TempPathFactory, lefts: list[int], overs: list[int], amount: int, share: float
) -> None:
    folder = tmp_path_factory.mktemp("purse")
    clock, loop, bank = FakeClock(), Loop(), Bank(folder)
    purse = Purse(folder, 0, loop=loop, clock=clock, entropy=SystemEntropy(), log=EventLog(clock, Log()), boot=1)
    try:
        lines: list[Line] = []
        pots: list[PotEntry] = []
        for scope, account in ((Scope.TENANT, "clinic"), (Scope.PROJECT, "triage")):
            for period in Period:
                lines.append((scope, account, period))
                pots.append(bank.add(account, scope=scope, period=period))
        beyond = {period: bank.add("clinic", period=period, is_overdraw=True) for period in Period}
        for pot, left in zip([*pots, *beyond.values()], [*lefts, *overs], strict=True):
            bank.grant(pot, left)
        purse.tick()
        found = purse.reserve(draw(*lines), amount, clock.now_s, may_overdraw=True)
        charge = int(amount * share)
        if isinstance(found, Shortage):
            lacking = [amount - min(lefts[i::2]) for i in (0, 1)]
            assert any(lack > over for lack, over in zip(lacking, overs, strict=True)), "refused for nothing"
            charge = 0
        else:
            found.settle(charge)
        for pot, left in zip(pots, lefts, strict=True):
            assert bank.state(pot).spent == min(charge, left)
        for index, pot in enumerate(beyond.values()):
            scarcest = min(lefts[index::2])
            assert bank.state(pot).spent == max(0, charge - scarcest)
        assert all(bank.state(pot).reserved == 0 for pot in (*pots, *beyond.values()))
        assert purse.open_count == 0
    finally:
        purse.close()
        bank.close()
        loop.close()


def test_a_killed_worker_finds_its_table_again(make: MakePurse, bank: Bank, clock: FakeClock) -> None:
    purse, pot = make(), bank.add("clinic")
    bank.grant(pot, 100)
    purse.tick()
    reserve(purse, draw(MONTH), 30, clock).settle(10)
    reserve(purse, draw(MONTH), 40, clock)
    purse.close()  # as far as the file goes, a kill: what was reserved is not settled
    again = make()
    again.tick()
    assert again.life == purse.life
    assert (bank.state(pot).spent, bank.state(pot).reserved) == (50, 0)
    reserve(again, draw(MONTH), 50, clock)
    refused(again, draw(MONTH), 1, clock)


def test_another_boot_is_another_life(make: MakePurse, bank: Bank, clock: FakeClock) -> None:
    purse, pot = make(), bank.add("clinic")
    bank.grant(pot, 100)
    purse.tick()
    reserve(purse, draw(MONTH), 30, clock)
    purse.close()
    again = make(boot=8)
    again.tick()
    assert again.life != purse.life
    refused(again, draw(MONTH), 1, clock)
    bank.grant(pot, 10)
    reserve(again, draw(MONTH), 10, clock)


def test_what_is_recalled_goes_back_but_for_what_is_reserved(make: MakePurse, bank: Bank, clock: FakeClock) -> None:
    purse, pot = make(), bank.add("clinic")
    bank.grant(pot, 100)
    purse.tick()
    running = reserve(purse, draw(MONTH), 30, clock)
    bank.tables().recall(pot.slot, pot.number)
    purse.tick()
    purse.tick()
    assert bank.state(pot).returned == 70
    refused(purse, draw(MONTH), 1, clock)
    running.settle(10)
    bank.tables().recall(pot.slot, pot.number)
    purse.tick()
    state = bank.state(pot)
    assert (state.returned, state.spent, state.reserved) == (90, 10, 0)


def test_a_slot_gets_another_pot(make: MakePurse, bank: Bank, clock: FakeClock) -> None:
    purse, pot = make(), bank.add("clinic")
    bank.grant(pot, 100)
    purse.tick()
    running = reserve(purse, draw(MONTH), 30, clock)
    bank.pots.clear()
    other = bank.add("clinic")
    bank.pots[0] = other = PotEntry(
        key=other.key, number=77, slot=0, starts_at_s=other.starts_at_s, ends_at_s=other.ends_at_s
    )
    bank.add("unrelated")
    bank.grant(other, 50)
    purse.tick()
    reserve(purse, draw(MONTH), 50, clock)
    running.settle(30)
    state = bank.state(other)
    assert (state.number, state.spent, state.reserved) == (77, 0, 50), "the old pot's charge is not the new one's"


def test_without_a_site_process_there_is_no_money_and_no_harm(make: MakePurse, clock: FakeClock) -> None:
    purse = make()
    purse.tick()
    assert refused(purse, draw(MONTH), 1, clock).hint == HINT_MORE
    with pytest.raises(Unavailable, match="worker 0"):
        make()


def test_a_broken_directory_leaves_the_last_one(make: MakePurse, bank: Bank, clock: FakeClock, tmp_path: Path) -> None:
    purse, pot = make(), bank.add("clinic")
    bank.grant(pot, 100)
    purse.tick()
    (tmp_path / "purses.msgpack").write_bytes(b"nonsense")
    purse.tick()
    assert purse.is_broken
    reserve(purse, draw(MONTH), 100, clock)
