"""Files as a whole: rows and blobs kept in step, limits, expiry.

Owns the order in which row and blob appear and go, so that a crash between leaves at most a blob that nobody can name.
Refuses to know HTTP. Called by the files' API, by the batches, and by its own loop.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from functools import partial

import msgspec
import sqlalchemy as sa

from madang.core import Clock, Entropy, ProjectId, TenantId, Unavailable
from madang.runtime.telemetry import EventLog
from madang.site.files.blobs import BlobStore, BlobWriter
from madang.site.files.rows import (
    FileRow,
    find_expired,
    forget_files,
    list_ids,
    read_file,
    sum_all,
    sum_files,
    write_file,
)
from madang.site.guard import GuardedStore
from madang.site.settings import SiteSettings
from madang.wire.openai_errors import ApiError, ErrorCode

PURGE_PERIOD_S = 30.0
LIFETIME_S_MIN = 3600.0
LIFETIME_S_MAX = 30 * 24 * 3600.0
"""Both as OpenAI's."""
FILENAME_CHARS_MAX = 255


class NewFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file before its content is there."""

    file_id: str
    sealed_key: bytes


class FileKeeper:
    """The tenants' files of this site."""

    def __init__(
        self,
        *,
        settings: SiteSettings,
        blobs: BlobStore,
        store: GuardedStore,
        clock: Clock,
        entropy: Entropy,
        log: EventLog,
    ) -> None:
        """Keep the parts; `prepare` comes before anything else.

        Attributes:
            files, size_bytes: of the whole site when they were counted last.
        """
        self._settings = settings
        self._store = store
        self._clock = clock
        self._entropy = entropy
        self._log = log
        self.blobs = blobs
        self.files = self.size_bytes = 0
        self.purged_total = self.uploaded_total = 0

    async def prepare(self, kept: frozenset[str]) -> None:
        """Remove what a crash left.

        Args:
            kept: blobs that are no files' and are known all the same.
        """
        known = await self._store.read(list_ids)
        removed = await asyncio.to_thread(self.blobs.remove_unknown, known | kept)
        if removed:
            self._log.info("file_leftovers_removed", blobs=removed)
        await self._count()

    async def run_purge(self) -> None:
        """Destroy files whose time is over, for ever."""
        while True:
            # Unavailable: the guarded store has said so; this is tried again at the next tick.
            with contextlib.suppress(Unavailable):
                await self.purge()
            await asyncio.sleep(PURGE_PERIOD_S)

    async def purge(self) -> None:
        """Destroy files whose time is over now."""
        expired = await self._store.read(partial(find_expired, now_s=self._clock.wall_s()))
        if expired:
            await self.forget(expired)
            self.purged_total += len(expired)
            self._log.info("files_expired", files=len(expired))

    def make_new(self) -> NewFile:
        """Return an id that cannot be guessed, and a fresh key."""
        file_id = f"file-{self._entropy.token_bytes(16).hex()}"
        return NewFile(file_id=file_id, sealed_key=self.blobs.make_key(file_id))

    async def open_writer(self, new: NewFile) -> BlobWriter:
        """Begin to write a file's content."""
        return await asyncio.to_thread(self.blobs.writer, new.file_id, new.sealed_key)

    async def check_room(self, tenant_id: TenantId) -> None:
        """Raise ApiError 429 when the tenant has as many files as it may."""
        files, size_bytes = await self._store.read(partial(sum_files, tenant_id=tenant_id))
        self._check_sums(files + 1, size_bytes)

    def _check_sums(self, files: int, size_bytes: int) -> None:
        settings = self._settings
        if files > settings.tenant_files_max:
            message = f"the tenant keeps {settings.tenant_files_max} files at this site, the most allowed; delete some"
            raise ApiError(ErrorCode.QUOTA_EXCEEDED, message)
        if size_bytes > settings.tenant_file_bytes_max:
            most = settings.tenant_file_bytes_max
            message = f"the tenant's files at this site would be over {most} bytes together; delete some"
            raise ApiError(ErrorCode.QUOTA_EXCEEDED, message)

    def make_row(
        self,
        new: NewFile,
        *,
        tenant_id: TenantId,
        project_id: ProjectId,
        filename: str,
        purpose: str,
        size_bytes: int,
        lifetime_s: float | None,
    ) -> FileRow:
        """Return the row of a file that is created now; `lifetime_s` None is the site's own."""
        now_s = self._clock.wall_s()
        wanted_s = self._settings.file_lifetime_s if lifetime_s is None else lifetime_s
        return FileRow(
            file_id=new.file_id,
            tenant_id=tenant_id,
            project_id=project_id,
            filename=filename[:FILENAME_CHARS_MAX],
            purpose=purpose,
            size_bytes=size_bytes,
            created_at_s=now_s,
            expires_at_s=now_s + min(wanted_s, self._settings.file_lifetime_s),
            sealed_key=new.sealed_key,
        )

    async def add(self, row: FileRow) -> None:
        """Store the row of a file whose blob is durable; raises ApiError 429, without the blob, when it is too much."""

        def write(connection: sa.Connection) -> None:
            files, size_bytes = sum_files(connection, row.tenant_id)
            self._check_sums(files + 1, size_bytes + row.size_bytes)
            write_file(connection, row)

        try:
            await self._store.write(write)
        except (ApiError, Unavailable):
            await asyncio.to_thread(self.blobs.remove, row.file_id)
            raise
        self.uploaded_total += 1
        await self._count()

    async def find(self, tenant_id: str, file_id: str) -> FileRow:
        """Return a tenant's file; raises ApiError 404 when it has none of that id, or its time is over."""
        row = await self._store.read(partial(read_file, tenant_id=tenant_id, file_id=file_id))
        if row is None or row.expires_at_s <= self._clock.wall_s():
            raise no_file(file_id)
        return row

    async def delete(self, row: FileRow) -> None:
        """Destroy a file: its key first, then its blob."""
        await self.forget([row.file_id])

    async def forget(self, file_ids: list[str]) -> None:
        """Destroy files by id: their keys first, then their blobs."""
        await self._store.write(partial(forget_files, file_ids=file_ids))
        for file_id in file_ids:
            await asyncio.to_thread(self.blobs.remove, file_id)
        await self._count()

    async def read(self, row: FileRow) -> AsyncIterator[bytes]:
        """Yield a file's content piece by piece; raises Fault when it is not what was stored."""
        pieces: Iterator[bytes] = self.blobs.read(row.file_id, row.sealed_key)
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            yield piece

    async def _count(self) -> None:
        self.files, self.size_bytes = await self._store.read(sum_all)


def no_file(file_id: str) -> ApiError:
    """Return the 404 for a file that does not exist for the tenant."""
    return ApiError(ErrorCode.INVALID_REQUEST, f"no file '{file_id[:100]}'", status=404, param="id")
