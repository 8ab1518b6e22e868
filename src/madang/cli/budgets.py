"""What a tenant may spend and owes: `madang tenant budget`, `madang tenant invoice`, and the options of budgets.

Owns nothing; calls the hub's API, or a site's for what it holds itself. Money is shown in won, exactly.
"""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from madang.cli.access import Access, SiteOption, command, rows_of
from madang.cli.terminal import Row, field, print_json, print_table, say

BudgetDay = Annotated[
    str | None,
    typer.Option("--budget-day", metavar="WON", help="What may be spent in a Korean day, net of VAT; none clears it."),
]
BudgetMonth = Annotated[
    str | None,
    typer.Option("--budget-month", metavar="WON", help="What may be spent in a Korean month, net of VAT, or none."),
]
Name = Annotated[str, typer.Argument(metavar="TENANT", help="The tenant's name.")]


def change_budget(body: dict[str, Any], day: str | None, month: str | None) -> None:
    """Put budgets that were named into the fact that is sent; the others stay."""
    from madang.cli.values import parse_won_or_none

    named = {"day_micro_won": day, "month_micro_won": month}
    changes = {name: parse_won_or_none(text) for name, text in named.items() if text is not None}
    if changes:
        body["budget"] = {**(body.get("budget") or {}), **changes}


def render_budget(period: str) -> Callable[[Row], object]:
    """Return a getter of a fact's budget for a day or a month, in won."""
    from madang.cli.values import render_won

    return lambda row: render_won((row.get("budget") or {}).get(f"{period}_micro_won"))


def won(name: str) -> Callable[[Row], object]:
    """Return a getter of an amount of micro-won, as won."""
    from madang.cli.values import render_won

    return lambda row: render_won(row.get(name))


def add_budget_commands(group: typer.Typer) -> None:
    """Add the commands to `madang tenant`."""
    command(group, "budget")(_show_budget)
    command(group, "invoice")(_show_invoice)


def _show_budget(access: Access, name: Name, site: SiteOption = None) -> None:
    """Show what of its budgets and its projects' is spent and left in the present periods, and where it is leased."""
    if site is not None:
        _show_site_budget(access, name, site)
        return
    with access.hub() as hub:
        found = hub.get(f"/api/v1/tenants/{name}/budgets")
    if access.is_json:
        print_json(found)
        return
    print_table(
        f"budgets of {name} / 예산 (won 원)",
        (
            ("ACCOUNT 계정", _account),
            ("PERIOD 기간", field("label")),
            ("BUDGET 예산", won("budget_micro_won")),
            ("SPENT 사용", won("spent_micro_won")),
            ("LEFT 잔액", _left),
            ("LEASED 현장 보유", won("outstanding_micro_won")),
            ("MAY EXCEED BY 최대 초과", won("overshoot_max_micro_won")),
            ("SITES 사이트", _sites),
        ),
        found["budgets"],
    )


def _show_site_budget(access: Access, name: str, site: str) -> None:
    with access.hub_or_site(site) as api:
        found = api.get("/api/v1/budgets")
        projects = rows_of(api.get("/api/v1/projects"), "projects")
    accounts = {("tenant", name), *(("project", row["project_id"]) for row in projects if row["tenant_id"] == name)}
    rows = [row for row in found["budgets"] if (row["scope"], row["account"]) in accounts]
    if access.is_json:
        print_json({**found, "tenant_id": name, "budgets": rows})
        return
    print_table(
        f"budgets of {name} at {site} / 사이트 보유 예산 (won 원)",
        (
            ("ACCOUNT 계정", _account),
            ("PERIOD 기간", field("label")),
            ("HELD 보유", won("held_micro_won")),
            ("SPENT 사용", won("spent_micro_won")),
            ("RESERVED 예약", won("reserved_micro_won")),
            ("LEFT HERE 잔액", won("left_micro_won")),
            ("MORE 추가 배정", lambda row: _MORE.get(row["state"], row["state"])),
        ),
        rows,
    )


_MORE = {"more": "may come 가능", "spent": "all is spent 소진", "cut": "hub is away 허브 단절"}


def _account(row: Row) -> str:
    text = row["account"] if row["scope"] == "tenant" else f"project {row['account']}"
    return f"{text} (overdraw 초과 허용)" if row.get("is_overdraw") else text


def _left(row: Row) -> str:
    from madang.cli.values import render_won

    return render_won(max(0, row["budget_micro_won"] - row["spent_micro_won"]))


def _sites(row: Row) -> list[str]:
    from madang.cli.values import render_won

    return [
        f"{one['site']} {render_won(one['granted_micro_won'] - one['spent_micro_won'])}" for one in row.get("sites", ())
    ]


def _show_invoice(
    access: Access,
    name: Name,
    month: Annotated[
        str | None,
        typer.Option("--month", metavar="YYYY-MM", help="A Korean month; the present one by default."),
    ] = None,
) -> None:
    """Show what it owes for a Korean month: by service, class and tariff, and VAT on the sum."""
    from madang.policy.pricing import kst_month
    from madang.runtime.clock import SystemClock

    with access.hub() as hub:
        wanted = month if month is not None else kst_month(SystemClock().wall_s())
        found = hub.get(f"/api/v1/tenants/{name}/invoice", {"month": wanted})
    if access.is_json:
        print_json(found)
        return
    print_table(
        f"invoice of {name}, {found['month']} / 청구서",
        (
            ("SERVICE 서비스", field("service")),
            ("CLASS 등급", field("priority")),
            ("TARIFF 요금", field("tariff_id")),
            ("REQUESTS 요청", field("requests")),
            ("TOKENS READ 입력", lambda row: f"{row['prompt_tokens']:,}"),
            ("TOKENS WRITTEN 출력", lambda row: f"{row['completion_tokens']:,}"),
            ("SECONDS 음성", lambda row: f"{row['audio_s']:,}"),
            ("IMAGES 영상", lambda row: f"{row.get('images', 0):,}"),
            ("SAMPLES 표본", lambda row: f"{row.get('samples', 0):,}"),
            ("WON 원", won("charge_micro_won")),
        ),
        found["lines"],
    )
    _say_totals(found)


def _say_totals(found: dict[str, Any]) -> None:
    from madang.cli.values import render_won

    rows = [
        ("sum 합계", render_won(found["sum_micro_won"])),
        ("net 공급가액", f"{found['net_won']:,}"),
        (f"VAT 부가가치세 {found['vat_permille'] / 10:g} %", f"{found['vat_won']:,}"),
        ("total 청구금액", f"{found['total_won']:,}"),
    ]
    if found.get("overdraw_micro_won"):
        rows.insert(1, ("of it overdrawn 초과 사용", render_won(found["overdraw_micro_won"])))
    for what, amount in rows:
        say(f"{what}: {amount} won")
    if not found["is_final"]:
        say("the month is not over: this will change / 아직 확정되지 않았습니다")
