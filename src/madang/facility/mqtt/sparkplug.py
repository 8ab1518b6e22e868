"""Sparkplug B: payloads to metrics and back, and what a host may believe of an edge node.

Owns the protobuf message, its data types, births, deaths, aliases and sequence numbers. Refuses to know topics'
transport and quantities. Called by the driver and by the twin.

Source: Eclipse Sparkplug Specification 3.0.0 and its sparkplug_b.proto. Fields that no point can need (data sets,
templates, properties, metadata) are skipped, not understood.
"""

import struct
from collections.abc import Iterator

import msgspec

METRICS_MAX = 20_000
"""In one payload."""
ALIASES_MAX = 100_000
"""Of one edge node with its devices."""
REBIRTH = "Node Control/Rebirth"
BD_SEQ = "bdSeq"
NAMESPACE = "spBv1.0"
_SEQUENCE = 256
_INT_BITS = {1: 8, 2: 16, 3: 32, 4: 64, 5: 8, 6: 16, 7: 32, 8: 64, 13: 64}
_SIGNED = (1, 2, 3, 4)
_LONG = (4, 8, 13)
FLOAT, DOUBLE, BOOLEAN, INT64, UINT64 = 9, 10, 11, 4, 8
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_VARINT_BYTES_MAX = 10


class Malformed(Exception):
    """Bytes that are no Sparkplug B payload."""


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """One metric; a text's value is None, since no point is one."""

    name: str = ""
    alias: int | None = None
    datatype: int = 0
    value: float | None = None
    is_null: bool = False


class Payload(msgspec.Struct, frozen=True, kw_only=True):
    """One payload; `seq` is None where it has none, as a death has."""

    metrics: tuple[Metric, ...] = ()
    seq: int | None = None
    timestamp_ms: int = 0


class Key(msgspec.Struct, frozen=True):
    """A metric by its device, empty for the edge node's own, and its name."""

    device: str
    name: str


def decode_payload(data: bytes) -> Payload:
    """Return a payload; raises Malformed."""
    metrics: list[Metric] = []
    seq, timestamp_ms = None, 0
    for field, value in _fields(data):
        if field == 2 and isinstance(value, bytes):
            metrics.append(_decode_metric(value))
            if len(metrics) > METRICS_MAX:
                raise Malformed(f"more than {METRICS_MAX} metrics")
        elif field == 3 and isinstance(value, int):
            seq = value
        elif field == 1 and isinstance(value, int):
            timestamp_ms = value
    return Payload(metrics=tuple(metrics), seq=seq, timestamp_ms=timestamp_ms)


def encode_payload(payload: Payload) -> bytes:
    """Return a payload's bytes."""
    parts = [_varint_field(1, payload.timestamp_ms)]
    parts += [_bytes_field(2, _encode_metric(one)) for one in payload.metrics]
    if payload.seq is not None:
        parts.append(_varint_field(3, payload.seq))
    return b"".join(parts)


def _decode_metric(data: bytes) -> Metric:
    found: dict[int, int | bytes] = dict(_fields(data))
    name, alias = found.get(1, b""), found.get(2)
    datatype = found.get(4, 0)
    if not isinstance(name, bytes) or isinstance(alias, bytes) or isinstance(datatype, bytes):
        raise Malformed("a metric whose fields are of other types")
    try:
        text = name.decode()
    except UnicodeDecodeError as error:
        raise Malformed("a metric's name that is no UTF-8") from error
    value = None if found.get(7) else _decode_value(found, datatype)
    return Metric(name=text, alias=alias, datatype=datatype, value=value, is_null=bool(found.get(7)))


def _decode_value(found: dict[int, int | bytes], datatype: int) -> float | None:
    for field, form in ((12, "<f"), (13, "<d")):
        value = found.get(field)
        if isinstance(value, bytes):
            if len(value) != struct.calcsize(form):
                raise Malformed("a float of another size")
            return float(struct.unpack(form, value)[0])
    if isinstance(flag := found.get(14), int):
        return float(bool(flag))
    raw = found.get(10, found.get(11))
    if not isinstance(raw, int):
        return None
    return float(to_integer(raw, datatype))


def to_integer(raw: int, datatype: int) -> int:
    """Return the number of int_value or long_value; signed ones are two's complement of 8 to 64 bits, widened or not.

    A metric that names no type (data after a birth) is taken as it stands; `EdgeNode` applies the birth's type.
    """
    bits = _INT_BITS.get(datatype)
    if bits is None:
        return raw
    raw &= (1 << bits) - 1
    return raw - (1 << bits) if datatype in _SIGNED and raw >> (bits - 1) else raw


def _encode_metric(metric: Metric) -> bytes:
    parts = [_bytes_field(1, metric.name.encode())] if metric.name else []
    if metric.alias is not None:
        parts.append(_varint_field(2, metric.alias))
    if metric.datatype:
        parts.append(_varint_field(4, metric.datatype))
    if metric.is_null or metric.value is None:
        parts.append(_varint_field(7, 1))
    elif metric.datatype == FLOAT:
        parts.append(_key(12, _FIXED32) + struct.pack("<f", metric.value))
    elif metric.datatype == BOOLEAN:
        parts.append(_varint_field(14, int(bool(metric.value))))
    elif metric.datatype in _INT_BITS:
        is_long = metric.datatype in _LONG
        parts.append(_varint_field(11 if is_long else 10, int(metric.value) & ((1 << (64 if is_long else 32)) - 1)))
    else:
        parts.append(_key(13, _FIXED64) + struct.pack("<d", metric.value))
    return b"".join(parts)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        key, at = _take_varint(data, at)
        field, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _take_varint(data, at)
            yield field, value
            continue
        size = {_FIXED64: 8, _FIXED32: 4}.get(wire)
        if wire == _BYTES:
            size, at = _take_varint(data, at)
        if size is None or not field or at + size > len(data):
            raise Malformed("no protobuf message")
        yield field, data[at : at + size]
        at += size


def _take_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for count in range(_VARINT_BYTES_MAX):
        if at + count >= len(data):
            break
        value |= (data[at + count] & 0x7F) << 7 * count
        if not data[at + count] & 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at + count + 1
    raise Malformed("a number that ends early")


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _key(field: int, wire: int) -> bytes:
    return _varint(field << 3 | wire)


def _varint_field(field: int, value: int) -> bytes:
    return _key(field, _VARINT) + _varint(value)


def _bytes_field(field: int, value: bytes) -> bytes:
    return _key(field, _BYTES) + _varint(len(value)) + value


class EdgeNode:
    """What a host that is not the primary one knows of one edge node; nothing is kept but the wanted metrics.

    Args:
        group, name: as in its topics.
        wanted: the metrics that are kept.

    Attributes:
        why: why nothing of it may be believed; empty while its session is whole.
    """

    def __init__(self, group: str, name: str, wanted: frozenset[Key]) -> None:
        self._group, self._name = group, name
        self._wanted = wanted
        self._devices = frozenset(key.device for key in wanted if key.device)
        self.why = ""
        self.forget("the edge node has not said its birth since we listen")

    def forget(self, why: str) -> None:
        """Believe nothing until the next birth."""
        self.why = why
        self._values: dict[Key, float | None] = {}
        self._types: dict[Key, int] = {}
        self._aliases: dict[int, Key | None] = {}  # None: of a metric that is not wanted
        self._device_whys: dict[str, str] = dict.fromkeys(self._devices, "the device has not said its birth")
        self._next_seq = -1
        self._bd_seq: int | None = None

    @property
    def needs_birth(self) -> bool:
        """True while births are missing that a rebirth would bring; a device that said its death has none."""
        return bool(self.why) or any("birth" in why for why in self._device_whys.values())

    @property
    def topics(self) -> tuple[str, ...]:
        """The filters to subscribe to."""
        return (f"{NAMESPACE}/{self._group}/+/{self._name}", f"{NAMESPACE}/{self._group}/+/{self._name}/+")

    def command_topic(self, device: str = "") -> str:
        """Return where commands for the node or a device go."""
        kind = "DCMD" if device else "NCMD"
        return f"{NAMESPACE}/{self._group}/{kind}/{self._name}" + (f"/{device}" if device else "")

    def datatype(self, key: Key) -> int:
        """Return a metric's type as its birth said it; 0 for one that was not born."""
        return self._types.get(key, 0)

    def value(self, key: Key) -> tuple[float | None, str]:
        """Return a metric's number, or None with the reason."""
        why = self.why or (self._device_whys.get(key.device, "") if key.device else "")
        if why:
            return None, why
        if key not in self._types:
            return None, f"the birth has no metric {key.name}"
        value = self._values.get(key)
        return value, "" if value is not None else f"{key.name} is null, or no number"

    def take(self, topic: str, data: bytes) -> None:
        """Take one message of one of its topics; whatever is none of Sparkplug ends what may be believed."""
        levels = topic.split("/")
        if len(levels) not in (4, 5) or levels[0] != NAMESPACE or (levels[1], levels[3]) != (self._group, self._name):
            return
        kind, device = levels[2], levels[4] if len(levels) == 5 else ""
        if kind not in ("NBIRTH", "NDEATH", "NDATA", "DBIRTH", "DDEATH", "DDATA") or (kind[0] == "D") != bool(device):
            return
        try:
            payload = decode_payload(data)
        except Malformed as error:
            self.forget(f"its {kind} is no Sparkplug B payload: {error}")
            return
        if kind == "NBIRTH":
            self._bear(payload)
        elif kind == "NDEATH":
            self._die(payload)
        elif not self.why and self._is_next(payload):
            self._take_session(kind, device, payload)

    def _bear(self, payload: Payload) -> None:
        self.forget("")
        if payload.seq is None:
            self.forget("its birth has no sequence number")
            return
        self._next_seq = (payload.seq + 1) % _SEQUENCE
        self._bd_seq = _bd_seq(payload)
        self._learn("", payload)

    def _die(self, payload: Payload) -> None:
        """End the session, unless the death is an older session's.

        A broker may publish the death of the session before after the new birth: its bdSeq is smaller. One that is
        ahead by one is tolerated, since libraries count up before they say it; the reason tells of it.
        """
        said = _bd_seq(payload)
        if self._bd_seq is not None and said is not None and said != self._bd_seq:
            if (said - self._bd_seq) % _SEQUENCE != 1:
                return
            self.forget(f"the edge node ended its session; its death says bdSeq {said}, its birth said {self._bd_seq}")
            return
        self.forget("the edge node ended its session")

    def _is_next(self, payload: Payload) -> bool:
        if payload.seq != self._next_seq:
            self.forget(f"a message is missing before sequence number {payload.seq}; expected {self._next_seq}")
            return False
        self._next_seq = (self._next_seq + 1) % _SEQUENCE
        return True

    def _take_session(self, kind: str, device: str, payload: Payload) -> None:
        if kind == "DBIRTH":
            for key in [key for key in self._types if key.device == device]:
                del self._types[key]
                self._values.pop(key, None)
            self._learn(device, payload)
        elif kind == "DDEATH" and device in self._devices:
            self._device_whys[device] = "the device is away, says its edge node"
        else:
            for metric in payload.metrics:
                if not metric.name and metric.alias not in self._aliases:
                    self.forget(f"data of alias {metric.alias}, which no birth has named")
                    return
                named = Key(device, metric.name) if metric.name else self._aliases[metric.alias or 0]
                if named is not None and named.device == device and named in self._types:
                    self._values[named] = _typed(metric, self._types[named])

    def _learn(self, device: str, payload: Payload) -> None:
        if device in self._devices:
            self._device_whys[device] = ""
        for metric in payload.metrics:
            key = Key(device, metric.name)
            if metric.alias is not None and len(self._aliases) < ALIASES_MAX:
                self._aliases[metric.alias] = key if key in self._wanted else None
            if key in self._wanted:
                self._types[key] = metric.datatype
                self._values[key] = metric.value


def _bd_seq(payload: Payload) -> int | None:
    return next((int(one.value) for one in payload.metrics if one.name == BD_SEQ and one.value is not None), None)


def _typed(metric: Metric, datatype: int) -> float | None:
    """Return a value in the birth's type where the message names none."""
    if metric.value is None or metric.datatype or datatype not in _INT_BITS or metric.value != int(metric.value):
        return metric.value
    return float(to_integer(int(metric.value), datatype))
