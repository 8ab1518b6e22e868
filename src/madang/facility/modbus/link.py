"""One TCP connection to a Modbus device, with one exchange at a time.

Owns connecting, the time-out and that no answer is taken for another request's: whatever goes wrong ends the
connection. Refuses to know registers. Called by the driver, which sees to it that exchanges do not overlap.
"""

import asyncio

from madang.facility.modbus import codec
from madang.facility.modbus.codec import Trouble

STRAY_FRAMES_MAX = 4
"""Answers to other requests that are passed over before the device counts as confused."""
_BUFFER_BYTES = 1024


class ModbusLink:
    """A connection that opens when it is needed.

    Args:
        host: of the device or gateway.
        port: of it.
        timeout_s: of one exchange, connecting included.
    """

    def __init__(self, host: str, port: int, timeout_s: float) -> None:
        self._host = host
        self._port = port
        self._timeout_s = timeout_s
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._transaction = 0
        self.is_closed = False

    @property
    def is_open(self) -> bool:
        """True while a connection stands that the device has not ended; a new one may be to another device."""
        return self._streams is not None and not self._streams[0].at_eof()

    async def ask(self, unit: int, pdu: bytes) -> bytes | Trouble:
        """Return the device's answer to a request, or why there is none; then the connection is gone."""
        if self.is_closed:
            return Trouble(reason="the session is closed")
        answer: bytes | Trouble | None = None
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._exchange(unit, pdu)
        except TimeoutError:
            answer = Trouble(reason=f"no answer from {self._host}:{self._port} within {self._timeout_s:g} s")
        except asyncio.IncompleteReadError:
            answer = Trouble(reason=f"{self._host}:{self._port} ended the connection within an answer")
        except OSError as error:
            answer = Trouble(reason=f"{self._host}:{self._port}: {error.strerror or error}")
        finally:
            # Also when the task is cancelled: an answer that comes later must find nobody.
            if not isinstance(answer, bytes):
                self.drop()
        return answer

    def drop(self) -> None:
        """End the connection at once."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None

    async def close(self) -> None:
        """End the connection for good."""
        self.is_closed = True
        streams, self._streams = self._streams, None
        if streams is not None:
            streams[1].transport.abort()
            try:
                await streams[1].wait_closed()
            except OSError:
                return

    async def _exchange(self, unit: int, pdu: bytes) -> bytes | Trouble:
        if not self.is_open:
            # A device may end an idle connection between two readings: that is no trouble of this one.
            self.drop()
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port, limit=_BUFFER_BYTES)
        reader, writer = self._streams
        self._transaction = self._transaction % 0xFFFF + 1
        writer.write(codec.encode_frame(self._transaction, unit, pdu))
        await writer.drain()
        for _ in range(1 + STRAY_FRAMES_MAX):
            head = codec.decode_head(await reader.readexactly(codec.HEAD_BYTES))
            if head is None:
                return Trouble(reason="what the device sends is not Modbus TCP")
            answer = await reader.readexactly(head.length)
            if (head.transaction, head.unit) == (self._transaction, unit):
                return answer
        return Trouble(reason="the device answers other requests than ours")
