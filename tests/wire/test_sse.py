"""Events out of a stream, however it is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.core import Rejected
from madang.wire.sse import EVENT_BYTES_MAX, SseSplitter, encode_event

payloads = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=30).map(str.encode)


@given(st.lists(payloads, max_size=8), st.lists(st.integers(0, 300), max_size=8), st.booleans())
def test_payloads_arrive_whole(sent: list[bytes], cuts: list[int], has_cr: bool) -> None:
    stream = b"".join(map(encode_event, sent))
    if has_cr:
        stream = stream.replace(b"\n", b"\r\n")
    splitter = SseSplitter()
    got: list[bytes] = []
    last = 0
    for cut in [*sorted(min(cut, len(stream)) for cut in cuts), len(stream)]:
        got += splitter.feed(stream[last:cut])
        last = cut
    assert got == sent
    assert not splitter.has_rest


def test_other_fields() -> None:
    splitter = SseSplitter()
    assert splitter.feed(b": comment\n\nevent: x\ndata: a\ndata:b\nid: 1\n\nretry: 5\n\nerror: {}\n\n") == [
        b"a\nb",
        b"{}",
    ]
    assert splitter.feed(b"data: half") == []
    assert splitter.has_rest


def test_an_event_without_end() -> None:
    splitter = SseSplitter()
    splitter.feed(b"data: " + b"x" * (EVENT_BYTES_MAX - 6))
    with pytest.raises(Rejected):
        splitter.feed(b"x")
