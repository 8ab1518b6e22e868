"""The plain chat request, which is most of them: messages of text and a few numbers.

Owns a second, faster reading of it: one typed decode that checks everything at once, and one encode for the engine.
Refuses anything else by answering None: then `madang.wire.openai` reads the body, and it alone words complaints. What
both accept they must read alike; tests hold them against each other.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from madang.model import Service
from madang.wire.openai import TOKENS_MAX, ApiRequest, Endpoint

_Tokens = Annotated[int, Meta(ge=1, le=TOKENS_MAX)] | UnsetType


class _Message(msgspec.Struct, forbid_unknown_fields=True):
    role: Literal["system", "user", "assistant"]
    content: str


class PlainChat(msgspec.Struct, forbid_unknown_fields=True):
    """A request body of nothing but these fields, each within the limits of `madang.wire.openai`."""

    model: Annotated[str, Meta(min_length=1)]
    messages: Annotated[list[_Message], Meta(min_length=1)]
    temperature: Annotated[float, Meta(ge=0, le=2)] | UnsetType = UNSET
    top_p: Annotated[float, Meta(ge=0, le=1)] | UnsetType = UNSET
    max_tokens: _Tokens = UNSET
    max_completion_tokens: _Tokens = UNSET
    seed: Annotated[int, Meta(ge=0, le=0xFFFFFFFF)] | UnsetType = UNSET
    stream: bool = False


class _EngineBody(msgspec.Struct):
    model: str
    messages: list[_Message]
    max_tokens: int
    cache_prompt: bool
    temperature: float | UnsetType = UNSET
    top_p: float | UnsetType = UNSET
    seed: int | UnsetType = UNSET
    stream: bool | UnsetType = UNSET
    stream_options: dict[str, bool] | UnsetType = UNSET


_decoder = msgspec.json.Decoder(PlainChat)
_encoder = msgspec.json.Encoder()
_WITH_USAGE = {"include_usage": True}


def read_plain_chat(body: bytes) -> ApiRequest | None:
    """Return the request in `body`, or None when it is more than plain, or wrong. Linear in the body."""
    try:
        plain = _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    prompt_bytes = 0
    for message in plain.messages:
        text = message.content
        prompt_bytes += len(text) if text.isascii() else len(text.encode())
    return ApiRequest(
        endpoint=Endpoint.CHAT,
        service=plain.model,
        fields={},
        is_stream=plain.stream,
        prompt_bytes=prompt_bytes,
        form=plain,
    )


def tokens_wanted(request: ApiRequest) -> int | None:
    """Return how many tokens each answer may have at most, None where the client leaves that to the service."""
    plain = request.form
    if type(plain) is not PlainChat:
        limit: int | None = request.fields.get("max_tokens")
        return limit
    wanted = _wanted(plain)
    return None if wanted is UNSET else wanted


def _wanted(plain: PlainChat) -> int | UnsetType:
    wanted = plain.max_completion_tokens
    return plain.max_tokens if wanted is UNSET else wanted


def plain_engine_body(plain: PlainChat, service: Service, *, is_whole: bool) -> bytes:
    """Return what the engine is sent, as `madang.wire.openai.upstream_body` does."""
    wanted = _wanted(plain)
    context = service.context_tokens
    return _encoder.encode(
        _EngineBody(
            service.name,
            plain.messages,
            context if wanted is UNSET or wanted > context else wanted,
            service.has_prefix_cache,
            plain.temperature,
            plain.top_p,
            plain.seed,
            UNSET if is_whole else True,
            UNSET if is_whole else _WITH_USAGE,
        )
    )
