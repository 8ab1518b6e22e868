"""Hints end to end: a fault of the plant is told by the twin, wakes a reading, and is doubted until that has spoken."""

import asyncio
import contextlib
import io
import json
from types import SimpleNamespace

import msgspec
import pytest
from tests.facility.facility_parts import TwinRun, find_tool, make_device, run_tool
from tests.facility.test_snmp import COMMUNITY, UPS, USER
from tests.site.facility_box import LAYOUT
from tests.site.fresh_database import open_database

from madang.core import Rejected, Unavailable
from madang.facility.contract import Device, Hint
from madang.facility.roster import make_driver, make_listener
from madang.facility.site_file import load_site_file
from madang.facility.snmp.traps import REASONS
from madang.federation.layout import PLANT_PORTS
from madang.federation.plant import make_secrets, render_facility
from madang.model import Point, PointKind, Quality, Quantity
from madang.runtime.clock import SystemClock
from madang.runtime.telemetry import EventLog
from madang.sim.plant.faults import PlantFault, apply_fault
from madang.sim.plant.program import SimulatedSite
from madang.sim.plant.settings import PlantSite
from madang.site.facility.allowed import Allowed
from madang.site.facility.facility import make_facility, make_listeners
from madang.site.facility.gauges import collect_facility
from madang.site.facility.hints import WORDS_MAX, Hints, make_hints
from madang.site.facility.notifications import MERGED, WOKE, Notifications
from madang.site.facility.poller import Poller
from madang.site.facility.world import NodeUse
from madang.site.guard import GuardedStore
from madang.site.settings import SiteSettings
from madang.testing.facility_contract import HANG_S, until
from madang.testing.ports import free_port

POINT = "ups.alarm_notification"
HOUR_S = 3600.0
"""A poll period that no test lives to see: what is read a second time was read for a hint."""


def hint(device_id="ups", word="on_battery", at_s=5.0):
    return Hint(device_id=device_id, word=word, received_at_s=at_s)


class FakeListener:
    """Hears what a test says, once it may listen."""

    def __init__(self, refusals=0):
        self.refusals = refusals
        self.is_listening = False
        self.address = "127.0.0.1:1162"
        self.deaf_to = ()
        self.rejected = {"malformed": 0}
        self.merged = 0
        self.starts = 0
        self.hints = asyncio.Queue()

    async def start(self):
        self.starts += 1
        if self.starts <= self.refusals:
            raise Unavailable("the port is taken")
        self.is_listening = True

    async def next_hint(self):
        return await self.hints.get()

    async def stop(self):
        self.is_listening = False


# What is shown


def device_of(device_id, equipment, poll_s=2.0):
    return Device(
        device_id=device_id, driver="snmp", address="127.0.0.1:1", profile="p", equipment=equipment, poll_s=poll_s
    )


def test_a_hint_is_doubted_until_a_reading_that_began_after_it():
    hints = Hints((device_of("ups", "ups"),))
    [sample] = hints.note(hint())
    assert (sample.point_id, sample.value, sample.text) == (POINT, 1.0, "on_battery")
    assert (sample.quality, sample.observed_at_s) == (Quality.UNCERTAIN, 5.0)
    told = hints.told("ups")
    hints.note(hint(word="alarm_added", at_s=6.0))
    [still] = hints.settle("ups", told, 7.0)
    assert (still.value, still.text, still.quality) == (1.0, "on_battery, alarm_added", Quality.UNCERTAIN)
    [over] = hints.settle("ups", hints.told("ups"), 8.0)
    assert (over.value, over.text, over.quality, over.observed_at_s) == (0.0, "none", Quality.GOOD, 8.0)


def test_what_was_told_is_bounded_and_names_each_word_once():
    hints = Hints((device_of("ups", "ups"),))
    for number in range(WORDS_MAX + 3):
        hints.note(hint(word=f"word{number}"))
        [sample] = hints.note(hint(word="again"))
    words = sample.text.split(", ")
    assert len(words) == len(set(words)) == WORDS_MAX
    assert words[-1] == "again"


def test_a_device_says_nothing_about_what_another_one_of_the_same_equipment_told():
    hints = Hints((device_of("card", "ups"), device_of("sensor", "ups", poll_s=9.0)))
    assert [(one.point_id, one.stale_s) for one in hints.points] == [(POINT, 27.0)]
    hints.note(hint("card"))
    [sample] = hints.settle("sensor", hints.told("sensor"), 6.0)
    assert (sample.value, sample.text) == (1.0, "on_battery")
    assert hints.note(hint("stranger")) == ()
    assert hints.settle("stranger", None, 6.0) == ()


def test_while_the_port_cannot_be_had_silence_is_no_good_news():
    listener = FakeListener()
    hints = make_hints((device_of("ups", "ups"),), {"snmp": listener}, ())
    [deaf] = hints.settle("ups", None, 6.0)
    assert (deaf.value, deaf.quality) == (None, Quality.BAD)
    assert "not heard" in deaf.reason
    listener.is_listening = True
    assert hints.settle("ups", None, 7.0)[0].quality is Quality.GOOD


def test_devices_that_nobody_hears_have_no_such_point_and_a_profile_may_not_take_its_name():
    listener = FakeListener()
    listener.deaf_to = ("named",)
    devices = (
        device_of("named", "ups"),
        msgspec.structs.replace(device_of("meter", "meter"), driver="modbus"),
    )
    assert make_hints(devices, {"snmp": listener}, ()).points == ()
    own = Point(
        point_id=POINT, equipment_id="ups", name="alarm_notification", kind=PointKind.ALARM, quantity=Quantity.STATE
    )
    with pytest.raises(Rejected, match="a profile has a point of that name"):
        make_hints((device_of("ups", "ups"),), {"snmp": listener}, (own,))


# The listeners' life


def events(text):
    return [json.loads(line) for line in text.getvalue().splitlines()]


@contextlib.asynccontextmanager
async def running(loops):
    tasks = [asyncio.create_task(loop, name=name) for name, loop in loops.items()]
    try:
        async with asyncio.timeout(HANG_S):
            yield
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert not [one for one in results if not isinstance(one, asyncio.CancelledError)], results


def test_a_port_that_is_taken_is_tried_again_said_once_and_ends_nothing():
    async def scene():
        text, told = io.StringIO(), []
        listener = FakeListener(refusals=3)
        notifications = Notifications(
            {"snmp": listener},
            tell=lambda one: told.append(one) is None,
            log=EventLog(SystemClock(), text),
            retry_s=0.001,
        )
        assert notifications.list_drivers() == {"snmp": False}
        async with running(notifications.loops()):
            await until(lambda: listener.is_listening, "it does not listen")
            assert notifications.list_drivers() == {"snmp": True}
            listener.hints.put_nowait(hint())
            await until(lambda: told, "the hint was not handed on")
        return listener.starts, [one["event"] for one in events(text)], listener.is_listening

    starts, names, is_listening = asyncio.run(scene())
    assert starts == 4
    assert names == ["notifications_not_heard", "notifications_heard"]
    assert not is_listening


def test_what_became_of_notifications_is_counted_and_what_was_dropped_logged_once_a_period():
    async def scene():
        text, answers = io.StringIO(), iter((True, False, False))
        listener = FakeListener()
        listener.deaf_to = ("ups2",)
        notifications = Notifications(
            {"snmp": listener}, tell=lambda _: next(answers), log=EventLog(SystemClock(), text), report_s=0.05
        )
        async with running(notifications.loops()):
            for _ in range(3):
                listener.hints.put_nowait(hint())
            await until(lambda: notifications.count("snmp")[MERGED] == 2, "not counted")
            listener.rejected["malformed"] = 7
            listener.merged = 4
            await until(lambda: [one for one in events(text) if one.get("malformed")], "nothing is said")
            listener.rejected["malformed"] = 8
            await until(lambda: [one for one in events(text) if one.get("malformed") == 1], "nothing more is said")
        return notifications.count("snmp"), events(text)

    counts, log = asyncio.run(scene())
    assert counts == {WOKE: 1, MERGED: 6, "malformed": 8}
    rejected = [one["malformed"] for one in log if one["event"] == "notifications_rejected"]
    merged = [one["count"] for one in log if one["event"] == "notifications_merged"]
    assert (rejected, sum(merged)) == ([7, 1], 6)
    assert [one["devices"] for one in log if one["event"] == "devices_not_listened_to"] == [["ups2"]]


def test_nobody_is_listened_to_unless_a_port_is_configured(tmp_path):
    file, settings = embedded(tmp_path)
    assert make_listeners(file, msgspec.structs.replace(settings, facility_trap_port=0), SystemClock()) == {}
    assert Notifications({}, tell=lambda _: True, log=EventLog(SystemClock(), io.StringIO())).loops() == {}
    assert set(make_listeners(file, settings, SystemClock())) == {"snmp"}
    with pytest.raises(Rejected, match="70000 is no port"):
        make_listeners(file, msgspec.structs.replace(settings, facility_trap_port=70000), SystemClock())
    with pytest.raises(Rejected, match="nobody listens"):
        make_listener("modbus", "127.0.0.1", 0, file.devices, {}, SystemClock())


# End to end


def embedded(folder):
    """Return the site file of the embedded cabinet on free ports, its UPS read once an hour, and settings."""
    site = msgspec.structs.replace(LAYOUT, folder=folder)
    text = render_facility(site).replace("poll_s = 2\n", f"poll_s = {HOUR_S:g}\n", 1)
    traps = free_port()
    for port in (*range(site.plant_port, site.plant_port + PLANT_PORTS), site.trap_port):
        text = text.replace(f':{port}"', f':{traps if port == site.trap_port else free_port()}"')
    path = folder / "facility.toml"
    path.write_text(text, encoding="utf-8")
    (folder / "secrets").mkdir(exist_ok=True)
    for name, secret in make_secrets().items():
        (folder / "secrets" / name).write_text(secret)
        (folder / "secrets" / name).chmod(0o600)
    settings = SiteSettings(
        name="daegu",
        region="r",
        state_dir=folder,
        feed_dir=folder,
        usage_dir=folder,
        facility_file=path,
        facility_trap_port=traps,
    )
    return load_site_file(path), settings


def test_a_ups_of_the_embedded_cabinet_that_loses_its_mains_is_read_at_once_and_alarmed(tmp_path):
    """The whole facility of a site and the whole plant, over their protocols."""

    async def scene():
        file, settings = embedded(tmp_path)
        text, clock, seen = io.StringIO(), SystemClock(), []
        log = EventLog(clock, text)
        plant = PlantSite(name="daegu", site_file=settings.facility_file, secrets_dir=tmp_path / "secrets")
        simulated = SimulatedSite(plant, file, log)
        database = open_database(tmp_path / "site.db")
        facility = make_facility(
            settings,
            allowed=Allowed(clock, is_expected=True),
            find_use=lambda _: NodeUse(),
            list_peers=tuple,
            on_change=lambda: None,
            bus=SimpleNamespace(is_connected=False),
            store=GuardedStore(database, log),
            clock=clock,
            log=log,
        )
        take = facility.book.take
        facility.book.take = lambda samples: seen.extend(samples) or take(samples)

        def word(point_id):
            sample = facility.book.sample(point_id, clock.wall_s())
            return "" if sample is None else sample.text

        def alarms():
            return {str(one.key) for one in facility.alarms.list_alarms() if one.is_active}

        await facility.load()
        await simulated.start()
        try:
            async with running(facility.loops()):
                await until(lambda: word("ups.state_source") == "normal", "the UPS is not read")
                await until(lambda: facility.notifications.list_drivers() == {"snmp": True}, "nobody listens")
                apply_fault(simulated.plant, PlantFault(kind="utility_lost"))
                simulated.plant.step(0.25)
                await until(lambda: word("ups.state_source") == "battery", "the battery is not seen")
                await until(lambda: word(POINT) == "none", "the hint is never settled")
                await until(lambda: any("ups.state_source/on_battery" in one for one in alarms()), "there is no alarm")
                apply_fault(simulated.plant, PlantFault(kind="utility_lost", is_over=True))
                simulated.plant.step(0.25)
                await until(lambda: word("ups.state_source") == "normal", "the mains are not seen")
                metrics = {
                    (sample.name, *sample.labels.values()): sample.value
                    for family in collect_facility(facility)
                    for sample in family.samples
                }
                loud = {one for one in alarms() if "notification" in one}
        finally:
            await simulated.stop()
            await facility.close()
            database.close()
        return facility, seen, metrics, loud

    facility, seen, metrics, loud = asyncio.run(scene())
    told = [one for one in seen if one.point_id == POINT and one.quality is Quality.UNCERTAIN]
    assert "on_battery" in told[0].text
    assert all(one.value == 1.0 and "confirms" in one.reason for one in told)
    battery = next(one for one in seen if one.point_id == "ups.state_source" and one.text == "battery")
    assert seen.index(told[0]) < seen.index(battery)
    assert facility.book.points[POINT].is_simulated
    assert POINT not in {point.point_id for point in facility.file.model.points}
    assert loud == set(), "no alarm rests on a notification"
    assert metrics["madang_facility_notifications_heard", "snmp"] == 1.0
    outcomes = {name[2]: value for name, value in metrics.items() if name[0] == "madang_facility_notifications_total"}
    assert outcomes.pop(WOKE) >= 2.0
    outcomes.pop(MERGED)
    assert set(outcomes) == set(REASONS)
    assert not any(outcomes.values())


@pytest.mark.peer
@pytest.mark.parametrize("version", ["2c", "3"])
def test_a_trap_of_net_snmp_wakes_a_reading(version):
    snmptrap = find_tool("snmptrap")
    options, secret = ({}, COMMUNITY) if version == "2c" else ({"version": "3"}, USER)
    security = ["-v2c", "-c", COMMUNITY.words["community"]]
    if version == "3":
        security = ["-v3", "-e", "0x8000000004757073", "-l", "authPriv", "-u", USER.user, "-a", "SHA-256"]
        security += ["-A", USER.words["auth_key"], "-x", "AES", "-X", USER.words["priv_key"]]

    async def scene():
        ups = make_device("snmp", "ups_rfc1628", options=options, device_id="ups", equipment="ups", poll_s=HOUR_S)
        async with TwinRun(ups, UPS | {"state_source": 3.0}, secret) as run:
            device = msgspec.structs.replace(ups, address=run.twin.address)
            seen = {}
            listener = make_listener("snmp", "127.0.0.1", 0, (device,), {"ups": secret}, SystemClock())
            log = EventLog(SystemClock(), io.StringIO())
            poller = Poller(
                devices=(device,),
                profiles={"ups": run.profile},
                find_secret=lambda _: secret,
                take=lambda samples: seen.update({one.point_id: one.text for one in samples}),
                clock=SystemClock(),
                log=log,
                hints=make_hints((device,), {"snmp": listener}, ()),
                make=lambda device, profile, _, clock: make_driver(device, profile, secret, clock),
            )
            notifications = Notifications({"snmp": listener}, tell=poller.take_hint, log=log)
            async with running({**poller.loops(), **notifications.loops()}):
                await poller.wait_first()
                await until(lambda: listener.is_listening, "nobody listens")
                before = seen["ups.state_source"]
                run.plant.values["state_source"] = 5.0
                await run_tool(snmptrap, "-m", "", *security, listener.address, "", ".1.3.6.1.2.1.33.2.1")
                await until(lambda: seen["ups.state_source"] == "battery", "the battery is not seen")
                return before, notifications.count("snmp")[WOKE]

    before, woke = asyncio.run(scene())
    assert (before, woke) == ("normal", 1)
