"""`madang model …` and `madang service …`: what is offered. Owns nothing; calls the hub's API."""

from pathlib import Path
from typing import Annotated, Any

import typer

from madang.cli.access import Access, SiteOption, command, rows_of
from madang.cli.artifacts import add_commands
from madang.cli.coverage import print_coverage, print_transfers, print_unplaced, read_optional, tell_gaps
from madang.cli.terminal import field, print_json, print_table, render_bytes, say

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="The catalog entry's name.")]
ServiceName = Annotated[str, typer.Argument(metavar="SERVICE", help="The service's name: what tenants call model.")]
File = Annotated[Path, typer.Option("--file", "-f", metavar="FILE", help="TOML or JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    models = typer.Typer(no_args_is_help=True, help="Models in the catalog.", rich_markup_mode=None)
    app.add_typer(models, name="model")
    command(models, "list")(_list_models)
    command(models, "show")(_show_model)
    command(models, "add")(_add_models)
    command(models, "delete")(_delete_model)
    command(models, "import")(_import_file)
    add_commands(models)
    services = typer.Typer(no_args_is_help=True, help="Models that are wanted, under a name.", rich_markup_mode=None)
    app.add_typer(services, name="service")
    command(services, "list")(_list_services)
    command(services, "show")(_show_service)
    command(services, "create")(_create_service)
    command(services, "apply")(_apply_services)
    command(services, "delete")(_delete_service)


def _list_models(access: Access) -> None:
    """List models."""
    with access.hub() as hub:
        rows = rows_of(hub.get("/api/v1/models"), "models")
    if access.is_json:
        print_json({"models": rows})
        return
    print_table(
        "models",
        (
            ("MODEL", field("name")),
            ("TASK", field("task")),
            ("UNIT", _unit_of),
            ("TITLE", field("title")),
            ("SIZE", lambda row: [render_bytes(size) for size in _sizes_bytes(row)]),
            ("ENGINES", lambda row: sorted({artifact["engine"] for artifact in row.get("artifacts", ())})),
            ("CHIPS", lambda row: sorted({kind for one in row.get("artifacts", ()) for kind in one["chip_kinds"]})),
            ("LICENCE", field("licence")),
        ),
        rows,
    )


def _sizes_bytes(model: Any) -> list[int]:
    """Return the sizes of a model's artifacts, each once, the smallest first."""
    return sorted({sum(file["size_bytes"] for file in artifact["files"]) for artifact in model.get("artifacts", ())})


def _unit_of(model: Any) -> str:
    """Return what a model's use is counted in."""
    from madang.model import UNITS_OF_TASK, Task

    return str(model.get("unit") or UNITS_OF_TASK[Task(model["task"])][0])


def _show_model(access: Access, name: ModelName) -> None:
    """Show one model, with every file's hash and sources, and what is missing on which chips."""
    path = f"/api/v1/models/{name}"
    with access.hub() as hub:
        found, coverage = hub.get(path), hub.get(f"{path}/coverage")
        transfers = read_optional(hub, "/api/v1/transfers", {"model": name})
    if access.is_json:
        print_json({**found, "coverage": coverage, "transfers": transfers})
        return
    facts = {
        "model": f"{found['name']}: {found['title']}",
        "task": f"{found['task']}, counted in: {_unit_of(found)}",
        "licence": found["licence"],
        "languages": found.get("languages"),
        "warning": found.get("warning"),
        "note": found.get("note"),
    }
    columns = (("", lambda row: row["name"]), ("", lambda row: row["value"]))
    print_table("", columns, [{"name": name, "value": value} for name, value in facts.items() if value])
    files = [{**file, "artifact": artifact} for artifact in found.get("artifacts", ()) for file in artifact["files"]]
    print_table(
        "files",
        (
            ("ARTIFACT", lambda row: row["artifact"]["artifact_id"]),
            ("ENGINE", lambda row: row["artifact"]["engine"]),
            ("CHIPS", lambda row: row["artifact"]["chip_kinds"]),
            ("FILE", field("name")),
            ("SIZE", lambda row: render_bytes(row["size_bytes"])),
            ("SHA-256", field("sha256")),
            ("SOURCES", lambda row: [_source_words(source) for source in row.get("sources", ())]),
        ),
        files,
    )
    print_coverage(coverage)
    print_transfers(transfers)


def _source_words(source: Any) -> str:
    """Return a source as people read it; wheels by the first of their packages."""
    parts = source.get("parts") or [source]
    package = f"{parts[0].get('package', '')} {parts[0].get('version', '')}".strip()
    more = f" and {len(parts) - 1} more" if len(parts) > 1 else ""
    return str(source.get("url") or f"{source.get('recipe', source.get('type', ''))}: {package}{more}")


def _add_models(access: Access, file: File) -> None:
    """Add the catalog entries of a file ([[model]] tables in TOML, or JSON)."""
    from madang.cli.values import read_facts
    from madang.model import CatalogEntry

    entries = read_facts(file, "model", CatalogEntry)
    with access.hub() as hub:
        for entry in entries:
            hub.call("POST", "/api/v1/models", entry)
    if access.is_json:
        print_json(entries)
    else:
        say(f"added: {', '.join(entry.name for entry in entries)}")


def _delete_model(access: Access, name: ModelName) -> None:
    """Delete a catalog entry that no service names."""
    with access.hub() as hub:
        hub.call("DELETE", f"/api/v1/models/{name}")
    say(f"model {name} deleted")


def _import_file(
    access: Access,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A model file, from a stick or a mirror.")],
    sha256: Annotated[
        str | None, typer.Option("--sha256", help="What it must be; without it, any file of the catalog.")
    ] = None,
) -> None:
    """Take a model file into the artifact cache of this machine, for sites without a way out."""
    from madang.federation.catalog import builtin_catalog
    from madang.federation.models import import_model_file
    from madang.federation.state import choose_cache_dir

    done = import_model_file(file, choose_cache_dir(), builtin_catalog(), sha256)
    if access.is_json:
        print_json(done)
    else:
        say(f"imported {file.name}: {done['size_bytes']} bytes, sha256 {done['sha256']}")


def _list_services(access: Access, site: SiteOption = None) -> None:
    """List services."""
    with access.hub_or_site(site) as api:
        rows = rows_of(api.get("/api/v1/services"), "services")
    if access.is_json:
        print_json({"services": rows})
        return
    print_table(
        "services",
        (
            ("SERVICE", field("name")),
            ("MODEL", field("model")),
            ("SITES", lambda row: row.get("sites") or "all"),
            ("TENANTS", lambda row: row.get("tenants") or "all"),
            ("REPLICAS", field("replicas_per_site")),
            ("CONTEXT", field("context_tokens")),
            ("SLOTS", field("slots")),
        ),
        rows,
    )


def _show_service(access: Access, name: ServiceName) -> None:
    """Show one service, what is missing for it where, and what to do about it."""
    path = f"/api/v1/services/{name}"
    with access.hub() as hub:
        fact, coverage = hub.get(path), hub.get(f"{path}/coverage")
        unplaced = read_optional(hub, "/api/v1/unplaced", {"service": name})
        transfers = read_optional(hub, "/api/v1/transfers", {"model": fact.get("model")})
    if access.is_json:
        print_json({**fact, "coverage": coverage, "unplaced": unplaced, "transfers": transfers})
        return
    print_json(fact)
    print_coverage(coverage)
    print_unplaced(unplaced)
    print_transfers(transfers)


def _create_service(
    access: Access,
    name: ServiceName,
    model: Annotated[str, typer.Option("--model", help="The catalog entry that it runs.")],
    tenants: Annotated[list[str] | None, typer.Option("--tenant", help="Who may use it; repeatable.")] = None,
    sites: Annotated[list[str] | None, typer.Option("--site", help="Where it runs; repeatable.")] = None,
    replicas: Annotated[int, typer.Option("--replicas", min=0, help="Engines at each of those sites.")] = 1,
    context_tokens: Annotated[int, typer.Option("--context-tokens", min=1, help="Context of one request.")] = 4096,
    slots: Annotated[int, typer.Option("--slots", min=1, help="Requests that an engine serves at a time.")] = 4,
) -> None:
    """Create a service."""
    from madang.core import Rejected
    from madang.runtime.admin_client import NotFound

    body = {
        "name": name,
        "model": model,
        "tenants": tenants or [],
        "sites": sites or [],
        "replicas_per_site": replicas,
        "context_tokens": context_tokens,
        "slots": slots,
    }
    with access.hub() as hub:
        try:
            hub.get(f"/api/v1/services/{name}")
        except NotFound:
            made = hub.call("PUT", f"/api/v1/services/{name}", body)
        else:
            raise Rejected(f"service {name} exists", next_step="change it with: madang service apply -f FILE")
        if access.is_json:
            print_json(made)
        else:
            say(f"service {name} created; its engines start at the sites: madang service list, madang status")
            tell_gaps(hub, name)


def _apply_services(
    access: Access,
    file: File,
    is_dry: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
) -> None:
    """Make the services of a file so ([[service]] tables), and the models they need; repeating it changes nothing.

    Models come from [[model]] tables of the same file, from the hub's catalog, or from the one that ships with this
    release. What the file does not name is left alone.
    """
    from madang.cli.apply import apply_file

    apply_file(access, file, is_dry=is_dry)


def _delete_service(access: Access, name: ServiceName) -> None:
    """Delete a service; its engines are drained and stopped."""
    with access.hub() as hub:
        hub.call("DELETE", f"/api/v1/services/{name}")
    say(f"service {name} deleted")
