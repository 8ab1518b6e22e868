"""The whisper engine itself: the main of a child process that turns speech into text with faster-whisper.

Owns the model and the queue before it. Refuses to fetch weights (it gets the paths of verified files) and to log sound
or text. Started by the node's shim as `python -m madang.engine.whisper.serve`.

One thread computes, since one computation already uses all its cores. A sound is transcribed stretch by stretch; one
whose client has left is given up at the next.
"""

import asyncio
import functools
import io
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from madang.engine.http_host import HttpAnswer, HttpHost, HttpRequest, Limits, error_answer, json_answer
from madang.engine.whisper.codec import (
    BODY_BYTES_MAX,
    FILES,
    PATH,
    BadRequest,
    Segment,
    ServeOptions,
    SpeechRequest,
    delta_event,
    done_event,
    encode_answer,
    error_event,
    parse_request,
)

_READ_S_MAX = 60.0
_TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""What OpenAI's 0 means: the next one is tried for a stretch that the model repeats itself in or is unsure of."""


class SpeechServer:
    """Answers transcription requests.

    Args:
        model: a WhisperModel.
        alias: name under which it answers.
        key: bearer token that it asks for.
    """

    def __init__(self, model: Any, alias: str, key: str) -> None:
        self._model = model
        self._alias = alias
        self._key = key
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="whisper")
        self._turn = asyncio.Lock()
        self._running = 0

    async def handle(self, request: HttpRequest) -> HttpAnswer:
        """Answer one request."""
        if request.path == "/health":
            # One computes, the others wait for it.
            running = min(self._running, 1)
            return json_answer({"status": "ok", "running": running, "waiting": self._running - running})
        if not request.has_key(self._key):
            return error_answer(401, "invalid_key", "the engine key is missing or wrong", "authentication_error")
        if (request.method, request.path) == ("GET", "/v1/models"):
            return json_answer({"object": "list", "data": [{"id": self._alias, "object": "model"}]})
        if (request.method, request.path) != ("POST", PATH):
            return error_answer(404, "not_found", f"no {request.method} {request.path} here")
        try:
            asked = parse_request(request.headers.get("content-type", ""), request.body)
            if asked.is_stream:
                first = await self._begin(asked)
                return HttpAnswer(200, content_type="text/event-stream", chunks=self._stream(request, first))
            return await self._whole(request, asked)
        except BadRequest as error:
            wrong = {"message": error.message, "type": "invalid_request_error", "code": error.code}
            return json_answer({"error": wrong | {"param": error.param or None}}, 400)

    async def _whole(self, request: HttpRequest, asked: SpeechRequest) -> HttpAnswer:
        segments: list[Segment] = []
        found, info = await self._begin(asked)
        try:
            async for segment in self._each(request, found):
                segments.append(segment)  # noqa: PERF401  what came so far is kept when the client leaves
        finally:
            self._end()
        if request.is_gone():
            return error_answer(499, "client_gone", "the client left")
        return json_answer(encode_answer(asked, segments, info.language, info.duration, self._alias))

    async def _stream(self, request: HttpRequest, begun: tuple[Iterator[Any], Any]) -> AsyncIterator[bytes]:
        found, info = begun
        segments: list[Segment] = []
        try:
            async for segment in self._each(request, found):
                segments.append(segment)
                yield delta_event(segment)
            yield error_event("the client left") if request.is_gone() else done_event(segments, info.duration)
        finally:
            self._end()

    async def _begin(self, asked: SpeechRequest) -> tuple[Iterator[Any], Any]:
        """Wait for the turn, read the sound and find its language; `_end` gives the turn back."""
        self._running += 1
        try:
            await self._turn.acquire()
        except BaseException:
            self._running -= 1
            raise
        try:
            begun: tuple[Iterator[Any], Any] = await self._run(functools.partial(self._open, asked))
            return begun
        except BaseException:
            self._end()
            raise

    def _end(self) -> None:
        self._running -= 1
        self._turn.release()

    async def _each(self, request: HttpRequest, found: Iterator[Any]) -> AsyncIterator[Segment]:
        while not request.is_gone():
            segment = await self._run(functools.partial(next, found, None))
            if segment is None:
                return
            words = tuple((word.start, word.end, word.word) for word in segment.words or ())
            yield Segment(start_s=segment.start, end_s=segment.end, text=segment.text, words=words)

    async def _run(self, work: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def _open(self, asked: SpeechRequest) -> tuple[Iterator[Any], Any]:
        import av

        try:
            found: tuple[Iterator[Any], Any] = self._model.transcribe(
                io.BytesIO(asked.audio),
                language=asked.language,
                initial_prompt=asked.prompt,
                temperature=asked.temperature or _TEMPERATURES,
                word_timestamps=asked.has_words,
            )
        except (av.error.FFmpegError, IndexError) as error:
            raise BadRequest(f"the file is no sound that can be read: {error}", "file") from error
        except ValueError as error:
            raise BadRequest(str(error), "language") from error
        return found


def load_model(options: ServeOptions) -> Any:
    """Return the model in the files; raises RuntimeError or OSError when they are none."""
    # Imported here: vendor code, and a wrong command line should fail before it.
    from faster_whisper import WhisperModel

    folder = options.key_file.parent / "model"
    _link(folder, options.files)
    return WhisperModel(
        str(folder), device="cpu", compute_type="int8", cpu_threads=options.threads, local_files_only=True
    )


def _link(folder: Path, files: tuple[Path, ...]) -> None:
    """Give the files, which the cache keeps by hash, the names under which the library looks for them."""
    folder.mkdir(mode=0o700, exist_ok=True)
    for name, path in zip(FILES, files, strict=True):
        link = folder / name
        link.unlink(missing_ok=True)
        link.symlink_to(path.absolute())


async def run(options: ServeOptions) -> int:
    """Serve until SIGTERM."""
    key = options.key_file.read_text(encoding="ascii").strip()
    server = SpeechServer(load_model(options), options.alias, key)
    host = HttpHost(server.handle, Limits(body_bytes_max=BODY_BYTES_MAX, read_s_max=_READ_S_MAX))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await host.start(options.host, options.port)
    print(f"whisper listens on http://{options.host}:{options.port}", file=sys.stderr, flush=True)
    await stop.wait()
    await host.stop()
    return 0


if __name__ == "__main__":
    raise SystemExit(asyncio.run(run(ServeOptions.from_argv(sys.argv[1:]))))
