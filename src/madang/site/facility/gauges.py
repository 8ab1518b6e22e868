"""Metrics of a site's facility: derived facts, what devices and alarms are like, the envelope.

Owns names and labels. Refuses points as labels beyond power and temperature: their number belongs into a store of
time series of the operator's own, which reads them here. Called by `madang.site.metrics` when somebody asks.
"""

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from madang.model import PointKind, PriorityClass, Quality, Quantity, SafetyState
from madang.model.alarm import AlarmPriority
from madang.policy.facility.signs import Sign, read_signs
from madang.site.facility.facility import Facility

FACTS = (
    ("madang_facility_pue_ratio", "Power at the boundary over that of IT equipment, now.", "pue"),
    ("madang_facility_headroom_watts", "How much more may be drawn after the worst single loss.", "headroom_w"),
    ("madang_facility_runtime_seconds", "How long batteries carry the load, p10.", "runtime_s"),
    ("madang_facility_thermal_margin_kelvin", "Between the warmest inlet and its limit.", "thermal_margin_k"),
    ("madang_facility_time_to_limit_seconds", "Until an inlet reaches its limit.", "time_to_limit_s"),
)
_SHOWN = {
    Quantity.POWER: ("madang_facility_power_watts", "Power that a point reads."),
    Quantity.TEMPERATURE: ("madang_facility_temperature_celsius", "Temperature that a point reads."),
    Quantity.ENERGY: ("madang_facility_energy_watt_hours", "Energy register that a meter reads."),
    Quantity.CHARGE: ("madang_facility_charge_percent", "Charge of a battery."),
}


def collect_facility(facility: Facility) -> Iterator[Metric]:
    """Yield every metric; a fact or reading that cannot be said has no sample, never zero."""
    facts = facility.mind.world.facts
    for name, text, field in FACTS:
        family = GaugeMetricFamily(name, text)
        fact = None if facts is None else getattr(facts, field)
        if fact is not None and fact.value is not None:
            family.add_metric([], fact.value)
        yield family
    yield from _collect_points(facility)
    devices = GaugeMetricFamily("madang_facility_device_answering", "1 while a device answers.", labels=["device"])
    for device_id, state in sorted(facility.poller.states.items()):
        devices.add_metric([device_id], float(state.is_answering))
    yield devices
    yield from _collect_notifications(facility)
    active = Counter(one.priority for one in facility.alarms.list_alarms() if one.is_active)
    alarms = GaugeMetricFamily("madang_facility_alarms_active", "Alarms that are active.", labels=["priority"])
    for priority in AlarmPriority:
        alarms.add_metric([priority.value], float(active[priority]))
    yield alarms
    yield from _collect_envelope(facility)


def _collect_notifications(facility: Facility) -> Iterator[Metric]:
    listening = GaugeMetricFamily(
        "madang_facility_notifications_heard",
        "1 while notifications of a driver's devices are listened for; 0 while the port cannot be had.",
        labels=["driver"],
    )
    counts = CounterMetricFamily(
        "madang_facility_notifications",
        "Notifications by what became of them: woke a reading, merged into one, or why they were not believed.",
        labels=["driver", "outcome"],
    )
    for driver, is_listening in facility.notifications.list_drivers().items():
        listening.add_metric([driver], float(is_listening))
        for outcome, number in facility.notifications.count(driver).items():
            counts.add_metric([driver, outcome], float(number))
    yield listening
    yield counts


def _collect_points(facility: Facility) -> Iterator[Metric]:
    families = {
        quantity: GaugeMetricFamily(name, text, labels=["point", "is_simulated"])
        for quantity, (name, text) in _SHOWN.items()
    }
    qualities: Counter[Quality] = Counter()
    for point_id, sample in facility.book.samples(facility.now_s()).items():
        point = facility.book.points[point_id]
        qualities[sample.quality] += 1
        family = families.get(point.quantity)
        is_read = point.kind in (PointKind.SENSOR, PointKind.METER)
        if family is not None and is_read and sample.is_usable and sample.value is not None:
            family.add_metric([point_id, str(point.is_simulated).lower()], sample.value)
    yield from families.values()
    yield _collect_batteries(facility)
    points = GaugeMetricFamily("madang_facility_points", "Points by the quality of what they read.", labels=["quality"])
    for quality in Quality:
        points.add_metric([quality.value], float(qualities[quality]))
    yield points


def _collect_batteries(facility: Facility) -> Metric:
    """Return which UPSs are on battery; of one whose word is not known there is no sample."""
    samples = facility.book.samples(facility.now_s())
    on_battery: dict[str, bool] = {}
    for point, readings in facility.mind.world.topology.sign_points:
        sample = samples.get(point.point_id)
        can_say = any(one.sign is Sign.ON_BATTERY for one in readings)
        if can_say and sample is not None and sample.is_usable:
            says = Sign.ON_BATTERY in read_signs(readings, sample)
            on_battery[point.equipment_id] = says or on_battery.get(point.equipment_id, False)
    family = GaugeMetricFamily("madang_facility_on_battery", "1 while a UPS is on its battery.", labels=["equipment"])
    for equipment_id, says in on_battery.items():
        family.add_metric([equipment_id], float(says))
    return family


def _collect_envelope(facility: Facility) -> Iterator[Metric]:
    envelope, limits = facility.allowed.envelope, facility.allowed.limits()
    until = GaugeMetricFamily(
        "madang_facility_envelope_valid_until_seconds", "Unix time at which what is allowed runs out."
    )
    if envelope is not None:
        until.add_metric([], envelope.valid_until_s)
    yield until
    safety = GaugeMetricFamily("madang_facility_safety_state", "1 for the state of the box.", labels=["state"])
    for state in SafetyState:
        safety.add_metric([state.value], float(envelope is not None and envelope.safety is state))
    yield safety
    shed = GaugeMetricFamily("madang_facility_class_shed", "1 for a class that is refused here.", labels=["priority"])
    for priority in PriorityClass:
        is_shed = limits.shed_from is not None and priority.rank >= limits.shed_from.rank
        shed.add_metric([priority.value], float(is_shed))
    yield shed
    yield GaugeMetricFamily("madang_facility_spilling", "1 while peers come first.", value=float(limits.is_spilling))
