"""The Open Inference Protocol's messages and paths: golden examples of the specification, and any bytes at all."""

import contextlib
import json
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.wire import oip
from madang.wire.http1 import HeadReader
from madang.wire.oip_paths import OipQuestion, OipTarget, find_target, is_oip_path
from madang.wire.openai import Endpoint
from madang.wire.openai_answers import EngineFailed
from madang.wire.openai_errors import ApiError, ErrorCode
from madang.wire.surface import find_endpoint

# The example of the protocol's REST specification.
SPEC_REQUEST = {
    "id": "42",
    "inputs": [
        {"name": "input0", "shape": [2, 2], "datatype": "UINT32", "data": [1, 2, 3, 4]},
        {"name": "input1", "shape": [3], "datatype": "BOOL", "data": [True]},
    ],
    "outputs": [{"name": "output0"}],
}
SPEC_ANSWER = {
    "id": "42",
    "outputs": [{"name": "output0", "shape": [3, 2], "datatype": "FP32", "data": [1.0, 1.1, 2.0, 2.1, 3.0, 3.1]}],
}
# The example of the binary tensor extension: a JSON of that length, then 16 and 3 bytes.
BINARY_HEAD = {
    "model_name": "mymodel",
    "inputs": [
        {"name": "input0", "shape": [2, 2], "datatype": "UINT32", "parameters": {"binary_data_size": 16}},
        {"name": "input1", "shape": [3], "datatype": "BOOL", "parameters": {"binary_data_size": 3}},
    ],
    "outputs": [{"name": "output0", "parameters": {"binary_data": True}}],
}
TAIL = bytes(range(19))


def read(value, tail=b"", length=None):
    text = json.dumps(value).encode()
    field = str(len(text)).encode() if tail or length is True else length
    return oip.read_infer(text + tail, field)


def tensor(**fields):
    return {"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2], **fields}]}


def test_the_specifications_request_reaches_an_engine_as_it_is_but_for_the_id():
    request = read(SPEC_REQUEST)
    assert request.request_id == "42"
    message = oip.write_infer(request)
    assert message.header_length is None
    assert message.content_type == "application/json"
    assert json.loads(b"".join(message.pieces)) == {key: SPEC_REQUEST[key] for key in ("inputs", "outputs")}


def test_the_specifications_answer_gets_our_names_and_the_clients_id():
    body = json.dumps({**SPEC_ANSWER, "id": "engine's", "model_name": "inner", "model_version": "7"}).encode()
    message = oip.word_answer(body, None, "a-service", "1", read(SPEC_REQUEST))
    assert json.loads(b"".join(message.pieces)) == {**SPEC_ANSWER, "model_name": "a-service", "model_version": "1"}


def test_binary_tensors_follow_the_json_in_order_and_are_not_copied():
    del_name = {key: value for key, value in BINARY_HEAD.items() if key != "model_name"}
    request = read(del_name, TAIL)
    assert [bytes(one.binary) for one in request.inputs] == [TAIL[:16], TAIL[16:]]
    assert request.is_binary("output0")
    assert not request.is_binary("output1")
    message = oip.write_infer(request)
    assert message.content_type == "application/octet-stream"
    assert message.length_line == b"inference-header-content-length: %d\r\n" % message.header_length
    body = b"".join(message.pieces)
    assert body[message.header_length :] == TAIL
    assert message.size_bytes == len(body)
    assert json.loads(body[: message.header_length]) == del_name
    assert message.pieces[1].obj is request.tail.obj


def test_a_binary_answer_keeps_its_bytes():
    head = {
        "model_name": "inner",
        "outputs": [
            {"name": "a", "shape": [2], "datatype": "INT8", "data": [1, 2]},
            {"name": "b", "shape": [3], "datatype": "UINT16", "parameters": {"binary_data_size": 6}},
            {"name": "c", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 7}},
        ],
    }
    text = json.dumps(head).encode()
    tail = b"\x01\0\x02\0\x03\0" + b"\x03\0\0\0abc"
    message = oip.word_answer(text + tail, b"%d" % len(text), "s", "2", read(SPEC_REQUEST))
    body = b"".join(message.pieces)
    assert body[message.header_length :] == tail
    said = json.loads(body[: message.header_length])
    assert (said["model_name"], said["model_version"], said["id"]) == ("s", "2", "42")
    assert said["outputs"] == head["outputs"]


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ({"inputs": []}, "inputs"),
        ({**tensor(), "nonsense": 1}, None),
        ({"inputs": tensor()["inputs"] * 2}, "inputs[1].name"),
        (tensor(name=""), "inputs[0].name"),
        (tensor(shape=[-1]), "inputs[0].shape"),
        (tensor(shape=[1] * 33), "inputs[0].shape"),
        (tensor(shape=[2**63]), "inputs[0].shape"),
        (tensor(shape=[1.5]), None),
        (tensor(datatype="FLOAT"), "inputs[0].datatype"),
        (tensor(datatype="FP16"), "inputs[0]"),
        (tensor(parameters={"binary_data_size": 8}), "inputs[0].binary_data_size"),
        (tensor(parameters={"x": [1]}), None),
        ({**tensor(), "parameters": {"binary_data_output": 1}}, "parameters.binary_data_output"),
        ({**tensor(), "outputs": [{"name": "y", "parameters": {"binary_data": "yes"}}]}, "outputs[0].binary_data"),
        ({**tensor(), "outputs": [{"name": "y"}, {"name": "y"}]}, "outputs[1].name"),
        ({**tensor(), "id": "x" * 1025}, "id"),
        ({**tensor(), "parameters": {str(number): 1 for number in range(65)}}, "parameters"),
    ],
)
def test_what_is_wrong_is_named(value, param):
    with pytest.raises(ApiError) as refused:
        read(value)
    assert (refused.value.status, refused.value.code) == (400, ErrorCode.INVALID_REQUEST)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("value", "param", "named"),
    [
        (tensor(parameters={"shared_memory_region": "r"}), "shared_memory_region", "shared memory"),
        ({**tensor(), "parameters": {"sequence_id": 3}}, "sequence_id", "sequence"),
        ({**tensor(), "parameters": {"priority": 1}}, "priority", "priority"),
        ({**tensor(), "outputs": [{"name": "y", "parameters": {"classification": 3}}]}, "classification", "classific"),
    ],
)
def test_what_is_not_supported_is_named(value, param, named):
    with pytest.raises(ApiError, match=named) as refused:
        read(value)
    assert (refused.value.status, refused.value.code, refused.value.param) == (400, ErrorCode.UNSUPPORTED, param)


@pytest.mark.parametrize("size", [-1, 0, 7, 9, 16, "8", True, 8.0, 2**70])
def test_announced_sizes_must_be_those_of_the_shape_and_add_up(size):
    value = {"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": size}}]}
    with pytest.raises(ApiError):
        read(value, bytes(8), True)
    value["inputs"][0]["parameters"]["binary_data_size"] = 8
    assert read(value, bytes(8)).inputs[0].size == 2
    with pytest.raises(ApiError, match="9"):
        read(value, bytes(9))


@pytest.mark.parametrize("field", [b"", b"-1", b"1e3", b"99999", b"1" * 16, b"12, 12", b"\xff"])
def test_a_length_that_is_none_is_refused(field):
    with pytest.raises(ApiError) as refused:
        read(tensor(), length=field)
    assert refused.value.param == "Inference-Header-Content-Length"


def test_a_raw_request_is_refused_by_name():
    with pytest.raises(ApiError, match="raw binary") as refused:
        oip.read_infer(bytes(8), b"0")
    assert refused.value.code is ErrorCode.UNSUPPORTED


def test_a_huge_shape_costs_nothing():
    shape = [2**62] * 32
    value = {"inputs": [{"name": "x", "shape": shape, "datatype": "FP64", "parameters": {"binary_data_size": 8}}]}
    with pytest.raises(ApiError, match="more than any body"):
        read(value, bytes(8))
    assert read(tensor(shape=shape)).inputs[0].size == 2 ** (62 * 32)  # of JSON an engine counts the values


@given(
    body=st.binary(max_size=300), field=st.none() | st.binary(max_size=6) | st.integers(0, 300).map(str).map(str.encode)
)
def test_no_bytes_make_the_reader_fail_otherwise(body, field):
    with contextlib.suppress(ApiError):
        oip.read_infer(body, field)
    with contextlib.suppress(EngineFailed):
        oip.word_answer(body, field, "s", "1", read(SPEC_REQUEST))
    with contextlib.suppress(EngineFailed):
        oip.word_metadata(body, "s", ("1",))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
PARTS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.text(max_size=4) | JSON,
        "shape": st.lists(st.integers(-1, 4), max_size=4) | JSON,
        "datatype": st.sampled_from([*oip.ITEM_BYTES, "BYTES", "X"]) | JSON,
        "parameters": st.dictionaries(st.sampled_from(["binary_data_size", "binary_data", "a"]), JSON, max_size=3),
        "data": JSON,
    },
)


@given(
    value=st.fixed_dictionaries({"inputs": st.lists(PARTS, max_size=3) | JSON}, optional={"outputs": st.lists(PARTS)}),
    tail=st.binary(max_size=20),
)
def test_nearly_right_requests_are_refused_or_written_the_same(value, tail):
    text = json.dumps(value).encode()
    try:
        request = oip.read_infer(text + tail, b"%d" % len(text))
    except ApiError:
        return
    message = oip.write_infer(request)
    again = oip.read_infer(b"".join(message.pieces), b"%d" % message.header_length if message.header_length else None)
    assert again.inputs == request.inputs
    assert again.outputs == request.outputs
    assert bytes(again.tail) == tail


TENSORS = st.lists(
    st.tuples(st.sampled_from(sorted(oip.ITEM_BYTES)), st.lists(st.integers(0, 3), max_size=3), st.booleans()),
    min_size=1,
    max_size=4,
)


@given(tensors=TENSORS, request_id=st.text(max_size=5), data=st.data())
def test_answers_round_trip(tensors, request_id, data):
    outputs = []
    for number, (datatype, shape, is_binary) in enumerate(tensors):
        size = math.prod(shape)
        if is_binary or datatype in oip.BINARY_ONLY:
            packed = data.draw(
                st.binary(min_size=size * oip.ITEM_BYTES[datatype], max_size=size * oip.ITEM_BYTES[datatype])
            )
            outputs.append(oip.Tensor(f"t{number}", datatype, tuple(shape), {}, b"", memoryview(packed)))
        else:
            outputs.append(oip.Tensor(f"t{number}", datatype, tuple(shape), {}, json.dumps([0] * size).encode(), None))
    message = oip.write_answer("s", "1", "engine's", tuple(outputs))
    length = None if message.header_length is None else b"%d" % message.header_length
    request = read({**tensor(), "id": request_id})
    worded = oip.word_answer(b"".join(message.pieces), length, "s", "1", request)
    client = b"".join(worded.pieces)
    said = json.loads(client[: worded.header_length])
    assert said.get("id", "") == request_id
    assert client[len(client) if worded.header_length is None else worded.header_length :] == b"".join(
        bytes(one.binary) for one in outputs if one.binary is not None
    )
    assert [(one["name"], one["datatype"], tuple(one["shape"])) for one in said["outputs"]] == [
        (one.name, one.datatype, one.shape) for one in outputs
    ]


def test_only_one_length_makes_sense_of_a_body():
    """A field that was changed on the way between gateways changes no meaning: it is refused."""
    text = json.dumps({key: value for key, value in BINARY_HEAD.items() if key != "model_name"}).encode()
    body = text + TAIL
    right = []
    for length in range(len(body) + 1):
        with contextlib.suppress(ApiError):
            oip.read_infer(body, b"%d" % length)
            right.append(length)
    assert right == [len(text)]


def test_metadata_keep_the_models_tensors_and_get_our_names():
    engines = {
        "name": "inner",
        "versions": ["3"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4], "extra": 1}],
        "outputs": [],
    }
    said = msgspec.json.decode(oip.word_metadata(json.dumps(engines).encode(), "s", ("1",)))
    assert said == {
        "name": "s",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [],
    }


def test_errors_have_the_protocols_shape_and_our_code():
    error = ApiError(ErrorCode.NO_REPLICA, "nobody", param="p", details={"sites": []})
    assert json.loads(oip.encode_oip_error(error)) == {
        "error": "nobody",
        "code": "no_replica",
        "param": "p",
        "madang": {"sites": []},
    }


def head(path, method="GET", fields=""):
    return HeadReader(100).read(f"{method} {path} HTTP/1.1\r\nhost: x\r\n{fields}\r\n".encode())


@pytest.mark.parametrize(
    ("path", "method", "target"),
    [
        ("/v2", "GET", OipTarget(OipQuestion.SERVER)),
        ("/v2/", "GET", OipTarget(OipQuestion.SERVER)),
        ("/v2?x=1", "HEAD", OipTarget(OipQuestion.SERVER)),
        ("/v2/health/live", "GET", OipTarget(OipQuestion.LIVE)),
        ("/v2/health/ready", "GET", OipTarget(OipQuestion.READY)),
        ("/v2/models/m", "GET", OipTarget(Endpoint.MODEL_METADATA, "m")),
        ("/v2/models/m/versions/1", "GET", OipTarget(Endpoint.MODEL_METADATA, "m", "1")),
        ("/v2/models/m/ready", "GET", OipTarget(OipQuestion.MODEL_READY, "m")),
        ("/v2/models/a%2Fb/versions/1/ready", "GET", OipTarget(OipQuestion.MODEL_READY, "a/b", "1")),
        ("/v2/models/m/infer", "POST", OipTarget(Endpoint.INFER, "m")),
        ("/v2/models/m/versions/2/infer", "POST", OipTarget(Endpoint.INFER, "m", "2")),
    ],
)
def test_paths_lead_where_the_specification_says(path, method, target):
    assert find_target(head(path, method)) == target
    assert is_oip_path(path.partition("?")[0])
    asked = target.asked if isinstance(target.asked, Endpoint) else None
    assert find_endpoint(head(path, method)) is asked


@pytest.mark.parametrize(
    ("path", "method", "status", "named"),
    [
        ("/v2/models/m/infer", "GET", 405, "POST"),
        ("/v2/models/m", "POST", 405, "GET"),
        ("/v2/health/dead", "GET", 404, "nothing at"),
        ("/v2/models", "GET", 404, "nothing at"),
        ("/v2/models/m/nonsense", "POST", 404, "nothing at"),
        ("/v2/models/m/infer/", "POST", 404, "nothing at"),
        ("/v2/models/m/generate_stream", "POST", 404, "generate extension"),
        ("/v2/models/m/config", "GET", 404, "configuration extension"),
        ("/v2/repository/index", "POST", 404, "model repository extension"),
        ("/v2/repository/models/m/load", "POST", 404, "model repository extension"),
        ("/v2/systemsharedmemory/status", "GET", 404, "shared memory extension"),
    ],
)
def test_paths_that_lead_nowhere_say_so(path, method, status, named):
    with pytest.raises(ApiError, match=named) as refused:
        find_target(head(path, method))
    assert refused.value.status == status
    assert find_endpoint(head(path, method)) is None


def test_a_question_with_a_body_is_refused():
    with pytest.raises(ApiError, match="no body"):
        find_target(head("/v2/models/m", fields="content-length: 2\r\n"))


@given(path=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=30))
def test_any_path_is_a_target_or_an_error(path):
    with contextlib.suppress(ApiError):
        target = find_target(head("/v2/" + path.replace("#", ""), "POST"))
        assert target.asked is Endpoint.INFER


def test_the_older_endpoints_are_found_as_before():
    assert find_endpoint(head("/v1/chat/completions", "POST")) is Endpoint.CHAT
    assert find_endpoint(head("/v1/chat/completions")) is None
    assert find_endpoint(head("/v2x", "POST")) is None
    assert find_endpoint(head("/v2/models/{model}/infer", "POST")) is Endpoint.INFER
