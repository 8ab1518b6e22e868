"""Takes notifications of devices as hints to read them now.

Owns the socket, who is believed, and a bounded queue. Refuses to take a value from a notification: it may be lost,
late or repeated, so that it only wakes a reading and shows as a doubtful alarm point until that has spoken. Called
by the site program where a port is configured; off otherwise.

After RFC 3416, 4.2.6 and 4.2.7, and RFC 3414, 3.2, in which the sender of a trap is the authoritative engine. Informs
are acknowledged under version 2c; under version 3 they would need an engine of our own that remembers its starts.
"""

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence

import msgspec

from madang.core import Clock, Rejected, Unavailable
from madang.facility.address import split_address
from madang.facility.contract import Device, Secret
from madang.facility.snmp import ber, codec, usm
from madang.facility.snmp.ber import Malformed
from madang.facility.snmp.codec import AUTH, INFORM, PRIV, TRAP, CommunityMessage, Pdu, UsmMessage
from madang.facility.snmp.driver import PORT
from madang.facility.snmp.usm import EngineTime, Keys
from madang.model import Quality, Sample

HINTS_MAX = 256
"""Hints that nobody has taken yet; an older one gives way to a newer one."""
ENGINES_MAX = 64
"""Engines of version 3 whose time is remembered."""
_TRAP_OID = ber.encode_oid("1.3.6.1.6.3.1.1.4.1.0")
"""snmpTrapOID.0, in the second variable of every notification (RFC 3416, 4.2.6)."""
NAMES = {
    "1.3.6.1.6.3.1.1.5.1": "restarted",
    "1.3.6.1.6.3.1.1.5.3": "link_down",
    "1.3.6.1.6.3.1.1.5.4": "link_up",
    "1.3.6.1.6.3.1.1.5.5": "authentication_failed",
    "1.3.6.1.2.1.33.2.1": "on_battery",
    "1.3.6.1.2.1.33.2.2": "test_completed",
    "1.3.6.1.2.1.33.2.3": "alarm_added",
    "1.3.6.1.2.1.33.2.4": "alarm_removed",
}
"""Words for notifications of RFC 3418, RFC 2863 and RFC 1628; others are shown by their object identifier."""


class TrapHint(msgspec.Struct, frozen=True, kw_only=True):
    """Something that a device told by itself.

    Attributes:
        device_id: which one.
        equipment: the piece that its points belong to.
        oid: of the notification.
        word: what it means, or its object identifier.
        received_at_s: wall time.
    """

    device_id: str
    equipment: str
    oid: str
    word: str
    received_at_s: float

    def sample(self) -> Sample:
        """Return what the equipment's point `alarm_notification` reads until the device has been read."""
        return Sample(
            point_id=f"{self.equipment}.alarm_notification",
            value=1.0,
            quality=Quality.UNCERTAIN,
            observed_at_s=self.received_at_s,
            text=self.word,
            reason="a notification, which the next reading confirms or not",
        )


class _Sender(msgspec.Struct, frozen=True):
    device: Device
    community: bytes
    passwords: usm.Passwords | None


class TrapListener(asyncio.DatagramProtocol):
    """Listens for the notifications of known devices; all others are counted and dropped.

    Args:
        host: to listen on.
        port: to listen on; 0: a free one.
        devices: whose notifications are taken, each from the address, in digits, that it is read at.
        secrets: of devices by their id; a device is believed by its `trap_community` (without one, `community`), or
            under version 3 by its user.
        clock: time.

    Attributes:
        dropped: datagrams that were no notification, or that nobody known had sent.
        lost: hints that gave way to newer ones.
    """

    def __init__(
        self, host: str, port: int, devices: Sequence[Device], secrets: Mapping[str, Secret], clock: Clock
    ) -> None:
        self._host = host
        self._port = port
        self._clock = clock
        self._senders: dict[str, list[_Sender]] = {}
        for device in devices:
            sender = _make_sender(device, secrets.get(device.device_id, Secret()))
            self._senders.setdefault(split_address(device.address, PORT)[0], []).append(sender)
        self._engines: dict[bytes, tuple[Keys, EngineTime]] = {}
        self._hints: deque[TrapHint] = deque(maxlen=HINTS_MAX)
        self._arrived = asyncio.Event()
        self._transport: asyncio.DatagramTransport | None = None
        self.dropped = 0
        self.lost = 0

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"{self._host}:{self._port}"

    async def start(self) -> None:
        """Listen; raises Unavailable when the port is taken or not allowed."""
        loop = asyncio.get_running_loop()
        try:
            self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=(self._host, self._port))
        except OSError as error:
            raise Unavailable(f"notifications cannot be listened for on {self.address}: {error.strerror}") from error
        self._port = self._transport.get_extra_info("sockname")[1]

    async def stop(self) -> None:
        """Close the socket."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
            await asyncio.sleep(0)

    async def next_hint(self) -> TrapHint:
        """Return the oldest hint that has not been taken; waits for one."""
        while not self._hints:
            self._arrived.clear()
            await self._arrived.wait()
        return self._hints.popleft()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Take a notification, if it is one of a device that is believed."""
        try:
            message = codec.decode_message(data)
            sender, pdu = self._believe(data, message, self._senders.get(addr[0], []))
            hint = self._hint_of(sender.device, pdu)
        except Malformed:
            self.dropped += 1
            return
        if pdu.kind == INFORM and isinstance(message, CommunityMessage) and self._transport is not None:
            answer = codec.encode_pdu(codec.answer_to(pdu, pdu.binds))
            self._transport.sendto(codec.encode_community(message.version, message.community, answer), addr)
        self.lost += len(self._hints) == HINTS_MAX
        self._hints.append(hint)
        self._arrived.set()

    def _believe(
        self, data: bytes, message: CommunityMessage | UsmMessage, senders: list[_Sender]
    ) -> tuple[_Sender, Pdu]:
        for sender in senders:
            if isinstance(message, CommunityMessage):
                if sender.passwords is None and message.version == codec.V2C and message.community == sender.community:
                    return sender, message.pdu
            elif sender.passwords is not None and sender.passwords.user == message.user:
                return sender, self._unseal(data, message, sender.passwords)
        raise Malformed("nobody who is believed sent it")

    def _unseal(self, data: bytes, message: UsmMessage, passwords: usm.Passwords) -> Pdu:
        if message.flags & (AUTH | PRIV) != (AUTH | PRIV if passwords.priv else AUTH):
            raise Malformed("it is less secured than agreed on")
        now_s = asyncio.get_running_loop().time()
        known = self._engines.get(message.engine_id)
        keys = known[0] if known and known[0].user == message.user else passwords.localise(message.engine_id)
        scoped = usm.unseal(data, message, keys)
        time = known[1] if known else EngineTime(message.boots, message.time_s, now_s)
        if not time.take(message.boots, message.time_s, now_s):
            raise Malformed("it is outside of the window of time")
        if known is None and len(self._engines) == ENGINES_MAX:
            del self._engines[next(iter(self._engines))]
        self._engines[message.engine_id] = (keys, time)
        return codec.decode_scoped(scoped)[2]

    def _hint_of(self, device: Device, pdu: Pdu) -> TrapHint:
        if pdu.kind not in (TRAP, INFORM):
            raise Malformed("it is no notification")
        named = [bind for bind in pdu.binds[:2] if bind.oid == _TRAP_OID and bind.tag == ber.OID]
        if not named:
            raise Malformed("it does not say what it is")
        oid = ber.say_oid(named[0].content)
        return TrapHint(
            device_id=device.device_id,
            equipment=device.equipment,
            oid=oid,
            word=NAMES.get(oid, oid),
            received_at_s=self._clock.wall_s(),
        )


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
