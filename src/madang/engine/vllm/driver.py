"""Launches and probes vLLM's server.

Owns which flags and variables a launch needs, and the limits of compiled shapes. Refuses to start processes. Called by
the node program. Names and numbers are in `manifest.toml`.
"""

from pathlib import Path

from madang.core import Rejected, Unavailable
from madang.engine.contract import EngineCapabilities, EngineReading, EngineTimes, LaunchPlan, LaunchRequest
from madang.engine.manifest import Manifest, load_manifest
from madang.engine.settings import EngineRuntime
from madang.engine.vendor import VendorCommand, VendorRuntime
from madang.engine.vendor_probe import probe_vendor
from madang.engine.vllm import codec
from madang.model import ReplicaSpec, Task

PROGRAM = "vllm"
TWIN_PROGRAM = "madang.engine.vllm.twin"
_PACKAGE = "vllm"
_RBLN_SDK = "rebel-compiler"
_KINDS = ("cpu", "nvidia", "rebellions")
_SLOTS_MAX = 1024


class VllmDriver:
    """The vllm engine, or its twin started in its place.

    Args:
        runtime: where it is on this node.
        program: PROGRAM, or TWIN_PROGRAM.
    """

    name = "vllm"

    def __init__(self, runtime: EngineRuntime | None = None, program: str = PROGRAM) -> None:
        self.program = program
        self.manifest: Manifest = load_manifest(Path(__file__).parent)
        self._runtime = VendorRuntime(self.manifest, runtime, program if program == TWIN_PROGRAM else "")

    @property
    def times(self) -> EngineTimes:
        """Return how long things may take."""
        return self.manifest.times

    def identity_of(self, spec: ReplicaSpec) -> str:  # noqa: ARG002  the same for all
        """Return program and runtime: an engine of another one is not adopted."""
        return self.program + self._runtime.identity

    def capabilities_for(self, spec: ReplicaSpec) -> EngineCapabilities:
        """Return what it can and cannot do with a model of this task."""
        found = self.manifest.tasks.get(spec.task)
        if found is None:
            known = ", ".join(self.manifest.tasks)
            raise Rejected(f"replica {spec.replica_id}, model {spec.model}: vllm serves {known}, not {spec.task}")
        return found

    def check(self, spec: ReplicaSpec) -> None:
        """Raise Rejected when this engine can never run this specification on this node."""
        where = f"replica {spec.replica_id}, model {spec.model}"
        self.capabilities_for(spec)
        kind = _kind(spec)
        names = {file.name for file in spec.artifact.files}
        if "config.json" not in names:
            raise Rejected(f"{where}: vllm expects the files of a model's folder, config.json among them")
        if kind == "rebellions" and codec.CONFIG_FILE not in names:
            raise Rejected(f"{where}: for Rebellions chips vllm expects {codec.CONFIG_FILE}, which optimum-rbln writes")
        if not 1 <= spec.slots <= _SLOTS_MAX:
            raise Rejected(f"{where}: slots is {spec.slots}; expected 1 to {_SLOTS_MAX}")
        limit = spec.artifact.context_tokens_max or spec.context_tokens
        if not 1 <= spec.context_tokens <= limit:
            raise Rejected(f"{where}: context_tokens is {spec.context_tokens}; expected 1 to {limit}")
        self._runtime.check()
        self.manifest.command_for(self._runtime.version(_PACKAGE))
        if kind == "rebellions":
            self._runtime.check_sdk(spec, _RBLN_SDK)

    def plan_launch(self, request: LaunchRequest) -> LaunchPlan:
        """Return how to start it."""
        spec, place = request.spec, self._runtime.place(request)
        kind = _kind(spec)
        line = self.manifest.command_for(self._runtime.version(_PACKAGE))
        shape = self._shape(request) if kind == "rebellions" else None
        values = {
            "model": place.folder,
            "host": place.host,
            "port": place.port,
            "alias": spec.service,
            "context_tokens": shape.context_tokens if shape else spec.context_tokens,
            "slots": shape.batch if shape else spec.slots,
            "devices_count": len(request.devices),
        }
        wanted = ["prefix_cache" if spec.has_prefix_cache else "no_prefix_cache"]
        wanted += ["tensor_parallel"] if kind == "nvidia" and len(request.devices) > 1 else []
        wanted += ["embedding"] if spec.task is Task.EMBEDDING else []
        arguments = line.render(values, wanted)
        env = {**self.manifest.environment, **self._device_env(kind, request)}
        return self._runtime.plan(request, VendorCommand(PROGRAM, arguments, env, key_variable="VLLM_API_KEY"))

    async def probe(self, endpoint: str, key: str) -> EngineReading:
        """Ask for health, and for the load when it is ready."""
        return await probe_vendor(self.manifest, endpoint, key)

    def _shape(self, request: LaunchRequest) -> codec.CompiledShape:
        """Return what the artifact was compiled for; raises Rejected when the replica or the grant does not fit it."""
        spec = request.spec
        where = f"replica {spec.replica_id}, artifact {spec.artifact.artifact_id}"
        try:
            shape = codec.parse_rbln_config(request.files[codec.CONFIG_FILE].read_bytes())
        except OSError as error:
            raise Unavailable(f"{where}: {codec.CONFIG_FILE} cannot be read: {error.strerror}") from error
        for what, wanted, most in (
            ("slots", spec.slots, shape.batch),
            ("context_tokens", spec.context_tokens, shape.context_tokens),
        ):
            if wanted > most:
                raise Rejected(f"{where}: {what} is {wanted}; it was compiled for at most {most}")
        if len(request.devices) != shape.devices:
            raise Rejected(
                f"{where}: it was compiled for {shape.devices} devices, and {len(request.devices)} were granted"
            )
        return shape

    def _device_env(self, kind: str, request: LaunchRequest) -> dict[str, str]:
        env = dict(self.manifest.kind_environment[kind])
        if kind == "cpu":
            return env | {"OMP_NUM_THREADS": str(request.threads)}
        shown = codec.rbln_numbers(request.devices) if kind == "rebellions" else ",".join(request.devices)
        if not shown:
            raise Rejected(f"replica {request.spec.replica_id}: no device was granted, and vllm would take all")
        threads = {"RBLN_NUM_THREADS": str(request.threads)} if kind == "rebellions" else {}
        return env | dict.fromkeys(self.manifest.device_variables[kind], shown) | threads


def _kind(spec: ReplicaSpec) -> str:
    kinds = spec.artifact.chip_kinds
    if len(kinds) != 1 or kinds[0] not in _KINDS:
        raise Rejected(
            f"replica {spec.replica_id}: a vllm artifact is for one kind of chip of {', '.join(_KINDS)}, found"
            f" {', '.join(kinds) or 'none'}"
        )
    return kinds[0]
