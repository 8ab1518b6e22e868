"""A site's month of energy: stored readings, the contract and work, put together into one bill that can be traced.

Owns which stored readings count and as of when, the pairs that become lines, the demand of the base charge, and the
words for what is not known. Refuses to price and to divide (`metered`, `energy_money` do), to mix simulated readings
with real ones, and to make a reading up. Called by the hub. Cost: quarters of an hour times tenants.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from datetime import date
from itertools import pairwise
from math import gcd

import msgspec

from madang.core import Rejected
from madang.model.facility_site import SupplyContract
from madang.policy.facility.energy_money import EnergyBill, Work, base_charge_micro_won, make_bill
from madang.policy.facility.metered import EnergyLine, GapLine, Metered, MeterReading, price_readings
from madang.policy.facility.tariff import Band, TariffBook, billing_demand_w
from madang.policy.pricing import kst_month, month_span_s

QUARTER_S = 900
"""KEPCO meters demand over quarters of an hour."""
NEAR_S = 30.0
"""A register that was read so near its quarter of an hour counts as read at it: it is polled every few seconds, and
prices change on the hour. Engineering estimate: at most a thirtieth of a quarter's energy falls to its neighbour."""
STEP_PART = 0.1
"""A register whose steps are a larger part of a line than this is said to be coarse. Engineering rule."""
LINES_MIN = 8
"""From fewer lines nobody can tell a register's steps from chance."""
USABLE = frozenset({"good", "uncertain", "substituted"})


class StoredReading(msgspec.Struct, frozen=True, kw_only=True):
    """A reading as the site wrote it down; a quarter of an hour at which nothing was read has no value."""

    point_id: str
    at_s: int
    value_wh: float | None
    read_at_s: float | None
    quality: str
    is_simulated: bool


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What was agreed with the utility from one instant on.

    Attributes:
        book: tables by which it is priced, those of the site among them.
    """

    from_at_s: int
    contract: SupplyContract
    book: TariffBook


class BandSum(msgspec.Struct, frozen=True, kw_only=True):
    """Energy at one price of one table; `adders_micro_won` are of the days whose adders are known."""

    tariff: str
    band: str
    micro_won_per_kwh: int
    energy_wh: int
    charge_micro_won: int
    adders_micro_won: int


class GapSum(msgspec.Struct, frozen=True, kw_only=True):
    """Neighbouring gaps for one reason."""

    begin_id: str
    end_id: str
    begins_at_s: int
    ends_at_s: int
    energy_wh: int | None
    reason: str
    low_micro_won: int | None
    high_micro_won: int | None


class SiteMonth(msgspec.Struct, frozen=True, kw_only=True):
    """A site's month.

    Attributes:
        is_simulated: the readings are a simulated meter's, so the whole of it is.
        demand_w: for which the base charge is.
        quarters: of an hour that are over in the month.
        quarters_read: at whose begin and end the register was read.
        unknown: what is not known and why, beside the gaps.
    """

    month: str
    is_simulated: bool
    contract: SupplyContract
    demand_w: int
    bill: EnergyBill
    bands: tuple[BandSum, ...]
    gaps: tuple[GapSum, ...]
    quarters: int
    quarters_read: int
    unknown: tuple[str, ...]


def site_month(
    readings: Iterable[StoredReading],
    terms: Sequence[Terms],
    work: Iterable[Work],
    month: str,
    holidays: Collection[date],
    now_s: float,
) -> SiteMonth:
    """Return a site's month of energy and who bears it.

    Args:
        readings: of the billed register, of one kind, of the month and of the twelve before it, any order.
        terms: oldest first; the first one holds before it too.
        work: of billed attempts, by the quarter of an hour in which they began.
        month: Korean, `YYYY-MM`.
        holidays: public holidays by which energy is metered.
        now_s: wall time; a month that is not over is billed until then.

    Raises:
        Rejected: the month is none, there is no contract or no reading, or they mix simulated and real ones.
    """
    starts_at_s, ends_at_s = (int(at_s) for at_s in month_span_s(month))
    rows = sorted(readings, key=lambda one: one.at_s)
    if not terms or not rows:
        raise Rejected("the site has sent no reading of a billed register", next_step="see [contract] in its site file")
    if len({one.is_simulated for one in rows}) > 1:
        raise Rejected(
            "simulated and real readings are never billed together", next_step="ask for one kind: real or simulated"
        )
    known = list(filter(None, map(reading_of_stored, rows)))
    within = [one for one in known if starts_at_s <= one.at_s <= ends_at_s]
    until_s = min(ends_at_s, int(now_s) // QUARTER_S * QUARTER_S)
    metered, changes = _meter(within, terms, holidays)
    last = _terms_at(terms, ends_at_s - 1)
    demand_w, demand_unknown = _demand_w(known, last, month, holidays)
    base, reason = base_charge_micro_won(last.book, last.contract.tariff, month, demand_w)
    bill = make_bill(metered, work, idle_w=last.contract.idle_w, base_micro_won=base, base_reason=reason)
    quarters = max(0, until_s - starts_at_s) // QUARTER_S
    return SiteMonth(
        month=kst_month(starts_at_s),
        is_simulated=rows[0].is_simulated,
        contract=last.contract,
        demand_w=demand_w,
        bill=bill,
        bands=_sum_bands(metered.lines),
        gaps=_sum_gaps(metered.gaps),
        quarters=quarters,
        quarters_read=sum(end.at_s - begin.at_s == QUARTER_S for begin, end in pairwise(within)),
        unknown=(
            *bill.unknown[len(metered.gaps) :],
            *demand_unknown,
            *_edges(known, within, starts_at_s, until_s),
            *_coarse(metered.lines),
            *changes,
        ),
    )


def reading_of_stored(row: StoredReading) -> MeterReading | None:
    """Return a stored reading as one that can be billed; None where nothing usable was read.

    One that was read far from its quarter of an hour counts as of when it was read.
    """
    if row.value_wh is None or row.read_at_s is None or row.value_wh < 0 or row.quality not in USABLE:
        return None
    is_near = abs(row.read_at_s - row.at_s) <= NEAR_S
    return MeterReading(
        reading_id=f"{row.point_id}@{row.at_s}",
        meter=row.point_id,
        at_s=row.at_s if is_near else int(row.read_at_s),
        energy_wh=int(row.value_wh + 0.5),
    )


def _terms_at(terms: Sequence[Terms], at_s: int) -> Terms:
    begun = [one for one in terms if one.from_at_s <= at_s]
    return begun[-1] if begun else terms[0]


def _meter(
    readings: Sequence[MeterReading], terms: Sequence[Terms], holidays: Collection[date]
) -> tuple[Metered, list[str]]:
    """Return a line for each quarter of an hour, priced by the contract of its time; and what changed meanwhile."""
    lines: list[EnergyLine] = []
    gaps: list[GapLine] = []
    changes: list[str] = []
    for begin, end in pairwise(readings):
        now = _terms_at(terms, begin.at_s)
        if begin.meter != end.meter:
            changes.append(f"another register is billed from {end} on: the time since {begin}")
            continue
        found = price_readings((begin, end), now.book, now.contract.tariff, holidays)
        lines += found.lines
        gaps += found.gaps
    idle = {_terms_at(terms, one.at_s).contract.idle_w for one in readings}
    if len(idle) > 1:
        changes.append("the idle draw was changed within the month: the last one is taken for all of it")
    return Metered(lines=tuple(lines), gaps=tuple(gaps)), changes


def _demand_w(
    readings: Sequence[MeterReading], terms: Terms, month: str, holidays: Collection[date]
) -> tuple[int, list[str]]:
    """Return the demand that the base charge is for, and which months it does not rest on."""
    contract = terms.contract
    if contract.base_by == "contract":
        return int(contract.power_w), []
    peaks: dict[str, int] = {}
    seen: dict[str, int] = defaultdict(int)
    for begin, end in pairwise(readings):
        if end.at_s - begin.at_s != QUARTER_S or end.meter != begin.meter or end.energy_wh < begin.energy_wh:
            continue
        name = kst_month(begin.at_s)
        seen[name] += 1
        peak_w = (end.energy_wh - begin.energy_wh) * 3600 // QUARTER_S
        if peak_w > peaks.get(name, 0) and terms.book.price(contract.tariff, begin.at_s, holidays).band is not Band.OFF:
            peaks[name] = peak_w
    missing = [name for name in _counted_months(month) if not seen[name]]
    words = (
        [f"the base charge counts no demand of {', '.join(missing)}: nothing was read; it can only be higher"]
        if missing
        else []
    )
    return billing_demand_w(peaks, month, int(contract.power_w)), words


def _counted_months(month: str) -> list[str]:
    """Return the months whose peaks a base charge counts, as `billing_demand_w` does."""
    last = int(month[:4]) * 12 + int(month[5:]) - 1
    names = [f"{number // 12:04d}-{number % 12 + 1:02d}" for number in range(last - 11, last + 1)]
    return [name for name in names if name == month or int(name[5:]) in (12, 1, 2, 7, 8, 9)]


def _coarse(lines: Sequence[EnergyLine]) -> list[str]:
    """Return what a register of large steps means for single lines; the month as a whole is off by one step at most."""
    if len(lines) < LINES_MIN:
        return []
    step_wh = gcd(*(line.energy_wh for line in lines))
    mean_wh = sum(line.energy_wh for line in lines) // max(1, len(lines))
    if step_wh < STEP_PART * mean_wh or step_wh <= 1:
        return []
    return [
        f"the register counts in steps of {step_wh} Wh, and a line has {mean_wh} Wh on average: single lines, and with "
        "them the operator's idle part of each, are only as good"
    ]


def _sum_bands(lines: Iterable[EnergyLine]) -> tuple[BandSum, ...]:
    sums: dict[tuple[str, str, int], list[int]] = defaultdict(lambda: [0, 0, 0])
    for line in lines:
        row = sums[line.price.tariff, line.price.band or "", line.price.micro_won_per_kwh or 0]
        row[0] += line.energy_wh
        row[1] += line.charge_micro_won
        row[2] += line.adders_micro_won or 0
    return tuple(
        BandSum(
            tariff=tariff,
            band=band,
            micro_won_per_kwh=price,
            energy_wh=row[0],
            charge_micro_won=row[1],
            adders_micro_won=row[2],
        )
        for (tariff, band, price), row in sorted(sums.items())
    )


def _sum_gaps(gaps: Iterable[GapLine]) -> tuple[GapSum, ...]:
    found: list[GapSum] = []
    for gap in gaps:
        one = GapSum(
            begin_id=gap.begin.reading_id,
            end_id=gap.end.reading_id,
            begins_at_s=gap.begin.at_s,
            ends_at_s=gap.end.at_s,
            energy_wh=gap.energy_wh,
            reason=gap.reason,
            low_micro_won=gap.low_micro_won,
            high_micro_won=gap.high_micro_won,
        )
        last = found[-1] if found else None
        if last is not None and last.end_id == one.begin_id and last.reason == one.reason:
            one = msgspec.structs.replace(
                one,
                begin_id=last.begin_id,
                begins_at_s=last.begins_at_s,
                energy_wh=_add(last.energy_wh, one.energy_wh),
                low_micro_won=_add(last.low_micro_won, one.low_micro_won),
                high_micro_won=_add(last.high_micro_won, one.high_micro_won),
            )
            found.pop()
        found.append(one)
    return tuple(found)


def _add(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other


def _edges(known: Sequence[MeterReading], within: Sequence[MeterReading], starts_at_s: int, until_s: int) -> list[str]:
    """Return what is not known between the month's ends and the readings next to them: it is in nobody's bill."""
    if not within:
        return ["the register was not read in this month"]
    found = []
    if within[0].at_s > starts_at_s:
        before = [one for one in known if one.at_s < starts_at_s and one.meter == within[0].meter]
        energy = f", {within[0].energy_wh - before[-1].energy_wh} Wh since {before[-1]}" if before else ""
        found.append(f"nothing was read from the month's begin until {within[0]}{energy}: not billed")
    if within[-1].at_s < until_s:
        found.append(f"nothing was read after {within[-1]}: not billed")
    return found
