"""A site's month from stored readings: what counts, what is not known, and that simulated and real never mix."""

from datetime import date, datetime, timedelta, timezone

import msgspec
import pytest

from madang.core import Rejected, TenantId
from madang.facility.tariff_files import load_tariff_book, make_tariff_book
from madang.model.facility_site import SupplyContract
from madang.policy.facility.energy_money import OPERATOR, Work, trace
from madang.policy.facility.site_month import StoredReading, Terms, reading_of_stored, site_month

KST = timezone(timedelta(hours=9))
TARIFF = "industrial_a2_hv_a_1"
START_S = int(datetime(2024, 10, 1, tzinfo=KST).timestamp())
END_S = int(datetime(2024, 11, 1, tzinfo=KST).timestamp())
HOLIDAYS = frozenset({date(2024, 10, 3), date(2024, 10, 9)})
CONTRACT = SupplyContract(tariff=TARIFF, power_w=40_000.0, meter="meter.energy", idle_w=800)
TERMS = [Terms(from_at_s=0, contract=CONTRACT, book=load_tariff_book())]
CLINIC, FACTORY = TenantId("clinic"), TenantId("factory")


def stored(at_s, value_wh, **fields):
    values = {"point_id": "meter.energy", "quality": "good", "is_simulated": True, "read_at_s": at_s + 2.5}
    return StoredReading(at_s=at_s, value_wh=value_wh, **{**values, **fields})


def month(holes=()):
    """Return a month of readings; at instants in `holes` nothing was read."""
    found, register = [], 1_234_567
    for at_s in range(START_S, END_S + 1, 900):
        found.append(stored(at_s, None, quality="bad", read_at_s=None) if at_s in holes else stored(at_s, register))
        register += 1000 + at_s // 900 % 331
    return found


def work():
    return [
        Work(tenant_id=tenant, at_s=float(at_s), weight=weight + at_s // 900 % 7, tokens=weight)
        for at_s in range(START_S, END_S, 2700)
        for tenant, weight in ((CLINIC, 500), (FACTORY, 1301))
    ]


def bill(readings, *, terms=TERMS, now_s=float(END_S + 9)):
    return site_month(readings, terms, work(), "2024-10", HOLIDAYS, now_s)


def test_every_quarter_of_an_hour_is_a_line_between_two_stored_readings_and_all_adds_up():
    hole = START_S + 9 * 86400 + 9 * 3600 + 900  # from 09:00 to 09:30 of the 10th: one price
    change = START_S + 11 * 86400 + 8 * 3600  # 08:00 of the 12th: the price changed in it
    readings = month({hole, change})
    found = bill(readings)
    sums = found.bill
    registers = {f"meter.energy@{one.at_s}": one.value_wh for one in readings}
    assert (found.quarters, found.quarters_read) == (31 * 96, 31 * 96 - 4)
    # The hole within one price is one line of half an hour; the one over a change is marked, never filled in.
    assert len(sums.metered.lines) == 31 * 96 - 3
    (gap,) = found.gaps
    assert (gap.begins_at_s, gap.ends_at_s) == (change - 900, change + 900)
    assert gap.energy_wh == registers[gap.end_id] - registers[gap.begin_id]
    assert gap.low_micro_won < gap.high_micro_won
    assert sums.energy_wh + gap.energy_wh == readings[-1].value_wh - readings[0].value_wh
    # A tariff that changed on the 24th.
    assert {one.tariff for one in found.bands} == {f"{TARIFF}@2024-01-01", f"{TARIFF}@2024-10-24"}
    charged = sum(one.charge_micro_won + one.adders_micro_won for one in found.bands) + sums.base_micro_won
    assert charged == sums.sum_micro_won == sum(one.sum_micro_won for one in sums.tenants)
    assert sum(one.net_won for one in sums.tenants) == sums.net_won
    assert {one.tenant_id for one in sums.tenants} == {CLINIC, FACTORY, OPERATOR}
    for tenant in sums.tenants:
        rows = trace(sums, tenant.tenant_id)
        assert sum(row.charge_micro_won for row in rows) == tenant.sum_micro_won
        for row in rows:
            if row.line_id != "base":
                assert (registers[row.begin_id], registers[row.end_id]) == (row.begin_wh, row.end_wh)
                assert row.end_wh - row.begin_wh == row.line_wh
    # Of the twelve months before, nothing was read.
    assert any("2024-07" in text and "can only be higher" in text for text in found.unknown)
    assert not any("month's begin" in text or "nothing was read after" in text for text in found.unknown)


def test_what_was_not_read_at_the_months_ends_is_said_and_not_billed():
    readings = [one for one in month() if START_S + 7200 <= one.at_s <= END_S - 3600]
    before = stored(START_S - 900, readings[0].value_wh - 5000)
    found = bill([before, *readings])
    assert any(", 5000 Wh since" in text and "KST)" in text for text in found.unknown)
    assert any("nothing was read after" in text for text in found.unknown)
    assert found.bill.energy_wh == readings[-1].value_wh - readings[0].value_wh
    half = bill(month()[: 15 * 96 + 1], now_s=float(START_S + 15 * 86400 + 5))
    assert (half.quarters, half.quarters_read) == (15 * 96, 15 * 96)
    assert not any("nothing was read after" in text for text in half.unknown)


def test_simulated_and_real_readings_are_never_billed_together():
    readings = month()
    readings[7] = msgspec.structs.replace(readings[7], is_simulated=False)
    with pytest.raises(Rejected, match="never billed together"):
        bill(readings)
    assert bill(month()).is_simulated
    with pytest.raises(Rejected, match="no reading"):
        bill([])
    with pytest.raises(Rejected, match="no reading"):
        bill(month(), terms=[])


def test_a_reading_counts_as_of_its_quarter_or_as_of_when_it_was_read():
    assert reading_of_stored(stored(9000, 5.4)).at_s == 9000
    late = reading_of_stored(stored(9000, 5.6, read_at_s=9245.9))
    assert (late.at_s, late.energy_wh, late.reading_id) == (9245, 6, "meter.energy@9000")
    for wrong in ({"quality": "stale"}, {"read_at_s": None}):
        assert reading_of_stored(stored(9000, 5.4, **wrong)) is None
    assert reading_of_stored(stored(9000, -1.0)) is None


def test_the_base_charge_follows_demand_or_contract_and_a_changed_contract_prices_its_own_time():
    assert bill(month()).demand_w == 12_000  # 30 % of the contract; the peak was 5.3 kW
    readings = [msgspec.structs.replace(one, value_wh=one.value_wh * 5) for one in month()]
    assert bill(readings).demand_w == (1000 + 330) * 5 * 4
    small = msgspec.structs.replace(CONTRACT, base_by="contract")
    found = bill(month(), terms=[Terms(from_at_s=0, contract=small, book=load_tariff_book())])
    assert found.demand_w == 40_000
    assert not any("can only be higher" in text for text in found.unknown)
    own = '[[tariff]]\nname = "ours"\ntitle = "o"\nvalid_from = "2024-01-01"\nbase_won_per_kw = "100"\nsource = "s"\n'
    own += "[tariff.seasons]\nall = [1,2,3,4,5,6,7,8,9,10,11,12]\n[tariff.bands.all]\nflat = []\n"
    own += '[tariff.prices]\nall = { flat = "10.5" }\n'
    later = msgspec.structs.replace(small, tariff="ours", idle_w=0)
    change = START_S + 20 * 86400
    new = Terms(from_at_s=change, contract=later, book=make_tariff_book({"ours.toml": own}))
    found = bill(month(), terms=[*TERMS, new])
    assert {one.tariff for one in found.bands} == {f"{TARIFF}@2024-01-01", "ours@2024-01-01"}
    assert all(
        line.price.tariff.startswith("ours") is (line.begins_at_s >= change) for line in found.bill.metered.lines
    )
    assert any("idle draw was changed" in text for text in found.unknown)
    assert sum(one.sum_micro_won for one in found.bill.tenants) == found.bill.sum_micro_won


def test_a_register_of_large_steps_is_said_to_be_coarse():
    assert not any("steps" in text for text in bill(month()).unknown)
    coarse = [msgspec.structs.replace(one, value_wh=one.value_wh // 1000 * 1000) for one in month()]
    found = bill(coarse)
    assert any("steps of 1000 Wh" in text for text in found.unknown)
    assert sum(one.sum_micro_won for one in found.bill.tenants) == found.bill.sum_micro_won
