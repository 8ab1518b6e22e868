"""OpenAI's answers: an engine's stream turned into the client's stream, or into one JSON object.

Owns what a client sees of an engine: our ids, the service's name, and no figures of the engine's own. Refuses to
know sockets and time; callers pass the events' payloads in order. An engine's failure in mid-stream is raised as
EngineFailed. Bounded: an assembled answer holds at most ANSWER_BYTES_MAX of text.
"""

import base64
import struct
from typing import Annotated, Any

import msgspec

from madang.core import RequestId, Unavailable
from madang.wire.openai import ApiRequest, Endpoint, answer_id
from madang.wire.openai_errors import ErrorCode
from madang.wire.sse import DONE

ANSWER_BYTES_MAX = 16 * 1024 * 1024
LOGPROB_BYTES = 1024
TOOL_CALL_BYTES = 256
"""What one of each is taken to weigh, text aside, against ANSWER_BYTES_MAX."""

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


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    index: int = 0
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Logprobs(msgspec.Struct):
    content: list[Any] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    completion_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0


class _Event(msgspec.Struct):
    """What is read of an engine's event; the rest passes through unread."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_event_decoder = msgspec.json.Decoder(_Event)
# An event with one of these is looked at more closely than the many between the first token and the last.
_CLOSER = (b'"finish_reason":"', b'"usage":{', b'"timings":', b'"error":', b"[DONE]", b"\r")


class AnswerStream:
    """Follows a generation's events, whichever way the client wants its answer.

    `take` is called once for each payload and returns what a streaming client gets for it, or None. In the middle of
    a stream, `pass_through` does the same for many events at once. Milestones for the caller: `has_token` (a token
    that is not empty came), `is_finished` (a reason to finish came), `is_done` (the engine said `[DONE]`).
    """

    def __init__(self, request: ApiRequest, request_id: RequestId) -> None:
        self.has_token = False
        self.is_done = False
        self.is_finished = False
        self._request = request
        self._id = answer_id(request.endpoint, request_id)
        self._chunks = 0
        self._usage: _Usage | None = None
        self._usage_raw: dict[str, Any] | None = None
        self._assembly = None if request.is_stream else _Assembly(request.endpoint)
        # Once learnt, the engine's id and model are replaced as bytes: a JSON string cannot hold a bare quote, so
        # these patterns match nothing but the members themselves.
        self._swaps: tuple[tuple[bytes, bytes], ...] = ()

    def pass_through(self, data: bytes) -> bytes | None:
        """Return whole events under our names, or None when they have to be taken one by one.

        Cost: a few searches over `data`, no parsing. Only for a streaming client, after its first token.
        """
        if not self.has_token or not self._swaps or not data.endswith(b"\n\n"):
            return None
        for mark in _CLOSER:
            if mark in data:
                return None
        events = data.count(b"\n\n")
        for old, new in self._swaps:
            # Each event names both once; anything else is not the shape that was learnt.
            if data.count(old) != events:
                return None
            data = data.replace(old, new)
        if data.count(b"data: {") != events or data.count(b"\n") != 2 * events:
            return None
        self._chunks += events
        return data

    def take(self, payload: bytes) -> bytes | None:
        """Return the payload for a streaming client, or None when it gets nothing for this one."""
        if payload == DONE:
            self.is_done = True
            return None
        try:
            event = _event_decoder.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise EngineFailed(f"the engine sent an event that is none: {error}") from error
        if event.error:
            raise EngineFailed(f"the engine reported: {_error_text(event.error)}")
        if event.choices:
            self._follow(event.choices[0])
        if event.usage is not None:
            self._usage = event.usage
        if self._assembly is not None:
            if event.usage is not None:
                self._usage_raw = _decoder.decode(payload)["usage"]
            return None
        if not event.choices and not (event.usage is not None and self._request.has_usage_chunk):
            return None
        return self._rename(payload, is_usage=not event.choices)

    def count(self) -> TokenCount:
        """Return what was consumed so far; estimated from bytes and events as long as the engine gave no usage."""
        usage = self._usage
        if usage is not None:
            return TokenCount(usage.prompt_tokens, usage.completion_tokens, False)
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
            "usage": self._usage_raw
            or {
                "prompt_tokens": count.prompt_tokens,
                "completion_tokens": count.completion_tokens,
                "total_tokens": count.prompt_tokens + count.completion_tokens,
            },
        }
        return _encoder.encode(answer)

    def _follow(self, choice: _Choice) -> None:
        if choice.finish_reason:
            self.is_finished = True
        delta = choice.delta
        if choice.text or (delta is not None and (delta.content or delta.reasoning_content or delta.tool_calls)):
            self._chunks += 1
            self.has_token = True
        if self._assembly is not None:
            self._assembly.add(choice)

    def _rename(self, payload: bytes, *, is_usage: bool) -> bytes:
        """Return an event under our names and without the engine's own figures; learn how it names itself."""
        event = _decoder.decode(payload)
        if not self._swaps:
            swaps = tuple((_member(key, event.get(key)), _member(key, new)) for key, new in self._names())
            if all(payload.count(old) == 1 for old, _ in swaps):
                self._swaps = swaps
        for key in _ENGINE_ONLY:
            event.pop(key, None)
        if not is_usage and event.get("usage"):
            del event["usage"]  # a running count that nobody asked for
        event.update(self._names())
        return _encoder.encode(event)

    def _names(self) -> tuple[tuple[str, str], ...]:
        return ("id", self._id), ("model", self._request.service)


class _Assembly:
    """Puts the deltas of one choice together."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._room = ANSWER_BYTES_MAX
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._tool_calls: dict[int, dict[str, Any]] = {}
        self._logprobs: list[Any] = []
        self._finish_reason: str | None = None

    def add(self, choice: _Choice) -> None:
        """Take a choice of one event."""
        if choice.finish_reason:
            self._finish_reason = choice.finish_reason
        if choice.logprobs is not None and choice.logprobs.content:
            self._spend(LOGPROB_BYTES * len(choice.logprobs.content))
            self._logprobs += choice.logprobs.content
        delta = choice.delta
        text = choice.text if delta is None else delta.content
        if text:
            self._spend(len(text))
            self._text.append(text)
        if delta is None:
            return
        if delta.reasoning_content:
            self._spend(len(delta.reasoning_content))
            self._reasoning.append(delta.reasoning_content)
        for call in delta.tool_calls or ():
            self._add_call(call)

    def _add_call(self, call: _ToolCall) -> None:
        name = (call.function and call.function.name) or ""
        arguments = (call.function and call.function.arguments) or ""
        self._spend(TOOL_CALL_BYTES + len(name) + len(arguments))
        whole = self._tool_calls.setdefault(
            call.index, {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        )
        whole["id"] = call.id or whole["id"]
        whole["function"]["name"] += name
        whole["function"]["arguments"] += arguments

    def _spend(self, size: int) -> None:
        self._room -= size
        if self._room < 0:
            raise EngineFailed(f"the answer is over {ANSWER_BYTES_MAX} bytes; ask for a stream")

    def choice(self) -> dict[str, Any]:
        """Return the whole choice."""
        logprobs = {"content": self._logprobs} if self._logprobs else None
        text = "".join(self._text)
        if self._endpoint is Endpoint.COMPLETIONS:
            return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": self._finish_reason}
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if self._reasoning:
            message["reasoning_content"] = "".join(self._reasoning)
        if self._tool_calls:
            message["tool_calls"] = [self._tool_calls[index] for index in sorted(self._tool_calls)]
            message["content"] = text or None
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
