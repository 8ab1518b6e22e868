"""Launches and probes the whisper engine.

Owns its launch plan and what its answers mean for us. Refuses to start processes. Called by the node program.
"""

from madang.core import Rejected
from madang.engine.child import ChildDriver, plan_child
from madang.engine.contract import (
    EngineCapabilities,
    EngineTimes,
    LaunchPlan,
    LaunchRequest,
)
from madang.engine.whisper import codec
from madang.model import EngineFeature, ReplicaSpec, Task

PROGRAM = "madang.engine.whisper.serve"
TWIN_PROGRAM = "madang.engine.whisper.twin"


class WhisperDriver(ChildDriver):
    """The whisper engine, or whatever module is started in its place."""

    name = "whisper"
    capabilities = EngineCapabilities(
        endpoints=(codec.PATH,),
        has_streaming=False,
        features=(EngineFeature.TRANSCRIPT_STREAM,),
        limits=(
            f"a sound of at most {codec.BODY_BYTES_MAX // 2**20} MiB, whatever it is encoded as",
            "one sound at a time; others wait",
            "the text of a sound in its own language, never a translation",
        ),
    )
    times = EngineTimes(start_s_max=60.0)

    def __init__(self, program: str = PROGRAM) -> None:
        super().__init__(program)

    def check(self, spec: ReplicaSpec) -> None:
        """Raise Rejected when this engine can never run this specification."""
        where = f"replica {spec.replica_id}, model {spec.model}"
        if spec.task is not Task.TRANSCRIPTION:
            raise Rejected(f"{where}: whisper serves transcription models, not {spec.task}")
        names = sorted(file.name for file in spec.artifact.files)
        if names != sorted(codec.FILES):
            raise Rejected(f"{where}: whisper expects the files {', '.join(codec.FILES)}, found {', '.join(names)}")

    def plan_launch(self, request: LaunchRequest) -> LaunchPlan:
        """Return the command line of the child."""
        options = codec.ServeOptions(
            files=tuple(request.files[name] for name in codec.FILES),
            alias=request.spec.service,
            host=request.host,
            port=request.port,
            key_file=request.key_file,
            threads=request.prefill_threads,
        )
        env = {
            **request.device_env,
            "OMP_NUM_THREADS": str(request.prefill_threads),
            # Threads that spin for one another cost a busy machine several times what they gain an idle one.
            "OMP_WAIT_POLICY": "PASSIVE",
            "OPENBLAS_NUM_THREADS": "1",
            # The model is in the files that were verified; nothing is to be asked of the network.
            "HF_HUB_OFFLINE": "1",
        }
        return plan_child(self.program, options, request, env)
