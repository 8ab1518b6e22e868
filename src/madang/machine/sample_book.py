"""What the points of a site read last, how old that is, and a short past of each.

Owns quality over time: what is not heard again becomes `stale`. Refuses to know devices and what is derived. Kept by
the site program; synchronous, time is an argument. Bounded: one newest sample and `HISTORY_MAX` older ones a point.
"""

from collections import deque
from collections.abc import Iterable

import msgspec

from madang.model import Point, Quality, Sample

HISTORY_MAX = 960
"""Readings kept of a point: 16 minutes at one a second, so that a 15-minute interval and its slope can be had."""
HISTORY_GAP_S = 1.0
"""Readings that come faster than this are not kept apart."""


class SampleBook:
    """The samples of one site's points.

    Args:
        points: those of the site file; samples of others are refused.
    """

    def __init__(self, points: Iterable[Point]) -> None:
        self.points: dict[str, Point] = {point.point_id: point for point in points}
        self._newest: dict[str, Sample] = {}
        self._past: dict[str, deque[tuple[float, float]]] = {}

    def take(self, samples: Iterable[Sample]) -> list[Sample]:
        """Take readings; returns those that differ from what was known in value, word or quality.

        A reading older than the one that is known is left out: a device that reorders does not turn time back.
        """
        changed = []
        for sample in samples:
            if sample.point_id not in self.points:
                continue
            known = self._newest.get(sample.point_id)
            if known is not None and sample.observed_at_s < known.observed_at_s:
                continue
            if known is None or (known.value, known.text, known.quality) != (sample.value, sample.text, sample.quality):
                changed.append(sample)
            self._newest[sample.point_id] = sample
            if sample.is_usable and sample.value is not None:
                self._remember(sample.point_id, sample.observed_at_s, sample.value)
        return changed

    def _remember(self, point_id: str, at_s: float, value: float) -> None:
        past = self._past.setdefault(point_id, deque(maxlen=HISTORY_MAX))
        if not past or at_s - past[-1][0] >= HISTORY_GAP_S:
            past.append((at_s, value))

    def sample(self, point_id: str, now_s: float) -> Sample | None:
        """Return what a point reads, `stale` when it is too old; None when it never read anything."""
        sample = self._newest.get(point_id)
        if sample is None:
            return None
        age_s = now_s - sample.observed_at_s
        if sample.quality is Quality.BAD or age_s <= self.points[point_id].stale_s:
            return sample
        return msgspec.structs.replace(sample, quality=Quality.STALE, reason=f"{age_s:.0f} s old")

    def samples(self, now_s: float) -> dict[str, Sample]:
        """Return what every point reads by id; points that never read anything are bad."""
        found = {}
        for point_id in self.points:
            sample = self.sample(point_id, now_s)
            if sample is None:
                sample = Sample(
                    point_id=point_id, value=None, quality=Quality.BAD, observed_at_s=now_s, reason="not read yet"
                )
            found[point_id] = sample
        return found

    def past(self, point_id: str) -> tuple[tuple[float, float], ...]:
        """Return instants and values of a point, oldest first."""
        return tuple(self._past.get(point_id, ()))
