"""How often a program's cycle collector looks.

Owns the thresholds of programs that make and free many objects a second. Called once, when a program serves.
"""

import gc

_THRESHOLDS = (20_000, 50, 100)
"""Objects more than before until the youngest are looked at, and so on; Python's own are 700, 10, 10."""


def calm_collector() -> None:
    """Let the cycle collector look seldom, and never at what start-up made.

    A request or a usage event makes some 50 objects and frees them by count; few ever form a cycle. At the default
    thresholds the collector took 5 % of a gateway worker's time and of the site process's.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
