"""The usage log on its own: rotation, errors, the end of a life, and its bound."""

import asyncio
import errno
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.lab import wait_until

from madang.core import EventId, KeyId, RequestId, ServiceName, SiteId, TenantId
from madang.gateway.usage_log import SystemDisk, UsageLog
from madang.model import UsageEvent
from madang.runtime.clock import SystemClock
from madang.wire.usage_log import MAGIC, decode_records


def make_event(number: int) -> UsageEvent:
    return UsageEvent(
        event_id=EventId(f"e{number}"),
        request_id=RequestId(f"r{number}"),
        attempt=1,
        tenant_id=TenantId("t"),
        key_id=KeyId("k"),
        service=ServiceName("s"),
        model="m",
        endpoint="/v1/chat/completions",
        entry_site=SiteId("daegu"),
        site=SiteId("daegu"),
    )


class FakeDisk(SystemDisk):
    """A disk that fails or waits when told, and counts."""

    def __init__(self) -> None:
        self.append_error: OSError | None = None
        self.create_error: OSError | None = None
        self.bug: Exception | None = None
        self.appends = 0
        self.gate = threading.Event()
        self.gate.set()

    def create(self, path: Path) -> int:
        if self.create_error is not None:
            raise self.create_error
        return super().create(path)

    def append(self, descriptor: int, data: bytes) -> None:
        self.gate.wait(10)
        self.appends += 1
        if self.bug is not None:
            raise self.bug
        if self.append_error is not None:
            os.write(descriptor, data[:-3])
            raise self.append_error
        super().append(descriptor, data)


class Bench:
    """A log on a loop that runs on a thread of its own, and what its appends were told."""

    def __init__(self, folder: Path, disk: SystemDisk, **more: Any) -> None:
        self.told: list[tuple[int, str]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.log = UsageLog(
            folder,
            0,
            "abc123",
            loop=self._loop,
            clock=SystemClock(),
            observe_commit=lambda _seconds: None,
            disk=disk,
            **more,
        )
        self._do(self.log.start)

    def _do(self, work: Callable[[], None]) -> None:
        async def run() -> None:
            work()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    def append(self, *numbers: int) -> None:
        """Append events in one go, so that no commit begins between them."""

        def work() -> None:
            for number in numbers:
                self.log.append(make_event(number), lambda reason, number=number: self.told.append((number, reason)))

        self._do(work)

    def stop(self) -> None:
        self._do(self.log.stop)
        self._do(lambda: None)  # what the thread told last has been heard after this
        self.close()

    def close(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


MakeBench = Callable[..., Bench]


@pytest.fixture
def disk() -> Iterator[FakeDisk]:
    disk = FakeDisk()
    yield disk
    disk.gate.set()


@pytest.fixture
def make_bench(tmp_path: Path, disk: FakeDisk) -> Iterator[MakeBench]:
    made: list[Bench] = []

    def make(**more: Any) -> Bench:
        made.append(Bench(tmp_path, disk, **more))
        return made[-1]

    yield make
    disk.gate.set()
    for bench in made:
        bench.close()


def read(folder: Path) -> list[tuple[str, list[str]]]:
    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        assert data[: len(MAGIC)] == MAGIC
        found.append((path.name, [event.event_id for event in decode_records(data[len(MAGIC) :])[0]]))
    return found


def test_segments_follow_each_other(tmp_path: Path, make_bench: MakeBench) -> None:
    bench = make_bench(segment_bytes_max=600)
    for number in range(10):
        bench.append(number)
        wait_until(lambda number=number: len(bench.told) == number + 1, "it is durable")
    names = [name for name, _ in read(tmp_path)]
    assert len(names) > 2
    assert names == [f"w0-abc123-{number + 1:06d}.log" for number in range(len(names))]
    assert [event for _, events in read(tmp_path) for event in events] == [f"e{number}" for number in range(10)]
    locked = []
    for name in names:
        with (tmp_path / name).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                locked.append(name)
    assert locked == names[-1:], "only the open segment is held"
    bench.stop()
    assert {reason for _, reason in bench.told} == {""}


def test_a_segment_that_saw_an_error_is_never_written_again(
    tmp_path: Path, disk: FakeDisk, make_bench: MakeBench
) -> None:
    bench = make_bench(retry_period_s=0.02)
    bench.append(0)
    wait_until(lambda: bench.told, "the first is durable")
    disk.append_error = OSError(errno.ENOSPC, "No space left on device")
    bench.append(1)
    wait_until(lambda: len(bench.told) == 2, "the second is told")
    assert "No space left" in bench.told[1][1]
    assert str(tmp_path) in bench.log.failure
    bench.append(2)
    wait_until(lambda: len(bench.told) == 3, "the third is told")
    assert bench.told[2][1], "refused while nothing can be written"
    disk.append_error = None
    wait_until(lambda: not bench.log.failure, "it recovers by itself")
    bench.append(3)
    wait_until(lambda: len(bench.told) == 4, "the fourth is told")
    bench.stop()
    assert bench.told[3] == (3, "")
    files = read(tmp_path)
    assert [events for _, events in files] == [["e0"], ["e3"]]
    assert len(files) == 2, "segments without a record are not left behind"


def test_a_folder_that_cannot_be_written_at_first_is_tried_again(disk: FakeDisk, make_bench: MakeBench) -> None:
    disk.create_error = OSError(errno.EACCES, "Permission denied")
    bench = make_bench(retry_period_s=0.02)
    assert "Permission denied" in bench.log.failure
    disk.create_error = None
    wait_until(lambda: not bench.log.failure, "it recovers by itself")
    bench.append(0)
    wait_until(lambda: bench.told, "it is told")
    bench.stop()
    assert bench.told == [(0, "")]


def test_a_failed_rotation_goes_on_in_the_old_segment(tmp_path: Path, disk: FakeDisk, make_bench: MakeBench) -> None:
    bench = make_bench(segment_bytes_max=1)
    disk.create_error = OSError(errno.EMFILE, "Too many open files")
    for number in range(3):
        bench.append(number)
        wait_until(lambda number=number: len(bench.told) == number + 1, "it is durable")
    bench.stop()
    assert bench.told == [(0, ""), (1, ""), (2, "")]
    assert [events for _, events in read(tmp_path)] == [["e0", "e1", "e2"]]


def test_the_end_writes_what_waits(tmp_path: Path, disk: FakeDisk, make_bench: MakeBench) -> None:
    bench = make_bench()
    disk.gate.clear()
    bench.append(*range(50))
    disk.gate.set()
    bench.stop()
    assert [number for number, _ in bench.told] == list(range(50))
    assert sum(len(events) for _, events in read(tmp_path)) == 50
    assert disk.appends <= 4, "magic, and at most a few groups"


def test_a_bug_in_the_thread_is_told_and_nothing_is_taken_from_then_on(disk: FakeDisk, make_bench: MakeBench) -> None:
    died: list[BaseException] = []
    bench = make_bench(on_death=died.append)
    disk.bug = RuntimeError("a bug, for the test")
    bench.append(0)
    wait_until(lambda: died, "the death is told")
    bench.append(1)
    wait_until(lambda: bench.told, "the next one is refused, not kept waiting")
    assert died == [disk.bug]
    assert bench.told[0][0] == 1
    assert "a bug, for the test" in bench.told[0][1]
    bench.stop()


def test_the_queue_is_bounded(tmp_path: Path, disk: FakeDisk, make_bench: MakeBench) -> None:
    bench = make_bench(records_waiting_max=5)
    disk.gate.clear()
    bench.append(0)
    wait_until(lambda: not bench.log._waiting, "the first is taken by the thread")
    bench.append(*range(1, 8))
    wait_until(lambda: len(bench.told) == 2, "two are refused at once")
    assert [number for number, reason in bench.told if reason] == [6, 7]
    disk.gate.set()
    bench.stop()
    assert sum(len(events) for _, events in read(tmp_path)) == 6
