"""How long to wait before trying again: exponential, bounded, and spread by the event's seed.

Owns the rule. Refuses to count or to wait: whoever tries counts its failures in a row. Called by the bus, the
site's loops and the forwarder.
"""

from madang.core import draw_unit

_DOUBLINGS_MAX = 30
"""Past it every useful bound is reached, and a float cannot overflow."""


def choose_backoff_s(failures: int, seed: int, *, base_s: float, max_s: float) -> float:
    """Return the delay in seconds after `failures` failures in a row (at least 1).

    The whole delay doubles with each failure from `base_s` up to `max_s`; what is returned is drawn from its upper
    half, so that many sites that lost the same hub do not come back in one instant.
    """
    assert failures >= 1
    assert 0 < base_s <= max_s
    whole_s = min(base_s * 2.0 ** min(failures - 1, _DOUBLINGS_MAX), max_s)
    return whole_s * (0.5 + 0.5 * draw_unit(seed))
