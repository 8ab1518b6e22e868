"""A fake llama.cpp server that speaks its protocol: health, metrics, chat and text completions, streamed or not.

Owns the simulated answers and their faults. Refuses to pretend: every answer carries `system_fingerprint`
`simulated` and the header `x-madang-simulated`. Started in the engine's place by nodes whose settings name
`llama_cpp` among `engine_twins`, with the engine's own command line. Standard library and h11 only.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

from madang.engine.http_host import HttpAnswer, HttpRequest, error_answer, json_answer
from madang.engine.llama_cpp.codec import ServeOptions
from madang.engine.twin_kit import Twin, read_behaviour, run_twin

_WORDS = ("simulated", " answer", " of", " a", " twin", ",", " 모의", " 응답", " 토큰", ".")
_FINGERPRINT = "simulated"


class LlamaTwin:
    """Answers as llama.cpp's server would, without a model."""

    def __init__(self, options: ServeOptions, key: str) -> None:
        self._options = options
        self.twin = Twin(read_behaviour(options.model), key, self.respond)
        self._slots = asyncio.Semaphore(options.slots)
        self._running = self._waiting = self._generated = self._number = 0

    async def respond(self, request: HttpRequest) -> HttpAnswer:
        """Answer a request that passed key, loading and faults."""
        match request.method, request.path:
            case "GET", "/metrics":
                return self._metrics()
            case "GET", "/v1/models":
                return json_answer({"object": "list", "data": [{"id": self._options.alias, "object": "model"}]})
            case "POST", "/v1/chat/completions":
                return await self._complete(request, is_chat=True)
            case "POST", "/v1/completions":
                return await self._complete(request, is_chat=False)
            case _, "/slots":
                return error_answer(501, "not_supported_error", "This server does not support slots endpoint.")
            case _:
                return error_answer(404, "not_found_error", "File Not Found")

    def _metrics(self) -> HttpAnswer:
        lines = (
            f"llamacpp:requests_processing {self._running}\n"
            f"llamacpp:requests_deferred {self._waiting}\n"
            f"llamacpp:tokens_predicted_total {self._generated}\n"
        )
        return HttpAnswer(200, lines.encode(), content_type="text/plain; version=0.0.4")

    async def _complete(self, request: HttpRequest, *, is_chat: bool) -> HttpAnswer:
        try:
            body = json.loads(request.body)
        except ValueError as error:
            return error_answer(400, "invalid_request", f"malformed JSON: {error}")
        field = "messages" if is_chat else "prompt"
        if not isinstance(body, dict) or not body.get(field):
            return error_answer(400, "invalid_request", f"'{field}' is required")
        reply = _Reply(self, request, body, is_chat=is_chat)
        if reply.prompt_tokens > self._options.context_tokens:
            return error_answer(400, "exceed_context_size_error", "the request exceeds the available context size")
        if body.get("stream") is True:
            return HttpAnswer(200, content_type="text/event-stream", chunks=reply.stream())
        return await reply.whole()

    async def tokens(self, request: HttpRequest, count: int, *, is_cancelled_by_client: bool) -> AsyncIterator[str]:
        """Yield the tokens of one answer at the twin's pace, holding a slot."""
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        self._running += 1
        try:
            for index in range(count):
                # llama.cpp cancels only streams when their client goes.
                if not await self.twin.pace(index, request) and is_cancelled_by_client:
                    return
                self._generated += 1
                yield _WORDS[index % len(_WORDS)]
        finally:
            self._running -= 1
            self._slots.release()

    def next_number(self) -> int:
        """Return a number for the next completion's id."""
        self._number += 1
        return self._number


class _Reply:
    """One completion."""

    def __init__(self, host: LlamaTwin, request: HttpRequest, body: dict[str, Any], *, is_chat: bool) -> None:
        self._host = host
        self._request = request
        self._is_chat = is_chat
        self._model = host._options.alias
        self._id = f"{'chatcmpl' if is_chat else 'cmpl'}-simulated-{host.next_number()}"
        asked = body.get("max_completion_tokens", body.get("max_tokens"))
        full = host.twin.behaviour.answer_tokens
        is_cut = isinstance(asked, int) and 0 <= asked < full
        self._count = asked if isinstance(asked, int) and is_cut else full
        self._finish = "length" if is_cut else "stop"
        options = body.get("stream_options")
        self._has_usage = isinstance(options, dict) and options.get("include_usage") is True
        self.prompt_tokens = len(json.dumps(body["messages" if is_chat else "prompt"], ensure_ascii=False).split())

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield server-sent events."""
        produced = 0
        if self._is_chat:
            yield self._event({"role": "assistant", "content": None}, None)
        async for token in self._host.tokens(self._request, self._count, is_cancelled_by_client=True):
            produced += 1
            yield self._event({"content": token}, None)
        yield self._event({}, self._finish)
        if self._has_usage:
            yield _sse({**self._head("chunk"), "choices": [], "usage": self._usage(produced)})
        yield b"data: [DONE]\n\n"

    async def whole(self) -> HttpAnswer:
        """Return the answer in one piece."""
        parts = [t async for t in self._host.tokens(self._request, self._count, is_cancelled_by_client=False)]
        text = "".join(parts)
        content: dict[str, Any] = (
            {"message": {"role": "assistant", "content": text}} if self._is_chat else {"text": text}
        )
        choice = {"index": 0, "finish_reason": self._finish, **content}
        return json_answer({**self._head(""), "choices": [choice], "usage": self._usage(len(parts))})

    def _event(self, delta: dict[str, Any], finish: str | None) -> bytes:
        content: dict[str, Any] = {"delta": delta} if self._is_chat else {"text": delta.get("content", "")}
        return _sse({**self._head("chunk"), "choices": [{"index": 0, "finish_reason": finish, **content}]})

    def _head(self, kind: str) -> dict[str, Any]:
        name = "chat.completion" + (".chunk" if kind else "") if self._is_chat else "text_completion"
        return {
            "id": self._id,
            "object": name,
            "created": 0,
            "model": self._model,
            "system_fingerprint": _FINGERPRINT,
        }

    def _usage(self, produced: int) -> dict[str, int]:
        total = self.prompt_tokens + produced
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": produced, "total_tokens": total}


def _sse(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


async def _run(options: ServeOptions) -> int:
    key = options.key_file.read_text(encoding="ascii").strip()
    return await run_twin(LlamaTwin(options, key).twin, options.host, options.port)


if __name__ == "__main__":
    raise SystemExit(asyncio.run(_run(ServeOptions.from_argv(sys.argv[1:]))))
