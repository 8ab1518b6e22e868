"""A fake door with a fake endpoint behind it: the same paths and checks, and simulated answers.

Owns their faults. Every answer carries `x-madang-simulated`. Started in the engine's place by nodes whose settings name
`external` among `engine_twins`. Standard library, msgspec and h11 only.
"""

import asyncio
import sys

from madang.engine.external import codec
from madang.engine.http_host import HttpAnswer, HttpRequest, Limits, error_answer
from madang.engine.openai_twin import OpenAiTwin, Served
from madang.engine.twin_kit import Behaviour, Twin, read_behaviour, run_twin

_SLOTS = 64
_CONTEXT_TOKENS = 32768


class ExternalTwin:
    """Answers as the door would, without an endpoint."""

    def __init__(self, options: codec.ServeOptions, key: str) -> None:
        behaviour = Behaviour() if options.file is None else read_behaviour(options.file)
        self.twin = Twin(behaviour, key, self.respond)
        served = Served(
            alias=options.alias,
            slots=_SLOTS,
            context_tokens=_CONTEXT_TOKENS,
            is_embedding="/v1/embeddings" in options.paths,
        )
        self._openai = OpenAiTwin(served, self.twin, lambda status, text: error_answer(status, "invalid_request", text))

    async def respond(self, request: HttpRequest) -> HttpAnswer:
        """Answer a request that passed key, loading and faults."""
        answer = await self._openai.answer(request)
        return answer if answer is not None else error_answer(404, "not_found", "nothing here")


async def _run(options: codec.ServeOptions) -> int:
    key = options.key_file.read_text(encoding="ascii").strip()
    limits = Limits(body_bytes_max=codec.BODY_BYTES_MAX)
    return await run_twin(ExternalTwin(options, key).twin, options.host, options.port, limits)


if __name__ == "__main__":
    raise SystemExit(asyncio.run(_run(codec.ServeOptions.from_argv(sys.argv[1:]))))
