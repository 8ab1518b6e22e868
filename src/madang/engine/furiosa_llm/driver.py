"""Launches and probes Furiosa-LLM's server.

Owns which flags a launch needs, and what must fit: SDK line, compiled programs, granted PEs. Refuses to start
processes. Called by the node program. Names and numbers are in `manifest.toml`.
"""

from pathlib import Path

from madang.core import Rejected
from madang.engine.contract import EngineCapabilities, EngineReading, EngineTimes, LaunchPlan, LaunchRequest
from madang.engine.furiosa_llm import codec
from madang.engine.manifest import Manifest, load_manifest, parse_version
from madang.engine.settings import EngineRuntime
from madang.engine.vendor import VendorCommand, VendorRuntime
from madang.engine.vendor_probe import probe_vendor
from madang.model import ReplicaSpec

PROGRAM = "furiosa-llm"
TWIN_PROGRAM = "madang.engine.furiosa_llm.twin"
_PACKAGE = "furiosa-llm"
_FXB_SINCE = (2026, 4)
_SLOTS_MAX = 1024


class FuriosaLlmDriver:
    """The furiosa_llm engine, or its twin started in its place.

    Args:
        runtime: where it is on this node.
        program: PROGRAM, or TWIN_PROGRAM.
    """

    name = "furiosa_llm"

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
            raise Rejected(
                f"replica {spec.replica_id}, model {spec.model}: furiosa_llm serves {known}, not {spec.task}"
            )
        return found

    def check(self, spec: ReplicaSpec) -> None:
        """Raise Rejected when this engine can never run this specification on this node."""
        where = f"replica {spec.replica_id}, model {spec.model}"
        self.capabilities_for(spec)
        if not 1 <= spec.slots <= _SLOTS_MAX:
            raise Rejected(f"{where}: slots is {spec.slots}; expected 1 to {_SLOTS_MAX}")
        limit = spec.artifact.context_tokens_max or spec.context_tokens
        if not 1 <= spec.context_tokens <= limit:
            raise Rejected(f"{where}: context_tokens is {spec.context_tokens}; expected 1 to {limit}")
        codec.parse_parallelism(spec.artifact.parallelism)
        self._runtime.check()
        version = self._runtime.version(_PACKAGE)
        self.manifest.command_for(version)
        self._runtime.check_sdk(spec, _PACKAGE)
        self._find_program(spec, version)

    def plan_launch(self, request: LaunchRequest) -> LaunchPlan:
        """Return how to start it."""
        spec, place = request.spec, self._runtime.place(request)
        version = self._runtime.version(_PACKAGE)
        needed, granted = codec.parse_parallelism(spec.artifact.parallelism), codec.count_pes(request.devices)
        if needed is not None and needed != granted:
            raise Rejected(
                f"replica {spec.replica_id}, artifact {spec.artifact.artifact_id}: it was compiled for {needed} PEs"
                f" ({spec.artifact.parallelism}), and {granted} were granted",
                next_step=f"enter `chips` or, below one card of {codec.PES_PER_CARD}, `cores` with it in the catalog",
            )
        values = {
            "model": place.folder,
            "fxb": place.folder / self._find_program(spec, version),
            "devices": codec.join_devices(request.devices),
            "host": place.host,
            "port": place.port,
            "alias": spec.service,
            "context_tokens": spec.context_tokens,
            "slots": spec.slots,
        }
        option = "prefix_cache" if spec.has_prefix_cache else "no_prefix_cache"
        arguments = self.manifest.command_for(version).render(values, (option,))
        env = dict(self.manifest.environment)
        return self._runtime.plan(request, VendorCommand(PROGRAM, arguments, env, key_flag="--api-key"))

    async def probe(self, endpoint: str, key: str) -> EngineReading:
        """Ask for health, and for the load when it is ready."""
        return await probe_vendor(self.manifest, endpoint, key)

    def _find_program(self, spec: ReplicaSpec, version: str) -> str:
        """Return the file that holds the compiled programs; raises Rejected when the artifact has none."""
        names = [file.name for file in spec.artifact.files]
        where = f"replica {spec.replica_id}, model {spec.model}: furiosa-llm {version} expects"
        if parse_version(version) < _FXB_SINCE:
            if "artifact.json" not in names:
                raise Rejected(f"{where} artifact.json among the files")
            return "artifact.json"
        bundles = [name for name in names if name.endswith(".fxb")]
        if len(bundles) != 1 or "config.json" not in names:
            raise Rejected(f"{where} config.json and one .fxb among the files, found {', '.join(names)}")
        return bundles[0]
