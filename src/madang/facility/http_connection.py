"""The one connection to a device that speaks HTTP: kept between readings, and everything that comes in is bounded.

Owns the connection, its end, and how much of an answer is taken. Refuses to follow redirects, to unpack anything, to
take settings from the environment, and to know what an answer means. Called by the drivers of Redfish and Prometheus.
How long an exchange may take is the caller's.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable, Mapping

import httpx
import msgspec

from madang.core import Unavailable

CLOSE_S = 2.0
KEPT_S = 120.0
"""An idle connection is kept longer than the usual time between readings, else each would begin TLS anew."""
_TOLD_MAX = 200

Check = Callable[[int, Mapping[str, str]], None]


class Answer(msgspec.Struct, frozen=True):
    """One answer, as it came; names of headers are lower case."""

    status: int
    headers: dict[str, str]
    data: bytes


class TooLong(Unavailable):
    """An answer is longer than what is taken."""


class HttpConnection:
    """A single connection, one exchange at a time.

    Args:
        what: the device, for messages.
        timeout_s: of each step.
        headers: sent with each request.
        trust: returns what to believe of the device's certificate, when it is connected to.
        base_url: what a request's path is appended to.
    """

    def __init__(
        self,
        *,
        what: str,
        timeout_s: float,
        headers: Mapping[str, str],
        trust: Callable[[], Awaitable[ssl.SSLContext]],
        base_url: str = "",
    ) -> None:
        self._what = what
        self._timeout_s = timeout_s
        self._headers = dict(headers)
        self._trust = trust
        self._base_url = base_url
        self._http: httpx.AsyncClient | None = None

    @property
    def is_open(self) -> bool:
        """Whether anything was exchanged since it was made or ended."""
        return self._http is not None

    async def exchange(
        self,
        method: str,
        url: httpx.URL | str,
        *,
        bytes_max: int,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        check: Check = lambda _status, _headers: None,
    ) -> Answer:
        """Return a whole answer.

        Args:
            method: of the request.
            url: whole, or a path below the base URL.
            bytes_max: of the answer's body.
            content: of the request.
            headers: beside those of each request.
            check: looks at status and headers before the body is read, and raises what it does not take.

        Raises:
            TooLong: the body is over `bytes_max`.
            Unavailable: the device is away or speaks no HTTP.
        """
        http = await self._connected()
        try:
            async with http.stream(method, url, content=content, headers=dict(headers or {})) as response:
                check(response.status_code, response.headers)
                data = bytearray()
                async for chunk in response.aiter_raw():
                    data += chunk
                    if len(data) > bytes_max:
                        raise TooLong(f"{self._what}: the answer for {response.url.path} is over {bytes_max} bytes")
                return Answer(response.status_code, dict(response.headers), bytes(data))
        except httpx.HTTPError as error:
            told = (str(error) or type(error).__name__)[:_TOLD_MAX]
            raise Unavailable(f"{self._what} does not answer {method} of {url}: {told}") from error
        except asyncio.CancelledError:
            await self.end()
            raise

    async def end(self) -> None:
        """Let the next exchange connect anew.

        httpcore counts a connection as taken for ever when what used it was cancelled while it connected or waited; it
        is the only one, so nothing would ever be read again.
        """
        http, self._http = self._http, None
        if http is not None:
            with contextlib.suppress(httpx.HTTPError, OSError, TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await http.aclose()

    async def _connected(self) -> httpx.AsyncClient:
        if self._http is None:
            self._http = httpx.AsyncClient(
                base_url=self._base_url,
                verify=await self._trust(),
                trust_env=False,
                follow_redirects=False,
                timeout=self._timeout_s,
                headers=self._headers,
                limits=httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=KEPT_S),
            )
        return self._http


def trust_nobody() -> ssl.SSLContext:
    """Return a context for plain HTTP: nothing is loaded and nobody believed, should the device turn to TLS."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
