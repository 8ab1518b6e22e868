"""What a key may do: its services, its sites, its class and its limits, on real requests."""

import threading

import openai
import pytest
from tests.gateway.lab import CHAT, EMBED, Lab, LabSite, LabTenant, residency, wait_until

from madang.core import KeyId, ProjectId, SiteId, TenantId
from madang.model import KeyPolicy, PriorityClass, Project

QUESTION = [{"role": "user", "content": "x"}]


def policy(**fields: object) -> KeyPolicy:
    return KeyPolicy(key_id=KeyId("city"), tenant_id=TenantId("city"), **{"project_id": ProjectId(""), **fields})


@pytest.fixture
def city(lab: Lab) -> LabTenant:
    tenant = LabTenant("city", residency("nation", "kr"))
    lab.tenants = [tenant]
    return tenant


@pytest.fixture
def site(lab: Lab, city: LabTenant) -> LabSite:
    site = lab.site()
    site.add_replica(lab.engine())
    site.add_replica(lab.engine(), EMBED)
    lab.start(site)
    return site


def give(lab: Lab, site: LabSite, **fields: object) -> None:
    lab.key_policies = [policy(**fields)]
    site.refresh()


def test_a_service_that_a_key_may_not_call_does_not_exist_for_it(lab: Lab, site: LabSite, city: LabTenant) -> None:
    give(lab, site, services=(EMBED,))
    answer = site.chat(city)
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    unknown = site.request("POST", "/v1/chat/completions", {"model": "nobody", "messages": QUESTION}, key=city.key)
    assert answer.error["message"].replace(CHAT, "nobody") == unknown.error["message"]
    assert [model["id"] for model in site.request("GET", "/v1/models", key=city.key).json["data"]] == [EMBED]
    assert site.request("GET", f"/v1/models/{CHAT}", key=city.key).status == 404
    give(lab, site)
    assert site.chat(city).status == 200


def test_a_key_is_used_at_its_sites_only(lab: Lab, site: LabSite, city: LabTenant) -> None:
    other = lab.site("gumi")
    other.add_replica(lab.engine())
    third = lab.site("jeju", "jeju")
    third.add_replica(lab.engine())
    lab.key_policies = [policy(sites=(SiteId("gumi"),))]
    site.peers = ["gumi", "jeju"]
    site.refresh()
    lab.start(other)
    answer = site.chat(city)
    assert (answer.status, answer.error["code"]) == (403, "residency_violation")
    assert [one["name"] for one in answer.error["madang"]["sites"]] == ["gumi"]
    assert other.chat(city).status == 200
    names = [one["name"] for one in other.request("GET", "/v1/sites", key=city.key).json["data"]]
    assert names == ["gumi"]
    give(lab, site, sites=(SiteId("elsewhere"),))
    assert site.chat(city).error["madang"]["sites"] == [], "a key cannot widen its tenant's residency"


def test_a_key_narrows_the_choice_of_peers(lab: Lab, site: LabSite, city: LabTenant) -> None:
    site.replicas.clear()
    peers = [lab.site("gumi"), lab.site("ulsan")]
    for peer in peers:
        peer.add_replica(lab.engine())
        peer.peers = ["daegu"]
    site.peers = ["gumi", "ulsan"]
    lab.key_policies = [policy(sites=(SiteId("daegu"), SiteId("ulsan")))]
    site.refresh()
    for peer in peers:
        lab.start(peer)
    for _ in range(4):
        assert site.chat(city).headers["x-madang-site"] == "ulsan"


def test_a_peer_judges_a_keys_sites_again(lab: Lab, site: LabSite, city: LabTenant) -> None:
    site.replicas.clear()
    peer = lab.site("gumi")
    peer.add_replica(lab.engine())
    peer.peers, site.peers = ["daegu"], ["gumi"]
    lab.key_policies = []
    site.refresh()
    lab.key_policies = [policy(sites=(SiteId("daegu"),))]
    lab.start(peer)
    assert site.chat(city).status == 503, "the entry has an older copy, the peer's forbids it"
    assert peer.events() == []


def test_a_key_whose_policy_is_on_its_way_waits(lab: Lab, site: LabSite, city: LabTenant) -> None:
    city.has_policy = True
    site.refresh()
    for answer in (site.chat(city), site.request("GET", "/v1/models", key=city.key)):
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert "policy" in answer.error["message"]
    give(lab, site, project_id=ProjectId("maps"))
    answer = site.chat(city)
    assert (answer.status, "project maps" in answer.error["message"]) == (503, True)
    lab.projects = [Project(project_id=ProjectId("maps"), tenant_id=TenantId("other"), title="m")]
    site.refresh()
    assert site.chat(city).status == 503, "another tenant's project"
    lab.projects = [Project(project_id=ProjectId("maps"), tenant_id=TenantId("city"), title="m")]
    site.refresh()
    assert site.chat(city).status == 200
    (event,) = site.events()
    assert event.project_id == "maps"


@pytest.mark.parametrize(
    ("own", "tenants", "asked", "found"),
    [
        ("clinical", "clinical", None, "clinical"),
        ("clinical", "clinical", "batch", "batch"),
        ("clinical", "interactive", None, "interactive"),
        ("batch", "clinical", None, "batch"),
        ("batch", "clinical", "clinical", "batch"),
        (None, "clinical", None, "interactive"),
        (None, "batch", None, "batch"),
        (None, "interactive", "Clinical", "interactive"),
    ],
)
def test_a_request_has_its_keys_class_or_a_lower_one(
    lab: Lab, site: LabSite, city: LabTenant, own: str | None, tenants: str, asked: str | None, found: str
) -> None:
    city.priority = PriorityClass(tenants)
    lab.key_policies = [] if own is None else [policy(priority=PriorityClass(own))]
    site.refresh()
    headers = {} if asked is None else {"x-madang-priority": asked}
    body = {"model": CHAT, "messages": QUESTION}
    assert site.request("POST", "/v1/chat/completions", body, key=city.key, headers=headers).status == 200
    (event,) = site.events()
    assert event.priority == found


def test_a_class_that_is_none_is_refused(site: LabSite, city: LabTenant) -> None:
    headers = {"x-madang-priority": "urgent"}
    body = {"model": CHAT, "messages": QUESTION}
    answer = site.request("POST", "/v1/chat/completions", body, key=city.key, headers=headers)
    assert (answer.status, answer.error["param"]) == (400, "x-madang-priority")


def test_the_official_client_sees_limits(lab: Lab, site: LabSite, city: LabTenant) -> None:
    give(lab, site, requests_per_minute=2, tokens_per_minute=100_000)
    with openai.OpenAI(base_url=f"{site.url}/v1", api_key=city.key, max_retries=0) as client:
        whole = client.chat.completions.with_raw_response.create(model=CHAT, messages=QUESTION)
        assert whole.headers["x-ratelimit-limit-requests"] == "2"
        assert whole.headers["x-ratelimit-remaining-requests"] == "1"
        assert whole.headers["x-ratelimit-reset-requests"].endswith("s")
        assert whole.headers["x-ratelimit-limit-tokens"] == "100000"
        with client.chat.completions.with_streaming_response.create(
            model=CHAT, messages=QUESTION, stream=True
        ) as stream:
            assert stream.headers["x-ratelimit-remaining-requests"] == "0"
            assert int(stream.headers["x-ratelimit-remaining-tokens"]) < 100_000 - 10
            stream.read()
        with pytest.raises(openai.RateLimitError) as refused:
            client.chat.completions.create(model=CHAT, messages=QUESTION)
    assert refused.value.code == "quota_exceeded"
    assert "uses 2 of its 2 requests a minute" in refused.value.message
    headers = refused.value.response.headers
    assert 1 <= int(headers["retry-after"]) <= 90
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert len(site.events()) == 2
    text = site.request("GET", "/metrics", port="admin").body.decode()
    assert 'madang_gateway_quota_refusals_total{reason="requests"} 1.0' in text


def test_a_key_without_limits_gets_no_such_headers(lab: Lab, site: LabSite, city: LabTenant) -> None:
    for fields in (None, {"streams_max": 5}):
        lab.key_policies = [] if fields is None else [policy(**fields)]
        site.refresh()
        answer = site.chat(city)
        assert answer.status == 200
        assert not [name for name in answer.headers if name.startswith("x-ratelimit")]


def test_requests_under_way_are_limited_and_freed(lab: Lab, site: LabSite, city: LabTenant) -> None:
    give(lab, site, streams_max=1)
    lab.engines[0].mode = "endless"
    with openai.OpenAI(base_url=f"{site.url}/v1", api_key=city.key, max_retries=0) as client:
        stream = client.chat.completions.create(model=CHAT, messages=QUESTION, stream=True)
        next(iter(stream))
        answer = site.chat(city)
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        assert "1 of at most 1 requests under way" in answer.error["message"]
        stream.close()
    lab.engines[0].mode = "ok"
    wait_until(lambda: site.chat(city).status == 200, "the place is free again")
    lab.engines[0].mode = "status"
    for _ in range(3):
        assert site.chat(city).status == 502, "what fails frees its place"


def test_true_usage_replaces_the_worst_case(lab: Lab, site: LabSite, city: LabTenant) -> None:
    give(lab, site, tokens_per_minute=1000)
    lab.engines[0].mode = "wait"
    asking = threading.Thread(target=lambda: site.chat(city, max_tokens=500))
    asking.start()
    wait_until(lambda: lab.engines[0].requests, "the engine is asked")
    refused = site.chat(city, max_tokens=500)
    assert (refused.status, "tokens a minute" in refused.error["message"]) == (429, True)
    lab.loop.call_soon_threadsafe(lab.engines[0].gate.set)
    asking.join(10)
    answer = site.chat(city, max_tokens=500)
    assert answer.status == 200
    assert site.chat(city, max_tokens=1).headers["x-ratelimit-limit-tokens"] == "1000"
    assert sum(event.prompt_tokens + event.completion_tokens for event in site.events()) == 30


def test_limits_hold_at_the_entry_of_a_spilled_request(lab: Lab, site: LabSite, city: LabTenant) -> None:
    site.replicas.clear()
    peer = lab.site("gumi")
    peer.add_replica(lab.engine())
    peer.peers, site.peers = ["daegu"], ["gumi"]
    give(lab, site, requests_per_minute=1, tokens_per_minute=100_000)
    lab.start(peer)
    answer = site.chat(city)
    assert (answer.status, answer.headers["x-madang-site"]) == (200, "gumi")
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    assert site.chat(city).status == 429
    assert peer.chat(city).status == 200, "limits are each site's own"
