"""One UDP socket to one BACnet/IP device.

Owns the socket, invoke ids and which answer belongs to which question. Refuses to know objects. Called by the driver.

A question is sent again once, in the middle of its time, where that does no harm. An answer counts when it has the
question's invoke id and comes from the device; everything else is ignored, late answers among it.
"""

import asyncio
import secrets

from madang.core import Unavailable
from madang.facility.bacnet import codec
from madang.facility.bacnet.codec import Apdu, Malformed, Message, Route, Service


class _Protocol(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.invoke_id = -1
        self.answer: asyncio.Future[Message] | None = None

    def datagram_received(self, data: bytes, _addr: object) -> None:
        try:
            message = codec.decode_datagram(data[: codec.DATAGRAM_BYTES_MAX])
        except Malformed:
            return
        is_answer = message.kind not in (Apdu.REQUEST, Apdu.UNCONFIRMED) and message.invoke_id == self.invoke_id
        if is_answer and self.answer is not None and not self.answer.done():
            self.answer.set_result(message)

    def error_received(self, exc: Exception) -> None:
        """Nobody listens there."""
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(exc)


class BacnetLink:
    """One socket; `what` names the device in errors."""

    def __init__(self, host: str, port: int, what: str, route: Route, timeout_s: float) -> None:
        self._host, self._port, self._what, self._route = host, port, what, route
        self._timeout_s = timeout_s
        self._invoke_id = secrets.randbelow(256)
        self._open: tuple[asyncio.DatagramTransport, _Protocol] | None = None

    @property
    def is_open(self) -> bool:
        """True while a socket stands."""
        return self._open is not None

    async def ask(self, service: Service, body: bytes, *, is_repeated: bool) -> Message:
        """Return the answer to a request; raises Unavailable, or TimeoutError of whoever waits."""
        self._invoke_id = (self._invoke_id + 1) % 256
        request = Message(kind=Apdu.REQUEST, invoke_id=self._invoke_id, service=service, body=body)
        datagram = codec.encode_datagram(codec.encode_apdu(request), route=self._route, is_asking=True)
        try:
            if self._open is None:
                loop = asyncio.get_running_loop()
                self._open = await loop.create_datagram_endpoint(_Protocol, remote_addr=(self._host, self._port))
            transport, protocol = self._open
            protocol.invoke_id, protocol.answer = self._invoke_id, asyncio.get_running_loop().create_future()
            transport.sendto(datagram)
            if is_repeated:
                done, _ = await asyncio.wait((protocol.answer,), timeout=self._timeout_s / 2)
                if not done:
                    transport.sendto(datagram)
            message = await protocol.answer
        except OSError as error:
            raise Unavailable(f"{self._what} cannot be reached: {error.strerror or error}") from error
        finally:
            if self._open is not None:
                self._open[1].answer = None
        return message

    def drop(self) -> None:
        """Close the socket: nothing that comes late finds anybody."""
        held, self._open = self._open, None
        if held is not None:
            held[0].abort()
