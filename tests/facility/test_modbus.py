"""The Modbus driver keeps the contract on its twin, and reads devices that refuse parts or share an address."""

import asyncio
from typing import ClassVar

import msgspec
import pytest
from tests.facility.facility_parts import TwinRun, make_device, read_device

from madang.core import Rejected, Unavailable
from madang.facility.contract import TwinFault
from madang.facility.modbus.link import ModbusLink
from madang.facility.profile import Profile
from madang.facility.roster import make_driver
from madang.model import Quality
from madang.testing.facility_contract import FacilityReadContract, FacilityWriteContract, count_sockets, until

COOLING = {
    "temperature_supply": 18.5,
    "temperature_return": 29.3,
    "humidity_return": 41.2,
    "speed_fan": 62.5,
    "load": 48.7,
    "power": 7310.0,
    "state_compressor": 2.0,
    "state_unit": 3.0,
    "temperature_setpoint": 18.0,
    "capacity_limit": 100.0,
    "alarm_temperature_high": 0.0,
    "alarm_compressor": 1.0,
    "alarm_flow_low": 0.0,
    "alarm_filter": 1.0,
    "alarm_leak": 0.0,
    "alarm_power_lost": 1.0,
}
METER = {
    "voltage_l1": 229.5,
    "voltage_l2": 230.25,
    "voltage_l3": 231.75,
    "current_l1": 15.5,
    "current_l2": 16.25,
    "current_l3": 17.125,
    "power_l1": 3400.0,
    "power_l2": 3500.0,
    "power_l3": 3600.0,
    "power": 10500.0,
    "power_apparent": 10750.0,
    "power_factor": 0.9765625,
    "frequency": 60.0,
    "energy": 1024000.0,
}
BATTERY = {
    "charge": 80.5,
    "health": 97.5,
    "voltage": 512.5,
    "current": -12.5,
    "power_battery": -6400.0,
    "voltage_cell_max": 3.345,
    "voltage_cell_min": 3.305,
    "state_battery": 3.0,
    "state_charging": 4.0,
    "energy_rated": 40000.0,
    "energy_available": 32200.0,
}
CONTACTS = {"leak1": "leak_a", "smoke1": "smoke_a", "door2": "door_b", "interlock1": "lockout_a"}


class TestCoolingUnit(FacilityReadContract, FacilityWriteContract):
    device = make_device("modbus", "cooling_unit")
    values = COOLING
    half_names = ("temperature_return", "speed_fan", "alarm_filter")
    sentinel_names = ("temperature_supply", "state_compressor", "power")
    command = ("temperature_setpoint", 21.5)
    read_only_name = "temperature_supply"


class TestMeterOfFloats(FacilityReadContract):
    device = make_device("modbus", "eastron_sdm630")
    values = METER
    half_names = ("voltage_l2", "power", "energy")
    sentinel_names = ("frequency", "power_l1")


class TestMeterOfLongWords(FacilityReadContract):
    device = make_device("modbus", "meter_three_phase", options={"unit": 7, "gap_registers": 0})
    values = METER | {"power_reactive": -250.0, "power_factor": 0.977}
    half_names = ("voltage_l1",)
    sentinel_names = ("energy", "power")


class TestSunspecBattery(FacilityReadContract):
    device = make_device("modbus", "sunspec_battery")
    values = BATTERY
    half_names = ("charge", "power_battery")
    sentinel_names = ("health", "state_battery", "energy_rated")
    steps: ClassVar = {"power_battery": 10.0, "energy_rated": 100.0, "energy_available": 100.0}


def test_contacts_belong_to_the_equipment_that_the_site_names():
    device = make_device("modbus", "contacts", parts=CONTACTS)
    held = {
        "alarm_leak[leak1]": 1.0,
        "alarm_smoke[smoke1]": 0.0,
        "state_open[door2]": 1.0,
        "alarm_intrusion[door2]": 0.0,
        "state_lockout[interlock1]": 0,
    }

    async def scene():
        async with TwinRun(device, held) as run:
            return await read_device(msgspec.structs.replace(device, address=run.twin.address))

    samples = asyncio.run(scene())
    assert {name: one.text for name, one in samples.items()} == {
        "leak_a.alarm_leak": "active",
        "smoke_a.alarm_smoke": "clear",
        "door_b.state_open": "open",
        "door_b.alarm_intrusion": "clear",
        "lockout_a.state_lockout": "clear",
    }


@pytest.mark.parametrize(
    ("profile", "values"),
    [
        (
            "sunspec_meter",
            METER
            | {
                "energy_exported": 300.0,
                "power_factor": 0.975,
                "current_l3": 17.1,
                "current_l2": 16.2,
                "voltage_l2": 230.2,
                "voltage_l3": 231.7,
                "energy": 1024000.0,
            },
        ),
        ("sunspec_meter_float", METER | {"energy_exported": 512.0}),
    ],
)
def test_sunspec_meters_are_read(profile, values):
    device = make_device("modbus", profile)

    async def scene():
        async with TwinRun(device, values) as run:
            return await read_device(msgspec.structs.replace(device, address=run.twin.address))

    samples = asyncio.run(scene())
    assert {one.quality for one in samples.values()} == {Quality.GOOD}, samples
    assert {name.partition(".")[2]: one.value for name, one in samples.items()} == pytest.approx(
        {name: values[name] for name in (point.partition(".")[2] for point in samples)}
    )


def test_a_sunspec_point_of_a_model_that_the_device_lacks_is_bad_alone():
    inverter = make_device("modbus", "sunspec_inverter")
    held = {"power": 9000.0, "frequency": 60.0}

    async def scene():
        async with TwinRun(inverter, held) as run:
            points = tuple(one for one in run.profile.points if one.name in held)
            battery = make_device("modbus", "sunspec_battery")
            charge = TwinRun(battery, BATTERY).profile.points[0]
            both = Profile(name="both", driver="modbus", title="both", points=(*points, charge))
            return await read_device(msgspec.structs.replace(inverter, address=run.twin.address), both)

    samples = asyncio.run(scene())
    assert samples["unit1.power"].value == 9000
    assert samples["unit1.charge"].reason == "the device has no SunSpec model 802"


def test_a_device_without_a_map_says_so():
    device = make_device("modbus", "cooling_unit")

    async def scene():
        async with TwinRun(device, COOLING) as run:
            return await read_device(make_device("modbus", "sunspec_battery", address=run.twin.address))

    samples = asyncio.run(scene())
    assert {one.reason for one in samples.values()} == {"the device shows no SunSpec map at 40000, 50000 or 0"}


def test_a_unit_that_a_gateway_does_not_reach_costs_only_its_own_points():
    device = make_device("modbus", "cooling_unit")

    async def scene():
        async with TwinRun(device, COOLING) as run:
            moved = [
                msgspec.structs.replace(one, options=one.options | {"unit": 9}) if one.name == "power" else one
                for one in run.profile.points
            ]
            profile = msgspec.structs.replace(run.profile, points=tuple(moved))
            return await read_device(msgspec.structs.replace(device, address=run.twin.address), profile)

    samples = asyncio.run(scene())
    assert "exception 11" in samples["unit1.power"].reason
    assert {one.quality for name, one in samples.items() if name != "unit1.power"} == {Quality.GOOD}


def test_a_refused_part_is_remembered_while_the_connection_stands():
    device = make_device("modbus", "cooling_unit")

    async def scene():
        async with TwinRun(device, COOLING) as run:
            run.twin.fault(TwinFault(kind="half", names=("temperature_return",)))
            asked = []
            driver = make_driver(
                msgspec.structs.replace(device, address=run.twin.address), run.profile, run.secret, run.clock
            )
            try:
                for _ in range(3):
                    before = run.twin.requests
                    await driver.read()
                    asked.append(run.twin.requests - before)
            finally:
                await driver.close()
            return asked

    first, second, third = asyncio.run(scene())
    assert first > second == third


def test_a_device_that_fell_silent_is_left():
    device = make_device("modbus", "cooling_unit", timeout_s=0.3)

    async def scene():
        async with TwinRun(device, COOLING) as run:
            driver = make_driver(
                msgspec.structs.replace(device, address=run.twin.address), run.profile, run.secret, run.clock
            )
            before = count_sockets()
            try:
                run.twin.fault(TwinFault(kind="silent"))
                await driver.read()
                await until(lambda: count_sockets() == before, "the connection stands")
            finally:
                await driver.close()

    asyncio.run(scene())


def test_a_connection_that_the_device_ended_between_readings_costs_none():
    device = make_device("modbus", "cooling_unit")

    async def scene():
        async with TwinRun(device, COOLING) as run:
            link = ModbusLink(run.host, run.port, 30.0)
            request = bytes.fromhex("0400000001")
            try:
                first = await link.ask(1, request)
                await run.twin.stop()
                await until(lambda: not link.is_open, "the end is not seen")
                await run.twin.start()
                return first, await link.ask(1, request)
            finally:
                await link.close()

    first, second = asyncio.run(scene())
    assert first == second == bytes.fromhex("040200b9")


def test_commands_take_states_and_refuse_numbers_that_are_none():
    device = make_device("modbus", "cooling_unit")

    async def scene():
        async with TwinRun(device, COOLING | {"mode": 1.0}) as run:
            [like] = [one for one in run.profile.points if one.name == "temperature_setpoint"]
            mode = msgspec.convert(
                {
                    "name": "mode",
                    "quantity": "state",
                    "kind": "command",
                    "ref": "coil:4",
                    "states": {"0": "off", "1": "on"},
                },
                type(like),
            )
            profile = msgspec.structs.replace(run.profile, points=(*run.profile.points, mode))
            again = TwinRun(device, COOLING | {"mode": 1.0}, profile=profile)
            async with again:
                driver = make_driver(
                    msgspec.structs.replace(device, address=again.twin.address), profile, run.secret, run.clock
                )
                try:
                    with pytest.raises(Rejected, match="none of the states"):
                        await driver.write("unit1.mode", 2)
                    await driver.write("unit1.mode", 0)
                    return again.plant.commands
                finally:
                    await driver.close()

    assert asyncio.run(scene()) == [("mode", 0.0)]


def test_the_twin_says_who_holds_its_port():
    device = make_device("modbus", "cooling_unit")

    async def scene():
        async with TwinRun(device, COOLING) as run:
            second = TwinRun(msgspec.structs.replace(device, address=run.twin.address), COOLING)
            await second.twin.start()

    with pytest.raises(Unavailable, match="cannot listen on"):
        asyncio.run(scene())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"ref": "input:0", "kind": "setpoint"}, "only coils and whole holding registers"),
        ({"valid": None, "kind": "setpoint", "ref": "holding:9"}, "needs `valid` or `states`"),
        ({"ref": "file:0"}, "TABLE:ADDRESS"),
    ],
)
def test_a_profile_that_cannot_be_is_rejected_before_anything_is_sent(change, word):
    device = make_device("modbus", "cooling_unit", address="127.0.0.1:9")
    run = TwinRun(make_device("modbus", "cooling_unit"), COOLING)
    first = msgspec.convert(msgspec.to_builtins(run.profile.points[0]) | change, type(run.profile.points[0]))
    with pytest.raises(Rejected, match=word):
        make_driver(device, msgspec.structs.replace(run.profile, points=(first,)), run.secret, run.clock)


def test_an_unknown_option_is_named():
    run = TwinRun(make_device("modbus", "cooling_unit"), COOLING)
    device = make_device("modbus", "cooling_unit", options={"baud": 9600})
    with pytest.raises(Rejected, match="no option baud"):
        make_driver(device, run.profile, run.secret, run.clock)
