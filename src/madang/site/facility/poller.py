"""Reads every device of a site file at its own period and hands on what changed.

Owns the loops, one a device, and the sessions with devices. Refuses to judge samples. Called by the site program. A
device that hangs holds up nobody else: each has its own loop, its own time-out and at most one exchange at a time.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from madang.core import Clock, Rejected, Unavailable, s_to_ns
from madang.facility.contract import Device, EquipmentDriver, Secret
from madang.facility.profile import Profile
from madang.facility.roster import make_driver
from madang.model import Quality, Sample
from madang.runtime.telemetry import EventLog

HANG_FACTOR = 3.0
"""A driver keeps its own time-out; one that takes this many times longer is cut off here."""
SPREAD_PARTS = 16
"""First polls are spread over a period, so that not all devices are asked at once."""


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

        Raises:
            Rejected: a device, its profile or its secret is wrong.
            Unavailable: the library of a driver is not installed.
        """
        self._take = take
        self._clock = clock
        self._log = log
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
        self._wake: dict[str, asyncio.Event] = {device_id: asyncio.Event() for device_id in self.states}
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
                # The period counts from the begin of a poll; one that took longer is not caught up with.
                due_ns = max(due_ns + s_to_ns(device.poll_s), self._clock.monotonic_ns())
                await self._sleep_until(device_id, due_ns)
        finally:
            await driver.close()

    async def _sleep_until(self, device_id: str, due_ns: int) -> None:
        wake = self._wake[device_id]
        left_s = max(0.0, (due_ns - self._clock.monotonic_ns()) / 1e9)
        try:
            async with asyncio.timeout(left_s):
                await wake.wait()
        except TimeoutError:
            return
        finally:
            wake.clear()

    async def wait_first(self) -> None:
        """Return when every device was polled once, whatever it answered."""
        await self._all_asked.wait()

    def hurry(self, device_id: str) -> None:
        """Read a device now: a trap came, or a command was sent."""
        if device_id in self._wake:
            self._wake[device_id].set()

    async def poll(self, device_id: str) -> None:
        """Read one device once."""
        state, driver = self.states[device_id], self._drivers[device_id]
        began_ns = self._clock.monotonic_ns()
        try:
            async with asyncio.timeout(HANG_FACTOR * state.device.timeout_s + 1.0):
                samples = await driver.read()
        except TimeoutError:
            samples = self._lost(device_id, "the device hangs")
        state.took_s = (self._clock.monotonic_ns() - began_ns) / 1e9
        state.polls += 1
        self._judge(state, samples)
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
        driver = self._drivers.get(device_id)
        if driver is None:
            raise Rejected(f"there is no device {device_id!r}")
        try:
            async with asyncio.timeout(HANG_FACTOR * self.states[device_id].device.timeout_s + 1.0):
                await driver.write(point_id, value)
        except TimeoutError as error:
            raise Unavailable(f"the device {device_id} did not answer the command to {point_id}") from error
        self.hurry(device_id)
