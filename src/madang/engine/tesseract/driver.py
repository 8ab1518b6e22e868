"""Launches and probes the tesseract engine.

Owns its launch plan. Refuses to start processes. Called by the node program.
"""

from pathlib import Path

import msgspec

from madang.core import Rejected
from madang.engine.child import plan_child, read_health
from madang.engine.contract import (
    EngineCapabilities,
    EngineReading,
    EngineTimes,
    LaunchPlan,
    LaunchRequest,
)
from madang.engine.manifest import Manifest, load_manifest
from madang.engine.settings import EngineRuntime, identity_of_settings
from madang.engine.tesseract import codec
from madang.model import ReplicaSpec, Task

PROGRAM = "madang.engine.tesseract.serve"
TWIN_PROGRAM = "madang.engine.tesseract.twin"
TESSERACT = Path("/usr/bin/tesseract")
_SUFFIX = ".traineddata"


class TesseractDriver:
    """The tesseract engine, or its twin started in its place.

    Args:
        runtime: where Tesseract is on this node.
        program: PROGRAM, or TWIN_PROGRAM.
    """

    name = "tesseract"

    def __init__(self, runtime: EngineRuntime | None = None, program: str = PROGRAM) -> None:
        self.program = program
        self.manifest: Manifest = load_manifest(Path(__file__).parent)
        self._runtime = runtime or EngineRuntime()
        self._tesseract = self._runtime.program or TESSERACT

    @property
    def times(self) -> EngineTimes:
        """Return how long things may take."""
        return self.manifest.times

    def identity_of(self, spec: ReplicaSpec) -> str:  # noqa: ARG002  the same for all
        """Return program and runtime: an engine of another one is not adopted."""
        return self.program + identity_of_settings(self._runtime)

    def capabilities_for(self, spec: ReplicaSpec) -> EngineCapabilities:
        """Return what it can and cannot do."""
        if spec.task is not Task.INFER:
            raise Rejected(
                f"replica {spec.replica_id}, model {spec.model}: tesseract serves models of task {Task.INFER}, not"
                f" {spec.task}"
            )
        return self.manifest.tasks[Task.INFER]

    def check(self, spec: ReplicaSpec) -> None:
        """Raise Rejected when this engine can never run this specification on this node."""
        self.capabilities_for(spec)
        names = [file.name for file in spec.artifact.files]
        is_good = all(name.endswith(_SUFFIX) and name.removesuffix(_SUFFIX).isidentifier() for name in names)
        if not is_good or not set(names) - {f"osd{_SUFFIX}"}:
            raise Rejected(
                f"replica {spec.replica_id}, model {spec.model}: tesseract expects files LANGUAGE{_SUFFIX}, found"
                f" {', '.join(names)}"
            )
        if self.program == PROGRAM and not self._tesseract.exists():
            raise Rejected(
                f"replica {spec.replica_id}: there is no {self._tesseract} on this node",
                next_step="apt-get install tesseract-ocr, or name it in engine_runtimes.tesseract.program",
            )

    def plan_launch(self, request: LaunchRequest) -> LaunchPlan:
        """Return the command line of the child."""
        options = codec.ServeOptions(
            program=self._tesseract,
            files=tuple((file.name, request.files[file.name]) for file in request.spec.artifact.files),
            alias=request.spec.service,
            host=request.host,
            port=request.port,
            key_file=request.key_file,
            slots=max(1, min(request.spec.slots, request.prefill_threads)),
            # Images at a time use cores better than threads that spin for one another.
            threads=1,
        )
        plan = plan_child(self.program, options, request, {**request.device_env, **self._runtime.env})
        bytes_max = self._runtime.memory_bytes_max or plan.private_bytes_max
        return msgspec.structs.replace(plan, private_bytes_max=bytes_max)

    async def probe(self, endpoint: str, key: str) -> EngineReading:
        """Ask for health, which tells the load as well."""
        return await read_health(endpoint, key, self.manifest.health.path)
