"""NUT's text protocol to raw numbers and back.

Owns lines, quoting, the tokens of ups.status and which of a UPS's words are no values. Refuses to open a connection.
Called by the driver and by the twin.

A ref is one or more variables, separated by ` | `, of which the first that the UPS has is taken. `ups.status#OB` is
1 where the token OB is among the status's tokens. Source: NUT's developer guide, "Network protocol information" (also
RFC 9271) and "Variables"; its upscli documents for the errors.
"""

import math
import re
from collections.abc import Mapping

import msgspec

from madang.core import Rejected
from madang.facility.profile import PointSpec

LINE_BYTES_MAX = 4096
LINES_MAX = 512
"""Of one LIST VAR; large UPSs have some 150 variables."""
STATUS = "ups.status"
UNKNOWN = "unknown"
"""The token of a ref that counts those which are not known."""
_TOLD_MAX = 120
KNOWN_TOKENS = frozenset(
    {
        "ALARM",
        "BOOST",
        "BYPASS",
        "CAL",
        "CHRG",
        "COMM",
        "DISCHRG",
        "ECO",
        "FSD",
        "HB",
        "LB",
        "NOCOMM",
        "OB",
        "OFF",
        "OL",
        "OVER",
        "OVERHEAT",
        "RB",
        "TEST",
        "TRIM",
        "WAIT",
    }
)
"""Tokens of ups.status that NUT documents (new-drivers.txt, "Status data"; upsmon's notions); drivers invent others."""
_REF = re.compile(r"[A-Za-z0-9._-]+(#[A-Za-z0-9_]+)?")
_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"|([^\s"]+)')
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Message(msgspec.Struct, frozen=True):
    """One line of the protocol, taken apart: words without their quotes."""

    words: tuple[str, ...]

    @property
    def error(self) -> str:
        """The error's code, such as DATA-STALE; empty where it is none."""
        return self.words[1] if self.words[0] == "ERR" and len(self.words) > 1 else ""


class Status(msgspec.Struct, frozen=True):
    """ups.status as the set that it is; what is not known is kept."""

    known: frozenset[str] = frozenset()
    unknown: tuple[str, ...] = ()


def parse_line(line: bytes) -> Message | None:
    """Return the message that a line is; None for what is none."""
    try:
        text = line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        return None
    if len(line) > LINE_BYTES_MAX or not text.isprintable():
        return None
    words, end = [], 0
    while end < len(text):
        if text[end] == " ":
            end += 1
            continue
        match = _WORD.match(text, end)
        if match is None:
            return None
        words.append(re.sub(r"\\(.)", r"\1", match[1]) if match[2] is None else match[2])
        end = match.end()
    return Message(tuple(words)) if words else None


def quote(text: str) -> str:
    """Return a text as the protocol quotes it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def check_name(name: str, what: str) -> str:
    """Return a name of a UPS or a user that may go on the wire; raises Rejected for another."""
    if not _NAME.fullmatch(name):
        raise Rejected(f"{name!r} is no name of {what}", next_step="use letters, digits, dot, dash and underscore")
    return name


def parse_ref(ref: str) -> tuple[tuple[str, str], ...]:
    """Return variables with the token of each, or an empty one; raises Rejected for what is no ref."""
    parts = [part.strip() for part in ref.split(" | ")]
    if not all(_REF.fullmatch(part) for part in parts):
        raise Rejected(f"{ref!r} is no variable of NUT", next_step="write a name as in battery.charge or ups.status#OB")
    return tuple((name, token) for name, _, token in (part.partition("#") for part in parts))


def parse_status(text: str) -> Status:
    """Return the tokens of ups.status."""
    tokens = text.split()
    known = frozenset(token for token in tokens if token in KNOWN_TOKENS)
    return Status(known, tuple(sorted({token for token in tokens if token not in KNOWN_TOKENS})))


def read_number(spec: PointSpec, variables: Mapping[str, str]) -> tuple[float | None, str]:
    """Return the raw number of a point among a UPS's variables, or None with the reason."""
    for name, token in parse_ref(spec.ref):
        if name not in variables:
            continue
        if token:
            return _token_state(spec, parse_status(variables[name]), token)
        raw = to_number(variables[name])
        if raw is None:
            return None, f"{name} is {variables[name][:40]!r}, no number"
        return _doubt(spec, raw, variables)
    return None, f"the UPS has no {spec.ref}"


def to_number(text: str) -> float | None:
    """Return the number that a text is; None for any other text."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in text else None


def _token_state(spec: PointSpec, status: Status, token: str) -> tuple[float | None, str]:
    """Return whether a token is set.

    Where the profile names the token's opposite (`clear`), the absence of both is no answer: a driver that lost its
    UPS may say neither OL nor OB.
    """
    tokens = status.known | set(status.unknown)
    clear = str(spec.options.get("clear", ""))
    if token == UNKNOWN:
        told = " ".join(status.unknown)[:_TOLD_MAX]
        return float(len(status.unknown)), f"tokens that are not known: {told}" if told else ""
    if token in tokens:
        return 1.0, f"the status has {clear} beside {token}" if clear in tokens else ""
    if clear and clear not in tokens:
        return None, f"the status has neither {token} nor {clear}: {' '.join(sorted(tokens))[:_TOLD_MAX] or 'nothing'}"
    return 0.0, ""


def _doubt(spec: PointSpec, raw: float, variables: Mapping[str, str]) -> tuple[float | None, str]:
    """Return a number, or none where it is a known lie: many UPSs say 0 s of runtime while mains carry the load."""
    lie = spec.options.get("no_value_on_mains")
    if lie is not None and raw == lie and "OL" in parse_status(variables.get(STATUS, "")).known:
        return None, f"the UPS says {raw:g} while it is on mains, which is no estimate"
    return raw, ""
