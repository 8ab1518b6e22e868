"""Tariffs are dated data: the right table by day and hour, exact won, and nothing where a table does not say."""

from datetime import date, datetime, timedelta, timezone

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.core import Rejected
from madang.facility.tariff_files import load_tariff_book
from madang.policy.facility.tariff import (
    Adder,
    Band,
    EnergyTariff,
    TariffBook,
    billing_demand_w,
    metered_holidays,
    parse_book,
    parse_micro_won,
)

KST = timezone(timedelta(hours=9))
BOOK = load_tariff_book()
INDUSTRIAL, BIG, FLAT = "industrial_a2_hv_a_1", "industrial_b_hv_a_2", "general_a1_low"
HOLIDAYS = frozenset({date(2024, 10, 3), date(2024, 10, 9), date(2026, 12, 25), date(2026, 6, 6)})


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=KST).timestamp()


def price(name: str, text: str):
    return BOOK.price(name, at(text), HOLIDAYS)


@pytest.mark.parametrize(
    ("name", "when", "band", "won"),
    [
        # The day on which a table changes, the hour before and after.
        (INDUSTRIAL, "2024-10-23T23:59:59", Band.OFF, "87.2"),
        (INDUSTRIAL, "2024-10-24T00:00:00", Band.OFF, "95.7"),
        (INDUSTRIAL, "2024-10-24T11:59:59", Band.PEAK, "119.7"),
        (INDUSTRIAL, "2024-10-24T12:00:00", Band.MID, "100.5"),
        # The reform: noon is no longer the peak, the evening is.
        (INDUSTRIAL, "2026-05-29T14:00:00", Band.PEAK, "119.7"),
        (INDUSTRIAL, "2026-06-01T14:00:00", Band.MID, "121.5"),
        (INDUSTRIAL, "2026-06-01T20:59:00", Band.PEAK, "155.0"),
        (INDUSTRIAL, "2026-06-01T21:00:00", Band.MID, "121.5"),
        # Winter has two peaks, also after the reform.
        (INDUSTRIAL, "2026-11-30T08:00:00", Band.MID, "120.0"),
        (INDUSTRIAL, "2026-11-30T09:00:00", Band.PEAK, "149.4"),
        (INDUSTRIAL, "2026-11-30T12:00:00", Band.MID, "120.0"),
        (INDUSTRIAL, "2026-11-30T16:00:00", Band.PEAK, "149.4"),
        (INDUSTRIAL, "2026-11-30T19:00:00", Band.MID, "120.0"),
        (INDUSTRIAL, "2026-11-30T22:00:00", Band.OFF, "103.1"),
        # Saturdays, Sundays, holidays; a holiday on a Saturday is a holiday.
        (INDUSTRIAL, "2026-11-28T10:00:00", Band.MID, "120.0"),
        (INDUSTRIAL, "2026-11-29T10:00:00", Band.OFF, "103.1"),
        (INDUSTRIAL, "2026-12-25T10:00:00", Band.OFF, "103.1"),
        (INDUSTRIAL, "2026-06-06T17:00:00", Band.OFF, "95.7"),
        # Half the price around noon of weekends in spring and autumn, until the end of 2030.
        (BIG, "2026-10-10T12:00:00", Band.MID, "66.7"),
        (BIG, "2026-10-11T11:00:00", Band.OFF, "58.0"),
        (BIG, "2026-10-11T14:00:00", Band.OFF, "116.0"),
        (BIG, "2026-10-12T12:00:00", Band.MID, "133.4"),
        (BIG, "2031-03-08T12:00:00", Band.MID, "133.4"),
        (FLAT, "2026-11-29T10:00:00", Band.FLAT, "119.0"),
    ],
)
def test_the_price_of_an_hour(name: str, when: str, band: Band, won: str) -> None:
    found = price(name, when)
    assert (found.band, found.micro_won_per_kwh, found.reason) == (band, parse_micro_won(won), "")


@pytest.mark.parametrize(
    ("name", "when", "reason"),
    [
        (INDUSTRIAL, "2023-12-31T12:00:00", "no table"),
        (INDUSTRIAL, "2025-12-01T10:00:00", "does not say which band"),
        ("nothing", "2026-12-01T10:00:00", "no table of nothing"),
    ],
)
def test_what_a_table_does_not_say_has_no_price(name: str, when: str, reason: str) -> None:
    found = price(name, when)
    assert found.micro_won_per_kwh is None
    assert reason in found.reason


def test_adders_are_known_until_a_day() -> None:
    assert BOOK.adders(date(2024, 10, 1)) == (14_000_000, "")
    total, reason = BOOK.adders(date(2026, 11, 28))
    assert total is None
    assert "known until 2026-06-30" in reason
    assert BOOK.adders(date(2000, 1, 1))[0] is None
    assert TariffBook().adders(date(2026, 1, 1)) == (0, "")


def test_a_sites_own_table_goes_over_the_books(tmp_path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(
        '[[adder]]\nname = "fuel"\ntitle = "t"\nvalid_from = "2026-07-01"\nwon_per_kwh = "4.5"\n'
        'known_until = "2026-12-31"\nsource = "the bill"\n'
        '[[adder]]\nname = "climate"\ntitle = "t"\nvalid_from = "2026-07-01"\nwon_per_kwh = "9"\n'
        'known_until = "2026-12-31"\nsource = "the bill"\n',
        encoding="utf-8",
    )
    assert load_tariff_book([own]).adders(date(2026, 11, 28)) == (13_500_000, "")
    with pytest.raises(Rejected, match="cannot be read"):
        load_tariff_book([tmp_path / "none.toml"])
    own.write_text("= 3", encoding="utf-8")
    with pytest.raises(Rejected, match="not TOML"):
        load_tariff_book([own])


def test_the_next_change_is_when_the_price_changes() -> None:
    assert BOOK.next_change_s(INDUSTRIAL, at("2026-11-30T09:10:00"), HOLIDAYS) == at("2026-11-30T12:00:00")
    assert BOOK.next_change_s(INDUSTRIAL, at("2026-11-28T22:00:00"), HOLIDAYS) == at("2026-11-30T08:00:00")
    assert BOOK.next_change_s(FLAT, at("2026-12-01T00:00:00"), HOLIDAYS) == at("2026-12-08T01:00:00"), "a week ahead"


@given(st.sampled_from(BOOK.names), st.datetimes(datetime(2026, 6, 1), datetime(2027, 5, 31), timezones=st.just(KST)))  # noqa: DTZ001
def test_every_hour_since_the_reform_has_one_price(name: str, when: datetime) -> None:
    found = BOOK.price(name, when.timestamp(), HOLIDAYS)
    assert found.micro_won_per_kwh is not None, found
    start = when.replace(minute=0, second=0, microsecond=0)
    assert BOOK.price(name, start.timestamp(), HOLIDAYS) == found


def test_every_table_names_its_source() -> None:
    for name in BOOK.names:
        table = BOOK.find(name, date(2026, 12, 1))
        assert table is not None
        assert table.source


TABLE = EnergyTariff(
    name="t",
    title="T",
    valid_from="2026-01-01",
    seasons={"all": tuple(range(1, 13))},
    source="a test",
    bands={"all": {Band.OFF: ("22-08",), Band.PEAK: ("08-22",)}},
    prices={"all": {Band.OFF: "1", Band.PEAK: "2"}},
)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"seasons": {"all": tuple(range(1, 12))}}, "every month"),
        ({"bands": {"all": {Band.OFF: ("22-08",), Band.PEAK: ("08-21",)}}}, "every hour"),
        ({"bands": {"all": {Band.OFF: ("22-09",), Band.PEAK: ("08-22",)}}}, "every hour"),
        ({"bands": {"all": {Band.OFF: ("25-08",)}}}, "no hours"),
        ({"bands": {"spring": {}}}, "'spring' has no months"),
        ({"prices": {"all": {Band.OFF: "1,5"}}}, "no amount"),
        ({"prices": {"all": {Band.OFF: "-1"}}}, "no amount"),
        ({"valid_from": "2026-13-01"}, "no day"),
        ({"known_until": "soon"}, "no day"),
        ({"base_won_per_kw": "free"}, "no amount"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(changed, words: str) -> None:
    with pytest.raises(Rejected, match=words):
        TariffBook([msgspec.structs.replace(TABLE, **changed)])


def test_days_of_unknown_kind_and_an_end_are_unknown() -> None:
    book = TariffBook([msgspec.structs.replace(TABLE, known_until="2026-06-30")])
    assert book.price("t", at("2026-01-05T10:00:00"), ()).micro_won_per_kwh == 2_000_000
    assert book.price("t", at("2026-01-03T10:00:00"), ()).micro_won_per_kwh is None, "a Saturday"
    assert book.price("t", at("2026-01-04T10:00:00"), ()).micro_won_per_kwh is None, "a Sunday"
    assert "vouched for" in book.price("t", at("2026-07-01T10:00:00"), ()).reason
    no_price = TariffBook([msgspec.structs.replace(TABLE, prices={})])
    assert no_price.price("t", at("2026-01-05T10:00:00"), ()).band is Band.PEAK


def test_files_that_are_wrong_are_named() -> None:
    with pytest.raises(Rejected, match=r"x\.toml: unknown table 'tarif'"):
        parse_book({"tarif": []}, "x.toml")
    with pytest.raises(Rejected, match=r"x\.toml: .*source"):
        parse_book({"tariff": [{"name": "a", "title": "b", "valid_from": "c", "seasons": {}}]}, "x.toml")
    with pytest.raises(Rejected):
        TariffBook(
            adders=[Adder(name="a", title="", valid_from="2026-01-01", won_per_kwh="x", known_until="", source="")]
        )


def test_holidays_of_one_year_are_metered_as_weekdays() -> None:
    named = {
        date(2024, 10, 1): "Armed Forces Day",
        date(2025, 1, 27): "Temporary Public Holiday",
        date(2024, 10, 3): "National Foundation Day",
    }
    assert metered_holidays(named) == {date(2024, 10, 3)}


@pytest.mark.parametrize(
    ("peaks", "expected"),
    [
        ({"2026-11": 30_000}, 30_000),
        ({"2026-11": 30_000, "2026-08": 42_000}, 42_000),
        ({"2026-11": 30_000, "2026-06": 42_000}, 30_000),
        ({"2026-11": 30_000, "2025-11": 50_000, "2025-08": 50_000}, 30_000),
        ({"2026-11": 30_000, "2025-12": 50_000}, 50_000),
        ({}, 18_000),
    ],
)
def test_the_demand_that_is_billed(peaks, expected: int) -> None:
    assert billing_demand_w(peaks, "2026-11", 60_000) == expected
