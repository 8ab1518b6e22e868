"""Tool calls with an engine that cannot parse them: its output is held to a schema of calls, and read back.

Owns the schema, the words that explain it to the model, the way back from text to calls, and how calls of earlier turns
are told. Refuses to know sockets. Called by `madang.wire.mapping` for engines without the feature `tools` that have
`json_schema`.

The model writes `{"tool_calls": [{"name": ..., "arguments": {...}}, ...]}`, or, where it may answer without a call,
`{"text": "..."}`. Which of the two is decided by the model's first word, so `auto` is the model's own choice; the
grammar only sees to it that what it began is well formed. Arguments always keep to the function's schema.
"""

from typing import Any

import msgspec

from madang.wire.generation import CallBegin, CallPiece, Delta, Finish, Text
from madang.wire.openai_answers import EngineFailed
from madang.wire.openai_errors import ApiError, ErrorCode

CALLS_MAX = 16
"""Calls in one answer; a model that repeats itself must end somewhere."""
SCHEMA_DEPTH_MAX = 64
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder()
_ROLE = "You are a helpful assistant."
_ANY_OBJECT = {"type": "object", "properties": {}}


def constrain(fields: dict[str, Any]) -> dict[str, Any]:
    """Return a chat request's fields with its tools made into a schema and an explanation.

    Args:
        fields: checked, with `tools`; left as they are.

    Raises:
        ApiError: 400 naming what cannot be expressed.
    """
    changed = {
        name: value
        for name, value in fields.items()
        if name not in ("tools", "tool_choice", "parallel_tool_calls", "messages", "response_format")
    }
    if "logprobs" in fields:
        message = "'logprobs': logprobs of tool calls are not supported here"
        raise ApiError(ErrorCode.UNSUPPORTED, message, param="logprobs")
    choice = fields.get("tool_choice", "auto")
    tools = fields["tools"]
    if type(choice) is dict:
        tools = [tool for tool in tools if tool["function"]["name"] == choice["function"]["name"]][:1]
    is_free = choice == "auto"
    is_parallel = fields.get("parallel_tool_calls", True) and type(choice) is not dict
    schema = _schema(tools, fields.get("response_format") if is_free else None, is_free, is_parallel)
    changed["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    changed["messages"] = _tell(fields["messages"], _explain(tools, is_free, is_parallel))
    return changed


def _schema(tools: list[Any], answer_format: Any, is_free: bool, is_parallel: bool) -> dict[str, Any]:
    shared: dict[str, Any] = {}
    calls = []
    for index, tool in enumerate(tools):
        function = tool["function"]
        arguments = _own_refs(function.get("parameters") or _ANY_OBJECT, f"t{index}_", shared, 0)
        calls.append(_object(name={"const": function["name"]}, arguments=arguments))
    item = calls[0] if len(calls) == 1 else {"anyOf": calls}
    list_of_calls = {"type": "array", "minItems": 1, "maxItems": CALLS_MAX if is_parallel else 1, "items": item}
    schema = _object(tool_calls=list_of_calls)
    if is_free:
        schema = {"anyOf": [schema, _object(text=_text_schema(answer_format, shared))]}
    return {**schema, "$defs": shared} if shared else schema


def _text_schema(answer_format: Any, shared: dict[str, Any]) -> Any:
    """Return what stands for an answer in words, which may itself have to be JSON."""
    kind = answer_format["type"] if answer_format else "text"
    if kind == "json_schema":
        return _own_refs(answer_format["json_schema"]["schema"], "answer_", shared, 0)
    return {"type": "object"} if kind == "json_object" else {"type": "string"}


def _object(**members: Any) -> dict[str, Any]:
    return {"type": "object", "properties": members, "required": list(members), "additionalProperties": False}


def _own_refs(schema: Any, prefix: str, shared: dict[str, Any], depth: int) -> Any:
    """Return a schema whose definitions moved to `shared` under names of their own, so that it may be a part."""
    if depth > SCHEMA_DEPTH_MAX:
        raise ApiError(ErrorCode.INVALID_REQUEST, f"a schema is deeper than {SCHEMA_DEPTH_MAX} levels", param="tools")
    if type(schema) is list:
        return [_own_refs(item, prefix, shared, depth + 1) for item in schema]
    if type(schema) is not dict:
        return schema
    own: dict[str, Any] = {}
    for name, value in schema.items():
        if name in ("$defs", "definitions") and type(value) is dict and depth == 0:
            for key, definition in value.items():
                shared[prefix + key] = _own_refs(definition, prefix, shared, 1)
        elif name == "$ref" and type(value) is str:
            own[name] = _own_ref(value, prefix)
        elif name == "properties" and type(value) is dict:
            own[name] = {key: _own_refs(one, prefix, shared, depth + 1) for key, one in value.items()}
        elif name in ("const", "enum", "default", "examples"):
            own[name] = value
        else:
            own[name] = _own_refs(value, prefix, shared, depth + 1)
    return own


def _own_ref(ref: str, prefix: str) -> str:
    for root in ("#/$defs/", "#/definitions/"):
        if ref.startswith(root):
            return f"#/$defs/{prefix}{ref.removeprefix(root)}"
    raise ApiError(ErrorCode.UNSUPPORTED, "a schema may refer only to its own '#/$defs/…' here", param="tools")


def _explain(tools: list[Any], is_free: bool, is_parallel: bool) -> str:
    """Return what a model is told: where there is a choice, in the words that open models were trained with."""
    functions = "\n".join(_encoder.encode({"type": "function", "function": _shown(tool)}).decode() for tool in tools)
    lines = [
        "# Tools",
        "",
        "You may call one or more functions to assist with the user query."
        if is_parallel
        else "You may call one function to assist with the user query.",
        "",
        "You are provided with function signatures within <tools></tools> XML tags:",
        f"<tools>\n{functions}\n</tools>",
        "",
        'To call functions, return {"tool_calls": [{"name": <function-name>, "arguments": <args-json-object>}]}.',
    ]
    if is_free:
        lines.append('When you have the results, or can answer from your own knowledge, return {"text": <answer>}.')
    return "\n".join(lines)


def _shown(tool: dict[str, Any]) -> dict[str, Any]:
    function = tool["function"]
    return {name: function[name] for name in ("name", "description", "parameters") if function.get(name)}


def _tell(messages: list[dict[str, Any]], explanation: str) -> list[dict[str, Any]]:
    """Return the conversation with the explanation first and earlier calls in the words that it uses."""
    told: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] == "assistant" and message.get("tool_calls"):
            told.append({"role": "assistant", "content": _past_calls(message["tool_calls"])})
        elif message["role"] == "tool":
            result = f"<tool_response>\n{_text_of(message.get('content'))}\n</tool_response>"
            if told and _text_of(told[-1].get("content")).endswith("</tool_response>"):
                result = f"{told.pop()['content']}\n{result}"  # results of one turn are one turn
            told.append({"role": "user", "content": result})
        else:
            told.append(message)
    if told[0]["role"] == "system":
        first = {**told[0], "content": f"{_text_of(told[0].get('content'))}\n\n{explanation}"}
        return [first, *told[1:]]
    return [{"role": "system", "content": f"{_ROLE}\n\n{explanation}"}, *told]


def _past_calls(calls: Any) -> str:
    if type(calls) is not list:
        raise ApiError(ErrorCode.INVALID_REQUEST, "'tool_calls' of a message: expected a list", param="messages")
    past = []
    for call in calls:
        function = call.get("function") if type(call) is dict else None
        if type(function) is not dict or type(function.get("name")) is not str:
            message = "'tool_calls' of a message: expected functions with a name"
            raise ApiError(ErrorCode.INVALID_REQUEST, message, param="messages")
        past.append({"name": function["name"], "arguments": _decoded(function.get("arguments"))})
    return _encoder.encode({"tool_calls": past}).decode()


def _decoded(arguments: Any) -> Any:
    try:
        return _decoder.decode(arguments) if type(arguments) is str else arguments
    except (msgspec.DecodeError, RecursionError):
        return arguments


def _text_of(content: Any) -> str:
    if type(content) is list:
        return "\n".join(part["text"] for part in content if type(part) is dict and type(part.get("text")) is str)
    return content if type(content) is str else ""


_SPACE = " \t\n\r"


class CallStage:
    """Reads constrained output as it comes: text and calls are passed on in pieces, never later than they are sure.

    States: `open` before the first key, `calls` between calls, `name` and `arguments` inside one, `text` inside a
    string of words, `json` inside an answer that is JSON itself, `closed` after the answer.
    """

    def __init__(self) -> None:
        self._state = "open"
        self._held = ""
        self._calls = 0
        self._value = _Value()

    def feed(self, delta: Delta) -> list[Delta]:
        """Return what a fact becomes; raises EngineFailed when the output does not keep to the schema."""
        if isinstance(delta, Finish):
            is_call = self._calls and delta.reason == "stop"
            return [Finish("tool_calls")] if is_call else [delta]
        if not isinstance(delta, Text):
            return [delta]
        self._held += delta.text
        found: list[Delta] = []
        while self._held and self._step(found):
            pass
        return found

    def _step(self, found: list[Delta]) -> bool:
        """Take what can be taken of the held text; return whether more might follow at once."""
        match self._state:
            case "open":
                return self._open()
            case "calls":
                return self._between()
            case "name":
                return self._name(found)
            case "arguments":
                return self._inside(found, CallPiece(self._calls - 1, ""))
            case "text":
                return self._words(found)
            case "json":
                return self._inside(found, Text(""))
            case _:
                self._held = ""
                return False

    def _open(self) -> bool:
        key = self._expect_key()
        if key is None:
            return False
        if key == "tool_calls":
            rest = self._held.lstrip(_SPACE)
            if rest[0] != "[":
                raise EngineFailed("the engine's tool calls are no list")
            self._held, self._state = rest[1:], "calls"
            return True
        if key != "text":
            raise EngineFailed("the engine did not keep to the schema of calls")
        self._held = rest = self._held.lstrip(_SPACE)
        self._state, self._value = "json", _Value()
        if rest[0] == '"':
            self._held, self._state = rest[1:], "text"
        return True

    def _expect_key(self) -> str | None:
        """Take `{ "key" :` off the held text, once something follows; until then return None and take nothing."""
        rest = self._held.lstrip(_SPACE)
        if rest and rest[0] != "{":
            raise EngineFailed("the engine did not keep to the schema of calls")
        rest = rest[1:].lstrip(_SPACE)
        end = rest.find('"', 1)
        colon = rest.find(":", end)
        if end < 0 or colon < 0:
            return None
        after = rest[colon + 1 :]
        if not after.strip(_SPACE):
            return None
        self._held = after
        return rest[1:end]

    def _between(self) -> bool:
        rest = self._held.lstrip(_SPACE + ",}")  # the brace closes the call before
        if not rest:
            self._held = ""
            return False
        if rest[0] == "]":
            self._state, self._held = "closed", ""
            return False
        self._held = rest
        key = self._expect_key()
        if key is None:
            return False
        if key != "name":
            raise EngineFailed("the engine's tool call has no name")
        self._state = "name"
        return True

    def _name(self, found: list[Delta]) -> bool:
        rest = self._held.lstrip(_SPACE)
        end = _string_end(rest, 1)
        if end < 0:
            return False
        colon = rest.find(":", end)
        after = rest[colon + 1 :].lstrip(_SPACE)
        if colon < 0 or not after:
            return False
        found.append(CallBegin(self._calls, _plain(rest[1:end])))
        self._calls += 1
        self._held, self._state, self._value = after, "arguments", _Value()
        return True

    def _inside(self, found: list[Delta], like: CallPiece | Text) -> bool:
        """Pass JSON on as it is, up to the end of its value."""
        size = self._value.measure(self._held)
        if size:
            found.append(msgspec.structs.replace(like, text=self._held[:size]))
        self._held = self._held[size:]
        if not self._value.is_over:
            return False
        if self._state == "json":
            self._state = "closed"
            return True
        self._state = "calls"
        return True

    def _words(self, found: list[Delta]) -> bool:
        end = _string_end(self._held, 0)
        if end >= 0:
            body, self._held, self._state = self._held[:end], "", "closed"
        else:
            cut = _safe_cut(self._held)
            body, self._held = self._held[:cut], self._held[cut:]
        if body:
            found.append(Text(_plain(body)))
        return False


class _Value:
    """Finds the end of one JSON value in text that comes in pieces."""

    def __init__(self) -> None:
        self.is_over = False
        self._depth = 0
        self._is_string = self._is_escaped = False

    def measure(self, text: str) -> int:
        """Return how many characters of `text` belong to the value."""
        for index, char in enumerate(text):
            if self._is_string:
                self._follow_string(char)
            elif char == '"':
                self._is_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                if self._depth == 0:  # the end of a number or word: what closes is not its own
                    self.is_over = True
                    return index
                self._depth -= 1
                self.is_over = self._depth == 0
            if self.is_over:
                return index + 1
        return len(text)

    def _follow_string(self, char: str) -> None:
        if self._is_escaped:
            self._is_escaped = False
        elif char == "\\":
            self._is_escaped = True
        elif char == '"':
            self._is_string = False
            self.is_over = self._depth == 0


def _string_end(text: str, start: int) -> int:
    """Return where the closing quote of a string stands, or -1."""
    index = start
    while index < len(text):
        if text[index] == "\\":
            index += 2
        elif text[index] == '"':
            return index
        else:
            index += 1
    return -1


def _safe_cut(text: str) -> int:
    """Return how much of a string's body can be decoded now: no half of an escape, no half of a surrogate pair."""
    index = 0
    while index < len(text):
        if text[index] != "\\":
            index += 1
            continue
        size = 6 if text[index + 1 : index + 2] == "u" else 2
        if text[index + 2 : index + 3].lower() == "d" and text[index + 3 : index + 4].lower() in ("8", "9", "a", "b"):
            size = 12
        if index + size > len(text):
            return index
        index += size
    return index


def _plain(body: str) -> str:
    """Return the text of a JSON string's body."""
    try:
        return str(_decoder.decode(f'"{body}"'.encode(errors="surrogatepass")))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EngineFailed(f"the engine's text is malformed: {error}") from error
