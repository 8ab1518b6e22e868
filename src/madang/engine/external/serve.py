"""The external engine itself: the main of a child process that is a door to an endpoint of others.

Owns one endpoint's connections, key and health. Refuses to try again and to keep anything of what passes. Gateways
speak to it as to any engine of the site: on loopback, with a key of its own, under the service's name; what the
endpoint wants instead, it knows. Started by the node's shim as `python -m madang.engine.external.serve`.
"""

import asyncio
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import httpx

from madang.core import Rejected
from madang.engine.external import codec
from madang.engine.http_host import HttpAnswer, HttpHost, HttpRequest, Limits, error_answer, json_answer

T = TypeVar("T")
_CONNECT_S = 5.0
_ANSWER_S_MAX = 600.0
_WATCH_S = 1.0
_WATCH_ANSWER_S = 3.0
_READ_S_MAX = 60.0
_CONNECTIONS_MAX = 512
_OUTWARD = ("content-type", "accept", "inference-header-content-length")
_INWARD = ("inference-header-content-length",)
_METRICS_BYTES_MAX = 1024 * 1024


def read_auth(path: Path | None) -> str:
    """Return the value of the header that lets us in; raises Rejected when its file is missing, open or no header."""
    if path is None:
        return ""
    try:
        mode, text = path.stat().st_mode, path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Rejected(f"auth_file {path} cannot be read: {error}") from error
    if mode & 0o077:
        raise Rejected(f"auth_file {path} is open to others", next_step=f"chmod 600 {path}")
    if not text or not text.isprintable():
        raise Rejected(f"auth_file {path}: expected one line, such as: Bearer KEY")
    return text


class Door:
    """One endpoint.

    Args:
        options: where it is and what it is called.
        key: what gateways show us.
        client: speaks to it.
    """

    def __init__(self, options: codec.ServeOptions, key: str, client: httpx.AsyncClient) -> None:
        self._options = options
        self._endpoint = options.endpoint
        self._key = key
        self._client = client
        self._route = codec.Route(options)
        self._auth = read_auth(options.endpoint.auth_file)
        self._health: tuple[int, str] = (503, "it was not asked yet")
        self._running = 0

    async def handle(self, request: HttpRequest) -> HttpAnswer:
        """Answer one request."""
        if request.path == "/health":
            return self._say_health()
        if not request.has_key(self._key):
            return error_answer(401, "invalid_key", "the engine key is missing or wrong", "authentication_error")
        if (request.method, request.path) == ("GET", "/metrics") and self._endpoint.metrics_path:
            return await self._metrics()
        path = self._route.find(request.method, request.path)
        if path is None:
            return error_answer(404, "not_found", f"no {request.method} {request.path[:100]} here")
        body = request.body
        if path.startswith("/v1/"):
            try:
                body = codec.rename_model(body, self._endpoint.model or self._options.alias)
            except Rejected as error:
                return error_answer(400, "invalid_request", str(error))
        return await self._pass_on(request, path, body)

    async def watch(self) -> None:
        """Ask the endpoint how it is, for ever; a change is said once."""
        while True:
            found = await self._ask_health()
            if found != self._health:
                print(f"endpoint {self._endpoint.url}: {found[1] or 'well'}", file=sys.stderr, flush=True)
                self._health = found
            await asyncio.sleep(_WATCH_S)

    async def _ask_health(self) -> tuple[int, str]:
        try:
            self._auth = read_auth(self._endpoint.auth_file)
            answer = await self._client.get(
                self._endpoint.health_path, headers=self._headers(), timeout=_WATCH_ANSWER_S
            )
        except Rejected as error:
            return 500, str(error)
        except httpx.HTTPError as error:
            return 500, f"the endpoint is silent: {error or type(error).__name__}"
        if answer.status_code in (401, 403):
            return 500, f"the endpoint refuses our key ({answer.status_code})"
        if answer.status_code == 200:
            return 200, ""
        return 503 if answer.status_code == 503 else 500, f"the endpoint's health answered {answer.status_code}"

    def _say_health(self) -> HttpAnswer:
        status, reason = self._health
        if status == 200:
            return json_answer({"status": "ok", "running": self._running, "waiting": 0})
        return json_answer({"status": "error", "reason": reason}, status)

    async def _metrics(self) -> HttpAnswer:
        try:
            answer = await self._client.get(
                self._endpoint.metrics_path, headers=self._headers(), timeout=_WATCH_ANSWER_S
            )
        except httpx.HTTPError as error:
            return error_answer(502, "upstream_failed", f"the endpoint's metrics: {error or type(error).__name__}")
        return HttpAnswer(answer.status_code, answer.content[:_METRICS_BYTES_MAX], content_type="text/plain")

    def _headers(self) -> dict[str, str]:
        return {self._endpoint.auth_header: self._auth} if self._auth else {}

    async def _pass_on(self, request: HttpRequest, path: str, body: bytes) -> HttpAnswer:
        """Return the endpoint's answer; a client that leaves meanwhile cancels it there."""
        headers = {name: request.headers[name] for name in _OUTWARD if name in request.headers}
        asked = self._client.build_request(
            request.method, path.lstrip("/"), content=body, headers={**headers, **self._headers()}
        )
        self._running += 1
        answer: HttpAnswer | None = None
        try:
            upstream = await _unless_gone(self._client.send(asked, stream=True), request)
            if upstream is None:
                return error_answer(499, "gone", "the client left")
            answer = await self._word(upstream, request)
            return answer
        except httpx.HTTPError as error:
            return error_answer(
                502, "upstream_failed", f"the endpoint: {error or type(error).__name__}", "server_error"
            )
        finally:
            if answer is None or answer.chunks is None:
                self._running -= 1

    async def _word(self, upstream: httpx.Response, request: HttpRequest) -> HttpAnswer:
        kind = upstream.headers.get("content-type", "application/json")
        headers = {name: upstream.headers[name] for name in _INWARD if name in upstream.headers}
        if upstream.status_code in (401, 403):
            await upstream.aclose()
            return error_answer(502, "upstream_failed", "the endpoint refuses our key", "server_error")
        if kind.startswith("text/event-stream"):
            return HttpAnswer(upstream.status_code, content_type=kind, chunks=self._stream(upstream, request))
        try:
            body = await _unless_gone(_read_whole(upstream), request)
        finally:
            await upstream.aclose()
        if body is None:
            return error_answer(502, "upstream_failed", "the answer is too large, or nobody waits for it")
        return HttpAnswer(upstream.status_code, body, content_type=kind, headers=headers)

    async def _stream(self, upstream: httpx.Response, request: HttpRequest) -> AsyncIterator[bytes]:
        pieces = upstream.aiter_raw()
        try:
            while piece := await _unless_gone(_next(pieces), request):
                yield piece
        except httpx.HTTPError as error:
            # As the endpoint broke off, so does the door: an orderly end would pass for a whole answer.
            raise ConnectionResetError(str(error)) from error
        finally:
            self._running -= 1
            await upstream.aclose()


async def _next(pieces: AsyncIterator[bytes]) -> bytes | None:
    async for piece in pieces:
        if piece:
            return piece
    return None


async def _read_whole(upstream: httpx.Response) -> bytes | None:
    body = bytearray()
    async for piece in upstream.aiter_raw():
        body += piece
        if len(body) > codec.ANSWER_BYTES_MAX:
            return None
    return bytes(body)


async def _unless_gone(work: Coroutine[Any, Any, T], request: HttpRequest) -> T | None:
    """Return what a coroutine returns, or None when the client leaves first; then it is cancelled."""
    doing = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(request.until_gone())
    try:
        await asyncio.wait((doing, leaving), return_when=asyncio.FIRST_COMPLETED)
        return doing.result() if doing.done() else None
    finally:
        for task in (doing, leaving):
            task.cancel()
        await asyncio.gather(doing, leaving, return_exceptions=True)


def make_client(options: codec.ServeOptions) -> httpx.AsyncClient:
    """Return the client for an endpoint; certificates are always checked."""
    endpoint = options.endpoint
    verify = ssl.create_default_context(cafile=str(endpoint.ca_file) if endpoint.ca_file else None)
    return httpx.AsyncClient(
        base_url=endpoint.url,
        verify=verify,
        headers={"accept-encoding": "identity"},
        timeout=httpx.Timeout(_ANSWER_S_MAX, connect=_CONNECT_S),
        limits=httpx.Limits(max_connections=_CONNECTIONS_MAX),
        # A proxy out of the environment would see what passes.
        trust_env=False,
    )


async def run(options: codec.ServeOptions) -> int:
    """Serve until SIGTERM; 1 when the door cannot be opened at all."""
    key = options.key_file.read_text(encoding="ascii").strip()
    try:
        client = make_client(options)
        door = Door(options, key, client)
    except (Rejected, OSError) as error:
        print(f"{options.endpoint.url}: {error}", file=sys.stderr, flush=True)
        return 1
    limits = Limits(body_bytes_max=codec.BODY_BYTES_MAX, read_s_max=_READ_S_MAX, connections_max=_CONNECTIONS_MAX)
    host = HttpHost(door.handle, limits)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with client, asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(door.watch())
        await host.start(options.host, options.port)
        await stop.wait()
        await host.stop()
        watching.cancel()
    return 0


if __name__ == "__main__":
    raise SystemExit(asyncio.run(run(codec.ServeOptions.from_argv(sys.argv[1:]))))
