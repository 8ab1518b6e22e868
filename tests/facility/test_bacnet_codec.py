"""BACnet's datagrams, services and values, on any bytes."""

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.core import Rejected
from madang.facility.bacnet import codec
from madang.facility.bacnet.codec import Apdu, Malformed, Message, Object, Route
from madang.facility.profile import PointSpec
from madang.model import Quality, Quantity

OBJECTS = st.builds(Object, st.sampled_from(sorted(codec.TYPES.values())), st.integers(0, codec.INSTANCE_MAX))
BYTES = st.binary(max_size=120)


@given(BYTES)
def test_any_bytes_are_a_message_or_malformed(data):
    for decode in (codec.decode_datagram, codec.decode_read, codec.decode_results, codec.decode_write):
        try:
            decode(data)
        except Malformed:
            continue
    assert codec.decode_error(data)


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, 80))
def test_an_answer_with_wrong_octets_is_a_message_or_malformed(flips, cut):
    one = Object(0, 1)
    body = bytearray(
        codec.encode_results([(one, [(85, codec.encode_value(one, 21.5)), (111, codec.encode_flags(is_fault=False))])])
    )
    for at, value in flips:
        body[at % len(body)] = value
    for data in (bytes(body), bytes(body[:cut])):
        try:
            results = codec.decode_results(data)
        except Malformed:
            continue
        assert all(one.value is None or math.isfinite(one.value) for one in results.values())


@given(
    st.sampled_from([Apdu.REQUEST, Apdu.SIMPLE_ACK, Apdu.COMPLEX_ACK, Apdu.ERROR]),
    st.integers(0, 255),
    st.integers(0, 255),
    BYTES,
    st.builds(Route, st.integers(0, 65534), st.binary(max_size=6)),
    st.booleans(),
)
def test_messages_come_back_through_routers_too(kind, service, number, body, route, is_asking):
    message = Message(kind=kind, service=service, invoke_id=number, body=body)
    datagram = codec.encode_datagram(codec.encode_apdu(message), route=route, is_asking=is_asking)
    assert codec.decode_datagram(datagram) == message


def test_a_datagram_from_behind_a_router_is_read():
    apdu = codec.encode_apdu(Message(kind=Apdu.SIMPLE_ACK, invoke_id=7, service=15))
    npdu = b"\x01\x08" + struct.pack(">HB", 5, 1) + b"\x0c" + apdu
    for head in (
        b"\x81\x0a" + struct.pack(">H", 4 + len(npdu)),
        b"\x81\x04" + struct.pack(">H", 10 + len(npdu)) + b"\0" * 6,
    ):
        assert codec.decode_datagram(head + npdu).invoke_id == 7


@given(st.lists(OBJECTS, max_size=8), st.lists(st.integers(0, 2**22 - 1), min_size=1, max_size=3))
def test_questions_come_back(objects, properties):
    body = codec.encode_read(tuple(objects), tuple(properties))
    assert codec.decode_read(body) == [(one, tuple(properties)) for one in objects]


@pytest.mark.parametrize(
    ("kind", "raw"),
    [
        ("analog-input", 21.5),
        ("analog-value", -3.25),
        ("large-analog-value", 1e12 + 0.5),
        ("binary-value", 1.0),
        ("multi-state-value", 3.0),
        ("accumulator", 70000.0),
        ("integer-value", -17.0),
        ("positive-integer-value", 255.0),
    ],
)
def test_values_come_back_in_the_type_of_their_object(kind, raw):
    one = Object(codec.TYPES[kind], 4)
    body = codec.encode_results([(one, [(85, codec.encode_value(one, raw)), (111, codec.encode_flags(is_fault=True))])])
    assert codec.decode_results(body) == {one: codec.Result(value=raw, flags=4)}
    assert codec.decode_write(codec.encode_write(one, codec.encode_value(one, raw), 10)) == (one, 85, raw, 10)


def test_null_relinquishes():
    one = Object(2, 1)
    assert codec.decode_write(codec.encode_write(one, codec.encode_value(one, None), 8)) == (one, 85, None, 8)


def test_the_standards_example_of_a_write_is_what_we_send():
    # WriteProperty of 180.0 to analog-value 1, put together by hand after 20.2 and 15.9, with priority 8.
    expected = bytes.fromhex("0c0080000119553e44433400003f4908")
    one = Object(2, 1)
    assert codec.encode_write(one, codec.encode_value(one, 180.0), 8) == expected


@pytest.mark.parametrize(
    ("flags", "quality"),
    [
        (0, Quality.GOOD),
        (8, Quality.GOOD),
        (4, Quality.BAD),
        (5, Quality.BAD),
        (2, Quality.SUBSTITUTED),
        (1, Quality.SUBSTITUTED),
    ],
)
def test_flags_are_judged(flags, quality):
    assert codec.judge_flags(flags)[0] is quality
    assert bool(codec.judge_flags(flags)[1]) == (quality is not Quality.GOOD)


@pytest.mark.parametrize(
    "ref", ["", "analog-input", "analog-input,x", "analog-input,4194303", "device,1", "file,1", "analog-input,-1"]
)
def test_a_ref_that_names_no_object_is_rejected(ref):
    with pytest.raises(Rejected, match="is no object"):
        codec.parse_ref(PointSpec(name="x", quantity=Quantity.POWER, ref=ref))
