"""Reads and commands devices by Modbus TCP.

Owns which registers are asked for when, and what a device that refuses a part is still asked. Refuses to interpret
bytes (codec does) and to try again within a reading. Called by the poller through `madang.facility.roster`.
"""

import asyncio
from collections import deque

import msgspec

from madang.core import Clock, Rejected, Unavailable
from madang.facility.address import split_address
from madang.facility.contract import Device, Secret
from madang.facility.modbus import codec, sunspec
from madang.facility.modbus.codec import Block, ExceptionCode, Place, Trouble
from madang.facility.modbus.link import ModbusLink
from madang.facility.profile import PointSpec, Profile, to_raw, to_sample
from madang.facility.still import StillWatch
from madang.model import PointKind, Quantity, Sample

PORT = 502
GAP_REGISTERS = 8
"""Registers that nobody asked for, read along to save an exchange."""
OPTIONS = {"unit": 1, "gap_registers": GAP_REGISTERS, "write_multiple": False}
_REFUSES_A_PART = (
    ExceptionCode.ILLEGAL_DATA_ADDRESS,
    ExceptionCode.ILLEGAL_DATA_VALUE,
    ExceptionCode.SERVER_DEVICE_FAILURE,
)
"""What devices say when one register of a reading is none; the standard's word is the first."""


class _Plan(msgspec.Struct):
    """What is read over one connection.

    Attributes:
        places: of each point, then of scale factors; None where there is none.
        scales: for each point the index of its scale factor's place; -1 without.
        whys: for each place why there is no number, before a reading and after it.
        blocks: the readings; finer ones once the device has refused a part.
    """

    places: list[Place | None]
    scales: list[int]
    whys: list[str]
    blocks: list[Block]


class ModbusDriver:
    """One session with one Modbus device.

    Args:
        device: where it is, and its options `unit`, `gap_registers` and `write_multiple` (function 16 always).
        profile: its points.
        clock: time.
    """

    def __init__(self, device: Device, profile: Profile, clock: Clock) -> None:
        options = {**OPTIONS, **profile.options, **device.options}
        if unknown := set(options) - set(OPTIONS):
            raise Rejected(f"{device.device_id}: modbus has no option {', '.join(sorted(unknown))}")
        host, port = split_address(device.address, PORT)
        self._device = device
        self._clock = clock
        self._unit = int(options["unit"])
        self._gap_registers = int(options["gap_registers"])
        self._is_always_multiple = bool(options["write_multiple"])
        self._points = [
            (spec, point_id) for spec in profile.points if (point_id := spec.point_id(device.equipment, device.parts))
        ]
        for spec, _ in self._points:
            _check(spec, self._unit)
        self._link = ModbusLink(host, port, device.timeout_s)
        self._plan: _Plan | None = None
        self._watch = StillWatch()
        self._lock = asyncio.Lock()

    async def read(self) -> tuple[Sample, ...]:
        """Return a sample of every point; see `EquipmentDriver.read`."""
        async with self._lock:
            limit_s = max(self._device.poll_s, self._device.timeout_s)
            words: dict[int, tuple[int, ...]] = {}
            whys = [f"not reached within {limit_s:g} s"] * len(self._points)
            try:
                async with asyncio.timeout(limit_s):
                    whys = await self._read_words(words)
            except TimeoutError:
                self._link.drop()
            now_s, now_ns = self._clock.wall_s(), self._clock.monotonic_ns()
            return tuple(
                self._watch.judge(spec, self._sample(index, spec, point_id, words, whys, now_s), now_ns)
                for index, (spec, point_id) in enumerate(self._points)
            )

    async def write(self, point_id: str, value: float) -> None:
        """Command one point; see `EquipmentDriver.write`."""
        spec = next((spec for spec, known in self._points if known == point_id), None)
        if spec is None:
            raise Rejected(f"{self._device.device_id} has no point {point_id}")
        async with self._lock:
            place = await self._find_commandable(spec)
            words = codec.encode_number(place, _to_raw(spec, value))
            request = codec.encode_write(place, words, is_multiple=self._is_always_multiple)
            answer = await self._link.ask(place.unit, request)
            trouble = answer if isinstance(answer, Trouble) else codec.decode_write(answer, request)
            if trouble is not None:
                if not trouble.code:
                    self._link.drop()
                raise Unavailable(f"{point_id} was not set to {value:g}: {trouble.reason}")

    async def close(self) -> None:
        """End the session; a reading that is under way ends first, within its time-out."""
        self._link.is_closed = True
        async with self._lock:
            await self._link.close()

    async def _read_words(self, words: dict[int, tuple[int, ...]]) -> list[str]:
        """Put the registers of each place into `words` and return why others have none."""
        plan = await self._make_plan()
        if isinstance(plan, Trouble):
            return [plan.reason] * len(self._points)
        pending, done = deque(plan.blocks), list[Block]()
        whys = list(plan.whys)
        while pending:
            block = pending.popleft()
            found = await self._read_block(block)
            if not isinstance(found, Trouble):
                words |= _cut(block, plan.places, found)
            elif found.code in _REFUSES_A_PART and (halves := codec.split_block(block, plan.places)):
                pending.extendleft(reversed(halves))
                continue
            else:
                # A device that does not answer once is not asked for the rest.
                lost = [block] if found.code else [block, *pending]
                for index in (index for one in lost for index in one.members):
                    whys[index] = found.reason
                if not found.code:
                    return whys
            done.append(block)
        plan.blocks = done
        return whys

    async def _read_block(self, block: Block) -> tuple[int, ...] | Trouble:
        answer = await self._link.ask(block.unit, codec.encode_read(block))
        found = answer if isinstance(answer, Trouble) else codec.decode_read(answer, block)
        if isinstance(found, Trouble) and not found.code:
            self._link.drop()
        return found

    async def _make_plan(self) -> _Plan | Trouble:
        """Return what to read over the connection that stands; models of a device are looked for once for each."""
        if self._plan is not None and self._link.is_open:
            return self._plan
        self._plan = None
        bases: sunspec.Bases = {}
        if any(sunspec.is_sunspec(spec) for spec, _ in self._points):
            found = await self._discover()
            if isinstance(found, Trouble):
                return found
            bases = found
        self._plan = plan_points([spec for spec, _ in self._points], bases, self._unit, self._gap_registers)
        return self._plan

    async def _discover(self) -> sunspec.Bases | Trouble:
        steps = sunspec.discover(self._unit)
        block = next(steps)
        try:
            while True:
                found = await self._read_block(block)
                if isinstance(found, Trouble) and not found.code:
                    return found
                block = steps.send(None if isinstance(found, Trouble) else found)
        except StopIteration as end:
            bases: sunspec.Bases = end.value
        return bases or Trouble(reason="the device shows no SunSpec map at 40000, 50000 or 0")

    def _sample(
        self,
        index: int,
        spec: PointSpec,
        point_id: str,
        words: dict[int, tuple[int, ...]],
        whys: list[str],
        now_s: float,
    ) -> Sample:
        plan = self._plan
        if plan is None or index not in words:
            return to_sample(spec, point_id, None, now_s=now_s, reason=whys[index])
        raw: float | str = _decode(plan, index, words)
        if sunspec.is_sunspec(spec):
            scale = plan.scales[index]
            if scale >= 0 and scale not in words:
                return to_sample(spec, point_id, None, now_s=now_s, reason="its scale factor was not read")
            raw = sunspec.scale_number(spec, float(raw), _decode(plan, scale, words) if scale >= 0 else None)
        if isinstance(raw, str):
            return to_sample(spec, point_id, None, now_s=now_s, reason=raw)
        return to_sample(spec, point_id, raw, now_s=now_s)

    async def _find_commandable(self, spec: PointSpec) -> Place:
        if spec.kind not in (PointKind.SETPOINT, PointKind.COMMAND):
            raise Rejected(f"{spec.name} is read, not commanded")
        if sunspec.is_sunspec(spec):
            raise Rejected(f"{spec.name}: points of SunSpec models are read, not commanded")
        return codec.parse_place(spec, self._unit)


def make_driver(device: Device, profile: Profile, _secret: Secret, clock: Clock) -> ModbusDriver:
    """Return a driver of a device; Modbus TCP knows no secrets. Raises Rejected for a malformed profile."""
    return ModbusDriver(device, profile, clock)


def plan_points(specs: list[PointSpec], bases: sunspec.Bases, unit: int, gap_registers: int) -> _Plan:
    """Return the readings that bring every point and its scale factor."""
    places: list[Place | None] = []
    scales, factors, whys = [-1] * len(specs), dict[Place, int](), [""] * len(specs)
    for index, spec in enumerate(specs):
        if not sunspec.is_sunspec(spec):
            places.append(codec.parse_place(spec, unit))
            continue
        found = sunspec.locate(spec, bases, unit)
        if isinstance(found, str):
            places.append(None)
            whys[index] = found
            continue
        places.append(found[0])
        if found[1] is not None:
            scales[index] = factors.setdefault(found[1], len(specs) + len(factors))
    places += factors
    whys += [""] * len(factors)
    return _Plan(places=places, scales=scales, whys=whys, blocks=codec.plan_blocks(places, gap_registers))


def _check(spec: PointSpec, unit: int) -> None:
    """Raise Rejected where a point of a profile means nothing here."""
    if sunspec.is_sunspec(spec):
        sunspec.parse_ref(spec)
        return
    place = codec.parse_place(spec, unit)
    if spec.kind not in (PointKind.SETPOINT, PointKind.COMMAND):
        return
    if not place.table.is_writable or place.bit >= 0:
        raise Rejected(f"{spec.name}: only coils and whole holding registers can be commanded, not {spec.ref}")
    if spec.valid is None and not spec.states:
        raise Rejected(f"{spec.name}: what can be commanded needs `valid` or `states`")


def _to_raw(spec: PointSpec, value: float) -> float:
    """Return the raw number of a command; raises Rejected for a state that is none."""
    raw = to_raw(spec, value)
    if spec.quantity is Quantity.STATE and spec.states and str(int(raw)) not in spec.states:
        raise Rejected(f"{spec.name}: {value:g} is none of the states {', '.join(sorted(spec.states))}")
    return raw


def _cut(block: Block, places: list[Place | None], found: tuple[int, ...]) -> dict[int, tuple[int, ...]]:
    return {
        index: found[place.address - block.address : place.address - block.address + place.count]
        for index in block.members
        if (place := places[index]) is not None
    }


def _decode(plan: _Plan, index: int, words: dict[int, tuple[int, ...]]) -> float:
    place = plan.places[index]
    assert place is not None, "only places that exist are read"
    return codec.decode_number(place, words[index])
