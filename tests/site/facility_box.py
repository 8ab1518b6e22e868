"""The embedded cabinet in virtual time: the site's own mind, alarms and books over the plant, without a wire between.

What devices would answer is taken from the plant point by point; protocols have their own tests.
"""

import asyncio
import io
import json
import re
from pathlib import Path

from tests.site.fresh_database import open_database

from madang.core import NodeId, Rejected, SiteId, Unavailable
from madang.facility.site_file import load_site_file
from madang.federation.layout import make_layout
from madang.federation.plant import armed_actuators, render_facility
from madang.machine.alarm_defaults import default_rules
from madang.machine.alarm_plan import plan_alarms
from madang.machine.sample_book import SampleBook
from madang.model import PriorityClass, Quality, Sample
from madang.runtime.telemetry import EventLog
from madang.sim.plant.faults import PlantFault, apply_fault
from madang.sim.plant.plant import make_plant
from madang.sim.plant.reading import DevicePort
from madang.site.facility.alarm_desk import AlarmDesk
from madang.site.facility.allowed import Allowed
from madang.site.facility.mind import Mind
from madang.site.facility.world import NodeUse, World
from madang.site.guard import GuardedStore

SITE = SiteId("daegu")
NODE = NodeId("daegu-1")
LAYOUT = next(one for one in make_layout(Path("/none"), Path("/none"), 7700).sites if one.name == SITE)
BATCH, CLINICAL = PriorityClass.BATCH, PriorityClass.CLINICAL


class FakeClock:
    """Stands still until it is moved."""

    def __init__(self):
        self.now_s = 1_000_000.0

    def monotonic_ns(self):
        return int(self.now_s * 1e9)

    def wall_s(self):
        return self.now_s


class FakePoller:
    """Takes commands to the plant at once, and can refuse to."""

    def __init__(self, ports, points):
        self.ports, self.points = ports, points
        self.written = []
        self.relinquished = []
        self.is_away = False

    async def wait_first(self):
        return

    async def write(self, device_id, point_id, value):
        if self.is_away:
            raise Unavailable(f"{device_id} does not answer")
        self.written.append((point_id, value))
        self.ports[device_id].set(self.points[device_id][point_id], value)

    async def relinquish(self, device_id, point_id):
        if self.is_away:
            raise Unavailable(f"{device_id} does not answer")
        self.relinquished.append((device_id, point_id))


class Box:
    """One cabinet and what minds it. `tick` is a second."""

    def __init__(self, folder, *, edit=lambda text: text, armed=None, classes=(CLINICAL,), peers=("gumi",)):
        path = folder / "facility.toml"
        path.write_text(edit(render_facility(LAYOUT)), encoding="utf-8")
        self.file = load_site_file(path)
        self.folder = folder
        self.clock = FakeClock()
        self.text = io.StringIO()
        self.log = EventLog(self.clock, self.text)
        battery_wh = {one.ups: one.energy_wh for one in self.file.plan.batteries}
        self.plant = make_plant(self.file.model, outdoor_c=22.0, battery_wh=battery_wh)
        profiles = self.file.profiles
        self.ports = {one.device_id: DevicePort(self.plant, one, profiles[one.device_id]) for one in self.file.devices}
        self.names = {
            one.device_id: {
                point_id: spec.name
                for spec in profiles[one.device_id].points
                if (point_id := spec.point_id(one.equipment, one.parts))
            }
            for one in self.file.devices
        }
        self.armed = armed_actuators(LAYOUT) if armed is None else armed
        self.classes, self.peers = classes, tuple(map(SiteId, peers))
        self.is_drained = False
        self.notices = []
        self.is_deaf = False
        self.silent = set()
        self.changes = 0
        self.database = None
        self.start()

    def start(self):
        """Begin a life of the site program on the same database."""
        if self.database is not None:
            self.database.close()
        self.database = open_database(self.folder / "site.db")
        self.store = GuardedStore(self.database, self.log)
        self.book = SampleBook(self.file.model.points)
        self.allowed = Allowed(self.clock, is_expected=True)
        self.poller = FakePoller(self.ports, self.names)
        model = self.file.model
        self.desk = AlarmDesk(
            plan=plan_alarms(model, default_rules(model)),
            store=self.store,
            send=self._send,
            clock=self.clock,
            log=self.log,
        )
        self.mind = Mind(
            site=SITE,
            world=World(model, self.file.plan, self.book),
            poller=self.poller,
            point_devices=self.file.point_devices,
            armed=self.armed,
            allowed=self.allowed,
            find_use=lambda _: NodeUse(is_drained=self.is_drained, classes=self.classes),
            list_alarms=self.desk.list_alarms,
            list_peers=lambda: self.peers,
            on_change=self._note_change,
            store=self.store,
            clock=self.clock,
            log=self.log,
        )

    async def load(self):
        await self.desk.load()
        await self.mind.load()

    async def _send(self, notice):
        if self.is_deaf:
            raise Unavailable("nobody takes notices")
        self.notices.append(notice)

    def _note_change(self):
        self.changes += 1

    def read(self):
        """Return what every device that is not silent answers now."""
        found = []
        for device in self.file.devices:
            for point_id, name in self.names[device.device_id].items():
                value = None if device.device_id in self.silent else self.ports[device.device_id].get(name)
                point = self.book.points[point_id]
                found.append(
                    Sample(
                        point_id=point_id,
                        value=value,
                        text="" if value is None else point.states.get(int(value), ""),
                        quality=Quality.BAD if value is None else Quality.GOOD,
                        observed_at_s=self.clock.now_s,
                        reason="it does not answer" if value is None else "",
                    )
                )
        return tuple(found)

    async def tick(self, seconds=1):
        """Let seconds pass, each with a poll, a look at alarms and a decision."""
        for _ in range(seconds):
            self.clock.now_s += 1.0
            self.plant.step(1.0)
            samples = self.read()
            self.book.take(samples)
            self.desk.feed(samples)
            await self.desk.judge()
            await self.mind.step()
            await asyncio.sleep(0)  # what was ordered is carried out
            envelope = self.allowed.envelope
            if any(one.state.value != "run" for one in envelope.nodes):
                self.is_drained = True
            else:
                self.is_drained = False

    async def tick_until(self, what, check, within_s):
        """Let seconds pass until `check` holds and return how many; fails naming `what`."""
        for second in range(within_s):
            if check():
                return second
            await self.tick()
        raise AssertionError(f"not within {within_s} virtual seconds: {what}")

    def fault(self, kind, target="", value=0.0, *, is_over=False):
        apply_fault(self.plant, PlantFault(kind=kind, target=target, value=value, is_over=is_over))

    @property
    def server(self):
        return self.plant.servers["server"]

    @property
    def envelope(self):
        return self.allowed.envelope

    def node_state(self):
        return self.envelope.nodes[0].state.value

    def told(self, verb=None, state=None):
        return [
            one
            for one in self.mind.actions
            if (verb is None or one.request.verb == verb) and (state is None or one.state == state)
        ]

    def alarms(self):
        return {
            re.sub(r"^[^/]*/", "", str(one.key)): one.state.value for one in self.desk.list_alarms() if one.is_active
        }

    def events(self):
        return [json.loads(line) for line in self.text.getvalue().splitlines()]

    async def close(self):
        await self.mind.stop()
        await self.desk.stop()
        self.database.close()


__all__ = ["BATCH", "CLINICAL", "NODE", "SITE", "Box", "FakeClock", "Rejected"]
