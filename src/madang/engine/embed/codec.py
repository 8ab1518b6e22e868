"""The embed engine's texts: the command line of its child, requests and answers of `/v1/embeddings`.

Owns both directions and the limits. Refuses to embed. Uses the standard library only, for the twin imports it.

E5 wants to know whether a text is a query or a passage. What counts, first match wins: a text that begins with
`query: ` or `passage: ` itself; the field `input_type` (`query`, `search_query`, `passage`, `document`,
`search_document`); a model name that ends in `-query` or `-passage`; else `query`, on both sides, as its makers
advise for symmetric use, since OpenAI's API cannot tell them apart.
"""

import array
import base64
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from madang.engine.child_options import ChildOptions

DIMENSIONS = 384
TEXTS_MAX = 256
TEXT_BYTES_MAX = 64 * 1024
TEXT_TOKENS_MAX = 8192
REQUEST_TOKENS_MAX = 16384
"""About twenty seconds on two cores."""
_INPUT_TYPES = {
    "query": True,
    "search_query": True,
    "passage": False,
    "document": False,
    "search_document": False,
}


class BadRequest(Exception):
    """A request that cannot be served; becomes a 400.

    Attributes:
        code: of the error object.
        message: what was expected.
        param: the field.
    """

    def __init__(self, message: str, param: str, code: str = "invalid_request") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


@dataclass(frozen=True, kw_only=True)
class ServeOptions(ChildOptions):
    """Command line of the engine's child."""

    model: Path
    threads: int


@dataclass(frozen=True)
class Text:
    """One text to embed, without prefix, and which prefix it gets."""

    text: str
    is_query: bool


@dataclass(frozen=True)
class EmbedRequest:
    """A request that passed all checks but the count of tokens."""

    texts: tuple[Text, ...]
    is_base64: bool


def parse_request(body: bytes) -> EmbedRequest:
    """Return the request in `body`; raises BadRequest naming field and expectation."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is no JSON: {error}", "") from error
    if not isinstance(value, dict):
        raise BadRequest("the body is no JSON object", "")
    dimensions = value.get("dimensions")
    if dimensions is not None and dimensions != DIMENSIONS:
        raise BadRequest(f"this model has {DIMENSIONS} dimensions and cannot shorten them", "dimensions", "unsupported")
    encoding = value.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise BadRequest("expected 'float' or 'base64'", "encoding_format")
    is_query = _default_side(value)
    texts = tuple(_make_text(text, is_query) for text in _input(value.get("input")))
    return EmbedRequest(texts, encoding == "base64")


def _default_side(value: dict[str, Any]) -> bool:
    input_type = value.get("input_type")
    if input_type is not None:
        if not isinstance(input_type, str) or input_type not in _INPUT_TYPES:
            raise BadRequest(f"expected one of {', '.join(_INPUT_TYPES)}", "input_type")
        return _INPUT_TYPES[input_type]
    model = value.get("model")
    return not (isinstance(model, str) and model.endswith("-passage"))


def _input(value: object) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts:
        raise BadRequest("expected a string or a list of strings, not empty", "input")
    if len(texts) > TEXTS_MAX:
        raise BadRequest(f"{len(texts)} texts; at most {TEXTS_MAX} in one request", "input")
    if not all(isinstance(text, str) for text in texts):
        raise BadRequest("expected strings; arrays of tokens are of another model's vocabulary", "input", "unsupported")
    return texts


def _make_text(text: str, is_query: bool) -> Text:
    for prefix, is_own_query in (("query: ", True), ("passage: ", False)):
        if text.startswith(prefix):
            text, is_query = text[len(prefix) :], is_own_query
            break
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise BadRequest("a text is no valid Unicode: it holds half of a surrogate pair", "input") from error
    if size > TEXT_BYTES_MAX:
        raise BadRequest(f"a text has {size} bytes; at most {TEXT_BYTES_MAX}", "input")
    # The engine takes C strings, which would end at a NUL; the tokenizer reads white space there.
    text = text.replace("\0", " ")
    if not text.strip():
        raise BadRequest("a text is empty", "input")
    return Text(text, is_query)


def check_tokens(counts: Sequence[int]) -> int:
    """Return the sum of token counts; raises BadRequest over the limits."""
    if max(counts, default=0) > TEXT_TOKENS_MAX:
        raise BadRequest(
            f"a text has {max(counts)} tokens; at most {TEXT_TOKENS_MAX}", "input", "context_length_exceeded"
        )
    if sum(counts) > REQUEST_TOKENS_MAX:
        raise BadRequest(f"{sum(counts)} tokens; at most {REQUEST_TOKENS_MAX} in one request", "input")
    return sum(counts)


def encode_answer(vectors: Sequence[Sequence[float]], tokens: int, alias: str, *, is_base64: bool) -> dict[str, Any]:
    """Return OpenAI's answer object; base64 is of little-endian float32."""
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": pack_vector(vector) if is_base64 else list(vector)}
            for index, vector in enumerate(vectors)
        ],
        "model": alias,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def pack_vector(vector: Sequence[float]) -> str:
    """Return a vector as base64 of little-endian float32."""
    packed = array.array("f", vector)
    if sys.byteorder == "big":
        packed.byteswap()
    return base64.b64encode(packed.tobytes()).decode("ascii")
