"""The worker's access records: who asked for what, when and from where; noted by the loop, written by the log's thread.

Owns what a worker notes of each tenant's request, the counting together of refusals, and the segments
`w<worker>-<boot hex>-<seq>.acc` in the access folder (format: `madang.wire.access_log`). Refuses to see bodies, and to
seal or to remove what was written: the site process does.

A request is noted when its answer begins; a completed one before its usage event is made durable. The usage log's
thread writes what was noted before each of its commits, and once a second: so the event loop never writes, and a
worker that is killed loses no record of an answer that was completed. Refusals of one kind from one address are written
at once the first time, then counted and written once a minute, so that guessing keys fills no disk.

Bounded: RECORDS_WAITING_MAX records, REFUSERS_MAX kinds of refusal; over it refusals are counted under the address `*`.
"""

import os
from collections import deque
from pathlib import Path

from madang.core import Clock, RequestId, ns_to_s
from madang.gateway.feed import Caller
from madang.gateway.locks import take_lock
from madang.gateway.usage_log import Disk, SystemDisk
from madang.policy.residency import HANDLING
from madang.runtime.files import sync_folder
from madang.wire.access_log import MAGIC, RECORDS_PER_CHUNK_MAX, RecordTuple, encode_chunk

SEGMENT_BYTES_MAX = 8 * 1024 * 1024
SEGMENT_LIFE_S = 3600.0
"""A segment is handed to the site process, which seals it, after so long at the latest."""
RECORDS_WAITING_MAX = 65_536
REFUSERS_MAX = 4096
COUNTED_S = 60.0
COUNTED_STATUSES = frozenset((401, 403, 429))
"""Refusals that come in bursts."""
_SAMPLED = frozenset(name for name, rule in HANDLING.items() if not rule.is_every_access_recorded)
OVERFLOW_ADDRESS = "*"
FIELD_CHARS_MAX = 200


class AccessDisk(SystemDisk):
    """The operating system's, for files that only their owner reads and that nobody waits for."""

    def create(self, path: Path) -> int:
        """Create a file with mode 0600, take its lock and make its name durable."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            take_lock(descriptor)
            sync_folder(path.parent)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def append(self, descriptor: int, data: bytes) -> None:
        """Write; the site process makes it durable every few seconds."""
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]


class AccessNote:
    """What is known of a request before its answer; told once how it was answered.

    Attributes:
        service: what was asked for, once that is known to exist.
    """

    __slots__ = ("_address", "_at_s", "_endpoint", "_log", "_request_id", "_who", "service")

    def __init__(
        self, log: "AccessLog", at_s: float, request_id: RequestId, who: Caller, address: str, endpoint: str
    ) -> None:
        self._log = log
        self._at_s = at_s
        self._request_id = request_id
        self._who = who
        self._address = address
        self._endpoint = endpoint
        self.service = ""

    def tell(self, status: int) -> None:
        """Write down that the request was answered with `status`."""
        who = self._who
        self._log.add(
            (
                int(self._at_s * 1000),
                self._request_id,
                who.tenant_id,
                who.project_id,
                who.key_id,
                who.data_class,
                self._address,
                self._endpoint,
                self.service,
                status,
                1,
                0,
            )
        )


class _Refusals:
    """Refusals alike, after the first of them."""

    __slots__ = ("count", "first", "last_ms", "until_ns")

    def __init__(self, first: RecordTuple, until_ns: int) -> None:
        self.first = first
        self.until_ns = until_ns
        self.count = 0
        self.last_ms = first[0]


class AccessLog:
    """The access records of one worker."""

    def __init__(
        self,
        folder: Path,
        worker: int,
        boot: str,
        *,
        clock: Clock,
        open_ratio: float = 1.0,
        disk: Disk | None = None,
        segment_bytes_max: int = SEGMENT_BYTES_MAX,
        records_waiting_max: int = RECORDS_WAITING_MAX,
    ) -> None:
        """Make a log; nothing is opened before the first record.

        Args:
            folder: where segments go; must exist.
            worker: number of this worker.
            boot: hex that no earlier life of this worker used.
            clock: time.
            open_ratio: share of requests for data of class `open` that is written down; all others always are.
            disk: what reaches the disk.
            segment_bytes_max: a segment over it is followed by the next.
            records_waiting_max: more are lost, counted and said; admission is closed long before.
        """
        self._folder = folder
        self._stem = f"w{worker}-{boot}"
        self._clock = clock
        self._open_limit = round(open_ratio * 2**32)
        self._disk = disk if disk is not None else AccessDisk()
        self._segment_bytes_max = segment_bytes_max
        self._records_waiting_max = records_waiting_max
        self._waiting: deque[RecordTuple] = deque()
        self._refusals: dict[tuple[object, ...], _Refusals] = {}
        self.failure = ""
        self.lost = 0
        self.written = 0
        # The thread's own.
        self._descriptor: int | None = None
        self._path = folder
        self._size = 0
        self._seq = 0
        self._opened_ns = 0

    # --- the loop's side

    def open(self, request_id: RequestId, who: Caller, address: str, endpoint: str) -> AccessNote:
        """Return a note of a request that begins now."""
        return AccessNote(self, self._clock.wall_s(), request_id, who, address, endpoint)

    def add(self, record: RecordTuple) -> None:
        """Take a record; a refusal may be counted with others."""
        if record[9] in COUNTED_STATUSES:
            self.refuse(record)
        elif record[5] not in _SAMPLED or int(record[1][-8:], 16) < self._open_limit:
            waiting = self._waiting
            if len(waiting) < self._records_waiting_max:
                waiting.append(record)
            else:
                self.lost += 1

    def refuse(self, record: RecordTuple) -> None:
        """Take a refusal: the first of its kind in a minute is written, the others are counted."""
        kind = record[2:10]
        known = self._refusals.get(kind)
        if known is None and len(self._refusals) >= REFUSERS_MAX:
            kind = ("", "", "", "", OVERFLOW_ADDRESS, "", "", record[9])
            record = (record[0], record[1], *kind, record[10], record[11])
            known = self._refusals.get(kind)
        if known is not None:
            known.count += 1
            known.last_ms = record[0]
            return
        self._refusals[kind] = _Refusals(record, self._clock.monotonic_ns() + round(COUNTED_S * 1e9))
        self._put(record)

    def refuse_unknown(self, request_id: str, who: tuple[str, str], address: str, endpoint: str, status: int) -> None:
        """Take the refusal of a request whose sender was not accepted; `who` is tenant and key where they are known."""
        at_ms = int(self._clock.wall_s() * 1000)
        endpoint = endpoint[:FIELD_CHARS_MAX]
        self.refuse((at_ms, request_id, who[0], "", who[1], "", address, endpoint, "", status, 1, 0))

    def tick(self) -> bool:
        """Write down refusals that were counted for a minute; return whether the thread has something to do."""
        now_ns = self._clock.monotonic_ns()
        for kind in [kind for kind, one in self._refusals.items() if one.until_ns <= now_ns]:
            self._flush(self._refusals.pop(kind))
        return bool(self._waiting) or (self._descriptor is not None and self._is_old())

    def stop(self) -> None:
        """Write down what was counted; the thread's last `write` follows."""
        for one in self._refusals.values():
            self._flush(one)
        self._refusals.clear()

    def _flush(self, one: _Refusals) -> None:
        if one.count:
            self._put((*one.first[:10], one.count, one.last_ms))

    def _put(self, record: RecordTuple) -> None:
        if len(self._waiting) >= self._records_waiting_max:
            self.lost += 1
            return
        self._waiting.append(record)

    # --- the thread's side

    def write(self) -> None:
        """Write what was noted; called by the usage log's thread, before it commits."""
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), RECORDS_PER_CHUNK_MAX))]
            if not self._append(batch):
                self._waiting.extendleft(reversed(batch))
                return
            self.written += len(batch)
        if self._descriptor is not None and (self._size >= self._segment_bytes_max or self._is_old()):
            self.close()

    def close(self) -> None:
        """Close the segment: the site process may seal it."""
        if self._descriptor is not None:
            self._disk.close(self._descriptor)
            self._descriptor = None

    def _append(self, batch: list[RecordTuple]) -> bool:
        try:
            if self._descriptor is None:
                self._open()
            assert self._descriptor is not None
            data = encode_chunk(batch)
            self._disk.append(self._descriptor, data)
        except OSError as error:
            self.failure = f"cannot write {self._path}: {error.strerror}"
            self.close()  # what was written of the chunk is a torn end, which readers know
            return False
        self._size += len(data)
        self.failure = ""
        return True

    def _open(self) -> None:
        self._seq += 1
        self._path = self._folder / f"{self._stem}-{self._seq:06d}.acc"
        descriptor = self._disk.create(self._path)
        try:
            self._disk.append(descriptor, MAGIC)
        except OSError:
            self._disk.close(descriptor)
            self._disk.remove(self._path)
            raise
        self._descriptor, self._size, self._opened_ns = descriptor, len(MAGIC), self._clock.monotonic_ns()

    def _is_old(self) -> bool:
        return ns_to_s(self._clock.monotonic_ns() - self._opened_ns) >= SEGMENT_LIFE_S
