"""Between the protocol's tensors and numpy's arrays, for the onnx engine.

Owns both directions. Refuses to know models. A binary tensor becomes an array over the request's own bytes wherever
their alignment allows it.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from madang.engine.oip_tensors import encode_values, flat_values, join_elements, split_elements
from madang.wire.oip import BINARY_ONLY, BYTES, Tensor
from madang.wire.openai_errors import ApiError, ErrorCode

Array = npt.NDArray[Any]
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    BYTES: np.dtype("O"),
}
_BY_DTYPE = {dtype: name for name, dtype in DTYPES.items()}


def to_array(tensor: Tensor) -> Array:
    """Return a tensor's values; raises ApiError 400 when they are not of its datatype."""
    if tensor.datatype == BYTES:
        return _strings(tensor).reshape(tensor.shape)
    dtype = DTYPES.get(tensor.datatype)
    if dtype is None:
        message = f"'{tensor.name}': {tensor.datatype} is not supported by this engine"
        raise ApiError(ErrorCode.UNSUPPORTED, message, param=tensor.name)
    if tensor.binary is None:
        return _numbers(tensor, dtype).reshape(tensor.shape)
    if dtype.kind == "b":
        return np.frombuffer(tensor.binary, dtype=np.uint8).reshape(tensor.shape).astype(dtype)
    array = np.frombuffer(tensor.binary, dtype=dtype).reshape(tensor.shape)
    return array if array.flags.aligned else array.copy()


def _numbers(tensor: Tensor, dtype: np.dtype[Any]) -> Array:
    values = flat_values(tensor)
    allowed = {"b": (bool,), "i": (int,), "u": (int,), "f": (int, float)}[dtype.kind]
    wrong = next((value for value in values if type(value) not in allowed), None)
    if wrong is None:
        try:
            with np.errstate(over="ignore"):  # seen below
                array = np.array(values, dtype=dtype)
        except (OverflowError, ValueError) as error:
            raise _not_of(tensor, str(error)) from error
        if dtype.kind != "f" or bool(np.isfinite(array).all()):
            return array
        raise _not_of(tensor, "a number is too large")
    raise _not_of(tensor, f"found {str(wrong)[:100]!r}")


def _strings(tensor: Tensor) -> Array:
    """ONNX has strings of text only, so what is no UTF-8 has no place in a model."""
    try:
        if tensor.binary is not None:
            values: list[Any] = [element.decode() for element in split_elements(tensor)]
        else:
            values = flat_values(tensor)
    except UnicodeDecodeError as error:
        raise _not_of(tensor, "an element is not UTF-8") from error
    if not all(type(value) is str for value in values):
        raise _not_of(tensor, "an element is no string")
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _not_of(tensor: Tensor, reason: str) -> ApiError:
    message = f"'{tensor.name}': expected values of {tensor.datatype}: {reason}"
    return ApiError(ErrorCode.INVALID_REQUEST, message, param=tensor.name)


def to_tensor(name: str, array: Array, *, is_binary: bool) -> Tensor:
    """Return an array as a tensor of an answer; raises ApiError 400 for values that have no form in JSON."""
    datatype = BYTES if array.dtype.kind in "OUS" else _BY_DTYPE[array.dtype.newbyteorder("<")]
    if is_binary:
        if datatype == BYTES:
            return Tensor(name, datatype, array.shape, {}, b"", memoryview(join_elements(_texts(array))))
        packed = np.ascontiguousarray(array, dtype=DTYPES[datatype])
        return Tensor(name, datatype, array.shape, {}, b"", memoryview(packed.tobytes()))
    if datatype in BINARY_ONLY:
        raise _no_json(name, f"is {datatype}")
    if array.dtype.kind == "f" and not bool(np.isfinite(array).all()):
        raise _no_json(name, "holds NaN or infinity")
    values = [text.decode() for text in _texts(array)] if datatype == BYTES else array.ravel().tolist()
    return Tensor(name, datatype, array.shape, {}, encode_values(values), None)


def _texts(array: Array) -> Iterable[bytes]:
    return (value if type(value) is bytes else str(value).encode() for value in array.ravel())


def _no_json(name: str, reason: str) -> ApiError:
    message = f"output '{name}' {reason}, which has no form in JSON: ask for binary_data"
    return ApiError(ErrorCode.INVALID_REQUEST, message, param=name)
