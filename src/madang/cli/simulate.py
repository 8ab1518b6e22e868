"""`madang sim …`: the plant twin of the embedded federation: what it is like, and faults on command.

Owns nothing; asks `madang.sim.plant` over its control socket. All of it is simulated, and every answer says so.
"""

from typing import TYPE_CHECKING, Annotated

import typer

from madang.cli.access import Access, command
from madang.cli.terminal import field, print_json, print_table, say
from madang.core import Rejected, Unavailable

if TYPE_CHECKING:
    from madang.sim.plant.settings import PlantCommand, PlantReply

SiteArgument = Annotated[str, typer.Argument(metavar="SITE", help="A site with a simulated plant.")]


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        no_args_is_help=True,
        help="The simulated plant: power, cooling and security of the embedded sites, with faults on command.",
        rich_markup_mode=None,
    )
    app.add_typer(group, name="sim")
    command(group, "status")(_status)
    command(group, "fault")(_fault)
    command(group, "device")(_device)
    command(group, "kinds")(_kinds)


def _status(
    access: Access,
    site: Annotated[str, typer.Argument(metavar="[SITE]", help="One site; all of them without.")] = "",
) -> None:
    """Show what the simulated plants are like now."""
    from madang.sim.plant.settings import PlantCommand

    _show(_ask(access, PlantCommand(verb="status", site=site)), is_json=access.is_json)


def _fault(
    access: Access,
    site: SiteArgument,
    kind: Annotated[str, typer.Argument(metavar="KIND", help="What goes wrong; `madang sim kinds` lists them.")],
    target: Annotated[str, typer.Argument(metavar="[EQUIPMENT]", help="Where, for kinds that need it.")] = "",
    value: Annotated[float, typer.Option("--value", help="For kinds that take a number.")] = 0.0,
    is_over: Annotated[bool, typer.Option("--over", help="End the fault instead of beginning it.")] = False,
) -> None:
    """Begin a fault of a simulated plant, or end it."""
    from madang.sim.plant.faults import PlantFault
    from madang.sim.plant.settings import PlantCommand

    fault = PlantFault(kind=kind, target=target, value=value, is_over=is_over)
    _show(_ask(access, PlantCommand(verb="fault", site=site, fault=fault)), is_json=access.is_json)


def _device(
    access: Access,
    site: SiteArgument,
    device: Annotated[str, typer.Argument(metavar="DEVICE", help="A device of the site file.")],
    kind: Annotated[
        str, typer.Argument(metavar="[KIND]", help="silent, slow, half, garbage, stuck, sentinel, …; none: no more.")
    ] = "",
) -> None:
    """Let a simulated device misbehave on the wire, or behave again."""
    from madang.sim.plant.settings import PlantCommand

    _show(
        _ask(access, PlantCommand(verb="device", site=site, device=device, device_fault=kind)), is_json=access.is_json
    )


def _kinds(access: Access) -> None:
    """List the faults that a plant can have."""
    from madang.sim.plant.faults import KINDS

    rows = [{"kind": kind, "what": text} for kind, (_, text) in KINDS.items()]
    if access.is_json:
        print_json(rows)
    else:
        print_table("faults / 고장", (("KIND\n종류", field("kind")), ("WHAT\n내용", field("what"))), rows)
        say("begin one: madang sim fault SITE KIND [EQUIPMENT] [--value V]; end it: the same with --over")


def _ask(access: Access, asked: "PlantCommand") -> "PlantReply":
    import msgspec

    from madang.federation.state import read_layout
    from madang.runtime.control_socket import ask_control
    from madang.sim.plant.settings import CONTROL_SOCKET, PlantReply

    run_dir = read_layout(access.state_dir).run_dir
    try:
        line = ask_control(run_dir, CONTROL_SOCKET, msgspec.json.encode(asked))
        reply = msgspec.json.decode(line, type=PlantReply)
    except OSError as error:
        raise Unavailable(
            f"the simulated plant in {run_dir.parent} does not answer: {error.strerror or error}",
            next_step="start it with: madang up",
        ) from error
    except msgspec.MsgspecError as error:
        raise Unavailable("the simulated plant ended before it answered", next_step="try again") from error
    if reply.error:
        raise Rejected(reply.error)
    return reply


def _show(reply: "PlantReply", *, is_json: bool) -> None:
    import msgspec

    if is_json:
        print_json(reply.sites)
        return
    rows = []
    for one in msgspec.to_builtins(reply.sites):
        inlets, charges = one["inlet_c"].values(), one["charge"].values()
        broken = [name for name, is_running in one["cooling"].items() if not is_running]
        flags = [f"{name} {word}" for name, words in one["flags"].items() for word in words]
        devices = [f"{name} {kind}" for name, kind in one["device_faults"].items()]
        rows.append(
            {
                "site": one["site"],
                "grid": "ok" if one["is_utility_on"] else "down",
                "it": f"{one['it_w']:.0f}",
                "all": f"{one['utility_w']:.0f}",
                "inlet": f"{max(inlets):.1f}" if inlets else "-",
                "charge": f"{100 * min(charges):.0f} %" if charges else "-",
                "wrong": ", ".join((*(f"{name} stands" for name in broken), *one["open_breakers"], *flags, *devices)),
            }
        )
    columns = (
        ("SITE\n사이트", field("site")),
        ("GRID\n상용전원", field("grid")),
        ("IT W\n서버 전력", field("it")),
        ("GRID W\n수전 전력", field("all")),
        ("INLET °C\n흡기 온도", field("inlet")),
        ("BATTERY\n배터리", field("charge")),
        ("WRONG\n고장", field("wrong")),
    )
    print_table("plants (simulated / 모의)", columns, rows)
