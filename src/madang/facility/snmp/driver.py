"""Reads and commands devices by SNMP, with lists of GET.

Owns which objects are asked for together, and what a device that refuses a list is still asked. Refuses to interpret
bytes (codec does), to walk, and to read MIB files: a profile names every object. Called by the poller through
`madang.facility.roster`.
"""

import asyncio
import re
from collections import deque
from collections.abc import Sequence

import msgspec

from madang.core import Clock, Rejected, Unavailable
from madang.facility.address import split_address
from madang.facility.contract import Device, Secret
from madang.facility.profile import PointSpec, Profile, to_raw, to_sample
from madang.facility.snmp import ber, codec
from madang.facility.snmp.codec import Bind, Pdu
from madang.facility.snmp.link import SnmpLink
from madang.facility.snmp.security import Security, make_security
from madang.facility.still import StillWatch
from madang.model import PointKind, Quantity, Sample

PORT = 161
BINDS_PER_REQUEST = 24
"""Objects in one request: their answer stays below 1472 octets, the largest datagram on a plain Ethernet."""
OPTIONS: dict[str, str | int | float | bool] = {
    "version": "2c",
    "auth": "sha256",
    "priv": "aes128",
    "context": "",
    "binds": BINDS_PER_REQUEST,
}
NOT_OURS = ("twin.", "index.")
"""Options beginning so are the twin's, and numbers of table rows that a profile leaves open."""
TYPES = {"integer": ber.INTEGER, "gauge": ber.GAUGE32, "counter": ber.COUNTER32, "ticks": ber.TICKS}
TYPES |= {"counter64": ber.COUNTER64, "text": ber.OCTETS}
_HOLE = re.compile(r"\{(\w+)\}")


class _Chunk(msgspec.Struct, frozen=True):
    """What one request asks for: object identifiers, and their variables as encoded."""

    oids: tuple[bytes, ...]
    encoded: bytes


class SnmpDriver:
    """One session with one agent.

    Args:
        device: where it is, and its options.
        profile: its points.
        security: of the session.
        clock: time.
    """

    def __init__(self, device: Device, profile: Profile, security: Security, clock: Clock) -> None:
        options = {**OPTIONS, **profile.options, **device.options}
        host, port = split_address(device.address, PORT)
        self._device = device
        self._clock = clock
        self._points = [
            (spec, point_id, parse_ref(spec, options))
            for spec in profile.points
            if (point_id := spec.point_id(device.equipment, device.parts))
        ]
        for spec, _, oids in self._points:
            _check(spec, oids)
        self._binds = int(options["binds"])
        if not 1 <= self._binds <= codec.BINDS_MAX:
            raise Rejected(f"{device.device_id}: binds {self._binds} is not 1 to {codec.BINDS_MAX}")
        self._link = SnmpLink(host, port, device.timeout_s, security)
        self._chunks: list[_Chunk] = []
        self._watch = StillWatch()
        self._lock = asyncio.Lock()

    async def read(self) -> tuple[Sample, ...]:
        """Return a sample of every point; see `EquipmentDriver.read`."""
        async with self._lock:
            limit_s = max(self._device.poll_s, self._device.timeout_s)
            found: dict[bytes, float | str] = {}
            missing = f"not reached within {limit_s:g} s"
            try:
                async with asyncio.timeout(limit_s):
                    missing = await self._read_objects(found) or "the device leaves it out"
            except TimeoutError:
                self._link.drop()
            now_s, now_ns = self._clock.wall_s(), self._clock.monotonic_ns()
            return tuple(
                self._watch.judge(spec, _sample(spec, point_id, oids, found, missing, now_s), now_ns)
                for spec, point_id, oids in self._points
            )

    async def write(self, point_id: str, value: float) -> None:
        """Command one point; see `EquipmentDriver.write`."""
        found = next(((spec, oids) for spec, known, oids in self._points if known == point_id), None)
        if found is None:
            raise Rejected(f"{self._device.device_id} has no point {point_id}")
        spec, oids = found
        if spec.kind not in (PointKind.SETPOINT, PointKind.COMMAND):
            raise Rejected(f"{spec.name} is read, not commanded")
        raw = to_raw(spec, value)
        if spec.quantity is Quantity.STATE and spec.states and str(int(raw)) not in spec.states:
            raise Rejected(f"{spec.name}: {value:g} is none of the states {', '.join(sorted(spec.states))}")
        bind = encode_value(spec, oids[0], raw)
        async with self._lock:
            answer = await self._link.ask(codec.SET, codec.encode_bind(bind))
        if isinstance(answer, str):
            raise Unavailable(f"{point_id} was not set to {value:g}: {answer}")
        if answer.error_status:
            raise Unavailable(f"{point_id} was not set to {value:g}: the device says {codec.say_error(answer)}")

    async def close(self) -> None:
        """End the session; a reading that is under way ends first, within its time-out."""
        self._link.is_closed = True
        async with self._lock:
            self._link.close()

    async def _read_objects(self, found: dict[bytes, float | str]) -> str:
        """Put what the device says of each object into `found`; return why the rest is missing, or nothing."""
        if not self._chunks:
            wanted = dict.fromkeys(oid for _, _, oids in self._points for oid in oids)
            self._chunks = make_chunks(tuple(wanted), self._binds)
        pending, done = deque(self._chunks), list[_Chunk]()
        while pending:
            chunk = pending.popleft()
            answer = await self._link.ask(codec.GET, chunk.encoded)
            if isinstance(answer, str):
                # A device that does not answer once is not asked for the rest, and begins anew.
                self._chunks = []
                return answer
            if answer.error_status:
                if halves := split_chunk(chunk, answer):
                    pending.extendleft(reversed(halves))
                    continue
                found |= dict.fromkeys(chunk.oids, f"the device says {codec.say_error(answer)}")
            else:
                for bind in answer.binds:
                    found.setdefault(bind.oid, ber.to_number(bind.tag, bind.content))
            done.append(chunk)
        self._chunks = done
        return ""


def make_driver(device: Device, profile: Profile, secret: Secret, clock: Clock) -> SnmpDriver:
    """Return a driver of a device; raises Rejected for a malformed profile, unknown options and missing secrets."""
    return SnmpDriver(
        device, profile, make_security(security_options(device, profile), secret, device.device_id), clock
    )


def security_options(device: Device, profile: Profile) -> dict[str, str]:
    """Return the options of a device in which those of the session's security are; raises Rejected for others."""
    options = {**OPTIONS, **profile.options, **device.options}
    if unknown := {name for name in options if name not in OPTIONS and not name.startswith(NOT_OURS)}:
        raise Rejected(f"{device.device_id}: snmp has no option {', '.join(sorted(unknown))}")
    return {name: str(value) for name, value in options.items()}


def parse_ref(spec: PointSpec, options: dict[str, str | int | float | bool]) -> tuple[bytes, ...]:
    """Return the objects of a point, several where `ref` adds them up (`OID+OID`); raises Rejected.

    `{wan}` in a ref stands for the device's option `index.wan`.
    """

    def fill(match: re.Match[str]) -> str:
        index = options.get(f"index.{match[1]}")
        if index is None:
            raise Rejected(f"{spec.name}: which row is {match[1]}?", next_step=f"give the option `index.{match[1]}`")
        return str(index)

    try:
        return tuple(ber.encode_oid(part.strip()) for part in _HOLE.sub(fill, spec.ref).split("+"))
    except ValueError as error:
        raise Rejected(f"{spec.name}: ref {spec.ref!r}: {error}") from error


def encode_value(spec: PointSpec, oid: bytes, raw: float) -> Bind:
    """Return a variable with a raw number, of the type that the point's option `type` says."""
    tag = TYPES[str(spec.options.get("type", "integer"))]
    if tag == ber.OCTETS:
        return Bind(oid, tag, f"{raw:g}".encode())
    number = round(raw)
    if tag in ber.UNSIGNED:
        number &= ber.UNSIGNED[tag]
    return Bind(oid, tag, ber.encode_integer(number)[2:])


def make_chunks(oids: Sequence[bytes], size: int) -> list[_Chunk]:
    """Return requests of up to `size` objects each."""
    return [_make_chunk(oids[at : at + size]) for at in range(0, len(oids), size)]


def split_chunk(chunk: _Chunk, answer: Pdu) -> list[_Chunk]:
    """Return two requests for one that a device refuses, parted at what it names; none for a single object."""
    count, named = len(chunk.oids), answer.error_index - 1
    if count == 1:
        return []
    if answer.error_status != codec.TOO_BIG and 0 <= named < count:
        rest = chunk.oids[:named] + chunk.oids[named + 1 :]
        return [_make_chunk(chunk.oids[named : named + 1]), _make_chunk(rest)]
    return [_make_chunk(chunk.oids[: count // 2]), _make_chunk(chunk.oids[count // 2 :])]


def _make_chunk(oids: Sequence[bytes]) -> _Chunk:
    return _Chunk(tuple(oids), b"".join(codec.encode_bind(Bind(oid, ber.NULL, b"")) for oid in oids))


def _check(spec: PointSpec, oids: tuple[bytes, ...]) -> None:
    """Raise Rejected where a point of a profile means nothing here."""
    type_name = spec.options.get("type", "integer")
    if type_name not in TYPES:
        raise Rejected(f"{spec.name}: type {type_name!r} is none of {', '.join(TYPES)}")
    if spec.kind in (PointKind.SETPOINT, PointKind.COMMAND):
        if len(oids) > 1:
            raise Rejected(f"{spec.name}: a sum cannot be commanded")
        if spec.valid is None and not spec.states:
            raise Rejected(f"{spec.name}: what can be commanded needs `valid` or `states`")


def _sample(
    spec: PointSpec,
    point_id: str,
    oids: tuple[bytes, ...],
    found: dict[bytes, float | str],
    missing: str,
    now_s: float,
) -> Sample:
    total = 0.0
    for oid in oids:
        raw = found.get(oid, missing)
        if isinstance(raw, str):
            return to_sample(spec, point_id, None, now_s=now_s, reason=raw)
        if len(oids) > 1 and raw in spec.sentinels:
            return to_sample(spec, point_id, raw, now_s=now_s)
        total += raw
    return to_sample(spec, point_id, total, now_s=now_s, reason=str(spec.options.get("doubt", "")))
