"""The contract that every equipment driver keeps, as tests to inherit, checked against its twin on loopback.

Owns what `madang.facility.contract` promises. Refuses to know any protocol: a subclass names a device, what the plant
holds and which points a fault touches. `FacilityReadContract` is for all, `FacilityWriteContract` for drivers that
command, too.

Waits end when something is so; HANG_S only finds what hangs. Reads whose twin answers have a time-out that a busy
machine does not reach, reads whose twin does not answer have a short one.
"""

# ruff: noqa: D102  the name of a test is its sentence

import asyncio
import contextlib
import gc
import itertools
import math
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from typing import Any, ClassVar, Protocol

import msgspec

from madang.core import Rejected, Unavailable
from madang.facility.contract import Device, EquipmentDriver, Secret, Twin, TwinFault
from madang.facility.profile import PointSpec, Profile, load_profile
from madang.facility.roster import make_driver, make_twin
from madang.model import Quality, Sample

HANG_S = 60.0
PATIENT_S = 30.0
SHORT_S = 0.3
RELATIVE = 1e-5
"""Values of a plant must be such that the wire carries them exactly; floats of 32 bits do to this part."""
BLOCKS_PER_READING_MAX = 5
"""Pieces of memory that a reading may leave behind, as noise: one kept sample alone is more."""
_READINGS = 10
_TURN_S = 0.01


class FaultyTwin(Twin, Protocol):
    """A twin that misbehaves when told to.

    `slow` answers after one and a half of the device's time-outs, with the values of when it was asked.
    """

    def fault(self, fault: TwinFault | None) -> None:
        """Misbehave so from now on; None ends it."""
        ...


class HeldPlant:
    """A fake plant: it holds what it is given, and what is commanded."""

    def __init__(self, values: dict[str, float]) -> None:
        self.values: dict[str, float | None] = dict(values)
        self.commands: list[tuple[str, float]] = []

    def get(self, name: str) -> float | None:
        """Return what is held."""
        return self.values.get(name)

    def set(self, name: str, value: float) -> None:
        """Hold a command."""
        if name not in self.values:
            raise Rejected(f"the plant has no {name}")
        self.values[name] = value
        self.commands.append((name, value))


class StandingClock:
    """A fake clock that moves when told to."""

    def __init__(self) -> None:
        self.now_s = 1_700_000_000.0

    def monotonic_ns(self) -> int:
        """Return the same time in nanoseconds."""
        return int(self.now_s * 1e9)

    def wall_s(self) -> float:
        """Return the time."""
        return self.now_s


class DeviceSession(msgspec.Struct, kw_only=True):
    """One driver on one twin."""

    driver: EquipmentDriver
    twin: FaultyTwin
    plant: HeldPlant
    clock: StandingClock
    profile: Profile
    device: Device

    @property
    def specs(self) -> list[PointSpec]:
        """The points that this device has, in order."""
        return [one for one in self.profile.points if one.point_id(self.device.equipment, self.device.parts)]

    def point_id(self, name: str) -> str:
        """Return the id of the profile's point."""
        [spec] = [one for one in self.profile.points if one.name == name]
        return spec.point_id(self.device.equipment, self.device.parts)

    async def read(self) -> dict[str, Sample]:
        """Return samples by the profile's names, having checked that there is one for each point, in order."""
        async with asyncio.timeout(HANG_S):
            samples = await self.driver.read()
        specs = self.specs
        assert [one.point_id for one in samples] == [
            spec.point_id(self.device.equipment, self.device.parts) for spec in specs
        ]
        for sample in samples:
            assert (sample.value is None) == (sample.quality is Quality.BAD), sample
            assert bool(sample.reason) == (sample.quality is not Quality.GOOD), sample
            assert sample.observed_at_s == self.clock.now_s
        return {spec.name: sample for spec, sample in zip(specs, samples, strict=True)}

    async def read_until_good(self) -> dict[str, Sample]:
        """Return the first reading without a bad sample; a driver may need some to find a device again."""
        async with asyncio.timeout(HANG_S):
            while True:
                samples = await self.read()
                if not any(one.quality is Quality.BAD for one in samples.values()):
                    return samples

    def check_true(self, samples: dict[str, Sample]) -> None:
        """Fail when a sample has a value that the plant has not."""
        for spec in self.specs:
            sample = samples[spec.name]
            if sample.value is None:
                continue
            held = self.plant.get(spec.name)
            assert held is not None, f"{spec.name} has a value that the plant has not: {sample}"
            assert abs(sample.value - held) <= RELATIVE * max(abs(held), 1e-3), (spec.name, sample, held)
            raw = round((held - spec.offset) / spec.scale)
            assert sample.text == (spec.states.get(str(raw), "") if spec.states else "")


class FacilityContract:
    """What both suites need: inherit one of them, and give the facts."""

    device: Device
    """Its address is replaced by the twin's."""
    values: dict[str, float]
    """What the plant holds for every point of the device, all different within a quantity, exact on the wire."""
    secret: Secret = Secret()

    @contextlib.asynccontextmanager
    async def session(self, timeout_s: float = PATIENT_S) -> AsyncIterator[DeviceSession]:
        """Start a twin and a driver, and check at the end that neither leaves a task or a socket."""
        clock, plant = StandingClock(), HeldPlant(self.values)
        profile = load_profile(self.device.driver, self.device.profile)
        device = msgspec.structs.replace(self.device, timeout_s=timeout_s, address="127.0.0.1:0", is_simulated=True)
        sockets = count_sockets()
        twin = make_twin(device, profile, self.secret, plant)
        await twin.start()
        try:
            device = msgspec.structs.replace(device, address=twin.address)
            driver = make_driver(device, profile, self.secret, clock)
            try:
                yield DeviceSession(driver=driver, twin=twin, plant=plant, clock=clock, profile=profile, device=device)
            finally:
                async with asyncio.timeout(HANG_S):
                    await driver.close()
        finally:
            async with asyncio.timeout(HANG_S):
                await twin.stop()
        await until(lambda: count_sockets() == sockets, "a socket is left behind")
        await until(lambda: len(asyncio.all_tasks()) == 1, "a task is left behind")

    def play(self, scene: Callable[[DeviceSession], Coroutine[Any, Any, None]], timeout_s: float = PATIENT_S) -> None:
        """Run one scene in a session of its own."""

        async def run() -> None:
            async with self.session(timeout_s) as session:
                await scene(session)

        asyncio.run(run())


class FacilityReadContract(FacilityContract):
    """Inherit, and give `device`, `values` and the names below."""

    half_names: tuple[str, ...]
    """Points that the twin leaves out under `half`; every other one is still answered."""
    sentinel_names: tuple[str, ...]
    """Points whose profile has a word for "no value"."""
    steps: ClassVar[dict[str, float]] = {}
    """How far the next value of a point is that the wire carries exactly, where it is neither 1 nor its scale."""

    def test_every_point_is_read_in_the_profiles_order(self) -> None:
        async def scene(session: DeviceSession) -> None:
            samples = await session.read()
            assert {one.quality for one in samples.values()} == {Quality.GOOD}, samples
            assert samples
            session.check_true(samples)

        self.play(scene)

    def test_what_changes_is_seen_by_the_next_reading(self) -> None:
        async def scene(session: DeviceSession) -> None:
            await session.read()
            name = next(spec.name for spec in session.specs if not spec.states)
            self._change(session, [name])
            session.check_true(await session.read_until_good())

        self.play(scene)

    def derive(self, values: dict[str, float | None]) -> None:
        """Bring values into line that follow from others; a test whose profile adds points up overrides it."""

    def _change(self, session: DeviceSession, names: Iterable[str]) -> None:
        for name in names:
            session.plant.values[name] = self._other(session, name)
        self.derive(session.plant.values)

    def _other(self, session: DeviceSession, name: str) -> float:
        """Return another value of the point that the wire carries exactly, within what is plausible."""
        [spec] = [one for one in session.specs if one.name == name]
        held = session.plant.get(name)
        assert held is not None
        low, high = spec.valid or (-math.inf, math.inf)
        smallest = self.steps.get(name, abs(spec.scale))
        steps = (1.0, -1.0, smallest, -smallest)
        return next(held + step for step in steps if abs(step) >= smallest and low <= held + step <= high)

    def test_two_readings_at_once_are_both_true(self) -> None:
        async def scene(session: DeviceSession) -> None:
            for samples in await asyncio.gather(session.read(), session.read()):
                assert {one.quality for one in samples.values()} == {Quality.GOOD}
                session.check_true(samples)

        self.play(scene)

    def test_a_silent_device_gives_bad_samples_and_is_found_again(self) -> None:
        async def scene(session: DeviceSession) -> None:
            session.twin.fault(TwinFault(kind="silent"))
            for _ in range(2):
                samples = await session.read()
                assert {one.quality for one in samples.values()} == {Quality.BAD}
            session.twin.fault(None)
            session.check_true(await session.read_until_good())

        self.play(scene, SHORT_S)

    def test_a_device_that_is_away_gives_bad_samples_and_is_found_again(self) -> None:
        async def scene(session: DeviceSession) -> None:
            await session.read_until_good()
            await session.twin.stop()
            samples = await session.read()
            assert {one.quality for one in samples.values()} == {Quality.BAD}
            await session.twin.start()
            session.check_true(await session.read_until_good())

        self.play(scene, SHORT_S)

    def test_a_late_answer_is_never_taken_for_a_later_ones(self) -> None:
        async def scene(session: DeviceSession) -> None:
            session.twin.fault(TwinFault(kind="slow"))
            for _ in range(2):
                # What was asked first is answered, with the values of then, while the second answer is awaited.
                samples = await session.read()
                assert {one.quality for one in samples.values()} == {Quality.BAD}, samples
                self._change(session, [spec.name for spec in session.specs if not spec.states])
            session.twin.fault(None)
            session.check_true(await session.read())
            session.check_true(await session.read_until_good())

        self.play(scene, SHORT_S)

    def test_points_that_are_left_out_are_bad_and_the_others_good(self) -> None:
        async def scene(session: DeviceSession) -> None:
            assert self.half_names
            session.twin.fault(TwinFault(kind="half", names=self.half_names))
            for _ in range(2):
                samples = await session.read()
                bad = {name for name, one in samples.items() if one.quality is Quality.BAD}
                assert bad == set(self.half_names), samples
                session.check_true(samples)
            session.twin.fault(None)
            session.check_true(await session.read_until_good())

        self.play(scene)

    def test_garbage_gives_bad_samples_and_no_exception(self) -> None:
        async def scene(session: DeviceSession) -> None:
            await session.read_until_good()
            session.twin.fault(TwinFault(kind="garbage"))
            for _ in range(3):
                samples = await session.read()
                assert {one.quality for one in samples.values()} == {Quality.BAD}
            session.twin.fault(None)
            session.check_true(await session.read_until_good())

        self.play(scene, SHORT_S)

    def test_the_makers_word_for_no_value_is_no_number(self) -> None:
        async def scene(session: DeviceSession) -> None:
            assert self.sentinel_names
            session.twin.fault(TwinFault(kind="sentinel", names=self.sentinel_names))
            samples = await session.read()
            bad = {name for name, one in samples.items() if one.quality is Quality.BAD}
            assert bad == set(self.sentinel_names), samples
            session.check_true(samples)

        self.play(scene)

    def test_reordered_answers_are_put_right_or_marked(self) -> None:
        async def scene(session: DeviceSession) -> None:
            session.twin.fault(TwinFault(kind="reordered"))
            for _ in range(3):
                # An answer to a former request has the values of then.
                self._change(session, [spec.name for spec in session.specs if not spec.states])
                session.check_true(await session.read())
            session.twin.fault(None)
            session.check_true(await session.read_until_good())

        self.play(scene, SHORT_S)

    def test_values_that_stand_still_are_doubted_where_the_profile_says_when(self) -> None:
        async def scene(session: DeviceSession) -> None:
            moving = {spec.name: spec.still_s for spec in session.specs if spec.still_s > 0}
            assert moving, "the profile of this test doubts no point that stands still"
            await session.read()
            session.twin.fault(TwinFault(kind="stuck"))
            self._change(session, moving)
            for _ in range(2):
                samples = await session.read()
                assert {one.quality for one in samples.values()} == {Quality.GOOD}, samples
                session.clock.now_s += max(moving.values())
            samples = await session.read()
            doubted = {name for name, one in samples.items() if one.quality is Quality.UNCERTAIN}
            assert doubted == set(moving), samples
            session.twin.fault(None)
            samples = await session.read()
            assert {one.quality for one in samples.values()} == {Quality.GOOD}, samples

        self.play(scene)

    def test_a_cancelled_reading_leaves_a_driver_that_still_reads(self) -> None:
        async def scene(session: DeviceSession) -> None:
            await session.read()
            session.twin.fault(TwinFault(kind="silent"))
            reading = asyncio.create_task(session.driver.read())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading
            session.twin.fault(None)
            session.check_true(await session.read_until_good())

        self.play(scene)

    def test_closing_twice_or_before_a_reading_is_fine(self) -> None:
        async def scene(session: DeviceSession) -> None:
            await session.driver.close()
            await session.driver.close()

        self.play(scene)

    def test_no_secret_is_said(self) -> None:
        async def scene(session: DeviceSession) -> None:
            said = [repr(session.driver), repr(session.twin)]
            for kind in ("silent", "garbage", "half"):
                session.twin.fault(TwinFault(kind=kind))
                said += [one.reason for one in (await session.read()).values()]
            for word in self.secret.words.values():
                assert not any(word in text for text in said), said

        self.play(scene, SHORT_S)

    def test_readings_leave_nothing_in_memory(self) -> None:
        async def scene(session: DeviceSession) -> None:
            async def count_after_readings() -> int:
                for _ in range(_READINGS):
                    await session.read()
                gc.collect()
                return sys.getallocatedblocks()

            counts = [await count_after_readings() for _ in range(5)]
            # What is kept grows each time; the interpreter's own stores do at most times not.
            growths = [after - before for before, after in itertools.pairwise(counts)]
            assert min(growths) < _READINGS * BLOCKS_PER_READING_MAX, growths

        self.play(scene)


class FacilityWriteContract(FacilityContract):
    """Inherit, and give `device`, `values` and the command below."""

    command: tuple[str, float]
    """A point that can be commanded, by the profile's name, and another value than the plant holds."""
    read_only_name: str
    """A point that cannot."""

    def test_a_command_is_seen_by_a_reading(self) -> None:
        async def scene(session: DeviceSession) -> None:
            name, value = self.command
            await session.driver.write(session.point_id(name), value)
            assert session.plant.commands == [(name, value)]
            session.check_true(await session.read_until_good())

        self.play(scene)

    def test_a_value_outside_of_the_range_never_leaves(self) -> None:
        async def scene(session: DeviceSession) -> None:
            name, _ = self.command
            [spec] = [one for one in session.specs if one.name == name]
            assert spec.valid is not None, "what can be commanded has a range"
            for value in (spec.valid[0] - 1, spec.valid[1] + 1, float("nan"), float("inf")):
                await refused(session, Rejected, session.point_id(name), value)
            assert session.plant.commands == []

        self.play(scene)

    def test_what_cannot_be_commanded_is_rejected(self) -> None:
        async def scene(session: DeviceSession) -> None:
            held = self.values[self.read_only_name]
            await refused(session, Rejected, session.point_id(self.read_only_name), held)
            await refused(session, Rejected, f"{self.device.equipment}.no_such_point", 1.0)
            assert session.plant.commands == []

        self.play(scene)

    def test_a_device_that_refuses_is_said(self) -> None:
        async def scene(session: DeviceSession) -> None:
            name, value = self.command
            session.twin.fault(TwinFault(kind="refuses_writes"))
            await refused(session, Unavailable, session.point_id(name), value)
            assert session.plant.commands == []
            session.check_true(await session.read_until_good())

        self.play(scene)

    def test_a_device_that_takes_and_ignores_is_seen_by_the_reading(self) -> None:
        async def scene(session: DeviceSession) -> None:
            name, value = self.command
            session.twin.fault(TwinFault(kind="ignores_writes"))
            with contextlib.suppress(Unavailable):
                await session.driver.write(session.point_id(name), value)
            samples = await session.read_until_good()
            assert samples[name].value != value
            session.check_true(samples)

        self.play(scene)

    def test_a_device_that_does_not_answer_did_not_take_it(self) -> None:
        async def scene(session: DeviceSession) -> None:
            name, value = self.command
            for kind in ("silent", "garbage"):
                session.twin.fault(TwinFault(kind=kind))
                await refused(session, Unavailable, session.point_id(name), value)
            session.twin.fault(None)
            await session.read_until_good()

        self.play(scene, SHORT_S)


async def refused(session: DeviceSession, error: type[Exception], point_id: str, value: float) -> None:
    """Fail unless a command ends in this error."""
    async with asyncio.timeout(HANG_S):
        try:
            await session.driver.write(point_id, value)
        except error as refusal:
            for word in str(refusal), repr(refusal):
                assert "Secret(" not in word
            return
    raise AssertionError(f"{point_id} took {value}")


async def until(is_so: Callable[[], bool], complaint: str) -> None:
    """Wait until something is so; raises AssertionError after HANG_S."""
    try:
        async with asyncio.timeout(HANG_S):
            while not is_so():  # noqa: ASYNC110  the end of a socket has no event
                await asyncio.sleep(_TURN_S)
    except TimeoutError as error:
        raise AssertionError(complaint) from error


def count_sockets() -> int:
    """Return how many sockets this process holds."""
    count = 0
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            count += os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:")
    return count
