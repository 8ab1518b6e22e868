"""A small client of Podman's and Docker's HTTP API over its unix socket.

Owns the requests and what their answers mean for us. Refuses to pull images, to retry and to decide. Called by
`container_run`. Docker's Engine API 1.41, checked against its published description, and against Podman 4.3, whose
compatible service offers it too; a daemon of Docker was never asked.
"""

import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from madang.core import Conflict, Fault, Rejected, Unavailable

_API = "/v1.41"
_TIMEOUT_S = 30.0
_STOP_EXTRA_S = 10.0
_FRAME_HEAD = 8  # stream type, three zeros, length in four bytes big-endian: "attach" in the API's reference
_FRAME_BYTES_MAX = 1 << 20
_WORDS_MAX = 300


class ContainerClient:
    """One daemon.

    Args:
        socket: path of its unix socket.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(socket)), base_url="http://daemon" + _API, timeout=_TIMEOUT_S
        )

    async def __aenter__(self) -> "ContainerClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def is_podman(self) -> bool:
        """Return whether it is Podman, which takes the path of a seccomp profile where Docker takes its text."""
        names = [one.get("Name", "") for one in (await self._call("GET", "/version")).get("Components") or ()]
        return any("podman" in name.lower() for name in names)

    async def check_image(self, image: str) -> None:
        """Raise Rejected when an image is not there; it is never pulled."""
        await self._call("GET", f"/images/{image}/json")

    async def create(self, name: str, body: Mapping[str, Any]) -> str:
        """Return the id of a new container; raises Conflict when the name is taken."""
        made = await self._call("POST", "/containers/create", params={"name": name}, body=body)
        return str(made["Id"])

    async def start(self, container: str) -> None:
        """Start it."""
        await self._call("POST", f"/containers/{container}/start")

    async def wait(self, container: str) -> int:
        """Return its exit code once it has ended."""
        answer = await self._call("POST", f"/containers/{container}/wait", timeout_s=None)
        return int(answer.get("StatusCode", -1))

    async def stop(self, container: str, term_s: float) -> None:
        """End it: SIGTERM, SIGKILL after `term_s`; returns when it has ended, at once when it had."""
        params = {"t": str(max(1, round(term_s)))}
        await self._call("POST", f"/containers/{container}/stop", params=params, timeout_s=term_s + _STOP_EXTRA_S)

    async def kill(self, container: str) -> None:
        """End it with SIGKILL."""
        await self._call("POST", f"/containers/{container}/kill", params={"signal": "SIGKILL"})

    async def remove(self, container: str) -> None:
        """Remove it, and end it first if it still runs; nothing happens when it is gone."""
        await self._call("DELETE", f"/containers/{container}", params={"force": "1", "v": "1"}, gone_is_fine=True)

    async def find(self, labels: Mapping[str, str]) -> list[tuple[str, bool, dict[str, str]]]:
        """Return id, whether it runs, and labels of every container with these labels, ended ones too."""
        filters = json.dumps({"label": [f"{name}={value}" for name, value in labels.items()]})
        found = await self._call("GET", "/containers/json", params={"all": "1", "filters": filters})
        return [(str(one["Id"]), one.get("State") == "running", dict(one.get("Labels") or {})) for one in found]

    async def logs(self, container: str) -> AsyncIterator[bytes]:
        """Yield what it writes, from its beginning to its end."""
        params = {"follow": "1", "stdout": "1", "stderr": "1"}
        buffer = bytearray()
        try:
            async with self._client.stream(
                "GET", f"/containers/{container}/logs", params=params, timeout=None
            ) as answer:
                async for piece in answer.aiter_raw():
                    buffer += piece
                    for text in _take_frames(buffer):
                        yield text
        except httpx.HTTPError as error:
            raise Unavailable(f"container daemon {self._socket}: {error or type(error).__name__}") from error

    async def _call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        timeout_s: float | None = _TIMEOUT_S,
        gone_is_fine: bool = False,
    ) -> Any:
        try:
            answer = await self._client.request(method, path, params=params, json=body, timeout=timeout_s)
        except httpx.HTTPError as error:
            raise Unavailable(
                f"container daemon {self._socket}: {error or type(error).__name__}",
                next_step="start it, or mend engine_runtimes.NAME.socket and the permission of the socket",
            ) from error
        if answer.status_code in (200, 201, 204, 304) or (gone_is_fine and answer.status_code == 404):
            return _decode(answer)
        raise _refusal(answer, f"{method} {path}")


def _decode(answer: httpx.Response) -> Any:
    if not answer.content:
        return {}
    try:
        return answer.json()
    except ValueError as error:
        raise Fault(f"the container daemon answered {answer.status_code} without JSON") from error


def _refusal(answer: httpx.Response, what: str) -> Exception:
    try:
        message = str(answer.json().get("message", ""))
    except (ValueError, AttributeError):
        message = answer.text
    words = f"{what}: the container daemon answered {answer.status_code}: {message[:_WORDS_MAX]}"
    if answer.status_code == 409:
        return Conflict(words)
    if answer.status_code == 404 and "/images/" in what:
        return Rejected(words, next_step="bring the image to this machine first: images are never pulled")
    return Rejected(words) if 400 <= answer.status_code < 500 else Unavailable(words)


def _take_frames(buffer: bytearray) -> list[bytes]:
    """Take the whole frames out of a buffer and return what they hold; raises Fault for a frame that is none."""
    found: list[bytes] = []
    while len(buffer) >= _FRAME_HEAD:
        length = int.from_bytes(buffer[4:_FRAME_HEAD], "big")
        if buffer[0] > 2 or any(buffer[1:4]) or length > _FRAME_BYTES_MAX:
            raise Fault("the container daemon's log stream has no frames; a container with a terminal was asked for")
        if len(buffer) < _FRAME_HEAD + length:
            break
        found.append(bytes(buffer[_FRAME_HEAD : _FRAME_HEAD + length]))
        del buffer[: _FRAME_HEAD + length]
    return found
