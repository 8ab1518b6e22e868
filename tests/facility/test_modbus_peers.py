"""Other people's Modbus: libmodbus, pymodbus and pysunspec2 read our twin; our driver reads others' servers."""

import asyncio
import json
import re

import msgspec
import pytest
from tests.facility.facility_parts import (
    PeerServer,
    TwinRun,
    find_tool,
    make_device,
    peer_python,
    read_device,
    run_tool,
)
from tests.facility.test_modbus import BATTERY, COOLING, METER

from madang.facility.contract import Secret
from madang.facility.profile import PointSpec, Profile
from madang.facility.roster import make_driver
from madang.model import Quality
from madang.testing.facility_contract import StandingClock

pytestmark = pytest.mark.peer


def test_libmodbus_reads_our_twin_and_commands_it():
    mbpoll = find_tool("mbpoll")

    async def scene():
        async with TwinRun(make_device("modbus", "cooling_unit"), COOLING) as run:
            base = (mbpoll, "-m", "tcp", "-a", "1", "-0", "-r", "0", "-1", "-q", "-p", run.port)
            registers = await run_tool(*base, "-c", "8", "-t", "3:hex", "127.0.0.1")
            inputs = await run_tool(*base, "-c", "6", "-t", "1", "127.0.0.1")
            await run_tool(*base, "-t", "4", "127.0.0.1", "235")
            return registers, inputs, run.plant.commands

    registers, inputs, commands = asyncio.run(scene())
    numbers = [int(one, 16) for one in re.findall(r"\[\d+\]:\s+0x(\w+)", registers)]
    assert numbers == [185, 293, 412, 625, 487, 731, 2, 3]
    assert [int(one) for one in re.findall(r"\[\d+\]:\s+(\d)", inputs)] == [0, 1, 0, 1, 0, 1]
    assert commands == [("temperature_setpoint", 23.5)]


def test_pymodbus_reads_our_twin():
    client = pytest.importorskip("pymodbus.client")

    async def scene():
        async with TwinRun(make_device("modbus", "eastron_sdm630"), METER) as run:
            peer = client.AsyncModbusTcpClient("127.0.0.1", port=run.port, timeout=30, retries=0)
            await peer.connect()
            try:
                answer = await peer.read_input_registers(0, count=18, device_id=1)
                refusal = await peer.read_input_registers(900, count=1, device_id=1)
                stranger = await peer.read_input_registers(0, count=1, device_id=9)
            finally:
                peer.close()
            return peer.convert_from_registers(answer.registers, peer.DATATYPE.FLOAT32), refusal, stranger

    numbers, refusal, stranger = asyncio.run(scene())
    assert numbers == [229.5, 230.25, 231.75, 15.5, 16.25, 17.125, 3400, 3500, 3600]
    assert refusal.exception_code == 2
    assert stranger.exception_code == 11


@pytest.mark.parametrize(
    ("profile", "values", "model", "expected"),
    [
        (
            "sunspec_battery",
            BATTERY,
            802,
            {"SoC": 80.5, "SoH": 97.5, "V": 512.5, "A": -12.5, "W": -6400, "State": 3, "ChaSt": 4, "AHRtg": None},
        ),
        ("sunspec_battery", BATTERY, 713, {"WHRtg": 40000, "WHAvail": 32200, "SoC": None}),
        ("sunspec_meter_float", METER | {"energy_exported": 512.0}, 213, {"W": 10500, "PhVphB": 230.25, "Hz": 60.0}),
        ("sunspec_meter", METER | {"energy_exported": 300.0}, 203, {"W": 10500, "Hz": 60.0, "TotWhImp": 1024000}),
    ],
)
def test_pysunspec2_reads_our_twin(profile, values, model, expected):
    python = peer_python("clients", "sunspec2")
    code = f"""
import json, sys
import sunspec2.modbus.client as client
device = client.SunSpecModbusClientDeviceTCP(slave_id=1, ipaddr="127.0.0.1", ipport=int(sys.argv[1]), timeout=30)
device.scan()
device.close()
read = device.models[{model}][0]
points = {{name: getattr(read, name).cvalue for name in {list(expected)}}}
print(json.dumps([points, device.models[1][0].SN.value]))
"""

    async def scene():
        async with TwinRun(make_device("modbus", profile), values) as run:
            return json.loads(await run_tool(python, "-c", code, run.port))

    points, serial = asyncio.run(scene())
    assert points == pytest.approx(expected)
    assert serial == "MadangTwin"


def specs(*rows):
    return Profile(
        name="peer",
        driver="modbus",
        title="a peer's server",
        points=tuple(msgspec.convert({"quantity": "power"} | row, PointSpec) for row in rows),
    )


ROWS = specs(
    {"name": "whole", "ref": "holding:0"},
    {"name": "signed", "ref": "holding:1", "options": {"type": "int16"}},
    {"name": "float", "ref": "holding:10", "options": {"type": "float32"}},
    {"name": "swapped", "ref": "holding:12", "options": {"type": "uint32", "word_order": "little"}},
    {"name": "setpoint", "ref": "holding:20", "kind": "setpoint", "valid": [0, 500]},
)
EXPECTED = {"whole": 220, "signed": -5, "float": 12.34, "swapped": 65538, "setpoint": 7}


def check(samples):
    assert {one.quality for one in samples.values()} == {Quality.GOOD}, samples
    values = {name.partition(".")[2]: one.value for name, one in samples.items()}
    assert values == pytest.approx(EXPECTED, rel=1e-6)


async def read_and_command(port):
    device = make_device("modbus", "peer", address=f"127.0.0.1:{port}")
    check(await read_device(device, ROWS))
    driver = make_driver(device, ROWS, Secret(), StandingClock())
    try:
        await driver.write("unit1.setpoint", 321)
        return {one.point_id: one.value for one in await driver.read()}["unit1.setpoint"]
    finally:
        await driver.close()


def test_our_driver_reads_and_commands_a_server_of_pymodbus():
    server = pytest.importorskip("pymodbus.server")
    simulator = pytest.importorskip("pymodbus.simulator")

    async def scene():
        words = [220, 0xFFFB, *[0] * 8, 0x4145, 0x70A4, 2, 1, *[0] * 6, 7]
        data = simulator.SimData(0, values=words, datatype=simulator.DataType.REGISTERS)
        peer = server.ModbusTcpServer(simulator.SimDevice(1, simdata=[data]), address=("127.0.0.1", 0))
        await peer.serve_forever(background=True)
        try:
            return await read_and_command(peer.transport.sockets[0].getsockname()[1])
        finally:
            await peer.shutdown()

    assert asyncio.run(scene()) == 321


def test_our_driver_reads_and_commands_a_server_of_pymodbustcp():
    python = peer_python("clients", "pyModbusTCP")
    code = """
import socket, sys
from pyModbusTCP.server import ModbusServer
with socket.socket() as trial:
    trial.bind(("127.0.0.1", 0))
    port = trial.getsockname()[1]
server = ModbusServer(host="127.0.0.1", port=port, no_block=True)
server.data_bank.set_holding_registers(0, [220, 0xFFFB, *[0] * 8, 0x4145, 0x70A4, 2, 1, *[0] * 6, 7])
server.start()
print(port, flush=True)
sys.stdin.read()
server.stop()
"""

    async def scene():
        async with PeerServer(python, "-c", code) as peer:
            return await read_and_command(int(peer.line))

    assert asyncio.run(scene()) == 321
