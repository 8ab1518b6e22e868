"""Limits of keys: shared by the workers of a site, kept over a worker's death, honest about when there is room."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from madang.core import KeyId, ProjectId, TenantId, Unavailable
from madang.gateway.key_rates import Excess, KeyRates, rates_of
from madang.gateway.rates import PROBES_MAX, Claim, RateTable
from madang.machine.rates import MINUTE_MS
from madang.model import KeyPolicy


class FakeClock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now_ms = 10 * MINUTE_MS

    def wall_s(self) -> float:
        return self.now_ms / 1000

    def monotonic_ns(self) -> int:
        return self.now_ms * 1_000_000


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def pair(tmp_path: Path, clock: FakeClock) -> Iterator[tuple[RateTable, RateTable]]:
    one, two = (RateTable(tmp_path, worker, boot=1, clock=clock) for worker in (0, 1))
    one.refresh()
    two.refresh()
    yield one, two
    one.close()
    two.close()


def limits(
    table: RateTable, rpm: int | None = None, tpm: int | None = None, streams: int | None = None, key: str = "k"
) -> KeyRates:
    policy = KeyPolicy(
        key_id=KeyId(key),
        tenant_id=TenantId("t"),
        project_id=ProjectId(""),
        requests_per_minute=rpm,
        tokens_per_minute=tpm,
        streams_max=streams,
    )
    found = rates_of(table, policy)
    assert found is not None
    return found


def admitted(rates: KeyRates, tokens: int = 1) -> Claim:
    claim = rates.admit(tokens)
    assert isinstance(claim, Claim)
    return claim


def refused(rates: KeyRates, tokens: int = 1) -> Excess:
    excess = rates.admit(tokens)
    assert isinstance(excess, Excess)
    return excess


def test_a_key_without_limits_is_not_counted(pair: tuple[RateTable, RateTable]) -> None:
    policy = KeyPolicy(key_id=KeyId("k"), tenant_id=TenantId("t"), project_id=ProjectId(""))
    assert rates_of(pair[0], policy) is None


def test_workers_share_requests(pair: tuple[RateTable, RateTable], clock: FakeClock) -> None:
    one, two = (limits(table, rpm=4) for table in pair)
    for rates in (one, two, one, two):
        admitted(rates).end(1)
    for rates in (one, two):
        excess = refused(rates)
        assert (excess.kind, excess.limit, excess.used) == ("requests", 4, 4)
        assert excess.retry_after_s == 75, "in the next minute three quarters of four must count no more"
    clock.now_ms += 74_999
    refused(one)
    clock.now_ms += 1
    admitted(two)


def test_tokens_count_by_the_worst_case_first(pair: tuple[RateTable, RateTable]) -> None:
    one, two = (limits(table, tpm=1000) for table in pair)
    claim = admitted(one, 700)
    assert refused(two, 400).kind == "tokens"
    claim.end(100)
    for rates in (two, one, two):
        admitted(rates, 300).end(300)
    assert refused(one, 1).used == 1000


def test_what_needs_more_than_the_limit_runs_alone(pair: tuple[RateTable, RateTable], clock: FakeClock) -> None:
    one, two = (limits(table, tpm=100) for table in pair)
    claim = admitted(one, 4000)
    refused(two, 1)
    claim.end(40)
    admitted(two, 4000).end(60)
    excess = refused(one, 4000)
    clock.now_ms += int(excess.retry_after_s * 1000)
    admitted(one, 4000)


def test_a_correction_reaches_the_minute_of_the_claim(pair: tuple[RateTable, RateTable], clock: FakeClock) -> None:
    rates = limits(pair[0], tpm=1000)
    early, late = admitted(rates, 600), admitted(rates, 400)
    clock.now_ms += MINUTE_MS
    early.end(0)
    assert refused(rates, 601).used == 400, "of 1000, 600 were not used after all"
    clock.now_ms += MINUTE_MS
    late.end(100)
    admitted(rates, 1000)


def test_requests_under_way_are_limited(pair: tuple[RateTable, RateTable]) -> None:
    one, two = (limits(table, streams=2) for table in pair)
    first, second = admitted(one), admitted(two)
    excess = refused(one)
    assert (excess.kind, excess.retry_after_s) == ("streams", 1.0)
    assert excess.fields == b"", "OpenAI has no words for this limit"
    first.end(5)
    admitted(two).undo()
    admitted(one)
    refused(two)
    second.end(5)


def test_what_did_not_begin_counts_nothing(pair: tuple[RateTable, RateTable]) -> None:
    rates = limits(pair[0], rpm=1, tpm=10, streams=1)
    for _ in range(5):
        admitted(rates, 10).undo()
    admitted(rates, 10)


def test_headers_are_openais(pair: tuple[RateTable, RateTable], clock: FakeClock) -> None:
    clock.now_ms += 18_000
    claim = admitted(limits(pair[0], rpm=10, tpm=100), 30)
    assert claim.fields.decode().split("\r\n") == [
        "x-ratelimit-limit-requests: 10",
        "x-ratelimit-remaining-requests: 9",
        "x-ratelimit-reset-requests: 1m42s",
        "x-ratelimit-limit-tokens: 100",
        "x-ratelimit-remaining-tokens: 70",
        "x-ratelimit-reset-tokens: 1m42s",
        "",
    ]
    assert b"tokens" not in admitted(limits(pair[0], rpm=10, key="other")).fields


def test_the_dead_count_for_what_they_admitted_only(tmp_path: Path, clock: FakeClock) -> None:
    one, two = (RateTable(tmp_path, worker, boot=1, clock=clock) for worker in (0, 1))
    for table in (one, two):
        table.refresh()
    mine, other = (limits(table, rpm=3, streams=2) for table in (one, two))
    admitted(other)
    admitted(other)
    assert refused(mine).kind == "streams"
    two.close()  # its lock is gone with it, as after a kill
    one.refresh()
    admitted(mine)
    excess = refused(mine)
    assert (excess.kind, excess.used) == ("requests", 3)
    again = RateTable(tmp_path, 1, boot=1, clock=clock)
    again.refresh()
    one.refresh()
    assert refused(limits(again, rpm=3, streams=2)).kind == "requests", "a new process goes on with the old counts"
    again.close()
    one.refresh()
    clock.now_ms += 3 * MINUTE_MS
    one.refresh()
    admitted(mine)
    one.close()


def test_another_boot_counts_anew(tmp_path: Path, clock: FakeClock) -> None:
    table = RateTable(tmp_path, 0, boot=1, clock=clock)
    admitted(limits(table, rpm=1))
    with pytest.raises(Unavailable, match="worker 0"):
        RateTable(tmp_path, 0, boot=1, clock=clock)
    table.close()
    table = RateTable(tmp_path, 0, boot=2, clock=clock)
    admitted(limits(table, rpm=1))
    table.close()


class Crowded(KeyRates):
    """A key that falls on the same slots as others of its kind."""

    def __init__(self, table: RateTable, number: int) -> None:
        super().__init__(table, KeyId("k"), 1, None, None)
        self._key = (number + 1) * (16_384 - PROBES_MAX)


def test_where_no_slot_is_free_a_key_is_told_to_come_again(pair: tuple[RateTable, RateTable], clock: FakeClock) -> None:
    claims = [admitted(Crowded(pair[0], number)) for number in range(PROBES_MAX)]
    one_more = Crowded(pair[0], PROBES_MAX)
    assert refused(one_more).kind == "slots"
    claims[3].end(0)
    refused(one_more)
    clock.now_ms += 2 * MINUTE_MS
    admitted(one_more)
    assert refused(Crowded(pair[1], PROBES_MAX)).kind == "requests", "the other worker sees who has the slot now"
    assert refused(Crowded(pair[0], PROBES_MAX + 1)).kind == "slots", "requests under way keep their slots"
