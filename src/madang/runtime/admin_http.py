"""The admin API's frame: bearer token, error object, limits, health, metrics, and the server that runs it.

Owns what every admin API has in common. Refuses to know any service: routes come in as routers. Called by hub and
site. Tenants never reach it; their port belongs to the gateway.

Bodies and answers are the structs of `madang.model`, decoded by msgspec, so that the API, the bus and the
database speak of one shape.
"""

import asyncio
import contextlib
import hashlib
import hmac
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec
import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CollectorRegistry, generate_latest
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from madang.core import Conflict, Fault, MadangError, Rejected, Unavailable
from madang.runtime.listening import open_listener
from madang.runtime.telemetry import EventLog

BODY_BYTES_MAX = 8 * 1024 * 1024
_CONNECTIONS_MAX = 200
_KEEP_ALIVE_S = 15
_STOP_S = 2.0
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

S = TypeVar("S", bound=msgspec.Struct)


class NotFound(Rejected):
    """The request names something that does not exist."""


class NotAuthorised(Rejected):
    """The request carries no valid admin token."""


class TooLarge(Rejected):
    """The request's body is over the limit."""


_STATUS: tuple[tuple[type[MadangError], int, str], ...] = (
    (NotFound, 404, "not_found"),
    (NotAuthorised, 401, "invalid_token"),
    (TooLarge, 413, "request_too_large"),
    (Rejected, 400, "invalid_request"),
    (Conflict, 409, "conflict"),
    (Unavailable, 503, "unavailable"),
    (Fault, 500, "fault"),
)


def json_response(value: object, status_code: int = 200) -> Response:
    """Return `value` (structs, dicts, lists) as a JSON response."""
    return Response(msgspec.json.encode(value), status_code=status_code, media_type="application/json")


def error_response(error: MadangError) -> Response:
    """Return the error object of one of our errors with its status."""
    status, code = next((status, code) for kind, status, code in _STATUS if isinstance(error, kind))
    response = _error(status, code, error.message, error.next_step)
    if isinstance(error, Unavailable) and error.retry_after_s is not None:
        response.headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    if status == 401:
        response.headers["www-authenticate"] = "Bearer"
    return response


def _error(status: int, code: str, message: str, next_step: str = "") -> Response:
    return json_response({"error": {"code": code, "message": message, "next_step": next_step}}, status)


async def read_body(request: Request, kind: type[S]) -> S:
    """Return the request's JSON body as a struct; raises Rejected naming the field and what was expected."""
    data = await request.body()
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise Rejected(f"body is not a {kind.__name__}: {error}", next_step="see /openapi.json") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Rejected(f"body is not JSON: {error}", next_step="send a JSON object") from error


def takes(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the `openapi_extra` of a route whose body is `kind`; give `kind` to make_admin_app's `structs` too."""
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def make_admin_app(
    *,
    title: str,
    version: str,
    token_sha256: str,
    log: EventLog,
    registry: CollectorRegistry,
    find_problems: Callable[[], Sequence[str]],
    routers: Sequence[APIRouter],
    open_routers: Sequence[APIRouter] = (),
    structs: Sequence[type[msgspec.Struct]] = (),
) -> FastAPI:
    """Return the application of one admin API.

    Args:
        title: of the OpenAPI document.
        version: of it and of this release.
        token_sha256: hex digest of the bearer token; empty refuses everybody.
        log: where unexpected exceptions are named.
        registry: metrics of this program.
        find_problems: what keeps the program from being ready; empty means ready.
        routers: routes behind the token.
        open_routers: routes without it.
        structs: shapes that the document describes.
    """
    app = FastAPI(title=title, version=version, docs_url=None, redoc_url=None)
    check = _make_token_check(token_sha256)
    for router in routers:
        app.include_router(router, dependencies=[Depends(check)])
    for router in open_routers:
        app.include_router(router)
    app.include_router(_make_health_router(registry, find_problems))
    _add_error_handlers(app, log)
    app.add_middleware(_BodyLimit, bytes_max=BODY_BYTES_MAX)
    _describe_structs(app, structs)
    return app


_bearer = HTTPBearer(auto_error=False)


def _make_token_check(token_sha256: str) -> Callable[..., None]:
    expected = token_sha256.lower()

    def check_token(credentials: HTTPAuthorizationCredentials | None = Depends(_bearer)) -> None:  # noqa: B008
        given = credentials.credentials if credentials is not None else ""
        digest = hashlib.sha256(given.encode()).hexdigest()
        if not given or not hmac.compare_digest(digest, expected):
            raise NotAuthorised(
                "the admin token is missing or wrong",
                next_step="send 'Authorization: Bearer TOKEN' with the token of this program",
            )

    return check_token


def _make_health_router(registry: CollectorRegistry, find_problems: Callable[[], Sequence[str]]) -> APIRouter:
    router = APIRouter(tags=["operations"])

    @router.get("/healthz")
    async def healthz() -> Response:
        return json_response({"is_alive": True})

    @router.get("/readyz")
    async def readyz() -> Response:
        problems = list(find_problems())
        return json_response({"is_ready": not problems, "problems": problems}, 503 if problems else 200)

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(registry), headers={"content-type": _METRICS_TYPE})

    return router


def _add_error_handlers(app: FastAPI, log: EventLog) -> None:
    @app.exception_handler(MadangError)
    async def on_ours(_request: Request, error: MadangError) -> Response:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def on_validation(_request: Request, error: RequestValidationError) -> Response:
        parts = ["{}: {}".format(".".join(map(str, item["loc"])), item["msg"]) for item in error.errors()]
        return _error(400, "invalid_request", "; ".join(parts), "see /openapi.json")

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
        message = f"{request.method} {request.url.path}: {error.detail}"
        return _error(error.status_code, code, message, "see /openapi.json")

    @app.exception_handler(Exception)
    async def on_bug(request: Request, error: Exception) -> Response:
        log.error("admin_request_failed", method=request.method, path=request.url.path, error=repr(error))
        return _error(500, "internal_error", "the program made a mistake; its log names it", "report it")


def _describe_structs(app: FastAPI, structs: Sequence[type[msgspec.Struct]]) -> None:
    _, components = msgspec.json.schema_components(structs, ref_template="#/components/schemas/{name}")

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            schema.setdefault("components", {}).setdefault("schemas", {}).update(components)
            app.openapi_schema = schema
        return app.openapi_schema

    # FastAPI's documented way to extend the document is to replace this method of the instance.
    app.openapi = openapi  # type: ignore[method-assign]


class _BodyLimit:
    """Refuses a body over the limit before it is read, and a body without a length as soon as it passes it."""

    def __init__(self, app: ASGIApp, bytes_max: int) -> None:
        self._app = app
        self._bytes_max = bytes_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        if length.isdigit() and int(length) > self._bytes_max:
            await error_response(self._error())(scope, receive, send)
            return
        seen_bytes = 0

        async def receive_counted() -> Message:
            nonlocal seen_bytes
            message = await receive()
            seen_bytes += len(message.get("body", b""))
            if seen_bytes > self._bytes_max:
                raise self._error()
            return message

        await self._app(scope, receive_counted, send)

    def _error(self) -> TooLarge:
        return TooLarge(f"body is over {self._bytes_max} bytes", next_step="send less in one request")


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: the program that runs it owns them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class AdminServer:
    """Serves an application inside the running event loop."""

    def __init__(self, app: ASGIApp, host: str, port: int) -> None:
        self._app = app
        self._host = host
        self._port = port
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Bind and serve; return the port. Raises Rejected naming who holds the port."""
        listener = open_listener(self._host, self._port)
        config = uvicorn.Config(
            self._app,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            limit_concurrency=_CONNECTIONS_MAX,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=math.ceil(_STOP_S),
            server_header=False,
        )
        self._server = _Server(config)
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]), name="admin_http")
        return int(listener.getsockname()[1])

    async def stop(self) -> None:
        """Finish the requests in flight within about two seconds and close the port."""
        if self._server is None or self._task is None:
            return
        self._server.should_exit = True
        await self._task
        self._task = None

    async def wait(self) -> None:
        """Return when the server ends, raising what ended it."""
        assert self._task is not None
        await asyncio.shield(self._task)
