"""Random worlds for residency: policies, sites, failures, stale digests and copies; and journeys through them.

Everything is drawn from one seed as plain texts, for the oracle, and made into facts of the project from those, for
the code under test. `run_world` returns what the oracle has against what was done; nothing, when all is well.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar

from tests.policy.residency_oracle import (
    Place,
    Policy,
    engine_forbidden,
    link_forbidden,
    passing_forbidden,
    serving_forbidden,
)

from madang.core import ReplicaId, SiteId
from madang.gateway.access import authenticate
from madang.gateway.feed import Desired
from madang.gateway.journey import ATTEMPTS_MAX
from madang.gateway.peer_port import judge_residency
from madang.model import (
    ApiKey,
    CatalogEntry,
    DataClass,
    PriorityClass,
    Residency,
    ResidencyScope,
    Service,
    Site,
    Tenant,
)
from madang.policy.desired import HubFacts, plan_desired
from madang.policy.routing import (
    Ask,
    PeerChoice,
    Refusal,
    RefusalReason,
    ReplicaChoice,
    Route,
    ToReplica,
    View,
    choose_route,
)
from madang.site.desired import DesiredView
from madang.site.files.keeping import KeepRule
from madang.wire.feed import GatewaySnapshot
from madang.wire.openai_errors import ApiError, ErrorCode
from madang.wire.passes import Pass

NAMES = ("daegu", "gumi", "gwangju", "busan", "osaka", "national")
REGIONS = ("yeongnam", "honam", "kansai", "")
NATIONS = ("kr", "kr", "kr", "jp", "")
SCOPES = ("site", "sites", "region", "nation", "any")
GRADES = ("open", "sensitive", "classified")
AGES_S = (-1.0, 0.0, 0.4, 0.4, 1.5, 1.6, 60.0)
KEY = "mdg_k_" + "A" * 43
KEY_SHA256 = hashlib.sha256(KEY.encode()).hexdigest()
_WORDS_OF = {"site": NAMES, "sites": NAMES, "region": REGIONS, "nation": NATIONS}
_SCOPES = {scope.value: scope for scope in ResidencyScope}
_CLASSES = {data_class.value: data_class for data_class in DataClass}


_DATA_CLASSES, _PRIORITIES = tuple(DataClass), tuple(PriorityClass)
T = TypeVar("T")


def _pick(rng: random.Random, words: Sequence[T]) -> T:
    """As `choice`, which costs four times as much."""
    return words[int(rng.random() * len(words))]


def _below(rng: random.Random, limit: int) -> int:
    return int(rng.random() * limit)


class World(NamedTuple):
    """One world, in plain texts.

    Attributes:
        key: the policy as the key's copy has it.
        tenant: as the tenant's own fact has it here; None where that fact is not here. They differ while a change is
            on its way.
        elsewhere: as the other sites have the tenant's fact.
        entry: where the request comes in.
        known: every site's own idea of the sites, by whose it is.
    """

    key: Policy
    key_has_class: bool
    tenant: Policy | None
    elsewhere: Policy | None
    entry: str
    known: dict[str, dict[str, Place]]


class Tally:
    """What was seen in many worlds, so that a sweep that never comes near a rule is noticed."""

    def __init__(self) -> None:
        self.worlds = self.served = self.passed_on = self.refused_entry = self.refused = self.placed = 0
        self.peer_served = 0


def draw_world(rng: random.Random) -> World:
    """Return a world; one in fifty has a word in it that nobody knows."""
    odd = rng.random() < 0.02
    places = {name: _draw_place(rng, name, odd) for name in NAMES if rng.random() < 0.85}
    known = {name: places if rng.random() < 0.7 else _drift(rng, places) for name in NAMES}
    policy = _draw_policy(rng, odd)
    tenant: Policy | None = policy
    if rng.random() < 0.2:
        tenant = _draw_policy(rng, False) if rng.random() < 0.7 else None
    elsewhere = tenant if rng.random() < 0.8 else _draw_policy(rng, False)
    # Most requests come in where they may: what is refused at the door shows nothing of what lies behind it.
    doors = [name for name in NAMES if not passing_forbidden(policy, places.get(name))] if rng.random() < 0.5 else []
    return World(policy, rng.random() < 0.9, tenant, elsewhere, _pick(rng, doors or NAMES), known)


def _draw_place(rng: random.Random, name: str, odd: bool) -> Place:
    grade = "secret" if odd and rng.random() < 0.3 else _pick(rng, GRADES)
    return Place(name, _pick(rng, REGIONS), _pick(rng, NATIONS), grade, name == "national" or rng.random() < 0.1)


def _drift(rng: random.Random, places: dict[str, Place]) -> dict[str, Place]:
    """Return the same sites as an older or newer copy might have them."""
    return {name: _draw_place(rng, name, False) if rng.random() < 0.3 else place for name, place in places.items()}


def _draw_policy(rng: random.Random, odd: bool) -> Policy:
    scope = "galaxy" if odd and rng.random() < 0.3 else _pick(rng, SCOPES)
    words = _WORDS_OF[scope] if rng.random() < 0.8 and scope in _WORDS_OF else NAMES + REGIONS + NATIONS
    places = tuple(_pick(rng, words) for _ in range(1 + _below(rng, 4)))
    grade = "secret" if odd and rng.random() < 0.3 else _pick(rng, GRADES)
    return Policy(scope, places, grade, rng.random() < 0.5)


@lru_cache(maxsize=10_000)
def _site(place: Place) -> Site:
    return Site(
        name=SiteId(place.name),
        region=place.region,
        nation=place.nation,
        is_entry_only=place.is_entry,
        data_class_max=_CLASSES.get(place.grade, place.grade),
        tenant_url=f"http://{place.name}.example",
    )


def _residency(policy: Policy) -> Residency:
    scope = _SCOPES.get(policy.scope, policy.scope)
    return Residency(scope=scope, places=policy.places, is_transit_granted=policy.is_transit_granted)


def _key(world: World) -> ApiKey:
    data_class = _CLASSES.get(world.key.grade, world.key.grade) if world.key_has_class else None
    return ApiKey(key_id="k", sha256=KEY_SHA256, tenant_id="t", residency=_residency(world.key), data_class=data_class)


def _tenant(policy: Policy) -> Tenant:
    return Tenant(
        tenant_id="t",
        title="t",
        residency=_residency(policy),
        data_class=_CLASSES.get(policy.grade, policy.grade),
    )


def binding_policies(world: World) -> list[Policy]:
    """Return every copy of the policy that binds the entry; what any of them forbids is forbidden.

    A key without a class (of an older release) has the tenant's; where that is not known, the strictest.
    """
    grade = world.key.grade
    if not world.key_has_class:
        grade = "classified" if world.tenant is None else world.tenant.grade
    return [world.key._replace(grade=grade), *([] if world.tenant is None else [world.tenant])]


def run_world(seed: int, tally: Tally) -> list[str]:
    """Send one request into the world of a seed; return what the oracle has against where it went."""
    rng = random.Random(seed)
    world = draw_world(rng)
    tally.worlds += 1
    return [*_judge_journey(rng, world, tally), *_judge_keeping(world), *_judge_distribution(world, tally)]


def _judge_journey(rng: random.Random, world: World, tally: Tally) -> Iterator[str]:
    policies, own = binding_policies(world), world.known[world.entry]
    desired = _desired(world, world.entry, world.tenant)
    forbidden = [passing_forbidden(policy, own.get(world.entry)) for policy in policies]
    try:
        caller = authenticate(desired, b"Bearer " + KEY.encode(), 0.0)
    except ApiError as error:
        tally.refused_entry += 1
        if error.code is not ErrorCode.RESIDENCY_VIOLATION:
            yield f"refused for {error.code}"
        for site in error.details["sites"]:
            yield from _illegal("named in a refusal", policies, own.get(site["name"]))
        if not any(forbidden) and not any(serving_forbidden(policy, own.get(world.entry)) for policy in policies):
            yield "refused at a site that every copy of the policy allows"
        return
    if any(forbidden):
        yield f"let in: {forbidden}"
    is_entry_legal = not any(serving_forbidden(policy, own.get(world.entry)) for policy in policies)
    if caller.is_transit is is_entry_legal:
        yield "transit and legality are mixed up"
    ask = Ask(
        service="" if caller.is_transit else "qwen",
        residency=caller.residency,
        data_class=caller.data_class,
        hops_left=1,
        is_local_barred=caller.is_transit,
        priority=_pick(rng, _PRIORITIES),
    )
    yield from _judge_attempts(rng, world, ask, policies, tally)


def _judge_attempts(rng: random.Random, world: World, ask: Ask, policies: list[Policy], tally: Tally) -> Iterator[str]:
    own, tried = world.known[world.entry], []
    for _ in range(ATTEMPTS_MAX):
        # The world moves between attempts: loads, digests, engines and failures are drawn anew.
        view = _draw_view(rng, world.entry, own)
        route = choose_route(ask, view, tried, rng.getrandbits(64))
        if isinstance(route, Refusal):
            tally.refused += 1
            is_any = any(
                not place.is_entry and not any(serving_forbidden(policy, place) for policy in policies)
                for place in own.values()
            )
            if (route.reason is RefusalReason.RESIDENCY) and is_any:
                yield "refused for residency while a legal site exists"
            if (route.reason is RefusalReason.CLEAR_LINK) and not is_any:
                yield "refused for a link while no site is legal"
            for site in route.sites:
                yield from _illegal("named as reached in clear", policies, own.get(str(site)))
            return
        if route in tried:
            yield "the same route twice"
        tried.append(route)
        yield from _judge_route(world.entry, own, view, route, ask, policies)
        if isinstance(route, ToReplica):
            tally.served += 1
        else:
            tally.passed_on += 1
            yield from _judge_peer(rng, world, ask, str(route.site), policies, tally)
        if rng.random() < 0.4:
            return


def _judge_route(
    here: str, own: dict[str, Place], view: View, route: Route, ask: Ask, policies: list[Policy]
) -> Iterator[str]:
    if isinstance(route, ToReplica):
        yield from _illegal("served here", policies, own.get(here))
        if ask.is_local_barred:
            yield "served where it may only pass through"
        (replica,) = [one for one in view.replicas if one.replica_id == route.replica_id]
        for policy in policies:
            why = engine_forbidden(policy.grade, str(replica.data_class_max))
            if why:
                yield why
        return
    yield from _illegal("handed on", policies, own.get(str(route.site)))
    if route.site == here or ask.hops_left < 1:
        yield "handed on to itself, or once too often"
    (peer,) = [one for one in view.peers if one.site == route.site]
    if not 0.0 <= peer.digest_age_s <= 1.5 or peer.replicas_ready < 1:
        yield "handed to a peer of which nothing is known"
    for policy in policies:
        why = link_forbidden(policy.grade, str(peer.data_class_max))
        if why:
            yield why


def _desired(world: World, where: str, tenant: Policy | None) -> Desired:
    return Desired(
        GatewaySnapshot(
            site=SiteId(where),
            generation=1,
            sites=tuple(_site(place) for place in world.known[where].values()),
            keys=(_key(world),),
            tenants=() if tenant is None else (_tenant(tenant),),
            services=(),
            models=(),
        )
    )


def _judge_peer(
    rng: random.Random, world: World, ask: Ask, peer: str, policies: list[Policy], tally: Tally
) -> Iterator[str]:
    """The peer judges the pass and chooses by its own idea of the sites, which may be another; it hands nothing on."""
    known = world.known[peer]
    policies = policies if world.elsewhere is None else [*policies, world.elsewhere]
    try:
        data_class = judge_residency(_pass(world, ask, peer), _desired(world, peer, world.elsewhere))
    except ApiError:
        return
    at_peer = Ask(service="qwen", residency=ask.residency, data_class=data_class, hops_left=0)
    view = _draw_view(rng, peer, known)
    route = choose_route(at_peer, view, (), rng.getrandbits(64))
    if not isinstance(route, Refusal):
        if not isinstance(route, ToReplica):
            yield "a second hop"
        tally.peer_served += 1
        yield from _judge_route(peer, known, view, route, at_peer, policies)


def _pass(world: World, ask: Ask, peer: str) -> Pass:
    return Pass(
        request_id="r",
        attempt=1,
        tenant_id="t",
        key_id="k",
        service="qwen",
        residency=ask.residency,
        data_class=str(ask.data_class),
        entry_site=SiteId(world.entry),
        serving_site=SiteId(peer),
        hops=1,
        issued_at_s=0.0,
        deadline_s=1.0,
        path="/v1/chat/completions",
        is_stream=False,
        body_sha256=b"",
        kid="",
    )


def _draw_view(rng: random.Random, here: str, known: dict[str, Place]) -> View:
    replicas = tuple(
        ReplicaChoice(
            ReplicaId(f"r{number}"),
            _below(rng, 5),
            _below(rng, 9),
            rng.random() < 0.2,
            DataClass.CLASSIFIED if rng.random() < 0.6 else _pick(rng, _DATA_CLASSES),
        )
        for number in range(_below(rng, 3))
    )
    peers = tuple(
        PeerChoice(
            SiteId(name),
            _pick(rng, AGES_S),
            _below(rng, 4),
            _below(rng, 5),
            _below(rng, 9),
            data_class_max=DataClass.CLASSIFIED if rng.random() < 0.7 else DataClass.OPEN,
        )
        for name in NAMES
        if rng.random() < 0.85
    )
    sites = {SiteId(name): _site(place) for name, place in known.items()}
    return View(site=SiteId(here), sites=sites, replicas=replicas, peers=peers)


def _illegal(what: str, policies: list[Policy], place: Place | None) -> Iterator[str]:
    for policy in policies:
        why = serving_forbidden(policy, place)
        if why:
            yield f"{what}: {why}"


def _judge_keeping(world: World) -> Iterator[str]:
    """What a site's process lets lie on its own disk, by what it was told itself."""
    view = DesiredView()
    view.sites = {name: _site(place) for name, place in world.known[world.entry].items()}
    if world.tenant is not None:
        view.tenants = {"t": _tenant(world.tenant)}
    may_keep = KeepRule(world.entry, view).may_keep("t")
    place = world.known[world.entry].get(world.entry)
    why = "nobody told" if world.tenant is None else serving_forbidden(world.tenant, place)
    if may_keep and why:
        yield f"kept: {why}"
    if not may_keep and not why:
        yield "not kept where every word allows it"


_SERVICE = Service(name="own", model="m", tenants=("t",))
_MODEL = CatalogEntry(name="m", task="chat", title="m", licence="x")


def _judge_distribution(world: World, tally: Tally) -> Iterator[str]:
    """What the hub would send to whom."""
    known = world.known[world.entry]
    facts = HubFacts(
        sites=tuple(_site(place) for place in known.values()),
        tenants=(_tenant(world.key),),
        keys=(_key(world),),
        services=(_SERVICE,),
        models=(_MODEL,),
    )
    for name, items in plan_desired(facts).items():
        place = known[str(name)]
        is_known = ("tenant", "t") in items
        why = passing_forbidden(world.key, place)
        if is_known and why:
            yield f"the tenant is known at {name}: {why}"
        if not is_known and not why:
            yield f"the tenant is not known at {name}, which may serve it"
        is_placed = ("assignment", "own") in items
        tally.placed += is_placed
        if is_placed and (place.is_entry or serving_forbidden(world.key, place)):
            yield f"a service of the tenant alone runs at {name}: {serving_forbidden(world.key, place)}"
