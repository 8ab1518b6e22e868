"""Reads and commands what equipment publishes at an MQTT broker, in plain topics or by Sparkplug B.

Owns which topics are listened to, how old what was said may be, and when a birth is asked for. Refuses to interpret
payloads (codec and sparkplug do). Called by the poller through `madang.facility.roster`.

A reading takes what has been said since the last one, after a round trip to the broker that shows that it lives.
A value is as old as its message: what is kept by the broker is doubted until the device speaks itself.
"""

import asyncio
import secrets
import ssl
from pathlib import Path

import msgspec

from madang.core import Clock, Rejected, Unavailable, ns_to_s
from madang.facility.address import split_address
from madang.facility.contract import Device, Secret
from madang.facility.mqtt import codec, sparkplug
from madang.facility.mqtt.codec import Place
from madang.facility.mqtt.link import MqttLink
from madang.facility.mqtt.packets import Connect, Message
from madang.facility.mqtt.sparkplug import EdgeNode, Key, Metric, Payload
from madang.facility.profile import PointSpec, Profile, to_raw, to_sample
from madang.facility.still import StillWatch
from madang.model import PointKind, Quality, Quantity, Sample

PORT, TLS_PORT = 1883, 8883
OPTIONS = {
    "base": "",
    "group": "",
    "edge_node": "",
    "availability": "",
    "away": "offline",
    "tls": False,
    "ca_file": "",
}
BIRTH_PART = 0.5
"""Of the time-out: how long a birth that was asked for is waited for."""
_BACKOFF_MAX = 64


class _Said(msgspec.Struct):
    """The last message of a topic."""

    payload: bytes
    is_retained: bool
    at_ns: int


class MqttDriver:
    """One session with one broker about one device.

    Args:
        device: where the broker is, and the options `base`, `group`, `edge_node`, `availability`, `away`, `tls`,
            `ca_file`.
        profile: its points.
        secret: user and `password` at the broker.
        clock: time.
    """

    def __init__(self, device: Device, profile: Profile, secret: Secret, clock: Clock) -> None:
        options = {**OPTIONS, **profile.options, **device.options}
        if unknown := set(options) - set(OPTIONS):
            raise Rejected(f"{device.device_id}: mqtt has no option {', '.join(sorted(unknown))}")
        self._device, self._clock, self._secret = device, clock, secret
        self._base, self._away = str(options["base"]), str(options["away"])
        self._points = find_points(device, profile, self._base)
        availability = str(options["availability"])
        self._availability = codec.fill_topic(availability, self._base) if availability else ""
        keys = frozenset(place for _, _, place in self._points if isinstance(place, Key))
        self._edge: EdgeNode | None = None
        if keys:
            group, name = str(options["group"]), str(options["edge_node"])
            if not group or not name or any(sign in group + name for sign in "+#/"):
                raise Rejected(f"{device.device_id}: Sparkplug B needs the options `group` and `edge_node`")
            self._edge = EdgeNode(group, name, keys)
        self._topics = {place.topic for _, _, place in self._points if isinstance(place, Place)}
        self._topics |= {self._availability} - {""}
        self._said: dict[str, _Said] = {}
        self._unborn_readings = 0
        self._watch = StillWatch()
        host, port = split_address(device.address, TLS_PORT if options["tls"] else PORT)
        tls = _tls(device.device_id, str(options["ca_file"])) if options["tls"] else None
        self._what = f"the broker of {device.device_id} at {host}:{port}"
        self._link = MqttLink(host, port, self._what, tls, self._take)
        # 23 letters, which every broker takes; of its own, since two clients of one name throw each other out.
        self._client_id = f"madang-{secrets.token_hex(8)}"
        self._lock = asyncio.Lock()

    def __repr__(self) -> str:
        return f"MqttDriver({self._what!r})"

    async def read(self) -> tuple[Sample, ...]:
        """Return a sample of every point; see `EquipmentDriver.read`."""
        async with self._lock:
            trouble = ""
            try:
                async with asyncio.timeout(self._device.timeout_s):
                    await self._refresh()
            except TimeoutError:
                trouble = f"{self._what} did not answer within {self._device.timeout_s:g} s"
            except Unavailable as error:
                trouble = error.message
            except asyncio.CancelledError:
                self._drop()
                raise
            if trouble:
                self._drop()
            now_s, now_ns = self._clock.wall_s(), self._clock.monotonic_ns()
            return tuple(
                self._watch.judge(spec, self._sample(spec, point_id, place, trouble, now_s, now_ns), now_ns)
                for spec, point_id, place in self._points
            )

    async def write(self, point_id: str, value: float) -> None:
        """Command one point; see `EquipmentDriver.write`."""
        found = next(((spec, place) for spec, known, place in self._points if known == point_id), None)
        if found is None:
            raise Rejected(f"{self._device.device_id} has no point {point_id}")
        spec, place = found
        if spec.kind not in (PointKind.SETPOINT, PointKind.COMMAND):
            raise Rejected(f"{spec.name} is read, not commanded")
        raw = _to_raw(spec, value)
        async with self._lock:
            is_done = False
            try:
                async with asyncio.timeout(self._device.timeout_s):
                    await self._refresh()
                    await self._command(spec, place, raw)
                is_done = True
            except TimeoutError as error:
                raise Unavailable(f"{point_id} was not set to {value:g}: {self._what} did not answer") from error
            finally:
                if not is_done:
                    self._drop()

    async def close(self) -> None:
        """End the session; a reading that is under way ends first, within its time-out."""
        async with self._lock:
            await self._link.close()

    async def _command(self, spec: PointSpec, place: Place | Key, raw: float) -> None:
        if isinstance(place, Place):
            payload = codec.encode_command(spec, raw)
            await self._link.publish(codec.command_topic(spec, self._base), payload, is_acknowledged=True)
            return
        assert self._edge is not None, "a driver with metrics has an edge node"
        _, why = self._edge.value(place)
        datatype = self._edge.datatype(place)
        if not datatype:
            raise Unavailable(f"{spec.name} was not commanded: {why}")
        metric = Metric(name=place.name, datatype=datatype, value=raw)
        await self._send(self._edge.command_topic(place.device), metric)
        await self._link.flush()

    async def _send(self, topic: str, metric: Metric) -> None:
        """Publish a command; Sparkplug wants QoS 0 for it."""
        payload = Payload(metrics=(metric,), timestamp_ms=int(self._clock.wall_s() * 1000))
        await self._link.publish(topic, sparkplug.encode_payload(payload), is_acknowledged=False)

    async def _refresh(self) -> None:
        """Take what was said; connect before where no connection stands."""
        if not self._link.is_open:
            connect = Connect(
                client_id=self._client_id,
                user=self._secret.user,
                password=self._secret.words.get("password", ""),
            )
            filters = (*sorted(self._topics), *(self._edge.topics if self._edge is not None else ()))
            await self._link.open(connect, filters)
        await self._link.flush()
        edge = self._edge
        if edge is None or not edge.needs_birth:
            self._unborn_readings = 0
            return
        self._unborn_readings += 1
        count = self._unborn_readings
        if count & (count - 1) and count % _BACKOFF_MAX:
            return  # asked lately: an edge node with much to say is not made to say it at each reading
        await self._send(edge.command_topic(), Metric(name=sparkplug.REBIRTH, datatype=sparkplug.BOOLEAN, value=1.0))
        try:
            async with asyncio.timeout(BIRTH_PART * self._device.timeout_s):
                await self._link.listen_until(lambda: not edge.needs_birth)
        except TimeoutError:
            pass  # each point says what is missing

    def _drop(self) -> None:
        """End the connection and believe nothing that came over it."""
        self._link.drop()
        self._said.clear()
        if self._edge is not None:
            self._edge.forget("the edge node has not said its birth since we listen")

    def _take(self, message: Message) -> None:
        if message.topic in self._topics:
            known = self._said.get(message.topic)
            if known is None or known.is_retained or not message.is_retained:
                payload = message.payload[: codec.PAYLOAD_BYTES_MAX + 1]
                self._said[message.topic] = _Said(payload, message.is_retained, self._clock.monotonic_ns())
        elif self._edge is not None and not message.is_retained:
            self._edge.take(message.topic, message.payload)

    def _sample(
        self, spec: PointSpec, point_id: str, place: Place | Key, trouble: str, now_s: float, now_ns: int
    ) -> Sample:
        if trouble:
            return to_sample(spec, point_id, None, now_s=now_s, reason=trouble)
        if isinstance(place, Key):
            assert self._edge is not None, "a driver with metrics has an edge node"
            raw, why = self._edge.value(place)
            return to_sample(spec, point_id, raw, now_s=now_s, reason=why)
        said = self._said.get(place.topic)
        if said is None:
            return to_sample(spec, point_id, None, now_s=now_s, reason=f"nothing was said in {place.topic}")
        if self._is_away():
            return to_sample(spec, point_id, None, now_s=now_s, reason=f"{self._availability} says {self._away}")
        raw, why = codec.read_number(spec, place, said.payload)
        if raw is not None and said.is_retained:
            why = "kept by the broker: nobody knows how old it is"
        sample = to_sample(spec, point_id, raw, now_s=now_s, reason=why)
        age_s = ns_to_s(now_ns - said.at_ns)
        if sample.value is None or age_s <= (spec.stale_s or 3 * self._device.poll_s):
            return sample
        return msgspec.structs.replace(sample, quality=Quality.STALE, reason=f"said {age_s:.0f} s ago")

    def _is_away(self) -> bool:
        said = self._said.get(self._availability)
        return said is not None and said.payload[:64].decode(errors="replace").strip() == self._away


def make_driver(device: Device, profile: Profile, secret: Secret, clock: Clock) -> MqttDriver:
    """Return a driver of a device; raises Rejected for a malformed profile."""
    return MqttDriver(device, profile, secret, clock)


def find_points(device: Device, profile: Profile, base: str) -> list[tuple[PointSpec, str, Place | Key]]:
    """Return each point that the device has, with its id and place; raises Rejected for one that cannot be."""
    found = []
    for spec in profile.points:
        point_id = spec.point_id(device.equipment, device.parts)
        if not point_id:
            continue
        place = codec.parse_ref(spec, base)
        if spec.kind in (PointKind.SETPOINT, PointKind.COMMAND):
            if spec.valid is None and not spec.states:
                raise Rejected(f"{spec.name}: what can be commanded needs `valid` or `states`")
            if isinstance(place, Place):
                codec.command_topic(spec, base)
        found.append((spec, point_id, place))
    return found


def _to_raw(spec: PointSpec, value: float) -> float:
    """Return the raw number of a command; raises Rejected for a state that is none."""
    raw = to_raw(spec, value)
    if spec.quantity is Quantity.STATE and spec.states and str(int(raw)) not in spec.states:
        raise Rejected(f"{spec.name}: {value:g} is none of the states {', '.join(sorted(spec.states))}")
    return raw


def _tls(device_id: str, ca_file: str) -> ssl.SSLContext:
    if ca_file and not Path(ca_file).is_file():
        raise Rejected(f"{device_id}: there is no file {ca_file}", next_step="name the authority's PEM in `ca_file`")
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except ssl.SSLError as error:
        raise Rejected(f"{device_id}: {ca_file} holds no certificate") from error
