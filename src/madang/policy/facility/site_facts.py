"""All derived facts of a site at one instant, and the least of each: what envelopes, the admin API and metrics carry.

Owns the composition. Refuses to keep anything from one instant to the next: what was seen during a discharge is an
argument. Called once a second by the site program, and by the simulator. Cost: headroom, which is edges times losses.
"""

from collections.abc import Collection, Mapping, Sequence

import msgspec

from madang.model import EquipmentKind, Fact, Quality, Quantity
from madang.model.facility_site import SitePlan
from madang.policy.facility.graph import flow
from madang.policy.facility.headroom import Headroom, cooling_headroom, power_headroom, rack_headroom, site_headroom
from madang.policy.facility.pue import Pue, pue_instant
from madang.policy.facility.readings import Readings, derive, least, unknown
from madang.policy.facility.runtime import ChargeReading, Runtime, runtime
from madang.policy.facility.thermal import ThermalFacts, thermal_facts


class Discharge(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen of a UPS since its battery took over.

    Attributes:
        readings: its charge, oldest first.
        device_before_s: the runtime that the device said when it took over; None where it said none.
    """

    readings: Sequence[ChargeReading] = ()
    device_before_s: float | None = None


class SiteFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a site is able to do now.

    Attributes:
        headrooms: everything that has a limit.
        headroom_w: how much more may be drawn anywhere; `rack_headrooms_w` likewise in one rack.
        runtimes: by UPS; `runtime_s` is the least p10 of them.
        thermals: by place; `thermal_margin_k` and `time_to_limit_s` are the least of them.
        pues: by category, where powers are measured; `pue` is that of the highest category that can be said.
    """

    headrooms: tuple[Headroom, ...]
    headroom_w: Fact
    rack_headrooms_w: dict[str, Fact]
    runtimes: dict[str, Runtime]
    runtime_s: Fact
    thermals: dict[str, ThermalFacts]
    thermal_margin_k: Fact
    time_to_limit_s: Fact
    pues: tuple[Pue, ...]
    pue: Fact


def site_facts(
    readings: Readings,
    plan: SitePlan,
    *,
    lost: Collection[str] = (),
    discharges: Mapping[str, Discharge] | None = None,
    slopes_k_s: Mapping[str, float] | None = None,
) -> SiteFacts:
    """Return all facts.

    Args:
        readings: of the site at this instant.
        plan: what its file says.
        lost: equipment known to give nothing, such as a failed UPS or a supply that is out.
        discharges: of UPSs on battery, by UPS.
        slopes_k_s: how fast the warmest inlet of a zone rises, by place, where it was watched.
    """
    graph = readings.graph
    headrooms = (*power_headroom(readings, lost), *cooling_headroom(readings, lost))
    racks = [one.equipment_id for one in graph.of_kind((EquipmentKind.RACK,))]
    runtimes = _runtimes(readings, plan, lost, discharges or {})
    slopes = slopes_k_s or {}
    thermals = {zone.place: thermal_facts(readings, zone, lost, slopes.get(zone.place)) for zone in plan.zones}
    # Those whose points read energy are for intervals.
    pues = tuple(pue_instant(readings, meters) for meters in plan.pue if _reads_power(readings, meters.facility))
    said = [one for one in sorted(pues, key=lambda one: -one.category) if one.pue.value is not None]
    return SiteFacts(
        headrooms=headrooms,
        headroom_w=site_headroom(headrooms, graph),
        rack_headrooms_w={rack: rack_headroom(graph, headrooms, rack) for rack in racks},
        runtimes=runtimes,
        runtime_s=least(one.p10_s for one in runtimes.values()) if runtimes else unknown("no battery is described"),
        thermals=thermals,
        thermal_margin_k=least(one.margin_k for one in thermals.values()),
        time_to_limit_s=least(one.time_to_limit_s for one in thermals.values()),
        pues=pues,
        pue=(said or pues)[0].pue if pues else unknown("no meters for PUE are named"),
    )


def _output(read: Fact, known_w: float, planned_w: float) -> Fact:
    """Return what a UPS gives: as it says, but no less than what is read behind it, else what is planned there."""
    if read.value is not None and read.value > 0:
        if read.value >= known_w * _BELIEVED:
            return read
        return derive(known_w, (read, _DOUBT), f"it says {read.value:.0f} W and {known_w:.0f} W are read behind it")
    return derive(planned_w, (read, _DOUBT), "its output is taken from what hangs on it")


_BELIEVED = 0.8
"""Meters differ, and its loads may not all be read: below that part the UPS is wrong. Engineering estimate."""
_DOUBT = Fact(value=0.0, quality=Quality.UNCERTAIN)


def _reads_power(readings: Readings, names: Collection[str]) -> bool:
    points = readings.graph.points
    return any(name in points and points[name].quantity is Quantity.POWER for name in names)


def _runtimes(
    readings: Readings, plan: SitePlan, lost: Collection[str], discharges: Mapping[str, Discharge]
) -> dict[str, Runtime]:
    draws = readings.draws()
    all_w = {name: fact.value or 0.0 for name, fact in draws.items()}
    read_w = {name: fact.value or 0.0 for name, fact in draws.items() if fact.quality is Quality.GOOD}
    flows, flows_read = flow(readings.graph, all_w, lost), flow(readings.graph, read_w, lost)
    found = {}
    for battery in plan.batteries:
        ups = readings.graph.by_id.get(battery.ups)
        if ups is None:
            continue
        seen = discharges.get(battery.ups, Discharge())
        found[battery.ups] = runtime(
            battery,
            _output(readings.power(ups), flows_read[battery.ups].power_w, flows[battery.ups].power_w),
            readings.first(battery.ups, Quantity.CHARGE),
            readings.first(battery.ups, Quantity.HEALTH),
            readings.first(battery.ups, Quantity.RUNTIME),
            seen.readings,
            seen.device_before_s,
        )
    return found
