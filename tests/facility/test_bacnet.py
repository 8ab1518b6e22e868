"""The BACnet driver keeps the contract on its twin, and commands with a priority that it gives up again."""

import asyncio
from typing import ClassVar

import msgspec
import pytest
from tests.facility.facility_parts import TwinRun, make_device, read_device

from madang.core import Rejected, Unavailable
from madang.facility.contract import RelinquishingDriver, Secret, TwinFault
from madang.facility.profile import load_profile
from madang.facility.roster import make_driver
from madang.testing.facility_contract import FacilityReadContract, FacilityWriteContract

CHILLER = {
    "temperature_supply": 7.5,
    "temperature_return": 12.25,
    "temperature_outdoor": -3.5,
    "flow": 450.0,
    "power": 31250.0,
    "energy": 1234500.0,
    "load": 62.5,
    "state_unit": 3.0,
    "alarm_general": 1.0,
    "temperature_setpoint": 7.0,
    "enable": 1.0,
}
DEVICE = make_device("bacnet", "chiller", options={"instance": 2001})


class TestChiller(FacilityReadContract, FacilityWriteContract):
    device = DEVICE
    values = CHILLER
    half_names = ("temperature_return", "energy")
    sentinel_names = ("power", "state_unit", "flow")
    command = ("temperature_setpoint", 8.5)
    read_only_name = "power"
    steps: ClassVar = {"flow": 60.0, "power": 250.0, "energy": 100.0}


class TestChillerInSmallQuestions(FacilityReadContract):
    device = make_device("bacnet", "chiller", options={"objects_per_request": 2})
    values = CHILLER
    half_names = ("temperature_supply",)
    sentinel_names = ("load",)
    steps: ClassVar = TestChiller.steps


def play(options, scene):
    async def run():
        async with TwinRun(msgspec.structs.replace(DEVICE, options=options), CHILLER) as run:
            there = msgspec.structs.replace(run.device, address=run.twin.address)
            driver = make_driver(there, run.profile, Secret(), run.clock)
            try:
                return await scene(run, driver)
            finally:
                await driver.close()

    return asyncio.run(run())


def test_a_command_has_a_priority_and_is_given_up():
    async def scene(run, driver):
        await driver.write("unit1.temperature_setpoint", 9.0)
        held = dict(run.twin.priorities)
        await driver.relinquish("unit1.temperature_setpoint")
        with pytest.raises(Rejected, match="not commanded"):
            await driver.relinquish("unit1.power")
        return held, run.twin.priorities, run.twin.relinquished

    assert play({"priority": 12}, scene) == ({"temperature_setpoint": 12}, {}, ["temperature_setpoint"])


def test_the_next_session_gives_up_what_an_earlier_one_commanded():
    async def scene(run, driver):
        await driver.write("unit1.temperature_setpoint", 9.0)
        later = make_driver(
            msgspec.structs.replace(run.device, address=run.twin.address), run.profile, Secret(), run.clock
        )
        assert isinstance(later, RelinquishingDriver)
        try:
            await later.relinquish("unit1.temperature_setpoint")
        finally:
            await later.close()
        return run.twin.priorities, run.twin.relinquished

    assert play({}, scene) == ({}, ["temperature_setpoint"])


@pytest.mark.parametrize(("is_asked", "expected"), [(True, ["enable"]), (False, [])])
def test_the_end_of_a_session_gives_up_commands_where_the_site_says_so(is_asked, expected):
    async def scene(run, driver):
        await driver.write("unit1.enable", 0.0)
        await driver.close()
        return run.twin.relinquished

    assert play({"relinquish_on_close": is_asked}, scene) == expected


def test_a_device_that_cannot_answer_so_much_is_asked_for_halves():
    async def scene(run, driver):
        run.twin.objects_max = 3
        first = await driver.read()
        run.twin.fault(TwinFault(kind="half", names=("power",)))
        second = await driver.read()
        return first, {one.point_id for one in second if one.value is None}

    first, missing = play({}, scene)
    assert {one.point_id.partition(".")[2]: one.value for one in first} == CHILLER
    assert missing == {"unit1.power"}


def test_another_device_at_the_address_is_refused():
    async def scene():
        async with TwinRun(DEVICE, CHILLER) as run:
            there = msgspec.structs.replace(DEVICE, address=run.twin.address, options={"instance": 7})
            return await read_device(there)

    reasons = {one.reason for one in asyncio.run(scene()).values()}
    assert len(reasons) == 1
    assert "is not the device 7" in reasons.pop()


def test_a_port_with_nobody_says_so():
    async def scene():
        async with TwinRun(DEVICE, CHILLER) as run:
            address = run.twin.address
        return await read_device(msgspec.structs.replace(DEVICE, address=address, timeout_s=1.0))

    assert all("Connection refused" in one.reason for one in asyncio.run(scene()).values())


def test_the_twin_says_who_holds_its_port():
    async def scene(run, driver):
        await TwinRun(msgspec.structs.replace(DEVICE, address=run.twin.address), CHILLER).twin.start()

    with pytest.raises(Unavailable, match="cannot listen on"):
        play({}, scene)


@pytest.mark.parametrize(
    ("options", "change", "word"),
    [
        ({"baud": 1}, {}, "no option baud"),
        ({"priority": 0}, {}, "is not within 1 to 16"),
        ({"network": 5, "mac": "xy"}, {}, "not hexadecimal"),
        ({}, {"ref": "analog-input,x"}, "is no object"),
        ({}, {"kind": "setpoint"}, "is an input"),
        ({}, {"kind": "setpoint", "ref": "analog-value,1", "valid": None}, "needs `valid`"),
    ],
)
def test_what_cannot_be_is_rejected_before_anything_is_sent(options, change, word):
    device = make_device("bacnet", "chiller", address="127.0.0.1:9", options=options)
    loaded = load_profile("bacnet", "chiller")
    first = msgspec.convert(msgspec.to_builtins(loaded.points[0]) | change, type(loaded.points[0]))
    loaded = msgspec.structs.replace(loaded, points=(first, *loaded.points[1:]))
    with pytest.raises(Rejected, match=word):
        make_driver(device, loaded, Secret(), None)
