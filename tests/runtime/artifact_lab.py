"""An origin of artifacts that cuts, stalls and flips as told, and files to fetch from it: real sockets on loopback."""

import contextlib
import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from madang.runtime.artifacts.chunk_file import read_finished
from madang.runtime.artifacts.limiter import RateLimiter
from madang.runtime.artifacts.ranges import ChunkSource
from madang.runtime.artifacts.transfer import TransferKit
from madang.runtime.clock import SystemClock, SystemEntropy
from madang.wire.artifacts import CHUNK_BYTES_MIN, FileChunks

CHUNK = CHUNK_BYTES_MIN


def cut(data, name="weights.bin", chunk_bytes=CHUNK):
    pieces = [data[start : start + chunk_bytes] for start in range(0, len(data), chunk_bytes)]
    return FileChunks(
        name=name,
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        chunk_bytes=chunk_bytes,
        chunk_sha256s=tuple(hashlib.sha256(piece).hexdigest() for piece in pieces),
    )


def make_kit(**options):
    clock = SystemClock()
    options.setdefault("limiter", RateLimiter(clock))
    options.setdefault("patience_s", 5.0)
    return TransferKit(clock=clock, entropy=SystemEntropy(), **options)


class Origin:
    """Serves one file by ranges.

    Attributes:
        cuts: body bytes after which connections break; each counts from the one before, over all connections.
        flips: offsets of bytes that are sent with a bit flipped.
        status: what every request is answered with, if not the file.
        ranges: (first, last) of every request.
        again: chunks that were asked for although the journal in `watch` had them.
        gate: where set, bodies wait for it after `gate_after` bytes.
    """

    def __init__(self, data, *, watch=None, file=None):
        self.data = data
        self.cuts = []
        self.flips = set()
        self.status = None
        self.headers = {}
        self.ranges = []
        self.again = set()
        self.sent_bytes = 0
        self.gate, self.gate_after = None, 0
        self._watch, self._file = watch, file
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def running(self):
        server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/file"
        finally:
            if self.gate is not None:
                self.gate.set()
            server.shutdown()
            thread.join()
            server.server_close()

    def note(self, first, last):
        self.ranges.append((first, last))
        if self._watch is not None:
            finished = read_finished(self._watch, self._file)
            self.again |= finished & set(range(first // self._file.chunk_bytes, last // self._file.chunk_bytes + 1))

    def may_send(self, wanted):
        """Return how many of so many bytes go out, and whether the link is cut then."""
        with self._lock:
            is_cut = bool(self.cuts) and self.cuts[0] <= wanted
            allowed = self.cuts.pop(0) if is_cut else wanted
            if self.cuts and not is_cut:
                self.cuts[0] -= wanted
            self.sent_bytes += allowed
            return allowed, is_cut

    def body(self, first, last):
        data = bytearray(self.data[first : last + 1])
        for offset in self.flips:
            if first <= offset <= last:
                data[offset - first] ^= 1
        return bytes(data)

    def _handler(self):
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 10

            def do_GET(self):
                match = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("range", ""))
                first, last = int(match[1]), min(int(match[2]), len(owner.data) - 1)
                owner.note(first, last)
                if owner.status is not None:
                    self.send_response(owner.status)
                    for name, value in owner.headers.items():
                        self.send_header(name, value)
                    self.send_header("content-length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("content-length", str(last - first + 1))
                self.send_header("content-range", f"bytes {first}-{last}/{len(owner.data)}")
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.send_pieces(owner.body(first, last))

            def send_pieces(self, body):
                for start in range(0, len(body), 16384):
                    piece = body[start : start + 16384]
                    if owner.gate is not None and owner.sent_bytes >= owner.gate_after:
                        owner.gate.wait(10)
                    allowed, is_cut = owner.may_send(len(piece))
                    self.wfile.write(piece[:allowed])
                    if is_cut:
                        self.close_connection = True
                        return

            def log_message(self, *_args):
                pass

        return Handler


def source(url, name="origin"):
    return ChunkSource(name, url)
