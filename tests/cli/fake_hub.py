"""A fake hub: answers what a test tells it to, and remembers what it was asked. Speaks HTTP on a real socket."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeHub:
    """Answers `(method, path)` with `(status, JSON)`; anything else is 404 as the real one words it.

    A function is asked with the query for what to answer.
    """

    def __init__(self, token="fake-token"):
        self.token = token
        self.answers = {}
        self.calls = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self):
                path, _, query = self.path.partition("?")
                length = int(self.headers.get("content-length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                fake.calls.append((self.command, path, query, body))
                answer = fake.answers.get((self.command, path), (404, fake.error("not_found", f"no {path}")))
                status, value = answer(query) if callable(answer) else answer
                if self.headers.get("authorization") != f"Bearer {fake.token}":
                    status, value = 401, fake.error("invalid_token", "no valid admin token")
                data = b"" if value is None else value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer  # noqa: N815 - http.server's names

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    @staticmethod
    def error(code, message, next_step=""):
        return {"error": {"code": code, "message": message, "next_step": next_step}}

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
