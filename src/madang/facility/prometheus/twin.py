"""A simulated exporter on loopback, in the text format 0.0.4.

Owns what is answered to which request. Refuses to know physics: values come from the plant. Called by the plant twin's
program and by tests. It gives the series that the profile's refs name first, and says in each HELP that it is
simulated.

That refs tell both the driver and the twin where a value stands means that a profile which somebody adds has a twin at
once, and that both could share a mistake: the profiles are read against real exporters too.
"""

import base64
import hmac
from urllib.parse import urlsplit

import msgspec

from madang.facility.contract import Device, PlantPort, Secret, TwinFault
from madang.facility.profile import PointSpec, Profile
from madang.facility.prometheus import codec
from madang.facility.prometheus.codec import Choice, Selector, Target
from madang.facility.prometheus.exposition import render_sample
from madang.facility.prometheus.link import PATH
from madang.facility.twin_http import TwinAnswer, TwinHost, TwinRequest

SLOWNESS = 1.5
"""A slow twin answers after this many of the device's time-outs."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_GARBAGE = bytes(range(255, 0, -1)) * 2
_WHOLE = 2.0**40
"""What a ratio is a part of: a power of two, so that the quotient is exact."""
_SINCE_S = 1_700_000_000.0
"""What a difference counts from, and the host's clock where nothing says it."""
_SEEN = 1.0
"""Of a series that only has to be there."""
Label = tuple[tuple[str, str], ...]
Rows = dict[str, dict[Label, float]]
_Side = tuple[str, Label]


class PrometheusTwin:
    """One simulated exporter.

    Args:
        device: `address` is where it listens; port 0 takes a free one.
        profile: which series it has.
        secret: what it wants to know of whoever asks.
        plant: where values come from.
    """

    def __init__(self, device: Device, profile: Profile, secret: Secret, plant: PlantPort) -> None:
        self._device = device
        self._plant = plant
        self._secret = secret
        url = urlsplit(device.address if "://" in device.address else f"http://{device.address}")
        self._host_name, self._port = url.hostname or "127.0.0.1", url.port or 0
        self._path = url.path if url.path not in ("", "/") else PATH
        self._targets = codec.make_targets(profile, device)
        self._host = TwinHost(self._handle)
        self._fault: TwinFault | None = None
        self._stuck: dict[str, float | None] = {}

    def __repr__(self) -> str:
        return f"PrometheusTwin({self._device.device_id!r}, {self.address!r})"

    @property
    def address(self) -> str:
        """The URL of its series."""
        return f"http://{self._host_name}:{self._port}{self._path}"

    async def start(self) -> None:
        """Listen; raises Unavailable when the port is taken."""
        self._port = await self._host.start(self._host_name, self._port)

    async def stop(self) -> None:
        """Answer no longer."""
        await self._host.stop()

    def fault(self, fault: TwinFault | None) -> None:
        """Misbehave so from now on; None ends it."""
        self._stuck = {one.spec.name: self._plant.get(one.spec.name) for one in self._targets}
        self._fault = fault

    def render(self) -> str:
        """Return every series now, as text."""
        types = {one.choices[0].first.family: str(one.spec.options.get("type", "gauge")) for one in self._targets}
        families = sorted(self._rows().items(), reverse=self._kind_of_fault("") == "reordered")
        return "".join(
            f"# HELP {name} Simulated by madang.\n# TYPE {name} {types.get(name, 'gauge')}\n"
            + "".join(f"{render_sample(name, dict(labels), value)}\n" for labels, value in rows.items())
            for name, rows in families
        )

    def _handle(self, request: TwinRequest) -> TwinAnswer:
        kind = self._kind_of_fault("")
        if kind == "silent":
            return TwinAnswer(is_held=True)
        if kind == "garbage":
            return TwinAnswer(raw=_GARBAGE)
        answer = self._answer(request)
        after_s = SLOWNESS * self._device.timeout_s if kind == "slow" else 0.0
        return msgspec.structs.replace(answer, after_s=after_s)

    def _answer(self, request: TwinRequest) -> TwinAnswer:
        if not self._is_known(request.headers.get("authorization", "")):
            return TwinAnswer(401, b"Unauthorized\n", {"WWW-Authenticate": "Basic"})
        if request.path != self._path:
            return TwinAnswer(404, b"404 page not found\n")
        if request.method != "GET":
            return TwinAnswer(405, b"Method Not Allowed\n", {"Allow": "GET"})
        return TwinAnswer(200, self.render().encode(), {"Content-Type": CONTENT_TYPE})

    def _is_known(self, said: str) -> bool:
        token, password = self._secret.words.get("token", ""), self._secret.words.get("password", "")
        pair = base64.b64encode(f"{self._secret.user}:{password}".encode()).decode()
        expected = f"Bearer {token}" if token else f"Basic {pair}" if self._secret.user else ""
        return not expected or hmac.compare_digest(said.encode(), expected.encode())

    def _kind_of_fault(self, name: str) -> str:
        fault = self._fault
        return fault.kind if fault is not None and (not fault.names or name in fault.names) else ""

    def _rows(self) -> Rows:
        rows: Rows = {}
        flags: dict[_Side, list[tuple[int, float | None]]] = {}
        for target in self._targets:
            spec, choice = target.spec, target.choices[0]
            raw = self._raw_of(spec)
            if target.bit is not None:
                flags.setdefault(_side(choice.first), []).append((target.bit, raw))
            elif raw is not None:
                _put_choice(rows, choice, raw)
            _put_needs(rows, target)
        for (family, labels), bits in flags.items():
            # A set of flags is given whole or not at all.
            if all(value is not None for _, value in bits):
                rows.setdefault(family, {})[labels] = float(sum(int(value or 0.0) << bit for bit, value in bits))
        for target in self._targets:
            if target.written is not None:
                now_s = next(iter(rows.get(codec.NOW, {}).values()), _SINCE_S)
                rows.setdefault(codec.NOW, {}).setdefault((), now_s)
                _put(rows, target.written, now_s)
        return rows

    def _raw_of(self, spec: PointSpec) -> float | None:
        kind = self._kind_of_fault(spec.name)
        value = self._stuck[spec.name] if kind == "stuck" else self._plant.get(spec.name)
        if value is None or kind == "half":
            return None
        if kind == "sentinel" and spec.sentinels:
            return spec.sentinels[0]
        return (value - spec.offset) / spec.scale


def _put_choice(rows: Rows, choice: Choice, raw: float) -> None:
    if choice.second is None:
        _put(rows, choice.first, raw)
        return
    base = _WHOLE if choice.operator == "/" else _SINCE_S
    _put(rows, choice.first, raw * base if choice.operator == "/" else raw + base)
    _put(rows, choice.second, base)


def _put_needs(rows: Rows, target: Target) -> None:
    if target.needs is not None:
        _put(rows, target.needs, _SEEN)


def _put(rows: Rows, selector: Selector, value: float) -> None:
    family, labels = _side(selector)
    rows.setdefault(family, {})[labels] = value


def _side(selector: Selector) -> _Side:
    return selector.family, tuple((one.label, one.text) for one in selector.matchers if one.is_equal)


def make_twin(device: Device, profile: Profile, secret: Secret, plant: PlantPort) -> PrometheusTwin:
    """Return a twin of one device."""
    return PrometheusTwin(device, profile, secret, plant)
