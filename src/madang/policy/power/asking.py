"""How proposers ask: the same thing in the same words each second, for as long as they want it.

Owns the form of a policy's requests. Refuses to know what is asked for. Called by the proposers.
"""

from collections.abc import Iterable, Mapping

from madang.core import NodeId
from madang.model import PriorityClass, Request, Verb
from madang.policy.power.topology import Topology
from madang.policy.power.view import NodeLoad, View, value_of

TTL_S = 30.0
"""A proposer asks each second; one that is gone for so long has lapsed (engineering value)."""


def ask(requester: str, verb: Verb, target: str, value: float | None = None, *, reason: str) -> Request:
    """Return a request whose id says all that it asks for, so that asking again is the same request."""
    shown = "" if value is None else f"/{value:g}"
    return Request(
        request_id=f"{requester}/{verb.value}/{target}{shown}",
        requester=requester,
        verb=verb,
        target=target,
        value=value,
        ttl_s=TTL_S,
        reason=reason,
    )


def ask_caps(requester: str, wanted_w: Mapping[str, float], view: View, *, reason: str) -> list[Request]:
    """Return caps for all targets, and what takes back those that this requester holds and wants no more."""
    asked = [ask(requester, Verb.CAP, target, float(int(watts)), reason=reason) for target, watts in wanted_w.items()]
    prefix = f"{requester}/{Verb.CAP.value}/"
    held = [key.removeprefix(prefix) for key in view.held if key.startswith(prefix)]
    return asked + [
        ask(requester, Verb.UNCAP, target, reason="over") for target in sorted(held) if target not in wanted_w
    ]


def ask_shed(requester: str, topology: Topology, first: PriorityClass, *, reason: str) -> Request:
    """Return the wish that this class and less urgent ones are refused."""
    return ask(requester, Verb.SHED, topology.site, float(first.rank), reason=reason)


def ask_spill(requester: str, topology: Topology, view: View, *, reason: str) -> list[Request]:
    """Return the wish to spill, where there is a peer to spill to."""
    return [ask(requester, Verb.SPILL, topology.site, reason=reason)] if view.peers else []


def ask_nodes(requester: str, verb: Verb, nodes: Iterable[NodeId], *, reason: str) -> list[Request]:
    """Return one wish for each node."""
    return [ask(requester, verb, node, reason=reason) for node in nodes]


def cap_of(load: NodeLoad | None, plate_w: float, part: float) -> float | None:
    """Return the cap that is this part of a name plate, or the least that the BMC takes; None where it takes none."""
    if load is None or not load.can_cap:
        return None
    return min(plate_w, max(load.cap_w_min, part * plate_w, 1.0))


def ask_site_cap(
    requester: str, view: View, topology: Topology, site_w_max: float, site_w: float, *, reason: str
) -> list[Request]:
    """Return the cap on all nodes together by which a site that draws `site_w` comes to draw `site_w_max`.

    In steps of 50 W, so that a controller's ripple is no new request; never below what caps can reach.
    """
    powers = [value_of(load.power_w) for load in view.nodes.values()]
    known = [power for power in powers if power is not None]
    if len(known) < len(topology.nodes):
        return []
    least_w = sum(load.cap_w_min for load in view.nodes.values() if load.can_cap)
    wanted_w = max(least_w, 50.0, 50.0 * ((sum(known) + site_w_max - site_w) // 50.0))
    return ask_caps(requester, {topology.site: wanted_w}, view, reason=reason)
