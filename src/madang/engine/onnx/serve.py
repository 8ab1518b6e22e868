"""The onnx engine itself: the main of a child process that runs one model in ONNX Runtime.

Owns the answers. Refuses to fetch weights (it gets the path of a verified file) and to log tensors. Started by the
node's shim as `python -m madang.engine.onnx.serve`.

One thread computes, since one computation already uses all its cores; requests that came meanwhile are computed
together where the model's rows are independent.
"""

import asyncio
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from madang.core import Rejected
from madang.engine.http_host import HttpAnswer, HttpHost, HttpRequest, Limits, json_answer
from madang.engine.oip_surface import Surface, error_answer
from madang.engine.oip_tensors import check_request, wanted_outputs
from madang.engine.onnx.batcher import Batcher, Bounds, Job
from madang.engine.onnx.codec import (
    BATCH_WAIT_S,
    BODY_BYTES_MAX,
    PLATFORM,
    QUEUE_BYTES_MAX,
    QUEUE_REQUESTS_MAX,
    ServeOptions,
)
from madang.wire.oip import InferRequest, Message, write_answer
from madang.wire.openai_errors import ApiError, ErrorCode

if TYPE_CHECKING:
    from madang.engine.onnx.model import Feeds, OnnxModel
    from madang.engine.onnx.tensors import Array

T = TypeVar("T")
_READ_S_MAX = 60.0
_AT_ONCE_BYTES_MAX = 64 * 1024


class InferServer:
    """Answers requests by the protocol.

    Args:
        model: what computes.
        alias: name under which it answers.
        key: bearer token that it asks for.
        batch_rows: rows of one computation over several requests, at most.
    """

    def __init__(self, model: "OnnxModel", alias: str, key: str, batch_rows: int) -> None:
        self._model = model
        self._alias = alias
        self._key = key
        self._is_batched = model.has_independent_rows and batch_rows > 1
        bounds = Bounds(batch_rows, BATCH_WAIT_S, QUEUE_REQUESTS_MAX, QUEUE_BYTES_MAX)
        self.batcher = Batcher(self._compute, bounds, model.abandon)
        self._surface = Surface(alias, "onnx", PLATFORM, model.signature, self._infer)

    async def handle(self, request: HttpRequest) -> HttpAnswer:
        """Answer one request."""
        if request.path == "/health":
            return json_answer({"status": "ok", "running": self.batcher.running, "waiting": self.batcher.waiting})
        if not request.has_key(self._key):
            return error_answer(ApiError(ErrorCode.INVALID_KEY, "the engine key is missing or wrong"))
        return await self._surface.answer(request)

    async def _infer(self, request: HttpRequest, asked: InferRequest) -> Message:
        from madang.engine.onnx.tensors import to_array, to_tensor

        signature = self._model.signature
        check_request(asked, signature)
        feeds = await _aside(len(request.body), lambda: {tensor.name: to_array(tensor) for tensor in asked.inputs})
        rows, key = self._grouped(feeds)
        job = Job(feeds, rows, len(request.body), key, request.is_gone)
        outputs: list[Array] = await self.batcher.submit(job)
        by_name = dict(zip((port.name for port in signature.outputs), outputs, strict=True))
        names = wanted_outputs(asked, signature)
        size_bytes = sum(by_name[name].nbytes for name in names)
        tensors = await _aside(
            size_bytes,
            lambda: tuple(to_tensor(name, by_name[name], is_binary=asked.is_binary(name)) for name in names),
        )
        return write_answer(self._alias, "1", asked.request_id, tensors)

    def _grouped(self, feeds: "Feeds") -> tuple[int, object]:
        """Return how many rows a request has, and what requests have in common that may be computed with it."""
        lengths = {array.shape[0] for array in feeds.values()} if self._is_batched else set()
        if len(lengths) != 1 or 0 in lengths:
            return 1, None
        return lengths.pop(), tuple((name, feeds[name].shape[1:]) for name in sorted(feeds))

    def _compute(self, several: Sequence["Feeds"]) -> list[list["Array"]]:
        return self._model.run_together(several)


async def _aside(size_bytes: int, work: Callable[[], T]) -> T:
    """Return what `work` returns; numbers in JSON take up to a second for 10 MB, and health must be told meanwhile."""
    return work() if size_bytes <= _AT_ONCE_BYTES_MAX else await asyncio.to_thread(work)


async def run(options: ServeOptions) -> int:
    """Serve until SIGTERM; 1 for a file that is no model."""
    # Imported here: vendor code, and a wrong command line should fail before it.
    from madang.engine.onnx.model import OnnxModel

    key = options.key_file.read_text(encoding="ascii").strip()
    try:
        model = OnnxModel(options.model, options.threads)
    except Rejected as error:
        print(error, file=sys.stderr, flush=True)
        return 1
    server = InferServer(model, options.alias, key, options.batch_rows)
    host = HttpHost(server.handle, Limits(body_bytes_max=BODY_BYTES_MAX, read_s_max=_READ_S_MAX))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with asyncio.TaskGroup() as tasks:
        computing = tasks.create_task(server.batcher.run())
        await host.start(options.host, options.port)
        how = "batches" if model.has_independent_rows else "one request at a time"
        print(f"onnx listens on http://{options.host}:{options.port}, {how}", file=sys.stderr, flush=True)
        await stop.wait()
        # Whoever stops it has drained it first; what is in flight all the same has a moment.
        await host.stop()
        model.stop()
        computing.cancel()
    return 0


if __name__ == "__main__":
    raise SystemExit(asyncio.run(run(ServeOptions.from_argv(sys.argv[1:]))))
