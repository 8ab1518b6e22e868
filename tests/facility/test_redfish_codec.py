"""What Redfish documents say becomes numbers or reasons, whatever they are; links stay where they belong."""

import json
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.core import Rejected
from madang.facility.profile import PointSpec, list_profiles, load_profile, to_sample
from madang.facility.redfish import codec
from madang.facility.redfish.codec import Pick, Place
from madang.model import PointKind, Quality, Quantity

ORIGIN = "https://bmc.example:8443"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
POWER = PointSpec(name="power", quantity=Quantity.POWER, ref="Chassis/{chassis}#/PowerWatts")
STATE = PointSpec(
    name="s", quantity=Quantity.STATE, ref="Chassis/{chassis}#/State", states={"0": "ok", "1": "powering_on"}
)


@pytest.mark.parametrize("name", list_profiles("redfish"))
def test_every_profile_is_sound(name):
    profile = load_profile("redfish", name)
    assert profile.driver == "redfish"
    assert len({spec.name for spec in profile.points}) == len(profile.points)
    for spec in profile.points:
        assert codec.parse_ref(spec.ref)
        assert spec.valid or spec.states
        for number in spec.states:
            found = Pick(is_found=True, value=codec.to_json(spec, float(number)))
            assert codec.read_number(spec, found) == (float(number), "")


@pytest.mark.parametrize(
    "ref", ["", "Chassis", "Chassis/#/", "#/a", "Chassis//E#/a", "/redfish/v1#/a", "Chassis/@x#/a", "Chassis/E#/a//b"]
)
def test_what_is_no_place_is_rejected(ref):
    with pytest.raises(Rejected, match="no place in a Redfish service"):
        codec.parse_ref(ref)


@pytest.mark.parametrize(
    ("link", "path"),
    [
        ("/redfish/v1/Chassis/1", "/redfish/v1/Chassis/1"),
        (f"{ORIGIN}/redfish/v1/Chassis", "/redfish/v1/Chassis"),
        ("/redfish/v1/Chassis/1/Power#/PowerControl/0", "/redfish/v1/Chassis/1/Power"),
        ("https://redfishpdu.example/redfish/v1", ""),
        ("https://bmc.example:8443.evil.example/redfish/v1", ""),
        ("https://bmc.example:84430/redfish/v1", ""),
        (f"{ORIGIN}@evil.example/redfish/v1", ""),
        ("//evil.example/redfish/v1", ""),
        ("/redfish/../admin", ""),
        ("/redfish/v1//evil.example", ""),
        ("/admin", ""),
        ("/redfish\\evil", ""),
        ("/redfish/v1/\r\nHost: x", ""),
        ("redfish/v1", ""),
        ("/redfish/v1/" + "a" * codec.LINK_CHARACTERS_MAX, ""),
    ],
)
def test_only_links_within_the_service_have_a_path(link, path):
    assert codec.own_path(link, ORIGIN) == path


@given(st.text(max_size=60))
def test_a_path_never_leads_out_of_redfish(link):
    path = codec.own_path(link, ORIGIN)
    assert path == "" or (path.startswith("/redfish") and "//" not in path and ".." not in path)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_an_object_or_none(data):
    assert codec.decode(data) is None or isinstance(codec.decode(data), dict)
    assert isinstance(codec.refusal(data), str)


def test_json_that_is_nested_without_end_is_none():
    assert codec.decode(b'{"a":' * 100_000) is None


@given(JSON, st.sampled_from(["Members", "Chassis", "@0", "{chassis}"]))
def test_any_document_is_followed_or_said_why_not(node, hop):
    step = codec.follow(node, hop, {})
    assert isinstance(step.trouble, str)
    assert not (step.trouble and step.node is not None)


@given(JSON, st.sampled_from([POWER, STATE]))
def test_any_value_is_a_number_or_a_reason(value, spec):
    raw, reason = codec.read_number(spec, Pick(is_found=True, value=value, around={}))
    assert (raw is None) == bool(reason)
    sample = to_sample(spec, "x.power", raw, now_s=1.0, reason=reason)
    assert (sample.value is None) == (sample.quality is Quality.BAD)
    assert sample.value is None or math.isfinite(sample.value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_go_there_and_back(raw):
    value = json.loads(json.dumps(codec.to_json(POWER, raw)))
    assert codec.read_number(POWER, Pick(is_found=True, value=value)) == (raw, "")


def test_a_truth_is_no_number_and_a_number_as_text_neither():
    for value in True, "12", [12], {"Reading": 12}, 10**400:
        assert codec.read_number(POWER, Pick(is_found=True, value=value))[0] is None


def test_a_reading_beside_a_part_that_is_not_there_is_none():
    document = {"Reading": 0, "Status": {"State": "UnavailableOffline"}}
    raw, reason = codec.read_number(POWER, codec.pick(document, ("Reading",)))
    assert (raw, reason) == (None, "the device says that it is UnavailableOffline")
    document["Status"]["State"] = "Enabled"
    assert codec.read_number(POWER, codec.pick(document, ("Reading",))) == (0.0, "")


def test_an_alarm_of_a_detector_that_is_switched_off_is_not_clear():
    document = {"Status": {"State": "Disabled", "Health": "OK"}}
    pointer = ("Status", "Health")
    assert codec.read_number(STATE, codec.pick(document, pointer)) == (0.0, "")
    alarm = msgspec.structs.replace(STATE, kind=PointKind.ALARM)
    raw, reason = codec.read_number(alarm, codec.pick(document, pointer))
    assert (raw, reason) == (None, "the device says that it is Disabled")


def test_an_alarm_may_be_coarser_than_what_the_device_says():
    spec = msgspec.structs.replace(
        STATE, states={"0": "clear", "1": "active"}, options={"words": "OK=0 Critical=1 Warning=1"}
    )
    raws = [codec.read_number(spec, Pick(is_found=True, value=word))[0] for word in ("OK", "Warning", "Critical", "x")]
    assert raws == [0.0, 1.0, 1.0, None]
    assert [codec.to_json(spec, raw) for raw in (0.0, 1.0)] == ["OK", "Critical"]


def test_a_limit_that_is_not_in_force_is_its_bound_or_nothing():
    options = {"inactive_when": "ControlMode=Disabled", "inactive_value": "AllowableMax"}
    limit = msgspec.structs.replace(POWER, options=options)
    around = {"SetPoint": 990, "AllowableMax": 3584, "ControlMode": "Disabled"}
    raw, reason = codec.read_number(limit, Pick(is_found=True, value=990, around=around))
    assert (raw, reason) == (3584.0, "ControlMode is Disabled: the set point 990 is not in force")
    del around["AllowableMax"]
    assert codec.read_number(limit, Pick(is_found=True, value=990, around=around))[0] is None
    assert codec.read_number(limit, Pick(is_found=True, value=990, around={})) == (990.0, "")


def test_members_come_in_the_natural_order_of_their_names():
    members = [{"@odata.id": f"/redfish/v1/P/Outlets/{number}"} for number in (10, 9, 1)]
    last = [codec.link_of(codec.follow({"Members": members}, f"@{number}", {}).node)[-2:] for number in range(3)]
    assert last == ["/1", "/9", "10"]
    assert codec.follow({"Members": members}, "@3", {}).trouble == "there are only 3 of them"


def test_an_array_is_searched_by_a_member():
    document = {"Temperatures": [1, {"PhysicalContext": "CPU"}, {"PhysicalContext": "Intake", "ReadingCelsius": 24}]}
    assert codec.pick(document, ("Temperatures", "[PhysicalContext=Intake]", "ReadingCelsius")).value == 24
    assert not codec.pick(document, ("Temperatures", "[PhysicalContext=Exhaust]", "ReadingCelsius")).is_found
    assert not codec.pick(document, ("Temperatures", "7")).is_found


def test_a_body_leaves_the_elements_before_alone():
    place = Place(("Chassis",), ("PowerControl", "2", "PowerLimit", "LimitInWatts"))
    assert codec.patch_body(place, 450, {}) == {"PowerControl": [{}, {}, {"PowerLimit": {"LimitInWatts": 450}}]}
    [place] = codec.parse_ref("Chassis/{chassis}/E#/PowerLimitWatts/SetPoint")
    body = codec.patch_body(place, 450, {"ControlMode": "Automatic"})
    assert body == {"PowerLimitWatts": {"SetPoint": 450, "ControlMode": "Automatic"}}


def test_what_a_service_says_is_found_and_shortened():
    told = {"error": {"message": "general", "@Message.ExtendedInfo": [{"Message": "x" * 500}]}}
    assert codec.refusal(json.dumps(told).encode()) == "x" * 200
    assert codec.refusal(b'{"error": {"message": "general"}}') == "general"
    assert codec.refusal(b"<html>") == ""
