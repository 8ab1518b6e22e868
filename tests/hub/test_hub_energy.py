"""A site's readings travel to the hub over real NATS, through a cut, and a month is billed from them to the last won.

The site's store, its log of meters and its sender are the site program's own; no engine and no device runs.
"""

import asyncio
import functools
import time
from datetime import datetime, timedelta, timezone

import msgspec
import pytest
from tests.hub.hub_harness import connected, leaf_sites, running_hub, until
from tests.hub.test_hub_ingest import has, send
from tests.hub.usage_events import make_batch, make_event
from tests.site.fresh_database import open_database

from madang.core import SiteId, Unavailable
from madang.machine.sample_book import SampleBook
from madang.model import Point, PointKind, Quality, Quantity, Sample
from madang.model.facility_site import SupplyContract
from madang.runtime.telemetry import EventLog
from madang.site.desired import write_meta
from madang.site.facility.meter_sender import MeterSender, next_batch
from madang.site.facility.meters import MeterLog, SiteTerms
from madang.site.guard import GuardedStore
from madang.wire.bus import encode

pytestmark = pytest.mark.peer
KST = timezone(timedelta(hours=9))
BEGIN_S = int(datetime(2024, 10, 23, 18, tzinfo=KST).timestamp())
CHANGE_S = int(datetime(2024, 10, 24, tzinfo=KST).timestamp())
"""KEPCO's prices changed on this day; at 08:00 its price changes within the hole."""
QUARTERS = 72
CUT, HOLE = range(30, 40), range(54, 58)
CHANGE_GAP = (BEGIN_S + (HOLE.start - 1) * 900, BEGIN_S + HOLE.stop * 900)
METER = "meter.energy"
CONTRACT = SupplyContract(tariff="industrial_a2_hv_a_1", power_w=10_000.0, meter=METER, idle_w=400)
TENANTS = ("clinic", "factory")


class StandingClock:
    """A fake clock that is set."""

    def __init__(self):
        self.now_s = 0.0

    def wall_s(self):
        return self.now_s

    def monotonic_ns(self):
        return time.monotonic_ns()


class BoxSite:
    """The parts of a site program that read and send registers, on a real database."""

    def __init__(self, folder, bus):
        point = Point(
            point_id=METER,
            equipment_id="meter",
            name="energy",
            kind=PointKind.METER,
            quantity=Quantity.ENERGY,
            is_simulated=True,
        )
        self.running = None
        self.log_stream = (folder / "site-events.jsonl").open("a")
        self.clock, self.book = StandingClock(), SampleBook([point])
        log = EventLog(self.clock, self.log_stream)
        self.database = open_database(folder / "site.db")
        self.store = GuardedStore(self.database, log)
        self.log = MeterLog(book=self.book, store=self.store, clock=self.clock, terms=SiteTerms(contract=CONTRACT))
        self.sender = MeterSender(site=SiteId("daegu"), bus=bus, store=self.store, log=log)

    async def read_quarter(self, number, value_wh):
        """Read the register 2 s after a quarter of an hour, or let the meter be silent, and write it down."""
        at_s = BEGIN_S + number * 900
        self.clock.now_s = at_s + 5.0
        if value_wh is not None:
            sample = Sample(point_id=METER, value=value_wh, quality=Quality.GOOD, observed_at_s=at_s + 2.0)
            self.book.take([sample])
        await self.log.write(at_s)

    async def is_all_sent(self):
        if self.running is not None and self.running.done():
            self.running.result()
        return await self.store.read(functools.partial(next_batch, site=SiteId("daegu"))) is None

    def close(self):
        self.database.close()
        self.log_stream.close()


def register_wh(number):
    return 500_000.0 + number * 700 + number * number % 61


def usage():
    """Return requests of two tenants in every third quarter of an hour."""
    return [
        make_event(
            number * 2 + place,
            tenant_id=tenant,
            started_at_s=BEGIN_S + number * 900 + 100.5 + place,
            duration_s=2.0 + place * 3 + number % 5,
            prompt_tokens=100 + number,
            completion_tokens=50,
        )
        for number in range(0, QUARTERS, 3)
        for place, tenant in enumerate(TENANTS)
    ]


def test_a_month_is_billed_from_readings_that_came_through_a_cut(tmp_path):
    asyncio.run(asyncio.wait_for(through_a_cut(tmp_path), 115))


async def through_a_cut(folder):
    async with running_hub(folder) as hub:
        async with leaf_sites(hub, "daegu") as (leaf,):
            bus = leaf.bus()
            site = BoxSite(folder, bus)
            try:
                async with connected(bus):
                    await live(hub, leaf, bus, site)
            finally:
                site.close()
        # The site's own NATS server is gone; what it sent stays.
        await check_bill(hub)
        refused = await hub.call("GET", "/api/v1/usage/refused")
        assert {row["what"] for row in refused} == {"meters"}
        whys = sorted(row["why"] for row in refused)
        assert "batch names site 'gumi', but came from 'daegu'" in whys
        assert "the reading is there with other content" in whys


async def check_bill(hub):
    path = "/api/v1/sites/daegu/energy?month=2024-10"
    found = await hub.call("GET", path)
    assert found["is_simulated"]
    assert not found["is_final"]
    # The registers of the cut are all there; the hole is marked with its energy and is in nobody's bill.
    (gap,) = found["gaps"]
    first, last = HOLE.start - 1, HOLE.stop
    assert (gap["begin_id"], gap["end_id"]) == tuple(f"{METER}@{BEGIN_S + n * 900}" for n in (first, last))
    assert gap["energy_wh"] == register_wh(last) - register_wh(first)
    assert found["quarters_read"] == QUARTERS - len(HOLE) - 1
    assert found["energy_wh"] + gap["energy_wh"] == register_wh(QUARTERS) - register_wh(0)
    tables = {row["tariff"].split("@")[1] for row in found["bands"]}
    assert tables == {"2024-01-01", "2024-10-24"}, "before and after the change"
    # Tenants' and the operator's parts are the metered charge and the base charge, to the last micro-won.
    tenants = {row["tenant_id"]: row for row in found["tenants"]}
    assert set(tenants) == {"", *TENANTS}
    energy = sum(row["charge_micro_won"] + row["adders_micro_won"] for row in found["bands"])
    assert sum(row["sum_micro_won"] for row in tenants.values()) == energy + found["base_micro_won"]
    assert found["check"]["difference_micro_won"] == found["check"]["difference_won"] == 0
    assert sum(row["net_won"] for row in tenants.values()) == found["net_won"]
    billed = [event for event in usage() if not CHANGE_GAP[0] <= event.started_at_s < CHANGE_GAP[1]]
    for name in TENANTS:
        tokens = sum(one.prompt_tokens + one.completion_tokens for one in billed if one.tenant_id == name)
        assert tenants[name]["tokens"] == tokens
    # Every line leads to two values of the register, as the site read them.
    values = {f"{METER}@{BEGIN_S + n * 900}": register_wh(n) for n in range(QUARTERS + 1) if n not in HOLE}
    for name in ("clinic", "factory", "-"):
        one = await hub.call("GET", f"{path}&tenant={name}&trace=true")
        (row,) = one["tenants"]
        assert sum(line["charge_micro_won"] for line in one["trace"]) == row["sum_micro_won"]
        for line in one["trace"]:
            if line["line_id"] != "base":
                assert (values[line["begin_id"]], values[line["end_id"]]) == (line["begin_wh"], line["end_wh"])
    await hub.call("GET", f"{path}&trace=true", expect=(400, 422))
    await hub.call("GET", f"{path}&kind=real", expect=(400, 422))
    await hub.call("GET", "/api/v1/sites/nowhere/energy?month=2024-10", expect=(404,))


async def live(hub, leaf, bus, site):
    site.running = asyncio.create_task(site.sender.run())
    try:
        for number in range(QUARTERS + 1):
            if number == CUT.start:
                await until(site.is_all_sent, "what was read before the cut is sent")
                hub.nats.kill()
                await until(lambda: is_cut(leaf), "the WAN is cut")
            await site.read_quarter(number, None if number in HOLE else register_wh(number))
            if number == CUT.stop:
                with pytest.raises(Unavailable):
                    await site.sender.send()
                assert not await site.is_all_sent()
                await hub.nats.start()
                await until(leaf.is_linked, "the WAN is back")
            site.sender.written.rise()
        await until(site.is_all_sent, "the site has caught up")
    finally:
        site.running.cancel()
        site.running = None
    await send(bus, "daegu", make_batch("daegu", *usage()), "u1")
    # A site whose place was lost sends all again: nothing changes. Another value for a reading is refused.
    await site.store.write(lambda c: write_meta(c, "meters_sent", "-1"))
    again = await site.store.read(lambda c: next_batch(c, SiteId("daegu")))
    assert len(again.rows) == QUARTERS + 1
    await send_meters(bus, again)
    altered = msgspec.structs.replace(again.rows[3], value_wh=1.0)
    await send_meters(bus, msgspec.structs.replace(again, rows=(altered, *again.rows[4:9])))
    await send_meters(bus, msgspec.structs.replace(again, site=SiteId("gumi")))
    await until(lambda: has(hub, events=len(usage()), refused=2), "usage and readings are in, forged ones are not")


async def is_cut(leaf):
    return not await leaf.is_linked()


async def send_meters(bus, batch):
    while True:
        try:
            answer = await bus.request("usage.daegu.meters", encode(batch), timeout_s=1)
        except Unavailable:
            await asyncio.sleep(0.05)
            continue
        if "error" not in msgspec.json.decode(answer.data):
            return
