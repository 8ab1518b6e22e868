"""Budgets for real: three sites spend one tenant's budget at once, one of them cut off from the rest."""

import secrets
import threading
import time
from collections import Counter
from typing import Any

import httpx
import pytest
from tests import loopback
from tests.e2e.embedded import Embedded, wait_for

pytestmark = [pytest.mark.federation, pytest.mark.model, pytest.mark.timeout(240)]

BUDGET_WON = "0.2"
BUDGET = 200_000
"""Micro-won. An embedding of one sentence costs some hundred by the example prices, and reserves some ten thousand."""
TEXT = "서버실 항온항습기 고장 시 조치 방법"
SPEND_S = 30.0
CUT = "daegu"


class Spender(threading.Thread):
    """Asks one site again and again, as a client that heeds Retry-After does, until told to stop."""

    def __init__(self, url: str, key: str) -> None:
        super().__init__()
        self.url, self.key = url, key
        self.statuses: Counter[int] = Counter()
        self.words: list[str] = []
        self.is_told = threading.Event()

    def run(self) -> None:
        ends = time.monotonic() + 2 * SPEND_S
        with httpx.Client(
            base_url=self.url, headers={"authorization": f"Bearer {self.key}"}, timeout=20, verify=loopback.NOBODY
        ) as client:
            while not self.is_told.is_set() and time.monotonic() < ends:
                answer = client.post("/v1/embeddings", json={"model": "madang-embed", "input": [TEXT]})
                self.statuses[answer.status_code] += 1
                if answer.status_code == 429:
                    assert answer.json()["error"]["code"] == "quota_exceeded"
                    self.words.append(answer.json()["error"]["message"])
                    self.is_told.wait(min(1.0, float(answer.headers["retry-after"])))

    def stop(self) -> None:
        self.is_told.set()
        self.join(30)


@pytest.fixture
def spender(healthy: Embedded) -> tuple[Embedded, str, str]:
    """A tenant of the whole country with a small budget, and a key of it that every site knows."""
    name = f"spender-{secrets.token_hex(3)}"
    healthy.madang("tenant", "create", name, "--residency", "nation:kr", "--budget-month", BUDGET_WON)
    key = healthy.madang_json("key", "create", "--tenant", name)["api_key"]

    def is_known() -> bool:
        headers = {"authorization": f"Bearer {key}"}
        return all(
            loopback.get(f"{healthy.url(site)}/v1/models", headers=headers, timeout=5).status_code == 200
            for site in healthy.site_names()
        )

    wait_for("every site knows the key", is_known, 60)
    return healthy, name, key


def budget_of(federation: Embedded, tenant: str) -> dict[str, Any]:
    (row,) = federation.madang_json("tenant", "budget", tenant)["budgets"]
    return row


@pytest.mark.deep
def test_a_site_that_is_cut_off_spends_no_more_than_its_lease(spender: tuple[Embedded, str, str]) -> None:
    federation, tenant, key = spender
    sites = [name for name in federation.site_names() if name != "national"]
    wait_for("every site has a lease", lambda: len(budget_of(federation, tenant)["sites"]) >= len(sites), 60)
    federation.madang("wan", "cut", CUT)
    wait_for("no connection crosses", lambda: not federation.wan_connections(CUT), 60)
    before = budget_of(federation, tenant)
    spenders = {name: Spender(federation.url(name), key) for name in sites}
    for one in spenders.values():
        one.start()
    try:
        wait_for(
            "every site has spent what it may",
            lambda: all(one.statuses[429] >= 3 for one in spenders.values()),
            SPEND_S,
        )
    finally:
        for one in spenders.values():
            one.stop()
    assert all(one.statuses[200] > 0 for one in spenders.values()), "each served, the one that was cut off too"
    assert set().union(*(one.statuses for one in spenders.values())) <= {200, 429}
    assert "cannot ask for more now" in spenders[CUT].words[-1]

    federation.madang("wan", "heal", CUT)
    answered = sum(one.statuses[200] for one in spenders.values())

    def is_in_ledger() -> bool:
        return sum(row["requests"] for row in federation.ledger(tenant=tenant)["rows"]) >= answered

    wait_for("the ledger has every answer", is_in_ledger, 60, every_s=0.3)
    after = budget_of(federation, tenant)
    print({name: dict(one.statuses) for name, one in spenders.items()}, before, after)
    overshoot = max(before["overshoot_max_micro_won"], after["overshoot_max_micro_won"])
    assert after["ledger_micro_won"] <= BUDGET + overshoot
    assert after["spent_micro_won"] >= after["ledger_micro_won"], "what is billed was leased"
    held = sum(one["granted_micro_won"] for one in before["sites"] if one["site"] == CUT)
    spent = sum(one["spent_micro_won"] for one in after["sites"] if one["site"] == CUT)
    assert 0 < spent <= held, "a site that was cut off spent of its lease alone"
