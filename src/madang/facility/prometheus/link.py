"""One GET from one exporter: a single connection, and everything that it takes in is bounded.

Owns the connection, the credentials on it and trust in the exporter's certificate. Refuses to know what the answer
means, to follow a redirect, and to unpack anything: an exporter that packs its answer unasked is not read. Called by
the driver only. How long an exchange may take is the caller's.
"""

import asyncio
import base64
import contextlib
import re
import ssl

import httpx
import msgspec

from madang.core import Rejected, Unavailable
from madang.facility.contract import Device, Secret
from madang.facility.prometheus.exposition import BYTES_MAX

PATH = "/metrics"
CLOSE_S = 2.0
KEPT_S = 120.0
"""An idle connection is kept longer than the usual time between readings, else each would begin TLS anew."""
_TOLD_MAX = 200
_HOST = re.compile(r"[\w.:-]+")
_HEADERS = {
    "Accept": "text/plain;version=0.0.4,application/openmetrics-text;version=1.0.0;q=0.5",
    "Accept-Encoding": "identity",
    "User-Agent": "madang",
}


class Page(msgspec.Struct, frozen=True):
    """What an exporter answered."""

    content_type: str
    data: bytes


class Link:
    """Speaks to one exporter.

    Args:
        device: where it is; its option `ca_file` names who signed its certificate.
        secret: `token`, or a user with `password`; without either nothing is sent.
    """

    def __init__(self, device: Device, secret: Secret) -> None:
        url = _to_url(device)
        self.what = f"{device.device_id} at {url.scheme}://{url.netloc.decode()}{url.path}"
        self._url = url
        self._device = device
        sent = _authorization(device, secret)
        self._headers = _HEADERS | sent
        self._secrets = [word for word in (*secret.words.values(), *(one.split()[-1] for one in sent.values())) if word]
        self._http: httpx.AsyncClient | None = None

    async def fetch(self) -> Page:
        """Return the whole answer; raises Unavailable for anything but one, naming what came instead."""
        http = self._connected()
        try:
            async with http.stream("GET", self._url) as response:
                self._check(response)
                data = bytearray()
                async for chunk in response.aiter_raw():
                    data += chunk
                    if len(data) > BYTES_MAX:
                        raise Unavailable(f"{self.what}: the answer is over {BYTES_MAX} bytes")
                return Page(response.headers.get("content-type", ""), bytes(data))
        except httpx.HTTPError as error:
            told = str(error) or type(error).__name__
            raise Unavailable(f"{self.what} does not answer: {told[:_TOLD_MAX]}") from error
        except asyncio.CancelledError:
            await self._forget()
            raise

    def mask(self, text: str) -> str:
        """Return what an exporter said without the words that it was given: some repeat them."""
        for word in self._secrets:
            text = text.replace(word, "***")
        return text

    async def close(self) -> None:
        """End the connection."""
        await self._forget()

    def _check(self, response: httpx.Response) -> None:
        status, headers = response.status_code, response.headers
        if 300 <= status < 400:
            raise Unavailable(f"{self.what} redirects to another place, which is not followed")
        if status in (401, 403):
            raise Unavailable(f"{self.what} refuses the credentials ({status})", next_step="check the device's secret")
        if status != 200:
            raise Unavailable(f"{self.what} answers with {status}")
        if headers.get("content-encoding", "identity") != "identity":
            raise Unavailable(f"{self.what} packs its answer though it was asked not to")
        if "content-length" not in headers and "transfer-encoding" not in headers:
            raise Unavailable(f"{self.what} does not say where its answer ends: half of it could not be told")

    async def _forget(self) -> None:
        """Let the next exchange connect anew.

        httpcore counts a connection as taken for ever when what used it was cancelled while it connected or waited; it
        is the only one, so nothing would ever be read again.
        """
        http, self._http = self._http, None
        if http is not None:
            with contextlib.suppress(httpx.HTTPError, OSError, TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await http.aclose()

    def _connected(self) -> httpx.AsyncClient:
        if self._http is None:
            self._http = httpx.AsyncClient(
                verify=self._trust(),
                trust_env=False,
                follow_redirects=False,
                timeout=self._device.timeout_s,
                headers=self._headers,
                limits=httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=KEPT_S),
            )
        return self._http

    def _trust(self) -> ssl.SSLContext:
        """Return what to believe of the exporter's certificate; plain HTTP gets a context that believes nothing."""
        if self._url.scheme == "http":
            return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        ca_file = str(self._device.options.get("ca_file", ""))
        try:
            context = ssl.create_default_context(cafile=ca_file or None)
        except OSError as error:
            raise Unavailable(f"{self.what}: the CA file {ca_file} cannot be read: {error}") from error
        # The file may be the exporter's own certificate, signed by nobody else.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        return context


def _to_url(device: Device) -> httpx.URL:
    try:
        url = httpx.URL(device.address if "://" in device.address else f"http://{device.address}")
        is_whole = (
            url.scheme in ("http", "https") and _HOST.fullmatch(url.host) and not url.userinfo and not url.fragment
        )
    except httpx.InvalidURL:
        is_whole = False
    if not is_whole:
        raise Rejected(
            f"{device.device_id}: {device.address!r} is no address of an exporter",
            next_step="write host:port, or https://host:port with a path where it is not /metrics",
        )
    return url if url.path not in ("", "/") else url.copy_with(path=PATH)


def _authorization(device: Device, secret: Secret) -> dict[str, str]:
    token, password = secret.words.get("token", ""), secret.words.get("password", "")
    if token and secret.user:
        raise Rejected(f"{device.device_id}: its secret has a user and a token", next_step="leave one of them out")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise Rejected(f"{device.device_id}: the token of its secret cannot stand in a header")
    if token:
        return {"Authorization": f"Bearer {token}"}
    if not secret.user:
        return {}
    pair = base64.b64encode(f"{secret.user}:{password}".encode()).decode()
    return {"Authorization": f"Basic {pair}"}
