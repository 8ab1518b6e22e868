"""Energy as it was metered and what it cost: from readings of a register to lines that can be traced back to them.

Owns segments, their price and what is a gap. Refuses to invent: energy of which nobody knows when it was drawn is
marked and not priced, unless the price was the same all the time. Called by `energy_money`. Whole watt-hours and whole
micro-won throughout; one rounding a line, half up.
"""

from collections.abc import Collection, Iterable, Sequence
from datetime import date
from itertools import pairwise

import msgspec

from madang.model import Sample
from madang.policy.facility.tariff import Price, TariffBook, korean_hour
from madang.policy.pricing import kst_minute

GAP_S = 1200
"""Readings further apart leave a gap: an interval of 15 minutes, and one reading that came late."""
GAP_DAYS_MAX = 40
"""Within longer gaps nobody looks up what each hour cost."""
SPLIT_S = 60
"""Two readings so near each other are split at the hour between them by time; it is said of the line."""
_WH_PER_KWH = 1000


class MeterReading(msgspec.Struct, frozen=True, kw_only=True):
    """One reading of an energy register.

    Attributes:
        reading_id: as it is kept; an invoice names it.
        energy_wh: of the register, not since anything.
        at_s: wall time in whole seconds.
    """

    reading_id: str
    meter: str
    at_s: int
    energy_wh: int

    def __str__(self) -> str:
        """Return the id that an invoice names, and when that was."""
        return f"{self.reading_id} ({kst_minute(self.at_s)})"


class EnergyLine(msgspec.Struct, frozen=True, kw_only=True):
    """Energy at one price, between two readings.

    Attributes:
        begin, end: the readings; `energy_wh` is their difference unless the line was split.
        begins_at_s, ends_at_s: of the line.
        charge_micro_won: without adders.
        adders_micro_won: None where they are not known.
        is_split: a price changed between two readings near each other; divided by time.
    """

    line_id: str
    begin: MeterReading
    end: MeterReading
    begins_at_s: int
    ends_at_s: int
    energy_wh: int
    price: Price
    charge_micro_won: int
    adders_micro_won: int | None
    is_split: bool = False


class GapLine(msgspec.Struct, frozen=True, kw_only=True):
    """A time of which it is not known what the energy cost.

    Attributes:
        energy_wh: None where the register itself does not say (it ran backwards).
        low_micro_won, high_micro_won: between what it cost, without adders; None where even that is not known.
    """

    line_id: str
    begin: MeterReading
    end: MeterReading
    energy_wh: int | None
    reason: str
    low_micro_won: int | None = None
    high_micro_won: int | None = None


class Metered(msgspec.Struct, frozen=True, kw_only=True):
    """What a register says of an interval: lines and gaps together are all of it, in the order of time."""

    lines: tuple[EnergyLine, ...]
    gaps: tuple[GapLine, ...]

    @property
    def energy_wh(self) -> int:
        """Energy of the lines."""
        return sum(line.energy_wh for line in self.lines)


def reading_of(sample: Sample) -> MeterReading | None:
    """Return a usable sample of an energy register as a reading in whole Wh and seconds; None of another one.

    Registers count in steps of a watt-hour or more; a fraction is what a scale left behind.
    """
    if not sample.is_usable or sample.value is None or sample.value < 0:
        return None
    at_s = int(sample.observed_at_s)
    return MeterReading(
        reading_id=f"{sample.point_id}@{at_s}", meter=sample.point_id, at_s=at_s, energy_wh=int(sample.value + 0.5)
    )


def price_readings(
    readings: Sequence[MeterReading], book: TariffBook, tariff: str, holidays: Collection[date]
) -> Metered:
    """Return lines and gaps of the readings of one meter, oldest first.

    Neighbouring segments of the same price become one line, whose energy is the difference of its outer readings.
    """
    lines: list[EnergyLine] = []
    gaps: list[GapLine] = []
    for begin, end in pairwise(readings):
        if end.at_s <= begin.at_s:
            continue
        found = _segment(begin, end, book, tariff, holidays)
        if isinstance(found, GapLine):
            gaps.append(found)
            continue
        for line in found:
            if lines and _continues(lines[-1], line):
                lines[-1] = _line(lines[-1].begin, line.end, line.price, book)
            else:
                lines.append(line)
    return Metered(lines=tuple(lines), gaps=tuple(gaps))


def _segment(
    begin: MeterReading, end: MeterReading, book: TariffBook, tariff: str, holidays: Collection[date]
) -> list[EnergyLine] | GapLine:
    energy_wh = end.energy_wh - begin.energy_wh
    if energy_wh < 0:
        return _gap(begin, end, None, (), "the register ran backwards: it was reset or replaced")
    days = (end.at_s - begin.at_s) // 86_400
    if days > GAP_DAYS_MAX:
        return _gap(begin, end, energy_wh, (), f"no reading for {days} days")
    prices = _prices_between(begin.at_s, end.at_s, book, tariff, holidays)
    unknown = next((price for _, price in prices if price.micro_won_per_kwh is None), None)
    if unknown is not None:
        return _gap(begin, end, energy_wh, (), unknown.reason)
    if len(prices) == 1:
        return [_line(begin, end, prices[0][1], book)]
    amounts = [price.micro_won_per_kwh or 0 for _, price in prices]
    if end.at_s - begin.at_s > SPLIT_S:
        what = "no reading" if end.at_s - begin.at_s > GAP_S else "no reading at the change of price"
        return _gap(begin, end, energy_wh, amounts, f"{what}: when the energy was drawn is not known")
    return _split(begin, end, prices, book)


def _prices_between(
    from_s: int, until_s: int, book: TariffBook, tariff: str, holidays: Collection[date]
) -> list[tuple[int, Price]]:
    """Return from when on which price holds: one entry for each change. A new day's adders are a change too."""
    found = [(from_s, book.price(tariff, from_s, holidays))]
    day = korean_hour(from_s)[0]
    for hour_s in range((from_s // 3600 + 1) * 3600, until_s, 3600):
        price = book.price(tariff, hour_s, holidays)
        new_day = korean_hour(hour_s)[0]
        if price != found[-1][1] or book.adders(new_day) != book.adders(day):
            found.append((hour_s, price))
        day = new_day
    return found


def _split(
    begin: MeterReading, end: MeterReading, prices: list[tuple[int, Price]], book: TariffBook
) -> list[EnergyLine]:
    """Divide a short segment by time, to the watt-hour; what does not divide goes to the last part."""
    whole_wh, whole_s = end.energy_wh - begin.energy_wh, end.at_s - begin.at_s
    lines, left_wh = [], whole_wh
    for (from_s, price), after in zip(prices, [*prices[1:], None], strict=True):
        until_s = after[0] if after is not None else end.at_s
        part_wh = left_wh if after is None else whole_wh * (until_s - from_s) // whole_s
        left_wh -= part_wh
        line = _line(begin, end, price, book, part_wh, (from_s, until_s))
        lines.append(line)
    return lines


def _line(
    begin: MeterReading,
    end: MeterReading,
    price: Price,
    book: TariffBook,
    energy_wh: int | None = None,
    span_s: tuple[int, int] | None = None,
) -> EnergyLine:
    begins_at_s, ends_at_s = span_s or (begin.at_s, end.at_s)
    energy = end.energy_wh - begin.energy_wh if energy_wh is None else energy_wh
    adders, _ = book.adders(korean_hour(begins_at_s)[0])
    return EnergyLine(
        line_id=f"{begin.meter}@{begins_at_s}",
        begin=begin,
        end=end,
        begins_at_s=begins_at_s,
        ends_at_s=ends_at_s,
        energy_wh=energy,
        price=price,
        charge_micro_won=cost_micro_won(energy, price.micro_won_per_kwh or 0),
        adders_micro_won=None if adders is None else cost_micro_won(energy, adders),
        is_split=span_s is not None,
    )


def _continues(last: EnergyLine, line: EnergyLine) -> bool:
    """Return whether a line carries on the one before: the same price on the same day, no gap, no part of a split."""
    is_same_day = korean_hour(last.begins_at_s)[0] == korean_hour(line.begins_at_s)[0]
    is_whole = not (last.is_split or line.is_split)
    return is_whole and is_same_day and last.price == line.price and last.end == line.begin


def _gap(begin: MeterReading, end: MeterReading, energy_wh: int | None, amounts: Iterable[int], reason: str) -> GapLine:
    costs = [] if energy_wh is None else [cost_micro_won(energy_wh, amount) for amount in amounts]
    return GapLine(
        line_id=f"{begin.meter}@{begin.at_s}",
        begin=begin,
        end=end,
        energy_wh=energy_wh,
        reason=reason,
        low_micro_won=min(costs, default=None),
        high_micro_won=max(costs, default=None),
    )


def cost_micro_won(energy_wh: int, micro_won_per_kwh: int) -> int:
    """Return what energy costs, rounded once, half up."""
    return (energy_wh * micro_won_per_kwh + _WH_PER_KWH // 2) // _WH_PER_KWH
