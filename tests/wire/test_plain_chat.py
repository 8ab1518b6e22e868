"""The fast reading of a plain chat request is the slow one's, wherever it answers at all."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.core import ServiceName
from madang.model import Service
from madang.wire.openai import Endpoint, parse_request, upstream_body
from madang.wire.openai_errors import ApiError
from madang.wire.plain_chat import PlainChat, plain_engine_body, read_plain_chat

SERVICE = Service(name=ServiceName("qwen"), model="m", context_tokens=2048)
MESSAGES = [{"role": "user", "content": "안녕하세요, hello"}]

messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "developer", "tool"]), "content": st.text(max_size=20)}
    ),
    max_size=3,
)
fields = st.fixed_dictionaries(
    {"model": st.sampled_from(["qwen", "", "한글"]), "messages": messages},
    optional={
        "temperature": st.one_of(st.floats(-1, 3), st.integers(-1, 3), st.booleans(), st.none()),
        "top_p": st.floats(-0.5, 1.5),
        "max_tokens": st.integers(-1, 20_000_000),
        "max_completion_tokens": st.integers(-1, 5000),
        "seed": st.integers(-(2**70), 2**70),
        "stream": st.one_of(st.booleans(), st.just(1)),
        "n": st.integers(0, 2),
        "user": st.text(max_size=3),
        "nonsense": st.none(),
    },
)


def body_of(**more: Any) -> bytes:
    return json.dumps({"model": "qwen", "messages": MESSAGES, **more}).encode()


@given(fields=fields, is_whole=st.booleans())
def test_it_agrees_with_the_slow_reading(fields: dict[str, Any], is_whole: bool) -> None:
    body = json.dumps(fields, ensure_ascii=False).encode()
    fast = read_plain_chat(body)
    if fast is None:
        return
    slow = parse_request(Endpoint.CHAT, body)  # what the fast one accepts, the slow one does not refuse
    for name in ("endpoint", "service", "is_stream", "has_usage_chunk", "prompt_bytes", "is_plain", "answers", "needs"):
        assert getattr(fast, name) == getattr(slow, name), name
    assert isinstance(fast.form, PlainChat)
    sent = json.loads(plain_engine_body(fast.form, SERVICE, is_whole=is_whole))
    assert sent == json.loads(upstream_body(slow, SERVICE, is_whole=is_whole))


@given(body=st.binary(max_size=60))
def test_arbitrary_bytes_never_crash_it(body: bytes) -> None:
    read_plain_chat(body)


@pytest.mark.parametrize("more", [{}, {"temperature": 0.5}, {"stream": True, "max_tokens": 5}, {"seed": 7}])
def test_what_is_plain_is_read(more: dict[str, Any]) -> None:
    assert read_plain_chat(body_of(**more)) is not None


@pytest.mark.parametrize(
    "more", [{"n": 2}, {"tools": []}, {"temperature": 9}, {"stream_options": {}}, {"messages": []}]
)
def test_anything_else_is_left_to_the_slow_reading(more: dict[str, Any]) -> None:
    assert read_plain_chat(body_of(**more)) is None


def test_an_empty_body_is_complained_about_by_the_slow_reading() -> None:
    assert read_plain_chat(b"") is None
    with pytest.raises(ApiError):
        parse_request(Endpoint.CHAT, b"")
