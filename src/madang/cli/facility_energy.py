"""`madang facility energy` and `madang facility pue`: what a site's energy cost whom, and how much of it was overhead.

Owns nothing: the hub bills from the readings that sites sent it, a site knows its own registers.
"""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from madang.cli.access import Access, command
from madang.cli.terminal import Column, Row, field, print_json, print_table, say

Site = Annotated[str, typer.Option("--site", help="The site.", metavar="SITE")]


def register(group: typer.Typer) -> None:
    """Add the commands to `madang facility`."""
    command(group, "energy")(_energy)
    command(group, "pue")(_pue)


def _energy(
    access: Access,
    site: Site,
    month: Annotated[
        str | None, typer.Option("--month", metavar="YYYY-MM", help="A Korean month; the present one by default.")
    ] = None,
    tenant: Annotated[str, typer.Option("--tenant", help="Only this one's; - is the operator's own part.")] = "",
    is_traced: Annotated[
        bool, typer.Option("--trace", help="List each quarter of an hour's register readings and the tenant's share.")
    ] = False,
    by: Annotated[str, typer.Option("--by", help="What work weighs: time on an engine, or tokens.")] = "time",
    kind: Annotated[
        str, typer.Option("--kind", help="real or simulated, where a site has both: they are never billed together.")
    ] = "",
) -> None:
    """What a month's energy cost by band and for whom, traced to readings of the billed register; from the hub."""
    from madang.policy.pricing import kst_month
    from madang.runtime.clock import SystemClock

    if is_traced and not tenant:
        raise typer.BadParameter("a trace is of one tenant: name it with --tenant", param_hint="--trace")
    wanted = month if month is not None else kst_month(SystemClock().wall_s())
    query = {"month": wanted, "by": by, "kind": kind, "tenant": tenant, "trace": str(is_traced).lower()}
    with access.hub() as hub:
        found = hub.get(f"/api/v1/sites/{site}/energy", query)
    if access.is_json:
        print_json(found)
        return
    mark = "SIMULATED meter, no invoice / 모의 계량기, 청구서 아님" if found["is_simulated"] else "real meter / 실계량"
    state = "final / 확정" if found["is_final"] else "not final / 미확정"
    say(f"{found['site']} {found['month']}: {mark}; {state}; {found['meter']}, {found['tariff']}")
    say(
        f"register read in {found['quarters_read']} of {found['quarters']} quarter hours / "
        f"15분 구간 {found['quarters']} 중 {found['quarters_read']} 검침"
    )
    _print_bands(found)
    _print_tenants(found)
    _print_unknown(found)
    if is_traced:
        _print_trace(found)
    _print_check(found)


def _won(name: str) -> Callable[[Row], object]:
    from madang.cli.values import render_won

    return lambda row: render_won(row.get(name))


def _kwh(name: str) -> Callable[[Row], object]:
    return lambda row: "-" if row.get(name) is None else f"{row[name] // 1000:,}.{row[name] % 1000:03d}"


def _print_bands(found: dict[str, Any]) -> None:
    from madang.cli.values import render_won

    columns: tuple[Column, ...] = (
        ("TABLE 요금표", field("tariff")),
        ("BAND 시간대", field("band")),
        ("WON/kWh 단가", _won("micro_won_per_kwh")),
        ("kWh 전력량", _kwh("energy_wh")),
        ("WON 전력량요금", _won("charge_micro_won")),
        ("ADDERS WON 부가 단가", _won("adders_micro_won")),
    )
    print_table("energy by band / 시간대별 전력량", columns, found["bands"])
    base = found["base_micro_won"]
    words = "not known / 알 수 없음" if base is None else f"{render_won(base)} won"
    say(f"base charge for {found['demand_w'] / 1000:.1f} kW / 기본요금: {words}")


def _print_tenants(found: dict[str, Any]) -> None:
    columns: tuple[Column, ...] = (
        ("TENANT 테넌트", lambda row: "(operator 운영자)" if row["is_operator"] else row["tenant_id"]),
        ("kWh 전력량", _kwh("energy_wh")),
        ("WON, EXACT 정확한 원", _won("sum_micro_won")),
        ("WON 원", lambda row: f"{row['net_won']:,}"),
        ("TOKENS 토큰", lambda row: f"{row['tokens']:,}"),
        ("WON/MILLION TOKENS 백만 토큰당 원", _won("micro_won_per_million_tokens")),
        ("Wh/MILLION TOKENS", field("wh_per_million_tokens")),
    )
    print_table("who bears it, without VAT / 부담 (부가세 별도)", columns, found["tenants"])


def _print_unknown(found: dict[str, Any]) -> None:
    columns: tuple[Column, ...] = (
        ("FROM 시작", field("begin_id")),
        ("TO 끝", field("end_id")),
        ("kWh 전력량", _kwh("energy_wh")),
        ("AT LEAST WON 최소", _won("low_micro_won")),
        ("AT MOST WON 최대", _won("high_micro_won")),
        ("WHY 사유", field("reason")),
    )
    if found["gaps"]:
        print_table("not priced / 요금 미산정", columns, found["gaps"])
    for text in found["unknown"]:
        say(f"not known / 알 수 없음: {text}")


def _print_trace(found: dict[str, Any]) -> None:
    rows = found["trace"]
    columns: tuple[Column, ...] = (
        ("BEGIN 시작 검침", field("begin_id")),
        ("Wh", field("begin_wh")),
        ("END 끝 검침", field("end_id")),
        ("Wh", field("end_wh")),
        ("BAND 시간대", field("band")),
        ("WON/kWh 단가", _won("micro_won_per_kwh")),
        ("ALL Wh 전체", field("line_wh")),
        ("ALL WON 전체", _won("line_micro_won")),
        ("WORK 작업량", lambda row: f"{row['weight']}/{row['weight_all']}"),
        ("SHARE Wh 몫", field("energy_wh")),
        ("SHARE WON 몫", _won("charge_micro_won")),
    )
    print_table("trace / 근거", columns, rows)
    from madang.cli.values import render_won

    say(f"trace adds up to / 근거 합계: {render_won(sum(row['charge_micro_won'] for row in rows))} won")


def _print_check(found: dict[str, Any]) -> None:
    from madang.cli.values import render_won

    check = found["check"]
    say(
        f"charged {render_won(check['charged_micro_won'])} won = borne {render_won(check['borne_micro_won'])} won, "
        f"difference {check['difference_micro_won']} micro-won / 청구 합계와 부담 합계의 차이 "
        f"{check['difference_micro_won']} 마이크로원"
    )


def _pue(
    access: Access,
    site: Site,
    since: Annotated[str, typer.Option("--since", help="A duration such as 24h, or a date.")] = "24h",
    until: Annotated[str | None, typer.Option("--until", help="A duration ago, or a date; now when absent.")] = None,
) -> None:
    """PUE over an interval, energy over energy, by category; from the registers that the site wrote down."""
    from madang.cli.values import parse_instant_s, render_instant
    from madang.runtime.clock import SystemClock

    now_s = SystemClock().wall_s()
    query = {"since_s": parse_instant_s(since, now_s, is_past=True)}
    if until is not None:
        query["until_s"] = parse_instant_s(until, now_s, is_past=True)
    with access.site(site) as api:
        found = api.get("/api/v1/facility/pue", query)
    if access.is_json:
        print_json(found)
        return
    span = f"{render_instant(found['begins_at_s'])} to {render_instant(found['ends_at_s'])}"
    print_table(
        f"interim PUE of {found['site']}, {span} / 구간 PUE",
        (
            ("CATEGORY 등급", field("category")),
            ("PUE", lambda row: _number(row["pue"]["value"], 3)),
            ("ALL kWh 전체", lambda row: _number(row["facility_wh"]["value"], 3, 1000)),
            ("IT kWh", lambda row: _number(row["it_wh"]["value"], 3, 1000)),
            ("COVERAGE 측정 비율", lambda row: f"{row['coverage']:.1%}"),
            ("QUALITY 품질", lambda row: row["pue"]["quality"]),
            ("SIMULATED 모의", field("is_simulated")),
            ("WHY 사유", lambda row: row["pue"]["reason"]),
        ),
        found["pue"],
    )


def _number(value: float | None, places: int, divisor: float = 1.0) -> str:
    return "-" if value is None else f"{value / divisor:,.{places}f}"
