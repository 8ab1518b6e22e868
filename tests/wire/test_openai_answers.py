"""Engines' streams, turned into clients' streams and objects."""

import base64
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.core import RequestId
from madang.wire.openai import ApiRequest, Endpoint, parse_request
from madang.wire.openai_answers import (
    ANSWER_BYTES_MAX,
    AnswerStream,
    EngineFailed,
    TokenCount,
    engine_complaint,
    rewrite_embeddings,
    stream_error,
)
from madang.wire.sse import SseSplitter, split_payloads

RID = RequestId("daegu-" + "0" * 32)


def request(endpoint: Endpoint = Endpoint.CHAT, **fields: Any) -> ApiRequest:
    base: dict[Endpoint, dict[str, Any]] = {
        Endpoint.CHAT: {"model": "qwen", "messages": [{"role": "user", "content": "12345678"}]},
        Endpoint.COMPLETIONS: {"model": "qwen", "prompt": "12345678"},
        Endpoint.EMBEDDINGS: {"model": "e5", "input": ["a", "b"]},
    }
    return parse_request(endpoint, json.dumps({**base[endpoint], **fields}).encode())


def event(delta: dict[str, Any] | None, *, spaced: bool = False, finish: str | None = None, **more: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    body = {"id": "engine-1", "object": "chat.completion.chunk", "model": "file.gguf", "choices": choices, **more}
    separators = (", ", ": ") if spaced else (",", ":")
    return json.dumps(body, ensure_ascii=False, separators=separators).encode()


USAGE = {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}
SCRIPT = [
    {"delta": {"role": "assistant", "content": None}},
    {"delta": {"content": "안"}},
    {"delta": {"content": '"id":"engine-1" "model":"file.gguf" "usage":{ "error":'}},
    {"delta": {"content": "녕"}},
    {"delta": {}, "finish": "stop", "timings": {"x": 1}},
    {"delta": None, "usage": USAGE, "timings": {"x": 1}},
]
TEXT = '안"id":"engine-1" "model":"file.gguf" "usage":{ "error":녕'


def run(stream: AnswerStream, *, spaced: bool = False, script: list[dict[str, Any]] = SCRIPT) -> list[Any]:
    out = [stream.take(event(spaced=spaced, **one)) for one in script]
    assert stream.take(b"[DONE]") is None
    return [json.loads(one) for one in out if one is not None]


@pytest.mark.parametrize("spaced", [False, True], ids=["compact", "spaced"])
@pytest.mark.parametrize("wants_usage", [False, True])
def test_a_stream_under_our_names(spaced: bool, wants_usage: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if wants_usage else {}
    stream = AnswerStream(request(stream=True, **options), RID)
    events = run(stream, spaced=spaced)
    assert {(one["id"], one["model"]) for one in events} == {(f"chatcmpl-{RID}", "qwen")}
    assert not any("timings" in one for one in events)
    assert "".join(one["choices"][0]["delta"].get("content") or "" for one in events if one["choices"]) == TEXT
    assert [one["usage"] for one in events if not one["choices"]] == ([USAGE] if wants_usage else [])
    assert (stream.is_done, stream.is_finished, stream.has_token) == (True, True, True)
    assert stream.count() == TokenCount(4, 2, False)


def test_an_object() -> None:
    stream = AnswerStream(request(), RID)
    assert run(stream) == []
    assert json.loads(stream.assemble(99)) == {
        "id": f"chatcmpl-{RID}",
        "object": "chat.completion",
        "created": 99,
        "model": "qwen",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": TEXT}, "logprobs": None, "finish_reason": "stop"}
        ],
        "usage": USAGE,
    }


def test_tool_calls_and_logprobs_are_put_together() -> None:
    stream = AnswerStream(request(), RID)
    script = [
        {"delta": {"tool_calls": [{"index": 1, "id": "b", "function": {"name": "g", "arguments": "{"}}]}},
        {"delta": {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}}]}},
        {"delta": {"tool_calls": [{"index": 1, "function": {"arguments": "}"}}]}, "finish": "tool_calls"},
    ]
    run(stream, script=script)
    (choice,) = json.loads(stream.assemble(0))["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": ""}},
            {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        ],
    }
    stream = AnswerStream(request(), RID)
    for token in ("a", "b"):
        stream.take(
            json.dumps(
                {"choices": [{"delta": {"content": token}, "logprobs": {"content": [{"token": token}]}}]}
            ).encode()
        )
    assert json.loads(stream.assemble(0))["choices"][0]["logprobs"] == {"content": [{"token": "a"}, {"token": "b"}]}


def test_reasoning_is_kept_apart() -> None:
    stream = AnswerStream(request(), RID)
    run(stream, script=[{"delta": {"reasoning_content": "음"}}, {"delta": {"content": "네"}}])
    message = json.loads(stream.assemble(0))["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("음", "네")


def test_text_completions() -> None:
    stream = AnswerStream(request(Endpoint.COMPLETIONS), RID)
    for text, finish in (("하", None), ("나", "length")):
        stream.take(json.dumps({"choices": [{"index": 0, "text": text, "finish_reason": finish}]}).encode())
    answer = json.loads(stream.assemble(0))
    assert (answer["object"], answer["choices"][0]["text"]) == ("text_completion", "하나")
    assert answer["choices"][0]["finish_reason"] == "length"


def test_tokens_are_estimated_without_usage() -> None:
    stream = AnswerStream(request(stream=True), RID)
    assert stream.count() == TokenCount(0, 0, True)
    for one in SCRIPT[:3]:
        stream.take(event(**one))
    assert stream.count() == TokenCount(2, 2, True), "8 bytes of prompt, two events with text"


@pytest.mark.parametrize(
    "payload", [b"", b"{", b"[]", b"5", b'{"error":{"message":"slot lost"}}', b'{"error":"x"}', b"\xff"]
)
@pytest.mark.parametrize("is_warm", [False, True])
def test_what_is_no_answer_is_a_failure(payload: bytes, is_warm: bool) -> None:
    stream = AnswerStream(request(stream=True), RID)
    if is_warm:
        for one in SCRIPT[:3]:
            stream.take(event(**one))
    with pytest.raises(EngineFailed):
        stream.take(payload)


def test_an_answer_without_end_is_cut() -> None:
    stream = AnswerStream(request(), RID)
    piece = event({"content": "x" * (ANSWER_BYTES_MAX // 32)})
    for _ in range(32):
        stream.take(piece)
    with pytest.raises(EngineFailed, match="over"):
        stream.take(piece)


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@given(st.lists(texts, max_size=12), st.booleans(), st.booleans(), st.integers(0, 3))
def test_any_text_arrives_unchanged(parts: list[str], is_stream: bool, spaced: bool, change: int) -> None:
    """Also where the shape around the text changes in the middle, as the engine's clock does."""
    stream = AnswerStream(request(stream=is_stream), RID)
    script: list[dict[str, Any]] = [
        {"delta": {"content": part}, "created": number // max(change, 1)} for number, part in enumerate(parts)
    ]
    events = run(stream, spaced=spaced, script=script)
    if is_stream:
        assert "".join(one["choices"][0]["delta"]["content"] for one in events) == "".join(parts)
        assert {(one["id"], one["model"]) for one in events} <= {(f"chatcmpl-{RID}", "qwen")}
        assert [one["created"] for one in events] == [one["created"] for one in script]
    else:
        assert json.loads(stream.assemble(0))["choices"][0]["message"]["content"] == "".join(parts)
    assert stream.count().completion_tokens == len(parts)


def test_text_that_is_none_is_a_failure() -> None:
    stream = AnswerStream(request(), RID)
    stream.take(event({"content": "a"}))
    stream.take(event({"content": "a"}).replace(b'"content":"a"', b'"content":"\\x"'))
    with pytest.raises(EngineFailed):
        stream.assemble(0)


def test_a_quote_in_the_text_cannot_end_it() -> None:
    stream = AnswerStream(request(stream=True), RID)
    for text in ("a", "b"):
        stream.take(event({"content": text}))
    sly = event({"content": "c"}).replace(b'"content":"c"', b'"content":"c","timings":"d"')
    out = stream.take(sly)
    assert out is not None
    assert json.loads(out)["choices"][0]["delta"]["content"] == "c"


payloads = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "choices",
                    "delta",
                    "content",
                    "text",
                    "usage",
                    "id",
                    "model",
                    "finish_reason",
                    "tool_calls",
                    "function",
                    "index",
                    "logprobs",
                    "prompt_tokens",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.lists(payloads, max_size=5), st.booleans(), st.sampled_from([Endpoint.CHAT, Endpoint.COMPLETIONS]))
def test_any_json_of_an_engine_is_taken_or_a_failure(script: list[Any], is_stream: bool, endpoint: Endpoint) -> None:
    stream = AnswerStream(request(endpoint, stream=is_stream), RID)
    try:
        for one in script:
            out = stream.take(json.dumps(one).encode())
            assert out is None or json.loads(out)["model"] == "qwen"
        if not is_stream:
            json.loads(stream.assemble(0))
    except EngineFailed:
        pass
    assert stream.count().completion_tokens >= 0


@given(
    st.lists(
        st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3),
        min_size=2,
        max_size=2,
    )
)
def test_embeddings_in_both_forms(vectors: list[list[float]]) -> None:
    rows = [{"index": index, "embedding": vector} for index, vector in reversed(list(enumerate(vectors)))]
    body = json.dumps({"data": rows, "usage": {"prompt_tokens": 9}}).encode()
    plain, count = rewrite_embeddings(request(Endpoint.EMBEDDINGS), body)
    assert [row["embedding"] for row in json.loads(plain)["data"]] == vectors
    assert count == TokenCount(9, 0, False)
    packed, _ = rewrite_embeddings(request(Endpoint.EMBEDDINGS, encoding_format="base64"), body)
    unpacked = [list(struct.unpack("<3f", base64.b64decode(row["embedding"]))) for row in json.loads(packed)["data"]]
    assert unpacked == vectors


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"{}",
        b'{"data":[]}',
        b'{"data":[{"index":0,"embedding":[1.0]}]}',
        b'{"data":[{"index":0,"embedding":"x"}]}',
        b'{"data":[{"index":0,"embedding":[1]},{"index":0,"embedding":[1]}]}',
    ],
)
def test_embeddings_that_are_none(body: bytes) -> None:
    with pytest.raises(EngineFailed):
        rewrite_embeddings(request(Endpoint.EMBEDDINGS), body)


def test_embeddings_without_usage_are_estimated() -> None:
    body = b'{"data":[{"index":0,"embedding":[1]},{"index":1,"embedding":[2]}]}'
    assert rewrite_embeddings(request(Endpoint.EMBEDDINGS), body)[1] == TokenCount(1, 0, True)


def test_what_an_engine_complains_of() -> None:
    assert engine_complaint(b'{"error":{"message":"too long"}}') == "too long"
    assert engine_complaint(b'{"error":"too long"}') == "too long"
    assert engine_complaint(b"<html>") == "the engine refused the request"
    assert len(engine_complaint(json.dumps({"error": {"message": "x" * 5000}}).encode())) == 1000
    assert json.loads(stream_error("a\nb"))["error"]["code"] == "upstream_failed"
    assert b"\n" not in stream_error("a\nb")


@given(
    texts=st.lists(
        st.one_of(st.text(max_size=6), st.sampled_from(['"', "\\", 'a\\"', "\n", "data: ", ""])), max_size=8
    ),
    is_stream=st.booleans(),
    raw=st.lists(st.sampled_from([b'"', b"\\", b"\n", b"\n\n", b"data: ", b"x"]), max_size=3),
    at=st.integers(0, 400),
)
def test_a_run_of_events_is_its_events(texts: list[str], is_stream: bool, raw: list[bytes], at: int) -> None:
    """Taken together or one by one, a client gets the same and a broken event fails the same."""
    payloads = [event({"content": text}) for text in ["처음", *texts, "끝"]] + [event({}, finish="stop"), b"[DONE]"]
    whole = b"".join(b"data: " + payload + b"\n\n" for payload in payloads)
    whole = whole[:at] + b"".join(raw) + whole[at:]
    results = []
    for is_together in (True, False):
        stream = AnswerStream(request(stream=is_stream), RID)
        events, out = SseSplitter().cut(whole), list[bytes]()
        try:
            if is_together:
                stream.take_events(events, out)
            else:
                for payload in split_payloads(events):
                    piece = stream.take(payload)
                    out += [] if piece is None else [b"data: " + piece + b"\n\n"]
            end: bytes | str = stream.assemble(1)
        except EngineFailed as error:
            end = error.message
        results.append((b"".join(out), stream.count(), end))
    assert results[0] == results[1]
