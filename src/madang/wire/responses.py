"""`POST /v1/responses`, without memory: the request mapped onto a chat request.

Owns which of OpenAI's parameters mean what here, and the refusal of everything that would need a stored response.
Refuses to know sockets. Answers are `madang.wire.responses_writer`. Called by `madang.wire.surface`.
"""

from typing import Any, NoReturn

import msgspec

from madang.wire.openai import ApiRequest, Endpoint, check_request
from madang.wire.openai_errors import ApiError, ErrorCode

ITEMS_MAX = 4096


class ResponsesForm(msgspec.Struct, frozen=True, kw_only=True):
    """What a response repeats of its request.

    Attributes:
        service: what the client called `model`.
        echo: parameters as the response object shows them.
        is_stream: the client wants events.
    """

    service: str
    echo: dict[str, Any]
    is_stream: bool = False


# Without effect on an answer here, or OpenAI's own bookkeeping.
_DROPPED = frozenset(
    ("user", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "max_tool_calls")
)
_UNSUPPORTED = {
    "previous_response_id": "a stored response to go on from; send the whole conversation as `input`",
    "conversation": "a stored conversation; send it as `input`",
    "background": "a response in the background",
    "prompt": "a stored prompt template",
    "reasoning": "a choice of reasoning",
    "moderation": "moderation",
    "context_management": "the compaction of stored context",
}
_AS_CHAT = {
    "temperature": "temperature",
    "top_p": "top_p",
    "max_output_tokens": "max_tokens",
    "parallel_tool_calls": "parallel_tool_calls",
    "stream": "stream",
    "top_logprobs": "top_logprobs",
}
_PARAMS = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
}
_OWN = frozenset(
    (
        *_AS_CHAT,
        "model",
        "input",
        "instructions",
        "tools",
        "tool_choice",
        "text",
        "metadata",
        "store",
        "include",
        "truncation",
        "stream_options",
    )
)
_INCLUDE_LOGPROBS = "message.output_text.logprobs"
_INCLUDE_NOTHING = frozenset((_INCLUDE_LOGPROBS, "reasoning.encrypted_content"))
_ROLES = frozenset(("user", "system", "developer", "assistant"))
_decoder = msgspec.json.Decoder()


def parse_responses(body: bytes) -> ApiRequest:
    """Return the chat request that a body of `/v1/responses` means; raises ApiError naming the parameter at fault."""
    try:
        fields = _decoder.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ApiError(ErrorCode.INVALID_REQUEST, f"the request body is not JSON: {error}") from error
    if type(fields) is not dict:
        raise ApiError(ErrorCode.INVALID_REQUEST, "the request body is not a JSON object")
    fields = {name: value for name, value in fields.items() if value is not None}
    _check(fields)
    chat: dict[str, Any] = {_AS_CHAT[name]: value for name, value in fields.items() if name in _AS_CHAT}
    chat["model"] = fields.get("model")
    chat["messages"] = _messages(fields)
    if "tools" in fields and fields["tools"] != []:
        chat["tools"] = _tools(fields["tools"])
        chat["tool_choice"] = _tool_choice(fields.get("tool_choice", "auto"))
    answer_format = _answer_format(fields.get("text"))
    if answer_format is not None:
        chat["response_format"] = answer_format
    if chat.pop("top_logprobs", 0) or _INCLUDE_LOGPROBS in fields.get("include", ()):
        chat |= {"logprobs": True, "top_logprobs": fields.get("top_logprobs", 0)}
    try:
        request = check_request(Endpoint.CHAT, chat)
    except ApiError as error:
        raise _renamed(error) from error
    form = ResponsesForm(service=request.service, echo=_echo(fields), is_stream=request.is_stream)
    return msgspec.structs.replace(request, is_plain=False, form=form)


def _refuse(param: str, expected: str, *, is_missing: bool = False) -> NoReturn:
    text = f"missing required parameter '{param}': " if is_missing else f"'{param}': "
    raise ApiError(ErrorCode.INVALID_REQUEST, f"{text}expected {expected}", param=param)


def _unsupported(param: str, capability: str) -> NoReturn:
    raise ApiError(ErrorCode.UNSUPPORTED, f"'{param}': {capability} is not supported here", param=param)


def _check(fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        if name in _UNSUPPORTED and value is not False and value != {}:
            _unsupported(name, _UNSUPPORTED[name])
        if name not in _OWN and name not in _DROPPED and name not in _UNSUPPORTED:
            shown = name if len(name) <= 64 else name[:64] + "…"
            message = f"'{shown}': no such parameter at {Endpoint.RESPONSES}"
            raise ApiError(ErrorCode.INVALID_REQUEST, message, param=shown)
    _check_own(fields)


def _check_own(fields: dict[str, Any]) -> None:
    if fields.get("store", False) is not False:
        _unsupported("store", "storing a response")
    if fields.get("truncation", "disabled") != "disabled":
        _unsupported("truncation", "a cut of what does not fit")
    include = fields.get("include", [])
    if type(include) is not list or not all(type(item) is str for item in include):
        _refuse("include", "a list of strings")
    for item in include:
        if item not in _INCLUDE_NOTHING:
            _unsupported("include", f"to include {item[:64]}")
    if type(fields.get("metadata", {})) is not dict:
        _refuse("metadata", "an object")
    options = fields.get("stream_options", {})
    if type(options) is not dict or not set(options) <= {"include_obfuscation"}:
        _refuse("stream_options", "an object with include_obfuscation, which is not done here")


def _messages(fields: dict[str, Any]) -> list[dict[str, Any]]:
    """Return instructions and input as chat messages; calls that follow each other are one turn."""
    messages: list[dict[str, Any]] = []
    instructions = fields.get("instructions")
    if instructions is not None:
        if type(instructions) is not str:
            _refuse("instructions", "a string")
        messages.append({"role": "system", "content": instructions})
    given = fields.get("input")
    if type(given) is str:
        return [*messages, {"role": "user", "content": given}]
    if type(given) is not list or not given:
        _refuse("input", "a string or a list of items", is_missing=given is None)
    if len(given) > ITEMS_MAX:
        _refuse("input", f"at most {ITEMS_MAX} items")
    for index, item in enumerate(given):
        _add_item(messages, f"input[{index}]", item)
    return messages


def _add_item(messages: list[dict[str, Any]], where: str, item: Any) -> None:
    if type(item) is not dict:
        _refuse(where, "an object")
    kind = item.get("type", "message")
    if kind == "message":
        messages.append(_message(where, item))
    elif kind == "function_call":
        call = _past_call(where, item)
        if messages and messages[-1].get("tool_calls"):
            messages[-1]["tool_calls"].append(call)
        else:
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
    elif kind == "function_call_output":
        output = item.get("output")
        if type(output) is list:
            output = "\n".join(part["text"] for part in _parts(f"{where}.output", output) if part["type"] == "text")
        if type(output) is not str or type(item.get("call_id")) is not str:
            _refuse(where, "a function_call_output with strings `call_id` and `output`")
        messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": output})
    elif kind != "reasoning":  # what a model thought is not told to it again
        _unsupported(where, f"input of type {str(kind)[:64]}")


def _message(where: str, item: dict[str, Any]) -> dict[str, Any]:
    role = item.get("role")
    if type(role) is not str or role not in _ROLES:
        _refuse(f"{where}.role", f"one of {', '.join(sorted(_ROLES))}", is_missing=role is None)
    content = item.get("content")
    if type(content) is str:
        return {"role": role, "content": content}
    if type(content) is not list or not content:
        _refuse(f"{where}.content", "a string or a list of parts", is_missing=content is None)
    parts = _parts(f"{where}.content", content)
    if all(part["type"] == "text" for part in parts):
        return {"role": role, "content": "\n".join(part["text"] for part in parts)}
    return {"role": role, "content": parts}


def _parts(where: str, content: list[Any]) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    for index, part in enumerate(content):
        place = f"{where}[{index}]"
        kind = part.get("type") if type(part) is dict else None
        if kind in ("input_text", "output_text", "text", "refusal"):
            text = part.get("text", part.get("refusal"))
            if type(text) is not str:
                _refuse(place, "a string `text`")
            parts.append({"type": "text", "text": text})
        elif kind == "input_image":
            if type(part.get("image_url")) is not str:
                _unsupported(place, "an image by file id")
            parts.append({"type": "image_url", "image_url": {"url": part["image_url"]}})
        elif type(kind) is str:
            _unsupported(place, f"input of type {kind[:64]}")
        else:
            _refuse(place, "a part with a type")
    return parts


def _past_call(where: str, item: dict[str, Any]) -> dict[str, Any]:
    values = {name: item.get(name) for name in ("call_id", "name", "arguments")}
    if not all(type(value) is str for value in values.values()):
        _refuse(where, "a function_call with strings `call_id`, `name` and `arguments`")
    function = {"name": values["name"], "arguments": values["arguments"]}
    return {"id": values["call_id"], "type": "function", "function": function}


def _tools(tools: Any) -> list[dict[str, Any]]:
    if type(tools) is not list:
        _refuse("tools", "a list")
    mapped = []
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        if type(tool) is not dict or type(tool.get("type")) is not str:
            _refuse(where, "an object with a type")
        if tool["type"] != "function":
            _unsupported(where, f"the tool {tool['type'][:64]}")
        if type(tool.get("name")) is not str:
            _refuse(where, "a function with a name")
        function = {name: tool[name] for name in ("name", "description", "parameters", "strict") if name in tool}
        mapped.append({"type": "function", "function": {k: v for k, v in function.items() if v is not None}})
    return mapped


def _tool_choice(choice: Any) -> Any:
    if type(choice) is dict:
        if choice.get("type") != "function":
            _unsupported("tool_choice", f"the choice of {str(choice.get('type'))[:64]}")
        return {"type": "function", "function": {"name": choice.get("name")}}
    return choice


def _answer_format(text: Any) -> dict[str, Any] | None:
    if text is None:
        return None
    if type(text) is not dict or not set(text) <= {"format", "verbosity"}:
        _refuse("text", "an object with a `format`")
    if text.get("verbosity") is not None:
        _unsupported("text.verbosity", "verbosity")
    given = text.get("format")
    if given is None:
        return None
    if type(given) is dict and given.get("type") == "json_schema":
        schema = {name: value for name, value in given.items() if name != "type" and value is not None}
        return {"type": "json_schema", "json_schema": schema}
    return given if type(given) is dict else _refuse("text.format", "an object")


def _echo(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters that the response object repeats, OpenAI's defaults where none were given."""
    return {
        "background": False,
        "instructions": fields.get("instructions"),
        "max_output_tokens": fields.get("max_output_tokens"),
        "metadata": fields.get("metadata", {}),
        "parallel_tool_calls": fields.get("parallel_tool_calls", True),
        "previous_response_id": None,
        "reasoning": None,
        "store": False,
        "temperature": fields.get("temperature", 1.0),
        "text": {"format": {"type": "text"}} | fields.get("text", {}),
        "tool_choice": fields.get("tool_choice", "auto"),
        "tools": fields.get("tools", []),
        "top_logprobs": fields.get("top_logprobs", 0),
        "top_p": fields.get("top_p", 1.0),
        "truncation": "disabled",
    }


def _renamed(error: ApiError) -> ApiError:
    """Return a chat request's error in the words of this endpoint."""
    param, message = error.param, error.message
    for chat_name, own_name in _PARAMS.items():
        if param is not None and param.startswith(chat_name):
            message = message.replace(param, own_name + param.removeprefix(chat_name), 1)
            param = own_name + param.removeprefix(chat_name)
            break
    message = message.replace(f"at {Endpoint.CHAT}", f"at {Endpoint.RESPONSES}")
    return ApiError(error.code, message, param=param, status=error.status)
