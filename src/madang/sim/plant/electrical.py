"""Watts from the utility to the servers: transfer, UPS with battery, breakers, cords, power caps.

Owns the electrical equations of each kind of equipment and their constants. Refuses to know heat, and how equipment
hangs together: `madang.sim.plant.plant` walks the graph. Power in watts, energy in joules, time in seconds.
"""

import math
from dataclasses import dataclass, field

LOSS_NO_LOAD = 0.012
LOSS_PROPORTIONAL = 0.020
LOSS_SQUARE = 0.018
"""Losses of a double-conversion UPS as parts of its rating: a + b x + c x2 at load x, which gives an efficiency of
93 % at a quarter of the load and 95 % from half on, as makers state."""
INVERTER_EFFICIENCY = 0.95
RECHARGE_PART = 0.10
"""Of the rating, drawn to charge an empty battery; the usual setting of VRLA chargers."""
CHARGE_EFFICIENCY = 0.9
PEUKERT = 1.15
"""Of VRLA batteries between one and ten hours: 1.1 to 1.25 in makers' tables. Engineering estimate."""
LOW_BATTERY = 0.2
"""The charge at which a UPS says low battery."""
TRIP_MEMORY_S = 200.0
TRIP_LEVEL = 1.13**2
"""A thermal trip: with this memory 1.45 times the rating opens in some 3 minutes and 2.55 times in 45 s, inside of
the bounds of IEC 60898-1's time-current zone (1.13 never, 1.45 within an hour, 2.55 within a minute)."""
TRIP_AT_ONCE = 5.0
"""Times the rating at which a B characteristic's magnetic trip may open (IEC 60898-1: 3 to 5)."""
POWER_FACTOR = 0.95
CAP_LAG_S = 1.0
"""Until a server that was capped draws what it may."""
BMC_W = 15.0
"""What a server draws that is off."""
SHUTDOWN_INLET_C = 45.0
"""At which servers switch themselves off: the end of ASHRAE's class A4."""
FAN_KNEE_C = 27.0
FAN_PART = 0.05
"""Fans take 5 % of the rating below the knee, and with the cube of their speed up to 4 times that above."""


@dataclass
class Battery:
    """A string behind a UPS.

    Attributes:
        energy_j: when new and full, at the discharge that the name plate names.
        health: what is left of it, 0 to 1.
        charge: 0 to 1.
        power_w_rated: the discharge at which `energy_j` holds.
    """

    energy_j: float
    power_w_rated: float
    health: float = 1.0
    charge: float = 1.0

    def drain_w(self, power_w: float) -> float:
        """Return how fast it empties in W of its own energy when it delivers `power_w` (Peukert)."""
        if power_w <= 0.0:
            return 0.0
        return power_w * max(1.0, math.pow(power_w / self.power_w_rated, PEUKERT - 1.0))

    def runtime_s(self, power_w: float) -> float:
        """Return how long it would last from now."""
        drain_w = self.drain_w(power_w)
        return self.energy_j * self.health * self.charge / drain_w if drain_w > 0.0 else float("inf")


@dataclass
class Ups:
    """A double-conversion UPS.

    Attributes:
        power_w_rated: of its output.
        is_bypassed: its load hangs on its input.
    """

    power_w_rated: float
    battery: Battery
    is_broken: bool = False
    is_bypassed: bool = False
    on_battery_s: float = 0.0
    output_w: float = 0.0
    input_w: float = 0.0

    @property
    def is_on_battery(self) -> bool:
        """True while the battery carries the load."""
        return self.on_battery_s > 0.0

    @property
    def load(self) -> float:
        """Return its load, 0 to 1 and beyond."""
        return self.output_w / self.power_w_rated

    def loss_w(self, output_w: float) -> float:
        """Return what it turns to heat."""
        part = output_w / self.power_w_rated
        return self.power_w_rated * (LOSS_NO_LOAD + LOSS_PROPORTIONAL * part + LOSS_SQUARE * part * part)

    def gives(self, *, has_input: bool) -> bool:
        """Return whether its output is live."""
        if self.is_broken or self.is_bypassed:
            return has_input
        return has_input or self.battery.charge > 0.0

    def draw_w(self, *, has_input: bool) -> float:
        """Return what it takes from its input for its present output."""
        if not has_input:
            return 0.0
        if self.is_broken or self.is_bypassed:
            return self.output_w
        charging_w = RECHARGE_PART * self.power_w_rated if self.battery.charge < 1.0 else 0.0
        return self.output_w + self.loss_w(self.output_w) + charging_w

    def step(self, dt_s: float, *, has_input: bool) -> float:
        """Advance its battery; returns what the battery lost (negative: gained), W of its own energy."""
        self.input_w = self.draw_w(has_input=has_input)
        capacity_j = self.battery.energy_j * self.battery.health
        if has_input:
            self.on_battery_s = 0.0
            if self.battery.charge >= 1.0 or self.is_broken or self.is_bypassed:
                return 0.0
            gained_w = RECHARGE_PART * self.power_w_rated * CHARGE_EFFICIENCY
            self.battery.charge = min(1.0, self.battery.charge + gained_w * dt_s / capacity_j)
            return -gained_w
        if self.is_broken or self.is_bypassed or self.battery.charge <= 0.0:
            self.on_battery_s = 0.0
            return 0.0
        self.on_battery_s += dt_s
        drained_w = self.battery.drain_w((self.output_w + self.loss_w(self.output_w)) / INVERTER_EFFICIENCY)
        self.battery.charge = max(0.0, self.battery.charge - drained_w * dt_s / capacity_j)
        return drained_w

    def runtime_s(self) -> float:
        """Return how long the battery would carry the present load."""
        return self.battery.runtime_s((self.output_w + self.loss_w(self.output_w)) / INVERTER_EFFICIENCY)


@dataclass
class Breaker:
    """A thermal-magnetic breaker in front of something."""

    current_a_rated: float
    is_open: bool = False
    heat: float = 0.0
    current_a: float = 0.0

    def step(self, dt_s: float, current_a: float) -> None:
        """Advance; opens when its thermal memory or the instant limit says so, and stays open."""
        self.current_a = 0.0 if self.is_open else current_a
        part = self.current_a / self.current_a_rated
        self.heat += (part * part - self.heat) * min(1.0, dt_s / TRIP_MEMORY_S)
        if self.heat >= TRIP_LEVEL or part >= TRIP_AT_ONCE:
            self.is_open = True
            self.current_a = 0.0


@dataclass
class Server:
    """One server with its chips.

    Attributes:
        power_w_idle, power_w_rated: at no and at full utilisation.
        cap_w: what it may draw; None: its rating.
        cap_w_min: below this a cap does nothing more.
        ignores_caps: its BMC takes caps and does not act (a fault).
        is_on: somebody wants it to run.
    """

    power_w_idle: float
    power_w_rated: float
    cap_w: float | None = None
    utilisation: float = 0.0
    is_on: bool = True
    ignores_caps: bool = False
    is_shut_by_heat: bool = False
    power_w: float = field(default=0.0)

    @property
    def cap_w_min(self) -> float:
        """Return the least that a cap may name: a BMC allows a part of the range only."""
        return self.power_w_idle + 0.3 * (self.power_w_rated - self.power_w_idle)

    def wanted_w(self, inlet_c: float) -> float:
        """Return what it would draw without a cap."""
        fans = FAN_PART * self.power_w_rated
        above = max(0.0, inlet_c - FAN_KNEE_C) / 10.0
        extra = fans * (min(1.6, 1.0 + above) ** 3 - 1.0)
        return self.power_w_idle + (self.power_w_rated - self.power_w_idle) * self.utilisation + extra

    def step(self, dt_s: float, *, is_fed: bool, inlet_c: float) -> None:
        """Advance what it draws."""
        if not is_fed:
            self.power_w = 0.0
            return
        if inlet_c >= SHUTDOWN_INLET_C:
            self.is_shut_by_heat = True
        if not self.is_on or self.is_shut_by_heat:
            self.power_w = BMC_W
            return
        target_w = self.wanted_w(inlet_c)
        if self.cap_w is not None and not self.ignores_caps:
            target_w = min(target_w, max(self.cap_w, self.cap_w_min))
        self.power_w += (target_w - self.power_w) * min(1.0, dt_s / CAP_LAG_S)

    @property
    def is_throttled(self) -> bool:
        """True while a cap holds it below what it would draw."""
        return self.cap_w is not None and not self.ignores_caps and self.power_w < self.wanted_w(FAN_KNEE_C) - 1.0
