"""A connection to an upstream without a socket, and a second reading of the same answer by h11.

An answer that we take for complete must be complete to h11 too, with the same status and body; giving up is always
allowed, since an upstream's answer that is in doubt is worth nothing. What lies behind an answer is never taken for
the answer to the next request.
"""

import itertools
import re
from collections.abc import Iterable
from typing import NamedTuple

import h11
from tests.gateway.wire_bench import FakeLoop, FakeTransport

from madang.gateway.metrics import Meter
from madang.gateway.target import Failure, Target, TimeLimits
from madang.gateway.upstream import Call
from madang.gateway.upstream_connection import UpstreamConnection
from madang.wire.http1 import content_of_chunk

TARGET = Target("127.0.0.1", 1)
LIMITS = TimeLimits(first_byte_s=1.0, stall_s=1.0)


class Answer(NamedTuple):
    """What was made of an answer: complete with status and body, or not."""

    is_complete: bool
    status: int
    body: bytes
    failure: str


class FakePool:
    """Takes connections back and gives nothing."""

    def __init__(self) -> None:
        self.loop = FakeLoop()
        self.meter = Meter("daegu")
        self.open_count = 0
        self.idle: list[UpstreamConnection] = []
        self.opened = 0

    def release(self, connection: UpstreamConnection) -> None:
        self.idle.append(connection)

    def forget(self, connection: UpstreamConnection) -> None:
        if connection in self.idle:
            self.idle.remove(connection)

    def open(self, _call: Call) -> None:
        self.opened += 1

    def note_open(self) -> None:
        self.open_count += 1


class Recorder:
    """A receiver that remembers; it may hear of one end only."""

    taken_in_all = 0
    """Chunks that went past the parser, of every receiver."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.body = b""
        self.ends = 0
        self.failure = ""

    def on_informational(self, status: int) -> None:
        assert 100 <= status < 200
        assert not self.statuses

    def on_head(self, status: int, _fields: dict[bytes, bytes]) -> None:
        assert not self.ends
        self.statuses.append(status)

    def on_data(self, data: bytes) -> None:
        assert self.statuses
        assert not self.ends
        assert data
        self.body += data

    def take_chunk(self, data: bytes) -> bool:
        content = content_of_chunk(data)
        if content is None:
            return False
        Recorder.taken_in_all += 1
        self.on_data(content)
        return True

    def on_end(self) -> None:
        self.ends += 1

    def on_failed(self, failure: Failure, reason: str) -> None:
        self.ends += 1
        self.failure = f"{failure}: {reason}"


def read_ours(pieces: Iterable[bytes], *, takes_chunks: bool = False) -> tuple[Answer, bool]:
    """Feed an answer in pieces, then the end of the connection; return it, and whether it was put back for reuse.

    With `takes_chunks` the receiver takes every read that looks like one chunk past the parser.
    """
    pool, recorder, transport = FakePool(), Recorder(), FakeTransport()
    connection = UpstreamConnection(pool, TARGET)  # type: ignore[arg-type]
    connection.connection_made(transport)  # type: ignore[arg-type]
    call = Call(pool, TARGET, b"POST / HTTP/1.1\r\n\r\n", recorder, LIMITS)  # type: ignore[arg-type]
    if takes_chunks:
        call.take_chunk = recorder.take_chunk
    call.attach(connection)
    was_reusable = False
    for piece in pieces:
        if transport.is_over:
            break
        if piece:
            connection.data_received(piece)
        was_reusable = was_reusable or bool(pool.idle)
    connection.connection_lost(None)
    assert recorder.ends == 1, "the receiver hears of exactly one end"
    assert len(recorder.statuses) <= 1
    assert not pool.opened, "nothing is asked anew once something was heard"
    assert not pool.idle, "a connection that is gone is not kept"
    status = recorder.statuses[0] if recorder.statuses else 0
    return Answer(not recorder.failure, status, recorder.body, recorder.failure), was_reusable


def read_h11(data: bytes) -> Answer:
    """Return what h11 makes of the same bytes as the answer to one POST."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    connection.send(h11.Request(method="POST", target="/", headers=[("host", "x"), ("content-length", "0")]))
    connection.send(h11.EndOfMessage())
    status, body = 0, b""
    try:
        connection.receive_data(data)
        if data:
            connection.receive_data(b"")
        while True:
            event = connection.next_event()
            if type(event) is h11.Response:
                status = event.status_code
            elif type(event) is h11.Data:
                body += bytes(event.data)
            elif type(event) is h11.EndOfMessage:
                return Answer(True, status, body, "")
            elif type(event) is not h11.InformationalResponse:
                return Answer(False, status, body, repr(event))
    except h11.RemoteProtocolError as error:
        return Answer(False, status, body, str(error))


STRICTER_H11 = re.compile(
    r"illegal chunk header|illegal header line|illegal status line|bad Content-Length|conflicting Content-Length"
    r"|unrecognized Transfer-Encoding|multiple Transfer-Encoding|Only one Transfer-Encoding|Sorry, we don't support"
    r"|Too many headers|no response line received"
)
"""What h11 takes offence at in an answer and we let pass: nothing of it moves the answer's end."""


def check_answers(data: bytes, cuts: Iterable[int]) -> None:
    """Fail unless an answer, in one piece and in these, is read alike and as h11 reads it."""
    whole, _ = read_ours([data])
    theirs = read_h11(data)
    if whole.is_complete and theirs.is_complete:
        assert (whole.status, whole.body) == (theirs.status, theirs.body), data
    elif whole.is_complete:
        assert STRICTER_H11.search(theirs.failure), (whole, theirs, data)
    places = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    reads = [data[start:end] for start, end in itertools.pairwise(places)]
    parts, _ = read_ours(reads)
    assert read_ours(reads, takes_chunks=True)[0] == parts, (
        reads,
        "whoever takes chunks past the parser reads another",
    )
    if parts.is_complete and whole.is_complete:
        assert (parts.status, parts.body) == (whole.status, whole.body), data
    # Cut elsewhere, what lies behind a whole answer comes too late to spoil it.
    if whole.is_complete != parts.is_complete:
        assert "more than one answer" in whole.failure + parts.failure or "no valid HTTP" in whole.failure, (
            whole,
            parts,
            data,
        )
