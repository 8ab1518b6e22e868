"""`madang tenant …` and `madang key …`: who may use the federation. Owns nothing; calls the hub's API."""

from typing import Annotated, Any

import typer

from madang.cli.access import Access, command, rows_of
from madang.cli.terminal import field, print_json, print_table, render_residency, say

Name = Annotated[str, typer.Argument(metavar="TENANT", help="The tenant's name.")]
KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", help="The key's public name; madang key list shows it.")]
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


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="Customers, and where their data may go.", rich_markup_mode=None)
    app.add_typer(group, name="tenant")
    command(group, "create")(_create_tenant)
    command(group, "list")(_list_tenants)
    command(group, "show")(_show_tenant)
    command(group, "update")(_update_tenant)
    command(group, "delete")(_delete_tenant)
    keys = typer.Typer(no_args_is_help=True, help="API keys of tenants.", rich_markup_mode=None)
    app.add_typer(keys, name="key")
    command(keys, "create")(_create_key)
    command(keys, "list")(_list_keys)
    command(keys, "revoke")(_revoke_key)
    command(keys, "expire")(_expire_key)
    command(keys, "demo")(_show_demo_key)


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
    with access.hub() as hub:
        made = hub.call("POST", "/api/v1/tenants", body)
    if access.is_json:
        print_json(made)
    else:
        say(f"tenant {name} created; give it a key with: madang key create --tenant {name}")


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


def _create_key(
    access: Access,
    name: Annotated[str, typer.Option("--tenant", metavar="TENANT", help="Whose key it is.")],
    key_id: Annotated[str | None, typer.Option("--key-id", help="Its public name; made up when absent.")] = None,
    expires: Annotated[
        str | None, typer.Option("--expires", help="When it ends: a duration such as 90d, or a date.")
    ] = None,
) -> None:
    """Create a key; it is shown this once."""
    body: dict[str, Any] = {"tenant_id": name}
    if key_id is not None:
        body["key_id"] = key_id
    if expires is not None:
        body["expires_at_s"] = _instant_s(expires)
    with access.hub() as hub:
        made = hub.call("POST", "/api/v1/keys", body)
    if access.is_json:
        print_json(made)
    else:
        say(made["api_key"])


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
            ("EXPIRES", lambda row: render_instant(row.get("expires_at_s"))),
            ("STATE", lambda row: "revoked" if row.get("is_revoked") else "ok"),
        ),
        rows,
    )


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
