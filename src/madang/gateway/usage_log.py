"""The worker's usage log: an event is on disk before the last byte of its answer leaves.

Owns the segments `w<worker>-<boot hex>-<seq>.log` in the usage folder (format: `madang.wire.usage_log`) and the one
thread that writes them. Group commit: whatever waits is written with one write and made durable with one fdatasync,
then every waiter is told. Commits begin at least COMMIT_GAP_S apart: an event that comes alone is written at once,
and under load a group is worth its price. The open segment carries an exclusive flock: the importer in the site
process takes a segment whose lock is free for finished, torn tail included.

A segment that saw an error is never written again, since the importer may have read past the point of the error:
it is closed as it is and a new one is opened once that works. Until then appends fail at once and the gateway
refuses work. Bounded: RECORDS_WAITING_MAX records.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol

from madang.core import Clock, ns_to_s
from madang.gateway.locks import take_lock
from madang.model import UsageEvent
from madang.runtime.files import sync_folder
from madang.wire.usage_log import MAGIC, encode_record

SEGMENT_BYTES_MAX = 16 * 1024 * 1024
RECORDS_WAITING_MAX = 16_384
COMMIT_GAP_S = 0.004
"""Least time from the beginning of one commit to that of the next. Each costs some 100 us of CPU, most of it for two
changes of thread; without the gap it was a quarter of a request's whole cost at 64 connections."""
RETRY_PERIOD_S = 1.0
"""How often a log that cannot be written is tried again."""

OnDurable = Callable[[str], None]
"""Told on the loop's thread: an empty text once the record is durable, else why it is not."""


class Loop(Protocol):
    """What the log needs of an event loop."""

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: object) -> object:
        """Call on the loop's thread; the log's own thread asks for it."""

    def call_later(self, delay: float, callback: Callable[..., object], *args: object) -> object:
        """Call in `delay` seconds."""


Record = tuple[bytes, "OnDurable", int]
_POKE: tuple[Record, ...] = ()
"""A group that only lets the rider write."""


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
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
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
        loop: Loop,
        clock: Clock,
        observe_commit: Callable[[float], None],
        disk: Disk | None = None,
        rider: Callable[[], None] = lambda: None,
        segment_bytes_max: int = SEGMENT_BYTES_MAX,
        records_waiting_max: int = RECORDS_WAITING_MAX,
        on_death: Callable[[BaseException], None] | None = None,
        retry_period_s: float = RETRY_PERIOD_S,
    ) -> None:
        """Make a log; `start` opens it.

        Args:
            folder: where segments go; must exist.
            worker: number of this worker.
            boot: hex that no earlier life of this worker used.
            loop: everything but `stop` is called on its thread.
            clock: measures commits.
            observe_commit: told the seconds from append to durability, on the loop's thread.
            disk: what reaches the disk.
            rider: called on the log's thread before each commit, to write what must be there by then; never raises.
            segment_bytes_max: a segment over it is followed by the next.
            records_waiting_max: more are refused.
            on_death: told on the loop's thread when the log's thread died of a bug: nothing is durable from then on, so
                the worker must end.
            retry_period_s: how often a log that cannot be written is tried again.
        """
        self._folder = folder
        self._stem = f"w{worker}-{boot}"
        self._loop = loop
        self._clock = clock
        self._observe_commit = observe_commit
        self._disk = disk if disk is not None else SystemDisk()
        self._segment_bytes_max = segment_bytes_max
        self._records_waiting_max = records_waiting_max
        self._retry_period_s = retry_period_s
        self._rider = rider
        self._on_death = on_death
        self._failure = ""
        # The loop's own: what waits, whether a commit is under way or due, and when the last began.
        self._waiting: list[Record] = []
        self._is_busy = False
        self._begun_ns = 0
        # The way to the thread: a group to commit, an empty one to try to open a segment, None to end.
        self._groups: SimpleQueue[Sequence[Record] | None] = SimpleQueue()
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
        if self._failure:
            self._retry_later()

    def append(self, event: UsageEvent, on_durable: OnDurable) -> None:
        """Queue an event; `on_durable` is told, later, on the loop's thread, exactly once."""
        record = encode_record(event)
        reason = self._failure
        if not reason and len(self._waiting) >= self._records_waiting_max:
            reason = f"{self._records_waiting_max} usage events wait for {self._folder}"
        if reason:
            self._loop.call_later(0, on_durable, reason)
            return
        now_ns = self._clock.monotonic_ns()
        self._waiting.append((record, on_durable, now_ns))
        if not self._is_busy:
            self._is_busy = True
            self._loop.call_later(max(0.0, COMMIT_GAP_S - ns_to_s(now_ns - self._begun_ns)), self._send)

    def poke(self) -> None:
        """Let the rider write soon, whether there is something to commit or not."""
        self._groups.put(_POKE)

    def stop(self) -> None:
        """Write what waits, close the segment and end the thread; what waited is told when the loop runs on."""
        if self._waiting:
            self._groups.put(self._waiting)
            self._waiting = []
        self._groups.put(None)
        self._thread.join()

    def _send(self) -> None:
        """Hand what waits to the thread."""
        if not self._waiting:
            self._is_busy = False  # stopped meanwhile
            return
        group, self._waiting = self._waiting, []
        self._begun_ns = self._clock.monotonic_ns()
        self._groups.put(group)

    def _tell(self, group: Sequence[Record], reason: str, done_ns: int) -> None:
        """Tell a group's waiters, and send the next group when its time has come."""
        if reason:
            self._retry_later()
        if self._waiting:
            self._loop.call_later(max(0.0, COMMIT_GAP_S - ns_to_s(done_ns - self._begun_ns)), self._send)
        else:
            self._is_busy = False
        for _, on_durable, appended_ns in group:
            self._observe_commit(ns_to_s(done_ns - appended_ns))
            on_durable(reason)

    def _retry_later(self) -> None:
        self._loop.call_later(self._retry_period_s, self._groups.put, [])

    # --- the thread

    def _run(self) -> None:
        try:
            self._write_groups()
        except BaseException as error:
            self._failure = f"the usage log of {self._folder} died: {error!r}"
            if self._on_death is None:
                raise
            self._loop.call_soon_threadsafe(self._on_death, error)

    def _write_groups(self) -> None:
        while (group := self._groups.get()) is not None:
            self._rider()
            if group:
                reason = self._commit(group)
                self._loop.call_soon_threadsafe(self._tell, group, reason, self._clock.monotonic_ns())
            elif self._descriptor is None and group is not _POKE:
                self._failure = self._open()
                if self._failure:
                    self._loop.call_soon_threadsafe(self._retry_later)
        self._rider()
        self._shut()

    def _commit(self, group: Sequence[Record]) -> str:
        """Make a group durable; returns why it is not, or nothing."""
        if self._descriptor is None:
            return self._failure or f"no segment is open in {self._folder}"
        try:
            data = b"".join(record for record, _, _ in group)
            self._disk.append(self._descriptor, data)
            self._size += len(data)
        except OSError as error:
            self._failure = f"cannot write {self._path}: {error.strerror}"
            self._shut()
            return self._failure
        if self._size >= self._segment_bytes_max:
            self._rotate()
        return ""

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
