"""Reads and commands one Redfish service: a BMC, a rack PDU, a coolant distribution unit.

Owns in which order resources are asked for, what is remembered of where they are, and when to stop asking. Refuses to
interpret documents (the codec does) and to decide anything. Called by the site's poller.

Where things are is found by links once and remembered; a link that leads nowhere any more, and every
`_REDISCOVER_READINGS` readings, it is found anew. One reading asks for a resource at most once, and for at most
`REQUESTS_MAX` of them.
"""

import asyncio

import msgspec

from madang.core import Clock, Conflict, Rejected, Unavailable
from madang.facility.contract import Device, Secret, points_of
from madang.facility.profile import PointSpec, Profile, to_raw, to_sample
from madang.facility.redfish import codec
from madang.facility.redfish.client import Absent, Client, Document, ResourceTrouble
from madang.facility.redfish.codec import Node, Pick, Place
from madang.facility.still import StillWatch
from madang.model import PointKind, Sample

REQUESTS_MAX = 96
"""In one reading; a BMC with 16 drives has some 30 resources, a rack PDU with 48 outlets some 60."""
_REDISCOVER_READINGS = 120
_WRITE_TRIES_MAX = 3
"""Of a write whose resource changed between reading its ETag and sending."""
_WRITABLE = (PointKind.SETPOINT, PointKind.COMMAND)
_LATE = "the device did not answer within {:g} s"


class _Target(msgspec.Struct, frozen=True):
    """One point of the device with its places."""

    spec: PointSpec
    point_id: str
    places: tuple[Place, ...]


class _Found(msgspec.Struct, frozen=True):
    """Where a place turned out to be, and what is there."""

    path: str
    place: Place
    document: Document
    pick: Pick


class _AbsenceError(Exception):
    """A place is not to be had; the message says why, `is_passing` whether it may be there later."""

    def __init__(self, message: str, *, is_passing: bool = False) -> None:
        super().__init__(message)
        self.is_passing = is_passing


class _Reading(msgspec.Struct):
    """What one reading has seen so far."""

    documents: dict[str, Document | _AbsenceError]
    requests: int = 0
    trouble: str = ""
    """Why nothing more is asked."""


class RedfishDriver:
    """One session with one Redfish service.

    Args:
        device: where it is and whose points these are.
        profile: what is read.
        secret: what it wants to know of us.
        clock: time.
    """

    def __init__(self, device: Device, profile: Profile, secret: Secret, clock: Clock) -> None:
        self._device = device
        self._clock = clock
        self._client = Client(device, secret, clock)
        here = [spec for spec in profile.points if spec.point_id(device.equipment, device.parts)]
        ids = points_of(profile, device)
        self._targets = [
            _Target(spec, point_id, codec.parse_ref(spec.ref)) for spec, point_id in zip(here, ids, strict=True)
        ]
        self._still = StillWatch()
        self._lock = asyncio.Lock()
        self._paths: dict[tuple[str, ...], str] = {}
        self._hung: set[str] = set()
        self._asking = ""
        self._readings = 0

    def __repr__(self) -> str:
        return f"RedfishDriver({self._device.device_id!r}, {self._client.origin!r})"

    async def read(self) -> tuple[Sample, ...]:
        """Return one sample for each point, in the profile's order, within the device's time-out."""
        samples: dict[str, Sample] = {}
        reading = _Reading(documents={})
        try:
            async with asyncio.timeout(self._device.timeout_s), self._lock:
                await self._read_all(reading, samples)
        except TimeoutError:
            reading.trouble = _LATE.format(self._device.timeout_s)
            self._hung |= {self._asking} if reading.requests else set()
        now_s = self._clock.wall_s()
        for target in self._targets:
            if target.point_id not in samples:
                late = to_sample(target.spec, target.point_id, None, now_s=now_s, reason=reading.trouble)
                samples[target.point_id] = late
        return tuple(samples[target.point_id] for target in self._targets)

    async def write(self, point_id: str, value: float) -> None:
        """Command one point; the device may act later, so the caller reads it back."""
        target = next((one for one in self._targets if one.point_id == point_id), None)
        if target is None or target.spec.kind not in _WRITABLE:
            raise Rejected(f"{self._device.device_id}: {point_id} cannot be commanded")
        raw = to_raw(target.spec, value)
        if target.spec.states and f"{raw:g}" not in target.spec.states:
            known = ", ".join(f"{number} {word}" for number, word in target.spec.states.items())
            raise Rejected(f"{point_id}: {value:g} is none of the states {known}")
        try:
            async with asyncio.timeout(self._device.timeout_s), self._lock:
                await self._command(target, raw)
        except TimeoutError as error:
            raise Unavailable(f"{point_id}: {_LATE.format(self._device.timeout_s)}; it may have acted") from error

    async def close(self) -> None:
        """End the session and the connection."""
        async with self._lock:
            await self._client.close()

    async def _read_all(self, reading: _Reading, samples: dict[str, Sample]) -> None:
        self._readings += 1
        if self._readings % _REDISCOVER_READINGS == 0:
            self._paths.clear()
        # What hung at the last reading comes last, so that one dead resource does not hide the others for ever.
        hung, self._hung = self._hung, set()
        for target in sorted(self._targets, key=lambda one: self._is_hung(one, hung)):
            samples[target.point_id] = await self._sample(target, reading)

    def _is_hung(self, target: _Target, hung: set[str]) -> bool:
        return any(self._paths.get(place.hops, "") in hung for place in target.places) if hung else False

    async def _sample(self, target: _Target, reading: _Reading) -> Sample:
        spec = target.spec
        try:
            found = await self._find(target.places, reading)
            raw, reason = codec.read_number(spec, found.pick)
        except _AbsenceError as absence:
            raw, reason = None, str(absence)
        sample = to_sample(spec, target.point_id, raw, now_s=self._clock.wall_s(), reason=reason)
        return self._still.judge(spec, sample, self._clock.monotonic_ns())

    async def _find(self, places: tuple[Place, ...], reading: _Reading) -> _Found:
        """Return the first place that the service has; raises _AbsenceError with what was wrong with the first."""
        first: _AbsenceError | None = None
        for place in places:
            try:
                path, document = await self._reach(place.hops, reading)
            except _AbsenceError as absence:
                first = first or absence
                continue
            found = codec.pick(document.node, place.pointer)
            if found.is_found:
                return _Found(path, place, document, found)
            first = first or _AbsenceError(f"the device leaves out {'/'.join(place.pointer)} of {path}")
        assert first is not None
        raise first

    async def _reach(self, hops: tuple[str, ...], reading: _Reading) -> tuple[str, Document]:
        start = next((count for count in range(len(hops), 0, -1) if hops[:count] in self._paths), 0)
        path = self._paths[hops[:start]] if start else codec.ROOT
        node: Node = None
        for index in range(start, len(hops)):
            if node is None:
                node = (await self._document(path, reading)).node
            step = codec.follow(node, hops[index], self._device.options)
            if step.trouble:
                raise _AbsenceError(f"{path}: {step.trouble}")
            node = step.node
            if link := codec.link_of(node):
                path, node = self._own(link), None
                self._paths[hops[: index + 1]] = path
        if node is not None:
            raise _AbsenceError(f"{path}: {hops[-1]} is no link")
        return path, await self._document(path, reading)

    def _own(self, link: str) -> str:
        path = codec.own_path(link, self._client.origin)
        if not path:
            raise _AbsenceError(f"the link {link[:80]!r} leads away from the device and is not followed")
        return path

    async def _document(self, path: str, reading: _Reading) -> Document:
        known = reading.documents.get(path)
        if known is None:
            known = reading.documents[path] = await self._fetch(path, reading)
        if isinstance(known, _AbsenceError):
            raise _AbsenceError(str(known), is_passing=known.is_passing)
        return known

    async def _fetch(self, path: str, reading: _Reading) -> "Document | _AbsenceError":
        if reading.trouble:
            return _AbsenceError(reading.trouble, is_passing=True)
        if reading.requests >= REQUESTS_MAX:
            return _AbsenceError(f"one reading asks for no more than {REQUESTS_MAX} resources")
        reading.requests += 1
        self._asking = path
        try:
            return await self._client.get(path)
        except Absent:
            # It moved, or a part was exchanged: the next reading looks for it where the documents say.
            self._paths = {hops: known for hops, known in self._paths.items() if known != path}
            return _AbsenceError(f"the device has no {path}")
        except ResourceTrouble as error:
            return _AbsenceError(error.message, is_passing=True)
        except Unavailable as error:
            reading.trouble = error.message
            return _AbsenceError(error.message, is_passing=True)

    async def _command(self, target: _Target, raw: float) -> None:
        for _ in range(_WRITE_TRIES_MAX):
            try:
                found = await self._find(target.places, _Reading(documents={}))
            except _AbsenceError as absence:
                told = f"{target.point_id}: {absence}"
                raise Unavailable(told) if absence.is_passing else Rejected(told) from absence
            try:
                return await self._send(target, found, raw)
            except Conflict:
                continue
        raise Unavailable(f"{target.point_id}: {found.path} changes faster than it can be written")

    async def _send(self, target: _Target, found: _Found, raw: float) -> None:
        if action := str(target.spec.options.get("action", "")):
            path, body = self._action(target, found, action, raw)
            return await self._client.send("POST", path, body)
        if found.document.allow and "PATCH" not in found.document.allow:
            raise Rejected(f"{target.point_id}: the device lets {found.path} be read only")
        low, high = codec.allowed_range(found.pick)
        if not target.spec.states and not low <= raw <= high:
            raise Rejected(f"{target.point_id}: the device allows {low:g} to {high:g}, not {raw:g}")
        member, _, word = str(target.spec.options.get("set_with", "")).partition("=")
        siblings = {member: word} if isinstance(found.pick.around, dict) and member in found.pick.around else {}
        body = codec.patch_body(found.place, codec.to_json(target.spec, raw), siblings)
        await self._client.send("PATCH", found.path, body, found.document.etag)

    def _action(self, target: _Target, found: _Found, action: str, raw: float) -> tuple[str, Node]:
        """Return path and body of the action that brings about a state; raises Rejected where there is none."""
        parameter = str(target.spec.options.get("parameter", ""))
        wanted = target.spec.options.get(f"do_{raw:g}")
        offered = codec.pick(found.document.node, ("Actions", action)).value
        path = codec.own_path(str(offered.get("target", "")), self._client.origin) if isinstance(offered, dict) else ""
        if wanted is None or not path:
            raise Rejected(f"{target.point_id}: the device has no action for {target.spec.states.get(f'{raw:g}', raw)}")
        allowed = offered.get(f"{parameter}@Redfish.AllowableValues")
        if isinstance(allowed, list) and wanted not in allowed:
            raise Rejected(f"{target.point_id}: the device offers {', '.join(map(str, allowed[:16]))}, not {wanted}")
        return path, {parameter: wanted}


def make_driver(device: Device, profile: Profile, secret: Secret, clock: Clock) -> RedfishDriver:
    """Return the driver of one device."""
    return RedfishDriver(device, profile, secret, clock)
