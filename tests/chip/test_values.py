"""What all codecs share: numbers with units, addresses, versions and their rules; nothing is ever raised."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.chip import values
from madang.chip.compatibility import VersionRule, find_incompatibility, is_in_range, parse_version
from madang.chip.manifest import load_manifest
from madang.chip.rebellions.merge import KIND as REBELLIONS

ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30) | st.lists(st.integers())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0000:83:00.0", "0000:83:00.0"),
        ("83:00.0", "0000:83:00.0"),
        ("00000000:C1:00.0", "0000:c1:00.0"),
        ("00010000:C1:00.0", "10000:c1:00.0"),
        (" 0000:83:00.1\n", "0000:83:00.1"),
        ("0000:83:00.8", ""),
        ("npu0", ""),
        ("", ""),
    ],
)
def test_pci_addresses(text, expected):
    assert values.parse_pci_address(text) == expected


@given(ANYTHING)
def test_quantities_are_finite_numbers_or_none(value):
    for units in ({"": 1.0}, {"w": 1.0, "uw": 1e-6}):
        number = values.as_quantity(value, units)
        assert number is None or math.isfinite(number)


@given(ANYTHING)
def test_texts_are_short_and_printable(value):
    text = values.as_text(value)
    assert len(text) <= 120
    assert text.isprintable()


@given(st.binary(max_size=200))
def test_bytes_of_any_kind_are_taken(data):
    values.decode_json(data)
    assert values.decode_text(data).isprintable()
    cpus = values.parse_cpu_list(data)
    assert list(cpus) == sorted(set(cpus))


def test_json_that_is_too_deep_is_none():
    assert values.decode_json(b"[" * 100_000) is None


@given(st.text(max_size=40))
def test_slugs_are_in_the_alphabet_of_ids(text):
    assert set(values.slug(text)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


@pytest.mark.parametrize("text", ["", "0", "0000000000000000", "----", "FFFFFFFF", "abc"])
def test_a_serial_that_tells_nothing_is_none(text):
    assert not values.is_serial(text)


@pytest.mark.parametrize(
    ("version", "ranges", "expected"),
    [
        ("2026.3.1, e28c5c0", ">=2026.4", False),
        ("2026.4.0", ">=2026.4", True),
        ("v3.2.2", "==3.2.2", True),
        ("0.11.7", "==0.11", True),
        ("0.9.4.1", "<=0.9.4", True),
        ("0.10", "<=0.9.4", False),
        ("3", ">=3.0, <3.3", True),
        ("3.3.0", ">=3.0, <3.3", False),
        ("3.3.0", "whatever", False),
    ],
)
def test_ranges_of_versions(version, ranges, expected):
    assert is_in_range(parse_version(version), ranges) is expected


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_text_is_a_version_or_none(text, ranges):
    is_in_range(parse_version(text), ranges)


RULES = (
    VersionRule(when={"model": "RBLN-CA2", "sdk": "==0.11"}, needs={"driver": "==3.2.2"}, reason="r", source="s"),
    VersionRule(when={"model": "RBLN-CA12"}, needs={"driver": "<3.0"}, reason="r", source="s"),
)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"model": "RBLN-CA22", "sdk": "0.11.1", "driver": "3.0.0"}, "driver 3.0.0 with model RBLN-CA22, sdk 0.11.1"),
        ({"model": "RBLN-CA22", "sdk": "0.11.1", "driver": "3.2.2"}, ""),
        ({"model": "RBLN-CA22", "sdk": "", "driver": "3.0.0"}, ""),  # a rule about what is unknown does not speak
        ({"model": "RBLN-CA22", "sdk": "0.11.1", "driver": ""}, ""),
        ({"model": "RBLN-CA22", "sdk": "0.11.1"}, ""),
        ({"model": "RBLN-CA12", "driver": "3.0.0"}, "driver 3.0.0 with model RBLN-CA12"),
        ({}, ""),
    ],
)
def test_rules_on_versions(facts, said):
    verdict = find_incompatibility(RULES, facts)
    assert verdict.startswith(said)
    assert bool(verdict) == bool(said)


def test_an_engine_may_ask_a_manifest_about_its_own_sdk():
    rules = load_manifest(f"madang.chip.{REBELLIONS}").compatibility
    assert "3.2.2" in find_incompatibility(rules, {"model": "RBLN-CA22", "driver": "3.0.0", "sdk": "0.11.2"})
    assert find_incompatibility(rules, {"model": "RBLN-CA22", "driver": "3.0.0", "sdk": "0.10.3"}) == ""


@pytest.mark.parametrize("kind", ["furiosa", "hyperaccel", "mobilint", "nvidia", "rebellions"])
def test_every_term_of_every_manifest_is_well_formed(kind):
    for rule in load_manifest(f"madang.chip.{kind}").compatibility:
        for fact, ranges in [*rule.when.items(), *rule.needs.items()]:
            assert fact in ("model", "driver", "firmware", "sdk")
            bounds = [term.strip("<>= ") for term in ranges.split(",")]
            assert fact == "model" or all(parse_version(bound) for bound in bounds)
