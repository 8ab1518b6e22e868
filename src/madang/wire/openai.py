"""OpenAI's request bodies: what is accepted, what is refused and how, what an engine is sent.

Owns the API's contract with clients: one parse, one verdict that names the parameter, one rewritten body. A body is
never passed on as bytes: it is encoded anew from what was parsed, so that gateway and engine cannot read it
differently. Refuses to know sockets, tenants and replicas. Answers are `madang.wire.openai_answers`.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Any, NoReturn

import msgspec

from madang.core import RequestId
from madang.model import EngineFeature, Service, Task
from madang.wire.openai_errors import ApiError, ErrorCode

EMBEDDING_INPUTS_MAX = 2048
STOPS_MAX = 16
TOOLS_MAX = 128
ANSWERS_MAX = 8
"""Answers to one request; each takes a slot of an engine."""


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder()


class Endpoint(StrEnum):
    """The API's endpoints that engines answer, by the path that clients and engines share."""

    __hash__ = str.__hash__  # Enum's own is a call of Python for each look-up

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    EMBEDDINGS = "/v1/embeddings"
    RESPONSES = "/v1/responses"
    RERANK = "/v1/rerank"
    TRANSCRIPTIONS = "/v1/audio/transcriptions"
    INFER = "/v2/models/{model}/infer"
    MODEL_METADATA = "/v2/models/{model}"

    @property
    def method(self) -> str:
        """HTTP's method here."""
        return "GET" if self is Endpoint.MODEL_METADATA else "POST"

    @property
    def is_metered(self) -> bool:
        """Whether an answer is written down as used; what a model looks like costs nothing."""
        return self is not Endpoint.MODEL_METADATA

    @property
    def task(self) -> Task:
        """What a model must do to answer here."""
        return _TASKS.get(self, Task.CHAT)


_TASKS = {
    Endpoint.EMBEDDINGS: Task.EMBEDDING,
    Endpoint.RERANK: Task.EMBEDDING,
    Endpoint.TRANSCRIPTIONS: Task.TRANSCRIPTION,
    Endpoint.INFER: Task.INFER,
    Endpoint.MODEL_METADATA: Task.INFER,
}


class ApiRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request body after every check.

    Attributes:
        endpoint: whose body an engine is sent; a client's endpoint may be another that is mapped onto it.
        service: what the client calls `model`.
        is_stream: the client wants events.
        has_usage_chunk: the client of a stream asked for the closing usage event.
        is_base64: embeddings as base64 of little-endian float32.
        inputs: how many answers an embedding request must get.
        prompt_bytes: size of what the model has to read, for estimates only.
        fields: what goes upstream, before `upstream_body` adds the service's rules.
        is_plain: any engine will do, and its events fit the client as they are, names aside.
        answers: how many the client wants to the same question (`n`).
        needs: abilities that an engine must have, see `madang.wire.abilities`.
        form: what a mapped endpoint keeps for its answer; of the module that mapped it.
        version: of the model, where the client names one.
    """

    endpoint: Endpoint
    service: str
    fields: dict[str, Any]
    is_stream: bool = False
    has_usage_chunk: bool = False
    is_base64: bool = False
    inputs: int = 0
    prompt_bytes: int = 0
    is_plain: bool = True
    answers: int = 1
    needs: tuple[str, ...] = ()
    form: Any = None
    version: str = ""


Check = Callable[[Any], str | None]
"""Returns what was expected, or None when the value is right."""


def _number(low: float, high: float) -> Check:
    def check(value: Any) -> str | None:
        is_right = type(value) in (int, float) and low <= value <= high
        return None if is_right else f"a number from {low:g} to {high:g}"

    return check


def _integer(low: int, high: int) -> Check:
    def check(value: Any) -> str | None:
        return None if type(value) is int and low <= value <= high else f"an integer from {low} to {high}"

    return check


def _boolean(value: Any) -> str | None:
    return None if type(value) is bool else "true or false"


def _stop(value: Any) -> str | None:
    stops = value if type(value) is list else [value]
    is_right = len(stops) <= STOPS_MAX and all(type(stop) is str and stop for stop in stops)
    return None if is_right else f"a string or up to {STOPS_MAX} strings, none empty"


def _logit_bias(value: Any) -> str | None:
    is_right = type(value) is dict and all(
        key.lstrip("-").isdigit() and type(bias) in (int, float) for key, bias in value.items()
    )
    return None if is_right else "an object of token ids and numbers"


def _response_format(value: Any) -> str | None:
    kind = value.get("type") if type(value) is dict else None
    if kind == "json_schema":
        schema = value.get("json_schema")
        is_right = type(schema) is dict and type(schema.get("schema")) is dict
        return None if is_right else "a json_schema with an object `schema`"
    return None if kind in ("text", "json_object") else "an object of type text, json_object or json_schema"


def _tools(value: Any) -> str | None:
    is_right = type(value) is list and 1 <= len(value) <= TOOLS_MAX and all(_is_function(tool) for tool in value)
    return None if is_right else f"1 to {TOOLS_MAX} tools of type function, each with a name"


def _is_function(tool: Any) -> bool:
    function = tool.get("function") if type(tool) is dict and tool.get("type") == "function" else None
    return type(function) is dict and type(function.get("name")) is str


def _anything(_value: Any) -> str | None:
    return None


TOKENS_MAX = 10_000_000
_SAMPLING: dict[str, Check] = {
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "seed": _integer(-(2**63), 2**64 - 1),
    "stop": _stop,
    "logit_bias": _logit_bias,
    "max_tokens": _integer(1, TOKENS_MAX),
    "n": _integer(1, 128),
    "stream": _boolean,
    "stream_options": lambda value: None if type(value) is dict else "an object",
    # Not OpenAI's, but every engine's.
    "top_k": _integer(0, 1_000_000),
    "min_p": _number(0, 1),
    "repeat_penalty": _number(0, 10),
    "ignore_eos": _boolean,
}
_FIELDS: dict[Endpoint, dict[str, Check]] = {
    Endpoint.CHAT: {
        **_SAMPLING,
        "max_completion_tokens": _integer(1, TOKENS_MAX),
        "response_format": _response_format,
        "logprobs": _boolean,
        "top_logprobs": _integer(0, 20),
        "tools": _tools,
        "tool_choice": _anything,
        "parallel_tool_calls": _boolean,
        "modalities": _anything,
    },
    Endpoint.COMPLETIONS: {
        **_SAMPLING,
        "logprobs": _integer(0, 20),
        "best_of": _integer(1, 128),
        "echo": _boolean,
        "suffix": lambda value: None if type(value) is str else "a string",
    },
    Endpoint.EMBEDDINGS: {
        "encoding_format": lambda value: None if value in ("float", "base64") else "float or base64",
        "dimensions": _integer(1, 1_000_000),
    },
}
_REQUIRED = {Endpoint.CHAT: "messages", Endpoint.COMPLETIONS: "prompt", Endpoint.EMBEDDINGS: "input"}
# Bookkeeping of OpenAI's own platform without effect on the answer, and what only the service may decide.
_DROPPED = frozenset(
    (
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "prediction",
        "cache_prompt",
    )
)
_UNSUPPORTED = {
    "functions": "the retired `functions` parameter; use `tools`",
    "function_call": "the retired `function_call` parameter; use `tool_choice`",
    "audio": "audio output",
    "web_search_options": "web search",
    "reasoning_effort": "reasoning effort",
    "verbosity": "verbosity",
    "moderation": "moderation",
}
_TEXT_FORMAT = {"type": "text"}
_ROLES = frozenset(("system", "developer", "user", "assistant", "tool"))


def parse_request(endpoint: Endpoint, body: bytes) -> ApiRequest:
    """Return the request in `body`; raises ApiError naming the parameter at fault. Linear in the body."""
    try:
        fields = _decoder.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ApiError(ErrorCode.INVALID_REQUEST, f"the request body is not JSON: {error}") from error
    if type(fields) is not dict:
        raise ApiError(ErrorCode.INVALID_REQUEST, "the request body is not a JSON object")
    return check_request(endpoint, fields)


def check_request(endpoint: Endpoint, fields: dict[str, Any]) -> ApiRequest:
    """Return the request in decoded `fields`, which this takes over; raises ApiError naming the parameter at fault."""
    service = fields.pop("model", None)
    if type(service) is not str or not service:
        _refuse("model", "expected the name of a service, see GET /v1/models", is_missing=service is None)
    required = fields.pop(_REQUIRED[endpoint], None)
    kept = _check_fields(endpoint, fields)
    if endpoint is Endpoint.EMBEDDINGS:
        return _embeddings(service, required, kept)
    needs: list[str] = []
    if endpoint is Endpoint.CHAT:
        kept["messages"], prompt_bytes = _messages(required, needs)
        _check_chat(kept)
    else:
        kept["prompt"], prompt_bytes = _prompt(required)
        _check_completion(kept)
    return _generation(endpoint, service, kept, prompt_bytes, needs)


def upstream_body(request: ApiRequest, service: Service, *, is_whole: bool = False) -> bytes:
    """Return what the engine is sent: the request under the service's rules; `is_whole` asks for one object."""
    fields = {**request.fields, "model": service.name}
    if request.endpoint is Endpoint.EMBEDDINGS:
        fields["encoding_format"] = "float"
    else:
        wanted = fields.get("max_tokens", service.context_tokens)
        fields["max_tokens"] = min(wanted, service.context_tokens)
        if not is_whole:
            fields["stream"] = True
            fields["stream_options"] = {"include_usage": True}
        fields["cache_prompt"] = service.has_prefix_cache
    try:
        return _encoder.encode(fields)
    except RecursionError as error:
        raise ApiError(ErrorCode.INVALID_REQUEST, "the request body is nested too deeply") from error


def answer_id(endpoint: Endpoint, request_id: RequestId) -> str:
    """Return the `id` of an answer's object, ours and never the engine's."""
    return f"{'chatcmpl' if endpoint is Endpoint.CHAT else 'cmpl'}-{request_id}"


def _refuse(param: str, message: str, *, is_missing: bool = False) -> NoReturn:
    text = f"missing required parameter '{param}': {message}" if is_missing else f"'{param}': {message}"
    raise ApiError(ErrorCode.INVALID_REQUEST, text, param=param)


def _unsupported(param: str, capability: str) -> NoReturn:
    raise ApiError(ErrorCode.UNSUPPORTED, f"'{param}': {capability} is not supported here", param=param)


def _check_fields(endpoint: Endpoint, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that go on; null means absent, as it does at OpenAI."""
    checks = _FIELDS[endpoint]
    kept: dict[str, Any] = {}
    for name, value in fields.items():
        check = checks.get(name)
        if check is None:
            if name in _DROPPED or value is None:
                continue
            if name in _UNSUPPORTED:
                _unsupported(name, _UNSUPPORTED[name])
            shown = name if len(name) <= 64 else name[:64] + "…"
            raise ApiError(ErrorCode.INVALID_REQUEST, f"'{shown}': no such parameter at {endpoint}", param=shown)
        if value is None:
            continue
        expected = check(value)
        if expected is not None:
            _refuse(name, f"expected {expected}")
        kept[name] = value
    return kept


def _generation(
    endpoint: Endpoint, service: str, kept: dict[str, Any], prompt_bytes: int, needs: list[str]
) -> ApiRequest:
    is_stream = kept.pop("stream", False)
    options = kept.pop("stream_options", None)
    if options is not None and not is_stream:
        _refuse("stream_options", "only allowed when 'stream' is true")
    has_usage_chunk = (options or {}).get("include_usage") or False
    if type(has_usage_chunk) is not bool:
        _refuse("stream_options.include_usage", "expected true or false")
    answers = kept.pop("n", 1)
    if answers > ANSWERS_MAX:
        _unsupported("n", f"more than {ANSWERS_MAX} answers to a request")
    if "seed" in kept:
        kept["seed"] &= 0xFFFFFFFF  # engines hold 32 bits; the same seed still gives the same answer
    if "logprobs" in kept:
        needs.append(EngineFeature.LOGPROBS)
    if kept.get("response_format", _TEXT_FORMAT)["type"] != "text":
        needs.append(EngineFeature.JSON_SCHEMA)
    return ApiRequest(
        endpoint=endpoint,
        service=service,
        fields=kept,
        is_stream=is_stream,
        has_usage_chunk=has_usage_chunk,
        prompt_bytes=prompt_bytes,
        is_plain=answers == 1 and not needs and "tools" not in kept,
        answers=answers,
        needs=tuple(needs),
    )


def _check_chat(kept: dict[str, Any]) -> None:
    tokens = kept.pop("max_completion_tokens", None)
    if tokens is not None:
        kept["max_tokens"] = tokens
    if kept.pop("modalities", ["text"]) != ["text"]:
        _unsupported("modalities", "output other than text")
    if "top_logprobs" in kept and not kept.get("logprobs"):
        _refuse("top_logprobs", "only allowed when 'logprobs' is true")
    if not kept.get("logprobs"):
        kept.pop("logprobs", None)
    if "tools" in kept or "tool_choice" in kept:
        _check_tool_choice(kept)
    if "tools" not in kept:
        kept.pop("parallel_tool_calls", None)


def _check_tool_choice(kept: dict[str, Any]) -> None:
    choice = kept.get("tool_choice")
    if type(choice) is dict:
        function = choice.get("function") if choice.get("type") == "function" else None
        name = function.get("name") if type(function) is dict else None
        if all(tool["function"]["name"] != name for tool in kept.get("tools", ())):
            _refuse("tool_choice", "expected an object of type function that names one of 'tools'")
    elif choice not in (None, "none", "auto", "required"):
        _refuse("tool_choice", "expected none, auto, required or one named function")
    if choice == "required" and "tools" not in kept:
        _refuse("tool_choice", "only allowed with 'tools'")
    if choice == "none" or "tools" not in kept:
        kept.pop("tools", None)
        kept.pop("tool_choice", None)


def _check_completion(kept: dict[str, Any]) -> None:
    if kept.pop("best_of", 1) > 1:
        _unsupported("best_of", "more than one candidate")
    if kept.pop("echo", False):
        _unsupported("echo", "echo of the prompt")
    if kept.pop("suffix", ""):
        _unsupported("suffix", "insertion before a suffix")
    if kept.get("logprobs") == 0:
        del kept["logprobs"]


def _messages(messages: Any, needs: list[str]) -> tuple[list[dict[str, Any]], int]:
    """Return the messages and the bytes of their text; adds to `needs` what their parts ask of an engine."""
    if type(messages) is not list or not messages:
        _refuse("messages", "expected a list of at least one message", is_missing=messages is None)
    size = 0
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if type(message) is not dict:
            _refuse(where, "expected an object")
        role = message.get("role")
        if type(role) is not str or role not in _ROLES:
            _refuse(f"{where}.role", f"expected one of {', '.join(sorted(_ROLES))}", is_missing=role is None)
        if role == "developer":
            message["role"] = "system"  # chat templates know only the older word for it
        size += _content(where, message, needs)
    return messages, size


def _content(where: str, message: dict[str, Any], needs: list[str]) -> int:
    content = message.get("content")
    if type(content) is str:
        return len(content.encode())
    if content is None:
        if message["role"] == "assistant" and message.get("tool_calls"):
            return 0
        _refuse(f"{where}.content", "expected a string or a list of parts", is_missing=True)
    if type(content) is not list or not content:
        _refuse(f"{where}.content", "expected a string or a list of parts")
    size = 0
    for index, part in enumerate(content):
        place = f"{where}.content[{index}]"
        kind = part.get("type") if type(part) is dict else None
        if kind == "image_url":
            _check_image(place, part.get("image_url"))
            needs.append(EngineFeature.IMAGES)
            continue
        if kind in ("input_audio", "file"):
            _unsupported(place, "audio input" if kind == "input_audio" else "file input")
        if kind != "text" or type(part.get("text")) is not str:
            _refuse(place, "expected an object of type text with a string `text`")
        size += len(part["text"].encode())
    return size


def _check_image(place: str, image: Any) -> None:
    url = image.get("url") if type(image) is dict else None
    if type(url) is not str or not url:
        _refuse(place, "expected an `image_url` with a string `url`")
    if not url.startswith("data:image/"):
        # An engine that fetches what a tenant names would reach into the site's own network.
        _unsupported(place, "an image by reference; send it as a data: URL")


def _prompt(prompt: Any) -> tuple[Any, int]:
    if type(prompt) is list and len(prompt) == 1 and type(prompt[0]) is str:
        prompt = prompt[0]
    if type(prompt) is str:
        return prompt, len(prompt.encode())
    if type(prompt) is list and prompt:
        if all(type(token) is int and token >= 0 for token in prompt):
            return prompt, 4 * len(prompt)
        if all(type(item) in (str, list) for item in prompt):
            _unsupported("prompt", "more than one prompt in a request")
    _refuse("prompt", "expected a string or a list of token ids", is_missing=prompt is None)


def _embeddings(service: str, texts: Any, kept: dict[str, Any]) -> ApiRequest:
    if "dimensions" in kept:
        _unsupported("dimensions", "a choice of dimensions")
    inputs = [texts] if type(texts) is str else texts
    if type(inputs) is not list or not inputs:
        _refuse("input", "expected a string or a list of strings", is_missing=texts is None)
    if len(inputs) > EMBEDDING_INPUTS_MAX:
        _refuse("input", f"expected at most {EMBEDDING_INPUTS_MAX} texts, found {len(inputs)}")
    size = 0
    for index, text in enumerate(inputs):
        if type(text) in (int, list):
            _unsupported("input", "input as token ids (they belong to another model's tokenizer)")
        if type(text) is not str or not text:
            _refuse("input" if type(texts) is str else f"input[{index}]", "expected a string that is not empty")
        size += len(text.encode())
    return ApiRequest(
        endpoint=Endpoint.EMBEDDINGS,
        service=service,
        fields={"input": inputs},
        is_base64=kept.get("encoding_format") == "base64",
        inputs=len(inputs),
        prompt_bytes=size,
    )
