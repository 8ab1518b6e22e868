"""The WAN is cut for real: the socket table says so, the cut site serves, and everything arrives after the heal."""

import pytest
from tests import loopback
from tests.e2e.embedded import wait_for

pytestmark = [pytest.mark.federation, pytest.mark.model]

ASK = {"model": "madang-chat", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4}
CHAT = "/v1/chat/completions"


def status_of(federation, name):
    return next(s for s in federation.site_rows() if s["name"] == name)


def models_status(federation, site, key):
    answer = loopback.get(f"{federation.url(site)}/v1/models", headers={"authorization": f"Bearer {key}"}, timeout=5)
    return answer.status_code


def test_a_cut_site_serves_alone_and_catches_up_after_the_heal(healthy):
    before = healthy.madang_json("usage")["totals"]["requests"]
    kept = healthy.madang_json("key", "create", "--tenant", "daegu-clinic")
    wait_for("the key opens", lambda: models_status(healthy, "daegu", kept["api_key"]) == 200, 2)

    healthy.madang("wan", "cut", "daegu")
    wait_for("no connection crosses", lambda: not healthy.wan_connections("daegu"), 60)
    answer = healthy.post("daegu", "daegu-clinic", CHAT, ASK)
    assert answer.status_code == 200
    assert answer.headers["x-madang-site"] == "daegu"
    assert healthy.wan_connections("daegu") == []

    fresh = healthy.madang_json("key", "create", "--tenant", "daegu-clinic")
    healthy.madang("key", "revoke", kept["key_id"])
    assert models_status(healthy, "daegu", fresh["api_key"]) == 401
    assert models_status(healthy, "daegu", kept["api_key"]) == 200
    wait_for("the hub misses it", lambda: status_of(healthy, "daegu")["state"] != "connected", 60, every_s=0.3)
    assert healthy.ledger()["totals"]["requests"] == before

    healthy.madang("wan", "heal", "daegu")
    wait_for("the new key opens", lambda: models_status(healthy, "daegu", fresh["api_key"]) == 200, 60)
    wait_for("the revoked key is refused", lambda: models_status(healthy, "daegu", kept["api_key"]) == 401, 60)
    wait_for("usage arrives", lambda: healthy.ledger()["totals"]["requests"] == before + 1, 60, every_s=0.3)


def test_a_hole_is_noticed_and_peers_are_asked_instead(healthy):
    healthy.madang("wan", "hole", "gwangju")
    for _ in range(3):
        answer = healthy.post("national", "gwangju-city", CHAT, ASK, timeout_s=20)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-madang-site"] in ("daegu", "gumi")
    local = healthy.post("gwangju", "gwangju-city", CHAT, ASK)
    assert local.headers["x-madang-site"] == "gwangju"
    wait_for("the hub misses it", lambda: status_of(healthy, "gwangju")["state"] != "connected", 60, every_s=0.3)
    healthy.madang("wan", "heal", "gwangju")
    wait_for("the link is back", lambda: status_of(healthy, "gwangju")["state"] == "connected", 60, every_s=0.3)
