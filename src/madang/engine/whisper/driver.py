"""Launches and probes the whisper engine.

Owns its launch plan and what its answers mean for us. Refuses to start processes. Called by the node program.
"""

import sys

from madang.core import Rejected, Unavailable
from madang.engine.contract import (
    EngineCapabilities,
    EngineReading,
    EngineTimes,
    LaunchPlan,
    LaunchRequest,
    Verdict,
)
from madang.engine.health import parse_health
from madang.engine.loopback import get
from madang.engine.whisper import codec
from madang.model import EngineFeature, ReplicaSpec, Task

PROGRAM = "madang.engine.whisper.serve"
TWIN_PROGRAM = "madang.engine.whisper.twin"
_PROBE_S = 2.0
_VERDICTS = {"ready": Verdict.READY, "loading": Verdict.LOADING, "sick": Verdict.SICK}


class WhisperDriver:
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
        self.program = program

    def identity_of(self, spec: ReplicaSpec) -> str:  # noqa: ARG002  the same for all
        """Return the program."""
        return self.program

    def capabilities_for(self, spec: ReplicaSpec) -> EngineCapabilities:  # noqa: ARG002  the same for all
        """Return what the engine can and cannot do."""
        return self.capabilities

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
        return LaunchPlan(
            # -P: the working folder holds engine logs and must not shadow modules.
            argv=(sys.executable, "-P", "-m", self.program, *options.to_argv()),
            env={
                **request.device_env,
                "OMP_NUM_THREADS": str(request.prefill_threads),
                # Threads that spin for one another cost a busy machine several times what they gain an idle one.
                "OMP_WAIT_POLICY": "PASSIVE",
                "OPENBLAS_NUM_THREADS": "1",
                # The model is in the files that were verified; nothing is to be asked of the network.
                "HF_HUB_OFFLINE": "1",
            },
            private_bytes_max=request.private_bytes_max,
        )

    async def probe(self, endpoint: str, key: str) -> EngineReading:
        """Ask for health, which tells the load as well."""
        try:
            status, body = await get(endpoint, "/health", key=key, timeout_s=_PROBE_S)
        except Unavailable as error:
            return EngineReading(verdict=Verdict.SILENT, reason=str(error))
        health = parse_health(status, body)
        return EngineReading(
            verdict=_VERDICTS[health.state],
            reason=health.reason,
            running=health.running,
            waiting=health.waiting,
            is_simulated=health.is_simulated,
        )
