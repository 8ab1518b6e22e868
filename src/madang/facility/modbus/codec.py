"""Modbus TCP on the wire: frames, requests, answers, and numbers in registers.

Owns the bytes, both ways, and which neighbouring registers are read at once. Refuses to know sockets, devices and
units of quantities. Called by the driver and by the twin.

Everything is after MODBUS Application Protocol Specification V1.1b3 and MODBUS Messaging on TCP/IP Implementation
Guide V1.0b. Addresses are those of the protocol, from 0; documents that count from 1, or from 40001, are one or
40001 higher. What devices make of several registers is not standardised: types and word order are the profile's.
"""

import struct
from collections.abc import Sequence
from enum import IntEnum, StrEnum

import msgspec

from madang.core import Rejected
from madang.facility.profile import PointSpec

REGISTERS_MAX = 125
"""Registers in one reading (V1.1b3, 6.3)."""
BITS_MAX = 2000
"""Coils or discrete inputs in one reading (V1.1b3, 6.1)."""
PDU_BYTES_MAX = 253
"""Of one request or answer without its head (V1.1b3, 4.1)."""
HEAD_BYTES = 7


class Table(StrEnum):
    """The four tables of a device (V1.1b3, 4.3)."""

    COIL = "coil"
    DISCRETE = "discrete"
    HOLDING = "holding"
    INPUT = "input"

    @property
    def read_function(self) -> int:
        """The function that reads it."""
        return {Table.COIL: 1, Table.DISCRETE: 2, Table.HOLDING: 3, Table.INPUT: 4}[self]

    @property
    def is_of_bits(self) -> bool:
        """True where an address is one bit."""
        return self in (Table.COIL, Table.DISCRETE)

    @property
    def is_writable(self) -> bool:
        """True where the protocol has a function that writes."""
        return self in (Table.COIL, Table.HOLDING)


class ExceptionCode(IntEnum):
    """Why a device refuses (V1.1b3, 7)."""

    ILLEGAL_FUNCTION = 1
    ILLEGAL_DATA_ADDRESS = 2
    ILLEGAL_DATA_VALUE = 3
    SERVER_DEVICE_FAILURE = 4
    ACKNOWLEDGE = 5
    SERVER_DEVICE_BUSY = 6
    MEMORY_PARITY_ERROR = 8
    GATEWAY_PATH_UNAVAILABLE = 10
    GATEWAY_TARGET_DEVICE_FAILED_TO_RESPOND = 11


_EXCEPTION_BIT = 0x80
_WRITE_COIL, _WRITE_REGISTER, _WRITE_REGISTERS = 5, 6, 16
_COIL_ON = 0xFF00
_FORMATS = {
    "uint16": "H",
    "int16": "h",
    "uint32": "I",
    "int32": "i",
    "uint64": "Q",
    "int64": "q",
    "float32": "f",
    "float64": "d",
}
_FLOATS = ("float32", "float64")


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """Why there are no registers.

    Attributes:
        code: of a device that refuses; 0 for an answer that is none.
    """

    reason: str
    code: int = 0


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a number stands in a device.

    Attributes:
        unit: behind which unit identifier.
        type: of the number; `bit` in tables of bits.
        is_low_word_first: the order of several registers.
        bit: which bit of the number it is; -1: the number itself.
    """

    unit: int
    table: Table
    address: int
    type: str
    is_low_word_first: bool = False
    bit: int = -1

    @property
    def count(self) -> int:
        """Registers, or bits, that it takes."""
        return 1 if self.table.is_of_bits else struct.calcsize(_FORMATS[self.type]) // 2


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """What one request reads.

    Attributes:
        members: which of the planned places lie in it, by index.
    """

    unit: int
    table: Table
    address: int
    count: int
    members: tuple[int, ...]


class Head(msgspec.Struct, frozen=True):
    """The head of a frame; `length` is of what follows."""

    transaction: int
    unit: int
    length: int


class ReadRequest(msgspec.Struct, frozen=True):
    """What a client wants to read."""

    table: Table
    address: int
    count: int


class WriteRequest(msgspec.Struct, frozen=True):
    """What a client wants to write."""

    table: Table
    address: int
    words: tuple[int, ...]


def parse_place(spec: PointSpec, unit: int) -> Place:
    """Return where a point of a profile stands; raises Rejected naming the point and what is expected.

    `ref` is `table:address`; options are `type`, `word_order` (big, little), `bit`, `unit`.
    """
    name, colon, number = spec.ref.partition(":")
    tables = ", ".join(Table)
    if not colon or name not in list(Table) or not (number.isascii() and number.isdigit()):
        raise Rejected(f"{spec.name}: ref {spec.ref!r} is not TABLE:ADDRESS with a table of {tables}")
    table = Table(name)
    place = make_place(
        spec,
        unit=int(spec.options.get("unit", unit)),
        table=table,
        address=int(number),
        type_name="bit" if table.is_of_bits else str(spec.options.get("type", "uint16")),
    )
    if place.address + place.count > 0x10000:
        raise Rejected(f"{spec.name}: address {number} is beyond 65535")
    return place


def make_place(spec: PointSpec, *, unit: int, table: Table, address: int, type_name: str) -> Place:
    """Return a place with the options of a point that are not its address; raises Rejected as `parse_place` does."""
    order = spec.options.get("word_order", "big")
    if not table.is_of_bits and type_name not in _FORMATS:
        raise Rejected(f"{spec.name}: type {type_name!r} is none of {', '.join(_FORMATS)}")
    if order not in ("big", "little"):
        raise Rejected(f"{spec.name}: word_order {order!r} is neither big nor little")
    if not 0 <= unit <= 255:
        raise Rejected(f"{spec.name}: unit {unit} is not 0 to 255")
    bit = int(spec.options.get("bit", -1))
    bits = 0 if table.is_of_bits or type_name in _FLOATS else 8 * struct.calcsize(_FORMATS[type_name])
    if not -1 <= bit < max(bits, 0):
        raise Rejected(f"{spec.name}: {type_name} has no bit {bit}")
    return Place(unit=unit, table=table, address=address, type=type_name, is_low_word_first=order == "little", bit=bit)


def plan_blocks(places: Sequence[Place | None], gap_max: int, members: Sequence[int] | None = None) -> list[Block]:
    """Return the readings that bring every place, or those of `members`, over gaps of up to `gap_max` registers.

    Sorted by unit, table and address. A place that is None is not read.
    """
    wanted = [
        (place.unit, place.table, place.address, place.count, index)
        for index in (range(len(places)) if members is None else members)
        if (place := places[index]) is not None
    ]
    blocks: list[Block] = []
    for unit, table, address, count, index in sorted(wanted):
        last = blocks[-1] if blocks else None
        limit = BITS_MAX if table.is_of_bits else REGISTERS_MAX
        if (
            last is not None
            and (last.unit, last.table) == (unit, table)
            and address <= last.address + last.count + gap_max
            and address + count - last.address <= limit
        ):
            count = max(last.count, address + count - last.address)
            blocks[-1] = msgspec.structs.replace(last, count=count, members=(*last.members, index))
        else:
            blocks.append(Block(unit=unit, table=table, address=address, count=count, members=(index,)))
    return blocks


def split_block(block: Block, places: Sequence[Place | None]) -> list[Block]:
    """Return two readings for one that a device refuses as a whole; none when it is of one place only."""
    if len({(place.address, place.count) for index in block.members if (place := places[index])}) < 2:
        return []
    middle = len(block.members) // 2
    return [*plan_blocks(places, 0, block.members[:middle]), *plan_blocks(places, 0, block.members[middle:])]


def decode_number(place: Place, words: Sequence[int]) -> float:
    """Return the number in these registers or bits, exact up to 53 bits; may be NaN or infinite."""
    if place.table.is_of_bits:
        return float(words[0])
    ordered = reversed(words) if place.is_low_word_first else words
    data = b"".join(word.to_bytes(2, "big") for word in ordered)
    number: int | float = struct.unpack(f">{_FORMATS[place.type]}", data)[0]
    if place.bit >= 0:
        return float(int.from_bytes(data, "big") >> place.bit & 1)
    return float(number)


def encode_number(place: Place, raw: float) -> tuple[int, ...]:
    """Return the registers or the bit of a number, rounded where the type is whole; raises Rejected if none fits."""
    if place.table.is_of_bits:
        return (int(bool(raw)),)
    try:
        data = struct.pack(f">{_FORMATS[place.type]}", raw if place.type in _FLOATS else round(raw))
    except (struct.error, OverflowError, ValueError) as error:
        raise Rejected(f"{raw:g} does not fit into {place.type}") from error
    words = [int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2)]
    return tuple(reversed(words) if place.is_low_word_first else words)


def encode_frame(transaction: int, unit: int, pdu: bytes) -> bytes:
    """Return a frame (TCP/IP guide, 3.1.3)."""
    return struct.pack(">HHHB", transaction, 0, len(pdu) + 1, unit) + pdu


def decode_head(head: bytes) -> Head | None:
    """Return the head of a frame; None when these seven bytes begin none."""
    transaction, protocol, length, unit = struct.unpack(">HHHB", head)
    if protocol != 0 or not 2 <= length <= PDU_BYTES_MAX + 1:
        return None
    return Head(transaction, unit, length - 1)


def encode_read(block: Block) -> bytes:
    """Return the request that reads a block."""
    return struct.pack(">BHH", block.table.read_function, block.address, block.count)


def encode_write(place: Place, words: Sequence[int], *, is_multiple: bool) -> bytes:
    """Return the request that writes one place: function 5, 6, or 16 for several registers or where asked for."""
    if place.table.is_of_bits:
        return struct.pack(">BHH", _WRITE_COIL, place.address, _COIL_ON if words[0] else 0)
    if len(words) == 1 and not is_multiple:
        return struct.pack(">BHH", _WRITE_REGISTER, place.address, words[0])
    head = struct.pack(">BHHB", _WRITE_REGISTERS, place.address, len(words), 2 * len(words))
    return head + struct.pack(f">{len(words)}H", *words)


def decode_read(pdu: bytes, block: Block) -> tuple[int, ...] | Trouble:
    """Return the registers or bits that a block asked for, all of them, or why there are none."""
    function = block.table.read_function
    if (refusal := _decode_refusal(pdu, function)) is not None:
        return refusal
    byte_count = -(-block.count // 8) if block.table.is_of_bits else 2 * block.count
    if len(pdu) != 2 + byte_count or pdu[0] != function or pdu[1] != byte_count:
        return Trouble(reason=f"the answer to function {function} is malformed: {pdu[:8].hex()}, {len(pdu)} bytes")
    if not block.table.is_of_bits:
        return struct.unpack(f">{block.count}H", pdu[2:])
    bits = int.from_bytes(pdu[2:], "little")
    return tuple(bits >> at & 1 for at in range(block.count))


def decode_write(pdu: bytes, request: bytes) -> Trouble | None:
    """Return why a device did not take a request to write; None when it says that it did."""
    if (refusal := _decode_refusal(pdu, request[0])) is not None:
        return refusal
    # Function 16 is answered with address and count, 5 and 6 with themselves: five bytes in both cases.
    return None if pdu == request[:5] else Trouble(reason=f"the answer to function {request[0]} is malformed")


def _decode_refusal(pdu: bytes, function: int) -> Trouble | None:
    if len(pdu) != 2 or pdu[0] != function | _EXCEPTION_BIT:
        return None
    code = pdu[1]
    known = code in list(ExceptionCode)
    name = ExceptionCode(code).name.lower().replace("_", " ") if known else "not in the standard"
    return Trouble(reason=f"the device refuses: exception {code}, {name}", code=code)


def decode_request(pdu: bytes) -> ReadRequest | WriteRequest | ExceptionCode:
    """Return what a client wants, or with what to refuse it."""
    function = pdu[0]
    tables = {table.read_function: table for table in Table}
    if function in tables:
        table = tables[function]
        if len(pdu) != 5:
            return ExceptionCode.ILLEGAL_DATA_VALUE
        address, count = struct.unpack(">HH", pdu[1:])
        if not 1 <= count <= (BITS_MAX if table.is_of_bits else REGISTERS_MAX):
            return ExceptionCode.ILLEGAL_DATA_VALUE
        return ReadRequest(table, address, count)
    return _decode_write_request(pdu)


def _decode_write_request(pdu: bytes) -> WriteRequest | ExceptionCode:
    function = pdu[0]
    if function not in (_WRITE_COIL, _WRITE_REGISTER, _WRITE_REGISTERS):
        return ExceptionCode.ILLEGAL_FUNCTION
    if len(pdu) < 5:
        return ExceptionCode.ILLEGAL_DATA_VALUE
    address, number = struct.unpack(">HH", pdu[1:5])
    if function == _WRITE_REGISTERS:
        if len(pdu) != 6 + 2 * number or not 1 <= number <= 123 or pdu[5] != 2 * number:
            return ExceptionCode.ILLEGAL_DATA_VALUE
        return WriteRequest(Table.HOLDING, address, struct.unpack(f">{number}H", pdu[6:]))
    if len(pdu) != 5 or (function == _WRITE_COIL and number not in (0, _COIL_ON)):
        return ExceptionCode.ILLEGAL_DATA_VALUE
    if function == _WRITE_COIL:
        return WriteRequest(Table.COIL, address, (int(number == _COIL_ON),))
    return WriteRequest(Table.HOLDING, address, (number,))


def encode_words(request: ReadRequest, words: Sequence[int]) -> bytes:
    """Return the answer to a reading."""
    if not request.table.is_of_bits:
        return struct.pack(f">BB{len(words)}H", request.table.read_function, 2 * len(words), *words)
    byte_count = -(-len(words) // 8)
    bits = sum(bit << at for at, bit in enumerate(words))
    return bytes((request.table.read_function, byte_count)) + bits.to_bytes(byte_count, "little")


def encode_refusal(function: int, code: int) -> bytes:
    """Return the answer that refuses a function."""
    return bytes((function & 0x7F | _EXCEPTION_BIT, code))
