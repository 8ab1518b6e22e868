"""What a kilowatt-hour costs when: dated tables of the utility, by season, kind of day and hour.

Owns the tables' shape and the look-up. Refuses to know prices (they are data beside this module, each with its source),
clocks, calendars (holidays are an argument) and to guess: what a table does not say is unknown, with the reason. Called
by `energy_money`, by peak shaving and by the site program. Money is integer micro-won; time is Korean (UTC+9, without
daylight saving since 1988).
"""

import re
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Any

import msgspec

from madang.core import Rejected
from madang.model import MICRO_WON_PER_WON
from madang.policy.pricing import KST_OFFSET_S

_HOURS = re.compile(r"(\d\d)-(\d\d)\Z", re.ASCII)
_WON = re.compile(r"(\d{1,9})(?:\.(\d{1,6}))?\Z", re.ASCII)
_HOUR_S = 3600
_SATURDAY, _SUNDAY = 5, 6


class Band(StrEnum):
    """Parts of a day by price."""

    OFF = "off"
    MID = "mid"
    PEAK = "peak"
    FLAT = "flat"


class DayKind(StrEnum):
    """Kinds of days; a Sunday is a holiday."""

    WEEKDAY = "weekday"
    SATURDAY = "saturday"
    HOLIDAY = "holiday"


class SaturdayRule(StrEnum):
    """How Saturdays are metered."""

    AS_WEEKDAY = "as_weekday"
    PEAK_IS_MID = "peak_is_mid"
    UNKNOWN = "unknown"


class HolidayRule(StrEnum):
    """How Sundays and public holidays are metered."""

    AS_WEEKDAY = "as_weekday"
    ALL_OFF = "all_off"
    UNKNOWN = "unknown"


class Discount(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the energy's price that is let off at some hours.

    Attributes:
        hours: such as `11-14`.
        permille: of the price.
        last_day: until and with it, `YYYY-MM-DD`.
    """

    seasons: tuple[str, ...]
    days: tuple[DayKind, ...]
    hours: tuple[str, ...]
    permille: int
    last_day: str


class EnergyTariff(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One class of the utility from one day on, until a later table of the same name.

    Attributes:
        name: as site files name it.
        title: as the utility calls it.
        valid_from: first day.
        known_until: last day for which the source vouches; empty: until a later table.
        base_won_per_kw: for each kW of demand and month; won as text, so that no table is a float.
        seasons: months of each.
        bands: hours of each band by season, as ranges such as `22-08`; a season that is not there is unknown.
        prices: won for a kWh, as text, by season and band.
        saturday, holiday: how these days are metered.
        source: where it is from.
        unknown: what the source does not say.
    """

    name: str
    title: str
    valid_from: str
    seasons: dict[str, tuple[int, ...]]
    source: str
    base_won_per_kw: str = ""
    bands: dict[str, dict[Band, tuple[str, ...]]] = {}
    prices: dict[str, dict[Band, str]] = {}
    saturday: SaturdayRule = SaturdayRule.UNKNOWN
    holiday: HolidayRule = HolidayRule.UNKNOWN
    discounts: tuple[Discount, ...] = ()
    known_until: str = ""
    unknown: tuple[str, ...] = ()


class Adder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is added to every kWh from one day on, until a later one of the same name.

    Attributes:
        won_per_kwh: as text.
        known_until: last day for which the source vouches; later days are unknown.
    """

    name: str
    title: str
    valid_from: str
    won_per_kwh: str
    known_until: str
    source: str


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """What a kWh costs in one hour.

    Attributes:
        tariff: name and first day of the table, `NAME@YYYY-MM-DD`.
        micro_won_per_kwh: None where it is unknown; `reason` says why.
    """

    tariff: str
    band: Band | None
    micro_won_per_kwh: int | None
    reason: str = ""


class TariffBook:
    """Every table, by name. Immutable once made."""

    def __init__(self, tariffs: Iterable[EnergyTariff] = (), adders: Iterable[Adder] = ()) -> None:
        """Index the tables; of two with the same name and day the later one in the order holds.

        Raises Rejected for a table that contradicts itself, naming it and the place.
        """
        self._tariffs: dict[str, dict[date, EnergyTariff]] = {}
        self._hours: dict[tuple[str, str, str], dict[int, Band]] = {}
        self._adders: dict[str, dict[date, Adder]] = {}
        for tariff in tariffs:
            _check(tariff)
            self._tariffs.setdefault(tariff.name, {})[_day(tariff.valid_from)] = tariff
            for season in tariff.seasons:
                self._hours[tariff.name, tariff.valid_from, season] = _bands(tariff, season)
        for adder in adders:
            parse_micro_won(adder.won_per_kwh)
            self._adders.setdefault(adder.name, {})[_day(adder.valid_from)] = adder

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the classes, sorted."""
        return tuple(sorted(self._tariffs))

    def find(self, name: str, day: date) -> EnergyTariff | None:
        """Return the table of a class that is in force on a day; None before its first one."""
        known = self._tariffs.get(name, {})
        begun = [first for first in known if first <= day]
        return known[max(begun)] if begun else None

    def price(self, name: str, at_s: float, holidays: Collection[date]) -> Price:
        """Return what a kWh costs at an instant, without adders.

        Args:
            name: of the class.
            at_s: wall time.
            holidays: public holidays, without those that the government names for one year only: the utility leaves
                them out.
        """
        day, hour = korean_hour(at_s)
        tariff = self.find(name, day)
        if tariff is None:
            return Price(tariff=name, band=None, micro_won_per_kwh=None, reason=f"no table of {name} for {day}")
        label = f"{name}@{tariff.valid_from}"
        if tariff.known_until and day > _day(tariff.known_until):
            reason = f"the table of {tariff.valid_from} is vouched for until {tariff.known_until} only"
            return Price(tariff=label, band=None, micro_won_per_kwh=None, reason=reason)
        season = season_of(tariff, day)
        kind = kind_of(day, holidays)
        band = _band(tariff, self._hours[tariff.name, tariff.valid_from, season], kind, hour)
        if band is None:
            reason = f"the table does not say which band {hour:02d} h of a {kind} in {season} is in"
            return Price(tariff=label, band=None, micro_won_per_kwh=None, reason=reason)
        text = tariff.prices.get(season, {}).get(band)
        if text is None:
            reason = f"the table has no price of {band} in {season}"
            return Price(tariff=label, band=band, micro_won_per_kwh=None, reason=reason)
        price = parse_micro_won(text)
        for one in tariff.discounts:
            if _applies(one, season, kind, day, hour):
                price -= price * one.permille // 1000
        return Price(tariff=label, band=band, micro_won_per_kwh=price)

    def next_change_s(self, name: str, at_s: float, holidays: Collection[date]) -> float:
        """Return when the price changes next, a week ahead at most: the begin of an hour."""
        now = self.price(name, at_s, holidays)
        begins_s = (int(at_s) // _HOUR_S + 1) * _HOUR_S
        for hours in range(7 * 24):
            if self.price(name, begins_s + hours * _HOUR_S, holidays) != now:
                return float(begins_s + hours * _HOUR_S)
        return float(begins_s + 7 * 24 * _HOUR_S)

    def adders(self, day: date) -> tuple[int | None, str]:
        """Return what is added to each kWh on a day, micro-won; None with the reason where one is unknown."""
        total = 0
        for name, known in sorted(self._adders.items()):
            begun = [first for first in known if first <= day]
            if not begun:
                return None, f"no {name} is known for {day}"
            adder = known[max(begun)]
            if day > _day(adder.known_until):
                return None, f"{name} is known until {adder.known_until} only"
            total += parse_micro_won(adder.won_per_kwh)
        return total, ""


def parse_book(raw: Mapping[str, Any], where: str) -> tuple[tuple[EnergyTariff, ...], tuple[Adder, ...]]:
    """Return the tables in a file's content: `[[tariff]]` and `[[adder]]`; raises Rejected naming the place."""
    try:
        unknown = set(raw) - {"tariff", "adder"}
        if unknown:
            raise Rejected(f"{where}: unknown table {min(unknown)!r}: expected [[tariff]] and [[adder]]")
        tariffs = msgspec.convert(raw.get("tariff", []), tuple[EnergyTariff, ...])
        adders = msgspec.convert(raw.get("adder", []), tuple[Adder, ...])
    except msgspec.ValidationError as error:
        raise Rejected(f"{where}: {error}") from error
    return tariffs, adders


def parse_micro_won(text: str) -> int:
    """Return an amount of won, written with at most six places, as micro-won, exactly; raises Rejected."""
    match = _WON.match(text)
    if match is None:
        raise Rejected(f"{text!r} is no amount of won: expected a number such as 95.7, in quotes")
    return int(match[1]) * MICRO_WON_PER_WON + int((match[2] or "").ljust(6, "0"))


def korean_hour(at_s: float) -> tuple[date, int]:
    """Return the Korean day and hour of a wall time."""
    moment = datetime.fromtimestamp(int(at_s // 1) + KST_OFFSET_S, UTC)
    return moment.date(), moment.hour


def kind_of(day: date, holidays: Collection[date]) -> DayKind:
    """Return what kind of day it is; a holiday on a Saturday is a holiday."""
    if day in holidays or day.weekday() == _SUNDAY:
        return DayKind.HOLIDAY
    return DayKind.SATURDAY if day.weekday() == _SATURDAY else DayKind.WEEKDAY


def metered_holidays(named: Mapping[date, str]) -> frozenset[date]:
    """Return the public holidays by which the utility meters: without those that the government names for one year.

    Args:
        named: Korean holidays by their English names, such as `holidays.KR(language="en_US")` of the library
            `holidays`. Armed Forces Day has been a holiday for one year only, 2024, since 1991.
    """
    return frozenset(day for day, name in named.items() if not any(word in name for word in _ONE_YEAR))


_ONE_YEAR = ("Temporary Public Holiday", "Armed Forces Day")


def season_of(tariff: EnergyTariff, day: date) -> str:
    """Return the season that a day is in; empty where the table has none."""
    return next((name for name, months in tariff.seasons.items() if day.month in months), "")


def _bands(tariff: EnergyTariff, season: str) -> dict[int, Band]:
    """Return the band of each hour of a weekday; empty where the table does not say."""
    bands = tariff.bands.get(season, {})
    if set(bands) == {Band.FLAT}:
        return dict.fromkeys(range(24), Band.FLAT)
    return {hour: band for band, ranges in bands.items() for text in ranges for hour in _hours(text)}


def _band(tariff: EnergyTariff, hours: Mapping[int, Band], kind: DayKind, hour: int) -> Band | None:
    """Return the band of an hour of a kind of day; None where the table does not say."""
    if hours.get(hour) is Band.FLAT:
        return Band.FLAT
    if kind is DayKind.HOLIDAY and tariff.holiday is not HolidayRule.AS_WEEKDAY:
        return Band.OFF if tariff.holiday is HolidayRule.ALL_OFF and hours else None
    band = hours.get(hour)
    if kind is DayKind.SATURDAY and tariff.saturday is not SaturdayRule.AS_WEEKDAY:
        if tariff.saturday is SaturdayRule.UNKNOWN:
            return None
        return Band.MID if band is Band.PEAK else band
    return band


def billing_demand_w(peaks_w: Mapping[str, int], month: str, contract_w: int) -> int:
    """Return the demand that a month's base charge is for, of a customer whose demand is metered, W.

    The largest of the month's own peak, of the peaks of December to February and July to September in the twelve
    months that end with it, and of 30 % of the contract (KEPCO, Basic Supply Terms and Conditions, article 68).

    Args:
        peaks_w: mean of 15 minutes, largest of each month `YYYY-MM`, outside of off-peak hours.
        month: the one that is billed.
        contract_w: contracted.
    """
    last = _months(month)
    counted = [
        peak
        for name, peak in peaks_w.items()
        if name == month or (last - 12 < _months(name) <= last and int(name[5:]) in (12, 1, 2, 7, 8, 9))
    ]
    return max([*counted, contract_w * 3 // 10])


def _months(month: str) -> int:
    return int(month[:4]) * 12 + int(month[5:])


def _applies(one: Discount, season: str, kind: DayKind, day: date, hour: int) -> bool:
    is_hour = any(hour in _hours(text) for text in one.hours)
    return is_hour and season in one.seasons and kind in one.days and day <= _day(one.last_day)


def _hours(text: str) -> tuple[int, ...]:
    """Return the hours of `08-11`, or over midnight of `22-08`; raises Rejected."""
    match = _HOURS.match(text)
    first, last = (int(match[1]), int(match[2])) if match else (-1, -1)
    if not (0 <= first < 24 and 0 < last <= 24 and first != last):
        raise Rejected(f"{text!r} are no hours: expected two, such as 08-11 or 22-08")
    return tuple(hour % 24 for hour in range(first, last if last > first else last + 24))


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise Rejected(f"{text!r} is no day: expected YYYY-MM-DD") from error


def _check(tariff: EnergyTariff) -> None:
    """Refuse a table that contradicts itself: hours that are in two bands or in none, unknown seasons, odd amounts."""
    place = f"tariff {tariff.name} of {tariff.valid_from}"
    months = sorted(month for group in tariff.seasons.values() for month in group)
    if months != list(range(1, 13)):
        raise Rejected(f"{place}: seasons: every month stands in one season: expected 1 to 12 once, found {months}")
    for season in (*tariff.bands, *tariff.prices):
        if season not in tariff.seasons:
            raise Rejected(f"{place}: season {season!r} has no months: expected {', '.join(tariff.seasons)}")
    for season, bands in tariff.bands.items():
        hours = sorted(hour for ranges in bands.values() for text in ranges for hour in _hours(text))
        if hours != list(range(24)) and set(bands) != {Band.FLAT}:
            raise Rejected(f"{place}: bands of {season}: every hour stands in one band: expected 0 to 23 once")
    _check_texts(tariff)


def _check_texts(tariff: EnergyTariff) -> None:
    """Refuse days, hours and amounts that are none."""
    amounts = [price for by_band in tariff.prices.values() for price in by_band.values()]
    for text in filter(None, (*amounts, tariff.base_won_per_kw)):
        parse_micro_won(text)
    for text in filter(None, (tariff.known_until, *(one.last_day for one in tariff.discounts))):
        _day(text)
    for text in (hours for one in tariff.discounts for hours in one.hours):
        _hours(text)
