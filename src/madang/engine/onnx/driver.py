"""Launches and probes the onnx engine.

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
from madang.engine.oip_tensors import INFER_PATH
from madang.engine.onnx import codec
from madang.model import ReplicaSpec, Task

PROGRAM = "madang.engine.onnx.serve"
TWIN_PROGRAM = "madang.engine.onnx.twin"


class OnnxDriver(ChildDriver):
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
        super().__init__(program)

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
        # numpy's own thread pool would only hold memory: ONNX Runtime computes with its own.
        env = {**request.device_env, "OPENBLAS_NUM_THREADS": "1"}
        return plan_child(self.program, options, request, env)
