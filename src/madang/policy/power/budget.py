"""How the watts under a site's breakers are shared out among its nodes.

Owns the sharing: everybody's least first, then the urgent before others, evenly among equals. Refuses to know why and
for how long. Called by the authority at each of its steps. Cost: nodes times limits, for each node that is satisfied.
"""

from collections.abc import Mapping, Sequence

import msgspec

from madang.core import NodeId
from madang.policy.power.topology import Limit

_DUST_W = 1e-6


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """What one node may have: never less than the least nor more than the most, urgent (0) before others."""

    w_min: float
    w_max: float
    urgency: int = 0


def allot(
    limits: Sequence[Limit], rooms_w: Sequence[float], claims: Mapping[NodeId, Claim], going: Sequence[NodeId]
) -> tuple[dict[NodeId, float], tuple[NodeId, ...]]:
    """Return watts by node, and the nodes for whose least there is no room, in the order in which they go.

    Args:
        limits: those of the site.
        rooms_w: by limit, what is there for nodes.
        claims: by node that is to run.
        going: the order in which nodes give way; those not named never do.
    """
    running = dict(claims)
    out: list[NodeId] = []
    for node in going:
        over = [i for i, limit in enumerate(limits) if _sum_least(limit, running) > rooms_w[i] + _DUST_W]
        if not over:
            break
        if node in running and any(node in limits[i].nodes for i in over):
            out.append(node)
            del running[node]
    # Giving way in that order may have been too much under some breaker: who fits after all stays.
    for node in reversed(list(out)):
        trial = {**running, node: claims[node]}
        if all(_sum_least(limit, trial) <= rooms_w[i] + _DUST_W for i, limit in enumerate(limits)):
            running = trial
            out.remove(node)
    given = {node: claim.w_min for node, claim in running.items()}
    for urgency in sorted({claim.urgency for claim in running.values()}):
        _fill(given, [node for node, claim in running.items() if claim.urgency == urgency], running, limits, rooms_w)
    return given, tuple(out)


def _sum_least(limit: Limit, running: Mapping[NodeId, Claim]) -> float:
    return sum(running[node].w_min for node in limit.nodes if node in running)


def _fill(
    given: dict[NodeId, float],
    nodes: list[NodeId],
    claims: Mapping[NodeId, Claim],
    limits: Sequence[Limit],
    rooms_w: Sequence[float],
) -> None:
    """Raise these nodes evenly until each has its most or a breaker of it is full."""
    growing = [node for node in nodes if given[node] < claims[node].w_max - _DUST_W]
    while growing:
        step_w = min(claims[node].w_max - given[node] for node in growing)
        full: set[NodeId] = set()
        for i, limit in enumerate(limits):
            count = sum(node in growing for node in limit.nodes)
            if count:
                slack_w = rooms_w[i] - sum(given.get(node, 0.0) for node in limit.nodes)
                step_w = min(step_w, max(0.0, slack_w / count))
        for node in growing:
            given[node] += step_w
        for i, limit in enumerate(limits):
            if rooms_w[i] - sum(given.get(node, 0.0) for node in limit.nodes) <= _DUST_W:
                full |= set(limit.nodes)
        left = [node for node in growing if node not in full and given[node] < claims[node].w_max - _DUST_W]
        if len(left) == len(growing):
            return
        growing = left
