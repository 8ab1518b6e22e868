"""Launches and probes the onnx engine.

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
from madang.engine.oip_tensors import INFER_PATH
from madang.engine.onnx import codec
from madang.model import ReplicaSpec, Task

PROGRAM = "madang.engine.onnx.serve"
TWIN_PROGRAM = "madang.engine.onnx.twin"
_PROBE_S = 2.0
_VERDICTS = {"ready": Verdict.READY, "loading": Verdict.LOADING, "sick": Verdict.SICK}


class OnnxDriver:
    """The onnx engine, or whatever module is started in its place."""

    name = "onnx"
    capabilities = EngineCapabilities(
        endpoints=(INFER_PATH,),
        has_streaming=False,
        limits=(
            f"a request of at most {codec.BODY_BYTES_MAX // 2**20} MiB",
            "tensors only, of any type but bfloat16; FP16 in binary form only",
            "requests share a computation only where the model gave each row the same alone and in company",
        ),
    )
    times = EngineTimes(start_s_max=120.0)

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
        if spec.task is not Task.INFER:
            raise Rejected(f"{where}: onnx serves models of task {Task.INFER}, not {spec.task}")
        names = [file.name for file in spec.artifact.files]
        if len(names) != 1 or not names[0].endswith(".onnx"):
            raise Rejected(f"{where}: onnx expects one file NAME.onnx, found {', '.join(names)}")

    def plan_launch(self, request: LaunchRequest) -> LaunchPlan:
        """Return the command line of the child."""
        options = codec.ServeOptions(
            model=request.files[request.spec.artifact.files[0].name],
            alias=request.spec.service,
            host=request.host,
            port=request.port,
            key_file=request.key_file,
            threads=request.prefill_threads,
            # Gateways send a replica as many requests at a time as it has slots, so more never meet.
            batch_rows=max(1, min(request.spec.slots, codec.BATCH_ROWS_MAX)),
        )
        return LaunchPlan(
            # -P: the working folder holds engine logs and must not shadow modules.
            argv=(sys.executable, "-P", "-m", self.program, *options.to_argv()),
            # numpy's own thread pool would only hold memory: ONNX Runtime computes with its own.
            env={**request.device_env, "OPENBLAS_NUM_THREADS": "1"},
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
