"""The grammar of `traceparent`, from the W3C recommendation's own words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.wire.trace_context import TraceParent, parse_traceparent

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_the_example() -> None:
    parent = parse_traceparent(f"00-{TRACE}-{SPAN}-01".encode())
    assert parent == TraceParent(int(TRACE, 16), int(SPAN, 16), True)
    assert parent is not None
    assert parent.encode() == f"00-{TRACE}-{SPAN}-01".encode()


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (f"ff-{TRACE}-{SPAN}-01", "version ff is forbidden"),
        (f"00-{'0' * 32}-{SPAN}-01", "a trace id of zeros is invalid"),
        (f"00-{TRACE}-{'0' * 16}-01", "a parent id of zeros is invalid"),
        (f"00-{TRACE.upper()}-{SPAN}-01", "ids are lower case"),
        (f"00-{TRACE[1:]}-{SPAN}-01", "32 digits"),
        (f"00-{TRACE}-{SPAN}-1", "two digits of flags"),
        (f"00-{TRACE}-{SPAN}-01-more", "version 00 ends after the flags"),
        (f"00-{TRACE}-{SPAN}-01\n", "nothing after the flags"),
        (f"01-{TRACE}-{SPAN}-01more", "a later version goes on after a dash"),
        ("", "empty"),
    ],
)
def test_what_is_none(value: str, why: str) -> None:
    assert parse_traceparent(value.encode()) is None, why


def test_a_later_version_is_read_as_far_as_it_is_known() -> None:
    assert parse_traceparent(f"cc-{TRACE}-{SPAN}-09-what-the-future-knows".encode()) == TraceParent(
        int(TRACE, 16), int(SPAN, 16), True
    )
    assert parse_traceparent(None) is None


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.booleans())
def test_there_and_back(trace_id: int, span_id: int, is_sampled: bool) -> None:
    parent = TraceParent(trace_id, span_id, is_sampled)
    assert parse_traceparent(parent.encode()) == parent


@given(st.binary(max_size=80))
def test_any_bytes_are_a_parent_or_none(value: bytes) -> None:
    parent = parse_traceparent(value)
    assert parent is None or value[3:].startswith(b"%032x" % parent.trace_id)
