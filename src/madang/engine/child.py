"""What the drivers of our own engines share: each runs a module of ours as a child, which says at `/health` how it is.

Owns the frame of its command and the reading of its health. Refuses to know what an engine can do. Vendors' engines
have `madang.engine.vendor` instead.
"""

import sys

from madang.core import Unavailable
from madang.engine.child_options import ChildOptions
from madang.engine.contract import EngineCapabilities, EngineReading, LaunchPlan, LaunchRequest, Verdict
from madang.engine.health import parse_health
from madang.engine.loopback import get
from madang.model import ReplicaSpec

PROBE_S = 2.0
_VERDICTS = {"ready": Verdict.READY, "loading": Verdict.LOADING, "sick": Verdict.SICK}


class ChildDriver:
    """An engine that can do the same on every node and for every model, or whatever module is started in its place."""

    capabilities: EngineCapabilities

    def __init__(self, program: str) -> None:
        """Start `program`, a module: the engine's, or its twin's."""
        self.program = program

    def identity_of(self, spec: ReplicaSpec) -> str:  # noqa: ARG002  the same for all
        """Return the program."""
        return self.program

    def capabilities_for(self, spec: ReplicaSpec) -> EngineCapabilities:  # noqa: ARG002  the same for all
        """Return what the engine can and cannot do."""
        return self.capabilities

    async def probe(self, endpoint: str, key: str) -> EngineReading:
        """Ask for health, which tells the load as well."""
        return await read_health(endpoint, key)


def plan_child(program: str, options: ChildOptions, request: LaunchRequest, env: dict[str, str]) -> LaunchPlan:
    """Return how to start a module of ours.

    Args:
        program: the module.
        options: its command line.
        request: what the node gives it.
        env: its variables, those of its devices among them.
    """
    return LaunchPlan(
        # -P: the working folder holds engine logs and must not shadow modules.
        argv=(sys.executable, "-P", "-m", program, *options.to_argv()),
        env=env,
        private_bytes_max=request.private_bytes_max,
    )


async def read_health(endpoint: str, key: str, path: str = "/health") -> EngineReading:
    """Return how a child is; raises nothing for a broken one."""
    try:
        status, body = await get(endpoint, path, key=key, timeout_s=PROBE_S)
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
