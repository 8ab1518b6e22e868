"""A simulated OPC UA server on loopback, behind a relay that misbehaves when told to.

Owns the nodes of a profile and the faults of the wire. Refuses to know physics. Called by the plant twin's program and
by tests. The server is asyncua's, the same library as the driver's: what both get wrong, neither shows. It has no
security; sessions that are signed and encrypted are tested against a server that a test makes.

`reordered` changes nothing: answers carry their request's number, and a channel whose sequence breaks is closed.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable

from asyncua import Server, ua

from madang.core import Rejected, Unavailable
from madang.facility.address import split_address
from madang.facility.contract import Device, PlantPort, Secret, TwinFault
from madang.facility.opcua import codec
from madang.facility.opcua.codec import OPC_URI
from madang.facility.profile import PointSpec, Profile
from madang.model import PointKind

SLOWNESS = 1.5
CONNECTIONS_MAX = 16
_CHUNK_BYTES = 64 * 1024
_GARBAGE = (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"ACKF\x0c\x00\x00\x00\x00\x00\x00\x00", b"MSGF\xff\xff\xff\x7f")
_SENSOR_FAILURE = 0x808C0000


class OpcUaTwin:
    """A server with the nodes of a profile.

    Args:
        device: where it listens, and its options as the driver has them.
        profile: its points.
        plant: what it measures and commands.
    """

    def __init__(self, device: Device, profile: Profile, plant: PlantPort) -> None:
        self._host, self._port = split_address(device.address, 0)
        self._device_id, self._timeout_s = device.device_id, device.timeout_s
        self._plant = plant
        namespace = str({**profile.options, **device.options}.get("namespace", ""))
        self._specs = [spec for spec in profile.points if spec.point_id(device.equipment, device.parts)]
        self._refs = {spec.name: codec.parse_ref(spec, namespace) for spec in self._specs}
        self._fault: TwinFault | None = None
        self._frozen: dict[str, float | None] = {}
        self._garbage = 0
        self._server: Server | None = None
        self._inner_port = 0
        self._relay: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        logging.getLogger("asyncua").setLevel(logging.CRITICAL)

    def __repr__(self) -> str:
        return f"OpcUaTwin({self._device_id!r}, {self.address!r})"

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"{self._host}:{self._port}"

    async def start(self) -> None:
        """Listen; raises Unavailable when the port is taken. Takes seconds: the address space is large."""
        try:
            self._relay = await asyncio.start_server(self._serve, self._host, self._port)
        except OSError as error:
            raise Unavailable(
                f"the OPC UA twin cannot listen on {self.address}: {error.strerror}",
                next_step="end the program that holds the port, or give the twin another one",
            ) from error
        self._port = int(self._relay.sockets[0].getsockname()[1])
        if self._server is None:
            self._server = await self._make_server()
        self._inner_port = _free_port()
        self._server.set_endpoint(f"opc.tcp://127.0.0.1:{self._inner_port}/")
        await self._server.start()

    async def stop(self) -> None:
        """Close the port and every connection."""
        relay, self._relay = self._relay, None
        if relay is not None:
            relay.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if relay is not None:
            await relay.wait_closed()
        server, self._server = self._server, None
        if server is not None:
            await server.stop()

    def fault(self, fault: TwinFault | None) -> None:
        """Misbehave so from now on; None ends it."""
        self._fault = fault
        is_stuck = fault is not None and fault.kind == "stuck"
        self._frozen = {spec.name: self._plant.get(spec.name) for spec in self._specs} if is_stuck else {}

    def _has_fault(self, kind: str, name: str = "") -> bool:
        fault = self._fault
        return fault is not None and fault.kind == kind and (not fault.names or not name or name in fault.names)

    async def _make_server(self) -> Server:
        server = Server()
        await server.init()
        server.set_server_name("Madang (simulated)")
        server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
        for spec in self._specs:
            ref = self._refs[spec.name]
            index = await server.register_namespace(ref.uri) if ref.uri != OPC_URI else 0
            node_id = ua.NodeId.from_string(ref.text(index))
            kind = _variant_type(spec)
            variable = await server.nodes.objects.add_variable(node_id, spec.name, ua.Variant(kind_zero(kind), kind))
            await variable.set_writable()
            server.set_attribute_value_callback(variable.nodeid, self._reader(spec))
            server.set_attribute_value_setter(variable.nodeid, self._writer(spec))
        return server

    def _reader(self, spec: PointSpec) -> Callable[[ua.NodeId, ua.AttributeIds], ua.DataValue]:
        kind = _variant_type(spec)

        def read(_node_id: ua.NodeId, _attribute: ua.AttributeIds) -> ua.DataValue:
            value = self._frozen[spec.name] if spec.name in self._frozen else self._plant.get(spec.name)
            if self._has_fault("half", spec.name):
                return ua.DataValue(StatusCode=ua.StatusCode(ua.StatusCodes.BadNodeIdUnknown))
            if value is None or self._has_fault("sentinel", spec.name):
                return ua.DataValue(StatusCode=ua.StatusCode(_SENSOR_FAILURE))
            raw = (value - spec.offset) / spec.scale
            shown = bool(raw) if kind is ua.VariantType.Boolean else raw
            return ua.DataValue(ua.Variant(shown if kind in _REAL else round(raw), kind))

        return read

    def _writer(self, spec: PointSpec) -> Callable[[object, ua.AttributeIds, ua.DataValue], None]:
        def write(_node: object, _attribute: ua.AttributeIds, value: ua.DataValue) -> None:
            if spec.kind not in (PointKind.SETPOINT, PointKind.COMMAND) or self._has_fault("refuses_writes"):
                raise ua.UaStatusCodeError(ua.StatusCodes.BadUserAccessDenied)
            if self._has_fault("ignores_writes", spec.name):
                return
            raw = codec.to_number(value.Value.Value if value.Value is not None else None)
            try:
                if raw is None:
                    raise Rejected(f"{spec.name} is a number")
                self._plant.set(spec.name, raw * spec.scale + spec.offset)
            except Rejected as error:
                raise ua.UaStatusCodeError(ua.StatusCodes.BadOutOfRange) from error

        return write

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "a server calls it in a task"
        self._tasks.add(task)
        try:
            if len(self._tasks) <= CONNECTIONS_MAX:
                await self._relay_all(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # one of both went, or the twin stops
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            self._tasks.discard(task)

    async def _relay_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._inner_port)
        ways = [
            asyncio.create_task(self._pump(reader, inner_writer, is_answer=False)),
            asyncio.create_task(self._pump(inner_reader, writer, is_answer=True)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            inner_writer.close()
            with contextlib.suppress(OSError):
                await inner_writer.wait_closed()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_answer: bool) -> None:
        while data := await reader.read(_CHUNK_BYTES):
            if self._has_fault("silent"):
                continue
            if is_answer and self._has_fault("slow"):
                await asyncio.sleep(SLOWNESS * self._timeout_s)
            if is_answer and self._has_fault("garbage"):
                self._garbage += 1
                data = _GARBAGE[self._garbage % len(_GARBAGE)]
            writer.write(data)
            await writer.drain()


_REAL = (ua.VariantType.Double, ua.VariantType.Float, ua.VariantType.Boolean)


def make_twin(device: Device, profile: Profile, _secret: Secret, plant: PlantPort) -> OpcUaTwin:
    """Return a twin of one device."""
    return OpcUaTwin(device, profile, plant)


def kind_zero(kind: ua.VariantType) -> bool | int | float:
    """Return the zero of a type."""
    return False if kind is ua.VariantType.Boolean else 0.0 if kind in _REAL else 0


def _variant_type(spec: PointSpec) -> ua.VariantType:
    return ua.VariantType[str(spec.options.get("type", "Double"))]


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
