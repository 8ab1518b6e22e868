"""Open Inference Protocol v2: requests and answers about tensors, in JSON and with the binary tensor extension.

Owns both directions and how an error is worded under `/v2`. Refuses to know sockets, tenants and what tensors mean. A
message is JSON, after which the bytes of binary tensors may follow; the field `Inference-Header-Content-Length` says
where the JSON ends. The JSON is parsed and encoded anew, so that gateway and engine read the same; of a tensor's values
only the announced sizes are checked, and nothing is decoded. Called by `madang.wire.surface`, the gateway's infer legs
and the engines that speak the protocol; paths are `madang.wire.oip_paths`.

That field needs no protection of its own between gateways: a body is one JSON object and then exactly the bytes that
the object announces, so no other length makes the same body a different message.
"""

import math
import re
from typing import Any, NamedTuple, NoReturn

import msgspec

from madang.wire.openai_answers import EngineFailed
from madang.wire.openai_errors import ApiError, ErrorCode

HEADER_LENGTH_FIELD = b"inference-header-content-length"
BINARY_TYPE = "application/octet-stream"
JSON_TYPE = "application/json"
TENSORS_MAX = 256
DIMENSIONS_MAX = 32
"""As many as numpy took for decades; real models have up to six."""
PARAMETERS_MAX = 64
NAME_CHARS_MAX = 1024
_LENGTH = re.compile(rb"[0-9]{1,15}\Z")
_DIMENSION_MAX = 2**63 - 1

BYTES = "BYTES"
ITEM_BYTES = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "BF16": 2,
    "FP32": 4,
    "FP64": 8,
}
"""Size of one element; those of BYTES have a size of their own, four bytes little-endian before each."""
BINARY_ONLY = frozenset(("FP16", "BF16"))
"""These have no form in JSON, by the binary tensor extension."""
# What a client asks that would reach into the engine or past our own rules, and what it is called.
_UNSUPPORTED = {
    "shared_memory_region": "shared memory",
    "shared_memory_offset": "shared memory",
    "shared_memory_byte_size": "shared memory",
    "classification": "the classification extension",
    "sequence_id": "a sequence of requests (stateful models)",
    "sequence_start": "a sequence of requests (stateful models)",
    "sequence_end": "a sequence of requests (stateful models)",
    "priority": "a choice of priority: it is the key's",
    "timeout": "a time-out in the engine's queue",
    "headers": "header fields for the engine",
}


class _Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, str | int | float | bool] = {}
    data: msgspec.Raw = msgspec.Raw()


class _Wanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    parameters: dict[str, str | int | float | bool] = {}


class _Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    inputs: list[_Tensor]
    id: str = ""
    parameters: dict[str, str | int | float | bool] = {}
    outputs: list[_Wanted] = []


class _Output(msgspec.Struct, frozen=True):
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: msgspec.Raw = msgspec.Raw()


class _Answer(msgspec.Struct, frozen=True):
    outputs: list[_Output]
    parameters: dict[str, Any] = {}


class _Port(msgspec.Struct, frozen=True):
    """One input or output as an engine's metadata names it."""

    name: str
    datatype: str
    shape: list[int]


class _Metadata(msgspec.Struct, frozen=True):
    inputs: list[_Port]
    outputs: list[_Port]
    platform: str = ""


_request_decoder = msgspec.json.Decoder(_Request)
_answer_decoder = msgspec.json.Decoder(_Answer)
_metadata_decoder = msgspec.json.Decoder(_Metadata)
_encoder = msgspec.json.Encoder()


class Tensor(NamedTuple):
    """One tensor of a message.

    Attributes:
        parameters: without those that say where its bytes are.
        data: its values as JSON, as they came; empty when they are binary.
        binary: its values as bytes, None when they are JSON.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: dict[str, Any]
    data: bytes
    binary: memoryview | None

    @property
    def size(self) -> int:
        """How many elements its shape says."""
        return math.prod(self.shape)


class WantedOutput(NamedTuple):
    """An output that a client asks for."""

    name: str
    parameters: dict[str, Any]


class InferRequest(NamedTuple):
    """A request after every check that needs no model.

    Attributes:
        request_id: the client's own, which the answer repeats; empty without one.
        outputs: those wanted; empty for all.
        tail: the bytes of all binary tensors, in order.
    """

    request_id: str
    parameters: dict[str, Any]
    inputs: tuple[Tensor, ...]
    outputs: tuple[WantedOutput, ...]
    tail: memoryview

    def is_binary(self, output: str) -> bool:
        """Return whether a client wants an output's values as bytes."""
        for wanted in self.outputs:
            if wanted.name == output and "binary_data" in wanted.parameters:
                return bool(wanted.parameters["binary_data"])
        return bool(self.parameters.get("binary_data_output"))


class Message(NamedTuple):
    """A message on its way: pieces to be joined once, and how long the JSON is where bytes follow it, else None."""

    pieces: tuple[bytes | memoryview, ...]
    header_length: int | None

    @property
    def content_type(self) -> str:
        """What it is, for Content-Type."""
        return JSON_TYPE if self.header_length is None else BINARY_TYPE

    @property
    def length_line(self) -> bytes:
        """The header line that says where the JSON ends; empty where nothing follows it."""
        return b"" if self.header_length is None else b"%b: %d\r\n" % (HEADER_LENGTH_FIELD, self.header_length)

    @property
    def size_bytes(self) -> int:
        """How long the whole body is."""
        return sum(map(len, self.pieces))


def _refuse(param: str, expected: str) -> NoReturn:
    raise ApiError(ErrorCode.INVALID_REQUEST, f"'{param}': expected {expected}", param=param)


def _split(body: bytes, length_field: bytes | None) -> tuple[memoryview, memoryview]:
    """Return JSON and binary tail of a body; raises ApiError when the field is none or points past the end."""
    view = memoryview(body)
    if length_field is None:
        return view, view[len(view) :]
    if not _LENGTH.match(length_field) or int(length_field) > len(view):
        _refuse("Inference-Header-Content-Length", f"the length of the body's JSON, at most {len(view)}")
    length = int(length_field)
    if length == 0:
        message = "'Inference-Header-Content-Length': a raw binary request, without JSON, is not supported here"
        raise ApiError(ErrorCode.UNSUPPORTED, message, param="Inference-Header-Content-Length")
    return view[:length], view[length:]


def read_infer(body: bytes, length_field: bytes | None) -> InferRequest:
    """Return the request in a body; cost linear in its JSON, whatever follows.

    Args:
        body: JSON, then the bytes of the binary tensors.
        length_field: value of `Inference-Header-Content-Length`; None without it, and then all of the body is JSON.

    Raises:
        ApiError: 400 naming what is wrong, or what is not supported.
    """
    text, tail = _split(body, length_field)
    try:
        raw = _request_decoder.decode(text)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ApiError(ErrorCode.INVALID_REQUEST, f"the request is malformed: {error}") from error
    if not 1 <= len(raw.inputs) <= TENSORS_MAX:
        _refuse("inputs", f"1 to {TENSORS_MAX} tensors")
    if len(raw.outputs) > TENSORS_MAX:
        _refuse("outputs", f"at most {TENSORS_MAX}")
    if len(raw.id) > NAME_CHARS_MAX:
        _refuse("id", f"at most {NAME_CHARS_MAX} characters")
    _check_parameters("parameters", raw.parameters)
    _check_flag("parameters", raw.parameters, "binary_data_output")
    inputs: list[Tensor] = []
    offset = 0
    for number, tensor in enumerate(raw.inputs):
        where = f"inputs[{number}]"
        _check_name(where, tensor.name, {one.name for one in inputs})
        _check_parameters(where, tensor.parameters)
        inputs.append(_place(tensor, tail, offset, where))
        offset += len(inputs[-1].binary or b"")
    if offset != len(tail):
        message = f"the tensors announce {offset} binary bytes, and {len(tail)} follow the JSON"
        raise ApiError(ErrorCode.INVALID_REQUEST, message, param="inputs")
    return InferRequest(raw.id, raw.parameters, tuple(inputs), _wanted(raw.outputs), tail)


def _wanted(outputs: list[_Wanted]) -> tuple[WantedOutput, ...]:
    names: set[str] = set()
    for number, output in enumerate(outputs):
        where = f"outputs[{number}]"
        _check_name(where, output.name, names)
        names.add(output.name)
        _check_parameters(where, output.parameters)
        _check_flag(where, output.parameters, "binary_data")
    return tuple(WantedOutput(one.name, one.parameters) for one in outputs)


def _check_name(where: str, name: str, taken: set[str]) -> None:
    if not 0 < len(name) <= NAME_CHARS_MAX:
        _refuse(f"{where}.name", f"1 to {NAME_CHARS_MAX} characters")
    if name in taken:
        _refuse(f"{where}.name", "each name once")


def _check_parameters(where: str, parameters: dict[str, Any]) -> None:
    if len(parameters) > PARAMETERS_MAX:
        _refuse(where, f"at most {PARAMETERS_MAX} parameters")
    for name in parameters:
        capability = _UNSUPPORTED.get(name)
        if capability is not None:
            message = f"'{where}': {capability} ({name}) is not supported here"
            raise ApiError(ErrorCode.UNSUPPORTED, message, param=name)


def _check_flag(where: str, parameters: dict[str, Any], name: str) -> None:
    if type(parameters.get(name, False)) is not bool:
        _refuse(f"{where}.{name}", "true or false")


def _place(tensor: _Tensor | _Output, tail: memoryview, offset: int, where: str) -> Tensor:
    """Return a tensor with its values found, in JSON or at `offset` of the tail; raises ApiError when they are not."""
    shape, parameters, binary = tuple(tensor.shape), dict(tensor.parameters), None
    if len(shape) > DIMENSIONS_MAX or not all(0 <= length <= _DIMENSION_MAX for length in shape):
        _refuse(f"{where}.shape", f"at most {DIMENSIONS_MAX} lengths, none negative")
    if tensor.datatype != BYTES and tensor.datatype not in ITEM_BYTES:
        _refuse(f"{where}.datatype", f"one of {', '.join((*ITEM_BYTES, BYTES))}")
    data = memoryview(tensor.data)
    if "binary_data_size" in parameters:
        size = parameters.pop("binary_data_size")
        if type(size) is not int or not 0 <= size <= len(tail) - offset:
            _refuse(f"{where}.binary_data_size", f"at most the {len(tail) - offset} bytes that are left of the body")
        if len(data):
            _refuse(where, "either data or binary_data_size")
        expected = math.prod(shape) * ITEM_BYTES.get(tensor.datatype, 0)
        if tensor.datatype != BYTES and size != expected:
            shown = expected if expected <= _DIMENSION_MAX else "more than any body's"
            _refuse(f"{where}.binary_data_size", f"the {shown} bytes of a {tensor.datatype} of its shape")
        binary = tail[offset : offset + size]
    elif not len(data):
        _refuse(where, "data or binary_data_size")
    elif tensor.datatype in BINARY_ONLY:
        _refuse(where, f"binary_data_size: {tensor.datatype} has no form in JSON")
    return Tensor(tensor.name, tensor.datatype, shape, parameters, bytes(data), binary)


def _tensor_object(tensor: Tensor) -> dict[str, Any]:
    value: dict[str, Any] = {"name": tensor.name, "shape": tensor.shape, "datatype": tensor.datatype}
    if tensor.binary is not None:
        value["parameters"] = {**tensor.parameters, "binary_data_size": len(tensor.binary)}
        return value
    if tensor.parameters:
        value["parameters"] = tensor.parameters
    value["data"] = msgspec.Raw(tensor.data)
    return value


def write_infer(request: InferRequest) -> Message:
    """Return what an engine is sent for a request; without the client's id, which is no engine's business."""
    value: dict[str, Any] = {"inputs": [_tensor_object(tensor) for tensor in request.inputs]}
    if request.parameters:
        value["parameters"] = request.parameters
    if request.outputs:
        value["outputs"] = [
            {"name": one.name, "parameters": one.parameters} if one.parameters else {"name": one.name}
            for one in request.outputs
        ]
    is_binary = any(tensor.binary is not None for tensor in request.inputs)
    return _message(value, (request.tail,), is_binary=is_binary)


def write_answer(
    model: str, version: str, request_id: str, outputs: tuple[Tensor, ...], parameters: dict[str, Any] | None = None
) -> Message:
    """Return an answer as its asker gets it; binary tensors follow the JSON in their order."""
    value: dict[str, Any] = {"model_name": model, "model_version": version}
    if request_id:
        value["id"] = request_id
    if parameters:
        value["parameters"] = parameters
    value["outputs"] = [_tensor_object(tensor) for tensor in outputs]
    tails = tuple(tensor.binary for tensor in outputs if tensor.binary is not None)
    return _message(value, tails, is_binary=bool(tails))


def _message(value: dict[str, Any], tails: tuple[memoryview, ...], *, is_binary: bool) -> Message:
    text = _encoder.encode(value)
    return Message((text, *tails), len(text)) if is_binary else Message((text,), None)


def word_answer(body: bytes, length_field: bytes | None, model: str, version: str, request: InferRequest) -> Message:
    """Return the client's answer from an engine's; raises EngineFailed when it is none."""
    try:
        text, tail = _split(body, length_field)
        raw = _answer_decoder.decode(text)
        outputs: list[Tensor] = []
        offset = 0
        for number, output in enumerate(raw.outputs):
            outputs.append(_place(output, tail, offset, f"outputs[{number}]"))
            offset += len(outputs[-1].binary or b"")
    except (ApiError, msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise EngineFailed(f"the engine's answer is malformed: {error}") from error
    if offset != len(tail):
        raise EngineFailed(f"the engine announces {offset} binary bytes and sends {len(tail)}")
    return write_answer(model, version, request.request_id, tuple(outputs), raw.parameters)


def word_metadata(body: bytes, model: str, versions: tuple[str, ...]) -> bytes:
    """Return a model's metadata as a client gets it, from an engine's; raises EngineFailed when it is none."""
    try:
        found = _metadata_decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise EngineFailed(f"the engine's metadata are malformed: {error}") from error
    return _encoder.encode(
        {
            "name": model,
            "versions": versions,
            "platform": found.platform,
            "inputs": found.inputs,
            "outputs": found.outputs,
        }
    )


def encode_oip_error(error: ApiError) -> bytes:
    """Return the protocol's error object, with our code beside it for programs."""
    value: dict[str, Any] = {"error": error.message, "code": error.code.value}
    if error.param is not None:
        value["param"] = error.param
    if error.details:
        value["madang"] = error.details
    return _encoder.encode(value)
