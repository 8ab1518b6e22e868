"""The strict head parser and the chunked decoder, on any bytes and any cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.wire.http1 import (
    CHUNK_LINE_BYTES_MAX,
    HEAD_END,
    TRAILER_BYTES_MAX,
    ChunkedDecoder,
    HeadReader,
    HttpRejected,
    check_partial_head,
    parse_request_head,
)


def head(*lines: bytes, request: bytes = b"POST /v1/x HTTP/1.1") -> bytes:
    return b"\r\n".join([request, b"host: a", *lines, b"", b""])


def test_a_whole_head() -> None:
    found = parse_request_head(
        head(b"Content-Length: 12", b"X-A: 1", b"x-a:2", b"Connection: Close", b"Expect: 100-Continue"), 10
    )
    assert (found.method, found.path, found.content_length, found.is_chunked) == ("POST", "/v1/x", 12, False)
    assert found.fields[b"x-a"] == b"1, 2"
    assert (found.is_keep_alive, found.is_continue_expected, found.has_body) == (False, True, True)


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/", "/"),
        (b"/a/b?c=d?e", "/a/b"),
        (b"http://host:80/a?b", "/a"),
        (b"HTTPS://host", "/"),
        (b"http://host?x", "/"),
        (b"//a", "//a"),
    ],
)
def test_targets(target: bytes, path: str) -> None:
    assert parse_request_head(head(request=b"GET %b HTTP/1.1" % target), 5).path == path


@pytest.mark.parametrize("target", [b"*", b"a", b"host:80", b"ftp://h/a"])
def test_targets_of_other_forms(target: bytes) -> None:
    with pytest.raises(HttpRejected):
        parse_request_head(head(request=b"OPTIONS %b HTTP/1.1" % target), 5)


@pytest.mark.parametrize(
    ("lines", "request_line", "is_keep_alive"),
    [
        ([], b"GET / HTTP/1.1", True),
        ([b"connection: close"], b"GET / HTTP/1.1", False),
        ([b"connection: keep-alive, Close"], b"GET / HTTP/1.1", False),
        ([], b"GET / HTTP/1.0", False),
        ([b"connection: Keep-Alive"], b"GET / HTTP/1.0", True),
    ],
)
def test_keep_alive(lines: list[bytes], request_line: bytes, is_keep_alive: bool) -> None:
    assert parse_request_head(head(*lines, request=request_line), 5).is_keep_alive is is_keep_alive


def test_too_many_fields() -> None:
    assert parse_request_head(head(b"a: 1"), 2).fields[b"a"] == b"1"
    with pytest.raises(HttpRejected) as caught:
        parse_request_head(head(b"a: 1", b"b: 2"), 2)
    assert caught.value.status == 431


@given(st.binary(max_size=300))
def test_any_bytes_are_parsed_or_rejected(data: bytes) -> None:
    try:
        found = parse_request_head(data + HEAD_END, 50)
    except HttpRejected:
        return
    assert b"\n" not in data.replace(b"\r\n", b""), "no bare LF gets through"
    assert found.path.startswith("/")


names = st.text("abcXYZ019-_!#", min_size=1, max_size=12).map(str.encode)
values = st.binary(max_size=20).filter(lambda value: all(byte == 9 or 32 <= byte != 127 for byte in value))


@given(st.lists(st.tuples(names, values), max_size=8))
def test_every_legal_field_arrives(pairs: list[tuple[bytes, bytes]]) -> None:
    found = parse_request_head(head(*(b"x" + name + b":" + value for name, value in pairs)), 50)
    expected: dict[bytes, list[bytes]] = {}
    for name, value in pairs:
        expected.setdefault(b"x" + name.lower(), []).append(value.strip(b" \t"))
    for name, parts in expected.items():
        assert found.fields[name] == b", ".join(parts)


@given(st.binary(max_size=60), st.integers(0, 60))
def test_a_partial_head_is_rejected_only_for_what_no_head_may_have(data: bytes, start: int) -> None:
    start = min(start, len(data))
    tail = data[max(start - 1, 0) :]
    is_bad = any(
        (tail[i : i + 1] == b"\n" and data[len(data) - len(tail) + i - 1 : len(data) - len(tail) + i] != b"\r")
        or (tail[i : i + 1] == b"\r" and i + 1 < len(tail) and tail[i + 1 : i + 2] != b"\n")
        for i in range(len(tail))
    )
    try:
        check_partial_head(data, start)
    except HttpRejected:
        assert is_bad
    else:
        assert not is_bad


def decode(data: bytes, cuts: list[int], limit: int = 10_000) -> tuple[bytes, bytes, bool]:
    decoder = ChunkedDecoder(limit)
    body, rest, last = b"", b"", 0
    for cut in [*sorted(min(cut, len(data)) for cut in cuts), len(data)]:
        piece, last = data[last:cut], cut
        if decoder.is_done:
            rest += piece
            continue
        pieces, left = decoder.feed(piece)
        body += b"".join(pieces)
        rest += left
    return body, rest, decoder.is_done


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=8),
    st.lists(st.integers(0, 400), max_size=10),
    st.binary(max_size=20),
    st.sampled_from([b"", b";a=1", b' ; b="c"']),
    st.sampled_from([b"", b"x-sum: 1\r\n", b"a: 1\r\nb: 2\r\n"]),
)
def test_chunks_arrive_whole_however_they_are_cut(
    chunks: list[bytes], cuts: list[int], after: bytes, extension: bytes, trailer: bytes
) -> None:
    coded = b"".join(b"%x%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk in chunks)
    data = coded + b"0\r\n" + trailer + b"\r\n" + after
    assert decode(data, cuts) == (b"".join(chunks), after, True)


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=6))
def test_any_bytes_decode_the_same_however_they_are_cut(data: bytes, cuts: list[int]) -> None:
    def outcome(pieces: list[int]) -> object:
        try:
            return decode(data, pieces)
        except HttpRejected as error:
            return error.status

    assert outcome([]) == outcome(cuts)


def test_limits_of_the_coding() -> None:
    for data, status in (
        (b"a\r\n" + b"x" * 10 + b"\r\n1\r\n", 413),
        (b"5;" + b"a" * CHUNK_LINE_BYTES_MAX, 400),
        (b"0\r\n" + b"a: 1\r\n" * TRAILER_BYTES_MAX, 431),
        (b"0\r\na:" + b"1" * TRAILER_BYTES_MAX, 431),
    ):
        with pytest.raises(HttpRejected) as caught:
            decode(data, [], limit=10)
        assert caught.value.status == status, data[:20]


HEAD = b"POST /v1/x?%b HTTP/1.1\r\nHost: a\r\nContent-Length: %b\r\nAuthorization: Bearer %b\r\n\r\n"


def test_a_head_like_the_one_before_is_recognised() -> None:
    reader = HeadReader(100)
    first = reader.read(HEAD % (b"q", b"12", b"k"))
    assert reader.read(HEAD % (b"q", b"12", b"k")) is first
    again = reader.read(HEAD % (b"q", b"345678", b"k"))
    assert again == parse_request_head(HEAD % (b"q", b"345678", b"k"), 100)
    assert again.fields is first.fields, "it was not parsed again"
    other = reader.read(HEAD % (b"q", b"12", b"other"))
    assert other.fields[b"authorization"] == b"Bearer other"


@given(
    heads=st.lists(
        st.tuples(
            st.sampled_from([b"", b"q", b"q=1"]),
            st.sampled_from([b"1", b"12", b"0012", b"", b"1x", b"1, 1", b"9" * 16, b"\xb2", b"12\r\nX: y", b"+1"]),
            st.sampled_from([b"k", b"k2", b"k\r\nContent-Length: 3", b"k\r\nTransfer-Encoding: chunked"]),
        ),
        max_size=6,
    )
)
def test_recognising_never_changes_the_verdict(heads: list[tuple[bytes, bytes, bytes]]) -> None:
    reader = HeadReader(100)
    for parts in heads:
        data = HEAD % parts
        try:
            expected: object = parse_request_head(data, 100)
        except HttpRejected as error:
            expected = error.status, str(error)
        try:
            found: object = reader.read(data)
        except HttpRejected as error:
            found = error.status, str(error)
        assert found == expected
