"""Opens and probes doors to endpoints that others run.

Owns the launch plan of a door and what of an endpoint may be offered. Refuses to start what stands behind it. Called by
the node program.
"""

from collections.abc import Mapping
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
from madang.engine.external import codec
from madang.engine.manifest import Manifest, load_manifest
from madang.engine.settings import ExternalEndpoint, check_external, identity_of_settings
from madang.model import ReplicaSpec

PROGRAM = "madang.engine.external.serve"
TWIN_PROGRAM = "madang.engine.external.twin"


class ExternalDriver:
    """The external engine, or its twin started in its place.

    Args:
        endpoints: those that are registered on this node, by the artifact's id.
        program: PROGRAM, or TWIN_PROGRAM.
    """

    name = "external"

    def __init__(self, endpoints: Mapping[str, ExternalEndpoint] | None = None, program: str = PROGRAM) -> None:
        self.program = program
        self.manifest: Manifest = load_manifest(Path(__file__).parent)
        self._endpoints = dict(endpoints or {})
        for name, endpoint in self._endpoints.items():
            check_external(name, endpoint)

    @property
    def times(self) -> EngineTimes:
        """Return how long things may take."""
        return self.manifest.times

    def identity_of(self, spec: ReplicaSpec) -> str:
        """Return program and registration: a door to another place, or for other data, is not adopted."""
        endpoint = self._endpoints.get(spec.artifact.artifact_id)
        return self.program + (identity_of_settings(endpoint) if endpoint is not None else "")

    def capabilities_for(self, spec: ReplicaSpec) -> EngineCapabilities:
        """Return what the endpoint of a replica can do, as its registration says."""
        base = self.manifest.tasks.get(spec.task)
        if base is None:
            known = ", ".join(self.manifest.tasks)
            raise Rejected(f"replica {spec.replica_id}, model {spec.model}: external serves {known}, not {spec.task}")
        endpoint = self._find(spec)
        return msgspec.structs.replace(
            base,
            has_streaming=base.has_streaming and endpoint.has_streaming,
            features=endpoint.features,
            data_class_max=endpoint.data_class_max,
        )

    def check(self, spec: ReplicaSpec) -> None:
        """Raise Rejected when this node has no such endpoint."""
        self.capabilities_for(spec)

    def plan_launch(self, request: LaunchRequest) -> LaunchPlan:
        """Return the command line of the door."""
        spec = request.spec
        options = codec.ServeOptions(
            endpoint=self._find(spec),
            paths=self.capabilities_for(spec).endpoints,
            alias=spec.service,
            host=request.host,
            port=request.port,
            key_file=request.key_file,
            file=next(iter(request.files.values()), None),
        )
        return plan_child(self.program, options, request, {})

    async def probe(self, endpoint: str, key: str) -> EngineReading:
        """Ask for health, which tells the load as well."""
        return await read_health(endpoint, key, self.manifest.health.path)

    def _find(self, spec: ReplicaSpec) -> ExternalEndpoint:
        endpoint = self._endpoints.get(spec.artifact.artifact_id)
        if endpoint is None:
            known = ", ".join(sorted(self._endpoints)) or "none"
            raise Rejected(
                f"replica {spec.replica_id}: this node has no external endpoint {spec.artifact.artifact_id!r}; it has"
                f" {known}",
                next_step=f"register it in the node's settings, [external_endpoints.{spec.artifact.artifact_id}]",
            )
        return endpoint
