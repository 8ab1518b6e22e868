"""`/v1/batches` as OpenAI's, for the tenants that the gateway hands over.

Owns the shapes of requests and answers. Refuses to run anything: it stores what is wanted and wakes the runner.
"""

from functools import partial
from typing import Any, NoReturn

import msgspec
import sqlalchemy as sa
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from madang.core import Clock, Entropy, KeyId
from madang.site.batches.rows import count_running, list_batches, mark_cancelling, read_batch, write_batch
from madang.site.batches.runner import BatchRunner
from madang.site.batches.state import ENDPOINTS, WINDOW, WINDOW_S, Batch, show_batch
from madang.site.files.api import CheckTenant, check_lifetime, page_limit, page_of
from madang.site.files.keeper import FileKeeper
from madang.site.guard import GuardedStore
from madang.site.internal import InternalCaller, caller_of, object_response
from madang.site.settings import SiteSettings
from madang.wire.openai_errors import ApiError, ErrorCode

BODY_BYTES_MAX = 64 * 1024
PAGE_DEFAULT, PAGE_MAX = 20, 100
METADATA_MAX, METADATA_KEY_CHARS_MAX, METADATA_VALUE_CHARS_MAX = 16, 64, 512
"""All as OpenAI's."""
_FIELDS = frozenset(("input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after"))


class BatchesApi:
    """The routes of batches."""

    def __init__(
        self,
        *,
        settings: SiteSettings,
        keeper: FileKeeper,
        store: GuardedStore,
        runner: BatchRunner,
        check_tenant: CheckTenant,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._settings = settings
        self._keeper = keeper
        self._store = store
        self._runner = runner
        self._check_tenant = check_tenant
        self._clock = clock
        self._entropy = entropy

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/v1/batches", self.list, methods=["GET"]),
            Route("/v1/batches", self.create, methods=["POST"]),
            Route("/v1/batches/{batch_id}", self.show, methods=["GET"]),
            Route("/v1/batches/{batch_id}/cancel", self.cancel, methods=["POST"]),
        ]

    async def list(self, request: Request) -> Response:
        """Return a page of the tenant's batches, newest first."""
        caller, query = caller_of(request), request.query_params
        limit = page_limit(query.get("limit"), PAGE_MAX, PAGE_DEFAULT)
        after = query.get("after", "")
        find = partial(list_batches, tenant_id=caller.tenant_id, after=after, limit=limit + 1)
        batches = await self._store.read(find)
        return object_response(page_of([show_batch(batch) for batch in batches], limit))

    async def show(self, request: Request) -> Response:
        """Return one batch."""
        caller, batch_id = caller_of(request), request.path_params["batch_id"]
        batch = await self._store.read(partial(read_batch, tenant_id=caller.tenant_id, batch_id=batch_id))
        return object_response(show_batch(_found(batch, batch_id)))

    async def cancel(self, request: Request) -> Response:
        """Begin no more lines of a batch; those in flight end, and what was answered is kept."""
        caller, batch_id = caller_of(request), request.path_params["batch_id"]
        now_s = self._clock.wall_s()
        mark = partial(mark_cancelling, tenant_id=caller.tenant_id, batch_id=batch_id, now_s=now_s)
        batch = _found(await self._store.write(mark), batch_id)
        if batch.status.is_over:
            message = f"{batch_id} is {batch.status} already"
            raise ApiError(ErrorCode.INVALID_REQUEST, message, status=409)
        self._runner.changed.rise()
        return object_response(show_batch(batch))

    async def create(self, request: Request) -> Response:
        """Take a new batch."""
        caller = caller_of(request)
        self._check_tenant(caller.tenant_id)
        if not self._settings.own_gateway_url:
            message = f"site {self._settings.name} takes no batches: it knows no way to its gateway (own_gateway_url)"
            raise ApiError(ErrorCode.NO_REPLICA, message)
        batch = self._read(await _read_fields(request), caller)
        row = await self._keeper.find(caller.tenant_id, batch.input_file_id)
        if row.purpose != "batch":
            _refuse("input_file_id", f"{row.file_id} was not uploaded with purpose batch")
        sealed_key = self._keeper.blobs.make_key(batch.batch_id)
        most = self._settings.tenant_batches_max

        def write(connection: sa.Connection) -> None:
            if count_running(connection, caller.tenant_id) >= most:
                message = f"the tenant has {most} batches at this site that are not over, the most allowed"
                raise ApiError(ErrorCode.QUOTA_EXCEEDED, message)
            write_batch(connection, batch, sealed_key)

        await self._store.write(write)
        self._runner.changed.rise()
        return object_response(show_batch(batch))

    def _read(self, fields: dict[str, Any], caller: InternalCaller) -> Batch:
        unknown = sorted(set(fields) - _FIELDS)
        if unknown:
            _refuse(unknown[0][:100], "is not known here")
        input_file_id, endpoint = fields.get("input_file_id"), fields.get("endpoint")
        if not isinstance(input_file_id, str):
            _refuse("input_file_id", "expected the id of a file")
        if endpoint not in ENDPOINTS:
            _refuse("endpoint", f"expected one of {', '.join(ENDPOINTS)}")
        if fields.get("completion_window") != WINDOW:
            _refuse("completion_window", f"expected {WINDOW}")
        lifetime = fields.get("output_expires_after")
        lifetime_s = None
        if lifetime is not None:
            if not isinstance(lifetime, dict):
                _refuse("output_expires_after", "expected an object")
            lifetime_s = check_lifetime(lifetime.get("anchor"), lifetime.get("seconds"), "output_expires_after")
        now_s = self._clock.wall_s()
        return Batch(
            batch_id=f"batch_{self._entropy.token_bytes(16).hex()}",
            tenant_id=caller.tenant_id,
            project_id=caller.project_id,
            key_id=KeyId(caller.key_id),
            data_class=caller.data_class,
            endpoint=str(endpoint),
            input_file_id=input_file_id,
            created_at_s=now_s,
            expires_at_s=now_s + WINDOW_S,
            metadata=_metadata(fields.get("metadata")),
            output_lifetime_s=lifetime_s,
        )


async def _read_fields(request: Request) -> dict[str, Any]:
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > BODY_BYTES_MAX:
            raise ApiError(ErrorCode.REQUEST_TOO_LARGE, f"the body is over {BODY_BYTES_MAX} bytes")
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(ErrorCode.INVALID_REQUEST, f"the request body is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ApiError(ErrorCode.INVALID_REQUEST, "the request body is not a JSON object")
    return fields


def _metadata(value: Any) -> dict[str, str] | None:
    if value is None:
        return None
    is_good = isinstance(value, dict) and len(value) <= METADATA_MAX
    if not is_good or not all(
        isinstance(text, str) and len(key) <= METADATA_KEY_CHARS_MAX and len(text) <= METADATA_VALUE_CHARS_MAX
        for key, text in value.items()
    ):
        most = f"{METADATA_MAX} pairs of strings, {METADATA_KEY_CHARS_MAX} and {METADATA_VALUE_CHARS_MAX} characters"
        _refuse("metadata", f"expected an object of at most {most}")
    return dict(value)


def _refuse(param: str, message: str) -> NoReturn:
    raise ApiError(ErrorCode.INVALID_REQUEST, f"{param}: {message}", param=param)


def _found(batch: Batch | None, batch_id: str) -> Batch:
    if batch is None:
        raise ApiError(ErrorCode.INVALID_REQUEST, f"no batch '{batch_id[:100]}'", status=404, param="id")
    return batch
