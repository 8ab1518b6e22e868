"""`madang key …`: API keys of tenants, and what each may do. Owns nothing; calls the hub's API."""

from typing import Annotated, Any

import typer

from madang.cli.access import Access, command, rows_of
from madang.cli.terminal import Row, field, print_json, print_table, say

Name = Annotated[str, typer.Argument(metavar="TENANT", help="The tenant's name.")]
KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", help="The key's public name; madang key list shows it.")]
Project = Annotated[
    str | None,
    typer.Option("--project", metavar="PROJECT", help="Whose budget it uses too; none: the tenant's alone."),
]
Services = Annotated[
    list[str] | None,
    typer.Option("--service", metavar="SERVICE", help="What it may call, once for each; all: whatever its tenant may."),
]
Sites = Annotated[
    list[str] | None,
    typer.Option(
        "--site", metavar="SITE", help="Where it may be used and served, once for each; all: every legal one."
    ),
]
Rpm = Annotated[
    str | None, typer.Option("--rpm", metavar="N", help="Requests a minute at each site, or none for no limit.")
]
Tpm = Annotated[
    str | None, typer.Option("--tpm", metavar="N", help="Tokens a minute at each site, or none for no limit.")
]
Streams = Annotated[
    str | None, typer.Option("--streams", metavar="N", help="Requests at once at each site, or none for no limit.")
]
Priority = Annotated[
    str | None,
    typer.Option("--priority", help="clinical, interactive or batch; never above the tenant's."),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    keys = typer.Typer(no_args_is_help=True, help="API keys of tenants.", rich_markup_mode=None)
    app.add_typer(keys, name="key")
    command(keys, "create")(_create_key)
    command(keys, "list")(_list_keys)
    command(keys, "update")(_update_key)
    command(keys, "revoke")(_revoke_key)
    command(keys, "expire")(_expire_key)
    command(keys, "demo")(_show_demo_key)


def _create_key(
    access: Access,
    name: Annotated[str, typer.Option("--tenant", metavar="TENANT", help="Whose key it is.")],
    key_id: Annotated[str | None, typer.Option("--key-id", help="Its public name; made up when absent.")] = None,
    expires: Annotated[
        str | None, typer.Option("--expires", help="When it ends: a duration such as 90d, or a date.")
    ] = None,
    project: Project = None,
    services: Services = None,
    sites: Sites = None,
    rpm: Rpm = None,
    tpm: Tpm = None,
    streams: Streams = None,
    priority: Priority = None,
) -> None:
    """Create a key; it is shown this once."""
    body: dict[str, Any] = {"tenant_id": name}
    if key_id is not None:
        body["key_id"] = key_id
    if expires is not None:
        body["expires_at_s"] = _instant_s(expires)
    body |= _limits(project, services, sites, priority, rpm=rpm, tpm=tpm, streams=streams)
    with access.hub() as hub:
        made = hub.call("POST", "/api/v1/keys", body)
    if access.is_json:
        print_json(made)
    else:
        say(made["api_key"])


def _limits(
    project: str | None,
    services: list[str] | None,
    sites: list[str] | None,
    priority: str | None,
    **numbers: str | None,
) -> dict[str, Any]:
    """Return the limits that were named, as the API takes them."""
    from madang.cli.values import parse_count_or_none

    limits: dict[str, Any] = {}
    if project is not None:
        limits["project_id"] = "" if project == "none" else project
    for name, values in (("services", services), ("sites", sites)):
        if values:
            limits[name] = [] if values == ["all"] else values
    for name, text in numbers.items():
        if text is not None:
            limits[_NUMBERS[name]] = parse_count_or_none(text)
    if priority is not None:
        limits["priority"] = priority
    return limits


_NUMBERS = {"rpm": "requests_per_minute", "tpm": "tokens_per_minute", "streams": "streams_max"}
_LIMITS = ("project_id", "services", "sites", *_NUMBERS.values(), "priority")


def _update_key(
    access: Access,
    key_id: KeyId,
    project: Project = None,
    services: Services = None,
    sites: Sites = None,
    rpm: Rpm = None,
    tpm: Tpm = None,
    streams: Streams = None,
    priority: Priority = None,
) -> None:
    """Change what is named of what a key may do; the rest stays."""
    changes = _limits(project, services, sites, priority, rpm=rpm, tpm=tpm, streams=streams)
    if not changes:
        raise typer.BadParameter("name at least one limit; see madang key update --help")
    with access.hub() as hub:
        known = hub.get(f"/api/v1/keys/{key_id}")
        body = {name: known[name] for name in _LIMITS if name in known} | changes
        done = hub.call("PUT", f"/api/v1/keys/{key_id}/policy", body)
    if access.is_json:
        print_json(done)
    else:
        say(f"key {key_id} changed; sites that are cut off learn it when they are back")


def _list_keys(
    access: Access, tenant: Annotated[str | None, typer.Option("--tenant", help="Only this tenant's.")] = None
) -> None:
    """List keys, without their secrets."""
    from madang.cli.values import render_instant

    with access.hub() as hub:
        rows = [row for row in rows_of(hub.get("/api/v1/keys"), "keys") if tenant in (None, row["tenant_id"])]
    if access.is_json:
        print_json({"keys": rows})
        return
    print_table(
        "keys",
        (
            ("KEY", field("key_id")),
            ("TENANT", field("tenant_id")),
            ("PROJECT 프로젝트", field("project_id")),
            ("CLASS 등급", field("priority")),
            ("LIMITS 한도", _render_limits),
            ("EXPIRES", lambda row: render_instant(row.get("expires_at_s"))),
            ("STATE", lambda row: "revoked" if row.get("is_revoked") else "ok"),
        ),
        rows,
    )


def _render_limits(row: Row) -> str:
    """Return `60 rpm, 10,000 tpm, 2 streams, only madang-chat, only at daegu`; a dash for none."""
    words = {"requests_per_minute": "rpm", "tokens_per_minute": "tpm", "streams_max": "streams"}
    parts = [f"{row[name]:,} {word}" for name, word in words.items() if row.get(name) is not None]
    if row.get("services"):
        parts.append(f"only {' '.join(row['services'])}")
    if row.get("sites"):
        parts.append(f"only at {' '.join(row['sites'])}")
    return ", ".join(parts)


def _revoke_key(access: Access, key_id: KeyId) -> None:
    """Revoke a key, for good."""
    with access.hub() as hub:
        done = hub.call("POST", f"/api/v1/keys/{key_id}/revoke")
    if access.is_json:
        print_json(done)
    else:
        say(f"key {key_id} revoked; sites that are cut off learn it when they are back")


def _expire_key(
    access: Access,
    key_id: KeyId,
    at: Annotated[str, typer.Option("--at", help="A duration such as 24h, a date, `now` or `never`.")],
) -> None:
    """Set when a key ends."""
    from madang.cli.values import render_instant

    expires_at_s = None if at == "never" else _instant_s("0s" if at == "now" else at)
    with access.hub() as hub:
        done = hub.call("PATCH", f"/api/v1/keys/{key_id}", {"expires_at_s": expires_at_s})
    if access.is_json:
        print_json(done)
    else:
        say(f"key {key_id} expires: {render_instant(expires_at_s)}")


def _show_demo_key(access: Access, name: Name) -> None:
    """Print the key of a demo tenant of the embedded federation, from credentials.json."""
    from madang.core import Rejected

    tenants = access.credentials().tenants
    for tenant in tenants:
        if tenant.name == name:
            print_json(tenant) if access.is_json else say(tenant.api_key)
            return
    raise Rejected(
        f"{name!r} is no demo tenant of this federation",
        next_step=f"choose one of {', '.join(tenant.name for tenant in tenants) or 'none'}; "
        f"or make a key: madang key create --tenant {name}",
    )


def _instant_s(text: str) -> float:
    from madang.cli.values import parse_instant_s
    from madang.runtime.clock import SystemClock

    return parse_instant_s(text, SystemClock().wall_s(), is_past=False)
