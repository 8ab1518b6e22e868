"""The plant twin as a process: plants in real time, served over their devices' own protocols.

Owns the loop, the twins and the control socket. Refuses to know physics and protocols, and to be known: a site reads
it as it reads any device. Run by the supervisor as `python -m madang.sim.plant --config FILE`; everything it answers
is simulated, and the site file says so of each device.
"""

import asyncio
import math
import signal
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import httpx
import msgspec

from madang.core import Clock, MadangError, Rejected, ns_to_s
from madang.facility.contract import Device, Secret, Twin, TwinFault
from madang.facility.roster import make_twin
from madang.facility.site_file import SiteFile, load_site_file
from madang.model import EquipmentKind
from madang.runtime.clock import SystemClock
from madang.runtime.control_socket import LINE_BYTES_MAX, answer_with, open_control
from madang.runtime.device_secrets import find_secret
from madang.runtime.http_trust import trust_for
from madang.runtime.settings import load_settings
from madang.runtime.telemetry import EventLog
from madang.sim.plant.faults import apply_fault
from madang.sim.plant.plant import Plant, make_plant
from madang.sim.plant.reading import DevicePort
from madang.sim.plant.settings import (
    CONTROL_SOCKET,
    PlantCommand,
    PlantReply,
    PlantSettings,
    PlantSite,
    PlantState,
)

CATCH_UP_S_MAX = 5.0
"""A process that was stopped for longer does not live through all of it at once."""
METRICS_BYTES_MAX = 1 << 20
_UTILISATION = "madang_node_chip_utilisation_ratio{"


class SimulatedSite:
    """One site's plant and the twins of its devices."""

    def __init__(self, settings: PlantSite, file: SiteFile, log: EventLog) -> None:
        """Make the plant in its steady state and the twins, which do not listen yet."""
        self.settings = settings
        battery_wh = {one.ups: one.energy_wh for one in file.plan.batteries}
        self.plant: Plant = make_plant(file.model, outdoor_c=settings.outdoor_c, battery_wh=battery_wh)
        self.servers = {
            str(one.node): one.equipment_id
            for one in file.model.equipment
            if one.kind is EquipmentKind.SERVER and one.node
        }
        self.device_faults: dict[str, str] = {}
        self.twins: dict[str, Twin] = {}
        for device in file.devices:
            if device.is_simulated:
                profile = file.profiles[device.device_id]
                port = DevicePort(self.plant, device, profile)
                self.twins[device.device_id] = make_twin(device, profile, self._secret(device), port)
        self._log = log

    def _secret(self, device: Device) -> Secret:
        return find_secret(self.settings.secrets_dir, device.secret) if device.secret else Secret()

    async def start(self) -> None:
        """Listen for every device."""
        for device_id, twin in self.twins.items():
            await twin.start()
            self._log.info("twin_listening", site=self.settings.name, device=device_id, address=twin.address)

    async def stop(self) -> None:
        """Answer no longer."""
        for twin in self.twins.values():
            await twin.stop()

    def misbehave(self, device_id: str, kind: str) -> None:
        """Let a device misbehave, or with an empty kind no longer; raises Rejected for one that is not there."""
        twin = self.twins.get(device_id)
        if twin is None:
            raise Rejected(
                f"site {self.settings.name} has no simulated device {device_id!r}",
                next_step=f"take one of {', '.join(self.twins)}",
            )
        twin.fault(TwinFault(kind=kind) if kind else None)
        if kind:
            self.device_faults[device_id] = kind
        else:
            self.device_faults.pop(device_id, None)

    def state(self) -> PlantState:
        """Return what it is like now."""
        plant = self.plant
        utilities = [name for name, one in plant.equipment.items() if one.kind is EquipmentKind.UTILITY]
        return PlantState(
            site=self.settings.name,
            now_s=round(plant.now_s, 1),
            is_utility_on=plant.is_utility_on,
            outdoor_c=plant.room.outdoor_c,
            it_w=round(sum(server.power_w for server in plant.servers.values()), 1),
            utility_w=round(sum(plant.power_w[name] for name in utilities), 1),
            inlet_c={rack: round(air.inlet_c, 2) for rack, air in plant.room.racks.items()},
            charge={name: round(ups.battery.charge, 4) for name, ups in plant.upses.items()},
            runtime_s={name: _finite(ups.runtime_s()) for name, ups in plant.upses.items()},
            cooling={name: unit.is_running for name, unit in plant.room.units.items()},
            servers={
                name: {
                    "power_w": round(server.power_w, 1),
                    "cap_w": server.cap_w,
                    "utilisation": round(server.utilisation, 3),
                    "is_on": server.is_on and not server.is_shut_by_heat,
                }
                for name, server in plant.servers.items()
            },
            open_breakers=tuple(name for name, breaker in plant.breakers.items() if breaker.is_open),
            flags={name: tuple(sorted(words)) for name, words in plant.flags.items() if words},
            devices={name: twin.address for name, twin in self.twins.items()},
            device_faults=dict(self.device_faults),
        )


def _finite(seconds: float) -> float:
    return round(seconds, 1) if math.isfinite(seconds) else -1.0


class PlantProgram:
    """All simulated sites of one process."""

    def __init__(self, settings: PlantSettings, sites: Iterable[SimulatedSite], clock: Clock, log: EventLog) -> None:
        self._settings = settings
        self._sites = {site.settings.name: site for site in sites}
        self._clock = clock
        self._log = log
        self._silent: set[str] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop`; raises Unavailable when a port is taken."""
        try:
            for site in self._sites.values():
                await site.start()
            control = await asyncio.start_unix_server(
                answer_with(self._serve, self._log),
                sock=open_control(self._settings.run_dir, CONTROL_SOCKET),
                limit=LINE_BYTES_MAX,
            )
            async with control, asyncio.TaskGroup() as group:
                self._log.info("plant_ready", sites=sorted(self._sites))
                tasks = [group.create_task(self._advance()), group.create_task(self._follow_load())]
                await stop.wait()
                for task in tasks:
                    task.cancel()
        finally:
            for site in self._sites.values():
                await site.stop()

    async def _advance(self) -> None:
        then_ns = self._clock.monotonic_ns()
        while True:
            await asyncio.sleep(self._settings.step_s)
            now_ns = self._clock.monotonic_ns()
            passed_s = min(ns_to_s(now_ns - then_ns), CATCH_UP_S_MAX)
            then_ns = now_ns
            for site in self._sites.values():
                site.plant.step(passed_s * self._settings.speed)

    async def _follow_load(self) -> None:
        """Let servers be as busy as the chips of their nodes are; a node that is away is idle."""
        async with httpx.AsyncClient(trust_env=False, timeout=2.0, verify=trust_for("http://")) as client:
            while True:
                for site in self._sites.values():
                    for node, url in site.settings.node_metrics.items():
                        load = await self._read_load(client, node, url)
                        if node in site.servers:
                            site.plant.set_load({site.servers[node]: load})
                await asyncio.sleep(self._settings.load_period_s)

    async def _read_load(self, client: httpx.AsyncClient, node: str, url: str) -> float:
        try:
            answer = await client.get(url)
            answer.raise_for_status()
        except httpx.HTTPError as error:
            if node not in self._silent:
                self._silent.add(node)
                self._log.warning("node_load_unknown", node=node, reason=str(error) or type(error).__name__)
            return 0.0
        self._silent.discard(node)
        return read_utilisation(answer.text[:METRICS_BYTES_MAX])

    async def _serve(self, line: bytes) -> bytes:
        try:
            reply = PlantReply(sites=self._obey(msgspec.json.decode(line, type=PlantCommand)))
        except (MadangError, msgspec.MsgspecError) as error:
            reply = PlantReply(error=str(error))
        return msgspec.json.encode(reply)

    def _obey(self, command: PlantCommand) -> tuple[PlantState, ...]:
        if command.site and command.site not in self._sites:
            raise Rejected(
                f"site {command.site!r} has no simulated plant",
                next_step=f"take one of {', '.join(sorted(self._sites))}",
            )
        chosen = [self._sites[command.site]] if command.site else list(self._sites.values())
        if command.verb == "fault" and command.fault is not None and command.site:
            apply_fault(chosen[0].plant, command.fault)
            self._log.info("plant_fault", site=command.site, **msgspec.structs.asdict(command.fault))
        elif command.verb == "device" and command.site:
            chosen[0].misbehave(command.device, command.device_fault)
            self._log.info("device_fault", site=command.site, device=command.device, kind=command.device_fault)
        elif command.verb != "status":
            raise Rejected("expected the verb status, or fault or device with a site")
        return tuple(site.state() for site in chosen)


def read_utilisation(text: str) -> float:
    """Return the highest utilisation of a node's chips in its metrics; 0 without any."""
    found = 0.0
    for line in text.splitlines():
        if line.startswith(_UTILISATION):
            with suppress(ValueError):
                value = float(line.rsplit(" ", 1)[1])
                found = max(found, value) if math.isfinite(value) else found
    return min(1.0, found)


def main(config: Path) -> int:
    """Run the plant twin until SIGTERM and return the exit status."""
    log = EventLog(SystemClock(), program="plant")
    status = 0
    try:
        settings = load_settings(PlantSettings, config, env_prefix="MADANG_PLANT_")
        asyncio.run(_run(settings, log))
    except* MadangError as group:
        log.error("plant_failed", reason="; ".join(_reasons(group)))
        status = 1
    return status


def _reasons(group: BaseExceptionGroup[BaseException]) -> list[str]:
    found: list[str] = []
    for error in group.exceptions:
        found += _reasons(error) if isinstance(error, BaseExceptionGroup) else [str(error)]
    return found


async def _run(settings: PlantSettings, log: EventLog) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    sites = [SimulatedSite(site, load_site_file(site.site_file), log) for site in settings.sites]
    await PlantProgram(settings, sites, SystemClock(), log).run(stop)
