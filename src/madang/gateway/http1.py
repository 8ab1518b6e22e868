"""The server side of HTTP/1.1: one client's connection, its limits in size and time, and the order of its answers.

Owns the socket of a client (tenant, peer, operator): one request is in progress at a time, and what a client sends
ahead waits, bounded, unparsed. Refuses to know what a request means: the port's `Handler` is told of the head, then
of the whole body. `madang.wire.http1` reads; this module keeps time.

A connection's states: `head` (waiting for or inside a head), `body` (inside a body), `busy` (the answer is being
made), `linger` (answered before the body came; what still comes is dropped, so that the answer is not lost to a
reset), `closed`.
"""

import asyncio
from enum import Enum
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

from madang.gateway.deadline import Deadline
from madang.gateway.exchange import JSON_TYPE, Exchange, error_body, retry_after_line
from madang.gateway.origins import NO_VISIT, Visit
from madang.wire.http1 import (
    HEAD_END,
    ChunkedDecoder,
    HeadReader,
    HttpRejected,
    RequestHead,
    check_partial_head,
)
from madang.wire.openai_errors import ApiError, ErrorCode

if TYPE_CHECKING:
    from madang.gateway.port import Limits, Port

PIPELINE_BYTES_MAX = 64 * 1024
"""What a client may send ahead of the answer it waits for, before reading from it stops."""
EMPTY_LINES_MAX = 4
"""RFC 9112 section 2.2 asks to ignore an empty line before a request; not any number of them."""
PIECES_MAX = 64
"""Of a body that is held; more are joined, since a piece of two bytes weighs twenty times as much as they do."""
LINGER_S = 2.0
LINGER_BYTES_MAX = 64 * 1024 * 1024
TLS_END_S = 5.0
"""For the last bytes under TLS, and the client's word that it has them."""
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_PHRASES = {status.value: status.phrase for status in HTTPStatus}
# Of every status that RFC 9110 section 15 gives a class, since a peer may pass on one that has no name here.
_STATUS_LINES = {number: f"HTTP/1.1 {number} {_PHRASES.get(number, '')}\r\n".encode() for number in range(100, 600)}


class _State(Enum):
    HEAD = 0
    BODY = 1
    BUSY = 2
    LINGER = 3
    CLOSED = 4


_HEAD, _BODY, _BUSY, _LINGER, _CLOSED = _State


class ServerConnection(asyncio.Protocol):
    """One client's connection."""

    __slots__ = (
        "_address",
        "_body",
        "_body_left",
        "_buffer",
        "_deadline",
        "_decoder",
        "_empty_lines",
        "_exchange",
        "_heads",
        "_held_bytes",
        "_is_advancing",
        "_is_head_begun",
        "_is_read_paused",
        "_is_write_paused",
        "_port",
        "_scanned",
        "_state",
        "_transport",
        "visit",
    )

    def __init__(self, port: "Port", visit: Visit = NO_VISIT) -> None:
        self._port = port
        self.visit = visit
        self._state = _HEAD
        self._address: str | None = None
        self._buffer = b""
        self._scanned = 0
        self._empty_lines = 0
        self._body: list[bytes | bytearray] = []
        self._body_left = self._held_bytes = 0
        self._decoder: ChunkedDecoder | None = None
        self._exchange: Exchange | None = None
        self._is_head_begun = self._is_advancing = self._is_read_paused = self._is_write_paused = False
        self._deadline = Deadline(port.loop)
        self._heads = HeadReader(port.limits.headers_max)
        self._transport: asyncio.Transport

    # --- the loop's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the first request's clock."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but ancestry
        is_admitted = self._port.admit(self)
        self._deadline.set(self._port.limits.head_timeout_s, self._on_idle)
        if not is_admitted:
            whose = "" if self.visit.is_welcome else " from this address"
            self._reject(ApiError(ErrorCode.OVERLOADED, f"too many connections{whose}; try again", retry_after_s=1.0))

    def data_received(self, data: bytes) -> None:
        """Take bytes of the client."""
        state = self._state
        if state is _HEAD:
            self._buffer = self._buffer + data if self._buffer else data
            self._advance()
        elif state is _BODY:
            self._on_body_bytes(data)
        elif state is _BUSY:
            self._buffer += data
            if len(self._buffer) > PIPELINE_BYTES_MAX:
                self._pause_reading()
        elif state is _LINGER:
            self._body_left -= len(data)
            if self._body_left < 0:
                self.abort()

    def eof_received(self) -> bool:
        """Treat a client's end of sending as its leaving: a close cannot be told from a half close."""
        if self._state in (_BODY, _BUSY):
            self.abort()
        return False

    def connection_lost(self, _exc: Exception | None) -> None:
        """Tell whoever makes the answer."""
        self._state = _CLOSED
        self._deadline.stop()
        self._port.forget(self)
        exchange, self._exchange = self._exchange, None
        self._buffer = b""
        self._release()
        if exchange is not None:
            exchange.leave()

    def pause_writing(self) -> None:
        """The client reads slower than we write."""
        self._is_write_paused = True
        self._deadline.set(self._port.limits.write_timeout_s, self.abort)
        if self._exchange is not None:
            self._exchange.tell_writable(False)

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._is_write_paused = False
        if self._state in (_BUSY, _HEAD):
            self._deadline.clear()
        if self._exchange is not None:
            self._exchange.tell_writable(True)
        elif self._state is _HEAD:
            self._release()
            self._deadline.set(self._port.limits.idle_timeout_s, self._on_idle)
            self._advance()

    # --- reading

    def _advance(self) -> None:
        """Begin requests from the buffer as long as the one before is answered."""
        if self._is_advancing:
            return
        self._is_advancing = True
        try:
            while self._state is _HEAD and self._buffer and not self._is_write_paused:
                head = self._next_head()
                if head is None:
                    break
                self._begin(head)
        except HttpRejected as error:
            self._port.on_reject(error.status)
            self._reject(_http_error(error))
        finally:
            self._is_advancing = False
        if not self._is_read_paused or len(self._buffer) > PIPELINE_BYTES_MAX or self._transport.is_closing():
            return
        exchange = self._exchange
        if self._state is _BODY and exchange is not None and exchange.upload is not None:
            return  # whoever takes the body says when it goes on
        self._is_read_paused = False
        self._transport.resume_reading()

    def _next_head(self) -> RequestHead | None:
        """Return the head at the start of the buffer, or None when it is not complete."""
        limits = self._port.limits
        buffer = self._buffer
        while buffer[:2] == b"\r\n":
            self._empty_lines += 1
            if self._empty_lines > EMPTY_LINES_MAX:
                raise HttpRejected(400, "the request begins with empty lines")
            buffer = buffer[2:]
        end = buffer.find(HEAD_END, self._scanned)
        if end >= 0 and end + 4 <= limits.head_bytes_max:
            self._buffer = buffer[end + 4 :]
            self._scanned = self._empty_lines = 0
            self._is_head_begun = False
            return self._heads.read(buffer[: end + 4])
        if len(buffer) > limits.head_bytes_max:
            raise HttpRejected(431, f"the request's head is over {limits.head_bytes_max} bytes")
        check_partial_head(buffer, self._scanned)
        self._buffer = buffer
        self._scanned = max(len(buffer) - 3, 0)
        if not self._is_head_begun:
            self._is_head_begun = True
            self._deadline.set(limits.head_timeout_s, self._on_slow_head)
        return None

    def _begin(self, head: RequestHead) -> None:
        self._deadline.clear()
        exchange = self._exchange = Exchange(self, head)
        if not head.has_body:
            self._state = _BUSY
            self._port.handler.on_head(exchange)
            if not exchange.is_over and not exchange.is_begun:
                self._port.handler.on_body(exchange, b"")
            return
        self._state = _BODY
        self._port.handler.on_head(exchange)
        if exchange.is_over:
            return
        length, limits = head.content_length, self._port.limits
        is_here = length <= len(self._buffer) and length <= limits.body_bytes_max and not head.is_chunked
        if is_here and exchange.upload is None:
            self._take_whole_body(exchange, length)
            return
        self._begin_body(head, limits)

    def _take_whole_body(self, exchange: Exchange, length: int) -> None:
        """Take a body that came together with its head, as small ones do: no limit in time, no pieces."""
        self._hold(length)
        self._state = _BUSY
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        self._port.handler.on_body(exchange, body)

    def _begin_body(self, head: RequestHead, limits: "Limits") -> None:
        bytes_max, timeout_s = limits.body_bytes_max, limits.body_timeout_s
        upload = None if self._exchange is None else self._exchange.upload
        if upload is not None:
            bytes_max, timeout_s = upload.bytes_max, upload.timeout_s
        if head.is_chunked:
            self._decoder = ChunkedDecoder(bytes_max)
        elif head.content_length > bytes_max:
            raise HttpRejected(413, f"the request body is over {bytes_max} bytes")
        else:
            self._decoder = None
            self._body_left = head.content_length
        data, self._buffer = self._buffer, b""
        if not data and head.is_continue_expected:
            self.write(_CONTINUE)
        self._deadline.set(timeout_s, self._on_slow_body)
        if data:
            self._take_body(data)

    def _on_body_bytes(self, data: bytes) -> None:
        try:
            self._take_body(data)
        except HttpRejected as error:
            self._port.on_reject(error.status)
            self._reject(_http_error(error))
        else:
            self._advance()

    def _take_body(self, data: bytes) -> None:
        if self._decoder is not None:
            pieces, rest = self._decoder.feed(data)
            self._hold(sum(map(len, pieces)))
            if pieces:
                self._keep(b"".join(pieces))
            if self._decoder.is_done:
                self._end_body(rest)
            else:
                self._hand_on()
            return
        left = self._body_left
        self._hold(min(len(data), left))
        if len(data) < left:
            self._keep(data)
            self._body_left = left - len(data)
            self._hand_on()
            return
        self._keep(data[:left])
        self._end_body(data[left:])

    def _keep(self, data: bytes) -> None:
        body = self._body
        body.append(data)
        if len(body) > PIECES_MAX:
            whole = body[0] if isinstance(body[0], bytearray) else bytearray(body[0])
            for piece in body[1:]:
                whole += piece  # grows in steps, so that a body costs what it weighs and not its square
            self._body = [whole]

    def _joined(self) -> bytes:
        body = self._body
        return body[0] if len(body) == 1 and isinstance(body[0], bytes) else b"".join(body)

    def _hand_on(self) -> None:
        """Pass on what came of an upload; any other body is kept until it is whole."""
        exchange = self._exchange
        if exchange is not None and exchange.upload is not None and self._body:
            body = self._joined()
            self._body.clear()
            exchange.upload.on_piece(body)

    def pause_body(self, is_paused: bool) -> None:
        """Stop or go on reading the body of the request in progress; called by the exchange."""
        if is_paused:
            self._pause_reading()
        elif self._is_read_paused and self._state is _BODY and not self._transport.is_closing():
            self._is_read_paused = False
            self._transport.resume_reading()

    def _end_body(self, rest: bytes) -> None:
        exchange = self._exchange
        assert exchange is not None
        self._deadline.clear()
        self._state = _BUSY
        self._buffer = rest
        body = self._joined()
        self._body.clear()
        self._decoder = None
        if exchange.upload is None:
            self._port.handler.on_body(exchange, body)
            return
        if self._is_read_paused and not self._transport.is_closing():
            self._is_read_paused = False  # a client that leaves must be noticed
            self._transport.resume_reading()
        exchange.upload.on_end(body)

    def _hold(self, size_bytes: int) -> None:
        """Count a piece of a body that is kept; raises HttpRejected when the worker keeps too much already."""
        exchange = self._exchange
        if exchange is not None and exchange.upload is None:
            if not self._port.bodies.take(size_bytes):
                raise HttpRejected(503, "too many request bodies are being held here; try again")
            self._held_bytes += size_bytes

    def hold(self, size_bytes: int) -> bool:
        """Count a piece of an answer that is kept until it is whole; False when the worker keeps too much already."""
        if not self._port.bodies.take_answer(size_bytes):
            return False
        self._held_bytes += size_bytes
        return True

    def let_go(self, size_bytes: int) -> None:
        """Count out what was held of an answer that will not be sent."""
        self._port.bodies.give_back(size_bytes)
        self._held_bytes -= size_bytes

    def _release(self) -> None:
        """Hold nothing of a body or an answer any more."""
        self._body.clear()
        self._port.bodies.give_back(self._held_bytes)
        self._held_bytes = 0

    def _pause_reading(self) -> None:
        if not self._is_read_paused and not self._transport.is_closing():
            self._is_read_paused = True
            self._transport.pause_reading()

    # --- time

    def _on_idle(self) -> None:
        self.abort()

    def _on_slow_head(self) -> None:
        self._port.on_reject(408)
        self._reject(ApiError(ErrorCode.TIMEOUT, "the request's head took too long", status=408))

    def _on_slow_body(self) -> None:
        self._port.on_reject(408)
        self._reject(ApiError(ErrorCode.TIMEOUT, "the request's body took too long", status=408))

    # --- writing, called by the exchange

    def write(self, data: bytes) -> None:
        """Send bytes, unless the connection is on its way out: uvloop refuses them then."""
        if not self._transport.is_closing():
            self._transport.write(data)

    def head_bytes(self, status: int, fields: bytes, is_close: bool, is_http10: bool) -> bytes:
        """Return the head of an answer up to and without its last empty line."""
        connection = b""
        if is_close:
            connection = b"connection: close\r\n"
        elif is_http10:
            connection = b"connection: keep-alive\r\n"
        return b"".join((_STATUS_LINES[status], self._port.date_line(), fields, connection))

    @property
    def address(self) -> str:
        """The client's address without its port, empty where the transport has none."""
        if self._address is None:  # asking costs a system call
            found = self._transport.get_extra_info("peername")
            self._address = found[0] if isinstance(found, tuple) else ""
        return self._address

    @property
    def must_close(self) -> bool:
        """Whether this connection ends with the present answer, whatever the client asked."""
        return self._state is not _BUSY or self._port.is_draining

    def finish(self, is_close: bool) -> None:
        """The answer is written; go on with the next request or close."""
        if self._state is _CLOSED:
            return
        self._exchange = None
        if self._held_bytes and not self._is_write_paused:
            self._release()  # else once the client has taken the answer
        was_inside_body = self._state is _BODY
        if not is_close:
            self._state = _HEAD
            if self._is_write_paused:
                return
            self._deadline.set(self._port.limits.idle_timeout_s, self._on_idle)
            if not self._is_advancing and (self._buffer or self._is_read_paused):
                self._advance()
        elif was_inside_body:
            self._linger()
        else:
            self._close()

    def _linger(self) -> None:
        """Drop what the client still sends, so that closing does not reset the answer away."""
        self._state = _LINGER
        self._buffer = b""
        self._release()
        self._body_left = LINGER_BYTES_MAX
        if self._is_read_paused and not self._transport.is_closing():
            self._is_read_paused = False
            self._transport.resume_reading()
        if not self._transport.can_write_eof():
            self._close()  # TLS ends both ways at once, and drops by itself what still comes
            return
        if not self._transport.is_closing():
            self._transport.write_eof()
        self._deadline.set(LINGER_S, self.abort)

    def _close(self) -> None:
        self._state = _CLOSED
        self._buffer = b""
        self._transport.close()
        if self._transport.get_write_buffer_size():
            self._deadline.set(self._port.limits.write_timeout_s, self.abort)
        elif not self._transport.can_write_eof():
            self._deadline.set(TLS_END_S, self.abort)

    def _reject(self, error: ApiError) -> None:
        """Answer what HTTP itself forbids, and close: where the next request begins is in doubt."""
        exchange, self._exchange = self._exchange, None
        body = error_body("" if exchange is None else exchange.head.path, error)
        fields = JSON_TYPE + retry_after_line(error) + b"content-length: %d\r\n" % len(body)
        self.write(self.head_bytes(error.status, fields, True, False) + b"\r\n" + body)
        if exchange is not None:
            exchange.tell_access(error.status)
            exchange.leave()
        self._linger()

    def drain(self) -> None:
        """Close now if no request is in progress."""
        if self._state is _HEAD and not self._buffer:
            self._close()

    def abort(self) -> None:
        """Close at once, whatever is unsent."""
        self._transport.abort()


def _http_error(error: HttpRejected) -> ApiError:
    if error.status == 503:
        return ApiError(ErrorCode.OVERLOADED, error.message, status=503, retry_after_s=1.0)
    code = ErrorCode.REQUEST_TOO_LARGE if error.status in (413, 431) else ErrorCode.INVALID_REQUEST
    return ApiError(code, error.message, status=error.status)
