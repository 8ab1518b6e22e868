"""The part of BER that SNMP uses: types, lengths, integers and object identifiers.

Owns bytes, both ways. Refuses to know messages. Called by the SNMP codec.

After X.690 (definite lengths, single-byte tags) and RFC 3416, section 3, and RFC 2578, section 7.1. Object
identifiers stay encoded wherever they are only compared: that is most of what an answer costs.
"""

import struct

INTEGER = 0x02
OCTETS = 0x04
NULL = 0x05
OID = 0x06
SEQUENCE = 0x30
IP_ADDRESS = 0x40
COUNTER32 = 0x41
GAUGE32 = 0x42
TICKS = 0x43
OPAQUE = 0x44
COUNTER64 = 0x46
NO_SUCH_OBJECT = 0x80
NO_SUCH_INSTANCE = 0x81
END_OF_MIB_VIEW = 0x82

UNSIGNED = {COUNTER32: 0xFFFFFFFF, GAUGE32: 0xFFFFFFFF, TICKS: 0xFFFFFFFF, COUNTER64: 0xFFFFFFFFFFFFFFFF}
ARCS_MAX = 128
"""Of an object identifier (RFC 2578, 3.5)."""
_FLOAT = (0x9F, 0x78, 4)
_DOUBLE = (0x9F, 0x79, 8)
"""What net-snmp wraps into Opaque (draft-perkins-opaque): tag and length of IEEE numbers."""


class Malformed(ValueError):
    """Bytes that are no message; never leaves the driver, which says so in a sample's reason."""


def encode(tag: int, content: bytes) -> bytes:
    """Return a type, its length and its content."""
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def encode_integer(number: int, tag: int = INTEGER) -> bytes:
    """Return an integer of any type in the fewest octets."""
    bits = (number if number >= 0 else ~number).bit_length()
    return encode(tag, number.to_bytes(bits // 8 + 1, "big", signed=True))


def encode_oid(dotted: str) -> bytes:
    """Return the content of an object identifier; raises ValueError for a text that is none."""
    if not all(arc.isascii() and arc.isdigit() for arc in dotted.strip(".").split(".")):
        raise ValueError(f"{dotted!r} is no object identifier")
    arcs = [int(arc) for arc in dotted.strip(".").split(".")]
    if not 2 <= len(arcs) <= ARCS_MAX or arcs[0] > 2 or (arcs[0] < 2 and arcs[1] > 39) or max(arcs) > 0xFFFFFFFF:
        raise ValueError(f"{dotted!r} is no object identifier")
    content = bytearray()
    for arc in (40 * arcs[0] + arcs[1], *arcs[2:]):
        septets = [arc & 0x7F]
        while arc := arc >> 7:
            septets.append(arc & 0x7F | 0x80)
        content += bytes(reversed(septets))
    return bytes(content)


def decode_oid(content: bytes) -> tuple[int, ...]:
    """Return the arcs of an object identifier's content; raises Malformed."""
    arcs: list[int] = []
    arc = 0
    for octet in content:
        arc = arc << 7 | octet & 0x7F
        if arc > 0xFFFFFFFF + 80:
            raise Malformed("an object identifier has an arc beyond 32 bits")
        if octet < 0x80:
            arcs.append(arc)
            arc = 0
    if not arcs or content[-1] >= 0x80 or len(arcs) >= ARCS_MAX:
        raise Malformed("an object identifier is empty, cut or too long")
    first = min(arcs[0] // 40, 2)
    return (first, arcs[0] - 40 * first, *arcs[1:])


def say_oid(content: bytes) -> str:
    """Return an object identifier in dots; raises Malformed."""
    return ".".join(map(str, decode_oid(content)))


def read(data: bytes, at: int, end: int, tag: int = 0) -> tuple[int, int, int]:
    """Return the tag at a place, and where its content begins and ends.

    Raises Malformed when it is another tag than `tag` (0: any) or reaches beyond `end`.
    """
    if at + 2 > end:
        raise Malformed("a message ends within a type")
    found, size = data[at], data[at + 1]
    start = at + 2
    if size & 0x80:
        octets = size & 0x7F
        if not 1 <= octets <= 4 or start + octets > end:
            raise Malformed("a length is indefinite or too long")
        size = int.from_bytes(data[start : start + octets], "big")
        start += octets
    if start + size > end:
        raise Malformed("a message ends within a value")
    if tag and found != tag:
        raise Malformed(f"a message has type {found:#04x} where {tag:#04x} belongs")
    return found, start, start + size


def read_integer(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Return an INTEGER and where it ends; raises Malformed."""
    _, start, stop = read(data, at, end, INTEGER)
    if not 1 <= stop - start <= 8:
        raise Malformed("an integer has no octet or too many")
    return int.from_bytes(data[start:stop], "big", signed=True), stop


def read_octets(data: bytes, at: int, end: int) -> tuple[bytes, int]:
    """Return an OCTET STRING and where it ends; raises Malformed."""
    _, start, stop = read(data, at, end, OCTETS)
    return data[start:stop], stop


def to_number(tag: int, content: bytes) -> float | str:
    """Return the number of a value, or in words why it is none."""
    if tag == INTEGER and 1 <= len(content) <= 8:
        return float(int.from_bytes(content, "big", signed=True))
    if (limit := UNSIGNED.get(tag)) is not None and 1 <= len(content) <= 9:
        # Some agents leave out the zero octet before a set first bit.
        return float(int.from_bytes(content, "big") & limit)
    if tag == OCTETS:
        return _number_of_text(content)
    if tag == OPAQUE and len(content) >= 3:
        if tuple(content[:3]) == _FLOAT and len(content) == 7:
            return float(struct.unpack(">f", content[3:])[0])
        if tuple(content[:3]) == _DOUBLE and len(content) == 11:
            return float(struct.unpack(">d", content[3:])[0])
    return {
        NULL: "the device gives nothing",
        NO_SUCH_OBJECT: "the device has no such object",
        NO_SUCH_INSTANCE: "the device has no such instance",
        END_OF_MIB_VIEW: "the device has no such object",
    }.get(tag, f"the device gives type {tag:#04x}, which is no number")


def _number_of_text(content: bytes) -> float | str:
    text = content.rstrip(b"\0").strip()
    # Not `float`: it would take "nan", "1_0" and "infinity".
    digits = text.lstrip(b"+-")
    if len(text) <= 32 and len(text) - len(digits) <= 1 and digits.replace(b".", b"", 1).isdigit():
        return float(text)
    return "the device gives a text that is no number"
