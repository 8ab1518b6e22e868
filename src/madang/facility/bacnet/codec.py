"""BACnet/IP on the wire: datagrams, requests, answers, values.

Owns the bytes, both ways, and what refs mean. Refuses to know sockets and quantities. Called by the driver and by the
twin. Segments are neither sent nor taken: a request is small enough for its answer.

Source: ANSI/ASHRAE 135 (BACnet), clauses 6 (network layer), 13 and 15 (services), 20 (encoding), 21 (types), Annex J
(BACnet/IP). A ref is `TYPE,INSTANCE`, such as `analog-input,1`: its Present_Value is read, beside its Status_Flags.
"""

import math
import struct
from enum import IntEnum

import msgspec

from madang.core import Rejected
from madang.facility.profile import PointSpec
from madang.model import Quality

DATAGRAM_BYTES_MAX = 1497
PRESENT_VALUE, STATUS_FLAGS, OBJECT_IDENTIFIER = 85, 111, 75
INSTANCE_MAX = 0x3FFFFF
"""No object has it (12)."""
PRIORITIES = (1, 16)
TYPES = {
    "analog-input": 0,
    "analog-output": 1,
    "analog-value": 2,
    "binary-input": 3,
    "binary-output": 4,
    "binary-value": 5,
    "device": 8,
    "multi-state-input": 13,
    "multi-state-output": 14,
    "multi-state-value": 19,
    "accumulator": 23,
    "integer-value": 45,
    "large-analog-value": 46,
    "positive-integer-value": 48,
}
_KINDS = {name: number for number, name in TYPES.items()}
_UNICAST, _BROADCAST, _FORWARDED = 0x0A, 0x0B, 0x04
_MAX_RESPONSE_1476 = 0x05
_FLAGS = ("in alarm", "fault", "overridden", "out of service")
_VALUE_BYTES_MAX = 8


class Apdu(IntEnum):
    """Types of an APDU (20.1)."""

    REQUEST = 0
    UNCONFIRMED = 1
    SIMPLE_ACK = 2
    COMPLEX_ACK = 3
    ERROR = 5
    REJECT = 6
    ABORT = 7


class Service(IntEnum):
    """Those that are spoken here; WHO_IS and I_AM are unconfirmed."""

    I_AM = 0
    WHO_IS = 8
    READ_MULTIPLE = 14
    WRITE = 15


class Tag(IntEnum):
    """Application tags (20.2.1.4)."""

    NULL = 0
    BOOLEAN = 1
    UNSIGNED = 2
    SIGNED = 3
    REAL = 4
    DOUBLE = 5
    BITS = 8
    ENUMERATED = 9
    OBJECT = 12


class Malformed(Exception):
    """Bytes that are no BACnet."""


class Object(msgspec.Struct, frozen=True):
    """An object by its type's number and its instance."""

    type: int
    instance: int

    @property
    def word(self) -> int:
        """As it goes on the wire."""
        return self.type << 22 | self.instance

    def __str__(self) -> str:
        return f"{_KINDS.get(self.type, self.type)},{self.instance}"


class Route(msgspec.Struct, frozen=True):
    """A device behind a router: its network and its address there; network 0: the device is at the IP address."""

    network: int = 0
    mac: bytes = b""


_HERE = Route()


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One APDU, taken apart.

    Attributes:
        body: after the head: parameters of the service, or an error's.
        code: of a reject or abort.
    """

    kind: Apdu
    service: int = 0
    invoke_id: int = 0
    body: bytes = b""
    code: int = 0


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What one property is: a number, or why there is none."""

    value: float | None = None
    flags: int = 0
    error: str = ""


def parse_ref(spec: PointSpec) -> Object:
    """Return the object of a ref; raises Rejected for one that names none."""
    kind, _, instance = spec.ref.partition(",")
    is_number = instance.isascii() and instance.isdigit() and int(instance) < INSTANCE_MAX
    if kind not in TYPES or kind == "device" or not is_number:
        known = ", ".join(name for name in sorted(TYPES) if name != "device")
        raise Rejected(f"{spec.name}: {spec.ref!r} is no object", next_step=f"write TYPE,INSTANCE with one of {known}")
    return Object(TYPES[kind], int(instance))


def encode_datagram(apdu: bytes, *, route: Route = _HERE, is_asking: bool) -> bytes:
    """Return a datagram of one APDU (Annex J, clause 6.2)."""
    control = (0x04 if is_asking else 0) | (0x20 if route.network else 0)
    head = bytes((1, control))
    if route.network:
        head += struct.pack(">HB", route.network, len(route.mac)) + route.mac + b"\xff"
    body = head + apdu
    return struct.pack(">BBH", 0x81, _UNICAST, len(body) + 4) + body


def decode_datagram(data: bytes) -> Message:
    """Return the APDU in a datagram; raises Malformed."""
    if len(data) < 6 or data[0] != 0x81 or int.from_bytes(data[2:4], "big") != len(data):
        raise Malformed("no BACnet/IP datagram")
    if data[1] not in (_UNICAST, _BROADCAST, _FORWARDED):
        raise Malformed("no datagram with an NPDU")
    npdu = data[10:] if data[1] == _FORWARDED else data[4:]
    if len(npdu) < 2 or npdu[0] != 1 or npdu[1] & 0x80:
        raise Malformed("no NPDU with an APDU")
    control, at = npdu[1], 2
    for bit in (0x20, 0x08):
        if control & bit:
            at += 3 + (npdu[at + 2] if len(npdu) > at + 2 else 0)
    at += 1 if control & 0x20 else 0
    return _decode_apdu(npdu[at:])


def _decode_apdu(apdu: bytes) -> Message:
    try:
        kind = Apdu(apdu[0] >> 4) if apdu else None
    except ValueError:
        kind = None
    if kind is None or len(apdu) < (2 if kind is Apdu.UNCONFIRMED else 3):
        raise Malformed("no APDU")
    if kind in (Apdu.REQUEST, Apdu.COMPLEX_ACK) and apdu[0] & 0x08:
        raise Malformed("a segment")
    if kind is Apdu.UNCONFIRMED:
        return Message(kind=kind, service=apdu[1], body=apdu[2:])
    if kind is Apdu.REQUEST:
        if len(apdu) < 4:
            raise Malformed("a request that ends early")
        return Message(kind=kind, invoke_id=apdu[2], service=apdu[3], body=apdu[4:])
    if kind in (Apdu.REJECT, Apdu.ABORT):
        return Message(kind=kind, invoke_id=apdu[1], code=apdu[2])
    return Message(kind=kind, invoke_id=apdu[1], service=apdu[2], body=apdu[3:])


def encode_apdu(message: Message) -> bytes:
    """Return an APDU's bytes."""
    head = message.kind << 4
    if message.kind is Apdu.UNCONFIRMED:
        return bytes((head, message.service)) + message.body
    if message.kind is Apdu.REQUEST:
        return bytes((head, _MAX_RESPONSE_1476, message.invoke_id, message.service)) + message.body
    if message.kind in (Apdu.REJECT, Apdu.ABORT):
        return bytes((head | (message.kind is Apdu.ABORT), message.invoke_id, message.code))
    return bytes((head, message.invoke_id, message.service)) + message.body


def encode_read(objects: tuple[Object, ...], properties: tuple[int, ...]) -> bytes:
    """Return the parameters of ReadPropertyMultiple (15.7)."""
    wanted = b"".join(_context(0, _unsigned(one)) for one in properties)
    return b"".join(_context(0, struct.pack(">I", one.word)) + b"\x1e" + wanted + b"\x1f" for one in objects)


def decode_read(body: bytes) -> list[tuple[Object, tuple[int, ...]]]:
    """Return what a ReadPropertyMultiple asks for; raises Malformed."""
    reader, found = _Reader(body), []
    while not reader.is_done:
        one = _to_object(reader.take_context(0))
        reader.take_bracket(1, is_opening=True)
        properties = []
        while not reader.is_bracket(1, is_opening=False):
            properties.append(int.from_bytes(reader.take_context(0), "big"))
            if reader.is_context(1):
                reader.take_context(1)
        reader.take_bracket(1, is_opening=False)
        found.append((one, tuple(properties)))
    return found


def encode_results(results: list[tuple[Object, list[tuple[int, bytes]]]]) -> bytes:
    """Return the answer of ReadPropertyMultiple: for each property a value's bytes; empty ones are errors."""
    parts = []
    for one, properties in results:
        parts.append(_context(0, struct.pack(">I", one.word)) + b"\x1e")
        for number, value in properties:
            parts.append(_context(2, _unsigned(number)))
            # object: unknown-object (21, BACnetErrorClass and BACnetErrorCode)
            parts.append(b"\x4e" + value + b"\x4f" if value else b"\x5e" + encode_error(1, 31) + b"\x5f")
        parts.append(b"\x1f")
    return b"".join(parts)


def decode_results(body: bytes) -> dict[Object, Result]:
    """Return Present_Value with Status_Flags, or Object_Identifier as a number, of each object; raises Malformed."""
    reader, found = _Reader(body), dict[Object, Result]()
    while not reader.is_done:
        one = _to_object(reader.take_context(0))
        value, flags, error = None, 0, ""
        reader.take_bracket(1, is_opening=True)
        while not reader.is_bracket(1, is_opening=False):
            number = int.from_bytes(reader.take_context(2), "big")
            if reader.is_context(3):
                reader.take_context(3)
            said, why = _take_result(reader)
            if number == STATUS_FLAGS:
                flags = 0 if said is None else int(said)
            else:
                value, error = said, why
        reader.take_bracket(1, is_opening=False)
        found[one] = Result(value=value, flags=flags, error=error)
    return found


def _take_result(reader: "_Reader") -> tuple[float | None, str]:
    if reader.is_bracket(5, is_opening=True):
        reader.take_bracket(5, is_opening=True)
        error = f"error class {reader.take_value():g}, code {reader.take_value():g}"
        reader.take_bracket(5, is_opening=False)
        return None, f"the device says {error}"
    reader.take_bracket(4, is_opening=True)
    value: float | None = None
    while not reader.is_bracket(4, is_opening=False):
        value = reader.take_value()
    reader.take_bracket(4, is_opening=False)
    return (None, "it is no number") if value is None or not math.isfinite(value) else (value, "")


def encode_write(one: Object, value: bytes, priority: int) -> bytes:
    """Return the parameters of WriteProperty of a Present_Value (15.9)."""
    return (
        _context(0, struct.pack(">I", one.word))
        + _context(1, _unsigned(PRESENT_VALUE))
        + b"\x3e"
        + value
        + b"\x3f"
        + _context(4, _unsigned(priority))
    )


def decode_write(body: bytes) -> tuple[Object, int, float | None, int]:
    """Return object, property, value (None relinquishes) and priority of a WriteProperty; raises Malformed."""
    reader = _Reader(body)
    one = _to_object(reader.take_context(0))
    number = int.from_bytes(reader.take_context(1), "big")
    if reader.is_context(2):
        reader.take_context(2)
    reader.take_bracket(3, is_opening=True)
    value = reader.take_value()
    reader.take_bracket(3, is_opening=False)
    priority = int.from_bytes(reader.take_context(4), "big") if reader.is_context(4) else PRIORITIES[1]
    return one, number, None if math.isnan(value) else value, priority


def encode_value(one: Object, raw: float | None) -> bytes:
    """Return a Present_Value in the type that its object has; None is Null, by which a priority is relinquished."""
    if raw is None:
        return b"\x00"
    if one.type == TYPES["large-analog-value"]:
        return b"\x55\x08" + struct.pack(">d", raw)
    if one.type in (0, 1, 2):
        return b"\x44" + struct.pack(">f", raw)
    if one.type == TYPES["integer-value"]:
        return b"\x34" + struct.pack(">i", round(raw))
    data = _unsigned(round(raw))
    return bytes(((Tag.ENUMERATED if one.type in (3, 4, 5) else Tag.UNSIGNED) << 4 | len(data),)) + data


def encode_flags(*, is_fault: bool) -> bytes:
    """Return Status_Flags (21): fault or nothing."""
    return bytes((0x82, 4, 0x40 if is_fault else 0))


def encode_object(one: Object) -> bytes:
    """Return an Object_Identifier."""
    return b"\xc4" + struct.pack(">I", one.word)


def encode_error(error_class: int, code: int) -> bytes:
    """Return class and code of an error."""
    return bytes((0x91, error_class, 0x91, code))


def decode_error(body: bytes) -> str:
    """Return an error in words."""
    try:
        reader = _Reader(body)
        return f"error class {reader.take_value():g}, code {reader.take_value():g}"
    except Malformed:
        return "an error that cannot be read"


def encode_i_am(instance: int) -> bytes:
    """Return the parameters of I-Am: no segments, a vendor that is none (16.10)."""
    return encode_object(Object(TYPES["device"], instance)) + b"\x22\x05\xc4" + b"\x91\x03" + b"\x21\x00"


def is_asked(body: bytes, instance: int) -> bool:
    """Return whether a Who-Is means a device; raises Malformed."""
    if not body:
        return True
    reader = _Reader(body)
    low = int.from_bytes(reader.take_context(0), "big")
    return low <= instance <= int.from_bytes(reader.take_context(1), "big")


def judge_flags(flags: int) -> tuple[Quality, str]:
    """Return how far a value may be believed; flags are the four bits of Status_Flags, in alarm the highest."""
    said = ", ".join(word for at, word in enumerate(_FLAGS[1:], 1) if flags & 8 >> at)
    if flags & 4:
        return Quality.BAD, f"the device says: {said}"
    return (Quality.SUBSTITUTED, f"the device says: {said}") if said else (Quality.GOOD, "")


def _unsigned(value: int) -> bytes:
    return value.to_bytes(max(1, (value.bit_length() + 7) // 8), "big")


def _context(number: int, data: bytes) -> bytes:
    return bytes((number << 4 | 0x08 | len(data),)) + data


def _to_object(data: bytes) -> Object:
    if len(data) != 4:
        raise Malformed("no object")
    word = int.from_bytes(data, "big")
    return Object(word >> 22, word & INSTANCE_MAX)


class _Reader:
    """Takes tags off the front of some bytes; everything it cannot take is Malformed."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def is_done(self) -> bool:
        return self._at >= len(self._data)

    def is_bracket(self, number: int, *, is_opening: bool) -> bool:
        if self.is_done:
            raise Malformed("it ends early")
        return self._data[self._at] == (number << 4 | (0x0E if is_opening else 0x0F))

    def take_bracket(self, number: int, *, is_opening: bool) -> None:
        if not self.is_bracket(number, is_opening=is_opening):
            raise Malformed("another tag than the service has")
        self._at += 1

    def is_context(self, number: int) -> bool:
        if self.is_done:
            return False
        octet = self._data[self._at]
        return octet & 0xF8 == number << 4 | 0x08 and octet & 7 < 6

    def take_context(self, number: int) -> bytes:
        if not self.is_context(number):
            raise Malformed("another tag than the service has")
        return self._take(self._length())

    def take_value(self) -> float:
        """Return an application-tagged number; NaN for Null and for texts, dates and the like."""
        if self.is_done or self._data[self._at] & 0x08:
            raise Malformed("no value")
        number, low = self._data[self._at] >> 4, self._data[self._at] & 7
        if number == Tag.BOOLEAN:
            self._at += 1
            return float(low)
        return _number(number, self._take(self._length()))

    def _length(self) -> int:
        low = self._data[self._at] & 7
        self._at += 1
        if low < 5:
            return low
        [length] = self._take(1)
        return length if length < 254 else int.from_bytes(self._take(2), "big")

    def _take(self, count: int) -> bytes:
        data = self._data[self._at : self._at + count]
        if len(data) != count:
            raise Malformed("it ends early")
        self._at += count
        return data


def _number(tag: int, data: bytes) -> float:
    if tag in (Tag.UNSIGNED, Tag.ENUMERATED, Tag.SIGNED, Tag.OBJECT) and 0 < len(data) <= _VALUE_BYTES_MAX:
        return float(int.from_bytes(data, "big", signed=tag == Tag.SIGNED))
    if tag == Tag.REAL and len(data) == 4:
        return float(struct.unpack(">f", data)[0])
    if tag == Tag.DOUBLE and len(data) == 8:
        return float(struct.unpack(">d", data)[0])
    if tag == Tag.BITS and len(data) == 2:
        return float(data[1] >> 4)
    return math.nan
