"""A fake embed engine: the same requests and checks, vectors drawn from a hash of the text.

Owns the simulated vectors and their faults. Equal texts get equal vectors and others near-orthogonal ones; they
mean nothing. Every answer carries `x-madang-simulated`. Started in the engine's place by nodes whose settings
name `embed` among `engine_twins`. Standard library and h11 only.
"""

import asyncio
import hashlib
import math
import sys

from madang.engine.embed.codec import (
    DIMENSIONS,
    BadRequest,
    ServeOptions,
    Text,
    check_tokens,
    encode_answer,
    parse_request,
)
from madang.engine.http_host import HttpAnswer, HttpRequest, error_answer, json_answer
from madang.engine.twin_kit import Twin, read_behaviour, run_twin


def fake_vector(text: Text) -> list[float]:
    """Return a vector of length 1 that only depends on the text and its side."""
    digest = hashlib.shake_256(f"{text.is_query}\n{text.text}".encode()).digest(2 * DIMENSIONS)
    numbers = [int.from_bytes(digest[i : i + 2], "little") - 32767.5 for i in range(0, 2 * DIMENSIONS, 2)]
    norm = math.sqrt(sum(number * number for number in numbers))
    return [number / norm for number in numbers]


class EmbedTwin:
    """Answers as the embed engine would, without a model."""

    def __init__(self, options: ServeOptions, key: str) -> None:
        self._options = options
        self.twin = Twin(read_behaviour(options.model), key, self.respond)

    async def respond(self, request: HttpRequest) -> HttpAnswer:
        """Answer a request that passed key, loading and faults."""
        if (request.method, request.path) != ("POST", "/v1/embeddings"):
            return error_answer(404, "not_found", f"no {request.method} {request.path} here")
        try:
            asked = parse_request(request.body)
            tokens = check_tokens([len(text.text.split()) + 2 for text in asked.texts])
        except BadRequest as error:
            return error_answer(400, error.code, error.message)
        await self.twin.pace(0, request)
        vectors = [fake_vector(text) for text in asked.texts]
        return json_answer(encode_answer(vectors, tokens, self._options.alias, is_base64=asked.is_base64))


async def _run(options: ServeOptions) -> int:
    key = options.key_file.read_text(encoding="ascii").strip()
    return await run_twin(EmbedTwin(options, key).twin, options.host, options.port)


if __name__ == "__main__":
    raise SystemExit(asyncio.run(_run(ServeOptions.from_argv(sys.argv[1:]))))
