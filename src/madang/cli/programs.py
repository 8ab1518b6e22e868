"""`madang hub run`, `site run`, `node run`, `gateway run`: the programs, for systemd and containers.

Owns nothing: each calls the same `main` as `python -m madang.<program>`.
"""

from pathlib import Path
from typing import Annotated

import typer

from madang.core import Rejected

Config = Annotated[Path, typer.Option("--config", metavar="FILE", help="Its settings, TOML.")]


def register(app: typer.Typer) -> None:
    """Add the groups and their `run`."""
    for name, title, run in (
        ("hub", "The hub.", _run_hub),
        ("site", "Micro data centers.", _run_site),
        ("node", "Servers of a site.", _run_node),
        ("gateway", "What tenants speak to.", _run_gateway),
    ):
        group = typer.Typer(no_args_is_help=True, help=title, rich_markup_mode=None)
        group.command("run")(run)
        if name in ("hub", "gateway"):
            # A group of one command would become that command; a callback keeps the noun.
            group.callback()(_keep_noun)
        app.add_typer(group, name=name)


def _keep_noun() -> None:
    pass


def _run_hub(config: Config) -> None:
    """Run the hub until SIGTERM."""
    from madang.hub.app import main

    raise typer.Exit(main(config))


def _run_site(
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="Settings of the site process.")
    ] = None,
    is_all: Annotated[
        bool, typer.Option("--all", help="Run every program of the site: NATS server, site, node, gateway.")
    ] = False,
    config_dir: Annotated[
        Path | None,
        typer.Option("--config-dir", metavar="DIR", help="With --all: holds site.toml, gateway.toml, node.toml."),
    ] = None,
) -> None:
    """Run a site until SIGTERM."""
    if is_all:
        if config_dir is None or config is not None:
            raise typer.BadParameter("--all takes --config-dir DIR, and no --config")
        from madang.cli.site_all import run_all

        raise typer.Exit(run_all(config_dir))
    if config is None:
        raise typer.BadParameter("expected --config FILE, or --all with --config-dir DIR")
    from madang.site.app import main

    raise typer.Exit(main(config))


def _run_node(config: Config) -> None:
    """Run a node until SIGTERM."""
    from madang.node.__main__ import main

    raise typer.Exit(main(config))


def _run_gateway(
    config: Config, worker: Annotated[int, typer.Option("--worker", min=0, help="Which of the workers this is.")] = 0
) -> None:
    """Run one gateway worker until SIGTERM."""
    from madang.gateway.app import main

    raise typer.Exit(main(config, worker))


def check_folder(folder: Path) -> Path:
    """Return a folder that exists, absolute; raises Rejected otherwise."""
    if not folder.is_dir():
        raise Rejected(f"{folder} is not a folder", next_step="see docs/settings.md for what belongs in it")
    return folder.absolute()
