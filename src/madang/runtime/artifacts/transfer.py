"""Fetches one file in chunks: the threads around `madang.machine.transfer`.

Owns receiving, hashing, writing and syncing, which overlap. Refuses to choose chunks and sources (the machine does) and
to trust any source: no byte is written before its chunk's hash was found right, and no file leaves here before the hash
of the whole was. Called by nodes and sites from a thread of theirs, since it blocks.

    receiver (one for each source that is asked)   socket → buffer
    two checkers                                   buffer → SHA-256 → file
    follower                                       file, in order → SHA-256 of the whole
    flusher                                        fdatasync, then the journal, every 64 MiB or second

Buffers are a fixed few, so a slow disk slows the sources down instead of filling memory.
"""

import contextlib
import hashlib
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from madang.core import Clock, Entropy, Rejected, Unavailable
from madang.machine.transfer import (
    Ask,
    Began,
    Blamed,
    ChunkStored,
    ChunkWrong,
    Effect,
    Event,
    Finished,
    GaveUp,
    SourceBroke,
    SourceEnded,
    Ticked,
    Transfer,
)
from madang.runtime.artifacts.chunk_file import ChunkFile
from madang.runtime.artifacts.limiter import RateLimiter
from madang.runtime.artifacts.ranges import READ_TIMEOUT_S, Answer, ChunkSource, RangeClient
from madang.runtime.artifacts.whole_hash import WholeHash
from madang.wire.artifacts import FileChunks

BUFFERS = 6
"""For each transfer: one that fills, two that are hashed, and some between; 24 MiB in all."""
FLUSH_BYTES = 64 * 1024 * 1024
FLUSH_PERIOD_S = 1.0
_LIMITED_PIECE_BYTES = 128 * 1024
_CHECKERS = 2
_LOOK_S = 0.2
_REPAIRS_MAX = 3
_JOIN_S = 5.0


@dataclass(frozen=True)
class BadChunk:
    """A wrong chunk, as it is told: which file, which chunk, which source."""

    name: str
    sha256: str
    chunk: int
    source: str


class ChunkWatch:
    """Told what comes of sources, from the threads of transfers; this one does not listen."""

    def judged(self, sha256: str, source: str, size_bytes: int, *, is_right: bool) -> None:
        """Note a chunk of a file that came from a source, and whether it is what the manifest says."""

    def broke(self, source: str) -> None:
        """Note that a source failed, or refused."""


@dataclass(frozen=True)
class TransferKit:
    """What transfers of one program share.

    Attributes:
        at_once: sources of one file that are asked at the same time.
        patience_s: how long nothing may come before a transfer gives up; what is finished stays.
        on_bad: told the first time that a source sends a wrong chunk, from a thread of the transfer.
        watch: told of every chunk and every failure, for counts.
    """

    clock: Clock
    entropy: Entropy
    limiter: RateLimiter
    at_once: int = 1
    patience_s: float = 60.0
    read_timeout_s: float = READ_TIMEOUT_S
    on_bad: Callable[[BadChunk], None] = field(default=lambda _bad: None)
    watch: ChunkWatch = field(default_factory=ChunkWatch)


def fetch_chunks(
    file: FileChunks,
    sources: Sequence[ChunkSource],
    folder: Path,
    kit: TransferKit,
    *,
    cancel: threading.Event,
    report: Callable[[int], None] = lambda _done_bytes: None,
) -> Path:
    """Return the path of the whole file's bytes in `folder`, every one of them verified and durable.

    What an earlier call finished is not fetched again. The caller holds the lock of the file, moves the result and
    removes the journal afterwards, so that a kill in between costs nothing.

    Args:
        file: what is wanted, from a manifest that is believed.
        sources: where it can be had, the preferred one first.
        folder: of unfinished files.
        kit: what transfers share.
        cancel: set it to give up within about a second.
        report: called with the bytes that are there, from this thread.

    Raises:
        Unavailable: cancelled, the disk is full, or no source gave what is missing; names each source's failure.
    """
    chunk_file = ChunkFile(folder, file)
    try:
        for _ in range(_REPAIRS_MAX):
            found = _Run(chunk_file, sources, kit, cancel, report).run()
            if found == file.sha256:
                return chunk_file.data_path
            # Every chunk was right when it came, so the disk has lost some; or the manifest does not fit itself.
            wrong = chunk_file.find_wrong()
            if not wrong:
                chunk_file.remove()
                raise Unavailable(
                    f"{file.name}: its chunks are what the manifest says, and the whole is {found}, not {file.sha256}",
                    next_step="the manifest is wrong: ask whoever signed it",
                )
            for index in wrong:
                kit.on_bad(BadChunk(file.name, file.sha256, index, "disk"))
                kit.watch.judged(file.sha256, "disk", file.span_of(index)[1], is_right=False)
            chunk_file.forget(wrong)
        raise Unavailable(
            f"{file.name}: the disk of {folder} lost chunks {_REPAIRS_MAX} times", next_step="replace the disk"
        )
    finally:
        chunk_file.close()


@dataclass(frozen=True)
class _Filled:
    source: int
    chunk: int
    buffer: bytearray
    size_bytes: int


class _Run:
    """One pass over what is missing."""

    def __init__(
        self,
        chunk_file: ChunkFile,
        sources: Sequence[ChunkSource],
        kit: TransferKit,
        cancel: threading.Event,
        report: Callable[[int], None],
    ) -> None:
        self._chunks = chunk_file
        self._file = chunk_file.file
        self._kit = kit
        self._cancel = cancel
        self._report = report
        self._sources = sources
        self._events: queue.SimpleQueue[Event | BaseException] = queue.SimpleQueue()
        self._filled: queue.SimpleQueue[_Filled | None] = queue.SimpleQueue()
        self._buffers: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
        for _ in range(min(BUFFERS, self._file.chunks + 1)):
            self._buffers.put(bytearray(self._file.chunk_bytes))
        self._receivers: dict[int, _Receiver] = {}
        self._stopped = threading.Event()
        self._whole = WholeHash(chunk_file)
        self._done_bytes = sum(self._file.span_of(index)[1] for index in chunk_file.finished)
        self._unflushed_bytes = 0
        self._flush_due = threading.Event()

    def run(self) -> str:
        """Return the SHA-256 of the whole file once every chunk is there."""
        machine = Transfer(
            self._file.chunks,
            self._chunks.finished,
            len(self._sources),
            at_once=self._kit.at_once,
            patience_s=self._kit.patience_s,
        )
        threads = [threading.Thread(target=self._guard, args=(self._check,), name="check") for _ in range(_CHECKERS)]
        threads.append(threading.Thread(target=self._guard, args=(self._flush,), name="flush"))
        threads.append(threading.Thread(target=self._guard, args=(self._whole.follow,), name="hash-whole"))
        for thread in threads:
            thread.start()
        try:
            self._drive(machine)
            self._end_receivers()
            return self._wait_for_whole()
        finally:
            self._stopped.set()
            self._whole.stop()
            self._flush_due.set()
            self._end_receivers()
            for _ in range(_CHECKERS):
                self._filled.put(None)
            for thread in threads:
                thread.join()
            self._chunks.flush()

    def _wait_for_whole(self) -> str:
        while (digest := self._whole.result(_LOOK_S)) is None:
            if self._cancel.is_set():
                raise Unavailable("the fetch was cancelled")
            with contextlib.suppress(queue.Empty):
                late = self._events.get_nowait()
                if isinstance(late, BaseException):
                    raise late
        return digest

    def _drive(self, machine: Transfer) -> None:
        """Feed the machine until it is over; raises Unavailable when it gave up or is not wanted any more."""
        event: Event = Began()
        while True:
            effects = machine.step(event, self._kit.clock.monotonic_ns(), self._kit.entropy.seed64())
            for effect in effects:
                self._perform(effect)
            self._report(self._done_bytes)
            if machine.is_over:
                return
            event = self._next_event(machine)

    def _next_event(self, machine: Transfer) -> Event:
        while True:
            if self._cancel.is_set():
                raise Unavailable("the fetch was cancelled")
            wake = machine.wake_ns()
            now_ns = self._kit.clock.monotonic_ns()
            if wake is not None and wake <= now_ns:
                return Ticked()
            wait_s = _LOOK_S if wake is None else min(_LOOK_S, (wake - now_ns) / 1e9)
            try:
                event = self._events.get(timeout=wait_s)
            except queue.Empty:
                continue
            if isinstance(event, BaseException):
                raise event
            if isinstance(event, ChunkStored):
                self._note(event.chunk)
            return event

    def _note(self, chunk: int) -> None:
        size_bytes = self._file.span_of(chunk)[1]
        self._done_bytes += size_bytes
        self._unflushed_bytes += size_bytes
        self._whole.see(chunk)
        if self._unflushed_bytes >= FLUSH_BYTES:
            self._unflushed_bytes = 0
            self._flush_due.set()

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Ask(source, first, count):
                receiver = self._receivers.get(source)
                if receiver is None:
                    receiver = self._receivers[source] = _Receiver(self, source, self._sources[source])
                receiver.ask(first, count)
            case Blamed(source, chunk):
                self._kit.on_bad(BadChunk(self._file.name, self._file.sha256, chunk, self._sources[source].name))
                # What else it would send can be had from a better one.
                self._receivers[source].leave()
            case GaveUp(reasons):
                words = [_name(source, reason) for source, reason in zip(self._sources, reasons, strict=True)]
                raise Unavailable(
                    f"{self._file.name}: {self._done_bytes} of {self._file.size_bytes} bytes are here "
                    "and no source gives the rest; " + "; ".join(words or ["it has no source"]),
                    retry_after_s=30.0,
                )
            case Finished():
                pass

    def _end_receivers(self) -> None:
        for receiver in self._receivers.values():
            receiver.end()
        for receiver in self._receivers.values():
            # One that waits for a name to be resolved cannot be ended; it holds nothing that anybody else needs.
            receiver.thread.join(_JOIN_S)
        self._receivers.clear()

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # handed to the thread that drives, which raises it
            self._events.put(error)

    def _check(self) -> None:
        while (item := self._filled.get()) is not None:
            data = memoryview(item.buffer)[: item.size_bytes]
            is_right = hashlib.sha256(data).hexdigest() == self._file.chunk_sha256s[item.chunk]
            if is_right:
                self._chunks.write(item.chunk, data)
            data.release()
            self._buffers.put(item.buffer)
            source = self._sources[item.source].name
            self._kit.watch.judged(self._file.sha256, source, item.size_bytes, is_right=is_right)
            kind = ChunkStored if is_right else ChunkWrong
            self._events.put(kind(item.source, item.chunk))

    def _flush(self) -> None:
        while not self._stopped.is_set():
            self._flush_due.wait(FLUSH_PERIOD_S)
            self._flush_due.clear()
            self._chunks.flush()

    # What receivers use

    def take_buffer(self) -> bytearray | None:
        """Return a free buffer, or None when the transfer ends."""
        while not self._stopped.is_set() and not self._cancel.is_set():
            with contextlib.suppress(queue.Empty):
                return self._buffers.get(timeout=_LOOK_S)
        return None

    def give_back(self, buffer: bytearray) -> None:
        """Return a buffer that was not filled."""
        self._buffers.put(buffer)

    def fill(self, item: _Filled) -> None:
        """Hand a whole chunk over."""
        self._filled.put(item)

    def tell(self, event: Event) -> None:
        """Say what came of an Ask."""
        self._events.put(event)

    def fail(self, error: BaseException) -> None:
        """Let the thread that drives raise what a receiver could not handle."""
        self._events.put(error)

    @property
    def kit(self) -> TransferKit:
        """Return what transfers share."""
        return self._kit

    @property
    def file(self) -> FileChunks:
        """Return what is fetched."""
        return self._file

    def wait(self, wait_s: float) -> bool:
        """Sleep; return whether the transfer ended meanwhile."""
        return self._stopped.wait(wait_s)


class _Receiver:
    """The thread that reads from one source."""

    def __init__(self, run: _Run, index: int, source: ChunkSource) -> None:
        self._run = run
        self._index = index
        self._client = RangeClient(source, read_timeout_s=run.kit.read_timeout_s)
        self._asks: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()
        self._is_left = threading.Event()
        self._is_ended = threading.Event()
        self._came = 0
        self.thread = threading.Thread(target=self._work, name="receive", daemon=True)
        self.thread.start()

    def ask(self, first: int, count: int) -> None:
        """Fetch consecutive chunks."""
        self._is_left.clear()
        self._asks.put((first, count))

    def leave(self) -> None:
        """Break off what is being fetched."""
        self._is_left.set()

    def end(self) -> None:
        """End the thread, in the middle of a read too."""
        self._is_ended.set()
        self._is_left.set()
        self._client.abort()
        self._asks.put(None)

    def _work(self) -> None:
        run = self._run
        try:
            while (ask := self._asks.get()) is not None and not self._is_ended.is_set():
                run.tell(self._outcome(*ask))
        except BaseException as error:  # handed to the thread that drives, which raises it
            run.fail(error)
        finally:
            self._client.close()

    def _outcome(self, first: int, count: int) -> Event:
        self._came = 0
        try:
            self._receive(first, count)
        except (Rejected, Unavailable) as error:
            if not self._is_ended.is_set():
                self._run.kit.watch.broke(self._client.source.name)
            is_final = isinstance(error, Rejected)
            after_s = None if isinstance(error, Rejected) else error.retry_after_s
            return SourceBroke(self._index, self._came, error.message, is_final=is_final, retry_after_s=after_s)
        return SourceEnded(self._index, self._came)

    def _receive(self, first: int, count: int) -> None:
        file = self._run.file
        start = file.span_of(first)[0]
        last = sum(file.span_of(first + count - 1)) - 1
        answer = self._client.open(start, last)
        left_bytes = answer.size_bytes
        for chunk in range(first, first + count):
            size_bytes = file.span_of(chunk)[1]
            if self._is_left.is_set() or left_bytes < size_bytes:
                break
            buffer = self._run.take_buffer()
            if buffer is None:
                break
            if not self._fill(answer, buffer, size_bytes):
                self._run.give_back(buffer)
                break
            left_bytes -= size_bytes
            self._came += 1
            self._run.fill(_Filled(self._index, chunk, buffer, size_bytes))
        self._client.finish(answer)
        if self._came == 0 and not self._is_left.is_set():
            # Without a rest it would be asked again at once, and for ever.
            raise Unavailable(f"{self._client.source.name}: gives less than one chunk")

    def _fill(self, answer: Answer, buffer: bytearray, size_bytes: int) -> bool:
        """Read one chunk; return False when it is not wanted any more. Raises Unavailable when the source breaks."""
        limiter, name = self._run.kit.limiter, self._client.source.name
        piece_bytes = _LIMITED_PIECE_BYTES if limiter.is_limited else size_bytes
        done_bytes = 0
        with memoryview(buffer) as view:
            try:
                while done_bytes < size_bytes:
                    with view[done_bytes : min(size_bytes, done_bytes + piece_bytes)] as piece:
                        got = self._client.read_into(answer, piece)
                    if got == 0:
                        raise Unavailable(f"{name}: broke off")
                    done_bytes += got
                    limiter.take(name, got, self._run.wait)
                    if self._is_left.is_set():
                        return False
            except Unavailable:
                if done_bytes < size_bytes:
                    self._run.give_back(buffer)
                raise
        return done_bytes == size_bytes


def _name(source: ChunkSource, reason: str) -> str:
    return reason if reason.startswith(f"{source.name}: ") else f"{source.name}: {reason or 'sent nothing'}"
