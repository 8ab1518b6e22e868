"""A small site for tests of alarms, and a desk that feeds its book."""

from madang.core import SiteId
from madang.machine.alarm import step
from madang.machine.alarm_book import AlarmBook, show
from madang.machine.alarm_events import Sampled, Send, Tick, Write
from madang.machine.alarm_plan import AlarmSettings, plan_alarms
from madang.model import (
    AlarmKey,
    AlarmPriority,
    AlarmRole,
    AlarmRule,
    AlarmState,
    Condition,
    Edge,
    EdgeKind,
    Equipment,
    EquipmentKind,
    Point,
    PointKind,
    Quality,
    Quantity,
    Sample,
    SiteModel,
)

SITE = SiteId("daegu")
SERVERS = tuple(f"server{n}" for n in range(1, 5))


def equipment():
    yield Equipment(equipment_id="utility", kind=EquipmentKind.UTILITY)
    yield Equipment(equipment_id="ups", kind=EquipmentKind.UPS)
    yield Equipment(equipment_id="pdu", kind=EquipmentKind.RACK_PDU)
    yield Equipment(equipment_id="rack1", kind=EquipmentKind.RACK)
    yield Equipment(equipment_id="chiller", kind=EquipmentKind.CHILLER)
    yield Equipment(equipment_id="crac", kind=EquipmentKind.COOLING_UNIT)
    yield Equipment(equipment_id="leak1", kind=EquipmentKind.LEAK_DETECTOR)
    for name in SERVERS:
        yield Equipment(equipment_id=name, kind=EquipmentKind.SERVER, rack="rack1")


EDGES = (
    Edge(kind=EdgeKind.FEEDS, source="utility", target="ups"),
    Edge(kind=EdgeKind.FEEDS, source="ups", target="pdu"),
    Edge(kind=EdgeKind.FEEDS, source="utility", target="chiller"),
    *(Edge(kind=EdgeKind.FEEDS, source="pdu", target=name) for name in SERVERS),
    Edge(kind=EdgeKind.COOLS, source="chiller", target="crac"),
    Edge(kind=EdgeKind.COOLS, source="crac", target="rack1"),
)


def state(owner, words, name="state"):
    return Point(
        point_id=f"{owner}.{name}",
        equipment_id=owner,
        name=name,
        kind=PointKind.STATUS,
        quantity=Quantity.STATE,
        states=words,
        stale_s=10.0,
    )


def points():
    yield state("utility", {0: "normal", 1: "lost"})
    yield state("ups", {0: "normal", 1: "on_battery"})
    yield state("pdu", {0: "on", 1: "off"})
    yield state("chiller", {0: "running", 1: "failed"})
    yield state("crac", {0: "running", 1: "failed"})
    yield state("leak1", {0: "dry", 1: "leak"})
    for name in SERVERS:
        yield Point(
            point_id=f"{name}.temperature_inlet",
            equipment_id=name,
            name="temperature_inlet",
            kind=PointKind.SENSOR,
            quantity=Quantity.TEMPERATURE,
            context="inlet",
            stale_s=10.0,
        )


MODEL = SiteModel(site=SITE, equipment=tuple(equipment()), edges=EDGES, points=tuple(points()))


def key(owner, point, condition):
    return AlarmKey(SITE, owner, f"{owner}.{point}" if point else "", condition)


def rule(owner, point, condition, *, named="", priority=AlarmPriority.HIGH, **values):
    return AlarmRule(key=key(owner, point, named or condition.value), condition=condition, priority=priority, **values)


def hot(owner="server1", **values):
    return rule(owner, "temperature_inlet", Condition.HIGH_HIGH, limit=32.0, role=AlarmRole.TEMPERATURE, **values)


class Desk:
    """Feeds one book, second by second, and remembers what came out."""

    def __init__(self, *rules, settings=None, now_s=1000.0, model=MODEL):
        self.plan = plan_alarms(model, rules, settings or AlarmSettings(channels=(("webhook", AlarmPriority.LOW),)))
        self.book = AlarmBook()
        self.now_s = now_s
        self.journal = []
        self.sent = []
        self.out = []

    def feed(self, event, after_s=0.0):
        self.now_s += after_s
        self.book, effects = step(self.book, event, self.now_s, self.plan)
        self.out = list(effects)
        self.journal += [effect.entry for effect in effects if isinstance(effect, Write)]
        self.sent += [effect.notice for effect in effects if isinstance(effect, Send)]
        return self.out

    def read(self, point, value, text="", *, quality=Quality.GOOD, at_s=None, after_s=0.0):
        self.now_s += after_s
        sample = Sample(
            point_id=point,
            value=None if quality is Quality.BAD else float(value),
            text=text,
            quality=quality,
            observed_at_s=self.now_s if at_s is None else at_s,
        )
        return self.feed(Sampled((sample,)))

    def run(self, seconds, *reads):
        """Let seconds pass; each reads the same points anew."""
        for _ in range(seconds):
            self.now_s += 1.0
            for read in reads:
                self.read(*read)
            self.feed(Tick())

    def state(self, alarm):
        track = self.book.tracks.get(str(alarm))
        return track.state if track else AlarmState.NORMAL

    def shown(self):
        return show(self.book, self.plan, self.now_s)

    def whats(self, alarm=None):
        return [entry.what for entry in self.journal if alarm is None or entry.key == alarm]
