"""Durable means synced: the last byte of an answer leaves after the disk has said so, seen from outside the worker."""

import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.gateway.lab import CITY, Lab
from tests.gateway.raw import RawClient, chat_body, post
from tests.gateway.slow_sync_worker import SLOW_S
from tests.gateway.worker_process import WorkerProcess

pytestmark = pytest.mark.peer
FIRST_MARK = b"\r\n\r\n"
LAST_MARK = {True: b"\r\n0\r\n\r\n", False: b"}"}


class Slow:
    """A worker on a slow disk, and the syncs of its usage log so far."""

    def __init__(self, worker: WorkerProcess, told: Path) -> None:
        self.worker, self.told = worker, told

    def syncs_ns(self) -> list[int]:
        lines = [line.split() for line in self.told.read_text().splitlines()]
        return [int(at_ns) for name, at_ns in lines if name.startswith("w0-")]


@pytest.fixture
def slow(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    told = tmp_path / "syncs"
    monkeypatch.setitem(os.environ, "MADANG_TEST_SYNCS", str(told))
    site = lab.site()
    site.add_replica(lab.engine())
    site.write_feed()
    worker = WorkerProcess(site, module="tests.gateway.slow_sync_worker")
    try:
        yield Slow(worker.wait_ready(), told)
    finally:
        worker.kill()


@pytest.mark.parametrize("is_stream", [True, False])
def test_the_last_byte_leaves_after_the_sync(slow: Slow, is_stream: bool) -> None:
    before = len(slow.syncs_ns())
    assert before == 1, "the segment's own beginning"
    with closing(RawClient(slow.worker.site.connect())) as client:
        client.send(post(chat_body(stream=is_stream), CITY.key))
        seen = b""
        first_ns = 0
        while not seen.endswith(LAST_MARK[is_stream]):
            data = client.sock.recv(65536)
            assert data, f"closed after {seen!r}"
            seen += data
            last_ns = time.monotonic_ns()
            first_ns = first_ns or last_ns
    syncs_ns = slow.syncs_ns()
    assert len(syncs_ns) == before + 1, "one event, one sync"
    assert last_ns >= syncs_ns[-1], "the last byte waited for the disk"
    assert len(slow.worker.site.events()) == 1
    if is_stream:
        assert first_ns < syncs_ns[-1] - SLOW_S * 1e9 / 2, "and the first did not"
