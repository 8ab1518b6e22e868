"""Won per token of a tenant's month, traced back to readings of the meter; the invoice adds up to the last won."""

from datetime import date, datetime, timedelta, timezone
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.core import EventId, KeyId, RequestId, ServiceName, SiteId, TenantId
from madang.facility.tariff_files import load_tariff_book
from madang.model import Quality, Sample, UsageEvent
from madang.policy.facility.energy_money import (
    OPERATOR,
    Work,
    base_charge_micro_won,
    divide,
    make_bill,
    trace,
    work_by_time,
    work_by_tokens,
)
from madang.policy.facility.metered import MeterReading, price_readings, reading_of
from madang.policy.pricing import add_vat_won

KST = timezone(timedelta(hours=9))
BOOK = load_tariff_book()
TARIFF = "industrial_a2_hv_a_1"
HOLIDAYS = frozenset({date(2024, 10, 3), date(2024, 10, 9)})
START_S = int(datetime(2024, 10, 1, tzinfo=KST).timestamp())
QUARTERS = 31 * 96
CLINIC, FACTORY, CITY = TenantId("clinic"), TenantId("factory"), TenantId("city")


def reading(at_s: int, energy_wh: int) -> MeterReading:
    return MeterReading(reading_id=f"m@{at_s}", meter="m", at_s=at_s, energy_wh=energy_wh)


def month() -> list[MeterReading]:
    """Return simulated readings of October 2024, every quarter of an hour, with two holes.

    From 09:30 to 13:00 of the 10th nobody read the meter (prices changed meanwhile), and from 01:00 to 04:00 of the
    15th (they did not).
    """
    register, found = 7_654_321, []
    for number in range(QUARTERS + 1):
        at_s = START_S + number * 900
        hour = number // 4 % 24
        is_hole = 9 * 96 + 38 < number < 9 * 96 + 52 or 14 * 96 + 4 < number < 14 * 96 + 16
        if not is_hole:
            found.append(reading(at_s, register))
        register += 3000 + 250 * (hour if 8 <= hour < 22 else 0) + number * 7919 % 401
    return found


def work() -> list[Work]:
    """Return requests of three tenants: the clinic by day, the factory by night too, the city now and then."""
    found = []
    for number in range(0, QUARTERS):
        at_s, hour = START_S + number * 900 + 433, number // 4 % 24
        if 9 <= hour < 18:
            found.append(Work(tenant_id=CLINIC, at_s=at_s, weight=900 + number % 37, tokens=900 + number % 37))
        if number % 2:
            found.append(
                Work(tenant_id=FACTORY, at_s=at_s + 0.5, weight=4000 + number % 101, tokens=4000 + number % 101)
            )
        if number % 17 == 0:
            found.append(Work(tenant_id=CITY, at_s=float(at_s), weight=61, tokens=61))
    return found


def won_of(at_s: int) -> Fraction:
    """Return the price of a kWh by hand: KEPCO's table of autumn 2024, before and after the 24th."""
    moment = datetime.fromtimestamp(at_s, KST)
    is_new = moment.day >= 24
    off, mid, peak = ("95.7", "100.5", "119.7") if is_new else ("87.2", "92.0", "111.2")
    hour, weekday = moment.hour, moment.weekday()
    if moment.date() in HOLIDAYS or weekday == 6 or hour >= 22 or hour < 8:
        return Fraction(off)
    if (hour == 11 or 13 <= hour < 18) and weekday != 5:
        return Fraction(peak)
    return Fraction(mid)


def test_a_months_invoice_is_traced_to_the_meter_and_adds_up_to_the_last_won() -> None:
    readings = month()
    metered = price_readings(readings, BOOK, TARIFF, HOLIDAYS)
    base, reason = base_charge_micro_won(BOOK, TARIFF, "2024-10", 42_700)
    assert (base, reason) == (42 * 6490 * 1_000_000, "")
    bill = make_bill(metered, work(), idle_w=2500, base_micro_won=base)

    # Every watt-hour between the first and the last reading is in a line or in a marked gap.
    (gap,) = metered.gaps
    assert (gap.begin.at_s, gap.end.at_s) == (START_S + (9 * 96 + 38) * 900, START_S + (9 * 96 + 52) * 900)
    assert "when the energy was drawn is not known" in gap.reason
    assert gap.energy_wh is not None
    assert bill.energy_wh + gap.energy_wh == readings[-1].energy_wh - readings[0].energy_wh
    assert gap.low_micro_won == gap.energy_wh * 92_000
    assert gap.high_micro_won == gap.energy_wh * 111_200
    assert any("Wh not priced" in text for text in bill.unknown), "the bill says what is missing"
    # The hole at night has one price: its energy is known, and so is what it cost.
    assert any(line.begins_at_s <= START_S + (14 * 96 + 8) * 900 < line.ends_at_s for line in metered.lines)

    # The price by hand, quarter by quarter, without the program's tables.
    by_hand = Fraction(0)
    for begin, end in pairwise(readings):
        if begin.at_s != gap.begin.at_s:
            by_hand += (end.energy_wh - begin.energy_wh) * won_of(begin.at_s) / 1000
    charged = sum(line.charge_micro_won for line in metered.lines)
    assert abs(charged - by_hand * 1_000_000) <= Fraction(len(metered.lines), 2)
    assert sum(line.adders_micro_won or 0 for line in metered.lines) == bill.energy_wh * 14_000
    assert {line.price.tariff for line in metered.lines} == {f"{TARIFF}@2024-01-01", f"{TARIFF}@2024-10-24"}

    # To the last micro-won, and to the last won.
    assert sum(one.sum_micro_won for one in bill.tenants) == bill.sum_micro_won
    assert bill.sum_micro_won == charged + bill.energy_wh * 14_000 + base
    assert sum(one.net_won for one in bill.tenants) == bill.net_won == (bill.sum_micro_won + 500_000) // 1_000_000
    assert sum(one.energy_wh for one in bill.tenants) == bill.energy_wh
    assert add_vat_won(bill.sum_micro_won)[0] == bill.net_won

    # Each tenant's won leads back to readings.
    registers = {one.reading_id: one.energy_wh for one in readings}
    for tenant in bill.tenants:
        rows = trace(bill, tenant.tenant_id)
        assert sum(row.charge_micro_won for row in rows) == tenant.sum_micro_won
        assert sum(row.energy_wh for row in rows) == tenant.energy_wh
        for row in rows:
            if row.line_id == "base":
                continue
            assert registers[row.end_id] - registers[row.begin_id] == row.line_wh
            assert (registers[row.begin_id], registers[row.end_id]) == (row.begin_wh, row.end_wh)
            assert row.weight <= row.weight_all
    clinic = next(one for one in bill.tenants if one.tenant_id == CLINIC)
    assert clinic.micro_won_per_million_tokens == (clinic.sum_micro_won * 10**6 + clinic.tokens // 2) // clinic.tokens
    assert clinic.tokens + bill.tokens_unpriced < sum(one.tokens for one in work())
    assert sum(one.tokens for one in bill.tenants) + bill.tokens_unpriced == sum(one.tokens for one in work())
    operator = next(one for one in bill.tenants if one.tenant_id == OPERATOR)
    assert operator.energy_wh > 0
    assert operator.micro_won_per_million_tokens is None


@given(
    st.integers(0, 10**15),
    st.dictionaries(
        st.text("abc", min_size=1, max_size=3).map(TenantId), st.integers(0, 10**9), min_size=1, max_size=8
    ),
)
def test_parts_add_up_and_none_is_off_by_a_unit(amount: int, weights: dict[TenantId, int]) -> None:
    weights[TenantId("z")] = weights.get(TenantId("z"), 0) + 1
    parts = divide(amount, weights)
    whole = sum(weights.values())
    assert sum(parts.values()) == amount
    for name, weight in weights.items():
        assert abs(parts[name] - Fraction(amount * weight, whole)) < 1
    assert divide(amount, dict(reversed(weights.items()))) == parts, "whatever the order"


usage = st.lists(
    st.builds(
        Work,
        tenant_id=st.sampled_from([CLINIC, FACTORY, CITY]),
        at_s=st.integers(START_S - 900, START_S + 8 * 3600).map(float),
        weight=st.integers(0, 10**7),
        tokens=st.integers(0, 10**7),
    ),
    max_size=12,
)
steps = st.lists(st.tuples(st.sampled_from([5, 60, 900, 4000]), st.integers(-500, 9000)), min_size=1, max_size=12)


@given(steps, usage, st.integers(0, 20_000), st.none() | st.integers(0, 10**13))
def test_whatever_the_meter_says_the_bill_adds_up(found, done: list[Work], idle_w: int, base: int | None) -> None:
    readings = [reading(START_S + 3600 * 6, 1_000_000)]
    for step_s, more_wh in found:
        readings.append(reading(readings[-1].at_s + step_s, max(readings[-1].energy_wh + more_wh, 0)))
    metered = price_readings(readings, BOOK, TARIFF, HOLIDAYS)
    bill = make_bill(metered, done, idle_w=idle_w, base_micro_won=base, base_reason="a test")
    lines = sum(line.charge_micro_won + (line.adders_micro_won or 0) for line in metered.lines)
    assert bill.sum_micro_won == lines + (base or 0)
    assert sum(one.sum_micro_won for one in bill.tenants) == bill.sum_micro_won
    assert sum(one.net_won for one in bill.tenants) == bill.net_won
    assert sum(one.energy_wh for one in bill.tenants) == bill.energy_wh
    assert all(one.sum_micro_won >= 0 and one.energy_wh >= 0 for one in bill.tenants)
    assert sum(one.tokens for one in bill.tenants) + bill.tokens_unpriced == sum(one.tokens for one in done)
    forward = sum(max(b.energy_wh - a.energy_wh, 0) for a, b in pairwise(readings))
    assert bill.energy_wh + sum(gap.energy_wh or 0 for gap in metered.gaps) == forward
    assert (base is None) == any("base charge" in text for text in bill.unknown)
    ids = [line.line_id for line in metered.lines]
    assert len(set(ids)) == len(ids)


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=KST).timestamp())


def test_a_register_that_ran_backwards_and_a_day_without_a_table_are_gaps() -> None:
    reset = price_readings([reading(START_S, 900), reading(START_S + 900, 20)], BOOK, TARIFF, HOLIDAYS)
    assert (reset.lines, reset.gaps[0].energy_wh) == ((), None)
    assert "backwards" in reset.gaps[0].reason
    assert "energy not known" in make_bill(reset, []).unknown[0]
    winter = at("2025-12-01T10:00:00")
    unknown = price_readings([reading(winter, 0), reading(winter + 900, 500)], BOOK, TARIFF, HOLIDAYS)
    assert unknown.lines == ()
    assert unknown.gaps[0].energy_wh == 500
    assert unknown.gaps[0].low_micro_won is None
    assert "which band" in unknown.gaps[0].reason
    year = price_readings([reading(START_S, 0), reading(START_S + 365 * 86_400, 500)], BOOK, TARIFF, HOLIDAYS)
    assert (year.gaps[0].energy_wh, year.gaps[0].reason) == (500, "no reading for 365 days")


def test_two_readings_near_a_change_of_price_are_split_by_time_and_say_so() -> None:
    change_s = at("2024-10-02T11:00:00")
    metered = price_readings([reading(change_s - 20, 0), reading(change_s + 10, 31)], BOOK, TARIFF, HOLIDAYS)
    assert [(line.energy_wh, line.is_split) for line in metered.lines] == [(20, True), (11, True)]
    assert [line.charge_micro_won for line in metered.lines] == [20 * 92_000, 11 * 111_200]
    late = price_readings([reading(change_s - 400, 0), reading(change_s + 400, 31)], BOOK, TARIFF, HOLIDAYS)
    assert late.lines == ()
    assert "at the change of price" in late.gaps[0].reason


def test_adders_that_are_not_known_are_left_out_and_said() -> None:
    now_s = at("2026-11-28T10:00:00")
    bill = make_bill(
        price_readings([reading(now_s, 0), reading(now_s + 900, 1000)], BOOK, TARIFF, HOLIDAYS), [], base_micro_won=0
    )
    assert bill.sum_micro_won == 120_000_000, "a Saturday in winter, 10 h: between off-peak and peak"
    assert bill.unknown == ("adders are not known for 1 days from 2026-11-28 to 2026-11-28",)


def test_idle_draw_and_hours_without_work_are_the_operators() -> None:
    night = at("2024-10-02T02:00:00")
    metered = price_readings([reading(night, 0), reading(night + 3600, 4000)], BOOK, TARIFF, HOLIDAYS)
    alone = make_bill(metered, [Work(tenant_id=CLINIC, at_s=night + 5.0, weight=1, tokens=1)], idle_w=3000)
    assert {one.tenant_id: one.energy_wh for one in alone.tenants} == {OPERATOR: 3000, CLINIC: 1000}
    unasked = make_bill(metered, [], idle_w=3000)
    assert {one.tenant_id: one.energy_wh for one in unasked.tenants} == {OPERATOR: 4000}
    nothing = make_bill(price_readings([], BOOK, TARIFF, HOLIDAYS), [], base_micro_won=5)
    assert {one.tenant_id: one.sum_micro_won for one in nothing.tenants} == {OPERATOR: 5}


def test_usage_is_weighed_by_tokens_or_by_time() -> None:
    event = UsageEvent(
        event_id=EventId("e"), request_id=RequestId("r"), attempt=1, tenant_id=CLINIC, key_id=KeyId("k"),
        service=ServiceName("s"), model="m", endpoint="/v1", entry_site=SiteId("a"), site=SiteId("a"),
        prompt_tokens=100, completion_tokens=20, duration_s=1.5, started_at_s=7.0,
    )  # fmt: skip
    assert work_by_tokens(event) == Work(tenant_id=CLINIC, at_s=7.0, weight=120, tokens=120)
    assert work_by_time(event) == Work(tenant_id=CLINIC, at_s=7.0, weight=1500, tokens=120)


def test_a_sample_of_a_register_is_a_reading_in_whole_watt_hours() -> None:
    good = Sample(point_id="m.energy", value=1234.6, quality=Quality.GOOD, observed_at_s=99.9)
    assert reading_of(good) == MeterReading(reading_id="m.energy@99", meter="m.energy", at_s=99, energy_wh=1235)
    bad = Sample(point_id="m.energy", value=None, quality=Quality.BAD, observed_at_s=99.9)
    assert reading_of(bad) is None


def test_the_base_charge_counts_days_where_a_table_changes() -> None:
    assert base_charge_micro_won(BOOK, TARIFF, "2026-11", 10_999) == (10 * 6_490_000_000, "")
    total, reason = base_charge_micro_won(BOOK, TARIFF, "2023-12", 10_000)
    assert total is None
    assert "2023-12-01" in reason


@pytest.mark.parametrize("tokens", [0, 3])
def test_won_per_token_is_rounded_once_and_absent_without_tokens(tokens: int) -> None:
    night = at("2024-10-02T02:00:00")
    metered = price_readings([reading(night, 0), reading(night + 900, 100)], BOOK, TARIFF, HOLIDAYS)
    bill = make_bill(metered, [Work(tenant_id=CLINIC, at_s=float(night), weight=1, tokens=tokens)])
    (one,) = bill.tenants
    expected = None if not tokens else (one.sum_micro_won * 10**6 + 1) // 3
    assert one.micro_won_per_million_tokens == expected
