"""What an engine's stream says, as small facts in order, whichever shape a client wants them in.

Owns the reading of an engine's events for answers that are not passed on as they are: several answers to one request,
tool calls that we parse, other endpoints mapped onto chat. Refuses to word an answer: writers do. The plain path,
which hardly reads at all, is `madang.wire.openai_answers`. Called by `madang.wire.mapped_answers`.
"""

from typing import Annotated, Any, Protocol

import msgspec

from madang.wire.openai_answers import EngineFailed, TokenCount
from madang.wire.sse import DONE

REASON_CHARS_MAX = 32


class Text(msgspec.Struct, frozen=True):
    """A piece of the answer; `logprobs` are OpenAI's entries for its tokens, if they were asked for."""

    text: str
    logprobs: tuple[Any, ...] = ()


class Reasoning(msgspec.Struct, frozen=True):
    """A piece of what a model thinks aloud before its answer."""

    text: str


class CallBegin(msgspec.Struct, frozen=True):
    """A function is called; `index` counts the calls of one answer from 0."""

    index: int
    name: str


class CallPiece(msgspec.Struct, frozen=True):
    """A piece of the JSON text of a call's arguments."""

    index: int
    text: str


class Finish(msgspec.Struct, frozen=True):
    """Why the answer ends: `stop`, `length`, `tool_calls` or an engine's own word."""

    reason: str


Delta = Text | Reasoning | CallBegin | CallPiece | Finish


class Stage(Protocol):
    """Turns the facts of one answer into others, such as text into calls."""

    def feed(self, delta: Delta) -> list[Delta]:
        """Return what a fact becomes; raises EngineFailed when it cannot be."""
        ...


class AnswerWriter(Protocol):
    """Words the facts of one request's answers for its client."""

    def begin(self) -> bytes:
        """Return the events that open a stream."""
        ...

    def add(self, answer: int, delta: Delta) -> bytes:
        """Take a fact of answer number `answer` and return the events that a streaming client gets for it."""
        ...

    def last(self, count: TokenCount) -> bytes:
        """Return the events that end a stream; they wait until the usage event is durable."""
        ...

    def whole(self, count: TokenCount) -> bytes:
        """Return the answer as one JSON object."""
        ...

    def failed(self, message: str) -> bytes:
        """Return the events that end a stream which can no longer succeed."""
        ...


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    index: int = 0
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
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Event)


class EngineReader:
    """Follows one answer of an engine.

    Attributes:
        has_token: something that is not empty came.
        is_finished: a reason to finish came.
        is_done: the engine said `[DONE]`.
    """

    def __init__(self, prompt_bytes: int) -> None:
        self.has_token = self.is_finished = self.is_done = False
        self._prompt_bytes = prompt_bytes
        self._events = 0
        self._usage: _Usage | None = None
        self._calls: dict[int, int] = {}  # the engine's index, ours

    def read(self, payload: bytes) -> list[Delta]:
        """Return what an event says; raises EngineFailed when it is none or reports a failure."""
        if payload == DONE:
            self.is_done = True
            return []
        try:
            event = _decoder.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise EngineFailed(f"the engine sent an event that is none: {error}") from error
        if event.error:
            raise EngineFailed(f"the engine reported: {str(event.error)[:1000]}")
        if event.usage is not None:
            self._usage = event.usage
        return self._deltas(event.choices[0]) if event.choices else []

    def _deltas(self, choice: _Choice) -> list[Delta]:
        deltas: list[Delta] = []
        delta = choice.delta or _Delta(content=choice.text)
        if delta.reasoning_content:
            deltas.append(Reasoning(delta.reasoning_content))
        logprobs = tuple(choice.logprobs.content or ()) if choice.logprobs is not None else ()
        if delta.content or logprobs:
            deltas.append(Text(delta.content or "", logprobs))
        for call in delta.tool_calls or ():
            deltas += self._call(call)
        if deltas:
            self._events += 1
            self.has_token = True
        if choice.finish_reason:
            self.is_finished = True
            deltas.append(Finish(choice.finish_reason[:REASON_CHARS_MAX]))
        return deltas

    def _call(self, call: _ToolCall) -> list[Delta]:
        function = call.function or _Function()
        deltas: list[Delta] = []
        if call.index not in self._calls:
            if not function.name:
                raise EngineFailed("the engine sent a piece of a tool call that has no name")
            self._calls[call.index] = len(self._calls)
            deltas.append(CallBegin(self._calls[call.index], function.name))
        if function.arguments:
            deltas.append(CallPiece(self._calls[call.index], function.arguments))
        return deltas

    def count(self) -> TokenCount:
        """Return what was consumed so far; estimated from bytes and events as long as the engine gave no usage."""
        if self._usage is not None:
            return TokenCount(self._usage.prompt_tokens, self._usage.completion_tokens, False)
        # About four bytes of UTF-8 a token; nothing before the prompt was read.
        prompt_tokens = max(1, self._prompt_bytes // 4) if self.has_token else 0
        return TokenCount(prompt_tokens, self._events, True)
