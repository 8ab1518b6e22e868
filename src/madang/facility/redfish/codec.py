"""Redfish documents to raw numbers and back: places, links, values, and what a service says when it refuses.

Owns the grammar of a profile's `ref`, which link may be followed, and how JSON becomes a number. Refuses to open a
connection. Called by the driver, and by the twin, which finds the places of its own tree by the same grammar.

A ref is one or more places, separated by ` | `, of which the first that the service has is taken. A place is
`hops#pointer`: from the service root, each hop names a member that is a link and is followed, as the specification
(DSP0266, "Resource identification") asks of clients; URIs are never put together. Among the members of a collection
or of an array of links, `{chassis}` takes the one that the device's option `chassis` names, or the only one, and
`@2` the third in the natural order of their URIs. The pointer names a value within the document that the last hop
leads to; where it meets an array, a number counts and `[Key=Value]` searches.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from madang.core import Rejected
from madang.facility.profile import PointSpec
from madang.model import PointKind, Quantity

ROOT = "/redfish/v1/"
LINK_CHARACTERS_MAX = 512
MEMBERS_MAX = 512
"""Members of one collection that are looked at; a rack PDU has some 48 outlets."""
_HOP = re.compile(r"[A-Za-z][A-Za-z0-9]*|\{[a-z_]+\}|@[0-9]{1,3}")
_TOKEN = re.compile(r"\[(\w+)=([^\]/]+)\]")
_LINK = re.compile(r"/redfish(/[A-Za-z0-9._~!$&'()*+,;=:@%-]*)*(#\S*)?")
_AWAY = frozenset({"Absent", "Disabled", "UnavailableOffline"})
"""Values of Resource.State in which a reading beside it is none (DSP0268, Status)."""

Node = Any
Options = Mapping[str, str | int | float | bool]


class Place(msgspec.Struct, frozen=True):
    """Where a value is: hops from the service root to its document, then a pointer within it."""

    hops: tuple[str, ...]
    pointer: tuple[str, ...]

    def __str__(self) -> str:
        return f"{'/'.join(self.hops)}#/{'/'.join(self.pointer)}"


class Step(msgspec.Struct, frozen=True):
    """What a hop leads to: a link or an array of links; None with the trouble."""

    node: Node
    trouble: str = ""


class Pick(msgspec.Struct, frozen=True):
    """What a pointer leads to: the value and the object around it."""

    is_found: bool
    value: Node = None
    around: Node = None


def parse_ref(ref: str) -> tuple[Place, ...]:
    """Return the places that a ref names, first choice first; raises Rejected for what is no ref."""
    places = []
    for text in ref.split(" | "):
        path, mark, pointer = text.strip().partition("#/")
        hops, tokens = path.split("/"), tuple(pointer.split("/"))
        if not mark or not all(_HOP.fullmatch(hop) for hop in hops) or not all(tokens):
            raise Rejected(
                f"{ref!r} is no place in a Redfish service",
                next_step="write hops and a pointer, as in Chassis/{chassis}/EnvironmentMetrics#/PowerWatts/Reading",
            )
        places.append(Place(tuple(hops), tokens))
    return tuple(places)


def decode(data: bytes) -> dict[str, Node] | None:
    """Return the JSON object that `data` is; None for anything else."""
    try:
        document = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    return document if isinstance(document, dict) else None


def follow(node: Node, hop: str, options: Options) -> Step:
    """Return what a hop leads to from a document or an array of links."""
    if hop[0] not in "{@":
        if not isinstance(node, dict) or hop not in node:
            return Step(None, f"the service has no {hop} here")
        return Step(node[hop])
    members = _members(node)
    if hop[0] == "@":
        number = int(hop[1:])
        return Step(members[number]) if number < len(members) else Step(None, f"there are only {len(members)} of them")
    key = hop[1:-1]
    wanted = options.get(key)
    names = [last_segment(link_of(member)) for member in members]
    if wanted is not None:
        found = [member for member, name in zip(members, names, strict=True) if name == str(wanted)]
    else:
        found = members
    if len(found) == 1:
        return Step(found[0])
    told = ", ".join(names[:8]) or "none"
    if wanted is not None:
        return Step(None, f"there is no {key} {wanted!r}; there are: {told}")
    return Step(None, f"which {key} is meant is not said; the option {key!r} names one of: {told}")


def link_of(node: Node) -> str:
    """Return where a link object points to; empty when it is none."""
    link = node.get("@odata.id") if isinstance(node, dict) else None
    return link if isinstance(link, str) else ""


def own_path(link: str, origin: str) -> str:
    """Return the path of a link that stays with the service; empty for any other.

    What leads to another scheme, host or port, or out of /redfish, is never followed: it would carry our
    credentials to whoever is named there.
    """
    if len(link) > LINK_CHARACTERS_MAX:
        return ""
    path = link.removeprefix(origin) if link.lower().startswith(("http:", "https:")) else link
    if not _LINK.fullmatch(path) or ".." in path or "//" in path:
        return ""
    return path.partition("#")[0]


def last_segment(link: str) -> str:
    """Return the last part of a link's path: a resource's id in its collection."""
    return link.rstrip("/").rpartition("/")[2]


def pick(document: Node, pointer: tuple[str, ...]) -> Pick:
    """Return what a pointer leads to."""
    around, node = None, document
    for token in pointer:
        around = node
        if isinstance(node, dict) and token in node:
            node = node[token]
            continue
        node = _element(node, token)
        if node is None:
            return Pick(is_found=False)
    return Pick(is_found=True, value=node, around=around)


def read_number(spec: PointSpec, found: Pick) -> tuple[float | None, str]:
    """Return the raw number of a value, or None with the reason; a number with a reason is doubted."""
    if not found.is_found:
        return None, "the device leaves it out"
    if found.value is None:
        return None, "the device says null, its word for no value"
    # A server that is off may be "Disabled" and still has a power state; a detector that is has nothing to say.
    is_told_anyway = spec.quantity is Quantity.STATE and spec.kind is not PointKind.ALARM
    if not is_told_anyway and (state := _away(found.around)):
        return None, f"the device says that it is {state}"
    if inactive := spec.options.get("inactive_when"):
        return _limit_in_force(spec, found, str(inactive))
    return _to_number(spec, found.value)


def redfish_word(word: str) -> str:
    """Return the Redfish enumeration's value for a word of ours."""
    return "OK" if word == "ok" else "".join(part.capitalize() for part in word.split("_"))


def words_of(spec: PointSpec) -> list[tuple[str, str]]:
    """Return the enumeration's values that a state stands for, each with its number; the first of a number is sent.

    The option `words` lists them where a state is coarser than what the device says, as
    `OK=0 Critical=1 Warning=1`.
    """
    if listed := str(spec.options.get("words", "")):
        return [(word, number) for word, _, number in (part.partition("=") for part in listed.split())]
    return [(redfish_word(word), number) for number, word in spec.states.items()]


def to_json(spec: PointSpec, raw: float) -> Node:
    """Return the JSON value that stands for a raw number: an enumeration's word for a state, else a number."""
    if spec.quantity is Quantity.STATE:
        return next((word for word, number in words_of(spec) if number == f"{raw:g}"), "")
    return int(raw) if raw == int(raw) else raw


def patch_body(place: Place, value: Node, siblings: Mapping[str, Node]) -> dict[str, Node]:
    """Return the body of a PATCH that sets one value and, in the same object, `siblings`.

    Elements of an array before the one that changes are empty objects, which leave them as they are (DSP0266,
    "PATCH on array properties").
    """
    body: Node = {**siblings, place.pointer[-1]: value}
    for token in reversed(place.pointer[:-1]):
        body = [{}] * int(token) + [body] if token.isdigit() else {token: body}
    assert isinstance(body, dict)
    return body


def allowed_range(found: Pick) -> tuple[float, float]:
    """Return what the service itself says a set point may be; infinite where it does not say."""

    def bound(name: str, unbounded: float) -> float:
        value = found.around.get(name) if isinstance(found.around, dict) else None
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else unbounded

    return bound("AllowableMin", -math.inf), bound("AllowableMax", math.inf)


def refusal(data: bytes) -> str:
    """Return what a service says in its error object (DSP0266, "Error responses"), shortened; empty without."""
    document = decode(data) or {}
    error = document.get("error", document)
    details = error.get("@Message.ExtendedInfo") if isinstance(error, dict) else None
    texts = [one.get("Message") for one in details if isinstance(one, dict)] if isinstance(details, list) else []
    if isinstance(error, dict):
        texts.append(error.get("message"))
    return next((text[:200] for text in texts if isinstance(text, str) and text), "")


def _members(node: Node) -> list[Node]:
    if isinstance(node, dict):
        node = node.get("Members")
    links = [one for one in node if link_of(one)][:MEMBERS_MAX] if isinstance(node, list) else []
    return sorted(links, key=lambda one: _natural(link_of(one)))


def _natural(link: str) -> list[tuple[int, int, str]]:
    """Return a key that puts `Outlets/10` after `Outlets/9`."""
    parts = re.findall(r"[0-9]+|[^0-9]+", link[:LINK_CHARACTERS_MAX])
    return [(0, int(part), "") if part.isascii() and part.isdigit() else (1, 0, part) for part in parts]


def _element(node: Node, token: str) -> Node:
    if not isinstance(node, list):
        return None
    if token.isdigit():
        return node[int(token)] if int(token) < len(node) else None
    if match := _TOKEN.fullmatch(token):
        return next((one for one in node if isinstance(one, dict) and one.get(match[1]) == match[2]), None)
    return None


def _away(around: Node) -> str:
    """Return the state by which the object around a value says that it is not there; empty for any other."""
    status = around.get("Status", around) if isinstance(around, dict) else None
    state = status.get("State") if isinstance(status, dict) else None
    return state if isinstance(state, str) and state in _AWAY else ""


def _limit_in_force(spec: PointSpec, found: Pick, inactive_when: str) -> tuple[float | None, str]:
    """Return a set point, or, where a member beside it says that it is not in force, the bound that then holds.

    A BMC may show a SetPoint that nothing enforces (ControlMode "Disabled"); taken for a cap it would promise power
    that is not saved.
    """
    member, _, inactive = inactive_when.partition("=")
    if not isinstance(found.around, dict) or found.around.get(member) != inactive:
        return _to_number(spec, found.value)
    bound = found.around.get(str(spec.options.get("inactive_value", "")))
    reason = f"{member} is {inactive}: the set point {str(found.value)[:20]} is not in force"
    raw, _ = _to_number(spec, bound)
    return raw, reason


def _to_number(spec: PointSpec, value: Node) -> tuple[float | None, str]:
    if isinstance(value, bool) and spec.quantity is Quantity.STATE:
        return float(value), ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value), ""
        except OverflowError:
            return None, "the device gave no finite number"
    if isinstance(value, str) and spec.quantity is Quantity.STATE:
        words = words_of(spec)
        number = next((number for word, number in words if word.lower() == value.lower()), None)
        if number is not None:
            return float(number), ""
        return None, f"{value[:40]!r} is none of the states {', '.join(word for word, _ in words)}"
    return None, f"the device gave {type(value).__name__} where a number belongs"
