"""The rebellions codec: the vendor's texts to readings, nothing but None for nonsense, and nothing raised ever."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.chip.chip_parts import NODE

from madang.chip.manifest import load_manifest
from madang.chip.rebellions import codec
from madang.chip.rebellions.merge import Sources, merge
from madang.model import ChipHealth

# Put together from the vendor's Go library, its documentation and lab notes; not recorded on a card.
ANSWER = b"""{"KMD_version":"3.0.0","devices":[{"group_id":"0","npu":0,"name":"RBLN-CA22","sid":"0000000022502229",
"uuid":"00000000-0000-0000-0000-000000000000","device":"rbln0","status":"normal","fw_ver":"3.2.2",
"pci":{"dev":"1220","bus_id":"0000:83:00.0","numa_node":"1","link_speed":"32.0GT/s","link_width":"8"},
"temperature":"37C","card_power":"148814000uW","pstate":"P14","memory":{"used":"0","total":"16877879296"},
"util":"0.0","board_info":"x","location":0}],
"contexts":[{"ctx_id":"1","npu":"0","process":"python3","pid":1234,"priority":"0","ptid":"1","memalloc":"0"}]}"""


def parse_one(**fields):
    answer = codec.parse_answer(json.dumps({"devices": [{"device": "rbln0", **fields}]}).encode())
    return answer.devices[0]


def test_the_whole_answer():
    answer = codec.parse_answer(ANSWER)
    (device,) = answer.devices
    assert (answer.driver, device.name, device.device) == ("3.0.0", "RBLN-CA22", "rbln0")
    assert (device.sid, device.pci_address, device.numa_node) == ("0000000022502229", "0000:83:00.0", 1)
    assert (device.temperature_c, device.power_w, device.utilisation) == (37.0, pytest.approx(148.814), 0.0)
    assert (device.memory_used_bytes, device.memory_total_bytes) == (0, 16877879296)
    assert (device.refused, device.corrected) == ((), ())


@pytest.mark.parametrize("npu", [0, "0", None, "x", {}])
def test_the_type_of_npu_does_not_matter(npu):
    assert parse_one(npu=npu).device == "rbln0"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("19400000uW", 19.4),
        ("19400mW", 19.4),
        ("19.4W", 19.4),
        ("19.4 W", 19.4),
        ("19400000µW", 19.4),
        ("19400000", None),  # no unit, no guess
        (19.4, None),
        ("0uW", None),
        ("-5W", None),
        ("99999W", None),
    ],
)
def test_power_has_a_unit(text, expected):
    assert parse_one(card_power=text).power_w == (None if expected is None else pytest.approx(expected))


def test_the_trap_of_a_thousand_is_undone_and_told():
    device = parse_one(temperature="0.037C", card_power="148814uW")
    assert (device.temperature_c, device.power_w) == (pytest.approx(37.0), pytest.approx(148.814))
    assert device.corrected == ("temperature 0.037 °C", "power 0.148814 W")
    assert parse_one(temperature="0.5C").refused == ("temperature 0.5 °C",)  # 500 °C would be no better


@pytest.mark.parametrize("sid", ["0000000000000000", "", "0", "N/A", None, "----"])
def test_a_sid_that_tells_nothing_is_none(sid):
    assert parse_one(sid=sid).sid == ""


@pytest.mark.parametrize(
    ("number", "driver", "expected"),
    [
        (0, "3.0.0", "ready"),
        (1, "", "busy"),
        (2, "3.0.0", "init"),
        (3, "3.2.2", "fault"),
        (4, "2.0.1", "finish"),
        (2, "3.5.1", "init or probing"),
        (3, "3.5.1", "fault or init"),
        (4, "", "finish or fault"),
        (5, "4.0.0", "finish"),
        (0, "9.9.9", "ready"),
        (9, "3.0.0", "number 9"),
    ],
)
def test_numbers_of_status_move_with_the_driver(number, driver, expected):
    assert codec.name_status(number, driver) == expected


def test_attributes_of_the_kernel_driver():
    files = {"status": b"3\n", "kernel_version": b"3.0.0\n", "dram_total": b"16877879296\n", "dram_used": b"5\n"}
    found = codec.parse_attributes("rbln0", files, "0000:83:00.0")
    assert (found.status, found.driver, found.memory_used_bytes, found.pci_address) == (3, "3.0.0", 5, "0000:83:00.0")
    assert codec.parse_attributes("rsd0", files, "").device == ""


@given(st.binary(max_size=400))
def test_arbitrary_bytes_raise_nothing(data):
    codec.parse_answer(data)
    codec.parse_attributes("rbln0", dict.fromkeys(("status", "kernel_version", "dram_total", "dram_used"), data), "")


NAMES = [
    "device",
    "name",
    "sid",
    "status",
    "temperature",
    "card_power",
    "memory",
    "util",
    "pci",
    "used",
    "total",
    "bus_id",
]
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["rbln0", "0.03W", "normal"])
)
VALUES = LEAVES | st.lists(LEAVES, max_size=3) | st.dictionaries(st.sampled_from(NAMES), LEAVES, max_size=4)


@given(st.lists(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=8), max_size=4), VALUES)
def test_arbitrary_json_of_the_right_shape_raises_nothing_and_stays_in_range(devices, driver):
    answer = codec.parse_answer(json.dumps({"devices": devices, "KMD_version": driver}).encode())
    for device in answer.devices if answer else ():
        assert device.power_w is None or 1 <= device.power_w <= 1000
        assert device.temperature_c is None or 1 <= device.temperature_c <= 130
        assert device.utilisation is None or 0 <= device.utilisation <= 1
        assert device.memory_total_bytes is None or math.isfinite(device.memory_total_bytes)
    for seen in merge(Sources(answer=answer), load_manifest("madang.chip.rebellions"), NODE, 1.0, {}):
        assert bool(seen.chip.reason) == (seen.chip.health is not ChipHealth.OK)
