"""The MQTT driver keeps the contract on its twin, with plain topics and with Sparkplug B."""

import asyncio
from typing import ClassVar

import msgspec
import pytest
from tests.facility.facility_parts import TwinRun, make_device, read_device

from madang.core import Rejected, Unavailable
from madang.facility.contract import Secret, TwinFault
from madang.facility.profile import load_profile
from madang.facility.roster import make_driver
from madang.model import Quality
from madang.testing.facility_contract import FacilityReadContract, FacilityWriteContract

PLUG = {
    "power": 812.5,
    "power_apparent": 850.0,
    "power_factor": 0.875,
    "voltage": 229.5,
    "current": 3.71,
    "energy": 3185.0,
    "power_switch": 0.0,
}
COOLING = {
    "temperature_supply": 18.5,
    "temperature_return": 29.25,
    "speed_fan": 62.5,
    "power": 7310.0,
    "state_unit": 2.0,
    "alarm_leak": 1.0,
    "temperature_setpoint": 18.0,
    "temperature_outdoor": -3.5,
}
METER = {
    f"{name}_l{phase}": value * (10 + phase)
    for phase in (1, 2, 3)
    for name, value in (("power", 300), ("voltage", 20.0), ("current", 1.5), ("power_factor", 0.0625), ("energy", 1000))
}
PLUG_DEVICE = make_device("mqtt", "tasmota_plug", options={"base": "plug7"})
COOLING_DEVICE = make_device("mqtt", "sparkplug_cooling_unit", options={"group": "box", "edge_node": "plant"})


class TestPlug(FacilityReadContract, FacilityWriteContract):
    device = PLUG_DEVICE
    values = PLUG
    half_names = ("voltage", "power")
    sentinel_names = ("current", "power_switch")
    command = ("power_switch", 1.0)
    read_only_name = "power"
    steps: ClassVar = {"power_factor": 0.0625}
    secret = Secret(user="site", words={"password": "a-long-word"})


class TestMeter(FacilityReadContract):
    device = make_device("mqtt", "shelly_3em", options={"base": "shellies/shellyem3-1"})
    values = METER
    half_names = ("voltage_l2", "energy_l3")
    sentinel_names = ("power_l1",)
    steps: ClassVar = {f"power_factor_l{phase}": 0.125 for phase in (1, 2, 3)}


class TestLeakSensor(FacilityReadContract):
    device = make_device("mqtt", "zigbee2mqtt_leak", options={"base": "zigbee2mqtt/floor"})
    values: ClassVar = {"alarm_leak": 0.0, "charge": 87.0, "temperature": 21.5}
    half_names = ("temperature",)
    sentinel_names = ("alarm_leak",)


class TestSparkplug(FacilityReadContract, FacilityWriteContract):
    device = COOLING_DEVICE
    values = COOLING
    half_names = ("temperature_return", "temperature_outdoor")
    sentinel_names = ("power", "state_unit", "temperature_setpoint")
    command = ("temperature_setpoint", 21.5)
    read_only_name = "power"


def play(device, values, scene, secret=None):
    """Run a scene with a twin and a driver on it."""

    async def run():
        async with TwinRun(device, values, secret) as run:
            there = msgspec.structs.replace(run.device, address=run.twin.address)
            driver = make_driver(there, run.profile, run.secret, run.clock)
            try:
                return await scene(run, driver)
            finally:
                await driver.close()

    return asyncio.run(run())


def test_a_gap_in_the_sequence_is_mended_by_a_birth_that_is_asked_for():
    async def scene(run, driver):
        await driver.read()
        run.plant.values["temperature_outdoor"] = 4.5
        run.twin.is_losing = True
        samples = await driver.read()
        return run.twin.rebirths, {one.point_id: one.value for one in samples}

    rebirths, values = play(COOLING_DEVICE, COOLING, scene)
    assert rebirths == 2
    assert values["unit1.temperature_outdoor"] == 4.5


def test_births_are_asked_for_less_often_while_none_comes():
    async def scene(run, driver):
        asked = []
        run.twin.is_deaf = True
        for _ in range(9):
            await driver.read()
            asked.append(run.twin.rebirths)
        run.twin.is_deaf = False
        for _ in range(7):
            samples = await driver.read()
        return asked, {one.quality for one in samples}

    asked, qualities = play(msgspec.structs.replace(COOLING_DEVICE, timeout_s=0.3), COOLING, scene)
    assert asked == [1, 2, 2, 3, 3, 3, 3, 4, 4]
    assert qualities == {Quality.GOOD}


def test_a_device_without_a_word_ages_and_is_stale():
    async def scene(run, driver):
        await driver.read()
        run.twin.fault(TwinFault(kind="half", names=("power_l1",)))
        run.clock.now_s += 1000.0
        return {one.point_id: one for one in await driver.read()}

    samples = play(TestMeter.device, METER, scene)
    assert samples["unit1.power_l1"].quality is Quality.STALE
    assert samples["unit1.power_l1"].reason == "said 1000 s ago"
    assert samples["unit1.power_l2"].quality is Quality.GOOD


def test_a_wrong_password_is_said():
    device = PLUG_DEVICE

    async def scene():
        async with TwinRun(device, PLUG, Secret(user="site", words={"password": "right"})) as run:
            there = msgspec.structs.replace(device, address=run.twin.address)
            return await read_device(there, secret=Secret(user="site", words={"password": "wrong"}))

    reasons = {one.reason for one in asyncio.run(scene()).values()}
    assert len(reasons) == 1
    assert "refuses user or password" in reasons.pop()


def test_the_twin_says_who_holds_its_port():
    async def scene(run, driver):
        await TwinRun(msgspec.structs.replace(run.device, address=run.twin.address), PLUG).twin.start()

    with pytest.raises(Unavailable, match="cannot listen on"):
        play(PLUG_DEVICE, PLUG, scene)


@pytest.mark.parametrize(
    ("profile", "options", "change", "word"),
    [
        ("sparkplug_cooling_unit", {}, {}, "needs the options `group`"),
        ("tasmota_plug", {}, {}, "needs the option `base`"),
        ("tasmota_plug", {"base": "a", "qos": 2}, {}, "no option qos"),
        ("tasmota_plug", {"base": "a/#"}, {}, "is no topic"),
        ("tasmota_plug", {"base": "a"}, {"ref": "spb:only"}, "is no metric"),
        ("tasmota_plug", {"base": "a"}, {"ref": "a#b"}, "no JSON pointer"),
        ("tasmota_plug", {"base": "a"}, {"kind": "setpoint"}, "`command_topic`"),
        ("tasmota_plug", {"base": "a"}, {"kind": "setpoint", "valid": None}, "needs `valid` or `states`"),
        ("tasmota_plug", {"base": "a", "tls": True, "ca_file": "/nowhere.pem"}, {}, "no file /nowhere.pem"),
    ],
)
def test_what_cannot_be_is_rejected_before_anything_is_sent(profile, options, change, word):
    device = make_device("mqtt", profile, address="127.0.0.1:9", options=options)
    loaded = load_profile("mqtt", profile)
    first = msgspec.convert(msgspec.to_builtins(loaded.points[0]) | change, type(loaded.points[0]))
    loaded = msgspec.structs.replace(loaded, points=(first, *loaded.points[1:]))
    with pytest.raises(Rejected, match=word):
        make_driver(device, loaded, Secret(), None)
