"""A fake engine for crowds, in a process of its own: `python -m tests.gateway.paced_engine TOKENS RATE_HZ`.

It prints its port, then answers every chat request: in one object at once, or as a stream of TOKENS events at RATE_HZ.
All streams share ten timers, so that thousands of them cost it little; it is no model and looks at nothing it is asked
but `"stream":true`.
"""

import asyncio
import json
import sys
from typing import cast

import uvloop

PHASES = 10


def _chunk(value: object) -> bytes:
    data = b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(delta: dict, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    base = {"id": "chatcmpl-paced", "object": "chat.completion.chunk", "created": 1, "model": "paced"}
    return _chunk({**base, "choices": [choice]})


def _usage(tokens: int) -> dict:
    return {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 7 + tokens}


def whole(tokens: int) -> bytes:
    """An answer in one object."""
    message = {"role": "assistant", "content": "가" * tokens}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    value = {"id": "chatcmpl-paced", "object": "chat.completion", "created": 1, "model": "paced"}
    body = json.dumps({**value, "choices": [choice], "usage": _usage(tokens)}).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
TOKEN = _event({"content": "가"})


def end(tokens: int) -> bytes:
    """The last events of a stream."""
    value = {"id": "chatcmpl-paced", "object": "chat.completion.chunk", "created": 1, "model": "paced"}
    done = b"data: [DONE]\n\n"
    last = _event({}, "stop") + _chunk({**value, "choices": [], "usage": _usage(tokens)})
    return last + b"%x\r\n%b\r\n0\r\n\r\n" % (len(done), done)


class Pacer:
    """Writes one event to each of its streams in every turn."""

    def __init__(self, tokens: int, rate_hz: float) -> None:
        self.tokens, self.period_s = tokens, 1 / rate_hz
        self.whole, self.end = whole(tokens), end(tokens)
        self.phases: list[dict[asyncio.Transport, int]] = [{} for _ in range(PHASES)]
        self.count = 0

    def begin(self, transport: asyncio.Transport) -> None:
        transport.write(HEAD + _event({"role": "assistant"}))
        self.phases[self.count % PHASES][transport] = self.tokens
        self.count += 1

    def leave(self, transport: asyncio.Transport) -> None:
        for phase in self.phases:
            phase.pop(transport, None)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        due, turn = loop.time(), 0
        while True:
            due += self.period_s / PHASES
            await asyncio.sleep(max(0.0, due - loop.time()))
            phase = self.phases[turn % PHASES]
            turn += 1
            for transport, left in tuple(phase.items()):
                if left:
                    transport.write(TOKEN)
                    phase[transport] = left - 1
                else:
                    transport.write(self.end)
                    del phase[transport]


class Connection(asyncio.Protocol):
    """Answers each request once its body is here; requests come one at a time."""

    def __init__(self, pacer: Pacer) -> None:
        self.pacer = pacer
        self.held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.held += data
        head, mark, body = self.held.partition(b"\r\n\r\n")
        if not mark:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        self.held = b""
        if b'"stream":true' in body.replace(b" ", b""):
            self.pacer.begin(self.transport)
        else:
            self.transport.write(self.pacer.whole)

    def connection_lost(self, exc: Exception | None) -> None:
        self.pacer.leave(self.transport)


async def main(tokens: int, rate_hz: float) -> None:
    """Serve until ended."""
    pacer = Pacer(tokens, rate_hz)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(pacer), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await pacer.run()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), float(sys.argv[2])))
