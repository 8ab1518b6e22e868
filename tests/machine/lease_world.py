"""A federation of purses under a seed: a hub, sites and workers with the real machine, and links that lose, repeat,
reorder and stay cut. What a real process keeps in memory is lost at each restart; what it made durable stays.
"""

from collections import defaultdict

import msgspec

from madang.core import Draw
from madang.machine.lease import (
    Ask,
    HubPot,
    Plan,
    SitePot,
    answer,
    hand_back,
    issue,
    note_worker,
    plan_issue,
    take_grant,
)

WORKERS = 2
COST_MAX = 40


class Machine:
    """The functions of the machine, so that a test can break one of them."""

    answer = staticmethod(answer)
    take_grant = staticmethod(take_grant)
    issue = staticmethod(issue)
    hand_back = staticmethod(hand_back)
    note_worker = staticmethod(note_worker)


class Worker:
    """A gateway worker: its table survives it, what was reserved counts as spent when it is killed."""

    def __init__(self):
        self.granted = self.returned = self.spent = self.reserved = self.needed = 0
        self.requests = []

    @property
    def left(self):
        return self.granted - self.returned - self.spent - self.reserved

    def ask(self, cost):
        if cost > self.left:
            self.needed = max(self.needed, cost - self.left)
            return False
        self.reserved += cost
        self.requests.append(cost)
        self.needed = 0
        return True

    def settle(self, share):
        cost = self.requests.pop(0)
        self.reserved -= cost
        self.spent += cost * share // 100

    def kill(self):
        self.spent += self.reserved
        self.reserved = self.needed = 0
        self.requests = []

    def give_back(self):
        self.returned += max(0, self.left)


class Site:
    def __init__(self, name):
        self.name = name
        self.life = 0
        self.pot = SitePot()
        self.workers = [Worker() for _ in range(WORKERS)]
        self.is_cut = False

    @property
    def holder(self):
        return f"{self.name}/{self.life}"


class World:
    def __init__(self, seed, sites=("a", "b", "c"), machine=Machine, plan=Plan.DEMAND, limit=None):
        self.draw = Draw(seed)
        self.machine = machine
        self.plan = plan
        self.hub = HubPot(limit=self.pick(2000) if limit is None else limit)
        self.backup = self.hub
        self.sites = [Site(name) for name in sites]
        self.legal = set(sites)
        self.wire = []
        self.lost_spent = 0
        self.now_s = 0.0
        self.steps = defaultdict(int)

    def pick(self, below):
        return self.draw.below(below)

    @property
    def spent(self):
        return self.lost_spent + sum(worker.spent for site in self.sites for worker in site.workers)

    @property
    def spent_or_reserved(self):
        return self.spent + sum(worker.reserved for site in self.sites for worker in site.workers)

    # --- what can happen

    def step(self):
        site = self.sites[self.pick(len(self.sites))]
        worker = site.workers[self.pick(WORKERS)]
        acts = (
            (24, lambda: worker.ask(1 + self.pick(COST_MAX))),
            (14, lambda: worker.requests and worker.settle(self.pick(101))),
            (14, lambda: self.refill(site)),
            (12, lambda: self.send(site)),
            (14, self.deliver),
            (3, lambda: self.set_cut(site, not site.is_cut)),
            (3, worker.kill),
            (3, worker.give_back),
            (2, self.set_limit),
            (1, self.repeat),
            (1, lambda: self.lose_site(site)),
            (1, lambda: self.legal.symmetric_difference_update({site.name})),
        )
        at = self.pick(sum(weight for weight, _ in acts))
        for weight, act in acts:
            at -= weight
            if at < 0:
                act()
                break
        self.now_s += self.pick(3)

    def set_cut(self, site, is_cut):
        site.is_cut = is_cut

    def set_limit(self):
        self.hub = msgspec.structs.replace(self.hub, limit=self.pick(2000))

    def repeat(self):
        if self.wire:
            self.wire.append(self.wire[self.pick(len(self.wire))])

    def lose_site(self, site):
        """The site's database and its workers' tables are gone: what was spent stays spent."""
        self.lost_spent += sum(worker.spent + worker.reserved for worker in site.workers)
        site.life += 1
        site.pot = SitePot()
        site.workers = [Worker() for _ in range(WORKERS)]

    def note(self, site):
        for number, worker in enumerate(site.workers):
            site.pot = self.machine.note_worker(site.pot, str(number), returned=worker.returned, spent=worker.spent)

    def refill(self, site):
        """The site reads its workers' tables, gives, and stores that before workers see it."""
        self.note(site)
        needs = {str(number): worker.needed for number, worker in enumerate(site.workers)}
        live = {str(number): self.pick(20) for number in range(WORKERS)}
        for life, amount in plan_issue(site.pot, live, needs).items():
            site.pot = self.machine.issue(site.pot, life, amount)
        if any(worker.needed > max(0, worker.left) + site.pot.free for worker in site.workers):
            for worker in site.workers:
                worker.give_back()
        for number, worker in enumerate(site.workers):
            share = site.pot.shares.get(str(number))
            if share is not None:
                worker.granted = max(worker.granted, share.granted)

    def send(self, site):
        self.note(site)
        needed = max((worker.needed for worker in site.workers), default=0)
        lacked = max(0, needed - max(0, site.pot.free))
        ask = Ask(
            site=site.name,
            holder=site.holder,
            granted=site.pot.granted,
            returned=site.pot.returned,
            spent=site.pot.spent,
            needed=lacked,
            wished=self.pick(200) if lacked else 0,
        )
        self.wire.append(("ask", site.name, ask))

    def deliver(self):
        """One message that is under way arrives, whichever; a link that is cut, or chance, loses it."""
        if not self.wire:
            return
        kind, name, message = self.wire.pop(self.pick(len(self.wire)))
        site = next(one for one in self.sites if one.name == name)
        if site.is_cut or self.pick(10) == 0:
            return
        if kind == "ask":
            grant = self.answer(message)
            self.wire.append(("grant", name, (message.holder, grant)))
            return
        holder, grant = message
        if holder != site.holder:
            return  # an answer to a life that is over
        self.take(site, grant)

    # --- what must hold

    def check(self):
        for site in self.sites:
            assert site.pot.free >= 0, (site.name, site.pot)
            for worker in site.workers:
                assert worker.left >= 0, (site.name, vars(worker))
        bound = max(self.hub.limit, self.hub.limit + self.hub.overshoot)
        assert self.spent_or_reserved <= bound, (self.spent_or_reserved, self.hub)

    def quiesce(self, rounds=12):
        """Faults cease: every link is up and everybody speaks in turn; needs stay as they are."""
        self.wire.clear()
        for site in self.sites:
            site.is_cut = False
        for _ in range(rounds):
            for site in self.sites:
                self.exchange(site)
            self.now_s += 2.0

    def exchange(self, site):
        for worker in site.workers:
            while worker.requests:
                worker.settle(100)
        self.refill(site)
        self.send(site)
        _, _, ask = self.wire.pop()
        self.take(site, self.answer(ask))
        self.refill(site)
        self.check()

    def answer(self, ask):
        before = self.hub.overshoot
        self.hub, grant = self.machine.answer(self.hub, ask, self.plan, self.legal, self.now_s)
        assert self.hub.overshoot <= before, "the hub granted what it did not have"
        return grant

    def take(self, site, grant):
        site.pot = self.machine.take_grant(site.pot, grant.granted)
        if grant.recall:
            if grant.recall > site.pot.free:
                for worker in site.workers:
                    worker.give_back()
            self.note(site)
            site.pot = self.machine.hand_back(site.pot, grant.recall)
