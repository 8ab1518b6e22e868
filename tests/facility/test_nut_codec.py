"""NUT's lines are taken apart whatever they are; a status is a set, and known lies are no values."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.core import Rejected
from madang.facility.nut import codec
from madang.facility.profile import PointSpec, list_profiles, load_profile
from madang.model import Quantity

RUNTIME = PointSpec(name="runtime", quantity=Quantity.RUNTIME, ref="battery.runtime", options={"no_value_on_mains": 0})
ON_BATTERY = PointSpec(name="state_on_battery", quantity=Quantity.STATE, ref="ups.status#OB", options={"clear": "OL"})
LOW = PointSpec(name="alarm_battery_low", quantity=Quantity.STATE, ref="ups.status#LB")
OTHERS = PointSpec(name="status_unknown", quantity=Quantity.COUNT, ref="ups.status#unknown")


@pytest.mark.parametrize("name", list_profiles("nut"))
def test_every_profile_is_sound(name):
    profile = load_profile("nut", name)
    assert profile.driver == "nut"
    assert len({spec.name for spec in profile.points}) == len(profile.points)
    for spec in profile.points:
        for _, token in codec.parse_ref(spec.ref):
            assert token in {"", codec.UNKNOWN} | codec.KNOWN_TOKENS


@pytest.mark.parametrize("ref", ["", "a b", "ups.status#", "#OB", "battery.charge |  | x"])
def test_what_is_no_variable_is_rejected(ref):
    with pytest.raises(Rejected, match="no variable of NUT"):
        codec.parse_ref(ref)


@pytest.mark.parametrize("name", ["", "a b", 'a"', "a\nb", "x" * 65])
def test_a_name_that_would_break_a_line_is_rejected(name):
    with pytest.raises(Rejected):
        codec.check_name(name, "a UPS")


@given(st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")) | st.just(" "), max_size=60))
def test_a_text_goes_there_and_back(text):
    message = codec.parse_line(f"VAR ups ups.model {codec.quote(text)}\n".encode())
    assert message is not None
    assert message.words == ("VAR", "ups", "ups.model", text)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_a_message_or_none(data):
    message = codec.parse_line(data)
    assert message is None or (message.words and isinstance(message.error, str))


@given(st.dictionaries(st.sampled_from(["ups.status", "battery.runtime"]), st.text(max_size=30)))
def test_any_variables_give_a_number_or_a_reason(variables):
    for spec in RUNTIME, ON_BATTERY, LOW, OTHERS:
        raw, reason = codec.read_number(spec, variables)
        assert raw is not None or reason
        assert raw is None or math.isfinite(raw)


@pytest.mark.parametrize(
    ("status", "on_battery", "low", "others"),
    [
        ("OL", 0.0, 0.0, 0.0),
        ("OL CHRG", 0.0, 0.0, 0.0),
        ("OB DISCHRG", 1.0, 0.0, 0.0),
        ("OB DISCHRG LB", 1.0, 1.0, 0.0),
        ("ALARM OL LB RB", 0.0, 1.0, 0.0),
        ("OL ECOMODE HE", 0.0, 0.0, 2.0),
        ("WAIT", None, 0.0, 0.0),
        ("", None, 0.0, 0.0),
    ],
)
def test_a_status_is_a_set_of_tokens(status, on_battery, low, others):
    variables = {"ups.status": status}
    assert [codec.read_number(spec, variables)[0] for spec in (ON_BATTERY, LOW, OTHERS)] == [on_battery, low, others]


def test_tokens_that_are_not_known_are_told():
    assert codec.read_number(OTHERS, {"ups.status": "OL HE ZZZ"}) == (2.0, "tokens that are not known: HE ZZZ")
    assert codec.parse_status("HE OL HE") == codec.Status(frozenset({"OL"}), ("HE",))


def test_on_battery_and_on_mains_at_once_is_battery_with_a_doubt():
    assert codec.read_number(ON_BATTERY, {"ups.status": "OL OB"}) == (1.0, "the status has OL beside OB")


def test_no_runtime_on_mains_is_no_estimate_and_on_battery_it_is():
    raw, reason = codec.read_number(RUNTIME, {"battery.runtime": "0", "ups.status": "OL"})
    assert raw is None
    assert "while it is on mains" in reason
    assert codec.read_number(RUNTIME, {"battery.runtime": "0", "ups.status": "OB LB"}) == (0.0, "")
    assert codec.read_number(RUNTIME, {"battery.runtime": "660", "ups.status": "OL"}) == (660.0, "")


@pytest.mark.parametrize("text", ["", "nan", "inf", "1_0", "0x10", "12 V"])
def test_a_text_that_is_no_number_is_none(text):
    assert codec.to_number(text) is None
