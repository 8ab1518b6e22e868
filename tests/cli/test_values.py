"""Texts of the command line as values, and values as cells."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.cli.terminal import render, render_bytes, render_duration, render_residency
from madang.cli.values import parse_duration_s, parse_instant_s, parse_residency, render_instant
from madang.core import Rejected
from madang.model import ResidencyScope


@given(st.sampled_from(list(ResidencyScope)), st.lists(st.from_regex(r"\A[a-z0-9_]{1,8}\Z"), min_size=1, max_size=4))
def test_what_is_shown_of_a_residency_is_what_is_taken(scope, places):
    if scope is ResidencyScope.SITE:
        places = places[:1]
    text = "any" if scope is ResidencyScope.ANY else f"{scope}:{','.join(places)}"
    found = parse_residency(text, is_transit_granted=False)
    assert render_residency({"scope": found.scope, "places": list(found.places)}) == text


@pytest.mark.parametrize(("text", "seconds"), [("45s", 45), ("30m", 1800), ("12h", 43200), ("90d", 7776000)])
def test_durations(text, seconds):
    assert parse_duration_s(text) == seconds
    assert parse_instant_s(text, 1e9, is_past=True) == 1e9 - seconds
    assert parse_instant_s(text, 1e9, is_past=False) == 1e9 + seconds


@pytest.mark.parametrize("text", ["", "5", "h", "-5h", "1.5h", "5 h", "9999999999s"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(Rejected, match="such as 12h"):
        parse_duration_s(text)


def test_dates_without_a_zone_are_utc():
    assert parse_instant_s("2030-01-01", 0, is_past=True) == 1893456000.0
    assert parse_instant_s("2030-01-01T09:00:00+09:00", 0, is_past=True) == 1893456000.0
    assert render_instant(1893456000.0) == "2030-01-01 00:00:00Z"
    assert render_instant(None) == "never"


def test_cells():
    assert [render(value) for value in (None, "", True, False, 1.25, ["a", 1], [], "x", 0)] == [
        "-",
        "-",
        "yes",
        "no",
        "1.2",
        "a, 1",
        "-",
        "x",
        "0",
    ]
    assert [render_bytes(value) for value in (None, 5, 491_400_064, 3 * 2**30)] == ["-", "5 B", "469 MiB", "3.0 GiB"]
    shown = [render_duration(value) for value in (None, 0.04, 59, 61, 3700, 90000, -1)]
    assert shown == ["-", "0.0s", "59s", "1m1s", "1h1m", "1d1h", "-"]
