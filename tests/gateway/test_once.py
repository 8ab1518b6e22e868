"""Idempotency keys: a request that runs or has run is not run again, whichever worker is asked."""

import json
import multiprocessing
import os
import threading
from pathlib import Path

import openai
import pytest
from tests.gateway.lab import CHAT, CITY, PARTS, Answer, Lab, LabSite, LabTenant, wait_until

from madang.core import KeyId, RequestId, SiteId, TenantId
from madang.gateway.errand import Errand
from madang.gateway.once import WINDOW_S, OnceTable
from madang.model import DataClass, Residency, ResidencyScope
from madang.wire.openai import Endpoint
from madang.wire.openai_errors import ApiError

BODY = {"model": CHAT, "messages": [{"role": "user", "content": "x"}]}


@pytest.fixture
def site(lab: Lab) -> LabSite:
    site = lab.site()
    site.add_replica(lab.engine())
    lab.start(site)
    return site


def ask(site: LabSite, key: str, tenant: LabTenant = CITY, **fields: object) -> Answer:
    headers = {"Idempotency-Key": key}
    return site.request("POST", "/v1/chat/completions", BODY | fields, key=tenant.key, headers=headers)


def test_a_completed_request_is_not_run_again(site: LabSite, lab: Lab) -> None:
    first = ask(site, "k1")
    assert first.status == 200
    again = ask(site, "k1")
    assert (again.status, again.error["param"]) == (409, "Idempotency-Key")
    assert again.error["madang"] == {"request_id": first.headers["x-request-id"], "is_running": False}
    assert "retry-after" not in again.headers
    assert ask(site, "k2").status == 200, "another key is another request"
    assert ask(site, "k1", PARTS).status == 200, "another tenant's key is its own"
    assert len(lab.engines[0].requests) == 3
    assert len(site.events()) == 3


def test_a_key_belongs_to_its_body(site: LabSite) -> None:
    assert ask(site, "k1", stream=True).status == 200
    other = ask(site, "k1", max_tokens=3)
    assert other.status == 409
    assert "another request" in other.error["message"]


def test_a_running_request_is_named(site: LabSite, lab: Lab) -> None:
    lab.engines[0].mode = "wait"
    answers: list[Answer] = []
    asking = threading.Thread(target=lambda: answers.append(ask(site, "k1")))
    asking.start()
    wait_until(lambda: lab.engines[0].requests, "the engine is asked")
    again = ask(site, "k1")
    assert (again.status, again.headers["retry-after"]) == (409, "2")
    assert again.error["madang"]["is_running"] is True
    lab.run(open_gate(lab))
    asking.join(10)
    assert [answer.status for answer in answers] == [200]
    assert answers[0].headers["x-request-id"] == again.error["madang"]["request_id"]


async def open_gate(lab: Lab) -> None:
    lab.engines[0].gate.set()


def test_what_failed_may_be_repeated(site: LabSite, lab: Lab) -> None:
    lab.engines[0].mode = "status"
    assert ask(site, "k1").status == 502
    lab.engines[0].mode = "ok"
    assert ask(site, "k1").status == 200


def test_what_its_client_left_may_be_repeated(site: LabSite, lab: Lab) -> None:
    lab.engines[0].mode = "endless"
    with openai.OpenAI(base_url=f"{site.url}/v1", api_key=CITY.key, max_retries=0) as client:
        stream = client.chat.completions.create(**BODY, stream=True, extra_headers={"Idempotency-Key": "k1"})
        next(iter(stream))
        stream.close()
    wait_until(lambda: lab.engines[0].active == 0, "the engine is left")
    lab.engines[0].mode = "ok"
    assert ask(site, "k1").status == 200


def test_nothing_of_the_content_is_kept(site: LabSite) -> None:
    assert ask(site, "비밀-키".encode().hex(), messages=[{"role": "user", "content": "secret words"}]).status == 200
    kept = [path.read_bytes() for path in (site.feed_dir / "once").iterdir()]
    assert len(kept) == 1
    assert set(json.loads(kept[0])) == {"request_id", "digest", "completed_at_s"}
    assert b"secret" not in kept[0]


class FakeClock:
    """A wall that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def wall_s(self) -> float:
        return self.now_s

    def monotonic_ns(self) -> int:
        return int(self.now_s * 1e9)


def errand(number: int) -> Errand:
    return Errand(
        request_id=RequestId(f"daegu-{number}"),
        tenant_id=TenantId("t"),
        key_id=KeyId("k"),
        residency=Residency(scope=ResidencyScope.ANY),
        data_class=DataClass.SENSITIVE,
        entry_site=SiteId("daegu"),
        endpoint=Endpoint.CHAT,
    )


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_the_window_ends(tmp_path: Path, clock: FakeClock) -> None:
    table = OnceTable(tmp_path / "once", clock)
    table.claim(errand(1), b"k", b"body").settle(is_completed=True)
    with pytest.raises(ApiError):
        table.claim(errand(2), b"k", b"body")
    clock.now_s += WINDOW_S + 1
    table.claim(errand(3), b"k", b"body").settle(is_completed=False)
    table.claim(errand(4), b"k", b"other").settle(is_completed=False)
    assert list((tmp_path / "once").iterdir()) == []


def test_keys_are_bounded_and_old_ones_swept(tmp_path: Path, clock: FakeClock) -> None:
    table = OnceTable(tmp_path / "once", clock, keys_max=50)
    for number in range(50):
        table.claim(errand(number), b"%d" % number, b"").settle(is_completed=True)
    with pytest.raises(ApiError) as full:
        table.claim(errand(0), b"one more", b"")
    assert full.value.status == 429
    clock.now_s = 10_000_000_000.0  # far beyond the files' own times
    table.claim(errand(0), b"one more", b"").settle(is_completed=False)
    assert list((tmp_path / "once").iterdir()) == []
    for key in (b"", b"k" * 256):
        with pytest.raises(ApiError, match="expected 1 to 255"):
            table.claim(errand(0), key, b"")


@pytest.mark.parametrize("is_completed", [False, True])
def test_a_key_that_cannot_be_forgotten_costs_no_answer(tmp_path: Path, clock: FakeClock, is_completed: bool) -> None:
    claim = OnceTable(tmp_path / "once", clock).claim(errand(1), b"k", b"body")
    (path,) = (tmp_path / "once").iterdir()
    path.unlink()
    path.mkdir()  # what may not be removed, not even by root
    claim.settle(is_completed=is_completed)
    claim.settle(is_completed=is_completed)


def _claim_and_die(folder: Path) -> None:
    OnceTable(folder, FakeClock()).claim(errand(1), b"k", b"body")
    os._exit(1)


def test_a_worker_that_dies_leaves_no_key_behind(tmp_path: Path, clock: FakeClock) -> None:
    child = multiprocessing.get_context("spawn").Process(target=_claim_and_die, args=(tmp_path / "once",))
    child.start()
    child.join(30)
    assert child.exitcode == 1
    assert len(list((tmp_path / "once").iterdir())) == 1
    held = OnceTable(tmp_path / "once", clock).claim(errand(2), b"k", b"body")
    with pytest.raises(ApiError) as running:
        OnceTable(tmp_path / "once", clock).claim(errand(3), b"k", b"body")
    assert running.value.details == {"request_id": "daegu-2", "is_running": True}
    held.settle(is_completed=False)
