"""The poller over drivers that are fakes: a device that hangs holds up nobody, and what it gives is no number."""

import asyncio
import io
import json
import selectors

import msgspec
import pytest

from madang.core import Rejected, Unavailable
from madang.facility.contract import Device, Hint, Secret
from madang.facility.profile import PointSpec, Profile
from madang.model import Quality, Quantity, Sample
from madang.runtime.clock import SystemClock
from madang.runtime.telemetry import EventLog
from madang.site.facility.poller import HINT_REST_S, SECOND_LOOK_S, Poller

HANG_S = 60.0
"""A hang detector, no goal."""
PROFILE = Profile(
    name="p", driver="modbus", title="p", points=(PointSpec(name="power", quantity=Quantity.POWER, ref="holding:0"),)
)


class FakeDriver:
    """Answers, hangs or is away, as it is told."""

    def __init__(self, name, took_s=0.0):
        self.name = name
        self.took_s = took_s
        self.begun_s = []
        self.is_hanging = self.is_away = self.is_closed = False
        self.reads = 0
        self.written = []
        self.cancelled = 0

    async def read(self):
        self.reads += 1
        self.begun_s.append(asyncio.get_running_loop().time())
        if self.took_s:
            await asyncio.sleep(self.took_s)
        if self.is_hanging:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        quality = Quality.BAD if self.is_away else Quality.GOOD
        value = None if self.is_away else 7.0
        reason = "no answer" if self.is_away else ""
        now_s = SystemClock().wall_s()
        return (
            Sample(point_id=f"{self.name}.power", value=value, quality=quality, observed_at_s=now_s, reason=reason),
        )

    async def write(self, point_id, value):
        if self.is_hanging:
            await asyncio.Event().wait()
        self.written.append((point_id, value))

    async def close(self):
        self.is_closed = True


class Bench:
    """A poller with fake drivers, all it handed on, and what it logged."""

    def __init__(self, *names, poll_s=0.01, timeout_s=0.01, took_s=0.0, clock=None):
        self.drivers = {name: FakeDriver(name, took_s) for name in names}
        self.samples = []
        self.news = asyncio.Event()
        self.text = io.StringIO()
        self.clock = clock or SystemClock()
        self.make_poller(poll_s=poll_s, timeout_s=timeout_s)

    def make_poller(self, poll_s, timeout_s=0.01):
        names = tuple(self.drivers)
        devices = tuple(
            Device(
                device_id=name, driver="modbus", address="127.0.0.1:1", profile="p", equipment=name, poll_s=poll_s,
                timeout_s=timeout_s,
            )
            for name in names
        )  # fmt: skip
        self.poller = Poller(
            devices=devices,
            profiles=dict.fromkeys(names, PROFILE),
            find_secret=lambda _: Secret(),
            take=self._take,
            clock=self.clock,
            log=EventLog(SystemClock(), self.text),
            make=lambda device, *_: self.drivers[device.device_id],
        )

    def _take(self, samples):
        self.samples.extend(samples)
        self.news.set()

    async def until(self, check):
        async with asyncio.timeout(HANG_S):
            while not check():
                self.news.clear()
                await self.news.wait()

    def events(self):
        return [json.loads(line)["event"] for line in self.text.getvalue().splitlines()]


def run(scene, bench_of):
    async def play():
        bench = bench_of()
        tasks = [asyncio.create_task(loop) for loop in bench.poller.loops().values()]
        try:
            await scene(bench)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert all(driver.is_closed for driver in bench.drivers.values())

    asyncio.run(play())


def test_a_device_that_hangs_is_cut_off_gives_no_number_and_holds_up_nobody():
    async def scene(bench):
        bench.drivers["bad"].is_hanging = True
        await bench.until(lambda: bench.poller.states["bad"].failures >= 1 and bench.drivers["good"].reads > 20)
        lost = [one for one in bench.samples if one.point_id == "bad.power"]
        assert all((one.value, one.quality, one.reason) == (None, Quality.BAD, "the device hangs") for one in lost)
        assert bench.drivers["bad"].cancelled == len(lost)
        assert bench.poller.states["bad"].trouble == "the device hangs"
        assert bench.poller.states["good"].is_answering
        bench.drivers["bad"].is_hanging = False
        await bench.until(lambda: bench.poller.states["bad"].is_answering)

    run(scene, lambda: Bench("bad", "good"))


def test_silence_and_recovery_are_said_once_each():
    async def scene(bench):
        await bench.until(lambda: len(bench.samples) >= 3)
        bench.drivers["d"].is_away = True
        await bench.until(lambda: bench.poller.states["d"].failures >= 5)
        assert not bench.poller.states["d"].is_answering
        assert bench.poller.states["d"].trouble == "no answer"
        bench.drivers["d"].is_away = False
        await bench.until(lambda: bench.poller.states["d"].is_answering)
        assert bench.events() == ["device_answers", "device_silent", "device_answers"]

    run(scene, lambda: Bench("d"))


def test_a_device_is_left_alone_between_its_polls_unless_there_is_a_hurry():
    async def scene(bench):
        await bench.until(lambda: bench.drivers["slow"].reads == 1 and bench.drivers["quick"].reads > 30)
        assert bench.drivers["slow"].reads == 1, "its period is an hour"
        await bench.poller.write("slow", "slow.power", 5.0)
        await bench.until(lambda: bench.drivers["slow"].reads == 2)
        assert bench.drivers["slow"].written == [("slow.power", 5.0)]
        bench.poller.hurry("nobody")

    def make():
        bench = Bench("slow", "quick")
        slow = bench.poller.states["slow"]
        slow.device = msgspec.structs.replace(slow.device, poll_s=3600.0)
        return bench

    run(scene, make)


def test_a_command_to_nobody_is_refused_and_one_to_a_device_that_hangs_is_not_taken_for_done():
    async def scene(bench):
        with pytest.raises(Rejected, match="no device"):
            await bench.poller.write("nobody", "x.power", 1.0)
        bench.drivers["d"].is_hanging = True
        with pytest.raises(Unavailable, match="did not answer the command"):
            await bench.poller.write("d", "d.power", 1.0)
        assert not bench.drivers["d"].written

    run(scene, lambda: Bench("d"))


def test_a_command_is_let_go_by_a_device_that_can_and_it_is_read_again():
    class Relinquisher(FakeDriver):
        async def relinquish(self, point_id):
            self.written.append((point_id, None))

    async def scene(bench):
        await bench.until(lambda: bench.drivers["d"].reads == bench.drivers["plain"].reads == 1)
        with pytest.raises(Rejected, match="plain cannot let go"):
            await bench.poller.relinquish("plain", "plain.power")
        with pytest.raises(Rejected, match="no device"):
            await bench.poller.relinquish("nobody", "x.power")
        await bench.poller.relinquish("d", "d.power")
        await bench.until(lambda: bench.drivers["d"].reads == 2)
        assert bench.drivers["d"].written == [("d.power", None)]

    def make():
        bench = Bench(poll_s=3600.0)
        bench.drivers |= {"d": Relinquisher("d"), "plain": FakeDriver("plain")}
        bench.make_poller(poll_s=3600.0)
        return bench

    run(scene, make)


def test_the_first_look_waits_for_every_device_also_for_those_that_do_not_answer():
    async def scene(bench):
        bench.drivers["bad"].is_hanging = True
        async with asyncio.timeout(HANG_S):
            await bench.poller.wait_first()
        assert {one.point_id for one in bench.samples} == {"bad.power", "good.power"}

    run(scene, lambda: Bench("bad", "good"))


def test_a_site_without_devices_waits_for_none():
    async def scene(bench):
        await bench.poller.wait_first()

    run(scene, Bench)


# Hints, in virtual time


class SkippingSelector(selectors.DefaultSelector):
    """Lets the time that a loop would wait for be over at once; there are no sockets here."""

    now_s = 1000.0

    def select(self, timeout=None):
        assert timeout is not None, "everybody waits for nothing"
        self.now_s += max(0.0, timeout)
        return super().select(0)


class LoopClock:
    """The time of the running loop."""

    def monotonic_ns(self):
        return round(asyncio.get_running_loop().time() * 1e9)

    def wall_s(self):
        return asyncio.get_running_loop().time()


def play(scene, **options):
    """Run a scene with one device `d`, in virtual time; returns what it returns."""

    async def whole():
        bench = Bench("d", timeout_s=100.0, clock=LoopClock(), **options)
        [loop] = bench.poller.loops().values()
        task = asyncio.create_task(loop)
        await bench.poller.wait_first()
        try:
            return await scene(bench, bench.drivers["d"])
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    selector = SkippingSelector()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now_s
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(whole())


def hint(word="on_battery"):
    return Hint(device_id="d", word=word, received_at_s=1.0)


def test_a_hint_is_followed_by_a_reading_at_once_and_by_a_second_look():
    async def scene(bench, driver):
        await asyncio.sleep(100.0)
        told_s = asyncio.get_running_loop().time()
        assert bench.poller.take_hint(hint())
        await asyncio.sleep(SECOND_LOOK_S + 20.0)
        return [round(at_s - told_s, 3) for at_s in driver.begun_s]

    assert play(scene, poll_s=3600.0) == [-100.0, 0.0, SECOND_LOOK_S]


def test_an_early_reading_does_not_put_off_the_usual_one():
    async def scene(bench, driver):
        began_s = driver.begun_s[0]
        await asyncio.sleep(50.0)
        bench.poller.hurry("d")
        await asyncio.sleep(75.0)
        return [round(at_s - began_s, 3) for at_s in driver.begun_s]

    assert play(scene, poll_s=60.0) == [0.0, 50.0, 60.0, 120.0]


@pytest.mark.parametrize("took_s", [0.0, 0.4, 3.0])
def test_a_storm_of_hints_wakes_one_reading_a_second_at_most_and_usual_ones_go_on(took_s):
    storm_s, poll_s = 60.0, 10.0

    async def scene(bench, driver):
        await asyncio.sleep(poll_s / 2)
        began_s, before = asyncio.get_running_loop().time(), driver.reads
        woke = 0
        for _ in range(int(storm_s / 0.01)):
            woke += bench.poller.take_hint(hint())
            await asyncio.sleep(0.01)
        last_s = asyncio.get_running_loop().time() - 0.01
        usual = int(storm_s / poll_s)
        during = driver.reads - before
        await asyncio.sleep(2 * (HINT_REST_S + took_s))
        return during, usual, woke, driver.begun_s[-1] - last_s, last_s - began_s

    during, usual, woke, after_s, lasted_s = play(scene, poll_s=poll_s, took_s=took_s)
    cycle_s = took_s + max(HINT_REST_S, took_s)
    assert lasted_s >= storm_s - 1.0
    assert storm_s / cycle_s - 2 - usual <= during <= storm_s / cycle_s + usual + 2
    assert woke <= during + 1
    assert 0.0 <= after_s <= HINT_REST_S + 2 * took_s, "the last hint is followed by a reading too"


def test_a_hint_that_comes_while_the_device_is_read_is_followed_by_another_reading():
    async def scene(bench, driver):
        await asyncio.sleep(10.0)
        assert bench.poller.take_hint(hint())
        await asyncio.sleep(1.0)
        assert bench.poller.take_hint(hint("alarm_added")), "the reading under way may have been too early"
        assert not bench.poller.take_hint(hint("alarm_added"))
        await asyncio.sleep(4.0 + HINT_REST_S)
        return driver.reads

    assert play(scene, poll_s=3600.0, took_s=2.0) == 3


def test_a_hint_about_nobody_wakes_nobody():
    async def scene(bench, driver):
        assert not bench.poller.take_hint(Hint(device_id="nobody", word="x", received_at_s=1.0))
        await asyncio.sleep(10.0)
        return driver.reads

    assert play(scene, poll_s=3600.0) == 1
