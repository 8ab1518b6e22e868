"""Air, metal and cooling of one room: heat goes from servers over the hot aisle through cooling units to the cold.

Owns the thermal equations and their constants. Refuses to know electricity beyond watts, and who reads what.
Called by `madang.sim.plant.plant`. Temperatures in degrees Celsius, power in watts, heat capacity in J/K, conductance
in W/K. Explicit Euler: the fastest node is the cold aisle with some 4 s, so steps of 0.5 s are stable and within
0.2 K of far smaller ones.

The equations are heat balances of lumped nodes (servers of a rack, hot aisle, cold aisle, coil of each cooling unit);
their two slopes after a loss of cooling have the shape that Khankari describes (ASHRAE Transactions 117, LV-11-C026).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

AIR_J_PER_M3_K = 1206.0
"""Density times specific heat of air at 20 degrees: 1.2 kg/m3 x 1005 J/(kg K)."""
SERVER_RISE_K = 12.0
"""By which servers warm their air; their fans follow the load to keep it. Engineering estimate for air trays."""
SERVER_COUPLING = 0.75
"""Conductance from metal to air, as a part of the air's own capacity rate. Engineering estimate."""
FLOW_MIN = 0.2
"""The least air that fans move, as a part of that at full load."""
RECIRCULATION = 0.04
RECIRCULATION_DOOR_OPEN = 0.3
"""The part of a rack's inlet air that comes from the hot aisle, with containment and with an open door."""
LIFT_EVAPORATOR_K = 13.0
LIFT_CONDENSER_K = 12.0
CONDENSER_MIN_C = 27.0
CARNOT_PART = 0.45
"""COP = 0.45 x T_e / (T_c - T_e): gives 5.0 at 20 degrees outside and 3.15 at 35, as makers state for DX units."""
CAPACITY_LOSS_PER_K = 0.01
"""Of a DX unit's capacity for each kelvin outside above its design point. Engineering estimate."""
DESIGN_OUTDOOR_C = 35.0
RESTART_S = 150.0
"""A compressor waits this long before it starts again; makers give two to three minutes."""


def cop(supply_c: float, outdoor_c: float) -> float:
    """Return the coefficient of performance of a DX unit, heat moved per electrical work."""
    evaporator_c = supply_c - LIFT_EVAPORATOR_K
    condenser_c = max(outdoor_c + LIFT_CONDENSER_K, CONDENSER_MIN_C)
    lift_k = max(condenser_c - evaporator_c, 5.0)
    return CARNOT_PART * (evaporator_c + 273.15) / lift_k


@dataclass
class CoolingUnit:
    """One DX unit: a coil that air passes, and a compressor that takes heat from it.

    Attributes:
        capacity_w: sensible, at `DESIGN_OUTDOOR_C`.
        fan_w: of its fans at full speed.
        setpoint_c: of the supply air.
        is_commanded: whether somebody wants it to run.
        is_broken: a fault that only its end mends.
        capacity_limit: the part of its capacity that it may use.
        lag_s: how slowly the compressor follows.
        coil_j_k: inertia of the coil.
    """

    capacity_w: float
    fan_w: float = 600.0
    setpoint_c: float = 20.0
    is_commanded: bool = True
    is_broken: bool = False
    capacity_limit: float = 1.0
    lag_s: float = 60.0
    coil_j_k: float = 30_000.0
    supply_c: float = 20.0
    heat_w: float = 0.0
    locked_s: float = 0.0
    is_powered: bool = True
    fans_powered: bool = True

    @property
    def is_running(self) -> bool:
        """True while its compressor may work."""
        has_all = self.is_commanded and self.is_powered and self.fans_powered
        return has_all and not self.is_broken and self.locked_s <= 0.0

    def capacity_at_w(self, outdoor_c: float) -> float:
        """Return what it can take out at this outdoor temperature."""
        return self.capacity_w * max(0.0, 1.0 - CAPACITY_LOSS_PER_K * max(0.0, outdoor_c - DESIGN_OUTDOOR_C))

    def electrical_w(self, outdoor_c: float) -> float:
        """Return what it draws: compressor and fans."""
        fans = self.fan_w if self.fans_powered else 0.0
        return fans + (self.heat_w / cop(self.supply_c, outdoor_c) if self.heat_w > 0.0 else 0.0)

    def step(self, dt_s: float, *, rate_w_k: float, return_c: float, outdoor_c: float) -> float:
        """Advance; `rate_w_k` is the capacity rate of the air through it. Returns the heat taken from the air, W."""
        if self.is_commanded and self.is_powered and not self.is_broken:
            self.locked_s = max(0.0, self.locked_s - dt_s)
        else:
            self.locked_s = RESTART_S
        if self.is_running:
            wanted = rate_w_k * (return_c - self.setpoint_c)
            target_w = min(max(wanted, 0.0), self.capacity_limit * self.capacity_at_w(outdoor_c))
            self.heat_w += (target_w - self.heat_w) * min(1.0, dt_s / self.lag_s)
        else:
            self.heat_w = 0.0
        from_air_w = rate_w_k * (return_c - self.supply_c)
        # The exact solution of the coil's own equation over the step, so that any flow is stable.
        if rate_w_k > 0.0:
            settled_c = return_c - self.heat_w / rate_w_k
            keep = math.exp(-rate_w_k * dt_s / self.coil_j_k)
            before_c = self.supply_c
            self.supply_c = settled_c + (before_c - settled_c) * keep
            from_air_w = self.heat_w + self.coil_j_k * (self.supply_c - before_c) / dt_s
        else:
            self.supply_c -= self.heat_w * dt_s / self.coil_j_k
        return from_air_w


@dataclass
class RackAir:
    """The servers of one rack as one lump of metal in an air stream.

    Attributes:
        power_w_rated: gives the air flow at full load.
        metal_j_k: heat capacity of all its servers.
    """

    power_w_rated: float
    metal_j_k: float = 300_000.0
    metal_c: float = 30.0
    inlet_c: float = 20.0
    exhaust_c: float = 30.0

    def rate_w_k(self, power_w: float) -> float:
        """Return the capacity rate of its air."""
        return max(power_w, FLOW_MIN * self.power_w_rated, 1.0) / SERVER_RISE_K


@dataclass
class Balance:
    """Heat over all steps, in joules: what came in, what is stored, what left."""

    servers_j: float = 0.0
    walls_j: float = 0.0
    removed_j: float = 0.0
    stored_j: float = 0.0

    @property
    def error(self) -> float:
        """What is missing, as a part of what came in."""
        came_in = abs(self.servers_j) + abs(self.walls_j)
        return abs(self.servers_j + self.walls_j - self.removed_j - self.stored_j) / max(came_in, 1.0)


@dataclass
class RoomAir:
    """The air of a room and all that it touches.

    Attributes:
        volume_m3: of both aisles together.
        wall_w_k: conductance of the hull; half of it touches each aisle.
    """

    racks: dict[str, RackAir]
    units: dict[str, CoolingUnit]
    volume_m3: float = 27.0
    wall_w_k: float = 37.0
    outdoor_c: float = 20.0
    is_door_open: bool = False
    hot_c: float = 32.0
    cold_c: float = 20.0
    balance: Balance = field(default_factory=Balance)

    @property
    def aisle_j_k(self) -> float:
        """Heat capacity of one aisle's air."""
        return AIR_J_PER_M3_K * self.volume_m3 / 2

    def settle(self, power_w: Mapping[str, float], *, within_s: float = 600.0) -> None:
        """Go to the steady state under a load, so that a twin does not begin with a transient.

        It starts from what the balances say where cooling suffices, and steps from there.
        """
        running = [unit for unit in self.units.values() if unit.is_running]
        total_w = sum(power_w.values())
        self.cold_c = min((unit.setpoint_c for unit in running), default=self.cold_c)
        self.hot_c = self.cold_c + SERVER_RISE_K / (1.0 - RECIRCULATION)
        for unit in running:
            unit.supply_c, unit.heat_w = unit.setpoint_c, total_w / len(running)
        for name, rack in self.racks.items():
            inlet_c = (1.0 - RECIRCULATION) * self.cold_c + RECIRCULATION * self.hot_c
            rate = rack.rate_w_k(power_w.get(name, 0.0))
            rack.metal_c = inlet_c + power_w.get(name, 0.0) / (SERVER_COUPLING * rate)
        for _ in range(int(within_s)):
            self.step(1.0, power_w)
        self.balance = Balance()

    def step(self, dt_s: float, power_w: Mapping[str, float]) -> None:
        """Advance by `dt_s` (at most 1 s) with the heat of each rack."""
        stored_before_j = self._stored_j()
        part = RECIRCULATION_DOOR_OPEN if self.is_door_open else RECIRCULATION
        rates = {name: rack.rate_w_k(power_w.get(name, 0.0)) for name, rack in self.racks.items()}
        hot_w = cold_w = heat_in_w = 0.0
        for name, rack in self.racks.items():
            rack.inlet_c = (1.0 - part) * self.cold_c + part * self.hot_c
            to_air_w = SERVER_COUPLING * rates[name] * (rack.metal_c - rack.inlet_c)
            rack.metal_c += (power_w.get(name, 0.0) - to_air_w) * dt_s / rack.metal_j_k
            rack.exhaust_c = rack.inlet_c + to_air_w / rates[name]
            hot_w += rates[name] * (rack.exhaust_c - self.hot_c)
            heat_in_w += power_w.get(name, 0.0)
        through = (1.0 - part) * sum(rates.values())
        removed_w, supply_w = self._cool(dt_s, through)
        cold_w += supply_w
        walls_w = 0.0
        for is_hot, aisle_c in ((True, self.hot_c), (False, self.cold_c)):
            leak_w = self.wall_w_k / 2 * (self.outdoor_c - aisle_c)
            walls_w += leak_w
            if is_hot:
                hot_w += leak_w
            else:
                cold_w += leak_w
        self.hot_c += hot_w * dt_s / self.aisle_j_k
        self.cold_c += cold_w * dt_s / self.aisle_j_k
        self.balance.servers_j += heat_in_w * dt_s
        self.balance.walls_j += walls_w * dt_s
        self.balance.removed_j += removed_w * dt_s
        self.balance.stored_j += self._stored_j() - stored_before_j

    def _cool(self, dt_s: float, through_w_k: float) -> tuple[float, float]:
        """Return the heat that compressors took, and what the supply air brings to the cold aisle."""
        # A unit whose compressor stands closes its damper, unless no other is left to move the air.
        powered = [unit for unit in self.units.values() if unit.fans_powered]
        blowing = [unit for unit in powered if unit.is_running] or powered
        supply_w = 0.0
        for unit in self.units.values():
            share = through_w_k / len(blowing) if unit in blowing else 0.0
            taken_w = unit.step(dt_s, rate_w_k=share, return_c=self.hot_c, outdoor_c=self.outdoor_c)
            supply_w += share * (self.hot_c - self.cold_c) - taken_w
        if not blowing:  # fans stand: the racks' own draw the hot air around
            supply_w = through_w_k * (self.hot_c - self.cold_c)
        return sum(unit.heat_w for unit in self.units.values()), supply_w

    def _stored_j(self) -> float:
        metal = sum(rack.metal_j_k * rack.metal_c for rack in self.racks.values())
        coils = sum(unit.coil_j_k * unit.supply_c for unit in self.units.values())
        return metal + coils + self.aisle_j_k * (self.hot_c + self.cold_c)
