"""A simulated SNMP agent, read by any manager of the versions 1, 2c and 3; a UPS tells by itself what happens to it.

Owns the socket and the faults. Refuses to know physics: values come from a plant by the profile's names. Called by
the plant twin and tests.
"""

import asyncio
import contextlib
from collections.abc import Callable

from madang.core import Rejected, Unavailable
from madang.facility.address import split_address
from madang.facility.contract import Device, PlantPort, Secret, TwinFault
from madang.facility.profile import PointSpec, Profile
from madang.facility.snmp import agent, ber, codec, twin_traps, usm
from madang.facility.snmp.agent import Objects, UsmAgent
from madang.facility.snmp.ber import Malformed
from madang.facility.snmp.codec import Bind, Pdu, UsmMessage
from madang.facility.snmp.driver import OPTIONS, encode_value, parse_ref, security_options
from madang.facility.snmp.security import make_security
from madang.facility.snmp.twin_traps import UpsHerald
from madang.model import PointKind

LATE_MAX = 64
"""Answers that wait for a slow twin."""
_SYSTEM = {
    "twin.1.3.6.1.2.1.1.1.0": "Madang twin",
    "twin.1.3.6.1.2.1.1.2.0": "oid:0.0",
    "twin.1.3.6.1.2.1.1.5.0": "madang-twin",
}
"""sysDescr, sysObjectID and sysName (RFC 3418): nobody takes it for a real device."""
_UPTIME = ber.encode_oid("1.3.6.1.2.1.1.3.0")
_ENGINE_ID = b"\x80\x00\x00\x00\x04MadangTwin"
"""Format 4 of RFC 3411: a text that whoever runs the engine chose."""


class SnmpTwin(asyncio.DatagramProtocol):
    """An agent with the objects of a profile.

    Args:
        device: where it listens, what of the profile it has, and with the option `twin.notify` (`host:port`) to whom
            it sends notifications.
        profile: its points.
        secret: whom it answers.
        plant: what it measures and commands.
    """

    def __init__(self, device: Device, profile: Profile, secret: Secret, plant: PlantPort) -> None:
        self._host, self._port = split_address(device.address, 0)
        self._timeout_s = device.timeout_s
        self._plant = plant
        options = security_options(device, profile)
        # Only to refuse what a driver would refuse: a twin without a word would answer everybody.
        make_security(options, secret, device.device_id)
        self._communities = (secret.words.get("community", ""), secret.words.get("write_community", ""))
        self._passwords: usm.Passwords | None = None
        if options["version"] == "3":
            priv_key = secret.words["priv_key"] if options["priv"] != "none" else ""
            auth_key = secret.words["auth_key"]
            self._passwords = usm.stretch_passwords(secret.user, auth_key, priv_key, options["auth"])
        self._specs = [one for one in profile.points if one.point_id(device.equipment, device.parts)]
        known = {**OPTIONS, **profile.options, **device.options}
        self._refs = {spec.name: parse_ref(spec, known) for spec in self._specs}
        self._by_oid = _assign(self._specs, self._refs)
        self._constants = agent.constant_values({**_SYSTEM, **profile.options})
        self._objects = Objects([*self._by_oid, *self._constants, _UPTIME], self._read, self._write)
        sink = str(device.options.get(twin_traps.OPTION, ""))
        self._sink = twin_traps.parse_sink(sink) if sink else None
        self._herald = UpsHerald(self._specs, self._value) if sink else None
        self._trap_community = secret.words.get("trap_community", "") or self._communities[0]
        self._trap_id = 0
        self._watch: asyncio.Task[None] | None = None
        self._fault: TwinFault | None = None
        self._frozen: dict[str, float | None] = {}
        self._former = b""
        self._garbage = 0
        self._late: set[asyncio.TimerHandle] = set()
        self._transport: asyncio.DatagramTransport | None = None
        self._usm: UsmAgent | None = None
        self._started_s = 0.0
        self._clock: Callable[[], float] = lambda: 0.0

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"{self._host}:{self._port}"

    async def start(self) -> None:
        """Listen; raises Unavailable when the port is taken."""
        loop = asyncio.get_running_loop()
        try:
            self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=(self._host, self._port))
        except OSError as error:
            raise Unavailable(f"the SNMP twin cannot listen on {self.address}: {error.strerror}") from error
        self._port = self._transport.get_extra_info("sockname")[1]
        self._clock, self._started_s = loop.time, loop.time()
        if self._passwords is not None:
            self._usm = UsmAgent(_ENGINE_ID + str(self._port).encode(), self._passwords)
        if self._herald is not None:
            self._watch = loop.create_task(self._notify(self._herald), name=f"notifications_of_{self.address}")

    async def stop(self) -> None:
        """Close the socket."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch
        for handle in self._late:
            handle.cancel()
        self._late.clear()
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
            # The socket itself is closed by a callback of the loop.
            await asyncio.sleep(0)

    def fault(self, fault: TwinFault | None) -> None:
        """Misbehave so until told otherwise."""
        self._fault = fault
        is_stuck = fault is not None and fault.kind == "stuck"
        self._frozen = {spec.name: self._plant.get(spec.name) for spec in self._specs} if is_stuck else {}

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Answer a request, or do what the fault says."""
        try:
            answer = self._answer(data)
        except Malformed:
            return
        if answer is None or self._has_fault("silent"):
            return
        if self._has_fault("slow"):
            if len(self._late) < LATE_MAX:
                loop = asyncio.get_running_loop()
                self._late.add(loop.call_later(1.5 * self._timeout_s, self._send, answer, addr))
            return
        for message in self._spoil(answer):
            self._send(message, addr)

    async def _notify(self, herald: UpsHerald) -> None:
        """Tell for ever what changed; one that is silent does not."""
        while True:
            now_s = self._clock() - self._started_s
            for binds in herald.look(now_s):
                if self._sink is not None and not self._has_fault("silent"):
                    self._send(self._wrap_notification(Pdu(codec.TRAP, self._next_trap_id(), binds=binds)), self._sink)
            await asyncio.sleep(twin_traps.LOOK_S)

    def _next_trap_id(self) -> int:
        self._trap_id = self._trap_id + 1 & 0x7FFFFFFF
        return self._trap_id

    def _wrap_notification(self, pdu: Pdu) -> bytes:
        if self._usm is not None:
            return self._usm.notify(pdu, pdu.request_id, int(self._clock() - self._started_s))
        return codec.encode_community(codec.V2C, self._trap_community.encode(), codec.encode_pdu(pdu))

    def _send(self, message: bytes, addr: tuple[str, int]) -> None:
        if self._transport is not None:
            self._transport.sendto(message, addr)

    def _spoil(self, answer: bytes) -> list[bytes]:
        """Return what leaves instead of an answer."""
        former, self._former = self._former, answer
        if self._has_fault("reordered"):
            return [one for one in (former, answer) if one]
        if not self._has_fault("garbage"):
            return [answer]
        self._garbage += 1
        middle = len(answer) // 2
        return [
            (
                b"HTTP/1.1 400 Bad Request\r\n\r\n",
                answer[:middle],
                answer[:middle] + bytes((answer[middle] ^ 0xFF,)) * (len(answer) - middle),
                b"\x30\x84\xff\xff\xff\xff",
            )[self._garbage % 4]
        ]

    def _answer(self, data: bytes) -> bytes | None:
        message = codec.decode_message(data)
        if isinstance(message, UsmMessage):
            if self._usm is None:
                return None
            time_s = int(self._clock() - self._started_s)
            return self._usm.answer(data, message, time_s, lambda pdu: self._answer_pdu(pdu, codec.V3))
        community = message.community.decode(errors="replace")
        for_reading, for_writing = self._communities
        # Without a word of its own, writing has the one of reading; the word for writing reads as well.
        allowed = {for_writing or for_reading} | (set() if message.pdu.kind == codec.SET else {for_reading})
        if self._passwords is not None or community not in allowed:
            return None
        answer = self._answer_pdu(message.pdu, message.version)
        if answer is None:
            return None
        return codec.encode_community(message.version, message.community, codec.encode_pdu(answer))

    def _answer_pdu(self, pdu: Pdu, version: int) -> Pdu | None:
        answer = self._objects.answer(pdu, version)
        return agent.reorder(answer) if answer is not None and self._has_fault("reordered") else answer

    def _has_fault(self, kind: str, name: str = "") -> bool:
        fault = self._fault
        return fault is not None and fault.kind == kind and (not fault.names or not name or name in fault.names)

    def _read(self, oid: bytes) -> tuple[int, bytes] | None:
        if oid == _UPTIME:
            return ber.TICKS, ber.encode_integer(int(100 * (self._clock() - self._started_s)) & 0xFFFFFFFF)[2:]
        if oid not in self._by_oid:
            return self._constants[oid]
        spec, share = self._by_oid[oid]
        if self._has_fault("half", spec.name):
            return None
        value = self._value(spec.name)
        if value is None or self._has_fault("sentinel", spec.name):
            if not spec.sentinels:
                return None
            raw = spec.sentinels[0]
        else:
            raw = (value - spec.offset) / spec.scale / share
        bind = encode_value(spec, oid, raw)
        return bind.tag, bind.content

    def _value(self, name: str) -> float | None:
        return self._frozen[name] if name in self._frozen else self._plant.get(name)

    def _write(self, bind: Bind) -> int:
        spec, _ = self._by_oid.get(bind.oid, (None, 1))
        if spec is None or spec.kind not in (PointKind.SETPOINT, PointKind.COMMAND):
            return codec.NOT_WRITABLE
        if self._has_fault("refuses_writes"):
            return codec.GEN_ERR
        raw = ber.to_number(bind.tag, bind.content)
        if isinstance(raw, str):
            return codec.WRONG_VALUE
        if self._has_fault("ignores_writes", spec.name):
            return 0
        try:
            self._plant.set(spec.name, raw * spec.scale + spec.offset)
        except Rejected:
            return codec.WRONG_VALUE
        return 0


def make_twin(device: Device, profile: Profile, secret: Secret, plant: PlantPort) -> SnmpTwin:
    """Return a twin of a device; raises Rejected for a malformed profile."""
    return SnmpTwin(device, profile, secret, plant)


def _assign(specs: list[PointSpec], refs: dict[str, tuple[bytes, ...]]) -> dict[bytes, tuple[PointSpec, int]]:
    """Return which point an object shows, and into how many parts its value is cut.

    A sum shows only those of its parts that no point of their own has.
    """
    single = {refs[spec.name][0]: (spec, 1) for spec in specs if len(refs[spec.name]) == 1}
    found = dict(single)
    for spec in specs:
        rest = [oid for oid in refs[spec.name] if oid not in single]
        if len(refs[spec.name]) > 1:
            found |= {oid: (spec, len(rest)) for oid in rest}
    return found
