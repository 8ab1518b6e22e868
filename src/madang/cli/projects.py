"""`madang project …`: parts of a tenant with budgets of their own. Owns nothing; calls the hub's API."""

from typing import Annotated, Any

import typer

from madang.cli.access import Access, command, rows_of
from madang.cli.budgets import BudgetDay, BudgetMonth, change_budget, render_budget
from madang.cli.terminal import field, print_json, print_table, say

Name = Annotated[str, typer.Argument(metavar="PROJECT", help="The project's name.")]
Title = Annotated[str | None, typer.Option("--title", help="What people call it.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        no_args_is_help=True, help="Parts of a tenant, with keys and budgets of their own.", rich_markup_mode=None
    )
    app.add_typer(group, name="project")
    command(group, "create")(_create_project)
    command(group, "list")(_list_projects)
    command(group, "update")(_update_project)
    command(group, "delete")(_delete_project)


def _create_project(
    access: Access,
    name: Name,
    tenant: Annotated[str, typer.Option("--tenant", metavar="TENANT", help="Whose project it is.")],
    title: Title = None,
    budget_day: BudgetDay = None,
    budget_month: BudgetMonth = None,
) -> None:
    """Create a project."""
    body: dict[str, Any] = {"project_id": name, "tenant_id": tenant, "title": title or name}
    change_budget(body, budget_day, budget_month)
    with access.hub() as hub:
        made = hub.call("POST", "/api/v1/projects", body)
    if access.is_json:
        print_json(made)
    else:
        say(f"project {name} created; give it a key with: madang key create --tenant {tenant} --project {name}")


def _list_projects(
    access: Access, tenant: Annotated[str | None, typer.Option("--tenant", help="Only this tenant's.")] = None
) -> None:
    """List projects."""
    with access.hub() as hub:
        rows = rows_of(hub.get("/api/v1/projects", {"tenant": tenant}), "projects")
    if access.is_json:
        print_json({"projects": rows})
        return
    print_table(
        "projects",
        (
            ("PROJECT 프로젝트", field("project_id")),
            ("TENANT 테넌트", field("tenant_id")),
            ("TITLE 이름", field("title")),
            ("WON A DAY 일 예산", render_budget("day")),
            ("WON A MONTH 월 예산", render_budget("month")),
        ),
        rows,
    )


def _update_project(
    access: Access, name: Name, title: Title = None, budget_day: BudgetDay = None, budget_month: BudgetMonth = None
) -> None:
    """Change what is named; the rest stays."""
    with access.hub() as hub:
        body = dict(hub.get(f"/api/v1/projects/{name}"))
        if title is not None:
            body["title"] = title
        change_budget(body, budget_day, budget_month)
        changed = hub.call("PUT", f"/api/v1/projects/{name}", body)
    if access.is_json:
        print_json(changed)
    else:
        say(f"project {name} changed")


def _delete_project(access: Access, name: Name) -> None:
    """Delete a project; what it used stays in the ledger."""
    with access.hub() as hub:
        hub.call("DELETE", f"/api/v1/projects/{name}")
    say(f"project {name} deleted")
