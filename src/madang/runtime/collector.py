"""How often a program's cycle collector looks.

Owns its thresholds in programs that make and free many objects a second, and its rest while they are imported.
Called by programs, when they start and when they serve.
"""

import contextlib
import gc
from collections.abc import Iterator

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


@contextlib.contextmanager
def resting_collector() -> Iterator[None]:
    """Let the cycle collector rest while a program's modules are imported, and never look at them afterwards.

    What modules make stays; looking through it again and again took a seventh of the start of hub and site.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
