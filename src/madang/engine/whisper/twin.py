"""A fake whisper engine: the same requests and checks, words drawn from a list.

Owns the simulated text and its faults. A sound is taken for 16-bit mono samples at 16 kHz, whatever it is, and every
second of it says one word. Every answer carries `x-madang-simulated`. Started in the engine's place by nodes whose
settings name `whisper` among `engine_twins`. Standard library and h11 only.
"""

import asyncio
import sys
from collections.abc import AsyncIterator

from madang.engine.http_host import HttpAnswer, HttpRequest, Limits, error_answer, json_answer
from madang.engine.twin_kit import Twin, read_behaviour, run_twin
from madang.engine.whisper.codec import (
    BODY_BYTES_MAX,
    PATH,
    BadRequest,
    Segment,
    ServeOptions,
    delta_event,
    done_event,
    encode_answer,
    parse_request,
)

_BYTES_PER_S = 32_000
_WORDS = (" simulated", " speech", " 모의", " 음성")
_SEGMENTS_MAX = 1000


class WhisperTwin:
    """Answers as the whisper engine would, without a model."""

    def __init__(self, options: ServeOptions, key: str) -> None:
        self._options = options
        self.twin = Twin(read_behaviour(options.files[0]), key, self.respond)

    async def respond(self, request: HttpRequest) -> HttpAnswer:
        """Answer a request that passed key, loading and faults."""
        if (request.method, request.path) != ("POST", PATH):
            return error_answer(404, "not_found", f"no {request.method} {request.path} here")
        try:
            asked = parse_request(request.headers.get("content-type", ""), request.body)
        except BadRequest as error:
            return error_answer(400, error.code, error.message)
        duration_s = len(asked.audio) / _BYTES_PER_S
        if asked.is_stream:
            return HttpAnswer(200, content_type="text/event-stream", chunks=self._stream(request, duration_s))
        segments = [segment async for segment in self._segments(request, duration_s)]
        language = asked.language or "ko"
        return json_answer(encode_answer(asked, segments, language, duration_s, self._options.alias))

    async def _stream(self, request: HttpRequest, duration_s: float) -> AsyncIterator[bytes]:
        segments = []
        async for segment in self._segments(request, duration_s):
            segments.append(segment)
            yield delta_event(segment)
        yield done_event(segments, duration_s)

    async def _segments(self, request: HttpRequest, duration_s: float) -> AsyncIterator[Segment]:
        for index in range(min(int(duration_s) + 1, _SEGMENTS_MAX)):
            if not await self.twin.pace(index, request):
                return
            end_s = min(index + 1.0, duration_s)
            word = _WORDS[index % len(_WORDS)]
            yield Segment(start_s=float(index), end_s=end_s, text=word, words=((float(index), end_s, word),))


async def _run(options: ServeOptions) -> int:
    key = options.key_file.read_text(encoding="ascii").strip()
    limits = Limits(body_bytes_max=BODY_BYTES_MAX)
    return await run_twin(WhisperTwin(options, key).twin, options.host, options.port, limits)


if __name__ == "__main__":
    raise SystemExit(asyncio.run(_run(ServeOptions.from_argv(sys.argv[1:]))))
