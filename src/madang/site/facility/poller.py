"""Reads every device of a site file at its own period and hands on what changed.

Owns the loops, one a device, when each device is read, and the sessions with devices. Refuses to judge samples, and to
know how a hint came. Called by the site program. A device that hangs holds up nobody else: each has its own loop, its
own time-out and at most one exchange at a time.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from madang.core import Clock, Rejected, Unavailable, ns_to_s, s_to_ns
from madang.facility.contract import Device, EquipmentDriver, Hint, RelinquishingDriver, Secret
from madang.facility.profile import Profile
from madang.facility.roster import make_driver
from madang.model import Quality, Sample
from madang.runtime.telemetry import EventLog
from madang.site.facility.hints import Hints

HANG_FACTOR = 3.0
"""A driver keeps its own time-out; one that takes this many times longer is cut off here."""
SPREAD_PARTS = 16
"""First polls are spread over a period, so that not all devices are asked at once."""
HINT_REST_S = 1.0
"""Between the end of a reading that a hint brought about and the next such reading; a device that answers more slowly
than that rests for as long as it took. So hints, however many, take at most half of a device's time."""
SECOND_LOOK_S = 5.0
"""After a reading that a hint brought about the device is read once more: network cards of UPSs answer from what they
gathered some seconds ago. Engineering estimate."""


class DeviceState:
    """What is known of one device.

    Attributes:
        is_answering: its newest poll gave at least one usable sample.
        trouble: why not, for people.
        polls, failures: since the start.
        took_s: of the newest poll.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.is_answering = False
        self.trouble = "not read yet"
        self.polls = 0
        self.failures = 0
        self.took_s = 0.0


class _Early:
    """Why a device is to be read before its period is over."""

    def __init__(self) -> None:
        self.wake = asyncio.Event()
        self._is_hurried = False
        self._is_hinted = False
        self._rest_until_ns = 0
        self._second_look_ns: int | None = None

    def hurry(self) -> None:
        """Let it be read now."""
        self._is_hurried = True
        self.wake.set()

    def hint(self) -> bool:
        """Let it be read as soon as hints may; return False where an earlier hint has seen to that."""
        is_first, self._is_hinted = not self._is_hinted, True
        self.wake.set()
        return is_first

    def due_ns(self, period_ns: int) -> int:
        """Return when it is to be read, where its period ends at `period_ns`."""
        if self._is_hurried:
            return 0
        due_ns = min(period_ns, self._rest_until_ns) if self._is_hinted else period_ns
        return due_ns if self._second_look_ns is None else min(due_ns, self._second_look_ns)

    def begin(self) -> bool:
        """Begin a reading; return whether a hint waited for it. What comes from now on wants another one."""
        was_hinted = self._is_hinted
        self._is_hurried = self._is_hinted = False
        self._second_look_ns = None
        return was_hinted

    def end_hinted(self, now_ns: int, took_ns: int) -> None:
        """End a reading that a hint waited for."""
        self._rest_until_ns = now_ns + max(s_to_ns(HINT_REST_S), took_ns)
        self._second_look_ns = now_ns + s_to_ns(SECOND_LOOK_S)


class Poller:
    """All devices of a site."""

    def __init__(
        self,
        *,
        devices: tuple[Device, ...],
        profiles: Mapping[str, Profile],
        find_secret: Callable[[str], Secret],
        take: Callable[[tuple[Sample, ...]], None],
        clock: Clock,
        log: EventLog,
        make: Callable[[Device, Profile, Secret, Clock], EquipmentDriver] = make_driver,
        hints: Hints | None = None,
    ) -> None:
        """Make a driver for each device.

        Args:
            devices: as the site file names them.
            profiles: by device id.
            find_secret: gives a secret by its name.
            take: gets every poll's samples.
            clock: time.
            log: gets devices that fall silent and come back, once each.
            make: makes a device's driver.
            hints: of devices that are listened to; none: nobody is.

        Raises:
            Rejected: a device, its profile or its secret is wrong.
            Unavailable: the library of a driver is not installed.
        """
        self._take = take
        self._clock = clock
        self._log = log
        self._hints = Hints() if hints is None else hints
        self.states = {device.device_id: DeviceState(device) for device in devices}
        self._points = {
            device.device_id: tuple(
                point_id
                for spec in profiles[device.device_id].points
                if (point_id := spec.point_id(device.equipment, device.parts))
            )
            for device in devices
        }
        self._drivers: dict[str, EquipmentDriver] = {}
        for device in devices:
            secret = find_secret(device.secret) if device.secret else Secret()
            self._drivers[device.device_id] = make(device, profiles[device.device_id], secret, clock)
        self._early = {device_id: _Early() for device_id in self.states}
        self._unasked = set(self.states)
        self._all_asked = asyncio.Event()
        if not self._unasked:
            self._all_asked.set()

    def loops(self) -> dict[str, Coroutine[Any, Any, None]]:
        """Return a loop for each device; all of them run until cancelled."""
        return {
            f"device_{device_id}": self._run(device_id, index % SPREAD_PARTS / SPREAD_PARTS)
            for index, device_id in enumerate(sorted(self.states))
        }

    async def _run(self, device_id: str, offset: float) -> None:
        device, driver = self.states[device_id].device, self._drivers[device_id]
        try:
            await asyncio.sleep(offset * min(device.poll_s, 1.0))
            due_ns = self._clock.monotonic_ns()
            while True:
                await self.poll(device_id)
                # The period counts from the begin of a poll; one that took longer is not caught up with. A reading
                # before its time moves nothing: the usual one follows when it is due.
                now_ns = self._clock.monotonic_ns()
                if now_ns >= due_ns:
                    due_ns = max(due_ns + s_to_ns(device.poll_s), now_ns)
                await self._sleep_until(device_id, due_ns)
        finally:
            await driver.close()

    async def _sleep_until(self, device_id: str, period_ns: int) -> None:
        early = self._early[device_id]
        while (left_ns := early.due_ns(period_ns) - self._clock.monotonic_ns()) > 0:
            early.wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ns_to_s(left_ns)):
                    await early.wake.wait()

    async def wait_first(self) -> None:
        """Return when every device was polled once, whatever it answered."""
        await self._all_asked.wait()

    def hurry(self, device_id: str) -> None:
        """Read a device now: a command was sent."""
        if device_id in self._early:
            self._early[device_id].hurry()

    def take_hint(self, hint: Hint) -> bool:
        """Read a device now that told something by itself, and show that it did until it has been read.

        Returns whether that brings about a reading of its own; False where one waits already, or for an unknown
        device. At most one reading in `HINT_REST_S` follows, and the last hint is always followed by one.
        """
        early = self._early.get(hint.device_id)
        if early is None:
            return False
        self._take(self._hints.note(hint))
        return early.hint()

    async def poll(self, device_id: str) -> None:
        """Read one device once."""
        state, driver, early = self.states[device_id], self._drivers[device_id], self._early[device_id]
        was_hinted, told = early.begin(), self._hints.told(device_id)
        began_ns = self._clock.monotonic_ns()
        try:
            async with asyncio.timeout(HANG_FACTOR * state.device.timeout_s + 1.0):
                samples = await driver.read()
        except TimeoutError:
            samples = self._lost(device_id, "the device hangs")
        ended_ns = self._clock.monotonic_ns()
        state.took_s = ns_to_s(ended_ns - began_ns)
        state.polls += 1
        if was_hinted:
            early.end_hinted(ended_ns, ended_ns - began_ns)
        self._judge(state, samples)
        if state.is_answering:
            samples = (*samples, *self._hints.settle(device_id, told, self._clock.wall_s()))
        self._take(samples)
        self._unasked.discard(device_id)
        if not self._unasked:
            self._all_asked.set()

    def _lost(self, device_id: str, reason: str) -> tuple[Sample, ...]:
        now_s = self._clock.wall_s()
        return tuple(
            Sample(point_id=point_id, value=None, quality=Quality.BAD, observed_at_s=now_s, reason=reason)
            for point_id in self._points[device_id]
        )

    def _judge(self, state: DeviceState, samples: tuple[Sample, ...]) -> None:
        was = state.is_answering
        state.is_answering = any(sample.is_usable for sample in samples)
        reasons = [sample.reason for sample in samples if sample.reason and not sample.is_usable]
        state.trouble = "" if state.is_answering else (reasons[0] if reasons else "it has no points")
        state.failures += not state.is_answering
        if state.is_answering and not was:
            self._log.info("device_answers", device=state.device.device_id)
        elif not state.is_answering and (was or state.polls == 1):
            self._log.warning("device_silent", device=state.device.device_id, reason=state.trouble)

    async def write(self, device_id: str, point_id: str, value: float) -> None:
        """Command a point of a device, and read it again soon.

        Raises:
            Rejected: unknown device or point, or a value that the profile or the device does not allow.
            Unavailable: the device did not take it.
        """
        await self._command(device_id, point_id, lambda driver: driver.write(point_id, value))

    async def relinquish(self, device_id: str, point_id: str) -> None:
        """Let go of what was commanded to a point of a device, and read it again soon.

        Raises:
            Rejected: unknown device or point, or a device that cannot let go of a command.
            Unavailable: the device did not take it.
        """

        def let_go(driver: EquipmentDriver) -> Awaitable[None]:
            if not isinstance(driver, RelinquishingDriver):
                raise Rejected(f"the device {device_id} cannot let go of a command")
            return driver.relinquish(point_id)

        await self._command(device_id, point_id, let_go)

    async def _command(self, device_id: str, point_id: str, act: Callable[[EquipmentDriver], Awaitable[None]]) -> None:
        driver = self._drivers.get(device_id)
        if driver is None:
            raise Rejected(f"there is no device {device_id!r}")
        try:
            async with asyncio.timeout(HANG_FACTOR * self.states[device_id].device.timeout_s + 1.0):
                await act(driver)
        except TimeoutError as error:
            raise Unavailable(f"the device {device_id} did not answer the command to {point_id}") from error
        self.hurry(device_id)
