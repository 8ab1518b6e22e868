"""Reads and commands nodes of an OPC UA server.

Owns which nodes are asked for and how often sessions are made anew. Refuses to interpret status codes and values
(codec does) and to know asyncua's client (link does). Called by the poller through `madang.facility.roster`.
"""

import asyncio

import msgspec
from asyncua import ua

from madang.core import Clock, Rejected, Unavailable, ns_to_s
from madang.facility.contract import Device, Secret
from madang.facility.opcua import codec
from madang.facility.opcua.codec import NodeRef
from madang.facility.opcua.link import OpcUaLink, Security
from madang.facility.profile import PointSpec, Profile, to_raw, to_sample
from madang.facility.still import StillWatch
from madang.model import PointKind, Quality, Quantity, Sample

_FILES = ("certificate", "private_key", "server_certificate", "user_certificate", "user_key", "application_uri")
OPTIONS = ("namespace", "path", *_FILES)
LIFETIME_PART = 0.75
"""Of a channel's life: then the session is made anew, before the server ends it."""
_INTEGERS = ("SByte", "Byte", "Int16", "UInt16", "Int32", "UInt32", "Int64", "UInt64")
_FLOATS = ("Float", "Double")


class OpcUaDriver:
    """One session with one server.

    Args:
        device: where it is, `host:port`, and the options `namespace`, `path` and the files of `Security`.
        profile: its points.
        secret: user and `password`.
        clock: time.
    """

    def __init__(self, device: Device, profile: Profile, secret: Secret, clock: Clock) -> None:
        options = {**profile.options, **device.options}
        if unknown := set(options) - set(OPTIONS):
            raise Rejected(f"{device.device_id}: opcua has no option {', '.join(sorted(unknown))}")
        self._device, self._clock = device, clock
        self._points = find_points(device, profile, str(options.get("namespace", "")))
        given = {name: str(options[name]) for name in _FILES if name in options}
        security = Security(user=secret.user, password=secret.words.get("password", ""), **given)
        security.check(device.device_id)
        if "://" in device.address or "@" in device.address:
            raise Rejected(f"{device.device_id}: the address is `host:port`; a path is an option, users are secrets")
        url = f"opc.tcp://{device.address}/{str(options.get('path', '')).lstrip('/')}"
        self._what = f"the server of {device.device_id} at {device.address}"
        self._link = OpcUaLink(url, self._what, security, device.timeout_s)
        self._opened_ns = 0
        self._nodes: list[ua.NodeId | None] = []
        self._watch = StillWatch()
        self._lock = asyncio.Lock()

    def __repr__(self) -> str:
        return f"OpcUaDriver({self._what!r})"

    async def read(self) -> tuple[Sample, ...]:
        """Return a sample of every point; see `EquipmentDriver.read`."""
        async with self._lock:
            trouble, found = "", dict[int, ua.DataValue]()
            try:
                async with asyncio.timeout(self._device.timeout_s):
                    await self._make_session()
                    known = [(index, node) for index, node in enumerate(self._nodes) if node is not None]
                    values = await self._link.read([node for _, node in known])
                    found = {index: value for (index, _), value in zip(known, values, strict=True)}
            except TimeoutError:
                trouble = f"{self._what} did not answer within {self._device.timeout_s:g} s"
            except Unavailable as error:
                trouble = error.message
            except asyncio.CancelledError:
                self._link.drop()
                raise
            if trouble:
                self._link.drop()
            now_s, now_ns = self._clock.wall_s(), self._clock.monotonic_ns()
            return tuple(
                self._watch.judge(spec, make_sample(spec, point_id, ref, found.get(index), trouble, now_s), now_ns)
                for index, (spec, point_id, ref) in enumerate(self._points)
            )

    async def write(self, point_id: str, value: float) -> None:
        """Command one point; see `EquipmentDriver.write`."""
        index = next((at for at, (_, known, _) in enumerate(self._points) if known == point_id), None)
        if index is None:
            raise Rejected(f"{self._device.device_id} has no point {point_id}")
        spec = self._points[index][0]
        if spec.kind not in (PointKind.SETPOINT, PointKind.COMMAND):
            raise Rejected(f"{spec.name} is read, not commanded")
        raw = _to_raw(spec, value)
        async with self._lock:
            is_done = False
            try:
                async with asyncio.timeout(self._device.timeout_s):
                    await self._make_session()
                    status = await self._write(index, raw)
                is_done = True
            except TimeoutError as error:
                raise Unavailable(f"{point_id} was not set to {value:g}: {self._what} did not answer") from error
            finally:
                if not is_done:
                    self._link.drop()
        quality, why = codec.judge_status(status)
        if quality is Quality.BAD:
            raise Unavailable(f"{point_id} was not set to {value:g}: {why}")

    async def close(self) -> None:
        """End the session; a reading that is under way ends first, within its time-out."""
        async with self._lock:
            await self._link.close()

    async def _write(self, index: int, raw: float) -> int:
        """Write in the type that the node has now: a server refuses any other."""
        node = self._nodes[index]
        if node is None:
            raise Unavailable(f"{self._what} has no namespace {self._points[index][2].uri}")
        [now] = await self._link.read([node])
        variant = make_variant(now.Value, raw)
        if variant is None:
            raise Unavailable(f"{self._what} has no number at {self._points[index][2].identifier}")
        return await self._link.write(node, variant)

    async def _make_session(self) -> None:
        now_ns = self._clock.monotonic_ns()
        if self._link.is_open and ns_to_s(now_ns - self._opened_ns) > LIFETIME_PART * self._link.lifetime_s:
            await self._link.close()
        if self._link.is_open:
            return
        await self._link.open()
        self._opened_ns = now_ns
        indexes = {uri: index for index, uri in enumerate(await self._link.namespaces())}
        self._nodes = [
            ua.NodeId.from_string(ref.text(indexes[ref.uri])) if ref.uri in indexes else None
            for _, _, ref in self._points
        ]


def make_driver(device: Device, profile: Profile, secret: Secret, clock: Clock) -> OpcUaDriver:
    """Return a driver of a device; raises Rejected for a malformed profile."""
    return OpcUaDriver(device, profile, secret, clock)


def find_points(device: Device, profile: Profile, namespace: str) -> list[tuple[PointSpec, str, NodeRef]]:
    """Return each point that the device has, with its id and node; raises Rejected for one that cannot be."""
    found = []
    for spec in profile.points:
        if not (point_id := spec.point_id(device.equipment, device.parts)):
            continue
        if spec.kind in (PointKind.SETPOINT, PointKind.COMMAND) and spec.valid is None and not spec.states:
            raise Rejected(f"{spec.name}: what can be commanded needs `valid` or `states`")
        ref = codec.parse_ref(spec, namespace)
        try:
            ua.NodeId.from_string(ref.text(0))
        except (ua.UaError, ValueError) as error:
            raise Rejected(f"{spec.name}: {spec.ref!r} is no node") from error
        found.append((spec, point_id, ref))
    return found


def make_sample(
    spec: PointSpec, point_id: str, ref: NodeRef, value: ua.DataValue | None, trouble: str, now_s: float
) -> Sample:
    """Return the sample that a node's value is."""
    if value is None:
        reason = trouble or f"the server has no namespace {ref.uri}"
        return to_sample(spec, point_id, None, now_s=now_s, reason=reason)
    quality, why = codec.judge_status(value.StatusCode.value if value.StatusCode is not None else 0)
    raw = codec.to_number(value.Value.Value) if value.Value is not None and quality is not Quality.BAD else None
    sample = to_sample(spec, point_id, raw, now_s=now_s, reason=why)
    if quality is Quality.SUBSTITUTED and sample.value is not None:
        return msgspec.structs.replace(sample, quality=quality)
    return sample


def make_variant(now: ua.Variant | None, raw: float) -> ua.Variant | None:
    """Return a number in the type of a variant; None where that is no number."""
    kind = now.VariantType if now is not None else None
    name = getattr(kind, "name", "")
    if name == "Boolean":
        return ua.Variant(bool(raw), kind)
    if name in _INTEGERS and raw == round(raw):
        return ua.Variant(round(raw), kind)
    return ua.Variant(raw, kind) if name in _FLOATS else None


def _to_raw(spec: PointSpec, value: float) -> float:
    """Return the raw number of a command; raises Rejected for a state that is none."""
    raw = to_raw(spec, value)
    if spec.quantity is Quantity.STATE and spec.states and str(int(raw)) not in spec.states:
        raise Rejected(f"{spec.name}: {value:g} is none of the states {', '.join(sorted(spec.states))}")
    return raw
