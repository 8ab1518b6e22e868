"""Settings and control messages of the plant twin.

Owns their shape. Refuses to know sockets: `madang.sim.plant.program` has them, and `madang sim` asks.
"""

from pathlib import Path
from typing import Any

import msgspec

from madang.sim.plant.faults import PlantFault

CONTROL_SOCKET = "plant.sock"


class PlantSite(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One site whose plant is simulated.

    Attributes:
        site_file: names the devices; those with `is_simulated` are answered here.
        secrets_dir: what the devices want to know, as the site has it.
        node_metrics: node name → URL of its `/metrics`: the utilisation of its chips is its server's load.
        outdoor_c: at the start.
    """

    name: str
    site_file: Path
    secrets_dir: Path
    node_metrics: dict[str, str] = {}
    outdoor_c: float = 22.0


class PlantSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The plant twin of one or more sites, in one process.

    Attributes:
        run_dir: holds the control socket.
        step_s: how often the plants are advanced, real time.
        speed: plant seconds for each real second.
        load_period_s: how often nodes are asked how busy they are.
    """

    run_dir: Path
    sites: tuple[PlantSite, ...]
    step_s: float = 0.25
    speed: float = 1.0
    load_period_s: float = 1.0


class PlantCommand(msgspec.Struct, frozen=True, kw_only=True):
    """What can be asked on the control socket.

    Attributes:
        verb: `status`, `fault` or `device`.
        fault: of `fault`.
        device, device_fault: of `device`: how a device misbehaves; empty: no longer.
    """

    verb: str
    site: str = ""
    fault: PlantFault | None = None
    device: str = ""
    device_fault: str = ""


class PlantState(msgspec.Struct, frozen=True, kw_only=True):
    """What a simulated site is like now: SI units and degrees Celsius; `faults` as words."""

    site: str
    now_s: float
    is_utility_on: bool
    outdoor_c: float
    it_w: float
    utility_w: float
    inlet_c: dict[str, float]
    charge: dict[str, float]
    runtime_s: dict[str, float]
    cooling: dict[str, bool]
    servers: dict[str, dict[str, Any]]
    open_breakers: tuple[str, ...]
    flags: dict[str, tuple[str, ...]]
    devices: dict[str, str]
    device_faults: dict[str, str]
    is_simulated: bool = True


class PlantReply(msgspec.Struct, frozen=True, kw_only=True):
    """The answer; `error` says why nothing was done."""

    sites: tuple[PlantState, ...] = ()
    error: str = ""
