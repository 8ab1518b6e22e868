"""Launches and probes the embed engine.

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
from madang.engine.embed import codec
from madang.model import EngineFeature, ReplicaSpec, Task

PROGRAM = "madang.engine.embed.serve"
TWIN_PROGRAM = "madang.engine.embed.twin"


class EmbedDriver(ChildDriver):
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
        super().__init__(program)

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
        env = {
            **request.device_env,
            "OMP_NUM_THREADS": str(request.prefill_threads),
            # Threads that spin for one another cost a busy machine several times what they gain an idle one.
            "OMP_WAIT_POLICY": "PASSIVE",
            # numpy's own thread pool would only hold memory: the engine computes in C.
            "OPENBLAS_NUM_THREADS": "1",
        }
        return plan_child(self.program, options, request, env)
