"""A fake tesseract engine: the same requests and checks, and a text that says how large each image is.

Owns the simulated text and its faults. Every answer carries `x-madang-simulated`. Started in the engine's place by
nodes whose settings name `tesseract` among `engine_twins`. Standard library, msgspec and h11 only.
"""

import asyncio
import sys

from madang.engine.http_host import HttpRequest, Limits
from madang.engine.oip_surface import Surface
from madang.engine.oip_tensors import encode_values
from madang.engine.tesseract import codec
from madang.engine.twin_kit import Failure, Manners, Twin, read_behaviour, run_twin
from madang.wire.oip import BYTES, InferRequest, Message, Tensor, write_answer
from madang.wire.openai_errors import ApiError, ErrorCode

_FAILURES = {
    "version": Failure("Failed loading language 'kor'\nTesseract couldn't load any languages!", 1),
    "oom": Failure("Error in pixCreateNoInit: pixdata_malloc fail", 1),
}


class TesseractTwin:
    """Answers as the tesseract engine would, without Tesseract."""

    def __init__(self, options: codec.ServeOptions, key: str) -> None:
        self._alias = options.alias
        self._surface = Surface(options.alias, "tesseract", codec.PLATFORM, codec.SIGNATURE, self._infer)
        behaviour = read_behaviour(options.files[0][1])
        self.twin = Twin(behaviour, key, self._surface.answer, Manners(failures=_FAILURES))

    async def _infer(self, request: HttpRequest, asked: InferRequest) -> Message:
        images = codec.read_images(asked)
        codec.read_page_segmentation(asked)
        for index in range(len(images)):
            if not await self.twin.pace(index, request):
                raise ApiError(ErrorCode.INVALID_REQUEST, "the client left")
        texts = [f"모의 텍스트, simulated text of {len(image)} bytes" for image in images]
        values = {"text": (BYTES, encode_values(texts)), "confidence": ("FP32", encode_values([0.5] * len(images)))}
        outputs = tuple(
            Tensor(name, values[name][0], (len(images),), {}, values[name][1], None)
            for name in codec.check_outputs(asked)
        )
        return write_answer(self._alias, "1", asked.request_id, outputs)


async def _run(options: codec.ServeOptions) -> int:
    key = options.key_file.read_text(encoding="ascii").strip()
    limits = Limits(body_bytes_max=codec.BODY_BYTES_MAX)
    return await run_twin(TesseractTwin(options, key).twin, options.host, options.port, limits)


if __name__ == "__main__":
    raise SystemExit(asyncio.run(_run(codec.ServeOptions.from_argv(sys.argv[1:]))))
