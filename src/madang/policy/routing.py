"""Which replica or which peer site serves a request: the one place that chooses, and tries again.

Owns the choice. Refuses to know web requests, sockets and clocks. The gateway calls `choose_route` once for each
attempt; the simulator calls the same function. Residency is judged here for every candidate, whatever was judged
before, and a site that is not known is not legal.

Order of preference: a replica of this site with a free slot; a legal peer with one; the queue of a replica here;
a legal peer's queue; then the same among those that failed a moment ago. Within a class the most free slots or
the shortest predicted wait win; ties fall by the request's seed among replicas, by name among peers.
"""

from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum

import msgspec

from madang.core import ReplicaId, SiteId, draw_unit
from madang.model import Residency, Site
from madang.policy.residency import is_allowed

DIGEST_AGE_MAX_S = 1.5
"""Three digest periods of 0.5 s: an older digest describes a site that may be gone."""
QUEUE_PER_SLOT_MAX = 4
"""Requests in flight per slot, over which a replica is full: three wait for each that runs. An engine that runs a
request for 10 s makes the last of them wait half a minute, about what a client bears."""
OVERLOADED_RETRY_S = 2.0
NO_REPLICA_RETRY_S = 5.0
"""An engine restarts in 2 to 6 s (facts: engines)."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be routed.

    Attributes:
        service: empty when the body may not be read here; then any legal peer that serves anything will do.
        hops_left: how many more gateways it may pass.
        is_local_barred: true when this site must not serve it (an entry that may only pass it on).
    """

    service: str
    residency: Residency
    hops_left: int
    is_local_barred: bool = False


class ReplicaChoice(msgspec.Struct, frozen=True):
    """A ready replica of this site; `in_flight` counts all workers, `is_suspect` means it failed a moment ago."""

    replica_id: ReplicaId
    slots: int
    in_flight: int
    is_suspect: bool = False


class PeerChoice(msgspec.Struct, frozen=True):
    """What is known of the asked service at a peer.

    Attributes:
        digest_age_s: when the feed was written; negative means that none was ever seen.
        is_suspect: it failed or stayed silent a moment ago.
    """

    site: SiteId
    digest_age_s: float
    replicas_ready: int
    slots: int
    in_flight: int
    is_suspect: bool = False


class View(msgspec.Struct, frozen=True, kw_only=True):
    """The world of one choice, each part possibly stale.

    Attributes:
        site: where we are.
        sites: every site of the federation by name.
        replicas: ready replicas of the asked service here.
        peers: peers that may serve it, in any order.
    """

    site: SiteId
    sites: Mapping[SiteId, Site]
    replicas: tuple[ReplicaChoice, ...]
    peers: tuple[PeerChoice, ...]


class ToReplica(msgspec.Struct, frozen=True):
    """Serve it here."""

    replica_id: ReplicaId


class ToPeer(msgspec.Struct, frozen=True):
    """Spill it to another site."""

    site: SiteId


class RefusalReason(StrEnum):
    """Why nobody serves it."""

    RESIDENCY = "residency"
    NO_REPLICA = "no_replica"
    OVERLOADED = "overloaded"


class Refusal(msgspec.Struct, frozen=True):
    """Nobody serves it now; `retry_after_s` is None when waiting does not help."""

    reason: RefusalReason
    retry_after_s: float | None = None


Route = ToReplica | ToPeer


def choose_route(ask: Ask, view: View, tried: Collection[Route], seed: int) -> Route | Refusal:
    """Return where the next attempt goes.

    Args:
        ask: what is to be served.
        view: what is known.
        tried: routes that failed already; never returned again.
        seed: of the request; the same arguments give the same answer.
    """
    replicas = _usable_replicas(ask, view, tried)
    free = [choice for choice in replicas if not choice.is_suspect and choice.in_flight < choice.slots]
    if free:
        return ToReplica(_most_free(free, seed).replica_id)
    peers = _usable_peers(ask, view, tried)
    found = _first_peer(choice for choice in peers if not choice.is_suspect and choice.in_flight < choice.slots)
    if found is not None:
        return found
    for is_suspect in (False, True):
        room = [choice for choice in replicas if choice.is_suspect is is_suspect and _has_room(choice)]
        if room:
            return ToReplica(_most_free(room, seed).replica_id)
        found = _first_peer(choice for choice in peers if choice.is_suspect is is_suspect and _has_room(choice))
        if found is not None:
            return found
    if replicas or peers:
        return Refusal(RefusalReason.OVERLOADED, OVERLOADED_RETRY_S)
    if legal_sites(ask.residency, view.sites.values()):
        return Refusal(RefusalReason.NO_REPLICA, NO_REPLICA_RETRY_S)
    return Refusal(RefusalReason.RESIDENCY)


def legal_sites(residency: Residency, sites: Iterable[Site]) -> list[Site]:
    """Return the sites with chips that may serve under `residency`, by name."""
    return sorted(
        (site for site in sites if not site.is_entry_only and is_allowed(residency, site)),
        key=lambda site: site.name,
    )


def is_peer_current(digest_age_s: float) -> bool:
    """Return whether a digest that was so old when the feed was written may be believed.

    The feed's own age is left out on purpose. Alive, the site process rewrites it four times a second; dead, what
    it last said of its peers is better than nothing, and a choice that fails costs one attempt.
    """
    return 0.0 <= digest_age_s <= DIGEST_AGE_MAX_S


def _is_legal(ask: Ask, view: View, name: SiteId) -> bool:
    site = view.sites.get(name)
    return site is not None and is_allowed(ask.residency, site)


def _usable_replicas(ask: Ask, view: View, tried: Collection[Route]) -> list[ReplicaChoice]:
    if ask.is_local_barred or not view.replicas or not _is_legal(ask, view, view.site):
        return []
    if not tried:
        return list(view.replicas)
    return [choice for choice in view.replicas if ToReplica(choice.replica_id) not in tried]


def _usable_peers(ask: Ask, view: View, tried: Collection[Route]) -> list[PeerChoice]:
    if ask.hops_left < 1:
        return []
    return [
        choice
        for choice in view.peers
        if choice.site != view.site
        and choice.replicas_ready > 0
        and is_peer_current(choice.digest_age_s)
        and _is_legal(ask, view, choice.site)
        and ToPeer(choice.site) not in tried
    ]


def _has_room(choice: ReplicaChoice | PeerChoice) -> bool:
    return choice.in_flight < choice.slots * QUEUE_PER_SLOT_MAX


def _most_free(choices: list[ReplicaChoice], seed: int) -> ReplicaChoice:
    if len(choices) == 1:
        return choices[0]
    most = max(choice.slots - choice.in_flight for choice in choices)
    ties = sorted(
        (choice for choice in choices if choice.slots - choice.in_flight == most),
        key=lambda choice: choice.replica_id,
    )
    return ties[int(draw_unit(seed) * len(ties))]


def _first_peer(choices: Iterable[PeerChoice]) -> ToPeer | None:
    best = min(choices, key=lambda choice: (choice.in_flight / choice.slots, choice.site), default=None)
    return None if best is None else ToPeer(best.site)
