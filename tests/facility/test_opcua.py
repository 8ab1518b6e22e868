"""The OPC UA driver keeps the contract on its twin. Both are asyncua: no second implementation judges them."""

import asyncio
import datetime

import msgspec
import pytest
from tests.facility.facility_parts import TwinRun, make_device, read_device

from madang.core import Rejected
from madang.facility.contract import Secret
from madang.facility.profile import load_profile
from madang.facility.roster import make_driver
from madang.model import Quality
from madang.testing.facility_contract import HANG_S, FacilityReadContract, FacilityWriteContract, StandingClock

asyncua = pytest.importorskip("asyncua")

URI = "urn:maker:plant"
LOOP = {
    "temperature_supply": 18.5,
    "temperature_return": 29.25,
    "flow": 140.5,
    "pressure_differential": 85.25,
    "speed_pump": 62.5,
    "power": 7310.0,
    "state_unit": 2.0,
    "alarm_leak": 1.0,
    "temperature_setpoint": 18.0,
    "mode": 1.0,
}
DEVICE = make_device("opcua", "cooling_loop", options={"namespace": URI})


@pytest.mark.deep
class TestLoop(FacilityReadContract, FacilityWriteContract):
    device = DEVICE
    values = LOOP
    half_names = ("temperature_return", "power")
    sentinel_names = ("speed_pump", "state_unit")
    command = ("temperature_setpoint", 21.5)
    read_only_name = "power"


def test_a_server_is_read_and_commanded_in_the_nodes_own_types():
    async def scene():
        async with TwinRun(DEVICE, LOOP) as run:
            there = msgspec.structs.replace(DEVICE, address=run.twin.address)
            driver = make_driver(there, run.profile, Secret(), run.clock)
            try:
                first = await driver.read()
                with pytest.raises(Rejected, match="outside"):
                    await driver.write("unit1.mode", 3)
                await driver.write("unit1.mode", 2)
                await driver.write("unit1.temperature_setpoint", 21.5)
                # A channel's life is over before the next reading.
                run.clock.now_s += 7200.0
                second = await driver.read()
            finally:
                await driver.close()
            elsewhere = msgspec.structs.replace(there, options={"namespace": "urn:other"})
            return first, second, run.plant.commands, await read_device(elsewhere)

    first, second, commands, other = asyncio.run(scene())
    assert {one.point_id.partition(".")[2]: one.value for one in first} == LOOP
    assert commands == [("mode", 2.0), ("temperature_setpoint", 21.5)]
    assert {one.point_id: one.text for one in second}["unit1.mode"] == "maximum"
    assert {one.reason for one in other.values()} == {"the server has no namespace urn:other"}


def make_certificate(folder, name):
    """Write a self-signed certificate with its key, and return both files."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"urn:madang:{name}")]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    (folder / f"{name}.der").write_bytes(certificate.public_bytes(serialization.Encoding.DER))
    plain = serialization.NoEncryption()
    (folder / f"{name}.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    )
    return str(folder / f"{name}.der"), str(folder / f"{name}.pem")


@pytest.mark.deep
def test_a_session_is_signed_and_encrypted_to_the_server_that_is_named(tmp_path):
    from madang.testing.ports import free_port

    ours, server, other = (make_certificate(tmp_path, name) for name in ("site", "server", "other"))
    port = free_port()
    options = {"namespace": URI, "certificate": ours[0], "private_key": ours[1], "server_certificate": server[0]}
    device = msgspec.structs.replace(DEVICE, address=f"127.0.0.1:{port}", options=options)

    async def scene():
        peer = asyncua.Server()
        await peer.init()
        peer.set_endpoint(f"opc.tcp://127.0.0.1:{port}/")
        peer.set_security_policy([asyncua.ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt])
        await peer.load_certificate(server[0])
        await peer.load_private_key(server[1])
        index = await peer.register_namespace(URI)
        node = asyncua.ua.NodeId("Electrical.Power", index)
        await peer.nodes.objects.add_variable(node, "power", 7.31)
        async with asyncio.timeout(HANG_S):
            await peer.start()
            try:
                named = await read_device(device)
                wrong = msgspec.structs.replace(device, options=options | {"server_certificate": other[0]})
                strange = await read_device(msgspec.structs.replace(wrong, timeout_s=3.0))
                plain = await read_device(msgspec.structs.replace(device, options={"namespace": URI}))
            finally:
                await peer.stop()
        return named, strange, plain

    named, strange, plain = asyncio.run(scene())
    assert named["unit1.power"].value == 7310.0
    assert "BadNodeIdUnknown" in named["unit1.flow"].reason
    assert {one.quality for one in strange.values()} == {Quality.BAD}
    assert {one.quality for one in plain.values()} == {Quality.BAD}


@pytest.mark.parametrize(
    ("options", "change", "word"),
    [
        ({}, {}, "needs the option `namespace`"),
        ({"namespace": URI, "baud": 1}, {}, "no option baud"),
        ({"namespace": URI, "certificate": "/a.der"}, {}, "given together"),
        ({"namespace": URI, "user_key": "/a.pem"}, {}, "given together"),
        ({"namespace": URI, "user_key": "/a.pem", "user_certificate": "/a.der"}, {}, "no file /a.der"),
        ({"namespace": URI}, {"ref": "ns=2;s=A"}, "never ns=NUMBER"),
        ({"namespace": URI}, {"ref": "nsu=u;g=nothing"}, "is no node"),
        ({"namespace": URI}, {"kind": "setpoint", "valid": None}, "needs `valid` or `states`"),
    ],
)
def test_what_cannot_be_is_rejected_before_anything_is_sent(options, change, word):
    device = make_device("opcua", "cooling_loop", address="127.0.0.1:9", options=options)
    loaded = load_profile("opcua", "cooling_loop")
    first = msgspec.convert(msgspec.to_builtins(loaded.points[0]) | change, type(loaded.points[0]))
    with pytest.raises(Rejected, match=word):
        make_driver(
            device, msgspec.structs.replace(loaded, points=(first, *loaded.points[1:])), Secret(), StandingClock()
        )
