"""Bytes of a file by HTTP range requests, read straight into the caller's buffer.

Owns one connection to one source. Refuses to judge bytes and to try again: the transfer does both. Called by the
transfer's receiving threads, one client each; all calls block.

The standard library's client, since a body is read from the socket into the buffer that is hashed and written, with no
copy between: half the cost of a client that yields pieces.
"""

import contextlib
import http.client
import re
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

from madang.core import Rejected, Unavailable

CONNECT_TIMEOUT_S = 3.0
READ_TIMEOUT_S = 20.0
_REDIRECTS_MAX = 5
_SMALL_BODY_BYTES = 64 * 1024
_RETRY_AFTER_S_MAX = 60.0
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/(?:[0-9]{1,18}|\*)\Z")

MakeHeaders = Callable[[str], Mapping[str, str]]
"""Returns what a request for a path carries to prove who asks; called for every request, since proofs age."""


def no_headers(_path: str) -> Mapping[str, str]:
    """Prove nothing: for sources that serve whoever asks."""
    return {}


@dataclass(frozen=True)
class ChunkSource:
    """Where a file can be had.

    Attributes:
        name: what people and logs call it.
        url: of exactly this file.
        make_headers: proof of who asks; never sent to where a redirect leads.
        tls: how its certificate is judged; None: by the name in the URL and the system's roots.
    """

    name: str
    url: str
    make_headers: MakeHeaders = no_headers
    tls: ssl.SSLContext | None = None


class Answer(NamedTuple):
    """An answer whose body is being read: which bytes of the file it holds."""

    start: int
    size_bytes: int
    body: http.client.HTTPResponse


class RangeClient:
    """The connection to one source."""

    def __init__(self, source: ChunkSource, *, read_timeout_s: float = READ_TIMEOUT_S) -> None:
        self.source = source
        self._read_timeout_s = read_timeout_s
        self._connection: http.client.HTTPConnection | None = None
        self._socket: socket.socket | None = None
        self._at = ("", "")
        self._tls = source.tls

    def open(self, first_byte: int, last_byte: int) -> Answer:
        """Ask for a range, both ends included.

        The answer may hold fewer bytes, from the same beginning: a source that is fetching the file itself gives what
        it has.

        Raises:
            Rejected: this source will not give the file, however often it is asked (404, 401, no ranges).
            Unavailable: it may later.
        """
        response = self._get({"range": f"bytes={first_byte}-{last_byte}", "accept-encoding": "identity"})
        name = self.source.name
        if response.status == 206:
            match = _CONTENT_RANGE.match(response.getheader("content-range", ""))
            if match is None or int(match[1]) != first_byte or not first_byte <= int(match[2]) <= last_byte:
                self.close()
                raise Rejected(f"{name}: asked for bytes {first_byte}-{last_byte}, it answers with other ones")
            return Answer(first_byte, int(match[2]) - first_byte + 1, response)
        if response.status == 200 and first_byte == 0 and response.length is not None:
            # It knows no ranges, or the range was the whole file; what is too much is left unread.
            return Answer(0, min(response.length, last_byte + 1), response)
        raise self._refusal(response)

    def get_small(self, bytes_max: int) -> bytes:
        """Return a whole small body; raises as `open` does, and Rejected when it is over `bytes_max`."""
        response = self._get({"accept-encoding": "identity"})
        if response.status != 200:
            raise self._refusal(response)
        try:
            data = response.read(bytes_max + 1)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise Unavailable(f"{self.source.name}: broke off: {_words(error)}") from error
        if len(data) > bytes_max:
            self.close()
            raise Rejected(f"{self.source.name}: answers with more than {bytes_max} bytes")
        return data

    def read_into(self, answer: Answer, buffer: memoryview) -> int:
        """Read some bytes of a body; 0 means that it ended early. Raises Unavailable when the connection breaks."""
        try:
            return answer.body.readinto(buffer)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            raise Unavailable(f"{self.source.name}: broke off: {_words(error)}") from error

    def finish(self, answer: Answer) -> None:
        """Keep the connection if the body was read to its end, and close it otherwise."""
        if not answer.body.isclosed():
            self.close()

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
        self._connection = self._socket = None

    def abort(self) -> None:
        """End a read that another thread is in; it then raises Unavailable there."""
        wire = self._socket
        if wire is not None:
            with contextlib.suppress(OSError):
                wire.shutdown(socket.SHUT_RDWR)

    def _get(self, headers: dict[str, str]) -> http.client.HTTPResponse:
        url = self.source.url
        proof = self.source.make_headers(urlsplit(url).path)
        for _ in range(_REDIRECTS_MAX + 1):
            response = self._ask(url, {**headers, **proof})
            target = response.getheader("location")
            if response.status not in (301, 302, 303, 307, 308) or target is None:
                return response
            self.close()
            url, proof = urljoin(url, target), {}
        raise Rejected(f"{self.source.name}: redirects more than {_REDIRECTS_MAX} times")

    def _ask(self, url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        parts = urlsplit(url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        is_kept = self._connection is not None and self._at == (parts.scheme, parts.netloc)
        try:
            return self._send(url, path, headers)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if not is_kept:
                raise Unavailable(f"{self.source.name}: {_words(error)}") from error
        try:
            # A connection that was kept may have been closed meanwhile; that says nothing about the source.
            return self._send(url, path, headers)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise Unavailable(f"{self.source.name}: {_words(error)}") from error

    def _send(self, url: str, path: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        connection = self._connect(url)
        connection.request("GET", path, headers=headers)
        return connection.getresponse()

    def _connect(self, url: str) -> http.client.HTTPConnection:
        parts = urlsplit(url)
        if self._connection is not None and self._at == (parts.scheme, parts.netloc):
            return self._connection
        self.close()
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Rejected(f"{self.source.name}: {url[:200]!r} is no http or https URL")
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            self._tls = self._tls or ssl.create_default_context()
            connection = http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=CONNECT_TIMEOUT_S, context=self._tls
            )
        else:
            connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=CONNECT_TIMEOUT_S)
        connection.connect()
        connection.sock.settimeout(self._read_timeout_s)
        self._connection, self._socket, self._at = connection, connection.sock, (parts.scheme, parts.netloc)
        return connection

    def _refusal(self, response: http.client.HTTPResponse) -> Rejected | Unavailable:
        status, after = response.status, response.getheader("retry-after", "")
        with contextlib.suppress(OSError, http.client.HTTPException):
            response.read(_SMALL_BODY_BYTES)
        if not response.isclosed():
            self.close()
        text = f"{self.source.name}: answers with {status}"
        if status in (408, 425, 429) or status >= 500:
            after_s = min(float(after), _RETRY_AFTER_S_MAX) if after.isdecimal() else None
            return Unavailable(text, retry_after_s=after_s)
        return Rejected(text)


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
