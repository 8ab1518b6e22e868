"""The site's internal API: what its own gateway asks on behalf of tenants.

Owns the token check, who asks, and how errors look; the routes come in. Refuses everybody but the gateway, and refuses
to judge keys and residency: the gateway has done so before it asked. It lives on the admin port under a prefix of its
own, without the admin API's limit on bodies, since uploads stream through it; its routes limit themselves.
"""

import hmac
from collections.abc import Sequence

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from madang.core import Fault, KeyId, MadangError, ProjectId, Rejected, RequestId, TenantId, Unavailable
from madang.model import DataClass
from madang.runtime.telemetry import EventLog
from madang.wire.openai_errors import ApiError, ErrorCode, encode_error
from madang.wire.site_leg import (
    DATA_CLASS_FIELD,
    INTERNAL_PREFIX,
    KEY_FIELD,
    PROJECT_FIELD,
    REQUEST_ID_FIELD,
    TENANT_FIELD,
)

_JSON = "application/json"


class InternalCaller(msgspec.Struct, frozen=True, kw_only=True):
    """Whom the gateway asks for; believed because of the token."""

    tenant_id: TenantId
    project_id: ProjectId
    key_id: KeyId
    request_id: RequestId
    data_class: DataClass


def caller_of(request: Request) -> InternalCaller:
    """Return whom a request is for; raises ApiError when the gateway did not say."""
    fields = request.headers
    try:
        return InternalCaller(
            tenant_id=TenantId(fields[TENANT_FIELD]),
            project_id=ProjectId(fields.get(PROJECT_FIELD, "")),
            key_id=KeyId(fields[KEY_FIELD]),
            request_id=RequestId(fields[REQUEST_ID_FIELD]),
            data_class=DataClass(fields[DATA_CLASS_FIELD]),
        )
    except (KeyError, ValueError) as error:
        raise ApiError(
            ErrorCode.INVALID_REQUEST, f"the gateway's request lacks a field or has an odd one: {error}"
        ) from error


def object_response(value: object, status_code: int = 200) -> Response:
    """Return `value` (structs, dicts, lists) as a JSON answer."""
    return Response(msgspec.json.encode(value), status_code=status_code, media_type=_JSON)


def make_internal_app(routes: Sequence[Route], token: bytes, log: EventLog) -> ASGIApp:
    """Return the internal application.

    Args:
        routes: with the tenants' paths, such as `/v1/files`.
        token: what the gateway shows.
        log: where unexpected exceptions are named.
    """

    async def on_error(_request: Request, error: Exception) -> Response:
        assert isinstance(error, MadangError)
        if isinstance(error, Unavailable | Fault):
            log.warning("internal_request_not_served", reason=str(error))
        return _error_response(_worded(error))

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"there is nothing for {request.method} at {request.url.path.removeprefix(INTERNAL_PREFIX)[:100]}"
        return _error_response(ApiError(ErrorCode.INVALID_REQUEST, message, status=error.status_code))

    async def on_gone(_request: Request, _error: Exception) -> Response:
        return Response(status_code=400)  # nobody reads it: the client left in the middle of its upload

    async def on_bug(request: Request, error: Exception) -> Response:
        log.error("internal_request_failed", method=request.method, error=repr(error))
        return _error_response(ApiError(ErrorCode.UPSTREAM_FAILED, "the site process made a mistake", status=500))

    app = Starlette(
        routes=[Mount(INTERNAL_PREFIX, routes=list(routes))],
        exception_handlers={
            MadangError: on_error,
            HTTPException: on_http,
            ClientDisconnect: on_gone,
            Exception: on_bug,
        },
    )
    return _TokenCheck(app, b"Bearer " + token)


def _worded(error: MadangError) -> ApiError:
    """Return an error in the tenants' words: paths and disks are the operator's, and stand in the log."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Unavailable):
        message = "this site's storage cannot be used at the moment"
        return ApiError(ErrorCode.NO_REPLICA, message, retry_after_s=error.retry_after_s or 1.0)
    if isinstance(error, Rejected):
        return ApiError(ErrorCode.INVALID_REQUEST, error.message)
    return ApiError(ErrorCode.UPSTREAM_FAILED, "what this site stored of it is damaged", status=500)


def _error_response(error: ApiError) -> Response:
    response = Response(encode_error(error), status_code=error.status, media_type=_JSON)
    if error.retry_after_s is not None:
        response.headers["retry-after"] = str(max(1, -int(-error.retry_after_s // 1)))
    return response


class _TokenCheck:
    """Refuses whoever does not show the token, before anything of the request is looked at."""

    def __init__(self, app: ASGIApp, expected: bytes) -> None:
        self._app = app
        self._expected = expected

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        shown = next((value for name, value in scope.get("headers", ()) if name == b"authorization"), b"")
        if scope["type"] == "http" and hmac.compare_digest(shown, self._expected):
            await self._app(scope, receive, send)
            return
        await _error_response(ApiError(ErrorCode.INVALID_KEY, "only the site's gateway may ask here"))(
            scope, receive, send
        )


class Doors:
    """One port, two doors: the internal application under its prefix, the admin API for all else."""

    def __init__(self, admin: ASGIApp, internal: ASGIApp) -> None:
        self._admin = admin
        self._internal = internal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through the door that its path names."""
        path = scope.get("path", "")
        is_internal = path == INTERNAL_PREFIX or path.startswith(INTERNAL_PREFIX + "/")
        await (self._internal if is_internal else self._admin)(scope, receive, send)
