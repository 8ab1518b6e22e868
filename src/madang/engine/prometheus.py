"""Reads gauges out of Prometheus text, as engines give it.

Owns the reading. Refuses to know names. Any bytes are taken; what is no number is not there. Called by probes.
"""

import math
import re
from collections.abc import Iterable, Mapping

_SAMPLE = re.compile(
    rb"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(?:[^\"}\n]|\"(?:[^\"\\\n]|\\.)*\")*\})?[ \t]+([-+0-9.eEnaifNIF]+)", re.MULTILINE
)
_COUNT_MAX = 1 << 53


def sum_samples(body: bytes) -> dict[str, float]:
    """Return the sum over all labels of each metric that has finite values only; cost linear in the text."""
    found: dict[str, float] = {}
    for name, text in _SAMPLE.findall(body):
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        key = name.decode("ascii")
        found[key] = found.get(key, 0.0) + value
    return {name: value for name, value in found.items() if math.isfinite(value)}


def first_count(samples: Mapping[str, float], names: Iterable[str]) -> int | None:
    """Return the first of several names that is there, as a count; None when none is, or it is none."""
    for name in names:
        value = samples.get(name)
        if value is not None:
            return round(value) if 0 <= value <= _COUNT_MAX else None
    return None
