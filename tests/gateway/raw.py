"""A raw client: bytes out, bytes in, for what no HTTP library would send."""

import json
import socket
from dataclasses import dataclass

from tests.gateway.lab import CHAT


@dataclass
class RawAnswer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict:
        return json.loads(self.body)["error"]


class RawClient:
    """One connection; reads answers by their framing."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._held = b""

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def recv_until(self, mark: bytes) -> bytes:
        """Everything up to and with `mark`."""
        while mark not in self._held:
            data = self.sock.recv(65536)
            if not data:
                raise EOFError(f"closed after {self._held!r}")
            self._held += data
        found, _, self._held = self._held.partition(mark)
        return found + mark

    def _exactly(self, count: int) -> bytes:
        while len(self._held) < count:
            data = self.sock.recv(65536)
            if not data:
                raise EOFError(f"closed after {self._held!r}")
            self._held += data
        found, self._held = self._held[:count], self._held[count:]
        return found

    def head(self) -> tuple[int, dict[str, str]]:
        line, *rest = self.recv_until(b"\r\n\r\n").decode().split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (one.partition(":") for one in rest if one)}
        return int(line.split()[1]), fields

    def answer(self) -> RawAnswer:
        """The final answer; signs of life before it are skipped."""
        status, fields = self.head()
        while status == 102:
            status, fields = self.head()
        if fields.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self.recv_until(b"\r\n"), 16):
                body += self._exactly(size)
                assert self._exactly(2) == b"\r\n"
            assert self._exactly(2) == b"\r\n"
            return RawAnswer(status, fields, body)
        return RawAnswer(status, fields, self._exactly(int(fields["content-length"])))

    def rest(self) -> bytes:
        """Everything until the server closes; a reset counts as a close."""
        found = self._held
        self._held = b""
        try:
            while data := self.sock.recv(65536):
                found += data
        except ConnectionResetError:
            pass
        return found

    def is_closed(self) -> bool:
        """Wait for the server's close; raises TimeoutError when it does not come."""
        return self.rest() == b""

    def close(self) -> None:
        self.sock.close()


def post(body: bytes, key: str, *more: bytes, path: bytes = b"/v1/chat/completions", version: bytes = b"1.1") -> bytes:
    """A well-formed POST with a Content-Length."""
    lines = [b"POST %b HTTP/%b" % (path, version), b"host: x", b"authorization: Bearer " + key.encode(), *more]
    return b"\r\n".join([*lines, b"content-length: %d" % len(body), b"", b""]) + body


def chat_body(**fields: object) -> bytes:
    return json.dumps({"model": CHAT, "messages": [{"role": "user", "content": "안녕?"}], **fields}).encode()
