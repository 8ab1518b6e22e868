"""A simulated Modbus TCP device, read by any Modbus client.

Owns the server and its faults. Refuses to know physics: values come from a plant by the profile's names. Addresses
within a table's span answer 0 where the profile has nothing, others are refused. Called by the plant twin and tests.
"""

import asyncio
import math
import struct

from madang.core import Rejected
from madang.facility.address import split_address
from madang.facility.contract import Device, PlantPort, Secret, TwinFault
from madang.facility.modbus import codec, sunspec
from madang.facility.modbus.codec import ExceptionCode, Place, ReadRequest, Table, WriteRequest
from madang.facility.profile import PointSpec, Profile
from madang.facility.twin_server import TwinServer
from madang.model import PointKind

CONNECTIONS_MAX = 8
IDLE_S = 300.0
_BUFFER_BYTES = 1024
_SUNSPEC_BASE = sunspec.BASES[0]
_MAKER = {"Mn": "Madang", "Md": "Twin", "Vr": "1", "SN": "MadangTwin"}
"""What the common model says of this device: nobody takes it for a real one."""

Registers = dict[tuple[int, Table], dict[int, int]]
"""Words by unit and table, then by address."""


class ModbusTwin:
    """A device with the points of a profile.

    Args:
        device: where it listens, and what of the profile it has.
        profile: its points.
        plant: what it measures and commands.

    Attributes:
        requests: how many it was asked.
    """

    def __init__(self, device: Device, profile: Profile, plant: PlantPort) -> None:
        self._host, self._port = split_address(device.address, 0)
        self._timeout_s = device.timeout_s
        self._plant = plant
        self._fault: TwinFault | None = None
        self._frozen: dict[str, float | None] = {}
        self._former = b""
        self._garbage = 0
        self.requests = 0
        unit = int({**profile.options, **device.options}.get("unit", 1))
        self._specs = [one for one in profile.points if one.point_id(device.equipment, device.parts)]
        self._places, self._scales, self._fixed = lay_out(self._specs, unit)
        self._units = {place.unit for place in self._places.values()}
        self._server = TwinServer(
            "the Modbus twin", self._answer_all, connections_max=CONNECTIONS_MAX, read_limit=_BUFFER_BYTES
        )

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
        """Misbehave so until told otherwise."""
        self._fault = fault
        is_stuck = fault is not None and fault.kind == "stuck"
        self._frozen = {spec.name: self._plant.get(spec.name) for spec in self._specs} if is_stuck else {}

    def _has_fault(self, kind: str, name: str = "") -> bool:
        fault = self._fault
        return fault is not None and fault.kind == kind and (not fault.names or not name or name in fault.names)

    async def _answer_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            async with asyncio.timeout(IDLE_S):
                head = codec.decode_head(await reader.readexactly(codec.HEAD_BYTES))
                if head is None:
                    return
                request = await reader.readexactly(head.length)
            self.requests += 1
            answer = codec.encode_frame(head.transaction, head.unit, self._answer(head.unit, request))
            if self._has_fault("slow"):
                await asyncio.sleep(1.5 * self._timeout_s)
            writer.write(self._spoil(answer))
            await writer.drain()

    def _spoil(self, answer: bytes) -> bytes:
        """Return what leaves instead of an answer."""
        former, self._former = self._former, answer
        if self._has_fault("silent"):
            return b""
        if self._has_fault("reordered"):
            return former + answer
        if not self._has_fault("garbage"):
            return answer
        self._garbage += 1
        return (
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            answer[:4] + b"\xff\xff" + answer[6:],
            answer[:7] + bytes((answer[7] ^ 0x40,)) + answer[8:],
            answer[:4] + b"\x00\x03" + answer[6:9],
        )[self._garbage % 4]

    def _answer(self, unit: int, pdu: bytes) -> bytes:
        if unit not in self._units:
            return codec.encode_refusal(pdu[0], ExceptionCode.GATEWAY_TARGET_DEVICE_FAILED_TO_RESPOND)
        request = codec.decode_request(pdu)
        if isinstance(request, ReadRequest):
            found = self._read(unit, request)
            answer = found if isinstance(found, ExceptionCode) else codec.encode_words(request, found)
        elif isinstance(request, WriteRequest):
            refusal = self._write(unit, request)
            answer = pdu[:5] if refusal is None else refusal
        else:
            answer = request
        return codec.encode_refusal(pdu[0], answer) if isinstance(answer, ExceptionCode) else answer

    def _read(self, unit: int, request: ReadRequest) -> list[int] | ExceptionCode:
        held = dict(self._fixed.get((unit, request.table), {}))
        for spec in self._specs:
            place = self._places[spec.name]
            if (place.unit, place.table) != (unit, request.table):
                continue
            words = self._words(spec, place)
            if words is None:
                # A refused register makes the device refuse every reading that touches it.
                if request.address < place.address + place.count and place.address < request.address + request.count:
                    return ExceptionCode.ILLEGAL_DATA_ADDRESS
                words = (0,) * place.count
            for at, word in enumerate(words, place.address):
                held[at] = held.get(at, 0) | word if place.bit >= 0 else word
        end = request.address + request.count
        if not held or request.address < min(held) or end > max(held) + 1:
            return ExceptionCode.ILLEGAL_DATA_ADDRESS
        return [held.get(at, 0) for at in range(request.address, end)]

    def _words(self, spec: PointSpec, place: Place) -> tuple[int, ...] | None:
        """Return what a point's registers hold; None where the device refuses them."""
        if self._has_fault("half", spec.name):
            return None
        value = self._frozen[spec.name] if spec.name in self._frozen else self._plant.get(spec.name)
        if value is None or self._has_fault("sentinel", spec.name):
            raw = _no_value(spec)
        else:
            raw = (value - spec.offset) / spec.scale
            scale = self._scales.get(spec.name, 0)
            raw = raw / 10**scale if scale >= 0 else raw * 10**-scale
        if raw is None:
            return None
        if place.bit >= 0:
            word = int(bool(raw)) << place.bit
            return tuple(word >> 16 * at & 0xFFFF for at in reversed(range(place.count)))
        try:
            return codec.encode_number(place, raw)
        except Rejected:
            # What does not fit is the maker's "no value" on the wire, as on real devices.
            raw = _no_value(spec)
            return None if raw is None else codec.encode_number(place, raw)

    def _write(self, unit: int, request: WriteRequest) -> ExceptionCode | None:
        if self._has_fault("refuses_writes"):
            return ExceptionCode.SERVER_DEVICE_FAILURE
        for spec in self._specs:
            place = self._places[spec.name]
            if (place.unit, place.table, place.address) != (unit, request.table, request.address):
                continue
            if spec.kind not in (PointKind.SETPOINT, PointKind.COMMAND) or place.count != len(request.words):
                return ExceptionCode.ILLEGAL_DATA_ADDRESS
            if self._has_fault("ignores_writes", spec.name):
                return None
            try:
                self._plant.set(spec.name, codec.decode_number(place, request.words) * spec.scale + spec.offset)
            except Rejected:
                return ExceptionCode.ILLEGAL_DATA_VALUE
            return None
        return ExceptionCode.ILLEGAL_DATA_ADDRESS


def make_twin(device: Device, profile: Profile, _secret: Secret, plant: PlantPort) -> ModbusTwin:
    """Return a twin of a device; Modbus TCP knows no secrets."""
    return ModbusTwin(device, profile, plant)


def lay_out(specs: list[PointSpec], unit: int) -> tuple[dict[str, Place], dict[str, int], Registers]:
    """Return where each point stands, the power of ten of SunSpec points, and the words that never change."""
    places = {spec.name: codec.parse_place(spec, unit) for spec in specs if not sunspec.is_sunspec(spec)}
    modelled = [spec for spec in specs if sunspec.is_sunspec(spec)]
    scales: dict[str, int] = {}
    if not modelled:
        return places, scales, {}
    refs = [sunspec.parse_ref(spec) for spec in modelled]
    counts = {model: max(ref.instance for ref in refs if ref.model == model) for model in {ref.model for ref in refs}}
    words: dict[int, int] = dict(enumerate(sunspec.MARK, _SUNSPEC_BASE))
    bases: dict[int, list[tuple[int, int]]] = {}
    address = _SUNSPEC_BASE + 2
    for model in (1, *sorted(model for model, count in counts.items() for _ in range(count) if model != 1)):
        bases.setdefault(model, []).append((address, sunspec.model_length(model)))
        words |= _model_words(model, address)
        address += 2 + sunspec.model_length(model)
    words |= {address: sunspec.END_ID, address + 1: 0}
    for spec in modelled:
        found = sunspec.locate(spec, bases, unit)
        assert not isinstance(found, str), "the twin has every model of its profile"
        places[spec.name] = found[0]
        if found[1] is not None:
            scales[spec.name] = int(spec.options.get("sf", 0))
            words[found[1].address] = scales[spec.name] & 0xFFFF
    return places, scales, {(unit, Table.HOLDING): words}


def _model_words(model: int, address: int) -> dict[int, int]:
    """Return a model in which nothing is implemented but texts."""
    words = {address: model, address + 1: sunspec.model_length(model)}
    for point in sunspec.model_points(model).values():
        start = address + point.offset
        if point.type.startswith("str"):
            text = _MAKER.get(point.name, "").encode().ljust(2 * point.count, b"\0")
            words |= dict(enumerate(struct.unpack(f">{point.count}H", text), start))
        else:
            place = Place(unit=1, table=Table.HOLDING, address=start, type=sunspec.TYPES[point.type])
            words |= dict(enumerate(codec.encode_number(place, sunspec.NOT_IMPLEMENTED[point.type]), start))
    return words


def _no_value(spec: PointSpec) -> float | None:
    if sunspec.is_sunspec(spec):
        ref = sunspec.parse_ref(spec)
        return sunspec.NOT_IMPLEMENTED[sunspec.model_points(ref.model)[ref.point].type]
    if str(spec.options.get("type", "")).startswith("float"):
        return math.nan
    return spec.sentinels[0] if spec.sentinels else None
