"""OPC UA's refs, status codes and values, on anything."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.core import Rejected
from madang.facility.opcua import codec
from madang.facility.opcua.codec import IdKind, NodeRef
from madang.facility.profile import PointSpec
from madang.model import Quality, Quantity


def spec(ref):
    return PointSpec(name="x", quantity=Quantity.POWER, ref=ref)


@pytest.mark.parametrize(
    ("ref", "expected"),
    [
        ("nsu=urn:maker;s=A.B", NodeRef("urn:maker", IdKind.TEXT, "A.B")),
        ("nsu=http://maker/x;i=17", NodeRef("http://maker/x", IdKind.NUMBER, "17")),
        ("nsu=u;s=a;b=c", NodeRef("u", IdKind.TEXT, "a;b=c")),
        ("i=2258", NodeRef(codec.OPC_URI, IdKind.NUMBER, "2258")),
        ("nsu={namespace};s=A", NodeRef("urn:own", IdKind.TEXT, "A")),
    ],
)
def test_a_ref_names_a_node_by_its_namespace(ref, expected):
    assert codec.parse_ref(spec(ref), "urn:own") == expected


@pytest.mark.parametrize(
    "ref", ["ns=2;s=A", "A", "", "nsu=u;i=abc", "nsu=u;i=4294967296", "nsu=;s=A", "nsu={namespace};s=A"]
)
def test_a_ref_that_names_none_is_rejected(ref):
    with pytest.raises(Rejected):
        codec.parse_ref(spec(ref), "")


@given(st.text(max_size=40))
def test_any_text_is_a_ref_or_rejected(text):
    try:
        ref = codec.parse_ref(spec(text), "urn:own")
    except Rejected:
        return
    assert ref.identifier
    assert ref.uri


@given(st.integers(0, 2**32 - 1))
def test_every_status_code_is_judged_by_its_severity(code):
    quality, why = codec.judge_status(code)
    assert bool(why) == (quality is not Quality.GOOD)
    if quality is not Quality.SUBSTITUTED:
        assert quality is (Quality.GOOD, Quality.UNCERTAIN, Quality.BAD, Quality.BAD)[code >> 30]


@pytest.mark.parametrize(
    ("code", "quality", "word"),
    [
        (0, Quality.GOOD, ""),
        (0x00000400, Quality.GOOD, ""),  # InfoType bits do not count
        (0x808C0000, Quality.BAD, "BadSensorFailure"),
        (0x40900000, Quality.UNCERTAIN, "UncertainLastUsableValue"),
        (0x00960000, Quality.SUBSTITUTED, "GoodLocalOverride"),
        (0x40910000, Quality.SUBSTITUTED, "UncertainSubstituteValue"),
        (0x81230000, Quality.BAD, "0x81230000"),
    ],
)
def test_status_codes_are_named(code, quality, word):
    assert codec.judge_status(code)[0] is quality
    assert word in codec.judge_status(code)[1]


@given(st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.lists(st.integers()))
def test_only_finite_numbers_are_numbers(value):
    number = codec.to_number(value)
    assert number is None or math.isfinite(number)
    if isinstance(value, str | bytes | list) or value is None:
        assert number is None
