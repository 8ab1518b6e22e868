"""`madang site …`, `node …` and `chip …`: the boxes. Owns nothing; calls the hub's API, or a site's own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from madang.cli.access import Access, SiteOption, command, rows_of
from madang.cli.chip_columns import CARD_COLUMNS
from madang.cli.probe import probe
from madang.cli.terminal import Row, field, print_json, print_table, render, render_bytes, render_duration, say
from madang.core import Rejected

Site = Annotated[str, typer.Argument(metavar="SITE", help="The site's name.")]
Node = Annotated[str, typer.Argument(metavar="NODE", help="The node's name; madang node list shows it.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, for whoever reads the lists and the audit log.")]
ChipReason = Annotated[str, typer.Option("--reason", help="Why, for whoever reads the list and the audit log.")]
Chip = Annotated[str, typer.Argument(metavar="NODE/CHIP", help="Node and chip; madang chip list shows both.")]


def register(app: typer.Typer) -> None:
    """Add the commands; `run` of each noun is added by `madang.cli.programs` beforehand."""
    groups = {info.name: info.typer_instance for info in app.registered_groups}
    sites, nodes = groups["site"], groups["node"]
    assert sites is not None
    assert nodes is not None
    command(sites, "list")(_list_sites)
    command(sites, "show")(_show_site)
    command(sites, "add")(_add_site)
    command(sites, "grade")(_grade_site)
    command(sites, "nearest")(_find_nearest)
    for verb, done in (
        ("revoke", "revoked: its link is refused from now on; it keeps serving locally"),
        ("resync", "is sent its whole desired state"),
        ("cordon", "cordoned: it gets no new placements"),
        ("uncordon", "takes placements again"),
    ):
        command(sites, verb)(_site_verb(verb, done))
    command(nodes, "list")(_list_nodes)
    for verb, done in (
        ("cordon", "cordoned: it gets no new replicas"),
        ("uncordon", "takes replicas again"),
        ("drain", "drains: its replicas finish what they serve, then stop"),
    ):
        command(nodes, verb)(_node_verb(verb, done))
    chips = typer.Typer(no_args_is_help=True, help="Accelerators.", rich_markup_mode=None)
    app.add_typer(chips, name="chip")
    command(chips, "probe")(probe)
    command(chips, "list")(_list_chips)
    command(chips, "cordon")(_cordon_chip)
    command(chips, "uncordon")(_uncordon_chip)


def _list_sites(access: Access) -> None:
    """List sites as the hub sees them."""
    with access.hub() as hub:
        found = hub.get("/api/v1/status")
    if access.is_json:
        print_json({"sites": found["sites"]})
    else:
        print_sites(found["sites"])


def print_sites(rows: list[dict[str, Any]]) -> None:
    """Print the hub's view of sites as a table."""
    print_table(
        "sites",
        (
            ("SITE", field("name")),
            ("REGION", field("region")),
            ("DATA", field("data_class_max")),
            ("STATE", field("state")),
            ("HEARD", lambda row: render_duration(row.get("heartbeat_age_s"))),
            ("GENERATION", render_generation),
            ("IN SYNC", field("in_sync")),
            ("UNSENT", field("outbox_depth")),
            ("OLDEST", lambda row: render_duration(row.get("oldest_unsent_age_s"))),
            ("URL", field("tenant_url")),
        ),
        rows,
    )


def render_generation(row: Row) -> str:
    """Return `6 of 7`: applied of desired."""
    return f"{render(row.get('applied_generation'))} of {render(row.get('desired_generation'))}"


def _show_site(access: Access, name: Site) -> None:
    """Show one site."""
    with access.hub() as hub:
        print_json(hub.get(f"/api/v1/sites/{name}"))


def _add_site(
    access: Access,
    config_dir: Annotated[
        Path, typer.Option("--config-dir", help="Holds the new site's site.toml; its credentials are put there.")
    ],
) -> None:
    """Enrol a site at the hub, from the machine that it runs on."""
    from madang.cli.site_all import enrol

    with access.hub() as hub:
        settings = enrol(config_dir, hub)
    say(f"site {settings.name} enrolled; start it with: madang site run --all --config-dir {config_dir}")


def _grade_site(
    access: Access,
    name: Site,
    data_class: Annotated[
        str, typer.Option("--data-class", help="The highest it may hold: open, sensitive or classified.")
    ],
) -> None:
    """Say which class of data a site may hold; what is above it is served elsewhere or refused from now on."""
    with access.hub() as hub:
        answer = hub.call("PUT", f"/api/v1/sites/{name}/data-class", {"data_class_max": data_class})
    if access.is_json:
        print_json(answer)
    else:
        say(f"site {name} may hold data up to class {answer['data_class_max']}")


def _find_nearest(
    access: Access,
    key: Annotated[str, typer.Option("--key", envvar="OPENAI_API_KEY", help="The tenant's key.", show_default=False)],
    url: Annotated[
        str | None, typer.Option("--url", metavar="URL", help="Any gateway of the federation; else the national entry.")
    ] = None,
    count: Annotated[int, typer.Option("--count", min=1, max=100, help="Round trips at each site.")] = 9,
) -> None:
    """Measure the way to each site where this key's data may be, and name the best base URL."""
    from madang.cli.nearest import find_nearest

    find_nearest(access, key=key, url=url, count=count)


def _site_verb(verb: str, done: str) -> Any:
    def run(access: Access, name: Site) -> None:
        with access.hub() as hub:
            answer = hub.call("POST", f"/api/v1/sites/{name}/{verb}")
        if access.is_json:
            print_json(answer)
        else:
            say(f"site {name} {done}")

    run.__doc__ = f"{verb.capitalize()} a site."
    return run


def _list_nodes(access: Access, site: SiteOption = None) -> None:
    """List nodes."""
    with access.hub_or_site(site) as api:
        rows = rows_of(api.get("/api/v1/nodes"), "nodes")
    if access.is_json:
        print_json({"nodes": rows})
        return
    print_table(
        "nodes",
        (
            ("NODE", lambda row: row.get("node") or row.get("name")),
            ("SITE", lambda row: row.get("site") or site),
            ("STATE", field("state")),
            ("CORDONED", lambda row: "draining" if row.get("is_draining") else row.get("is_cordoned")),
            ("REASON", lambda row: row.get("cordon_reason") or row.get("reason")),
            ("CHIPS", lambda row: _count(row.get("chips"))),
            ("REPLICAS", lambda row: _count(row.get("replicas"))),
            ("SEEN", _seen),
        ),
        rows,
    )


def _count(value: object) -> object:
    return len(value) if isinstance(value, list) else value


def _seen(row: Any) -> str:
    return render_duration(row.get("observed_age_s", row.get("age_s")))


def _node_verb(verb: str, done: str) -> Any:
    def run(access: Access, name: Node, site: SiteOption = None, reason: Reason = "") -> None:
        where = _order(access, site, name, f"nodes/{quote(name, safe='')}/{verb}", reason)
        if where:
            say(f"node {name} of {where} {done}")

    run.__doc__ = f"{verb.capitalize()} a node."
    return run


def _cordon_chip(access: Access, chip: Chip, reason: ChipReason, site: SiteOption = None) -> None:
    """Cordon one chip alone: it gets no new replicas."""
    _order_chip(access, site, chip, "cordon", reason, "cordoned: it gets no new replicas")


def _uncordon_chip(access: Access, chip: Chip, site: SiteOption = None, reason: Reason = "") -> None:
    """Lift every cordon from a chip, by hand and by rule."""
    _order_chip(access, site, chip, "uncordon", reason, "takes replicas again")


def _order_chip(access: Access, site: str | None, chip: str, verb: str, reason: str, done: str) -> None:
    node, _, chip_id = chip.partition("/")
    if not node or not chip_id:
        raise Rejected(f"{chip!r} is not a chip: expected NODE/CHIP", next_step="see: madang chip list")
    path = f"nodes/{quote(node, safe='')}/chips/{quote(chip_id, safe='')}/{verb}"
    where = _order(access, site, node, path, reason)
    if where:
        say(f"chip {chip_id} of node {node} of {where} {done}")


def _order(access: Access, site: str | None, node: str, path: str, reason: str) -> str:
    """Order a cordon at the site itself where it is named, else through the hub; return the site, if it is to be said.

    The hub is where every site can be reached from; the site's own API works while it is cut off.
    """
    body = {"reason": reason} if reason else None
    where = site or _site_of_node(access, node)
    if site is None:
        with access.hub() as hub:
            answer = hub.call("POST", f"/api/v1/sites/{where}/{path}", body)
    else:
        with access.site(site) as api:
            answer = api.call("POST", f"/api/v1/{path}", body)
    if access.is_json:
        print_json(answer)
    return "" if access.is_json else where


def _site_of_node(access: Access, name: str) -> str:
    with access.hub() as hub:
        rows = rows_of(hub.get("/api/v1/nodes"), "nodes")
    sites = {row["site"] for row in rows if name in (row.get("node"), row.get("name"))}
    if len(sites) != 1:
        raise Rejected(
            f"node {name!r} is {'not known to the hub' if not sites else 'a name at several sites'}",
            next_step=f"name its site: madang node … {name} --site SITE",
        )
    return str(sites.pop())


def _list_chips(access: Access, site: SiteOption = None) -> None:
    """List chips with their newest readings."""
    with access.hub_or_site(site) as api:
        rows = rows_of(api.get("/api/v1/chips"), "chips")
    if access.is_json:
        print_json({"chips": rows})
        return
    print_table(
        "chips",
        (
            ("CHIP", field("chip_id")),
            ("SITE", lambda row: row.get("site") or site),
            ("NODE", field("node")),
            ("KIND", field("kind")),
            ("MODEL", field("model")),
            ("HEALTH", field("health")),
            ("CORDONED", lambda row: row.get("cordon_reason") or row.get("is_cordoned")),
            ("HELD BY", _holders),
            ("MEMORY", lambda row: render_bytes(row.get("memory_bytes"))),
            ("FREE", lambda row: render_bytes(row.get("memory_free_bytes"))),
            ("USE", lambda row: _percent(row.get("utilisation"))),
            ("°C", field("temperature_c")),
            ("W", field("power_w")),
            *CARD_COLUMNS,
            ("SIMULATED", field("is_simulated")),
        ),
        rows,
    )


def _holders(row: Any) -> list[str]:
    """Return who holds a chip, or which cores of it, with what keeps it from being given back."""
    return [
        one["holder"] + _span(one.get("cores") or ()) + (f" ({one['state']})" if one["state"] != "leased" else "")
        for one in row.get("leases") or ()
    ]


def _span(cores: Sequence[int]) -> str:
    """Return ` [0-3]` for adjacent cores; empty for none, which means all."""
    if not cores:
        return ""
    is_adjacent = list(cores) == list(range(cores[0], cores[-1] + 1)) and len(cores) > 1
    return f" [{cores[0]}-{cores[-1]}]" if is_adjacent else f" [{', '.join(str(core) for core in cores)}]"


def _percent(value: object) -> str | None:
    return f"{value:.0%}" if isinstance(value, int | float) else None
