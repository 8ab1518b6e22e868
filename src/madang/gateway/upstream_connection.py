"""One keep-alive connection to an upstream; serves one call at a time.

Owns the parsing of answers and the limits in time while one is awaited. Refuses to choose a connection: the pool does.
"""

import asyncio
import itertools
from typing import TYPE_CHECKING, cast

import httptools

from madang.gateway.deadline import Deadline
from madang.gateway.target import Failure, Target

if TYPE_CHECKING:
    from madang.gateway.upstream import Call, UpstreamPool

HEAD_FIELDS_MAX = 200
HEAD_BYTES_MAX = 64 * 1024
"""Of what comes between pieces of a body: a head, a trailer, the extensions of a chunk. The parser itself has no
bound, and what it was sent of an unfinished field it keeps."""
STATUS_MAX = 599
CHUNK_TAIL = b"\n\n\r\n"
"""How a read ends that ends with a whole chunk of whole events."""


class UpstreamConnection(asyncio.Protocol):
    """One connection; serves one call at a time."""

    __slots__ = (
        "_call",
        "_chunks",
        "_deadline",
        "_fault",
        "_fields",
        "_has_answer",
        "_has_heard",
        "_head_bytes",
        "_is_between_chunks",
        "_is_interim",
        "_is_keep_alive",
        "_is_message_over",
        "_is_open",
        "_is_reused",
        "_parser",
        "_pieces",
        "_pool",
        "_transport",
        "idle_since",
        "on_body",
        "on_chunk_complete",
        "target",
        "was_opened",
    )

    def __init__(self, pool: "UpstreamPool", target: Target) -> None:
        self._pool = pool
        self.target = target
        self._is_open = self.was_opened = False
        self.idle_since = 0.0
        self._call: Call | None = None
        self._deadline = Deadline(pool.loop)
        # The parser drops the pieces of a body straight into the list; the receiver is told of all that came in one
        # read at once, so that a burst costs no call for each chunk.
        self._pieces: list[bytes] = []
        self.on_body = self._pieces.append
        # How many chunks of a body were whole, counted by the parser without a call of Python.
        self._chunks = itertools.count()
        self.on_chunk_complete = self._chunks.__next__
        self._is_between_chunks = False
        self._parser = httptools.HttpResponseParser(self)
        self._fields: dict[bytes, bytes] = {}
        self._is_reused = False
        self._fault = ""
        self._head_bytes = 0
        self._has_heard = self._has_answer = False
        self._is_interim = self._is_message_over = self._is_keep_alive = False
        self._transport: asyncio.Transport

    @property
    def is_usable(self) -> bool:
        """Whether a request may be sent on it: open, and the upstream has not said it will close."""
        return self._is_open and not self._transport.is_closing()

    def begin(self, call: "Call") -> None:
        """Send a call's request."""
        self._call = call
        self._head_bytes = 0
        self._has_heard = self._has_answer = self._is_message_over = self._is_between_chunks = False
        self._deadline.set(call.limits.first_byte_s, self._on_timeout)
        self._transport.write(call.request)
        if call.is_paused:
            self.pause(True)

    def pause(self, is_paused: bool) -> None:
        """Stop or go on reading; a reader that is slow is not an upstream that stalls."""
        if not self.is_usable:
            return
        if is_paused:
            self._transport.pause_reading()
            self._deadline.clear()
        else:
            self._transport.resume_reading()
            if self._call is not None:
                self._deadline.set(self._call.limits.stall_s, self._on_timeout)

    def abort(self) -> None:
        """Close at once."""
        self._call = None
        self._is_open = False
        self._deadline.stop()
        self._transport.abort()

    # --- the loop's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but ancestry
        self._is_open = True
        self.was_opened = True
        self._pool.note_open()

    def data_received(self, data: bytes) -> None:
        """Parse a piece of an answer."""
        call = self._call
        if call is None:
            # Nobody asked: an upstream that talks out of turn cannot be trusted with the next request.
            self._drop_idle()
            return
        if self._is_between_chunks and call.take_chunk is not None and call.take_chunk(data):
            # The parser has not seen this chunk and stands where it stood: before the next one.
            if not call.is_paused:
                self._deadline.prolong(call.limits.stall_s)
            return
        if not self._parse(data):
            return
        pieces = self._pieces
        if self._find_fault():
            pieces.clear()
            self._fail(Failure.PROTOCOL, f"{self.target} sent {self._fault}")
            return
        if pieces:
            body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
            if self._call is call:
                call.receiver.on_data(body)
        if self._call is call:  # else it was cancelled meanwhile
            self._go_on(call)

    def _go_on(self, call: "Call") -> None:
        if self._is_message_over:
            self._finish(call)
        elif self._has_answer and not call.is_paused:
            self._deadline.set(call.limits.stall_s, self._on_timeout)

    def _parse(self, data: bytes) -> bool:
        """Let the parser have a read; False when that ended the call."""
        self._has_heard = True
        self._head_bytes += len(data)
        chunks = next(self._chunks)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            self._fail(Failure.PROTOCOL, f"the answer of {self.target} could not be taken")
            raise  # a receiver of ours broke, not the upstream
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(Failure.PROTOCOL, f"{self.target} sent no valid HTTP: {error}")
            return False
        whole = next(self._chunks) - chunks - 1
        # As many whole chunks as pieces, and nothing of a next one: a size line never follows an empty line.
        is_whole = whole == len(self._pieces) > 0 and data.endswith(CHUNK_TAIL)
        self._is_between_chunks = is_whole and not self._is_message_over
        return True

    def _find_fault(self) -> str:
        """Return what is wrong with the answer so far; empty while nothing is."""
        if self._pieces or self._is_message_over:
            self._head_bytes = 0
        elif self._head_bytes > HEAD_BYTES_MAX:
            self._fault = f"more than {HEAD_BYTES_MAX} bytes of a head or a trailer"
        return self._fault

    def eof_received(self) -> bool:
        """Let the transport close."""
        return False

    def connection_lost(self, _exc: Exception | None) -> None:
        """End the call that was under way."""
        self._is_open = False
        self._pool.open_count -= 1
        self._deadline.stop()
        call, self._call = self._call, None
        if call is None:
            self._pool.forget(self)
        elif self._is_reused and not self._has_heard and not call.is_over:
            self._pool.meter.upstream_stale += 1
            call.restart()
        elif self._has_answer and self._ends_by_close():
            call.end()
        else:
            call.fail(Failure.CLOSED, f"{self.target} closed the connection before the answer was complete")

    # --- the parser's side

    def on_message_begin(self) -> None:
        """Begin an answer, interim or final; one more than was asked for spoils the connection."""
        if self._is_message_over:
            self._fault = "more than one answer"
        self._fields = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a field; the last of several wins, but for codings: what is not chunked alone is not ours to undo."""
        if self._fault:
            return  # what was wrong first is what is told
        key = name.lower()
        if key == b"transfer-encoding" and (key in self._fields or value.strip(b" \t").lower() != b"chunked"):
            self._fault = "a transfer coding other than chunked"
        if len(self._fields) < HEAD_FIELDS_MAX:
            self._fields[key] = value

    def on_headers_complete(self) -> None:
        """Tell the receiver of the head."""
        call = self._call
        self._head_bytes = 0
        if call is None or self._fault:
            return
        status = self._parser.get_status_code()
        if not 100 <= status <= STATUS_MAX:
            self._fault = f"status {status}"
            return
        self._is_interim = 100 <= status < 200
        if self._is_interim:
            if not self._ends_by_close():
                self._fault = "an interim answer that has a body"
                return
            call.receiver.on_informational(status)
            return
        self._has_answer = True
        self._is_keep_alive = self._parser.should_keep_alive()
        call.receiver.on_head(status, self._fields)

    def on_message_complete(self) -> None:
        """Note the end; told after the parser returned, since the receiver may start the next call at once."""
        if not self._is_interim and not self._fault:
            self._is_message_over = True
            self._is_keep_alive = self._parser.should_keep_alive()

    # --- ends

    def _finish(self, call: "Call") -> None:
        self._call = None
        self._deadline.clear()
        if self._is_keep_alive and not call.is_paused:
            self._is_reused = True
            self._pool.release(self)
        else:
            self.abort()
        call.end()

    def _ends_by_close(self) -> bool:
        """Whether the head says no length: then a final answer ends with its connection (RFC 9112 section 6.3)."""
        return b"content-length" not in self._fields and b"transfer-encoding" not in self._fields

    def _on_timeout(self) -> None:
        call = self._call
        if call is None:
            return
        limit_s = call.limits.stall_s if self._has_answer else call.limits.first_byte_s
        self._fail(Failure.TIMEOUT, f"{self.target} sent nothing for {limit_s:g} s")

    def _fail(self, failure: Failure, reason: str) -> None:
        call = self._call
        self.abort()
        if call is not None:
            call.fail(failure, reason)

    def _drop_idle(self) -> None:
        self._pool.forget(self)
        self.abort()
