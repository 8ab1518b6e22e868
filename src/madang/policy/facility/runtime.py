"""How long a UPS lasts: our own estimate with a p10, and what is believed of the device's.

Owns the model and its spread. Refuses to trust a device's minutes: of five recorded UPSs at full charge on mains three
say 0, one says -1. Called by the site program and by the policy of lost power. Never longer for more load, less charge
or less health.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import msgspec

from madang.model import Fact, Quality
from madang.model.facility_site import Battery, Chemistry
from madang.policy.facility.readings import derive, unknown

PEUKERT = {Chemistry.VRLA: 1.20, Chemistry.LI_ION: 1.03}
"""Peukert's exponent. Engineering estimates: lead-acid 1.1 to 1.25, lithium-ion about 1.03."""
_Z_P10 = 1.2816
"""Quantile of the normal distribution: one case in ten is worse."""
_SPREAD_CHARGE = 0.05
_SPREAD_HEALTH_READ = 0.05
_SPREAD_HEALTH_ASSUMED = 0.15
_SPREAD_MODEL = 0.10
_SPREAD_POWER = 0.05
"""Relative standard deviations of what the estimate rests on. Engineering estimates."""
MEASURED_AFTER_S = 30.0
"""On battery so long, the fall of the charge is worth more than a model: the voltage has settled."""
_MEASURED_FULLY = 0.10
_MEASURED_LEAST = 0.01
"""Part of the charge that has to be gone for the measured fall to count fully, and at all: gauges step by 1 %."""
DEVICE_S_MAX = 86_400.0
RUNTIME_S_MAX = 86_400.0


class ChargeReading(msgspec.Struct, frozen=True, kw_only=True):
    """The charge at an instant of a discharge, 0 to 1."""

    at_s: float
    charge: float


class Runtime(msgspec.Struct, frozen=True, kw_only=True):
    """How long a UPS lasts at its present load.

    Attributes:
        expected_s: as likely longer as shorter.
        p10_s: in one case of ten it is less; what drains are planned with. Never more than a plausible device says.
        device_s: what the device says, where that may be believed.
    """

    expected_s: Fact
    p10_s: Fact
    device_s: Fact


def runtime(
    battery: Battery,
    power: Fact,
    charge: Fact,
    health: Fact,
    device: Fact,
    discharge: Sequence[ChargeReading] = (),
    device_before: float | None = None,
) -> Runtime:
    """Return how long a UPS lasts.

    Args:
        battery: its parameters.
        power: W at its output; 0 W says nothing of a runtime: recorded UPSs say it under load.
        charge: 0 to 100 %.
        health: 0 to 100 %; one that nobody reads is the file's.
        device: what it says itself, s.
        discharge: the charge since the battery took over, oldest first; empty on mains.
        device_before: what the device said when the battery took over; on battery it has to fall.
    """
    believed = believe_device(device, charge, device_before, is_discharging=len(discharge) > 1)
    parts = [power, charge]
    missing = next((fact for fact in parts if fact.value is None), None)
    if missing is None and (power.value or 0.0) <= 0:
        missing = unknown("the UPS gives 0 W: no runtime can be said of that", (power,))
    if missing is not None:
        return _without_model(missing, believed)
    assert power.value is not None
    assert charge.value is not None
    full = min(max(charge.value / 100, 0.0), 1.0)
    fit = battery.health if health.value is None else min(max(health.value / 100, 0.0), 1.0)
    model_s = full * fit * full_runtime_s(battery, power.value)
    measured_s, weight = measured_runtime_s(discharge)
    expected_s = model_s if measured_s is None else _blend(model_s, measured_s, weight)
    spread = _spread(is_health_read=health.value is not None, weight=weight if measured_s is not None else 0.0)
    reason = "" if health.value is not None else f"health of {battery.health:.0%} assumed, from the site file"
    expected = derive(min(expected_s, RUNTIME_S_MAX), parts, reason)
    p10_s = max(expected_s * (1 - _Z_P10 * spread), 0.0)
    p10 = derive(min(p10_s, RUNTIME_S_MAX), parts, reason)
    if believed.value is not None and believed.value < p10_s:
        p10 = derive(believed.value, (*parts, believed), "the device says less")
    return Runtime(expected_s=expected, p10_s=p10, device_s=believed)


def _without_model(missing: Fact, believed: Fact) -> Runtime:
    """Return what is left without load or charge: a plausible device's word, doubtful, else nothing."""
    if believed.value is None:
        nothing = unknown(missing.reason, (missing,))
        return Runtime(expected_s=nothing, p10_s=nothing, device_s=believed)
    word = Fact(
        value=believed.value,
        quality=Quality.UNCERTAIN,
        age_s=believed.age_s,
        reason=f"the device's word only: {missing.reason}",
    )
    half = msgspec.structs.replace(word, value=believed.value / 2)
    return Runtime(expected_s=word, p10_s=half, device_s=believed)


def full_runtime_s(battery: Battery, power_w: float) -> float:
    """Return how long a new, full battery carries a load: by the maker's table, else by Peukert's law.

    Between two rows of the table by their logarithms; beyond it by Peukert's exponent towards more load, and at
    constant energy towards less, which is the short side. Peukert's law gives no gain below the rated load.
    """
    if power_w <= 0:
        return RUNTIME_S_MAX
    exponent = battery.peukert if battery.peukert is not None else PEUKERT[battery.chemistry]
    table = battery.runtime_table
    if table:
        return min(_by_table(table, power_w, exponent), RUNTIME_S_MAX)
    rated_w = battery.energy_wh / battery.rated_h
    from_battery_w = power_w / battery.efficiency
    factor = min(math.pow(rated_w / from_battery_w, exponent - 1), 1.0)
    return min(battery.energy_wh * 3600 * factor / from_battery_w, RUNTIME_S_MAX)


def _by_table(table: Sequence[tuple[float, float]], power_w: float, exponent: float) -> float:
    first, last = table[0], table[-1]
    if power_w <= first[0]:
        return first[1] * first[0] / power_w
    if power_w >= last[0]:
        return last[1] * math.pow(last[0] / power_w, exponent)
    for (low_w, low_s), (high_w, high_s) in pairwise(table):
        if power_w <= high_w:
            part = math.log(power_w / low_w) / math.log(high_w / low_w)
            return low_s * math.pow(high_s / low_s, part)
    return last[1]


def measured_runtime_s(discharge: Sequence[ChargeReading]) -> tuple[float | None, float]:
    """Return how long the charge lasts at the rate at which it fell, and how much that counts, 0 to 1.

    None in the first 30 s, and before the charge has fallen by a step of a gauge. The rate is a line of least squares
    through the last half of the discharge, since loads change.
    """
    if len(discharge) < 2:
        return None, 0.0
    now, begun = discharge[-1], discharge[0]
    gone = begun.charge - now.charge
    if now.at_s - begun.at_s < MEASURED_AFTER_S or gone < _MEASURED_LEAST:
        return None, 0.0
    since_s = max(begun.at_s, min(now.at_s - MEASURED_AFTER_S, (begun.at_s + now.at_s) / 2))
    recent = [one for one in discharge if one.at_s >= since_s]
    falls = _slope(recent) or _slope(discharge)
    if falls is None:
        return None, 0.0
    return now.charge / falls, min(gone / _MEASURED_FULLY, 1.0)


def _slope(readings: Sequence[ChargeReading]) -> float | None:
    """Return by how much the charge falls in a second; None where it does not."""
    if len(readings) < 2:
        return None
    mean_s = sum(one.at_s for one in readings) / len(readings)
    mean = sum(one.charge for one in readings) / len(readings)
    square = sum((one.at_s - mean_s) ** 2 for one in readings)
    product = sum((one.at_s - mean_s) * (one.charge - mean) for one in readings)
    return -product / square if square > 0 and product < 0 else None


def _blend(model_s: float, measured_s: float, weight: float) -> float:
    """Return the model corrected by what was measured; what was measured to be less counts at once."""
    return measured_s if measured_s < model_s else model_s + weight * (measured_s - model_s)


def _spread(*, is_health_read: bool, weight: float) -> float:
    health = _SPREAD_HEALTH_READ if is_health_read else _SPREAD_HEALTH_ASSUMED
    model = math.hypot(_SPREAD_CHARGE, health, _SPREAD_MODEL, _SPREAD_POWER)
    measured = math.hypot(_SPREAD_CHARGE, _SPREAD_POWER)
    return model + weight * (measured - model)


def believe_device(device: Fact, charge: Fact, before_s: float | None, *, is_discharging: bool) -> Fact:
    """Return what a device says of its runtime, where that is plausible: between 0 and a day, and falling in use."""
    if device.value is None:
        return device
    reason = ""
    if not 0 < device.value < DEVICE_S_MAX:
        reason = f"the device says {device.value:.0f} s, which is no runtime"
    elif is_discharging and before_s is not None and device.value >= before_s:
        reason = "what the device says does not fall while it discharges"
    elif device.value < _DEVICE_S_LEAST and (charge.value or 0.0) > _CHARGE_HIGH and not is_discharging:
        reason = f"the device says {device.value:.0f} s with {charge.value:.0f} % of charge, on mains"
    if not reason:
        return device
    return Fact(value=None, quality=Quality.BAD, age_s=device.age_s, reason=reason)


_DEVICE_S_LEAST = 30.0
_CHARGE_HIGH = 90.0
