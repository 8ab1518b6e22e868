"""Sources of artifacts for tests: a real HTTP server on loopback that can fail, wheels built on the spot."""

import contextlib
import hashlib
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from madang.model import ArtifactFile


def file_of(data, name="weights.bin", sources=()):
    return ArtifactFile(name=name, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), sources=sources)


class FileServer:
    """Serves one body at every path.

    Attributes:
        cut_after: break the connection after so many bytes of each of the next answers.
        has_ranges, has_head: what it supports.
        etag: entity tag it states.
        requests: (method, path, range) of every request.
    """

    def __init__(self, body):
        self.body = body
        self.cut_after = []
        self.has_ranges = self.has_head = True
        self.etag = ""
        self.status = 200
        self.requests = []
        self.gate = None

    @contextlib.contextmanager
    def running(self):
        server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def _handler(self):
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                owner.requests.append(("HEAD", self.path, None))
                self.answer(owner.status if owner.has_head else 405, owner.body, is_head=True)

            def do_GET(self):
                asked = self.headers.get("range")
                owner.requests.append(("GET", self.path, asked))
                if owner.gate is not None:
                    owner.gate.wait(10)
                start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and owner.has_ranges else 0
                self.answer(206 if start else owner.status, owner.body[start:], start=start)

            def answer(self, status, body, *, is_head=False, start=0):
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                if owner.etag:
                    self.send_header("etag", f'"{owner.etag}"')
                if start:
                    self.send_header("content-range", f"bytes {start}-{len(owner.body) - 1}/{len(owner.body)}")
                self.end_headers()
                if is_head:
                    return
                if owner.cut_after:
                    body = body[: owner.cut_after.pop(0)]
                    self.close_connection = True
                self.wfile.write(body)

            def log_message(self, *_args):
                pass

        return Handler


def make_wheel(folder, package, member, data):
    """Write a wheel that pip can download, and return its SHA-256."""
    name = package.replace("-", "_")
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(member, data)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()
