"""OpenAI's chat completions and completions, worded from facts: several choices, tool calls, the legacy logprobs.

Owns the shape of what `madang.wire.openai_answers` cannot pass on as an engine wrote it. Refuses to know sockets and
time. Called by `madang.wire.mapped_answers`.
"""

from typing import Any

import msgspec

from madang.core import RequestId
from madang.wire.generation import CallBegin, CallPiece, Delta, Finish, Reasoning, Text
from madang.wire.openai import ApiRequest, Endpoint, answer_id
from madang.wire.openai_answers import TokenCount, stream_error
from madang.wire.sse import DONE_EVENT, encode_event

_encoder = msgspec.json.Encoder()
_NO_LOGPROB = -9999.0
"""What OpenAI's clients take for "not among the likely ones"; engines leave such a token without a number."""


def call_id(request_id: RequestId, answer: int, index: int) -> str:
    """Return the id of a tool call, ours and the same however the answer is worded."""
    return f"call_{request_id.rpartition('-')[2]}_{answer}_{index}"


def usage_of(count: TokenCount) -> dict[str, int]:
    """Return OpenAI's usage object."""
    return {
        "prompt_tokens": count.prompt_tokens,
        "completion_tokens": count.completion_tokens,
        "total_tokens": count.prompt_tokens + count.completion_tokens,
    }


class _Choice:
    """One answer, as far as it came."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.calls: list[dict[str, Any]] = []
        self.arguments: list[list[str]] = []
        self.logprobs: list[Any] = []
        self.finish_reason: str | None = None
        self.chars = 0


class ChatWriter:
    """Words the answers to one chat or completion request.

    Args:
        request: what was asked; its endpoint decides the shape.
        request_id: names answer and calls.
        created_s: wall time.
    """

    def __init__(self, request: ApiRequest, request_id: RequestId, created_s: int) -> None:
        self._request = request
        self._request_id = request_id
        self._is_chat = request.endpoint is Endpoint.CHAT
        self._head = {
            "id": answer_id(request.endpoint, request_id),
            "created": created_s,
            "model": request.service,
        }
        self._choices = [_Choice() for _ in range(request.answers)]

    def begin(self) -> bytes:
        """Return the role of each answer; completions have none."""
        if not self._is_chat:
            return b""
        role = {"role": "assistant", "content": None if "tools" in self._request.fields else ""}
        return b"".join(self._event(answer, role) for answer in range(len(self._choices)))

    def add(self, answer: int, delta: Delta) -> bytes:
        """Take a fact of one answer and return its event for a streaming client."""
        choice = self._choices[answer]
        match delta:
            case Text(text=text, logprobs=logprobs):
                return self._add_text(answer, text, logprobs)
            case Reasoning(text=text):
                choice.reasoning.append(text)
                return self._event(answer, {"reasoning_content": text})
            case CallBegin(index=index, name=name):
                function = {"name": name, "arguments": ""}
                call = {"id": call_id(self._request_id, answer, index), "type": "function", "function": function}
                choice.calls.append(call)
                choice.arguments.append([])
                return self._event(answer, {"tool_calls": [{"index": index, **call}]})
            case CallPiece(index=index, text=text):
                choice.arguments[index].append(text)
                return self._event(answer, {"tool_calls": [{"index": index, "function": {"arguments": text}}]})
            case Finish(reason=reason):
                choice.finish_reason = reason
                return self._event(answer, {}, finish_reason=reason)

    def last(self, count: TokenCount) -> bytes:
        """Return the usage event, if it was asked for, and the end."""
        if not self._request.has_usage_chunk:
            return DONE_EVENT
        event = {**self._head, "object": self._object(is_piece=True), "choices": [], "usage": usage_of(count)}
        return encode_event(_encoder.encode(event)) + DONE_EVENT

    def whole(self, count: TokenCount) -> bytes:
        """Return the answer as one object."""
        choices = [self._whole_choice(index, choice) for index, choice in enumerate(self._choices)]
        body = {**self._head, "object": self._object(is_piece=False), "choices": choices, "usage": usage_of(count)}
        return _encoder.encode(body)

    def failed(self, message: str) -> bytes:
        """Return the error event that ends a stream."""
        return encode_event(stream_error(message))

    def _object(self, *, is_piece: bool) -> str:
        if not self._is_chat:
            return "text_completion"
        return "chat.completion.chunk" if is_piece else "chat.completion"

    def _add_text(self, answer: int, text: str, logprobs: tuple[Any, ...]) -> bytes:
        choice = self._choices[answer]
        shaped: Any = None
        if logprobs:
            choice.logprobs += logprobs
            shaped = {"content": list(logprobs)} if self._is_chat else legacy_logprobs(logprobs, choice.chars)
        choice.chars += len(text)
        if not self._request.is_stream:
            choice.text.append(text)  # a streaming client keeps its text itself
        return self._event(answer, {"content": text}, logprobs=shaped)

    def _event(
        self, answer: int, delta: dict[str, Any], *, logprobs: Any = None, finish_reason: str | None = None
    ) -> bytes:
        if not self._request.is_stream:
            return b""
        content = {"delta": delta} if self._is_chat else {"text": delta.get("content") or ""}
        choice = {"index": answer, **content, "logprobs": logprobs, "finish_reason": finish_reason}
        event = {**self._head, "object": self._object(is_piece=True), "choices": [choice]}
        return encode_event(_encoder.encode(event))

    def _whole_choice(self, index: int, choice: _Choice) -> dict[str, Any]:
        text = "".join(choice.text)
        logprobs: Any = None
        if choice.logprobs:
            logprobs = {"content": choice.logprobs} if self._is_chat else legacy_logprobs(choice.logprobs, 0)
        ends = {"logprobs": logprobs, "finish_reason": choice.finish_reason}
        if not self._is_chat:
            return {"index": index, "text": text, **ends}
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if choice.reasoning:
            message["reasoning_content"] = "".join(choice.reasoning)
        if choice.calls:
            for call, pieces in zip(choice.calls, choice.arguments, strict=True):
                call["function"]["arguments"] = "".join(pieces)
            message["tool_calls"] = choice.calls
            message["content"] = text or None
        return {"index": index, "message": message, **ends}


def legacy_logprobs(entries: Any, offset: int) -> dict[str, Any]:
    """Return entries of the chat shape as the arrays of the older completions endpoint.

    Args:
        entries: OpenAI's chat entries (token, logprob, top_logprobs).
        offset: characters of text before the first of them.
    """
    tokens: list[str] = []
    logprobs: list[float] = []
    tops: list[dict[str, float]] = []
    offsets: list[int] = []
    for entry in entries:
        fields = entry if type(entry) is dict else {}
        token = str(fields.get("token", ""))
        tokens.append(token)
        logprobs.append(_number(fields.get("logprob")))
        others = [other for other in fields.get("top_logprobs") or () if type(other) is dict]
        tops.append({str(other.get("token", "")): _number(other.get("logprob")) for other in others})
        offsets.append(offset)
        offset += len(token)
    return {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets}


def _number(value: Any) -> float:
    return float(value) if type(value) in (int, float) else _NO_LOGPROB
