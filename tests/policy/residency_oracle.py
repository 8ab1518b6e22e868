"""An oracle for residency, written from the words of docs/adr/0023 and 0033 and from nothing else.

It imports nothing of the project and knows facts only as plain texts, so that it shares neither code nor shape with
the filter: it lists what forbids, where the filter looks for what allows.
"""

from typing import NamedTuple

GRADES = ("open", "sensitive", "classified")


class Place(NamedTuple):
    """A site, as somebody knows it."""

    name: str
    region: str
    nation: str
    grade: str
    is_entry: bool


class Policy(NamedTuple):
    """What a tenant's data may do."""

    scope: str
    places: tuple[str, ...]
    grade: str
    is_transit_granted: bool


def _grade_forbids(grade: str, place: Place) -> str:
    if grade not in GRADES or place.grade not in GRADES:
        return "a grade that nobody knows"
    if grade == "open":
        return ""
    if place.nation != "kr":
        return "graded data abroad"
    if grade == "classified" and place.grade != "classified":
        return "classified data where it is not marked for it"
    if grade == "sensitive" and place.grade == "open":
        return "sensitive data where only open data may be"
    return ""


def _scope_forbids(policy: Policy, place: Place) -> str:
    wanted = set(policy.places)
    match policy.scope:
        case "any":
            return ""
        case "nation":
            return "" if {place.nation} & wanted else "another nation"
        case "region":
            return "" if {place.region} & wanted else "another region"
        case "site" | "sites":
            return "" if {place.name} & wanted else "another site"
    return "a scope that nobody knows"


def serving_forbidden(policy: Policy, place: Place | None) -> str:
    """Return why a site must not serve or keep it, empty when it may."""
    if place is None:
        return "a site that is not known"
    return _grade_forbids(policy.grade, place) or _scope_forbids(policy, place)


def passing_forbidden(policy: Policy, place: Place | None) -> str:
    """Return why a site must not even pass it on unread, empty when it may."""
    if not serving_forbidden(policy, place):
        return ""
    if place is None:
        return "a site that is not known"
    if not policy.is_transit_granted:
        return "nobody granted transit"
    if policy.grade == "classified":
        return "classified data in transit"
    return _grade_forbids(policy.grade, place)


def engine_forbidden(grade: str, engine_grade: str) -> str:
    """Return why an engine must not see it, empty when it may."""
    if grade not in GRADES or engine_grade not in GRADES:
        return "a grade that nobody knows"
    return "" if GRADES.index(grade) <= GRADES.index(engine_grade) else "an engine that may not see that grade"


def link_forbidden(grade: str, link_grade: str) -> str:
    """Return why data must not go over a link, empty when they may; one that is in clear is of grade `open`."""
    if grade not in GRADES or link_grade not in GRADES:
        return "a grade that nobody knows"
    return "" if GRADES.index(grade) <= GRADES.index(link_grade) else "graded data over a link that is in clear"
