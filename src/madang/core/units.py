"""Quantities that cross public signatures, and the only conversions between machine time and seconds.

Owns the names of units. Refuses to know what is measured. Arithmetic erases a NewType; that is accepted.
"""

from typing import NewType

Seconds = NewType("Seconds", float)
Nanoseconds = NewType("Nanoseconds", int)
Bytes = NewType("Bytes", int)
Tokens = NewType("Tokens", int)
MicroWon = NewType("MicroWon", int)
"""Money: integer millionths of a won, so that sums are exact."""
Generation = NewType("Generation", int)
"""Counter of a site's desired state; a receiver refuses an older one."""

_NS_PER_S = 1_000_000_000


def ns_to_s(duration_ns: int) -> float:
    """Convert integer nanoseconds to float seconds."""
    return duration_ns / _NS_PER_S


def s_to_ns(duration_s: float) -> int:
    """Convert float seconds to integer nanoseconds, rounded to nearest."""
    return round(duration_s * _NS_PER_S)
