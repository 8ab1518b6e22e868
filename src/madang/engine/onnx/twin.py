"""A fake onnx engine: the same protocol and checks, and every tensor comes back as it went.

Owns the simulated answers and their faults. Its model takes any tensor under any name and gives the same; its metadata
name one of numbers and one of text. Every answer carries `x-madang-simulated`. Started in the engine's place by nodes
whose settings name `onnx` among `engine_twins`. Standard library, msgspec and h11 only.
"""

import asyncio
import sys

from madang.engine.http_host import HttpAnswer, HttpRequest, Limits
from madang.engine.oip_surface import Surface
from madang.engine.oip_tensors import Port, Signature, encode_values, flat_values, join_elements, split_elements
from madang.engine.onnx.codec import BODY_BYTES_MAX, PLATFORM, ServeOptions
from madang.engine.twin_kit import Twin, read_behaviour, run_twin
from madang.wire.oip import BYTES, InferRequest, Message, Tensor, write_answer
from madang.wire.openai_errors import ApiError, ErrorCode

_PORTS = (Port("numbers", "FP32", (-1, 4)), Port("text", BYTES, (-1,)))
SIGNATURE = Signature(_PORTS, _PORTS)


class OnnxTwin:
    """Answers as the onnx engine would, without a model."""

    def __init__(self, options: ServeOptions, key: str) -> None:
        self._alias = options.alias
        self._surface = Surface(options.alias, "onnx", PLATFORM, SIGNATURE, self._infer)
        self.twin = Twin(read_behaviour(options.model), key, self.respond)

    async def respond(self, request: HttpRequest) -> HttpAnswer:
        """Answer a request that passed key, loading and faults."""
        return await self._surface.answer(request)

    async def _infer(self, request: HttpRequest, asked: InferRequest) -> Message:
        if not await self.twin.pace(0, request):
            raise ApiError(ErrorCode.INVALID_REQUEST, "the client left")
        tensors = {tensor.name: tensor for tensor in asked.inputs}
        names = [one.name for one in asked.outputs] or list(tensors)
        for name in names:
            if name not in tensors:
                raise ApiError(ErrorCode.INVALID_REQUEST, f"'outputs': no tensor {name!r} here", param="outputs")
        outputs = tuple(_echo(tensors[name], is_binary=asked.is_binary(name)) for name in names)
        return write_answer(self._alias, "1", asked.request_id, outputs)


def _echo(tensor: Tensor, *, is_binary: bool) -> Tensor:
    """Return a tensor as it came, but for the form in which text is wanted; numbers keep theirs."""
    if tensor.binary is None:
        values = flat_values(tensor)
        if not (is_binary and tensor.datatype == BYTES):
            return tensor._replace(data=encode_values(values), parameters={})
        packed = join_elements(str(value).encode() for value in values)
        return tensor._replace(data=b"", binary=memoryview(packed), parameters={})
    if is_binary or tensor.datatype != BYTES:
        return tensor._replace(parameters={})
    texts = [element.decode(errors="replace") for element in split_elements(tensor)]
    return tensor._replace(data=encode_values(texts), binary=None, parameters={})


async def _run(options: ServeOptions) -> int:
    key = options.key_file.read_text(encoding="ascii").strip()
    limits = Limits(body_bytes_max=BODY_BYTES_MAX)
    return await run_twin(OnnxTwin(options, key).twin, options.host, options.port, limits)


if __name__ == "__main__":
    raise SystemExit(asyncio.run(_run(ServeOptions.from_argv(sys.argv[1:]))))
