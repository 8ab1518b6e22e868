"""A box for tests of the plant: two feeds, two UPSs, four racks, two cooling units."""

from madang.core import SiteId
from madang.model import Edge, EdgeKind, Equipment, EquipmentKind, Ratings, SiteModel


def make_box(*, server_w=10_000.0, cooling_w=45_000.0, units=1, battery_wh=10_000.0):
    """Return the model of a 20 ft container: 4 racks of one lump each on A and B."""
    kind, rate = EquipmentKind, Ratings
    equipment = [
        Equipment(equipment_id="grid", kind=kind.UTILITY),
        Equipment(equipment_id="leak", kind=kind.LEAK_DETECTOR),
    ]
    equipment += [Equipment(equipment_id="door", kind=kind.DOOR)]
    edges = []
    for feed in "ab":
        ups = rate(power_w=60_000.0, energy_wh=battery_wh)
        equipment.append(Equipment(equipment_id=f"ups_{feed}", kind=kind.UPS, ratings=ups))
        edges.append(Edge(kind=EdgeKind.FEEDS, source="grid", target=f"ups_{feed}", feed=feed.upper()))
    for number in range(units):
        name = f"cooler{number}"
        equipment.append(Equipment(equipment_id=name, kind=kind.COOLING_UNIT, ratings=rate(cooling_w=cooling_w)))
        edges.append(Edge(kind=EdgeKind.FEEDS, source="grid", target=name))
    for number in range(4):
        rack, server = f"r{number}", f"server{number}"
        equipment.append(Equipment(equipment_id=server, kind=kind.SERVER, rack=rack, ratings=rate(power_w=server_w)))
        for feed in "ab":
            pdu = f"pdu{number}{feed}"
            limit = rate(current_a=63.0, voltage_v=220.0)
            equipment.append(Equipment(equipment_id=pdu, kind=kind.RACK_PDU, rack=rack, ratings=limit))
            edges.append(Edge(kind=EdgeKind.FEEDS, source=f"ups_{feed}", target=pdu, feed=feed.upper()))
            edges.append(Edge(kind=EdgeKind.FEEDS, source=pdu, target=server, feed=feed.upper()))
    return SiteModel(site=SiteId("daegu"), equipment=tuple(equipment), edges=tuple(edges), points=())
