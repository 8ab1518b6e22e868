"""A server connection without a socket, and a second reading of the same bytes by h11.

`read_ours` feeds bytes to the gateway's own connection in any pieces and tells what requests it took and what it
answered. `read_h11` tells what h11 makes of the same bytes. `compare` says where they differ in a way that matters:
what we take, h11 must have read as the same requests; what h11 takes and we refuse needs a reason that is stated here.
"""

import itertools
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import h11

from madang.gateway.body_pool import BodyPool
from madang.gateway.exchange import Exchange
from madang.gateway.http1 import ServerConnection
from madang.gateway.port import Limits, Port

LIMITS = Limits(
    head_bytes_max=8192,
    headers_max=40,
    body_bytes_max=65_536,
    head_timeout_s=1.0,
    body_timeout_s=1.0,
    idle_timeout_s=1.0,
    write_timeout_s=1.0,
    connections_max=8,
)

STRICTER = {
    "a line of the request's head does not end in CR LF": "RFC 9112 2.2 lets a lone LF pass; others read it otherwise",
    "the request line is malformed": "RFC 9112 3: one SP between its parts; h11 takes more in the target",
    "a header field is folded over two lines": "RFC 9112 5.2: refuse obs-fold",
    "a header field has a character that fields may not have": "RFC 9110 5.5: no control characters",
    "the request target is not a path": "RFC 9112 3.2: a server that is no proxy takes a path or an absolute URI",
    "the request has both Content-Length and Transfer-Encoding": "RFC 9112 6.1: may be refused; smuggling",
    "HTTP/1.0 has no Transfer-Encoding": "RFC 9112 6.1: faulty framing",
    "the only Transfer-Encoding known here is chunked": "RFC 9112 6.1",
    "Content-Length is not a number of bytes": "RFC 9112 6.3: lists of equal lengths may be refused; and 15 digits",
    "the request has more than one": "RFC 9110 5.3: a single-valued field that comes twice",
    "Connection nominates": "RFC 9110 7.6.1: a field for every recipient",
    "the only expectation known here": "RFC 9110 10.1.1: 417",
    "the request has no Host field": "RFC 9112 3.2",
    "the Host field is no host and port": "RFC 9112 3.2: 400 for an invalid one",
    "the request begins with empty lines": "RFC 9112 2.2: one may be ignored, not any number",
    "is not spoken here": "RFC 9110 2.5: 505",
    "the request's head is over": "431",
    "header fields; at most": "431",
    "the request body is over": "413",
    "a line of the chunked body": "RFC 9112 7.1: CR LF; and a bound on lines",
    "a chunk's size is not a hexadecimal number": "RFC 9112 7.1: no space before CR LF, at most 8 digits",
    "a chunk is longer than its size": "RFC 9112 7.1",
    "a trailer field is malformed": "RFC 9112 7.1.2",
    "a trailer field frames or routes": "RFC 9110 6.5.1: no such field in trailers",
}
"""Reasons for refusing what h11 takes, by a part of the message."""


LOOSER = re.compile(r"refused: illegal chunk header: bytearray\(b'[0-9A-Fa-f]+(?: |\\t)+;")
"""What h11 refuses and we must take: white space before a chunk's extension (RFC 9112 7.1.1, BWS)."""


class Seen(NamedTuple):
    """A request as somebody read it; `fields` in lower case, folded, without the length and nominated ones."""

    method: str
    target: str
    fields: dict[bytes, bytes]
    body: bytes
    is_last: bool


class Ours(NamedTuple):
    """What our connection did: the requests it took, its answers in order, and the message of a refusal."""

    taken: list[Seen]
    statuses: list[int]
    refusal: str
    is_open: bool
    raw: bytes


class FakeLoop:
    """A loop on which no time passes."""

    def time(self) -> float:
        return 0.0

    def call_at(self, when: float, *_: object) -> "FakeTimer":
        return FakeTimer(when)

    call_later = call_at


class FakeTimer:
    def __init__(self, when: float) -> None:
        self._when = when

    def when(self) -> float:
        return self._when

    def cancel(self) -> None:
        pass


class FakeClock:
    def wall_s(self) -> float:
        return 1_700_000_000.0

    def monotonic_ns(self) -> int:
        return 0


class FakeTransport:
    """Keeps what is written; `is_over` once nobody may write or read any more."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.is_paused = self.is_over = self.is_shut = False

    def write(self, data: bytes) -> None:
        assert not self.is_over
        assert not self.is_shut, "nothing is written after the end of the answer"
        self.written.append(data)

    def is_closing(self) -> bool:
        return self.is_over

    def close(self) -> None:
        self.is_over = True

    abort = close

    def write_eof(self) -> None:
        self.is_shut = True

    def can_write_eof(self) -> bool:
        return True

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, _name: str) -> Any:
        return ("127.0.0.1", 1)

    def pause_reading(self) -> None:
        assert not self.is_paused
        self.is_paused = True

    def resume_reading(self) -> None:
        assert self.is_paused
        self.is_paused = False


class Recorder:
    """Takes every request, and answers at once or when it is told to."""

    def __init__(self, *, is_late: bool) -> None:
        self.taken: list[Seen] = []
        self._is_late = is_late
        self._waiting: list[Exchange] = []

    def on_head(self, exchange: Exchange) -> None:
        pass

    def on_body(self, exchange: Exchange, body: bytes) -> None:
        head = exchange.head
        fields = dict(head.fields)
        if b"transfer-encoding" in fields:
            fields[b"transfer-encoding"] = fields[b"transfer-encoding"].lower()  # h11 does so
        self.taken.append(Seen(head.method, head.path + head.query, fields, body, is_last=not head.is_keep_alive))
        self._waiting.append(exchange)
        if not self._is_late:
            self.answer()

    def answer(self) -> bool:
        """Answer the request that waits, if one does."""
        if not self._waiting:
            return False
        assert len(self._waiting) == 1, "one request at a time"
        self._waiting.pop().respond(200, b"x-number: %d\r\n" % len(self.taken), b"ok")
        return True


def read_ours(pieces: Iterable[bytes], *, is_late: bool = False) -> Ours:
    """Feed pieces to a connection of ours."""
    recorder, bodies = Recorder(is_late=is_late), BodyPool(1 << 20)
    port = Port(FakeLoop(), FakeClock(), recorder, LIMITS, lambda _status: None, bodies)  # type: ignore[arg-type]
    connection, transport = ServerConnection(port), FakeTransport()
    connection.connection_made(transport)  # type: ignore[arg-type]
    for piece in pieces:
        while transport.is_paused and recorder.answer():
            pass
        if transport.is_over or transport.is_shut:
            break
        assert not transport.is_paused, "nobody would ever read on"
        if piece:
            connection.data_received(piece)
    while recorder.answer():
        pass
    is_open = not (transport.is_over or transport.is_shut)
    raw = b"".join(transport.written)
    statuses, refusal = split_answers(raw)
    transport.is_over = True
    connection.connection_lost(None)
    assert bodies.bytes_held == 0, "nothing is held of a connection that is gone"
    return Ours(recorder.taken, statuses, refusal, is_open, raw)


def split_answers(data: bytes) -> tuple[list[int], str]:
    """Return the statuses of what we wrote, and the message of an error at its end."""
    statuses, message = [], ""
    while data:
        head, mark, data = data.partition(b"\r\n\r\n")
        assert mark, "every answer has a whole head"
        lines = head.split(b"\r\n")
        status = int(lines[0].split(b" ")[1])
        fields = dict(line.lower().split(b": ", 1) for line in lines[1:])
        if status == 100:
            continue
        size = int(fields[b"content-length"])
        body, data = data[:size], data[size:]
        statuses.append(status)
        if status == 200:
            assert fields[b"x-number"] == b"%d" % len(statuses), "answers come in the order of the requests"
            body = b""
        message = body.decode()
    return statuses, message


def read_h11(data: bytes) -> tuple[list[Seen], str]:
    """Return the requests that h11 reads, and why it reads no more."""
    seen: list[Seen] = []
    while True:
        for _ in range(4):  # RFC 9112 2.2: empty lines before a request line, which h11 does not skip
            data = data.removeprefix(b"\r\n")
        if not data:
            return seen, ""
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        connection.receive_data(data)
        request, body = None, b""
        try:
            while True:
                event = connection.next_event()
                if type(event) is h11.Request:
                    request = event
                elif type(event) is h11.Data:
                    body += bytes(event.data)
                elif type(event) is h11.EndOfMessage:
                    break
                else:
                    return seen, "more is to come"
        except h11.RemoteProtocolError as error:
            return seen, f"refused: {error}"
        assert request is not None
        seen.append(_from_h11(request, body))
        data = connection.trailing_data[0]


def _from_h11(request: h11.Request, body: bytes) -> Seen:
    fields: dict[bytes, bytes] = {}
    for name, value in request.headers:
        fields[bytes(name)] = fields[name] + b", " + value if name in fields else bytes(value)
    options = [one.strip(b" \t").lower() for one in fields.get(b"connection", b"").split(b",")]
    is_last = b"close" in options or (request.http_version == b"1.0" and b"keep-alive" not in options)
    for name in {*options, b"content-length"} - {b"close", b"keep-alive"}:
        fields.pop(name, None)
    target = bytes(request.target).decode("latin-1")
    if not target.startswith("/"):
        scheme, mark, rest = target.partition("://")
        if mark and scheme.lower() in ("http", "https"):
            cut = min((rest.index(one) for one in "/?" if one in rest), default=len(rest))
            target = rest[cut:] if rest[cut : cut + 1] == "/" else "/" + rest[cut:]
    return Seen(request.method.decode(), target, fields, body, is_last)


def compare(data: bytes, ours: Ours) -> str:
    """Return what is wrong with how we read `data`, empty when nothing is."""
    theirs, why = read_h11(data)
    for number, (mine, other) in enumerate(zip(ours.taken, theirs, strict=False)):
        if mine != other:
            return f"request {number}: {mine} is {other} to h11"
        if mine.is_last and len(ours.taken) > number + 1:
            return "a request behind the last one was taken"
    if len(ours.taken) > len(theirs):
        return "" if LOOSER.match(why) else f"taken, but not by h11 ({why}): {ours.taken[len(theirs)]}"
    if ours.statuses[: len(ours.taken)] != [200] * len(ours.taken) or len(ours.statuses) > len(ours.taken) + 1:
        return f"{len(ours.taken)} requests and answers {ours.statuses}"
    return _judge_end(ours, theirs[len(ours.taken) :])


def _judge_end(ours: Ours, left: list[Seen]) -> str:
    """Return what is wrong with how a connection was left; `left` is what h11 reads behind what we took."""
    if ours.taken and ours.taken[-1].is_last:
        return "open after the last request" if ours.is_open else ""
    if len(ours.statuses) > len(ours.taken):
        if ours.is_open:
            return "open after a refusal"
        is_stated = not left or any(reason in ours.refusal for reason in STRICTER)
        return "" if is_stated else f"refused without a stated reason: {ours.refusal}"
    if left:
        return f"not answered, though h11 reads {left[0]}"
    return "" if ours.is_open else "closed without a word"


def check(data: bytes, cuts: Iterable[int]) -> None:
    """Fail unless `data`, cut at these places and in one piece, is read alike and as h11 reads it."""
    whole = read_ours([data])
    wrong = compare(data, whole)
    assert not wrong, (wrong, data)
    places = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    pieces = [data[start:end] for start, end in itertools.pairwise(places)]
    for is_late in (False, True):
        parts = read_ours(pieces, is_late=is_late)
        assert (parts.taken, parts.statuses, parts.is_open) == (whole.taken, whole.statuses, whole.is_open), data
