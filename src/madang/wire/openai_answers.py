"""OpenAI's answers: an engine's stream turned into the client's stream, or into one JSON object.

Owns what a client sees of an engine: our ids, the service's name, and no figures of the engine's own. Refuses to
know sockets and time; callers pass the events' payloads in order. An engine's failure in mid-stream is raised as
EngineFailed. Bounded: an assembled answer holds at most ANSWER_BYTES_MAX of text.
"""

import base64
import re
import struct
from typing import Annotated, Any

import msgspec

from madang.core import RequestId, Unavailable
from madang.wire.openai import ApiRequest, Endpoint, answer_id
from madang.wire.openai_errors import ErrorCode
from madang.wire.sse import DONE, sse_payload

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


_text_decoder = msgspec.json.Decoder(str)
_event_decoder = msgspec.json.Decoder(_Event)
_STRING_BODY = re.compile(rb'[^"\\\n\r]*(?:\\.[^"\\\n\r]*)*\Z')


_STRING = rb'("[^"\\\n\r]*(?:\\.[^"\\\n\r]*)*")'
_TEXT_MEMBER = {
    Endpoint.CHAT: re.compile(rb'"content": ?' + _STRING),
    Endpoint.COMPLETIONS: re.compile(rb'"text": ?' + _STRING),
}


class _Template:
    """What the events of a stream have in common around their text, as the engine writes it and as we do.

    Attributes:
        head, tail: of a payload.
        first, between, last: what stands before, between and after the texts of events that follow each other.
        first_bytes, last_bytes: their lengths.
    """

    __slots__ = (
        "between",
        "first",
        "first_bytes",
        "head",
        "last",
        "last_bytes",
        "our_between",
        "our_first",
        "our_head",
        "our_last",
        "our_tail",
        "tail",
    )

    def __init__(self, head: bytes, tail: bytes, our_head: bytes, our_tail: bytes) -> None:
        self.head, self.tail = head, tail
        self.our_head, self.our_tail = our_head, our_tail
        self.first, self.last = b"data: " + head, tail + b"\n\n"
        self.first_bytes, self.last_bytes = len(self.first), len(self.last)
        self.between = self.last + self.first
        self.our_first, self.our_last = b"data: " + our_head, our_tail + b"\n\n"
        self.our_between = self.our_last + self.our_first


class AnswerStream:
    """Follows a generation's events, whichever way the client wants its answer.

    `take` is called once for each payload and returns what a streaming client gets for it, or None; `take_events` does
    so for many at once. Milestones for the caller: `has_begun` (an event was understood), `has_token` (a token that is
    not empty came), `is_finished` (a reason to finish came), `is_done` (the engine said `[DONE]`).

    Most events differ only in their text. What stands around it is learnt from one event, and the next one of the
    same shape is recognised by comparing bytes: no JSON is parsed between the first token and the last.
    """

    def __init__(self, request: ApiRequest, request_id: RequestId) -> None:
        self.has_begun = False
        self.has_token = False
        self.is_done = False
        self.is_finished = False
        self._request = request
        self._id = answer_id(request.endpoint, request_id)
        self._chunks = 0
        self._usage: _Usage | None = None
        self._usage_raw: dict[str, Any] | None = None
        self._assembly = None if request.is_stream else _Assembly(request.endpoint)
        self._template: _Template | None = None

    @property
    def held_bytes(self) -> int:
        """How much is kept of an answer that is put together; 0 for a client that is streamed to."""
        return 0 if self._assembly is None else self._assembly.size_bytes

    def take(self, payload: bytes) -> bytes | None:
        """Return the payload for a streaming client, or None when it gets nothing for this one."""
        template = self._template
        if template is not None and payload.startswith(template.head) and payload.endswith(template.tail):
            body = payload[len(template.head) : -len(template.tail)]
            if _is_string_body(body):
                self._chunks += 1
                if self._assembly is None:
                    return template.our_head + body + template.our_tail
                self._assembly.add_text(body)
                return None
        if payload == DONE:
            self.has_begun = self.is_done = True
            return None
        return self._read(payload)

    def take_plain(self, data: bytes) -> bytes | None:
        """Return the event for a streaming client if `data` is exactly one event of the known shape, else None.

        Most reads from an engine that writes token by token are that; `take_events` would give the same, more slowly.
        Only for a client that is streamed to, and only while nothing is held back before `data`.
        """
        template = self._template
        if template is None or not (data.startswith(template.first) and data.endswith(template.last)):
            return None
        text = data[template.first_bytes : -template.last_bytes]
        if not text or b'"' in text or b"\\" in text or b"\n" in text or b"\r" in text:
            return None
        self._chunks += 1
        return template.our_first + text + template.our_last

    def take_events(self, events: bytes, out: list[bytes]) -> None:
        """Take whole events and add to `out` what a streaming client gets for them.

        Events in a row that differ only in their text are taken at once, at about a tenth of the cost.

        Args:
            events: as `SseSplitter.cut` returns them.
            out: holds what came before a failure, when one is raised.

        Raises:
            EngineFailed: the engine reported a failure or sent what is no answer.
        """
        at = 0
        may_run = True
        while at < len(events):
            template = self._template
            if may_run and template is not None and events.startswith(template.first, at):
                end = self._take_run(template, events, at, out)
                may_run = end > at  # looking at the rest again and again would cost its square
                at = end
                if may_run:
                    continue
            end = events.find(b"\n\n", at) + 2
            payload = sse_payload(events[at : end - 2])
            at = end
            if payload is not None:
                piece = self.take(payload)
                if piece is not None:
                    out += (b"data: ", piece, b"\n\n")

    def _take_run(self, template: "_Template", events: bytes, at: int, out: list[bytes]) -> int:
        """Take the events from `at` on that match; return where the others begin, or `at` when nothing was taken."""
        texts = events[at + len(template.first) :].split(template.between)
        last = texts[-1].find(template.last)
        if last < 0:
            return at
        rest = len(texts[-1]) - last - len(template.last)
        texts[-1] = texts[-1][:last]
        if not _are_string_bodies(texts):
            return at
        self._chunks += len(texts)
        if self._assembly is None:
            out += (template.our_first, template.our_between.join(texts), template.our_last)
        else:
            self._assembly.add_text(b"".join(texts))
        return len(events) - rest

    def _read(self, payload: bytes) -> bytes | None:
        """Take an event by parsing it."""
        try:
            event = _event_decoder.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise EngineFailed(f"the engine sent an event that is none: {error}") from error
        if event.error:
            raise EngineFailed(f"the engine reported: {_error_text(event.error)}")
        self.has_begun = True
        if event.choices:
            self._follow(event.choices[0])
        if event.usage is not None:
            self._usage = event.usage
            self._usage_raw = _decoder.decode(payload)["usage"]
        text = _plain_text(event)
        if text:
            self._template = self._learn(payload, text)
        if self._assembly is not None:
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
        """Return the whole answer as one JSON object, or nothing for a client that had it as a stream.

        Raises:
            EngineFailed: the pieces of text are no text.
        """
        if self._assembly is None:
            return b""
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
        """Return an event under our names and without the engine's own figures."""
        event = _decoder.decode(payload)
        for key in _ENGINE_ONLY:
            event.pop(key, None)
        if not is_usage and event.get("usage"):
            del event["usage"]  # a running count that nobody asked for
        event["id"] = self._id
        event["model"] = self._request.service
        return _encoder.encode(event)

    def _learn(self, payload: bytes, text: str) -> _Template | None:
        """Return what stands around `text` in an event, or None when it cannot be told for sure."""
        matches = list(_TEXT_MEMBER[self._request.endpoint].finditer(payload))
        if len(matches) != 1 or _text_decoder.decode(matches[0][1]) != text:
            return None
        start, end = matches[0].span(1)
        head, tail = payload[: start + 1], payload[end - 1 :]
        if self._assembly is not None:
            return _Template(head, tail, b"", b"")  # names are given to the whole answer
        event = _decoder.decode(payload)
        if any(key in event for key in _ENGINE_ONLY):
            return None
        our_head, our_tail = head, tail
        for key, name in (("id", self._id), ("model", self._request.service)):
            found = [old for old in _members(key, event.get(key)) if head.count(old) + tail.count(old) == 1]
            if len(found) != 1:
                return None
            new = _members(key, name)[0]
            our_head, our_tail = our_head.replace(found[0], new), our_tail.replace(found[0], new)
        return _Template(head, tail, our_head, our_tail)


def _is_string_body(body: bytes) -> bool:
    """Return whether `body` is what may stand between the quotes of a JSON string, and something."""
    if b'"' not in body and b"\\" not in body and b"\n" not in body and b"\r" not in body:
        return bool(body)
    return _STRING_BODY.match(body) is not None


def _are_string_bodies(bodies: list[bytes]) -> bool:
    """Return whether each of `bodies` is what `_is_string_body` accepts."""
    text = b"\n".join(bodies)
    if b'"' in text or b"\\" in text:
        return all(map(_is_string_body, bodies))
    # One line end between every two, and nothing empty on either side of one.
    is_in_lines = text.count(b"\n") == len(bodies) - 1 and b"\n\n" not in text and b"\r" not in text
    return is_in_lines and not text.startswith(b"\n") and not text.endswith(b"\n") and bool(text)


def _plain_text(event: _Event) -> str | None:
    """Return the text of an event that carries nothing else."""
    if len(event.choices) != 1 or event.usage is not None:
        return None
    choice = event.choices[0]
    if choice.finish_reason or choice.logprobs is not None:
        return None
    if choice.delta is None:
        return choice.text
    is_plain = choice.delta.reasoning_content is None and choice.delta.tool_calls is None
    return choice.delta.content if is_plain else None


class _Assembly:
    """Puts the deltas of one choice together."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._room = ANSWER_BYTES_MAX
        self._text: list[bytes] = []  # bodies of JSON strings: together they are the body of the whole text
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
            self.add_text(_encoder.encode(text)[1:-1])
        if delta is None:
            return
        if delta.reasoning_content:
            self._spend(len(delta.reasoning_content))
            self._reasoning.append(delta.reasoning_content)
        for call in delta.tool_calls or ():
            self._add_call(call)

    def add_text(self, body: bytes) -> None:
        """Take text as the body of a JSON string, without its quotes."""
        self._spend(len(body))
        self._text.append(body)

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

    @property
    def size_bytes(self) -> int:
        """What it weighs so far."""
        return ANSWER_BYTES_MAX - self._room

    def _spend(self, size: int) -> None:
        self._room -= size
        if self._room < 0:
            raise EngineFailed(f"the answer is over {ANSWER_BYTES_MAX} bytes; ask for a stream")

    def choice(self) -> dict[str, Any]:
        """Return the whole choice."""
        logprobs = {"content": self._logprobs} if self._logprobs else None
        try:
            text = _text_decoder.decode(b'"' + b"".join(self._text) + b'"')
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise EngineFailed(f"the engine's text is malformed: {error}") from error
        if self._endpoint is Endpoint.COMPLETIONS:
            return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": self._finish_reason}
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if self._reasoning:
            message["reasoning_content"] = "".join(self._reasoning)
        if self._tool_calls:
            message["tool_calls"] = [self._tool_calls[index] for index in sorted(self._tool_calls)]
            message["content"] = text or None
        return {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": self._finish_reason}


class _WholeAnswer(msgspec.Struct):
    """What is kept of an engine's whole answer; the choices pass through unread."""

    choices: msgspec.Raw
    usage: _Usage | None = None
    created: int = 0
    error: Any = None


_whole_decoder = msgspec.json.Decoder(_WholeAnswer)
_choices_decoder = msgspec.json.Decoder(list[_Choice])


class _OurAnswer(msgspec.Struct, frozen=True):
    """A whole answer as a client gets it; fields in the order in which OpenAI writes them."""

    id: str
    object: str
    created: int
    model: str
    choices: msgspec.Raw
    usage: dict[str, int]


def rewrite_answer(request: ApiRequest, request_id: RequestId, body: bytes) -> tuple[bytes, TokenCount]:
    """Return an engine's whole answer under our names, and its cost; raises EngineFailed when it is none."""
    try:
        answer = _whole_decoder.decode(body)
        choices = _choices_decoder.decode(answer.choices)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EngineFailed(f"the engine sent an answer that is none: {error}") from error
    if answer.error or not choices:
        raise EngineFailed(f"the engine reported: {_error_text(answer.error)}")
    count = TokenCount(max(1, request.prompt_bytes // 4), len(answer.choices) // 4, True)
    if answer.usage is not None:
        count = TokenCount(answer.usage.prompt_tokens, answer.usage.completion_tokens, False)
    is_chat = request.endpoint is Endpoint.CHAT
    ours = _OurAnswer(
        answer_id(request.endpoint, request_id),
        "chat.completion" if is_chat else "text_completion",
        answer.created,
        request.service,
        answer.choices,
        {
            "prompt_tokens": count.prompt_tokens,
            "completion_tokens": count.completion_tokens,
            "total_tokens": count.prompt_tokens + count.completion_tokens,
        },
    )
    return _encoder.encode(ours), count


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


def _members(key: str, value: Any) -> tuple[bytes, bytes]:
    """Return the two ways in which engines write a member of an object."""
    name, literal = b'"' + key.encode() + b'":', _encoder.encode(value)
    return name + literal, name + b" " + literal


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of `GET /v1/models`: a service that the tenant may use and somebody serves.

    Attributes:
        created: 0, since a service's age is nobody's fact.
        owned_by: the tenants that alone may use it, or the federation.
        madang: what OpenAI's clients ignore: task, endpoints, features of the engines at this site.
    """

    id: str
    created: int = 0
    owned_by: str = "madang"
    object: str = "model"
    madang: dict[str, Any] = {}


def encode_models(cards: list[ModelCard]) -> bytes:
    """Return the body of `GET /v1/models`."""
    return _encoder.encode({"object": "list", "data": cards})


def encode_model(card: ModelCard) -> bytes:
    """Return the body of `GET /v1/models/{id}`."""
    return _encoder.encode(card)
