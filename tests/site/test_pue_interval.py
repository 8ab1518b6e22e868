"""Interim PUE from stored registers: what counts, what is refused, and that a simulated meter says so."""

import asyncio
import io

import pytest
from tests.site.fresh_database import open_database

from madang.core import Rejected
from madang.facility.site_file import load_site_file
from madang.machine.sample_book import SampleBook
from madang.model import Quality, Sample
from madang.policy.facility.graph import SiteGraph
from madang.policy.facility.pue import energy_meters
from madang.runtime.clock import SystemClock
from madang.runtime.telemetry import EventLog
from madang.site.facility.meters import MeterLog
from madang.site.facility.pue_interval import show_pue
from madang.site.guard import GuardedStore

BEGIN_S, END_S = 1_790_000_100, 1_790_003_700
PDUS = tuple(f"pdu_{rack}{feed}.energy" for rack in "1234" for feed in "ab")


class StandingClock:
    """A fake clock that is set."""

    now_s = 0.0

    def wall_s(self):
        return self.now_s

    def monotonic_ns(self):
        return 0


@pytest.fixture
def site(repository):
    return load_site_file(repository / "examples" / "site-container.toml")


@pytest.fixture
def repository(request):
    return request.config.rootpath


def ask(folder, site, *reads, span=(BEGIN_S - 60, END_S + 60)):
    """Write registers down at instants, and return PUE over a span."""

    async def run():
        clock, book = StandingClock(), SampleBook(site.model.points)
        database = open_database(folder / "site.db")
        store = GuardedStore(database, EventLog(SystemClock(), io.StringIO()))
        log = MeterLog(book=book, store=store, clock=clock)
        try:
            for at_s, values in reads:
                clock.now_s = at_s + 5.0
                book.take(
                    Sample(point_id=name, value=value, quality=Quality.GOOD, observed_at_s=at_s + 4.5)
                    for name, value in values.items()
                )
                await log.write(at_s)
            return await show_pue(log, SiteGraph(site.model), site.plan.pue, *span)
        finally:
            database.close()

    return asyncio.run(run())


def registers(main_wh, pdu_wh, *, without=()):
    return {"meter_main.energy": main_wh} | {name: pdu_wh for name in PDUS if name not in without}


def test_energy_over_energy_between_two_stored_instants(tmp_path, site):
    found = ask(tmp_path, site, (BEGIN_S, registers(10_000.0, 500.0)), (END_S, registers(26_000.0, 1_750.0)))
    assert (found["begins_at_s"], found["ends_at_s"], found["coverage_min"]) == (BEGIN_S, END_S, 0.95)
    (row,) = found["pue"]
    assert (row["category"], row["coverage"]) == (2, 1.0)
    assert (row["facility_wh"]["value"], row["it_wh"]["value"]) == (16_000.0, 10_000.0)
    assert row["pue"]["value"] == pytest.approx(1.6)
    assert row["is_simulated"] is any(point.is_simulated for point in site.model.points)


def test_too_little_of_it_measured_or_one_instant_only_is_refused(tmp_path, site):
    silent = ("pdu_1a.energy", "pdu_1b.energy")
    begin = registers(10_000.0, 500.0, without=silent)
    found = ask(tmp_path, site, (BEGIN_S, begin), (END_S, registers(26_000.0, 1_750.0, without=silent)))
    (row,) = found["pue"]
    assert row["pue"]["value"] is None
    assert "95% are needed" in row["pue"]["reason"]
    assert row["coverage"] < 0.95
    with pytest.raises(Rejected, match="two are needed"):
        ask(tmp_path, site, span=(END_S, END_S + 60))


def test_points_that_read_watts_are_measured_by_the_registers_beside_them(site):
    (meters,) = energy_meters(SiteGraph(site.model), site.plan.pue)
    assert meters.facility == ("meter_main.energy",)
    assert meters.it == PDUS
