"""One session with one OPC UA server.

Owns asyncua's client, security and what is left of both when a call ends early. Refuses to know points. Called by the
driver.

The session is made step by step instead of by the client's `connect`, which starts three tasks that probe and
reconnect: a reading that fails is probe enough, and nothing runs between two of them. asyncua raises whatever its
decoders meet on malformed bytes, so that every exception of it means the same here.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
from asyncua import Client, ua
from asyncua.crypto.security_policies import SecurityPolicyBasic256Sha256

from madang.core import Rejected, Unavailable

NODES_MAX = 100
"""In one request: what servers with the smallest limits of Part 5's ServerCapabilities take."""
CLOSE_S = 1.0
SESSION_S = 60.0
MESSAGE_BYTES_MAX = 4 * 1024 * 1024
T = TypeVar("T")


class Security(msgspec.Struct, frozen=True, kw_only=True):
    """Files of a session that is signed and encrypted by Basic256Sha256, and who asks.

    Attributes:
        server_certificate: the server's own; another one is refused.
        user_certificate, user_key: instead of a user with a password.
    """

    certificate: str = ""
    private_key: str = ""
    server_certificate: str = ""
    user_certificate: str = ""
    user_key: str = ""
    application_uri: str = "urn:madang:site"
    user: str = ""
    password: str = ""

    def __repr__(self) -> str:
        return f"Security(certificate={self.certificate!r}, ***)"

    def check(self, what: str) -> None:
        """Raise Rejected where files are missing."""
        channel = (self.certificate, self.private_key, self.server_certificate)
        if any(channel) and not all(channel):
            raise Rejected(f"{what}: certificate, private_key and server_certificate are given together or not at all")
        if bool(self.user_certificate) != bool(self.user_key):
            raise Rejected(f"{what}: user_certificate and user_key are given together or not at all")
        for file in filter(None, (*channel, self.user_certificate, self.user_key)):
            if not Path(file).is_file():
                raise Rejected(f"{what}: there is no file {file}")


class OpcUaLink:
    """One session; `what` names it in errors."""

    def __init__(self, url: str, what: str, security: Security, timeout_s: float) -> None:
        self._url, self._what, self._security, self._timeout_s = url, what, security, timeout_s
        self._client: Client | None = None
        self.lifetime_s = 0.0
        """Of the channel, from its opening."""
        logging.getLogger("asyncua").setLevel(logging.CRITICAL)  # what it logs is in the samples' reasons

    @property
    def is_open(self) -> bool:
        """True while a session stands, as far as is known."""
        return self._client is not None

    async def open(self) -> None:
        """Connect, and make a session; raises Unavailable."""
        security = self._security
        self._client = client = Client(self._url, timeout=self._timeout_s)
        client.name = client.description = "Madang"
        client.application_uri = security.application_uri
        client.session_timeout = int(SESSION_S * 1000)
        client.max_messagesize = MESSAGE_BYTES_MAX
        await self._do(self._make_session(client), "make a session")
        self.lifetime_s = client.secure_channel_timeout / 1000

    async def _make_session(self, client: Client) -> None:
        security = self._security
        if security.certificate:
            await client.set_security(
                SecurityPolicyBasic256Sha256,
                security.certificate,
                security.private_key,
                server_certificate=security.server_certificate,
            )
        if security.user_certificate:
            await client.load_client_certificate(security.user_certificate)
            await client.load_private_key(Path(security.user_key))
        await client.connect_socket()
        await client.send_hello()
        await client.open_secure_channel()
        await client.create_session()
        await client.activate_session(
            security.user or None, security.password or None, client.user_certificate if security.user_key else None
        )

    async def namespaces(self) -> list[str]:
        """Return the URIs of the server's namespaces, by their numbers of today."""
        found = await self._do(self._open_client.get_namespace_array(), "read the namespaces")
        return [str(one) for one in found]

    async def read(self, node_ids: Sequence[ua.NodeId]) -> list[ua.DataValue]:
        """Return the value of each node, with its status."""
        found: list[ua.DataValue] = []
        for at in range(0, len(node_ids), NODES_MAX):
            part = list(node_ids[at : at + NODES_MAX])
            values = await self._do(self._open_client.uaclient.read_attributes(part, ua.AttributeIds.Value), "read")
            if len(values) != len(part):
                raise Unavailable(f"{self._what} answers {len(values)} values for {len(part)} nodes")
            found += values
        return found

    async def write(self, node_id: ua.NodeId, variant: ua.Variant) -> int:
        """Write a value without time stamps, which many servers refuse; return the status code."""
        value = ua.DataValue(variant)
        [status] = await self._do(self._open_client.uaclient.write_attributes([node_id], [value]), "write")
        return int(status.value)

    def drop(self) -> None:
        """End the connection at once: nothing that comes late finds anybody."""
        client, self._client = self._client, None
        if client is not None:
            client.disconnect_socket()

    async def close(self) -> None:
        """End the session and the connection."""
        client = self._client
        if client is None:
            return
        with contextlib.suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self._do(client.uaclient.close_session(True), "close")
                await self._do(client.close_secure_channel(), "close")
        self.drop()

    @property
    def _open_client(self) -> Client:
        assert self._client is not None, "only an open link is asked"
        return self._client

    async def _do(self, call: Awaitable[T], verb: str) -> T:
        try:
            return await call
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # asyncua cancels what waits for an answer when the connection ends.
            raise Unavailable(f"{self._what} closes the connection") from error
        except Rejected:
            raise
        except OSError as error:
            raise Unavailable(f"{self._what} cannot be reached: {error.strerror or error or 'no answer'}") from error
        except Exception as error:
            said = str(error)[:120] or type(error).__name__
            raise Unavailable(f"{self._what} does not let us {verb}: {said}") from error
