"""`/v1/files` as OpenAI's, for the tenants that the gateway hands over.

Owns the shapes of requests and answers. Refuses to keep anything: the keeper does. An upload is encrypted as it comes
and never lies in memory or on disk as a whole in the clear.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from madang.core import MadangError, Rejected
from madang.site.files.blobs import BlobWriter
from madang.site.files.keeper import LIFETIME_S_MAX, LIFETIME_S_MIN, FileKeeper
from madang.site.files.rows import PAGE_MAX, FileRow, list_files, show_file
from madang.site.guard import GuardedStore
from madang.site.internal import InternalCaller, caller_of, object_response
from madang.wire.form_stream import FormSplitter, PartBegun, PartData
from madang.wire.openai_errors import ApiError, ErrorCode

UPLOADS_MAX = 16
"""At once; each holds about two megabytes."""
FIELD_BYTES_MAX = 1024
WRITE_BYTES = 512 * 1024
"""What is gathered before it is encrypted and written on a thread."""
PURPOSES = ("batch",)
RETRY_S = 5.0

FindUser = Callable[[str], Awaitable[str]]
CheckTenant = Callable[[str], None]


class FilesApi:
    """The routes of files."""

    def __init__(
        self,
        keeper: FileKeeper,
        store: GuardedStore,
        file_bytes_max: int,
        find_user: FindUser,
        check_tenant: CheckTenant,
    ) -> None:
        """Prepare the routes.

        Args:
            keeper: of the files.
            store: where their rows are.
            file_bytes_max: of one file.
            find_user: returns the id of a batch that still reads a file, or nothing.
            check_tenant: raises ApiError 403 for a tenant whose files may not be here.
        """
        self._keeper = keeper
        self._store = store
        self._file_bytes_max = file_bytes_max
        self._find_user = find_user
        self._check_tenant = check_tenant
        self._uploads = 0

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/v1/files", self.list, methods=["GET"]),
            Route("/v1/files", self.create, methods=["POST"]),
            Route("/v1/files/{file_id}", self.show, methods=["GET"]),
            Route("/v1/files/{file_id}", self.delete, methods=["DELETE"]),
            Route("/v1/files/{file_id}/content", self.content, methods=["GET"]),
        ]

    async def list(self, request: Request) -> Response:
        """Return a page of the tenant's files."""
        caller, query = caller_of(request), request.query_params
        limit = page_limit(query.get("limit"), PAGE_MAX, PAGE_MAX)
        order = query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise ApiError(ErrorCode.INVALID_REQUEST, "order is asc or desc", param="order")
        find = partial(
            list_files,
            tenant_id=caller.tenant_id,
            purpose=query.get("purpose", ""),
            after=query.get("after", ""),
            limit=limit + 1,
            is_ascending=order == "asc",
        )
        rows = await self._store.read(find)
        return object_response(page_of([show_file(row) for row in rows], limit))

    async def show(self, request: Request) -> Response:
        """Return one file's description."""
        return object_response(show_file(await self._find(request)))

    async def content(self, request: Request) -> Response:
        """Return one file's content, decrypted as it goes out."""
        self._check_tenant(caller_of(request).tenant_id)
        row = await self._find(request)
        pieces = self._keeper.read(row)
        first = await anext(pieces, b"")  # a damaged file is said with a status, not by an answer that breaks off

        async def all_pieces() -> AsyncIterator[bytes]:
            yield first
            async for piece in pieces:
                yield piece

        headers = {"content-length": str(row.size_bytes)}
        return StreamingResponse(all_pieces(), media_type="application/octet-stream", headers=headers)

    async def delete(self, request: Request) -> Response:
        """Destroy one file."""
        row = await self._find(request)
        batch_id = await self._find_user(row.file_id)
        if batch_id:
            message = f"{row.file_id} is being read by {batch_id}: cancel that first"
            raise ApiError(ErrorCode.INVALID_REQUEST, message, status=409)
        await self._keeper.delete(row)
        return object_response({"id": row.file_id, "object": "file", "deleted": True})

    async def _find(self, request: Request) -> FileRow:
        return await self._keeper.find(caller_of(request).tenant_id, request.path_params["file_id"])

    async def create(self, request: Request) -> Response:
        """Take an upload."""
        caller = caller_of(request)
        self._check_tenant(caller.tenant_id)
        if self._uploads >= UPLOADS_MAX:
            message = f"{self._uploads} uploads are in progress at this site; try again"
            raise ApiError(ErrorCode.OVERLOADED, message, retry_after_s=RETRY_S)
        await self._keeper.check_room(caller.tenant_id)
        self._uploads += 1
        try:
            return object_response(show_file(await self._take(request, caller)))
        finally:
            self._uploads -= 1

    async def _take(self, request: Request, caller: InternalCaller) -> FileRow:
        splitter = FormSplitter(request.headers.get("content-type", "").encode("latin-1"))
        new = self._keeper.make_new()
        writer = await self._keeper.open_writer(new)
        form = _Form(writer, self._file_bytes_max)
        try:
            async for data in request.stream():
                form.take(splitter, data)
                if len(form.pending) >= WRITE_BYTES:
                    await asyncio.to_thread(form.flush)
            if not splitter.is_done:
                raise Rejected("the form has no last boundary")
            purpose, filename, lifetime_s = form.check()
            await asyncio.to_thread(form.finish)
        except (MadangError, ClientDisconnect, asyncio.CancelledError):
            await asyncio.to_thread(writer.abort)
            raise
        row = self._keeper.make_row(
            new,
            tenant_id=caller.tenant_id,
            project_id=caller.project_id,
            filename=filename,
            purpose=purpose,
            size_bytes=writer.size_bytes,
            lifetime_s=lifetime_s,
        )
        await self._keeper.add(row)
        return row


class _Form:
    """What came of an upload's form: small fields, and a file that goes to its writer."""

    def __init__(self, writer: BlobWriter, bytes_max: int) -> None:
        self._writer = writer
        self._bytes_max = bytes_max
        self._fields: dict[str, bytes] = {}
        self._name = ""
        self._filename: str | None = None
        self._size = 0
        self.pending = bytearray()

    def take(self, splitter: FormSplitter, data: bytes) -> None:
        """Take a piece of the body; raises Rejected for a form that is wrong and ApiError 413 for a file too large."""
        for event in splitter.feed(data):
            if isinstance(event, PartBegun):
                self._begin(event)
            elif isinstance(event, PartData):
                self._put(event.data)

    def _begin(self, part: PartBegun) -> None:
        self._name = part.name
        if part.name == "file":
            if self._filename is not None:
                raise ApiError(ErrorCode.INVALID_REQUEST, "the form has more than one file", param="file")
            self._filename = part.filename or "file"
        elif part.name in self._fields:
            raise ApiError(ErrorCode.INVALID_REQUEST, f"the form repeats the field {part.name[:100]}")
        else:
            self._fields[part.name] = b""

    def _put(self, data: bytes) -> None:
        if self._name != "file":
            self._fields[self._name] += data
            if len(self._fields[self._name]) > FIELD_BYTES_MAX:
                raise ApiError(ErrorCode.INVALID_REQUEST, f"the field {self._name[:100]} is too long")
            return
        self._size += len(data)
        if self._size > self._bytes_max:
            raise ApiError(ErrorCode.REQUEST_TOO_LARGE, f"the file is over {self._bytes_max} bytes", param="file")
        self.pending += data

    def flush(self) -> None:
        """Encrypt and write what was gathered; on a thread."""
        pending, self.pending = self.pending, bytearray()
        self._writer.write(bytes(pending))

    def finish(self) -> None:
        """Make the file durable; on a thread."""
        self.flush()
        self._writer.finish()

    def check(self) -> tuple[str, str, float | None]:
        """Return purpose, file name and lifetime; raises ApiError naming the field at fault."""
        if self._filename is None:
            raise ApiError(ErrorCode.INVALID_REQUEST, "the form has no file", param="file")
        purpose = self._fields.get("purpose", b"").decode(errors="replace")
        if purpose not in PURPOSES:
            message = f"purpose '{purpose[:50]}' is not supported here; expected {', '.join(PURPOSES)}"
            raise ApiError(ErrorCode.UNSUPPORTED, message, param="purpose")
        anchor = self._fields.get("expires_after[anchor]")
        seconds = self._fields.get("expires_after[seconds]")
        if anchor is None and seconds is None:
            return purpose, self._filename, None
        text = (seconds or b"").decode(errors="replace")
        return purpose, self._filename, check_lifetime((anchor or b"").decode(errors="replace"), text, "expires_after")


def check_lifetime(anchor: object, seconds: object, param: str) -> float:
    """Return a lifetime that a client asks for; raises ApiError naming the parameter."""
    if anchor != "created_at":
        raise ApiError(ErrorCode.INVALID_REQUEST, f"{param}.anchor is created_at", param=f"{param}.anchor")
    with contextlib.suppress(ValueError):
        if isinstance(seconds, int | str) and LIFETIME_S_MIN <= int(seconds) <= LIFETIME_S_MAX:
            return float(int(seconds))
    message = f"{param}.seconds is a number from {LIFETIME_S_MIN:.0f} to {LIFETIME_S_MAX:.0f}"
    raise ApiError(ErrorCode.INVALID_REQUEST, message, param=f"{param}.seconds")


def page_limit(text: str | None, most: int, default: int) -> int:
    """Return how many rows a page has; raises ApiError for a limit that is none."""
    if text is None:
        return default
    if not text.isdigit() or not 1 <= int(text) <= most:
        raise ApiError(ErrorCode.INVALID_REQUEST, f"limit is a number from 1 to {most}", param="limit")
    return int(text)


def page_of(rows: list[dict[str, object]], limit: int) -> dict[str, object]:
    """Return a page of a list; `rows` has one more than `limit` when there are more."""
    shown = rows[:limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(rows) > limit,
    }
