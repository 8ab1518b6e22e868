"""How a session with an agent is secured: by community, or by a user of version 3.

Owns what is put around a request and what of an answer is believed. Refuses to know sockets; instants and random
octets are arguments. Called by the driver, for one agent each.
"""

from typing import Protocol

from madang.core import Rejected
from madang.facility.contract import Secret
from madang.facility.snmp import ber, codec, usm
from madang.facility.snmp.ber import Malformed
from madang.facility.snmp.codec import AUTH, PRIV, REPORT, REPORTABLE, CommunityMessage, Pdu, UsmMessage
from madang.facility.snmp.usm import EngineTime, Keys, Passwords

REPORTS = {
    1: "the device does not offer this level of security to the user",
    2: "the message is outside of the device's window of time",
    3: "the device does not know the user",
    4: "the device has another engine id",
    5: "the device finds the authentication code wrong: check auth_key and its protocol",
    6: "the device cannot decrypt: check priv_key",
}
"""usmStats of RFC 3414, 5, by the last number but the instance."""
NOT_IN_TIME_WINDOW, UNKNOWN_ENGINE = 2, 4
_STATS = ber.encode_oid("1.3.6.1.6.3.15.1.1")
_ENGINE_OCTETS = range(5, 33)
"""Lengths of an engine id (RFC 3411, 5, SnmpEngineID)."""


class Security(Protocol):
    """What a session puts around requests and takes off answers."""

    def wrap(self, pdu: bytes, message_id: int, salt: bytes, now_s: float, *, is_write: bool) -> bytes:
        """Return the message to send; before the engine is known, one that asks for it."""
        ...

    def unwrap(self, data: bytes, message_id: int, now_s: float) -> Pdu:
        """Return the PDU of a message that answers and may be believed; raises Malformed for any other."""
        ...

    def is_worth_repeating(self, report: Pdu) -> bool:
        """Return whether a request may succeed after what a report has taught."""
        ...

    def forget(self) -> None:
        """Begin anew: the device may be another one, or restarted."""
        ...


class CommunitySecurity:
    """Version 2c: a word that everybody on the network can read.

    Args:
        community: for reading.
        write_community: for commands; the same one where it is empty.
    """

    def __init__(self, community: str, write_community: str) -> None:
        self._community = community.encode()
        self._write_community = write_community.encode() or self._community

    def wrap(self, pdu: bytes, message_id: int, salt: bytes, now_s: float, *, is_write: bool) -> bytes:  # noqa: ARG002
        """Return the message; see `Security.wrap`."""
        return codec.encode_community(codec.V2C, self._write_community if is_write else self._community, pdu)

    def unwrap(self, data: bytes, message_id: int, now_s: float) -> Pdu:  # noqa: ARG002
        """Return the PDU; see `Security.unwrap`."""
        message = codec.decode_message(data)
        if not isinstance(message, CommunityMessage) or message.version != codec.V2C:
            raise Malformed("it is of another version")
        # An agent answers under the community of the request; some answer a write under the one for reading.
        if message.community not in (self._community, self._write_community):
            raise Malformed("it is of another community")
        return message.pdu

    def is_worth_repeating(self, report: Pdu) -> bool:  # noqa: ARG002
        """Return False: version 2c has no reports."""
        return False

    def forget(self) -> None:
        """Do nothing: there is no state."""


class UsmSecurity:
    """Version 3: a user with authentication, and encryption where there is a key for it.

    Args:
        passwords: of the user.
        context: name of the context asked; most devices have only the empty one.
    """

    def __init__(self, passwords: Passwords, context: str) -> None:
        self._passwords = passwords
        self._context = context.encode()
        self._keys: Keys | None = None
        self._engine_id = b""
        self._time: EngineTime | None = None

    def wrap(self, pdu: bytes, message_id: int, salt: bytes, now_s: float, *, is_write: bool) -> bytes:  # noqa: ARG002
        """Return the message; see `Security.wrap`."""
        if self._keys is None or self._time is None:
            return self._ask_for_engine(message_id)
        message = UsmMessage(
            message_id=message_id,
            flags=REPORTABLE | self._level,
            engine_id=self._engine_id,
            boots=self._time.boots,
            time_s=self._time.estimate_s(now_s),
            user=self._passwords.user,
            auth=b"",
            salt=salt if self._level & PRIV else b"",
            payload=codec.encode_scoped(self._engine_id, self._context, pdu),
        )
        return usm.seal(message, self._keys)

    def unwrap(self, data: bytes, message_id: int, now_s: float) -> Pdu:
        """Return the PDU; see `Security.unwrap`."""
        message = codec.decode_message(data)
        if not isinstance(message, UsmMessage) or message.message_id != message_id:
            raise Malformed("it answers another request")
        if not message.flags & AUTH:
            return self._unwrap_plain(message, now_s)
        if self._keys is None or self._time is None or message.engine_id != self._engine_id:
            raise Malformed("it is of another engine")
        if message.user != self._passwords.user:
            raise Malformed("it is of another user")
        scoped = usm.unseal(data, message, self._keys)
        if not self._time.take(message.boots, message.time_s, now_s):
            raise Malformed("it is outside of the window of time")
        _, _, pdu = codec.decode_scoped(scoped)
        if pdu.kind != REPORT and message.flags & (AUTH | PRIV) != self._level:
            raise Malformed("it is less secured than the request")
        return pdu

    def is_worth_repeating(self, report: Pdu) -> bool:
        """Return True for the two reports that a session begins with; each teaches what was missing."""
        return report_number(report) in (NOT_IN_TIME_WINDOW, UNKNOWN_ENGINE) and self._keys is not None

    def forget(self) -> None:
        """Ask for the engine before the next request."""
        self._keys, self._time, self._engine_id = None, None, b""

    @property
    def _level(self) -> int:
        return AUTH | PRIV if self._passwords.priv else AUTH

    def _ask_for_engine(self, message_id: int) -> bytes:
        """Return the message that every engine answers with a report (RFC 3414, 4)."""
        nothing = codec.encode_scoped(b"", b"", codec.encode_pdu(Pdu(codec.GET, message_id)))
        return codec.encode_usm(
            UsmMessage(
                message_id=message_id,
                flags=REPORTABLE,
                engine_id=b"",
                boots=0,
                time_s=0,
                user=b"",
                auth=b"",
                salt=b"",
                payload=nothing,
            )
        )

    def _unwrap_plain(self, message: UsmMessage, now_s: float) -> Pdu:
        """Return a report that nobody signed: it ends a request, or tells the engine once."""
        if message.flags & PRIV:
            raise Malformed("it is encrypted but not authenticated")
        _, _, pdu = codec.decode_scoped(message.payload)
        if pdu.kind != REPORT:
            raise Malformed("it is less secured than the request")
        if self._keys is None and len(message.engine_id) in _ENGINE_OCTETS:
            self._engine_id = message.engine_id
            self._keys = self._passwords.localise(message.engine_id)
            self._time = EngineTime(message.boots, message.time_s, now_s)
        return pdu


def report_number(report: Pdu) -> int:
    """Return which of the usmStats a report names; 0 for any other."""
    for bind in report.binds:
        if bind.oid.startswith(_STATS) and len(bind.oid) == len(_STATS) + 2:
            return bind.oid[-2]
    return 0


def say_report(report: Pdu) -> str:
    """Return what a report means."""
    return REPORTS.get(report_number(report), "the device reports what is not security")


def make_security(options: dict[str, str], secret: Secret, device_id: str) -> Security:
    """Return the security of a session; raises Rejected, without the words, where one is missing.

    Args:
        options: `version` (2c, 3), `auth`, `priv` (aes128, none), `context`.
        secret: `community` and `write_community`, or the user with `auth_key` and `priv_key`.
        device_id: whose session it is, for complaints.
    """
    version, words = options["version"], secret.words
    if version == "2c":
        if not words.get("community"):
            raise Rejected(f"{device_id}: its secret has no community", next_step="store one; there is no default")
        return CommunitySecurity(words["community"], words.get("write_community", ""))
    if version != "3":
        raise Rejected(f"{device_id}: SNMP version {version!r} is neither 2c nor 3")
    if options["priv"] not in ("aes128", "none"):
        raise Rejected(f"{device_id}: priv {options['priv']!r} is neither aes128 nor none")
    if not secret.user:
        raise Rejected(f"{device_id}: its secret has no user")
    priv_key = words.get("priv_key", "") if options["priv"] == "aes128" else ""
    if options["priv"] == "aes128" and not priv_key:
        raise Rejected(f"{device_id}: its secret has no priv_key", next_step='store one, or say `priv = "none"`')
    passwords = usm.stretch_passwords(secret.user, words.get("auth_key", ""), priv_key, options["auth"])
    return UsmSecurity(passwords, options["context"])
