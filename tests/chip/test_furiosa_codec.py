"""The furiosa codec: the vendor's texts to readings, nothing but None for nonsense, and nothing raised ever."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.chip.chip_parts import NODE

from madang.chip.furiosa import codec
from madang.chip.furiosa.merge import Sources, merge
from madang.chip.manifest import load_manifest
from madang.model import ChipHealth

# Put together from the vendor's documentation, all-smi's structures and lab notes; not recorded on a card.
INFO = """[{"arch":"rngd","dev_name":"npu0","device_uuid":"C0413086-0708-4606-0000-000000000000",
"device_sn":"RNG26040100181Q","firmware":"2026.3.0, 2d3f72a","temperature":"40.98°C","power":"38.00 W",
"core_clock":"2000MHz","governor":"Performance","pci_bdf":"0000:03:00.0","pci_dev":"510:0"}]""".encode()
STATUS = b"""[{"arch":"rngd","device":"npu0","liveness":"alive","new_field":{"x":1},
"memory":{"DRAM":{"used_size":0,"total_size":51002736640,"used_ratio":0.0}},
"pe_utilizations":[{"pe_core":0,"pe_occupancy":false,"pe_utilization":0.0},
{"pe_core":1,"pe_occupancy":true,"pe_utilization":84.0}]}]"""
WARBOY_STATUS = b"""[{"index":"0","arch":"warboy","device":"npu0","liveness":"alive",
"cores":[{"idx":0,"status":"available"}],"pe_utilizations":[{"pe_core":0,"utilization":50.0}]}]"""


def test_info_of_rngd():
    (card,) = codec.parse_info(INFO)
    assert (card.name, card.serial, card.pci_address) == ("npu0", "RNG26040100181Q", "0000:03:00.0")
    assert (card.temperature_c, card.power_w, card.clock_mhz) == (40.98, 38.0, 2000.0)
    assert card.firmware == "2026.3.0, 2d3f72a"


def test_status_of_rngd_and_of_warboy():
    (card,) = codec.parse_status(STATUS)
    assert (card.name, card.liveness, card.memory_used_bytes) == ("npu0", "alive", 0)
    assert (card.memory_total_bytes, card.utilisation) == (51002736640, pytest.approx(0.42))
    (card,) = codec.parse_status(WARBOY_STATUS)
    assert (card.name, card.utilisation, card.memory_total_bytes) == ("npu0", 0.5, None)


@pytest.mark.parametrize(
    ("field", "text", "expected"),
    [
        ("power", "38.00 W", 38.0),
        ("power", "38 W", 38.0),
        ("power", "38000 mW", 38.0),
        ("power", "N/A", None),
        ("power", "0.00 W", None),
        ("power", "38.00", None),
        ("power", None, None),
        ("power", "nan W", None),
        ("temperature", "40.98°C", 40.98),
        ("temperature", "40.98 C", 40.98),
        ("temperature", "-5.5°C", -5.5),
        ("temperature", "40980°C", None),
        ("temperature", True, None),
        ("core_clock", "2000MHz", 2000.0),
        ("core_clock", "2 GHz", 2000.0),
        ("core_clock", "2147483000MHz", None),
    ],
)
def test_quantities_have_units_and_ranges(field, text, expected):
    (card,) = codec.parse_info(json.dumps([{"dev_name": "npu0", field: text}]).encode())
    names = {"power": "power_w", "temperature": "temperature_c", "core_clock": "clock_mhz"}
    assert getattr(card, names[field]) == expected


def test_one_pe_that_cannot_be_read_makes_utilisation_unknown():
    shares = [{"pe_utilization": 10.0}, {"pe_utilization": "N/A"}]
    (card,) = codec.parse_status(json.dumps([{"device": "npu0", "pe_utilizations": shares}]).encode())
    assert card.utilisation is None
    (card,) = codec.parse_status(json.dumps([{"device": "npu0", "pe_utilizations": [{"utilization": 400}]}]).encode())
    assert (card.utilisation, card.refused) == (None, ("utilisation 400 %",))


def test_more_memory_in_use_than_there_is_is_refused():
    dram = {"used_size": 2**40, "total_size": 2**35}
    (card,) = codec.parse_status(json.dumps([{"device": "npu0", "memory": {"DRAM": dram}}]).encode())
    assert (card.memory_used_bytes, card.memory_total_bytes) == (None, 2**35)
    assert card.refused


def test_versions():
    text = b"furiosa-smi 2026.1.1\ndevice driver 2026.3.1, e28c5c0\n"
    assert codec.parse_versions(text) == ("2026.1.1", "2026.3.1, e28c5c0")
    assert codec.parse_versions(b"\xff\n") == ("", "")


@pytest.mark.parametrize(
    ("reason", "names", "expected"),
    [
        (b"0x00000000\n", b"", ()),
        (b"0x00000004\n", b"", ("app_power_cap",)),
        (b"4", b"", ("app_power_cap",)),
        (b"0x1", b"", ()),  # idle is no throttling
        (b"0x00000042", b"", ("thermal_slowdown", "hw_power_cap")),
        (b"0x00000100", b"", ("other_reason",)),
        (b"0x00000400", b"", ("reason 0x400",)),
        (b"0x00000400", b"0x00000400 THROTTLE_NEW_CAP\n", ("new_cap",)),
        (b"0x00000004", b"0x00000004: THROTTLE_RENAMED\n", ("renamed",)),
        (b"hot", b"", ()),
        (b"", b"", ()),
    ],
)
def test_throttle_reasons_are_bits_that_the_driver_names(reason, names, expected):
    assert codec.parse_throttle(reason, names) == expected


def test_clocks_are_in_hertz_one_pe_a_line():
    assert codec.parse_clocks(b"2000000000\n1700000000\n") == 1700.0
    assert codec.parse_clocks(b"2000000000\nfast\n") is None
    assert codec.parse_clocks(b"") is None


def test_memory_in_use_is_counted_on_occupied_pes():
    busy = b"dram_capacity: 0x100\ndram_usage: 0x10\nshared_capacity: 0x20\nshared_usage: 0x2\n"
    assert codec.parse_memory_used(b"0\n1\n1\n", [busy, busy, busy]) == 36
    assert codec.parse_memory_used(b"0\n0\n", []) == 0
    assert codec.parse_memory_used(b"1\n", []) is None
    assert codec.parse_memory_used(b"1\n", [b"dram_usage: 0x10\n"]) is None
    assert codec.parse_memory_used(b"0x3\n", [busy]) is None
    assert codec.parse_occupied(b"0\n1\n1\n") == (1, 2)
    assert codec.parse_occupied(b"0\n") == ()
    assert codec.parse_occupied(b"") is codec.parse_occupied(b"0\nx\n") is None


def test_sensors_are_found_by_label():
    labels = {"temp1_label": b"PEAK\n", "temp12_label": b"AMBIENT\n"}
    assert codec.find_sensor(labels, "AMBIENT") == "temp12"
    assert codec.find_sensor(labels, "RMS_TOTAL") == ""


def test_hwmon_is_in_milli_and_micro():
    assert codec.parse_hwmon_temperature(b"40980\n") == 40.98
    assert codec.parse_hwmon_temperature(b"-5000\n") == -5.0
    assert codec.parse_hwmon_power(b"38000000\n") == 38.0
    assert codec.parse_hwmon_power(b"0\n") is None
    assert codec.parse_hwmon_power(b"") is None


NAMES = [
    "dev_name",
    "device",
    "index",
    "arch",
    "power",
    "temperature",
    "core_clock",
    "memory",
    "pe_utilizations",
    "liveness",
]
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["npu0", "3 W", "alive"])
)
FLAT = LEAVES | st.lists(LEAVES, max_size=3) | st.dictionaries(st.sampled_from([*NAMES, "DRAM"]), LEAVES, max_size=3)
VALUES = FLAT | st.lists(FLAT, max_size=2) | st.dictionaries(st.sampled_from([*NAMES, "DRAM"]), FLAT, max_size=3)


def check_card(card):
    for value in (getattr(card, name, None) for name in ("temperature_c", "power_w", "clock_mhz", "utilisation")):
        assert value is None or math.isfinite(value)
    assert getattr(card, "utilisation", None) is None or 0 <= card.utilisation <= 1


@given(st.binary(max_size=400))
def test_arbitrary_bytes_raise_nothing(data):
    for parse in (codec.parse_info, codec.parse_status):
        for card in parse(data) or ():
            check_card(card)
    codec.parse_versions(data)
    codec.parse_throttle(data, data)
    codec.parse_hwmon_temperature(data)
    codec.parse_hwmon_power(data)
    codec.parse_clocks(data)
    codec.parse_memory_used(data, [data])
    codec.parse_memory_used(b"1\n", [data])
    codec.parse_management("npu0", dict.fromkeys(("busname", "device_sn", "power_limit_mw", "throttle_reason"), data))


@given(st.lists(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6), max_size=4))
def test_arbitrary_json_of_the_right_shape_raises_nothing_and_stays_in_range(value):
    data = json.dumps(value).encode()
    info, status = codec.parse_info(data), codec.parse_status(data)
    for card in (*(info or ()), *(status or ())):
        check_card(card)
    sources = Sources(info=info, status=status)
    for seen in merge(sources, load_manifest("madang.chip.furiosa"), NODE, 1.0, {}):
        assert bool(seen.chip.reason) == (seen.chip.health is not ChipHealth.OK)
