"""SunSpec: which models a device has, and where their points and scale factors stand.

Owns discovery and the meaning of model tables, pure. Refuses to know sockets. Called by the driver and by the twin.

After the SunSpec Device Information Model Specification: a map begins with "SunS" at 40000, 50000 or 0 of the holding
registers, then models follow, each with its id and its length, up to the id 0xFFFF.
"""

import math
from collections.abc import Generator, Mapping, Sequence
from functools import cache

import msgspec

from madang.core import Rejected
from madang.facility.modbus.codec import Block, Place, Table, make_place
from madang.facility.modbus.sunspec_models import MODELS
from madang.facility.profile import PointSpec

MARK = (0x5375, 0x6E53)
"""`SunS`."""
BASES = (40000, 50000, 0)
END_ID = 0xFFFF
MODELS_MAX = 64
"""More than any device is known to have; a map that goes on is none."""
SCALE_MAX = 10
NO_SCALE = -32768.0

Bases = Mapping[int, Sequence[tuple[int, int]]]
"""For each model id where its instances begin (their id register), and their length without id and length."""


class ModelPoint(msgspec.Struct, frozen=True):
    """A point of a model: `offset` is from the model's id register; `scale` is a point's name or empty."""

    name: str
    offset: int
    type: str
    count: int
    scale: str


class Ref(msgspec.Struct, frozen=True):
    """What a profile's `sunspec:203/1.W` means; instances count from 1."""

    model: int
    instance: int
    point: str


_WIDE = ("u32", "acc32", "f32", "b32")
TYPES = {
    "i16": "int16",
    "u16": "uint16",
    "u32": "uint32",
    "acc32": "uint32",
    "f32": "float32",
    "e16": "uint16",
    "b16": "uint16",
    "b32": "uint32",
    "sf": "int16",
    "pad": "int16",
}
NOT_IMPLEMENTED = {
    "i16": -32768.0,
    "u16": 65535.0,
    "u32": 4294967295.0,
    "acc32": 0.0,
    "f32": math.nan,
    "e16": 65535.0,
    "b16": 65535.0,
    "b32": 4294967295.0,
    "sf": NO_SCALE,
    "pad": -32768.0,
}
"""The number by which a device says that it has no such point."""


@cache
def model_points(model: int) -> dict[str, ModelPoint]:
    """Return the points of a model by name, in order; empty for a model that is not understood."""
    points: dict[str, ModelPoint] = {}
    offset = 2
    for word in MODELS.get(model, "").split():
        name, type_name, scale = (*word.split(":"), "")[:3]
        count = int(type_name[3:]) if type_name.startswith("str") else 2 if type_name in _WIDE else 1
        points[name] = ModelPoint(name, offset, type_name, count, scale)
        offset += count
    return points


def model_length(model: int) -> int:
    """Return how many registers follow a model's length register."""
    return sum(point.count for point in model_points(model).values())


def discover(unit: int) -> Generator[Block, Sequence[int] | None, Bases]:
    """Yield what to read next, take the registers (None: the device refuses), and return the models that there are.

    Without a mark at any of the three bases the result is empty.
    """

    def ask(address: int) -> Block:
        return Block(unit=unit, table=Table.HOLDING, address=address, count=2, members=())

    found: dict[int, list[tuple[int, int]]] = {}
    for base in BASES:
        words = yield ask(base)
        if words is not None and tuple(words) == MARK:
            break
    else:
        return found
    address = base + 2
    for _ in range(MODELS_MAX):
        head = (yield ask(address)) if address + 2 <= 0x10000 else None
        if head is None or head[0] == END_ID:
            break
        found.setdefault(head[0], []).append((address, head[1]))
        address += 2 + head[1]
    return found


def is_sunspec(spec: PointSpec) -> bool:
    """Return whether a point is found by model."""
    return spec.ref.startswith("sunspec:")


def parse_ref(spec: PointSpec) -> Ref:
    """Return what a point's `sunspec:MODEL.POINT` or `sunspec:MODEL/INSTANCE.POINT` means; raises Rejected."""
    model, dot, point = spec.ref.removeprefix("sunspec:").partition(".")
    number, slash, instance = model.partition("/")
    if not dot or not number.isdigit() or (slash and not (instance.isdigit() and int(instance))):
        raise Rejected(f"{spec.name}: ref {spec.ref!r} is not sunspec:MODEL.POINT or sunspec:MODEL/INSTANCE.POINT")
    known = model_points(int(number))
    if not known:
        raise Rejected(f"{spec.name}: model {number} is none of {', '.join(map(str, MODELS))}")
    if point not in known or known[point].type.startswith("str"):
        raise Rejected(f"{spec.name}: model {number} has no number {point!r}")
    return Ref(int(number), int(instance) if slash else 1, point)


def locate(spec: PointSpec, bases: Bases, unit: int) -> tuple[Place, Place | None] | str:
    """Return the place of a point and of its scale factor (None: it needs none), or why it is nowhere."""
    ref = parse_ref(spec)
    instances = bases.get(ref.model, ())
    if len(instances) < ref.instance:
        return f"the device has no SunSpec model {ref.model}" + (f"/{ref.instance}" if ref.instance > 1 else "")
    start, length = instances[ref.instance - 1]
    points = model_points(ref.model)
    point = points[ref.point]

    def place(one: ModelPoint, of: PointSpec) -> Place:
        return make_place(of, unit=unit, table=Table.HOLDING, address=start + one.offset, type_name=TYPES[one.type])

    scale = points.get(point.scale)
    if max(one.offset + one.count for one in (point, scale or point)) > length + 2:
        return f"SunSpec model {ref.model} of the device is too short for {ref.point}"
    plain = msgspec.structs.replace(spec, options={})
    return place(point, spec), place(scale, plain) if scale else None


def scale_number(spec: PointSpec, raw: float, factor: float | None) -> float | str:
    """Return a point's number in its model's unit, or why it is none."""
    point = model_points(parse_ref(spec).model)[parse_ref(spec).point]
    if raw == NOT_IMPLEMENTED[point.type] and "bit" not in spec.options:
        return "the device does not implement it"
    if factor is None:
        return raw
    if not abs(factor) <= SCALE_MAX or factor != int(factor):
        return f"its scale factor {factor:g} is none"
    # Dividing by a whole power of ten gives the nearest float to what the device means; multiplying does not.
    scaled: float = raw * 10 ** int(factor) if factor >= 0 else raw / 10 ** -int(factor)
    return scaled
