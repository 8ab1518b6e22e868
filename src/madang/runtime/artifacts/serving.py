"""Serves a cache to those who may have it: whole files and finished chunks of files that are still being fetched.

Owns the port, its limits and the answers. Refuses to judge who asks (a function comes in) and to serve anything that
was not verified. Called by the site program, in threads of its own; bytes go from the page cache to the socket without
passing through Python, so the event loop beside it is not held up.

`GET` and `HEAD /artifacts/<sha256>` with or without one byte range, and `GET /artifacts/<sha256>/manifest`. A range of
a file that is being fetched is answered with what is finished of it from its beginning, or with 503 and `retry-after`.
"""

import contextlib
import os
import re
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from madang.core import Rejected
from madang.runtime.artifacts.chunk_file import data_path, read_finished
from madang.runtime.artifacts.manifests import read_manifest
from madang.runtime.listening import open_listener
from madang.wire.artifacts import FileChunks

CONNECTIONS_MAX = 64
IDLE_TIMEOUT_S = 30.0
HANDSHAKE_TIMEOUT_S = 10.0
_PATH = re.compile(r"/artifacts/([0-9a-f]{64})(/manifest)?\Z")
_RANGE = re.compile(r"bytes=([0-9]{1,18})-([0-9]{0,18})\Z")
_RETRY_AFTER_S = 1

ANYBODY = "anybody"

Authorise = Callable[[str, Mapping[str, str]], str | None]
"""Takes path and headers (lower-case names); returns what asks, as a label; raises Rejected for who may not have it."""

FindContext = Callable[[], ssl.SSLContext]
"""Returns the certificate to show to a new connection."""

FindChunks = Callable[[str], FileChunks | None]
"""Returns what a believed manifest says of a file that is not whole yet."""


class _Part(NamedTuple):
    """Verified bytes of a file: where they lie, from where to where, and how long the whole file is."""

    path: Path
    first: int
    last: int
    size_bytes: int


class ServedCounts:
    """Requests by asker and answer, and bytes by asker, over all ports of a program."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, str]] = Counter()
        self._bytes: Counter[str] = Counter()

    def answered(self, asker: str, answer: str) -> None:
        """Count a request."""
        with self._lock:
            self._requests[asker, answer] += 1

    def sent(self, asker: str, size_bytes: int) -> None:
        """Count bytes that went out."""
        with self._lock:
            self._bytes[asker] += size_bytes

    def read(self) -> tuple[dict[tuple[str, str], int], dict[str, int]]:
        """Return requests by asker and answer, and bytes by asker."""
        with self._lock:
            return dict(self._requests), dict(self._bytes)


class ArtifactServer:
    """One port over one cache.

    Args:
        folder: of the cache.
        authorise: judges every request.
        find_chunks: what a believed manifest says of a file that is not whole yet.
        host, port: where it listens; port 0 takes a free one.
        counts: what is counted; one's own without.
        find_context: makes it a TLS port.
    """

    def __init__(
        self,
        folder: Path,
        authorise: Authorise,
        find_chunks: FindChunks,
        host: str,
        port: int,
        *,
        counts: ServedCounts | None = None,
        find_context: FindContext | None = None,
    ) -> None:
        listener = open_listener(host, port)
        self.port = int(listener.getsockname()[1])
        self._server = _Server(listener, folder, authorise, find_chunks)
        self._server.counts = counts or ServedCounts()
        self._server.find_context = find_context
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="artifacts", daemon=True)

    def start(self) -> None:
        """Serve from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Close the port and every connection."""
        self._server.shutdown()
        self._thread.join()
        self._server.close_all()


class _Server(ThreadingHTTPServer):
    """Threads in a bounded number; over it, connections are closed at once and their askers come again."""

    daemon_threads = True
    block_on_close = False
    counts: ServedCounts
    find_context: FindContext | None = None

    def __init__(self, listener: socket.socket, folder: Path, authorise: Authorise, find_chunks: FindChunks) -> None:
        super().__init__(listener.getsockname()[:2], _Handler, bind_and_activate=False)
        self.folder, self.authorise, self.find_chunks = folder, authorise, find_chunks
        self.socket.close()
        self.socket = listener
        self._room = threading.BoundedSemaphore(CONNECTIONS_MAX)
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.counts.answered(ANYBODY, "busy")
            self.shutdown_request(request)
            return
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        wire = request
        try:
            if self.find_context is not None:
                wire = self._shake_hands(request, self.find_context())
            super().process_request_thread(wire, client_address)
        except (OSError, ValueError):
            # Of the handshake: what came is no TLS, or the other side does not like our certificate.
            self.counts.answered(ANYBODY, "no_tls")
        finally:
            with self._lock:
                self._open -= {request, wire}
            self._room.release()

    def _shake_hands(self, request: socket.socket, context: ssl.SSLContext) -> socket.socket:
        """Return the connection under TLS; in the connection's own thread, so that nobody else waits."""
        request.settimeout(HANDSHAKE_TIMEOUT_S)
        wire = context.wrap_socket(request, server_side=True)
        with self._lock:
            self._open.add(wire)
        return wire

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a peer that goes away in the middle of an answer is normal life."""

    def close_all(self) -> None:
        self.server_close()
        with self._lock:
            for request in self._open:
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)


def find_part(folder: Path, sha256: str, asked: tuple[int, int | None], find_chunks: FindChunks) -> _Part | None:
    """Return what of a range is verified, from its beginning; an empty part when its beginning is not here yet.

    Args:
        folder: of the cache.
        sha256: of the file.
        asked: first and last byte, the last one None for the end.
        find_chunks: what a believed manifest says of the file.

    Returns:
        None when the file is neither here nor on its way.
    """
    first, last = asked
    path = folder / sha256[:2] / sha256
    with contextlib.suppress(FileNotFoundError):
        # The marker says that it was verified; a file without one may be half a copy.
        path.with_name(path.name + ".ok").stat()
        size_bytes = path.stat().st_size
        return _Part(path, first, min(size_bytes - 1, size_bytes if last is None else last), size_bytes)
    file = find_chunks(sha256)
    if file is None:
        return None
    finished = read_finished(folder / ".partial", file)
    wanted_last = min(file.size_bytes - 1, file.size_bytes if last is None else last)
    end = first
    while end <= wanted_last and end // file.chunk_bytes in finished:
        end = sum(file.span_of(end // file.chunk_bytes))
    return _Part(data_path(folder / ".partial", sha256), first, min(end - 1, wanted_last), file.size_bytes)


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: _Server
    asker = ANYBODY

    protocol_version = "HTTP/1.1"
    timeout = IDLE_TIMEOUT_S
    server_version = "madang"
    sys_version = ""
    # Headers and bytes are sent apart; without this the bytes wait for an acknowledgement.
    disable_nagle_algorithm = True

    def do_HEAD(self) -> None:
        self._answer(is_head=True)

    def do_GET(self) -> None:
        self._answer(is_head=False)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing per request."""

    def _answer(self, *, is_head: bool) -> None:
        self.asker = ANYBODY
        match = _PATH.match(self.path)
        if match is None:
            self._refuse(404, "not_found", "this port serves /artifacts/<sha256>")
            return
        try:
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.asker = self.server.authorise(self.path, headers) or ANYBODY
        except Rejected as error:
            self._refuse(401, "invalid_token", error.message)
            return
        if match[2]:
            self._send_manifest(match[1])
        else:
            self._send_file(match[1], is_head=is_head)

    def _send_manifest(self, sha256: str) -> None:
        document = read_manifest(self.server.folder, sha256)
        if document is None:
            self._refuse(404, "not_found", f"no manifest of {sha256} is here")
        else:
            self.server.counts.answered(self.asker, "manifest")
            self._send_body(200, document)

    def _send_file(self, sha256: str, *, is_head: bool) -> None:
        text = self.headers.get("range")
        match = _RANGE.match(text) if text is not None else None
        if text is not None and match is None:
            self._refuse(416, "invalid_request", "one range with a beginning is served: bytes=FIRST-LAST")
            return
        asked = (int(match[1]), int(match[2]) if match[2] else None) if match is not None else (0, None)
        part = find_part(self.server.folder, sha256, asked, self.server.find_chunks)
        if part is None:
            self._refuse(404, "not_found", f"artifact {sha256} is not in this cache")
        elif part.first >= part.size_bytes:
            self._refuse(416, "invalid_request", f"the file has {part.size_bytes} bytes")
        elif part.last < part.first or (match is None and part.last + 1 < part.size_bytes):
            self._refuse(503, "unavailable", f"artifact {sha256} is being fetched", retry_after_s=_RETRY_AFTER_S)
        else:
            self._send_part(sha256, part, is_range=match is not None, is_head=is_head)

    def _send_part(self, sha256: str, part: _Part, *, is_range: bool, is_head: bool) -> None:
        try:
            descriptor = os.open(part.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            # It became whole, or left, this moment.
            self._refuse(503, "unavailable", f"artifact {sha256} moves", retry_after_s=_RETRY_AFTER_S)
            return
        self.server.counts.answered(self.asker, "head" if is_head else "range" if is_range else "whole")
        try:
            left_bytes = part.last + 1 - part.first
            self.send_response(206 if is_range else 200)
            self.send_header("content-length", str(left_bytes))
            self.send_header("content-type", "application/octet-stream")
            self.send_header("accept-ranges", "bytes")
            self.send_header("etag", f'"{sha256}"')
            if is_range:
                self.send_header("content-range", f"bytes {part.first}-{part.last}/{part.size_bytes}")
            self.end_headers()
            if not is_head:
                self._send_bytes(descriptor, part.first, left_bytes)
        finally:
            os.close(descriptor)

    def _send_bytes(self, descriptor: int, offset: int, left_bytes: int) -> None:
        self.wfile.flush()
        with open(descriptor, "rb", buffering=0, closefd=False) as opened:
            try:
                sent = self.connection.sendfile(opened, offset, left_bytes)
            finally:
                # It leaves the file's position behind the last byte that went out, also when it fails.
                self.server.counts.sent(self.asker, max(0, opened.tell() - offset))
        if sent < left_bytes:
            self.close_connection = True

    def _send_body(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.send_header("content-type", "application/json")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str, message: str, *, retry_after_s: int | None = None) -> None:
        self.server.counts.answered(self.asker, code)
        body = msgspec.json.encode({"error": {"code": code, "message": message, "next_step": ""}})
        self.send_response(status)
        if retry_after_s is not None:
            self.send_header("retry-after", str(retry_after_s))
        self.send_header("content-length", str(len(body)))
        self.send_header("content-type", "application/json")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
