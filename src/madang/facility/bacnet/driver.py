"""Reads and commands objects of a BACnet/IP device.

Owns which objects are asked for together, and what was commanded at which priority. Refuses to interpret bytes (codec
does). Called by the poller through `madang.facility.roster`.

Nothing is ever written without a priority. What was commanded stands in the device until somebody relinquishes it:
`relinquish` does, and with the option `relinquish_on_close` so does the end of the session.
"""

import asyncio
import contextlib
from collections import deque

import msgspec

from madang.core import Clock, Rejected, Unavailable
from madang.facility.address import split_address
from madang.facility.bacnet import codec
from madang.facility.bacnet.codec import Apdu, Malformed, Message, Object, Result, Route, Service
from madang.facility.bacnet.link import BacnetLink
from madang.facility.contract import Device, Secret
from madang.facility.profile import PointSpec, Profile, to_raw, to_sample
from madang.facility.still import StillWatch
from madang.model import PointKind, Quality, Quantity, Sample

PORT = 47808
OPTIONS: dict[str, str | int | float | bool] = {
    "instance": -1,
    "network": 0,
    "mac": "",
    "priority": 10,
    "objects_per_request": 16,
    "relinquish_on_close": False,
}
_TOO_LARGE = (1, 4, 11)
"""Aborts that say that the answer does not fit: buffer overflow, no segments, APDU too long (21)."""


class BacnetDriver:
    """One session with one device.

    Args:
        device: where it is, and the options of the manifest.
        profile: its points.
        clock: time.
    """

    def __init__(self, device: Device, profile: Profile, clock: Clock) -> None:
        options = {**OPTIONS, **profile.options, **device.options}
        if unknown := set(options) - set(OPTIONS):
            raise Rejected(f"{device.device_id}: bacnet has no option {', '.join(sorted(unknown))}")
        self._device, self._clock = device, clock
        self._points = find_points(device, profile)
        self._instance, self._priority = int(options["instance"]), int(options["priority"])
        self._count = max(1, int(options["objects_per_request"]))
        self._relinquishes = bool(options["relinquish_on_close"])
        low, high = codec.PRIORITIES
        if not low <= self._priority <= high:
            raise Rejected(f"{device.device_id}: priority {self._priority} is not within {low} to {high}")
        try:
            route = Route(int(options["network"]), bytes.fromhex(str(options["mac"])))
        except ValueError as error:
            raise Rejected(f"{device.device_id}: mac is not hexadecimal") from error
        host, port = split_address(device.address, PORT)
        self._what = f"{device.device_id} at {host}:{port}"
        self._link = BacnetLink(host, port, self._what, route, device.timeout_s)
        self._blocks: list[tuple[Object, ...]] = []
        self._commanded: set[Object] = set()
        self._watch = StillWatch()
        self._lock = asyncio.Lock()

    def __repr__(self) -> str:
        return f"BacnetDriver({self._what!r})"

    async def read(self) -> tuple[Sample, ...]:
        """Return a sample of every point; see `EquipmentDriver.read`."""
        async with self._lock:
            trouble, found = "", dict[Object, Result]()
            try:
                async with asyncio.timeout(self._device.timeout_s):
                    await self._read_all(found)
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
                self._watch.judge(spec, make_sample(spec, point_id, found.get(one), trouble, now_s), now_ns)
                for spec, point_id, one in self._points
            )

    async def write(self, point_id: str, value: float) -> None:
        """Command one point at the device's priority; see `EquipmentDriver.write`."""
        spec, one = self._commandable(point_id)
        raw = _to_raw(spec, value)
        async with self._lock:
            await self._write(one, raw, f"{point_id} was not set to {value:g}")
            self._commanded.add(one)

    async def relinquish(self, point_id: str) -> None:
        """Give up what was commanded at our priority; see `RelinquishingDriver.relinquish`."""
        _, one = self._commandable(point_id)
        async with self._lock:
            await self._write(one, None, f"{point_id} was not relinquished")
            self._commanded.discard(one)

    async def close(self) -> None:
        """End the session; a reading that is under way ends first, within its time-out."""
        async with self._lock:
            if self._relinquishes:
                for one in sorted(self._commanded, key=lambda one: one.word):
                    with contextlib.suppress(Unavailable):
                        await self._write(one, None, f"{one} was not relinquished")
                self._commanded.clear()
            self._link.drop()

    def _commandable(self, point_id: str) -> tuple[PointSpec, Object]:
        found = next(((spec, one) for spec, known, one in self._points if known == point_id), None)
        if found is None:
            raise Rejected(f"{self._device.device_id} has no point {point_id}")
        if found[0].kind not in (PointKind.SETPOINT, PointKind.COMMAND):
            raise Rejected(f"{found[0].name} is read, not commanded")
        return found

    async def _write(self, one: Object, raw: float | None, what: str) -> None:
        body = codec.encode_write(one, codec.encode_value(one, raw), self._priority)
        is_done = False
        try:
            async with asyncio.timeout(self._device.timeout_s):
                await self._check_instance()
                answer = await self._link.ask(Service.WRITE, body, is_repeated=False)
            is_done = True
        except TimeoutError as error:
            raise Unavailable(f"{what}: {self._what} did not answer") from error
        finally:
            if not is_done:
                self._link.drop()
        if answer.kind is not Apdu.SIMPLE_ACK:
            raise Unavailable(f"{what}: {self._what} says {describe(answer)}")

    async def _read_all(self, found: dict[Object, Result]) -> None:
        await self._check_instance()
        objects = list(dict.fromkeys(one for _, _, one in self._points))
        if not self._blocks:
            self._blocks = [tuple(objects[at : at + self._count]) for at in range(0, len(objects), self._count)]
        pending, done = deque(self._blocks), list[tuple[Object, ...]]()
        while pending:
            block = pending.popleft()
            results = await self._read_block(block, (codec.PRESENT_VALUE, codec.STATUS_FLAGS))
            if results is None:
                half = len(block) // 2
                pending.extendleft((block[half:], block[:half]))
                continue
            found |= results
            done.append(block)
        self._blocks = done

    async def _read_block(self, block: tuple[Object, ...], properties: tuple[int, ...]) -> dict[Object, Result] | None:
        """Return the answer's results; None where a smaller question may be answered."""
        answer = await self._link.ask(Service.READ_MULTIPLE, codec.encode_read(block, properties), is_repeated=True)
        if answer.kind is Apdu.ABORT and answer.code in _TOO_LARGE and len(block) > 1:
            return None
        if answer.kind is Apdu.ERROR and len(block) > 1:
            return None  # some devices refuse the whole for one object that they do not have
        if answer.kind is Apdu.ERROR:
            return {block[0]: Result(error=f"the device says {describe(answer)}")}
        if answer.kind is not Apdu.COMPLEX_ACK or answer.service != Service.READ_MULTIPLE:
            raise Unavailable(f"{self._what} says {describe(answer)}")
        try:
            return codec.decode_results(answer.body)
        except Malformed as error:
            raise Unavailable(f"{self._what} answers what cannot be read: {error}") from error

    async def _check_instance(self) -> None:
        """Ask once for each session which device this is, where the site says which it should be."""
        if self._instance < 0 or self._link.is_open:
            return
        one = Object(codec.TYPES["device"], self._instance)
        result = (await self._read_block((one,), (codec.OBJECT_IDENTIFIER,)) or {}).get(one)
        if result is None or result.value != one.word:
            raise Unavailable(f"{self._what} is not the device {self._instance}")


def make_driver(device: Device, profile: Profile, _secret: Secret, clock: Clock) -> BacnetDriver:
    """Return a driver of a device; BACnet/IP knows no secrets. Raises Rejected for a malformed profile."""
    return BacnetDriver(device, profile, clock)


def find_points(device: Device, profile: Profile) -> list[tuple[PointSpec, str, Object]]:
    """Return each point that the device has, with its id and object; raises Rejected for one that cannot be."""
    found = []
    for spec in profile.points:
        if not (point_id := spec.point_id(device.equipment, device.parts)):
            continue
        one = codec.parse_ref(spec)
        if spec.kind in (PointKind.SETPOINT, PointKind.COMMAND):
            if spec.valid is None:
                raise Rejected(f"{spec.name}: what can be commanded needs `valid`")
            if spec.ref.endswith("-input") or "-input," in spec.ref or spec.ref.startswith("accumulator"):
                raise Rejected(f"{spec.name}: {spec.ref} is an input, which cannot be commanded")
        found.append((spec, point_id, one))
    return found


def make_sample(spec: PointSpec, point_id: str, result: Result | None, trouble: str, now_s: float) -> Sample:
    """Return the sample that a property is."""
    if trouble or result is None or result.value is None:
        reason = trouble or (result.error if result is not None else "") or "the device left it out"
        return to_sample(spec, point_id, None, now_s=now_s, reason=reason)
    quality, why = codec.judge_flags(result.flags)
    raw = None if quality is Quality.BAD else result.value
    sample = to_sample(spec, point_id, raw, now_s=now_s, reason=why)
    is_substituted = quality is Quality.SUBSTITUTED and sample.value is not None
    return msgspec.structs.replace(sample, quality=quality) if is_substituted else sample


def describe(answer: Message) -> str:
    """Return in words why an answer is none."""
    if answer.kind is Apdu.ERROR:
        return codec.decode_error(answer.body)
    return f"{answer.kind.name.lower()} {answer.code}"


def _to_raw(spec: PointSpec, value: float) -> float:
    """Return the raw number of a command; raises Rejected for a state that is none."""
    raw = to_raw(spec, value)
    if spec.quantity is Quantity.STATE and spec.states and str(int(raw)) not in spec.states:
        raise Rejected(f"{spec.name}: {value:g} is none of the states {', '.join(sorted(spec.states))}")
    return raw
