"""`Idempotency-Key`: the same request is not run twice at a site within a window.

Owns one small file for each key in use: the digest of the request and its id, never content, so that nothing of class
`sensitive` is kept for a later answer. Refuses to replay answers. A worker that works on a request holds a lock on its
file, and the kernel drops the lock with the worker; so the workers of a site, its processes on one machine, agree
without asking each other, and a crash leaves no key behind that blocks.

States of a key: absent, running (locked), completed (unlocked, until the window ends). What fails or is left by its
client becomes absent again: it may be repeated.
"""

import contextlib
import fcntl
import hashlib
import os
from pathlib import Path
from typing import Any

import msgspec

from madang.core import Clock
from madang.gateway.errand import Errand
from madang.gateway.exchange import Exchange
from madang.gateway.journey import Journey
from madang.gateway.relay import Relay
from madang.wire.openai_errors import ApiError, ErrorCode

IDEMPOTENCY_FIELD = b"idempotency-key"
WINDOW_S = 600.0
"""How long a completed request is remembered; official clients give up repeating long before."""
KEY_BYTES_MAX = 255
KEYS_MAX = 4096
SWEEP_PERIOD_S = 60.0
RUNNING_RETRY_S = 2.0
_RECORD_BYTES_MAX = 4096
_TRIES_MAX = 3


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """What a file says; `completed_at_s` is wall time, None while the request runs."""

    request_id: str
    digest: str
    completed_at_s: float | None = None


class Claim:
    """The right to run a request under a key; whoever has it settles it."""

    def __init__(self, table: "OnceTable", path: Path, handle: int, record: _Record) -> None:
        self._table = table
        self._path = path
        self._handle: int | None = handle
        self._record = record

    def settle(self, *, is_completed: bool) -> None:
        """Remember a completed request, or forget one that may be repeated; only the first call counts."""
        handle, self._handle = self._handle, None
        if handle is None:
            return
        try:
            if is_completed:
                _write(handle, msgspec.structs.replace(self._record, completed_at_s=self._table.clock.wall_s()))
            else:
                self._path.unlink(missing_ok=True)
        except OSError:
            # A full or broken disk forgets a key, if it lets itself be told so: the next request of that key runs,
            # which is what it is for. The answer under way must not be lost over it.
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
        finally:
            os.close(handle)


class OnceTable:
    """The keys of one site, shared by its workers through files in `folder`."""

    def __init__(self, folder: Path, clock: Clock, keys_max: int = KEYS_MAX) -> None:
        self.clock = clock
        self._keys_max = keys_max
        self._folder = folder
        self._swept_at_s = -SWEEP_PERIOD_S
        self._size = 0

    def claim(self, errand: Errand, key: bytes, body: bytes) -> Claim:
        """Take the right to run a request.

        Cost: a handful of system calls on one small file, and once a minute a look at all of them.

        Raises:
            ApiError: 409 when the key runs or has run, or belongs to another request; 400 and 429 for its limits.
        """
        if not 0 < len(key) <= KEY_BYTES_MAX:
            message = f"'Idempotency-Key': expected 1 to {KEY_BYTES_MAX} characters"
            raise ApiError(ErrorCode.INVALID_REQUEST, message, param="Idempotency-Key")
        try:
            self._sweep()
            return self._claim(errand, key, body)
        except OSError as error:
            message = f"the key cannot be kept at this site: {error.strerror}"
            raise ApiError(ErrorCode.OVERLOADED, message, retry_after_s=RUNNING_RETRY_S) from error

    def _claim(self, errand: Errand, key: bytes, body: bytes) -> Claim:
        name = hashlib.sha256(errand.key_id.encode() + b"\0" + key).hexdigest()
        # The client's key is part of the digest: from the file alone nobody can tell whether a guessed text was asked.
        digest = hashlib.sha256(b"%b\0%b\0%b" % (key, errand.asked_path.encode(), body)).hexdigest()
        record = _Record(request_id=errand.request_id, digest=digest)
        path = self._folder / name
        for _ in range(_TRIES_MAX):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                self._take(handle, digest)
                if os.fstat(handle).st_nlink:
                    _write(handle, record)
                    self._size += 1
                    return Claim(self, path, handle, record)
            except (ApiError, OSError):
                os.close(handle)
                raise
            os.close(handle)  # forgotten by its owner between our opening and locking it
        raise ApiError(ErrorCode.OVERLOADED, "the key is busy", retry_after_s=RUNNING_RETRY_S)

    def _take(self, handle: int, digest: str) -> None:
        """Lock a file that says nothing against it; raises ApiError 409 when it does."""
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_running = False
        except BlockingIOError:
            is_running = True
        found = _read(handle)
        if found is None:
            if is_running:
                raise _conflict("", "is running", is_running=True)
            return
        if not is_running and not self._is_remembered(found):
            return
        if found.digest != digest:
            raise _conflict(found.request_id, "belongs to another request", is_running=False)
        if is_running:
            raise _conflict(found.request_id, "is running", is_running=True)
        raise _conflict(found.request_id, "was answered; answers are not kept", is_running=False)

    def _is_remembered(self, found: _Record) -> bool:
        return found.completed_at_s is not None and found.completed_at_s + WINDOW_S > self.clock.wall_s()

    def _sweep(self) -> None:
        """Forget what is too old, once in a while; raises ApiError 429 when there are too many keys."""
        now_s = self.clock.wall_s()
        if now_s - self._swept_at_s >= SWEEP_PERIOD_S or self._size >= self._keys_max:
            self._swept_at_s = now_s
            self._folder.mkdir(mode=0o700, exist_ok=True)
            self._size = 0
            for entry in os.scandir(self._folder):
                with contextlib.suppress(FileNotFoundError):  # another worker forgot it meanwhile
                    if entry.stat().st_mtime + WINDOW_S < now_s and _is_free(entry.path):
                        Path(entry.path).unlink(missing_ok=True)
                    else:
                        self._size += 1
        if self._size >= self._keys_max:
            message = f"over {self._keys_max} idempotency keys are in use at this site"
            raise ApiError(ErrorCode.OVERLOADED, message, retry_after_s=SWEEP_PERIOD_S)


def _is_free(path: str) -> bool:
    """Return whether nobody works on a key; a file that is gone is not free but gone."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True


def _read(handle: int) -> _Record | None:
    try:
        return msgspec.json.decode(os.pread(handle, _RECORD_BYTES_MAX, 0), type=_Record)
    except msgspec.MsgspecError:
        return None  # new, or cut off by a crash


def _write(handle: int, record: _Record) -> None:
    data = msgspec.json.encode(record)
    os.ftruncate(handle, 0)
    os.pwrite(handle, data, 0)


def _conflict(request_id: str, what: str, *, is_running: bool) -> ApiError:
    named = f" as request {request_id}" if request_id else ""
    return ApiError(
        ErrorCode.INVALID_REQUEST,
        f"'Idempotency-Key': this key {what}{named}",
        param="Idempotency-Key",
        status=409,
        retry_after_s=RUNNING_RETRY_S if is_running else None,
        details={"request_id": request_id, "is_running": is_running},
    )


class _WatchedExchange:
    """An exchange that settles a claim when its answer ends; everything else is the exchange's own."""

    def __init__(self, exchange: Exchange, claim: Claim) -> None:
        self._exchange = exchange
        self._claim = claim

    def __getattr__(self, name: str) -> Any:
        return getattr(self._exchange, name)

    def respond(self, status: int, fields: bytes, body: bytes, *, is_close: bool = False) -> None:
        """Send a whole answer."""
        self._claim.settle(is_completed=status == 200 and not self._exchange.is_over)
        self._exchange.respond(status, fields, body, is_close=is_close)

    def fail(self, error: ApiError, fields: bytes = b"", *, is_close: bool = False) -> None:
        """Send an error."""
        self._claim.settle(is_completed=False)
        self._exchange.fail(error, fields, is_close=is_close)

    def end(self, data: bytes = b"") -> None:
        """Send the last piece."""
        self._claim.settle(is_completed=not self._exchange.is_over)
        self._exchange.end(data)

    def cut(self, data: bytes = b"") -> None:
        """Break the answer off."""
        self._claim.settle(is_completed=False)
        self._exchange.cut(data)


class OnceJourney(Journey):
    """A journey whose client named a key."""

    __slots__ = ("_claim", "_key", "_once")

    def __init__(self, relay: Relay, exchange: Exchange, errand: Errand, once: OnceTable) -> None:
        super().__init__(relay, exchange, errand)
        self._key = exchange.head.fields[IDEMPOTENCY_FIELD]
        self._once = once
        self._claim: Claim | None = None

    def begin(self, body: bytes) -> None:
        """Claim the key, then go on as any journey."""
        try:
            self._claim = self._once.claim(self.errand, self._key, body)
        except ApiError as error:
            self.answer_error(error)
            return
        self.exchange = _WatchedExchange(self.exchange, self._claim)  # type: ignore[assignment]
        super().begin(body)

    def on_gone(self) -> None:
        """The client left without its answer: it may ask again."""
        if self._claim is not None:
            self._claim.settle(is_completed=False)
        super().on_gone()
