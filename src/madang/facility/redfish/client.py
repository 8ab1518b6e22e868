"""A thin Redfish client: one exchange at a time, everything it takes in is bounded.

Owns logging in and out, and trust in the device's certificate. Refuses to know resources and to
follow a link off its origin: every path is checked by `codec.own_path`. Called by the driver only.

Errors: Unavailable when the device is away, garbled or refuses; Rejected for what it can never take; Conflict when the
resource changed meanwhile; Absent when it has none of that name. How long an exchange may take is the caller's.
"""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import ssl

import httpx
import msgspec

from madang.core import Clock, Conflict, Rejected, Unavailable
from madang.facility.contract import Device, Secret
from madang.facility.http_connection import CLOSE_S, Answer, HttpConnection, TooLong, trust_nobody
from madang.facility.redfish.codec import Node, decode, own_path, refusal

BYTES_MAX = 1024 * 1024
"""Of one answer; the largest of DMTF's public mock-ups is under 64 KiB, a collection of 512 members under 64 KiB."""
REDIRECTS_MAX = 2
SESSIONS = "/redfish/v1/SessionService/Sessions"
LOGIN_PAUSE_S = 60.0
"""After refused credentials: BMCs lock accounts that are tried too often."""
_HEADER_CHARACTERS_MAX = 1024
_NO_CHECK_TIME = ssl.VerifyFlags(0x200000)
"""X509_V_FLAG_NO_CHECK_TIME of OpenSSL: a BMC that lost its clock makes certificates of the wrong year, and a pin
says more than a date."""
_HEADERS = {"OData-Version": "4.0", "Accept": "application/json", "Accept-Encoding": "identity"}


class Absent(Exception):
    """The service has no such resource."""


class ResourceTrouble(Unavailable):
    """The service answers, but not with this resource; others may be well."""


class Document(msgspec.Struct, frozen=True):
    """A resource as it was read: its JSON object, its ETag and the methods that it allows, where told."""

    node: dict[str, Node]
    etag: str = ""
    allow: str = ""


class Client:
    """Speaks to one Redfish service.

    Args:
        device: where it is; its options as the manifest lists them.
        secret: user and `password`; without a user nothing is sent.
        clock: time.
    """

    def __init__(self, device: Device, secret: Secret, clock: Clock) -> None:
        url = httpx.URL(device.address if "://" in device.address else f"https://{device.address}")
        if url.scheme not in ("http", "https") or not url.host or "redfish" in url.path or url.userinfo:
            raise Rejected(
                f"{device.device_id}: {device.address!r} is no address of a Redfish service",
                next_step="write https://host, or http://host:port inside of a box",
            )
        self.origin = f"{url.scheme}://{url.netloc.decode()}"
        # Where one door stands before many BMCs, each has a path of its own, which their links know nothing of.
        self._base = self.origin + url.path.rstrip("/")
        self._what = f"{device.device_id} at {self._base}"
        self._device = device
        self._secret = secret
        self._clock = clock
        self._uses_session = device.options.get("auth", "session") == "session"
        self._connection = HttpConnection(
            what=self._what, timeout_s=device.timeout_s, headers=_HEADERS, trust=self._trust, base_url=self._base
        )
        self._token = ""
        self._session_path = ""
        self._login_after_ns = 0

    async def get(self, path: str) -> Document:
        """Return a resource; raises Absent, Unavailable."""
        answer = await self._ask("GET", path)
        if answer.status == 404:
            raise Absent(path)
        if answer.status != 200:
            raise self._refused("GET", path, answer)
        node = decode(answer.data)
        if node is None:
            raise ResourceTrouble(f"{self._what}: the answer for {path} is no JSON object")
        etag = _printable(answer.headers.get("etag") or str(node.get("@odata.etag", "")))
        return Document(node, etag, answer.headers.get("allow", ""))

    async def send(self, method: str, path: str, body: Node, etag: str = "") -> None:
        """PATCH or POST; raises Rejected for what it cannot take, Conflict for an ETag that is old, Unavailable."""
        answer = await self._ask(method, path, body, {"If-Match": etag} if etag else {})
        if 200 <= answer.status < 300:
            return
        if answer.status in (404, 405, 501):
            raise Rejected(f"{self._what} answers {method} of {path} with {answer.status}: it lets this be read only")
        if answer.status == 412:
            raise Conflict(f"{self._what}: {path} changed since it was read")
        if answer.status in (400, 422):
            said = self._said(answer) or "no reason given"
            raise Rejected(f"{self._what} does not take {msgspec.json.encode(body).decode()} for {path}: {said}")
        raise self._refused(method, path, answer)

    async def close(self) -> None:
        """End the session at the device, if it lets us, and the connection."""
        if self._connection.is_open and self._token and self._session_path:
            with contextlib.suppress(Unavailable, TimeoutError):
                async with asyncio.timeout(min(self._device.timeout_s, CLOSE_S)):
                    # Whatever it answers, nothing more is said.
                    await self._exchange_once("DELETE", self._session_path, None, {"X-Auth-Token": self._token})
        self._token = self._session_path = ""
        await self._connection.end()

    async def _ask(self, method: str, path: str, body: Node = None, headers: dict[str, str] | None = None) -> Answer:
        answer = await self._exchange(method, path, body, {**(headers or {}), **await self._login()})
        if answer.status == 401 and self._token:
            self._token = ""  # the session ran out, or the BMC was restarted
            answer = await self._exchange(method, path, body, {**(headers or {}), **await self._login()})
        if answer.status == 401:
            self._pause()
            raise Unavailable(f"{self._what} refuses the credentials", next_step="check the device's secret")
        return answer

    async def _login(self) -> dict[str, str]:
        if not self._secret.user:
            return {}
        if self._clock.monotonic_ns() < self._login_after_ns:
            raise Unavailable(f"{self._what} refused the credentials; no new attempt for {LOGIN_PAUSE_S:g} s")
        words = {"UserName": self._secret.user, "Password": self._secret.words.get("password", "")}
        if not self._uses_session:
            pair = base64.b64encode(f"{words['UserName']}:{words['Password']}".encode()).decode()
            return {"Authorization": f"Basic {pair}"}
        if not self._token:
            answer = await self._exchange("POST", SESSIONS, words, {})
            self._token = _printable(answer.headers.get("x-auth-token", "")) if answer.status in (200, 201) else ""
            if answer.status in (400, 401, 403):
                self._pause()
            if not self._token:
                said = self._said(answer) or "no token"
                raise Unavailable(f"{self._what} answers a login with {answer.status}: {said}")
            self._session_path = own_path(answer.headers.get("location", ""), self.origin)
        return {"X-Auth-Token": self._token}

    def _pause(self) -> None:
        self._login_after_ns = self._clock.monotonic_ns() + int(LOGIN_PAUSE_S * 1e9)

    async def _exchange(self, method: str, path: str, body: Node, headers: dict[str, str]) -> Answer:
        for _ in range(1 + REDIRECTS_MAX):
            answer = await self._exchange_once(method, path, body, headers)
            if answer.status not in (301, 302, 307, 308) or method != "GET":
                return answer
            path = own_path(answer.headers.get("location", ""), self.origin)
            if not path:
                raise ResourceTrouble(f"{self._what} redirects to another place, which is not followed")
        raise ResourceTrouble(f"{self._what} redirects more than {REDIRECTS_MAX} times")

    async def _exchange_once(self, method: str, path: str, body: Node, headers: dict[str, str]) -> Answer:
        content = None if body is None else msgspec.json.encode(body)
        if content is not None:
            headers = {**headers, "Content-Type": "application/json"}
        try:
            return await self._connection.exchange(method, path, bytes_max=BYTES_MAX, content=content, headers=headers)
        except TooLong as error:
            raise ResourceTrouble(error.message) from error

    async def _trust(self) -> ssl.SSLContext:
        """Return what to believe of the device's certificate; plain HTTP gets a context that believes nothing."""
        if self.origin.startswith("http:"):
            return trust_nobody()
        ca_file, pin = str(self._device.options.get("ca_file", "")), str(self._device.options.get("fingerprint", ""))
        if not pin:
            try:
                return ssl.create_default_context(cafile=ca_file or None)
            except OSError as error:
                raise Unavailable(f"{self._what}: the CA file {ca_file} cannot be read: {error}") from error
        certificate = await self._fetch_certificate()
        found = hashlib.sha256(certificate).hexdigest()
        if not hmac.compare_digest(found, pin.replace(":", "").lower()):
            raise Unavailable(
                f"{self._what} has a certificate with the SHA-256 fingerprint {found}, not the pinned one",
                next_step="if it was renewed, change the device's option `fingerprint`",
            )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # this very certificate is trusted, whatever it names
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
        context.load_verify_locations(cadata=certificate)
        return context

    async def _fetch_certificate(self) -> bytes:
        """Return the certificate that the device shows, before anything of ours is sent."""
        url = httpx.URL(self.origin)
        blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
        try:
            _, writer = await asyncio.open_connection(url.host, url.port or 443, ssl=blind)
        except (OSError, ssl.SSLError) as error:
            raise Unavailable(f"{self._what} does not answer TLS: {error}") from error
        try:
            tls = writer.get_extra_info("ssl_object")
            return bytes(tls.getpeercert(binary_form=True) or b"")
        finally:
            writer.close()
            with contextlib.suppress(OSError, ssl.SSLError):
                await writer.wait_closed()

    def _refused(self, method: str, path: str, answer: Answer) -> ResourceTrouble:
        said = self._said(answer)
        return ResourceTrouble(
            f"{self._what} answers {method} of {path} with {answer.status}{f': {said}' if said else ''}"
        )

    def _said(self, answer: Answer) -> str:
        said = refusal(answer.data)
        for word in (*self._secret.words.values(), self._token):
            said = said.replace(word, "***") if word else said  # some services repeat what they were given
        return said


def _printable(text: str) -> str:
    """Return what may go back in a header; empty for anything that may not."""
    return text if text.isascii() and text.isprintable() and len(text) <= _HEADER_CHARACTERS_MAX else ""
