"""A simulated BACnet/IP device on loopback, read by any BACnet client.

Owns its datagrams and faults. Refuses to know physics. Called by the plant twin's program and by tests. It answers
ReadPropertyMultiple, WriteProperty and Who-Is; other services are rejected. A relinquished object keeps what it has:
there is no other commander and no default.
"""

import asyncio
import errno
import os

from madang.core import Rejected, Unavailable
from madang.facility.address import split_address
from madang.facility.bacnet import codec
from madang.facility.bacnet.codec import Apdu, Malformed, Message, Object, Service
from madang.facility.contract import Device, PlantPort, Secret, TwinFault
from madang.facility.profile import PointSpec, Profile
from madang.model import PointKind

SLOWNESS = 1.5
INSTANCE = 2001
PENDING_MAX = 256
_UNRECOGNISED_SERVICE, _SEGMENTATION_NOT_SUPPORTED = 9, 4
_GARBAGE = (b"HTTP/1.1 400", b"\x81\x0a\x00\x06\x01\x00", b"\x81\x0a\x00\x09\x01\x00\x30\x00\x0e", bytes(range(60)))


class BacnetTwin(asyncio.DatagramProtocol):
    """A device with the objects of a profile.

    Args:
        device: where it listens, and its option `instance`.
        profile: its points.
        plant: what it measures and commands.

    Attributes:
        priorities: of each object that was commanded: the last priority.
        relinquished: names of points that were relinquished, in order.
    """

    def __init__(self, device: Device, profile: Profile, plant: PlantPort) -> None:
        self._host, self._port = split_address(device.address, 0)
        self._device_id, self._timeout_s, self._plant = device.device_id, device.timeout_s, plant
        instance = int({**profile.options, **device.options}.get("instance", INSTANCE))
        self._self = Object(codec.TYPES["device"], instance)
        specs = [spec for spec in profile.points if spec.point_id(device.equipment, device.parts)]
        self._specs = {codec.parse_ref(spec): spec for spec in specs}
        self._fault: TwinFault | None = None
        self._frozen: dict[str, float | None] = {}
        self._garbage, self._former = 0, b""
        self._transport: asyncio.DatagramTransport | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.priorities: dict[str, int] = {}
        self.relinquished: list[str] = []
        self.objects_max = 0
        """Of one question, as on small devices; more are aborted. 0: any number."""

    def __repr__(self) -> str:
        return f"BacnetTwin({self._device_id!r}, {self.address!r})"

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"{self._host}:{self._port}"

    async def start(self) -> None:
        """Listen; raises Unavailable when the port is taken."""
        loop = asyncio.get_running_loop()
        try:
            transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=(self._host, self._port))
        except OSError as error:
            why = os.strerror(error.errno or errno.EADDRINUSE)
            raise Unavailable(
                f"the BACnet twin cannot listen on {self.address}: {why}",
                next_step="end the program that holds the port, or give the twin another one",
            ) from error
        self._transport = transport
        self._port = int(transport.get_extra_info("sockname")[1])

    async def stop(self) -> None:
        """Close the port."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()

    def fault(self, fault: TwinFault | None) -> None:
        """Misbehave so from now on; None ends it."""
        self._fault = fault
        is_stuck = fault is not None and fault.kind == "stuck"
        self._frozen = {spec.name: self._plant.get(spec.name) for spec in self._specs.values()} if is_stuck else {}

    def _has_fault(self, kind: str, name: str = "") -> bool:
        fault = self._fault
        return fault is not None and fault.kind == kind and (not fault.names or not name or name in fault.names)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Answer one datagram."""
        if self._has_fault("silent") or len(self._tasks) >= PENDING_MAX:
            return
        try:
            answer = self._answer(codec.decode_datagram(data))
        except Malformed:
            return
        if answer is None:
            return
        datagram = codec.encode_datagram(codec.encode_apdu(answer), is_asking=False)
        if self._has_fault("slow"):
            task = asyncio.get_running_loop().create_task(self._send_late(datagram, addr))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        if self._has_fault("garbage"):
            self._garbage += 1
            datagram = _GARBAGE[self._garbage % len(_GARBAGE)]
        if self._has_fault("reordered") and self._former:
            self._send(self._former, addr)
        self._former = datagram
        self._send(datagram, addr)

    async def _send_late(self, datagram: bytes, addr: tuple[str, int]) -> None:
        await asyncio.sleep(SLOWNESS * self._timeout_s)
        self._send(datagram, addr)

    def _send(self, datagram: bytes, addr: tuple[str, int]) -> None:
        if self._transport is not None:
            self._transport.sendto(datagram, addr)

    def _answer(self, message: Message) -> Message | None:
        if message.kind is Apdu.UNCONFIRMED:
            is_asked = message.service == Service.WHO_IS and codec.is_asked(message.body, self._self.instance)
            body = codec.encode_i_am(self._self.instance)
            return Message(kind=Apdu.UNCONFIRMED, service=Service.I_AM, body=body) if is_asked else None
        if message.kind is not Apdu.REQUEST:
            return None
        if message.service == Service.READ_MULTIPLE:
            if self.objects_max and len(codec.decode_read(message.body)) > self.objects_max:
                return Message(kind=Apdu.ABORT, invoke_id=message.invoke_id, code=_SEGMENTATION_NOT_SUPPORTED)
            results = [
                (one, [(number, self._property(one, number)) for number in properties])
                for one, properties in codec.decode_read(message.body)
            ]
            body = codec.encode_results(results)
            return Message(kind=Apdu.COMPLEX_ACK, invoke_id=message.invoke_id, service=message.service, body=body)
        if message.service == Service.WRITE:
            error = self._write(*codec.decode_write(message.body))
            kind = Apdu.ERROR if error else Apdu.SIMPLE_ACK
            return Message(kind=kind, invoke_id=message.invoke_id, service=message.service, body=error)
        return Message(kind=Apdu.REJECT, invoke_id=message.invoke_id, code=_UNRECOGNISED_SERVICE)

    def _property(self, one: Object, number: int) -> bytes:
        """Return a property's value; empty for one that the device does not have."""
        if one == self._self:
            return codec.encode_object(self._self) if number == codec.OBJECT_IDENTIFIER else b""
        spec = self._specs.get(one)
        if spec is None or self._has_fault("half", spec.name):
            return b""
        value = self._frozen[spec.name] if spec.name in self._frozen else self._plant.get(spec.name)
        is_fault = value is None or self._has_fault("sentinel", spec.name)
        if number == codec.STATUS_FLAGS:
            return codec.encode_flags(is_fault=is_fault)
        if number != codec.PRESENT_VALUE:
            return b""
        return codec.encode_value(one, 0.0 if value is None else (value - spec.offset) / spec.scale)

    def _write(self, one: Object, number: int, value: float | None, priority: int) -> bytes:
        """Take a command; return an error's bytes where it is refused."""
        spec = self._specs.get(one)
        if spec is None:
            return codec.encode_error(1, 31)  # object: unknown-object
        is_commandable = spec.kind in (PointKind.SETPOINT, PointKind.COMMAND) and number == codec.PRESENT_VALUE
        if not is_commandable or self._has_fault("refuses_writes"):
            return codec.encode_error(2, 40)  # property: write-access-denied
        if self._has_fault("ignores_writes", spec.name):
            return b""
        if value is None:
            self.relinquished.append(spec.name)
            self.priorities.pop(spec.name, None)
            return b""
        return self._obey(spec, value, priority)

    def _obey(self, spec: PointSpec, raw: float, priority: int) -> bytes:
        try:
            self._plant.set(spec.name, raw * spec.scale + spec.offset)
        except Rejected:
            return codec.encode_error(2, 37)  # property: value-out-of-range
        self.priorities[spec.name] = priority
        return b""


def make_twin(device: Device, profile: Profile, _secret: Secret, plant: PlantPort) -> BacnetTwin:
    """Return a twin of one device."""
    return BacnetTwin(device, profile, plant)
