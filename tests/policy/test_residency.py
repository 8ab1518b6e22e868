import itertools

from hypothesis import given
from hypothesis import strategies as st

from madang.core import SiteId
from madang.model import Residency, ResidencyScope, Site
from madang.policy.residency import allowed_sites, is_allowed

SITES = [
    Site(name=SiteId(name), region=region, nation=nation)
    for name, region, nation in [
        ("daegu", "yeongnam", "kr"),
        ("gumi", "yeongnam", "kr"),
        ("gwangju", "honam", "kr"),
        ("osaka", "kansai", "jp"),
    ]
]


def names(scope, *places):
    return set(allowed_sites(Residency(scope=scope, places=places), SITES))


def test_each_scope_allows_what_its_name_says():
    assert names(ResidencyScope.SITE, "daegu") == {"daegu"}
    assert names(ResidencyScope.SITES, "daegu", "gwangju") == {"daegu", "gwangju"}
    assert names(ResidencyScope.REGION, "yeongnam") == {"daegu", "gumi"}
    assert names(ResidencyScope.NATION, "kr") == {"daegu", "gumi", "gwangju"}
    assert names(ResidencyScope.ANY) == {"daegu", "gumi", "gwangju", "osaka"}


def test_a_scope_without_places_allows_nothing():
    for scope in (ResidencyScope.SITE, ResidencyScope.SITES, ResidencyScope.REGION, ResidencyScope.NATION):
        assert names(scope) == set()


places = st.lists(st.sampled_from(["daegu", "gumi", "yeongnam", "honam", "kr", "jp", "", "seoul"]), max_size=4)


@given(st.sampled_from(ResidencyScope), places, places)
def test_more_places_never_allow_less(scope, some, more):
    before = Residency(scope=scope, places=tuple(some))
    after = Residency(scope=scope, places=tuple(itertools.chain(some, more)))
    assert all(is_allowed(after, site) for site in SITES if is_allowed(before, site))


def test_transit_never_widens_where_a_request_is_served():
    strict = Residency(scope=ResidencyScope.SITE, places=("daegu",))
    transit = Residency(scope=ResidencyScope.SITE, places=("daegu",), is_transit_granted=True)
    assert allowed_sites(strict, SITES) == allowed_sites(transit, SITES)
