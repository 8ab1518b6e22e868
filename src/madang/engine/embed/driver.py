"""Launches and probes the embed engine.

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
from madang.engine.embed import codec
from madang.engine.health import parse_health
from madang.engine.loopback import get
from madang.model import EngineFeature, ReplicaSpec, Task

PROGRAM = "madang.engine.embed.serve"
TWIN_PROGRAM = "madang.engine.embed.twin"
_PROBE_S = 2.0
_VERDICTS = {"ready": Verdict.READY, "loading": Verdict.LOADING, "sick": Verdict.SICK}


class EmbedDriver:
    """The embed engine, or whatever module is started in its place."""

    name = "embed"
    capabilities = EngineCapabilities(
        endpoints=("/v1/embeddings",),
        has_streaming=False,
        features=(EngineFeature.QUERY_PASSAGE,),
        limits=(
            f"dimensions is always {codec.DIMENSIONS}",
            f"at most {codec.TEXTS_MAX} texts and {codec.REQUEST_TOKENS_MAX} tokens a request",
            "arrays of tokens are refused",
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
        if spec.task is not Task.EMBEDDING:
            raise Rejected(f"{where}: embed serves embedding models, not {spec.task}")
        if len(spec.artifact.files) != 1:
            raise Rejected(f"{where}: embed expects one file, the artifact has {len(spec.artifact.files)}")

    def plan_launch(self, request: LaunchRequest) -> LaunchPlan:
        """Return the command line of the child."""
        options = codec.ServeOptions(
            model=request.files[request.spec.artifact.files[0].name],
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
                # numpy's own thread pool would only hold memory: the engine computes in C.
                "OPENBLAS_NUM_THREADS": "1",
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
