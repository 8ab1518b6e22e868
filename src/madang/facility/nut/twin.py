"""A simulated upsd on loopback with one UPS.

Owns the lines that it answers with. Refuses to know physics: variables come from the plant. Called by the plant twin's
program and by tests. Nothing can be set or commanded, as at an upsd without such users.
"""

import asyncio
import hmac
from collections.abc import Callable, Iterator

import msgspec

from madang.facility.contract import Device, PlantPort, Secret, TwinFault
from madang.facility.nut import codec
from madang.facility.nut.codec import STATUS, UNKNOWN
from madang.facility.profile import PointSpec, Profile
from madang.facility.twin_server import TwinServer

SLOWNESS = 1.5
"""A slow twin answers after this many of the device's time-outs."""
_CONNECTIONS_MAX = 64
_IDLE_S = 120.0
_GARBAGE = bytes(range(255, 10, -1)) + b"\n"
_FIXED = {
    "device.mfr": "Madang (simulated)",
    "device.model": "UPS",
    "device.type": "ups",
    "driver.name": "madang-twin",
    "ups.mfr": "Madang (simulated)",
    "ups.model": "UPS",
}
_USAGE = "Commands: HELP VER NETVER GET LIST USERNAME PASSWORD LOGIN LOGOUT"


class _Client(msgspec.Struct):
    user: str = ""
    password: str = ""
    is_logged_in: bool = False


class NutTwin:
    """One simulated upsd.

    Args:
        device: `address` is where it listens, port 0 takes a free one; the option `ups` names the UPS.
        profile: which variables it has.
        secret: who may LOGIN; without a user anybody.
        plant: where values come from.
    """

    def __init__(self, device: Device, profile: Profile, secret: Secret, plant: PlantPort) -> None:
        self._device = device
        self._specs = profile.points
        self._secret = secret
        self._plant = plant
        host, _, port = device.address.rpartition(":")
        self._host, self._port = host, int(port)
        self._ups = str(device.options.get("ups", "ups"))
        self._server = TwinServer(
            "a NUT twin",
            self._serve,
            connections_max=_CONNECTIONS_MAX,
            unreadable=(ValueError,),  # no lines
            read_limit=codec.LINE_BYTES_MAX,
        )
        self._logins = 0
        self._fault: TwinFault | None = None
        self._stuck: dict[str, float | None] = {}
        self.tokens: tuple[str, ...] = ()
        """More tokens of ups.status than the profile has points for."""
        self.error = ""
        """Said instead of every variable, such as DATA-STALE."""

    def __repr__(self) -> str:
        return f"NutTwin({self._device.device_id!r}, {self.address!r})"

    @property
    def address(self) -> str:
        """Host and port."""
        return f"{self._host}:{self._port}"

    async def start(self) -> None:
        """Listen; raises Unavailable when the port is taken."""
        self._port = await self._server.start(self._host, self._port)

    async def stop(self) -> None:
        """Close the port and every connection."""
        await self._server.stop()

    def fault(self, fault: TwinFault | None) -> None:
        """Misbehave so from now on; None ends it."""
        self._stuck = {spec.name: self._plant.get(spec.name) for spec in self._specs}
        self._fault = fault

    def variables(self) -> dict[str, str]:
        """Return the UPS's variables now."""
        found = dict(_FIXED)
        tokens = list(self.tokens)
        for spec in self._specs:
            kind = self._kind_of_fault(spec.name)
            value = self._stuck[spec.name] if kind == "stuck" else self._plant.get(spec.name)
            if value is None or kind == "half":
                continue
            name, token = codec.parse_ref(spec.ref)[0]
            if token:
                tokens += _token(spec, token, value)
                continue
            raw = (value - spec.offset) / spec.scale
            if kind == "sentinel" and spec.sentinels:
                raw = spec.sentinels[0]
            found[name] = f"{raw:.10g}"
        found[STATUS] = " ".join(tokens)
        is_turned = self._fault is not None and self._fault.kind == "reordered"
        return dict(sorted(found.items(), reverse=is_turned))

    def _kind_of_fault(self, name: str) -> str:
        fault = self._fault
        return fault.kind if fault is not None and (not fault.names or name in fault.names) else ""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = _Client()
        try:
            await self._converse(client, reader, writer)
        finally:
            self._logins -= client.is_logged_in

    async def _converse(self, client: _Client, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            async with asyncio.timeout(_IDLE_S):
                line = await reader.readline()
            if not line.endswith(b"\n"):
                return
            answer = "".join(f"{one}\n" for one in self._answer(line, client)).encode()
            kind = self._kind_of_fault("")
            if kind == "silent":
                await reader.read()  # until the client leaves
                return
            if kind == "slow":
                await asyncio.sleep(SLOWNESS * self._device.timeout_s)
            writer.write(_GARBAGE if kind == "garbage" else answer)
            await writer.drain()
            if answer.startswith(b"OK Goodbye"):
                return

    def _answer(self, line: bytes, client: _Client) -> Iterator[str]:
        message = codec.parse_line(line)
        if message is None:
            yield "ERR INVALID-ARGUMENT"
            return
        word, *rest = message.words
        questions: dict[str, Callable[[list[str]], Iterator[str]]] = {"LIST": self._list, "GET": self._get}
        commands: dict[str, Callable[[list[str], _Client], Iterator[str]]] = {
            "USERNAME": _take_user,
            "PASSWORD": _take_password,
            "LOGIN": self._log_in,
        }
        fixed = {
            "VER": "Network UPS Tools upsd (Madang twin)",
            "NETVER": "1.3",
            "HELP": _USAGE,
            "LOGOUT": "OK Goodbye",
            "STARTTLS": "ERR FEATURE-NOT-CONFIGURED",
            "SET": "ERR ACCESS-DENIED",
            "INSTCMD": "ERR ACCESS-DENIED",
        }
        if word in fixed:
            yield fixed[word]
        elif word in questions:
            yield from questions[word](rest)
        elif word in commands:
            yield from commands[word](rest, client)
        else:
            yield "ERR UNKNOWN-COMMAND"

    def _list(self, words: list[str]) -> Iterator[str]:
        match words:
            case ["UPS"]:
                lines = [f"UPS {self._ups} {codec.quote('simulated UPS')}"]
            case ["VAR", ups] if ups == self._ups:
                if self.error:
                    yield f"ERR {self.error}"
                    return
                lines = [f"VAR {ups} {name} {codec.quote(value)}" for name, value in self.variables().items()]
            case [("RW" | "CMD" | "CLIENT"), ups] if ups == self._ups:
                lines = []
            case [("VAR" | "RW" | "CMD" | "CLIENT"), _]:
                yield "ERR UNKNOWN-UPS"
                return
            case _:
                yield "ERR INVALID-ARGUMENT"
                return
        yield from (f"BEGIN LIST {' '.join(words)}", *lines, f"END LIST {' '.join(words)}")

    def _get(self, words: list[str]) -> Iterator[str]:
        match words:
            case [_, ups, *_] if ups != self._ups:
                yield "ERR UNKNOWN-UPS"
            case ["UPSDESC", ups]:
                yield f"UPSDESC {ups} {codec.quote('simulated UPS')}"
            case ["NUMLOGINS", ups]:
                yield f"NUMLOGINS {ups} {self._logins}"
            case [("VAR" | "TYPE" | "DESC") as kind, ups, name]:
                yield self._get_variable(kind, ups, name)
            case _:
                yield "ERR INVALID-ARGUMENT"

    def _get_variable(self, kind: str, ups: str, name: str) -> str:
        value = self.variables().get(name)
        if self.error:
            return f"ERR {self.error}"
        if value is None:
            return "ERR VAR-NOT-SUPPORTED"
        if kind == "VAR":
            return f"VAR {ups} {name} {codec.quote(value)}"
        if kind == "DESC":
            return f"DESC {ups} {name} {codec.quote('Description unavailable')}"
        return f"TYPE {ups} {name} {'STRING:32' if codec.to_number(value) is None else 'NUMBER'}"

    def _log_in(self, words: list[str], client: _Client) -> Iterator[str]:
        if words != [self._ups]:
            yield "ERR UNKNOWN-UPS"
            return
        is_known = hmac.compare_digest(client.user.encode(), self._secret.user.encode())
        password = self._secret.words.get("password", "")
        if self._secret.user and not (is_known and hmac.compare_digest(client.password.encode(), password.encode())):
            yield "ERR ACCESS-DENIED"
            return
        if client.is_logged_in:
            yield "ERR ALREADY-LOGGED-IN"
            return
        client.is_logged_in = True
        self._logins += 1
        yield "OK"


def make_twin(device: Device, profile: Profile, secret: Secret, plant: PlantPort) -> NutTwin:
    """Return a twin of one device."""
    return NutTwin(device, profile, secret, plant)


def _take_user(words: list[str], client: _Client) -> Iterator[str]:
    if len(words) != 1 or client.user:
        yield "ERR ALREADY-SET-USERNAME" if client.user else "ERR INVALID-ARGUMENT"
        return
    client.user = words[0]
    yield "OK"


def _take_password(words: list[str], client: _Client) -> Iterator[str]:
    if len(words) != 1 or client.password:
        yield "ERR ALREADY-SET-PASSWORD" if client.password else "ERR INVALID-ARGUMENT"
        return
    client.password = words[0]
    yield "OK"


def _token(spec: PointSpec, token: str, value: float) -> list[str]:
    """Return the tokens by which a status says a state."""
    if token == UNKNOWN:
        return [f"X{number}" for number in range(int(value))]
    return [token] if value else [str(one) for one in [spec.options.get("clear")] if one]
