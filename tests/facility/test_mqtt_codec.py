"""MQTT's packets, Sparkplug's payloads and sessions, and plain payloads, on any bytes."""

import contextlib
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.core import Rejected
from madang.facility.mqtt import codec, packets, sparkplug
from madang.facility.mqtt.codec import Place
from madang.facility.mqtt.packets import Connect, Kind, Message
from madang.facility.mqtt.sparkplug import EdgeNode, Key, Metric, Payload
from madang.facility.profile import PointSpec
from madang.model import Quantity

TOPICS = st.text(st.characters(blacklist_characters="+#\0", blacklist_categories=("Cs",)), min_size=1, max_size=40)
POWER, FLOW = Key("", "Power"), Key("pump", "Flow")
NUMBERS = {
    1: st.integers(-(2**7), 2**7 - 1),
    2: st.integers(-(2**15), 2**15 - 1),
    3: st.integers(-(2**31), 2**31 - 1),
    4: st.integers(-(2**53), 2**53),
    5: st.integers(0, 2**8 - 1),
    7: st.integers(0, 2**32 - 1),
    8: st.integers(0, 2**53),
    9: st.floats(width=32, allow_nan=False),
    10: st.floats(allow_nan=False),
    11: st.integers(0, 1),
}
METRICS = st.sampled_from(sorted(NUMBERS)).flatmap(
    lambda datatype: st.builds(
        Metric,
        name=st.text(st.characters(blacklist_categories=("Cs",)), max_size=12),
        alias=st.none() | st.integers(0, 2**64 - 1),
        datatype=st.just(datatype),
        value=NUMBERS[datatype].map(float),
    )
)


def spec(ref, **more):
    return PointSpec(name="x", quantity=Quantity.POWER, ref=ref, **more)


@given(st.binary(max_size=200), st.binary(max_size=60))
def test_any_bytes_are_packets_or_malformed(first, then):
    buffer = bytearray(first + then)
    try:
        while (packet := packets.take_packet(buffer)) is not None:
            if packet.kind is Kind.PUBLISH:
                packets.decode_message(packet)
            elif packet.kind is Kind.CONNECT:
                packets.decode_connect(packet.body)
            elif packet.kind in (Kind.SUBSCRIBE, Kind.UNSUBSCRIBE):
                packets.decode_filters(packet)
    except packets.Malformed:
        pass


@given(TOPICS, st.binary(max_size=300), st.integers(0, 2), st.booleans(), st.integers(1, 65535), st.integers(1, 9))
def test_messages_come_back_however_they_are_cut(topic, payload, qos, is_retained, number, cut):
    message = Message(topic=topic, payload=payload, qos=qos, is_retained=is_retained, packet_id=number if qos else 0)
    data = packets.encode_message(message)
    buffer = bytearray()
    for at in range(0, len(data), cut):
        assert packets.take_packet(buffer) is None
        buffer += data[at : at + cut]
    packet = packets.take_packet(buffer)
    assert packets.decode_message(packet) == message
    assert not buffer


@pytest.mark.parametrize("user", ["", "site"])
def test_a_connect_comes_back(user):
    said = Connect(client_id="me", user=user, password="word" if user else "", keepalive_s=60)
    assert packets.decode_connect(packets.take_packet(bytearray(packets.encode_connect(said))).body) == said


def test_a_packet_that_would_be_too_large_is_refused_at_its_head():
    with pytest.raises(packets.Malformed, match="over"):
        packets.take_packet(bytearray(b"\x30\xff\xff\xff\x7f"))


@pytest.mark.parametrize(
    ("filter_", "topic", "expected"),
    [
        ("a/b", "a/b", True),
        ("a/+", "a/b", True),
        ("a/+", "a/b/c", False),
        ("a/#", "a/b/c", True),
        ("a/#", "a", True),
        ("+/b", "a/b", True),
        ("a/b", "a", False),
        ("a", "a/b", False),
    ],
)
def test_filters_match_as_the_standard_says(filter_, topic, expected):
    assert packets.matches(filter_, topic) is expected


@given(st.binary(max_size=300))
def test_any_bytes_are_a_payload_or_malformed(data):
    with contextlib.suppress(sparkplug.Malformed):
        sparkplug.decode_payload(data)


@given(st.lists(METRICS, max_size=8), st.none() | st.integers(0, 255), st.integers(0, 2**48))
def test_payloads_come_back(metrics, seq, timestamp_ms):
    payload = Payload(metrics=tuple(metrics), seq=seq, timestamp_ms=timestamp_ms)
    assert sparkplug.decode_payload(sparkplug.encode_payload(payload)) == payload


def test_a_payload_reads_as_the_specifications_wire_format_says():
    # Field numbers and wire types of sparkplug_b.proto, put together by hand.
    metric = b"\x0a\x01P" + b"\x10\x05" + b"\x20\x03" + b"\x50\xff\xff\xff\xff\x0f"
    data = b"\x08\x01" + b"\x12" + bytes((len(metric),)) + metric + b"\x18\x07"
    assert sparkplug.decode_payload(data) == Payload(
        metrics=(Metric(name="P", alias=5, datatype=3, value=-1.0),), seq=7, timestamp_ms=1
    )


@pytest.mark.parametrize(
    ("raw", "datatype", "expected"), [(0xFF, 1, -1), (0xFFFFFFFF, 1, -1), (0xFF, 5, 255), (9, 0, 9)]
)
def test_signed_numbers_come_widened_or_not(raw, datatype, expected):
    assert sparkplug.to_integer(raw, datatype) == expected


class Said:
    """An edge node, told what a broker would bring."""

    def __init__(self):
        self.edge = EdgeNode("box", "plant", frozenset((POWER, FLOW)))

    def say(self, kind, seq, *metrics, device=""):
        topic = f"spBv1.0/box/{kind}/plant" + (f"/{device}" if device else "")
        self.edge.take(topic, sparkplug.encode_payload(Payload(metrics=metrics, seq=seq)))

    def bear(self, bd_seq=3):
        born = Metric(name="Power", alias=0, datatype=3, value=10.0)
        self.say("NBIRTH", 0, Metric(name="bdSeq", datatype=8, value=float(bd_seq)), born)
        self.say("DBIRTH", 1, Metric(name="Flow", alias=1, datatype=10, value=2.5), device="pump")

    def die(self, bd_seq):
        self.say("NDEATH", None, Metric(name="bdSeq", datatype=8, value=float(bd_seq)))


def test_values_follow_births_aliases_and_names():
    said = Said()
    said.say("NDATA", 0, Metric(name="Power", datatype=3, value=99.0))
    assert said.edge.value(POWER)[0] is None
    said.bear()
    assert (said.edge.value(POWER), said.edge.value(FLOW)) == ((10.0, ""), (2.5, ""))
    said.say("NDATA", 2, Metric(alias=0, value=float(2**32 - 4), datatype=7))
    said.say("DDATA", 3, Metric(name="Flow", datatype=10, value=3.5), device="pump")
    assert said.edge.value(FLOW) == (3.5, "")
    assert not said.edge.needs_birth


def test_a_message_that_names_no_type_has_the_births():
    said = Said()
    said.bear()
    # alias 0, int_value 2**32 - 4: an Int32 of -4.
    metric = b"\x10\x00" + b"\x50\xfc\xff\xff\xff\x0f"
    said.edge.take("spBv1.0/box/NDATA/plant", b"\x12" + bytes((len(metric),)) + metric + b"\x18\x02")
    assert said.edge.value(POWER) == (-4.0, "")


@pytest.mark.parametrize("seq", [1, 3, 255, None])
def test_a_gap_ends_what_is_believed_until_the_next_birth(seq):
    said = Said()
    said.bear()
    said.say("NDATA", seq, Metric(alias=0, datatype=3, value=11.0))
    assert "a message is missing" in said.edge.value(POWER)[1]
    assert said.edge.needs_birth
    said.bear()
    assert said.edge.value(POWER) == (10.0, "")


def test_sequence_numbers_go_round_at_256():
    said = Said()
    said.bear()
    for count in range(2, 600):
        said.say("NDATA", count % 256, Metric(alias=0, datatype=3, value=float(count)))
    assert said.edge.value(POWER) == (599.0, "")


def test_an_alias_that_no_birth_named_asks_for_one():
    said = Said()
    said.bear()
    said.say("NDATA", 2, Metric(alias=77, datatype=3, value=1.0))
    assert said.edge.value(POWER) == (None, "data of alias 77, which no birth has named")


@pytest.mark.parametrize(
    ("bd_seq", "reason"),
    [
        (3, "the edge node ended its session"),
        (4, "the edge node ended its session; its death says bdSeq 4, its birth said 3"),
        (2, ""),
        (9, ""),
    ],
)
def test_a_death_counts_when_it_is_this_sessions_or_one_ahead(bd_seq, reason):
    said = Said()
    said.bear(3)
    said.die(bd_seq)
    assert said.edge.value(POWER) == ((None, reason) if reason else (10.0, ""))


def test_a_device_that_is_away_takes_only_its_own_points():
    said = Said()
    said.bear()
    said.say("DDEATH", 2, device="pump")
    assert said.edge.value(FLOW) == (None, "the device is away, says its edge node")
    assert said.edge.value(POWER) == (10.0, "")
    assert not said.edge.needs_birth


@given(
    st.binary(max_size=60),
    st.sampled_from(["NBIRTH", "NDEATH", "NDATA", "DBIRTH/pump", "DDATA/pump", "STATE", "x/y/z"]),
)
def test_an_edge_node_takes_anything(data, kind):
    said = Said()
    said.bear()
    name, _, device = kind.partition("/")
    said.edge.take(f"spBv1.0/box/{name}/plant" + (f"/{device}" if device else ""), data)
    for key in (POWER, FLOW):
        value, why = said.edge.value(key)
        assert (value is None) == bool(why)


@given(st.binary(max_size=100), st.sampled_from(["t", "t#/a", "t#/a/0", "t#/a~1b"]))
def test_any_payload_gives_a_finite_number_or_a_reason(payload, ref):
    place = codec.parse_ref(spec(ref), "")
    value, why = codec.read_number(spec(ref), place, payload)
    assert (value is None) == bool(why)
    assert value is None or math.isfinite(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_commands_come_back(raw):
    for options in ({}, {"command_key": "to"}):
        one = spec("t", options=options)
        place = Place("t", ("to",) if options else ())
        assert codec.read_number(one, place, codec.encode_command(one, raw)) == (raw, "")


@pytest.mark.parametrize(
    ("payload", "ref", "expected"),
    [
        (b"21.5", "t", 21.5),
        (b" 7 ", "t", 7.0),
        (b"ON", "t", 1.0),
        (b'{"a": {"b": [1, {"c": -3}]}}', "t#/a/b/1/c", -3.0),
        (b'{"a/b": true}', "t#/a~1b", 1.0),
        (b'{"a": "2.5"}', "t#/a", 2.5),
        (b'{"a": null}', "t#/a", None),
        (b'{"a": NaN}', "t#/a", None),
        (b'{"a": "1_0"}', "t#/a", None),
        (b'{"a": [1]}', "t#/a", None),
        (b'{"b": 1}', "t#/a", None),
        (b"[" * 5000, "t#/a", None),
        (b"inf", "t", None),
        (b"1" * 65, "t", None),
        (b"", "t", None),
        (b'{"a": 1' + b"0" * 400 + b"}", "t#/a", None),
    ],
)
def test_payloads_are_read(payload, ref, expected):
    one = spec(ref, options={"word.ON": 1})
    value, why = codec.read_number(one, codec.parse_ref(one, ""), payload)
    assert value == expected
    assert bool(why) == (expected is None)


def test_a_word_is_commanded_where_the_profile_has_one():
    one = spec("t", options={"word.ON": 1, "word.OFF": 0, "command_key": "state"})
    assert json.loads(codec.encode_command(one, 1.0)) == {"state": "ON"}


@pytest.mark.parametrize("ref", ["", "a/+/b", "a#b", "spb:x", "spb::", "{base}/x"])
def test_a_ref_that_means_nothing_is_rejected(ref):
    with pytest.raises(Rejected):
        codec.parse_ref(spec(ref), "")
