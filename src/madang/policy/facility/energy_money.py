"""Energy and won by tenant: what a site's metered energy cost, divided over those for whom it worked.

Owns the division, exact to the last micro-won, and the trace of each won back to readings of the meter. Refuses to read
ledgers and meters. Called by the site program, by invoices of energy and by the simulator. Everything is integers:
shares are whole numbers, what does not divide goes to the largest remainders, so that the parts of a line add up to
the line and the lines to the bill.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta

import msgspec

from madang.core import TenantId
from madang.model import MICRO_WON_PER_WON, UsageEvent
from madang.policy.facility.metered import EnergyLine, GapLine, Metered
from madang.policy.facility.tariff import TariffBook, parse_micro_won
from madang.policy.pricing import kst_day, month_span_s

OPERATOR = TenantId("")
"""Who bears what nobody asked for: the idle draw, and times without any request. No tenant's id is empty."""
BASE_LINE = "base"


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What was done for a tenant at one time, as a weight.

    Attributes:
        weight: tokens, or milliseconds of an engine; of one bill all alike.
        tokens: read and written, for won per token.
    """

    tenant_id: TenantId
    at_s: float
    weight: int
    tokens: int = 0


class TenantLine(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant's part of one line.

    Attributes:
        line_id: of the `EnergyLine`, or `base`.
        weight, weight_all: its work in the line's time, and everybody's.
    """

    tenant_id: TenantId
    line_id: str
    energy_wh: int
    charge_micro_won: int
    adders_micro_won: int
    weight: int
    weight_all: int


class TenantEnergy(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant's month.

    Attributes:
        sum_micro_won: all of it, net of VAT.
        net_won: the same in whole won; over all tenants they add up to the bill's whole won.
        micro_won_per_million_tokens: None without a token.
        wh_per_million_tokens: likewise.
    """

    tenant_id: TenantId
    energy_wh: int
    sum_micro_won: int
    net_won: int
    tokens: int
    micro_won_per_million_tokens: int | None
    wh_per_million_tokens: int | None


class EnergyBill(msgspec.Struct, frozen=True, kw_only=True):
    """What a site's energy cost over an interval, and who bears it.

    Attributes:
        tokens_unpriced: of work in gaps, which bears nothing.
        unknown: what could not be priced, and why: gaps, adders, the base charge.
        sum_micro_won: of everything that could be.
    """

    metered: Metered
    base_micro_won: int | None
    shares: tuple[TenantLine, ...]
    tenants: tuple[TenantEnergy, ...]
    energy_wh: int
    sum_micro_won: int
    net_won: int
    tokens_unpriced: int
    unknown: tuple[str, ...]


class TraceRow(msgspec.Struct, frozen=True, kw_only=True):
    """Where a part of a tenant's won comes from.

    Attributes:
        begin_id, end_id: readings of the meter; empty for the base charge.
        begin_wh, end_wh: what the register said.
    """

    line_id: str
    begin_id: str
    end_id: str
    begin_wh: int
    end_wh: int
    tariff: str
    band: str
    micro_won_per_kwh: int
    line_wh: int
    line_micro_won: int
    weight: int
    weight_all: int
    energy_wh: int
    charge_micro_won: int


def work_by_tokens(event: UsageEvent) -> Work:
    """Return a billed attempt as tokens read and written."""
    tokens = event.prompt_tokens + event.completion_tokens
    return Work(tenant_id=event.tenant_id, at_s=event.started_at_s, weight=tokens, tokens=tokens)


def work_by_time(event: UsageEvent) -> Work:
    """Return a billed attempt as milliseconds for which it held an engine: also for models that have no tokens."""
    tokens = event.prompt_tokens + event.completion_tokens
    weight = max(int(event.duration_s * 1000), 0)
    return Work(tenant_id=event.tenant_id, at_s=event.started_at_s, weight=weight, tokens=tokens)


def divide(amount: int, weights: Mapping[TenantId, int]) -> dict[TenantId, int]:
    """Return an amount in whole parts by weights: largest remainders first, ties by name; the parts add up to it.

    No part is off its exact share by one unit or more. Weights are 0 or more, one of them above 0.
    """
    whole = sum(weights.values())
    parts = {name: amount * weight // whole for name, weight in weights.items()}
    left = amount - sum(parts.values())
    order = sorted(weights, key=lambda name: (-(amount * weights[name] % whole), name))
    for name in order[:left]:
        parts[name] += 1
    return parts


def make_bill(
    metered: Metered,
    work: Iterable[Work],
    *,
    idle_w: int = 0,
    base_micro_won: int | None = None,
    base_reason: str = "",
) -> EnergyBill:
    """Return what energy cost and who bears it.

    Each line goes to those whose work began in its time, by their weights; the part that the box draws idle, and a line
    without work, to the operator. The base charge follows energy. Cost: lines times tenants, after sorting the work.

    Args:
        metered: lines and gaps of the site's billed register.
        work: of billed attempts only: one for each request.
        idle_w: the box's own draw.
        base_micro_won: the base charge of the interval; None: it is not known, for `base_reason`.
        base_reason: why.
    """
    by_line, tokens, tokens_unpriced = _sort(metered.lines, work)
    shares: list[TenantLine] = []
    for line in metered.lines:
        shares += _share(line, by_line[line.line_id], idle_w)
    energy_by_tenant: dict[TenantId, int] = defaultdict(int)
    for one in shares:
        energy_by_tenant[one.tenant_id] += one.energy_wh
    if base_micro_won is not None:
        weights = energy_by_tenant if sum(energy_by_tenant.values()) else {OPERATOR: 1}
        whole = sum(weights.values())
        shares += [
            TenantLine(
                tenant_id=name,
                line_id=BASE_LINE,
                energy_wh=0,
                charge_micro_won=part,
                adders_micro_won=0,
                weight=weights[name],
                weight_all=whole,
            )
            for name, part in divide(base_micro_won, weights).items()
        ]
    bill = _finish(metered, shares, tokens, base_micro_won)
    unknown = _unknown(metered, base_micro_won, base_reason)
    return msgspec.structs.replace(bill, tokens_unpriced=tokens_unpriced, unknown=unknown)


def _sort(
    lines: Sequence[EnergyLine], work: Iterable[Work]
) -> tuple[dict[str, dict[TenantId, int]], dict[TenantId, int], int]:
    """Return weights by line and tenant, tokens by tenant, of work that began in a line's time, and others' tokens."""
    by_line: dict[str, dict[TenantId, int]] = {line.line_id: defaultdict(int) for line in lines}
    tokens: dict[TenantId, int] = defaultdict(int)
    at = missed = 0
    for one in sorted(work, key=lambda one: one.at_s):
        while at < len(lines) and lines[at].ends_at_s <= one.at_s:
            at += 1
        if at < len(lines) and lines[at].begins_at_s <= one.at_s:
            by_line[lines[at].line_id][one.tenant_id] += one.weight
            tokens[one.tenant_id] += one.tokens
        else:
            missed += one.tokens
    return by_line, tokens, missed


def _share(line: EnergyLine, weights: Mapping[TenantId, int], idle_w: int) -> list[TenantLine]:
    worked = sum(weights.values())
    idle_wh = min(line.energy_wh, idle_w * (line.ends_at_s - line.begins_at_s) // 3600)
    parts: dict[TenantId, int] = {OPERATOR: 1}
    if worked and line.energy_wh:
        # Whole numbers in the proportion idle : rest, the rest by weights.
        parts = {name: weight * (line.energy_wh - idle_wh) for name, weight in weights.items() if weight}
        parts[OPERATOR] = parts.get(OPERATOR, 0) + idle_wh * worked
    elif worked:
        parts = {name: weight for name, weight in weights.items() if weight}
    energy = divide(line.energy_wh, parts)
    charge = divide(line.charge_micro_won, parts)
    adders = divide(line.adders_micro_won or 0, parts)
    return [
        TenantLine(
            tenant_id=name,
            line_id=line.line_id,
            energy_wh=energy[name],
            charge_micro_won=charge[name],
            adders_micro_won=adders[name],
            weight=weights.get(name, 0),
            weight_all=worked,
        )
        for name in sorted(parts)
        if parts[name]
    ]


def _finish(
    metered: Metered, shares: list[TenantLine], tokens: Mapping[TenantId, int], base_micro_won: int | None
) -> EnergyBill:
    sums: dict[TenantId, int] = defaultdict(int)
    energy: dict[TenantId, int] = defaultdict(int)
    for one in shares:
        sums[one.tenant_id] += one.charge_micro_won + one.adders_micro_won
        energy[one.tenant_id] += one.energy_wh
    total = sum(sums.values())
    net_won = (total + MICRO_WON_PER_WON // 2) // MICRO_WON_PER_WON
    won = divide(net_won, sums) if total else {}
    tenants = tuple(
        TenantEnergy(
            tenant_id=name,
            energy_wh=energy[name],
            sum_micro_won=sums[name],
            net_won=won.get(name, 0),
            tokens=tokens.get(name, 0),
            micro_won_per_million_tokens=_per_million(sums[name], tokens.get(name, 0)),
            wh_per_million_tokens=_per_million(energy[name], tokens.get(name, 0)),
        )
        for name in sorted({*sums, *tokens})
    )
    return EnergyBill(
        metered=metered,
        base_micro_won=base_micro_won,
        shares=tuple(shares),
        tenants=tenants,
        energy_wh=metered.energy_wh,
        sum_micro_won=total,
        net_won=net_won,
        tokens_unpriced=0,
        unknown=(),
    )


def _per_million(amount: int, tokens: int) -> int | None:
    """Return an amount for a million tokens, rounded half up."""
    return None if tokens <= 0 else (amount * 1_000_000 + tokens // 2) // tokens


def _unknown(metered: Metered, base_micro_won: int | None, base_reason: str) -> tuple[str, ...]:
    found = [_gap_words(gap) for gap in metered.gaps]
    days = sorted({kst_day(line.begins_at_s) for line in metered.lines if line.adders_micro_won is None})
    if days:
        found.append(f"adders are not known for {len(days)} days from {days[0]} to {days[-1]}")
    if base_micro_won is None:
        found.append(f"the base charge is not known: {base_reason or 'it was not given'}")
    return tuple(found)


def _gap_words(gap: GapLine) -> str:
    energy = "energy not known" if gap.energy_wh is None else f"{gap.energy_wh} Wh not priced"
    return f"{gap.begin} to {gap.end}: {energy}: {gap.reason}"


def base_charge_micro_won(book: TariffBook, tariff: str, month: str, demand_w: int) -> tuple[int | None, str]:
    """Return the base charge of a Korean month, or None and why.

    Demand is billed in whole kW, begun ones not counted; a table that changes within the month counts by days.
    """
    starts_at_s, ends_at_s = month_span_s(month)
    first, after = date.fromisoformat(kst_day(starts_at_s)), date.fromisoformat(kst_day(ends_at_s))
    days = (after - first).days
    kw, total = demand_w // 1000, 0
    for number in range(days):
        day = first + timedelta(days=number)
        table = book.find(tariff, day)
        if table is None or not table.base_won_per_kw:
            return None, f"no base price of {tariff} for {day}"
        total += kw * parse_micro_won(table.base_won_per_kw)
    return (total + days // 2) // days, ""


def trace(bill: EnergyBill, tenant_id: TenantId | str) -> tuple[TraceRow, ...]:
    """Return where every micro-won of a tenant comes from; the rows' charges add up to its sum."""
    lines = {line.line_id: line for line in bill.metered.lines}
    return tuple(_trace_row(one, lines.get(one.line_id), bill) for one in bill.shares if one.tenant_id == tenant_id)


def _trace_row(one: TenantLine, line: EnergyLine | None, bill: EnergyBill) -> TraceRow:
    return TraceRow(
        line_id=one.line_id,
        begin_id=line.begin.reading_id if line else "",
        end_id=line.end.reading_id if line else "",
        begin_wh=line.begin.energy_wh if line else 0,
        end_wh=line.end.energy_wh if line else 0,
        tariff=line.price.tariff if line else "",
        band=(line.price.band or "") if line else BASE_LINE,
        micro_won_per_kwh=(line.price.micro_won_per_kwh or 0) if line else 0,
        line_wh=line.energy_wh if line else 0,
        line_micro_won=line.charge_micro_won + (line.adders_micro_won or 0) if line else bill.base_micro_won or 0,
        weight=one.weight,
        weight_all=one.weight_all,
        energy_wh=one.energy_wh,
        charge_micro_won=one.charge_micro_won + one.adders_micro_won,
    )
