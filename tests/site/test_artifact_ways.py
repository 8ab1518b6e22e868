"""Which sites are asked for artifacts, where, and in which order; and the certificate that is shown to them."""

import io
import secrets

from tests.gateway.certificates import Root

from madang.core import SiteId
from madang.model import Site
from madang.runtime.clock import SystemClock
from madang.runtime.telemetry import EventLog
from madang.site.artifact_ways import FRESH_S, PEERS_ASKED_MAX, ArtifactCertificate, choose_ways, find_urls
from madang.site.settings import SiteSettings
from madang.wire.feed import Peer, PeerSession

SESSION = PeerSession(kid="k", key=secrets.token_bytes(32), expires_at_s=4e9)


def peer(name, *, age_s=0.1, round_trip_s=-1.0, sessions=(SESSION,)):
    return Peer(
        site=SiteId(name), url="", digest_age_s=age_s, services=(), sessions=sessions, round_trip_s=round_trip_s
    )


def ask(*peers, urls=None):
    every = {one.site: f"https://{one.site}:7718" for one in peers}
    return [site for site, _ in choose_ways(peers, every if urls is None else urls)]


def test_a_site_is_asked_where_it_says_unless_the_settings_know_better():
    sites = {
        name: Site(name=SiteId(name), region="r", artifact_url=url)
        for name, url in (("gumi", "https://gumi:7718"), ("pohang", "https://pohang:7718"), ("ulsan", ""))
    }
    assert find_urls(sites, {"pohang": "http://10.0.0.7:7717", "gumi": ""}) == {"pohang": "http://10.0.0.7:7717"}
    assert find_urls(sites, {}) == {"gumi": "https://gumi:7718", "pohang": "https://pohang:7718"}
    # One whose fact has not come yet, or that is of an older release.
    assert find_urls({}, {"ulsan": "http://ulsan:7717"}) == {"ulsan": "http://ulsan:7717"}


def test_near_sites_come_first_and_those_that_were_not_heard_last():
    peers = [
        peer("a", round_trip_s=0.050),
        peer("b", round_trip_s=0.002),
        peer("c"),
        peer("d", round_trip_s=0.001, age_s=FRESH_S + 1),
        peer("e", age_s=-1.0),
    ]
    assert ask(*peers) == ["b", "a", "c", "d", "e"]


def test_ties_go_by_name_and_do_not_depend_on_the_order():
    peers = [peer("c"), peer("a"), peer("b")]
    assert ask(*peers) == ask(*reversed(peers)) == ["a", "b", "c"]


def test_without_a_session_or_a_url_nobody_is_asked():
    assert ask(peer("a", sessions=()), peer("b")) == ["b"]
    assert ask(peer("a"), peer("b"), urls={"a": "https://a:7718"}) == ["a"]


def test_no_more_are_asked_than_is_sensible():
    assert len(ask(*(peer(f"s{number}") for number in range(100)))) == PEERS_ASKED_MAX


def test_a_newer_certificate_is_shown_and_a_spoilt_one_is_not(tmp_path):
    root, lines = Root(tmp_path / "root"), io.StringIO()
    certificate, key = root.issue(tmp_path / "pair")
    settings = SiteSettings(
        name="daegu",
        region="r",
        state_dir=tmp_path,
        feed_dir=tmp_path,
        usage_dir=tmp_path,
        artifact_tls_certificate_file=certificate,
        artifact_tls_key_file=key,
    )
    shown = ArtifactCertificate(settings, SystemClock(), EventLog(SystemClock(), lines))
    first = shown.context()
    assert shown.context() is first
    root.issue(tmp_path / "pair")
    second = shown.context()
    assert second is not first
    certificate.write_text("no certificate", encoding="ascii")
    assert shown.context() is second
    assert lines.getvalue().count("artifact_certificate_replaced") == 1
    assert lines.getvalue().count("artifact_certificate_kept") == 1
