"""When a chip is cordoned by rule: what its readings and the ends of its engines add up to.

Owns the rules. Refuses to know what else a cordon does, and to lift one that a person has to look at. Called by the
node's chip desk with every reading and every engine that died.

    cause         | cordoned                                                     | lifted
    --------------|--------------------------------------------------------------|------------------------------
    failed        | `failed_readings` readings in a row say so, or lack the chip | by hand
    degraded      | `degraded_readings` readings in a row                        | by hand
    throttled     | throttled in every reading of `throttled_s`                  | by hand
    incompatible  | at the first reading that says so                            | at the first that does not
    engine_deaths | `deaths_max` engines died on it within `deaths_s`            | by hand

A bad model kills engines on any chip: a death counts only where the caller says that the chip may be to blame.
"""

import msgspec

from madang.core import ChipId, ns_to_s, s_to_ns
from madang.model import Chip, ChipHealth, CordonCause

_NO_THROTTLE = frozenset({"idle", "none"})
"""Words of vendors for a clock that is low because nothing is to be done."""


class WatchRules(msgspec.Struct, frozen=True, kw_only=True):
    """How much is too much; readings come every five seconds."""

    failed_readings: int = 3
    degraded_readings: int = 60
    throttled_s: float = 900.0
    deaths_max: int = 5
    deaths_s: float = 900.0


class ChipTrack(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered of one chip.

    Attributes:
        failed, degraded: readings in a row.
        throttled_ns: since when every reading says throttled; None when the last one did not.
        deaths_ns: ends of engines within the window.
    """

    failed: int = 0
    degraded: int = 0
    throttled_ns: int | None = None
    deaths_ns: tuple[int, ...] = ()


Finding = tuple[CordonCause, str]


def note_reading(track: ChipTrack, chip: Chip, now_ns: int, rules: WatchRules) -> tuple[ChipTrack, tuple[Finding, ...]]:
    """Return the track after a reading, and the causes that hold now with their reasons.

    A cause whose cordon stands already is found again and again; a reading of unknown health changes no count.
    """
    reasons = [reason for reason in chip.throttle_reasons if reason.lower() not in _NO_THROTTLE]
    if chip.health is not ChipHealth.UNKNOWN:
        track = msgspec.structs.replace(
            track,
            failed=track.failed + 1 if chip.health is ChipHealth.FAILED else 0,
            degraded=track.degraded + 1 if chip.health is ChipHealth.DEGRADED else 0,
            throttled_ns=(now_ns if track.throttled_ns is None else track.throttled_ns) if reasons else None,
        )
    found: list[Finding] = []
    if chip.incompatibility:
        found.append((CordonCause.INCOMPATIBLE, chip.incompatibility))
    if track.failed >= rules.failed_readings:
        found.append((CordonCause.FAILED, f"failed in {track.failed} readings in a row: {chip.reason}"))
    if track.degraded >= rules.degraded_readings:
        found.append((CordonCause.DEGRADED, f"degraded in {track.degraded} readings in a row: {chip.reason}"))
    if track.throttled_ns is not None and now_ns - track.throttled_ns >= s_to_ns(rules.throttled_s):
        for_s = ns_to_s(now_ns - track.throttled_ns)
        found.append((CordonCause.THROTTLED, f"throttled for {for_s:.0f} s: {', '.join(reasons)}"))
    return track, tuple(found)


def note_death(track: ChipTrack, now_ns: int, rules: WatchRules) -> tuple[ChipTrack, Finding | None]:
    """Return the track after an engine died on a chip that may be to blame, and the cause when that were too many."""
    since_ns = now_ns - s_to_ns(rules.deaths_s)
    deaths_ns = (*(at for at in track.deaths_ns if at > since_ns), now_ns)[-rules.deaths_max :]
    track = msgspec.structs.replace(track, deaths_ns=deaths_ns)
    if len(deaths_ns) < rules.deaths_max:
        return track, None
    return track, (
        CordonCause.ENGINE_DEATHS,
        f"{len(deaths_ns)} engines died on it within {ns_to_s(now_ns - deaths_ns[0]):.0f} s",
    )


def may_cordon_for_deaths(chip: Chip, chips: tuple[Chip, ...], cordoned: frozenset[ChipId]) -> bool:
    """Return whether this chip may be cordoned for the deaths of engines on it.

    At most half of a node's chips of a kind ever are: when more seem to be to blame, it is not the chips.

    Args:
        chip: the one.
        chips: all of the node.
        cordoned: those that are cordoned for this cause already.
    """
    alike = [other for other in chips if other.kind == chip.kind]
    return 2 * (sum(other.chip_id in cordoned for other in alike) + 1) <= len(alike)
