"""Bodies that are taken, bodies that are refused and why, and what an engine is sent."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.core import RequestId, ServiceName
from madang.model import Service, Task
from madang.wire.openai import ANSWERS_MAX, EMBEDDING_INPUTS_MAX, Endpoint, answer_id, parse_request, upstream_body
from madang.wire.openai_errors import ApiError, ErrorCode, encode_error

SERVICE = Service(name=ServiceName("qwen"), model="m", context_tokens=512)
USER = {"role": "user", "content": "안녕?"}
BASE: dict[Endpoint, dict[str, Any]] = {
    Endpoint.CHAT: {"model": "qwen", "messages": [USER]},
    Endpoint.COMPLETIONS: {"model": "qwen", "prompt": "하나"},
    Endpoint.EMBEDDINGS: {"model": "e5", "input": "진동"},
}


def parse(endpoint: Endpoint = Endpoint.CHAT, **fields: Any) -> Any:
    return parse_request(endpoint, json.dumps({**BASE[endpoint], **fields}).encode())


def sent(endpoint: Endpoint = Endpoint.CHAT, **fields: Any) -> dict[str, Any]:
    return json.loads(upstream_body(parse(endpoint, **fields), SERVICE))


def test_what_an_engine_is_sent() -> None:
    body = sent(
        temperature=0.2,
        top_p=0.9,
        stop=["끝"],
        seed=-1,
        max_completion_tokens=5,
        n=1,
        user="somebody",
        metadata={"a": "b"},
        cache_prompt=True,
        tools=None,
        top_k=40,
    )
    assert body == {
        "model": "qwen",
        "messages": [USER],
        "temperature": 0.2,
        "top_p": 0.9,
        "stop": ["끝"],
        "seed": 2**32 - 1,
        "max_tokens": 5,
        "top_k": 40,
        "stream": True,
        "stream_options": {"include_usage": True},
        "cache_prompt": False,
    }


def test_tokens_are_bounded_by_the_context() -> None:
    assert sent()["max_tokens"] == 512
    assert sent(max_tokens=100_000)["max_tokens"] == 512
    assert sent(max_tokens=7)["max_tokens"] == 7


def test_prefix_cache_is_the_services_choice() -> None:
    cached = Service(name=ServiceName("qwen"), model="m", has_prefix_cache=True)
    assert json.loads(upstream_body(parse(cache_prompt=False), cached))["cache_prompt"] is True


def test_streams_and_their_usage() -> None:
    assert (parse().is_stream, parse(stream=True).is_stream, parse(stream=None).is_stream) == (False, True, False)
    assert parse(stream=True, stream_options={"include_usage": True}).has_usage_chunk
    assert not parse(stream=True, stream_options={}).has_usage_chunk


def test_completion_prompts() -> None:
    assert sent(Endpoint.COMPLETIONS)["prompt"] == "하나"
    assert sent(Endpoint.COMPLETIONS, prompt=["하나"])["prompt"] == "하나"
    assert sent(Endpoint.COMPLETIONS, prompt=[1, 2, 3])["prompt"] == [1, 2, 3]
    assert "logprobs" not in sent(Endpoint.COMPLETIONS, logprobs=0, echo=False, best_of=1, suffix="")


def test_embedding_inputs() -> None:
    assert sent(Endpoint.EMBEDDINGS) == {"model": "qwen", "input": ["진동"], "encoding_format": "float"}
    request = parse(Endpoint.EMBEDDINGS, input=["a", "b"], encoding_format="base64")
    assert (request.inputs, request.is_base64) == (2, True)
    parse(Endpoint.EMBEDDINGS, input=["a"] * EMBEDDING_INPUTS_MAX)


def test_roles_and_parts() -> None:
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "짧게"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "tool", "content": "3", "tool_call_id": "1"},
        {"role": "user", "content": ""},
    ]
    assert [message["role"] for message in sent(messages=messages)["messages"]] == [
        "system",
        "assistant",
        "tool",
        "user",
    ]


TOOL = {"type": "function", "function": {"name": "f"}}
CHAT, TEXT, EMBED = Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.EMBEDDINGS
REFUSED: list[tuple[Endpoint, dict[str, Any], ErrorCode, str]] = [
    (CHAT, {"model": None}, ErrorCode.INVALID_REQUEST, "model"),
    (CHAT, {"model": ""}, ErrorCode.INVALID_REQUEST, "model"),
    (CHAT, {"model": 5}, ErrorCode.INVALID_REQUEST, "model"),
    (CHAT, {"messages": None}, ErrorCode.INVALID_REQUEST, "messages"),
    (CHAT, {"messages": []}, ErrorCode.INVALID_REQUEST, "messages"),
    (CHAT, {"messages": "hi"}, ErrorCode.INVALID_REQUEST, "messages"),
    (CHAT, {"messages": [USER, 5]}, ErrorCode.INVALID_REQUEST, "messages[1]"),
    (CHAT, {"messages": [{"content": "x"}]}, ErrorCode.INVALID_REQUEST, "messages[0].role"),
    (CHAT, {"messages": [{"role": "king", "content": "x"}]}, ErrorCode.INVALID_REQUEST, "messages[0].role"),
    (CHAT, {"messages": [{"role": ["user"], "content": "x"}]}, ErrorCode.INVALID_REQUEST, "messages[0].role"),
    (CHAT, {"messages": [{"role": "user"}]}, ErrorCode.INVALID_REQUEST, "messages[0].content"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, ErrorCode.INVALID_REQUEST, "messages[0].content"),
    (CHAT, {"messages": [{"role": "user", "content": []}]}, ErrorCode.INVALID_REQUEST, "messages[0].content"),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        ErrorCode.INVALID_REQUEST,
        "messages[0].content[0]",
    ),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        ErrorCode.INVALID_REQUEST,
        "messages[0].content[0]",
    ),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://10.0.0.1/x"}}]}]},
        ErrorCode.UNSUPPORTED,
        "messages[0].content[0]",
    ),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
        ErrorCode.UNSUPPORTED,
        "messages[0].content[0]",
    ),
    (CHAT, {"temperature": "hot"}, ErrorCode.INVALID_REQUEST, "temperature"),
    (CHAT, {"temperature": True}, ErrorCode.INVALID_REQUEST, "temperature"),
    (CHAT, {"temperature": 2.1}, ErrorCode.INVALID_REQUEST, "temperature"),
    (CHAT, {"max_tokens": 0}, ErrorCode.INVALID_REQUEST, "max_tokens"),
    (CHAT, {"max_tokens": 1.5}, ErrorCode.INVALID_REQUEST, "max_tokens"),
    (CHAT, {"stop": [""]}, ErrorCode.INVALID_REQUEST, "stop"),
    (CHAT, {"stop": ["a"] * 17}, ErrorCode.INVALID_REQUEST, "stop"),
    (CHAT, {"logit_bias": {"a": 1}}, ErrorCode.INVALID_REQUEST, "logit_bias"),
    (CHAT, {"stream": "yes"}, ErrorCode.INVALID_REQUEST, "stream"),
    (CHAT, {"stream_options": {"include_usage": True}}, ErrorCode.INVALID_REQUEST, "stream_options"),
    (
        CHAT,
        {"stream": True, "stream_options": {"include_usage": 1}},
        ErrorCode.INVALID_REQUEST,
        "stream_options.include_usage",
    ),
    (CHAT, {"n": ANSWERS_MAX + 1}, ErrorCode.UNSUPPORTED, "n"),
    (CHAT, {"n": 0}, ErrorCode.INVALID_REQUEST, "n"),
    (CHAT, {"response_format": {"type": "xml"}}, ErrorCode.INVALID_REQUEST, "response_format"),
    (CHAT, {"response_format": {"type": "json_schema"}}, ErrorCode.INVALID_REQUEST, "response_format"),
    (CHAT, {"tools": []}, ErrorCode.INVALID_REQUEST, "tools"),
    (CHAT, {"tools": [{"type": "function"}]}, ErrorCode.INVALID_REQUEST, "tools"),
    (CHAT, {"tools": [TOOL], "tool_choice": "any"}, ErrorCode.INVALID_REQUEST, "tool_choice"),
    (CHAT, {"tools": [TOOL], "tool_choice": {"type": "function"}}, ErrorCode.INVALID_REQUEST, "tool_choice"),
    (
        CHAT,
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        ErrorCode.INVALID_REQUEST,
        "tool_choice",
    ),
    (CHAT, {"tools": [TOOL], "tool_choice": ["auto"]}, ErrorCode.INVALID_REQUEST, "tool_choice"),
    (CHAT, {"tool_choice": "required"}, ErrorCode.INVALID_REQUEST, "tool_choice"),
    (CHAT, {"top_logprobs": 2}, ErrorCode.INVALID_REQUEST, "top_logprobs"),
    (CHAT, {"modalities": ["text", "audio"]}, ErrorCode.UNSUPPORTED, "modalities"),
    (CHAT, {"functions": [{}]}, ErrorCode.UNSUPPORTED, "functions"),
    (CHAT, {"reasoning_effort": "high"}, ErrorCode.UNSUPPORTED, "reasoning_effort"),
    (CHAT, {"id_slot": 1}, ErrorCode.INVALID_REQUEST, "id_slot"),
    (CHAT, {"n_predict": 1}, ErrorCode.INVALID_REQUEST, "n_predict"),
    (CHAT, {"temprature": 1}, ErrorCode.INVALID_REQUEST, "temprature"),
    (TEXT, {"prompt": None}, ErrorCode.INVALID_REQUEST, "prompt"),
    (TEXT, {"prompt": []}, ErrorCode.INVALID_REQUEST, "prompt"),
    (TEXT, {"prompt": [-1]}, ErrorCode.INVALID_REQUEST, "prompt"),
    (TEXT, {"prompt": ["a", "b"]}, ErrorCode.UNSUPPORTED, "prompt"),
    (TEXT, {"echo": True}, ErrorCode.UNSUPPORTED, "echo"),
    (TEXT, {"best_of": 2}, ErrorCode.UNSUPPORTED, "best_of"),
    (TEXT, {"suffix": "x"}, ErrorCode.UNSUPPORTED, "suffix"),
    (TEXT, {"messages": [USER]}, ErrorCode.INVALID_REQUEST, "messages"),
    (EMBED, {"input": None}, ErrorCode.INVALID_REQUEST, "input"),
    (EMBED, {"input": ""}, ErrorCode.INVALID_REQUEST, "input"),
    (EMBED, {"input": []}, ErrorCode.INVALID_REQUEST, "input"),
    (EMBED, {"input": ["a", ""]}, ErrorCode.INVALID_REQUEST, "input[1]"),
    (EMBED, {"input": [1, 2]}, ErrorCode.UNSUPPORTED, "input"),
    (EMBED, {"input": [[1], [2]]}, ErrorCode.UNSUPPORTED, "input"),
    (EMBED, {"input": ["a"] * (EMBEDDING_INPUTS_MAX + 1)}, ErrorCode.INVALID_REQUEST, "input"),
    (EMBED, {"dimensions": 64}, ErrorCode.UNSUPPORTED, "dimensions"),
    (EMBED, {"encoding_format": "hex"}, ErrorCode.INVALID_REQUEST, "encoding_format"),
]


@pytest.mark.parametrize(("endpoint", "fields", "code", "param"), REFUSED)
def test_refusals_name_the_parameter(endpoint: Endpoint, fields: dict[str, Any], code: ErrorCode, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse(endpoint, **fields)
    assert (caught.value.code, caught.value.param) == (code, param)
    assert param.split(".")[0].split("[")[0] in caught.value.message
    error = json.loads(encode_error(caught.value))["error"]
    assert error["code"] == code
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"5", b'{"model":"q"', b"\xff", b'"\\ud800"', b"[" * 9000, b"{}x"])
def test_bodies_that_are_no_object(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        parse_request(Endpoint.CHAT, body)
    assert caught.value.status == 400


def test_a_body_that_is_too_deep_to_write() -> None:
    deep: dict[str, Any] = {}
    for _ in range(400):
        deep = {"a": deep}
    request = parse(response_format={"type": "json_schema", "json_schema": {"schema": deep}})

    def descend(depth: int) -> bytes:
        return upstream_body(request, SERVICE) if depth == 0 else descend(depth - 1)

    with pytest.raises(ApiError, match="nested"):
        descend(700)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from(
    [
        "model",
        "messages",
        "prompt",
        "input",
        "stream",
        "stream_options",
        "stop",
        "tools",
        "tool_choice",
        "n",
        "seed",
        "logit_bias",
        "response_format",
        "modalities",
        "top_logprobs",
        "encoding_format",
        "user",
        "id_slot",
    ]
)


@given(st.sampled_from(list(BASE)), st.dictionaries(fields, values, max_size=5))
def test_any_json_is_taken_or_refused(endpoint: Endpoint, found: dict[str, Any]) -> None:
    body = json.dumps({**BASE[endpoint], **found}).encode()
    try:
        request = parse_request(endpoint, body)
    except ApiError:
        return
    sent_body = json.loads(upstream_body(request, SERVICE))
    assert sent_body["model"] == "qwen"
    assert "id_slot" not in sent_body
    assert "user" not in sent_body
    if endpoint is not Endpoint.EMBEDDINGS:
        assert sent_body["stream"] is True


@given(st.binary(max_size=100))
def test_any_bytes_are_refused_or_taken(body: bytes) -> None:
    with contextlib.suppress(ApiError):
        parse_request(Endpoint.CHAT, body)


def test_errors_and_ids() -> None:
    error = ApiError(ErrorCode.OVERLOADED, "full", retry_after_s=2.0, details={"a": 1})
    assert json.loads(encode_error(error))["error"] == {
        "message": "full",
        "type": "rate_limit_error",
        "param": None,
        "code": "overloaded",
        "madang": {"a": 1},
    }
    assert {code: ApiError(code, "").status for code in ErrorCode} == {
        "invalid_request": 400,
        "unsupported": 400,
        "invalid_key": 401,
        "residency_violation": 403,
        "model_not_found": 404,
        "not_yet": 404,
        "request_too_large": 413,
        "quota_exceeded": 429,
        "overloaded": 429,
        "upstream_failed": 502,
        "no_replica": 503,
        "timeout": 504,
    }
    assert answer_id(Endpoint.CHAT, RequestId("daegu-1")) == "chatcmpl-daegu-1"
    assert answer_id(Endpoint.COMPLETIONS, RequestId("daegu-1")) == "cmpl-daegu-1"
    assert {endpoint: endpoint.task for endpoint in Endpoint} == {
        Endpoint.CHAT: Task.CHAT,
        Endpoint.COMPLETIONS: Task.CHAT,
        Endpoint.EMBEDDINGS: Task.EMBEDDING,
        Endpoint.RESPONSES: Task.CHAT,
        Endpoint.RERANK: Task.EMBEDDING,
        Endpoint.TRANSCRIPTIONS: Task.TRANSCRIPTION,
        Endpoint.INFER: Task.INFER,
        Endpoint.MODEL_METADATA: Task.INFER,
    }


def test_what_an_engine_must_be_able_to_do() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    asked = parse(messages=[{"role": "user", "content": [{"type": "text", "text": "x"}, picture]}])
    assert (asked.is_plain, asked.needs) == (False, ("images",))
    assert parse(logprobs=True, top_logprobs=2).needs == ("logprobs",)
    assert parse(response_format={"type": "json_object"}).needs == ("json_schema",)
    assert parse(Endpoint.COMPLETIONS, logprobs=2).needs == ("logprobs",)
    plain = parse(response_format={"type": "text"}, logprobs=False, n=1, tools=[TOOL], tool_choice="none")
    assert (plain.is_plain, plain.needs) == (True, ())
    assert "tools" not in plain.fields
    assert (parse(n=3).is_plain, parse(n=3).answers) == (False, 3)
    named = parse(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "f"}})
    assert (named.is_plain, named.needs) == (False, ())
