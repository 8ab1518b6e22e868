"""What RFC 9110 and RFC 9112 say a server must do with a request, clause by clause.

Written from the documents. Each row: the clause, what is sent, the statuses of the final answers in order, and whether
the connection goes on. `GOOD` stands behind most requests: it shows that the next message begins where it should.
"""

import re
from typing import NamedTuple

import pytest
from tests.gateway.wire_bench import read_ours

HOST = b"Host: a.example\r\n"
GOOD = b"GET /next HTTP/1.1\r\n" + HOST + b"\r\n"
POST = b"POST / HTTP/1.1\r\n" + HOST
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


class Row(NamedTuple):
    clause: str
    sent: bytes
    statuses: list[int]
    is_open: bool


def goes_on(clause: str, sent: bytes) -> Row:
    return Row(clause, sent + GOOD, [200, 200], True)


def refused(clause: str, sent: bytes, status: int = 400) -> Row:
    """Where the framing or the head is in doubt, nothing behind it is read (9112 section 6.3 and 9.6)."""
    return Row(clause, sent + GOOD, [status], False)


def closes(clause: str, sent: bytes) -> Row:
    return Row(clause, sent + GOOD, [200], False)


ROWS = [
    # 9112 2.2: message parsing
    goes_on("9112 2.2 an empty line before the request line is ignored", b"\r\n" + GOOD),
    refused("9112 2.2 a bare CR is not a line end", b"GET / HTTP/1.1\rHost: a\r\n\r\n"),
    refused("9112 2.2 a bare LF ends nothing here", b"GET / HTTP/1.1\nHost: a\r\n\r\n"),
    refused("9112 2.2 white space between the start line and the first field", b"GET / HTTP/1.1\r\n Host: a\r\n\r\n"),
    # 9112 2.3 and 9110 2.5: versions
    refused("9112 2.3 the version's name is case-sensitive", b"GET / http/1.1\r\n" + HOST + b"\r\n"),
    refused("9112 2.3 a version has one digit on each side", b"GET / HTTP/1.10\r\n" + HOST + b"\r\n"),
    refused("9110 15.6.6 a major version that is not spoken", b"GET / HTTP/2.0\r\n" + HOST + b"\r\n", 505),
    # 9112 3: the request line
    goes_on("9112 3.1 a method that is not known is still a method", b"BREW / HTTP/1.1\r\n" + HOST + b"\r\n"),
    refused("9112 3 two spaces", b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n"),
    refused("9112 3 a tab instead of the space", b"GET\t/ HTTP/1.1\r\n" + HOST + b"\r\n"),
    refused("9112 3 a space in the target", b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n"),
    refused("9112 3 trailing space", b"GET / HTTP/1.1 \r\n" + HOST + b"\r\n"),
    refused("9110 9.1 a method is a token", b"G(T / HTTP/1.1\r\n" + HOST + b"\r\n"),
    goes_on("9112 3.2.1 an empty path in absolute form is /", b"GET http://a.example HTTP/1.1\r\n" + HOST + b"\r\n"),
    goes_on("9112 3.2.2 absolute form must be taken", b"GET http://b.example/x?y HTTP/1.1\r\n" + HOST + b"\r\n"),
    refused("9112 3.2.1 a path begins with /", b"GET x HTTP/1.1\r\n" + HOST + b"\r\n"),
    refused("9112 3.2.1 a query alone is no path", b"GET ?x HTTP/1.1\r\n" + HOST + b"\r\n"),
    refused("9110 4.2 a fragment is never sent", b"GET /x#y HTTP/1.1\r\n" + HOST + b"\r\n"),
    refused("9112 3.2.3 authority form is for proxies", b"CONNECT a.example:443 HTTP/1.1\r\n" + HOST + b"\r\n"),
    # 9112 3.2: Host
    refused("9112 3.2 no Host", b"GET / HTTP/1.1\r\n\r\n"),
    refused("9112 3.2 two Hosts", b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n"),
    refused("9112 3.2 an invalid Host", b"GET / HTTP/1.1\r\nHost: a.example/path\r\n\r\n"),
    refused("9112 3.2 a Host with a space", b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n"),
    refused("9112 3.2 a Host with a user", b"GET / HTTP/1.1\r\nHost: me@a.example\r\n\r\n"),
    refused("9112 3.2 a port that is none", b"GET / HTTP/1.1\r\nHost: a.example:http\r\n\r\n"),
    goes_on("9112 3.2 an empty Host is a Host", b"GET / HTTP/1.1\r\nHost:\r\n\r\n"),
    goes_on("3986 3.2.2 an address in brackets", b"GET / HTTP/1.1\r\nHost: [2001:db8::1]:8080\r\n\r\n"),
    closes("9112 3.2 HTTP/1.0 needs no Host", b"GET / HTTP/1.0\r\n\r\n"),
    # 9112 5 and 9110 5: fields
    refused("9112 5.1 space before the colon", POST + b"Content-Length : 0\r\n\r\n"),
    refused("9112 5.2 folding", POST + b"X: a\r\n b\r\nContent-Length: 0\r\n\r\n"),
    goes_on("9110 5.5 octets above 127 are opaque, not errors", POST + b"X: \xea\xb0\x80\r\nContent-Length: 0\r\n\r\n"),
    refused("9110 5.5 NUL", POST + b"X: a\x00b\r\n\r\n"),
    refused("9110 5.5 DEL and other controls", POST + b"X: a\x7fb\r\n\r\n"),
    refused("9110 5.1 a field's name is a token", POST + b"X(Y: a\r\n\r\n"),
    goes_on("9110 5.1 names are case-insensitive", POST + b"cOnTeNt-LeNgTh: 2\r\n\r\nab"),
    goes_on("9112 5.1 white space around a value is no part of it", POST + b"Content-Length:\t 2 \t\r\n\r\nab"),
    goes_on("9110 5.3 a list field may come twice", POST + b"Accept: a\r\nAccept: b\r\nContent-Length: 0\r\n\r\n"),
    # 9112 6: bodies
    goes_on("9112 6 no framing means no body", POST + b"\r\n"),
    goes_on(
        "9110 9.3.1 a body of GET is read, so that it is not taken for a request",
        GOOD[:-2] + b"Content-Length: 40\r\n\r\n" + GOOD[:40],
    ),
    refused("9112 6.1 both framings", POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    refused(
        "9112 6.1 both framings, the other way round",
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    ),
    refused("9112 6.1 chunked is not last", POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n"),
    refused("9112 6.1 chunked twice", POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
    refused("9112 6.1 a coding that is not known", POST + b"Transfer-Encoding: x\r\n\r\n"),
    refused("9112 6.1 an empty coding", POST + b"Transfer-Encoding:\r\n\r\n"),
    refused("9112 6.1 codings and HTTP/1.0", b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    goes_on("9112 7 codings' names are case-insensitive", POST + b"Transfer-Encoding: ChUnKeD\r\n\r\n0\r\n\r\n"),
    *(
        refused(f"9112 6.3 a length of {text!r}", POST + b"Content-Length: " + text + b"\r\n\r\nabcde")
        for text in (b"", b"-1", b"+5", b"0x5", b"5.", b"5 5", b"5,5", b"5, 5", b"\xef\xbc\x95", b"1e1", b"9" * 20)
    ),
    refused("9112 6.3 lengths that differ", POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef"),
    refused(
        "9112 6.3 lengths that agree may be refused", POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nabcde"
    ),
    goes_on("9112 6.3 leading zeros are digits", POST + b"Content-Length: 005\r\n\r\nabcde"),
    # 9112 7.1: chunks
    goes_on("9112 7.1 sizes in either case", CHUNKED + b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n"),
    goes_on("9112 7.1 leading zeros, and a last chunk of several", CHUNKED + b"0005\r\nabcde\r\n000\r\n\r\n"),
    goes_on(
        "9112 7.1.1 extensions that are not known are ignored", CHUNKED + b'5;a;b=c;d="e;f"\r\nabcde\r\n0;x\r\n\r\n'
    ),
    goes_on("9112 7.1.1 bad white space around an extension is removed", CHUNKED + b"5 ; a\r\nabcde\r\n0\r\n\r\n"),
    goes_on("9112 7.1.2 trailers are read and may be dropped", CHUNKED + b"0\r\nX: y\r\nZ: w\r\n\r\n"),
    refused("9110 6.5.1 framing is no trailer", CHUNKED + b"0\r\nContent-Length: 5\r\n\r\n"),
    *(
        refused(f"9112 7.1 a chunk of {text!r}", CHUNKED + text)
        for text in (
            b"5 \r\nabcde\r\n0\r\n\r\n",
            b" 5\r\nabcde\r\n0\r\n\r\n",
            b"5\nabcde\r\n0\r\n\r\n",
            b"0x5\r\nabcde\r\n0\r\n\r\n",
            b"+5\r\nabcde\r\n0\r\n\r\n",
            b"-5\r\nabcde\r\n0\r\n\r\n",
            b"\r\nabcde\r\n0\r\n\r\n",
            b"g\r\nabcde\r\n0\r\n\r\n",
            b"4\r\nabcde\r\n0\r\n\r\n",
            b"5\r\nabcde0\r\n\r\n",
            b"5\r\nabcde\n0\r\n\r\n",
            b"100000000000000005\r\nabcde\r\n0\r\n\r\n",
            b"5;a\nb\r\nabcde\r\n0\r\n\r\n",
            b"0\r\nX y\r\n\r\n",
        )
    ),
    # 9112 9: connections
    goes_on("9112 9.3 HTTP/1.1 goes on by default", GOOD),
    closes("9112 9.6 close", GOOD[:-2] + b"Connection: close\r\n\r\n"),
    closes("9110 7.6.1 options are a list without case", GOOD[:-2] + b"Connection: X-A , CLOSE\r\n\r\n"),
    closes("9112 9.3 HTTP/1.0 ends by default", b"GET / HTTP/1.0\r\n" + HOST + b"\r\n"),
    goes_on("9112 9.3 HTTP/1.0 goes on when asked", b"GET / HTTP/1.0\r\n" + HOST + b"Connection: keep-alive\r\n\r\n"),
    closes("9112 9.3 close wins over keep-alive", GOOD[:-2] + b"Connection: keep-alive, close\r\n\r\n"),
    refused(
        "9110 7.6.1 an end-to-end field is not nominated",
        POST + b"Connection: Content-Length\r\nContent-Length: 5\r\n\r\nabcde",
    ),
    goes_on("9110 7.8 an upgrade may be ignored", GOOD[:-2] + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n"),
    # 9110 10.1.1: expectations
    goes_on("9110 10.1.1 100-continue without case", POST + b"Expect: 100-Continue\r\nContent-Length: 2\r\n\r\nab"),
    refused("9110 10.1.1 any other expectation", POST + b"Expect: x\r\nContent-Length: 2\r\n\r\nab", 417),
    closes(
        "9110 10.1.1 HTTP/1.0 has no 100-continue",
        b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nab",
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.clause)
def test_a_clause_holds_whole_and_a_byte_at_a_time(row: Row) -> None:
    for pieces in ([row.sent], [bytes([byte]) for byte in row.sent]):
        ours = read_ours(pieces)
        assert (ours.statuses, ours.is_open) == (row.statuses, row.is_open), ours.refusal


def test_no_two_rows_are_one() -> None:
    assert len({row.clause for row in ROWS}) == len({row.sent for row in ROWS}) == len(ROWS)


def heads(sent: bytes) -> list[bytes]:
    """The heads of what is answered to `sent`."""
    return re.findall(rb"HTTP/1\.1 .*?(?=\r\n\r\n)", read_ours([sent]).raw, re.DOTALL)


def test_every_final_answer_has_a_date_a_length_and_no_coding() -> None:
    """9110 sections 6.6.1 and 8.6, 9112 section 6.1; errors included."""
    answers = heads(GOOD + POST + b"Content-Length: x\r\n\r\n")
    assert len(answers) == 2
    for head in answers:
        lines = [line.lower() for line in head.split(b"\r\n")]
        assert sum(line.startswith(b"date: ") and line.endswith(b" gmt") for line in lines) == 1
        assert sum(line.startswith(b"content-length: ") for line in lines) == 1
        assert not any(line.startswith(b"transfer-encoding") for line in lines)


def test_100_comes_only_when_a_body_is_awaited_and_only_to_who_knows_it() -> None:
    """9110 section 10.1.1: not when the body is here already, not to HTTP/1.0, not without a body."""
    asked = POST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    assert heads(asked) == [b"HTTP/1.1 100 Continue"]
    assert [head[9:12] for head in heads(asked + b"ab")] == [b"200"]
    assert heads(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n") == []
    assert [head[9:12] for head in heads(POST + b"Expect: 100-continue\r\n\r\n")] == [b"200"]


def test_an_answer_to_head_says_the_length_and_has_no_content() -> None:
    """9110 section 9.3.2."""
    ours = read_ours([b"HEAD / HTTP/1.1\r\n" + HOST + b"\r\n" + GOOD])
    first, _, rest = ours.raw.partition(b"\r\n\r\n")
    assert b"content-length: 2" in first.lower()
    assert rest.startswith(b"HTTP/1.1 200")
