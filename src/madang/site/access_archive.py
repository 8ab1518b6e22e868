"""The archive of access records: takes the segments that gateway workers finished, seals them, keeps them their time.

Owns the access folder but for the segments that live workers write: `sealed/` with the compressed segments, and
`seals.jsonl`, the chain over them (`madang.wire.access_log`). Refuses to read records (`madang.site.access_query` does)
and to remove any before its time: when the folder is full, new requests are refused, loudly and in advance.

Why so long: article 8 of the Korean standard on measures for the safety of personal information (안전성 확보조치 기준)
asks for records of access to be kept a year, two where sensitive data, unique identifiers or 50,000 people are
concerned, and safe from alteration. The default is two.

Each step may be cut by kill -9: a sealed file without its line is written again, a segment whose line is there is only
removed. The head of the chain is kept in the database too, so that lines cut off from its end are missed.
"""

import asyncio
import contextlib
import os
import zlib
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from madang.core import Clock, MadangError, Rejected, Unavailable
from madang.runtime.files import replace_file, sync_folder
from madang.runtime.telemetry import EventLog
from madang.site.access_chain import SEALED_FOLDER, Chain, ChainHead
from madang.site.audit import AUDIT_LOG
from madang.site.desired import read_meta, write_meta
from madang.site.guard import GuardedStore
from madang.site.locks import take_shared
from madang.wire.access_log import (
    MAGIC,
    RETENTION_DAYS_MIN,
    SEGMENT_NAME,
    Seal,
    seal_bytes,
    sealed_name,
    survey_segment,
)
from madang.wire.receipts import make_kid

PERIOD_S = 2.0
"""How often segments are made durable and finished ones are looked for."""
EXPIRE_PERIOD_S = 60.0
ANCHOR_PERIOD_S = 86_400.0
SEGMENTS_PER_PASS, EXPIRED_PER_PASS = 16, 64
SEGMENT_BYTES_MAX = 64 * 1024 * 1024
"""Over this, no worker wrote the file."""
WARN_SHARE = 0.8
_LEVEL = 3
"""Of zlib: 0.7 us a record and 18 bytes; level 6 takes twice that for a tenth less."""
_HEAD_META, _ANCHOR_META = "access_head", "access_anchor"
_EMPTY_KEPT_S = 10.0


class AccessCounts:
    """What the archive did in this life, for metrics."""

    def __init__(self) -> None:
        """Start at nothing."""
        self.segments = 0
        self.records = 0
        self.torn = 0
        self.expired = 0


class _Pass(NamedTuple):
    sealed: list[Seal]
    torn: list[tuple[str, int]]
    open_bytes: int


class AccessArchive:
    """The access folder of one site."""

    def __init__(
        self,
        *,
        site: str,
        folder: Path,
        identity: Ed25519PrivateKey,
        store: GuardedStore,
        retention_days: float,
        bytes_max: int,
        clock: Clock,
        log: EventLog,
    ) -> None:
        """Prepare; `load`, then `run`.

        Args:
            site: whose records they are.
            folder: where workers write; must exist.
            identity: the site's key, to sign seals with.
            store: remembers the head of the chain.
            retention_days: how long records are kept.
            bytes_max: of all records together; at it no new requests are taken.
            clock: time.
            log: told of trouble, once each way.

        Raises:
            Rejected: records would be kept for less than the law asks.
        """
        if retention_days < RETENTION_DAYS_MIN:
            raise Rejected(
                f"settings key access_days is {retention_days:g}: access records are kept for at least "
                f"{RETENTION_DAYS_MIN} days (안전성 확보조치 기준, article 8)",
                next_step="set 365, or 730 where sensitive data are served",
            )
        self.site = site
        self.folder = folder
        self.counts = AccessCounts()
        self.chain = Chain(folder)
        self.public_key = identity.public_key().public_bytes_raw()
        self._identity = identity
        self._store = store
        self._retention_ms = round(retention_days * 86_400_000)
        self._bytes_max = bytes_max
        self._clock = clock
        self._log = log
        self._kept_head = ChainHead(0, "")
        self._broken = ""
        self._open_bytes = 0
        self._trouble = ""
        self._is_warned = False
        self._synced: dict[str, int] = {}

    # --- what others read

    @property
    def size_bytes(self) -> int:
        """What all records take on disk."""
        return self.chain.size_bytes + self._open_bytes

    @property
    def used_share(self) -> float:
        """How full the folder is, 0 to 1."""
        return self.size_bytes / self._bytes_max

    @property
    def closed_reason(self) -> str:
        """Why no new requests may be taken, empty when they may."""
        if self.size_bytes < self._bytes_max:
            return ""
        return (
            f"access records take {self.size_bytes} bytes, and access_bytes_max is {self._bytes_max}; "
            "none may be removed before its time"
        )

    @property
    def problem(self) -> str:
        """What an operator should look at, empty when all is well."""
        if self._broken:
            return f"{self._broken}. Nothing is sealed or removed until it is restored; records are kept as they come"
        if self._trouble or self.closed_reason:
            return self._trouble or self.closed_reason
        if self.used_share < WARN_SHARE:
            return ""
        return f"access records fill {self.used_share:.0%} of access_bytes_max ({self._bytes_max}): raise it in time"

    # --- loops

    async def load(self) -> None:
        """Read the chain; what a crash left half done is put right, what is missing is said."""
        text = await self._store.read(lambda connection: read_meta(connection, _HEAD_META))
        self._kept_head = ChainHead.from_text(text)
        try:
            loaded = await asyncio.to_thread(self.chain.load, self._kept_head)
        except Unavailable as error:
            self._broken = str(error)
        else:
            if loaded.torn_bytes:
                self._log.warning("access_seals_tail_dropped", size_bytes=loaded.torn_bytes)
            if not loaded.has_expected:
                self._broken = f"{self.chain.path} lacks seal {self._kept_head.number}, which was made: it was changed"
        if self._broken:
            self._log.error("access_chain_broken", reason=self._broken)

    async def run(self) -> None:
        """Seal and expire for ever."""
        expire_at_ns = 0
        while True:
            try:
                await self.step()
                if self._clock.monotonic_ns() >= expire_at_ns:
                    expire_at_ns = self._clock.monotonic_ns() + round(EXPIRE_PERIOD_S * 1e9)
                    await self.expire()
                    await self.anchor()
                self._note("")
            except MadangError as error:
                self._note(error.message)
            self._warn()
            await asyncio.sleep(PERIOD_S)

    async def step(self) -> int:
        """Make open segments durable and seal finished ones; return how many were sealed.

        Raises:
            Unavailable: the folder cannot be written; what is there stays, and is tried again.
        """
        try:
            done = await asyncio.to_thread(self._seal_finished)
        except OSError as error:
            raise Unavailable(f"cannot seal access records in {self.folder}: {error.strerror}") from error
        self._open_bytes = done.open_bytes
        for name, size_bytes in done.torn:
            self.counts.torn += 1
            self._log.warning("access_tail_torn", segment=name, size_bytes=size_bytes)
        self.counts.segments += len(done.sealed)
        self.counts.records += sum(seal.records for seal in done.sealed)
        await self._keep_head()
        return len(done.sealed)

    async def expire(self) -> int:
        """Remove sealed segments whose time is over, up to EXPIRED_PER_PASS; return how many it were.

        Raises:
            Unavailable: the folder cannot be written.
        """
        try:
            removed = await asyncio.to_thread(self._expire_old)
        except OSError as error:
            raise Unavailable(f"cannot remove old access records in {self.folder}: {error.strerror}") from error
        self.counts.expired += removed
        await self._keep_head()
        return removed

    async def anchor(self) -> None:
        """Write the head of the chain into the audit log, once a day: wherever that is copied to, it vouches."""
        text = await self._store.read(lambda connection: read_meta(connection, _ANCHOR_META))
        number, _, at_s = text.partition(":")
        now_s, head = self._clock.wall_s(), self.chain.head
        if head.number == int(number or 0) or (text and now_s - float(at_s) < ANCHOR_PERIOD_S) or self._broken:
            return

        def write(connection: sa.Connection) -> None:
            detail = {"number": head.number, "sha256": head.sha256}
            AUDIT_LOG.append(
                connection, at_s=now_s, actor="site", action="access.head", target=self.site, detail=detail
            )
            write_meta(connection, _ANCHOR_META, f"{head.number}:{now_s}")

        await self._store.write(write)

    async def _keep_head(self) -> None:
        head = self.chain.head
        # A head that is not in the chain stays: it is the proof that something was cut off.
        if head == self._kept_head or self._broken:
            return

        def write(connection: sa.Connection) -> None:
            write_meta(connection, _HEAD_META, head.to_text())

        await self._store.write(write)
        self._kept_head = head

    def _note(self, trouble: str) -> None:
        if bool(trouble) != bool(self._trouble):
            (self._log.error if trouble else self._log.info)(
                "access_archive_failed" if trouble else "access_archive_recovered", reason=trouble or self._trouble
            )
        self._trouble = trouble

    def _warn(self) -> None:
        is_near = self.used_share >= WARN_SHARE
        if is_near != self._is_warned:
            self._is_warned = is_near
            share = round(self.used_share, 3)
            if is_near:
                self._log.error("access_space_low", share=share, bytes_max=self._bytes_max)
            else:
                self._log.info("access_space_enough", share=share)

    # --- on a thread

    def _seal_finished(self) -> _Pass:
        sealed: list[Seal] = []
        torn: list[tuple[str, int]] = []
        open_bytes = 0
        for name in sorted(filter(SEGMENT_NAME.match, os.listdir(self.folder))):
            path = self.folder / name
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                is_empty = status.st_size <= len(MAGIC)
                is_young = self._clock.wall_s() - status.st_mtime < _EMPTY_KEPT_S
                is_left = bool(self._broken) or len(sealed) >= SEGMENTS_PER_PASS
                if is_left or (is_empty and is_young) or not take_shared(file.fileno()):
                    open_bytes += status.st_size
                    self._sync(name, file.fileno(), status.st_size)
                    continue
                data = file.read(SEGMENT_BYTES_MAX + 1)
            self._synced.pop(name, None)
            torn_bytes = self._seal(name, data, sealed) if not is_empty and name not in self.chain.fresh else 0
            if torn_bytes:
                torn.append((name, torn_bytes))
            path.unlink()
            self.chain.fresh.discard(name)
        return _Pass(sealed, torn, open_bytes)

    def _sync(self, name: str, descriptor: int, size: int) -> None:
        """Make what a worker wrote durable, in its place."""
        if self._synced.get(name) != size:
            os.fdatasync(descriptor)
            self._synced[name] = size

    def _seal(self, name: str, data: bytes, sealed: list[Seal]) -> int:
        if len(data) > SEGMENT_BYTES_MAX:
            raise Unavailable(f"access segment {name} has over {SEGMENT_BYTES_MAX} bytes", next_step="move it away")
        survey = survey_segment(data)
        seal = self.chain.next_seal(
            site=self.site,
            kid=make_kid(self.public_key),
            kind="sealed",
            sealed_at_ms=round(self._clock.wall_s() * 1000),
            segment=name,
            data=data,
            survey=survey,
        )
        folder = self.folder / SEALED_FOLDER
        folder.mkdir(mode=0o700, exist_ok=True)
        packed = zlib.compress(data, _LEVEL)
        replace_file(folder / sealed_name(seal.number), packed, mode=0o600, is_durable=True)
        self.chain.append(seal, self._identity.sign(seal_bytes(seal)), len(packed))
        sealed.append(seal)
        return survey.torn_bytes

    def _expire_old(self) -> int:
        before_ms = round(self._clock.wall_s() * 1000) - self._retention_ms
        if self._broken:
            return 0
        due = [one for one in self.chain.entries.values() if one.last_at_ms < before_ms][:EXPIRED_PER_PASS]
        for entry in due:
            seal = self.chain.next_expiry(entry.number, make_kid(self.public_key), round(self._clock.wall_s() * 1000))
            self.chain.append(seal, self._identity.sign(seal_bytes(seal)), 0)
            with contextlib.suppress(FileNotFoundError):
                (self.folder / SEALED_FOLDER / sealed_name(entry.number)).unlink()
        if due:
            sync_folder(self.folder / SEALED_FOLDER)
        return len(due)
