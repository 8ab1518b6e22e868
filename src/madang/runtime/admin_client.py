"""A client of the admin APIs: bearer token, JSON, and errors as our own classes.

Owns the translation of statuses and transport failures. Refuses to know routes' meanings. Called by the command
line and by the embedded federation's bootstrap.
"""

import ipaddress
import urllib.parse
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec

from madang.core import Conflict, Fault, MadangError, Rejected, Unavailable
from madang.runtime.http_trust import trust_for

_CONNECT_TIMEOUT_S = 3.0
_ANSWER_TIMEOUT_S = 30.0


class NotFound(Rejected):
    """The API says that what the path names does not exist."""


class AdminClient:
    """Calls one admin API.

    Args:
        url: base URL without path.
        token: bearer token; empty for the pages that need none.
        name: what messages call it, such as `the hub`.
    """

    def __init__(self, url: str, token: str, *, name: str) -> None:
        self._url = url.rstrip("/")
        self._name = name
        headers = {"authorization": f"Bearer {token}"} if token else {}
        try:
            self._client = httpx.Client(
                base_url=self._url,
                headers=headers,
                timeout=httpx.Timeout(_ANSWER_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S),
                # A proxy in the environment is for the outside; this machine is reached directly.
                trust_env=not is_loopback(url),
                verify=trust_for(url),
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise Rejected(f"{url!r} is not a URL: {error}", next_step="write it as http://host:port") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def get(self, path: str, params: Mapping[str, Any] | None = None, *, kind: Any = Any) -> Any:
        """Return the JSON at `path`; parameters that are None are left out; see `call` for `kind`."""
        return self.call("GET", path, params=params, kind=kind)

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        params: Mapping[str, Any] | None = None,
        kind: Any = Any,
    ) -> Any:
        """Return the JSON of an answer, None for an empty one.

        Args:
            method: HTTP method.
            path: path below the base URL, already quoted.
            body: a value that msgspec can write as JSON, or None.
            params: query parameters; those that are None are left out.
            kind: type that the answer is read as, in msgspec's manner; plain JSON values without one.

        Raises:
            NotFound, Rejected, Conflict, Unavailable, Fault: as the status says, with the API's own message.
        """
        content = None if body is None else msgspec.json.encode(body)
        try:
            response = self._client.request(
                method,
                path,
                content=content,
                headers={"content-type": "application/json"} if content is not None else None,
                params={name: value for name, value in (params or {}).items() if value is not None},
            )
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise Rejected(f"{self._url} is not a URL: {error}", next_step="write it as http://host:port") from error
        except httpx.TransportError as error:
            raise Unavailable(
                f"{self._name} at {self._url} does not answer: {error or type(error).__name__}",
                next_step="see what runs with: madang status",
            ) from error
        if response.is_success:
            return self._decode(response, kind) if response.content else None
        raise self._explain(response, f"{method} {path}")

    def _decode(self, response: httpx.Response, kind: Any) -> Any:
        try:
            return msgspec.json.decode(response.content, type=kind)
        except msgspec.MsgspecError as error:
            raise Fault(
                f"{self._name} at {self._url} answered {response.request.url.path} with something other than JSON",
                next_step="check that the URL is that of an admin API",
            ) from error

    def _explain(self, response: httpx.Response, operation: str) -> MadangError:
        status = response.status_code
        message, next_step = _read_error(response.content)
        if status == 401:
            return Rejected(
                f"{self._name} at {self._url} does not accept the admin token",
                next_step="pass --token or set MADANG_ADMIN_TOKEN",
            )
        text = f"{self._name}: {message}" if message else f"{self._name}: {operation} was answered with {status}"
        if status == 404:
            return NotFound(text, next_step=next_step)
        if status == 409:
            return Conflict(text, next_step=next_step)
        if status in (429, 502, 503, 504):
            return Unavailable(text, next_step=next_step)
        return Fault(text, next_step=next_step) if status >= 500 else Rejected(text, next_step=next_step)


def _read_error(content: bytes) -> tuple[str, str]:
    try:
        found = msgspec.json.decode(content)["error"]
        return str(found["message"]), str(found.get("next_step") or "")
    except (msgspec.MsgspecError, KeyError, TypeError):
        return "", ""


def is_loopback(url: str) -> bool:
    """Return whether a URL names this machine by a loopback address or `localhost`."""
    host = urllib.parse.urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
