"""One batch at work: its input is judged, its lines are run, its results are put together.

Owns the order of a batch's steps and what is durable before the next one. Refuses to choose which batch runs: the
runner does. Every step can be cut anywhere and begun again: a line's result is either in the log or it is not.

A line has one request id for its whole life, made from the batch's key and its number, and each try has higher attempt
numbers than the one before: the ledger bills only the highest attempt, so a try whose result was lost with the process
is replaced and not billed beside its successor.
"""

import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec
import sqlalchemy as sa

from madang.core import Clock, Entropy, RequestId, SiteId, Unavailable, make_request_id
from madang.runtime.telemetry import EventLog
from madang.site.batches.calls import TRIES_MAX, GatewayCalls
from madang.site.batches.lines import InputCheck, Line, LineCutter, LineTooLong, read_line, write_answer, write_failure
from madang.site.batches.results import Result, ResultLog
from madang.site.batches.rows import begin_try, revise_batch
from madang.site.batches.state import Batch, BatchError, BatchStatus
from madang.site.batches.verdict import Answer, Verdict, judge
from madang.site.desired import DesiredView
from madang.site.files.blobs import BlobWriter
from madang.site.files.keeper import FileKeeper, NewFile
from madang.site.files.rows import FileRow, read_file, write_file
from madang.site.guard import GuardedStore
from madang.wire.bus import ServiceLoad

AGAIN_MAX = 3
"""Tries of a line in one life of this program that end without a result, before its error is its result."""
WAIT_S_MIN = 0.25
WAIT_S_MAX = 30.0
STORE_RETRY_S = 1.0
OUTPUT_PURPOSE = "batch_output"


@dataclass
class BatchCounts:
    """What the runner's metrics tell."""

    lines: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("completed", "failed"), 0))
    waits: int = 0
    again: int = 0
    batches: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Kit:
    """What all batches at work share.

    Attributes:
        slots: requests in flight, over all batches.
        find_loads: how busy this site's services are now.
        wait_s_min: how long a line that found no room waits first; twice as long each time after.
        folder: of the logs of results.
    """

    site: str
    keeper: FileKeeper
    store: GuardedStore
    view: DesiredView
    calls: GatewayCalls
    slots: asyncio.Semaphore
    concurrency: int
    lines_max: int
    find_loads: Callable[[], tuple[ServiceLoad, ...]]
    folder: Path
    clock: Clock
    entropy: Entropy
    log: EventLog
    counts: BatchCounts
    wait_s_min: float = WAIT_S_MIN


class Work:
    """One batch at work."""

    def __init__(self, kit: Kit, batch: Batch, sealed_key: bytes) -> None:
        """Prepare; raises Fault when the batch's key does not open.

        Attributes:
            batch: as it was stored last.
        """
        self._kit = kit
        self.batch = batch
        self._key = kit.keeper.blobs.open_key(batch.batch_id, sealed_key)
        self._results = ResultLog(kit.folder / f"{batch.batch_id}.log", self._key, batch.batch_id, kit.entropy)
        self._halt = asyncio.Event()
        self._stopped: BatchError | None = None
        self._completed: set[int] = set()
        self._failed: set[int] = set()

    def cancel(self) -> None:
        """The client wants no more lines to be begun."""
        self._halt.set()

    async def run(self) -> None:
        """Go on from where the batch stands, to its end.

        Raises:
            Unavailable: database or disk; begin again later.
            Fault: what was stored is damaged.
        """
        if self.batch.status is BatchStatus.VALIDATING:
            await self._validate()
        if self.batch.status in (BatchStatus.IN_PROGRESS, BatchStatus.CANCELLING):
            await self._run_lines()
        if self.batch.status is BatchStatus.FINALIZING:
            await self._finish()

    async def save_progress(self) -> None:
        """Store how many lines are done, for whoever asks."""
        if self.batch.status is BatchStatus.IN_PROGRESS and self._progress() != (
            self.batch.completed,
            self.batch.failed,
        ):
            completed, failed = self._progress()
            await self._revise(lambda batch: msgspec.structs.replace(batch, completed=completed, failed=failed))

    def _progress(self) -> tuple[int, int]:
        return len(self._completed), len(self._failed)

    async def _revise(self, change: Callable[[Batch], Batch]) -> None:
        revise = partial(revise_batch, batch_id=self.batch.batch_id, change=change)
        self.batch = await self._kit.store.write(revise)

    # --- the input

    async def _find_input(self) -> FileRow | None:
        find = partial(read_file, tenant_id=self.batch.tenant_id, file_id=self.batch.input_file_id)
        return await self._kit.store.read(find)

    async def _validate(self) -> None:
        row = await self._find_input()
        check = InputCheck(self.batch.endpoint, self._kit.lines_max)
        if row is None:
            check.errors.append(BatchError(code="file_not_found", message="the input file is gone"))
        else:
            await asyncio.to_thread(self._judge_input, check, row)
        if not check.errors:
            self._check_model(check)
        now_s = self._kit.clock.wall_s()

        def change(batch: Batch) -> Batch:
            batch = msgspec.structs.replace(batch, total=check.total, model=check.model, errors=tuple(check.errors))
            if batch.status is not BatchStatus.VALIDATING:
                return batch  # cancelled meanwhile
            return batch.become(BatchStatus.FAILED if check.errors else BatchStatus.IN_PROGRESS, now_s)

        await self._revise(change)

    def _judge_input(self, check: InputCheck, row: FileRow) -> None:
        cutter = LineCutter()
        try:
            for piece in self._kit.keeper.blobs.read(row.file_id, row.sealed_key):
                for data in cutter.feed(piece):
                    check.take(data)
                if check.is_hopeless:
                    return
            for data in cutter.end():
                check.take(data)
            check.end()
        except LineTooLong:
            check.too_long()

    def _check_model(self, check: InputCheck) -> None:
        service = self._kit.view.services.get(check.model)
        if service is None or (service.tenants and self.batch.tenant_id not in service.tenants):
            check.errors.append(
                BatchError(code="model_not_found", message=f"no model '{check.model[:100]}': see GET /v1/models")
            )
        elif check.model not in self._kit.view.assignments:
            check.errors.append(
                BatchError(
                    code="model_not_found",
                    message=f"'{check.model}' does not run at site {self._kit.site}; a batch runs where it is kept",
                )
            )

    def _read_lines(self, row: FileRow) -> Iterator[list[Line]]:
        """Yield the input's requests, a piece at a time; it was judged before."""
        cutter, number = LineCutter(), 0
        pieces = self._kit.keeper.blobs.read(row.file_id, row.sealed_key)
        is_end = False
        while not is_end:
            piece = next(pieces, None)
            is_end = piece is None
            found = []
            for data in cutter.end() if piece is None else cutter.feed(piece):
                number += 1
                if data.strip():
                    line = read_line(number, data, self.batch.endpoint)
                    assert isinstance(line, Line), "the input was judged before"
                    found.append(line)
            yield found

    async def _lines_left(self) -> AsyncIterator[Line]:
        row = await self._find_input()
        if row is None or self.batch.total == 0:
            return
        done = self._completed | self._failed
        pieces = self._read_lines(row)
        while (lines := await asyncio.to_thread(next, pieces, None)) is not None:
            for line in lines:
                if line.number not in done:
                    yield line

    # --- the lines

    async def _run_lines(self) -> None:
        if self.batch.status is BatchStatus.CANCELLING:
            self._halt.set()
        self._completed, self._failed = await asyncio.to_thread(self._results.open)
        room = asyncio.Semaphore(self._kit.concurrency)
        async with asyncio.TaskGroup() as tasks:
            async for line in self._lines_left():
                await room.acquire()
                if self._is_halted():
                    break
                tasks.create_task(self._run_line(line)).add_done_callback(lambda _task: room.release())
        completed, failed = self._progress()
        now_s = self._kit.clock.wall_s()

        def change(batch: Batch) -> Batch:
            ending = BatchStatus.COMPLETED
            if completed + failed < batch.total or batch.total == 0:
                ending = BatchStatus.EXPIRED if self._stopped is None else BatchStatus.FAILED
            if batch.status is BatchStatus.CANCELLING:
                ending = BatchStatus.CANCELLED
            ended = msgspec.structs.replace(
                batch, completed=completed, failed=failed, ending=ending, stopped=self._stopped
            )
            return ended.become(BatchStatus.FINALIZING, now_s)

        await self._revise(change)

    def _is_halted(self) -> bool:
        return self._halt.is_set() or self._kit.clock.wall_s() >= self.batch.expires_at_s

    async def _pause(self, delay_s: float) -> None:
        """Wait, unless there is no more use in it."""
        left_s = self.batch.expires_at_s - self._kit.clock.wall_s()
        try:
            async with asyncio.timeout(max(0.0, min(delay_s, left_s))):
                await self._halt.wait()
        except TimeoutError:
            return

    async def _wait_for_room(self, model: str) -> None:
        """Wait while every slot of the model's engines here is taken by others."""
        while not self._is_halted():
            load = next((load for load in self._kit.find_loads() if load.service == model), None)
            if load is None or load.slots == 0 or load.in_flight < load.slots:
                return
            await self._pause(self._kit.wait_s_min)

    async def _run_line(self, line: Line) -> None:
        request_id = self._request_id(line.number)
        tries, again, wait_s = await self._begin_try(line.number), 0, self._kit.wait_s_min
        while not self._is_halted():
            if tries > TRIES_MAX:
                message = f"{TRIES_MAX} tries ended without a result"
                failure = write_failure(line.custom_id, request_id, "too_many_tries", message)
                await self._keep(Result(line.number, True, failure))
                return
            await self._wait_for_room(line.model)
            async with self._kit.slots:
                if self._is_halted():
                    return
                answer = await self._kit.calls.ask(self.batch, request_id, tries, line.body)
            verdict = judge(answer)
            if verdict is Verdict.AGAIN:
                again += 1
                self._kit.counts.again += 1
                if again >= AGAIN_MAX:
                    verdict = Verdict.FAILED
                else:
                    tries = await self._begin_try(line.number)
            if verdict in (Verdict.DONE, Verdict.FAILED):
                await self._keep(_result_of(line, request_id, answer, is_error=verdict is Verdict.FAILED))
                return
            if verdict is Verdict.STOP:
                self._stop(answer)
                return
            self._kit.counts.waits += 1
            await self._pause(min(WAIT_S_MAX, max(wait_s, answer.retry_after_s or 0.0)))
            wait_s = min(WAIT_S_MAX, wait_s * 2)

    def _request_id(self, line: int) -> RequestId:
        digest = hmac.digest(self._key, b"madang-batch-line-v1\n%d" % line, hashlib.sha256)
        return make_request_id(SiteId(self._kit.site), int(self.batch.created_at_s * 1000), digest[:10])

    async def _begin_try(self, line: int) -> int:
        return await self._kit.store.write(partial(begin_try, batch_id=self.batch.batch_id, line=line))

    async def _keep(self, result: Result) -> None:
        """Make a result durable, however long the disk takes: the work was done and must not be done again."""
        while True:
            try:
                await asyncio.to_thread(self._results.append, [result])
                break
            except Unavailable as error:
                self._kit.log.warning("batch_result_waits", batch=self.batch.batch_id, reason=error.message)
                await asyncio.sleep(STORE_RETRY_S)
        (self._failed if result.is_error else self._completed).add(result.line)
        self._kit.counts.lines["failed" if result.is_error else "completed"] += 1

    def _stop(self, answer: Answer) -> None:
        """No line may run any more: the key is gone, the budget is spent, or the tenant may not be served here."""
        self._stopped = BatchError(code=answer.code, message=answer.message)
        self._halt.set()

    # --- the results

    async def _finish(self) -> None:
        kit, batch = self._kit, self.batch
        row = await self._find_input()
        output, errors = await asyncio.to_thread(self._assemble, row)
        rows = [self._row(part) for part in (output, errors) if part.writer is not None]
        now_s = kit.clock.wall_s()

        def change(before: Batch) -> Batch:
            after = msgspec.structs.replace(
                before,
                output_file_id=output.file_id,
                error_file_id=errors.file_id,
                completed=output.lines,
                failed=errors.lines,
            )
            return after.become(before.ending, now_s)

        def write(connection: sa.Connection) -> Batch:
            for one in rows:
                write_file(connection, one)
            return revise_batch(connection, batch.batch_id, change)

        self.batch = await kit.store.write(write)
        await asyncio.to_thread(self._results.remove)
        kit.counts.batches[self.batch.status] = kit.counts.batches.get(self.batch.status, 0) + 1
        kit.log.info("batch_over", batch=batch.batch_id, status=self.batch.status)

    def _assemble(self, row: FileRow | None) -> tuple["_Part", "_Part"]:
        output, errors = _Part(self._kit.keeper), _Part(self._kit.keeper, is_output=False)
        seen: set[int] = set()
        for result in self._results.read():
            if result.line not in seen:
                seen.add(result.line)
                (errors if result.is_error else output).write(result.data)
        if row is not None and self.batch.ending in (BatchStatus.EXPIRED, BatchStatus.FAILED):
            code, message = self._left_out()
            for line in (line for lines in self._read_lines(row) for line in lines if line.number not in seen):
                errors.write(write_failure(line.custom_id, self._request_id(line.number), code, message))
        output.finish()
        errors.finish()
        return output, errors

    def _left_out(self) -> tuple[str, str]:
        """Return what the error file says of a line that never ran."""
        stopped = self.batch.stopped
        if stopped is None:
            return "batch_expired", "this request was not run before the completion window closed"
        return stopped.code, f"this request was not run: {stopped.message}"

    def _row(self, part: "_Part") -> FileRow:
        assert part.new is not None
        assert part.writer is not None
        return self._kit.keeper.make_row(
            part.new,
            tenant_id=self.batch.tenant_id,
            project_id=self.batch.project_id,
            filename=f"{self.batch.batch_id}_{'output' if part.is_output else 'error'}.jsonl",
            purpose=OUTPUT_PURPOSE,
            size_bytes=part.writer.size_bytes,
            lifetime_s=self.batch.output_lifetime_s,
        )


class _Part:
    """One of the two result files; there is none until a line is written."""

    def __init__(self, keeper: FileKeeper, *, is_output: bool = True) -> None:
        self._keeper = keeper
        self.is_output = is_output
        self.new: NewFile | None = None
        self.writer: BlobWriter | None = None
        self.lines = 0

    @property
    def file_id(self) -> str | None:
        return None if self.new is None else self.new.file_id

    def write(self, data: bytes) -> None:
        if self.writer is None:
            self.new = self._keeper.make_new()
            self.writer = self._keeper.blobs.writer(self.new.file_id, self.new.sealed_key)
        self.writer.write(data)
        self.lines += 1

    def finish(self) -> None:
        if self.writer is not None:
            self.writer.finish()


def _result_of(line: Line, request_id: str, answer: Answer, *, is_error: bool) -> Result:
    if answer.status > 0:
        return Result(line.number, is_error, write_answer(line, request_id, answer.status, answer.body))
    return Result(line.number, is_error, write_failure(line.custom_id, request_id, "no_answer", answer.message))
