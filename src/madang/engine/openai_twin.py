"""What twins of vendors' OpenAI-compatible servers have in common: completions, streams, embeddings, model lists.

Owns the simulated answers. Refuses to know a vendor's errors, metrics and health: its twin gives them. Every completion
carries `system_fingerprint` `simulated`. Standard library and h11 only.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from madang.engine.http_host import HttpAnswer, HttpRequest, json_answer
from madang.engine.twin_kit import Twin

FINGERPRINT = "simulated"
_WORDS = ("simulated", " answer", " of", " a", " twin", ",", " 모의", " 응답", " 토큰", ".")
_DIMENSIONS = 8
_TEXTS_MAX = 2048

Refuse = Callable[[int, str], HttpAnswer]


@dataclass(frozen=True, kw_only=True)
class Served:
    """What a server was told to serve.

    Attributes:
        alias: the model's name.
        slots: requests at a time.
        context_tokens: longest prompt and answer together.
        is_embedding: embeddings instead of text.
    """

    alias: str
    slots: int
    context_tokens: int
    is_embedding: bool = False


class OpenAiTwin:
    """Answers as an OpenAI-compatible server would, without a model.

    Args:
        served: what it serves.
        twin: its frame.
        refuse: words an error as the vendor does.
        has_choices: whether it gives several answers to one request.
    """

    def __init__(self, served: Served, twin: Twin, refuse: Refuse, *, has_choices: bool = True) -> None:
        self.served = served
        self.twin = twin
        self.refuse = refuse
        self.has_choices = has_choices
        self._slots = asyncio.Semaphore(served.slots)
        self.running = self.waiting = self.generated = self.read = self._number = 0

    async def answer(self, request: HttpRequest) -> HttpAnswer | None:
        """Return the answer to a request that is OpenAI's, None for another."""
        if (request.method, request.path) == ("GET", "/v1/models"):
            card = {"id": self.served.alias, "object": "model", "max_model_len": self.served.context_tokens}
            return json_answer({"object": "list", "data": [card]})
        kinds = {"/v1/embeddings"} if self.served.is_embedding else {"/v1/chat/completions", "/v1/completions"}
        if request.method != "POST" or request.path not in kinds:
            return None
        try:
            body = json.loads(request.body)
        except ValueError as error:
            return self.refuse(400, f"malformed JSON: {error}")
        wrong = self._check(request.path, body)
        if wrong is not None:
            return wrong
        if self.served.is_embedding:
            return await self._embed(request, body)
        reply = _Reply(self, request, body)
        if reply.prompt_tokens >= self.served.context_tokens:
            return self.refuse(400, f"This model's maximum context length is {self.served.context_tokens} tokens.")
        self.read += reply.prompt_tokens
        if body.get("stream") is True:
            return HttpAnswer(200, content_type="text/event-stream", chunks=reply.stream())
        return await reply.whole()

    def _check(self, path: str, body: Any) -> HttpAnswer | None:
        field = {"/v1/chat/completions": "messages", "/v1/completions": "prompt"}.get(path, "input")
        if not isinstance(body, dict) or not body.get(field):
            return self.refuse(400, f"{field}: Field required")
        model = body.get("model", self.served.alias)
        if model != self.served.alias and not self.served.is_embedding:
            return self.refuse(404, f"The model `{model}` does not exist.")
        if body.get("n", 1) != 1 and not self.has_choices:
            return self.refuse(400, "n must be 1")
        return None

    async def _embed(self, request: HttpRequest, body: dict[str, Any]) -> HttpAnswer:
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        if len(texts) > _TEXTS_MAX or not all(isinstance(text, str) for text in texts):
            return self.refuse(400, "input: Input should be a valid string")
        async for _ in self.tokens(request, 1):
            pass
        used = sum(len(text.split()) for text in texts)
        data = [
            {"object": "embedding", "index": index, "embedding": _fake_vector(text)} for index, text in enumerate(texts)
        ]
        usage = {"prompt_tokens": used, "total_tokens": used, "completion_tokens": 0}
        return json_answer({"object": "list", "model": self.served.alias, "data": data, "usage": usage})

    async def tokens(self, request: HttpRequest, count: int) -> AsyncIterator[str]:
        """Yield the tokens of one answer at the twin's pace, holding a slot; ends early when the client leaves."""
        self.waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            for index in range(count):
                if not await self.twin.pace(index, request):
                    return
                self.generated += 1
                yield _WORDS[index % len(_WORDS)]
        finally:
            self.running -= 1
            self._slots.release()

    def next_number(self) -> int:
        """Return a number for the next completion's id."""
        self._number += 1
        return self._number


class _Reply:
    """One completion."""

    def __init__(self, host: OpenAiTwin, request: HttpRequest, body: dict[str, Any]) -> None:
        self._host = host
        self._request = request
        self._is_chat = request.path.endswith("/chat/completions")
        self._id = f"{'chatcmpl' if self._is_chat else 'cmpl'}-simulated-{host.next_number()}"
        asked = body.get("max_completion_tokens", body.get("max_tokens"))
        full = host.twin.behaviour.answer_tokens
        is_cut = isinstance(asked, int) and 0 <= asked < full
        self._count = asked if isinstance(asked, int) and is_cut else full
        self._finish = "length" if is_cut else "stop"
        self._choices = max(1, body.get("n", 1)) if isinstance(body.get("n", 1), int) else 1
        options = body.get("stream_options")
        self._has_usage = isinstance(options, dict) and options.get("include_usage") is True
        self.prompt_tokens = len(json.dumps(body["messages" if self._is_chat else "prompt"]).split())

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield server-sent events."""
        produced = 0
        if self._is_chat:
            yield self._event({"role": "assistant", "content": ""}, None)
        async for token in self._host.tokens(self._request, self._count):
            produced += 1
            yield self._event({"content": token}, None)
        yield self._event({"content": ""}, self._finish)
        if self._has_usage:
            yield _sse({**self._head("chunk"), "choices": [], "usage": self._usage(produced)})
        yield b"data: [DONE]\n\n"

    async def whole(self) -> HttpAnswer:
        """Return the answer in one piece."""
        text = "".join([token async for token in self._host.tokens(self._request, self._count)])
        content: dict[str, Any] = (
            {"message": {"role": "assistant", "content": text}} if self._is_chat else {"text": text}
        )
        choices = [{"index": number, "finish_reason": self._finish, **content} for number in range(self._choices)]
        return json_answer({**self._head(""), "choices": choices, "usage": self._usage(self._count * self._choices)})

    def _event(self, delta: dict[str, Any], finish: str | None) -> bytes:
        content: dict[str, Any] = {"delta": delta} if self._is_chat else {"text": delta.get("content", "")}
        return _sse({**self._head("chunk"), "choices": [{"index": 0, "finish_reason": finish, **content}]})

    def _head(self, kind: str) -> dict[str, Any]:
        name = "chat.completion" + (".chunk" if kind else "") if self._is_chat else "text_completion"
        head = {"id": self._id, "object": name, "created": 0, "model": self._host.served.alias}
        return head | {"system_fingerprint": FINGERPRINT}

    def _usage(self, produced: int) -> dict[str, int]:
        total = self.prompt_tokens + produced
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": produced, "total_tokens": total}


def _fake_vector(text: str) -> list[float]:
    digest = hashlib.sha256(text.encode()).digest()[:_DIMENSIONS]
    length = sum(byte * byte for byte in digest) ** 0.5 or 1.0
    return [byte / length for byte in digest]


def _sse(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"
