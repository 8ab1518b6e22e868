"""The SNMP driver keeps the contract on its twin under versions 2c and 3, and survives agents that refuse lists."""

import asyncio
from typing import ClassVar

import msgspec
import pytest
from tests.facility.facility_parts import TwinRun, make_device, read_device

from madang.core import Rejected, Unavailable
from madang.facility.contract import Secret, TwinFault
from madang.facility.profile import PointSpec
from madang.facility.roster import make_driver
from madang.facility.snmp import ber, codec
from madang.facility.snmp.driver import make_chunks, split_chunk
from madang.model import Quality
from madang.testing.facility_contract import FacilityReadContract, FacilityWriteContract

COMMUNITY = Secret(words={"community": "read-word-7", "write_community": "write-word-9"})
USER = Secret(user="dcim", words={"auth_key": "auth-words-42", "priv_key": "priv-words-43"})
UPS = {
    "charge": 97.0,
    "voltage_battery": 521.5,
    "current_battery": 3.5,
    "temperature_battery": 25.0,
    "runtime": 1260.0,
    "duration_on_battery": 12.0,
    "state_battery": 2.0,
    "state_source": 5.0,
    "frequency_input": 60.1,
    "voltage_input_l1": 227.0,
    "voltage_input_l2": 228.0,
    "voltage_input_l3": 229.0,
    "frequency": 59.9,
    "voltage_l1": 219.0,
    "voltage_l2": 220.0,
    "voltage_l3": 221.0,
    "current_l1": 27.5,
    "current_l2": 18.5,
    "current_l3": 15.5,
    "power_l1": 5100.0,
    "power_l2": 3600.0,
    "power_l3": 2700.0,
    "power": 11400.0,
    "load_l1": 21.0,
    "load_l2": 16.0,
    "load_l3": 12.0,
    "count_alarms": 1.0,
}
PDU = {
    "power": 1210.0,
    "power_apparent": 1310.0,
    "power_factor": 0.94,
    "energy": 1951600.0,
    "state_load": 2.0,
    "alarm_power_supply": 1.0,
    "current_l1": 6.5,
    "voltage_l1": 201.0,
    "power_l1": 1220.0,
    "state_load_l1": 2.0,
    "power[outlet1]": 163.0,
    "current[outlet1]": 0.9,
    "energy[outlet1]": 304600.0,
    "state_outlet[outlet1]": 2.0,
    "power[outlet5]": 42.0,
    "current[outlet5]": 0.5,
    "energy[outlet5]": 122500.0,
    "state_outlet[outlet5]": 1.0,
}
COOLING = {
    "temperature_control": 23.0,
    "temperature_supply": 18.0,
    "temperature_return": 24.0,
    "temperature_compressor1": 29.0,
    "temperature_compressor2": 37.0,
    "temperature_setpoint": 22.0,
    "humidity_control": 42.0,
    "humidity_return": 43.0,
    "state_unit": 1.0,
    "state_cooling": 2.0,
    "state_fan": 1.0,
    "alarm_general": 2.0,
    "load": 81.0,
    "speed_fan": 60.0,
    "count_alarms": 3.0,
}


class TestUps(FacilityReadContract):
    device = make_device("snmp", "ups_rfc1628")
    values = UPS
    secret = COMMUNITY
    half_names = ("voltage_l2", "power_l1", "power", "state_battery")
    sentinel_names = ("runtime", "power_l2", "power", "temperature_battery")

    def derive(self, values):
        values["power"] = sum(values[f"power_l{line}"] for line in (1, 2, 3))


class TestUpsOfVersion3(TestUps):
    device = make_device("snmp", "ups_rfc1628", options={"version": "3", "binds": 7})
    secret = USER


class TestRackPdu(FacilityReadContract):
    device = make_device("snmp", "apc_rpdu2", parts={"outlet1": "server_a", "outlet5": "server_b"})
    values = PDU
    secret = COMMUNITY
    half_names = ("power[outlet5]", "voltage_l1")
    sentinel_names = ("power", "current[outlet1]")
    steps: ClassVar = {"power": 10.0, "power_apparent": 10.0, "power_l1": 10.0, "power_factor": 0.01} | dict.fromkeys(
        ("energy", "energy[outlet1]", "energy[outlet5]"), 100.0
    )


class TestCoolingUnit(FacilityReadContract, FacilityWriteContract):
    device = make_device("snmp", "liebert_pex")
    values = COOLING
    secret = COMMUNITY
    half_names = ("temperature_supply",)
    sentinel_names = ("temperature_return", "humidity_return")
    command = ("temperature_setpoint", 25.0)
    read_only_name = "temperature_return"


class TestCoolingUnitOfVersion3WithoutEncryption(FacilityWriteContract):
    device = make_device("snmp", "liebert_pex", options={"version": "3", "auth": "sha1", "priv": "none"})
    values = COOLING
    secret = USER
    command = ("temperature_setpoint", 25.0)
    read_only_name = "temperature_return"


def read_with(device, twin_secret, secret, values=UPS, profile=None):
    async def scene():
        async with TwinRun(device, values, twin_secret) as run:
            there = msgspec.structs.replace(device, address=run.twin.address, timeout_s=0.3)
            return await read_device(there, profile, secret)

    return asyncio.run(scene())


def test_a_wrong_community_is_no_answer():
    wrong = Secret(words={"community": "another"})
    samples = read_with(make_device("snmp", "ups_rfc1628"), COMMUNITY, wrong)
    assert {one.quality for one in samples.values()} == {Quality.BAD}
    assert not any("another" in one.reason for one in samples.values())


@pytest.mark.parametrize(
    ("secret", "word"),
    [
        (Secret(user="dcim", words=USER.words | {"auth_key": "other-words"}), "check auth_key"),
        (Secret(user="somebody", words=USER.words), "does not know the user"),
    ],
)
def test_what_a_device_of_version_3_refuses_is_said(secret, word):
    samples = read_with(make_device("snmp", "ups_rfc1628", options={"version": "3"}), USER, secret)
    assert all(word in one.reason for one in samples.values()), samples


def test_a_wrong_key_of_encryption_gives_no_number():
    secret = Secret(user="dcim", words=USER.words | {"priv_key": "other-words"})
    samples = read_with(make_device("snmp", "ups_rfc1628", options={"version": "3"}), USER, secret)
    assert {one.quality for one in samples.values()} == {Quality.BAD}


def test_a_device_that_answers_in_the_clear_is_not_believed():
    plain = make_device("snmp", "ups_rfc1628", options={"version": "3", "priv": "none"})

    async def scene():
        async with TwinRun(plain, UPS, USER) as run:
            there = make_device(
                "snmp", "ups_rfc1628", address=run.twin.address, options={"version": "3"}, timeout_s=0.3
            )
            return await read_device(there, None, USER)

    samples = asyncio.run(scene())
    assert all("level of security" in one.reason for one in samples.values())


def test_ports_are_rows_that_the_site_names():
    device = make_device("snmp", "switch_wan", options={"index.wan": 3, "index.wan_backup": 17})
    held = {"duration_up": 86400.5, "state_wan": 1.0, "state_wan_backup": 2.0}
    held |= {
        f"{name}_{port}": 2.0**40 + at
        for at, name in enumerate(("octets_in", "octets_out"))
        for port in ("wan", "wan_backup")
    }
    held |= {f"{name}_{port}": 5.0 for name in ("errors_in", "errors_out") for port in ("wan", "wan_backup")}
    samples = read_with(device, COMMUNITY, COMMUNITY, held)
    assert {one.quality for one in samples.values()} == {Quality.GOOD}, samples
    assert samples["unit1.octets_in_wan"].value == 2**40
    assert (samples["unit1.state_wan"].text, samples["unit1.state_wan_backup"].text) == ("up", "down")


def test_a_row_that_nobody_named_is_asked_for():
    with pytest.raises(Rejected, match=r"index\.wan"):
        TwinRun(make_device("snmp", "switch_wan"), {}, COMMUNITY)


@pytest.mark.parametrize(
    ("options", "secret", "word"),
    [
        ({}, Secret(), "no community"),
        ({"version": "1"}, COMMUNITY, "neither 2c nor 3"),
        ({"version": "3"}, Secret(words=USER.words), "no user"),
        ({"version": "3"}, Secret(user="dcim", words={"auth_key": "auth-words-42"}), "no priv_key"),
        ({"version": "3", "priv": "des"}, USER, "neither aes128 nor none"),
        ({"version": "3", "auth": "md5"}, USER, "use one of"),
        ({"walk": True}, COMMUNITY, "no option walk"),
        ({"binds": 0}, COMMUNITY, "binds 0"),
    ],
)
def test_what_cannot_be_is_rejected_before_anything_is_sent(options, secret, word):
    profile = TwinRun(make_device("snmp", "ups_rfc1628"), UPS, COMMUNITY).profile
    with pytest.raises(Rejected, match=word) as refusal:
        make_driver(make_device("snmp", "ups_rfc1628", options=options), profile, secret, None)
    assert not any(one in str(refusal.value) for one in secret.words.values())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"ref": "1.3.x"}, "no object identifier"),
        ({"options": {"type": "float"}}, "none of integer"),
        ({"kind": "setpoint", "valid": None}, "needs `valid` or `states`"),
        ({"kind": "setpoint", "ref": "1.3.6.1 + 1.3.6.2"}, "sum cannot be commanded"),
    ],
)
def test_a_point_that_means_nothing_is_named(change, word):
    run = TwinRun(make_device("snmp", "ups_rfc1628"), UPS, COMMUNITY)
    point = msgspec.convert(msgspec.to_builtins(run.profile.points[0]) | change, PointSpec)
    profile = msgspec.structs.replace(run.profile, points=(point,))
    with pytest.raises(Rejected, match=word):
        make_driver(make_device("snmp", "ups_rfc1628"), profile, COMMUNITY, run.clock)


def test_lists_that_an_agent_refuses_are_parted_until_they_are_of_one():
    oids = tuple(ber.encode_oid(f"1.3.6.{at}") for at in range(9))
    [chunk] = make_chunks(oids, 24)

    def refuse(status, index):
        return codec.Pdu(codec.RESPONSE, 1, status, index)

    alone, rest = split_chunk(chunk, refuse(codec.GEN_ERR, 4))
    assert alone.oids == oids[3:4]
    assert rest.oids == oids[:3] + oids[4:]
    first, second = split_chunk(chunk, refuse(codec.TOO_BIG, 4))
    assert first.oids + second.oids == oids
    assert len(first.oids) == 4
    first, second = split_chunk(chunk, refuse(codec.GEN_ERR, 0))
    assert first.oids + second.oids == oids
    assert split_chunk(alone, refuse(codec.GEN_ERR, 1)) == []


class RefusingAgent(asyncio.DatagramProtocol):
    """A fake agent that answers lists of up to `limit`, and refuses one object."""

    def __init__(self, limit, refused):
        self.limit, self.refused, self.asked = limit, ber.encode_oid(refused), 0

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, addr):
        self.asked += 1
        message = codec.decode_message(data)
        names = [bind.oid for bind in message.pdu.binds]
        if len(names) > self.limit:
            answer = codec.answer_to(message.pdu, (), codec.TOO_BIG)
        elif self.refused in names:
            answer = codec.answer_to(message.pdu, message.pdu.binds, codec.GEN_ERR, names.index(self.refused) + 1)
        else:
            answer = codec.answer_to(message.pdu, [codec.Bind(oid, ber.INTEGER, b"\x05") for oid in names])
        self.transport.sendto(codec.encode_community(codec.V2C, message.community, codec.encode_pdu(answer)), addr)


def test_an_agent_that_refuses_one_object_and_long_lists_gives_all_others_and_is_remembered():
    run = TwinRun(make_device("snmp", "ups_rfc1628"), UPS, COMMUNITY)
    points = tuple(
        msgspec.convert({"name": f"count{at}", "quantity": "count", "ref": f"1.3.6.{at}"}, PointSpec)
        for at in range(20)
    )
    profile = msgspec.structs.replace(run.profile, points=points)

    async def scene():
        loop = asyncio.get_running_loop()
        transport, agent = await loop.create_datagram_endpoint(
            lambda: RefusingAgent(6, "1.3.6.7"), local_addr=("127.0.0.1", 0)
        )
        port = transport.get_extra_info("sockname")[1]
        driver = make_driver(make_device("snmp", "x", address=f"127.0.0.1:{port}"), profile, COMMUNITY, run.clock)
        try:
            await driver.read()
            first, agent.asked = agent.asked, 0
            samples = await driver.read()
            return first, agent.asked, samples
        finally:
            await driver.close()
            transport.close()

    first, second, samples = asyncio.run(scene())
    bad = {one.point_id: one.reason for one in samples if one.quality is Quality.BAD}
    assert bad == {"unit1.count7": "the device says genErr"}
    assert {one.value for one in samples if one.value is not None} == {5.0}
    assert second < first


def test_a_command_under_a_community_for_reading_is_not_taken():
    device = make_device("snmp", "liebert_pex")

    async def scene():
        async with TwinRun(device, COOLING, COMMUNITY) as run:
            there = msgspec.structs.replace(device, address=run.twin.address, timeout_s=0.3)
            driver = make_driver(there, run.profile, Secret(words={"community": "read-word-7"}), run.clock)
            try:
                with pytest.raises(Unavailable):
                    await driver.write("unit1.temperature_setpoint", 25)
            finally:
                await driver.close()
            return run.plant.commands

    assert asyncio.run(scene()) == []


def test_babble_ends_a_reading_before_its_time():
    run = TwinRun(make_device("snmp", "ups_rfc1628"), UPS, COMMUNITY)

    class Babbler(asyncio.DatagramProtocol):
        def connection_made(self, transport):
            self.transport = transport

        def datagram_received(self, data, addr):
            for _ in range(200):
                self.transport.sendto(b"\x30\x03\x02\x01\x01", addr)

    async def scene():
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(Babbler, local_addr=("127.0.0.1", 0))
        port = transport.get_extra_info("sockname")[1]
        try:
            # The time-out is beyond what a test may take: only the babbling can end it.
            device = make_device("snmp", "ups_rfc1628", address=f"127.0.0.1:{port}", timeout_s=600.0, poll_s=600.0)
            return await read_device(device, run.profile, COMMUNITY)
        finally:
            transport.close()

    samples = asyncio.run(scene())
    assert all("no answer" in one.reason for one in samples.values())


def test_a_fault_of_a_name_touches_that_name_only():
    device = make_device("snmp", "ups_rfc1628")

    async def scene():
        async with TwinRun(device, UPS, COMMUNITY) as run:
            run.twin.fault(TwinFault(kind="sentinel", names=("runtime",)))
            return await read_device(msgspec.structs.replace(device, address=run.twin.address), None, COMMUNITY)

    samples = asyncio.run(scene())
    assert [name for name, one in samples.items() if one.quality is Quality.BAD] == ["unit1.runtime"]
