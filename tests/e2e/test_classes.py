"""Residency and classes of data for real: every site that may serve stands still while others serve on."""

import contextlib
import json
import secrets
import signal
from collections.abc import Iterator

import httpx
import psutil
import pytest
from tests import loopback
from tests.e2e.chaos import ledger_rows
from tests.e2e.embedded import Embedded, wait_for

pytestmark = [pytest.mark.federation, pytest.mark.model, pytest.mark.deep, pytest.mark.timeout(600)]

CHAT = "/v1/chat/completions"


def body_of(text: str) -> dict[str, object]:
    return {"model": "madang-chat", "messages": [{"role": "user", "content": text}], "max_tokens": 4}


def post(federation: Embedded, site: str, key: str, text: str, query: str = "") -> httpx.Response:
    return loopback.post(
        f"{federation.url(site)}{CHAT}{query}",
        json=body_of(text),
        headers={"authorization": f"Bearer {key}"},
        timeout=60,
    )


def make_tenant(federation: Embedded, name: str, *words: str) -> str:
    federation.madang("tenant", "create", name, *words)
    key = federation.madang_json("key", "create", "--tenant", name)["api_key"]

    def is_known() -> bool:
        answers = [
            loopback.get(f"{federation.url(site)}/v1/sites", headers={"authorization": f"Bearer {key}"}, timeout=5)
            for site in (*federation.site_names(), "national")
        ]
        return all(answer.status_code == 200 for answer in answers)

    wait_for("every gateway knows the key", is_known, 60, every_s=0.2)
    return key


@contextlib.contextmanager
def standing_still(federation: Embedded, *sites: str) -> Iterator[None]:
    """Stop every process of these sites, engines too, as if their power had gone."""
    pids = [pid for site in sites for pid in federation.tree_pids(site)]
    assert len(pids) >= 4 * len(sites)
    stopped = []
    try:
        for pid in pids:
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(pid).send_signal(signal.SIGSTOP)
                stopped.append(pid)
        yield
    finally:
        for pid in stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(pid).send_signal(signal.SIGCONT)


def traces(federation: Embedded, text: str, *legal: str) -> list[str]:
    """Return the files that hold a text, outside of the folders and logs of legal sites."""
    needles = [text.encode(), json.dumps(text)[1:-1].encode(), text.encode("utf-16-le")]
    found, looked = [], 0
    for path in federation.state_dir.rglob("*"):
        place = path.relative_to(federation.state_dir).as_posix()
        if any(place.startswith((f"sites/{site}/", f"logs/{site}-")) for site in legal) or not path.is_file():
            continue
        looked += 1
        with contextlib.suppress(OSError):
            content = path.read_bytes()
            if any(needle in content for needle in needles):
                found.append(place)
    assert looked > 20, "the state folder looks otherwise than this test believes"
    return found


def served(federation: Embedded, tenant: str) -> set[str]:
    """Return the sites where the ledger says that tokens of a tenant were made."""
    rows = ledger_rows(federation.state_dir / "hub" / "hub.db")
    return {
        row["site"]
        for row in rows
        if row["tenant_id"] == tenant and (row["prompt_tokens"] or row["completion_tokens"] or row["service"])
    }


def test_when_every_legal_site_stands_still_nobody_else_serves_or_keeps_a_word(healthy: Embedded) -> None:
    passing = make_tenant(healthy, "passing", "--residency", "sites:daegu,gumi", "--transit")
    staying = make_tenant(healthy, "staying", "--residency", "sites:daegu,gumi")
    first = post(healthy, "national", passing, "안녕하세요")
    assert (first.status_code, first.headers.get("x-madang-site") in ("daegu", "gumi")) == (200, True), first.text
    secret = f"환자 {secrets.token_hex(12)} 기록"
    with standing_still(healthy, "daegu", "gumi"):
        for _ in range(3):
            answer = post(healthy, "national", passing, secret)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (503, "no_replica"), answer.text
            assert int(answer.headers["retry-after"]) > 0
        for entry in ("national", "gwangju"):
            answer = post(healthy, entry, staying, secret)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (403, "residency_violation"), answer.text
            assert {site["name"] for site in error["madang"]["sites"]} == {"daegu", "gumi"}
        answer = post(healthy, "gwangju", passing, secret)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_replica"), answer.text
        files = loopback.post(
            f"{healthy.url('gwangju')}/v1/files",
            data={"purpose": "batch"},
            files={"file": ("a.jsonl", secret.encode())},
            headers={"authorization": f"Bearer {passing}"},
            timeout=10,
        )
        assert (files.status_code, files.json()["error"]["code"]) == (403, "residency_violation"), files.text
        other = post(healthy, "gwangju", healthy.key("gwangju-city"), "안녕하세요")
        assert (other.status_code, other.headers["x-madang-site"]) == (200, "gwangju"), "others are up and serve"
        assert traces(healthy, secret, "daegu", "gumi") == []

    def is_back() -> bool:
        return post(healthy, "national", passing, "안녕하세요").status_code == 200

    wait_for("the legal sites serve again", is_back, 60, every_s=0.5)
    assert traces(healthy, secret, "daegu", "gumi") == []
    wait_for("the ledger has what was served", lambda: served(healthy, "passing"), 60, every_s=0.3)
    assert served(healthy, "passing") <= {"daegu", "gumi"}
    assert served(healthy, "staying") == set()


def test_classified_data_stays_at_the_one_site_that_is_marked(healthy: Embedded) -> None:
    key = make_tenant(healthy, "defence", "--residency", "nation:kr", "--data-class", "classified")
    secret = f"작전 {secrets.token_hex(12)} 계획"
    for entry in ("daegu", "gumi", "gwangju", "national"):
        answer = post(healthy, entry, key, secret)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "residency_violation"), "nobody is marked"
    healthy.madang("site", "grade", "daegu", "--data-class", "classified")
    try:
        wait_for("daegu serves it", lambda: post(healthy, "daegu", key, secret).status_code == 200, 60, every_s=0.3)
        moved = post(healthy, "national", key, secret, "?redirect=1")
        assert (moved.status_code, moved.headers["location"]) == (307, f"{healthy.url('daegu')}{CHAT}")
        near = healthy.madang("site", "nearest", "--url", healthy.url("national"), "--key", key, "--json")
        assert [one["name"] for one in json.loads(near.stdout)["sites"]] == ["daegu"]
        with standing_still(healthy, "daegu"):
            for entry in ("gumi", "gwangju", "national"):
                answer = post(healthy, entry, key, secret)
                error = answer.json()["error"]
                assert (answer.status_code, error["code"]) == (403, "residency_violation"), answer.text
                assert [site["name"] for site in error["madang"]["sites"]] == ["daegu"]
        assert traces(healthy, secret, "daegu") == []
        wait_for("daegu serves it again", lambda: post(healthy, "daegu", key, secret).status_code == 200, 60)
    finally:
        healthy.madang("site", "grade", "daegu", "--data-class", "sensitive")
    wait_for("daegu refuses it", lambda: post(healthy, "daegu", key, secret).status_code == 403, 60, every_s=0.3)
    assert served(healthy, "defence") <= {"daegu"}
    assert traces(healthy, secret, "daegu") == []
