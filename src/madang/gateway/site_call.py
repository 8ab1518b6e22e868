"""One connection to the site's own process: a request that is written piece by piece, an answer that is read so.

Owns the socket, the framing of the request and the parsing of the answer. Refuses to know what is asked. Each call has
a connection of its own: what is asked of the site process is rare, and an upload that is cut must take its connection
with it. The site leg calls it and is told of everything.
"""

import asyncio
from typing import Protocol, cast

import httptools

HEAD_FIELDS_MAX = 100


class SiteReceiver(Protocol):
    """Who hears of a call; after `on_site_end` or `on_site_failed` nothing more comes."""

    def on_site_head(self, status: int, fields: dict[bytes, bytes]) -> None:
        """The answer's head; names in lower case."""

    def on_site_data(self, data: bytes) -> None:
        """A piece of the answer's body."""

    def on_site_end(self) -> None:
        """The answer is complete."""

    def on_site_failed(self, reason: str) -> None:
        """There will be no complete answer."""

    def on_site_writable(self, is_writable: bool) -> None:
        """The site process takes the request's body slower than it comes (False), or has caught up (True)."""


class SiteCall(asyncio.Protocol):
    """One request to the site process."""

    def __init__(self, receiver: SiteReceiver, *, is_chunked: bool) -> None:
        """Prepare a call; `send` and `finish` may be called once it is connected.

        Args:
            receiver: hears of it.
            is_chunked: the body's length is not known before its end.
        """
        self._receiver = receiver
        self._is_chunked = is_chunked
        self._fields: dict[bytes, bytes] = {}
        self._pieces: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)
        self._is_over = self._is_complete = self._has_head = False
        self._transport: asyncio.Transport

    # --- the leg's side

    def open(self, head: bytes) -> None:
        """Send the request's head."""
        self._write(head)

    def send(self, data: bytes) -> None:
        """Send a piece of the request's body."""
        if data:
            self._write(b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked else data)

    def finish(self) -> None:
        """The request's body is complete."""
        if self._is_chunked:
            self._write(b"0\r\n\r\n")

    def pause(self, is_paused: bool) -> None:
        """Stop or go on reading the answer."""
        if self._is_over or self._transport.is_closing():
            return
        if is_paused:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def abort(self) -> None:
        """Close at once; the receiver hears nothing more."""
        self._is_over = True
        self._transport.abort()

    def _write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    # --- the loop's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but ancestry

    def pause_writing(self) -> None:
        """The site process reads slower than the client sends."""
        if not self._is_over:
            self._receiver.on_site_writable(False)

    def resume_writing(self) -> None:
        """It has caught up."""
        if not self._is_over:
            self._receiver.on_site_writable(True)

    def data_received(self, data: bytes) -> None:
        """Parse a piece of the answer."""
        if self._is_over:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            self._fail("the site process's answer could not be taken")
            raise  # a receiver of ours broke, not the site
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(f"the site process sent no valid HTTP: {error}")
            return
        pieces, self._pieces = self._pieces, []
        if pieces and not self._is_over:
            self._receiver.on_site_data(b"".join(pieces))
        if self._is_complete and not self._is_over:
            self.abort()
            self._receiver.on_site_end()

    def connection_lost(self, _exc: Exception | None) -> None:
        """Fail unless the answer was complete."""
        self._fail("the site process closed the connection before its answer was complete")

    def _fail(self, reason: str) -> None:
        if not self._is_over:
            self.abort()
            self._receiver.on_site_failed(reason)

    # --- the parser's side

    def on_message_begin(self) -> None:
        """Begin an answer, interim or final."""
        self._fields = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a field."""
        if len(self._fields) < HEAD_FIELDS_MAX:
            self._fields[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Tell of the head of the final answer."""
        status = self._parser.get_status_code()
        if status >= 200 and not self._has_head and not self._is_over:
            self._has_head = True
            self._receiver.on_site_head(status, self._fields)

    def on_body(self, data: bytes) -> None:
        """Keep a piece until the parser returns."""
        self._pieces.append(data)

    def on_message_complete(self) -> None:
        """Note the end."""
        if self._has_head:
            self._is_complete = True
