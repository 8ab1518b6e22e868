"""The `madang` command: one noun, then a verb.

Owns the tree of commands and the exit statuses: 0 done, 1 refused or failed, 2 wrong usage. Refuses to decide
anything. The entry point of the package; whatever is heavy is imported by the command that needs it.
"""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from madang import __version__
from madang.cli import (
    access_log,
    alarms,
    audit,
    catalog,
    embedded,
    facility,
    keys,
    prices,
    programs,
    projects,
    receipts,
    simulate,
    sites,
    tenants,
    usage,
)
from madang.cli.terminal import print_error
from madang.core import MadangError


class _Root(TyperGroup):
    """Turns our errors into text and status 1, without a traceback; anything else is a bug and keeps its own."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MadangError as error:
            print_error(error)
            raise typer.Exit(1) from None


app = typer.Typer(
    name="madang",
    cls=_Root,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Many micro data centers with Korean AI chips, one AI cloud.",
)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        print(f"madang {__version__}")
        raise typer.Exit


@app.callback()
def root(
    is_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Many micro data centers with Korean AI chips, one AI cloud."""


embedded.register(app)
programs.register(app)
sites.register(app)
tenants.register(app)
projects.register(app)
keys.register(app)
prices.register(app)
catalog.register(app)
usage.register(app)
receipts.register(app)
access_log.register(app)
audit.register(app)
simulate.register(app)
facility.register(app)
alarms.register(app)


def main() -> None:
    """Run the command line."""
    app()
