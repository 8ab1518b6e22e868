"""One connection with one MQTT broker.

Owns the socket, acknowledgements and what arrives meanwhile. Refuses to know what messages mean. Called by the driver.

Nothing runs between two calls: what the broker sends waits in the socket, so that a device that says too much is
slowed at the broker and never grows anything here. Whoever lets a call end early drops the connection.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Callable

from madang.core import Unavailable
from madang.facility.mqtt import packets
from madang.facility.mqtt.packets import Connect, Kind, Malformed, Message, Packet

MESSAGES_MAX = 20_000
"""Taken in one exchange; a broker that sends more never lets a reading end."""
BARRIER = ("madang/barrier",)
"""Never subscribed to: UNSUBSCRIBE is answered all the same (MQTT 3.1.1, 3.10.4), after what was sent before it."""
CLOSE_S = 1.0
_CHUNK_BYTES = 64 * 1024
_REFUSALS = {1: "the version", 2: "the client's name", 3: "the service", 4: "user or password", 5: "the account"}


class MqttLink:
    """One connection; `what` names it in errors, `take` gets every message that arrives."""

    def __init__(self, host: str, port: int, what: str, tls: ssl.SSLContext | None, take: Callable[[Message], None]):
        self._host, self._port, self._what, self._tls = host, port, what, tls
        self._take = take
        self._stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._buffer = bytearray()
        self._packet_id = 0

    @property
    def is_open(self) -> bool:
        """True while a connection stands, as far as is known."""
        return self._stream is not None

    async def open(self, connect: Connect, filters: tuple[str, ...]) -> None:
        """Connect and subscribe; raises Unavailable."""
        try:
            self._stream = await asyncio.open_connection(self._host, self._port, ssl=self._tls)
        except OSError as error:  # ssl.SSLError among them
            raise Unavailable(f"{self._what} cannot be reached: {error.strerror or error}") from error
        self._buffer.clear()
        answer = await self._ask(packets.encode_connect(connect), Kind.CONNACK, None)
        if len(answer.body) != 2 or answer.body[1]:
            code = answer.body[1] if len(answer.body) == 2 else -1
            raise Unavailable(f"{self._what} refuses {_REFUSALS.get(code, 'us')}")
        number = self._next_id()
        answer = await self._ask(packets.encode_subscribe(number, filters), Kind.SUBACK, number)
        if len(answer.body) != 2 + len(filters) or packets.FAILED in answer.body[2:]:
            raise Unavailable(f"{self._what} does not let us subscribe to {', '.join(filters)[:120]}")

    async def flush(self) -> None:
        """Return when everything that the broker sent before has arrived."""
        number = self._next_id()
        await self._ask(packets.encode_unsubscribe(number, BARRIER), Kind.UNSUBACK, number)

    async def publish(self, topic: str, payload: bytes, *, is_acknowledged: bool) -> None:
        """Publish at QoS 1, and wait until the broker has it, or at QoS 0."""
        if not is_acknowledged:
            self._send(packets.encode_message(Message(topic=topic, payload=payload)))
            return
        number = self._next_id()
        message = Message(topic=topic, payload=payload, qos=1, packet_id=number)
        await self._ask(packets.encode_message(message), Kind.PUBACK, number)

    async def listen_until(self, is_so: Callable[[], bool]) -> None:
        """Take messages until something is so."""
        for _ in range(MESSAGES_MAX):
            if is_so():
                return
            self._dispatch(await self._receive())
        raise Unavailable(f"{self._what} sends more than {MESSAGES_MAX} messages")

    def drop(self) -> None:
        """End the connection at once: nothing that comes late finds anybody."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream[1].transport.abort()

    async def close(self) -> None:
        """Say goodbye and end the connection."""
        stream, self._stream = self._stream, None
        if stream is None:
            return
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                stream[1].write(packets.encode(Kind.DISCONNECT))
                await stream[1].drain()
        stream[1].transport.abort()
        with contextlib.suppress(OSError):
            await stream[1].wait_closed()

    async def _ask(self, request: bytes, kind: Kind, number: int | None) -> Packet:
        self._send(request)
        for _ in range(MESSAGES_MAX):
            packet = await self._receive()
            if packet.kind is kind and number in (None, packet.packet_id):
                return packet
            self._dispatch(packet)
        raise Unavailable(f"{self._what} sends more than {MESSAGES_MAX} messages")

    def _dispatch(self, packet: Packet) -> None:
        if packet.kind is not Kind.PUBLISH:
            raise Unavailable(f"{self._what} sends {packet.kind.name}, which nobody asked for")
        try:
            message = packets.decode_message(packet)
        except Malformed as error:
            raise Unavailable(f"{self._what} sends {error}") from error
        self._take(message)

    async def _receive(self) -> Packet:
        assert self._stream is not None, "only an open link is asked"
        try:
            while (packet := packets.take_packet(self._buffer)) is None:
                data = await self._stream[0].read(_CHUNK_BYTES)
                if not data:
                    raise Unavailable(f"{self._what} closes the connection")
                self._buffer += data
        except Malformed as error:
            raise Unavailable(f"{self._what} sends {error}") from error
        except OSError as error:
            raise Unavailable(f"{self._what} is gone: {error.strerror or error}") from error
        return packet

    def _send(self, data: bytes) -> None:
        assert self._stream is not None, "only an open link is asked"
        self._stream[1].write(data)

    def _next_id(self) -> int:
        self._packet_id = self._packet_id % 65535 + 1
        return self._packet_id
