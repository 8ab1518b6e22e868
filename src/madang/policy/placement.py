"""Which replica runs on which chip of a site: assignments fitted to the chips that are there.

Owns the fit and the replicas' names. Refuses to know how nodes are reached and when a node counts as lost. Called
by the site process each time assignments, chips or cordons change.

What runs stays where it is: a replica moves only when its chip is gone, failed, too small now, or on a node that
drains or is lost. New ones go, in order of preference, to the artifact that the catalog names first, the healthier
chip, the node with fewer replicas of the service, the emptier chip, then by name. Nothing ever goes over a chip's
`engines_max` or its memory; what finds no place is returned with the reason.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from madang.core import ChipId, NodeId, ReplicaId
from madang.model import Artifact, Assignment, CatalogEntry, Chip, ChipHealth, ReplicaSpec, Service
from madang.policy.equivalence import keep_standing

REPLICAS_PER_SERVICE_MAX = 256
"""The in-flight table's counters; a site cannot offer more engines than that."""


class NodeView(msgspec.Struct, frozen=True, kw_only=True):
    """A node as the site knows it when it plans.

    Attributes:
        chips: from its newest observation.
        is_observed: whether it was heard at all; until then its replicas stay and no new ones come.
        is_cordoned: nothing new goes there.
        is_draining: what is there leaves too.
        is_lost: silent for so long that what is there moves, if another place fits.
    """

    node: NodeId
    chips: tuple[Chip, ...] = ()
    is_observed: bool = True
    is_cordoned: bool = False
    is_draining: bool = False
    is_lost: bool = False


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
    chip: Chip
    artifact: Artifact
    preference: int


class _Room:
    """What is taken of every chip while a plan is made."""

    def __init__(self, nodes: Sequence[NodeView]) -> None:
        self.nodes = nodes
        self.engines: dict[tuple[NodeId, ChipId], int] = {}
        self.memory_bytes: dict[tuple[NodeId, ChipId], int] = {}
        self.of_service: dict[tuple[NodeId, str], int] = {}
        self.placed: dict[NodeId, list[ReplicaSpec]] = {view.node: [] for view in nodes}

    def fits(self, place: _Place) -> bool:
        """Return whether one more engine and its memory fit on the chip."""
        key = (place.view.node, place.chip.chip_id)
        return (
            self.engines.get(key, 0) < place.chip.engines_max
            and self.memory_bytes.get(key, 0) + place.artifact.memory_bytes <= place.chip.memory_bytes
        )

    def take(self, wanted: _Wanted, place: _Place) -> None:
        """Put a replica on a chip."""
        key = (place.view.node, place.chip.chip_id)
        service = wanted.service
        self.engines[key] = self.engines.get(key, 0) + 1
        self.memory_bytes[key] = self.memory_bytes.get(key, 0) + place.artifact.memory_bytes
        self.of_service[place.view.node, service.name] = self.of_service.get((place.view.node, service.name), 0) + 1
        longest = place.artifact.context_tokens_max or service.context_tokens
        self.placed[place.view.node].append(
            ReplicaSpec(
                replica_id=wanted.replica_id,
                service=service.name,
                model=wanted.entry.name,
                task=wanted.entry.task,
                artifact=place.artifact,
                chip_ids=(place.chip.chip_id,),
                context_tokens=min(service.context_tokens, longest),
                slots=service.slots,
                has_prefix_cache=service.has_prefix_cache,
            )
        )

    def rank(self, wanted: _Wanted, place: _Place) -> tuple[int, int, int, float, float, str, str]:
        """Return how well a place suits, smallest first; ties end at the names."""
        key = (place.view.node, place.chip.chip_id)
        return (
            place.preference,
            0 if place.chip.health is ChipHealth.OK else 1,
            self.of_service.get((place.view.node, wanted.service.name), 0),
            self.engines.get(key, 0) / place.chip.engines_max,
            self.memory_bytes.get(key, 0) / max(1, place.chip.memory_bytes),
            place.view.node,
            place.chip.chip_id,
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
    if place is None or place.chip.health is ChipHealth.FAILED or not room.fits(place):
        return False
    room.take(wanted, place)
    return True


def _old_place(wanted: _Wanted, view: NodeView, spec: ReplicaSpec) -> _Place | None:
    """Return the place that a spec names as the facts are now: the same chip, the same artifact if it still suits."""
    chip = next((chip for chip in view.chips if (chip.chip_id,) == spec.chip_ids), None)
    if chip is None:
        return None
    suiting = [place for place in _suiting(wanted, view, chip)]
    same = [place for place in suiting if place.artifact.artifact_id == spec.artifact.artifact_id]
    return next(iter(same or suiting), None)


def _suiting(wanted: _Wanted, view: NodeView, chip: Chip) -> Iterable[_Place]:
    """Yield the artifacts that run on a chip, the catalog's first choice first."""
    for preference, artifact in enumerate(wanted.entry.artifacts):
        if chip.kind in artifact.chip_kinds:
            yield _Place(view=view, chip=chip, artifact=artifact, preference=preference)


def _is_open(view: NodeView, chip: Chip) -> bool:
    """Return whether new replicas may go to a chip."""
    if view.is_cordoned or view.is_draining or view.is_lost or not view.is_observed or chip.is_cordoned:
        return False
    return chip.health in (ChipHealth.OK, ChipHealth.DEGRADED)


def _choose_place(wanted: _Wanted, room: _Room) -> _Place | None:
    places = [
        place
        for view in room.nodes
        for chip in view.chips
        if _is_open(view, chip)
        for place in _suiting(wanted, view, chip)
        if room.fits(place)
    ]
    return min(places, key=lambda place: room.rank(wanted, place), default=None)


def _last_resort(wanted: _Wanted, room: _Room, at: Mapping[ReplicaId, tuple[NodeId, ReplicaSpec]]) -> _Place | None:
    """Return the old place on a lost node: when there is no other, the node may come back with its engines."""
    node, spec = at.get(wanted.replica_id, (None, None))
    view = next((view for view in room.nodes if view.node == node and view.is_lost and not view.is_draining), None)
    if view is None or spec is None:
        return None
    place = _old_place(wanted, view, spec)
    return place if place is not None and room.fits(place) else None


def _explain(wanted: _Wanted, room: _Room) -> str:
    """Return why a replica has no place: the first condition that no chip meets."""
    kinds = sorted({kind for artifact in wanted.entry.artifacts for kind in artifact.chip_kinds})
    if not kinds:
        return f"model {wanted.entry.name!r} has no artifact"
    pairs = [(view, chip) for view in room.nodes for chip in view.chips if chip.kind in kinds]
    if not pairs:
        return f"no chip of kind {' or '.join(kinds)} is known at this site"
    usable = [(view, chip) for view, chip in pairs if _is_open(view, chip)]
    if not usable:
        return f"every chip of kind {' or '.join(kinds)} is cordoned, draining, lost or not healthy"
    free = [(view, chip) for view, chip in usable if room.engines.get((view.node, chip.chip_id), 0) < chip.engines_max]
    if not free:
        taken = sum(chip.engines_max for _, chip in usable)
        return f"all {taken} engine places on {len(usable)} chips of kind {' or '.join(kinds)} are taken"
    most = max(chip.memory_bytes - room.memory_bytes.get((view.node, chip.chip_id), 0) for view, chip in free)
    least = min(
        artifact.memory_bytes
        for artifact in wanted.entry.artifacts
        if {c.kind for _, c in free} & {*artifact.chip_kinds}
    )
    return f"it needs {least} bytes of chip memory and at most {most} are left on one chip"
