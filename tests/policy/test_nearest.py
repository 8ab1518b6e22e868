from madang.core import SiteId
from madang.policy.nearest import NEAR_MAX, LegalSite, SiteHealth, choose_redirect, rank_sites

READY, EMPTY, SILENT = SiteHealth.READY, SiteHealth.EMPTY, SiteHealth.SILENT


def site(name, region="yeongnam", health=READY, round_trip_s=None, **fields):
    url = fields.pop("url", f"http://{name}")
    return LegalSite(name=SiteId(name), region=region, url=url, health=health, round_trip_s=round_trip_s, **fields)


def order(sites, *near):
    return [str(one.name) for one in rank_sites(sites, near)]


def test_the_shortest_round_trip_is_nearest_and_names_break_ties():
    sites = [site("c", round_trip_s=0.02), site("b", round_trip_s=0.01), site("a", round_trip_s=0.02), site("d")]
    assert order(sites) == ["b", "a", "c", "d"], "where nobody measured comes last"


def test_what_the_client_says_comes_before_what_the_gateway_measured():
    sites = [site("daegu", round_trip_s=0.001), site("gumi", round_trip_s=0.01), site("gwangju", "honam")]
    assert order(sites, "gwangju") == ["gwangju", "daegu", "gumi"]
    assert order(sites, "honam", "gumi") == ["gwangju", "gumi", "daegu"]
    assert order(sites, "yeongnam") == ["daegu", "gumi", "gwangju"]
    assert order(sites, "seoul", "gumi", "yeongnam", "gumi") == ["gumi", "daegu", "gwangju"]
    assert order(sites, *["x"] * NEAR_MAX, "gwangju") == ["daegu", "gumi", "gwangju"], "beyond the limit"


def test_health_comes_before_nearness():
    sites = [site("a", health=SILENT, round_trip_s=0.0), site("b", health=EMPTY, round_trip_s=0.0), site("c")]
    assert order(sites, "b", "a") == ["c", "a", "b"]


def test_nobody_is_sent_where_no_engine_is_known_to_be_or_no_url_is():
    assert choose_redirect([]) is None
    assert choose_redirect([site("a", health=EMPTY)]) is None
    assert choose_redirect([site("a", url="")]) is None
    assert choose_redirect([site("a", url=""), site("b", health=SILENT)]).name == "b", (
        "it may be cut off from here only"
    )
