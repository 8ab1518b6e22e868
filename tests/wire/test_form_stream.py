"""Forms that are read as they come: the same events whatever the pieces, and nothing held back but a boundary."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.core import Rejected
from madang.wire.form_stream import HEAD_BYTES_MAX, PARTS_MAX, FormSplitter, PartBegun, PartData, PartEnded

TYPE = b"multipart/form-data; boundary=b0undary"


def form(*parts: tuple[bytes, bytes], end: bytes = b"--\r\n") -> bytes:
    framed = (b"--b0undary\r\ncontent-disposition: form-data; " + head + b"\r\n\r\n" + data for head, data in parts)
    return b"\r\n".join((*framed, b"--b0undary" + end))


def read(body: bytes, cuts: list[int] | None = None) -> list[tuple[PartBegun, bytes]]:
    splitter = FormSplitter(TYPE)
    places = sorted({0, len(body), *(cut % (len(body) + 1) for cut in cuts or [])})
    events = []
    for start, stop in itertools.pairwise(places):
        events += splitter.feed(body[start:stop])
    assert splitter.is_done
    parts: list[tuple[PartBegun, bytes]] = []
    for event in events:
        if isinstance(event, PartBegun):
            parts.append((event, b""))
        elif isinstance(event, PartData):
            parts[-1] = (parts[-1][0], parts[-1][1] + event.data)
    assert sum(isinstance(event, PartEnded) for event in events) == len(parts)
    return parts


@given(
    st.lists(
        st.binary(max_size=60) | st.sampled_from([b"", b"\r\n", b"\r\n--b0undar", b"\r\n--b0undarX--\r\n"]), max_size=4
    ),
    st.lists(st.integers(0, 10_000), max_size=8),
)
def test_the_pieces_do_not_matter(contents: list[bytes], cuts: list[int]) -> None:
    contents = [content for content in contents if b"\r\n--b0undary" not in b"\r\n" + content]
    body = form(*((b'name="f%d"; filename="a.jsonl"' % number, data) for number, data in enumerate(contents)))
    found = read(body, cuts)
    assert [data for _, data in found] == contents
    assert [head.name for head, _ in found] == [f"f{number}" for number in range(len(contents))]


@given(st.binary(max_size=300))
def test_no_bytes_break_it(data: bytes) -> None:
    splitter = FormSplitter(TYPE)
    try:
        splitter.feed(data)
        splitter.feed(b"--b0undary\r\n" + data)
    except Rejected:
        pass


def test_names_are_unquoted_and_plain_fields_have_no_file() -> None:
    (first, _), (second, data) = read(
        form(
            (rb'name="file"; filename="\"a\" \xec\x84\xb8.jsonl"'.replace(rb"\xec\x84\xb8", "세".encode()), b"x"),
            (b'name="purpose"', b"batch"),
        )
    )
    assert (first.name, first.filename) == ("file", '"a" 세.jsonl')
    assert (second.filename, data) == (None, b"batch")


def test_a_large_part_is_not_held_back() -> None:
    splitter = FormSplitter(TYPE)
    splitter.feed(b'--b0undary\r\ncontent-disposition: form-data; name="file"\r\n\r\n')
    events = splitter.feed(b"x" * 1_000_000)
    passed_on = sum(len(event.data) for event in events if isinstance(event, PartData))
    assert passed_on > 1_000_000 - 64


@pytest.mark.parametrize(
    "body",
    [
        b"preamble\r\n" + form((b'name="a"', b"")),
        form((b'name=""', b"")),
        b"--b0undary\r\nx\r\n\r\n",
        b'--b0undary\r\ncontent-disposition: form-data; name="a"\r\ncontent-transfer-encoding: base64\r\n\r\nx',
        b"--b0undaryX\r\n",
        b"--b0undary\r\n" + b"x" * (HEAD_BYTES_MAX + 10),
        form(*[(b'name="a"', b"")] * (PARTS_MAX + 1)),
    ],
)
def test_what_two_readers_could_take_differently_is_refused(body: bytes) -> None:
    with pytest.raises(Rejected):
        FormSplitter(TYPE).feed(body)


@pytest.mark.parametrize(
    "content_type", [b"", b"application/json", b"multipart/form-data", b"multipart/form-data; boundary="]
)
def test_a_body_that_is_no_form_is_refused(content_type: bytes) -> None:
    with pytest.raises(Rejected):
        FormSplitter(content_type)
