"""Launches and probes the llama_cpp engine.

Owns its launch plan and what its answers mean for us. Refuses to start processes. Called by the node program.
"""

import msgspec

from madang.core import Rejected, Unavailable
from madang.engine.child import ChildDriver, plan_child, read_health
from madang.engine.contract import (
    EngineCapabilities,
    EngineReading,
    EngineTimes,
    LaunchPlan,
    LaunchRequest,
    Verdict,
)
from madang.engine.llama_cpp import codec
from madang.engine.loopback import get
from madang.model import EngineFeature, ReplicaSpec, Task

PROGRAM = "madang.engine.llama_cpp.serve"
TWIN_PROGRAM = "madang.engine.llama_cpp.twin"
_METRICS_S = 1.0
_SLOTS_MAX = 64
_CONTEXT_TOKENS_MIN = 256


_SHARE_CORES = {"OMP_WAIT_POLICY": "passive"}
"""Threads that wait for each other sleep instead of spinning. Three engines share two cores in the embedded federation:
with spinning, the median of a short answer under load 9 was 14.9 s, with sleeping 3.1 s (24 tokens, 8 runs each)."""


class LlamaCppDriver(ChildDriver):
    """The llama_cpp engine, or whatever module is started in its place."""

    name = "llama_cpp"
    capabilities = EngineCapabilities(
        endpoints=("/v1/chat/completions", "/v1/completions"),
        has_streaming=True,
        features=(EngineFeature.JSON_SCHEMA, EngineFeature.LOGPROBS),
        limits=(
            "tool calls are returned as text in the content, not parsed",
            "a request that is not streamed is not cancelled when its client goes",
            "a prompt over context_tokens is refused with 400 exceed_context_size_error",
        ),
    )
    times = EngineTimes()

    def __init__(self, program: str = PROGRAM) -> None:
        super().__init__(program)

    def check(self, spec: ReplicaSpec) -> None:
        """Raise Rejected when llama.cpp can never run this specification."""
        artifact = spec.artifact
        where = f"replica {spec.replica_id}, model {spec.model}"
        if spec.task is not Task.CHAT:
            raise Rejected(f"{where}: llama_cpp serves chat models, not {spec.task}")
        if len(artifact.files) != 1:
            raise Rejected(f"{where}: llama_cpp expects one GGUF file, the artifact has {len(artifact.files)}")
        if not 1 <= spec.slots <= _SLOTS_MAX:
            raise Rejected(f"{where}: slots is {spec.slots}; expected 1 to {_SLOTS_MAX}")
        limit = artifact.context_tokens_max or spec.context_tokens
        if not _CONTEXT_TOKENS_MIN <= spec.context_tokens <= limit:
            raise Rejected(
                f"{where}: context_tokens is {spec.context_tokens}; expected {_CONTEXT_TOKENS_MIN} to {limit}"
            )

    def plan_launch(self, request: LaunchRequest) -> LaunchPlan:
        """Return the command line of the child."""
        spec = request.spec
        options = codec.ServeOptions(
            model=request.files[spec.artifact.files[0].name],
            alias=spec.service,
            host=request.host,
            port=request.port,
            key_file=request.key_file,
            slots=spec.slots,
            context_tokens=spec.context_tokens,
            threads=request.threads,
            prefill_threads=request.prefill_threads,
            has_prefix_cache=spec.has_prefix_cache,
        )
        env = {**request.device_env, "OMP_NUM_THREADS": str(request.prefill_threads), **_SHARE_CORES}
        return plan_child(self.program, options, request, env)

    async def probe(self, endpoint: str, key: str) -> EngineReading:
        """Ask for health, and for the load when it is ready."""
        reading = await read_health(endpoint, key)
        if reading.verdict is not Verdict.READY:
            return reading
        load = await self._load(endpoint, key)
        return msgspec.structs.replace(reading, running=load.running, waiting=load.waiting)

    async def _load(self, endpoint: str, key: str) -> codec.Load:
        try:
            status, body = await get(endpoint, "/metrics", key=key, timeout_s=_METRICS_S)
        except Unavailable:
            # Metrics wait for the decoder, which may be busy with a long prompt for seconds: busy, not sick.
            return codec.Load(1, None)
        return codec.parse_metrics(body) if status == 200 else codec.Load(None, None)
