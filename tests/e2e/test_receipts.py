"""Receipts and access records of a whole federation: fetched by a tenant, verified offline, there after a kill -9."""

import json

import pytest
from tests import loopback
from tests.e2e.embedded import wait_for
from tests.wire.receipt_documents import check_independently

from madang.federation.demo import GUIDE_TENANT

pytestmark = [pytest.mark.federation, pytest.mark.model]

QUESTION = {"model": "madang-chat", "messages": [{"role": "user", "content": "한 단어로: 하늘의 색?"}], "max_tokens": 4}


def ask(federation, site, tenant, **fields):
    answer = federation.post(site, tenant, "/v1/chat/completions", {**QUESTION, **fields})
    assert answer.status_code == 200, answer.text
    return answer


def fetch(federation, site, tenant, receipt_id):
    return loopback.get(
        f"{federation.url(site)}/v1/receipts/{receipt_id}",
        headers={"authorization": f"Bearer {federation.key(tenant)}"},
        timeout=10,
    )


def fetched(federation, site, tenant, receipt_id):
    """Return a receipt once it is there; anything but `not_yet` in between is a failure."""

    def look():
        answer = fetch(federation, site, tenant, receipt_id)
        assert answer.status_code == 200 or answer.json()["error"]["code"] in ("not_yet", "no_replica"), answer.text
        return answer if answer.status_code == 200 else None

    return wait_for(f"receipt {receipt_id}", look, 60)


@pytest.fixture(scope="module")
def keys(federation, tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "site-keys.json"
    federation.madang("receipt", "keys", "--out", str(path))
    return path


def test_a_receipt_is_fetched_and_verified_offline_and_no_changed_one_is(federation, keys, tmp_path):
    answer = ask(federation, "daegu", "gumi-parts")
    receipt_id = answer.headers["x-madang-receipt"]
    file = tmp_path / "receipt.json"
    federation.madang("receipt", "show", receipt_id, "--key", federation.key("gumi-parts"), "--out", str(file))
    # Offline: nothing of the federation is named.
    words = ("receipt", "verify", str(file), "--keys", str(keys), "--state", str(tmp_path / "none"))
    assert f"valid: signed by site {answer.headers['x-madang-site']}" in federation.madang(*words).stdout
    known = {key["site"]: key["public_key"] for key in json.loads(keys.read_text())["keys"]}
    event = check_independently(file.read_text(), known[answer.headers["x-madang-site"]])
    usage = answer.json()["usage"]
    assert (event["prompt_tokens"], event["completion_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert (event["tenant_id"], event["chip_kind"]) == ("gumi-parts", answer.headers["x-madang-chip"])
    file.write_text(file.read_text().replace('"hops": 0', '"hops": 1'))
    refused = federation.madang(*words, is_ok=False)
    assert (refused.returncode, "not in the signed tree" in refused.stderr) == (1, True)


@pytest.mark.deep
def test_what_another_site_served_is_fetched_where_it_entered(federation, keys, tmp_path):
    answer = ask(federation, "national", GUIDE_TENANT)
    served = answer.headers["x-madang-site"]
    assert served != "national"
    found = fetched(federation, "national", GUIDE_TENANT, answer.headers["x-madang-receipt"])
    event = found.json()["event"]
    assert (event["site"], event["entry_site"], event["hops"]) == (served, "national", 1)
    file = tmp_path / "receipt.json"
    file.write_bytes(found.content)
    federation.madang("receipt", "verify", str(file), "--keys", str(keys))


@pytest.mark.deep
def test_each_request_leaves_an_access_record_without_its_words(federation):
    secret = "SECRET-도면-7731"
    answer = ask(federation, "daegu", "gumi-parts", messages=[{"role": "user", "content": f"{secret}? 예."}])
    request_id = answer.headers["x-request-id"]
    loopback.post(f"{federation.url('daegu')}/v1/chat/completions", json={}, headers={"authorization": "Bearer nobody"})

    def listed(*words):
        return federation.madang_json("access-log", "list", "--site", "daegu", "--since", "10m", *words)["records"]

    (one,) = wait_for("the record", lambda: listed("--request", request_id), 60, every_s=0.3)
    assert (one["tenant_id"], one["address"], one["service"], one["status"]) == (
        "gumi-parts",
        "127.0.0.1",
        "madang-chat",
        200,
    )
    refused = wait_for("the refusal", lambda: listed("--status", "401"), 60, every_s=0.3)
    assert refused[0]["tenant_id"] == ""
    folder = federation.state_dir / "sites" / "daegu" / "access"
    assert all(secret.encode() not in path.read_bytes() for path in folder.rglob("*") if path.is_file())
    federation.madang("access-log", "verify", "--site", "daegu")
    actions = [row["action"] for row in federation.admin("GET", "/api/v1/audit?limit=1000", site="daegu")]
    assert {"access.list", "access.verify"} <= set(actions)


@pytest.mark.deep
def test_a_site_program_killed_between_answer_and_import_loses_no_receipt(healthy, keys, tmp_path):
    federation = healthy
    pid = federation.processes()["daegu-site"].pid
    federation.kill("daegu-site")
    # The gateway answers on, and its log waits for the next life of the site program.
    answers = [ask(federation, "daegu", "gumi-parts") for _ in range(3)]
    assert {answer.headers["x-madang-site"] for answer in answers} == {"daegu"}
    wait_for("the site program's next life", lambda: federation.processes().get("daegu-site"), 60, every_s=0.2)
    assert federation.processes()["daegu-site"].pid != pid
    for answer in answers:
        found = fetched(federation, "daegu", "gumi-parts", answer.headers["x-madang-receipt"])
        file = tmp_path / "receipt.json"
        file.write_bytes(found.content)
    federation.madang("receipt", "verify", str(file), "--keys", str(keys))


@pytest.mark.deep
def test_a_killed_gateway_loses_no_receipt_and_no_access_record_of_what_it_answered(healthy):
    federation = healthy
    answers = [ask(federation, "daegu", "gumi-parts") for _ in range(3)]
    federation.kill("daegu-gateway")
    for answer in answers:
        fetched(federation, "daegu", "gumi-parts", answer.headers["x-madang-receipt"])
        request = answer.headers["x-request-id"]
        words = ("access-log", "list", "--site", "daegu", "--request", request)
        assert len(federation.madang_json(*words)["records"]) == 1
    # What the dead worker left is sealed, torn end included.
    wait_for(
        "its segment is sealed",
        lambda: federation.admin("GET", "/api/v1/status", site="daegu")["access_log"]["seals"],
        60,
        every_s=0.3,
    )
    federation.madang("access-log", "verify", "--site", "daegu")
