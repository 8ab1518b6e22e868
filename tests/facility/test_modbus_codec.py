"""Modbus on the wire: the standard's own examples, every number there and back, and no byte that breaks anything."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.core import Rejected
from madang.facility.modbus import codec
from madang.facility.modbus.codec import Block, ExceptionCode, Place, ReadRequest, Table, Trouble, WriteRequest
from madang.facility.profile import PointSpec
from madang.model import Quantity

WHOLE = {"uint16": (0, 2**16 - 1), "int16": (-(2**15), 2**15 - 1), "uint32": (0, 2**32 - 1)}
WHOLE |= {"int32": (-(2**31), 2**31 - 1), "uint64": (0, 2**53), "int64": (-(2**53), 2**53)}


def block(table, address, count):
    return Block(unit=1, table=table, address=address, count=count, members=())


def place(type="uint16", address=0, table=Table.HOLDING, **options):
    return Place(unit=1, table=table, address=address, type=type, **options)


def spec(ref, **options):
    return PointSpec(name="power", quantity=Quantity.POWER, ref=ref, options=options)


def test_registers_are_asked_for_and_given_as_in_the_standards_example():
    three = block(Table.HOLDING, 0x6B, 3)
    assert codec.encode_read(three) == bytes.fromhex("03006b0003")
    assert codec.decode_request(bytes.fromhex("03006b0003")) == ReadRequest(Table.HOLDING, 0x6B, 3)
    assert codec.decode_read(bytes.fromhex("0306022b00000064"), three) == (0x22B, 0, 0x64)
    assert codec.encode_words(ReadRequest(Table.HOLDING, 0x6B, 3), (0x22B, 0, 0x64)).hex() == "0306022b00000064"


def test_discrete_inputs_are_asked_for_and_given_as_in_the_standards_example():
    inputs = block(Table.DISCRETE, 0xC4, 0x16)
    assert codec.encode_read(inputs) == bytes.fromhex("0200c40016")
    bits = codec.decode_read(bytes.fromhex("0203acdb35"), inputs)
    assert bits == tuple(int(one) for one in "0011010111011011101011")
    assert codec.encode_words(ReadRequest(Table.DISCRETE, 0xC4, 0x16), bits) == bytes.fromhex("0203acdb35")


def test_registers_are_written_as_in_the_standards_examples():
    one = codec.encode_write(place(address=1), (3,), is_multiple=False)
    assert one == bytes.fromhex("0600010003")
    assert codec.decode_request(one) == WriteRequest(Table.HOLDING, 1, (3,))
    assert codec.decode_write(one, one) is None
    two = codec.encode_write(place("uint32", 1), (0x0A, 0x102), is_multiple=False)
    assert two == bytes.fromhex("100001000204000a0102")
    assert codec.decode_request(two) == WriteRequest(Table.HOLDING, 1, (0x0A, 0x102))
    assert codec.decode_write(bytes.fromhex("1000010002"), two) is None
    coil = codec.encode_write(place("bit", 0xAC, Table.COIL), (1,), is_multiple=False)
    assert coil == bytes.fromhex("0500acff00")
    assert codec.decode_request(coil) == WriteRequest(Table.COIL, 0xAC, (1,))


def test_a_refusal_is_told_with_its_name_and_never_taken_for_registers():
    answer = codec.encode_refusal(3, ExceptionCode.ILLEGAL_DATA_ADDRESS)
    assert answer == b"\x83\x02"
    trouble = codec.decode_read(answer, block(Table.HOLDING, 0, 1))
    assert trouble == Trouble(reason="the device refuses: exception 2, illegal data address", code=2)
    assert codec.decode_read(b"\x83\x77", block(Table.HOLDING, 0, 1)).code == 0x77
    assert codec.decode_read(answer, block(Table.INPUT, 0, 1)).code == 0


@pytest.mark.parametrize("answer", ["", "03", "0304", "030400010002", "0302ff", "040200ff", "0302000100", "0303000100"])
def test_an_answer_of_another_length_or_function_is_malformed(answer):
    trouble = codec.decode_read(bytes.fromhex(answer), block(Table.HOLDING, 0, 1))
    assert isinstance(trouble, Trouble)
    assert "malformed" in trouble.reason


@given(st.sampled_from(sorted(WHOLE)), st.booleans(), st.data())
def test_whole_numbers_come_back(type, is_low_word_first, data):
    at = place(type, is_low_word_first=is_low_word_first)
    number = data.draw(st.integers(*WHOLE[type]))
    words = codec.encode_number(at, number)
    assert len(words) == at.count
    assert codec.decode_number(at, words) == number


@given(st.sampled_from(["float32", "float64"]), st.booleans(), st.floats(width=32))
def test_floats_come_back(type, is_low_word_first, number):
    at = place(type, is_low_word_first=is_low_word_first)
    back = codec.decode_number(at, codec.encode_number(at, number))
    assert back == number or (math.isnan(back) and math.isnan(number))


def test_word_orders_and_signs_are_as_documents_have_them():
    assert codec.decode_number(place("uint32"), (0x0001, 0x0002)) == 65538
    assert codec.decode_number(place("uint32", is_low_word_first=True), (0x0001, 0x0002)) == 131073
    assert codec.decode_number(place("int16"), (0xFFFE,)) == -2
    assert codec.decode_number(place("float32"), (0x4145, 0x70A4)) == pytest.approx(12.34)
    assert codec.decode_number(place("uint32", bit=17), (0x0002, 0x0000)) == 1
    assert codec.decode_number(place("uint16", bit=3), (0b0111,)) == 0


@pytest.mark.parametrize("number", [-1, 65536, 1e12, math.nan, math.inf])
def test_what_does_not_fit_is_rejected(number):
    with pytest.raises(Rejected):
        codec.encode_number(place("uint16"), number)


@given(st.binary(max_size=300), st.sampled_from(Table), st.integers(0, 65535), st.integers(1, 125))
def test_no_answer_breaks_a_reading(answer, table, address, count):
    found = codec.decode_read(answer, block(table, address, count))
    assert isinstance(found, Trouble) or len(found) == count
    assert codec.decode_write(answer, bytes.fromhex("0600010003")) is None or answer != bytes.fromhex("0600010003")


@given(st.binary(min_size=1, max_size=300))
def test_no_request_breaks_a_server(pdu):
    request = codec.decode_request(pdu)
    if isinstance(request, ReadRequest):
        answer = codec.encode_words(request, [1] * request.count)
        assert len(codec.decode_read(answer, block(request.table, request.address, request.count))) == request.count
    elif isinstance(request, WriteRequest):
        assert 1 <= len(request.words) <= 123


@given(st.binary(min_size=7, max_size=7))
def test_no_head_breaks_a_frame(head):
    found = codec.decode_head(head)
    assert found is None or 1 <= found.length <= codec.PDU_BYTES_MAX


@given(st.integers(0, 65535), st.integers(0, 255), st.binary(min_size=1, max_size=codec.PDU_BYTES_MAX))
def test_frames_come_back(transaction, unit, pdu):
    frame = codec.encode_frame(transaction, unit, pdu)
    head = codec.decode_head(frame[:7])
    assert (head.transaction, head.unit, head.length) == (transaction, unit, len(pdu))
    assert frame[7:] == pdu


PLACES = st.lists(
    st.one_of(
        st.none(),
        st.builds(
            Place,
            unit=st.integers(1, 2),
            table=st.sampled_from(Table),
            address=st.integers(0, 3000),
            type=st.sampled_from(sorted(WHOLE)),
        ),
    ),
    max_size=60,
)


@given(PLACES, st.integers(0, 50))
def test_every_place_is_read_once_within_the_standards_limits(places, gap_max):
    blocks = codec.plan_blocks(places, gap_max)
    read = [index for one in blocks for index in one.members]
    assert sorted(read) == [index for index, one in enumerate(places) if one is not None]
    for one in blocks:
        assert 1 <= one.count <= (codec.BITS_MAX if one.table.is_of_bits else codec.REGISTERS_MAX)
        for index in one.members:
            at = places[index]
            assert (at.unit, at.table) == (one.unit, one.table)
            assert one.address <= at.address
            assert at.address + at.count <= one.address + one.count
    for one, other in itertools.pairwise(blocks):
        assert (one.unit, one.table, one.address) < (other.unit, other.table, other.address)


@given(PLACES.filter(any))
def test_splitting_ends_with_single_places(places):
    pending, ended, steps = codec.plan_blocks(places, 50), [], 0
    while pending:
        steps += 1
        one = pending.pop()
        halves = codec.split_block(one, places)
        assert sorted(index for half in halves for index in half.members) == (sorted(one.members) if halves else [])
        pending += halves
        ended += [] if halves else [one]
    assert steps <= 2 * len(places)
    for one in ended:
        assert len({(places[index].address, places[index].count) for index in one.members}) == 1


def test_neighbours_are_read_at_once_over_small_gaps_only():
    places = [place("float32", 0), place("uint16", 4), place("uint16", 20)]
    assert [(one.address, one.count) for one in codec.plan_blocks(places, 2)] == [(0, 5), (20, 1)]
    assert [(one.address, one.count) for one in codec.plan_blocks(places, 1)] == [(0, 2), (4, 1), (20, 1)]
    long = [place("uint16", at) for at in range(300)]
    assert [one.count for one in codec.plan_blocks(long, 0)] == [125, 125, 50]


@pytest.mark.parametrize(
    ("ref", "options", "word"),
    [
        ("holding", {}, "TABLE:ADDRESS"),
        ("register:3", {}, "TABLE:ADDRESS"),
        ("holding:-3", {}, "TABLE:ADDRESS"),
        ("holding:65535", {"type": "uint32"}, "beyond 65535"),
        ("holding:1", {"type": "int24"}, "type 'int24'"),
        ("holding:1", {"word_order": "middle"}, "word_order"),
        ("holding:1", {"unit": 256}, "unit 256"),
        ("holding:1", {"bit": 16}, "no bit 16"),
        ("holding:1", {"type": "float32", "bit": 0}, "no bit 0"),
    ],
)
def test_a_malformed_ref_is_named(ref, options, word):
    with pytest.raises(Rejected) as refusal:
        codec.parse_place(spec(ref, **options), 1)
    assert word in str(refusal.value)
    assert "power" in str(refusal.value)
