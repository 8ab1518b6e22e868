"""SNMP messages: what is sent and what comes, of the versions 1, 2c and 3.

Owns the messages' shapes, both ways. Refuses to know sockets, keys and what an object means. Called by driver, twin
and trap listener.

After RFC 1157 (version 1, of which a twin needs to understand requests), RFC 1901, RFC 3416 and RFC 3417 (2c), and
RFC 3412, section 6, and RFC 3414, section 2.4 (3).
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from madang.facility.snmp import ber
from madang.facility.snmp.ber import OCTETS, SEQUENCE, Malformed

GET = 0xA0
GET_NEXT = 0xA1
RESPONSE = 0xA2
SET = 0xA3
GET_BULK = 0xA5
INFORM = 0xA6
TRAP = 0xA7
REPORT = 0xA8
V1, V2C, V3 = 0, 1, 3

BYTES_MAX = 65507
"""Of a datagram over IPv4; also what is announced as the largest message."""
BINDS_MAX = 1024
AUTH, PRIV, REPORTABLE = 1, 2, 4
"""Flags of version 3 (RFC 3412, 6.4)."""
_USM = 3
"""The User-based Security Model (RFC 3411, 5)."""

ERRORS = (
    "noError",
    "tooBig",
    "noSuchName",
    "badValue",
    "readOnly",
    "genErr",
    "noAccess",
    "wrongType",
    "wrongLength",
    "wrongEncoding",
    "wrongValue",
    "noCreation",
    "inconsistentValue",
    "resourceUnavailable",
    "commitFailed",
    "undoFailed",
    "authorizationError",
    "notWritable",
    "inconsistentName",
)
"""Names of error-status (RFC 3416, 3)."""
TOO_BIG, NO_SUCH_NAME, GEN_ERR, WRONG_VALUE, NOT_WRITABLE = 1, 2, 5, 10, 17


class OldTrap(Malformed):
    """A trap of version 1, which is laid out unlike any other PDU: sites are told that a device sends these."""


class Bind(NamedTuple):
    """One variable: its object identifier and value as encoded."""

    oid: bytes
    tag: int
    content: bytes


class Pdu(msgspec.Struct, frozen=True):
    """A request or an answer; of GetBulk, the second and third number are non-repeaters and max-repetitions."""

    kind: int
    request_id: int
    error_status: int = 0
    error_index: int = 0
    binds: tuple[Bind, ...] = ()


class CommunityMessage(msgspec.Struct, frozen=True):
    """A message of version 1 or 2c."""

    version: int
    community: bytes
    pdu: Pdu


class UsmMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message of version 3.

    Attributes:
        payload: the scoped PDU, or its encrypted form where the flag says so.
        auth: the message's authentication code; of a message to be sent, as many zeros.
        auth_at: of a message that came, where the code stands in it.
    """

    message_id: int
    flags: int
    engine_id: bytes
    boots: int
    time_s: int
    user: bytes
    auth: bytes
    salt: bytes
    payload: bytes
    auth_at: int = 0


def encode_bind(bind: Bind) -> bytes:
    """Return a variable."""
    return ber.encode(SEQUENCE, ber.encode(ber.OID, bind.oid) + ber.encode(bind.tag, bind.content))


def encode_pdu(pdu: Pdu) -> bytes:
    """Return a PDU."""
    return encode_pdu_of(pdu, b"".join(map(encode_bind, pdu.binds)))


def encode_pdu_of(pdu: Pdu, encoded_binds: bytes) -> bytes:
    """Return a PDU whose variables are encoded already: a poller asks for the same ones each second."""
    numbers = b"".join(map(ber.encode_integer, (pdu.request_id, pdu.error_status, pdu.error_index)))
    return ber.encode(pdu.kind, numbers + ber.encode(SEQUENCE, encoded_binds))


def encode_community(version: int, community: bytes, encoded_pdu: bytes) -> bytes:
    """Return a message of version 1 or 2c."""
    return ber.encode(SEQUENCE, ber.encode_integer(version) + ber.encode(OCTETS, community) + encoded_pdu)


def encode_scoped(engine_id: bytes, context: bytes, encoded_pdu: bytes) -> bytes:
    """Return a scoped PDU (RFC 3412, 6.8)."""
    return ber.encode(SEQUENCE, ber.encode(OCTETS, engine_id) + ber.encode(OCTETS, context) + encoded_pdu)


def encode_usm(message: UsmMessage) -> bytes:
    """Return a message of version 3."""
    head = (
        ber.encode_integer(message.message_id)
        + ber.encode_integer(BYTES_MAX)
        + ber.encode(OCTETS, bytes((message.flags,)))
        + ber.encode_integer(_USM)
    )
    security = (
        ber.encode(OCTETS, message.engine_id)
        + ber.encode_integer(message.boots)
        + ber.encode_integer(message.time_s)
        + ber.encode(OCTETS, message.user)
        + ber.encode(OCTETS, message.auth)
        + ber.encode(OCTETS, message.salt)
    )
    payload = ber.encode(OCTETS, message.payload) if message.flags & PRIV else message.payload
    return ber.encode(
        SEQUENCE,
        ber.encode_integer(V3)
        + ber.encode(SEQUENCE, head)
        + ber.encode(OCTETS, ber.encode(SEQUENCE, security))
        + payload,
    )


def decode_message(data: bytes) -> CommunityMessage | UsmMessage:
    """Return a message; raises Malformed for anything else."""
    _, at, end = ber.read(data, 0, len(data), SEQUENCE)
    version, at = ber.read_integer(data, at, end)
    if version == V3:
        return _decode_usm(data, at, end)
    if version not in (V1, V2C):
        raise Malformed(f"version {version} is none")
    community, at = ber.read_octets(data, at, end)
    return CommunityMessage(version, community, decode_pdu(data, at, end))


def decode_pdu(data: bytes, at: int, end: int) -> Pdu:
    """Return the PDU at a place; raises Malformed."""
    kind, at, end = ber.read(data, at, end)
    if not GET <= kind <= REPORT:
        raise Malformed(f"type {kind:#04x} is no PDU")
    if kind == GET + 4:
        raise OldTrap("a trap of version 1")
    request_id, at = ber.read_integer(data, at, end)
    status, at = ber.read_integer(data, at, end)
    index, at = ber.read_integer(data, at, end)
    _, at, end = ber.read(data, at, end, SEQUENCE)
    binds: list[Bind] = []
    read = ber.read
    while at < end:
        _, start, at = read(data, at, end, SEQUENCE)
        _, name, name_end = read(data, start, at, ber.OID)
        tag, value, value_end = read(data, name_end, at)
        if value_end != at or len(binds) == BINDS_MAX:
            raise Malformed("a variable has more than name and value, or there are too many")
        binds.append(Bind(data[name:name_end], tag, data[value:value_end]))
    return Pdu(kind, request_id, status, index, tuple(binds))


def decode_scoped(data: bytes) -> tuple[bytes, bytes, Pdu]:
    """Return context engine, context and PDU of a scoped PDU; raises Malformed. Padding after it is ignored."""
    _, at, end = ber.read(data, 0, len(data), SEQUENCE)
    engine_id, at = ber.read_octets(data, at, end)
    context, at = ber.read_octets(data, at, end)
    return engine_id, context, decode_pdu(data, at, end)


def say_error(pdu: Pdu) -> str:
    """Return the name of an answer's error."""
    known = 0 <= pdu.error_status < len(ERRORS)
    return ERRORS[pdu.error_status] if known else f"error {pdu.error_status}"


def answer_to(pdu: Pdu, binds: Sequence[Bind], error_status: int = 0, error_index: int = 0) -> Pdu:
    """Return the answer to a request."""
    return Pdu(RESPONSE, pdu.request_id, error_status, error_index, tuple(binds))


def _decode_usm(data: bytes, at: int, end: int) -> UsmMessage:
    _, head, at = ber.read(data, at, end, SEQUENCE)
    message_id, head = ber.read_integer(data, head, at)
    _, head = ber.read_integer(data, head, at)
    flags, head = ber.read_octets(data, head, at)
    model, head = ber.read_integer(data, head, at)
    if model != _USM or len(flags) != 1:
        raise Malformed("a message of version 3 with another security model")
    _, start, at = ber.read(data, at, end, OCTETS)
    _, start, stop = ber.read(data, start, at, SEQUENCE)
    engine_id, start = ber.read_octets(data, start, stop)
    boots, start = ber.read_integer(data, start, stop)
    time_s, start = ber.read_integer(data, start, stop)
    user, start = ber.read_octets(data, start, stop)
    auth, auth_end = ber.read_octets(data, start, stop)
    salt, _ = ber.read_octets(data, auth_end, stop)
    is_private = bool(flags[0] & PRIV)
    _, payload, payload_end = ber.read(data, at, end, OCTETS if is_private else SEQUENCE)
    return UsmMessage(
        message_id=message_id,
        flags=flags[0],
        engine_id=engine_id,
        boots=boots,
        time_s=time_s,
        user=user,
        auth=auth,
        salt=salt,
        payload=data[payload:payload_end] if is_private else data[at:payload_end],
        auth_at=auth_end - len(auth),
    )
