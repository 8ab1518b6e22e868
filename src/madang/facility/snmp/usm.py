"""The User-based Security Model of SNMPv3: keys, authentication codes, encryption, and the window of time.

Owns what makes a message of version 3 believable. Refuses to know sockets and clocks: time is an argument. Called by
the security of sessions, by the twin and by the trap listener.

After RFC 3414 (keys: 2.6 and A.2; window: 3.2), RFC 7860 (HMAC with SHA-2) and RFC 3826 (AES in CFB mode with 128
bits). MD5 and DES are left out: both are broken. SHA-1 stays for devices that know nothing newer.
"""

import hashlib
import hmac
from typing import NamedTuple

import msgspec
from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES

from madang.core import Rejected
from madang.facility.snmp import codec
from madang.facility.snmp.ber import Malformed
from madang.facility.snmp.codec import AUTH, PRIV, UsmMessage

AUTH_OCTETS = {"sha1": 12, "sha256": 24, "sha512": 48}
"""How much of the code each protocol sends (RFC 3414, 6; RFC 7860, 4.1)."""
WINDOW_S = 150
"""How far the time of a message may lie from what the receiver takes for the engine's (RFC 3414, 2.2.3)."""
PASSWORD_CHARACTERS_MIN = 8
"""RFC 3414, 11.2."""
_STRETCH_BYTES = 1 << 20
_AES_KEY_OCTETS = 16
_SALT_OCTETS = 8


class Keys(NamedTuple):
    """A user's keys at one engine; `priv` is empty for a user without encryption."""

    user: bytes
    auth_protocol: str
    auth: bytes
    priv: bytes


class Passwords(msgspec.Struct, frozen=True):
    """A user's keys before they are made of an engine (stretched once: it hashes a megabyte); printed as stars."""

    user: bytes
    auth_protocol: str
    auth: bytes
    priv: bytes

    def __repr__(self) -> str:
        return f"Passwords(user={self.user!r}, ***)"

    def localise(self, engine_id: bytes) -> Keys:
        """Return the keys at one engine (RFC 3414, 2.6)."""

        def at_engine(key: bytes) -> bytes:
            return hashlib.new(self.auth_protocol, key + engine_id + key).digest() if key else b""

        return Keys(self.user, self.auth_protocol, at_engine(self.auth), at_engine(self.priv)[:_AES_KEY_OCTETS])


def stretch_passwords(user: str, auth_key: str, priv_key: str, auth_protocol: str) -> Passwords:
    """Return a user's keys of passwords; raises Rejected for an unknown protocol or a password that is too short.

    Without `priv_key` nothing is encrypted. The passwords themselves are in no message.
    """
    if auth_protocol not in AUTH_OCTETS:
        raise Rejected(f"SNMPv3 with {auth_protocol!r}: use one of {', '.join(AUTH_OCTETS)}")
    for name, password in (("auth_key", auth_key), ("priv_key", priv_key)):
        if len(password) < PASSWORD_CHARACTERS_MIN and (password or name == "auth_key"):
            raise Rejected(f"SNMPv3 user {user}: its {name} is shorter than {PASSWORD_CHARACTERS_MIN} characters")
    return Passwords(user.encode(), auth_protocol, _stretch(auth_key, auth_protocol), _stretch(priv_key, auth_protocol))


def seal(message: UsmMessage, keys: Keys) -> bytes:
    """Return a message encrypted and authenticated as its flags say; `salt` must never have been used before."""
    if message.flags & PRIV:
        cipher = Cipher(AES(keys.priv), CFB(_initial_vector(message))).encryptor()
        message = msgspec.structs.replace(message, payload=cipher.update(message.payload) + cipher.finalize())
    if not message.flags & AUTH:
        return codec.encode_usm(message)
    size = AUTH_OCTETS[keys.auth_protocol]
    blank = codec.encode_usm(msgspec.structs.replace(message, auth=bytes(size)))
    return codec.encode_usm(msgspec.structs.replace(message, auth=_code(keys, blank)))


def unseal(data: bytes, message: UsmMessage, keys: Keys) -> bytes:
    """Return the scoped PDU of an authenticated message; raises Malformed when its code is wrong."""
    size = AUTH_OCTETS[keys.auth_protocol]
    blank = data[: message.auth_at] + bytes(len(message.auth)) + data[message.auth_at + len(message.auth) :]
    if len(message.auth) != size or not hmac.compare_digest(message.auth, _code(keys, blank)):
        raise Malformed("its authentication code is wrong")
    if not message.flags & PRIV:
        return message.payload
    if len(message.salt) != _SALT_OCTETS or len(keys.priv) != _AES_KEY_OCTETS:
        raise Malformed("it is encrypted in a way that was not agreed on")
    cipher = Cipher(AES(keys.priv), CFB(_initial_vector(message))).decryptor()
    return cipher.update(message.payload) + cipher.finalize()


class EngineTime:
    """What is believed of the time of the engine that is authoritative for a session.

    A lost or replayed message does not move it backwards. What came unauthenticated serves until the first
    authenticated message, which is taken as it is.
    """

    def __init__(self, boots: int, time_s: int, now_s: float) -> None:
        self.boots = boots
        self._time_s = time_s
        self._latest_s = time_s
        self._at_s = now_s
        self._is_synced = False

    def estimate_s(self, now_s: float) -> int:
        """Return the engine's time now."""
        return self._time_s + int(now_s - self._at_s)

    def take(self, boots: int, time_s: int, now_s: float) -> bool:
        """Learn from an authenticated message; return whether it lies in the window (RFC 3414, 3.2, 7b)."""
        if not self._is_synced or boots > self.boots or (boots == self.boots and time_s > self._latest_s):
            self.boots, self._time_s, self._latest_s, self._at_s = boots, time_s, time_s, now_s
            self._is_synced = True
        return boots == self.boots and time_s >= self.estimate_s(now_s) - WINDOW_S


def _stretch(password: str, auth_protocol: str) -> bytes:
    if not password:
        return b""
    data = password.encode()
    return hashlib.new(auth_protocol, (data * (_STRETCH_BYTES // len(data) + 1))[:_STRETCH_BYTES]).digest()


def _code(keys: Keys, data: bytes) -> bytes:
    return hmac.digest(keys.auth, data, keys.auth_protocol)[: AUTH_OCTETS[keys.auth_protocol]]


def _initial_vector(message: UsmMessage) -> bytes:
    """Return boots, time and salt (RFC 3826, 3.1.2.1)."""
    try:
        return message.boots.to_bytes(4, "big") + message.time_s.to_bytes(4, "big") + message.salt
    except OverflowError as error:
        raise Malformed("boots or time of a message are beyond 32 bits") from error
