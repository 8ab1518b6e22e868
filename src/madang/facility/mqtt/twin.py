"""A simulated device with a broker of its own on loopback, as gateways have one; read by any MQTT 3.1.1 client.

Owns the broker's answers, what the device says and its faults. Refuses to know physics. Called by the plant twin's
program and by tests.

Time passes for the device when somebody speaks to its broker: whoever subscribes is told everything, and so is
whoever unsubscribes from anything, before the acknowledgement. An edge node of Sparkplug B says its births when it is
asked for them, and data by alias from then on; each connection has a session of its own.
"""

import asyncio
import hmac
import json
import struct

from madang.core import Rejected
from madang.facility.address import split_address
from madang.facility.contract import Device, PlantPort, Secret, TwinFault
from madang.facility.mqtt import codec, packets, sparkplug
from madang.facility.mqtt.codec import Place
from madang.facility.mqtt.packets import FAILED, Kind, Malformed, Message, Packet
from madang.facility.mqtt.sparkplug import Key, Metric, Payload
from madang.facility.profile import PointSpec, Profile
from madang.facility.twin_server import TwinServer
from madang.model import PointKind

SLOWNESS = 1.5
CONNECTIONS_MAX = 16
FILTERS_MAX = 256
IDLE_S = 300.0
_BAD_LOGIN = 4
_CHUNK_BYTES = 64 * 1024
_GARBAGE = bytes(range(255, 200, -1))


class _Client:
    """One connection: what it subscribed to, and its session with the edge node."""

    def __init__(self) -> None:
        self.is_known = False
        self.filters: list[str] = []
        self.seq = 0
        self.bd_seq = 0
        self.is_born = False


class MqttTwin:
    """A device with the points of a profile, and its broker.

    Args:
        device: where it listens, and its options as the driver has them.
        profile: its points.
        secret: who may connect; without a user anybody.
        plant: what it measures and commands.
    """

    def __init__(self, device: Device, profile: Profile, secret: Secret, plant: PlantPort) -> None:
        self._host, self._port = split_address(device.address, 0)
        self._device_id, self._timeout_s = device.device_id, device.timeout_s
        self._secret, self._plant = secret, plant
        options = {**profile.options, **device.options}
        self._base = str(options.get("base", ""))
        self._group, self._edge = str(options.get("group", "")), str(options.get("edge_node", ""))
        specs = [spec for spec in profile.points if spec.point_id(device.equipment, device.parts)]
        self._plain = {spec.name: place for spec in specs if isinstance(place := self._place(spec), Place)}
        self._keys = {spec.name: place for spec in specs if isinstance(place := self._place(spec), Key)}
        self._specs = {spec.name: spec for spec in specs}
        self._aliases = {name: number for number, name in enumerate(self._keys, 1)}
        self._fault: TwinFault | None = None
        self._frozen: dict[str, float | None] = {}
        self._garbage = 0
        self._server = TwinServer(
            "the MQTT twin", self._converse, connections_max=CONNECTIONS_MAX, unreadable=(Malformed,)
        )
        self.rebirths = 0
        """How often a birth was asked for."""
        self.is_losing = False
        """True: the next message of Sparkplug B is lost on its way."""
        self.is_deaf = False
        """True: nobody gets the births that are asked for."""

    def __repr__(self) -> str:
        return f"MqttTwin({self._device_id!r}, {self.address!r})"

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"{self._host}:{self._port}"

    async def start(self) -> None:
        """Listen; raises Unavailable when the port is taken."""
        self._port = await self._server.start(self._host, self._port)

    async def stop(self) -> None:
        """Close the port and every connection."""
        await self._server.stop()

    def fault(self, fault: TwinFault | None) -> None:
        """Misbehave so from now on; None ends it."""
        self._fault = fault
        is_stuck = fault is not None and fault.kind == "stuck"
        self._frozen = {name: self._plant.get(name) for name in self._specs} if is_stuck else {}

    def _has_fault(self, kind: str, name: str = "") -> bool:
        fault = self._fault
        return fault is not None and fault.kind == kind and (not fault.names or not name or name in fault.names)

    def _place(self, spec: PointSpec) -> Place | Key:
        return codec.parse_ref(spec, self._base)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client, buffer = _Client(), bytearray()
        while True:
            async with asyncio.timeout(IDLE_S):
                data = await reader.read(_CHUNK_BYTES)
            if not data:
                return
            buffer += data
            while (packet := packets.take_packet(buffer)) is not None:
                if self._has_fault("silent"):
                    continue
                answer = self._answer(packet, client)
                if self._has_fault("slow"):
                    await asyncio.sleep(SLOWNESS * self._timeout_s)
                if answer is None:
                    return
                writer.write(self._spoil(answer))
                await writer.drain()

    def _spoil(self, answer: bytes) -> bytes:
        if not self._has_fault("garbage") or not answer:
            return answer
        self._garbage += 1
        kinds = (
            answer,  # of which the payloads are garbage
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            b"\x30\xff\xff\xff\xff\xff",
            b"\x30\x03\x00\x09x",
            b"\xb0\x02\x00\x00",
        )
        return kinds[self._garbage % len(kinds)]

    def _answer(self, packet: Packet, client: _Client) -> bytes | None:
        """Return what is sent to a packet; None: the connection ends."""
        if packet.kind is Kind.CONNECT:
            return self._welcome(packet, client)
        if not client.is_known or packet.kind is Kind.DISCONNECT:
            return None
        number = packet.body[:2]
        if packet.kind is Kind.PINGREQ:
            return packets.encode(Kind.PINGRESP)
        if packet.kind is Kind.SUBSCRIBE:
            filters = packets.decode_filters(packet)
            client.filters = [*client.filters, *filters][:FILTERS_MAX]
            granted = bytes(0 if one in client.filters else FAILED for one in filters)
            return packets.encode(Kind.SUBACK, number + granted) + self._say(client)
        if packet.kind is Kind.UNSUBSCRIBE:
            gone = packets.decode_filters(packet)
            client.filters = [one for one in client.filters if one not in gone]
            return self._say(client) + packets.encode(Kind.UNSUBACK, number)
        if packet.kind is Kind.PUBLISH:
            return self._take(packets.decode_message(packet), client)
        return b"" if packet.kind is Kind.PUBACK else None

    def _welcome(self, packet: Packet, client: _Client) -> bytes | None:
        said = packets.decode_connect(packet.body)
        password = self._secret.words.get("password", "")
        is_known = hmac.compare_digest(said.user.encode(), self._secret.user.encode())
        is_known = hmac.compare_digest(said.password.encode(), password.encode()) and is_known
        client.is_known = is_known or not self._secret.user
        return packets.encode(Kind.CONNACK, bytes((0, 0 if client.is_known else _BAD_LOGIN)))

    def _say(self, client: _Client) -> bytes:
        """Return everything the device has to say to a client now."""
        messages = self._plain_messages() + (self._data(client) if client.is_born else [])
        if self._has_fault("reordered"):
            messages.reverse()
        return b"".join(self._pack(topic, payload, client) for topic, payload in messages)

    def _pack(self, topic: str, payload: bytes, client: _Client) -> bytes:
        if not any(packets.matches(one, topic) for one in client.filters):
            return b""
        payload = _GARBAGE if self._has_fault("garbage") else payload
        return packets.encode_message(Message(topic=topic, payload=payload))

    def _raw(self, name: str) -> float | None:
        """Return the raw number of a point; None where the device has none."""
        spec = self._specs[name]
        value = self._frozen[name] if name in self._frozen else self._plant.get(name)
        if self._has_fault("sentinel", name):
            return spec.sentinels[0] if spec.sentinels else None
        if value is None:
            return None
        raw = (value - spec.offset) / spec.scale
        return round(raw, 9)

    def _plain_messages(self) -> list[tuple[str, bytes]]:
        texts: dict[str, bytes] = {}
        trees: dict[str, dict[str, object]] = {}
        for name, place in self._plain.items():
            if self._has_fault("half", name):
                continue
            raw = self._raw(name)
            said: object = next((w for w, n in codec.words_of(self._specs[name]).items() if n == raw), raw)
            if not place.pointer:
                texts[place.topic] = b"" if said is None else str(said).encode()
                continue
            tree = trees.setdefault(place.topic, {})
            for token in place.pointer[:-1]:
                inner = tree.setdefault(token, {})
                assert isinstance(inner, dict), "a profile's pointers fit into one tree"
                tree = inner
            tree[place.pointer[-1]] = said
        return [*texts.items(), *((topic, json.dumps(tree).encode()) for topic, tree in trees.items())]

    def _metrics(self, device: str, *, is_birth: bool) -> tuple[Metric, ...]:
        found = []
        for name, key in self._keys.items():
            if key.device != device or self._has_fault("half", name):
                continue
            raw = self._raw(name)
            alias, datatype = self._aliases[name], _datatype(self._specs[name])
            shown = key.name if is_birth else ""
            found.append(Metric(name=shown, alias=alias, datatype=datatype, value=raw, is_null=raw is None))
        return tuple(found)

    def _message(self, client: _Client, kind: str, device: str, metrics: tuple[Metric, ...]) -> tuple[str, bytes]:
        topic = f"{sparkplug.NAMESPACE}/{self._group}/{kind}/{self._edge}" + (f"/{device}" if device else "")
        payload = sparkplug.encode_payload(Payload(metrics=metrics, seq=client.seq))
        client.seq = (client.seq + 1) % 256
        return topic, payload

    @property
    def _devices(self) -> list[str]:
        return sorted({key.device for key in self._keys.values()} - {""})

    def _data(self, client: _Client) -> list[tuple[str, bytes]]:
        found = [self._message(client, "NDATA", "", self._metrics("", is_birth=False))]
        found += [self._message(client, "DDATA", one, self._metrics(one, is_birth=False)) for one in self._devices]
        if self.is_losing:
            self.is_losing = False
            del found[0]
        return found

    def _births(self, client: _Client) -> bytes:
        client.seq, client.is_born = 0, True
        bd_seq = Metric(name=sparkplug.BD_SEQ, datatype=sparkplug.UINT64, value=float(client.bd_seq))
        rebirth = Metric(name=sparkplug.REBIRTH, datatype=sparkplug.BOOLEAN, value=0.0)
        found = [self._message(client, "NBIRTH", "", (bd_seq, rebirth, *self._metrics("", is_birth=True)))]
        found += [self._message(client, "DBIRTH", one, self._metrics(one, is_birth=True)) for one in self._devices]
        return b"".join(self._pack(topic, payload, client) for topic, payload in found)

    def _take(self, message: Message, client: _Client) -> bytes | None:
        levels = message.topic.split("/")
        said = b""
        if levels[0] == sparkplug.NAMESPACE:
            said = self._take_metrics(levels, message.payload, client)
        elif not self._obey_plain(message):
            return None  # MQTT 3.1.1 has no other word for a refusal
        if said == b"" and self._has_fault("refuses_writes"):
            return None
        return said + (packets.encode(Kind.PUBACK, struct.pack(">H", message.packet_id)) if message.qos else b"")

    def _take_metrics(self, levels: list[str], data: bytes, client: _Client) -> bytes:
        device = levels[4] if len(levels) == 5 else ""
        expected = [sparkplug.NAMESPACE, self._group, "DCMD" if device else "NCMD", self._edge]
        if levels[:4] != expected:
            return b""
        try:
            payload = sparkplug.decode_payload(data)
        except sparkplug.Malformed:
            return b""
        said = b""
        for metric in payload.metrics:
            if metric.name == sparkplug.REBIRTH and metric.value and not device:
                self.rebirths += 1
                said += b"" if self.is_deaf else self._births(client)
            for name, key in self._keys.items():
                if key == Key(device, metric.name) and metric.value is not None:
                    self._obey(name, metric.value)
        return said

    def _obey_plain(self, message: Message) -> bool:
        """Take a command; False where it is refused."""
        for name in self._plain:
            spec = self._specs[name]
            topic = str(spec.options.get("command_topic", "")).replace("{base}", self._base)
            if topic != message.topic:
                continue
            key = spec.options.get("command_key")
            place = Place(topic, (str(key),) if key else ())
            raw, _ = codec.read_number(spec, place, message.payload)
            return raw is not None and self._obey(name, raw)
        return True

    def _obey(self, name: str, raw: float) -> bool:
        spec = self._specs[name]
        if spec.kind not in (PointKind.SETPOINT, PointKind.COMMAND) or self._has_fault("refuses_writes"):
            return False
        if self._has_fault("ignores_writes", name):
            return True
        try:
            self._plant.set(name, raw * spec.scale + spec.offset)
        except Rejected:
            return False
        return True


def make_twin(device: Device, profile: Profile, secret: Secret, plant: PlantPort) -> MqttTwin:
    """Return a twin of one device."""
    return MqttTwin(device, profile, secret, plant)


def _datatype(spec: PointSpec) -> int:
    return int(spec.options.get("datatype", sparkplug.DOUBLE))
