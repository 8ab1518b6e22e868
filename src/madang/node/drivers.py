"""Which chip and engine drivers a node knows.

Owns the two lists. Refuses to know what they do. Called by the node program when it starts.
"""

from collections.abc import Callable, Mapping, Sequence

from madang.chip.contract import ChipDriver
from madang.chip.cpu.driver import CpuDriver
from madang.core import Clock, NodeId, Rejected
from madang.engine.contract import EngineDriver
from madang.engine.embed import driver as embed
from madang.engine.external import driver as external
from madang.engine.furiosa_llm import driver as furiosa_llm
from madang.engine.llama_cpp import driver as llama_cpp
from madang.engine.onnx import driver as onnx
from madang.engine.settings import EngineRuntime, ExternalEndpoint, check_runtime
from madang.engine.tesseract import driver as tesseract
from madang.engine.vllm import driver as vllm
from madang.engine.whisper import driver as whisper

_WITH_RUNTIME = ("furiosa_llm", "tesseract", "vllm")


def make_chip_drivers(kinds: Sequence[str], node: NodeId, clock: Clock) -> tuple[ChipDriver, ...]:
    """Return the drivers that the settings name; raises Rejected naming the known ones."""
    known = {CpuDriver.kind: CpuDriver}
    for kind in kinds:
        if kind not in known:
            raise Rejected(f"setting chips: no chip driver {kind!r}; known: {', '.join(sorted(known))}")
    return tuple(known[kind](node, clock) for kind in kinds)


def make_engine_drivers(
    twins: Sequence[str],
    runtimes: Mapping[str, EngineRuntime] | None = None,
    externals: Mapping[str, ExternalEndpoint] | None = None,
) -> Mapping[str, EngineDriver]:
    """Return every engine driver by name; those named in `twins` start their twin's program.

    Args:
        twins: engines that are played by their twins.
        runtimes: where vendors' programs are, by engine.
        externals: endpoints of others, by artifact.

    Raises:
        Rejected: naming the setting and what is known.
    """
    given = runtimes or {}
    makers: dict[str, Callable[[bool], EngineDriver]] = {
        "embed": lambda twin: embed.EmbedDriver(embed.TWIN_PROGRAM if twin else embed.PROGRAM),
        "external": lambda twin: external.ExternalDriver(
            externals, external.TWIN_PROGRAM if twin else external.PROGRAM
        ),
        "furiosa_llm": lambda twin: furiosa_llm.FuriosaLlmDriver(
            given.get("furiosa_llm"), furiosa_llm.TWIN_PROGRAM if twin else furiosa_llm.PROGRAM
        ),
        "llama_cpp": lambda twin: llama_cpp.LlamaCppDriver(llama_cpp.TWIN_PROGRAM if twin else llama_cpp.PROGRAM),
        "onnx": lambda twin: onnx.OnnxDriver(onnx.TWIN_PROGRAM if twin else onnx.PROGRAM),
        "tesseract": lambda twin: tesseract.TesseractDriver(
            given.get("tesseract"), tesseract.TWIN_PROGRAM if twin else tesseract.PROGRAM
        ),
        "vllm": lambda twin: vllm.VllmDriver(given.get("vllm"), vllm.TWIN_PROGRAM if twin else vllm.PROGRAM),
        "whisper": lambda twin: whisper.WhisperDriver(whisper.TWIN_PROGRAM if twin else whisper.PROGRAM),
    }
    for name in twins:
        if name not in makers:
            raise Rejected(f"setting engine_twins: no engine {name!r}; known: {', '.join(sorted(makers))}")
    for name, runtime in given.items():
        if name not in _WITH_RUNTIME:
            known = ", ".join(_WITH_RUNTIME)
            raise Rejected(
                f"setting engine_runtimes: engine {name!r} has no runtime to choose; those that have: {known}"
            )
        check_runtime(name, runtime)
    return {name: make(name in twins) for name, make in makers.items()}
