"""What each scope and each class of data allows, and what is never allowed by either."""

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.core import SiteId
from madang.model import DataClass, Residency, ResidencyScope, Site
from madang.policy.residency import (
    HANDLING,
    allowed_sites,
    is_allowed,
    is_within,
    may_pass_through,
    stricter,
)

OPEN, SENSITIVE, CLASSIFIED = DataClass
SITES = [
    Site(name=SiteId(name), region=region, nation=nation, data_class_max=DataClass(most))
    for name, region, nation, most in [
        ("daegu", "yeongnam", "kr", "classified"),
        ("gumi", "yeongnam", "kr", "sensitive"),
        ("busan", "yeongnam", "kr", "open"),
        ("gwangju", "honam", "kr", "sensitive"),
        ("osaka", "kansai", "jp", "classified"),
    ]
]
SCOPES = [scope for scope in ResidencyScope]
ANY = Residency(scope=ResidencyScope.ANY)


def names(scope, *places, data_class=OPEN):
    return set(allowed_sites(Residency(scope=scope, places=places), data_class, SITES))


def test_each_scope_allows_what_its_name_says():
    assert names(ResidencyScope.SITE, "daegu") == {"daegu"}
    assert names(ResidencyScope.SITES, "daegu", "gwangju") == {"daegu", "gwangju"}
    assert names(ResidencyScope.REGION, "yeongnam") == {"daegu", "gumi", "busan"}
    assert names(ResidencyScope.NATION, "kr") == {"daegu", "gumi", "busan", "gwangju"}
    assert names(ResidencyScope.ANY) == {"daegu", "gumi", "busan", "gwangju", "osaka"}


def test_each_class_narrows_every_scope():
    assert names(ResidencyScope.ANY, data_class=SENSITIVE) == {"daegu", "gumi", "gwangju"}
    assert names(ResidencyScope.ANY, data_class=CLASSIFIED) == {"daegu"}
    assert names(ResidencyScope.NATION, "kr", "jp", data_class=SENSITIVE) == {"daegu", "gumi", "gwangju"}
    assert names(ResidencyScope.REGION, "yeongnam", data_class=SENSITIVE) == {"daegu", "gumi"}
    assert names(ResidencyScope.SITES, "busan", "osaka", "gumi", data_class=SENSITIVE) == {"gumi"}
    assert names(ResidencyScope.SITE, "gumi", data_class=CLASSIFIED) == set(), "a name does not mark a site"


def test_a_scope_without_places_allows_nothing():
    for scope in (ResidencyScope.SITE, ResidencyScope.SITES, ResidencyScope.REGION, ResidencyScope.NATION):
        assert names(scope) == set()


places = st.lists(st.sampled_from(["daegu", "gumi", "yeongnam", "honam", "kr", "jp", "", "seoul"]), max_size=4)


@given(st.sampled_from(ResidencyScope), places, places, st.sampled_from(DataClass))
def test_more_places_never_allow_less(scope, some, more, data_class):
    before = Residency(scope=scope, places=tuple(some))
    after = Residency(scope=scope, places=tuple(itertools.chain(some, more)))
    assert all(is_allowed(after, data_class, site) for site in SITES if is_allowed(before, data_class, site))


@given(st.sampled_from(ResidencyScope), places, st.booleans())
def test_a_higher_class_never_allows_more(scope, some, is_transit):
    residency = Residency(scope=scope, places=tuple(some), is_transit_granted=is_transit)
    for site, (lower, higher) in itertools.product(SITES, itertools.pairwise(DataClass)):
        assert is_allowed(residency, lower, site) >= is_allowed(residency, higher, site)
        assert may_pass_through(residency, lower, site) >= may_pass_through(residency, higher, site)


def test_transit_never_widens_where_a_request_is_served():
    strict = Residency(scope=ResidencyScope.SITE, places=("daegu",))
    transit = Residency(scope=ResidencyScope.SITE, places=("daegu",), is_transit_granted=True)
    for data_class in DataClass:
        assert allowed_sites(strict, data_class, SITES) == allowed_sites(transit, data_class, SITES)


def test_what_passes_through_whom():
    granted = Residency(scope=ResidencyScope.SITE, places=("daegu",), is_transit_granted=True)
    by_class = {
        data_class: {str(site.name) for site in SITES if may_pass_through(granted, data_class, site)}
        for data_class in DataClass
    }
    assert by_class == {
        OPEN: {"daegu", "gumi", "busan", "gwangju", "osaka"},
        SENSITIVE: {"daegu", "gumi", "gwangju"},
        CLASSIFIED: set(),
    }
    refused = msgspec.structs.replace(granted, is_transit_granted=False)
    assert not any(may_pass_through(refused, one, site) for one in DataClass for site in SITES)


@pytest.mark.parametrize("scope", SCOPES)
def test_what_is_not_understood_is_not_allowed(scope):
    """Values of a newer release, which the types forbid and a decoder of ours would refuse."""
    site = msgspec.structs.replace(SITES[0])
    all_places = Residency(scope=scope, places=("daegu", "yeongnam", "kr"), is_transit_granted=True)
    assert is_allowed(all_places, CLASSIFIED, site)
    assert not is_allowed(all_places, "secret", site)
    assert not may_pass_through(all_places, "secret", site)
    odd = msgspec.structs.replace(site, data_class_max="secret")
    assert not any(is_allowed(all_places, one, odd) for one in DataClass)
    assert not is_allowed(msgspec.structs.replace(all_places, scope="galaxy"), OPEN, site)


def test_an_old_fact_reads_as_sensitive():
    old = msgspec.json.decode(b'{"name":"daegu","region":"yeongnam"}', type=Site)
    assert old.data_class_max is SENSITIVE
    assert is_allowed(ANY, SENSITIVE, old)
    assert not is_allowed(ANY, CLASSIFIED, old)


def test_engines_and_stricter():
    assert [[is_within(one, most) for one in DataClass] for most in DataClass] == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]
    for first, second in itertools.product(DataClass, DataClass):
        assert stricter(first, second) is stricter(second, first)
        assert is_within(first, stricter(first, second))


def test_the_table_of_handling_grows_stricter():
    for lower, higher in itertools.pairwise(DataClass):
        low, high = HANDLING[lower], HANDLING[higher]
        for name in ("is_transit_possible", "is_cache_shared", "is_debug_sampled"):
            assert getattr(low, name) >= getattr(high, name)
        assert low.is_every_access_recorded <= high.is_every_access_recorded
