"""`madang access-log …`: who asked a site for what, when and from where. Owns nothing; asks the site's own admin API.

`verify --dir` reads a copy of a site's access folder instead, with the federation's public keys, anywhere.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from madang.cli.access import Access, command
from madang.cli.terminal import field, print_json, print_table, say
from madang.core import Rejected

if TYPE_CHECKING:
    from madang.runtime.admin_client import AdminClient

_STEPS_MAX = 100_000
Site = Annotated[str, typer.Option("--site", metavar="SITE", help="Whose records; its own admin API is asked.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        no_args_is_help=True,
        help="Who asked a site for what, when and from where; never what was said.",
        rich_markup_mode=None,
    )
    app.add_typer(group, name="access-log")
    command(group, "list")(_list)
    command(group, "verify")(_verify)


def _list(
    access: Access,
    site: Site,
    since: Annotated[str | None, typer.Option("--since", help="A duration such as 24h, or a date.")] = None,
    until: Annotated[str | None, typer.Option("--until", help="A duration ago, or a date.")] = None,
    tenant: Annotated[str | None, typer.Option("--tenant", help="Only this tenant's.")] = None,
    key: Annotated[str | None, typer.Option("--key-id", help="Only with this key.")] = None,
    address: Annotated[str | None, typer.Option("--address", help="Only from this address.")] = None,
    request: Annotated[str | None, typer.Option("--request", help="Only this request id.")] = None,
    status: Annotated[int | None, typer.Option("--status", help="Only answers with this status.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1_000_000, help="The newest so many.")] = 100,
) -> None:
    """List access records, newest first; that you looked is written into the site's audit log."""
    wanted = {
        "since_s": _past_s(since),
        "until_s": _past_s(until),
        "tenant": tenant,
        "key": key,
        "address": address,
        "request": request,
        "status": status,
    }
    with access.site(site) as api:
        rows, unreadable = _read(api, wanted, limit)
    if access.is_json:
        print_json({"site": site, "records": rows, "unreadable": unreadable})
    else:
        _print(site, rows)
    if unreadable:
        raise Rejected(
            f"{len(unreadable)} segments could not be read: {unreadable[0]}",
            next_step=f"see what else is wrong: madang access-log verify --site {site}",
        )


def _read(api: "AdminClient", wanted: dict[str, Any], limit: int) -> tuple[list[dict[str, Any]], list[str]]:
    rows: list[dict[str, Any]] = []
    unreadable: list[str] = []
    before: int | None = None
    for _ in range(_STEPS_MAX):
        page = min(1000, limit - len(rows))
        found = api.get("/api/v1/access-log", {**wanted, "limit": page, "before": before})
        rows += found["records"]
        unreadable += found["unreadable"]
        before = found["before"]
        if before is None or len(rows) >= limit:
            break
    rows.sort(key=lambda row: row["at_ms"], reverse=True)
    return rows[:limit], unreadable


def _print(site: str, rows: list[dict[str, Any]]) -> None:
    from madang.cli.values import render_instant

    print_table(
        f"access records of {site}",
        (
            ("WHEN", lambda row: render_instant(row["at_ms"] / 1000)),
            ("TENANT", field("tenant_id")),
            ("KEY", field("key_id")),
            ("FROM", field("address")),
            ("ASKED FOR", field("endpoint")),
            ("SERVICE", field("service")),
            ("STATUS", field("status")),
            ("TIMES", field("count")),
            ("REQUEST", field("request_id")),
        ),
        rows,
    )


def _past_s(text: str | None) -> float | None:
    from madang.cli.values import parse_instant_s
    from madang.runtime.clock import SystemClock

    return None if text is None else parse_instant_s(text, SystemClock().wall_s(), is_past=True)


def _verify(
    access: Access,
    site: Site,
    folder: Annotated[
        Path | None, typer.Option("--dir", help="A copy of the site's access folder, instead of asking it.")
    ] = None,
    keys: Annotated[
        Path | None, typer.Option("--keys", help="With --dir: public keys, from `madang receipt keys`.")
    ] = None,
) -> None:
    """Verify that no access record was changed, added or removed since it was sealed."""
    if (folder is None) is not (keys is None):
        raise typer.BadParameter("--dir and --keys belong together", param_hint="--dir")
    found = _ask(access, site) if folder is None or keys is None else _check_copy(folder, site, keys)
    if access.is_json:
        print_json({"site": site, **found})
    if found["problems"]:
        raise Rejected(
            f"{len(found['problems'])} problems with the access records of {site}: {'; '.join(found['problems'])}",
            next_step=_next_step(site, found),
        )
    if not access.is_json:
        say(
            f"intact: {found['records']} records under {found['checked']} seals of {site}, up to {found['head_sha256']}"
        )


def _next_step(site: str, found: dict[str, Any]) -> str:
    if found["unknown_keys"]:
        return (
            "a site that was enrolled anew has had other keys: export all with madang receipt keys --out FILE, "
            f"then madang access-log verify --site {site} --dir FOLDER --keys FILE"
        )
    return "compare with a copy that was kept elsewhere"


def _ask(access: Access, site: str) -> dict[str, Any]:
    total: dict[str, Any] = {"records": 0, "problems": [], "unknown_keys": []}
    after: int | None = 0
    with access.site(site) as api:
        for _ in range(_STEPS_MAX):
            found = api.get("/api/v1/access-log/verify", {"after": after})
            _add(total, found)
            after = found["following"]
            if after is None:
                break
    return total


def _check_copy(folder: Path, site: str, keys: Path) -> dict[str, Any]:
    import msgspec

    from madang.runtime.signing import is_signed_by
    from madang.site.access_query import verify_records
    from madang.wire.receipts import decode_keys

    try:
        known = {one.kid: one for one in decode_keys(keys.read_bytes()).keys if one.site == site}
    except OSError as error:
        raise Rejected(f"{keys} cannot be read: {error.strerror}") from error
    if not folder.is_dir():
        raise Rejected(f"{folder} is no folder")

    def is_signed(kid: str, signature: bytes, message: bytes) -> bool:
        return is_signed_by(bytes.fromhex(known[kid].public_key), signature, message)

    total: dict[str, Any] = {"records": 0, "problems": [], "unknown_keys": []}
    after: int | None = 0
    while after is not None:
        found = verify_records(folder, site, is_signed, set(known), after)
        _add(total, msgspec.to_builtins(found))
        after = found.following
    return total


def _add(total: dict[str, Any], found: dict[str, Any]) -> None:
    total["records"] += found["records"]
    total["problems"] += found["problems"]
    total["unknown_keys"] = sorted({*total["unknown_keys"], *found["unknown_keys"]})
    total["checked"], total["head_sha256"] = found["checked"], found["head_sha256"]
