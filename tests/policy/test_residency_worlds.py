"""Residency over random worlds, judged by an oracle that was written apart; and proof that the oracle can fail."""

import time
from collections.abc import Callable
from functools import partial

import pytest
from tests.policy.residency_worlds import Tally, run_world

from madang.model import DataClass, Residency, ResidencyScope, Site
from madang.policy import desired, residency, routing

WORLDS, WORLDS_DEEP = 20_000, 1_000_000


def sweep(first: int, count: int) -> Tally:
    tally = Tally()
    for seed in range(first, first + count):
        violations = run_world(seed, tally)
        assert not violations, f"world {seed}: {violations}"
    return tally


def check_reach(tally: Tally) -> None:
    """A sweep that refuses everything proves nothing."""
    assert tally.served > tally.worlds * 0.05
    assert tally.passed_on > tally.worlds * 0.05
    assert tally.peer_served > tally.worlds * 0.01
    assert tally.refused > tally.worlds * 0.05
    assert tally.refused_entry > tally.worlds * 0.1
    assert tally.placed > tally.worlds * 0.1


def test_no_violation_in_many_worlds() -> None:
    check_reach(sweep(0, WORLDS))


@pytest.mark.deep
@pytest.mark.timeout(1800)
def test_no_violation_in_a_million_worlds() -> None:
    began = time.monotonic()
    tally = sweep(WORLDS, WORLDS_DEEP)
    check_reach(tally)
    print(f"{tally.worlds} worlds in {time.monotonic() - began:.0f} s: {tally.served} served here, ", end="")
    print(f"{tally.passed_on} handed on, {tally.refused_entry} refused at the door, {tally.refused} refused later")


def test_a_policy_that_is_narrowed_keeps_its_scope() -> None:
    """A world in which the serving site holds other facts of itself: names of sites alone let it serve abroad."""
    assert run_world(541_666, Tally()) == []


Rule = Callable[[Residency, DataClass, Site], bool]
allowed, graded = residency.is_allowed, residency.is_graded_for


def scope_only(rule: Residency, _data_class: DataClass, site: Site) -> bool:
    return allowed(rule, DataClass.OPEN, site)


def abroad_too(rule: Residency, data_class: DataClass, site: Site) -> bool:
    home = Site(name=site.name, region=site.region, nation="kr", data_class_max=site.data_class_max)
    return allowed(rule, data_class, site) or (
        rule.scope is ResidencyScope.ANY and graded(data_class, home) and data_class is DataClass.SENSITIVE
    )


def sensitive_is_classified(rule: Residency, data_class: DataClass, site: Site) -> bool:
    return allowed(rule, DataClass.SENSITIVE if data_class is DataClass.CLASSIFIED else data_class, site)


def regions_are_nations(rule: Residency, data_class: DataClass, site: Site) -> bool:
    is_neighbour = rule.scope is ResidencyScope.REGION and site.nation in rule.places
    return allowed(rule, data_class, site) or (is_neighbour and graded(data_class, site))


def unknown_scope_allows(rule: Residency, data_class: DataClass, site: Site) -> bool:
    return allowed(rule, data_class, site) or (rule.scope == "galaxy" and graded(data_class, site))


@pytest.mark.parametrize(
    "broken", [scope_only, abroad_too, sensitive_is_classified, regions_are_nations, unknown_scope_allows]
)
def test_a_broken_filter_is_caught(monkeypatch: pytest.MonkeyPatch, broken: Rule) -> None:
    monkeypatch.setattr(routing, "is_allowed", broken)
    assert is_caught()


@pytest.mark.parametrize("broken", [scope_only, sensitive_is_classified])
def test_a_broken_distribution_is_caught(monkeypatch: pytest.MonkeyPatch, broken: Rule) -> None:
    monkeypatch.setattr(desired, "is_allowed", broken)
    assert is_caught()


def test_a_site_that_keeps_what_it_may_not_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("madang.site.files.keeping.is_allowed", scope_only)
    assert is_caught()


def test_free_transit_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("madang.gateway.access.may_pass_through", lambda rule, _class, _site: rule.is_transit_granted)
    assert is_caught()


def test_a_peer_that_believes_everything_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("madang.gateway.peer_port.is_allowed", lambda _rule, _class, _site: True)
    assert is_caught()


def test_an_engine_that_sees_too_much_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "is_within", lambda _class, _most: True)
    assert is_caught()


def test_a_link_that_carries_too_much_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "_usable_peers", partial(routing._usable_peers, is_link_judged=False))
    assert is_caught()


def test_a_stale_digest_that_is_believed_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "is_peer_current", lambda _age_s: True)
    assert is_caught()


def is_caught() -> bool:
    """Whether the oracle objects within as many worlds as `make test` looks at."""
    tally = Tally()
    return any(run_world(seed, tally) for seed in range(WORLDS))
