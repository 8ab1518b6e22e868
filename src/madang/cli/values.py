"""Texts on the command line as values: residency, durations, instants, amounts of won, files of facts.

Owns their grammar. Refuses to read anything but the files it is given. Called by the commands.
"""

import re
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from madang.core import Rejected
from madang.model import Residency, ResidencyScope
from madang.model.price import MICRO_WON_PER_WON

_DURATION = re.compile(r"(\d{1,9})([smhdw])\Z")
_WON = re.compile(r"(\d{1,15}|\d{1,3}(?:,\d{3}){1,4})(?:\.(\d{1,6}))?\Z", re.ASCII)
_COUNT = re.compile(r"\d{1,12}\Z", re.ASCII)
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
T = TypeVar("T", bound=msgspec.Struct)


def parse_residency(text: str, *, is_transit_granted: bool) -> Residency:
    """Return the residency of `site:daegu`, `sites:a,b`, `region:r`, `nation:kr` or `any`; raises Rejected."""
    scope_text, _, places_text = text.partition(":")
    places = tuple(place.strip() for place in places_text.split(",") if place.strip())
    try:
        scope = ResidencyScope(scope_text)
    except ValueError:
        scope = None
    is_whole = scope is ResidencyScope.ANY and not places_text
    is_placed = scope is not None and scope is not ResidencyScope.ANY and bool(places)
    if scope is None or not (is_whole or is_placed) or (scope is ResidencyScope.SITE and len(places) != 1):
        raise Rejected(
            f"residency {text!r} is not valid: expected site:NAME, sites:A,B, region:NAME, nation:CODE or any",
            next_step="for example: --residency site:daegu",
        )
    return Residency(scope=scope, places=places, is_transit_granted=is_transit_granted)


def parse_duration_s(text: str) -> float:
    """Return the seconds of `45s`, `30m`, `12h`, `90d` or `4w`; raises Rejected."""
    match = _DURATION.match(text)
    if match is None:
        raise Rejected(f"duration {text!r} is not valid: expected a number and s, m, h, d or w, such as 12h")
    return float(int(match[1]) * _UNIT_S[match[2]])


def parse_instant_s(text: str, now_s: float, *, is_past: bool) -> float:
    """Return wall time in seconds of an ISO date and time, or of a duration from (or before) now.

    Args:
        text: `2026-11-22`, `2026-11-22T09:00:00+09:00`, or a duration; a date without a zone is UTC.
        now_s: wall time now.
        is_past: a duration counts backwards.
    """
    if _DURATION.match(text):
        duration_s = parse_duration_s(text)
        return now_s - duration_s if is_past else now_s + duration_s
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise Rejected(
            f"time {text!r} is not valid: expected a duration such as 24h, or a date such as 2026-11-22"
        ) from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def render_instant(value: object) -> str:
    """Return wall time in seconds as ISO text in UTC, `never` for none."""
    if not isinstance(value, int | float):
        return "never"
    return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def render_clock(value: object) -> str:
    """Return wall time in seconds as month, day and time of the reader's own zone, `-` for none."""
    if not isinstance(value, int | float):
        return "-"
    return datetime.fromtimestamp(value, UTC).astimezone().strftime("%m-%d %H:%M:%S")


def parse_won(text: str) -> int:
    """Return an amount in won, such as `1500`, `1,500` or `0.000001`, as micro-won, exactly; raises Rejected."""
    match = _WON.match(text.strip())
    if match is None:
        raise Rejected(
            f"amount {text!r} is not valid: expected won, with at most six places",
            next_step="for example 30000, 30,000 or 0.25",
        )
    return int(match[1].replace(",", "")) * MICRO_WON_PER_WON + int((match[2] or "").ljust(6, "0"))


def parse_won_or_none(text: str) -> int | None:
    """Return an amount as `parse_won` does, None for `none`."""
    return None if text.strip() == "none" else parse_won(text)


def parse_count_or_none(text: str) -> int | None:
    """Return a whole number, None for `none`; raises Rejected."""
    if text.strip() == "none":
        return None
    if not _COUNT.match(text.strip()):
        raise Rejected(f"{text!r} is not valid: expected a whole number, or none")
    return int(text)


def render_won(micro_won: object) -> str:
    """Return an amount in won, exactly, with separators of thousands; `-` for none."""
    if not isinstance(micro_won, int):
        return "-"
    whole, rest = divmod(abs(micro_won), MICRO_WON_PER_WON)
    places = f".{rest:06d}".rstrip("0").rstrip(".")
    return f"{'-' if micro_won < 0 else ''}{whole:,}{places}"


def read_facts(path: Path, table: str, kind: type[T]) -> tuple[T, ...]:
    """Return the facts in a TOML file (`[[table]]` entries, or one at the top) or a JSON file (one or a list).

    Raises:
        Rejected: naming the file, the key and what was expected.
    """
    try:
        data = path.read_bytes()
        found: Any = msgspec.json.decode(data) if path.suffix == ".json" else tomllib.loads(data.decode())
    except OSError as error:
        raise Rejected(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.MsgspecError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Rejected(f"{path} is not {'JSON' if path.suffix == '.json' else 'TOML'}: {error}") from error
    if isinstance(found, dict):
        found = found.get(table, [found])
    try:
        return msgspec.convert(found, tuple[kind, ...])  # type: ignore[valid-type]
    except msgspec.ValidationError as error:
        raise Rejected(f"{path}: {error}", next_step=f"see the fields of {table} in the API's document") from error
