"""Links between sites that are in clear: what is kept from them, who is asked instead, and who is told."""

import pytest
from tests.gateway.lab import CHAT, Lab, LabSite, LabTenant, residency, wait_until
from tests.gateway.raw import chat_body

from madang.model import DataClass

OPEN = LabTenant("factory", residency("any"), data_class=DataClass.OPEN)
SENSITIVE = LabTenant("ward", residency("any"))
CLASSIFIED = LabTenant("defence", residency("any"), data_class=DataClass.CLASSIFIED)
GUEST = LabTenant("guest", residency("site", "gumi", transit=True))
TENANTS = (OPEN, SENSITIVE, CLASSIFIED, GUEST)


def in_clear(site: LabSite) -> str:
    """A URL that reaches a site on loopback and does not say so in a spelling that is believed."""
    return f"http://127.1:{site.ports['peer']}"


@pytest.fixture
def sites(lab: Lab) -> list[LabSite]:
    """An entry without replicas; gumi, reached in clear, is the freest; jeju is reached on loopback."""
    lab.tenants = [*TENANTS]
    entry, gumi, jeju = found = [lab.site("daegu"), lab.site("gumi"), lab.site("jeju")]
    for site in found:
        site.data_class_max = DataClass.CLASSIFIED
        site.peers = [other.name for other in found if other is not site]
    gumi.add_replica(lab.engine(), slots=32)
    jeju.add_replica(lab.engine(), slots=1)
    entry.peer_urls = {"gumi": in_clear(gumi)}
    for site in found:
        lab.start(site)
    return found


def served_by(entry: LabSite, tenant: LabTenant) -> str:
    answer = entry.chat(tenant)
    assert answer.status == 200, answer.body
    return answer.headers["x-madang-site"]


def test_data_above_open_goes_another_way(lab: Lab, sites: list[LabSite]) -> None:
    entry = sites[0]
    assert served_by(entry, OPEN) == "gumi", "the freest"
    seen = len(lab.engines[0].requests)
    for tenant in (SENSITIVE, CLASSIFIED):
        assert [served_by(entry, tenant) for _ in range(3)] == ["jeju"] * 3
    assert len(lab.engines[0].requests) == seen
    assert sites[1].worker.meter.peer_refusals == {}, "gumi was not even asked"
    assert entry.worker.meter.clear_links == {}, "nobody was refused for it"
    entry.encrypted_links = {"gumi"}
    entry.refresh()
    assert served_by(entry, SENSITIVE) == served_by(entry, CLASSIFIED) == "gumi", "the operator answers for the way"


def test_with_no_other_way_it_is_refused_named_and_counted(lab: Lab, sites: list[LabSite]) -> None:
    entry, gumi, _ = sites
    entry.peers = ["gumi"]
    entry.refresh()
    for tenant in (SENSITIVE, CLASSIFIED, GUEST):
        for path, body in (("/v1/chat/completions", chat_body()), ("/v1/completions", {"model": CHAT, "prompt": "p"})):
            answer = entry.request("POST", path, body, key=tenant.key)
            assert (answer.status, answer.error["code"]) == (503, "no_replica"), "no question of residency"
            assert "link is not encrypted" in answer.error["message"]
            assert answer.error["madang"] == {"sites": [{"name": "gumi", "url": gumi.url}]}
        assert [card["id"] for card in entry.request("GET", "/v1/models", key=tenant.key).json["data"]] == []
    assert (entry.chat(GUEST).headers.get("retry-after"), entry.chat(SENSITIVE).headers["retry-after"]) == (None, "5")
    assert lab.engines[0].requests == []
    assert (entry.worker.meter.upstream_opened, gumi.worker.meter.peer_refusals) == (0, {}), "nothing was sent at all"
    assert served_by(entry, OPEN) == "gumi"
    text = entry.request("GET", "/metrics", port="admin").body.decode()
    assert 'madang_gateway_clear_link_refusals_total{data_class="classified",site="gumi"} 2.0' in text
    assert 'madang_gateway_clear_link_refusals_total{data_class="sensitive",site="gumi"} 6.0' in text
    assert 'madang_gateway_peer_link_private{site="gumi"} 0.0' in text
    assert entry.events() == []


def test_somebody_is_told_before_a_tenant_is(lab: Lab, sites: list[LabSite]) -> None:
    entry = sites[0]
    ready = entry.request("GET", "/readyz", port="admin")
    assert ready.status == 200, "open data, and what is served here, go on"
    (warning,) = ready.json["warnings"]
    assert warning.startswith("only data of class open is sent to gumi:")
    assert "encrypted_links" in warning
    told = wait_until(lambda: entry.log.named("gateway_links_in_clear"), "the log says so")
    assert told[0]["sites"] == ["gumi"]
    entry.peer_urls = {}
    entry.refresh()
    wait_until(lambda: entry.log.named("gateway_links_private"), "and of the recovery")
    assert entry.request("GET", "/readyz", port="admin").json["warnings"] == []
    assert len(entry.log.named("gateway_links_in_clear")) == 1
    text = entry.request("GET", "/metrics", port="admin").body.decode()
    assert 'madang_gateway_peer_link_private{site="gumi"} 1.0' in text
