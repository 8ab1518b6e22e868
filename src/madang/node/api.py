"""The node's admin API, for its site: plan in, observations out.

Owns routes, token check and error texts. Refuses to decide. Built on Starlette alone, not on the hub's frame,
since a node's memory belongs to its engines. Called by the node program.
"""

import asyncio
import hmac
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from madang import __version__
from madang.core import Conflict, MadangError, Rejected, Unavailable
from madang.node.artifacts import ArtifactFetcher
from madang.node.board import Board
from madang.node.metrics import make_registry
from madang.runtime.telemetry import EventLog
from madang.wire.node_api import NodePlan

BODY_BYTES_MAX = 4 * 1024 * 1024
WAIT_S_MAX = 60.0
_BODY_S_MAX = 10.0


class NodeActions(Protocol):
    """What the API needs of the program."""

    def apply_plan(self, plan: NodePlan) -> None:
        """Carry out a plan; raises Rejected or Conflict."""
        ...

    def restart_replica(self, replica_id: str) -> bool:
        """Restart one engine; return whether there is such a replica."""
        ...

    def uncordon_chip(self, chip_id: str) -> int | None:
        """Lift a chip's automatic cordons and return how many there were, None when there is no such chip."""
        ...

    def find_problems(self) -> Sequence[str]:
        """Return what keeps the node from being ready."""
        ...

    def is_ending(self) -> bool:
        """Return whether the program is about to end."""
        ...


class _NotFound(Rejected):
    """The request names something that does not exist."""


class _NotAuthorised(Rejected):
    """The request carries no valid token."""


_STATUS: tuple[tuple[type[MadangError], int, str], ...] = (
    (_NotFound, 404, "not_found"),
    (_NotAuthorised, 401, "invalid_token"),
    (Rejected, 400, "invalid_request"),
    (Conflict, 409, "conflict"),
    (Unavailable, 503, "unavailable"),
    (MadangError, 500, "fault"),
)

Endpoint = Callable[[Request], Awaitable[Response]]


def make_app(
    actions: NodeActions, board: Board, token: str, log: EventLog, fetcher: ArtifactFetcher | None = None
) -> Starlette:
    """Return the application; `fetcher` adds the metrics of artifacts."""
    routes = _Routes(actions, board)
    registry = make_registry(board, fetcher)

    async def healthz(_request: Request) -> Response:
        return _json({"is_alive": True, "version": __version__})

    async def readyz(_request: Request) -> Response:
        problems = list(actions.find_problems())
        return _json({"is_ready": not problems, "problems": problems}, 503 if problems else 200)

    async def metrics(_request: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    async def on_ours(_request: Request, error: Exception) -> Response:
        assert isinstance(error, MadangError)
        return _error_response(error)

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
        return _error(error.status_code, code, f"{request.method} {request.url.path}: {error.detail}")

    async def on_bug(request: Request, error: Exception) -> Response:
        log.error("admin_request_failed", method=request.method, path=request.url.path, error=repr(error))
        return _error(500, "internal_error", "the program made a mistake; its log names it", "report it")

    def guarded(endpoint: Endpoint) -> Endpoint:
        async def check_token(request: Request) -> Response:
            given = request.headers.get("authorization", "").encode("latin-1")
            if not hmac.compare_digest(given, f"Bearer {token}".encode()):
                raise _NotAuthorised(
                    "the node's token is missing or wrong", next_step="send 'Authorization: Bearer TOKEN'"
                )
            return await endpoint(request)

        return check_token

    return Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
            Route("/api/v1/plan", guarded(routes.put_plan), methods=["PUT"]),
            Route("/api/v1/observed", guarded(routes.get_observed)),
            Route("/api/v1/replicas/{replica_id}/restart", guarded(routes.restart), methods=["POST"]),
            Route("/api/v1/chips/{chip_id}/uncordon", guarded(routes.uncordon_chip), methods=["POST"]),
        ],
        exception_handlers={MadangError: on_ours, HTTPException: on_http, Exception: on_bug},
    )


class _Routes:
    """The routes behind the token."""

    def __init__(self, actions: NodeActions, board: Board) -> None:
        self._actions = actions
        self._board = board

    async def put_plan(self, request: Request) -> Response:
        try:
            plan = msgspec.json.decode(await _read_body(request), type=NodePlan)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Rejected(f"body is not a NodePlan: {error}") from error
        self._actions.apply_plan(plan)
        return _json({"generation": plan.generation})

    async def get_observed(self, request: Request) -> Response:
        after = _number(request, "after", -1.0)
        wait_s = min(_number(request, "wait_s", 0.0), WAIT_S_MAX)
        if wait_s > 0:
            return _json(await self._board.wait(int(after), wait_s, self._actions.is_ending))
        return _json(self._board.observed())

    async def restart(self, request: Request) -> Response:
        replica_id = request.path_params["replica_id"]
        if not self._actions.restart_replica(replica_id):
            raise _NotFound(f"no replica {replica_id!r} on this node")
        return _json({"replica_id": replica_id}, 202)

    async def uncordon_chip(self, request: Request) -> Response:
        chip_id = request.path_params["chip_id"]
        lifted = self._actions.uncordon_chip(chip_id)
        if lifted is None:
            raise _NotFound(f"no chip {chip_id!r} on this node")
        return _json({"chip_id": chip_id, "lifted": lifted})


async def _read_body(request: Request) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_S_MAX):
            async for chunk in request.stream():
                body += chunk
                if len(body) > BODY_BYTES_MAX:
                    raise Rejected(f"body is over {BODY_BYTES_MAX} bytes")
    except TimeoutError as error:
        raise Rejected(f"body did not arrive within {_BODY_S_MAX:g} s") from error
    return bytes(body)


def _number(request: Request, name: str, default: float) -> float:
    text = request.query_params.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError as error:
        raise Rejected(f"query parameter {name}: expected a number, got {text[:40]!r}") from error
    if not math.isfinite(value):
        raise Rejected(f"query parameter {name}: expected a number, got {text[:40]!r}")
    return value


def _json(value: object, status_code: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status_code=status_code, media_type="application/json")


def _error(status: int, code: str, message: str, next_step: str = "") -> Response:
    return _json({"error": {"code": code, "message": message, "next_step": next_step}}, status)


def _error_response(error: MadangError) -> Response:
    status, code = next((status, code) for kind, status, code in _STATUS if isinstance(error, kind))
    response = _error(status, code, error.message, error.next_step)
    if isinstance(error, Unavailable) and error.retry_after_s is not None:
        response.headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    return response
