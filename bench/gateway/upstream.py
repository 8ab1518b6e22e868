"""The synthetic engine: answers at once with the same bytes. It is no model.

Started by the bench as `python -m bench.gateway.upstream PORT`. One mode at a time, set by `GET /bench/MODE`, which
answers with what was counted so far. Every piece of a stream is one write to the socket, past any buffer that would
join it with the next.
"""

import asyncio
import json
import os
import sys
from typing import Any, cast

import msgspec
import uvloop

CHUNKS = 100
"""Writes in a stream, its two last events included."""
SHORT_CHUNKS = 8
PACE_S = 0.02
MODEL = "synthetic"
_JSON_BYTES = 1024
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Counts(msgspec.Struct):
    """What the engine has seen: connections with at least one request, requests, and writes of streams."""

    connections: int = 0
    requests: int = 0
    writes: int = 0


def plain_answer(body: bytes) -> bytes:
    """Return a whole answer of JSON."""
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def json_answer() -> bytes:
    """Return a chat answer whose body is `_JSON_BYTES` long."""

    def body(text: str) -> bytes:
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 7, "completion_tokens": CHUNKS, "total_tokens": 7 + CHUNKS}
        value = {"id": "chatcmpl-synthetic", "object": "chat.completion", "created": 1, "model": MODEL}
        return json.dumps({**value, "choices": [choice], "usage": usage}, ensure_ascii=False).encode()

    text = "가" * ((_JSON_BYTES - len(body(""))) // 3)
    return plain_answer(body(text + "." * (_JSON_BYTES - len(body(text)))))


def _event(value: object) -> bytes:
    data = b"data: " + json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


def stream_pieces(count: int) -> list[bytes]:
    """Return `count` writes that make a streamed chat answer; the first carries the head too."""
    base = {"id": "chatcmpl-synthetic", "object": "chat.completion.chunk", "created": 1, "model": MODEL}

    def delta(value: dict[str, Any], reason: str | None = None) -> bytes:
        return _event({**base, "choices": [{"index": 0, "delta": value, "finish_reason": reason}]})

    usage = {"prompt_tokens": 7, "completion_tokens": count - 2, "total_tokens": 5 + count}
    text = delta({"content": "가나다"})
    last = _event({**base, "choices": [], "usage": usage}) + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
    pieces = [text] * (count - 2) + [delta({}, "stop"), last]
    pieces[0] = _STREAM_HEAD + pieces[0]
    return pieces


class Engine:
    """The mode, its bytes and the counts; shared by all connections."""

    def __init__(self) -> None:
        self.counts = Counts()
        self.mode = "json"
        self.json = json_answer()
        self.burst = stream_pieces(CHUNKS)
        self.short = stream_pieces(SHORT_CHUNKS)
        models = {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "bench"}]}
        self.models = plain_answer(json.dumps(models).encode())

    def switch(self, mode: str) -> bytes:
        """Take a mode, unless the name is `counts`, and return the counts as an answer."""
        if mode in ("json", "burst", "paced", "short"):
            self.mode = mode
        return plain_answer(msgspec.json.encode(self.counts))


class Connection(asyncio.Protocol):
    """One connection of a gateway."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.data, self.is_used = engine, b"", False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport and its descriptor."""
        self.transport = cast(asyncio.Transport, transport)
        self.descriptor = transport.get_extra_info("socket").fileno()

    def data_received(self, data: bytes) -> None:
        """Answer every whole request."""
        self.data = data = self.data + data if self.data else data
        while (end := data.find(b"\r\n\r\n")) >= 0:
            if data.startswith(b"GET"):
                self._answer_get(data[:end])
                data = self.data = data[end + 4 :]
                continue
            head = data[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0])
            if len(data) < end + 4 + length:
                return
            body, data = data[end + 4 : end + 4 + length], data[end + 4 + length :]
            self.data = data
            self._answer(body)

    def _answer_get(self, head: bytes) -> None:
        path = head.split(b" ", 2)[1].decode()
        if path.startswith("/bench/"):
            self.transport.write(self.engine.switch(path.removeprefix("/bench/")))
        else:
            self.transport.write(self.engine.models)

    def _answer(self, body: bytes) -> None:
        engine = self.engine
        counts = engine.counts
        counts.requests += 1
        if not self.is_used:
            self.is_used = True
            counts.connections += 1
        mode = engine.mode
        if mode == "json" and b'"stream":true' not in body and b'"stream": true' not in body:
            self.transport.write(engine.json)
        elif mode == "paced":
            self._write_paced(0)
        else:
            # A gateway that asks for a stream where its client wants one object gets a short one.
            pieces = engine.burst if mode == "burst" else engine.short
            counts.writes += len(pieces)
            self._write_each(pieces)

    def _write_each(self, pieces: list[bytes]) -> None:
        """Write each piece by a system call of its own; what the socket does not take goes the usual way."""
        descriptor = self.descriptor
        for number, piece in enumerate(pieces):
            try:
                done = os.write(descriptor, piece)
            except BlockingIOError:
                done = 0
            except OSError:
                return
            if done < len(piece):
                self.transport.write(piece[done:] + b"".join(pieces[number + 1 :]))
                return

    def _write_paced(self, number: int) -> None:
        pieces = self.engine.burst
        if self.transport.is_closing():
            return
        self.engine.counts.writes += 1
        self.transport.write(pieces[number])
        if number + 1 < len(pieces):
            asyncio.get_running_loop().call_later(PACE_S, self._write_paced, number + 1)


async def serve(port: int) -> None:
    """Answer for ever."""
    engine = Engine()
    await asyncio.get_running_loop().create_server(lambda: Connection(engine), "127.0.0.1", port, backlog=4096)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
