"""The usage log on its own: rotation, errors, the end of a life, and its bound."""

import errno
import fcntl
import os
import threading
from collections.abc import Iterator
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
        if self.append_error is not None:
            os.write(descriptor, data[:-3])
            raise self.append_error
        super().append(descriptor, data)


class Waiter:
    """Collects what appends were told; the log's `call_soon` runs it on the log's own thread."""

    def __init__(self) -> None:
        self.told: list[tuple[int, str]] = []

    def append(self, log: UsageLog, number: int) -> None:
        log.append(make_event(number), lambda reason: self.told.append((number, reason)))


def make_log(folder: Path, disk: SystemDisk, **more: Any) -> UsageLog:
    log = UsageLog(
        folder,
        0,
        "abc123",
        call_soon=lambda work, *arguments: work(*arguments),
        clock=SystemClock(),
        observe_commit=lambda _seconds: None,
        disk=disk,
        **more,
    )
    log.start()
    return log


@pytest.fixture
def disk() -> Iterator[FakeDisk]:
    disk = FakeDisk()
    yield disk
    disk.gate.set()


def read(folder: Path) -> list[tuple[str, list[str]]]:
    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        assert data[: len(MAGIC)] == MAGIC
        found.append((path.name, [event.event_id for event in decode_records(data[len(MAGIC) :])[0]]))
    return found


def test_segments_follow_each_other(tmp_path: Path, disk: FakeDisk) -> None:
    log, waiter = make_log(tmp_path, disk, segment_bytes_max=600), Waiter()
    for number in range(10):
        waiter.append(log, number)
        wait_until(lambda number=number: len(waiter.told) == number + 1, "it is durable")
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
    log.stop()
    assert {reason for _, reason in waiter.told} == {""}


def test_a_segment_that_saw_an_error_is_never_written_again(tmp_path: Path, disk: FakeDisk) -> None:
    log, waiter = make_log(tmp_path, disk, retry_period_s=0.02), Waiter()
    waiter.append(log, 0)
    wait_until(lambda: waiter.told, "the first is durable")
    disk.append_error = OSError(errno.ENOSPC, "No space left on device")
    waiter.append(log, 1)
    wait_until(lambda: len(waiter.told) == 2, "the second is told")
    assert "No space left" in waiter.told[1][1]
    assert str(tmp_path) in log.failure
    waiter.append(log, 2)
    assert waiter.told[2][1], "refused at once while nothing can be written"
    disk.append_error = None
    wait_until(lambda: not log.failure, "it recovers by itself")
    waiter.append(log, 3)
    wait_until(lambda: len(waiter.told) == 4, "the fourth is told")
    log.stop()
    assert waiter.told[3] == (3, "")
    files = read(tmp_path)
    assert [events for _, events in files] == [["e0"], ["e3"]]
    assert len(files) == 2, "segments without a record are not left behind"


def test_a_failed_rotation_goes_on_in_the_old_segment(tmp_path: Path, disk: FakeDisk) -> None:
    log, waiter = make_log(tmp_path, disk, segment_bytes_max=1), Waiter()
    disk.create_error = OSError(errno.EMFILE, "Too many open files")
    for number in range(3):
        waiter.append(log, number)
        wait_until(lambda number=number: len(waiter.told) == number + 1, "it is durable")
    log.stop()
    assert waiter.told == [(0, ""), (1, ""), (2, "")]
    assert [events for _, events in read(tmp_path)] == [["e0", "e1", "e2"]]


def test_the_end_writes_what_waits(tmp_path: Path, disk: FakeDisk) -> None:
    log, waiter = make_log(tmp_path, disk), Waiter()
    disk.gate.clear()
    for number in range(50):
        waiter.append(log, number)
    disk.gate.set()
    log.stop()
    assert [number for number, _ in waiter.told] == list(range(50))
    assert sum(len(events) for _, events in read(tmp_path)) == 50
    assert disk.appends <= 4, "magic, and at most a few groups"


def test_the_queue_is_bounded(tmp_path: Path, disk: FakeDisk) -> None:
    log, waiter = make_log(tmp_path, disk, records_waiting_max=5), Waiter()
    disk.gate.clear()
    waiter.append(log, 0)
    wait_until(lambda: not log._waiting, "the first is taken by the thread")
    for number in range(1, 8):
        waiter.append(log, number)
    refused = [number for number, reason in waiter.told if reason]
    assert refused == [6, 7]
    disk.gate.set()
    log.stop()
    assert sum(len(events) for _, events in read(tmp_path)) == 6
