"""HTTP/1.1 requests as a server must read them: the head's grammar and the chunked coding, strictly.

Owns RFC 9110 and RFC 9112 from the receiving side. One regular expression is the whole grammar of a head, so
nothing that a second parser might read differently gets past it: a request whose end is in doubt is refused,
never guessed. Refuses to know sockets, limits in time and what a request means. The gateway's listeners call it.
"""

import re
from typing import NoReturn

import msgspec

from madang.core import Rejected

CHUNK_LINE_BYTES_MAX = 256
"""A chunk's size line with its extensions; more is somebody probing."""
TRAILER_BYTES_MAX = 4096
HEAD_END = b"\r\n\r\n"

# Every character has one way to match, so these never look back far. Possessive quantifiers would say so, but Python
# 3.11.2, which Debian 12 ships, takes some of them wrongly.
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"  # RFC 9110 section 5.6.2
_FIELD_LINE = _TOKEN + rb"+:[\t\x20-\x7e\x80-\xff]*\r\n"  # RFC 9112 section 5: no folding, no space before ':'
_HEAD = re.compile(
    rb"([A-Za-z]{1,20}) ([\x21\x22\x24-\x7e]+) HTTP/([0-9])\.([0-9])\r\n((?:" + _FIELD_LINE + rb")*)\r\n"
)
_FIELD = re.compile(rb"(" + _TOKEN + rb"+):[ \t]*([^\r]*)\r\n")
_BARE_LF = re.compile(rb"(?<!\r)\n|\r[^\n]")
LENGTH_DIGITS_MAX = 15
_LENGTH = re.compile(rb"[0-9]{1,%d}\Z" % LENGTH_DIGITS_MAX)
_LENGTH_FIELD = re.compile(rb"(?i:\r\ncontent-length):[ \t]*([0-9]+)[ \t]*\r\n")
_TARGET = re.compile(rb"(?:(?=/)|https?://[^/?]+)(/[^?]*)?(\?.*)?\Z", re.IGNORECASE)
# RFC 3986 section 3.2.2 and 3.2.3, without names in other scripts: those come percent-encoded or as A-labels.
_HOST = re.compile(
    rb"(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9\-._~!$&'()*+,;=]|%[0-9A-Fa-f][0-9A-Fa-f])*)(?::[0-9]{0,5})?\Z"
)
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,8})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?\Z")
_TRAILER = re.compile(_FIELD_LINE)

# Fields that mean one thing only: a second one is a difference of opinion waiting to happen.
_SINGLE = frozenset(
    (
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"authorization",
        b"content-type",
        b"content-encoding",
        b"expect",
        b"x-madang-pass",
    )
)
# RFC 9110 section 7.6.1: these are for every recipient, so no honest sender nominates them.
_NEVER_NOMINATED = frozenset((b"host", b"content-length", b"transfer-encoding"))


class HttpRejected(Rejected):
    """A request that HTTP itself forbids; `status` is what RFC 9110 says to answer before closing."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


KNOWN_HEAD_BYTES_MAX = 2048
"""Of a head that its connection remembers; the heads of the official clients have about 700."""


class RequestHead(msgspec.Struct, frozen=True, kw_only=True):
    """A request's head after every check.

    Attributes:
        method: as sent; methods are case-sensitive.
        path: of the target, without its query, as sent.
        query: of the target, with its question mark; empty without one.
        fields: lower-case names; repeated fields joined by `, `; those that `Connection` nominates are gone, and so is
            Content-Length, which `content_length` tells.
        content_length: 0 without a body; meaningless when `is_chunked`.
        is_http10: the peer speaks HTTP/1.0: no chunks towards it.
        is_continue_expected: it waits for `100 Continue` before sending its body.
    """

    method: str
    path: str
    fields: dict[bytes, bytes]
    query: str = ""
    content_length: int = 0
    is_chunked: bool = False
    is_http10: bool = False
    is_keep_alive: bool = True
    is_continue_expected: bool = False

    @property
    def has_body(self) -> bool:
        """Whether bytes of a body follow the head."""
        return self.is_chunked or self.content_length > 0


def check_partial_head(data: bytes | bytearray, start: int) -> None:
    """Raise HttpRejected when the unfinished head in `data` already holds a line end that no head may have.

    Args:
        data: what came so far, without an end of head.
        start: bytes before it were checked earlier.
    """
    if _BARE_LF.search(data, max(start - 1, 0)) is not None:
        raise HttpRejected(400, "a line of the request's head does not end in CR LF")


def parse_request_head(head: bytes, headers_max: int) -> RequestHead:
    """Return the head of a request; raises HttpRejected (400, 417, 431, 501 or 505).

    Args:
        head: from the request line to the empty line, inclusive.
        headers_max: how many field lines it may have.
    """
    match = _HEAD.fullmatch(head)
    if match is None:
        _explain(head)
    method, target, major, minor, block = match.groups()
    if major != b"1" or minor not in b"01":
        raise HttpRejected(505, f"HTTP/{major.decode()}.{minor.decode()} is not spoken here; use HTTP/1.1")
    pairs = _FIELD.findall(block)
    if len(pairs) > headers_max:
        raise HttpRejected(431, f"the request has {len(pairs)} header fields; at most {headers_max}")
    fields = _fold(pairs)
    is_http10 = minor == b"0"
    host = fields.get(b"host")
    if host is None:
        if not is_http10:
            raise HttpRejected(400, "the request has no Host field")
    elif _HOST.match(host) is None:
        raise HttpRejected(400, "the Host field is no host and port")
    options = _connection_options(fields)
    length, is_chunked = _framing(fields, is_http10)
    path, query = _path(target)
    expect = fields.get(b"expect")
    if expect is not None and expect.lower() != b"100-continue":
        raise HttpRejected(417, "the only expectation known here is 100-continue")
    return RequestHead(
        method=method.decode(),
        path=path,
        query=query,
        fields=fields,
        content_length=length,
        is_chunked=is_chunked,
        is_http10=is_http10,
        is_keep_alive=b"close" not in options and (not is_http10 or b"keep-alive" in options),
        is_continue_expected=expect is not None and not is_http10,
    )


def _fold(pairs: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    fields: dict[bytes, bytes] = {}
    for name, value in pairs:
        key = name.lower()
        if value[-1:] in (b" ", b"\t"):
            value = value.rstrip(b" \t")
        if key not in fields:
            fields[key] = value
        elif key in _SINGLE:
            raise HttpRejected(400, f"the request has more than one {key.decode()} field")
        else:
            fields[key] += b", " + value
    return fields


def _connection_options(fields: dict[bytes, bytes]) -> tuple[bytes, ...]:
    """Return the options of `Connection` and drop the fields that they nominate from `fields`."""
    value = fields.get(b"connection")
    if value is None:
        return ()
    options = tuple(option.strip(b" \t").lower() for option in value.split(b","))
    if options in ((b"keep-alive",), (b"close",)):
        return options
    for option in options:
        if option in _NEVER_NOMINATED:
            raise HttpRejected(400, f"Connection nominates {option.decode()}, which is for every recipient")
        fields.pop(option, None)
    return options


def _framing(fields: dict[bytes, bytes], is_http10: bool) -> tuple[int, bool]:
    """Return the body's length and whether it is chunked (RFC 9112 section 6.3, its strict reading)."""
    length, coding = fields.pop(b"content-length", None), fields.get(b"transfer-encoding")
    if coding is not None:
        if length is not None:
            raise HttpRejected(400, "the request has both Content-Length and Transfer-Encoding")
        if is_http10:
            raise HttpRejected(400, "HTTP/1.0 has no Transfer-Encoding")
        if coding.lower() != b"chunked":
            raise HttpRejected(400, "the only Transfer-Encoding known here is chunked")
        return 0, True
    if length is None:
        return 0, False
    if not _LENGTH.match(length):
        raise HttpRejected(400, "Content-Length is not a number of bytes")
    return int(length), False


def _path(target: bytes) -> tuple[str, str]:
    match = _TARGET.match(target)
    if match is None:
        raise HttpRejected(400, "the request target is not a path")
    return (match[1] or b"/").decode(), (match[2] or b"").decode()


def _explain(head: bytes) -> NoReturn:
    """Raise HttpRejected saying what of the grammar `head` breaks."""
    if _BARE_LF.search(head):
        raise HttpRejected(400, "a line of the request's head does not end in CR LF")
    request_line, *lines = head[: -len(HEAD_END)].split(b"\r\n")
    if not re.fullmatch(rb"[A-Za-z]{1,20} [\x21\x22\x24-\x7e]+ HTTP/[0-9]\.[0-9]", request_line):
        raise HttpRejected(400, "the request line is malformed: expected METHOD SP target SP HTTP/1.1")
    for line in lines:
        if line[:1] in (b" ", b"\t"):
            raise HttpRejected(400, "a header field is folded over two lines")
        name, colon, _ = line.partition(b":")
        if not colon:
            raise HttpRejected(400, "a header field has no colon")
        if name.rstrip(b" \t") != name:
            raise HttpRejected(400, "a header field has a space before its colon")
        if not _TRAILER.fullmatch(line + b"\r\n"):
            raise HttpRejected(400, "a header field has a character that fields may not have")
    raise HttpRejected(400, "the request's head is malformed")


class HeadReader:
    """Reads the heads of one connection; a head like the one before is recognised instead of parsed.

    Clients that keep a connection send the same head again and again but for the body's length. What was accepted
    once is accepted again when every byte but those digits is the same. A head over KNOWN_HEAD_BYTES_MAX is not kept.
    """

    __slots__ = ("_after", "_before", "_head", "_headers_max", "_raw")

    def __init__(self, headers_max: int) -> None:
        self._headers_max = headers_max
        self._head: RequestHead | None = None
        # The head before, and what stands before and after the digits of its length.
        self._raw = self._before = self._after = b""

    def read(self, data: bytes) -> RequestHead:
        """Return the head in `data`, as parse_request_head does and with its errors."""
        known = self._head
        if known is not None:
            if data == self._raw:
                return known
            before, after = self._before, self._after
            if data.startswith(before) and data.endswith(after):
                digits = data[len(before) : len(data) - len(after)]
                if digits.isdigit() and len(digits) <= LENGTH_DIGITS_MAX:
                    return _with_length(known, int(digits))
        self._head = None
        head = parse_request_head(data, self._headers_max)
        match = None if head.is_chunked or len(data) > KNOWN_HEAD_BYTES_MAX else _LENGTH_FIELD.search(data)
        if match is not None:
            self._raw, self._before, self._after = data, data[: match.start(1)], data[match.end(1) :]
            self._head = head
        return head


def _with_length(head: RequestHead, content_length: int) -> RequestHead:
    return RequestHead(
        method=head.method,
        path=head.path,
        query=head.query,
        fields=head.fields,
        content_length=content_length,
        is_http10=head.is_http10,
        is_keep_alive=head.is_keep_alive,
        is_continue_expected=head.is_continue_expected,
    )


class ChunkedDecoder:
    """Takes the chunked coding off a request body (RFC 9112 section 7.1), one piece of the stream at a time.

    States: `size` (a size line), `data` (inside a chunk), `crlf` (after a chunk), `trailer`, `done`.
    Invariant: what it holds back is shorter than one line.
    """

    def __init__(self, body_bytes_max: int) -> None:
        self._state = "size"
        self._held = b""
        self._left = 0
        self._room = body_bytes_max
        self._body_bytes_max = body_bytes_max
        self._trailer_left = TRAILER_BYTES_MAX

    @property
    def is_done(self) -> bool:
        """Whether the body is complete."""
        return self._state == "done"

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        """Return body pieces in `data` and, once done, the bytes after the body.

        Raises:
            HttpRejected: 400 for a coding that is not exact, 413 when the body grows over its limit.
        """
        pieces: list[bytes] = []
        data, self._held = self._held + data, b""
        at, end = 0, len(data)
        while at < end and self._state != "done":
            if self._state == "data":
                piece = data[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if self._left == 0:
                    self._state = "crlf"
                continue
            stop = data.find(b"\n", at, at + self._line_max())
            if stop < 0:
                if end - at >= self._line_max():
                    if self._state == "crlf":
                        raise HttpRejected(400, "a chunk is longer than its size")
                    raise HttpRejected(
                        431 if self._state == "trailer" else 400, "a line of the chunked body is too long"
                    )
                self._held = data[at:]
                return pieces, b""
            if data[stop - 1 : stop] != b"\r" or stop == at:
                raise HttpRejected(400, "a line of the chunked body does not end in CR LF")
            self._on_line(data[at : stop - 1])
            at = stop + 1
        return pieces, data[at:]

    def _line_max(self) -> int:
        return {"size": CHUNK_LINE_BYTES_MAX, "crlf": 2}.get(self._state, self._trailer_left)

    def _on_line(self, line: bytes) -> None:
        if self._state == "size":
            match = _CHUNK_LINE.match(line)
            if match is None:
                raise HttpRejected(400, "a chunk's size is not a hexadecimal number")
            self._left = int(match[1], 16)
            self._room -= self._left
            if self._room < 0:
                raise HttpRejected(413, f"the request body is over {self._body_bytes_max} bytes")
            self._state = "data" if self._left else "trailer"
        elif self._state == "crlf":
            self._state = "size"  # the line is empty: more would have been too long
        else:
            self._on_trailer(line)

    def _on_trailer(self, line: bytes) -> None:
        """Check a trailer field and forget it: nothing in this API is told by trailers."""
        if not line:
            self._state = "done"
            return
        if not _TRAILER.fullmatch(line + b"\r\n"):
            raise HttpRejected(400, "a trailer field is malformed")
        if line.partition(b":")[0].lower() in _NEVER_NOMINATED:
            raise HttpRejected(400, "a trailer field frames or routes the request, which only its head may")
        self._trailer_left -= len(line) + 2


def content_of_chunk(data: bytes) -> bytes | None:
    """Return the content if `data` is exactly one chunk (RFC 9112 section 7.1) of at most 64 KiB, else None.

    Only in the form that most write: the size in lower case without zeros in front, no extension, not the last chunk.
    Whoever asks must know that a chunk begins here.
    """
    size_end = data.find(b"\r\n", 1, 6)
    size = len(data) - size_end - 4
    if size_end < 0 or size <= 0 or not data.endswith(b"\r\n") or data[:size_end] != b"%x" % size:
        return None
    return data[size_end + 2 : -2]
