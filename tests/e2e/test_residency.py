"""Residency holds wherever a request enters, whatever is down, and before a body is read."""

import socket

import pytest
from tests import loopback
from tests.e2e.embedded import wait_for

pytestmark = [pytest.mark.federation]

ASK = {"model": "madang-chat", "messages": [{"role": "user", "content": "안녕하세요"}], "max_tokens": 4}


@pytest.mark.parametrize("entry", ["gumi", "gwangju", "national"])
def test_the_clinic_is_sent_home_from_everywhere_else(federation, entry):
    answer = federation.post(entry, "daegu-clinic", "/v1/chat/completions", ASK)
    assert answer.status_code == 403
    error = answer.json()["error"]
    assert error["code"] == "residency_violation"
    assert federation.url("daegu") in error["message"]


def test_the_clinic_is_refused_elsewhere_before_its_body_is_read(federation):
    # The head promises a body that never comes: a gateway that reads or parses first would wait for it.
    host, port = federation.url("gumi").removeprefix("http://").split(":")
    key = federation.key("daegu-clinic")
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n"
        "Content-Type: application/json\r\nContent-Length: 5000\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(head.encode())
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 403")
    assert b"residency_violation" in answer


def test_each_tenant_is_told_its_own_sites_and_how_far_they_are(federation):
    def sites(tenant):
        headers = {"authorization": f"Bearer {federation.key(tenant)}"}
        return loopback.get(f"{federation.url('national')}/v1/sites", headers=headers, timeout=5).json()["data"]

    assert [site["url"] for site in sites("daegu-clinic")] == [federation.url("daegu")]
    assert {site["name"] for site in sites("gumi-parts")} == {"daegu", "gumi"}
    wait_for("every way is measured", lambda: all(one["round_trip_ms"] for one in sites("gwangju-city")), 60, 0.3)
    found = federation.madang_json("site", "nearest", "--key", federation.key("gwangju-city"))
    assert {site["name"] for site in found["sites"]} == {"daegu", "gumi", "gwangju"}
    assert found["best"]["base_url"].endswith("/v1")


def test_a_region_tenant_is_refused_outside_its_region(federation):
    answer = federation.post("gwangju", "gumi-parts", "/v1/chat/completions", ASK)
    assert answer.status_code == 403
    assert federation.url("gumi") in answer.json()["error"]["message"]


def test_where_the_only_legal_site_has_no_engine_the_clinic_gets_503_and_never_another_site(healthy):
    healthy.madang("service", "apply", "-f", write_service(healthy, ["gumi", "gwangju"]))
    try:
        wait_for("daegu runs no chat engine", lambda: not healthy.engines("daegu", "madang-chat"), 60, every_s=0.2)

        def is_refused():
            answer = healthy.post("daegu", "daegu-clinic", "/v1/chat/completions", ASK)
            assert answer.status_code in (200, 503), answer.text
            assert answer.headers.get("x-madang-site", "daegu") == "daegu"
            return answer if answer.status_code == 503 else None

        answer = wait_for("503 at daegu", is_refused, 60)
        assert answer.json()["error"]["code"] == "no_replica"
        assert int(answer.headers["retry-after"]) > 0
        # The region's tenant is served by gumi meanwhile, through daegu's own gateway.
        other = healthy.post("daegu", "gumi-parts", "/v1/chat/completions", ASK)
        assert other.status_code == 200, other.text
        assert other.headers["x-madang-site"] == "gumi"
    finally:
        healthy.madang("service", "apply", "-f", write_service(healthy, []))


def write_service(federation, sites):
    service = next(s for s in federation.madang_json("service", "list")["services"] if s["name"] == "madang-chat")
    path = federation.state_dir / "chat-service.toml"
    lines = [f"{key} = {toml(value)}" for key, value in {**service, "sites": sites}.items() if value is not None]
    path.write_text("\n".join(["[[service]]", *lines]) + "\n")
    return str(path)


def toml(value):
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(toml(v) for v in value) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)
