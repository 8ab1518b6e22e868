"""One GET from one exporter.

Owns the address, the credentials and trust in the exporter's certificate. Refuses to know what the answer
means, to follow a redirect, and to unpack anything: an exporter that packs its answer unasked is not read. Called by
the driver only. How long an exchange may take is the caller's.
"""

import base64
import re
import ssl
from collections.abc import Mapping

import httpx
import msgspec

from madang.core import Rejected, Unavailable
from madang.facility.contract import Device, Secret
from madang.facility.http_connection import HttpConnection, trust_nobody
from madang.facility.prometheus.exposition import BYTES_MAX

PATH = "/metrics"
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
        self._secrets = [word for word in (*secret.words.values(), *(one.split()[-1] for one in sent.values())) if word]
        self._connection = HttpConnection(
            what=self.what, timeout_s=device.timeout_s, headers=_HEADERS | sent, trust=self._trust
        )

    async def fetch(self) -> Page:
        """Return the whole answer; raises Unavailable for anything but one, naming what came instead."""
        answer = await self._connection.exchange("GET", self._url, bytes_max=BYTES_MAX, check=self._check)
        return Page(answer.headers.get("content-type", ""), answer.data)

    def mask(self, text: str) -> str:
        """Return what an exporter said without the words that it was given: some repeat them."""
        for word in self._secrets:
            text = text.replace(word, "***")
        return text

    async def close(self) -> None:
        """End the connection."""
        await self._connection.end()

    def _check(self, status: int, headers: Mapping[str, str]) -> None:
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

    async def _trust(self) -> ssl.SSLContext:
        """Return what to believe of the exporter's certificate; plain HTTP gets a context that believes nothing."""
        if self._url.scheme == "http":
            return trust_nobody()
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
