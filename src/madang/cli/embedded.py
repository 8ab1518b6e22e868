"""`madang up`, `down`, `status` and `wan …`: the embedded federation. Owns nothing; calls `madang.federation`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from madang.cli.access import Access, JsonOption, StateOption, command
from madang.cli.terminal import (
    field,
    print_error,
    print_json,
    print_table,
    render_bytes,
    render_duration,
    say,
)

if TYPE_CHECKING:
    from madang.federation.status import FederationStatus
    from madang.federation.up import NotUp, UpReport

SiteArgument = Annotated[str, typer.Argument(metavar="SITE", help="The site's name, or national.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("up")(_up)
    app.command("down")(_down)
    command(app, "status")(_status)
    group = typer.Typer(
        no_args_is_help=True, help="The embedded federation's WAN: cut it, heal it.", rich_markup_mode=None
    )
    app.add_typer(group, name="wan")
    for verb, mode, text in (
        ("cut", "cut", "Cut a site off: connections are reset, new ones refused."),
        ("hole", "hole", "Let nothing pass to or from a site, with all sockets left open."),
        ("heal", "ok", "Make a site's links whole again."),
    ):
        group.command(verb, help=text)(_wan_verb(mode))
    group.command("status")(_wan_status)


def _up(
    state: StateOption = None,
    base_port: Annotated[
        int | None, typer.Option("--base-port", help="The hub's port; all others follow. 7700 at first.")
    ] = None,
    is_json: JsonOption = False,
    has_demo: Annotated[
        bool, typer.Option("--demo/--no-demo", help="Make the demo tenants, keys and services on the first start.")
    ] = True,
    wait_s: Annotated[
        float, typer.Option("--wait", min=1, help="Seconds to wait for everything to answer.", metavar="SECONDS")
    ] = 180.0,
) -> None:
    """Start a whole federation on this machine: hub, three sites, a real model. Repeating it is harmless."""
    from madang.cli.screen import choose_screen, print_summary
    from madang.federation.state import choose_state_dir
    from madang.federation.status import gather_facility
    from madang.federation.up import NotUp, UpOptions, bring_up

    options = UpOptions(state_dir=choose_state_dir(state), base_port=base_port, has_demo=has_demo, wait_s=wait_s)
    try:
        with choose_screen() as screen:
            report = bring_up(options, screen)
    except NotUp as error:
        print_error(error)
        _print_culprit(error)
        raise typer.Exit(1) from None
    if is_json:
        print_json(_report_as_json(report))
    else:
        facility = gather_facility(report.layout, report.credentials)
        print_summary(report, facility, f" --state {state}" if state is not None else "")


def _print_culprit(error: "NotUp") -> None:
    culprit = error.culprit
    if culprit is None:
        return
    print(f"\nprogram {culprit.name}: {culprit.reason}", file=sys.stderr)
    print(f"the last lines of {culprit.log_path}:", file=sys.stderr)
    for line in culprit.log_lines or ("(nothing was written)",):
        print(f"  {line}", file=sys.stderr)


def _report_as_json(report: "UpReport") -> dict[str, Any]:
    return {
        "state_dir": report.layout.state_dir,
        "was_running": report.was_running,
        "duration_s": round(report.duration_s, 2),
        "credentials_path": report.layout.credentials_path,
        "credentials": report.credentials,
        "answer": report.answer,
    }


def _down(state: StateOption = None, is_json: JsonOption = False) -> None:
    """End the federation: programs, engines, ports. Its state stays. Repeating it is harmless."""
    from madang.cli.screen import PlainScreen
    from madang.federation.state import choose_state_dir, read_state
    from madang.federation.up import bring_down

    state_dir = choose_state_dir(state)
    count = 0
    if read_state(state_dir) is not None:
        with PlainScreen() as screen:
            count = bring_down(state_dir, screen)
    if is_json:
        print_json({"state_dir": state_dir, "ended": count})
    elif count:
        say(f"ended {count} processes; no process and no port remains. State is kept in {state_dir}")
    else:
        say(f"nothing was running in {state_dir}")


def _status(access: Access) -> None:
    """Show sites, processes and the WAN; of a hub elsewhere, its sites."""
    from madang.cli.sites import print_sites
    from madang.federation.state import read_layout
    from madang.federation.status import gather_status

    if access.has_hub_elsewhere:
        with access.hub() as hub:
            found = hub.get("/api/v1/status")
        print_json(found) if access.is_json else print_sites(found["sites"])
        return
    status = gather_status(read_layout(access.state_dir), access.credentials())
    if access.is_json:
        print_json(status)
    else:
        _print_status(status)


def _print_status(status: "FederationStatus") -> None:
    from madang.cli.facility_views import print_facilities
    from madang.cli.sites import render_generation

    if not status.is_running:
        say(f"the federation in {status.state_dir} is down; start it with: madang up")
        if not any(process.state == "running" for process in status.processes):
            return
        say("processes of a crash remain; madang up or madang down ends them")
    elif status.hub_error:
        say(f"the hub says nothing: {status.hub_error}; sites speak for themselves")
    rows = [{**row, **_own_words(status, row["name"])} for row in status.sites]
    print_table(
        "sites",
        (
            ("SITE", field("name")),
            ("REGION", field("region")),
            ("STATE", field("state")),
            ("WAN", field("wan")),
            ("HUB LINK", field("link")),
            ("GENERATION", render_generation),
            ("IN SYNC", field("in_sync")),
            ("REPLICAS", field("replicas_ready")),
            ("UNSENT", field("outbox_depth")),
            ("URL", field("tenant_url")),
        ),
        rows,
    )
    print_facilities(status.facility)
    print_table(
        f"processes ({render_bytes(status.pss_bytes)} in all)",
        (
            ("PROCESS", field("name")),
            ("STATE", field("state")),
            ("PID", lambda row: row.get("pid") or None),
            ("AGE", _age),
            ("RESTARTS", lambda row: row.get("restarts") or None),
            ("LAST END", field("last_exit")),
            ("MEMORY", lambda row: render_bytes(row.get("pss_bytes"))),
            ("NOTE", field("note")),
        ),
        [_as_row(process) for process in status.processes],
    )
    ledger = status.ledger
    if ledger:
        say(f"ledger: {ledger.get('events')} events, {ledger.get('requests')} requests")


def _own_words(status: "FederationStatus", name: str) -> dict[str, Any]:
    own = status.local.get(name) or {}
    return {
        "wan": status.wan.get(name),
        "link": (own.get("hub_link") or {}).get("state"),
        "replicas_ready": own.get("replicas_ready"),
    }


def _as_row(process: Any) -> dict[str, Any]:
    import msgspec

    row: dict[str, Any] = msgspec.to_builtins(process)
    return row


def _age(row: Any) -> str:
    from madang.runtime.clock import SystemClock

    return render_duration(SystemClock().wall_s() - row["since_s"]) if row.get("since_s") else "-"


def _run_dir(state: Path | None) -> Path:
    from madang.federation.state import choose_state_dir, read_layout

    return read_layout(choose_state_dir(state)).run_dir


def _wan_verb(mode: str) -> Any:
    def run(site: SiteArgument, state: StateOption = None, is_json: JsonOption = False) -> None:
        from madang.federation.relay import send_command
        from madang.federation.relay_settings import LinkMode, WanCommand

        reply = send_command(_run_dir(state), WanCommand(verb="set", site=site, mode=LinkMode(mode)))
        if is_json:
            print_json(reply)
        else:
            say(f"{site}: {reply.modes[site]}")

    return run


def _wan_status(state: StateOption = None, is_json: JsonOption = False) -> None:
    """Show every link: what was asked for, and what is."""
    import msgspec

    from madang.federation.relay import send_command
    from madang.federation.relay_settings import WanCommand

    reply = send_command(_run_dir(state), WanCommand(verb="status"))
    if is_json:
        print_json(reply)
        return
    say("  ".join(f"{site}: {mode}" for site, mode in reply.modes.items()))
    print_table(
        "links",
        (
            ("FROM", field("site")),
            ("TO", field("other")),
            ("FOR", field("purpose")),
            ("MODE", field("mode")),
            ("LISTENS", field("is_listening")),
            ("CONNECTIONS", field("connections")),
        ),
        msgspec.to_builtins(reply.links),
    )
