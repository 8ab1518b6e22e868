"""SNMP on the wire: numbers, names and messages there and back, published keys, and no byte that breaks anything."""

import math
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.core import Rejected
from madang.facility.snmp import ber, codec, usm
from madang.facility.snmp.ber import Malformed
from madang.facility.snmp.codec import AUTH, PRIV, Bind, CommunityMessage, Pdu, UsmMessage

OIDS = st.builds(
    lambda first, second, rest: (first, second if first == 2 else second % 40, *rest),
    st.integers(0, 2),
    st.integers(0, 200),
    st.lists(st.integers(0, 2**32 - 1), max_size=30),
)
BINDS = st.lists(
    st.builds(
        Bind,
        OIDS.map(lambda arcs: ber.encode_oid(".".join(map(str, arcs)))),
        st.sampled_from([2, 4, 5, 6, 65, 66, 67, 70]),
        st.binary(max_size=40),
    ),
    max_size=8,
)
PDUS = st.builds(
    Pdu,
    st.sampled_from([codec.GET, codec.GET_NEXT, codec.RESPONSE, codec.SET, codec.GET_BULK, codec.TRAP, codec.REPORT]),
    st.integers(-(2**31), 2**31 - 1),
    st.integers(0, 18),
    st.integers(0, 100),
    BINDS.map(tuple),
)
PASSWORDS = usm.stretch_passwords("dcim", "maplesyrup", "pancakes!", "sha256")


@given(OIDS)
def test_names_come_back(arcs):
    assert ber.decode_oid(ber.encode_oid(".".join(map(str, arcs)))) == arcs


@pytest.mark.parametrize("text", ["", "1", "1.40", "3.1", "1.3.x", "1.3.-1", "1.3..6", "1.3.4294967296", "1.3.6 .1"])
def test_texts_that_name_nothing_are_refused(text):
    with pytest.raises(ValueError, match="no object identifier"):
        ber.encode_oid(text)


def test_names_are_encoded_as_in_the_standard():
    assert ber.encode_oid("1.3.6.1.2.1.1.3.0").hex() == "2b06010201010300"
    assert ber.encode_oid("1.3.6.1.4.1.2680").hex() == "2b060104019478"
    assert ber.say_oid(bytes.fromhex("2b060104019478")) == "1.3.6.1.4.1.2680"


@given(st.integers(-(2**63), 2**63 - 1))
def test_whole_numbers_come_back(number):
    data = ber.encode_integer(number)
    assert ber.read_integer(data, 0, len(data)) == (number, len(data))


@pytest.mark.parametrize(
    ("number", "data"), [(0, "020100"), (127, "02017f"), (128, "02020080"), (-128, "020180"), (-129, "0202ff7f")]
)
def test_whole_numbers_take_the_fewest_octets(number, data):
    assert ber.encode_integer(number).hex() == data


@pytest.mark.parametrize(
    ("tag", "content", "number"),
    [
        (ber.INTEGER, "ff", -1),
        (ber.INTEGER, "00ff", 255),
        (ber.GAUGE32, "00ffffffff", 4294967295),
        (ber.GAUGE32, "ffffffff", 4294967295),
        (ber.TICKS, "7f", 127),
        (ber.COUNTER64, "0100000000", 2**32),
        (ber.OCTETS, b" 21.6\0".hex(), 21.6),
        (ber.OCTETS, b"-5".hex(), -5),
        (ber.OPAQUE, "9f7804" + struct.pack(">f", 21.5).hex(), 21.5),
        (ber.OPAQUE, "9f7908" + struct.pack(">d", 0.1).hex(), 0.1),
    ],
)
def test_values_are_numbers_as_agents_mean_them(tag, content, number):
    assert ber.to_number(tag, bytes.fromhex(content)) == number


@pytest.mark.parametrize(
    ("tag", "content"),
    [
        (ber.NULL, b""),
        (ber.NO_SUCH_OBJECT, b""),
        (ber.NO_SUCH_INSTANCE, b""),
        (ber.END_OF_MIB_VIEW, b""),
        (ber.INTEGER, b""),
        (ber.INTEGER, b"\1" * 9),
        (ber.OCTETS, b"nan"),
        (ber.OCTETS, b"1_0"),
        (ber.OCTETS, b"n/a"),
        (ber.OCTETS, b"."),
        (ber.OCTETS, "２".encode()),
        (ber.OPAQUE, b"\x9f\x78\x04\x00"),
        (ber.IP_ADDRESS, b"\1\2\3\4"),
    ],
)
def test_what_is_no_number_is_said_in_words(tag, content):
    assert isinstance(ber.to_number(tag, content), str)


@given(st.integers(0, 255), st.binary(max_size=20))
def test_no_value_breaks_a_number(tag, content):
    number = ber.to_number(tag, content)
    assert isinstance(number, str | float)


@given(PDUS, st.binary(max_size=40))
def test_messages_of_version_2c_come_back(pdu, community):
    data = codec.encode_community(codec.V2C, community, codec.encode_pdu(pdu))
    assert codec.decode_message(data) == CommunityMessage(codec.V2C, community, pdu)


@given(st.binary(max_size=200))
def test_no_datagram_breaks_the_codec(data):
    try:
        codec.decode_message(data)
    except Malformed:
        return


@given(PDUS, st.data())
def test_no_damaged_datagram_breaks_the_codec(pdu, data):
    whole = bytearray(codec.encode_community(codec.V2C, b"public", codec.encode_pdu(pdu)))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    for damaged in (bytes(whole), cut):
        try:
            codec.decode_message(damaged)
        except Malformed:
            continue


def test_a_message_with_too_many_variables_is_none():
    bind = Bind(ber.encode_oid("1.3"), ber.NULL, b"")
    pdu = Pdu(codec.RESPONSE, 1, binds=(bind,) * (codec.BINDS_MAX + 1))
    with pytest.raises(Malformed):
        codec.decode_message(codec.encode_community(codec.V2C, b"x", codec.encode_pdu(pdu)))


def test_keys_are_those_of_the_standards_example():
    # RFC 3414, A.3.2: password "maplesyrup", engine 000000000000000000000002, SHA-1.
    passwords = usm.stretch_passwords("user", "maplesyrup", "", "sha1")
    assert passwords.auth.hex() == "9fb5cc0381497b3793528939ff788d5d79145211"
    keys = passwords.localise(bytes.fromhex("000000000000000000000002"))
    assert keys.auth.hex() == "6695febc9288e36282235fc7151f128497b38f3f"


def make_message(flags=AUTH | PRIV, **changes):
    given = {"message_id": 7, "flags": flags, "engine_id": b"\x80engine", "boots": 3, "time_s": 99, "user": b"dcim"}
    given |= {
        "auth": b"",
        "salt": b"saltsalt" if flags & PRIV else b"",
        "payload": codec.encode_scoped(b"e", b"", codec.encode_pdu(Pdu(codec.GET, 1))),
    }
    return UsmMessage(**(given | changes))


@pytest.mark.parametrize("flags", [AUTH, AUTH | PRIV])
@pytest.mark.parametrize("protocol", sorted(usm.AUTH_OCTETS))
def test_sealed_messages_come_back(flags, protocol):
    keys = usm.stretch_passwords("dcim", "maplesyrup", "pancakes!", protocol).localise(b"\x80engine")
    message = make_message(flags)
    data = usm.seal(message, keys)
    assert (message.payload in data) is (flags == AUTH)
    found = codec.decode_message(data)
    assert len(found.auth) == usm.AUTH_OCTETS[protocol]
    assert (found.boots, found.time_s, found.user, found.message_id) == (3, 99, b"dcim", 7)
    assert usm.unseal(data, found, keys) == message.payload


@given(st.integers(0), st.integers(1, 255))
def test_one_changed_octet_is_noticed(place, change):
    keys = PASSWORDS.localise(b"\x80engine")
    data = bytearray(usm.seal(make_message(), keys))
    data[place % len(data)] ^= change
    try:
        found = codec.decode_message(bytes(data))
    except Malformed:
        return
    if isinstance(found, UsmMessage) and found.flags & AUTH:
        with pytest.raises(Malformed):
            usm.unseal(bytes(data), found, keys)


@given(st.binary(max_size=120), st.sampled_from([0, 3, 2**31, -1]))
def test_no_payload_breaks_an_authentic_message(payload, boots):
    keys = PASSWORDS.localise(b"\x80engine")
    data = usm.seal(make_message(AUTH, payload=ber.encode(ber.SEQUENCE, payload), boots=boots), keys)
    scoped = usm.unseal(data, codec.decode_message(data), keys)
    try:
        codec.decode_scoped(scoped)
    except Malformed:
        return


def test_the_window_of_time_lets_no_old_message_in():
    time = usm.EngineTime(0, 0, now_s=1000.0)
    assert time.take(5, 500, 1000.0)
    assert time.estimate_s(1100.0) == 600
    assert time.take(5, 590, 1100.0)
    assert time.take(5, 451, 1100.0)
    assert not time.take(5, 439, 1100.0)
    assert not time.take(4, 10_000, 1100.0)
    assert time.take(6, 0, 1100.0)
    assert not time.take(5, 700, 1100.0)


def test_what_came_unauthenticated_is_forgotten_at_the_first_authentic_message():
    time = usm.EngineTime(2**31 - 1, 2**31 - 1, now_s=0.0)
    assert time.take(1, 10, 1.0)
    assert (time.boots, time.estimate_s(2.0)) == (1, 11)


@pytest.mark.parametrize(
    ("auth_key", "priv_key", "protocol", "word"),
    [
        ("short", "pancakes!", "sha256", "auth_key is shorter"),
        ("", "", "sha256", "auth_key is shorter"),
        ("maplesyrup", "short", "sha256", "priv_key is shorter"),
        ("maplesyrup", "", "md5", "use one of sha1"),
    ],
)
def test_weak_words_are_refused_without_being_said(auth_key, priv_key, protocol, word):
    with pytest.raises(Rejected) as refusal:
        usm.stretch_passwords("dcim", auth_key, priv_key, protocol)
    assert word in str(refusal.value)
    assert "pancakes" not in str(refusal.value)
    assert "maple" not in repr(PASSWORDS)


def test_a_float_beyond_all_is_no_value():
    assert math.isinf(ber.to_number(ber.OPAQUE, bytes.fromhex("9f7804") + struct.pack(">f", math.inf)))


def test_errors_have_their_standard_names():
    assert codec.say_error(Pdu(codec.RESPONSE, 1, 5)) == "genErr"
    assert codec.say_error(msgspec.structs.replace(Pdu(codec.RESPONSE, 1), error_status=99)) == "error 99"
