"""Which replica runs on which chip of a site: assignments fitted to the chips that are there.

Owns the fit and the replicas' names. Refuses to know how nodes are reached and when a node counts as lost. Called
by the site process each time assignments, chips or cordons change.

What runs stays where it is: a replica moves only when its chips are gone, failed, too small now, cordoned for a cause
that leaves an engine no use of them, or on a node that drains or is lost. New ones go, in order of preference, to the
artifact that the catalog names first, the healthier chips, the node with fewer replicas of the service, the emptier
chips, then by name; `policy.allocation` chooses within a node. Nothing ever goes over what chips can give, nor to
chips that a node has not got back yet; what finds no place is returned with the reason.
"""

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

import msgspec

from madang.core import ChipId, NodeId, ReplicaId
from madang.model import (
    LEFT_BY_REPLICAS,
    Artifact,
    Assignment,
    CatalogEntry,
    Chip,
    ChipCordon,
    ChipHealth,
    ChipLease,
    ReplicaSpec,
    Service,
)
from madang.policy.allocation import (
    Allocation,
    Ask,
    Refusal,
    Use,
    choose_chips,
    find_obstacle,
    has_enough_cores,
    have_common_core,
)
from madang.policy.equivalence import keep_standing

REPLICAS_PER_SERVICE_MAX = 256
"""The in-flight table's counters; a site cannot offer more engines than that."""
_NODES_TOLD_MAX = 4
"""Nodes that a reason names."""


class NodeView(msgspec.Struct, frozen=True, kw_only=True):
    """A node as the site knows it when it plans.

    Attributes:
        chips: from its newest observation.
        is_observed: whether it was heard at all; until then its replicas stay and no new ones come.
        is_cordoned: nothing new goes there.
        is_draining: what is there leaves too.
        is_lost: silent for so long that what is there moves, if another place fits.
        cordons: of chips, by rule and by hand.
        leases: what its chips are held for, whether or not a plan names it still.
    """

    node: NodeId
    chips: tuple[Chip, ...] = ()
    is_observed: bool = True
    is_cordoned: bool = False
    is_draining: bool = False
    is_lost: bool = False
    cordons: tuple[ChipCordon, ...] = ()
    leases: tuple[ChipLease, ...] = ()

    @property
    def closed(self) -> dict[ChipId, str]:
        """Return the chips that take nothing new, with the reason."""
        by_cause = sorted(self.cordons, key=lambda cordon: cordon.cause, reverse=True)
        return {cordon.chip_id: f"{cordon.cause}: {cordon.reason}" for cordon in by_cause}

    def is_left(self, spec: ReplicaSpec) -> bool:
        """Return whether a replica had better be elsewhere: on other chips, or other cores than the bad ones."""
        return any(
            cordon.cause in LEFT_BY_REPLICAS
            and cordon.chip_id in spec.chip_ids
            and have_common_core(cordon.cores, spec.cores)
            for cordon in self.cordons
        )


class Unplaced(msgspec.Struct, frozen=True, kw_only=True):
    """A replica that is wanted and has no place; `reason` is for people."""

    replica_id: ReplicaId
    service: str
    reason: str


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """What each node shall run, by node name, and what found no place; both ordered by replica id."""

    replicas: dict[NodeId, tuple[ReplicaSpec, ...]]
    unplaced: tuple[Unplaced, ...]


class _Wanted(msgspec.Struct, frozen=True, kw_only=True):
    replica_id: ReplicaId
    index: int
    service: Service
    entry: CatalogEntry


class _Place(msgspec.Struct, frozen=True, kw_only=True):
    view: NodeView
    given: Allocation
    artifact: Artifact
    preference: int

    @property
    def chips(self) -> list[Chip]:
        return [chip for chip in self.view.chips if chip.chip_id in self.given.chip_ids]


class _Room:
    """What is taken of every chip while a plan is made."""

    def __init__(self, nodes: Sequence[NodeView]) -> None:
        self.nodes = nodes
        self.uses: dict[NodeId, list[Use]] = {view.node: [] for view in nodes}
        self.of_service: dict[tuple[NodeId, str], int] = {}
        self.placed: dict[NodeId, list[ReplicaSpec]] = {view.node: [] for view in nodes}

    def list_uses(self, view: NodeView, replica_id: ReplicaId) -> list[Use]:
        """Return what a new replica cannot have: what is planned, and what the node did not get back yet."""
        planned = {(use.holder, use.chip_id) for use in self.uses[view.node]}
        held = [
            Use(
                chip_id=chip_id,
                holder=lease.holder,
                cores=lease.cores,
                memory_bytes=-(-lease.memory_bytes // len(lease.chip_ids)),
            )
            for lease in view.leases
            for chip_id in lease.chip_ids
            if lease.holder != replica_id and (lease.holder, chip_id) not in planned
        ]
        return [*self.uses[view.node], *held]

    def find(self, wanted: _Wanted, view: NodeView, artifact: Artifact) -> Allocation | Refusal:
        """Return what a new replica gets on a node."""
        return choose_chips(_ask(artifact), view.chips, self.list_uses(view, wanted.replica_id), view.closed)

    def fits(self, place: _Place) -> bool:
        """Return whether a replica that was there may stay: only what is planned counts."""
        ask, given = _ask(place.artifact), place.given
        chips = place.view.chips
        if not has_enough_cores(ask, given, chips) or len(given.chip_ids) < (1 if ask.cores else ask.chips):
            return False
        return not find_obstacle(given.chip_ids, given.cores, chips, self.uses[place.view.node], ask.chip_memory_bytes)

    def take(self, wanted: _Wanted, place: _Place) -> None:
        """Put a replica on chips."""
        service, node = wanted.service, place.view.node
        self.uses[node] += [
            Use(
                chip_id=chip_id,
                holder=wanted.replica_id,
                cores=place.given.cores,
                memory_bytes=_ask(place.artifact).chip_memory_bytes,
            )
            for chip_id in place.given.chip_ids
        ]
        self.of_service[node, service.name] = self.of_service.get((node, service.name), 0) + 1
        longest = place.artifact.context_tokens_max or service.context_tokens
        self.placed[node].append(
            ReplicaSpec(
                replica_id=wanted.replica_id,
                service=service.name,
                model=wanted.entry.name,
                task=wanted.entry.task,
                artifact=place.artifact,
                chip_ids=place.given.chip_ids,
                context_tokens=min(service.context_tokens, longest),
                slots=service.slots,
                has_prefix_cache=service.has_prefix_cache,
                cores=place.given.cores,
            )
        )

    def rank(self, wanted: _Wanted, place: _Place) -> tuple[object, ...]:
        """Return how well a place suits, smallest first; ties end at the names."""
        chips = place.chips
        uses = [use for use in self.uses[place.view.node] if use.chip_id in place.given.chip_ids]
        return (
            place.preference,
            any(chip.health is not ChipHealth.OK for chip in chips),
            self.of_service.get((place.view.node, wanted.service.name), 0),
            Fraction(len(uses), max(1, sum(chip.engines_max for chip in chips))),
            Fraction(sum(use.memory_bytes for use in uses), max(1, sum(chip.memory_bytes for chip in chips))),
            place.view.node,
            place.given.chip_ids,
        )


def _ask(artifact: Artifact) -> Ask:
    return Ask(
        kinds=artifact.chip_kinds, chips=artifact.chips, cores=artifact.cores, memory_bytes=artifact.memory_bytes
    )


def plan_placement(
    assignments: Iterable[Assignment],
    services: Mapping[str, Service],
    models: Mapping[str, CatalogEntry],
    nodes: Iterable[NodeView],
    existing: Mapping[NodeId, Sequence[ReplicaSpec]],
) -> Placement:
    """Return what each node shall run.

    The result depends on the contents of the arguments, never on their order. Cost is replicas times chips.

    Args:
        assignments: replicas wanted at this site, by service.
        services: facts by name.
        models: facts by name.
        nodes: the site's nodes.
        existing: what each node was told last.
    """
    wanted, unplaced = _list_wanted(assignments, services, models)
    room = _Room(sorted(nodes, key=lambda view: view.node))
    at = {spec.replica_id: (node, spec) for node, specs in existing.items() for spec in specs}
    waiting = [one for one in wanted if not _stay(one, room, at)]
    homeless = []
    for one in waiting:
        best = _choose_place(one, room) or _last_resort(one, room, at)
        if best is None:
            homeless.append(one)
        else:
            room.take(one, best)
    # Explained when all is placed, so that the same plan made again gives the same reasons.
    unplaced += [
        Unplaced(replica_id=one.replica_id, service=one.service.name, reason=_explain(one, room)) for one in homeless
    ]
    return Placement(
        replicas={node: tuple(sorted(specs, key=lambda spec: spec.replica_id)) for node, specs in room.placed.items()},
        unplaced=tuple(sorted(unplaced, key=lambda item: item.replica_id)),
    )


def _list_wanted(
    assignments: Iterable[Assignment], services: Mapping[str, Service], models: Mapping[str, CatalogEntry]
) -> tuple[list[_Wanted], list[Unplaced]]:
    """Return the replicas wanted, first ones of all services before second ones, and those that lack facts."""
    wanted: list[_Wanted] = []
    unplaced: list[Unplaced] = []
    for assignment in assignments:
        service = services.get(assignment.service)
        entry = None if service is None else models.get(service.model)
        for index in range(1, min(assignment.replicas, REPLICAS_PER_SERVICE_MAX) + 1):
            replica_id = ReplicaId(f"{assignment.service}-{index}")
            if service is None or entry is None:
                lacks = "service" if service is None else f"model {service.model!r}"
                reason = f"the {lacks} is not in this site's desired state yet"
                unplaced.append(Unplaced(replica_id=replica_id, service=assignment.service, reason=reason))
            else:
                standing = keep_standing(entry, service)
                wanted.append(_Wanted(replica_id=replica_id, index=index, service=service, entry=standing))
    wanted.sort(key=lambda one: (one.index, one.service.name))
    return wanted, unplaced


def _stay(wanted: _Wanted, room: _Room, at: Mapping[ReplicaId, tuple[NodeId, ReplicaSpec]]) -> bool:
    """Keep a replica where it is if it may stay there; return whether it is settled."""
    found = at.get(wanted.replica_id)
    if found is None:
        return False
    node, spec = found
    view = next((view for view in room.nodes if view.node == node), None)
    if view is None or view.is_draining or view.is_lost:
        return False
    if not view.is_observed:
        room.placed[node].append(spec)
        return True
    place = _old_place(wanted, view, spec)
    if place is None or view.is_left(spec) or not room.fits(place):
        return False
    room.take(wanted, place)
    return True


def _old_place(wanted: _Wanted, view: NodeView, spec: ReplicaSpec) -> _Place | None:
    """Return the place that a spec names as the facts are now: the same chips, the same artifact if it still suits."""
    kinds = {chip.kind for chip in view.chips if chip.chip_id in spec.chip_ids}
    suiting = [
        _Place(
            view=view,
            given=Allocation(chip_ids=spec.chip_ids, cores=spec.cores),
            artifact=artifact,
            preference=preference,
        )
        for preference, artifact in enumerate(wanted.entry.artifacts)
        if kinds and kinds <= {*artifact.chip_kinds}
    ]
    same = [place for place in suiting if place.artifact.artifact_id == spec.artifact.artifact_id]
    return next(iter(same or suiting), None)


def _find_closed(view: NodeView) -> str:
    """Return why a node takes nothing new; empty when it does."""
    conditions = (
        (not view.is_observed, "was not heard yet"),
        (view.is_lost, "is lost"),
        (view.is_draining, "is cordoned and drains"),
        (view.is_cordoned, "is cordoned"),
    )
    return next((why for holds, why in conditions if holds), "")


def _choose_place(wanted: _Wanted, room: _Room) -> _Place | None:
    places = [
        _Place(view=view, given=given, artifact=artifact, preference=preference)
        for view in room.nodes
        if not _find_closed(view)
        for preference, artifact in enumerate(wanted.entry.artifacts)
        if isinstance(given := room.find(wanted, view, artifact), Allocation)
    ]
    return min(places, key=lambda place: room.rank(wanted, place), default=None)


def _last_resort(wanted: _Wanted, room: _Room, at: Mapping[ReplicaId, tuple[NodeId, ReplicaSpec]]) -> _Place | None:
    """Return the old place on a lost node or bad chips: when there is no other, it may come back with its engines."""
    node, spec = at.get(wanted.replica_id, (None, None))
    view = next((view for view in room.nodes if view.node == node and not view.is_draining), None)
    if view is None or spec is None or not (view.is_lost or view.is_left(spec)):
        return None
    place = _old_place(wanted, view, spec)
    return place if place is not None and room.fits(place) else None


def _explain(wanted: _Wanted, room: _Room) -> str:
    """Return why a replica has no place: what is in the way on each node that has chips of a kind that would do."""
    kinds = sorted({kind for artifact in wanted.entry.artifacts for kind in artifact.chip_kinds})
    if not kinds:
        return f"model {wanted.entry.name!r} has no artifact"
    views = [view for view in room.nodes if any(chip.kind in kinds for chip in view.chips)]
    if not views:
        return f"no chip of kind {' or '.join(kinds)} is known at this site"
    told = [f"node {view.node} {_explain_node(wanted, room, view)}" for view in views[:_NODES_TOLD_MAX]]
    more = [f"and {len(views) - _NODES_TOLD_MAX} more nodes"] if len(views) > _NODES_TOLD_MAX else []
    return "; ".join([*told, *more])


def _explain_node(wanted: _Wanted, room: _Room, view: NodeView) -> str:
    closed = _find_closed(view)
    if closed:
        return closed
    here = {chip.kind for chip in view.chips}
    refusals = [
        found.reason
        for artifact in wanted.entry.artifacts
        if here & {*artifact.chip_kinds} and isinstance(found := room.find(wanted, view, artifact), Refusal)
    ]
    return "cannot: it " + ", or ".join(dict.fromkeys(refusals)) if refusals else "has room by now"
