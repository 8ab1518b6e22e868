"""Codecs of engines: command lines round trip, and no bytes make them raise or lie."""

import base64
import json
import math
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.engine.embed import codec as embed
from madang.engine.embed.twin import fake_vector
from madang.engine.health import Health, parse_health
from madang.engine.llama_cpp import codec as llama_cpp

# Before Python 3.13 argparse drops a value that is "--" and nothing else; no service, file or key is called so.
NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_. /=한", min_size=1, max_size=40).filter(
    lambda name: name != "--"
)
PORTS = st.integers(1, 65535)
COUNTS = st.integers(1, 1 << 20)


@given(model=NAMES, alias=NAMES, key=NAMES, port=PORTS, slots=COUNTS, context=COUNTS, threads=COUNTS, on=st.booleans())
def test_llama_command_lines_round_trip(model, alias, key, port, slots, context, threads, on):
    options = llama_cpp.ServeOptions(
        model=Path(model),
        alias=alias,
        host="127.0.0.1",
        port=port,
        key_file=Path(key),
        slots=slots,
        context_tokens=context,
        threads=threads,
        prefill_threads=threads + 1,
        has_prefix_cache=on,
    )
    assert llama_cpp.ServeOptions.from_argv(list(options.to_argv())) == options


@given(model=NAMES, alias=NAMES, port=PORTS, threads=COUNTS)
def test_embed_command_lines_round_trip(model, alias, port, threads):
    options = embed.ServeOptions(
        model=Path(model), alias=alias, host="127.0.0.1", port=port, key_file=Path("k"), threads=threads
    )
    assert embed.ServeOptions.from_argv(list(options.to_argv())) == options


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, b'{"status":"ok"}', Health("ready")),
        (200, b'{"status":"ok","running":1,"waiting":3}', Health("ready", "", 1, 3)),
        (200, b'{"status":"ok","is_simulated":true}', Health("ready", is_simulated=True)),
        (503, b'{"error":{"message":"Loading model","code":503}}', Health("loading", "Loading model")),
        (500, b'{"status":"error","reason":"bad"}', Health("sick", "bad")),
        (200, b"hello", Health("sick", "health answered 200")),
    ],
)
def test_health_means(status, body, expected):
    assert parse_health(status, body) == expected


@given(status=st.integers(100, 599), body=st.binary(max_size=200))
def test_no_bytes_make_health_raise(status, body):
    health = parse_health(status, body)
    assert health.state in ("ready", "loading", "sick")
    assert health.state != "ready" or status == 200


def test_deep_json_is_not_healthy():
    assert parse_health(200, b"[" * 100_000).state == "sick"


def test_metrics_of_a_real_server():
    body = (
        b"# HELP llamacpp:requests_processing Number\nllamacpp:requests_processing 2\nllamacpp:requests_deferred 1.0\n"
    )
    assert llama_cpp.parse_metrics(body) == llama_cpp.Load(2, 1)
    assert llama_cpp.parse_metrics(b"llamacpp:requests_processing nan\n") == llama_cpp.Load(None, None)
    assert llama_cpp.parse_metrics(b"x_llamacpp:requests_processing 5\n") == llama_cpp.Load(None, None)


@given(body=st.one_of(st.binary(max_size=300), st.text("llamacpp:requests_procsng{}=\n 0129.eE+-naif").map(str.encode)))
def test_no_bytes_make_metrics_raise(body):
    load = llama_cpp.parse_metrics(body)
    assert load.running is None or load.running >= 0


def parse(**fields):
    return embed.parse_request(json.dumps(fields).encode())


def test_texts_are_queries_unless_something_says_otherwise():
    assert parse(input="a").texts == (embed.Text("a", True),)
    assert parse(input="a", input_type="document").texts == (embed.Text("a", False),)
    assert parse(input="a", model="e5-passage").texts == (embed.Text("a", False),)
    assert parse(input="a", model="e5-passage", input_type="query").texts == (embed.Text("a", True),)
    assert parse(input=["passage: a", "query: b"], input_type="query").texts == (
        embed.Text("a", False),
        embed.Text("b", True),
    )


def test_a_nul_does_not_cut_a_text():
    assert parse(input="a\0b").texts[0].text == "a b"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": "  "}, "input"),
        ({"input": "query: "}, "input"),
        ({"input": [1, 2]}, "input"),
        ({"input": [[1, 2]]}, "input"),
        ({"input": {"a": 1}}, "input"),
        ({"input": ["a"] * (embed.TEXTS_MAX + 1)}, "input"),
        ({"input": "a" * (embed.TEXT_BYTES_MAX + 1)}, "input"),
        ({"input": "\ud800"}, "input"),
        ({"input": "a", "dimensions": 100}, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "encoding_format": ["float"]}, "encoding_format"),
        ({"input": "a", "input_type": "other"}, "input_type"),
        ({"input": "a", "input_type": ["query"]}, "input_type"),
    ],
)
def test_bad_embedding_requests_name_the_field(fields, param):
    with pytest.raises(embed.BadRequest) as caught:
        parse(**fields)
    assert caught.value.param == param
    assert caught.value.message


def test_limits_are_reached_but_not_passed():
    assert len(parse(input=["a"] * embed.TEXTS_MAX, dimensions=embed.DIMENSIONS).texts) == embed.TEXTS_MAX
    assert parse(input="a" * embed.TEXT_BYTES_MAX).texts
    assert embed.check_tokens([embed.TEXT_TOKENS_MAX] * 2) == embed.REQUEST_TOKENS_MAX
    with pytest.raises(embed.BadRequest):
        embed.check_tokens([embed.TEXT_TOKENS_MAX + 1])
    with pytest.raises(embed.BadRequest):
        embed.check_tokens([embed.TEXT_TOKENS_MAX] * 2 + [1])


@given(body=st.one_of(st.binary(max_size=200), st.recursive(st.none() | st.text() | st.integers(), st.lists).map(
    lambda value: json.dumps({"input": value}).encode()
)))  # fmt: skip
def test_no_bytes_make_the_request_parser_fail_otherwise(body):
    try:
        request = embed.parse_request(body)
    except embed.BadRequest:
        return
    assert request.texts
    assert all(text.text.strip() and "\0" not in text.text for text in request.texts)


@given(vector=st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=8))
def test_base64_vectors_are_little_endian_float32(vector):
    data = base64.b64decode(embed.pack_vector(vector))
    assert list(struct.unpack(f"<{len(vector)}f", data)) == vector


def test_a_twins_vectors_have_length_one_and_depend_on_text_and_side():
    query, passage = fake_vector(embed.Text("a", True)), fake_vector(embed.Text("a", False))
    assert math.hypot(*query) == pytest.approx(1)
    assert query == fake_vector(embed.Text("a", True))
    assert abs(sum(a * b for a, b in zip(query, passage, strict=True))) < 0.3
