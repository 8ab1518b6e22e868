"""A simulated Redfish service on loopback: a BMC whose power cap behaves, a rack PDU, a coolant distribution unit.

Owns what is answered to which request. Refuses to know physics: values come from the plant, and commands go to it.
Called by the plant twin's program and by tests. One process serves as many as it likes, each on a port of its own, as
BMCs are.

Where a value stands in the tree is said by the profile's refs, followed as the driver follows them; the control mode
of a set point is a point of its own (`state_power_limit`), which the plant holds.
"""

import asyncio
import hashlib
import ssl
import uuid
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from madang.core import Rejected
from madang.facility.contract import Device, PlantPort, Secret, TwinFault
from madang.facility.profile import PointSpec, Profile
from madang.facility.redfish import codec, twin_answers
from madang.facility.redfish.codec import Place
from madang.facility.redfish.twin_answers import empty_answer, error_answer, json_answer
from madang.facility.redfish.twin_sessions import Sessions
from madang.facility.redfish.twin_tree import BASE, Document, collection, make_tree, resource
from madang.facility.twin_http import TwinAnswer, TwinHost, TwinRequest
from madang.model import PointKind, Quantity

SLOWNESS = 1.5
"""A slow twin answers after this many of the device's time-outs."""
_SESSIONS = f"{BASE}/SessionService/Sessions"
_GARBAGE = bytes(range(255, 0, -1)) * 2
_PUBLIC = ("/redfish", BASE, f"{BASE}/odata", f"{BASE}/$metadata")
_READS = "GET, HEAD"
_DEPTH_MAX = 8
_QUOTED_MAX = 80


class _Shown(msgspec.Struct, frozen=True):
    """A point's value at a place of a resource."""

    spec: PointSpec
    pointer: tuple[str, ...]


class RedfishTwin:
    """One simulated service.

    Args:
        device: `address` is where it listens; port 0 takes a free one.
        profile: its option `tree` says what the service is.
        secret: what it wants to know of whoever asks.
        plant: where values come from and commands go.
        tls: serves HTTPS with this.
    """

    def __init__(
        self, device: Device, profile: Profile, secret: Secret, plant: PlantPort, tls: ssl.SSLContext | None = None
    ) -> None:
        self._device = device
        self._plant = plant
        self._scheme = "http" if tls is None else "https"
        url = urlsplit(device.address if "://" in device.address else f"{self._scheme}://{device.address}")
        self._host_name, self._port = url.hostname or "127.0.0.1", url.port or 0
        kind = str(profile.options.get("tree", "bmc"))
        self._tree = make_tree(kind, str(uuid.uuid5(uuid.NAMESPACE_URL, f"madang:{device.device_id}")))
        self._documents = self._tree.documents
        # A document is filled in anew for each answer: decoding is the quickest copy.
        self._encoded = {path: msgspec.json.encode(document) for path, document in self._documents.items()}
        self._shown: dict[str, list[_Shown]] = {}
        self._settable: dict[str, dict[tuple[str, ...], PointSpec]] = {}
        self._actions: dict[str, PointSpec] = {}
        for spec in profile.points:
            self._place(spec)
        self._sessions = Sessions(secret)
        self._host = TwinHost(self._handle, tls)
        self._fault: TwinFault | None = None
        self._stuck: dict[str, float | None] = {}

    def __repr__(self) -> str:
        return f"RedfishTwin({self._device.device_id!r}, {self.address!r})"

    @property
    def address(self) -> str:
        """The URL of the service."""
        return f"{self._scheme}://{self._host_name}:{self._port}"

    async def start(self) -> None:
        """Listen; raises Unavailable when the port is taken."""
        self._port = await self._host.start(self._host_name, self._port)

    async def stop(self) -> None:
        """Answer no longer."""
        await self._host.stop()

    def fault(self, fault: TwinFault | None) -> None:
        """Misbehave so from now on; None ends it."""
        specs = [one.spec for shown in self._shown.values() for one in shown]
        self._stuck = {spec.name: self._plant.get(spec.name) for spec in specs}
        self._fault = fault

    def _place(self, spec: PointSpec) -> None:
        """Find where the tree shows a point; a point that it has no place for is not shown."""
        for place in codec.parse_ref(spec.ref):
            path = self._locate(place)
            if path and codec.pick(self._documents[path], place.pointer).is_found:
                break
        else:
            return
        self._shown.setdefault(path, []).append(_Shown(spec, place.pointer))
        if action := spec.options.get("action"):
            target = codec.pick(self._documents[path], ("Actions", str(action), "target")).value
            self._actions[str(target)] = spec
        elif spec.kind is PointKind.SETPOINT:
            self._settable.setdefault(path, {})[place.pointer] = spec
        for mirror, pointer in self._tree.mirrors.get(spec.name, ()):
            self._shown.setdefault(mirror, []).append(_Shown(spec, pointer))

    def _locate(self, place: Place) -> str:
        """Return the path of the resource that a place is in; empty when the tree has none."""
        path, node = BASE, self._documents[BASE]
        for hop in place.hops:
            step = codec.follow(node, hop, {})
            if step.trouble:
                return ""
            node = step.node
            if link := codec.link_of(node):
                path = link.rstrip("/")
                node = self._documents[path]
        return path

    def _handle(self, request: TwinRequest) -> TwinAnswer:
        fault = self._fault
        path = unquote(request.path).rstrip("/")
        touched = fault is not None and (
            not fault.names or any(one.spec.name in fault.names for one in self._shown.get(path, ()))
        )
        if fault is None or not touched:
            return self._answer(request, path)
        if fault.kind == "silent":
            return TwinAnswer(is_held=True)
        if fault.kind == "garbage":
            return TwinAnswer(raw=_GARBAGE)
        answer = self._answer(request, path)
        if fault.kind == "slow":
            return msgspec.structs.replace(answer, after_s=SLOWNESS * self._device.timeout_s)
        return answer

    def _answer(self, request: TwinRequest, path: str) -> TwinAnswer:
        now_s = asyncio.get_running_loop().time()
        if any(part.startswith("$") for part in request.query.split("&")):
            return error_answer(501, "QueryNotSupported", "Querying is not supported by the implementation.")
        if request.method == "POST" and path in (_SESSIONS, f"{_SESSIONS}/Members"):
            return self._log_in(request, now_s)
        if path not in _PUBLIC and not self._sessions.allows(request.headers, now_s):
            message = "There is no valid session established with the implementation."
            return error_answer(401, "NoValidSession", message, WWW_Authenticate='Basic realm="Redfish"')
        match request.method:
            case "GET" | "HEAD":
                answer = self._get(path, request.headers, now_s)
                return msgspec.structs.replace(answer, body=b"") if request.method == "HEAD" else answer
            case "PATCH":
                return self._patch(request, path)
            case "POST":
                return self._act(request, path)
            case "DELETE" if path.startswith(f"{_SESSIONS}/") and self._sessions.end(codec.last_segment(path)):
                return empty_answer()
        return self._not_allowed(path, now_s)

    def _get(self, path: str, headers: dict[str, str], now_s: float) -> TwinAnswer:
        if path == "/redfish":
            return twin_answers.versions()
        if path == f"{BASE}/odata":
            return twin_answers.service_document(self._documents)
        if path == f"{BASE}/$metadata":
            return twin_answers.metadata_document(self._documents)
        document = self._render(path, now_s)
        if document is None:
            return self._missing(path)
        etag = self._etag(path)
        if etag and headers.get("if-none-match") == etag:
            return empty_answer(304)
        allow = f"{_READS}, PATCH" if path in self._settable else _READS
        if path == _SESSIONS:
            allow = f"{_READS}, POST"
        kind = document["@odata.type"].partition(".")[0].removeprefix("#")
        described = f"<http://redfish.dmtf.org/schemas/v1/{kind}.json>; rel=describedby"
        answer = json_answer(document, Allow=allow, Link=described)
        return msgspec.structs.replace(answer, headers=answer.headers | {"ETag": etag}) if etag else answer

    def _render(self, path: str, now_s: float) -> Document | None:
        sessions = self._sessions.ids(now_s)
        if path == _SESSIONS:
            document = collection(path, "Session", "Sessions", list(sessions))
        elif path.startswith(f"{_SESSIONS}/") and (user := sessions.get(codec.last_segment(path))) is not None:
            document = resource(path, "Session.v1_7_2", "Session", UserName=user, SessionType="Redfish")
        elif path in self._documents:
            document = msgspec.json.decode(self._encoded[path])
        else:
            return None
        for shown in self._shown.get(path, ()):
            self._show(document, shown)
        return _reordered(document) if self._fault is not None and self._fault.kind == "reordered" else document

    def _show(self, document: Document, shown: _Shown) -> None:
        around = codec.pick(document, shown.pointer[:-1]).value if len(shown.pointer) > 1 else document
        name = shown.pointer[-1]
        kind = self._kind_of_fault(shown.spec.name)
        if kind == "half":
            around.pop(name, None)
            return
        value = self._stuck[shown.spec.name] if kind == "stuck" else self._plant.get(shown.spec.name)
        around[name] = None if kind == "sentinel" else _to_json(shown.spec, value, around[name])

    def _kind_of_fault(self, name: str) -> str:
        fault = self._fault
        return fault.kind if fault is not None and (not fault.names or name in fault.names) else ""

    def _etag(self, path: str) -> str:
        """Return the ETag of what can be set in a resource; readings change it not, else no write would ever fit."""
        settable = self._settable.get(path)
        if not settable:
            return ""
        state = [(pointer, self._plant.get(spec.name)) for pointer, spec in settable.items()]
        return f'W/"{hashlib.sha256(repr(state).encode()).hexdigest()[:16]}"'

    def _patch(self, request: TwinRequest, path: str) -> TwinAnswer:
        if path not in self._settable:
            return self._not_allowed(path, 0.0)
        if self._kind_of_fault("") == "refuses_writes":
            return _no_privilege()
        wanted = request.headers.get("if-match", "*")
        if wanted not in ("*", self._etag(path)):
            return error_answer(412, "PreconditionFailed", "The ETag supplied did not match the ETag of the resource.")
        body = codec.decode(request.body)
        if not body:
            return error_answer(400, "MalformedJSON", "The request body is no JSON object with a property in it.")
        changes: list[tuple[PointSpec, float]] = []
        for pointer, value in _leaves(body):
            spec = self._settable[path].get(pointer)
            if spec is None:
                return self._not_writable(path, pointer)
            raw = _from_json(spec, value)
            quoted = repr(value)[:_QUOTED_MAX]
            if raw is None:
                said = f"The value {quoted} for the property {pointer[-1]} is of another type than it accepts."
                return error_answer(400, "PropertyValueTypeError", said, quoted, pointer[-1])
            if not self._is_within(path, pointer, raw):
                said = f"The value {quoted} for the property {pointer[-1]} is not in the supported range."
                return error_answer(400, "PropertyValueOutOfRange", said, quoted, pointer[-1])
            changes.append((spec, raw * spec.scale + spec.offset))
        return self._apply(changes)

    def _is_within(self, path: str, pointer: tuple[str, ...], raw: float) -> bool:
        document = self._render(path, 0.0)
        low, high = codec.allowed_range(codec.pick(document, pointer))
        return self._settable[path][pointer].quantity is Quantity.STATE or low <= raw <= high

    def _apply(self, changes: list[tuple[PointSpec, float]]) -> TwinAnswer:
        if self._kind_of_fault("") == "ignores_writes":
            return empty_answer()
        for spec, value in changes:
            if self._plant.get(spec.name) == value:
                continue
            try:
                self._plant.set(spec.name, value)
            except Rejected as error:
                return error_answer(400, "ActionNotSupported", error.message)
        return empty_answer()

    def _act(self, request: TwinRequest, path: str) -> TwinAnswer:
        spec = self._actions.get(path)
        if spec is None:
            return self._not_allowed(path, 0.0)
        if self._kind_of_fault("") == "refuses_writes":
            return _no_privilege()
        parameter = str(spec.options.get("parameter", ""))
        wanted = (codec.decode(request.body) or {}).get(parameter)
        for number in spec.states:
            if wanted is not None and wanted == spec.options.get(f"do_{number}"):
                return self._apply([(spec, float(number))])
        quoted = repr(wanted)[:_QUOTED_MAX]
        said = f"The value {quoted} for the parameter {parameter} is not in the list of acceptable values."
        return error_answer(400, "ActionParameterNotSupported", said, parameter)

    def _log_in(self, request: TwinRequest, now_s: float) -> TwinAnswer:
        body = codec.decode(request.body) or {}
        opened = self._sessions.open(str(body.get("UserName", "")), str(body.get("Password", "")), now_s)
        if opened is None:
            said = "The credentials included with this request are missing or invalid."
            return error_answer(401, "ResourceAtUriUnauthorized", said, request.path)
        session_id, token = opened
        if not session_id:
            said = "The session establishment failed due to the number of simultaneous sessions."
            return error_answer(503, "SessionLimitExceeded", said)
        path = f"{_SESSIONS}/{session_id}"
        return json_answer(self._render(path, now_s), 201, Location=path, X_Auth_Token=token)

    def _not_allowed(self, path: str, now_s: float) -> TwinAnswer:
        if self._render(path, now_s) is None:
            return self._missing(path)
        return error_answer(
            405, "OperationNotAllowed", "The HTTP method is not allowed on this resource.", Allow=_READS
        )

    def _missing(self, path: str) -> TwinAnswer:
        said = f"The requested resource of type named {codec.last_segment(path)} was not found."
        return error_answer(404, "ResourceMissingAtURI", said, path)

    def _not_writable(self, path: str, pointer: tuple[str, ...]) -> TwinAnswer:
        name = pointer[-1]
        if codec.pick(self._documents[path], pointer).is_found:
            return error_answer(400, "PropertyNotWritable", f"The property {name} is read-only.", name)
        return error_answer(
            400, "PropertyUnknown", f"The property {name} is not in the list of valid properties.", name
        )


def make_twin(device: Device, profile: Profile, secret: Secret, plant: PlantPort) -> RedfishTwin:
    """Return a twin of one device."""
    return RedfishTwin(device, profile, secret, plant)


def _no_privilege() -> TwinAnswer:
    said = "There are insufficient privileges for the account or credentials associated with the current session."
    return error_answer(403, "InsufficientPrivilege", said)


def _to_json(spec: PointSpec, value: float | None, template: Any) -> Any:
    if value is None:
        return None
    raw = (value - spec.offset) / spec.scale
    return bool(raw) if isinstance(template, bool) else codec.to_json(spec, raw)


def _from_json(spec: PointSpec, value: Any) -> float | None:
    """Return the raw number that a client sends; None for a value of the wrong kind."""
    raw, _ = codec.read_number(spec, codec.Pick(is_found=True, value=value))
    return raw


def _leaves(node: Document, above: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Return every value of a body with its pointer; what is nested deeper than any property counts as a value."""
    found = []
    for name, value in node.items():
        if isinstance(value, dict) and value and len(above) < _DEPTH_MAX:
            found += _leaves(value, (*above, name))
        else:
            found.append(((*above, name), value))
    return found


def _reordered(node: Any) -> Any:
    """Return the same document with the members of objects and of collections in another order."""
    if isinstance(node, dict):
        turned = {name: _reordered(value) for name, value in reversed(node.items())}
        return {name: value[::-1] if name in ("Members", "Drives") else value for name, value in turned.items()}
    return [_reordered(one) for one in node] if isinstance(node, list) else node
