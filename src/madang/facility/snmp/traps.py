"""Takes notifications of devices as hints to read them now.

Owns the socket, who is believed, how much is looked into, and at most one waiting hint for each device. Refuses to
take a value from a notification: it may be lost, late or repeated, so that it only wakes a reading. Called by the
site program where a port is configured; off otherwise.

After RFC 3416, 4.2.6 and 4.2.7, and RFC 3414, 3.2, in which the sender of a trap is the authoritative engine. Informs
are acknowledged under version 2c; under version 3 they would need an engine of our own that remembers its starts.
"""

import asyncio
import errno
import ipaddress
from collections.abc import Mapping, Sequence

import msgspec

from madang.core import Clock, Rejected, Unavailable
from madang.facility.address import split_address
from madang.facility.contract import Device, Hint, Secret
from madang.facility.snmp import ber, codec, usm
from madang.facility.snmp.ber import Malformed
from madang.facility.snmp.codec import AUTH, INFORM, PRIV, TRAP, CommunityMessage, OldTrap, Pdu, UsmMessage
from madang.facility.snmp.driver import PORT
from madang.facility.snmp.usm import EngineTime, Keys

ADDRESS_PER_SECOND_MAX = 50
"""Datagrams of one address that are looked into in a second: a UPS that loses its mains sends a handful. One of
version 3 costs some 110 us, one of 2c 18 us (CPU time of a Xeon at 2.5 GHz, 2026-11-28): half a percent of a core."""
PER_SECOND_MAX = 300
"""Datagrams of all addresses together: 60 devices with a handful each; 3 % of a core at most."""
ENGINES_MAX = 4096
"""Engines of version 3 whose time is remembered; only authentic ones are, and a site has fewer devices."""
PRIVILEGED_PORTS = 1024
"""Below, most systems let only root listen, or a program with CAP_NET_BIND_SERVICE."""
UNKNOWN_ADDRESS, UNKNOWN_SENDER, NOT_AUTHENTIC = "unknown_address", "unknown_sender", "not_authentic"
VERSION_1, MALFORMED, NO_NOTIFICATION, TOO_MANY = "version_1", "malformed", "no_notification", "too_many"
REASONS = (UNKNOWN_ADDRESS, UNKNOWN_SENDER, NOT_AUTHENTIC, VERSION_1, MALFORMED, NO_NOTIFICATION, TOO_MANY)
"""Why a datagram brings about nothing."""
_TRAP_OID = ber.encode_oid("1.3.6.1.6.3.1.1.4.1.0")
"""snmpTrapOID.0, in the second variable of every notification (RFC 3416, 4.2.6)."""
NAMES = {
    "1.3.6.1.6.3.1.1.5.1": "restarted",
    "1.3.6.1.6.3.1.1.5.2": "restarted",
    "1.3.6.1.6.3.1.1.5.3": "link_down",
    "1.3.6.1.6.3.1.1.5.4": "link_up",
    "1.3.6.1.6.3.1.1.5.5": "authentication_failed",
    "1.3.6.1.2.1.33.2.1": "on_battery",
    "1.3.6.1.2.1.33.2.2": "test_completed",
    "1.3.6.1.2.1.33.2.3": "alarm_added",
    "1.3.6.1.2.1.33.2.4": "alarm_removed",
}
"""Words for notifications of RFC 3418, RFC 2863 and RFC 1628; others are shown by their object identifier."""


class _Refused(Exception):
    """A datagram that brings about nothing; its only argument is the reason."""


class _Rate:
    """How many datagrams may still be looked into within a second."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._left = limit
        self._since_s = float("-inf")

    def take(self, now_s: float) -> bool:
        if now_s - self._since_s >= 1.0:
            self._since_s, self._left = now_s, self._limit
        self._left -= 1
        return self._left >= 0


class _Sender(msgspec.Struct, frozen=True):
    device: Device
    community: bytes
    passwords: usm.Passwords | None


class _Source(msgspec.Struct):
    """One address that is known: who is there, and how much of it is looked into."""

    senders: list[_Sender]
    rate: _Rate


class TrapListener(asyncio.DatagramProtocol):
    """Listens for the notifications of known devices; all others are counted and dropped.

    Args:
        host: to listen on.
        port: to listen on; 0: a free one.
        devices: whose notifications are taken, each from the address, in digits, that it is read at.
        secrets: of devices by their id; a device is believed by its `trap_community` (without one, `community`), or
            under version 3 by its user. Several at one address with the same words are all taken for the sender.
        clock: time.

    Attributes:
        deaf_to, rejected, merged: see `madang.facility.contract.Listener`.
    """

    def __init__(
        self, host: str, port: int, devices: Sequence[Device], secrets: Mapping[str, Secret], clock: Clock
    ) -> None:
        self._host = host
        self._port = port
        self._clock = clock
        self._sources: dict[str, _Source] = {}
        deaf_to: list[str] = []
        for device in devices:
            sender = _make_sender(device, secrets.get(device.device_id, Secret()))
            address = _plain(split_address(device.address, PORT)[0])
            if not address:
                deaf_to.append(device.device_id)
                continue
            source = self._sources.setdefault(address, _Source([], _Rate(ADDRESS_PER_SECOND_MAX)))
            source.senders.append(sender)
        self._rate = _Rate(PER_SECOND_MAX)
        self._engines: dict[tuple[str, bytes], tuple[Keys, EngineTime]] = {}
        self._hints: dict[str, Hint] = {}
        self._arrived = asyncio.Event()
        self._transport: asyncio.DatagramTransport | None = None
        self.deaf_to = tuple(sorted(deaf_to))
        self.rejected = dict.fromkeys(REASONS, 0)
        self.merged = 0

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"

    @property
    def is_listening(self) -> bool:
        """True while the socket is open."""
        return self._transport is not None

    async def start(self) -> None:
        """Listen; raises Unavailable when the port is taken or not allowed."""
        loop = asyncio.get_running_loop()
        try:
            self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=(self._host, self._port))
        except OSError as error:
            raise explain_refusal(error, self.address, self._port) from error
        self._port = self._transport.get_extra_info("sockname")[1]

    async def stop(self) -> None:
        """Close the socket."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
            await asyncio.sleep(0)

    async def next_hint(self) -> Hint:
        """Return the oldest hint that has not been taken; waits for one."""
        while not self._hints:
            self._arrived.clear()
            await self._arrived.wait()
        return self._hints.pop(next(iter(self._hints)))

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Take a notification, if it is one of a device that is believed."""
        try:
            message, senders, pdu = self._examine(data, addr[0])
            word = _word_of(pdu)
        except _Refused as refused:
            self.rejected[refused.args[0]] += 1
            return
        except OldTrap:
            self.rejected[VERSION_1] += 1
            return
        except Malformed:
            self.rejected[MALFORMED] += 1
            return
        if pdu.kind == INFORM and isinstance(message, CommunityMessage) and self._transport is not None:
            answer = codec.encode_pdu(codec.answer_to(pdu, pdu.binds))
            self._transport.sendto(codec.encode_community(message.version, message.community, answer), addr)
        for sender in senders:
            self.merged += sender.device.device_id in self._hints
            self._hints[sender.device.device_id] = Hint(
                device_id=sender.device.device_id, word=word, received_at_s=self._clock.wall_s()
            )
        self._arrived.set()

    def _examine(self, data: bytes, address: str) -> tuple[CommunityMessage | UsmMessage, list[_Sender], Pdu]:
        """Return a message, the devices that it may be of, and what it says; raises _Refused or Malformed."""
        # The system writes addresses of version 4 in one form only; a stranger's shall cost a look-up and no more.
        source = self._sources.get(_plain(address) if ":" in address else address)
        if source is None:
            raise _Refused(UNKNOWN_ADDRESS)
        now_s = asyncio.get_running_loop().time()
        if not (source.rate.take(now_s) and self._rate.take(now_s)):
            raise _Refused(TOO_MANY)
        message = codec.decode_message(data)
        if isinstance(message, UsmMessage):
            senders = [one for one in source.senders if one.passwords and one.passwords.user == message.user]
            if not senders:
                raise _Refused(UNKNOWN_SENDER)
            unsealed = [(one, pdu) for one in senders if (pdu := self._unseal(data, message, one, now_s))]
            if not unsealed:
                raise _Refused(NOT_AUTHENTIC)
            return message, [one for one, _ in unsealed], unsealed[0][1]
        if message.version != codec.V2C:
            raise OldTrap("a message of version 1")
        found = [one for one in source.senders if one.passwords is None and one.community == message.community]
        if not found:
            raise _Refused(UNKNOWN_SENDER)
        return message, found, message.pdu

    def _unseal(self, data: bytes, message: UsmMessage, sender: _Sender, now_s: float) -> Pdu | None:
        """Return what a message of version 3 says; None where it is not by this sender, not as safe, or old."""
        passwords = sender.passwords
        assert passwords is not None, "only senders of version 3 are asked"
        if message.flags & (AUTH | PRIV) != (AUTH | PRIV if passwords.priv else AUTH):
            return None
        key = sender.device.device_id, message.engine_id
        known = self._engines.get(key)
        keys = known[0] if known else passwords.localise(message.engine_id)
        try:
            scoped = usm.unseal(data, message, keys)
        except Malformed:
            return None
        time = known[1] if known else EngineTime(message.boots, message.time_s, now_s)
        if not time.take(message.boots, message.time_s, now_s):
            return None
        if known is None and len(self._engines) == ENGINES_MAX:
            del self._engines[next(iter(self._engines))]
        self._engines[key] = (keys, time)
        return codec.decode_scoped(scoped)[2]


def make_listener(
    host: str, port: int, devices: Sequence[Device], secrets: Mapping[str, Secret], clock: Clock
) -> TrapListener:
    """Return a listener; raises Rejected where a device's secret has no words for its notifications."""
    return TrapListener(host, port, devices, secrets, clock)


def explain_refusal(error: OSError, address: str, port: int) -> Unavailable:
    """Return why notifications cannot be listened for, with what to do about it."""
    why = f"notifications cannot be listened for on {address}: {error.strerror or error}"
    if error.errno in (errno.EACCES, errno.EPERM) and port < PRIVILEGED_PORTS:
        return Unavailable(
            f"{why}; ports below {PRIVILEGED_PORTS} want CAP_NET_BIND_SERVICE",
            next_step="take a port above, such as 1162, and let devices send there or the firewall forward 162 to it",
        )
    return Unavailable(why, next_step="free the port, or take another one" if error.errno == errno.EADDRINUSE else "")


def _word_of(pdu: Pdu) -> str:
    """Return what a notification tells; raises _Refused for what is none."""
    if pdu.kind not in (TRAP, INFORM):
        raise _Refused(NO_NOTIFICATION)
    named = [bind for bind in pdu.binds[:2] if bind.oid == _TRAP_OID and bind.tag == ber.OID]
    if not named:
        raise _Refused(NO_NOTIFICATION)
    oid = ber.say_oid(named[0].content)
    return NAMES.get(oid, oid)


def _plain(address: str) -> str:
    """Return an address in the one form that is compared; nothing for a name."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped or found)


def _make_sender(device: Device, secret: Secret) -> _Sender:
    """Return how a device is believed; raises Rejected where its secret has no words for it."""
    words = secret.words
    if str(device.options.get("version", "2c")) == "3":
        priv_key = words.get("priv_key", "") if device.options.get("priv", "aes128") != "none" else ""
        protocol = str(device.options.get("auth", "sha256"))
        return _Sender(device, b"", usm.stretch_passwords(secret.user, words.get("auth_key", ""), priv_key, protocol))
    community = words.get("trap_community", "") or words.get("community", "")
    if not community:
        raise Rejected(f"{device.device_id}: its secret has no community, so that its notifications mean nothing")
    return _Sender(device, community.encode(), None)
