"""Limits and money with real worker processes: shared between two, and found again after a kill."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.gateway.bank import Bank
from tests.gateway.lab import Answer, Lab, LabSite, LabTenant, residency, wait_until
from tests.gateway.test_admission import CHARGE, RICH, policy, settled, tariff
from tests.gateway.worker_process import WorkerProcess

from madang.model import Budget


@pytest.fixture
def city(lab: Lab) -> LabTenant:
    tenant = LabTenant("city", residency("nation", "kr"), budget=Budget(month_micro_won=RICH))
    lab.tenants = [tenant]
    lab.tariffs = [tariff()]
    return tenant


@pytest.fixture
def site(lab: Lab, city: LabTenant) -> LabSite:
    site = lab.site()
    site.add_replica(lab.engine())
    return site


@pytest.fixture
def bank(site: LabSite) -> Iterator[Bank]:
    with contextlib.closing(Bank(site.feed_dir)) as one:
        yield one


def maps(worker: WorkerProcess, name: str) -> bool:
    return name in Path(f"/proc/{worker.process.pid}/maps").read_text()


def test_two_workers_share_one_limit(lab: Lab, site: LabSite, city: LabTenant) -> None:
    lab.tariffs = []
    lab.key_policies = [policy(requests_per_minute=10)]
    site.write_feed()
    workers = [WorkerProcess(site, worker=number) for number in (0, 1)]
    try:
        for number, worker in enumerate(workers):
            worker.wait_ready()
            wait_until(lambda w=worker, n=1 - number: maps(w, f"rates-{n}.bin"), "each sees the other's table")
        answers: list[Answer] = []

        def ask() -> None:
            answers.extend(site.chat(city) for _ in range(10))

        asking = [threading.Thread(target=ask) for _ in range(3)]
        for one in asking:
            one.start()
        for one in asking:
            one.join(30)
        served = [answer for answer in answers if answer.status == 200]
        assert len(answers) == 30
        assert 10 <= len(served) <= 11, "one more where both took the last place at the same instant"
        names = {path.name.split("-")[0] for path in site.usage_dir.glob("w*.log") if path.stat().st_size > 100}
        assert names == {"w0", "w1"}, "both served"
        lab.engines[0].mode = "ok"
    finally:
        for worker in workers:
            worker.kill()


def test_a_killed_worker_goes_on_with_its_money_and_its_limits(
    lab: Lab, site: LabSite, bank: Bank, city: LabTenant
) -> None:
    lab.key_policies = [policy(requests_per_minute=5, streams_max=1)]
    site.write_feed()
    pot = bank.add("city")
    worker = WorkerProcess(site).wait_ready()
    try:
        bank.grant(pot, 5000)
        wait_until(lambda: site.chat(city, max_tokens=20).status == 200, "the worker has its money")
        spent = settled(bank, pot)
        assert spent == CHARGE
        lab.engines[0].mode = "wait"
        with contextlib.suppress(OSError), contextlib.closing(site.connect()) as client:
            body = b'{"model":"qwen","max_tokens":20,"messages":[{"role":"user","content":"x"}]}'
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {city.key}\r\n"
            client.sendall(head.encode() + b"content-length: %d\r\n\r\n%b" % (len(body), body))
            wait_until(lambda: lab.engines[0].active == 1, "the engine is asked")
            reserved = bank.state(pot).reserved
            assert reserved > 0
            assert site.chat(city).status == 429, "one is under way"
            worker.kill()
        lab.engines[0].mode = "ok"
        worker = WorkerProcess(site).wait_ready()
        assert (bank.state(pot).spent, bank.state(pot).reserved) == (spent + reserved, 0), "nobody can know better"
        answer = wait_until(lambda: ok(site.chat(city, max_tokens=20)), "what is left is usable without a new grant")
        assert answer.headers["x-ratelimit-remaining-requests"] < "4", "what was admitted before the kill counts on"
        assert settled(bank, pot) == spent + reserved + CHARGE
        assert worker.end() == 0
    finally:
        worker.kill()


def ok(answer: Answer) -> Answer | None:
    return answer if answer.status == 200 else None
