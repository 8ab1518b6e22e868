"""A site's lease keeper on a real database and real files, real purses of gateway workers, and a hub in memory.

The hub divides one tenant's budgets with the real machine; how it stores them is its own tests' business. Time stands
still unless a test moves it.
"""

import asyncio
import io

import msgspec
from tests.site.fresh_database import open_database

from madang.core import ServiceName, SiteId, TenantId, Unavailable
from madang.gateway.purse import Purse
from madang.gateway.reservation import Draw, Shortage
from madang.machine.lease import Ask, HubPot, answer
from madang.machine.lease_accounts import list_lines
from madang.machine.lease_periods import labels_ahead
from madang.model import Budget, PriorityClass, Project, Residency, ResidencyScope, Site, Tariff, Tenant
from madang.model.lease import Period, PotKey, Scope
from madang.runtime.telemetry import EventLog
from madang.site.desired import Applied, DesiredView, check_item
from madang.site.guard import GuardedStore
from madang.site.leases.keeper import LeaseKeeper
from madang.wire.bus import make_desired_item
from madang.wire.leases import LeaseAnswer, LeaseAsk, PotAnswer, decode_answer, decode_ask, encode_lease

NOON_S = 1_790_218_800.0
"""2026-09-24 12:00 in Korea."""
DAY_S = 86_400.0
DAEGU, GUMI = SiteId("daegu"), SiteId("gumi")
CLINIC = TenantId("clinic")
HOME = Residency(scope=ResidencyScope.SITE, places=("daegu",))
SHARED = Residency(scope=ResidencyScope.REGION, places=("yeongnam",))
DAY_LINE = (Scope.TENANT, "clinic", Period.DAY)
MONTH_LINE = (Scope.TENANT, "clinic", Period.MONTH)


class BenchClock:
    """Stands still until it is moved."""

    def __init__(self):
        self.now_s = NOON_S

    def monotonic_ns(self):
        return int(self.now_s * 1e9)

    def wall_s(self):
        return self.now_s


class CountingEntropy:
    """Gives another value each time."""

    def __init__(self):
        self.given = 0

    def token_bytes(self, count):
        self.given += 1
        return (self.given * 0x9E3779B97F4A7C15 % 2 ** (8 * count)).to_bytes(count, "big")

    def seed64(self):
        return int.from_bytes(self.token_bytes(8), "big")


def make_tenant(day=None, month=None, residency=HOME, overdraw=0):
    return Tenant(
        tenant_id=CLINIC,
        title="c",
        residency=residency,
        budget=Budget(day_micro_won=day, month_micro_won=month),
        priority=PriorityClass.CLINICAL,
        overdraw_micro_won=overdraw,
    )


def make_site(name):
    return Site(name=SiteId(name), region="yeongnam", nation="kr", peer_url="http://x", identity_ed25519="0" * 64)


def make_tariff(per_million, valid_from="2026-01-01"):
    return Tariff(
        tariff_id=f"chat.interactive.{valid_from}",
        service=ServiceName("chat"),
        priority=PriorityClass.INTERACTIVE,
        valid_from=valid_from,
        prompt_micro_won_per_million=per_million,
        completion_micro_won_per_million=per_million,
    )


KINDS = {Tenant: "tenant", Project: "project", Site: "site", Tariff: "tariff"}


def name_of(fact):
    fields = {Tenant: "tenant_id", Project: "project_id", Site: "name", Tariff: "tariff_id"}
    return getattr(fact, fields[type(fact)])


class MemoryHub:
    """Grants as the hub does; what it knows is durable at once."""

    def __init__(self, clock, view):
        self.clock, self.view = clock, view
        self.pots = {}

    def lines(self):
        found = {}
        for tenant in self.view.tenants.values():
            projects = [one for one in self.view.projects.values() if one.tenant_id == tenant.tenant_id]
            for line in list_lines(tenant, projects, self.view.sites.values()):
                found[line.scope, line.account, line.period, line.is_overdraw] = line
        return found

    def answer(self, ask):
        return LeaseAnswer(life=ask.life, pots=tuple(self._answer(ask, said) for said in ask.pots))

    def _answer(self, ask, said):
        key = said.key
        line = self.lines().get((key.scope, key.account, key.period, key.is_overdraw))
        if line is None or key.label not in labels_ahead(key.period, self.clock.wall_s() - DAY_S, line.ahead + 2):
            return PotAnswer(key=key, has_budget=False)
        pot = msgspec.structs.replace(self.pots.get(key, HubPot(limit=line.limit)), limit=line.limit)
        told = Ask(
            site=ask.site,
            holder=f"{ask.site}/{ask.life}",
            granted=said.granted,
            returned=said.returned,
            spent=said.spent,
            needed=said.needed,
            wished=said.wished,
        )
        self.pots[key], grant = answer(pot, told, line.plan, line.sites, self.clock.wall_s())
        return PotAnswer(key=key, granted=grant.granted, recall=grant.recall, left=grant.left)


class RefusingStore:
    """A store whose writes fail when a test says so: before the transaction, or after its commit."""

    def __init__(self, store):
        self._store = store
        self.fail_before = self.fail_after = False
        self.writes = 0

    async def write(self, action):
        self.writes += 1
        if self.fail_before:
            raise Unavailable("the disk is full, says the test")
        result = await self._store.write(action)
        if self.fail_after:
            raise Unavailable("the answer of the disk was lost, says the test")
        return result

    async def read(self, action):
        return await self._store.read(action)


class Bench:
    """One site with its workers. `async with` it."""

    def __init__(self, folder, *, view=None, hub=None, clock=None, site=DAEGU):
        self.folder, self.site = folder, site
        folder.mkdir(exist_ok=True)
        self.clock = clock or BenchClock()
        self.entropy = CountingEntropy()
        self.entropy.given = sum(site.encode())
        self.text = io.StringIO()
        self.log = EventLog(self.clock, self.text)
        self.view = view or DesiredView()
        self.hub = hub or MemoryHub(self.clock, self.view)
        self.boot = 7
        self.is_linked = True
        self.purses = {}
        self.database = self.keeper = None

    async def __aenter__(self):
        await self.start()
        return self

    async def __aexit__(self, *_):
        self.stop()
        for worker in list(self.purses):
            self.kill_worker(worker)

    async def start(self):
        """Start the site's process, as after a crash."""
        self.database = open_database(self.folder / "site.db")
        self.store = RefusingStore(GuardedStore(self.database, self.log))
        self.keeper = LeaseKeeper(
            site=self.site,
            feed_dir=self.folder,
            boot=self.boot,
            store=self.store,
            view=self.view,
            is_linked=lambda: self.is_linked,
            clock=self.clock,
            entropy=self.entropy,
            log=self.log,
        )
        await self.keeper.load()

    def stop(self):
        if self.keeper is not None:
            self.keeper.close()
            self.database.close()
        self.keeper = None

    async def restart(self):
        self.stop()
        await self.start()

    def lose_database(self):
        self.stop()
        for path in self.folder.glob("site.db*"):
            path.unlink()

    def set(self, *facts):
        """Change applied desired state; a fact given as (kind, id) is removed."""
        generation = self.view.generation + 1
        items = []
        for fact in facts:
            kind, name = fact if isinstance(fact, tuple) else (KINDS[type(fact)], name_of(fact))
            spec = None if isinstance(fact, tuple) else fact
            items.append(check_item(make_desired_item(self.site, kind, name, generation, spec), self.site))
        self.view.take(Applied(items=tuple(items), generation=generation, snapshot_generation=0))

    # --- workers

    def start_worker(self, worker=0):
        purse = Purse(
            self.folder,
            worker,
            loop=asyncio.get_running_loop(),
            clock=self.clock,
            entropy=self.entropy,
            log=self.log,
            boot=self.boot,
        )
        self.purses[worker] = purse
        purse.tick()
        return purse

    def kill_worker(self, worker=0):
        """What it reserved stays reserved in its table, until it is started again."""
        self.purses.pop(worker).close()

    def take(self, amount, worker=0, lines=(DAY_LINE,), *, may_overdraw=False):
        """Reserve on a worker; the reservation, or None when it is refused."""
        found = self._reserve(amount, worker, lines, may_overdraw=may_overdraw)
        return None if isinstance(found, Shortage) else found

    def _reserve(self, amount, worker, lines, *, may_overdraw):
        draw = Draw(tuple(lines), CLINIC)
        return self.purses[worker].reserve(draw, amount, self.clock.wall_s(), may_overdraw=may_overdraw)

    async def get(self, amount, **options):
        """Reserve, coming again a few times as a refused client does."""
        for _ in range(6):
            taken = self.take(amount, **options)
            if taken is not None:
                return taken
            await self.tick(0.3)
        return None

    def shortage(self, amount, worker=0, lines=(DAY_LINE,)):
        found = self._reserve(amount, worker, lines, may_overdraw=False)
        assert isinstance(found, Shortage)
        return found

    # --- turns

    async def tick(self, seconds=1.1):
        """Move the clock, then let both sides look once; a second lets workers be looked for too."""
        self.clock.now_s += seconds
        await self.keeper.tick()
        for purse in self.purses.values():
            purse.tick()

    async def ask_hub(self, *, is_all=False):
        """Tell the hub what is due, by way of the wire's bytes, and follow its answer."""
        asks = self.keeper.list_asks(is_all=is_all)
        if not asks:
            return []
        try:
            sent = decode_ask(encode_lease(LeaseAsk(site=self.site, life=self.keeper.life, pots=tuple(asks))))
            self.keeper.note_asked(is_answered=True)
            await self.keeper.take_answers(decode_answer(encode_lease(self.hub.answer(sent))).pots)
        except Unavailable:
            self.keeper.mark_due(asks)
            raise
        return asks

    async def turn(self, times=1, seconds=1.1):
        for _ in range(times):
            await self.tick(seconds)
            await self.ask_hub()
            await self.tick(0.1)

    def row(self, period="day", label=None, scope="tenant", is_overdraw=False):
        """The pot's row in the admin API's listing, of the present period by default."""
        rows = self.keeper.list_budgets(is_all=label is not None)
        return next(
            row
            for row in rows
            if (row["scope"], row["period"], row["is_overdraw"]) == (scope, period, is_overdraw)
            and label in (None, row["label"])
        )

    def hub_pot(self, period=Period.DAY, label="2026-09-24"):
        return self.hub.pots[PotKey(scope=Scope.TENANT, account="clinic", period=period, label=label)]

    def events(self):
        return [msgspec.json.decode(line)["event"] for line in self.text.getvalue().splitlines()]
