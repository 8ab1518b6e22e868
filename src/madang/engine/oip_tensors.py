"""What engines of the Open Inference Protocol have in common: what a model takes and gives, values and their bytes.

Owns the check of a request against a model, and elements of BYTES. Refuses to compute, to know engines and numpy.
Called by those engines and their twins.
"""

import struct
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import msgspec

from madang.core import Rejected
from madang.wire.oip import InferRequest, Tensor
from madang.wire.openai_errors import ApiError, ErrorCode

INFER_PATH = "/v2/models/{model}/infer"
_LENGTH = struct.Struct("<I")
_values_decoder = msgspec.json.Decoder()
_encoder = msgspec.json.Encoder()


class Port(msgspec.Struct, frozen=True):
    """An input or output of a model; -1 in its shape for a length that requests choose."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class Signature(msgspec.Struct, frozen=True):
    """What a model takes and gives."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def metadata(self, alias: str, platform: str) -> bytes:
        """Return the protocol's metadata object."""
        value = {"name": alias, "versions": ["1"], "platform": platform, "inputs": self.inputs, "outputs": self.outputs}
        return _encoder.encode(value)


def _refuse(param: str, expected: str) -> NoReturn:
    raise ApiError(ErrorCode.INVALID_REQUEST, f"'{param}': expected {expected}", param=param)


def check_request(request: InferRequest, signature: Signature) -> None:
    """Raise ApiError 400 unless a request has every input of a model as the model takes it, and no other."""
    ports = {port.name: port for port in signature.inputs}
    given = {tensor.name for tensor in request.inputs}
    missing = [name for name in ports if name not in given]
    if missing:
        _refuse("inputs", f"the model's input {missing[0]!r}")
    for tensor in request.inputs:
        port = ports.get(tensor.name)
        if port is None:
            _refuse("inputs", f"the model's inputs {', '.join(ports)}, found {tensor.name[:100]!r}")
        if tensor.datatype != port.datatype:
            _refuse(tensor.name, f"datatype {port.datatype}, found {tensor.datatype}")
        if len(tensor.shape) != len(port.shape) or any(
            wanted not in (-1, found) for wanted, found in zip(port.shape, tensor.shape, strict=True)
        ):
            _refuse(tensor.name, f"shape {list(port.shape)} (-1 for any length), found {list(tensor.shape)}")
    known = {port.name for port in signature.outputs}
    for wanted in request.outputs:
        if wanted.name not in known:
            _refuse("outputs", f"the model's outputs {', '.join(sorted(known))}, found {wanted.name[:100]!r}")


def wanted_outputs(request: InferRequest, signature: Signature) -> tuple[str, ...]:
    """Return the names of the outputs that a request asks for, in its order, or all in the model's."""
    return tuple(one.name for one in request.outputs) or tuple(port.name for port in signature.outputs)


def flat_values(tensor: Tensor) -> list[Any]:
    """Return a JSON tensor's values row by row, whether they came nested or flat; raises ApiError 400."""
    try:
        values = _values_decoder.decode(tensor.data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ApiError(ErrorCode.INVALID_REQUEST, f"'{tensor.name}': {error}", param=tensor.name) from error
    if type(values) is not list:
        _refuse(tensor.name, "a list of values")
    for _ in tensor.shape[1:]:
        if not values or not all(type(row) is list for row in values):
            break
        values = [value for row in values for value in row]
    if len(values) != tensor.size:
        _refuse(tensor.name, f"{tensor.size} values, as its shape says; found {len(values)}")
    return values


def split_elements(tensor: Tensor) -> list[bytes]:
    """Return the elements of a binary tensor of BYTES; raises ApiError 400 when their lengths do not add up."""
    binary = tensor.binary
    assert binary is not None
    elements: list[bytes] = []
    offset = 0
    while offset < len(binary) and len(elements) < tensor.size:
        end = offset + _LENGTH.size
        if end > len(binary):
            break
        offset = end + _LENGTH.unpack_from(binary, end - _LENGTH.size)[0]
        if offset > len(binary):
            break
        elements.append(bytes(binary[end:offset]))
    if offset != len(binary) or len(elements) != tensor.size:
        _refuse(tensor.name, f"{tensor.size} elements, each after its length in four bytes")
    return elements


def join_elements(elements: Iterable[bytes]) -> bytes:
    """Return the binary form of elements of BYTES."""
    return b"".join(piece for element in elements for piece in (_LENGTH.pack(len(element)), element))


def encode_values(values: Sequence[Any]) -> bytes:
    """Return values as JSON."""
    return _encoder.encode(values)


def check_signature(signature: Signature, where: str) -> None:
    """Raise Rejected for a model that names an input or output twice, or none."""
    for ports in (signature.inputs, signature.outputs):
        names = [port.name for port in ports]
        if not names or len(set(names)) != len(names):
            raise Rejected(f"{where}: expected inputs and outputs with names of their own, found {names}")
