"""What a simulated agent answers: its objects in order, and requests of every kind and version.

Owns the rules of GET, GETNEXT, GETBULK and SET, and the security of version 3 on the agent's side. Refuses to know
sockets, faults and where values come from. Called by the twin.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable

import msgspec

from madang.core import Rejected
from madang.facility.snmp import ber, codec, security, usm
from madang.facility.snmp.ber import Malformed
from madang.facility.snmp.codec import AUTH, GET, GET_BULK, GET_NEXT, PRIV, REPORT, SET, V1, Bind, Pdu, UsmMessage
from madang.facility.snmp.usm import Keys, Passwords

REPETITIONS_MAX = 64
ANSWER_BINDS_MAX = 256
_STATS = "1.3.6.1.6.3.15.1.1.{}.0"
_UNSUPPORTED_LEVEL, _UNKNOWN_USER, _WRONG_DIGEST, _CANNOT_DECRYPT = 1, 3, 5, 6

Read = Callable[[bytes], tuple[int, bytes] | None]
Write = Callable[[Bind], int]


class Objects:
    """The objects of an agent.

    Args:
        oids: all of them.
        read: returns an object's value; None: it is not there now.
        write: takes a command and returns an error status.
    """

    def __init__(self, oids: Iterable[bytes], read: Read, write: Write) -> None:
        ordered = sorted((ber.decode_oid(oid), oid) for oid in set(oids))
        self._arcs = [arcs for arcs, _ in ordered]
        self._oids = [oid for _, oid in ordered]
        self._known = set(self._oids)
        self._read = read
        self._write = write

    def answer(self, pdu: Pdu, version: int) -> Pdu | None:
        """Return the answer to a request; None for what is none."""
        if pdu.kind == SET:
            return self._answer_set(pdu)
        if pdu.kind == GET:
            binds = [self._get(bind.oid) for bind in pdu.binds]
        elif pdu.kind == GET_NEXT:
            binds = [self._next(bind.oid) for bind in pdu.binds]
        elif pdu.kind == GET_BULK and version != V1:
            binds = self._bulk(pdu)
        else:
            return None
        missing = [at for at, bind in enumerate(binds, 1) if bind.tag & ber.NO_SUCH_OBJECT]
        if version == V1 and missing:
            return codec.answer_to(pdu, pdu.binds, codec.NO_SUCH_NAME, missing[0])
        return codec.answer_to(pdu, binds)

    def _get(self, oid: bytes) -> Bind:
        value = self._read(oid) if oid in self._known else None
        return Bind(oid, *value) if value is not None else Bind(oid, ber.NO_SUCH_INSTANCE, b"")

    def _next(self, oid: bytes) -> Bind:
        for at in range(bisect_right(self._arcs, ber.decode_oid(oid) if oid else ()), len(self._oids)):
            value = self._read(self._oids[at])
            if value is not None:
                return Bind(self._oids[at], *value)
        return Bind(oid, ber.END_OF_MIB_VIEW, b"")

    def _bulk(self, pdu: Pdu) -> list[Bind]:
        """Return what GETBULK asks for (RFC 3416, 4.2.3); error status and index are its two numbers."""
        single = min(max(pdu.error_status, 0), len(pdu.binds))
        found = [self._next(bind.oid) for bind in pdu.binds[:single]]
        row = [bind.oid for bind in pdu.binds[single:]]
        for _ in range(min(max(pdu.error_index, 0), REPETITIONS_MAX)):
            if not row or len(found) + len(row) > ANSWER_BINDS_MAX:
                break
            binds = [self._next(oid) for oid in row]
            found += binds
            row = [bind.oid for bind in binds]
            if all(bind.tag == ber.END_OF_MIB_VIEW for bind in binds):
                break
        return found

    def _answer_set(self, pdu: Pdu) -> Pdu:
        for at, bind in enumerate(pdu.binds, 1):
            status = self._write(bind) if bind.oid in self._known else codec.NOT_WRITABLE
            if status:
                return codec.answer_to(pdu, pdu.binds, status, at)
        return codec.answer_to(pdu, pdu.binds)


class UsmAgent:
    """The authoritative side of version 3, with one user.

    Args:
        engine_id: of this agent.
        passwords: of its user.
    """

    def __init__(self, engine_id: bytes, passwords: Passwords) -> None:
        self._engine_id = engine_id
        self._keys: Keys = passwords.localise(engine_id)
        self._level = AUTH | PRIV if passwords.priv else AUTH
        self._salt = 0
        self._reports = 0

    def answer(
        self, data: bytes, message: UsmMessage, time_s: int, answer: Callable[[Pdu], Pdu | None]
    ) -> bytes | None:
        """Return the message that answers another one; None where nothing does. `time_s` is since the start."""
        if message.engine_id != self._engine_id:
            return self._report(message, security.UNKNOWN_ENGINE, 0, time_s)
        if message.user != self._keys.user:
            return self._report(message, _UNKNOWN_USER, 0, time_s)
        if message.flags & (AUTH | PRIV) != self._level:
            return self._report(message, _UNSUPPORTED_LEVEL, 0, time_s)
        try:
            scoped = usm.unseal(data, message, self._keys)
        except Malformed:
            return self._report(message, _WRONG_DIGEST, 0, time_s)
        if message.boots != 1 or abs(message.time_s - time_s) > usm.WINDOW_S:
            return self._report(message, security.NOT_IN_TIME_WINDOW, AUTH, time_s)
        try:
            _, context, pdu = codec.decode_scoped(scoped)
        except Malformed:
            return self._report(message, _CANNOT_DECRYPT, 0, time_s)
        found = answer(pdu)
        return (
            None if found is None else self._seal(message.message_id, message.user, found, self._level, context, time_s)
        )

    def notify(self, pdu: Pdu, message_id: int, time_s: int) -> bytes:
        """Return the message of a notification: its sender is the authoritative engine (RFC 3414, 3.1)."""
        return self._seal(message_id, self._keys.user, pdu, self._level, b"", time_s)

    def _report(self, message: UsmMessage, number: int, flags: int, time_s: int) -> bytes | None:
        if not message.flags & codec.REPORTABLE:
            return None
        self._reports += 1
        counter = ber.encode_integer(self._reports & 0xFFFFFFFF)[2:]
        bind = Bind(ber.encode_oid(_STATS.format(number)), ber.COUNTER32, counter)
        return self._seal(message.message_id, message.user, Pdu(REPORT, 0, binds=(bind,)), flags, b"", time_s)

    def _seal(self, message_id: int, user: bytes, pdu: Pdu, flags: int, context: bytes, time_s: int) -> bytes:
        self._salt += 1
        return usm.seal(
            UsmMessage(
                message_id=message_id,
                flags=flags,
                engine_id=self._engine_id,
                boots=1,
                time_s=time_s,
                user=user,
                auth=b"",
                salt=self._salt.to_bytes(8, "big") if flags & PRIV else b"",
                payload=codec.encode_scoped(self._engine_id, context, codec.encode_pdu(pdu)),
            ),
            self._keys,
        )


def constant_values(options: dict[str, str | int | float | bool]) -> dict[bytes, tuple[int, bytes]]:
    """Return the objects that a profile gives its twin as they are: options `twin.OID`.

    Whole numbers are integers, `oid:…` an object identifier, everything else a text. Raises Rejected.
    """
    found: dict[bytes, tuple[int, bytes]] = {}
    for name, value in options.items():
        if not name.startswith("twin."):
            continue
        try:
            oid = ber.encode_oid(name.removeprefix("twin."))
            if isinstance(value, str) and value.startswith("oid:"):
                found[oid] = ber.OID, ber.encode_oid(value.removeprefix("oid:"))
            elif isinstance(value, int):
                found[oid] = ber.INTEGER, ber.encode_integer(int(value))[2:]
            else:
                found[oid] = ber.OCTETS, str(value).encode()
        except ValueError as error:
            raise Rejected(f"option {name}: {error}") from error
    return found


def reorder(pdu: Pdu) -> Pdu:
    """Return an answer whose variables come in another order than they were asked for."""
    return msgspec.structs.replace(pdu, binds=tuple(reversed(pdu.binds)))
