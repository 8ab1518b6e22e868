"""From an exporter's series to raw numbers of points, and what a ref of a profile means.

Owns refs, how several series become one number, and how old what was read is. Refuses to open a connection and to know
the text format (`exposition` does). Called by the driver and by the twin.

A ref is `[min |max |sum ]SELECTOR`, or two of these with ` / ` or ` - ` between, where the word holds for both; several
refs with ` | ` between are tried in order until the exporter has the series of one. A selector is
`family{label="text",other!="text"}`; `{disk0}` within a text is the device's option of that name. Without a word, more
than one series that match are no answer: which one is meant, nobody knows.

Options of a point: `type` (what the family is declared as, else doubted), `bit` (of a set of flags), `needs` (a
selector that must match, else the exporter says nothing true of it), `written` (a selector whose value is when somebody
wrote what is read, with `written_s_max`).
"""

import math
import re
from collections.abc import Mapping

import msgspec

from madang.core import Rejected
from madang.facility.contract import Device
from madang.facility.profile import PointSpec, Profile
from madang.facility.prometheus.exposition import Exposition, Series

REF_CHARACTERS_MAX = 1000
FLAGS = 32
"""In a set; what an exporter calls a set of flags has 8 (NVMe's critical warning)."""
FLAGS_MAX = float(1 << FLAGS)
NOW = "node_time_seconds"
"""The host's own clock, by which the age of what was written on that host is told; ours where it gives none."""
WRITTEN_S_MAX = 3600.0
"""Four of the 15 minutes between two runs of Debian's timers for smartmon and nvme (engineering value)."""
AHEAD_S_MAX = 60.0
"""A time that is further in the future doubts the clock that made it."""
_SELECTOR = r'[a-zA-Z_:][a-zA-Z0-9_:]*+(?:\{(?:[^"{}]|"(?:[^"\\]|\\.)*+")*+\})?+'
_CHOICE = re.compile(rf"(?:(min|max|sum) )?({_SELECTOR})(?: ([/-]) ({_SELECTOR}))?")
_MATCHER = re.compile(r'\s*+([a-zA-Z_][a-zA-Z0-9_]*+)(!?=)"((?:[^"\\]|\\.)*+)"\s*+(,|\Z)')
_PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_]*)\}")
_TOLD_MAX = 80
Options = Mapping[str, str | int | float | bool]


class Matcher(msgspec.Struct, frozen=True):
    """One demand on a label; a label that is absent counts as empty, as in Prometheus."""

    label: str
    text: str
    is_equal: bool = True


class Selector(msgspec.Struct, frozen=True):
    """Which series are meant."""

    family: str
    matchers: tuple[Matcher, ...] = ()

    def __str__(self) -> str:
        told = ",".join(f'{one.label}{"=" if one.is_equal else "!="}"{one.text}"' for one in self.matchers)
        return f"{self.family}{{{told}}}" if told else self.family

    def pick(self, exposition: Exposition) -> list[Series]:
        """Return the series that match, in the exporter's order."""
        return [
            series
            for series in exposition.series.get(self.family, ())
            if all((series.labels.get(one.label, "") == one.text) is one.is_equal for one in self.matchers)
        ]


class Choice(msgspec.Struct, frozen=True):
    """One way to a number: a selector, or two with an operator between; `join` says what several series are."""

    first: Selector
    operator: str = ""
    second: Selector | None = None
    join: str = ""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """One point of a device, with all that its number takes; `stale_s`: how old what is read may be."""

    spec: PointSpec
    point_id: str
    choices: tuple[Choice, ...]
    needs: Selector | None = None
    written: Selector | None = None
    stale_s: float = 0.0
    bit: int | None = None

    @property
    def families(self) -> frozenset[str]:
        """The names that are asked for."""
        sides = [side for choice in self.choices for side in (choice.first, choice.second)]
        return frozenset(one.family for one in (*sides, self.needs, self.written) if one is not None)


class Found(msgspec.Struct, frozen=True):
    """What came of a point; `raw` None or a reason to doubt it, `at_s` when it was so where that is told."""

    raw: float | None = None
    reason: str = ""
    at_s: float | None = None


def make_targets(profile: Profile, device: Device) -> tuple[Target, ...]:
    """Return the points that a device has, in the profile's order; raises Rejected for a ref that is none."""
    options = {**profile.options, **device.options}
    return tuple(
        _make_target(spec, point_id, options, device.poll_s)
        for spec in profile.points
        if (point_id := spec.point_id(device.equipment, device.parts))
    )


def options_of(profile: Profile) -> frozenset[str]:
    """Return the names that the refs of a profile leave to the site."""
    texts = [text for spec in profile.points for text in (spec.ref, *map(str, spec.options.values()))]
    return frozenset(name for text in texts for name in _PLACEHOLDER.findall(text))


def parse_ref(spec: PointSpec, options: Options) -> tuple[Choice, ...]:
    """Return the ways to a point's number; raises Rejected for what is none."""
    if len(spec.ref) > REF_CHARACTERS_MAX:
        raise Rejected(f"{spec.name}: a ref has at most {REF_CHARACTERS_MAX} characters")
    choices = []
    for text in spec.ref.split(" | "):
        match = _CHOICE.fullmatch(text.strip())
        if match is None:
            raise Rejected(
                f"{spec.name}: {text[:_TOLD_MAX]!r} selects no series",
                next_step='write it as in `node_network_up{device="eth0"}`, before it min, max or sum',
            )
        join, first, operator, second = match.groups(default="")
        choices.append(
            Choice(
                parse_selector(spec, first, options),
                operator,
                parse_selector(spec, second, options) if second else None,
                join,
            )
        )
    return tuple(choices)


def parse_selector(spec: PointSpec, text: str, options: Options) -> Selector:
    """Return what a selector means on this device; raises Rejected for what is none or lacks an option."""
    family, _, rest = text.partition("{")
    inner = rest.removesuffix("}")
    matchers: list[Matcher] = []
    end = 0
    while end < len(inner):
        match = _MATCHER.match(inner, end)
        if match is None:
            raise Rejected(
                f"{spec.name}: {inner[:_TOLD_MAX]!r} are no labels",
                next_step='write label="text" or label!="text", with commas between',
            )
        matchers.append(Matcher(match[1], _fill(spec, match[3], options), is_equal=match[2] == "="))
        end = match.end()
    return Selector(family, tuple(matchers))


def read_number(target: Target, exposition: Exposition, now_s: float) -> Found:
    """Return the raw number of a point in an exporter's answer, or None with the reason."""
    if exposition.trouble:
        return Found(reason=exposition.trouble)
    if target.needs is not None and not target.needs.pick(exposition):
        return Found(reason=f"the exporter has no {target.needs}, without which this says nothing")
    for choice in target.choices:
        if choice.first.pick(exposition):
            found = _read_choice(choice, target, exposition)
            return found if target.written is None else _date(found, target.written, exposition, now_s)
    return Found(reason=f"the exporter has no {target.choices[0].first}")


def age_of(found: Found, stale_s: float, now_s: float) -> tuple[str, bool]:
    """Return what the time of a number says against it, and whether it is too old; empty where nothing."""
    if found.at_s is None:
        return "", False
    age_s = now_s - found.at_s
    if age_s > stale_s:
        return f"it is of {age_s:.0f} s ago", True
    if age_s < -AHEAD_S_MAX:
        return f"it is of {-age_s:.0f} s in the future: a clock is wrong", False
    return "", False


def _make_target(spec: PointSpec, point_id: str, options: Options, poll_s: float) -> Target:
    needs, written = str(spec.options.get("needs", "")), str(spec.options.get("written", ""))
    bit, written_s = spec.options.get("bit"), spec.options.get("written_s_max", WRITTEN_S_MAX)
    if bit is not None and not (isinstance(bit, int) and 0 <= bit < FLAGS):
        raise Rejected(f"{spec.name}: bit = {bit!r}", next_step=f"give the number of a flag, 0 to {FLAGS - 1}")
    if not isinstance(written_s, int | float) or not 0 < written_s < math.inf:
        raise Rejected(f"{spec.name}: written_s_max = {written_s!r}", next_step="give a number of seconds above 0")
    return Target(
        spec=spec,
        point_id=point_id,
        choices=parse_ref(spec, options),
        needs=parse_selector(spec, needs, options) if needs else None,
        written=parse_selector(spec, written, options) if written else None,
        stale_s=float(written_s) if written else spec.stale_s or 3 * poll_s,
        bit=bit,
    )


def _fill(spec: PointSpec, text: str, options: Options) -> str:
    def value(match: re.Match[str]) -> str:
        filled = options.get(match[1])
        if filled is None or filled == "":
            raise Rejected(
                f"{spec.name}: which one is {match[1]}?", next_step=f"give the device the option `{match[1]}`"
            )
        return str(filled)

    return _PLACEHOLDER.sub(value, text)


def _read_choice(choice: Choice, target: Target, exposition: Exposition) -> Found:
    spec, bit = target.spec, target.bit
    first = _read_side(choice.first, choice.join, exposition)
    if first.raw is None:
        return first
    raw = first.raw
    if choice.second is not None:
        second = _read_side(choice.second, choice.join, exposition)
        if second.raw is None:
            return second
        if choice.operator == "/" and second.raw == 0.0:
            return Found(reason=f"{choice.second} is 0: nothing can be divided by it")
        raw = first.raw / second.raw if choice.operator == "/" else first.raw - second.raw
    if bit is not None:
        if not 0 <= raw < FLAGS_MAX or raw != int(raw):
            return Found(reason=f"{raw:g} is no set of flags")
        raw = float(int(raw) >> bit & 1)
    declared, expected = exposition.type_of(choice.first.family), str(spec.options.get("type", ""))
    is_other = expected and declared not in (expected, "", "untyped", "unknown")
    return Found(raw, f"the exporter calls {choice.first.family} a {declared}" if is_other else "", first.at_s)


def _read_side(selector: Selector, join: str, exposition: Exposition) -> Found:
    series = selector.pick(exposition)
    if not series:
        return Found(reason=f"the exporter has no {selector}")
    if any(one.is_twice for one in series):
        return Found(reason=f"the exporter gives {selector} twice, and nobody knows which one holds")
    if len(series) > 1 and not join:
        return Found(reason=f"{len(series)} series are {selector}, and nobody knows which one is meant")
    times = [one.at_s for one in series if one.at_s is not None]
    values = [one.value for one in series]
    # What is not finite would stay so through min, max and a quotient only by luck.
    if odd := [value for value in values if not math.isfinite(value)]:
        return Found(reason=f"{selector} is {odd[0]:g}, no number")
    return Found(_join(join, values), "", min(times, default=None))


def _join(word: str, values: list[float]) -> float:
    match word:
        case "min":
            return min(values)
        case "max":
            return max(values)
        case "sum":
            return sum(values)
    return values[0]


def _date(found: Found, written: Selector, exposition: Exposition, now_s: float) -> Found:
    """Return a number with the time at which somebody wrote it, on our clock."""
    said, clock = _read_side(written, "min", exposition), exposition.series.get(NOW, ())
    if found.raw is None:
        return found
    if said.raw is None:
        return Found(found.raw, f"nobody knows when it was written: {said.reason}")
    host_now_s = clock[0].value if len(clock) == 1 else now_s
    return msgspec.structs.replace(found, at_s=now_s - (host_now_s - said.raw))
