"""Which replica or which peer site serves a request: the one place that chooses, and tries again.

Owns the choice. Refuses to know web requests, sockets and clocks. The gateway calls `choose_route` once for each
attempt; the simulator calls the same function. Residency is judged here for every candidate, whatever was judged
before, and a site that is not known is not legal. A peer that the data may not reach, since the way there is in clear,
is not asked either; that makes no other site legal, and 403 of nothing.

Order of preference: a replica of this site with a free slot; a legal peer with one; the queue of a replica here;
a legal peer's queue; then the same among those that failed a moment ago. Within a rank the most free slots or
the shortest predicted wait win; ties fall by the request's seed among replicas, by name among peers.

What power, cooling or safety leave of a site comes from its envelope: a site that sheds a class serves none of it,
here as among peers, and one that is spilling is taken after the others, for every class.

Classes differ only in how full a replica may be before they are refused: `batch` takes no more than three quarters
of the slots and never waits, `interactive` lets two wait for each slot, `clinical` three. So when there is more work
than room, batch is shed first, then interactive, and what is left is the clinic's; and since the lower class is
refused at the door, no work is begun that would be thrown away.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from enum import StrEnum

import msgspec

from madang.core import ReplicaId, SiteId, draw_unit
from madang.model import DataClass, PriorityClass, Residency, Site
from madang.policy.residency import is_allowed, is_within

DIGEST_AGE_MAX_S = 1.5
"""Three digest periods of 0.5 s: an older digest describes a site that may be gone."""
QUEUE_PER_SLOT_MAX = 4
"""Requests in flight per slot, over which a replica is full for everybody: three wait for each that runs. An engine
that runs a request for 10 s makes the last of them wait half a minute, about what a client bears."""
INTERACTIVE_PER_SLOT_MAX = 3
"""Requests in flight per slot, over which a replica is full for class `interactive`; the rest is for `clinical`."""
BATCH_SLOTS_QUARTERS = 3
"""Of four slots, how many class `batch` may fill; of fewer than four, all."""
OVERLOADED_RETRY_S = 2.0
"""For a full service whose requests' time is not known yet."""
RETRY_S_MIN, RETRY_S_MAX = 1.0, 60.0
SHED_RETRY_S = 30.0
"""For a class that the site's envelope sheds: the grid or a cooling unit is not back within seconds."""
NO_REPLICA_RETRY_S = 5.0
"""An engine restarts in 2 to 6 s (facts: engines)."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be routed.

    Attributes:
        service: empty when the body may not be read here; then any legal peer that serves anything will do.
        data_class: of the tenant's data; with `residency` it says which sites are legal.
        hops_left: how many more gateways it may pass.
        is_local_barred: true when this site must not serve it (an entry that may only pass it on).
        priority: who goes first when there is not enough for all.
    """

    service: str
    residency: Residency
    data_class: DataClass
    hops_left: int
    is_local_barred: bool = False
    priority: PriorityClass = PriorityClass.INTERACTIVE


class ReplicaChoice(msgspec.Struct, frozen=True):
    """A ready replica of this site.

    Attributes:
        in_flight: counts all workers.
        is_suspect: it failed a moment ago.
        data_class_max: the highest class of data that its engine may see.
    """

    replica_id: ReplicaId
    slots: int
    in_flight: int
    is_suspect: bool = False
    data_class_max: DataClass = DataClass.CLASSIFIED


class PeerChoice(msgspec.Struct, frozen=True):
    """What is known of the asked service at a peer.

    Attributes:
        digest_age_s: when the feed was written; negative means that none was ever seen.
        is_suspect: it failed or stayed silent a moment ago.
        data_class_max: the highest class of data that the way to it may carry; open, where nobody says more.
        shed_from: it serves no request of this class or a less urgent one; None: it serves all.
        is_spilling: power or cooling are short there, so others come first.
    """

    site: SiteId
    digest_age_s: float
    replicas_ready: int
    slots: int
    in_flight: int
    is_suspect: bool = False
    data_class_max: DataClass = DataClass.OPEN
    shed_from: PriorityClass | None = None
    is_spilling: bool = False


class View(msgspec.Struct, frozen=True, kw_only=True):
    """The world of one choice, each part possibly stale.

    Attributes:
        site: where we are.
        sites: every site of the federation by name.
        replicas: ready replicas of the asked service here.
        peers: peers that may serve it, in any order.
        duration_s: how long requests of the service took here of late, waiting included; 0 where that is not known.
        shed_from, is_spilling: of this site, as of a peer.
    """

    site: SiteId
    sites: Mapping[SiteId, Site]
    replicas: tuple[ReplicaChoice, ...]
    peers: tuple[PeerChoice, ...]
    duration_s: float = 0.0
    shed_from: PriorityClass | None = None
    is_spilling: bool = False


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
    CLEAR_LINK = "clear_link"


class Refusal(msgspec.Struct, frozen=True):
    """Nobody serves it now.

    Attributes:
        retry_after_s: None when waiting does not help.
        sites: of CLEAR_LINK, who would serve it if the way there were encrypted, by name.
    """

    reason: RefusalReason
    retry_after_s: float | None = None
    sites: tuple[SiteId, ...] = ()


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
    priority = ask.priority
    is_shed = view.shed_from is not None and is_shed_class(priority, view.shed_from) and bool(replicas)
    if is_shed:
        replicas = []
    free = [choice for choice in replicas if not choice.is_suspect and _has_free(priority, choice)]
    if free and not view.is_spilling:
        return ToReplica(_most_free(free, seed).replica_id)
    peers = _usable_peers(ask, view, tried)
    found = _first_peer(
        choice for choice in peers if not choice.is_suspect and not choice.is_spilling and _has_free(priority, choice)
    )
    if found is not None:
        return found
    if free:
        return ToReplica(_most_free(free, seed).replica_id)
    queue = _choose_queue(priority, replicas, peers, seed)
    if queue is not None:
        return queue
    if is_shed:
        return Refusal(RefusalReason.OVERLOADED, SHED_RETRY_S * (1.0 + draw_unit(seed)))
    if replicas or peers:
        return Refusal(RefusalReason.OVERLOADED, predict_room_s(ask.priority, replicas or peers, view.duration_s, seed))
    return _refuse(ask, view, tried)


def _choose_queue(
    priority: PriorityClass, replicas: list[ReplicaChoice], peers: list[PeerChoice], seed: int
) -> Route | None:
    """Return where a request may wait: here, then at a peer; among those that failed of late only when no other can."""
    for is_suspect in (False, True):
        room = [choice for choice in replicas if choice.is_suspect is is_suspect and _has_room(priority, choice)]
        if room:
            return ToReplica(_most_free(room, seed).replica_id)
        found = _first_peer(
            choice for choice in peers if choice.is_suspect is is_suspect and _has_room(priority, choice)
        )
        if found is not None:
            return found
    return None


def _refuse(ask: Ask, view: View, tried: Collection[Route]) -> Refusal:
    """Return why nobody is left to ask: nobody ever was, those who are shed this class, may not be reached in clear, or
    all are down.
    """  # noqa: D205
    if _usable_peers(ask, view, tried, is_shed_judged=False):
        return Refusal(RefusalReason.OVERLOADED, SHED_RETRY_S)
    legal = legal_sites(ask.residency, ask.data_class, view.sites.values())
    if not legal:
        return Refusal(RefusalReason.RESIDENCY)
    clear = tuple(sorted(choice.site for choice in _usable_peers(ask, view, tried, is_link_judged=False)))
    if not clear:
        return Refusal(RefusalReason.NO_REPLICA, NO_REPLICA_RETRY_S)
    barred = {*clear, view.site} if ask.is_local_barred else {*clear}
    is_hope = any(site.name not in barred for site in legal)
    return Refusal(RefusalReason.CLEAR_LINK, NO_REPLICA_RETRY_S if is_hope else None, clear)


def is_shed_class(priority: PriorityClass, shed_from: PriorityClass | None) -> bool:
    """Return whether a site that sheds from a class on serves no request of `priority`."""
    return shed_from is not None and priority.rank >= shed_from.rank


def legal_sites(residency: Residency, data_class: DataClass, sites: Iterable[Site]) -> list[Site]:
    """Return the sites with chips that may serve under `residency`, by name."""
    return sorted(
        (site for site in sites if not site.is_entry_only and is_allowed(residency, data_class, site)),
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
    return site is not None and is_allowed(ask.residency, ask.data_class, site)


def _usable_replicas(ask: Ask, view: View, tried: Collection[Route]) -> list[ReplicaChoice]:
    if ask.is_local_barred or not view.replicas or not _is_legal(ask, view, view.site):
        return []
    replicas = [choice for choice in view.replicas if is_within(ask.data_class, choice.data_class_max)]
    if not tried:
        return replicas
    return [choice for choice in replicas if ToReplica(choice.replica_id) not in tried]


def _usable_peers(
    ask: Ask, view: View, tried: Collection[Route], *, is_link_judged: bool = True, is_shed_judged: bool = True
) -> list[PeerChoice]:
    """Return the peers that live, are legal, may be reached and serve the class; the last two unless told otherwise."""
    if ask.hops_left < 1:
        return []
    return [
        choice
        for choice in view.peers
        if choice.site != view.site
        and choice.replicas_ready > 0
        and is_peer_current(choice.digest_age_s)
        and (not is_link_judged or is_within(ask.data_class, choice.data_class_max))
        and not (is_shed_judged and choice.shed_from is not None and is_shed_class(ask.priority, choice.shed_from))
        and _is_legal(ask, view, choice.site)
        and ToPeer(choice.site) not in tried
    ]


def _batch_slots(slots: int) -> int:
    return slots if slots < 4 else slots * BATCH_SLOTS_QUARTERS // 4


_PLACES: dict[PriorityClass, Callable[[int], int]] = {
    PriorityClass.CLINICAL: lambda slots: slots * QUEUE_PER_SLOT_MAX,
    PriorityClass.INTERACTIVE: lambda slots: slots * INTERACTIVE_PER_SLOT_MAX,
    PriorityClass.BATCH: _batch_slots,
}
"""How many requests a replica, or a peer's replicas together, may have before a class is refused."""


def _has_free(priority: PriorityClass, choice: ReplicaChoice | PeerChoice) -> bool:
    slots = _batch_slots(choice.slots) if priority is PriorityClass.BATCH else choice.slots
    return choice.in_flight < slots


def _has_room(priority: PriorityClass, choice: ReplicaChoice | PeerChoice) -> bool:
    return choice.in_flight < _PLACES[priority](choice.slots)


def predict_room_s(
    priority: PriorityClass, choices: Collection[ReplicaChoice | PeerChoice], duration_s: float, seed: int
) -> float:
    """Return after how many seconds a full service will probably have room for a class again.

    The requests over the class's limit must leave first, and by Little's law they leave at in_flight / duration_s. A
    part that differs by request is added, up to the same again, so that those who were refused together do not come
    back together.

    Args:
        priority: the class that was refused.
        choices: what is full.
        duration_s: how long a request takes, waiting included; 0 where that is not known.
        seed: of the request.
    """
    if duration_s <= 0.0:
        return OVERLOADED_RETRY_S
    in_flight = sum(choice.in_flight for choice in choices)
    limit = sum(_PLACES[priority](choice.slots) for choice in choices)
    wait_s = max(1, in_flight - limit + 1) * duration_s / max(1, in_flight)
    return min(max(wait_s * (1.0 + draw_unit(seed)), RETRY_S_MIN), RETRY_S_MAX)


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
    best = min(
        choices, key=lambda choice: (choice.is_spilling, choice.in_flight / choice.slots, choice.site), default=None
    )
    return None if best is None else ToPeer(best.site)
