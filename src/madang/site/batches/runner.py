"""Runs batches in the background: which ones, how many at once, and again after a crash.

Owns the choice of batches at work and their tasks. Refuses to know what a batch's steps are. Tenants take turns: the
oldest batch of each goes before the second of any.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Any

import msgspec

from madang.core import Fault, MadangError, Unavailable
from madang.site.batches.rows import forget_old, list_running, list_running_ids, revise_batch
from madang.site.batches.state import Batch, BatchError, BatchStatus
from madang.site.batches.work import Kit, Work
from madang.site.signal import Signal

ACTIVE_MAX = 8
"""Batches at work at once; each holds a few megabytes."""
ENDING_MAX = 4
"""Batches that are begun only to be ended, at each look."""
WAITING_LOOKED_AT_MAX = 512
TICK_S = 1.0
TROUBLE_S_MIN = 1.0
TROUBLE_S_MAX = 60.0
FORGET_PERIOD_TICKS = 3600


def choose_active(
    running: Iterable[tuple[Batch, bytes]], at_work: frozenset[str], now_s: float, most: int = ACTIVE_MAX
) -> list[tuple[Batch, bytes]]:
    """Return the batches to begin with now, at most as many as there is room for.

    Those that only have to be brought to their end, since they were cancelled or their window closed, wait for nobody.

    Args:
        running: all that are not over, oldest first.
        at_work: ids of those that have begun; they stay.
        now_s: wall time.
        most: at work at once.
    """
    before: Counter[str] = Counter()
    ending, ranked = [], []
    for place, (batch, sealed_key) in enumerate(running):
        if batch.batch_id not in at_work:
            if batch.status is BatchStatus.CANCELLING or batch.expires_at_s <= now_s:
                ending.append((batch, sealed_key))
                continue
            ranked.append((before[batch.tenant_id], place, batch, sealed_key))
        before[batch.tenant_id] += 1
    ranked.sort(key=lambda item: item[:2])
    room = max(0, most - len(at_work))
    return ending[:ENDING_MAX] + [(batch, sealed_key) for _, _, batch, sealed_key in ranked[:room]]


class BatchRunner:
    """The batches of this site at work."""

    def __init__(self, kit: Kit) -> None:
        """Prepare the loop.

        Attributes:
            changed: whoever makes or cancels a batch raises it.
            running: batches that are not over, when they were counted last.
        """
        self._kit = kit
        self.changed = Signal()
        self.running = 0
        self._works: dict[str, Work | None] = {}

    @property
    def at_work(self) -> int:
        """How many batches have begun and are not over."""
        return len(self._works)

    async def prepare(self) -> None:
        """Remove the logs of batches that are over or gone: their results are files by now."""
        kit = self._kit
        running = await kit.store.read(list_running_ids)

        def sweep() -> None:
            for path in kit.folder.glob("*.log"):
                if path.stem not in running:
                    path.unlink(missing_ok=True)

        await asyncio.to_thread(sweep)

    async def run(self) -> None:
        """Run batches for ever."""
        tick = 0
        async with asyncio.TaskGroup() as tasks:
            while True:
                seen = self.changed.level
                # Unavailable: the guarded store has said so; this is tried again at the next tick.
                with contextlib.suppress(Unavailable):
                    await self._look(tasks)
                    if tick % FORGET_PERIOD_TICKS == 0:
                        await self._kit.store.write(partial(forget_old, now_s=self._kit.clock.wall_s()))
                tick += 1
                await self.changed.wait(seen, TICK_S)

    async def _look(self, tasks: asyncio.TaskGroup) -> None:
        running = await self._kit.store.read(partial(list_running, limit=WAITING_LOOKED_AT_MAX))
        self.running = len(running)
        for batch, _ in running:
            work = self._works.get(batch.batch_id)
            if work is not None and batch.status is BatchStatus.CANCELLING:
                work.cancel()
        for batch, sealed_key in choose_active(running, frozenset(self._works), self._kit.clock.wall_s()):
            self._works[batch.batch_id] = None
            tasks.create_task(self._drive(batch, sealed_key), name=f"batch {batch.batch_id}")
        for work in list(self._works.values()):
            if work is not None:
                await work.save_progress()

    async def _drive(self, batch: Batch, sealed_key: bytes) -> None:
        """Bring one batch to its end, through whatever troubles of disk and database."""
        kit, delay_s = self._kit, TROUBLE_S_MIN
        try:
            while True:
                trouble = await self._try(batch, sealed_key)
                if trouble is None:
                    return
                if isinstance(trouble, Fault):
                    trouble = await self._fail(batch, trouble)
                if trouble is None:
                    return
                kit.log.warning("batch_waits", batch=batch.batch_id, reason=trouble.message)
                await asyncio.sleep(delay_s)
                delay_s = min(TROUBLE_S_MAX, delay_s * 2)
                batch = await self._reread(batch)
        finally:
            del self._works[batch.batch_id]
            self.changed.rise()

    async def _try(self, batch: Batch, sealed_key: bytes) -> MadangError | None:
        """Work at a batch; return what hinders it, None when it is over."""
        try:
            work = self._works[batch.batch_id] = Work(self._kit, batch, sealed_key)
            await work.run()
        except (Unavailable, Fault) as error:
            return error
        except ExceptionGroup as group:
            expected, bugs = group.split((Unavailable, Fault))
            if bugs is not None or expected is None:
                raise
            faults, _ = expected.split(Fault)
            return _first(faults or expected)
        return None

    async def _reread(self, batch: Batch) -> Batch:
        with contextlib.suppress(Unavailable):
            return await self._kit.store.read(partial(revise_batch, batch_id=batch.batch_id, change=lambda one: one))
        return batch

    async def _fail(self, batch: Batch, fault: MadangError) -> MadangError | None:
        """Give a batch up whose stored parts are damaged, said to its owner and in the log; return what hinders it."""
        self._kit.log.error("batch_damaged", batch=batch.batch_id, reason=str(fault))
        error = BatchError(code="storage_error", message="what this site stored of the batch is damaged")
        now_s = self._kit.clock.wall_s()

        def change(before: Batch) -> Batch:
            if before.status.is_over:
                return before
            return msgspec.structs.replace(before, stopped=error).become(BatchStatus.FAILED, now_s)

        try:
            await self._kit.store.write(partial(revise_batch, batch_id=batch.batch_id, change=change))
        except Unavailable as error:
            return error
        return None


def _first(group: ExceptionGroup[Any]) -> MadangError:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, MadangError)
    return found
