"""The text that exporters answer with, taken apart: Prometheus text format 0.0.4 and OpenMetrics 1.0.

Owns lines, labels, escapes and numbers, and every bound on them. Refuses to know which series mean what, and to open a
connection. Called by the codec.

One malformed line makes the whole answer no answer, as Prometheus takes it: what is damaged in one place is not to be
believed in another. Names that nobody asks for are checked in shape only and kept nowhere, so that an exporter may have
as many as it likes within the bounds.
"""

import re
from collections.abc import Collection, Mapping

import msgspec

BYTES_MAX = 1024 * 1024
"""Of one answer; node_exporter 1.5.0 gives 58 KB in 1,073 lines on a small machine. At these bounds a reading takes
0.3 s of the site program at most (labels full of escapes; measured on a busy machine)."""
LINES_MAX = 20_000
LINE_CHARACTERS_MAX = 16 * 1024
LABELS_MAX = 32
SERIES_MAX = 4096
"""Of names that are asked for."""
OPEN_METRICS = "application/openmetrics-text"
_TEXT = "text/plain"
_MS_PER_S = 1000.0
_QUOTED_MAX = 60
# Every repetition is possessive: nothing is tried twice, so that time grows with the length alone.
_LINE = re.compile(
    r"(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*+)[ \t]*+"
    r'(?:\{(?P<labels>(?:[^"{}]|"(?:[^"\\]|\\.)*+")*+)\})?+'
    r"[ \t]*+(?P<value>[^ \t#{}]++)(?:[ \t]++(?P<at>[0-9.eE+-]++))?+[ \t]*+(?P<exemplar># \{.*+)?"
)
_LABEL = re.compile(r'[ \t]*+([a-zA-Z_][a-zA-Z0-9_]*+)[ \t]*+=[ \t]*+"((?:[^"\\]|\\.)*+)"[ \t]*+(,|\Z)')
_NUMBER = re.compile(r"[+-]?(?:(?:[0-9]++\.?[0-9]*+|\.[0-9]++)(?:[eE][+-]?[0-9]++)?|inf|infinity|nan)", re.IGNORECASE)
_MILLISECONDS = re.compile(r"-?[0-9]{1,18}")
_ESCAPE = re.compile(r"\\(.)")
_UNESCAPED = {"n": "\n", "\\": "\\", '"': '"'}


class Series(msgspec.Struct, frozen=True):
    """One series with its value.

    Attributes:
        at_s: wall time that the exporter gives for it; None where it gives none, which is as usual.
        is_twice: the exporter gave it more than once, and nobody knows which one holds.
    """

    name: str
    labels: Mapping[str, str]
    value: float
    at_s: float | None = None
    is_twice: bool = False


class Exposition(msgspec.Struct, frozen=True):
    """What an exporter answered.

    Attributes:
        series: by name, those that were asked for.
        types: by name: counter, gauge and the others that are declared.
        trouble: why there is nothing; empty when all is well.
    """

    series: Mapping[str, tuple[Series, ...]] = {}
    types: Mapping[str, str] = {}
    trouble: str = ""

    def type_of(self, name: str) -> str:
        """Return the declared type of a series' family; empty where none is."""
        # OpenMetrics declares a counter without the suffix that its series carry.
        return self.types.get(name) or self.types.get(name.removesuffix("_total"), "")


class _Malformed(Exception):
    """A line that is none; the message says what is wrong with it."""


def parse(data: bytes, content_type: str, wanted: Collection[str]) -> Exposition:
    """Return the series of the names that are wanted, or the trouble; never raises."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in (_TEXT, OPEN_METRICS):
        return Exposition(trouble=f"the answer is {kind[:_QUOTED_MAX] or 'of no stated kind'}, no exposition")
    if len(data) > BYTES_MAX:
        return Exposition(trouble=f"the answer is over {BYTES_MAX} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return Exposition(trouble="the answer is not UTF-8")
    if not text.endswith("\n"):
        return Exposition(trouble="the answer ends within a line" if text else "the answer is empty")
    lines = text.split("\n")
    if len(lines) > LINES_MAX:
        return Exposition(trouble=f"the answer has more than {LINES_MAX} lines")
    is_open_metrics = kind == OPEN_METRICS
    if is_open_metrics and lines[-2] != "# EOF":
        return Exposition(trouble="the answer has no `# EOF`: it was cut off")
    reader = _Reader(frozenset(wanted), is_open_metrics=is_open_metrics)
    for number, line in enumerate(lines, 1):
        try:
            reader.take(line)
        except _Malformed as error:
            return Exposition(trouble=f"line {number} of the answer {error}: {line[:_QUOTED_MAX]!r}")
    return Exposition({name: tuple(rows.values()) for name, rows in reader.found.items()}, reader.types)


class _Reader:
    """One pass over the lines."""

    def __init__(self, wanted: frozenset[str], *, is_open_metrics: bool) -> None:
        self._wanted = wanted | {name.removesuffix("_total") for name in wanted}
        self._is_open_metrics = is_open_metrics
        self._count = 0
        self.found: dict[str, dict[frozenset[tuple[str, str]], Series]] = {}
        self.types: dict[str, str] = {}

    def take(self, line: str) -> None:
        if len(line) > LINE_CHARACTERS_MAX:
            raise _Malformed(f"is over {LINE_CHARACTERS_MAX} characters")
        if line.startswith("#"):
            self._take_comment(line)
        elif line and not line.isspace():
            self._take_sample(line)

    def _take_comment(self, line: str) -> None:
        words = line.split()
        if len(words) == 4 and words[:2] == ["#", "TYPE"] and words[2] in self._wanted:
            self.types[words[2]] = words[3].lower()

    def _take_sample(self, line: str) -> None:
        match = _LINE.fullmatch(line)
        if match is None:
            raise _Malformed("is no series")
        if match["exemplar"] and not self._is_open_metrics:
            raise _Malformed("has an exemplar, which this format does not know")
        value, at_s = _to_number(match["value"]), self._to_time(match["at"])
        name = match["name"]
        if name not in self._wanted:
            return
        self._count += 1
        if self._count > SERIES_MAX:
            raise _Malformed(f"is one more than the {SERIES_MAX} series that are taken")
        labels = _to_labels(match["labels"] or "")
        rows, key = self.found.setdefault(name, {}), frozenset(labels.items())
        rows[key] = Series(name, labels, value, at_s, is_twice=key in rows)

    def _to_time(self, text: str | None) -> float | None:
        if text is None:
            return None
        if self._is_open_metrics:
            return _to_number(text)
        if not _MILLISECONDS.fullmatch(text):
            raise _Malformed("has a time that is none")
        return int(text) / _MS_PER_S


def _to_number(text: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise _Malformed("has a value that is no number")
    return float(text)


def _to_labels(text: str) -> dict[str, str]:
    labels: dict[str, str] = {}
    end = 0
    text = text.rstrip(" \t")
    while end < len(text):
        match = _LABEL.match(text, end)
        if match is None:
            raise _Malformed("has labels that are none")
        if match[1] in labels:
            raise _Malformed("has a label twice")
        labels[match[1]] = _ESCAPE.sub(lambda found: _UNESCAPED.get(found[1], found[0]), match[2])
        if len(labels) > LABELS_MAX:
            raise _Malformed(f"has more than {LABELS_MAX} labels")
        end = match.end()
    return labels


def render_sample(name: str, labels: Mapping[str, str], value: float) -> str:
    """Return the line of a series, as an exporter writes it."""
    written = ",".join(f'{key}="{escape(text)}"' for key, text in labels.items())
    return f"{name}{{{written}}} {value!r}" if written else f"{name} {value!r}"


def escape(text: str) -> str:
    """Return a label's value as it stands between its quotes."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
