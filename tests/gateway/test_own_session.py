"""Lines of batches: what the site process asks of its own gateway, under a session of the site with itself."""

import hashlib
import json
import time
from typing import Any

import msgspec
import pytest
from tests import loopback
from tests.gateway.lab import CHAT, CITY, Answer, Lab, LabSite, residency, session_between

from madang.core import KeyId, RequestId, ServiceName, SiteId, TenantId, make_request_id
from madang.wire.feed import PeerSession
from madang.wire.passes import Pass, seal_pass

PATH = "/v1/chat/completions"
BODY = json.dumps({"model": CHAT, "messages": [{"role": "user", "content": "하나"}]}).encode()
OWN = PeerSession(kid="own:e1", key=b"o" * 32, expires_at_s=time.time() + 86_400)


@pytest.fixture
def site(lab: Lab) -> LabSite:
    site = lab.site()
    site.own_sessions = (OWN,)
    site.add_replica(lab.engine())
    lab.start(site)
    return site


def make_pass(**changes: Any) -> Pass:
    now_s = time.time()
    value = Pass(
        request_id=make_request_id(SiteId("daegu"), 1, b"0123456789"),
        attempt=5,
        tenant_id=TenantId("city"),
        key_id=KeyId("city"),
        service=ServiceName(""),
        residency=CITY.residency,
        data_class="sensitive",
        entry_site=SiteId("daegu"),
        serving_site=SiteId("daegu"),
        hops=0,
        issued_at_s=now_s,
        deadline_s=now_s + 10,
        path=PATH,
        is_stream=False,
        body_sha256=hashlib.sha256(BODY).digest(),
        kid=OWN.kid,
    )
    return msgspec.structs.replace(value, **changes)


def ask(site: LabSite, value: Pass, key: bytes = OWN.key) -> Answer:
    headers = {"content-type": "application/json", "x-madang-pass": seal_pass(value, key)}
    url = f"http://127.0.0.1:{site.ports['peer']}{PATH}"
    answer = loopback.post(url, content=BODY, headers=headers, timeout=10, trust_env=False)  # passes over 102s
    return Answer(answer.status_code, dict(answer.headers), answer.content)


def test_a_line_is_served_here_and_metered_as_entered_here(site: LabSite) -> None:
    answer = ask(site, make_pass())
    assert answer.status == 200
    assert answer.json["choices"][0]["message"]["content"]
    (event,) = site.events()
    assert (event.entry_site, event.site, event.hops, event.attempt) == ("daegu", "daegu", 0, 5)
    assert (event.tenant_id, event.key_id, event.priority) == ("city", "city", "batch")


@pytest.mark.parametrize(
    "changes",
    [
        {"hops": 1},
        {"entry_site": SiteId("gumi")},
        {"serving_site": SiteId("gumi")},
        {"request_id": RequestId("gumi-" + "0" * 32)},
        {"path": "/v1/embeddings"},
        {"kid": "own:e2"},
        {"attempt": 100},
    ],
)
def test_such_a_session_is_for_this_site_alone(site: LabSite, changes: dict[str, Any]) -> None:
    answer = ask(site, make_pass(**changes))
    assert (answer.status, answer.error["code"]) == (401, "invalid_key")
    assert "madang" not in answer.error, "only an owner's key is named"
    assert site.events() == []


def test_another_site_cannot_pass_for_this_one(lab: Lab, site: LabSite) -> None:
    lab.site("gumi")
    site.peers = ["gumi"]
    site.refresh()
    session = session_between("daegu", "gumi")
    for entry in ("daegu", "gumi"):
        stranger = make_pass(kid=session.kid, entry_site=SiteId(entry))
        assert ask(site, stranger, session.key).status == 401
    assert site.events() == []


def test_a_pass_is_used_once_and_a_line_may_ask_again_with_another(site: LabSite) -> None:
    value = make_pass()
    assert ask(site, value).status == 200
    assert ask(site, value).status == 401
    assert ask(site, msgspec.structs.replace(value, issued_at_s=value.issued_at_s + 0.001)).status == 200


def test_a_key_that_opens_nothing_any_more_is_named(lab: Lab, site: LabSite) -> None:
    gone = ask(site, make_pass(key_id=KeyId("nobody")))
    assert (gone.status, gone.error["madang"]) == (401, {"owner": "nobody"})
    tenant = next(one for one in lab.tenants if one.name == "city")
    for change in ({"is_revoked": True}, {"expires_at_s": time.time() - 1}):
        tenants = [one for one in lab.tenants if one.name != "city"]
        lab.tenants = [*tenants, type(tenant)(tenant.name, tenant.residency, **change)]
        site.refresh()
        answer = ask(site, make_pass())
        assert (answer.status, answer.error["madang"]) == (401, {"owner": "city"})
    assert site.events() == []


def test_a_line_goes_to_no_other_site_and_only_where_its_tenant_may(lab: Lab, site: LabSite) -> None:
    gumi = lab.site("gumi")
    gumi.add_replica(lab.engine())
    gumi.peers = ["daegu"]
    lab.start(gumi)
    site.replicas.clear()
    site.peers = ["gumi"]
    site.refresh()
    assert site.chat(CITY).status == 200, "a tenant's own request may go on to gumi"
    answer = ask(site, make_pass())
    assert (answer.status, answer.error["code"]) == (503, "no_replica")
    refused = ask(site, make_pass(residency=residency("site", "gumi")))
    assert (refused.status, refused.error["code"]) == (403, "residency_violation")
