"""Writing a model in ONNX: nodes, constants, inputs and outputs as the bytes of its protocol buffer.

Owns the encoding (onnx.proto of ONNX 1.16; wire format of Protocol Buffers, proto3) of the few fields that small models
need. Refuses to know what a graph computes and to check it: ONNX Runtime does when it loads the file. Called by
recipes. The same graph always gives the same bytes.
"""

import struct
from collections.abc import Sequence
from typing import NamedTuple

_FLOAT, _INT64 = 1, 7
DATATYPES = {"FP32": _FLOAT, "UINT8": 2, "INT64": _INT64}
"""TensorProto.DataType, by the names of the Open Inference Protocol."""
_IR_VERSION, _OPSET = 8, 17
_INT, _INTS = 2, 7
"""AttributeProto.AttributeType."""


class Node(NamedTuple):
    """One operation; attributes are whole numbers or lists of them."""

    operation: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[tuple[str, int | tuple[int, ...]], ...] = ()


class Constant(NamedTuple):
    """A tensor of the graph: floats, or whole numbers where `is_whole`."""

    name: str
    shape: tuple[int, ...]
    values: Sequence[float]
    is_whole: bool = False


class Port(NamedTuple):
    """An input or output; a name in its shape is a length that requests choose."""

    name: str
    datatype: str
    shape: tuple[int | str, ...]


def encode_model(
    name: str, nodes: Sequence[Node], constants: Sequence[Constant], inputs: Sequence[Port], outputs: Sequence[Port]
) -> bytes:
    """Return the file; nodes stand in the order in which they are computed."""
    graph = b"".join(_message(1, _node(one)) for one in nodes)
    graph += _text(2, name)
    graph += b"".join(_message(5, _constant(one)) for one in constants)
    graph += b"".join(_message(11, _port(one)) for one in inputs)
    graph += b"".join(_message(12, _port(one)) for one in outputs)
    opset = _number(2, _OPSET)
    return _number(1, _IR_VERSION) + _text(2, "madang") + _message(7, graph) + _message(8, opset)


def _node(node: Node) -> bytes:
    data = b"".join(_text(1, one) for one in node.inputs) + b"".join(_text(2, one) for one in node.outputs)
    data += _text(4, node.operation)
    for name, value in node.attributes:
        if isinstance(value, int):
            attribute = _text(1, name) + _number(3, value) + _number(20, _INT)
        else:
            attribute = _text(1, name) + b"".join(_number(8, one) for one in value) + _number(20, _INTS)
        data += _message(5, attribute)
    return data


def _constant(constant: Constant) -> bytes:
    layout = f"<{len(constant.values)}{'q' if constant.is_whole else 'f'}"
    raw = struct.pack(layout, *constant.values)
    data = b"".join(_number(1, length) for length in constant.shape)
    data += _number(2, _INT64 if constant.is_whole else _FLOAT)
    return data + _text(8, constant.name) + _message(9, raw)


def _port(port: Port) -> bytes:
    shape = b"".join(
        _message(1, _number(1, length) if isinstance(length, int) else _text(2, length)) for length in port.shape
    )
    tensor = _number(1, DATATYPES[port.datatype]) + _message(2, shape)
    return _text(1, port.name) + _message(2, _message(1, tensor))


def _varint(value: int) -> bytes:
    value &= 2**64 - 1  # negative numbers are ten bytes, in two's complement
    pieces = bytearray()
    while value > 0x7F:
        pieces.append(value & 0x7F | 0x80)
        value >>= 7
    pieces.append(value)
    return bytes(pieces)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _message(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _text(field: int, text: str) -> bytes:
    return _message(field, text.encode())
