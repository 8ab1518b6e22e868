"""One UDP socket towards an SNMP agent, with one exchange at a time.

Owns sending, sending once more, the time-out, and that nothing but the awaited answer is believed. Refuses to know
objects. Called by the driver, which sees to it that exchanges do not overlap.
"""

import asyncio
import os

from madang.facility.snmp import codec, security
from madang.facility.snmp.ber import Malformed
from madang.facility.snmp.codec import REPORT, RESPONSE, Pdu
from madang.facility.snmp.security import Security

ROUNDS_MAX = 4
"""Requests for one answer: version 3 may first ask for the engine, then for its time, then once more."""
STRAYS_MAX = 64
"""Datagrams that are no answer before a device counts as babbling."""
_ID_MASK = 0x7FFFFFFF


class SnmpLink(asyncio.DatagramProtocol):
    """A socket that opens when it is needed.

    Args:
        host: of the agent.
        port: of it.
        timeout_s: of one exchange, everything included.
        security: what is put around requests.
    """

    def __init__(self, host: str, port: int, timeout_s: float, security: Security) -> None:
        self._host = host
        self._port = port
        self._timeout_s = timeout_s
        self._security = security
        self._transport: asyncio.DatagramTransport | None = None
        self._answer: asyncio.Future[Pdu | str] | None = None
        # Guessing both numbers is all that keeps others' datagrams from being answers under version 2c.
        self._request_id = int.from_bytes(os.urandom(4), "big") & _ID_MASK
        self._salt = int.from_bytes(os.urandom(8), "big")
        self._strays = 0
        self.is_closed = False

    async def ask(self, kind: int, encoded_binds: bytes) -> Pdu | str:
        """Return the agent's answer, or why there is none; then the socket is gone."""
        if self.is_closed:
            return "the session is closed"
        answer: Pdu | str = ""
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._ask(kind, encoded_binds)
        except TimeoutError:
            answer = f"no answer from {self._host}:{self._port} within {self._timeout_s:g} s"
            if self._strays:
                answer += f"; {self._strays} datagrams were none"
        except OSError as error:
            answer = f"{self._host}:{self._port}: {error.strerror or error}"
        finally:
            # Also when the task is cancelled: what comes later must find nobody.
            self._answer = None
            if isinstance(answer, str):
                self.drop()
        return answer

    def drop(self) -> None:
        """Close the socket and forget what was believed of the agent."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        self._security.forget()

    def close(self) -> None:
        """Close for good."""
        self.is_closed = True
        self.drop()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:  # noqa: ARG002  the socket is connected
        """Take a datagram for the answer if it is one."""
        if self._answer is None or self._answer.done():
            return
        try:
            pdu = self._security.unwrap(data, self._request_id, asyncio.get_running_loop().time())
            if pdu.kind != REPORT and (pdu.kind != RESPONSE or pdu.request_id != self._request_id):
                raise Malformed("it answers another request")
        except Malformed as error:
            self._strays += 1
            if self._strays >= STRAYS_MAX:
                self._answer.set_result(f"{self._strays} datagrams came that are no answer, the last because {error}")
            return
        self._answer.set_result(pdu)

    def error_received(self, exc: Exception) -> None:
        """End the exchange when the network says that nobody is there."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc)

    async def _ask(self, kind: int, encoded_binds: bytes) -> Pdu | str:
        loop = asyncio.get_running_loop()
        self._strays = 0
        report = ""
        for _ in range(ROUNDS_MAX):
            if self._transport is None:
                # The protocol is this object: the endpoint is one of its own only in name.
                self._transport, _protocol = await loop.create_datagram_endpoint(
                    lambda: self, remote_addr=(self._host, self._port)
                )
            self._request_id = self._request_id + 1 & _ID_MASK
            self._salt = self._salt + 1 & 0xFFFFFFFFFFFFFFFF
            pdu = codec.encode_pdu_of(Pdu(kind, self._request_id), encoded_binds)
            message = self._security.wrap(
                pdu, self._request_id, self._salt.to_bytes(8, "big"), loop.time(), is_write=kind == codec.SET
            )
            answer = await self._exchange(self._transport, message, may_repeat=kind != codec.SET)
            if isinstance(answer, str) or answer.kind != REPORT:
                return answer
            report = security.say_report(answer)
            if not self._security.is_worth_repeating(answer):
                return report
        return f"the device reports again and again: {report}"

    async def _exchange(self, transport: asyncio.DatagramTransport, message: bytes, *, may_repeat: bool) -> Pdu | str:
        answer: asyncio.Future[Pdu | str] = asyncio.get_running_loop().create_future()
        self._answer = answer
        transport.sendto(message)
        if may_repeat:
            # A datagram may get lost; a command is not sent twice, since nobody knows whether it was taken.
            done, _ = await asyncio.wait((answer,), timeout=self._timeout_s / 2)
            if not done:
                transport.sendto(message)
        return await answer
