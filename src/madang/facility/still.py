"""Doubts values that stand still where they should move.

Owns the memory of when each point last moved, bounded by the points of one device. Refuses to read a clock and to
know protocols. Called by drivers with each reading's samples.

Only points whose profile says after how long are doubted: a temperature in whole degrees or a state may stand for
days, a meter's voltage in hundredths may not.
"""

import msgspec

from madang.core import ns_to_s
from madang.facility.profile import PointSpec
from madang.model import Quality, Sample


class StillWatch:
    """Remembers since when each point of one device has had the same value."""

    def __init__(self) -> None:
        self._since: dict[str, tuple[float, int]] = {}

    def judge(self, spec: PointSpec, sample: Sample, now_ns: int) -> Sample:
        """Return the sample, uncertain where it is good and has not moved for longer than `spec.still_s`."""
        if spec.still_s <= 0 or sample.value is None:
            return sample
        value, since_ns = self._since.get(sample.point_id, (sample.value, now_ns))
        if value != sample.value:
            value, since_ns = sample.value, now_ns
        self._since[sample.point_id] = (value, since_ns)
        still_s = ns_to_s(now_ns - since_ns)
        if still_s <= spec.still_s or sample.quality is not Quality.GOOD:
            return sample
        reason = f"it has not moved for {still_s:.0f} s: a stuck reading"
        return msgspec.structs.replace(sample, quality=Quality.UNCERTAIN, reason=reason)
