"""Reads one UPS from a Network UPS Tools server.

Owns the connection and what is asked. Refuses to interpret variables (the codec does) and to command anything: a UPS
is switched by the machine that it is wired to, never from here. Called by the site's poller.

It does not LOGIN unless told to: upsd counts those who do as machines that must shut down before the UPS may.
"""

import asyncio
import contextlib

from madang.core import Clock, Rejected, Unavailable
from madang.facility.contract import Device, Secret, points_of
from madang.facility.nut import codec
from madang.facility.nut.codec import Message
from madang.facility.profile import Profile, to_sample
from madang.facility.still import StillWatch
from madang.model import Sample

PORT = 3493
"""IANA's number for NUT."""
CLOSE_S = 2.0
_ADDRESS_PARTS = 2


class _Hung(Exception):
    """The connection that was kept ended before it answered."""


class NutDriver:
    """One session with one upsd about one UPS.

    Args:
        device: where upsd is; the option `ups` names the UPS, else the only one is taken.
        profile: what is read.
        secret: user and `password` of upsd.users; without a user nothing is sent.
        clock: time.
    """

    def __init__(self, device: Device, profile: Profile, secret: Secret, clock: Clock) -> None:
        host, _, port = device.address.rpartition(":") if ":" in device.address else (device.address, "", str(PORT))
        if not host or not port.isdigit():
            raise Rejected(
                f"{device.device_id}: {device.address!r} is no address of upsd", next_step="write host or host:port"
            )
        self._host, self._port = host, int(port)
        self._device = device
        self._secret = secret
        self._clock = clock
        self._what = f"{device.device_id} at {host}:{port}"
        self._ups = codec.check_name(str(device.options["ups"]), "a UPS") if "ups" in device.options else ""
        here = [spec for spec in profile.points if spec.point_id(device.equipment, device.parts)]
        self._points = list(zip(here, points_of(profile, device), strict=True))
        for spec in here:
            codec.parse_ref(spec.ref)
        self._still = StillWatch()
        self._lock = asyncio.Lock()
        self._stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    def __repr__(self) -> str:
        return f"NutDriver({self._what!r})"

    async def read(self) -> tuple[Sample, ...]:
        """Return one sample for each point, in the profile's order, within the device's time-out."""
        variables: dict[str, str] = {}
        trouble = ""
        try:
            async with asyncio.timeout(self._device.timeout_s), self._lock:
                variables = await self._variables()
        except TimeoutError:
            trouble = f"upsd did not answer within {self._device.timeout_s:g} s"
        except Unavailable as error:
            trouble = error.message
        now_s, now_ns = self._clock.wall_s(), self._clock.monotonic_ns()
        samples = []
        for spec, point_id in self._points:
            raw, reason = (None, trouble) if trouble else codec.read_number(spec, variables)
            sample = to_sample(spec, point_id, raw, now_s=now_s, reason=reason)
            samples.append(self._still.judge(spec, sample, now_ns))
        return tuple(samples)

    async def write(self, point_id: str, value: float) -> None:  # noqa: ARG002  the contract's
        """Refuse: nothing is commanded through NUT."""
        raise Rejected(
            f"{self._device.device_id}: {point_id} cannot be commanded through NUT", next_step="only read it"
        )

    async def close(self) -> None:
        """End the session and the connection."""
        async with self._lock:
            stream, self._stream = self._stream, None
            if stream is None:
                return
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(min(self._device.timeout_s, CLOSE_S)):
                    stream[1].write(b"LOGOUT\n")
                    await stream[1].drain()
            stream[1].close()
            with contextlib.suppress(OSError):
                await stream[1].wait_closed()

    async def _variables(self) -> dict[str, str]:
        is_kept = self._stream is not None
        try:
            return await self._whole()
        except _Hung as error:
            if not is_kept:
                raise Unavailable(f"{self._what} closes the connection") from error
        try:
            return await self._whole()  # upsd was restarted meanwhile
        except _Hung as error:
            raise Unavailable(f"{self._what} closes the connection") from error

    async def _whole(self) -> dict[str, str]:
        """Ask once; whatever ends it early ends the connection too, so that no late answer is taken for another."""
        is_whole = False
        try:
            variables = await self._ask()
            is_whole = True
        except (OSError, EOFError) as error:
            raise _Hung from error
        finally:
            if not is_whole and self._stream is not None:
                self._stream[1].transport.abort()
                self._stream = None
        return variables

    async def _ask(self) -> dict[str, str]:
        if self._stream is None:
            await self._connect()
        ups = self._ups or await self._only_ups()
        found = {}
        for message in await self._list(f"VAR {ups}"):
            if len(message.words) != 4 or message.words[:2] != ("VAR", ups):
                raise self._garbled(message)
            found[message.words[2]] = message.words[3]
        return found

    async def _connect(self) -> None:
        try:
            self._stream = await asyncio.open_connection(self._host, self._port, limit=codec.LINE_BYTES_MAX)
        except OSError as error:
            raise Unavailable(f"{self._what} cannot be reached: {error.strerror or error}") from error
        if self._secret.user:
            await self._do(f"USERNAME {codec.check_name(self._secret.user, 'a user')}")
            await self._do(f"PASSWORD {codec.quote(self._secret.words.get('password', ''))}")
        if self._device.options.get("login", False):
            await self._do(f"LOGIN {self._ups or await self._only_ups()}")

    async def _only_ups(self) -> str:
        names = [message.words[1] for message in await self._list("UPS") if len(message.words) > 1]
        if len(names) != 1:
            told = ", ".join(names[:8]) or "none"
            raise Unavailable(f"{self._what} has the UPSs {told}", next_step="name one in the device's option `ups`")
        return codec.check_name(names[0], "a UPS")

    async def _do(self, command: str) -> None:
        """Send a command that is answered by OK."""
        self._send(command)
        message = await self._receive()
        if message.words[0] != "OK":
            raise Unavailable(f"{self._what} refuses {command.partition(' ')[0]}: {message.error or 'no OK'}")

    async def _list(self, what: str) -> list[Message]:
        """Return the lines of a list, without its first and last."""
        self._send(f"LIST {what}")
        first, end = await self._receive(), ("END", "LIST", *what.split())
        if first.error:
            raise Unavailable(f"{self._what} says {first.error} to LIST {what}")
        if first.words != ("BEGIN", *end[1:]):
            raise self._garbled(first)
        messages: list[Message] = []
        while (message := await self._receive()).words != end:
            messages.append(message)
            if len(messages) > codec.LINES_MAX:
                raise Unavailable(f"{self._what} lists more than {codec.LINES_MAX} lines")
        return messages

    def _send(self, line: str) -> None:
        assert self._stream is not None
        self._stream[1].write(f"{line}\n".encode())

    async def _receive(self) -> Message:
        assert self._stream is not None
        try:
            line = await self._stream[0].readline()
        except ValueError as error:
            raise Unavailable(f"{self._what} sends a line over {codec.LINE_BYTES_MAX} bytes") from error
        if not line.endswith(b"\n"):
            raise EOFError
        message = codec.parse_line(line)
        if message is None:
            raise Unavailable(f"{self._what} sends what is no line of NUT's protocol")
        return message

    def _garbled(self, message: Message) -> Unavailable:
        return Unavailable(f"{self._what} answers with {' '.join(message.words)[:60]!r}, which was not asked for")


def make_driver(device: Device, profile: Profile, secret: Secret, clock: Clock) -> NutDriver:
    """Return the driver of one device."""
    return NutDriver(device, profile, secret, clock)
