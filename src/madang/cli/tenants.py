"""`madang tenant …`: who may use the federation, where, and for how much. Owns nothing; calls the hub's API."""

from typing import Annotated, Any

import typer

from madang.cli.access import Access, command, rows_of
from madang.cli.budgets import BudgetDay, BudgetMonth, add_budget_commands, change_budget, render_budget
from madang.cli.terminal import field, print_json, print_table, render_residency, say

Name = Annotated[str, typer.Argument(metavar="TENANT", help="The tenant's name.")]
ResidencyText = Annotated[
    str | None,
    typer.Option(
        "--residency",
        metavar="SCOPE:PLACES",
        help="Where its data may be: site:NAME, sites:A,B, region:NAME, nation:CODE or any.",
    ),
]
Title = Annotated[str | None, typer.Option("--title", help="What people call it.")]
Class = Annotated[str | None, typer.Option("--data-class", help="open, sensitive or classified.")]
Transit = Annotated[
    bool | None,
    typer.Option("--transit/--no-transit", help="May pass, unread, through a site that may not serve it."),
]

Redirect = Annotated[
    bool | None,
    typer.Option("--redirect/--no-redirect", help="An entry answers 307 with its nearest legal site; see the manual."),
]
Priority = Annotated[
    str | None, typer.Option("--priority", help="The highest class of its keys: clinical, interactive or batch.")
]
Overdraw = Annotated[
    str | None,
    typer.Option(
        "--overdraw", metavar="WON", help="What class clinical may spend beyond each budget, or none; flagged in usage."
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="Customers, and where their data may go.", rich_markup_mode=None)
    app.add_typer(group, name="tenant")
    command(group, "create")(_create_tenant)
    command(group, "list")(_list_tenants)
    command(group, "show")(_show_tenant)
    command(group, "update")(_update_tenant)
    command(group, "delete")(_delete_tenant)
    add_budget_commands(group)


def _create_tenant(
    access: Access,
    name: Name,
    residency: Annotated[
        str,
        typer.Option(
            "--residency",
            metavar="SCOPE:PLACES",
            help="Where its data may be: site:NAME, sites:A,B, region:NAME, nation:CODE or any.",
        ),
    ],
    title: Title = None,
    data_class: Class = None,
    is_transit: Transit = None,
    is_redirect: Redirect = None,
    budget_day: BudgetDay = None,
    budget_month: BudgetMonth = None,
    priority: Priority = None,
    overdraw: Overdraw = None,
) -> None:
    """Create a tenant."""
    from madang.cli.values import parse_residency

    body: dict[str, Any] = {
        "tenant_id": name,
        "title": title or name,
        "residency": parse_residency(residency, is_transit_granted=bool(is_transit)),
    }
    if data_class is not None:
        body["data_class"] = data_class
    if is_redirect is not None:
        body["is_redirect_wanted"] = is_redirect
    change_budget(body, budget_day, budget_month)
    _change_class(body, priority, overdraw)
    with access.hub() as hub:
        made = hub.call("POST", "/api/v1/tenants", body)
    if access.is_json:
        print_json(made)
    else:
        say(f"tenant {name} created; give it a key with: madang key create --tenant {name}")


def _change_class(body: dict[str, Any], priority: str | None, overdraw: str | None) -> None:
    from madang.cli.values import parse_won_or_none

    if priority is not None:
        body["priority"] = priority
    if overdraw is not None:
        body["overdraw_micro_won"] = parse_won_or_none(overdraw) or 0


def _list_tenants(access: Access) -> None:
    """List tenants."""
    with access.hub() as hub:
        rows = rows_of(hub.get("/api/v1/tenants"), "tenants")
    if access.is_json:
        print_json({"tenants": rows})
        return
    print_table(
        "tenants",
        (
            ("TENANT", field("tenant_id")),
            ("TITLE", field("title")),
            ("RESIDENCY", lambda row: render_residency(row.get("residency"))),
            ("DATA", field("data_class")),
            ("PRIORITY 등급", field("priority")),
            ("WON A DAY 일 예산", render_budget("day")),
            ("WON A MONTH 월 예산", render_budget("month")),
        ),
        rows,
    )


def _show_tenant(access: Access, name: Name) -> None:
    """Show one tenant."""
    with access.hub() as hub:
        print_json(hub.get(f"/api/v1/tenants/{name}"))


def _update_tenant(
    access: Access,
    name: Name,
    residency: ResidencyText = None,
    title: Title = None,
    data_class: Class = None,
    is_transit: Transit = None,
    is_redirect: Redirect = None,
    budget_day: BudgetDay = None,
    budget_month: BudgetMonth = None,
    priority: Priority = None,
    overdraw: Overdraw = None,
) -> None:
    """Change what is named; the rest stays."""
    from madang.cli.values import parse_residency

    with access.hub() as hub:
        body = dict(hub.get(f"/api/v1/tenants/{name}"))
        if residency is not None:
            granted = body["residency"].get("is_transit_granted", False) if is_transit is None else is_transit
            body["residency"] = parse_residency(residency, is_transit_granted=granted)
        elif is_transit is not None:
            body["residency"] = {**body["residency"], "is_transit_granted": is_transit}
        changes = {"title": title, "data_class": data_class, "is_redirect_wanted": is_redirect}
        body |= {key: value for key, value in changes.items() if value is not None}
        change_budget(body, budget_day, budget_month)
        _change_class(body, priority, overdraw)
        changed = hub.call("PUT", f"/api/v1/tenants/{name}", body)
    if access.is_json:
        print_json(changed)
    else:
        say(f"tenant {name} changed")


def _delete_tenant(access: Access, name: Name) -> None:
    """Delete a tenant; its keys open nothing any more, its usage stays in the ledger."""
    with access.hub() as hub:
        hub.call("DELETE", f"/api/v1/tenants/{name}")
    say(f"tenant {name} deleted")
