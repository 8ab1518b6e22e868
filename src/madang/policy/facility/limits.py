"""What equipment can carry: ratings turned into limits, with the margin for continuous load.

Owns the constants of planning. Refuses to know draws. Called by the check and by headroom, so that both say the same.
"""

from madang.model import Equipment

CONTINUOUS = 0.8
"""Part of a breaker's rating that it carries for hours: continuous load counts 125 % (NEC 210.20(A), 215.3); common
practice in Korea too."""
POWER_FACTOR_ASSUMED = 0.95
"""Of equipment whose power factor nobody reads: an engineering estimate for supplies with active correction."""


def limit_w(equipment: Equipment, power_factor: float = POWER_FACTOR_ASSUMED) -> float | None:
    """Return the real power that a carrier or source takes for hours, the least of what its plate says; else None.

    Args:
        equipment: with its ratings.
        power_factor: of its load, 0 to 1.
    """
    ratings = equipment.ratings
    found = [] if ratings.power_w is None else [ratings.power_w]
    if ratings.apparent_va is not None:
        found.append(ratings.apparent_va * power_factor)
    per_phase = limit_phase_w(equipment, power_factor)
    if per_phase is not None:
        found.append(per_phase * ratings.phases)
    return min(found, default=None)


def limit_phase_w(equipment: Equipment, power_factor: float = POWER_FACTOR_ASSUMED) -> float | None:
    """Return the real power that each phase takes for hours: 80 % of its current; None without current and voltage."""
    ratings = equipment.ratings
    if ratings.current_a is None or ratings.voltage_v is None:
        return None
    return CONTINUOUS * ratings.current_a * ratings.voltage_v * power_factor


def counted_cooling_w(cooling_w: dict[str, float], needed: int) -> float:
    """Return the cooling that may be counted on: the `needed` smallest of the units that run.

    That is what remains after the loss of the largest ones, as often as there are spare units; with no spare left it
    is all that runs.
    """
    return sum(sorted(cooling_w.values())[: max(needed, 0)])
