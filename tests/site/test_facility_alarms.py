"""The alarm desk: on disk before a notice leaves, a person's word refused or written down, and a life after a life."""

import asyncio
import io

import pytest
from tests.machine.alarm_world import MODEL, key, rule
from tests.site.facility_box import FakeClock
from tests.site.fresh_database import open_database

from madang.core import Rejected, Unavailable
from madang.machine.alarm_events import Acknowledge, Reset, Shelve
from madang.machine.alarm_plan import AlarmSettings, plan_alarms
from madang.model import AlarmPriority, AlarmState, Condition, Quality, Sample
from madang.runtime.telemetry import EventLog
from madang.site.audit import AUDIT_LOG
from madang.site.facility.alarm_desk import SAMPLES_WAITING_MAX, AlarmDesk
from madang.site.guard import GuardedStore

LEAK = key("leak1", "state", "state")
PLAN = plan_alarms(
    MODEL,
    (rule("leak1", "state", Condition.STATE, words=("leak",), is_latching=True, priority=AlarmPriority.CRITICAL),),
    AlarmSettings(channels=(("webhook", AlarmPriority.LOW),)),
)


class FakeStore:
    """A real store that can be made to refuse writes."""

    def __init__(self, database):
        self.guarded = GuardedStore(database, EventLog(FakeClock(), io.StringIO()))
        self.is_full = False
        self.writes = 0

    async def write(self, action):
        if self.is_full:
            raise Unavailable("the disk is full")
        self.writes += 1
        return await self.guarded.write(action)

    async def read(self, action):
        return await self.guarded.read(action)


class Bench:
    """A desk with one detector."""

    def __init__(self, folder):
        self.folder = folder
        self.clock = FakeClock()
        self.sent = []
        self.journal_at_send = []
        self.is_deaf = False
        self.start()

    def start(self):
        self.database = open_database(self.folder / "site.db")
        self.store = FakeStore(self.database)
        self.desk = AlarmDesk(
            plan=PLAN,
            store=self.store,
            send=self._send,
            clock=self.clock,
            log=EventLog(self.clock, io.StringIO()),
        )

    async def _send(self, notice):
        self.journal_at_send.append(len(await self.desk.read_journal(before=0, limit=10)))
        if self.is_deaf:
            raise Unavailable("nobody there")
        self.sent.append(notice)

    async def read(self, word, *, seconds=1):
        for _ in range(seconds):
            self.clock.now_s += 1.0
            sample = Sample(
                point_id="leak1.state", value=float(word == "leak"), text=word, quality=Quality.GOOD,
                observed_at_s=self.clock.now_s,
            )  # fmt: skip
            self.desk.feed((sample,))
            await self.desk.judge()

    async def settle(self):
        await asyncio.gather(*self.desk._sending)

    def states(self):
        return {str(one.key): one.state for one in self.desk.list_alarms()}

    async def close(self):
        await self.desk.stop()
        self.database.close()


def play(tmp_path, scene):
    async def run():
        bench = Bench(tmp_path)
        await bench.desk.load()
        try:
            await scene(bench)
        finally:
            await bench.close()

    asyncio.run(run())


def test_the_journal_is_written_before_the_notice_leaves(tmp_path):
    async def scene(bench):
        await bench.read("dry")
        await bench.read("leak", seconds=3)
        await bench.settle()
        assert [one.what for one in bench.sent] == ["raised"]
        assert bench.journal_at_send[0] >= 1

    play(tmp_path, scene)


def test_with_a_full_disk_nothing_changes_and_nobody_is_told_until_it_is_written(tmp_path):
    async def scene(bench):
        await bench.read("dry")
        bench.store.is_full = True
        with pytest.raises(Unavailable):
            await bench.read("leak", seconds=3)
        assert bench.states() == {}
        assert bench.sent == []
        bench.store.is_full = False
        await bench.desk.judge()
        await bench.settle()
        assert bench.states() == {str(LEAK): AlarmState.UNACKNOWLEDGED}, "the same readings are judged again"
        assert len(bench.sent) == 1

    play(tmp_path, scene)


def test_words_are_in_the_audit_and_what_is_refused_is_not(tmp_path):
    async def scene(bench):
        await bench.read("dry")
        await bench.read("leak", seconds=3)
        with pytest.raises(Rejected, match="no alarm"):
            await bench.desk.say(
                Acknowledge(key("ups", "state", "state"), "kim"), key("ups", "state", "state"), "kim", "x"
            )
        with pytest.raises(Rejected):
            await bench.desk.say(Reset(LEAK, "kim"), LEAK, "kim", "reset")
        with pytest.raises(Rejected, match="not shelved"):
            await bench.desk.say(Shelve(LEAK, "kim", bench.clock.now_s + 60.0, "noise"), LEAK, "kim", "shelve")
        await bench.desk.say(Acknowledge(LEAK, "kim"), LEAK, "kim", "acknowledge")
        assert bench.states() == {str(LEAK): AlarmState.ACKNOWLEDGED}
        await bench.read("dry", seconds=3)
        assert bench.states() == {str(LEAK): AlarmState.ACKNOWLEDGED}, "it latches"
        await bench.desk.say(Reset(LEAK, "kim"), LEAK, "kim", "reset")
        assert bench.states() == {}
        rows = await bench.store.read(lambda connection: AUDIT_LOG.read(connection, limit=10))
        assert [row.action for row in rows] == ["alarm.acknowledge", "alarm.reset"]
        assert (await bench.store.read(AUDIT_LOG.verify)).is_intact

    play(tmp_path, scene)


def test_a_later_life_goes_on_with_the_same_alarms_and_a_journal_without_holes(tmp_path):
    async def scene(bench):
        await bench.read("dry")
        await bench.read("leak", seconds=3)
        await bench.desk.say(Acknowledge(LEAK, "kim"), LEAK, "kim", "acknowledge")
        await bench.desk.stop()
        bench.database.close()
        bench.start()
        await bench.desk.load()
        assert bench.states() == {str(LEAK): AlarmState.ACKNOWLEDGED}
        await bench.read("dry", seconds=3)
        await bench.desk.say(Reset(LEAK, "lee"), LEAK, "lee", "reset")
        numbers = [row["sequence"] for row in await bench.desk.read_journal(before=0, limit=100)]
        assert numbers == sorted(set(numbers), reverse=True)
        assert len(numbers) == numbers[0] - numbers[-1] + 1
        page = await bench.desk.read_journal(before=numbers[0], limit=1)
        assert [row["sequence"] for row in page] == [numbers[1]]

    play(tmp_path, scene)


def test_a_notice_that_does_not_arrive_is_sent_again(tmp_path):
    async def scene(bench):
        bench.is_deaf = True
        await bench.read("dry")
        await bench.read("leak", seconds=3)
        await bench.settle()
        assert bench.sent == []
        bench.is_deaf = False
        for _ in range(300):
            await bench.read("leak")
            await bench.settle()
            if bench.sent:
                break
        assert [one.what for one in bench.sent] == ["raised"]

    play(tmp_path, scene)


def test_waiting_readings_are_bounded(tmp_path):
    async def scene(bench):
        for number in range(SAMPLES_WAITING_MAX + 10):
            sample = Sample(point_id=f"x{number}.power", value=1.0, quality=Quality.GOOD, observed_at_s=1.0)
            bench.desk.feed((sample,))
        assert len(bench.desk._samples) == SAMPLES_WAITING_MAX
        bench.desk.feed((Sample(point_id="x0.power", value=2.0, quality=Quality.GOOD, observed_at_s=2.0),))
        assert bench.desk._samples["x0.power"].value == 2.0, "the newest of a point counts"

    play(tmp_path, scene)
