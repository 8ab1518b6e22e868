"""Another BACnet stack, bacpypes3: its client reads and commands our twin, and our driver its server."""

import asyncio
import contextlib
import gc

import msgspec
import pytest
from tests.facility.facility_parts import TwinRun
from tests.facility.test_bacnet import CHILLER, DEVICE

from madang.facility.contract import Secret
from madang.facility.profile import load_profile
from madang.facility.roster import make_driver
from madang.model import Quality
from madang.testing.facility_contract import HANG_S, StandingClock
from madang.testing.ports import free_port

pytestmark = pytest.mark.peer
app_module = pytest.importorskip("bacpypes3.ipv4.app")


@contextlib.asynccontextmanager
async def stack(instance, *objects):
    """Run a bacpypes3 application on loopback, and give it with its port."""
    from bacpypes3.local.device import DeviceObject
    from bacpypes3.pdu import IPv4Address

    port = free_port()
    device = DeviceObject(objectIdentifier=("device", instance), objectName=f"peer{instance}", vendorIdentifier=999)
    app = app_module.NormalApplication(device, IPv4Address(f"127.0.0.1/32:{port}"))
    for one in objects:
        app.add_object(one)
    try:
        async with asyncio.timeout(HANG_S):
            yield app, port
    finally:
        app.close()
        await asyncio.sleep(0)  # its transport closes in the loop's next turn
        gc.collect()


def test_its_client_reads_and_commands_our_twin():
    from bacpypes3.basetypes import PropertyIdentifier
    from bacpypes3.pdu import Address
    from bacpypes3.primitivedata import Null, ObjectIdentifier, Real

    async def scene():
        async with TwinRun(DEVICE, CHILLER) as run, stack(4001) as (app, _):
            there = Address(run.twin.address)
            [said] = await app.who_is(2001, 2001, address=there, timeout=HANG_S)
            names = ("analog-input,1", "multi-state-value,1", "binary-input,1", "accumulator,1", "analog-input,77")
            asked = []
            for name in names:
                asked += [ObjectIdentifier(name), [PropertyIdentifier("present-value")]]
            found = await app.read_property_multiple(there, asked)
            await app.write_property(there, ObjectIdentifier("analog-value,10"), "present-value", Real(9.5), priority=9)
            held = dict(run.twin.priorities)
            await app.write_property(there, ObjectIdentifier("analog-value,10"), "present-value", Null(()), priority=9)
            return said, found, held, run.plant.commands, run.twin.relinquished

    said, found, held, commands, relinquished = asyncio.run(scene())
    assert tuple(said.iAmDeviceIdentifier)[1] == 2001
    assert [float(one[3]) for one in found[:4]] == [7.5, 3.0, 1.0, 12345.0]
    assert str(found[4][3].errorCode) == "unknown-object"
    assert held == {"temperature_setpoint": 9}
    assert commands == [("temperature_setpoint", 9.5)]
    assert relinquished == ["temperature_setpoint"]


def test_our_driver_reads_and_commands_its_server():
    from bacpypes3.local.analog import AnalogInputObject, AnalogValueObject
    from bacpypes3.local.binary import BinaryInputObject
    from bacpypes3.local.cmd import Commandable

    class Setpoint(Commandable, AnalogValueObject):
        pass

    async def scene():
        outdoor = AnalogInputObject(objectIdentifier=("analog-input", 3), objectName="outdoor", presentValue=-3.5)
        faulty = AnalogInputObject(
            objectIdentifier=("analog-input", 1), objectName="faulty", presentValue=7.0, reliability="no-sensor"
        )
        held = AnalogInputObject(
            objectIdentifier=("analog-input", 2), objectName="held", presentValue=12.0, outOfService=True
        )
        alarm = BinaryInputObject(objectIdentifier=("binary-input", 1), objectName="alarm", presentValue="active")
        setpoint = Setpoint(
            objectIdentifier=("analog-value", 10), objectName="setpoint", presentValue=7.0, relinquishDefault=7.0
        )
        async with stack(2001, outdoor, faulty, held, alarm, setpoint) as (_, port):
            there = msgspec.structs.replace(DEVICE, address=f"127.0.0.1:{port}")
            driver = make_driver(there, load_profile("bacnet", "chiller"), Secret(), StandingClock())
            try:
                first = await driver.read()
                await driver.write("unit1.temperature_setpoint", 9.5)
                second = await driver.read()
                await driver.relinquish("unit1.temperature_setpoint")
                third = await driver.read()
            finally:
                await driver.close()
            return [{one.point_id.partition(".")[2]: one for one in samples} for samples in (first, second, third)]

    first, second, third = asyncio.run(scene())
    assert first["temperature_outdoor"].value == -3.5
    assert first["alarm_general"].text == "active"
    assert (first["temperature_supply"].value, first["temperature_supply"].reason) == (None, "the device says: fault")
    assert (first["temperature_return"].value, first["temperature_return"].quality) == (12.0, Quality.SUBSTITUTED)
    assert "error class 1, code 31" in first["flow"].reason
    assert [samples["temperature_setpoint"].value for samples in (first, second, third)] == [7.0, 9.5, 7.0]
