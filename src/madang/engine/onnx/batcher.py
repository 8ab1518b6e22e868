"""Which requests the onnx engine computes next, and which of them together.

Owns the bounded queue and the one computation at a time. Refuses to know tensors: what is computed is handed to a
function in a thread of its own. Requests join a computation only where their `key` is the same; of a computation of
several that fails each is computed alone, so that nobody's request fails for another's.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from madang.wire.openai_errors import ApiError, ErrorCode

Compute = Callable[[Sequence[Any]], Sequence[Any]]
"""Takes the inputs of one request or more, returns as many outputs; may raise ApiError."""
_RETRY_S = 1.0
_GONE_POLL_S = 0.05


@dataclass(frozen=True)
class Bounds:
    """Bounds of one batcher.

    Attributes:
        rows_max: of one computation, unless a single request has more.
        wait_s: what a request waits for company when none is there.
        requests_max, bytes_max: that wait or are being computed; over either the newest is refused.
    """

    rows_max: int
    wait_s: float
    requests_max: int
    bytes_max: int


@dataclass(frozen=True, eq=False)
class Job:
    """One request.

    Attributes:
        inputs: what is computed.
        rows: how many it has of the rows that `Bounds` limits.
        size_bytes: of its body.
        key: jobs of the same key may be computed together; None for always alone.
        is_gone: tells whether nobody waits for it any more.
    """

    inputs: Any
    rows: int
    size_bytes: int
    key: Hashable | None
    is_gone: Callable[[], bool]


class Batcher:
    """Computes jobs, one computation at a time; `run` is its life, `submit` what a request calls."""

    def __init__(self, compute: Compute, bounds: Bounds, abandon: Callable[[], None]) -> None:
        """Begin with nothing queued; `abandon` ends the computation under way, when everybody has left it."""
        self._compute = compute
        self._abandon = abandon
        self._bounds = bounds
        self._queue: deque[tuple[Job, asyncio.Future[Any]]] = deque()
        self._arrival = asyncio.Event()
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="onnx")
        self._bytes = 0
        self.running = 0

    @property
    def waiting(self) -> int:
        """How many jobs are queued."""
        return len(self._queue)

    async def submit(self, job: Job) -> Any:
        """Return what a job computes to; raises ApiError, also 503 when too much is queued."""
        bounds = self._bounds
        if self.waiting + self.running >= bounds.requests_max or self._bytes + job.size_bytes > bounds.bytes_max:
            message = f"{self.waiting + self.running} requests are queued, as many as there may be"
            raise ApiError(ErrorCode.OVERLOADED, message, status=503, retry_after_s=_RETRY_S)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._bytes += job.size_bytes
        self._queue.append((job, future))
        self._arrival.set()
        try:
            return await future
        finally:
            self._bytes -= job.size_bytes

    async def run(self) -> None:
        """Compute what is submitted, until cancelled."""
        try:
            while True:
                await self._arrival.wait()
                batch = await self._next()
                if batch:
                    self.running = len(batch)
                    await self._work(batch)
                    self.running = 0
        finally:
            self._executor.shutdown(wait=False, cancel_futures=True)

    async def _next(self) -> list[tuple[Job, "asyncio.Future[Any]"]]:
        """Take the oldest job that somebody waits for, and what goes with it."""
        batch: list[tuple[Job, asyncio.Future[Any]]] = []
        self._take(batch)
        if batch and self._has_room(batch):
            try:
                async with asyncio.timeout(self._bounds.wait_s):
                    while self._has_room(batch):
                        self._arrival.clear()
                        await self._arrival.wait()
                        self._take(batch)
            except TimeoutError:
                pass
        if not self._queue:
            self._arrival.clear()
        else:
            self._arrival.set()
        return batch

    def _has_room(self, batch: list[tuple[Job, "asyncio.Future[Any]"]]) -> bool:
        return batch[0][0].key is not None and sum(job.rows for job, _ in batch) < self._bounds.rows_max

    def _take(self, batch: list[tuple[Job, "asyncio.Future[Any]"]]) -> None:
        """Move from the queue what may be computed with the batch; what may not keeps its place."""
        rows = sum(job.rows for job, _ in batch)
        kept: deque[tuple[Job, asyncio.Future[Any]]] = deque()
        while self._queue:
            job, future = self._queue.popleft()
            if future.done():
                continue
            if job.is_gone():
                future.set_exception(ApiError(ErrorCode.INVALID_REQUEST, "the client left"))
                continue
            if not batch or self._fits(job, batch[0][0], rows):
                batch.append((job, future))
                rows += job.rows
            else:
                kept.append((job, future))
        self._queue = kept

    def _fits(self, job: Job, first: Job, rows: int) -> bool:
        return job.key is not None and job.key == first.key and rows + job.rows <= self._bounds.rows_max

    async def _work(self, batch: list[tuple[Job, "asyncio.Future[Any]"]]) -> None:
        loop = asyncio.get_running_loop()
        try:
            computing = loop.run_in_executor(self._executor, self._compute, [job.inputs for job, _ in batch])
            while not (await asyncio.wait((computing,), timeout=_GONE_POLL_S))[0]:
                if all(job.is_gone() or future.done() for job, future in batch):
                    self._abandon()
            outputs = computing.result()
        except ApiError as error:
            if len(batch) == 1:
                _settle(batch[0][1], error)
                return
            for one in batch:
                await self._work([one])
            return
        for (_, future), output in zip(batch, outputs, strict=True):
            if not future.done():
                future.set_result(output)


def _settle(future: "asyncio.Future[Any]", error: ApiError) -> None:
    if not future.done():
        future.set_exception(error)
