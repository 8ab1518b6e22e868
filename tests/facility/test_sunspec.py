"""SunSpec maps: found wherever they begin, bounded however long they claim to be, scaled as the device says."""

import json
import math
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.facility.facility_parts import peer_python

from madang.core import Rejected
from madang.facility.modbus import sunspec
from madang.facility.modbus.sunspec_models import MODELS
from madang.facility.profile import PointSpec
from madang.model import Quantity


def spec(ref, **options):
    return PointSpec(name="power", quantity=Quantity.POWER, ref=ref, options=options)


def walk(words):
    """Return what discovery finds in a map (address to word; a gap is refused), and how often it asked."""
    steps = sunspec.discover(1)
    block = next(steps)
    for count in range(1, 200):
        found = [words.get(at) for at in range(block.address, block.address + block.count)]
        try:
            block = steps.send(None if None in found else tuple(found))
        except StopIteration as end:
            return end.value, count
    raise AssertionError("discovery goes on")


def lay(base, *models):
    words = dict(enumerate(sunspec.MARK, base))
    at = base + 2
    for model, length in models:
        words |= {at: model, at + 1: length}
        at += 2 + length
    return words | {at: 0xFFFF, at + 1: 0}


@pytest.mark.parametrize("base", sunspec.BASES)
def test_a_map_is_found_at_each_of_the_standards_bases(base):
    found, _ = walk(lay(base, (1, 66), (203, 105), (203, 105), (9999, 7)))
    assert found == {
        1: [(base + 2, 66)],
        203: [(base + 70, 105), (base + 177, 105)],
        9999: [(base + 284, 7)],
    }


def test_a_device_without_a_map_is_asked_three_times():
    assert walk({}) == ({}, 3)
    assert walk({40000: 0x5375, 40001: 0}) == ({}, 3)


@given(st.dictionaries(st.integers(0, 65535), st.integers(0, 65535)), st.integers(0, 65535))
def test_discovery_ends_on_any_map(words, length):
    every = {at: 1 for at in range(40000, 65536, 1)} | {40003: length} | words | dict(enumerate(sunspec.MARK, 40000))
    found, asked = walk(every)
    assert asked <= 3 + sunspec.MODELS_MAX
    assert sum(map(len, found.values())) <= sunspec.MODELS_MAX


def test_a_point_and_its_scale_factor_are_located():
    bases = {203: [(40070, 105), (40177, 105)]}
    place, scale = sunspec.locate(spec("sunspec:203.W"), bases, 1)
    assert (place.address, place.type, scale.address, scale.type) == (40088, "int16", 40092, "int16")
    place, scale = sunspec.locate(spec("sunspec:203/2.TotWhImp"), bases, 1)
    assert (place.address, place.count, scale.address) == (40223, 2, 40231)
    assert sunspec.locate(spec("sunspec:203/3.W"), bases, 1) == "the device has no SunSpec model 203/3"
    assert sunspec.locate(spec("sunspec:213.W"), bases, 1) == "the device has no SunSpec model 213"
    assert "too short" in sunspec.locate(spec("sunspec:203.W"), {203: [(40070, 19)]}, 1)


@pytest.mark.parametrize("ref", ["sunspec:203", "sunspec:x.W", "sunspec:203/0.W", "sunspec:203.Nothing", "sunspec:5.W"])
def test_a_malformed_ref_is_named(ref):
    with pytest.raises(Rejected, match="power"):
        sunspec.parse_ref(spec(ref))


def test_numbers_are_scaled_as_the_device_says():
    assert sunspec.scale_number(spec("sunspec:203.W"), 845, 1) == 8450
    assert sunspec.scale_number(spec("sunspec:203.PhVphA"), 2301, -1) == 230.1
    assert sunspec.scale_number(spec("sunspec:213.W"), 8450.5, None) == 8450.5


@pytest.mark.parametrize(
    ("ref", "raw", "factor"),
    [
        ("sunspec:203.W", -32768, 0),
        ("sunspec:802.SoC", 65535, 0),
        ("sunspec:203.TotWhImp", 0, 0),
        ("sunspec:802.State", 65535, None),
        ("sunspec:203.W", 5, -32768),
        ("sunspec:203.W", 5, 11),
        ("sunspec:203.W", 5, math.inf),
    ],
)
def test_what_is_not_implemented_or_not_scaled_is_no_number(ref, raw, factor):
    assert isinstance(sunspec.scale_number(spec(ref), raw, factor), str)


def test_our_tables_are_those_of_the_alliances_own_tools():
    python = peer_python("clients", "sunspec2")
    code = """
import json, os, sunspec2
folder = os.path.join(os.path.dirname(sunspec2.__file__), "models", "json")
out = {}
for model in %s:
    group = json.load(open(os.path.join(folder, f"model_{model}.json")))["group"]
    offset, points = 0, {}
    for point in group["points"]:
        scale = point.get("sf", "")
        points[point["name"]] = [offset, point["type"], point["size"], scale if isinstance(scale, str) else ""]
        offset += point["size"]
    out[model] = points
print(json.dumps(out))
"""
    said = json.loads(subprocess.check_output([python, "-c", code % sorted(MODELS)], text=True, timeout=60))
    names = {"i16": "int16", "u16": "uint16", "u32": "uint32", "f32": "float32", "e16": "enum16", "b16": "bitfield16"}
    names |= {"b32": "bitfield32", "sf": "sunssf"}
    for model in MODELS:
        theirs = said[str(model)]
        ours = sunspec.model_points(model)
        assert set(theirs) - set(ours) == {"ID", "L"}
        for name, point in ours.items():
            type_name = "string" if point.type.startswith("str") else names.get(point.type, point.type)
            assert [point.offset, type_name, point.count, point.scale] == theirs[name], (model, name)
