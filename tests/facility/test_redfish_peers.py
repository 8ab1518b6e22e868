"""Independent programs judge the Redfish twin, and independent services are read by the driver."""

import asyncio
import os
import re
import tarfile

import httpx
import pytest
from tests.facility.redfish_parts import (
    BMC,
    CDU,
    RACK_PDU,
    SECRET,
    LiveTwin,
    device_of,
    driver_on,
    find_peer,
    listens,
    read,
    run_tool,
    running,
)

from madang.core import Rejected
from madang.model import Quality
from madang.testing.facility_contract import HANG_S
from madang.testing.ports import free_port

PARTS = {
    "bmc": ({"drive0": "drive_a", "drive3": "drive_d"}, BMC),
    "rack_pdu": ({"outlet1": "server_a", "outlet12": "server_b"}, RACK_PDU),
    "cdu": ({}, CDU),
}
PASSES_MIN = {"bmc": 370, "rack_pdu": 690, "cdu": 215}
"""A validator that checks nothing fails nothing: it has to have passed at least so many checks."""
USER, PASSWORD = SECRET.user, SECRET.words["password"]

pytestmark = pytest.mark.peer


def play(scene, seconds=1.5 * HANG_S):
    async def run():
        async with asyncio.timeout(seconds):
            await scene()

    asyncio.run(run())


def live_twin(kind):
    parts, values = PARTS[kind]
    return LiveTwin(device_of("redfish", kind, parts=parts), values, secret=SECRET)


@pytest.mark.deep
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", sorted(PARTS))
def test_the_service_validator_finds_nothing_wrong(kind, test_data, tmp_path):
    validator = find_peer("clients", "rf_service_validator")
    archive = test_data / "redfish" / "redfish-csdl-bmcweb-7debb892.tar.xz"
    if not archive.is_file():
        pytest.skip(f"{archive} is not here: the validator checks nothing without DMTF's schemas")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path / "schemas", filter="data")

    async def scene():
        async with live_twin(kind) as live:
            port = int(live.address.rpartition(":")[2])
            assert await listens(port)
            options = ("--authtype", "Session", "--user", USER, "--password", PASSWORD, "--rhost", live.address)
            places = ("--schema_directory", tmp_path / "schemas", "--skipschema", "--logdir", tmp_path / "logs")
            out = await run_tool(validator, *options, *places, cwd=tmp_path, may_fail=True)
        plain = re.sub(r"\x1b\[[0-9;]*m", "", out)
        counts = re.search(r"\|\s*(\d+)\s*\|\s*(\d+)\s*\|\s*(\d+)\s*\|\s*(\d+)\s*\|", plain)
        assert counts, plain
        passed, _, failed, _ = map(int, counts.groups())
        print(kind, "passed, warned, failed, not tested:", *counts.groups())
        assert failed == 0, plain
        assert passed >= PASSES_MIN[kind], plain

    play(scene, 8 * HANG_S)


SUSHY = """
import sys, sushy
from sushy import auth
root = sushy.Sushy(sys.argv[1], auth=auth.SessionAuth(sys.argv[2], sys.argv[3]))
[system] = root.get_system_collection().get_members()
[chassis] = root.get_chassis_collection().get_members()
print(system.power_state.value, chassis.name)
print(sorted(one.value for one in system.get_allowed_reset_system_values()))
[storage] = system.storage.get_members()
print(len(storage.drives), storage.drives[3].status.health.value)
system.reset_system(sushy.ResetType.GRACEFUL_SHUTDOWN)
system.invalidate(); system.refresh()
print(system.power_state.value)
"""


def test_sushy_reads_and_shuts_down_our_server():
    python = find_peer("clients", "python")
    if not any(python.parents[1].glob("lib/python*/site-packages/sushy")):
        pytest.skip("sushy is not among the clients")

    async def scene():
        async with live_twin("bmc") as live:
            out = await run_tool(python, "-c", SUSHY, live.address, USER, PASSWORD)
            assert out.splitlines() == [
                "On Chassis of the server",
                "['ForceOff', 'GracefulShutdown', 'On']",
                "4 Warning",
                "Off",
            ]
            assert live.plant.commands == [("state_power", 0.0)]

    play(scene)


DMTF = """
import sys, redfish
client = redfish.redfish_client(base_url=sys.argv[1], username=sys.argv[2], password=sys.argv[3])
client.login(auth="session")
path = "/redfish/v1/Chassis/1/EnvironmentMetrics"
got = client.get(path)
print(got.dict["PowerWatts"]["Reading"], got.dict["PowerLimitWatts"]["SetPoint"])
tag = got.getheader("ETag")
print(client.patch(path, body={"PowerLimitWatts": {"SetPoint": 555}}, headers={"If-Match": tag}).status)
print(client.patch(path, body={"PowerLimitWatts": {"SetPoint": 5000}}).status)
print(client.get(path).dict["PowerLimitWatts"]["SetPoint"])
client.logout()
"""


def test_dmtfs_client_sets_our_power_cap():
    python = find_peer("clients", "python")
    if not any(python.parents[1].glob("lib/python*/site-packages/redfish")):
        pytest.skip("DMTF's redfish is not among the clients")

    async def scene():
        async with live_twin("bmc") as live:
            out = await run_tool(python, "-c", DMTF, live.address, USER, PASSWORD)
            assert out.split() == ["612", "800", "204", "400", "555"]
            assert live.plant.commands == [("power_limit", 555.0)]

    play(scene)


def test_dmtfs_tools_show_our_pdu_our_cdu_and_our_sensors():
    tools = {name: find_peer("clients", f"rf_{name}.py") for name in ("power_equipment", "thermal_equipment")}
    sensors = find_peer("clients", "rf_sensor_list.py")

    async def scene():
        async with live_twin("rack_pdu") as pdu, live_twin("cdu") as cdu, live_twin("bmc") as bmc:

            def ask(tool, live, *words):
                python = tool.parent / "python"
                return run_tool(python, tool, "-u", USER, "-p", PASSWORD, "-r", live.address, *words)

            outlet, mains, connector, listing = await asyncio.gather(
                ask(tools["power_equipment"], pdu, "outletinfo", "-t", "RackPDU", "-o", "12"),
                ask(tools["power_equipment"], pdu, "mainsinfo", "-t", "RackPDU", "-m", "AC1"),
                ask(tools["thermal_equipment"], cdu, "secondaryinfo", "-t", "CDU"),
                ask(sensors, bmc),
            )
        assert "290.5" in outlet
        assert "231.5" in mains
        assert "62.5" in connector
        assert "24.5" in listing
        assert "612" in listing

    play(scene)


def test_dmtfs_public_mock_up_is_read(test_data, tmp_path):
    server = find_peer("servers", "sushy-static")
    archive = test_data / "redfish" / "dmtf-public-rackmount1-9a86585f.tar.xz"
    if not archive.is_file():
        pytest.skip(f"{archive} is not here")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")

    async def scene():
        port = free_port()
        command = (server, "-i", "127.0.0.1", "-p", port, "-m", tmp_path / "public-rackmount1")
        device = device_of("redfish", "bmc", address=f"http://127.0.0.1:{port}")
        async with running(*command, port=port), driver_on(device) as driver:
            samples = await read(driver)
            again = await read(driver)
        good = {one.point_id.partition(".")[2]: one.value for one in samples.values() if one.quality is Quality.GOOD}
        assert good == {
            "power": 374.0,
            "power_limit": 500.0,
            "power_limit_min": 150.0,
            "power_limit_max": 1000.0,
            "state_power_limit": 1.0,
            "temperature_inlet": 24.8,
            "temperature_outlet": 40.5,
            "speed_fan": 45.0,
            "state_power": 1.0,
            "state_health": 0.0,
            "state_health_power": 0.0,
            "state_health_cooling": 0.0,
        }
        # What this server does not have is bad with the reason, never a number.
        assert {one.quality for name, one in samples.items() if name.partition(".")[2] not in good} == {Quality.BAD}
        assert [one.value for one in again.values()] == [one.value for one in samples.values()]

    play(scene)


EMULATOR = """
SUSHY_EMULATOR_LISTEN_IP = "127.0.0.1"
SUSHY_EMULATOR_LISTEN_PORT = {port}
SUSHY_EMULATOR_FAKE_DRIVER = True
SUSHY_EMULATOR_STATE_DIR = {state!r}
SUSHY_EMULATOR_FAKE_SYSTEMS = [
    {{"uuid": "27946b59-9e44-4fa7-8e91-f3527a1ef094", "name": "server1", "power_state": "On", "nics": []}}
]
"""


def test_a_server_of_sushys_emulator_is_read_and_shut_down(tmp_path):
    server = find_peer("servers", "sushy-emulator")
    config, port = tmp_path / "sushy.conf", free_port()
    (tmp_path / "state").mkdir()
    config.write_text(EMULATOR.format(port=port, state=str(tmp_path / "state")))
    env = os.environ | {"TMPDIR": str(tmp_path)}

    async def scene():
        async with running(server, "--config", config, port=port, env=env):
            device = device_of("redfish", "bmc", address=f"http://127.0.0.1:{port}")
            async with driver_on(device) as driver:
                samples = await read(driver)
                # It has the older form only, and neither power nor a cap.
                assert samples["unit1.temperature_inlet"].value == 25.0
                assert samples["unit1.state_power"].text == "on"
                assert samples["unit1.power"].quality is Quality.BAD
                with pytest.raises(Rejected):
                    await driver.write("unit1.power_limit", 500.0)
                await driver.write("unit1.state_power", 0.0)
                # It acts some seconds after it said that it had.
                while (await read(driver))["unit1.state_power"].text != "off":  # noqa: ASYNC110  a device has no event
                    await asyncio.sleep(0.2)

    play(scene)


def test_a_coolant_leak_of_a_simulated_hall_is_seen():
    simhall = find_peer("hall", "simhall")  # needs Python 3.12, so it has peers of its own

    async def scene():
        port = free_port()
        door = f"http://127.0.0.1:{port}"
        async with running(simhall, "serve", "--golden", "hall-b", "--port", port, port=port):
            device = device_of("redfish", "bmc", address=f"{door}/dev/node1")
            async with driver_on(device) as driver, httpx.AsyncClient(base_url=door) as http:
                samples = await read(driver)
                assert samples["unit1.alarm_leak"].text == "clear"
                assert samples["unit1.state_power"].text == "on"
                fault = await http.post("/sim/faults", json={"kind": "coolant_leak", "node": "node1"})
                assert fault.status_code == 201
                assert (await read(driver))["unit1.alarm_leak"].text == "active"

    play(scene)
