"""Other people's MQTT: mosquitto between its own clients, pysparkplug and our driver; our twin read by others."""

import asyncio
import contextlib
import datetime
import ipaddress
import json

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.facility.facility_parts import PeerServer, TwinRun, find_tool, peer_python, run_tool
from tests.facility.redfish_parts import listens, running_quietly
from tests.facility.test_mqtt import COOLING, COOLING_DEVICE, PLUG, PLUG_DEVICE

from madang.facility.contract import Secret
from madang.facility.mqtt import sparkplug
from madang.facility.profile import Profile, load_profile
from madang.facility.roster import make_driver
from madang.model import Quality
from madang.testing.facility_contract import HANG_S, StandingClock
from madang.testing.ports import free_port

pytestmark = pytest.mark.peer
EDGE_NODE = """
import sys
import pysparkplug as psp
now = psp.get_current_timestamp()
metric = lambda name, kind, value: psp.Metric(timestamp=now, name=name, datatype=kind, value=value)
outdoor = lambda value: metric("Weather/Outdoor Temperature", psp.DataType.FLOAT, value)
fan = lambda value: metric("Fan/Speed", psp.DataType.INT32, value)
node = psp.EdgeNode("box", "plant", (outdoor(-3.5),))
state = metric("State", psp.DataType.UINT32, 2)
leak = metric("Alarms/Leak", psp.DataType.BOOLEAN, True)
node.register(psp.Device("unit1", (fan(62), state, leak, metric("Air/Supply Temperature", psp.DataType.DOUBLE, 18.5))))
print("ready", flush=True)
for line in sys.stdin:
    word = line.strip()
    if word == "connect":
        node.connect("127.0.0.1", port=int(sys.argv[1]), blocking=False)
    elif word == "update":
        node.update((outdoor(4.25),))
        node.update_device("unit1", (fan(80),))
    elif word == "disconnect":
        node.disconnect()
    print(word, flush=True)
"""


@contextlib.asynccontextmanager
async def mosquitto(folder, *lines):
    """Run a broker, and give its port."""
    program, port = find_tool("mosquitto"), free_port()
    settings = (f"listener {port} 127.0.0.1", "allow_anonymous true", "persistence false", "user root", *lines)
    (folder / "broker.conf").write_text("\n".join(settings) + "\n")
    async with running_quietly(program, "-c", folder / "broker.conf"):
        async with asyncio.timeout(HANG_S):
            while not await listens(port):  # noqa: ASYNC110  a port has no event
                await asyncio.sleep(0.02)
        yield port


@contextlib.asynccontextmanager
async def driver_at(port, device, profile=None):
    there = msgspec.structs.replace(device, address=f"127.0.0.1:{port}")
    driver = make_driver(there, profile or load_profile("mqtt", device.profile), Secret(), StandingClock())
    try:
        yield driver
    finally:
        await driver.close()


async def read_until(driver, is_so):
    """Return the first reading that is so, by point id: a broker hands on when it likes."""
    async with asyncio.timeout(HANG_S):
        while True:
            samples = {one.point_id.partition(".")[2]: one for one in await driver.read()}
            if is_so(samples):
                return samples
            await asyncio.sleep(0.02)


def test_plain_topics_through_mosquitto_from_its_own_client(tmp_path):
    publish = find_tool("mosquitto_pub")
    said = {"ENERGY": {"Power": 812.5, "Voltage": 229.5, "Current": 3.7, "Factor": 0.96, "Total": 3.185}}

    async def scene():
        async with mosquitto(tmp_path) as port, driver_at(port, PLUG_DEVICE) as driver:
            base = (publish, "-h", "127.0.0.1", "-p", port)
            nothing = await read_until(driver, bool)
            assert {one.reason for one in nothing.values()} == {
                "nothing was said in tele/plug7/SENSOR",
                "nothing was said in tele/plug7/STATE",
            }
            await run_tool(*base, "-r", "-t", "tele/plug7/STATE", "-m", '{"POWER":"ON"}')
            await run_tool(*base, "-t", "tele/plug7/SENSOR", "-m", json.dumps(said))
            live = await read_until(driver, lambda samples: samples["power"].value is not None)
            assert {name: one.value for name, one in live.items()} == {
                "power": 812.5,
                "power_apparent": None,
                "power_factor": 0.96,
                "voltage": 229.5,
                "current": 3.7,
                "energy": 3185.0,
                "power_switch": 1.0,
            }
            async with driver_at(port, PLUG_DEVICE) as later:
                kept = await read_until(later, lambda samples: samples["power_switch"].value is not None)
            assert kept["power_switch"].quality is Quality.UNCERTAIN
            assert "kept by the broker" in kept["power_switch"].reason
            await run_tool(*base, "-t", "tele/plug7/LWT", "-m", "Offline")
            away = await read_until(driver, lambda samples: samples["power"].value is None)
            assert away["power"].reason == "tele/plug7/LWT says Offline"

    asyncio.run(scene())


def make_certificate(folder, name):
    """Write a self-signed certificate for 127.0.0.1 with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    there = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(there, critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    )


def test_tls_reaches_the_broker_that_the_authority_names_and_no_other(tmp_path):
    publish = find_tool("mosquitto_pub")
    for name in ("broker", "other"):
        make_certificate(tmp_path, name)
    lines = (f"certfile {tmp_path / 'broker.crt'}", f"keyfile {tmp_path / 'broker.key'}")

    def device(name):
        options = PLUG_DEVICE.options | {"tls": True, "ca_file": str(tmp_path / f"{name}.crt")}
        return msgspec.structs.replace(PLUG_DEVICE, options=options)

    async def scene():
        async with (
            mosquitto(tmp_path, *lines) as port,
            driver_at(port, device("broker")) as driver,
            driver_at(port, device("other")) as stranger,
            driver_at(port, msgspec.structs.replace(PLUG_DEVICE, timeout_s=1.0)) as plain,
        ):
            await read_until(driver, bool)
            ours = (publish, "-h", "127.0.0.1", "-p", port, "--cafile", tmp_path / "broker.crt")
            await run_tool(*ours, "-t", "tele/plug7/STATE", "-m", '{"POWER":"ON"}')
            heard = await read_until(driver, lambda samples: samples["power_switch"].value is not None)
            refused = await read_until(stranger, bool)
            unread = await read_until(plain, bool)
            return heard["power_switch"].text, refused["power_switch"].reason, unread["power_switch"].quality

    text, reason, quality = asyncio.run(scene())
    assert text == "on"
    assert "CERTIFICATE_VERIFY_FAILED" in reason or "certificate verify failed" in reason
    assert quality is Quality.BAD


def test_a_command_through_mosquitto_reaches_its_own_client(tmp_path):
    subscribe = find_tool("mosquitto_sub")

    async def scene():
        async with mosquitto(tmp_path) as port, driver_at(port, PLUG_DEVICE) as driver:
            heard = asyncio.create_task(
                run_tool(subscribe, "-h", "127.0.0.1", "-p", port, "-t", "cmnd/#", "-v", "-C", "1", "-W", "60")
            )
            async with asyncio.timeout(HANG_S):
                while not heard.done():
                    await driver.write("unit1.power_switch", 1.0)
                    await asyncio.sleep(0.05)
            return await heard

    assert asyncio.run(scene()) == "cmnd/plug7/POWER ON\n"


def test_pysparkplug_is_read_through_mosquitto_with_its_deaths(tmp_path):
    python = peer_python("sparkplug", "pysparkplug")
    whole = load_profile("mqtt", "sparkplug_cooling_unit")
    names = ("temperature_supply", "speed_fan", "state_unit", "alarm_leak", "temperature_outdoor")
    profile = Profile(
        name="some", driver="mqtt", title="some", points=tuple(one for one in whole.points if one.name in names)
    )

    async def scene():
        async with (
            mosquitto(tmp_path) as port,
            PeerServer(python, "-c", EDGE_NODE, port) as node,
            driver_at(port, msgspec.structs.replace(COOLING_DEVICE, timeout_s=1.0), profile) as driver,
        ):

            async def tell(word):
                node._process.stdin.write(f"{word}\n".encode())
                async with asyncio.timeout(HANG_S):
                    assert (await node._process.stdout.readline()).decode().strip() == word

            silent = await read_until(driver, bool)
            assert all("has not said its birth" in one.reason for one in silent.values())
            await tell("connect")
            born = await read_until(driver, lambda samples: samples["speed_fan"].value is not None)
            assert {name: one.value for name, one in born.items()} == {
                "temperature_supply": 18.5,
                "speed_fan": 62.0,
                "state_unit": 2.0,
                "alarm_leak": 1.0,
                "temperature_outdoor": -3.5,
            }
            await tell("update")
            later = await read_until(driver, lambda samples: samples["speed_fan"].value == 80.0)
            assert later["temperature_outdoor"].value == 4.25
            assert later["alarm_leak"].text == "active"
            await tell("disconnect")
            dead = await read_until(driver, lambda samples: samples["speed_fan"].value is None)
            # The library counts bdSeq up before it says its death.
            assert "its death says bdSeq 1, its birth said 0" in dead["speed_fan"].reason

    asyncio.run(scene())


def test_mosquittos_client_reads_our_twin():
    subscribe = find_tool("mosquitto_sub")

    async def scene():
        async with TwinRun(PLUG_DEVICE, PLUG) as run:
            return await run_tool(
                subscribe, "-h", "127.0.0.1", "-p", run.port, "-t", "tele/+/SENSOR", "-C", "1", "-W", "60"
            )

    energy = json.loads(asyncio.run(scene()))["ENERGY"]
    assert energy == {
        "Power": 812.5,
        "ApparentPower": 850.0,
        "Factor": 0.875,
        "Voltage": 229.5,
        "Current": 3.71,
        "Total": 3.185,
    }


def test_aiomqtt_hears_our_twins_births():
    aiomqtt = pytest.importorskip("aiomqtt")

    async def scene():
        async with (
            TwinRun(COOLING_DEVICE, COOLING) as run,
            aiomqtt.Client("127.0.0.1", run.port, timeout=HANG_S) as client,
        ):
            await client.subscribe("spBv1.0/box/#")
            rebirth = sparkplug.Metric(name=sparkplug.REBIRTH, datatype=sparkplug.BOOLEAN, value=1.0)
            payload = sparkplug.encode_payload(sparkplug.Payload(metrics=(rebirth,)))
            await client.publish("spBv1.0/box/NCMD/plant", payload)
            topics = []
            async with asyncio.timeout(HANG_S):
                async for message in client.messages:
                    topics.append(message.topic.value)
                    if len(topics) == 2:
                        return topics

    assert asyncio.run(scene()) == ["spBv1.0/box/NBIRTH/plant", "spBv1.0/box/DBIRTH/plant/unit1"]
