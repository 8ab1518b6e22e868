"""`madang usage`: what was consumed. Owns nothing; calls the hub's API, or a site's for its own totals."""

from typing import Annotated, Any

import typer

from madang.cli.access import Access, SiteOption, command, rows_of, with_access
from madang.cli.terminal import Row, field, print_json, print_table

_UNIT_COLUMNS = (("AUDIO SECONDS", "audio_s"), ("IMAGES", "images"), ("SAMPLES", "samples"))
"""Shown where anything was counted in them: most federations have no model of some kinds."""
GROUPS = ("tenant", "project", "service", "site", "model", "priority", "day")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        invoke_without_command=True,
        callback=_with_context(),
        help="What was consumed, from the ledger.",
        rich_markup_mode=None,
    )
    app.add_typer(group, name="usage")
    command(group, "events")(_list_events)


def _with_context() -> Any:
    """Return the callback of `madang usage` without a verb; a verb takes over."""
    import inspect

    plain = with_access(_show_usage)
    signature = inspect.signature(plain)

    def run(ctx: typer.Context, **values: Any) -> None:
        if ctx.invoked_subcommand is None:
            plain(**values)

    run.__doc__ = plain.__doc__
    context = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    run.__signature__ = inspect.Signature([context, *signature.parameters.values()])  # type: ignore[attr-defined]
    return run


def _show_usage(
    access: Access,
    tenant: Annotated[str | None, typer.Option("--tenant", help="Only this tenant's.")] = None,
    since: Annotated[str | None, typer.Option("--since", help="A duration such as 24h, or a date.")] = None,
    until: Annotated[str | None, typer.Option("--until", help="A duration ago, or a date.")] = None,
    group_by: Annotated[
        str, typer.Option("--group-by", help=f"One or more of {', '.join(GROUPS)}, comma separated.")
    ] = "tenant,service",
    site: SiteOption = None,
) -> None:
    """What was consumed, from the ledger; `events` lists single requests."""
    from madang.cli.values import render_won

    groups = _check_groups(group_by)
    with access.hub_or_site(site) as api:
        found = api.get(
            "/api/v1/usage",
            {
                "tenant": tenant,
                "since_s": _past_s(since),
                "until_s": _past_s(until),
                "group_by": ",".join(groups),
            },
        )
    # A site answers its own rows alone; only the ledger knows which attempt of a request is billed.
    rows = [{**row, "tenant": row.get("tenant", row.get("tenant_id"))} for row in rows_of(found, "rows")]
    if access.is_json:
        print_json(found if isinstance(found, dict) else {"rows": rows})
        return
    totals = found.get("totals") if isinstance(found, dict) else None
    keys = [name for name in groups if any(row.get(name) is not None for row in rows)]
    if totals and keys and rows:
        rows = [*rows, {**totals, keys[0]: "total"}]
    print_table(
        "usage" if site is None else f"usage at {site}",
        (
            *((name.upper(), field(name)) for name in keys),
            ("REQUESTS", field("requests")),
            ("EVENTS", field("events")),
            ("PROMPT TOKENS", field("prompt_tokens")),
            ("COMPLETION TOKENS", field("completion_tokens")),
            *((title, field(name)) for title, name in _UNIT_COLUMNS if any(row.get(name) for row in rows)),
            ("WON", lambda row: render_won(row.get("charge_micro_won"))),
        ),
        rows,
    )


def _check_groups(text: str) -> list[str]:
    groups = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in groups if name not in GROUPS]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} is unknown: expected {', '.join(GROUPS)}", param_hint="--group-by")
    return groups


def _past_s(text: str | None) -> float | None:
    from madang.cli.values import parse_instant_s
    from madang.runtime.clock import SystemClock

    return None if text is None else parse_instant_s(text, SystemClock().wall_s(), is_past=True)


def _other_units(row: Row) -> list[str]:
    """Return what an event counted beside tokens."""
    counted = (("s of sound", (row.get("audio_ms") or 0) / 1000), ("images", row.get("images")))
    return [f"{value:g} {name}" for name, value in (*counted, ("samples", row.get("samples"))) if value]


def _list_events(
    access: Access,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="The newest so many.")] = 20,
) -> None:
    """List the newest events of the ledger: one for each attempt at a request."""
    from madang.cli.values import render_instant, render_won

    with access.hub() as hub:
        rows = rows_of(hub.get("/api/v1/usage/events", {"limit": limit}), "events")
    if access.is_json:
        print_json({"events": rows})
        return
    print_table(
        "events",
        (
            ("STARTED", lambda row: render_instant(row.get("started_at_s"))),
            ("REQUEST", field("request_id")),
            ("TENANT", field("tenant_id")),
            ("SERVICE", field("service")),
            ("SITE", field("site")),
            ("OUTCOME", field("outcome")),
            ("PROMPT", field("prompt_tokens")),
            ("COMPLETION", field("completion_tokens")),
            ("OTHER", _other_units),
            ("SECONDS", field("duration_s")),
            ("WON", lambda row: render_won(row.get("charge_micro_won"))),
        ),
        rows,
    )
