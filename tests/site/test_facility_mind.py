"""The mind of a site over the embedded cabinet, in virtual time: what follows from what, and what is on disk first."""

import asyncio

import msgspec
import pytest
from tests.site.facility_box import BATCH, NODE, Box, FakeClock

from madang.core import Rejected, Unavailable
from madang.model import ActionState, PriorityClass, Request, SafetyState, Verb
from madang.policy.power.state import Approve
from madang.site.audit import AUDIT_LOG
from madang.site.facility.allowed import EXPIRED, NOT_YET, Allowed

INTERACTIVE = PriorityClass.INTERACTIVE
LOST = {"cooling_1", "cooling_2"}


def play(tmp_path, scene, **options):
    """Run a scene over a cabinet that is calm."""

    async def run():
        box = Box(tmp_path, **options)
        await box.load()
        try:
            await box.tick(5)
            assert box.envelope.shed_from is None
            await scene(box)
        finally:
            await box.close()

    asyncio.run(run())


def lose_cooling(box, *, is_over=False):
    for unit in sorted(LOST):
        box.fault("cooling_lost", unit, is_over=is_over)


async def audit(box):
    return await box.store.read(lambda connection: AUDIT_LOG.read(connection))


@pytest.mark.deep
def test_lost_mains_shed_at_once_then_drain_then_stop_and_all_comes_back(tmp_path):
    async def scene(box):
        box.fault("battery_charge", "ups", 0.2)
        box.fault("utility_lost")
        assert await box.tick_until("batch is shed", lambda: box.envelope.shed_from is BATCH, 5) <= 2
        assert box.node_state() == "run", "there is time: nobody is drained yet"
        drained_s = await box.tick_until("drained", lambda: box.node_state() != "run", 900)
        assert drained_s > 30
        await box.tick_until("off", lambda: not box.server.is_on, 120)
        assert box.plant.upses["ups"].battery.charge > 0.05, "an orderly end, before the battery is empty"
        assert ("server.state_power", 0.0) in box.poller.written
        box.fault("utility_lost", is_over=True)
        await box.tick(90)
        assert not box.server.is_on, "a battery that is nearly empty starts nothing"
        box.fault("battery_charge", "ups", is_over=True)
        await box.tick_until("on", lambda: box.server.is_on, 120)
        await box.tick_until("batch is served", lambda: box.envelope.shed_from is None, 600)
        assert box.envelope.accepts_placements
        assert box.node_state() == "run"

    play(tmp_path, scene)


@pytest.mark.deep
def test_lost_cooling_caps_and_spills_by_its_cause_and_the_cap_is_taken_back(tmp_path):
    async def scene(box):
        lose_cooling(box)
        seconds = await box.tick_until("capped", lambda: box.server.cap_w is not None and box.server.cap_w < 1000, 5)
        assert seconds <= 5
        assert box.plant.inlet_c("cabinet") < 27.0, "the inlet says nothing yet"
        assert box.envelope.is_spilling
        assert box.envelope.shed_from is BATCH
        lose_cooling(box, is_over=True)
        await box.tick_until("batch is served", lambda: box.envelope.shed_from is None, 900)
        await box.tick_until("uncapped", lambda: box.server.cap_w == 1800.0, 60)

    play(tmp_path, scene, classes=(INTERACTIVE,))


def test_one_of_two_units_is_enough(tmp_path):
    async def scene(box):
        box.fault("cooling_lost", "cooling_1")
        await box.tick(20)
        assert box.envelope.shed_from is None
        assert not box.told(Verb.CAP, ActionState.SENT)
        assert any(name.startswith("cooling_1/") for name in box.alarms())

    play(tmp_path, scene, classes=(INTERACTIVE,))


def test_a_leak_asks_for_isolation_and_waits_for_a_second_person(tmp_path):
    async def scene(box):
        box.fault("leak", "leak")
        await box.tick(10)
        (asked,) = box.mind.list_awaiting()
        assert (asked.verb, asked.target) == (Verb.ISOLATE_LIQUID, "loop")
        assert box.plant.is_live("loop"), "not done alone"
        assert box.envelope.safety is SafetyState.EMERGENCY
        assert "leak/leak.alarm_leak/leak" in box.alarms()
        for who in ("safety", "thermal"):
            box.mind.approve(Approve(request_id=asked.request_id, who=who))
            await box.tick(2)
            assert box.plant.is_live("loop"), "a policy is no second person"
        box.mind.approve(Approve(request_id=asked.request_id, who="kim"))
        await box.tick(2)
        assert not box.plant.is_live("loop")
        assert box.envelope.safety is SafetyState.ISOLATED
        assert not box.mind.list_awaiting()
        back = Request(request_id="kim-1", requester="kim", verb=Verb.RESUME, target="loop", ttl_s=60.0, reason="dry")
        box.mind.ask(back)
        await box.tick(3)
        assert not box.plant.is_live("loop"), "while it leaks nobody brings it back"
        box.fault("leak", "leak", is_over=True)
        await box.tick(3)
        box.mind.ask(msgspec.structs.replace(back, request_id="kim-2"))
        await box.tick(3)
        assert box.plant.is_live("loop")
        assert box.envelope.safety is not SafetyState.ISOLATED

    play(tmp_path, scene)


@pytest.mark.parametrize(("kind", "target"), [("door_open", "door"), ("door_forced", "door"), ("inside", "lockout")])
def test_nothing_is_switched_while_somebody_may_be_inside(tmp_path, kind, target):
    async def scene(box):
        box.fault(kind, target)
        await box.tick(2)
        box.fault("leak", "leak")
        await box.tick(5)
        assert not box.mind.list_awaiting()
        (refused,) = box.told(Verb.ISOLATE_LIQUID)
        assert refused.state is ActionState.REFUSED
        assert "nothing is switched" in refused.reason
        assert box.plant.is_live("loop")
        box.fault(kind, target, is_over=True)
        await box.tick(3)
        assert [one.target for one in box.mind.list_awaiting()] == ["loop"]

    play(tmp_path, scene)


def test_a_person_who_opens_the_door_after_asking_stops_an_isolation_that_was_agreed_to(tmp_path):
    async def scene(box):
        box.fault("leak", "leak")
        await box.tick(3)
        (asked,) = box.mind.list_awaiting()
        box.fault("door_open", "door")
        await box.tick(2)
        box.mind.approve(Approve(request_id=asked.request_id, who="kim"))
        await box.tick(3)
        assert box.plant.is_live("loop")

    play(tmp_path, scene)


def test_a_restart_in_the_middle_of_an_outage_goes_on_and_stops_nobody_too_early(tmp_path):
    async def scene(box):
        box.fault("utility_lost")
        await box.tick(60)
        assert box.envelope.shed_from is BATCH
        generation, before = box.envelope.generation, await audit(box)
        await box.mind.stop()
        box.start()
        assert box.allowed.limits().reason == NOT_YET
        assert box.allowed.limits().shed_from is BATCH
        assert not box.allowed.accepts_placements()
        await box.load()
        await box.tick(20)
        assert box.envelope.generation > generation
        assert box.envelope.shed_from is BATCH
        assert box.node_state() == "run"
        after = await audit(box)
        assert after[: len(before)] == before

    play(tmp_path, scene)


def test_a_stopped_node_is_brought_back_by_a_later_life(tmp_path):
    async def scene(box):
        box.fault("battery_charge", "ups", 0.1)
        box.fault("utility_lost")
        await box.tick_until("off", lambda: not box.server.is_on, 300)
        await box.mind.stop()
        box.start()
        await box.load()
        box.fault("utility_lost", is_over=True)
        box.fault("battery_charge", "ups", is_over=True)
        await box.tick(10)
        assert not box.server.is_on, "the mains have to stay"
        await box.tick_until("on", lambda: box.server.is_on, 200)

    play(tmp_path, scene)


def test_what_cannot_be_stored_is_not_done(tmp_path):
    async def scene(box):
        written = list(box.poller.written)
        lose_cooling(box)
        box.clock.now_s += 1.0
        box.plant.step(1.0)
        box.book.take(box.read())
        store, box.mind._store = box.mind._store, FullDisk()
        generation = box.envelope.generation
        with pytest.raises(Unavailable):
            await box.mind.step()
        await asyncio.sleep(0)
        assert box.poller.written == written
        assert box.envelope.generation == generation, "and the envelope runs out"
        box.mind._store = store
        await box.mind.step()
        await asyncio.sleep(0)
        assert len(box.poller.written) > len(written)
        rows = await audit(box)
        assert any(row.action == "facility.cap" for row in rows)

    play(tmp_path, scene, classes=(INTERACTIVE,))


class FullDisk:
    """A store that takes nothing."""

    async def write(self, _):
        raise Unavailable("the disk is full")


def test_arming_wants_a_reason_is_in_the_audit_and_outlives_the_program(tmp_path):
    async def scene(box):
        with pytest.raises(Rejected, match="no actuator"):
            await box.mind.arm("nobody.cap", is_armed=True, who="kim", reason="trial")
        with pytest.raises(Rejected, match="reason"):
            await box.mind.arm("daegu.shed", is_armed=True, who="kim", reason="")
        with pytest.raises(Rejected, match="site's file"):
            await box.mind.arm("daegu-1.cap", is_armed=False, who="kim", reason="trial")
        await box.mind.arm("daegu.shed", is_armed=True, who="kim", reason="trial")
        last = (await audit(box))[-1]
        assert (last.actor, last.action, last.target) == ("kim", "facility.arm", "daegu.shed")
        await box.mind.stop()
        box.start()
        await box.load()
        assert "daegu.shed" in box.mind.armed
        rows = {row["actuator"]: row for row in box.mind.list_actuators()}
        assert (rows["daegu.shed"]["mode"], rows["daegu.shed"]["by"]) == ("armed", "hand")
        await box.mind.arm("daegu.shed", is_armed=False, who="kim", reason="over")
        assert "daegu.shed" not in box.mind.armed

    play(tmp_path, scene, armed=())


def test_what_is_not_armed_is_observed_only(tmp_path):
    async def scene(box):
        box.fault("utility_lost")
        await box.tick(5)
        assert box.envelope.shed_from is None
        assert box.told(Verb.SHED, ActionState.OBSERVED)

    play(tmp_path, scene, armed=())


SETPOINT = """
[actuator.setpoint]
kind = "setpoint"
mode = "armed"
point_id = "cooling_1.temperature_setpoint"
readback_id = "cooling_1.temperature_setpoint"
target = "cooling_1"
value_low = 18
value_high = 24
value_rest = 20
"""


def test_a_setpoint_of_the_site_file_is_written_within_its_bounds_and_falls_back(tmp_path):
    def person(value, ttl_s=30.0):
        return Request(
            request_id=f"kim-{value}", requester="kim", verb=Verb.SETPOINT, target="cooling_1.temperature_setpoint",
            value=value, ttl_s=ttl_s, reason="trial",
        )  # fmt: skip

    async def scene(box):
        assert "cooling_1.temperature_setpoint.setpoint" in box.mind.armed
        box.mind.ask(person(30.0))
        await box.tick()
        assert box.told(Verb.SETPOINT, ActionState.REFUSED)
        box.mind.ask(person(23.0))
        await box.tick(2)
        assert box.plant.room.units["cooling_1"].setpoint_c == 23.0
        await box.tick(40)
        assert box.plant.room.units["cooling_1"].setpoint_c == 20.0

    play(tmp_path, scene, edit=lambda text: text.replace("\n[[pue]]", SETPOINT + "\n[[pue]]"))


def test_a_setpoint_that_is_let_go_is_relinquished_when_nobody_asks_any_more(tmp_path):
    target = "cooling_1.temperature_setpoint"
    text = SETPOINT.replace("value_rest = 20", "is_relinquished = true")
    asked = Request(
        request_id="kim-1", requester="kim", verb=Verb.SETPOINT, target=target, value=23.0, ttl_s=30.0, reason="trial"
    )

    def edit(site):
        # The twin's protocol has no priorities; nothing of it is spoken here.
        begin, _, rest = site.replace("\n[[pue]]", text + "\n[[pue]]").partition("[device.cooling_1]")
        rest = rest.replace('driver = "modbus"', 'driver = "bacnet"', 1).replace('"cooling_unit"', '"chiller"', 1)
        return f"{begin}[device.cooling_1]{rest}"

    async def scene(box):
        box.mind.ask(asked)
        await box.tick(2)
        assert box.poller.written == [(target, 23.0)]
        await box.tick(20)
        assert box.poller.relinquished == []
        await box.tick(20)
        assert box.poller.relinquished == [("cooling_1", target)]
        assert box.poller.written == [(target, 23.0)], "nothing is written in its place"

    play(tmp_path, scene, edit=edit)


def test_too_many_requests_wait_for_nobody(tmp_path):
    async def scene(box):
        asked = Request(request_id="kim-1", requester="kim", verb=Verb.DRAIN, target=NODE, reason="trial")
        for _ in range(100):
            box.mind.ask(asked)
        with pytest.raises(Unavailable):
            box.mind.ask(asked)

    play(tmp_path, scene)


def test_a_person_drains_and_resumes_a_node(tmp_path):
    async def scene(box):
        ask = {"requester": "kim", "target": NODE, "reason": "a fan is changed"}
        box.mind.ask(Request(request_id="kim-1", verb=Verb.DRAIN, **ask))
        await box.tick()
        assert box.node_state() == "drain"
        assert box.allowed.nodes() == {NODE: box.envelope.nodes[0]}
        box.mind.ask(Request(request_id="kim-2", verb=Verb.RESUME, **ask))
        await box.tick(2)
        assert box.node_state() == "run"
        assert box.changes >= 2
        assert box.told(Verb.DRAIN)[0].request.requester == "kim"

    play(tmp_path, scene)


def test_an_envelope_runs_out_when_nobody_renews_it(tmp_path):
    async def scene(box):
        assert box.allowed.limits().shed_from is None
        assert not box.allowed.take(box.envelope), "the same generation again is no news"
        box.clock.now_s += 10.1
        limits = box.allowed.limits()
        assert (limits.shed_from, limits.is_spilling, limits.reason) == (BATCH, True, EXPIRED)
        assert limits.until_ns < box.clock.monotonic_ns()
        assert not box.allowed.accepts_placements()
        await box.tick()
        assert box.allowed.limits().shed_from is None

    play(tmp_path, scene)


def test_silent_devices_raise_comms_alarms_give_no_number_and_leave_the_envelope_valid(tmp_path):
    async def scene(box):
        box.silent = {"cooling_1", "contacts", "server"}
        await box.tick(60)
        assert box.envelope.issued_at_s == box.clock.now_s
        assert not box.envelope.accepts_placements
        samples = box.book.samples(box.clock.now_s)
        assert all(samples[f"{name}"].value is None for name in ("cooling_1.state_unit", "server.power"))
        assert {name.partition("/")[0] for name in box.alarms()} >= {"cooling_1", "server"}
        box.silent = set()
        await box.tick(30)
        assert box.envelope.accepts_placements

    play(tmp_path, scene)


def test_no_command_of_a_device_that_is_away_is_taken_for_done(tmp_path):
    async def scene(box):
        box.poller.is_away = True
        lose_cooling(box)
        await box.tick(20)
        assert box.server.cap_w is None
        assert "action_failed" in {one["event"] for one in box.events()}
        done = [one for one in box.told(Verb.CAP, ActionState.CONFIRMED) if one.request.requester == "authority"]
        assert {one.request.value for one in done} == {1800.0}, "only what was in force before"
        box.poller.is_away = False
        await box.tick_until("capped", lambda: box.server.cap_w is not None and box.server.cap_w < 1000, 60)

    play(tmp_path, scene, classes=(INTERACTIVE,))


def test_without_a_facility_nothing_is_limited():
    allowed = Allowed(FakeClock())
    assert allowed.limits().until_ns == 0
    assert allowed.limits().shed_from is None
    assert allowed.accepts_placements()
    assert allowed.nodes() == {}
