"""Which chip and engine drivers a node knows.

Owns the two lists. Refuses to know what they do. Called by the node program when it starts.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from madang.chip.contract import ChipDriver
from madang.chip.cpu.driver import CpuDriver
from madang.chip.furiosa.driver import FuriosaDriver
from madang.chip.host import Host, MachineHost
from madang.chip.hyperaccel.driver import HyperaccelDriver
from madang.chip.mobilint.driver import MobilintDriver
from madang.chip.nvidia.driver import NvidiaDriver
from madang.chip.rebellions.driver import RebellionsDriver
from madang.core import Clock, NodeId, Rejected
from madang.engine.contract import EngineDriver
from madang.engine.embed import driver as embed
from madang.engine.llama_cpp import driver as llama_cpp
from madang.engine.onnx import driver as onnx
from madang.engine.whisper import driver as whisper

ACCELERATORS: Mapping[str, Callable[[NodeId, Clock, Host], ChipDriver]] = {
    FuriosaDriver.kind: FuriosaDriver,
    HyperaccelDriver.kind: HyperaccelDriver,
    MobilintDriver.kind: MobilintDriver,
    NvidiaDriver.kind: NvidiaDriver,
    RebellionsDriver.kind: RebellionsDriver,
}
"""Drivers of everything but processors, by kind."""


def make_chip_drivers(kinds: Sequence[str], node: NodeId, clock: Clock) -> tuple[ChipDriver, ...]:
    """Return the drivers that the settings name; raises Rejected naming the known ones.

    Args:
        kinds: names of drivers; `NAME@FOLDER` reads a twin's folder in the place of this machine.
        node: whose chips these are.
        clock: time.
    """
    return tuple(_make_chip_driver(kind, node, clock) for kind in kinds)


def _make_chip_driver(setting: str, node: NodeId, clock: Clock) -> ChipDriver:
    kind, sign, folder = setting.partition("@")
    root = Path(folder) if sign else Path("/")
    if sign and not root.is_dir():
        raise Rejected(f"setting chips: {folder!r} in {setting!r} is not a folder")
    if kind == CpuDriver.kind:
        return CpuDriver(node, clock, root)
    if kind not in ACCELERATORS:
        known = ", ".join(sorted((CpuDriver.kind, *ACCELERATORS)))
        raise Rejected(f"setting chips: no chip driver {kind!r}; known: {known}")
    return make_accelerator_driver(kind, node, clock, MachineHost(root))


def make_accelerator_driver(kind: str, node: NodeId, clock: Clock, host: Host) -> ChipDriver:
    """Return the driver of one kind of accelerator, one of ACCELERATORS, on a machine."""
    return ACCELERATORS[kind](node, clock, host)


def make_engine_drivers(twins: Sequence[str]) -> Mapping[str, EngineDriver]:
    """Return every engine driver by name; those named in `twins` start their twin's program."""
    programs = {
        embed.EmbedDriver.name: (embed.PROGRAM, embed.TWIN_PROGRAM),
        llama_cpp.LlamaCppDriver.name: (llama_cpp.PROGRAM, llama_cpp.TWIN_PROGRAM),
        onnx.OnnxDriver.name: (onnx.PROGRAM, onnx.TWIN_PROGRAM),
        whisper.WhisperDriver.name: (whisper.PROGRAM, whisper.TWIN_PROGRAM),
    }
    for name in twins:
        if name not in programs:
            raise Rejected(f"setting engine_twins: no engine {name!r}; known: {', '.join(sorted(programs))}")
    chosen = {name: twin if name in twins else own for name, (own, twin) in programs.items()}
    drivers: tuple[EngineDriver, ...] = (
        embed.EmbedDriver(chosen[embed.EmbedDriver.name]),
        llama_cpp.LlamaCppDriver(chosen[llama_cpp.LlamaCppDriver.name]),
        onnx.OnnxDriver(chosen[onnx.OnnxDriver.name]),
        whisper.WhisperDriver(chosen[whisper.WhisperDriver.name]),
    )
    return {driver.name: driver for driver in drivers}
