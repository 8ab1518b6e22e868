"""What is true of a small site: currents, breakers, BMCs, meters, a battery and heat. Written apart from the policies.

Two breakers over six servers: n1 to n4 have a cord on each, n5 and n6 on A only. Breaker A hangs on a UPS. Breakers are
bimetals: the square of the load heats them with a time constant, and they trip at what 1.13 times the rating holds them
at for ever (IEC 60898-1's conventional non-tripping current).
"""

import math
import random
from dataclasses import dataclass, field

from madang.core import NodeId, SiteId
from madang.model import (
    Edge,
    EdgeKind,
    Equipment,
    EquipmentKind,
    Fact,
    NodeState,
    Point,
    PointKind,
    PriorityClass,
    Quality,
    Quantity,
    Ratings,
    Sample,
    SiteModel,
    Verb,
)
from madang.policy.power.view import Demand, NodeLoad, View

PLATE_W = 2000.0
LEAST_W = 600.0
RATINGS_W = {"brk_a": 9000.0, "brk_b": 6000.0}
UPS_W = 11000.0
DUAL = ("n1", "n2", "n3", "n4")
SINGLE = ("n5", "n6")
NODES = DUAL + SINGLE
CLASSES = {
    "n1": (PriorityClass.CLINICAL,),
    "n2": (PriorityClass.CLINICAL, PriorityClass.INTERACTIVE),
    "n3": (PriorityClass.INTERACTIVE,),
    "n4": (PriorityClass.INTERACTIVE,),
    "n5": (PriorityClass.BATCH,),
    "n6": (PriorityClass.BATCH,),
}
TAU_S = 310.0
TRIP = 1.13**2
STOP_S = 5.5
BATTERY_WH = 1500.0
HEAT_J_PER_K = 1.2e6
COOLING_W = 16000.0
START_S = 1_000_000.0


def make_model():
    def point(owner, name, quantity, kind=PointKind.METER, states=None, context=""):
        return Point(
            point_id=f"{owner}.{name}", equipment_id=owner, name=name, kind=kind, quantity=quantity, stale_s=10.0,
            states=states or {}, context=context, is_simulated=True,
        )  # fmt: skip

    def state(owner, words):
        return point(owner, "state", Quantity.STATE, PointKind.STATUS, dict(enumerate(words)))

    kinds = EquipmentKind
    equipment = [
        Equipment(equipment_id="utility", kind=kinds.UTILITY),
        Equipment(equipment_id="ups", kind=kinds.UPS, ratings=Ratings(power_w=UPS_W, energy_wh=BATTERY_WH)),
        Equipment(equipment_id="brk_a", kind=kinds.BREAKER, ratings=Ratings(power_w=RATINGS_W["brk_a"])),
        Equipment(equipment_id="brk_b", kind=kinds.BREAKER, ratings=Ratings(power_w=RATINGS_W["brk_b"])),
        Equipment(equipment_id="crac", kind=kinds.COOLING_UNIT),
        Equipment(equipment_id="room", kind=kinds.ROOM),
        Equipment(equipment_id="leak1", kind=kinds.LEAK_DETECTOR, rack="rack2"),
        Equipment(equipment_id="cdu", kind=kinds.CDU),
        Equipment(equipment_id="smoke1", kind=kinds.SMOKE_DETECTOR),
        Equipment(equipment_id="fire", kind=kinds.FIRE_SUPPRESSION),
        Equipment(equipment_id="interlock", kind=kinds.INTERLOCK),
        *(
            Equipment(
                equipment_id=f"server_{node}", kind=kinds.SERVER, node=NodeId(node),
                rack="rack1" if node in DUAL else "rack2", ratings=Ratings(power_w=PLATE_W),
            )
            for node in NODES
        ),
    ]  # fmt: skip
    feeds = [("utility", "ups"), ("ups", "brk_a"), ("utility", "brk_b")]
    feeds += [("brk_a", f"server_{node}") for node in NODES] + [("brk_b", f"server_{node}") for node in DUAL]
    edges = [Edge(kind=EdgeKind.FEEDS, source=source, target=target) for source, target in feeds]
    edges += [Edge(kind=EdgeKind.COOLS, source="crac", target=rack) for rack in ("rack1", "rack2")]
    edges.append(Edge(kind=EdgeKind.MEASURES, source="leak1", target="cdu"))
    equipment += [Equipment(equipment_id=rack, kind=kinds.RACK) for rack in ("rack1", "rack2")]
    points = [
        state("utility", ("normal", "lost")),
        state("ups", ("normal", "on_battery")),
        state("crac", ("running", "failed")),
        state("room", ("empty", "occupied")),
        state("leak1", ("dry", "leak")),
        state("smoke1", ("clear", "smoke")),
        state("interlock", ("closed", "isolate_liquid", "isolate_electrical")),
        point("brk_a", "power", Quantity.POWER),
        point("brk_b", "power", Quantity.POWER),
        point("crac", "setpoint_supply", Quantity.TEMPERATURE, PointKind.SETPOINT, context="supply"),
    ]
    return SiteModel(site=SiteId("daegu"), equipment=tuple(equipment), edges=tuple(edges), points=tuple(points))


@dataclass
class Server:
    """One server with its BMC; `ignores`: takes caps, reads them back, and does nothing."""

    load_w: float = 400.0
    is_on: bool = True
    is_stopped: bool = False
    cap_w: float | None = None
    active_w: float | None = None
    lag_s: float = 2.0
    ignores: bool = False
    is_silent: bool = False
    meter: str = "good"
    drains_s: float | None = None
    due: list = field(default_factory=list)
    loses_stops: int = 0
    read_s: float = START_S
    read_w: float = 0.0

    def draw_w(self, powered):
        if not powered:
            return 0.0
        if not self.is_on:
            return 20.0
        wanted = min(max(self.load_w, 120.0), PLATE_W)
        return wanted if self.ignores or self.active_w is None else min(wanted, max(self.active_w, LEAST_W))


class World:
    """The site as it is; `step` lets time pass, `view` is what is known of it."""

    def __init__(self, seed=0):
        self.chance = random.Random(seed)
        self.now_s = START_S
        self.servers = {node: Server() for node in NODES}
        self.is_live = {"brk_a": True, "brk_b": True}
        self.heat = dict.fromkeys(RATINGS_W, 0.4)
        self.over_s = dict.fromkeys(RATINGS_W, 0.0)
        self.meters = dict.fromkeys(RATINGS_W, "good")
        self.meter_reads = {name: (START_S, 0.0) for name in RATINGS_W}
        self.has_utility = True
        self.has_cooling = True
        self.is_occupied = False
        self.are_signs_read = True
        self.is_runtime_read = True
        self.signs = {"leak1": 0, "smoke1": 0, "interlock": 0}
        self.battery_wh = BATTERY_WH
        self.inlet_c = 22.0
        self.heat_j_per_k = HEAT_J_PER_K
        self.suspect_s = dict.fromkeys(RATINGS_W, -math.inf)
        self.trips = []
        self.violations = []
        self.cut_nodes = []
        self.is_loss_seen = True
        self.is_heat_seen = True

    # Physics

    def is_powered(self, node):
        return self.is_fed("brk_a") or (node in DUAL and self.is_fed("brk_b"))

    def is_fed(self, name):
        if not self.is_live[name]:
            return False
        return self.has_utility or (name == "brk_a" and self.battery_wh > 0.0)

    def load_of(self, name):
        if not self.is_fed(name):
            return 0.0
        other = "brk_b" if name == "brk_a" else "brk_a"
        total = 0.0
        for node, server in self.servers.items():
            if name == "brk_b" and node not in DUAL:
                continue
            is_shared = node in DUAL and self.is_fed(other)
            total += server.draw_w(self.is_powered(node)) * (0.5 if is_shared else 1.0)
        return total

    def it_w(self):
        return sum(server.draw_w(self.is_powered(node)) for node, server in self.servers.items())

    def step(self, dt_s):
        self.now_s += dt_s
        for server in self.servers.values():
            for due in [one for one in server.due if one[0] <= self.now_s]:
                server.due.remove(due)
                due[1]()
        for name, rating_w in RATINGS_W.items():
            ratio = self.load_of(name) / rating_w
            self.heat[name] += (ratio**2 - self.heat[name]) * (1.0 - math.exp(-dt_s / TAU_S))
            self.over_s[name] = self.over_s[name] + dt_s if ratio > 1.0 else 0.0
            if self.heat[name] >= TRIP:
                self.trips.append((name, self.now_s, ratio))
            if any(self._is_suspect(node) for node in (NODES if name == "brk_a" else DUAL)):
                self.suspect_s[name] = self.now_s
            elif ratio > 1.0 and self.now_s - self.suspect_s[name] > 120.0:
                self.violations.append((name, self.now_s, ratio))
        self._step_battery(dt_s)
        self._step_heat(dt_s)

    def _step_battery(self, dt_s):
        drawn_w = self.load_of("brk_a")
        if not self.has_utility:
            self.battery_wh = max(0.0, self.battery_wh - drawn_w * dt_s / 3600.0)
            on = [node for node in NODES if self.servers[node].is_on]
            self.is_loss_seen = self.is_loss_seen and self.are_signs_read
            if self.battery_wh == 0.0 and on and self.is_loss_seen:
                self.cut_nodes.append((self.now_s, on))
        else:
            self.is_loss_seen = True
            self.battery_wh = min(BATTERY_WH, self.battery_wh + 500.0 * dt_s / 3600.0)

    def _step_heat(self, dt_s):
        heat_w = self.it_w()
        # What fails while neither cooling nor inlet is read is nobody's to answer for.
        if self.has_cooling:
            self.is_heat_seen = True
        elif not self.are_signs_read and self.inlet_c < 24.0:
            self.is_heat_seen = False
        is_cooled = self.has_cooling and (self.has_utility or self.battery_wh > 0.0)
        steps = max(1, math.ceil(dt_s / 30.0))
        for _ in range(steps):
            cooled_w = COOLING_W * min(1.0, max(0.0, (self.inlet_c - 20.0) / 2.0)) if is_cooled else 0.0
            gained_w = heat_w - cooled_w - 37.0 * (self.inlet_c - 30.0)
            self.inlet_c += gained_w * dt_s / steps / self.heat_j_per_k

    def _is_suspect(self, node):
        """Whether a BMC does not do as it was told: then only the curve is promised."""
        server = self.servers[node]
        return server.ignores or server.active_w is None or server.lag_s > 5.5

    # What is done to it

    def perform(self, action):
        request = action.request
        server = self.servers.get(request.target)
        if server is None:
            return
        match request.verb:
            case Verb.CAP if not server.is_silent:
                server.due.append((self.now_s + 0.5, lambda: setattr(server, "cap_w", request.value)))
                server.due.append((self.now_s + server.lag_s, lambda: setattr(server, "active_w", request.value)))
            case Verb.STOP:
                if server.loses_stops > 0:
                    server.loses_stops -= 1
                else:
                    server.due.append((self.now_s + STOP_S, lambda: self._turn(server, is_on=False)))
            case Verb.DRAIN:
                server.drains_s = self.now_s
            case Verb.RESUME:
                server.drains_s = None
                if not server.is_on:
                    server.due.append((self.now_s + STOP_S, lambda: self._turn(server, is_on=True)))

    @staticmethod
    def _turn(server, *, is_on):
        server.is_on = is_on

    # What is known of it

    def read(self):
        """Let every device be polled."""
        for node, server in self.servers.items():
            if server.meter != "stale" and not server.is_silent:
                factor = {"low": 0.5, "high": 1.6}.get(server.meter, 1.0)
                server.read_s, server.read_w = self.now_s, server.draw_w(self.is_powered(node)) * factor
        for name, meter in self.meters.items():
            if meter != "stale":
                factor = {"low": 0.5, "high": 1.4}.get(meter, 1.0)
                self.meter_reads[name] = (self.now_s, self.load_of(name) * factor)

    def view(self, envelope=None, held=()):
        samples = {}
        for name, (at_s, value) in self.meter_reads.items():
            quality = Quality.BAD if self.meters[name] == "bad" else Quality.GOOD
            samples[f"{name}.power"] = Sample(
                point_id=f"{name}.power", value=None if quality is Quality.BAD else value, quality=quality,
                observed_at_s=at_s,
            )  # fmt: skip
        words = {
            "utility": ("normal", "lost")[not self.has_utility],
            "ups": ("normal", "on_battery")[not self.has_utility],
            "crac": ("running", "failed")[not self.has_cooling],
            "room": ("empty", "occupied")[self.is_occupied],
            "leak1": ("dry", "leak")[self.signs["leak1"]],
            "smoke1": ("clear", "smoke")[self.signs["smoke1"]],
            "interlock": ("closed", "isolate_liquid", "isolate_electrical")[self.signs["interlock"]],
        }
        for owner, word in words.items():
            samples[f"{owner}.state"] = Sample(
                point_id=f"{owner}.state", value=0.0, text=word, quality=Quality.GOOD,
                observed_at_s=self.now_s if self.are_signs_read else self.now_s - 60.0,
            )  # fmt: skip
        states = {one.node: one.state for one in envelope.nodes} if envelope else {}
        drawn_w = max(self.load_of("brk_a"), 300.0)
        return View(
            now_s=self.now_s,
            samples=samples,
            nodes={NodeId(node): self._load(node, states.get(node, NodeState.RUN)) for node in NODES},
            runtime_s=self._fact(self.battery_wh * 3600.0 / drawn_w * 0.9, is_read=self.is_runtime_read),
            charge_percent=self._fact(100.0 * self.battery_wh / BATTERY_WH),
            thermal_margin_k=self._fact(32.0 - self.inlet_c, is_read=self.are_signs_read),
            time_to_limit_s=Fact(value=None, quality=Quality.BAD),
            demand=Demand(),
            peers=(SiteId("gumi"),),
            held=tuple(held),
            is_simulated=True,
        )

    def _fact(self, value, *, is_read=True, age_s=0.0):
        return Fact(value=value if is_read else None, quality=Quality.GOOD if is_read else Quality.BAD, age_s=age_s)

    def _load(self, node, state):
        server = self.servers[node]
        age_s = self.now_s - server.read_s
        is_answered = not server.is_silent
        drained = server.drains_s is not None and self.now_s - server.drains_s >= 20.0
        return NodeLoad(
            node=NodeId(node),
            power_w=self._fact(server.read_w, is_read=server.meter != "bad", age_s=age_s),
            cap_w=self._fact(server.cap_w, is_read=is_answered),
            cap_w_min=LEAST_W,
            cap_w_max=PLATE_W,
            is_on=server.is_on if is_answered else None,
            state=state,
            is_drained=drained,
            classes=CLASSES[node],
            drain_s=60.0,
            stop_s=30.0,
        )
