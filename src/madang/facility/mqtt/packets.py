"""MQTT 3.1.1 on the wire: control packets to values and back.

Owns the bytes, both ways, and their limits. Refuses to open connections and to know what payloads mean. Called by the
driver's link and by the twin. Source: OASIS, MQTT Version 3.1.1; its sections are named where a number comes from one.
"""

import struct
from enum import IntEnum

import msgspec

PACKET_BYTES_MAX = 256 * 1024
"""Larger ones end the connection: no meter has so much to say."""
_LENGTH_BYTES_MAX = 4
_TEXT_BYTES_MAX = 65535
_CLEAN_SESSION, _HAS_WILL, _HAS_PASSWORD, _HAS_USER = 0x02, 0x04, 0x40, 0x80
FAILED = 0x80
"""Of a subscription that the broker does not grant (3.9.3)."""


class Kind(IntEnum):
    """Control packets (2.2.1)."""

    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14


class Malformed(Exception):
    """Bytes that are no MQTT."""


class Packet(msgspec.Struct, frozen=True):
    """One control packet, its head taken off."""

    kind: Kind
    flags: int
    body: bytes

    @property
    def packet_id(self) -> int:
        """The number by which an answer names its request; 0 where it has none."""
        return int.from_bytes(self.body[:2], "big") if len(self.body) >= 2 else 0


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One application message.

    Attributes:
        is_retained: the broker kept it from before we subscribed; nobody knows how old it is.
    """

    topic: str
    payload: bytes
    qos: int = 0
    is_retained: bool = False
    packet_id: int = 0


class Connect(msgspec.Struct, frozen=True, kw_only=True):
    """What a client says first."""

    client_id: str
    user: str = ""
    password: str = ""
    keepalive_s: int = 0


def take_packet(buffer: bytearray) -> Packet | None:
    """Take the first whole packet out of a buffer; None while there is none. Raises Malformed."""
    length, shift = 0, 0
    for at in range(1, _LENGTH_BYTES_MAX + 1):
        if at >= len(buffer):
            return None
        length |= (buffer[at] & 0x7F) << shift
        shift += 7
        if not buffer[at] & 0x80:
            break
    else:
        raise Malformed("a length of more than four bytes")
    if length > PACKET_BYTES_MAX:
        raise Malformed(f"a packet of {length} bytes, over {PACKET_BYTES_MAX}")
    try:
        kind = Kind(buffer[0] >> 4)
    except ValueError as error:
        raise Malformed(f"a packet of type {buffer[0] >> 4}") from error
    if len(buffer) < at + 1 + length:
        return None
    packet = Packet(kind, buffer[0] & 0x0F, bytes(buffer[at + 1 : at + 1 + length]))
    del buffer[: at + 1 + length]
    return packet


def encode(kind: Kind, body: bytes = b"", flags: int = 0) -> bytes:
    """Return a packet's bytes."""
    length, head = len(body), bytearray((kind << 4 | flags,))
    while True:
        length, low = length >> 7, length & 0x7F
        head.append(low | (0x80 if length else 0))
        if not length:
            return bytes(head) + body


def encode_connect(connect: Connect) -> bytes:
    """Return CONNECT with a clean session and no will (3.1)."""
    flags = _CLEAN_SESSION
    payload = _text(connect.client_id)
    if connect.user:
        flags |= _HAS_USER
        payload += _text(connect.user)
        if connect.password:
            flags |= _HAS_PASSWORD
            payload += _text(connect.password)
    return encode(Kind.CONNECT, _text("MQTT") + struct.pack(">BBH", 4, flags, connect.keepalive_s) + payload)


def decode_connect(body: bytes) -> Connect:
    """Return what a client said; raises Malformed."""
    name, rest = _take_text(body)
    if name != "MQTT" or len(rest) < 4 or rest[0] != 4:
        raise Malformed("not MQTT 3.1.1")
    flags, keepalive_s = rest[1], int.from_bytes(rest[2:4], "big")
    client_id, rest = _take_text(rest[4:])
    if flags & _HAS_WILL:
        _, rest = _take_text(rest)
        _, rest = _take_bytes(rest)
    user, rest = _take_text(rest) if flags & _HAS_USER else ("", rest)
    password, rest = _take_text(rest) if flags & _HAS_PASSWORD else ("", rest)
    return Connect(client_id=client_id, user=user, password=password, keepalive_s=keepalive_s)


def encode_message(message: Message) -> bytes:
    """Return PUBLISH (3.3)."""
    number = struct.pack(">H", message.packet_id) if message.qos else b""
    flags = message.qos << 1 | message.is_retained
    return encode(Kind.PUBLISH, _text(message.topic) + number + message.payload, flags)


def decode_message(packet: Packet) -> Message:
    """Return the message of a PUBLISH; raises Malformed."""
    qos = packet.flags >> 1 & 3
    topic, rest = _take_text(packet.body)
    if not topic or "+" in topic or "#" in topic or qos == 3:
        raise Malformed("a message without a topic of its own")
    if qos and len(rest) < 2:
        raise Malformed("a message without its number")
    packet_id = int.from_bytes(rest[:2], "big") if qos else 0
    payload = rest[2:] if qos else rest
    return Message(topic=topic, payload=payload, qos=qos, is_retained=bool(packet.flags & 1), packet_id=packet_id)


def encode_subscribe(packet_id: int, filters: tuple[str, ...]) -> bytes:
    """Return SUBSCRIBE at QoS 0 (3.8)."""
    return encode(Kind.SUBSCRIBE, struct.pack(">H", packet_id) + b"".join(_text(one) + b"\0" for one in filters), 2)


def encode_unsubscribe(packet_id: int, filters: tuple[str, ...]) -> bytes:
    """Return UNSUBSCRIBE (3.10)."""
    return encode(Kind.UNSUBSCRIBE, struct.pack(">H", packet_id) + b"".join(map(_text, filters)), 2)


def decode_filters(packet: Packet) -> tuple[str, ...]:
    """Return the filters of SUBSCRIBE or UNSUBSCRIBE; raises Malformed."""
    found, rest = [], packet.body[2:]
    while rest:
        one, rest = _take_text(rest)
        found.append(one)
        if packet.kind is Kind.SUBSCRIBE:
            rest = rest[1:]
    return tuple(found)


def matches(filter_: str, topic: str) -> bool:
    """Return whether a topic is meant by a filter with `+` and `#` (4.7.1)."""
    wanted, levels = filter_.split("/"), topic.split("/")
    for at, one in enumerate(wanted):
        if one == "#":
            return True
        if at >= len(levels) or one not in ("+", levels[at]):
            return False
    return len(wanted) == len(levels)


def _text(text: str) -> bytes:
    data = text.encode()
    if len(data) > _TEXT_BYTES_MAX:
        raise Malformed("a text of more than 65535 bytes")
    return struct.pack(">H", len(data)) + data


def _take_bytes(data: bytes) -> tuple[bytes, bytes]:
    end = 2 + int.from_bytes(data[:2], "big")
    if len(data) < max(2, end):
        raise Malformed("a text that ends early")
    return data[2:end], data[end:]


def _take_text(data: bytes) -> tuple[str, bytes]:
    found, rest = _take_bytes(data)
    try:
        return found.decode(), rest
    except UnicodeDecodeError as error:
        raise Malformed("a text that is no UTF-8") from error
