"""What a decision about power rests on: readings, derived facts and nodes, as they are known at one instant.

Owns the frozen view and how far each part of it may be believed. Refuses to know where it comes from. Made by the
site's facility shell at each tick; read by the proposers and the authority.
"""

from collections.abc import Iterable

import msgspec

from madang.core import NodeId, SiteId
from madang.model import Alarm, Fact, NodeState, PriorityClass, Quality, Sample
from madang.policy.facility.signs import Sign, read_signs
from madang.policy.power.topology import Topology

UNKNOWN = Fact(value=None, quality=Quality.BAD, reason="nobody has said")

FACT_S_MAX = 15.0
"""How old what a fact rests on may be for a decision (three polls of five seconds)."""


class NodeLoad(msgspec.Struct, frozen=True, kw_only=True):
    """One server as it is.

    Attributes:
        power_w: what its own meter reads.
        cap_w: the cap that its BMC holds active, read back; a good fact without a value: none is active.
        cap_w_min, cap_w_max: what the BMC takes; a maximum of 0: the name plate.
        can_cap: it takes caps at all.
        is_on: as read back; None: not known now.
        state: what the authority last let it do.
        is_drained: nothing is served on it and nothing is on its way.
        classes: of the requests that it serves or is there for.
        drain_s, stop_s: how long these take at most.
    """

    node: NodeId
    power_w: Fact = UNKNOWN
    cap_w: Fact = UNKNOWN
    cap_w_min: float = 0.0
    cap_w_max: float = 0.0
    can_cap: bool = True
    is_on: bool | None = None
    state: NodeState = NodeState.RUN
    is_drained: bool = False
    classes: tuple[PriorityClass, ...] = ()
    drain_s: float = 60.0
    stop_s: float = 60.0

    @property
    def urgency(self) -> int:
        """0 for what serves the clinical class; higher goes first when something has to go."""
        return min((one.rank for one in self.classes), default=len(PriorityClass))


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """The metering interval that runs now: its length, how much of it is gone, and the energy so far."""

    interval_s: float = 900.0
    elapsed_s: float = 0.0
    energy_wh: Fact = UNKNOWN
    power_w: Fact = UNKNOWN


class View(msgspec.Struct, frozen=True, kw_only=True):
    """Everything at one instant.

    Attributes:
        samples: newest of each point.
        runtime_s: of the UPS, p10.
        charge_percent: of its battery, the worst of several.
        alarms: as `machine.alarm_book.show` gives them.
        peers: sites that could take requests now.
        held: what is granted and not taken back: the keys of the authority's holds.
    """

    now_s: float
    samples: dict[str, Sample] = {}
    nodes: dict[NodeId, NodeLoad] = {}
    headroom_w: Fact = UNKNOWN
    runtime_s: Fact = UNKNOWN
    charge_percent: Fact = UNKNOWN
    thermal_margin_k: Fact = UNKNOWN
    time_to_limit_s: Fact = UNKNOWN
    demand: Demand = Demand()
    alarms: tuple[Alarm, ...] = ()
    peers: tuple[SiteId, ...] = ()
    held: tuple[str, ...] = ()
    is_simulated: bool = False


class Signs(msgspec.Struct, frozen=True, kw_only=True):
    """What the state points say: by sign the equipment that says so, and the equipment that could but is not heard."""

    said: dict[Sign, tuple[str, ...]]
    silent: dict[Sign, tuple[str, ...]]

    def says(self, *signs: Sign) -> bool:
        """True where any equipment says any of these now."""
        return any(self.said.get(sign) for sign in signs)

    def is_silent(self, sign: Sign) -> bool:
        """True where some equipment that could say it is not heard."""
        return bool(self.silent.get(sign))


def value_of(fact: Fact) -> float | None:
    """Return the value of a fact that a decision may rest on; None otherwise."""
    is_good = fact.quality in (Quality.GOOD, Quality.UNCERTAIN, Quality.SUBSTITUTED)
    return fact.value if is_good and fact.age_s <= FACT_S_MAX else None


def is_read(fact: Fact) -> bool:
    """Return whether the device answered, be it that it has no value."""
    return fact.quality in (Quality.GOOD, Quality.UNCERTAIN, Quality.SUBSTITUTED) and fact.age_s <= FACT_S_MAX


def sample_of(view: View, topology: Topology, point_id: str) -> Sample | None:
    """Return the newest sample of a point when it is usable and not stale."""
    sample = view.samples.get(point_id)
    point = topology.points.get(point_id)
    if sample is None or point is None or not sample.is_usable:
        return None
    return sample if view.now_s - sample.observed_at_s <= point.stale_s else None


def read_all_signs(view: View, topology: Topology) -> Signs:
    """Return what all state points of a site say. Cost: the points."""
    said: dict[Sign, list[str]] = {}
    silent: dict[Sign, list[str]] = {}
    for point, readings in topology.sign_points:
        sample = sample_of(view, topology, point.point_id)
        if sample is None:
            _add(silent, (one.sign for one in readings), point.equipment_id)
        else:
            _add(said, read_signs(readings, sample), point.equipment_id)
    return Signs(
        said={sign: tuple(found) for sign, found in said.items()},
        silent={sign: tuple(found) for sign, found in silent.items()},
    )


def _add(by_sign: dict[Sign, list[str]], signs: Iterable[Sign], equipment_id: str) -> None:
    for sign in signs:
        by_sign.setdefault(sign, []).append(equipment_id)


def least_urgent_first(view: View, topology: Topology, nodes: Iterable[NodeId]) -> list[NodeId]:
    """Return nodes in the order in which they go: the least urgent, then the critical last, then by rack."""

    def rank(node: NodeId) -> tuple[bool, int, int, str]:
        load, spot = view.nodes.get(node), topology.nodes[node]
        urgency = load.urgency if load else len(PriorityClass)
        return topology.equipment[spot.equipment_id].is_critical, -urgency, spot.order, node

    return sorted(nodes, key=rank)
