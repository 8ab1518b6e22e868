"""The worker's usage log: an event is on disk before the last byte of its answer leaves.

Owns the segments `w<worker>-<boot hex>-<seq>.log` in the usage folder (format: `madang.wire.usage_log`) and the one
thread that writes them. Group commit: whatever waits is written with one write and made durable with one fdatasync,
then every waiter is told. The open segment carries an exclusive flock: the importer in the site process takes a
segment whose lock is free for finished, torn tail included.

A segment that saw an error is never written again, since the importer may have read past the point of the error:
it is closed as it is and a new one is opened once that works. Until then appends fail at once and the gateway
refuses work. Bounded: RECORDS_WAITING_MAX records.
"""

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from madang.core import Clock, ns_to_s
from madang.gateway.locks import take_lock
from madang.model import UsageEvent
from madang.runtime.files import sync_folder
from madang.wire.usage_log import MAGIC, encode_record

SEGMENT_BYTES_MAX = 16 * 1024 * 1024
RECORDS_WAITING_MAX = 16_384
RETRY_PERIOD_S = 1.0
"""How often a log that cannot be written is tried again."""

OnDurable = Callable[[str], None]
"""Told on the loop's thread: an empty text once the record is durable, else why it is not."""


class Disk(Protocol):
    """The calls that reach the disk; tests have one that blocks or is full."""

    def create(self, path: Path) -> int:
        """Create a file, locked for this process, and return its descriptor; OSError when it cannot be."""

    def append(self, descriptor: int, data: bytes) -> None:
        """Write all of `data` and make it durable; OSError when it is not."""

    def close(self, descriptor: int) -> None:
        """Close a file, which frees its lock."""

    def remove(self, path: Path) -> None:
        """Remove a file that holds no record."""


class SystemDisk:
    """The operating system's."""

    def create(self, path: Path) -> int:
        """Create a file, take its lock and make its name durable."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o640)
        try:
            take_lock(descriptor)
            sync_folder(path.parent)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def append(self, descriptor: int, data: bytes) -> None:
        """Write and fdatasync."""
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fdatasync(descriptor)

    def close(self, descriptor: int) -> None:
        """Close."""
        os.close(descriptor)

    def remove(self, path: Path) -> None:
        """Remove, if the folder allows; an empty segment left behind harms nobody."""
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


class UsageLog:
    """The log of one worker."""

    def __init__(
        self,
        folder: Path,
        worker: int,
        boot: str,
        *,
        call_soon: Callable[..., object],
        clock: Clock,
        observe_commit: Callable[[float], None],
        disk: Disk | None = None,
        segment_bytes_max: int = SEGMENT_BYTES_MAX,
        records_waiting_max: int = RECORDS_WAITING_MAX,
        retry_period_s: float = RETRY_PERIOD_S,
    ) -> None:
        """Make a log; `start` opens it.

        Args:
            folder: where segments go; must exist.
            worker: number of this worker.
            boot: hex that no earlier life of this worker used.
            call_soon: `loop.call_soon_threadsafe`.
            clock: measures commits.
            observe_commit: told the seconds from append to durability, on the loop's thread.
            disk: what reaches the disk.
            segment_bytes_max: a segment over it is followed by the next.
            records_waiting_max: more are refused.
            retry_period_s: how often a log that cannot be written is tried again.
        """
        self._folder = folder
        self._stem = f"w{worker}-{boot}"
        self._call_soon = call_soon
        self._clock = clock
        self._observe_commit = observe_commit
        self._disk = disk if disk is not None else SystemDisk()
        self._segment_bytes_max = segment_bytes_max
        self._records_waiting_max = records_waiting_max
        self._retry_period_s = retry_period_s
        self._wake = threading.Condition()
        self._waiting: list[tuple[bytes, OnDurable, int]] = []
        self._is_stopping = False
        self._failure = ""
        self._thread = threading.Thread(target=self._run, name="usage-log", daemon=True)
        # The thread's own; nobody else touches these.
        self._descriptor: int | None = None
        self._path = folder
        self._size = 0
        self._seq = 0

    @property
    def failure(self) -> str:
        """Why nothing can be logged now, naming path and reason; empty when all is well."""
        return self._failure

    def start(self) -> None:
        """Open the first segment; a folder that cannot be written shows in `failure`, and is tried again."""
        self._failure = self._open()
        self._thread.start()

    def append(self, event: UsageEvent, on_durable: OnDurable) -> None:
        """Queue an event; `on_durable` is told, later, on the loop's thread, exactly once."""
        record = encode_record(event)
        with self._wake:
            reason = self._failure
            if not reason and len(self._waiting) >= self._records_waiting_max:
                reason = f"{self._records_waiting_max} usage events wait for {self._folder}"
            if not reason:
                self._waiting.append((record, on_durable, self._clock.monotonic_ns()))
                if len(self._waiting) == 1:
                    self._wake.notify()
                return
        self._call_soon(on_durable, reason)

    def stop(self) -> None:
        """Write what waits, close the segment and end the thread."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        self._thread.join()

    # --- the thread

    def _run(self) -> None:
        while True:
            with self._wake:
                if not self._waiting and not self._is_stopping:
                    self._wake.wait(self._retry_period_s if self._failure else None)
                batch, self._waiting = self._waiting, []
                is_last = self._is_stopping
            if batch:
                self._commit(batch)
            elif self._descriptor is None and not is_last:
                self._failure = self._open()
            if is_last and not batch:
                self._shut()
                return

    def _commit(self, batch: list[tuple[bytes, OnDurable, int]]) -> None:
        reason = ""
        try:
            if self._descriptor is None:
                reason = self._failure or f"no segment is open in {self._folder}"
            else:
                data = b"".join(record for record, _, _ in batch)
                self._disk.append(self._descriptor, data)
                self._size += len(data)
        except OSError as error:
            reason = f"cannot write {self._path}: {error.strerror}"
            self._failure = reason
            self._shut()
        if not reason and self._size >= self._segment_bytes_max:
            self._rotate()
        self._call_soon(self._tell, batch, reason, self._clock.monotonic_ns())

    def _tell(self, batch: list[tuple[bytes, OnDurable, int]], reason: str, done_ns: int) -> None:
        """Tell the waiters; runs on the loop's thread."""
        for _, on_durable, appended_ns in batch:
            self._observe_commit(ns_to_s(done_ns - appended_ns))
            on_durable(reason)

    def _open(self) -> str:
        """Open the next segment and return an empty text, or why not.

        The magic is written at once, so that a full disk shows here and not at an event.
        """
        self._seq += 1
        path = self._folder / f"{self._stem}-{self._seq:06d}.log"
        descriptor: int | None = None
        try:
            descriptor = self._disk.create(path)
            self._disk.append(descriptor, MAGIC)
        except OSError as error:
            if descriptor is not None:
                self._disk.close(descriptor)
                self._disk.remove(path)
            return f"cannot write {path}: {error.strerror}"
        self._descriptor, self._path, self._size = descriptor, path, len(MAGIC)
        return ""

    def _rotate(self) -> None:
        """Go on in the next segment; the old one is closed only then, and serves on when there is no next."""
        old = self._descriptor
        assert old is not None
        if not self._open():
            self._disk.close(old)

    def _shut(self) -> None:
        if self._descriptor is not None:
            self._disk.close(self._descriptor)
            self._descriptor = None
