"""A small site for tests: one supply, UPS A and B, one rack with two PDUs and servers on both, two cooling units."""

import msgspec

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
from madang.model import EquipmentKind as Kind
from madang.policy.facility.graph import SiteGraph
from madang.policy.facility.readings import Readings

NOW_S = 1_000_000.0
SERVERS = ("s1", "s2", "s3")


def equipment(name: str, kind: EquipmentKind, **values) -> Equipment:
    rated = {key: values.pop(key) for key in tuple(values) if key in Ratings.__struct_fields__}
    return Equipment(equipment_id=name, kind=kind, ratings=Ratings(**rated), **values)


def feeds(source: str, target: str, feed: str = "", phase: str = "", share: float | None = None) -> Edge:
    return Edge(kind=EdgeKind.FEEDS, source=source, target=target, feed=feed, phase=phase, share=share)


def edge(kind: EdgeKind, source: str, target: str) -> Edge:
    return Edge(kind=kind, source=source, target=target)


def point(name: str, quantity: Quantity, kind: PointKind = PointKind.SENSOR, context: str = "") -> Point:
    owner, _, base = name.partition(".")
    return Point(
        point_id=name, equipment_id=owner, name=base, kind=kind, quantity=quantity, context=context, stale_s=30
    )


def small_site(*, server_w: float = 1000.0, ups_w: float = 4000.0, cooling_w: float = 4000.0) -> SiteModel:
    """Return the site; every finding that the check makes of it is one that a test put there."""
    pieces = [
        equipment("utility", Kind.UTILITY, power_w=20_000, phases=3, voltage_v=220),
        equipment("panel", Kind.PANEL, phases=3, voltage_v=220, current_a=50),
        equipment("meter", Kind.METER, phases=3),
        equipment("room", Kind.ROOM),
        equipment("rack", Kind.RACK),
        equipment("smoke", Kind.SMOKE_DETECTOR),
        equipment("leak", Kind.LEAK_DETECTOR),
    ]
    edges = [
        feeds("utility", "panel"),
        edge(EdgeKind.MEASURES, "meter", "utility"),
        edge(EdgeKind.CONTAINS, "room", "rack"),
    ]
    points = [
        point("meter.power", Quantity.POWER, PointKind.METER),
        point("meter.energy", Quantity.ENERGY, PointKind.METER),
    ]
    for feed in "ab":
        pieces += [
            equipment(f"ups_{feed}", Kind.UPS, power_w=ups_w, apparent_va=ups_w / 0.9, redundancy_group="ups"),
            equipment(f"pdu_{feed}", Kind.RACK_PDU, rack="rack", voltage_v=220, current_a=32),
        ]
        edges += [
            feeds("panel", f"ups_{feed}", phase="L1" if feed == "a" else "L2"),
            feeds(f"ups_{feed}", f"pdu_{feed}", feed.upper()),
            edge(EdgeKind.CONTAINS, "room", f"ups_{feed}"),
            edge(EdgeKind.CONTAINS, "rack", f"pdu_{feed}"),
        ]
        points += [
            point(f"ups_{feed}.power_output", Quantity.POWER, PointKind.METER, "output"),
            point(f"pdu_{feed}.power", Quantity.POWER, PointKind.METER),
            point(f"pdu_{feed}.energy", Quantity.ENERGY, PointKind.METER),
        ]
    for number in (1, 2):
        name = f"cooling_{number}"
        pieces.append(
            equipment(
                name, Kind.COOLING_UNIT, power_w=1500, cooling_w=cooling_w, phases=3, voltage_v=220,
                redundancy_group="cooling",
            )
        )  # fmt: skip
        edges += [feeds("panel", name), edge(EdgeKind.COOLS, name, "room")]
        points += [
            point(f"{name}.state_unit", Quantity.STATE, PointKind.STATUS),
            point(f"{name}.setpoint", Quantity.TEMPERATURE, PointKind.SETPOINT, "supply"),
            point(f"{name}.temperature_supply", Quantity.TEMPERATURE, context="supply"),
        ]
    for name in SERVERS:
        pieces.append(equipment(name, Kind.SERVER, rack="rack", power_w=server_w, node=NodeId(f"node-{name}")))
        edges += [
            feeds("pdu_a", name, "A"),
            feeds("pdu_b", name, "B"),
            edge(EdgeKind.CONTAINS, "rack", name),
        ]
        points += [
            point(f"{name}.power", Quantity.POWER, PointKind.METER, "input"),
            point(f"{name}.temperature_inlet", Quantity.TEMPERATURE, context="inlet"),
            point(f"{name}.power_limit", Quantity.POWER_LIMIT, PointKind.SETPOINT),
        ]
    return SiteModel(site=SiteId("here"), equipment=tuple(pieces), edges=tuple(edges), points=tuple(points))


def change(model: SiteModel, name: str, **values) -> SiteModel:
    """Return the site with one piece of equipment changed; ratings by their own names."""
    rated = {key: values.pop(key) for key in tuple(values) if key in Ratings.__struct_fields__}
    changed = [
        msgspec.structs.replace(one, ratings=msgspec.structs.replace(one.ratings, **rated), **values)
        if one.equipment_id == name
        else one
        for one in model.equipment
    ]
    return msgspec.structs.replace(model, equipment=tuple(changed))


def add(model: SiteModel, *, pieces=(), edges=(), points=()) -> SiteModel:
    return msgspec.structs.replace(
        model,
        equipment=(*model.equipment, *pieces),
        edges=(*model.edges, *edges),
        points=(*model.points, *points),
    )


def without(model: SiteModel, *, edges=lambda one: False, equipment=lambda one: False, points=lambda one: False):
    return msgspec.structs.replace(
        model,
        equipment=tuple(one for one in model.equipment if not equipment(one)),
        edges=tuple(one for one in model.edges if not edges(one)),
        points=tuple(one for one in model.points if not points(one)),
    )


def sample(name: str, value: float | None, *, age_s: float = 1.0, quality=None, text: str = "") -> Sample:
    quality = quality or (Quality.BAD if value is None else Quality.GOOD)
    return Sample(
        point_id=name,
        value=value,
        quality=quality,
        observed_at_s=NOW_S - age_s,
        text=text,
        reason="" if quality is Quality.GOOD else "said by the test",
    )


def read(model: SiteModel, values: dict[str, float | Sample | None]) -> Readings:
    """Return the readings of a site, by point; a sample is taken as it is."""
    samples = {name: value if isinstance(value, Sample) else sample(name, value) for name, value in values.items()}
    return Readings(SiteGraph(model), samples, NOW_S)
