"""One request and its answer, as whoever handles it sees them.

Owns how an answer is framed: whole with a length, or in chunks, or to the end of the connection for HTTP/1.0.
Refuses to know sockets and the requests before and after it: the connection under it does.
"""

from typing import Protocol

from madang.wire.http1 import RequestHead
from madang.wire.oip import encode_oip_error
from madang.wire.oip_paths import is_oip_path
from madang.wire.openai_errors import ApiError, encode_error

JSON_TYPE = b"content-type: application/json\r\n"
_PROCESSING = b"HTTP/1.1 102 Processing\r\n\r\n"


GONE_STATUS = 499
"""Written down for a client that left before it had an answer; no client ever sees it."""


class AccessNote(Protocol):
    """Who asked, until it is known how that was answered."""

    service: str

    def tell(self, status: int) -> None:
        """Write it down."""


class Listener(Protocol):
    """Who makes the answer and must hear of the client meanwhile."""

    def on_gone(self) -> None:
        """The client left before its answer was complete."""

    def on_writable(self, is_writable: bool) -> None:
        """The client's buffer is full (False) or has room again (True)."""


class Upload(Protocol):
    """Who takes a request's body in pieces instead of whole.

    Attributes:
        bytes_max, timeout_s: hold for the whole body, instead of the port's limits.
    """

    bytes_max: int
    timeout_s: float

    def on_piece(self, data: bytes) -> None:
        """A piece of the body came; more follow."""

    def on_end(self, body: bytes) -> None:
        """The last piece of the body came, which may be empty."""


class Connection(Protocol):
    """What an exchange needs of the connection it lives on."""

    @property
    def must_close(self) -> bool:
        """Whether the connection ends with this answer, whatever the client asked."""

    @property
    def address(self) -> str:
        """The client's address, empty where the transport has none."""

    def write(self, data: bytes) -> None:
        """Send bytes."""

    def head_bytes(self, status: int, fields: bytes, is_close: bool, is_http10: bool) -> bytes:
        """Return the head of an answer up to and without its last empty line."""

    def pause_body(self, is_paused: bool) -> None:
        """Stop or go on reading the body of the request in progress."""

    def hold(self, size_bytes: int) -> bool:
        """Count a piece of an answer that is kept; False when too much is held."""

    def let_go(self, size_bytes: int) -> None:
        """Count out what was held of an answer that will not be sent."""

    def finish(self, is_close: bool) -> None:
        """The answer is written."""


class Exchange:
    """One request and its answer; whoever handles it keeps this and nothing of the connection."""

    __slots__ = ("_connection", "access", "head", "is_begun", "is_over", "listener", "tail", "upload")

    def __init__(self, connection: Connection, head: RequestHead) -> None:
        """Begin an exchange.

        Attributes:
            head: the request's.
            access: who is to be written down as having asked, set by the handler; None once that is done.
            listener: who makes the answer, set by the handler once it works on one.
            upload: who takes the body in pieces, set by the handler when it is told of the head; None for whole.
            tail: header lines known only at the end: in the head of a whole answer, else behind the last piece.
            is_begun: the answer's head was sent.
            is_over: the answer is complete, or nobody waits for it any more.
        """
        self._connection = connection
        self.head = head
        self.access: AccessNote | None = None
        self.listener: Listener | None = None
        self.upload: Upload | None = None
        self.tail = b""
        self.is_begun = False
        self.is_over = False

    @property
    def address(self) -> str:
        """The client's address, as its connection has it."""
        return self._connection.address

    def tell_access(self, status: int) -> None:
        """Have it written down who asked, and how it was answered; does nothing the second time."""
        note = self.access
        if note is not None:
            self.access = None
            note.tell(status)

    def respond(self, status: int, fields: bytes, body: bytes, *, is_close: bool = False) -> None:
        """Send a whole answer.

        Args:
            status: its status.
            fields: header lines, each with its CR LF.
            body: its content; left out for HEAD.
            is_close: end the connection with it.
        """
        if self.is_over:
            return
        self.tell_access(status)
        is_close = is_close or not self.head.is_keep_alive or self._connection.must_close
        head = self._connection.head_bytes(status, fields, is_close, self.head.is_http10)
        content = b"" if self.head.method == "HEAD" else body
        self._connection.write(b"%b%bcontent-length: %d\r\n\r\n%b" % (head, self.tail, len(body), content))
        self._finish(is_close)

    def fail(self, error: ApiError, fields: bytes = b"", *, is_close: bool = False) -> None:
        """Send an error as the whole answer."""
        allow = f"allow: {error.allow}\r\n".encode() if error.allow else b""
        challenge = b'www-authenticate: Bearer realm="madang"\r\n' if error.status == 401 else b""
        fields = b"".join((JSON_TYPE, fields, retry_after_line(error), allow, challenge))
        self.respond(error.status, fields, error_body(self.head.path, error), is_close=is_close)

    def tell_processing(self) -> None:
        """Send `102 Processing`: accepted, not yet answered."""
        if not self.is_over and not self.is_begun:
            self._connection.write(_PROCESSING)

    def start(self, status: int, fields: bytes, data: bytes = b"") -> None:
        """Begin an answer of unknown length, with its first piece."""
        if self.is_over:
            return
        self.tell_access(status)
        self.is_begun = True
        if self.head.is_http10:
            head = self._connection.head_bytes(status, fields, True, True)
            self._connection.write(head + b"\r\n" + data)
            return
        is_close = not self.head.is_keep_alive or self._connection.must_close
        head = self._connection.head_bytes(status, fields, is_close, False)
        self._connection.write(b"%btransfer-encoding: chunked\r\n\r\n%b" % (head, _chunk(data)))

    def send(self, data: bytes) -> None:
        """Send a piece of a begun answer."""
        if not self.is_over and data:
            self._connection.write(data if self.head.is_http10 else b"%x\r\n%b\r\n" % (len(data), data))

    def end(self, data: bytes = b"") -> None:
        """Send the last piece and the end of a begun answer, in one write."""
        if self.is_over:
            return
        if self.head.is_http10:
            self._connection.write(data)
            self._finish(True)
            return
        self._connection.write(b"%b0\r\n%b\r\n" % (_chunk(data), self.tail))
        self._finish(not self.head.is_keep_alive or self._connection.must_close)

    def cut(self, data: bytes = b"") -> None:
        """Send a last piece and close without the end, so that nobody takes the answer for complete."""
        if self.is_over:
            return
        self.send(data)
        self._finish(True)

    def pause_upload(self, is_paused: bool) -> None:
        """Let the client wait with the rest of its body, or go on."""
        if not self.is_over:
            self._connection.pause_body(is_paused)

    def hold(self, size_bytes: int) -> bool:
        """Count a piece of an answer that is kept until it is whole; False when the worker holds too much already.

        What was counted is counted out when the client has the answer or is gone.
        """
        return self.is_over or self._connection.hold(size_bytes)

    def let_go(self, size_bytes: int) -> None:
        """Count out what was held of an answer that will not be sent, before another one is tried."""
        if size_bytes and not self.is_over:
            self._connection.let_go(size_bytes)

    def leave(self) -> None:
        """The client is gone; called by the connection."""
        if not self.is_over:
            self.is_over = True
            self.tell_access(GONE_STATUS)
            if self.listener is not None:
                self.listener.on_gone()

    def tell_writable(self, is_writable: bool) -> None:
        """Pass on back-pressure; called by the connection."""
        if self.listener is not None:
            self.listener.on_writable(is_writable)

    def _finish(self, is_close: bool) -> None:
        self.is_over = True
        self.listener = None
        self._connection.finish(is_close)


def retry_after_line(error: ApiError) -> bytes:
    """Return the Retry-After field of an error, in whole seconds rounded up, or nothing."""
    if error.retry_after_s is None:
        return b""
    return b"retry-after: %d\r\n" % max(1, -int(-error.retry_after_s // 1))


def error_body(path: str, error: ApiError) -> bytes:
    """Return an error in the shape of the protocol that a path belongs to."""
    return encode_oip_error(error) if is_oip_path(path) else encode_error(error)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
