"""What a site's `/metrics` says of its UPS and of what is allowed, over the embedded cabinet."""

import asyncio
from types import SimpleNamespace
from typing import Any

from tests.site.facility_box import Box

from madang.site.facility.gauges import collect_facility


def scrape(box):
    poller = SimpleNamespace(states={})
    facility: Any = SimpleNamespace(
        mind=box.mind,
        book=box.book,
        poller=poller,
        notifications=SimpleNamespace(list_drivers=dict),
        alarms=box.desk,
        allowed=box.allowed,
        now_s=box.clock.wall_s,
    )
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in collect_facility(facility)
        for sample in family.samples
    }


def test_a_ups_is_on_battery_or_not_or_nobody_knows_and_the_envelope_has_an_end(tmp_path):
    async def scene():
        box = Box(tmp_path)
        await box.load()
        try:
            assert ("madang_facility_envelope_valid_until_seconds",) not in scrape(box), "none yet: no zero"
            await box.tick(3)
            assert scrape(box)["madang_facility_on_battery", "ups"] == 0.0
            until_s = scrape(box)["madang_facility_envelope_valid_until_seconds",]
            assert until_s == box.envelope.valid_until_s > box.clock.wall_s()
            box.fault("utility_lost")
            await box.tick(3)
            assert scrape(box)["madang_facility_on_battery", "ups"] == 1.0
            box.silent.add("ups")
            await box.tick(3)
            assert ("madang_facility_on_battery", "ups") not in scrape(box)
        finally:
            await box.close()

    asyncio.run(scene())
