"""Notifications name the device that told them; nobody else's are taken, and a flood is bounded."""

import asyncio
import contextlib
import errno

import pytest
from tests.facility.facility_parts import TwinRun, find_tool, make_device, peer_python, run_tool
from tests.facility.test_snmp import COMMUNITY, UPS, USER

from madang.core import Rejected, Unavailable
from madang.facility.contract import Secret, TwinFault
from madang.facility.roster import make_listener
from madang.facility.snmp import ber, codec, twin_traps, usm
from madang.facility.snmp.codec import AUTH, PRIV, Bind, Pdu, UsmMessage
from madang.facility.snmp.traps import (
    ADDRESS_PER_SECOND_MAX,
    MALFORMED,
    NO_NOTIFICATION,
    NOT_AUTHENTIC,
    PER_SECOND_MAX,
    TOO_MANY,
    UNKNOWN_ADDRESS,
    UNKNOWN_SENDER,
    VERSION_1,
    TrapListener,
    explain_refusal,
)
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


def count(listener):
    """Return what was rejected, without the reasons that nothing was rejected for."""
    return {reason: number for reason, number in listener.rejected.items() if number}


@contextlib.asynccontextmanager
async def listening(*devices, secret=COMMUNITY):
    devices = devices or (UPS_DEVICE,)
    listener = make_listener(
        "snmp", "127.0.0.1", 0, devices, {one.device_id: secret for one in devices}, StandingClock()
    )
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


def test_a_notification_names_its_device_and_says_a_word():
    async def scene():
        async with listening() as (listener, sender):
            sender.send(plain(notification()))
            return await listener.next_hint(), count(listener)

    hint, rejected = asyncio.run(scene())
    assert (hint.device_id, hint.word, hint.received_at_s) == ("unit1", "on_battery", StandingClock().wall_s())
    assert rejected == {}


def test_an_inform_is_acknowledged_with_what_it_said():
    async def scene():
        async with listening() as (listener, sender):
            sender.send(plain(notification(codec.INFORM, "1.3.6.1.4.1.9.9.1", 77)))
            return await listener.next_hint(), codec.decode_message(await sender.answers.get())

    hint, answer = asyncio.run(scene())
    assert hint.word == "1.3.6.1.4.1.9.9.1"
    assert (answer.pdu.kind, answer.pdu.request_id, len(answer.pdu.binds)) == (codec.RESPONSE, 77, 2)


def trap_of_version_1():
    body = ber.encode(codec.GET + 4, ber.encode(ber.OID, ber.encode_oid("1.3.6.1.4.1.318")))
    return codec.encode_community(codec.V1, WORD, body)


@pytest.mark.parametrize(
    ("datagram", "reason"),
    [
        (plain(notification(), b"another"), UNKNOWN_SENDER),
        (plain(notification(codec.GET)), NO_NOTIFICATION),
        (plain(codec.encode_pdu(Pdu(codec.TRAP, 1))), NO_NOTIFICATION),
        (codec.encode_community(codec.V1, WORD, notification()), VERSION_1),
        (trap_of_version_1(), VERSION_1),
        (b"nonsense", MALFORMED),
        (sealed(notification()), UNKNOWN_SENDER),
    ],
)
def test_what_is_not_believed_is_counted_by_reason_and_dropped(datagram, reason):
    async def scene():
        async with listening() as (listener, sender):
            sender.send(datagram)
            sender.send(plain(notification(oid="1.3.6.1.2.1.33.2.4")))
            return await listener.next_hint(), count(listener)

    hint, rejected = asyncio.run(scene())
    assert (hint.word, rejected) == ("alarm_removed", {reason: 1})


def test_notifications_from_an_address_that_no_device_has_are_dropped():
    async def scene():
        elsewhere = make_device("snmp", "ups_rfc1628", address="192.0.2.1:161")
        async with listening(elsewhere) as (listener, sender):
            sender.send(plain(notification()))
            await until(lambda: count(listener), "the datagram did not arrive")
            return count(listener)

    assert asyncio.run(scene()) == {UNKNOWN_ADDRESS: 1}


def test_a_device_that_the_site_names_by_a_name_is_said_to_be_out_of_hearing():
    async def scene():
        named = make_device("snmp", "ups_rfc1628", device_id="ups2", address="ups2.example:161")
        async with listening(UPS_DEVICE, named) as (listener, _):
            return listener.deaf_to

    assert asyncio.run(scene()) == ("ups2",)


@pytest.mark.parametrize("address", ["[0:0::1]:161", "[::ffff:127.0.0.1]:161"])
def test_addresses_are_compared_however_they_are_written(address):
    async def scene():
        async with listening(make_device("snmp", "ups_rfc1628", address=address)) as (listener, _):
            heard_as = "::1" if "0::1" in address else "127.0.0.1"
            listener.datagram_received(plain(notification()), (heard_as, 9))
            return (await listener.next_hint()).word

    assert asyncio.run(scene()) == "on_battery"


def test_devices_that_cannot_be_told_apart_are_all_read():
    async def scene():
        second = make_device("snmp", "ups_rfc1628", device_id="unit2")
        async with listening(UPS_DEVICE, second) as (listener, sender):
            sender.send(plain(notification()))
            return {(await listener.next_hint()).device_id for _ in range(2)}

    assert asyncio.run(scene()) == {"unit1", "unit2"}


def test_a_user_of_version_3_is_believed_once_for_each_instant_of_its_engine():
    async def scene():
        async with listening(UPS_OF_VERSION_3, secret=USER) as (listener, sender):
            sender.send(sealed(notification(), time_s=1000))
            first = await listener.next_hint()
            sender.send(sealed(notification(), time_s=10))
            sender.send(sealed(notification(), flags=AUTH, time_s=1001))
            sender.send(
                sealed(notification(), time_s=1002, words=Secret(user="dcim", words=USER.words | {"auth_key": "x" * 9}))
            )
            sender.send(plain(notification()))
            sender.send(sealed(notification(oid="1.3.6.1.2.1.33.2.3"), time_s=1003))
            return first, await listener.next_hint(), count(listener)

    first, second, rejected = asyncio.run(scene())
    assert (first.word, second.word) == ("on_battery", "alarm_added")
    assert rejected == {NOT_AUTHENTIC: 3, UNKNOWN_SENDER: 1}


def test_users_of_one_name_behind_one_address_are_told_apart_by_their_keys():
    async def scene():
        options = {"version": "3"}
        second = make_device("snmp", "ups_rfc1628", device_id="unit2", options=options)
        others = Secret(user=USER.user, words=USER.words | {"auth_key": "another-word"})
        secrets = {"unit1": others, "unit2": USER}
        listener = TrapListener("127.0.0.1", 0, [UPS_OF_VERSION_3, second], secrets, StandingClock())
        for time_s in (10, 11):
            listener.datagram_received(sealed(notification(), time_s=time_s), ("127.0.0.1", 9))
        return (await listener.next_hint()).device_id, listener.merged, count(listener)

    assert asyncio.run(scene()) == ("unit2", 1, {})


def test_a_flood_of_one_device_leaves_one_hint_the_newest_that_was_looked_into():
    async def scene():
        async with listening() as (listener, _):
            for number in range(ADDRESS_PER_SECOND_MAX + 20):
                listener.datagram_received(plain(notification(oid=f"1.3.6.1.4.1.1.{number}")), ("127.0.0.1", 9))
            return count(listener), listener.merged, (await listener.next_hint()).word

    rejected, merged, word = asyncio.run(scene())
    # A busy machine may take longer than a second for them; then a second allowance begins.
    assert rejected.get(TOO_MANY, 0) + merged + 1 == ADDRESS_PER_SECOND_MAX + 20
    assert merged >= ADDRESS_PER_SECOND_MAX - 1
    assert word.startswith("1.3.6.1.4.1.1.")


def test_a_flood_of_many_devices_is_bounded_and_strangers_take_nothing_of_it():
    devices = [
        make_device("snmp", "ups_rfc1628", device_id=f"ups{number}", address=f"192.0.2.{number}:161")
        for number in range(1, 21)
    ]

    async def scene():
        async with listening(*devices) as (listener, _):
            loop = asyncio.get_running_loop()
            began_s = loop.time()
            for _ in range(3 * PER_SECOND_MAX):
                listener.datagram_received(plain(notification()), ("198.51.100.1", 9))
            for turn in range(ADDRESS_PER_SECOND_MAX):
                for device in devices:
                    listener.datagram_received(plain(notification(request_id=turn)), (device.address[:-4], 9))
            seconds = int(loop.time() - began_s) + 2
            hints = [(await listener.next_hint()).device_id for _ in devices]
            return count(listener), listener.merged + len(hints), seconds, set(hints)

    rejected, taken, seconds, hinted = asyncio.run(scene())
    assert rejected[UNKNOWN_ADDRESS] == 3 * PER_SECOND_MAX
    assert rejected.get(TOO_MANY, 0) + taken == len(devices) * ADDRESS_PER_SECOND_MAX
    assert PER_SECOND_MAX <= taken <= seconds * PER_SECOND_MAX
    assert hinted == {device.device_id for device in devices}


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


def test_a_port_below_1024_that_is_not_allowed_says_what_to_do():
    refused = explain_refusal(PermissionError(errno.EACCES, "Permission denied"), "0.0.0.0:162", 162)
    assert "0.0.0.0:162: Permission denied; ports below 1024 want CAP_NET_BIND_SERVICE" in refused.message
    assert "1162" in refused.next_step
    elsewhere = explain_refusal(PermissionError(errno.EACCES, "Permission denied"), "0.0.0.0:1162", 1162)
    assert "1024" not in str(elsewhere)


# The twin tells


@pytest.mark.parametrize("version", ["2c", "3"])
def test_a_simulated_ups_tells_that_it_runs_on_its_battery_and_that_this_is_over(version):
    options, secret = ({}, COMMUNITY) if version == "2c" else ({"version": "3"}, USER)

    async def scene():
        async with listening(make_device("snmp", "ups_rfc1628", options=options), secret=secret) as (listener, _):
            device = make_device("snmp", "ups_rfc1628", options={**options, "twin.notify": listener.address})
            async with TwinRun(device, UPS | {"state_source": 3.0, "state_battery": 2.0}, secret) as run:
                run.plant.values["state_source"] = 5.0
                first = (await listener.next_hint()).word
                run.plant.values["state_source"] = 3.0
                while (await listener.next_hint()).word != "alarm_removed":
                    pass
                return first, count(listener)

    first, rejected = asyncio.run(scene())
    # Two tell of one event; where both arrive before the first is taken, the newest counts.
    assert first in ("on_battery", "alarm_added")
    assert rejected == {}


def herald(**values):
    held = {"state_source": 3.0, "state_battery": 2.0, "runtime": 600.0} | values
    profile = TwinRun(make_device("snmp", "ups_rfc1628"), {}, COMMUNITY).profile
    return twin_traps.UpsHerald(profile.points, held.get), held


def said(notifications):
    return [ber.say_oid(binds[1].content) for binds in notifications]


def test_a_simulated_ups_tells_each_change_once_and_its_battery_each_minute():
    ups, held = herald()
    assert ups.look(1.0) == []
    held["state_source"] = 5.0
    first = ups.look(2.0)
    assert said(first) == [twin_traps.ON_BATTERY, twin_traps.ALARM_ADDED]
    assert [ber.to_number(bind.tag, bind.content) for bind in first[0][2:]] == [10, 0, 2]
    assert ber.say_oid(first[1][3].content) == "1.3.6.1.2.1.33.1.6.3.2", "upsAlarmOnBattery"
    assert ups.look(61.9) == []
    assert said(ups.look(62.0)) == [twin_traps.ON_BATTERY]
    held["state_battery"] = 3.0
    [low] = ups.look(63.0)
    assert (said([low]), ber.say_oid(low[3].content)) == ([twin_traps.ALARM_ADDED], "1.3.6.1.2.1.33.1.6.3.3")
    held |= {"state_source": 3.0, "state_battery": 2.0}
    assert said(ups.look(64.0)) == [twin_traps.ALARM_REMOVED] * 2
    assert ups.look(200.0) == []


@pytest.mark.parametrize(
    ("profile", "sink", "message"),
    [
        ("ups_rfc1628", "collector.example:1162", "no address in digits"),
        ("switch_ports", "127.0.0.1:1162", "no state that a twin tells"),
    ],
)
def test_a_twin_that_cannot_tell_is_refused(profile, sink, message):
    with pytest.raises(Rejected, match=message):
        TwinRun(make_device("snmp", profile, options={"twin.notify": sink}), {}, COMMUNITY)


def test_a_twin_that_is_silent_or_stuck_tells_nothing():
    async def scene(kind):
        async with listening() as (listener, sender):
            device = make_device("snmp", "ups_rfc1628", options={"twin.notify": listener.address})
            async with TwinRun(device, UPS | {"state_source": 3.0}, COMMUNITY) as run:
                run.twin.fault(TwinFault(kind=kind))
                looks = []
                get = run.twin._herald.look
                run.twin._herald.look = lambda now_s: looks.append(get(now_s)) or looks[-1]
                run.plant.values["state_source"] = 5.0
                await until(lambda: len(looks) > 2, "the twin does not look")
            sender.send(plain(notification(oid="1.3.6.1.2.1.33.2.2")))
            return (await listener.next_hint()).word, listener.merged

    for kind in ("silent", "stuck"):
        assert asyncio.run(scene(kind)) == ("test_completed", 0)


# Independent senders


@pytest.mark.peer
@pytest.mark.parametrize("version", ["2c", "3"])
def test_net_snmps_notifications_are_taken(version):
    snmptrap = find_tool("snmptrap")
    device, secret = (UPS_DEVICE, COMMUNITY) if version == "2c" else (UPS_OF_VERSION_3, USER)

    async def scene():
        async with listening(device, secret=secret) as (listener, _):
            if version == "2c":
                security = ["-v2c", "-c", WORD.decode()]
            else:
                words = USER.words
                security = ["-v3", "-e", "0x8000000004757073", "-l", "authPriv", "-u", "dcim", "-a", "SHA-256"]
                security += ["-A", words["auth_key"], "-x", "AES", "-X", words["priv_key"]]
            await run_tool(snmptrap, "-m", "", *security, listener.address, "", "." + ON_BATTERY)
            return await listener.next_hint()

    assert asyncio.run(scene()).word == "on_battery"


PYSNMP = """
import asyncio, sys
from pysnmp.hlapi.v3arch.asyncio import (
    CommunityData, ContextData, NotificationType, ObjectIdentity, SnmpEngine, UdpTransportTarget, UsmUserData,
    send_notification, usmAesCfb128Protocol, usmHMAC192SHA256AuthProtocol,
)

async def main(port, version, kind, oid, *words):
    if version == "3":
        keys = {"authProtocol": usmHMAC192SHA256AuthProtocol, "privProtocol": usmAesCfb128Protocol}
        security = UsmUserData(words[0], words[1], words[2], **keys)
    else:
        security = CommunityData(words[0], mpModel=1)
    engine = SnmpEngine()
    target = await UdpTransportTarget.create(("127.0.0.1", int(port)), timeout=30, retries=0)
    told = NotificationType(ObjectIdentity(oid))
    error, *_ = await send_notification(engine, security, target, ContextData(), kind, told)
    engine.close_dispatcher()
    sys.exit(str(error) if error else 0)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.peer
@pytest.mark.parametrize(("version", "kind"), [("2c", "trap"), ("2c", "inform"), ("3", "trap")])
def test_pysnmps_notifications_are_taken_and_its_informs_acknowledged(version, kind):
    python = peer_python("servers", "pysnmp")
    if version == "3":
        peer_python("servers", "pysnmpcrypto")
    device, secret = (UPS_DEVICE, COMMUNITY) if version == "2c" else (UPS_OF_VERSION_3, USER)
    words = (WORD.decode(),) if version == "2c" else (USER.user, USER.words["auth_key"], USER.words["priv_key"])

    async def scene():
        async with listening(device, secret=secret) as (listener, _):
            port = listener.address.partition(":")[2]
            # It ends with the error that an inform without its acknowledgement is.
            await run_tool(python, "-c", PYSNMP, port, version, kind, ON_BATTERY, *words)
            return (await listener.next_hint()).word, count(listener)

    assert asyncio.run(scene()) == ("on_battery", {})
