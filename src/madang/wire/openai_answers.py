"""OpenAI's answers: an engine's stream turned into the client's stream, or into one JSON object.

Owns what a client sees of an engine: our ids, the service's name, and no figures of the engine's own. Refuses to
know sockets and time; callers pass the events' payloads in order. An engine's failure in mid-stream is raised as
EngineFailed. Bounded: an assembled answer holds at most ANSWER_BYTES_MAX of text.
"""

import base64
import struct
from typing import Any

import msgspec

from madang.core import RequestId, Unavailable
from madang.wire.openai import ApiRequest, Endpoint, ErrorCode, answer_id
from madang.wire.sse import DONE

ANSWER_BYTES_MAX = 16 * 1024 * 1024

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder()
# An engine's own: speed figures and debugging output that tell tenants about each other.
_ENGINE_ONLY = ("timings", "__verbose", "prompt_progress", "kv_transfer_params")


class EngineFailed(Unavailable):
    """The engine reported a failure inside its stream, or sent something that is no answer."""


class TokenCount(msgspec.Struct, frozen=True):
    """What an answer consumed; `is_estimated` when the engine gave no usage."""

    prompt_tokens: int
    completion_tokens: int
    is_estimated: bool


class AnswerStream:
    """Follows a generation's events, whichever way the client wants its answer.

    `take` is called once for each payload and returns what a streaming client gets for it, or None. Milestones for
    the caller: `has_token` (a token that is not empty came), `is_done` (the engine said `[DONE]`).
    """

    def __init__(self, request: ApiRequest, request_id: RequestId) -> None:
        self.has_token = False
        self.is_done = False
        self.is_finished = False
        self._request = request
        self._id = answer_id(request.endpoint, request_id)
        self._chunks = 0
        self._usage: dict[str, Any] | None = None
        self._assembly = None if request.is_stream else _Assembly(request.endpoint)
        # Once learnt, the engine's id and model are replaced as bytes: a JSON string cannot hold a bare quote, so
        # these patterns match nothing but the members themselves.
        self._swaps: tuple[tuple[bytes, bytes], ...] | None = None

    def take(self, payload: bytes) -> bytes | None:
        """Return the payload for a streaming client, or None when it gets nothing for this one."""
        if payload == DONE:
            self.is_done = True
            return None
        if self.has_token and self._assembly is None and self._swaps is not None:
            swapped = self._swap(payload)
            if swapped is not None:
                self._chunks += 1
                return swapped
        return self._take_slowly(payload)

    def count(self) -> TokenCount:
        """Return what was consumed so far; estimated from bytes and events as long as the engine gave no usage."""
        usage = self._usage
        if usage is not None:
            return TokenCount(_whole(usage.get("prompt_tokens")), _whole(usage.get("completion_tokens")), False)
        # About four bytes of UTF-8 a token, in English as in Korean; nothing before the prompt was read.
        prompt_tokens = max(1, self._request.prompt_bytes // 4) if self.has_token else 0
        return TokenCount(prompt_tokens, self._chunks, True)

    def assemble(self, created_s: int) -> bytes:
        """Return the whole answer as one JSON object, for a client that did not ask for a stream."""
        assert self._assembly is not None
        count = self.count()
        answer = {
            "id": self._id,
            "object": "chat.completion" if self._request.endpoint is Endpoint.CHAT else "text_completion",
            "created": created_s,
            "model": self._request.service,
            "choices": [self._assembly.choice()],
            "usage": self._usage
            or {
                "prompt_tokens": count.prompt_tokens,
                "completion_tokens": count.completion_tokens,
                "total_tokens": count.prompt_tokens + count.completion_tokens,
            },
        }
        return _encoder.encode(answer)

    def _swap(self, payload: bytes) -> bytes | None:
        """Return the payload under our names, or None when it needs a closer look."""
        assert self._swaps is not None
        for old, new in self._swaps:
            if old not in payload:
                return None
            payload = payload.replace(old, new, 1)
        if b'"usage":{' in payload or b'"timings":' in payload or b'"error":' in payload:
            return None
        return None if b'"finish_reason":"' in payload else payload

    def _take_slowly(self, payload: bytes) -> bytes | None:
        try:
            event = _decoder.decode(payload)
        except (msgspec.DecodeError, RecursionError) as error:
            raise EngineFailed(f"the engine sent an event that is not JSON: {error}") from error
        if type(event) is not dict:
            raise EngineFailed("the engine sent an event that is not a JSON object")
        if event.get("error"):
            raise EngineFailed(f"the engine reported: {_error_text(event['error'])}")
        usage = event.get("usage")
        if type(usage) is dict:
            self._usage = usage
        choices = event.get("choices")
        if type(choices) is not list or not choices:
            return self._usage_event(event) if usage else None
        self._follow(_object(choices[0]))
        if not self._request.is_stream:
            return None
        if self._swaps is None:
            self._learn(event, payload)
        return self._rename(event)

    def _follow(self, choice: dict[str, Any]) -> None:
        if choice.get("finish_reason"):
            self.is_finished = True
        delta = _object(choice.get("delta")) or choice
        has_text = any(delta.get(key) for key in ("content", "text", "reasoning_content", "tool_calls"))
        if has_text:
            self._chunks += 1
            self.has_token = True
        if self._assembly is not None:
            self._assembly.add(choice)

    def _learn(self, event: dict[str, Any], payload: bytes) -> None:
        swaps = []
        for key, new in (("id", self._id), ("model", self._request.service)):
            old = _member(key, event.get(key))
            if payload.count(old) != 1:
                return
            swaps.append((old, _member(key, new)))
        self._swaps = tuple(swaps)

    def _rename(self, event: dict[str, Any]) -> bytes:
        for key in _ENGINE_ONLY:
            event.pop(key, None)
        event["id"] = self._id
        event["model"] = self._request.service
        if event.get("usage") and event.get("choices"):
            del event["usage"]  # a running count that nobody asked for
        return _encoder.encode(event)

    def _usage_event(self, event: dict[str, Any]) -> bytes | None:
        return self._rename(event) if self._request.has_usage_chunk else None


class _Assembly:
    """Puts the deltas of one choice together."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._room = ANSWER_BYTES_MAX
        self._parts: dict[str, list[str]] = {"content": [], "reasoning_content": [], "text": []}
        self._tool_calls: dict[int, dict[str, Any]] = {}
        self._logprobs: list[Any] = []
        self._finish_reason: str | None = None

    def add(self, choice: dict[str, Any]) -> None:
        """Take a choice of one event."""
        finish_reason = choice.get("finish_reason")
        if type(finish_reason) is str:
            self._finish_reason = finish_reason
        self._logprobs += _items(_object(choice.get("logprobs")).get("content"))
        delta = _object(choice.get("delta")) or choice
        for key, parts in self._parts.items():
            text = delta.get(key)
            if type(text) is str and text:
                self._spend(len(text))
                parts.append(text)
        for call in _items(delta.get("tool_calls")):
            self._add_call(_object(call))

    def _add_call(self, call: dict[str, Any]) -> None:
        whole = self._tool_calls.setdefault(
            _whole(call.get("index")), {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        )
        if type(call.get("id")) is str:
            whole["id"] = call["id"]
        for key, text in _object(call.get("function")).items():
            if key in ("name", "arguments") and type(text) is str:
                self._spend(len(text))
                whole["function"][key] += text

    def _spend(self, size: int) -> None:
        self._room -= size
        if self._room < 0:
            raise EngineFailed(f"the answer is over {ANSWER_BYTES_MAX} bytes; ask for a stream")

    def choice(self) -> dict[str, Any]:
        """Return the whole choice."""
        logprobs = {"content": self._logprobs} if self._logprobs else None
        if self._endpoint is Endpoint.COMPLETIONS:
            text = "".join(self._parts["text"])
            return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": self._finish_reason}
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._parts["content"])}
        if self._parts["reasoning_content"]:
            message["reasoning_content"] = "".join(self._parts["reasoning_content"])
        if self._tool_calls:
            message["tool_calls"] = [self._tool_calls[index] for index in sorted(self._tool_calls)]
            message["content"] = message["content"] or None
        return {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": self._finish_reason}


class _Embedding(msgspec.Struct):
    embedding: list[float]
    index: int = 0


class _EmbeddingUsage(msgspec.Struct):
    prompt_tokens: int = 0


class _EmbeddingAnswer(msgspec.Struct):
    data: list[_Embedding]
    usage: _EmbeddingUsage | None = None


_embedding_decoder = msgspec.json.Decoder(_EmbeddingAnswer)


def rewrite_embeddings(request: ApiRequest, body: bytes) -> tuple[bytes, TokenCount]:
    """Return the client's answer and its cost; raises EngineFailed when the engine's is not one vector a text."""
    try:
        answer = _embedding_decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise EngineFailed(f"the engine's embeddings are malformed: {error}") from error
    rows = sorted(answer.data, key=lambda row: row.index)
    if [row.index for row in rows] != list(range(request.inputs)):
        raise EngineFailed(f"the engine returned {len(rows)} embeddings for {request.inputs} texts")
    count = TokenCount(max(1, request.prompt_bytes // 4), 0, True)
    if answer.usage is not None:
        count = TokenCount(answer.usage.prompt_tokens, 0, False)
    data = [{"object": "embedding", "index": row.index, "embedding": _vector(row, request)} for row in rows]
    usage = {"prompt_tokens": count.prompt_tokens, "total_tokens": count.prompt_tokens}
    return _encoder.encode({"object": "list", "data": data, "model": request.service, "usage": usage}), count


def _vector(row: _Embedding, request: ApiRequest) -> list[float] | str:
    if not request.is_base64:
        return row.embedding
    return base64.b64encode(struct.pack(f"<{len(row.embedding)}f", *row.embedding)).decode()


def stream_error(message: str) -> bytes:
    """Return the payload of the event that ends a stream which can no longer succeed."""
    return _encoder.encode(
        {"error": {"message": message, "type": "server_error", "param": None, "code": ErrorCode.UPSTREAM_FAILED}}
    )


def engine_complaint(body: bytes) -> str:
    """Return what an engine's error body says, for the client whose request it refused."""
    try:
        error = _decoder.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return "the engine refused the request"
    return _error_text(error.get("error", error) if type(error) is dict else error)


def _error_text(error: Any) -> str:
    message = error.get("message") if type(error) is dict else error
    return str(message)[:1000]


def _member(key: str, value: Any) -> bytes:
    return b'"' + key.encode() + b'":' + _encoder.encode(value)


def _object(value: Any) -> dict[str, Any]:
    """Return a JSON object, or an empty one for anything else: engines are not believed to keep the schema."""
    return value if type(value) is dict else {}


def _items(value: Any) -> list[Any]:
    return value if type(value) is list else []


def _whole(value: Any) -> int:
    return value if type(value) is int and value >= 0 else 0


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of `GET /v1/models`: a service that the tenant may use and somebody serves."""

    id: str
    created: int = 0
    owned_by: str = "madang"
    object: str = "model"


def encode_models(cards: list[ModelCard]) -> bytes:
    """Return the body of `GET /v1/models`."""
    return _encoder.encode({"object": "list", "data": cards})


def encode_model(card: ModelCard) -> bytes:
    """Return the body of `GET /v1/models/{id}`."""
    return _encoder.encode(card)
