"""`madang chip probe`: what the drivers find on this machine, and a recording of it for tests.

Owns what is shown and where recordings go. Refuses to speak to any program of the federation: it reads the machine
that it runs on. Registered by `madang.cli.sites` under `chip`.
"""

import asyncio
import platform
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from madang.cli.access import Access
from madang.cli.chip_columns import CARD_COLUMNS
from madang.cli.terminal import Column, field, print_json, print_table, render_bytes, say
from madang.core import Fault, NodeId, Rejected

Record = Annotated[
    Path | None,
    typer.Option("--record", metavar="DIR", help="Write what was read there, serials masked, as fixtures for tests."),
]
Root = Annotated[
    Path, typer.Option("--root", metavar="DIR", help="A folder in the place of /, such as a twin's.", show_default="/")
]
Kinds = Annotated[list[str] | None, typer.Option("--kind", help="A driver to try; repeat it. All when absent.")]

_COLUMNS: tuple[Column, ...] = (
    ("CHIP", field("chip_id")),
    ("KIND", field("kind")),
    ("MODEL", field("model")),
    ("HEALTH", field("health")),
    ("MEMORY", lambda row: render_bytes(row.get("memory_bytes") or None)),
    ("FREE", lambda row: render_bytes(row.get("memory_free_bytes"))),
    ("USE", lambda row: None if row.get("utilisation") is None else f"{row['utilisation']:.0%}"),
    ("°C", field("temperature_c")),
    ("W", field("power_w")),
)


def probe(access: Access, record: Record = None, root: Root = Path("/"), kinds: Kinds = None) -> None:
    """Show what the chip drivers find on this machine; with --record also write what they read."""
    if not root.is_dir():
        raise Rejected(f"--root {root}: not a folder")
    if record is not None:
        record.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    written: list[Path] = []
    # A twin's folder has cards; the processors are those of this machine all the same.
    for kind in kinds or _all_kinds()[0 if root == Path("/") else 1 :]:
        chips, path = asyncio.run(_probe_kind(kind, root, record))
        rows += [msgspec.to_builtins(chip) for chip in chips]
        written += [path] if path else []
    if access.is_json:
        print_json({"chips": rows, "recordings": [str(path) for path in written]})
        return
    print_table("chips", (*_COLUMNS, *CARD_COLUMNS, ("SIMULATED", field("is_simulated"))), rows)
    for path in written:
        say(f"recorded {path}: look through it, then add it to tests/chip/recordings")


def _all_kinds() -> tuple[str, ...]:
    from madang.node.drivers import ACCELERATORS

    return ("cpu", *ACCELERATORS)


async def _probe_kind(kind: str, root: Path, record: Path | None) -> tuple[tuple[Any, ...], Path | None]:
    """Return the chips of one driver, and where the recording of its reading was written."""
    from madang.chip.host import MachineHost
    from madang.chip.recording import PlaybackHost, RecordingHost, make_recording
    from madang.node.drivers import make_accelerator_driver, make_chip_drivers
    from madang.runtime.clock import SystemClock

    node, clock = NodeId(platform.node() or "this-machine"), SystemClock()
    if kind not in _all_kinds()[1:]:
        # The processors' driver reads files that say much about the machine; it needs no recording.
        (driver,) = make_chip_drivers((kind if root == Path("/") else f"{kind}@{root}",), node, clock)
        return await driver.read(), None
    host = RecordingHost(MachineHost(root))
    chips = await make_accelerator_driver(kind, node, clock, host).read()
    if record is None or not chips:
        return chips, None
    neutral = tuple(msgspec.structs.replace(chip, node=NodeId("recorded")) for chip in chips)
    recording = make_recording(kind, _origin(neutral), clock.wall_s(), host, neutral)
    played = await make_accelerator_driver(kind, NodeId("recorded"), clock, PlaybackHost(recording)).read()
    if without_time(played) != without_time(recording.chips):
        raise Fault(
            f"the recording of {kind} does not read as the machine did, so it was not written",
            next_step="report this with the output of: madang chip probe --json",
        )
    path = record / f"{kind}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(recording), indent=1) + b"\n")
    return chips, path


def _origin(chips: tuple[Any, ...]) -> str:
    if any(chip.is_simulated for chip in chips):
        return "simulated: read from a twin"
    models = ", ".join(sorted({chip.model for chip in chips}))
    return f"recorded on hardware: {models}; kernel {platform.release()}; serials masked"


def without_time(chips: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return chips as they compare between two readings of the same machine."""
    return tuple(msgspec.structs.replace(chip, observed_at_s=0.0) for chip in chips)
