"""One fault is one alarm on top in the embedded cabinet, in virtual time, and what follows from it stands below."""

import asyncio

import msgspec
import pytest
from tests.site.facility_box import Box


def play(tmp_path, scene):
    async def run():
        box = Box(tmp_path)
        await box.load()
        try:
            await box.tick(5)
            await scene(box)
        finally:
            await box.close()

    asyncio.run(run())


def on_top(box):
    return {str(one.key.point) for one in box.desk.list_alarms() if one.is_active and one.cause is None}


def below(box):
    return {one.key.point: one.cause.point for one in box.desk.list_alarms() if one.cause is not None}


def raised(box):
    return [notice.key.point for notice in box.notices if notice.what == "raised" and notice.channel == "webhook"]


def test_a_failed_cooling_unit_is_one_alarm_and_one_notice(tmp_path):
    async def scene(box):
        box.fault("cooling_lost", "cooling_1")
        await box.tick(30)
        assert on_top(box) == {"cooling_1.alarm_compressor"}
        said = {"cooling_1.state_unit", "cooling_1.state_compressor"}
        assert below(box) == dict.fromkeys(said, "cooling_1.alarm_compressor"), "listed all the while"
        assert raised(box) == ["cooling_1.alarm_compressor"]
        box.fault("cooling_lost", "cooling_1", is_over=True)
        await box.tick_until("it runs again", lambda: not on_top(box), 600)
        assert raised(box) == ["cooling_1.alarm_compressor", "cooling_1.state_unit"], "it waits before it starts"

    play(tmp_path, scene)


def test_lost_mains_are_one_alarm_though_nothing_reads_the_utility(tmp_path):
    async def scene(box):
        box.fault("utility_lost")
        await box.tick(60)
        assert on_top(box) == {"ups.state_source"}
        units = {f"cooling_{n}.{point}" for n in (1, 2) for point in ("alarm_power_lost", "state_unit")}
        assert units <= below(box).keys()
        assert set(below(box).values()) == {"ups.state_source"}
        assert raised(box) == ["ups.state_source"]
        box.fault("utility_lost", is_over=True)
        await box.tick(30)
        waiting = {"cooling_1.state_unit", "cooling_2.state_unit"}
        assert on_top(box) == waiting, "compressors wait before they start: what lasts is told"
        await box.tick_until("they run again", lambda: not on_top(box), 600)
        assert raised(box) == ["ups.state_source", *sorted(waiting)]

    play(tmp_path, scene)


@pytest.mark.deep
def test_a_unit_that_failed_before_the_mains_stands_beside_them_and_outlasts_them(tmp_path):
    async def scene(box):
        box.fault("cooling_lost", "cooling_2")
        await box.tick(20)
        box.fault("utility_lost")
        await box.tick(30)
        assert on_top(box) == {"ups.state_source", "cooling_2.alarm_compressor"}
        assert raised(box) == ["cooling_2.alarm_compressor", "ups.state_source"]
        box.fault("utility_lost", is_over=True)
        await box.tick_until("the other one runs", lambda: len(on_top(box)) == 1, 600)
        assert on_top(box) == {"cooling_2.alarm_compressor"}

    play(tmp_path, scene)


def test_a_ups_that_tests_its_battery_hides_no_unit_that_fails_meanwhile(tmp_path):
    async def scene(box):
        # The plant has no battery test: the UPS's word is changed on its way, all else reads as it is.
        sees = box.read

        def read():
            return tuple(
                msgspec.structs.replace(one, value=5.0, text="battery") if one.point_id == "ups.state_source" else one
                for one in sees()
            )

        box.read = read
        await box.tick(3)
        box.fault("cooling_lost", "cooling_1")
        await box.tick(30)
        assert on_top(box) == {"ups.state_source", "cooling_1.alarm_compressor"}

    play(tmp_path, scene)


def test_leak_smoke_and_doors_are_on_top_of_lost_mains(tmp_path):
    async def scene(box):
        box.fault("utility_lost")
        await box.tick(10)
        box.fault("leak", "leak")
        box.fault("smoke", "smoke")
        box.fault("door_forced", "door")
        await box.tick(10)
        safe = {"leak.alarm_leak", "smoke.alarm_smoke", "door.alarm_intrusion"}
        assert on_top(box) == {"ups.state_source", *safe}
        assert safe <= set(raised(box))

    play(tmp_path, scene)
