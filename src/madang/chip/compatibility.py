"""Which versions go together: rules that manifests hold as data, and the verdict on one card.

Owns the small grammar of ranges. Refuses to know vendors. Called by chip drivers for what a machine has, and by
engines for what they bring.
"""

import re
from collections.abc import Mapping, Sequence

import msgspec

_VERSION = re.compile(r"v?(\d{1,9}(?:\.\d{1,9}){0,5})")
_TERM = re.compile(r"\s*(>=|<=|==|>|<)\s*v?(\d{1,9}(?:\.\d{1,9}){0,5})\s*\Z")


class VersionRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When all of `when` hold, all of `needs` must.

    Attributes:
        when, needs: range by fact (`driver`, `firmware`, `sdk`), such as `>=2026.4` or `>=3.0, <3.3`; for the fact
            `model` a beginning of the product's name. Versions are compared to the digits that a range names, so
            `==0.11` takes every 0.11.x.
        reason: what goes wrong otherwise.
        source: who says so.
    """

    when: dict[str, str]
    needs: dict[str, str]
    reason: str
    source: str


def parse_version(text: str) -> tuple[int, ...]:
    """Return the leading dotted numbers of a version such as `2026.3.1, e28c5c0`; empty when there are none."""
    match = _VERSION.match(text.strip())
    return tuple(int(part) for part in match[1].split(".")) if match else ()


def is_in_range(version: tuple[int, ...], ranges: str) -> bool:
    """Return whether a version lies in every comma-separated term; a malformed term is never true."""
    return all(_holds(version, term) for term in ranges.split(","))


def _holds(version: tuple[int, ...], term: str) -> bool:
    match = _TERM.match(term)
    if match is None:
        return False
    bound = parse_version(match[2])
    known = (version + (0,) * len(bound))[: len(bound)]
    return {
        ">=": known >= bound,
        "<=": known <= bound,
        "==": known == bound,
        ">": known > bound,
        "<": known < bound,
    }[match[1]]


def find_incompatibility(rules: Sequence[VersionRule], facts: Mapping[str, str]) -> str:
    """Return why this combination must not be used, or empty; a rule about an unknown version does not speak.

    Args:
        rules: in order; the first that is broken gives the answer.
        facts: `model` and versions as the vendor writes them; empty or absent where unknown.
    """
    for rule in rules:
        if not all(_is_met(facts.get(fact, ""), fact, ranges) for fact, ranges in rule.when.items()):
            continue
        for fact, ranges in rule.needs.items():
            if _is_met(facts.get(fact, ""), fact, ranges) is False:
                with_what = ", ".join(f"{name} {facts[name]}" for name in rule.when if facts.get(name))
                return f"{fact} {facts[fact]} with {with_what}: {fact} {ranges} is needed; {rule.reason}"
    return ""


def _is_met(known: str, fact: str, ranges: str) -> bool | None:
    if fact == "model":
        return known.startswith(ranges) if known else None
    version = parse_version(known)
    return is_in_range(version, ranges) if version else None
