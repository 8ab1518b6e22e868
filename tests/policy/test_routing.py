"""Routing over random worlds, and the order of preference; classes of data: see test_residency_worlds."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from madang.core import ReplicaId, SiteId
from madang.model import DataClass, PriorityClass, Residency, ResidencyScope, Site
from madang.policy.routing import (
    DIGEST_AGE_MAX_S,
    QUEUE_PER_SLOT_MAX,
    Ask,
    PeerChoice,
    Refusal,
    RefusalReason,
    ReplicaChoice,
    Route,
    ToPeer,
    ToReplica,
    View,
    choose_route,
    is_peer_current,
    legal_sites,
    predict_room_s,
)

NAMES = ["daegu", "gumi", "gwangju", "busan", "national"]
REGIONS = ["yeongnam", "honam", ""]
NATIONS = ["kr", "jp"]

sites = st.dictionaries(
    st.sampled_from(NAMES),
    st.tuples(st.sampled_from(REGIONS), st.sampled_from(NATIONS), st.booleans()),
    max_size=5,
).map(
    lambda found: {
        SiteId(name): Site(name=SiteId(name), region=region, nation=nation, is_entry_only=is_entry)
        for name, (region, nation, is_entry) in found.items()
    }
)
residencies = st.builds(
    Residency,
    scope=st.sampled_from(ResidencyScope),
    places=st.lists(st.sampled_from(NAMES + REGIONS + NATIONS), max_size=3).map(tuple),
    is_transit_granted=st.booleans(),
)
replicas = st.lists(
    st.builds(
        ReplicaChoice,
        st.sampled_from(["r1", "r2", "r3", "r4"]).map(ReplicaId),
        st.integers(0, 4),
        st.integers(0, 20),
        st.booleans(),
    ),
    max_size=4,
    unique_by=lambda one: one.replica_id,
).map(tuple)
peers = st.lists(
    st.builds(
        PeerChoice,
        st.sampled_from(NAMES).map(SiteId),
        st.sampled_from([-1.0, 0.0, 0.3, 1.4, 1.5, 1.6, 30.0]),
        st.integers(0, 2),
        st.integers(0, 4),
        st.integers(0, 20),
        st.booleans(),
    ),
    max_size=5,
    unique_by=lambda one: one.site,
).map(tuple)
asks = st.builds(
    Ask,
    service=st.sampled_from(["", "qwen"]),
    residency=residencies,
    data_class=st.just(DataClass.OPEN),
    hops_left=st.integers(0, 1),
    is_local_barred=st.booleans(),
    priority=st.sampled_from(PriorityClass),
)
views = st.builds(View, site=st.sampled_from(NAMES).map(SiteId), sites=sites, replicas=replicas, peers=peers)
sheds = st.sampled_from([None, *PriorityClass])
strained = st.builds(
    lambda view, shed_from, is_spilling, envelopes: msgspec.structs.replace(
        view,
        shed_from=shed_from,
        is_spilling=is_spilling,
        peers=tuple(
            msgspec.structs.replace(peer, shed_from=shed, is_spilling=spills)
            for peer, (shed, spills) in zip(view.peers, envelopes, strict=False)
        ),
    ),
    views,
    sheds,
    st.booleans(),
    st.lists(st.tuples(sheds, st.booleans()), min_size=5, max_size=5),
)
"""The same worlds short of power or cooling, here and there."""
seeds = st.integers(0, 2**64 - 1)


def oracle_allows(residency: Residency, name: str, world: dict[SiteId, Site]) -> bool:
    """The rule in other words: which names may serve, by listing them."""
    by_scope: dict[str, set[str]] = {
        "any": {str(site) for site in world},
        "nation": {str(n) for n, site in world.items() if any(place == site.nation for place in residency.places)},
        "region": {str(n) for n, site in world.items() if any(place == site.region for place in residency.places)},
        "sites": {str(n) for n in world if n in set(residency.places)},
        "site": {str(n) for n in world if n in set(residency.places)},
    }
    return name in by_scope[str(residency.scope)]


def every_attempt(ask: Ask, view: View, seed: int) -> list[Route | Refusal]:
    """What a request would try, one after the other, until it is refused."""
    tried: list[Route] = []
    while True:
        route = choose_route(ask, view, tried, seed)
        if isinstance(route, Refusal):
            return [*tried, route]
        assert route not in tried, "a failed route is never returned again"
        tried.append(route)


@given(asks, views | strained, seeds)
def test_never_an_illegal_site_and_never_twice(ask: Ask, view: View, seed: int) -> None:
    *routes, refusal = every_attempt(ask, view, seed)
    world = dict(view.sites)
    for route in routes:
        if isinstance(route, ToReplica):
            assert oracle_allows(ask.residency, view.site, world)
            assert not ask.is_local_barred
            assert route.replica_id in {one.replica_id for one in view.replicas}
        else:
            assert oracle_allows(ask.residency, route.site, world)
            assert route.site != view.site
            assert ask.hops_left > 0
            (peer,) = [one for one in view.peers if one.site == route.site]
            assert peer.replicas_ready > 0
            assert 0 <= peer.digest_age_s <= DIGEST_AGE_MAX_S
    assert isinstance(refusal, Refusal)


@given(asks, views | strained, seeds)
def test_the_same_arguments_give_the_same_answer(ask: Ask, view: View, seed: int) -> None:
    shuffled = msgspec.structs.replace(
        view,
        sites=dict(reversed(list(view.sites.items()))),
        replicas=tuple(reversed(view.replicas)),
        peers=tuple(reversed(view.peers)),
    )
    assert choose_route(ask, view, (), seed) == choose_route(ask, shuffled, (), seed)


@given(asks, views | strained, seeds)
def test_refusals_say_what_is_true(ask: Ask, view: View, seed: int) -> None:
    route = choose_route(ask, view, (), seed)
    if not isinstance(route, Refusal):
        return
    world = dict(view.sites)
    is_any_legal = any(oracle_allows(ask.residency, name, world) and not world[name].is_entry_only for name in world)
    if route.reason is RefusalReason.RESIDENCY:
        assert not is_any_legal
        assert route.retry_after_s is None, "waiting does not help"
    else:
        assert route.retry_after_s is not None
    if route.reason is RefusalReason.NO_REPLICA:
        assert is_any_legal


@given(asks, views, seeds)
def test_another_free_replica_never_hurts(ask: Ask, view: View, seed: int) -> None:
    more = View(
        site=view.site,
        sites=view.sites,
        replicas=(*view.replicas, ReplicaChoice(ReplicaId("extra"), 4, 0)),
        peers=view.peers,
    )
    before, after = choose_route(ask, view, (), seed), choose_route(ask, more, (), seed)
    if not isinstance(before, Refusal):
        assert not isinstance(after, Refusal)
    is_usable = not ask.is_local_barred and oracle_allows(ask.residency, view.site, dict(view.sites))
    if is_usable:
        assert isinstance(after, ToReplica), "a free replica here is preferred"


@given(asks, views | strained, seeds)
def test_a_wider_residency_never_refuses_more(ask: Ask, view: View, seed: int) -> None:
    wide = msgspec.structs.replace(ask, residency=Residency(scope=ResidencyScope.ANY))
    if not isinstance(choose_route(ask, view, (), seed), Refusal):
        assert not isinstance(choose_route(wide, view, (), seed), Refusal)


ANY = Residency(scope=ResidencyScope.ANY)
WORLD = {SiteId(name): Site(name=SiteId(name), region="yeongnam") for name in NAMES}
ASK = Ask(service="qwen", residency=ANY, data_class=DataClass.OPEN, hops_left=1)


def view(*choices: ReplicaChoice | PeerChoice) -> View:
    return View(
        site=SiteId("daegu"),
        sites=WORLD,
        replicas=tuple(one for one in choices if isinstance(one, ReplicaChoice)),
        peers=tuple(one for one in choices if isinstance(one, PeerChoice)),
    )


def replica(name: str, slots: int, in_flight: int, *, is_suspect: bool = False) -> ReplicaChoice:
    return ReplicaChoice(ReplicaId(name), slots, in_flight, is_suspect)


def peer(name: str, slots: int, in_flight: int, *, is_suspect: bool = False, age_s: float = 0.1) -> PeerChoice:
    return PeerChoice(SiteId(name), age_s, 1, slots, in_flight, is_suspect)


def test_the_order_of_preference() -> None:
    everybody = [
        replica("free", 4, 3),
        peer("gumi", 4, 0),
        replica("queue", 1, 1),
        peer("gwangju", 1, 1),
        replica("suspect", 4, 0, is_suspect=True),
        peer("busan", 4, 0, is_suspect=True),
        replica("full", 1, QUEUE_PER_SLOT_MAX),
        peer("national", 1, QUEUE_PER_SLOT_MAX),
    ]
    expected: list[Route] = [
        ToReplica(ReplicaId("free")),
        ToPeer(SiteId("gumi")),
        ToReplica(ReplicaId("queue")),
        ToPeer(SiteId("gwangju")),
        ToReplica(ReplicaId("suspect")),
        ToPeer(SiteId("busan")),
    ]
    *routes, refusal = every_attempt(ASK, view(*everybody), 0)
    assert routes == expected
    assert refusal == Refusal(RefusalReason.OVERLOADED, 2.0)


def test_most_free_slots_and_shortest_wait() -> None:
    assert choose_route(ASK, view(replica("a", 4, 2), replica("b", 8, 5)), (), 0) == ToReplica(ReplicaId("b"))
    assert choose_route(ASK, view(peer("gumi", 4, 2), peer("busan", 8, 3)), (), 0) == ToPeer(SiteId("busan"))
    assert choose_route(ASK, view(peer("gumi", 4, 2), peer("busan", 8, 4)), (), 0) == ToPeer(SiteId("busan")), "by name"


def test_ties_are_spread_by_the_seed() -> None:
    tied = view(replica("a", 4, 0), replica("b", 4, 0), replica("c", 4, 0))
    chosen = [choose_route(ASK, tied, (), seed) for seed in range(600)]
    for name in "abc":
        assert 150 < chosen.count(ToReplica(ReplicaId(name))) < 250


def test_digests_and_legal_sites() -> None:
    assert [is_peer_current(age_s) for age_s in (-1.0, 0.0, 1.5, 1.51)] == [False, True, True, False]
    entry = Site(name=SiteId("a"), region="", is_entry_only=True)
    assert [site.name for site in legal_sites(ANY, DataClass.OPEN, [*WORLD.values(), entry])] == sorted(NAMES)


SECRET = msgspec.structs.replace(ASK, data_class=DataClass.SENSITIVE)


def private(name: str, slots: int = 4, in_flight: int = 0, **fields: object) -> PeerChoice:
    return msgspec.structs.replace(peer(name, slots, in_flight), data_class_max=DataClass.CLASSIFIED, **fields)


def test_data_above_open_goes_over_private_links_alone() -> None:
    world = view(peer("busan", 8, 0), private("gumi", 4, 3))
    assert choose_route(ASK, world, (), 0) == ToPeer(SiteId("busan")), "the freest, for open data"
    assert choose_route(SECRET, world, (), 0) == ToPeer(SiteId("gumi"))
    full = view(peer("busan", 8, 0), private("gumi", 1, 3))
    assert choose_route(SECRET, full, (), 0).reason is RefusalReason.OVERLOADED, "it comes free again"
    assert choose_route(SECRET, view(peer("busan", 8, 0), replica("a", 1, 2)), (), 0) == ToReplica(ReplicaId("a"))


def test_a_link_in_clear_is_no_question_of_residency() -> None:
    """Who could serve it is legal, so it is never 403; waiting helps unless all that is legal is reached in clear."""
    entry = msgspec.structs.replace(SECRET, is_local_barred=True)
    here = Residency(scope=ResidencyScope.SITES, places=("gumi", "daegu"))
    only = msgspec.structs.replace(SECRET, residency=Residency(scope=ResidencyScope.SITES, places=("gumi",)))
    clear = (SiteId("gumi"),)
    world = view(peer("gumi", 4, 0))
    assert choose_route(only, world, (), 0) == Refusal(RefusalReason.CLEAR_LINK, None, clear)
    local = msgspec.structs.replace(SECRET, residency=here)
    assert choose_route(local, world, (), 0) == Refusal(RefusalReason.CLEAR_LINK, 5.0, clear), "an engine here may come"
    unread = msgspec.structs.replace(entry, residency=here)
    assert choose_route(unread, world, (), 0) == Refusal(RefusalReason.CLEAR_LINK, None, clear)
    down = view(private("gumi", replicas_ready=0), peer("busan", 4, 0, age_s=9.0))
    assert choose_route(SECRET, down, (), 0) == Refusal(RefusalReason.NO_REPLICA, 5.0), "they are merely down"
    abroad = msgspec.structs.replace(SECRET, residency=Residency(scope=ResidencyScope.NATION, places=("jp",)))
    assert choose_route(abroad, world, (), 0) == Refusal(RefusalReason.RESIDENCY)


@given(asks, views, seeds, st.sampled_from(DataClass), st.lists(st.booleans(), min_size=5, max_size=5))
def test_links_in_clear_take_peers_away_and_nothing_else(
    ask: Ask, view: View, seed: int, data_class: DataClass, privates: list[bool]
) -> None:
    """Routing with some links in clear is routing without those peers, but for the reason of a refusal."""
    ask = msgspec.structs.replace(ask, data_class=data_class)
    marked = [
        msgspec.structs.replace(one, data_class_max=DataClass.CLASSIFIED if is_private else DataClass.OPEN)
        for one, is_private in zip(view.peers, privates, strict=False)
    ]
    kept = tuple(one for one in marked if data_class is DataClass.OPEN or one.data_class_max is DataClass.CLASSIFIED)
    found = choose_route(ask, msgspec.structs.replace(view, peers=tuple(marked)), (), seed)
    without = choose_route(ask, msgspec.structs.replace(view, peers=kept), (), seed)
    if isinstance(found, Refusal) and found.reason is RefusalReason.CLEAR_LINK:
        assert isinstance(without, Refusal)
        assert without.reason is RefusalReason.NO_REPLICA
        assert set(found.sites) <= {one.site for one in marked} - {one.site for one in kept}
    else:
        assert found == without


def test_no_hop_left_means_no_peer() -> None:
    ask = Ask(service="qwen", residency=ANY, data_class=DataClass.OPEN, hops_left=0)
    assert choose_route(ask, view(peer("gumi", 4, 0)), (), 0) == Refusal(RefusalReason.NO_REPLICA, 5.0)


@given(asks, views | strained, seeds)
def test_a_higher_class_is_never_refused_where_a_lower_one_is_served(ask: Ask, view: View, seed: int) -> None:
    served = [
        not isinstance(choose_route(msgspec.structs.replace(ask, priority=priority), view, (), seed), Refusal)
        for priority in sorted(PriorityClass, key=lambda one: one.rank)
    ]
    assert served == sorted(served, reverse=True)


def test_who_is_shed_when_a_replica_fills() -> None:
    """Eight slots: batch fills six and never waits, interactive two deep, clinical three deep."""

    def is_served(priority: PriorityClass, in_flight: int) -> bool:
        ask = Ask(service="qwen", residency=ANY, data_class=DataClass.OPEN, hops_left=1, priority=priority)
        return not isinstance(choose_route(ask, view(replica("a", 8, in_flight)), (), 0), Refusal)

    full_at = {
        priority: min(count for count in range(40) if not is_served(priority, count)) for priority in PriorityClass
    }
    assert full_at == {PriorityClass.BATCH: 6, PriorityClass.INTERACTIVE: 24, PriorityClass.CLINICAL: 32}
    one_slot = Ask(service="qwen", residency=ANY, data_class=DataClass.OPEN, hops_left=1, priority=PriorityClass.BATCH)
    assert choose_route(one_slot, view(replica("a", 1, 0)), (), 0) == ToReplica(ReplicaId("a"))


def test_when_to_come_again_follows_from_what_leaves() -> None:
    full = (ReplicaChoice(ReplicaId("a"), 8, 24),)
    soon, late = (predict_room_s(PriorityClass.INTERACTIVE, full, 48.0, seed) for seed in (0, 2**64 - 1))
    assert min(soon, late) >= 2.0
    assert max(soon, late) <= 4.0, "24 in flight of 48 s each: one leaves every 2 s"
    assert predict_room_s(PriorityClass.INTERACTIVE, full, 0.0, 1) == 2.0, "not known"
    assert predict_room_s(PriorityClass.BATCH, full, 0.01, 1) == 1.0
    assert predict_room_s(PriorityClass.BATCH, full, 1e6, 1) == 60.0


# Power and cooling


def calm(view: View) -> View:
    """The same world with nobody short of anything."""
    peers = tuple(msgspec.structs.replace(peer, shed_from=None, is_spilling=False) for peer in view.peers)
    return msgspec.structs.replace(view, shed_from=None, is_spilling=False, peers=peers)


@given(asks, strained, seeds)
def test_no_shortage_opens_a_site_that_the_law_closes_and_none_closes_it_to_the_law(
    ask: Ask, view: View, seed: int
) -> None:
    def is_illegal(world: View) -> bool:
        route = choose_route(ask, world, (), seed)
        return isinstance(route, Refusal) and route.reason is RefusalReason.RESIDENCY

    assert is_illegal(view) == is_illegal(calm(view))
    if isinstance(choose_route(ask, calm(view), (), seed), Refusal):
        assert isinstance(choose_route(ask, view, (), seed), Refusal), "a shortage makes no room"


@given(asks, strained, seeds)
def test_a_class_that_is_shed_is_served_nowhere_that_sheds_it(ask: Ask, view: View, seed: int) -> None:
    def sheds(shed_from: PriorityClass | None) -> bool:
        return shed_from is not None and ask.priority.rank >= shed_from.rank

    for route in every_attempt(ask, view, seed)[:-1]:
        if isinstance(route, ToReplica):
            assert not sheds(view.shed_from)
        else:
            assert not any(sheds(one.shed_from) for one in view.peers if one.site == route.site)


@given(asks, strained, seeds)
def test_spilling_changes_the_order_and_refuses_nobody(ask: Ask, view: View, seed: int) -> None:
    calmer = msgspec.structs.replace(view, is_spilling=False)
    routes, others = every_attempt(ask, view, seed), every_attempt(ask, calmer, seed)
    assert {str(one) for one in routes[:-1]} == {str(one) for one in others[:-1]}


def test_a_site_that_spills_takes_peers_first_and_itself_before_any_queue() -> None:
    world = msgspec.structs.replace(
        view(replica("a", 4, 0), peer("gumi", 4, 3), msgspec.structs.replace(peer("busan", 8, 0), is_spilling=True)),
        is_spilling=True,
    )
    *routes, _ = every_attempt(ASK, world, 0)
    assert routes == [ToPeer(SiteId("gumi")), ToReplica(ReplicaId("a")), ToPeer(SiteId("busan"))]


def test_a_shed_class_is_told_to_come_again_and_the_clinic_is_served() -> None:
    world = msgspec.structs.replace(view(replica("a", 4, 0)), shed_from=PriorityClass.BATCH)
    batch = msgspec.structs.replace(ASK, priority=PriorityClass.BATCH)
    waits_s = [choose_route(batch, world, (), seed).retry_after_s for seed in (0, 2**64 - 1)]
    assert sorted(waits_s) == waits_s
    assert waits_s[0] >= 30.0
    assert waits_s[1] <= 60.0
    for priority in (PriorityClass.INTERACTIVE, PriorityClass.CLINICAL):
        assert isinstance(choose_route(msgspec.structs.replace(ASK, priority=priority), world, (), 0), ToReplica)
