"""Notifications wake a reading and say so; nobody else's are taken, and a flood is bounded."""

import asyncio
import contextlib

import pytest
from tests.facility.facility_parts import find_tool, make_device, run_tool
from tests.facility.test_snmp import COMMUNITY, USER

from madang.core import Rejected, Unavailable
from madang.facility.contract import Secret
from madang.facility.snmp import ber, codec, usm
from madang.facility.snmp.codec import AUTH, PRIV, Bind, Pdu, UsmMessage
from madang.facility.snmp.traps import HINTS_MAX, TrapListener
from madang.model import Quality
from madang.testing.facility_contract import HANG_S, StandingClock, count_sockets, until

ON_BATTERY = "1.3.6.1.2.1.33.2.1"
WORD = COMMUNITY.words["community"].encode()
UPS_DEVICE = make_device("snmp", "ups_rfc1628")
UPS_OF_VERSION_3 = make_device("snmp", "ups_rfc1628", options={"version": "3"})


def notification(kind=codec.TRAP, oid=ON_BATTERY, request_id=5):
    uptime = Bind(ber.encode_oid("1.3.6.1.2.1.1.3.0"), ber.TICKS, b"\x05")
    named = Bind(ber.encode_oid("1.3.6.1.6.3.1.1.4.1.0"), ber.OID, ber.encode_oid(oid))
    return codec.encode_pdu(Pdu(kind, request_id, binds=(uptime, named)))


def plain(pdu, community=WORD):
    return codec.encode_community(codec.V2C, community, pdu)


def sealed(pdu, boots=1, time_s=10, flags=AUTH | PRIV, words=USER):
    passwords = usm.stretch_passwords(words.user, words.words["auth_key"], words.words["priv_key"], "sha256")
    engine = b"\x80\x00\x00\x00\x04ups"
    message = UsmMessage(
        message_id=1,
        flags=flags,
        engine_id=engine,
        boots=boots,
        time_s=time_s,
        user=words.user.encode(),
        auth=b"",
        salt=time_s.to_bytes(8, "big") if flags & PRIV else b"",
        payload=codec.encode_scoped(engine, b"", pdu),
    )
    return usm.seal(message, passwords.localise(engine))


class Sender(asyncio.DatagramProtocol):
    def __init__(self):
        self.answers = asyncio.Queue()

    def datagram_received(self, data, addr):
        self.answers.put_nowait(data)


@contextlib.asynccontextmanager
async def listening(device=UPS_DEVICE, secret=COMMUNITY):
    listener = TrapListener("127.0.0.1", 0, [device], {device.device_id: secret}, StandingClock())
    await listener.start()
    transport, sender = await asyncio.get_running_loop().create_datagram_endpoint(
        Sender, remote_addr=("127.0.0.1", int(listener.address.partition(":")[2]))
    )
    sender.send = transport.sendto
    try:
        async with asyncio.timeout(HANG_S):
            yield listener, sender
    finally:
        transport.close()
        await listener.stop()


def test_a_notification_names_its_device_and_shows_as_a_doubtful_alarm():
    async def scene():
        async with listening() as (listener, sender):
            sender.send(plain(notification()))
            return await listener.next_hint()

    hint = asyncio.run(scene())
    assert (hint.device_id, hint.oid, hint.word) == ("unit1", ON_BATTERY, "on_battery")
    sample = hint.sample()
    assert (sample.point_id, sample.value, sample.text) == ("unit1.alarm_notification", 1.0, "on_battery")
    assert sample.quality is Quality.UNCERTAIN


def test_an_inform_is_acknowledged_with_what_it_said():
    async def scene():
        async with listening() as (listener, sender):
            sender.send(plain(notification(codec.INFORM, "1.3.6.1.4.1.9.9.1", 77)))
            return await listener.next_hint(), codec.decode_message(await sender.answers.get())

    hint, answer = asyncio.run(scene())
    assert hint.word == "1.3.6.1.4.1.9.9.1"
    assert (answer.pdu.kind, answer.pdu.request_id, len(answer.pdu.binds)) == (codec.RESPONSE, 77, 2)


@pytest.mark.parametrize(
    "datagram",
    [
        plain(notification(), b"another"),
        plain(notification(codec.GET)),
        plain(codec.encode_pdu(Pdu(codec.TRAP, 1))),
        codec.encode_community(codec.V1, WORD, notification()),
        b"nonsense",
        sealed(notification()),
    ],
)
def test_what_is_not_believed_is_counted_and_dropped(datagram):
    async def scene():
        async with listening() as (listener, sender):
            sender.send(datagram)
            sender.send(plain(notification(oid="1.3.6.1.2.1.33.2.4")))
            return await listener.next_hint(), listener.dropped

    hint, dropped = asyncio.run(scene())
    assert (hint.word, dropped) == ("alarm_removed", 1)


def test_notifications_from_an_address_that_no_device_has_are_dropped():
    async def scene():
        elsewhere = make_device("snmp", "ups_rfc1628", address="192.0.2.1:161")
        async with listening(elsewhere) as (listener, sender):
            sender.send(plain(notification()))
            await until(lambda: listener.dropped == 1, "the datagram did not arrive")
            return listener.lost, listener.dropped

    assert asyncio.run(scene()) == (0, 1)


def test_a_user_of_version_3_is_believed_once_for_each_instant_of_its_engine():
    async def scene():
        async with listening(UPS_OF_VERSION_3, USER) as (listener, sender):
            sender.send(sealed(notification(), time_s=1000))
            first = await listener.next_hint()
            sender.send(sealed(notification(), time_s=10))
            sender.send(sealed(notification(), flags=AUTH, time_s=1001))
            sender.send(
                sealed(notification(), time_s=1002, words=Secret(user="dcim", words=USER.words | {"auth_key": "x" * 9}))
            )
            sender.send(plain(notification()))
            sender.send(sealed(notification(oid="1.3.6.1.2.1.33.2.3"), time_s=1003))
            return first, await listener.next_hint(), listener.dropped

    first, second, dropped = asyncio.run(scene())
    assert (first.word, second.word, dropped) == ("on_battery", "alarm_added", 4)


def test_a_flood_is_bounded_and_the_newest_are_kept():
    async def scene():
        async with listening() as (listener, _):
            for number in range(HINTS_MAX + 20):
                listener.datagram_received(plain(notification(oid=f"1.3.6.1.4.1.1.{number}")), ("127.0.0.1", 9))
            return listener.lost, (await listener.next_hint()).oid

    assert asyncio.run(scene()) == (20, "1.3.6.1.4.1.1.20")


def test_it_leaves_no_socket_and_says_when_the_port_is_taken():
    async def scene():
        before = count_sockets()
        async with listening() as (listener, _):
            port = int(listener.address.partition(":")[2])
            second = TrapListener("127.0.0.1", port, [], {}, StandingClock())
            with pytest.raises(Unavailable, match="cannot be listened for"):
                await second.start()
        await asyncio.sleep(0)
        return before, count_sockets()

    before, after = asyncio.run(scene())
    assert before == after


def test_a_device_without_a_word_is_rejected():
    with pytest.raises(Rejected, match="no community"):
        asyncio.run(construct())


async def construct():
    TrapListener("127.0.0.1", 0, [UPS_DEVICE], {}, StandingClock())


@pytest.mark.peer
@pytest.mark.parametrize("version", ["2c", "3"])
def test_net_snmps_notifications_are_taken(version):
    snmptrap = find_tool("snmptrap")
    device, secret = (UPS_DEVICE, COMMUNITY) if version == "2c" else (UPS_OF_VERSION_3, USER)

    async def scene():
        async with listening(device, secret) as (listener, _):
            if version == "2c":
                security = ["-v2c", "-c", WORD.decode()]
            else:
                words = USER.words
                security = ["-v3", "-e", "0x8000000004757073", "-l", "authPriv", "-u", "dcim", "-a", "SHA-256"]
                security += ["-A", words["auth_key"], "-x", "AES", "-X", words["priv_key"]]
            await run_tool(snmptrap, "-m", "", *security, listener.address, "", "." + ON_BATTERY)
            return await listener.next_hint()

    assert asyncio.run(scene()).word == "on_battery"
