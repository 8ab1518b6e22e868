"""What words mean on which equipment: as profiles say them."""

import pytest

from madang.core import NodeId, SiteId
from madang.model import (
    Edge,
    EdgeKind,
    Equipment,
    EquipmentKind,
    Point,
    PointKind,
    Quality,
    Quantity,
    Ratings,
    Sample,
    SiteModel,
)
from madang.policy.facility.signs import Sign, can_show, list_readings, read_signs
from madang.policy.power.topology import index_site

K = EquipmentKind
CLEAR = ("clear", "active")
SOURCE = ("other", "none", "normal", "bypass", "battery", "booster", "reducer")
UNIT = ("off", "standby", "running", "economiser", "failed")


def read(kind, name, words, word, *, point_kind=PointKind.STATUS, quality=Quality.GOOD):
    point = Point(
        point_id=f"x.{name}", equipment_id="x", name=name, kind=point_kind, quantity=Quantity.STATE,
        states=dict(enumerate(words)),
    )  # fmt: skip
    value = None if quality is Quality.BAD else float(words.index(word))
    sample = Sample(point_id="x", value=value, text=word, quality=quality, observed_at_s=0.0)
    return read_signs(list_readings(point, kind), sample)


@pytest.mark.parametrize(
    ("kind", "name", "words", "word", "signs"),
    [
        (K.UPS, "state_source", SOURCE, "battery", {Sign.ON_BATTERY}),
        (K.UPS, "state_source", SOURCE, "none", {Sign.OUTPUT_LOST}),
        (K.UPS, "state_source", SOURCE, "normal", set()),
        (K.UPS, "state_on_battery", ("no", "yes"), "yes", {Sign.ON_BATTERY}),
        (K.UPS, "state_on_battery", ("no", "yes"), "no", set()),
        (K.UPS, "state_battery", ("unknown", "normal", "low", "depleted"), "low", {Sign.BATTERY_LOW}),
        (K.UPS, "alarm_battery_low", CLEAR, "active", {Sign.BATTERY_LOW}),
        (K.BATTERY, "state_charging", ("off", "discharging"), "discharging", set()),
        (K.TRANSFER_SWITCH, "state_source", ("off", "utility", "generator"), "off", {Sign.UTILITY_LOST}),
        (K.TRANSFER_SWITCH, "state_source", ("off", "utility", "generator"), "generator", set()),
        (K.TRANSFER_SWITCH, "state_mode", ("automatic", "manual", "locked_out"), "locked_out", set()),
        (K.COOLING_UNIT, "state_unit", UNIT, "off", {Sign.COOLING_LOST}),
        (K.COOLING_UNIT, "state_unit", UNIT, "standby", set()),
        (K.COOLING_UNIT, "state_compressor", UNIT, "off", set()),
        (K.COOLING_UNIT, "state_compressor", ("on", *UNIT), "on", set()),
        (K.COOLING_UNIT, "state_compressor", UNIT, "failed", {Sign.COOLING_LOST}),
        (K.CHILLER, "state_compressor[2]", ("running", "locked_out"), "locked_out", {Sign.COOLING_LOST}),
        (K.SERVER, "state_compressor", UNIT, "failed", set()),
        (K.COOLING_UNIT, "state_cooling", ("on", "off"), "off", set()),
        (K.COOLING_UNIT, "alarm_compressor", CLEAR, "active", {Sign.COOLING_LOST}),
        (K.COOLING_UNIT, "alarm_power_lost", CLEAR, "active", {Sign.COOLING_LOST}),
        (K.COOLING_UNIT, "alarm_filter", CLEAR, "active", set()),
        (K.COOLING_UNIT, "alarm_leak", CLEAR, "active", {Sign.LEAK}),
        (K.CDU, "alarm_pump_1", ("ok", "warning", "critical"), "critical", set()),
        (K.CDU, "alarm_leak", ("ok", "warning", "critical"), "warning", {Sign.LEAK}),
        (K.LEAK_DETECTOR, "alarm_leak", CLEAR, "active", {Sign.LEAK}),
        (K.LEAK_DETECTOR, "alarm_leak", CLEAR, "clear", set()),
        (K.LEAK_DETECTOR, "state_health", ("ok", "critical"), "critical", set()),
        (K.SMOKE_DETECTOR, "alarm_smoke", CLEAR, "active", {Sign.SMOKE}),
        (K.FIRE_SUPPRESSION, "alarm_fire", CLEAR, "active", {Sign.FIRE_RELEASED}),
        (K.DOOR, "state_open", ("closed", "open"), "open", {Sign.DOOR_OPEN}),
        (K.DOOR, "state_open", ("closed", "open"), "closed", set()),
        (K.DOOR, "state", ("closed", "open", "forced"), "forced", {Sign.DOOR_FORCED}),
        (K.SERVER, "alarm_intrusion", ("normal", "hardware_intrusion"), "hardware_intrusion", {Sign.DOOR_FORCED}),
        (K.INTERLOCK, "state_lockout", ("clear", "locked_out"), "locked_out", {Sign.OCCUPIED}),
        (K.RACK_PDU, "alarm_breaker", ("normal", "tripped", "off"), "tripped", {Sign.BREAKER_OPEN}),
        (K.RACK_PDU, "state_switch", ("off", "on"), "off", set()),
        (K.RACK_PDU, "state_load", ("low", "normal", "overload"), "low", set()),
        (K.SERVER, "state_power", ("off", "on"), "off", set()),
    ],
)
def test_what_profiles_say(kind, name, words, word, signs):
    assert read(kind, name, words, word) == signs


def test_bad_samples_and_commands_say_nothing():
    assert read(K.LEAK_DETECTOR, "alarm_leak", CLEAR, "active", quality=Quality.BAD) == set()
    assert read(K.LEAK_DETECTOR, "alarm_leak", CLEAR, "active", quality=Quality.STALE) == set()
    assert read(K.LEAK_DETECTOR, "alarm_leak", CLEAR, "active", point_kind=PointKind.COMMAND) == set()


def test_a_detector_that_gives_bare_numbers_is_understood():
    point = Point(point_id="d.state", equipment_id="d", name="state", kind=PointKind.STATUS, quantity=Quantity.STATE)
    assert can_show(point, K.LEAK_DETECTOR) == {Sign.LEAK}
    sample = Sample(point_id="d.state", value=1.0, quality=Quality.GOOD, observed_at_s=0.0)
    assert read_signs(list_readings(point, K.LEAK_DETECTOR), sample) == {Sign.LEAK}
    assert read_signs(list_readings(point, K.UPS), sample) == set()


def test_a_phase_is_a_limit_of_its_own():
    def server(node):
        return Equipment(equipment_id=node, kind=K.SERVER, node=NodeId(node), ratings=Ratings(power_w=2000.0))

    def feed(source, target, phase=""):
        return Edge(kind=EdgeKind.FEEDS, source=source, target=target, phase=phase)

    panel = Equipment(
        equipment_id="panel", kind=K.PANEL, ratings=Ratings(current_a=32.0, voltage_v=220.0, phases=3)
    )  # fmt: skip
    cooler = Equipment(equipment_id="cooler", kind=K.COOLING_UNIT, ratings=Ratings(power_w=3000.0, phases=3))
    pdu = Equipment(equipment_id="pdu", kind=K.RACK_PDU, ratings=Ratings(current_a=32.0, voltage_v=220.0))
    edges = (
        feed("panel", "pdu", "L1"), feed("pdu", "a"), feed("pdu", "b"), feed("panel", "c", "L2"), feed("panel", "d"),
        feed("panel", "cooler"),
    )  # fmt: skip
    model = SiteModel(
        site=SiteId("daegu"), equipment=(panel, cooler, pdu, *map(server, "abcd")), edges=edges, points=()
    )
    limits = {limit.equipment_id: limit for limit in index_site(model).limits}
    assert set(limits) == {"panel", "panel/L1", "panel/L2", "panel/L3", "pdu"}
    assert set(limits["panel/L1"].nodes) == {"a", "b", "d"}
    assert set(limits["panel/L2"].nodes) == {"c", "d"}
    assert limits["panel/L3"].nodes == ("d",)
    assert limits["panel/L1"].rating_w == pytest.approx(32.0 * 220.0 * 0.95), "amperes at the power factor assumed"
    assert limits["panel/L1"].fixed_w == 1000.0
    assert limits["panel"].fixed_w == 3000.0
