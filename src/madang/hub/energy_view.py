"""What a site's energy cost in a month and who bears it, from the readings it sent and the ledger.

Owns the reading of both and the shape that people see. Refuses to price and to divide
(`madang.policy.facility.site_month` does) and to ask the site: what is shown holds with the site cut off. Called by
the admin API, off the event loop: a month is some 3000 lines for each tenant.
"""

from collections.abc import Callable, Collection, Iterable
from datetime import date
from typing import Any, Literal

import msgspec
import sqlalchemy as sa

from madang.core import Rejected, TenantId
from madang.hub.enrolment import read_site
from madang.hub.ledger import whole
from madang.hub.meter_rows import read_stored, read_terms
from madang.hub.tables import LEDGER
from madang.policy.facility.energy_money import OPERATOR, EnergyBill, Work, trace
from madang.policy.facility.site_month import QUARTER_S, SiteMonth, StoredReading, Terms, site_month
from madang.policy.pricing import month_span_s

By = Literal["time", "tokens"]
Kind = Literal["", "real", "simulated"]
_YEAR_S = 366 * 86_400


class EnergyQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked.

    Attributes:
        by: what work weighs: time on an engine, which every model has, or tokens.
        kind: of readings; empty: whichever there are, refused where both are.
        tenant: only this one's row; empty: everybody's. `-` is the operator.
        is_traced: with where each part comes from.
    """

    site: str
    month: str
    by: By = "time"
    kind: Kind = ""
    tenant: str = ""
    is_traced: bool = False


class EnergyFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the database holds for a question."""

    readings: list[StoredReading]
    terms: list[Terms]
    work: list[Work]


def read_energy(connection: sa.Connection, question: EnergyQuestion) -> EnergyFacts:
    """Return what a bill rests on.

    Raises:
        NotFound: there is no such site.
        Rejected: the month is none.
    """
    starts_at_s, ends_at_s = (int(at_s) for at_s in month_span_s(question.month))
    terms = read_terms(connection, question.site)
    if not terms:
        # A revoked site that has sent readings may still be billed.
        read_site(connection, question.site)
    points = {one.contract.meter for one in terms}
    readings = read_stored(connection, question.site, points, (starts_at_s - _YEAR_S, ends_at_s))
    if question.kind:
        readings = [one for one in readings if one.is_simulated is (question.kind == "simulated")]
    work = _read_work(connection, question, starts_at_s, ends_at_s)
    return EnergyFacts(readings=readings, terms=terms, work=work)


def _read_work(connection: sa.Connection, question: EnergyQuestion, starts_at_s: int, ends_at_s: int) -> list[Work]:
    """Return work of billed attempts that the site served, by tenant and the quarter of an hour in which it began."""
    at_s = (whole(connection, LEDGER.c.started_at_s / QUARTER_S) * QUARTER_S).label("at_s")
    tokens = sa.func.sum(LEDGER.c.prompt_tokens + LEDGER.c.completion_tokens)
    time_ms = sa.func.sum(whole(connection, LEDGER.c.duration_s * 1000))
    query = (
        sa.select(LEDGER.c.tenant_id, at_s, tokens.label("tokens"), time_ms.label("time_ms"))
        .where(
            LEDGER.c.site == question.site,
            LEDGER.c.started_at_s >= starts_at_s,
            LEDGER.c.started_at_s < ends_at_s,
            LEDGER.c.is_superseded.is_(False),
        )
        .group_by(LEDGER.c.tenant_id, at_s)
    )
    return [
        Work(
            tenant_id=TenantId(row.tenant_id),
            at_s=float(row.at_s),
            weight=int(row.time_ms if question.by == "time" else row.tokens),
            tokens=int(row.tokens),
        )
        for row in connection.execute(query)
    ]


def show_energy(
    facts: EnergyFacts,
    question: EnergyQuestion,
    find_holidays: Callable[[Iterable[int]], Collection[date]],
    now_s: float,
) -> dict[str, Any]:
    """Return the month as people and programs read it.

    Raises:
        Rejected: nothing was read, or simulated and real readings are there and no kind was asked for.
    """
    year = int(question.month[:4])
    holidays = find_holidays((year - 1, year, year + 1))
    found = site_month(facts.readings, facts.terms, facts.work, question.month, holidays, now_s)
    bill = found.bill
    ends_at_s = month_span_s(question.month)[1]
    shown: dict[str, Any] = {
        "site": question.site,
        "month": found.month,
        "is_simulated": found.is_simulated,
        "is_final": now_s >= ends_at_s and found.quarters == found.quarters_read,
        "by": question.by,
        "meter": found.contract.meter,
        "tariff": found.contract.tariff,
        "quarters": found.quarters,
        "quarters_read": found.quarters_read,
        "bands": [msgspec.to_builtins(one) for one in found.bands],
        "demand_w": found.demand_w,
        "base_micro_won": bill.base_micro_won,
        "energy_wh": bill.energy_wh,
        "sum_micro_won": bill.sum_micro_won,
        "net_won": bill.net_won,
        "gaps": [msgspec.to_builtins(one) for one in found.gaps],
        "unknown": list(found.unknown),
        "tokens_unpriced": bill.tokens_unpriced,
        "tenants": [
            {**msgspec.to_builtins(one), "is_operator": one.tenant_id == OPERATOR}
            for one in bill.tenants
            if not question.tenant or one.tenant_id == _name(question)
        ],
        "check": _check(found),
    }
    if question.is_traced:
        shown["trace"] = _trace(bill, question)
    return shown


def _name(question: EnergyQuestion) -> str:
    return OPERATOR if question.tenant == "-" else question.tenant


def _check(found: SiteMonth) -> dict[str, int]:
    """Return both sides of the sum, each added up by itself."""
    bill = found.bill
    charged = sum(one.charge_micro_won + one.adders_micro_won for one in found.bands) + (bill.base_micro_won or 0)
    borne = sum(one.sum_micro_won for one in bill.tenants)
    won = sum(one.net_won for one in bill.tenants)
    return {
        "charged_micro_won": charged,
        "borne_micro_won": borne,
        "difference_micro_won": charged - borne,
        "borne_won": won,
        "difference_won": bill.net_won - won,
        "difference_wh": sum(one.energy_wh for one in found.bands) - sum(one.energy_wh for one in bill.tenants),
    }


def _trace(bill: EnergyBill, question: EnergyQuestion) -> list[dict[str, Any]]:
    if not question.tenant:
        raise Rejected("a trace is of one tenant", next_step="name one; - is the operator")
    return [msgspec.to_builtins(row) for row in trace(bill, _name(question))]
