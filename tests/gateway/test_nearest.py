"""`GET /v1/sites`, and 307 to the nearest legal site before a byte of the body is read."""

import http.client
import json
from contextlib import closing

import pytest
from openai import AuthenticationError, OpenAI
from tests.gateway.lab import CHAT, CITY, CLINIC, PARTS, Lab, LabSite, LabTenant, residency
from tests.gateway.raw import RawClient, chat_body, post
from typer.testing import CliRunner

from madang.cli.main import app
from madang.model import DataClass

WANTS = LabTenant("wants", residency("site", "daegu"), is_redirect_wanted=True)
WANTS_CITY = LabTenant("wants_city", residency("nation", "kr"), is_redirect_wanted=True)
SECRET = LabTenant("secret", residency("nation", "kr"), data_class=DataClass.CLASSIFIED)
PATH = "/v1/chat/completions"


@pytest.fixture
def national(lab: Lab) -> LabSite:
    """An entry without chips beside three sites: gumi is nearest to the entry, daegu alone is marked for classified."""
    lab.tenants += [WANTS, WANTS_CITY, SECRET]
    sites = [
        lab.site("daegu"),
        lab.site("gumi"),
        lab.site("gwangju", "honam"),
        lab.site("national", "nation", is_entry_only=True),
    ]
    daegu, gumi, gwangju, national = sites
    daegu.data_class_max = DataClass.CLASSIFIED
    for site in (daegu, gumi, gwangju):
        site.add_replica(lab.engine())
    for site in sites:
        site.peers = [other.name for other in sites if other is not site]
    national.round_trips_s = {"daegu": 0.02, "gumi": 0.005, "gwangju": 0.03}
    for site in sites:
        lab.start(site)
    return national


def names(site: LabSite, tenant: LabTenant, path: str = "/v1/sites", **headers: str) -> list[str]:
    answer = site.request("GET", path, key=tenant.key, headers={"x-madang-near": headers["near"]} if headers else None)
    assert answer.status == 200, answer.body
    return [one["name"] for one in answer.json["data"]]


def test_a_client_is_told_of_legal_sites_only_and_of_the_nearest_first(lab: Lab, national: LabSite) -> None:
    assert names(national, CITY) == ["gumi", "daegu", "gwangju"]
    assert names(national, PARTS) == ["gumi", "daegu"]
    assert names(national, CLINIC) == ["daegu"], "even where it may not ask anything else"
    assert names(national, SECRET) == ["daegu"], "the only one that is marked for its class"
    answer = national.request("GET", "/v1/sites", key=CITY.key)
    assert answer.headers["cache-control"] == "no-store"
    first = answer.json["data"][0]
    gumi = lab.sites["gumi"]
    assert first == {
        "name": "gumi",
        "region": "yeongnam",
        "url": gumi.url,
        "base_url": f"{gumi.url}/v1",
        "health": "ready",
        "is_here": False,
        "round_trip_ms": 5.0,
    }
    assert (answer.json["site"], answer.json["ordered_by"]) == ("national", "round_trip_from_site")
    assert names(lab.sites["daegu"], CITY) == ["daegu", "gumi", "gwangju"], "itself first"


def test_what_the_client_says_of_itself_comes_first(national: LabSite) -> None:
    assert names(national, CITY, near="honam") == ["gwangju", "gumi", "daegu"]
    assert names(national, CITY, "/v1/sites?near=daegu,gwangju") == ["daegu", "gwangju", "gumi"]
    assert names(national, CITY, near="SEOUL, , <odd>, " + "x" * 100) == ["gumi", "daegu", "gwangju"]
    answer = national.request("GET", "/v1/sites?near=honam", key=CITY.key)
    assert answer.json["ordered_by"] == "near"


def test_without_a_key_or_by_another_method_there_are_no_sites(national: LabSite) -> None:
    assert national.request("GET", "/v1/sites").status == 401
    assert national.request("GET", "/v1/sites", key="mdg_nobody_" + "x" * 43).status == 401
    assert national.request("POST", "/v1/sites", {}, key=CITY.key).status == 405


def test_health_is_said_and_comes_before_nearness(lab: Lab, national: LabSite) -> None:
    lab.sites["gumi"].replicas.clear()
    national.refresh()
    answer = national.request("GET", "/v1/sites", key=CITY.key)
    assert [(one["name"], one["health"]) for one in answer.json["data"]] == [
        ("daegu", "ready"),
        ("gwangju", "ready"),
        ("gumi", "empty"),
    ]
    national.digest_age_s = 60.0
    national.refresh()
    answer = national.request("GET", "/v1/sites", key=CITY.key)
    assert {one["health"] for one in answer.json["data"]} == {"silent"}


def redirected(site: LabSite, tenant: LabTenant, path: str = PATH + "?redirect=1", **headers: str) -> str:
    answer = site.request("POST", path, chat_body(), key=tenant.key, headers=headers or None)
    assert answer.status == 307, answer.body
    assert answer.headers["cache-control"] == "no-store"
    return answer.headers["location"]


def test_who_asks_is_sent_to_the_best_legal_site(lab: Lab, national: LabSite) -> None:
    assert redirected(national, CITY) == lab.sites["gumi"].url + PATH
    assert redirected(national, SECRET) == lab.sites["daegu"].url + PATH
    assert redirected(national, CLINIC) == lab.sites["daegu"].url + PATH
    assert redirected(lab.sites["gwangju"], CLINIC) == lab.sites["daegu"].url + PATH, "from any site"
    assert redirected(national, CITY, **{"x-madang-near": "honam"}) == lab.sites["gwangju"].url + PATH
    kept = redirected(national, CITY, PATH + "?a=1&redirect=1&b=2")
    assert kept == lab.sites["gumi"].url + PATH + "?a=1&b=2", (
        "the option does not come along, so nobody goes in circles"
    )
    assert redirected(national, CITY, "/v1/files?redirect=1") == lab.sites["gumi"].url + "/v1/files"


def test_a_tenant_that_wants_it_need_not_ask_at_an_entry(lab: Lab, national: LabSite) -> None:
    assert redirected(national, WANTS, PATH) == lab.sites["daegu"].url + PATH
    assert redirected(national, WANTS_CITY, PATH) == lab.sites["gumi"].url + PATH
    assert lab.sites["gwangju"].chat(WANTS_CITY).status == 200, "a site with chips serves"
    assert lab.sites["gwangju"].chat(WANTS).status == 403
    assert national.chat(CITY).status == 200, "who does not want it is relayed"


def test_where_this_site_is_the_best_it_serves(lab: Lab, national: LabSite) -> None:
    answer = lab.sites["daegu"].request("POST", PATH + "?redirect=1", chat_body(), key=CITY.key)
    assert (answer.status, answer.headers["x-madang-site"]) == (200, "daegu")


def test_without_a_legal_site_there_is_no_redirect(lab: Lab, national: LabSite) -> None:
    for site in lab.sites.values():
        site.data_class_max = DataClass.SENSITIVE
    national.generation += 1
    national.refresh()
    answer = national.request("POST", PATH + "?redirect=1", chat_body(), key=SECRET.key)
    assert (answer.status, answer.error["code"], answer.error["madang"]["sites"]) == (403, "residency_violation", [])
    assert names(national, SECRET) == []


def test_the_body_is_not_waited_for(lab: Lab, national: LabSite) -> None:
    head, _, _ = post(chat_body(), CITY.key, b"expect: 100-continue", path=f"{PATH}?redirect=1".encode()).partition(
        b"\r\n\r\n"
    )
    with closing(RawClient(national.connect())) as client:
        client.send(head + b"\r\n\r\n")
        status, fields = client.head()
        assert (status, fields["connection"]) == (307, "close"), "the answer comes instead of 100 Continue"


def test_following_it_with_the_key_is_answered_by_the_site_itself(lab: Lab, national: LabSite) -> None:
    location = redirected(national, CITY)
    host = location.removeprefix("http://").partition("/")[0]
    with closing(http.client.HTTPConnection(host, timeout=10)) as connection:
        connection.request("POST", PATH, chat_body(), {"authorization": f"Bearer {CITY.key}"})
        answer = connection.getresponse()
        assert (answer.status, answer.headers["x-madang-site"]) == (200, "gumi")
    assert [one.hops for one in lab.sites["gumi"].events()] == [0]
    assert lab.sites["gumi"].events()[0].service == CHAT


def test_the_peer_port_answers_probes_of_anybody_and_nothing_else(national: LabSite) -> None:
    assert national.request("HEAD", "/probe", port="peer").status == 200
    assert national.request("GET", "/probe", port="peer").status == 401
    assert national.request("POST", "/probe", port="peer").status == 401


def test_the_official_client_loses_its_key_on_the_way_and_needs_none_of_it(lab: Lab, national: LabSite) -> None:
    """What the manual says of redirects: a client that follows one by itself arrives without its key."""
    ask = {"model": CHAT, "messages": [{"role": "user", "content": "안녕?"}]}
    options = {"api_key": CITY.key, "max_retries": 0, "timeout": 10}
    entry = OpenAI(base_url=f"{national.url}/v1", default_query={"redirect": "1"}, **options)
    with entry as client, pytest.raises(AuthenticationError):
        client.chat.completions.create(**ask)
    best = national.request("GET", "/v1/sites", key=CITY.key).json["data"][0]
    with OpenAI(base_url=best["base_url"], **options) as client:
        assert client.chat.completions.create(**ask).choices[0].message.content
    assert [one.site for one in lab.sites[best["name"]].events()] == [best["name"]]


def command(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["site", "nearest", *words], prog_name="madang")
    return done.exit_code, done.output


def test_the_command_measures_from_its_own_machine(lab: Lab, national: LabSite) -> None:
    status, text = command("--url", national.url, "--key", CITY.key, "--json", "--count", "3")
    assert status == 0, text
    found = json.loads(text)
    assert {one["name"] for one in found["sites"]} == {"daegu", "gumi", "gwangju"}
    assert all(0 < one["round_trip_ms_min"] <= one["round_trip_ms"] for one in found["sites"])
    assert found["best"] == min(found["sites"], key=lambda one: (one["round_trip_ms"], one["name"]))
    status, text = command("--url", f"{national.url}/v1", "--key", CLINIC.key)
    assert status == 0, text
    assert f"best: {lab.sites['daegu'].url}/v1" in text
    assert "gumi" not in text


def test_the_command_says_who_does_not_answer(lab: Lab, national: LabSite) -> None:
    daegu = lab.sites["daegu"]
    worker, daegu.worker = daegu.worker, None
    assert worker is not None
    lab.run(worker.stop())
    daegu.sockets["tenant"].close()
    status, text = command("--url", national.url, "--key", CITY.key, "--json", "--count", "1")
    found = json.loads(text)
    assert (status, found["best"]["name"] in ("gumi", "gwangju")) == (0, True)
    (dead,) = [one for one in found["sites"] if one["name"] == "daegu"]
    assert dead["round_trip_ms"] is None
    assert "refused" in dead["trouble"]
    status, text = command("--url", national.url, "--key", CLINIC.key, "--count", "1")
    assert status == 1, "its only legal site is gone"
    status, text = command("--url", national.url, "--key", "mdg_nobody_" + "x" * 43)
    assert (status, "401" in text) == (1, True)
