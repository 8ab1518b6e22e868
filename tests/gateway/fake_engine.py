"""A fake inference engine: enough HTTP and SSE to look like one over a real loopback socket.

It answers as llama.cpp's server does (a role event, one event a token, a finish event with timings, a usage event,
[DONE]), in one object when no stream is asked for, and can be told to misbehave.
"""

import asyncio
import json
from dataclasses import dataclass, field


@dataclass
class EngineRequest:
    """What the engine was sent."""

    path: str
    headers: dict[str, str]
    body: dict


@dataclass
class FakeEngine:
    """One engine; `mode` says how it behaves from the next request on.

    ok: answers. endless: a token every millisecond until left. hang: takes the request and says nothing.
    status: answers `status` with `error_body`. die_first: closes before the first byte.
    die_middle: closes after two tokens.
    error_middle: reports an error inside the stream after two tokens. no_done: ends without [DONE].
    drop_after: answers, then closes the connection without having said so. wait: waits for `gate`, then answers.
    flood: a large token as fast as the socket takes it, until left. steps: waits for `step` before each token.
    half: sends half of an object and closes.
    """

    mode: str = "ok"
    tokens: list[str] = field(default_factory=lambda: ["안녕", "하세요", "!"])
    status: int = 500
    error_body: dict = field(default_factory=lambda: {"error": {"message": "broken", "code": 500}})
    usage: dict | None = field(default_factory=lambda: {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10})
    dimensions: int = 4
    vectors: list[list[float]] | None = None
    logprobs: dict | None = None
    requests: list[EngineRequest] = field(default_factory=list)
    connections: int = 0
    active: int = 0
    left: int = 0
    sent_bytes: int = 0
    port: int = 0

    def __post_init__(self) -> None:
        self.gate = asyncio.Event()
        self.step = asyncio.Semaphore(0)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> "FakeEngine":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in tuple(self._writers):
            writer.transport.abort()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            while await self._serve_one(reader, writer):
                pass
        except (ConnectionError, RuntimeError, asyncio.IncompleteReadError):
            pass  # uvloop has a RuntimeError for a write to what is closed
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        line, *rest = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (one.partition(":") for one in rest if one)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        self.requests.append(EngineRequest(line.split()[1], headers, json.loads(body)))
        self.active += 1
        work = asyncio.ensure_future(self._answer(self.requests[-1], writer))
        watch = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done() or isinstance(work.exception(), ConnectionError | RuntimeError):
                self.left += 1
                work.cancel()
                return False
            return await work
        finally:
            self.active -= 1
            watch.cancel()
            await asyncio.gather(watch, work, return_exceptions=True)

    async def _answer(self, request: EngineRequest, writer: asyncio.StreamWriter) -> bool:
        if self.mode == "hang":
            await asyncio.Event().wait()
        if self.mode == "wait":
            await self.gate.wait()
        if self.mode == "die_first":
            return False
        if self.mode == "status":
            self._write_json(writer, self.status, self.error_body)
        elif request.path == "/v1/embeddings":
            self._write_json(writer, 200, self._embeddings(request.body))
        elif request.path in ("/v1/chat/completions", "/v1/completions") and not request.body.get("stream"):
            self._write_json(writer, 200, self._whole(request))
        elif request.path in ("/v1/chat/completions", "/v1/completions"):
            if not await self._stream(request, writer):
                return False
        else:
            self._write_json(writer, 404, {"error": {"message": "no such path"}})
        await writer.drain()
        return self.mode not in ("drop_after", "half")

    def _embeddings(self, body: dict) -> dict:
        rows = [
            {"object": "embedding", "index": index, "embedding": self._vector(index)}
            for index in range(len(body["input"]))
        ]
        return {
            "object": "list",
            "data": rows,
            "model": "engine-file.gguf",
            "usage": {"prompt_tokens": 5, "total_tokens": 5},
        }

    def _vector(self, index: int) -> list[float]:
        return self.vectors[index] if self.vectors is not None else [float(index + 1)] * self.dimensions

    def _whole(self, request: EngineRequest) -> dict:
        text = "".join(self.tokens)
        is_chat = request.path == "/v1/chat/completions"
        said = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
        return {
            "id": "chatcmpl-engine",
            "model": "engine-file.gguf",
            "created": 1,
            "choices": [{"index": 0, **said, "logprobs": None, "finish_reason": "stop"}],
            "timings": {"predicted_per_second": 26.0},
            **({} if self.usage is None else {"usage": self.usage}),
        }

    async def _stream(self, request: EngineRequest, writer: asyncio.StreamWriter) -> bool:
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
            b"Access-Control-Allow-Origin: *\r\n\r\n"
        )
        is_chat = request.path == "/v1/chat/completions"
        if is_chat:
            self._event(writer, [{"index": 0, "delta": {"role": "assistant", "content": None}, "finish_reason": None}])
        if self.mode in ("endless", "flood"):
            await self._endless(is_chat, writer)
        for number, token in enumerate(self.tokens):
            if number == 2 and self.mode in ("die_middle", "error_middle"):
                await writer.drain()
                if self.mode == "die_middle":
                    return False
                self._data(writer, json.dumps({"error": {"message": "slot lost", "code": 500}}))
                break
            if self.mode == "steps":
                await self.step.acquire()
            self._token(is_chat, writer, token)
            await writer.drain()
        else:
            last = (
                {"index": 0, "delta": {}, "finish_reason": "stop"}
                if is_chat
                else {"index": 0, "text": "", "finish_reason": "stop"}
            )
            self._event(writer, [last], timings={"predicted_per_second": 26.0})
            if self.usage is not None:
                self._event(writer, [], usage=self.usage, timings={"predicted_per_second": 26.0})
        if self.mode != "no_done":
            self._data(writer, "[DONE]")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    async def _endless(self, is_chat: bool, writer: asyncio.StreamWriter) -> None:
        text = "토큰" if self.mode == "endless" else "가" * 8000
        while True:
            self._token(is_chat, writer, text)
            await writer.drain()
            await asyncio.sleep(0.001 if self.mode == "endless" else 0)

    def _token(self, is_chat: bool, writer: asyncio.StreamWriter, text: str) -> None:
        if is_chat:
            self._event(writer, [{"index": 0, "delta": {"content": text}, "finish_reason": None}])
        else:
            self._event(writer, [{"index": 0, "text": text, "logprobs": self.logprobs, "finish_reason": None}])

    def _event(self, writer: asyncio.StreamWriter, choices: list, **more: object) -> None:
        event = {"choices": choices, "created": 1, "id": "chatcmpl-engine", "model": "engine-file.gguf", **more}
        self._data(writer, json.dumps(event, ensure_ascii=False, separators=(",", ":")))

    def _data(self, writer: asyncio.StreamWriter, payload: str) -> None:
        data = f"data: {payload}\n\n".encode()
        self.sent_bytes += len(data)
        writer.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _write_json(self, writer: asyncio.StreamWriter, status: int, body: dict) -> None:
        data = json.dumps(body).encode()
        sent = data[: len(data) // 2] if self.mode == "half" else data
        writer.write(
            b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (status, len(data), sent)
        )
