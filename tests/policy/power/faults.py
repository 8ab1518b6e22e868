"""Random faults over the oracle's world: loads jump, feeds fail, meters lie, BMCs ignore caps, people enter.

Quiet hours are stepped over: a second at a time from each event on until nothing has changed for a while, then in long
steps to the next event. What the authority's promise rests on is kept: a meter lies only while the other one over the
same load is read.
"""

import random

from tests.policy.power.oracle_world import DUAL, NODES, PLATE_W, RATINGS_W
from tests.policy.power.power_site import Site

from madang.model import Request, Verb

MEAN_S = 3600.0
"""Mean time between two events."""
QUIET_S = 45


class Faults:
    """Draws events and undoes them after a while."""

    def __init__(self, site, seed):
        self.site = site
        self.world = site.world
        self.chance = random.Random(seed)
        self.undo = []
        self.kinds = []

    def next_s(self):
        return min(self.chance.expovariate(1.0 / MEAN_S), 4 * 3600.0)

    def happen(self):
        kind = self.chance.choice(
            [
                *(self.load, self.surge, self.surge, self.feed, self.feed, self.utility, self.cooling),
                *(self.node_meter, self.breaker_meter, self.ignores, self.loses_cap, self.slow, self.silent),
                *(self.enters, self.blind_signs, self.lost_stop, self.repair),
            ]
        )
        self.kinds.append(kind.__name__)
        kind()

    def later(self, undo):
        self.undo.append((self.world.now_s + self.chance.uniform(20.0, 5400.0), undo))

    def settle_due(self):
        due = [undo for at_s, undo in self.undo if at_s <= self.world.now_s]
        self.undo = [one for one in self.undo if one[0] > self.world.now_s]
        for undo in due:
            undo()
        return bool(due)

    def any_server(self):
        return self.world.servers[self.chance.choice(NODES)]

    def load(self):
        self.any_server().load_w = self.chance.uniform(100.0, PLATE_W)

    def surge(self):
        for server in self.world.servers.values():
            server.load_w = self.chance.uniform(0.6, 1.0) * PLATE_W

    def feed(self):
        name = self.chance.choice(list(RATINGS_W))
        self.world.is_live[name] = False
        self.later(lambda: self.world.is_live.__setitem__(name, True))

    def utility(self):
        self.world.has_utility = False
        self.later(lambda: setattr(self.world, "has_utility", True))

    def cooling(self):
        self.world.has_cooling = False
        self.later(lambda: setattr(self.world, "has_cooling", True))

    def node_meter(self):
        node = self.chance.choice(NODES)
        above = ["brk_a", "brk_b"] if node in DUAL else ["brk_a"]
        kinds = ["stale", "bad", "high"]
        if all(self.world.meters[name] in ("good", "high") for name in above):
            kinds.append("low")
        self.world.servers[node].meter = self.chance.choice(kinds)
        self.later(lambda: setattr(self.world.servers[node], "meter", "good"))

    def breaker_meter(self):
        name = self.chance.choice(list(RATINGS_W))
        below = NODES if name == "brk_a" else DUAL
        if any(self.world.servers[node].meter == "low" for node in below):
            return
        kinds = ["stale", "bad", "high"]
        if all(self.world.servers[node].meter == "good" for node in below):
            kinds.append("low")
        meter = self.chance.choice(kinds)
        self.world.meters[name] = meter
        self.later(lambda: self.world.meters.__setitem__(name, "good"))

    def ignores(self):
        """One BMC, some or all: a bad firmware is on many."""
        for node in self.chance.sample(NODES, self.chance.choice([1, 1, 2, 3, len(NODES)])):
            server = self.world.servers[node]
            server.ignores = True
            self.later(lambda server=server: setattr(server, "ignores", False))

    def loses_cap(self):
        server = self.any_server()
        server.cap_w = server.active_w = None

    def slow(self):
        server = self.any_server()
        server.lag_s = self.chance.uniform(3.0, 25.0)
        self.later(lambda: setattr(server, "lag_s", 2.0))

    def silent(self):
        server = self.any_server()
        if any(self.world.meters[name] == "low" for name in RATINGS_W):
            return
        server.is_silent = True
        self.later(lambda: setattr(server, "is_silent", False))

    def enters(self):
        self.world.is_occupied = True
        self.later(lambda: setattr(self.world, "is_occupied", False))

    def blind_signs(self):
        self.world.are_signs_read = False
        self.later(lambda: setattr(self.world, "are_signs_read", True))

    def lost_stop(self):
        self.any_server().loses_stops = 1

    def repair(self):
        """Somebody looks after what was drained or stopped for good, and resumes it."""
        self.site.wants_repair = True


def run_hours(seed, hours, *, load_w=1500.0):
    """Run one site for simulated hours of random faults; returns the site, the seconds stepped, and what went wrong."""
    site = Site(seed)
    site.wants_repair = False
    for server in site.world.servers.values():
        server.load_w = load_w
    faults = Faults(site, seed)
    site.run(60)
    end_s = site.world.now_s + hours * 3600.0
    next_s = site.world.now_s + faults.next_s()
    stepped = quiet = 0
    while site.world.now_s < end_s:
        has_changed = faults.settle_due()
        if site.world.now_s >= next_s:
            faults.happen()
            next_s = site.world.now_s + faults.next_s()
            has_changed = True
        before = snapshot(site.world)
        due_s = min([next_s, end_s, *(at_s for at_s, _ in faults.undo)])
        site.tick(*ask_repair(site), dt_s=choose_step_s(site.world, due_s, quiet))
        stepped += 1
        problem = find_problem(site)
        if problem:
            return site, stepped, f"{problem} at {site.world.now_s}; {faults.kinds[-12:]}"
        is_same = not has_changed and not site.actions and snapshot(site.world) == before
        quiet = quiet + 1 if is_same else 0
        site.log.clear()
    return site, stepped, ""


def choose_step_s(world, due_s, quiet):
    """Return a second while anything has changed of late, else the time to the next event, less where things drift."""
    if quiet < QUIET_S or any(world.over_s.values()):
        return 1.0
    is_on = any(server.is_on for server in world.servers.values())
    most_s = 3600.0
    if is_on and not world.has_utility:
        most_s = 1.0
    elif is_on and (not world.has_cooling or world.inlet_c > 26.0):
        most_s = 20.0
    elif not is_on:
        most_s = 300.0
    return max(1.0, min(most_s, due_s - world.now_s))


def ask_repair(site):
    if not site.wants_repair or site.world.is_occupied:
        return []
    site.wants_repair = False
    return [
        Request(request_id=f"kim/{node}/{site.world.now_s}", requester="kim", verb=Verb.RESUME, target=node)
        for node in NODES
    ]


def snapshot(world):
    servers = tuple((one.is_on, one.active_w, one.cap_w, len(one.due)) for one in world.servers.values())
    return servers


def find_problem(site):
    """Return what of the promise does not hold now; empty when all does."""
    world = site.world
    if world.trips:
        return f"a breaker tripped: {world.trips}"
    if world.violations:
        return f"above the rating although every BMC obeys: {world.violations[-1]}"
    if world.cut_nodes:
        return f"servers lost power while running: {world.cut_nodes[-1]}"
    for name, over_s in world.over_s.items():
        if over_s > 120.0:
            return f"{name} is above its rating for {over_s:g} s"
    if world.inlet_c > 40.0 and world.is_heat_seen:
        return f"the inlet is at {world.inlet_c:.1f} degrees"
    return ""
