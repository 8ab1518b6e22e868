"""Thermal margin and time to the limit, dew point and the margin to condensation.

Owns the limits of the classes and the heat balance that says how long a place lasts. Refuses to act. Called by the
site program and by the policies of power. A cooling unit that stands still makes the time finite at once, from the
balance of heat, while every inlet still reads well: with ten kilowatts in a rack the limit is seconds away when the
first inlet moves.
"""

import math
from collections.abc import Collection

import msgspec

from madang.model import EdgeKind, Fact, Quality, Quantity
from madang.model.facility_site import ThermalClass, ThermalZone
from madang.policy.facility.graph import IT_LOADS
from madang.policy.facility.readings import Readings, derive, least, unknown


class ThermalLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Inlet temperatures of a class, in °C; see `LIMITS`."""

    caution_c: float
    warning_c: float
    critical_c: float
    drain_c: float
    recommended_low_c: float
    allowed_low_c: float


def _limits(recommended: tuple[float, float], allowed: tuple[float, float]) -> ThermalLimits:
    """Return the steps between the recommended and the allowed upper bound."""
    low, caution_c = recommended
    span_k = allowed[1] - caution_c
    return ThermalLimits(
        caution_c=caution_c,
        warning_c=caution_c + span_k * 3 / 8,
        critical_c=caution_c + span_k * 5 / 8,
        drain_c=allowed[1],
        recommended_low_c=low,
        allowed_low_c=allowed[0],
    )


LIMITS: dict[ThermalClass, ThermalLimits] = {
    ThermalClass.A1: _limits((18.0, 27.0), (15.0, 32.0)),
    ThermalClass.A2: _limits((18.0, 27.0), (10.0, 35.0)),
    ThermalClass.A3: _limits((18.0, 27.0), (5.0, 40.0)),
    ThermalClass.A4: _limits((18.0, 27.0), (5.0, 45.0)),
    ThermalClass.H1: _limits((18.0, 22.0), (5.0, 25.0)),
}
"""ASHRAE TC 9.9, Thermal Guidelines for Data Processing Environments, 5th edition (2021), reference card: recommended
and allowable dry bulb at the inlet of running equipment. Caution is the upper recommended, drain the upper allowable
bound; warning and critical between them (A2: 30 and 32 °C) are an engineering choice, as is H1's lower bound."""

HORIZON_S = 86_400.0
"""Beyond a day nobody asks."""


class ThermalFacts(msgspec.Struct, frozen=True, kw_only=True):
    """How far a place is from its limit.

    Attributes:
        inlet_c: the warmest inlet.
        margin_k: limit less the warmest inlet.
        time_to_limit_s: by the heat balance, and by what the inlets do where that is sooner; at most a day.
        surplus_w: heat less cooling; 0 or less: it holds.
        causes: cooling units that stand still.
    """

    place: str
    limit_c: float
    inlet_c: Fact
    margin_k: Fact
    time_to_limit_s: Fact
    surplus_w: Fact
    causes: tuple[str, ...] = ()


def thermal_facts(
    readings: Readings, zone: ThermalZone, lost: Collection[str] = (), slope_k_s: float | None = None
) -> ThermalFacts:
    """Return how far a zone is from its limit.

    Args:
        readings: of the site.
        zone: with its heat capacities.
        lost: cooling units known to give nothing, beside those that say so.
        slope_k_s: how fast the warmest inlet rises, where it was watched.
    """
    graph = readings.graph
    limit_c = zone.limit_c if zone.limit_c is not None else LIMITS[zone.thermal_class].drain_c
    inlets = [readings.fact(point) for point in graph.inlets_in(zone.place)]
    known = [fact for fact in inlets if fact.value is not None]
    inlet = unknown(f"no inlet of {zone.place} is read")
    if known:
        # A missing inlet may be the warmest one: the answer is doubtful, not absent.
        inlet = derive(max(fact.value or 0.0 for fact in known), inlets)
    margin = unknown(inlet.reason) if inlet.value is None else derive(limit_c - inlet.value, (inlet,))
    inside = {zone.place} | graph.below(EdgeKind.CONTAINS, zone.place)
    heat = [readings.draw(one) for one in graph.of_kind(IT_LOADS) if one.equipment_id in inside]
    coolers = {unit for name in inside for unit in graph.coolers_of(name)}
    gone = (frozenset(lost) | readings.stopped_coolers()) & coolers
    cooling_w = sum(graph.by_id[unit].ratings.cooling_w or 0.0 for unit in coolers - gone)
    heat_w = sum(fact.value or 0.0 for fact in heat)
    surplus = derive(heat_w - cooling_w, heat)
    return ThermalFacts(
        place=zone.place,
        limit_c=limit_c,
        inlet_c=inlet,
        margin_k=margin,
        time_to_limit_s=_time(zone, margin, surplus, heat_w, slope_k_s),
        surplus_w=surplus,
        causes=tuple(sorted(gone)),
    )


def _time(zone: ThermalZone, margin: Fact, surplus: Fact, heat_w: float, slope_k_s: float | None) -> Fact:
    if margin.value is None:
        return unknown(margin.reason)
    time_s = time_to_limit_s(margin.value, surplus.value or 0.0, heat_w, zone)
    parts = [margin, surplus]
    if slope_k_s is not None and slope_k_s > 0:
        by_slope_s = max(margin.value, 0.0) / slope_k_s
        if by_slope_s < time_s:
            return derive(by_slope_s, parts, "by how fast the inlet rises")
    return derive(time_s, parts, "" if time_s < HORIZON_S else "nothing drives it to its limit within a day")


def time_to_limit_s(margin_k: float, surplus_w: float, heat_w: float, zone: ThermalZone) -> float:
    """Return how long a zone lasts when more heat comes in than goes out; at most `HORIZON_S`.

    First the air alone warms up, until it is as warm as the equipment was (`rise_k`, in part where some cooling is
    left), then everything together: two slopes, as rooms show after a loss of cooling (Khankari, ASHRAE LV-11-C026).
    Heat through walls is left out, and the air's own phase is taken at full slope: the answer is on the short side.
    Never longer for more heat, less cooling or less margin.
    """
    if margin_k <= 0:
        return 0.0
    if surplus_w <= 0 or heat_w <= 0:
        return HORIZON_S
    first_k = min(margin_k, zone.rise_k * min(surplus_w / heat_w, 1.0))
    seconds = (first_k * zone.air_j_k + (margin_k - first_k) * zone.mass_j_k) / surplus_w
    return min(seconds, HORIZON_S)


_MAGNUS_A = 17.62
_MAGNUS_B_C = 243.12
"""Magnus formula over water, -45 to 60 °C: coefficients of Sonntag (1990) as in WMO-No. 8, Guide to Instruments and
Methods of Observation, annex 4.B."""


def dew_point_c(temperature_c: float, humidity_percent: float) -> float | None:
    """Return the dew point of air; None where the humidity is no percentage above 0 or the formula does not hold."""
    if not (0 < humidity_percent <= 100 and -45 <= temperature_c <= 60):
        return None
    gamma = math.log(humidity_percent / 100) + _MAGNUS_A * temperature_c / (_MAGNUS_B_C + temperature_c)
    return _MAGNUS_B_C * gamma / (_MAGNUS_A - gamma)


_AIR = ("ambient", "inlet", "intake", "room", "cold_aisle", "")
CONDENSATION_MARGIN_K = 2.0
"""A liquid loop stays this much above the dew point of the air around it. Engineering practice."""


def dew_point(readings: Readings, place: str) -> Fact:
    """Return the highest dew point in a place: as read, else from temperature and humidity of the same device."""
    graph = readings.graph
    inside = (place, *sorted(graph.below(EdgeKind.CONTAINS, place)))
    names = dict.fromkeys((*inside, *(meter for one in inside for meter in graph.sources(EdgeKind.MEASURES, one))))
    found = []
    for name in names:
        read = [readings.fact(point) for point in graph.points_of(name, Quantity.DEW_POINT)]
        usable = [fact for fact in read if fact.value is not None]
        found += usable or [fact for fact in (_from_humidity(readings, name),) if fact is not None]
    if not found:
        return unknown(f"nothing reads dew point, or temperature and humidity, in {place}")
    return derive(max(fact.value or 0.0 for fact in found), found)


def _from_humidity(readings: Readings, name: str) -> Fact | None:
    """Return the dew point from one device's own humidity and the temperature at the same place; None without both."""
    humid = [(point.context, readings.fact(point)) for point in readings.graph.points_of(name, Quantity.HUMIDITY)]
    for context, humidity in humid:
        for point in readings.graph.points_of(name, Quantity.TEMPERATURE, (context, *_AIR)):
            temperature = readings.fact(point)
            if humidity.value is None or temperature.value is None:
                continue
            value_c = dew_point_c(temperature.value, humidity.value)
            if value_c is not None:
                return derive(value_c, (humidity, temperature))
    return None


def condensation_margin(readings: Readings, place: str, loop: str) -> Fact:
    """Return by how much the coldest supply of a liquid loop is above the dew point of the air in a place, in K."""
    points = readings.graph.points_of(loop, Quantity.TEMPERATURE, ("supply",))
    supply = least([readings.fact(point) for point in points])
    dew = dew_point(readings, place)
    if supply.value is None or dew.value is None:
        missing = supply if supply.value is None else dew
        return Fact(value=None, quality=Quality.BAD, reason=missing.reason)
    return derive(supply.value - dew.value, (supply, dew))
