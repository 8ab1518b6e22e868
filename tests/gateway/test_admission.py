"""Budgets on real requests: reserved before work, settled by the event's charge, wherever it was served."""

import base64
import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterator

import msgspec
import openai
import pytest
from tests import loopback
from tests.gateway.bank import Bank
from tests.gateway.lab import CHAT, Answer, Lab, LabSite, LabTenant, residency, wait_until

from madang.core import KeyId, ProjectId, ServiceName, SiteId, TenantId, make_request_id
from madang.gateway.account import CHARGE_FIELD, Account
from madang.gateway.admission import worst_tokens
from madang.model import Budget, KeyPolicy, Outcome, PriorityClass, Project, Service, Tariff, UsageEvent
from madang.model.lease import Period, Scope
from madang.policy.pricing import kst_day_number
from madang.runtime.clock import SystemClock
from madang.wire.feed import PeerSession
from madang.wire.openai import Endpoint
from madang.wire.passes import PASS_HEADER, Pass, open_pass, seal_pass
from madang.wire.purse import HINT_CUT, HINT_SPENT, PotEntry
from madang.wire.surface import read_request

RICH = 10**12
QUESTION = [{"role": "user", "content": "대한민국의 수도는?"}]
BODY = json.dumps({"model": CHAT, "messages": QUESTION, "max_tokens": 20}).encode()
OWN = PeerSession(kid="own:e1", key=b"o" * 32, expires_at_s=time.time() + 86_400)
CHARGE = 7 * 1 + 3 * 2
"""What the fake engine's answer costs at `tariff()`: 7 tokens read at 1 micro-won, 3 written at 2."""


def tariff(priority: PriorityClass = PriorityClass.INTERACTIVE, factor: int = 1, day: str = "2026-01-01") -> Tariff:
    return Tariff(
        tariff_id=f"{CHAT}.{priority}.{day}",
        service=ServiceName(CHAT),
        priority=priority,
        valid_from=day,
        prompt_micro_won_per_million=factor * 1_000_000,
        completion_micro_won_per_million=factor * 2_000_000,
    )


def policy(key: str = "city", **fields: object) -> KeyPolicy:
    values = {"key_id": KeyId(key), "tenant_id": TenantId(key), "project_id": ProjectId(""), **fields}
    return KeyPolicy(**values)


@pytest.fixture
def city(lab: Lab) -> LabTenant:
    """A tenant with a monthly budget, and a price for it."""
    tenant = LabTenant("city", residency("nation", "kr"), budget=Budget(month_micro_won=RICH))
    lab.tenants = [tenant]
    lab.tariffs = [tariff()]
    return tenant


@pytest.fixture
def site(lab: Lab, city: LabTenant) -> LabSite:
    site = lab.site()
    site.own_sessions = (OWN,)
    site.add_replica(lab.engine())
    lab.start(site)
    return site


@pytest.fixture
def bank(site: LabSite) -> Iterator[Bank]:
    with contextlib.closing(Bank(site.feed_dir)) as one:
        yield one


def fund(site: LabSite, bank: Bank, pot: PotEntry, granted: int) -> PotEntry:
    """Grant, and wait until the worker knows of the pot."""
    bank.grant(pot, granted)
    assert site.worker is not None
    purse = site.worker.purse
    wait_until(lambda: pot.number in {entry.number for entry in purse._entries}, "the worker sees the pot")
    wait_until(lambda: purse._grants is not None, "the worker sees its grants")
    return pot


def settled(bank: Bank, pot: PotEntry) -> int:
    """What was spent, once nothing is reserved any more."""
    wait_until(lambda: bank.state(pot).reserved == 0, "nothing is reserved")
    return bank.state(pot).spent


def metric(site: LabSite, name: str) -> float:
    text = site.request("GET", "/metrics", port="admin").body.decode()
    (line,) = [line for line in text.splitlines() if line.startswith(f"madang_gateway_{name} ")]
    return float(line.split()[-1])


def test_a_request_is_charged_and_its_budget_debited(site: LabSite, bank: Bank, city: LabTenant) -> None:
    pot = fund(site, bank, bank.add("city"), RICH)
    assert site.chat(city).status == 200
    assert site.chat(city, stream=True).status == 200
    for event in site.events():
        assert (event.charge_micro_won, event.overdraw_micro_won) == (CHARGE, 0)
        assert event.tariff_id == f"{CHAT}.interactive.2026-01-01"
    assert settled(bank, pot) == 2 * CHARGE
    assert metric(site, "open_reservations") == 0


def test_the_worst_case_is_reserved_while_it_runs(lab: Lab, site: LabSite, bank: Bank, city: LabTenant) -> None:
    pot = fund(site, bank, bank.add("city"), RICH)
    lab.engines[0].mode = "wait"
    asking = threading.Thread(target=lambda: site.chat(city, max_tokens=50, n=2))
    asking.start()
    wait_until(lambda: len(lab.engines[0].requests) == 2, "both answers are asked for")
    reserved = bank.state(pot).reserved
    assert 2 * 2 * 50 + 2 * 256 < reserved < 2 * 2 * 50 + 2 * (256 + 300)
    assert metric(site, "open_reservations") == 1
    lab.loop.call_soon_threadsafe(lab.engines[0].gate.set)
    asking.join(10)
    assert settled(bank, pot) == 2 * CHARGE


def test_without_a_price_nothing_is_reserved(lab: Lab, site: LabSite, city: LabTenant) -> None:
    lab.tariffs = [tariff(day="2999-01-01")]
    site.refresh()
    assert site.chat(city).status == 200, "no lease is here, and none is needed"
    (event,) = site.events()
    assert (event.charge_micro_won, event.tariff_id) == (0, "")


def test_a_spent_budget_is_named(site: LabSite, bank: Bank, city: LabTenant) -> None:
    pot = fund(site, bank, bank.add("city"), 20)
    with openai.OpenAI(base_url=f"{site.url}/v1", api_key=city.key, max_retries=0) as client:
        with pytest.raises(openai.RateLimitError) as refused:
            client.chat.completions.create(model=CHAT, messages=QUESTION, max_tokens=20)
        assert refused.value.code == "quota_exceeded"
        assert "monthly budget of tenant city" in refused.value.message
        assert refused.value.response.headers["retry-after"] == "1"
        needed = wait_until(lambda: bank.state(pot).needed, "the lack is published")
        bank.tables().hint(pot.slot, pot.number, HINT_CUT)
        with pytest.raises(openai.RateLimitError) as cut:
            client.chat.completions.create(model=CHAT, messages=QUESTION)
        assert "cannot ask for more" in cut.value.message
        assert cut.value.response.headers["retry-after"] == "5"
        bank.tables().hint(pot.slot, pot.number, HINT_SPENT)
        with pytest.raises(openai.RateLimitError) as spent:
            client.chat.completions.create(model=CHAT, messages=QUESTION)
        assert "is spent" in spent.value.message
        assert spent.value.response.headers["retry-after"] == "3600"
        bank.grant(pot, 20 + needed)
        assert client.chat.completions.create(model=CHAT, messages=QUESTION, max_tokens=20)
    assert settled(bank, pot) == CHARGE
    assert len(site.events()) == 1, "what is refused is no usage"
    text = site.request("GET", "/metrics", port="admin").body.decode()
    assert 'madang_gateway_quota_refusals_total{reason="budget"} 3.0' in text
    assert "city" not in text, "metrics name no tenant"


def test_a_projects_budget_counts_beside_its_tenants(lab: Lab, site: LabSite, bank: Bank, city: LabTenant) -> None:
    lab.projects = [
        Project(
            project_id=ProjectId("maps"),
            tenant_id=TenantId("city"),
            title="m",
            budget=Budget(day_micro_won=RICH, month_micro_won=RICH),
        )
    ]
    lab.key_policies = [policy(project_id=ProjectId("maps"))]
    site.refresh()
    tenant = fund(site, bank, bank.add("city"), RICH)
    month = fund(site, bank, bank.add("maps", scope=Scope.PROJECT), RICH)
    day = fund(site, bank, bank.add("maps", scope=Scope.PROJECT, period=Period.DAY), 10)
    answer = site.chat(city)
    assert (answer.status, "daily budget of project maps" in answer.error["message"]) == (429, True)
    assert [bank.state(pot).reserved for pot in (tenant, month, day)] == [0, 0, 0]
    bank.grant(day, RICH)
    assert site.chat(city).status == 200
    assert [settled(bank, pot) for pot in (tenant, month, day)] == [CHARGE] * 3
    (event,) = site.events()
    assert event.project_id == "maps"


def test_a_client_that_leaves_pays_for_what_was_produced(lab: Lab, site: LabSite, bank: Bank, city: LabTenant) -> None:
    pot = fund(site, bank, bank.add("city"), RICH)
    lab.engines[0].mode = "endless"
    with openai.OpenAI(base_url=f"{site.url}/v1", api_key=city.key, max_retries=0) as client:
        stream = client.chat.completions.create(model=CHAT, messages=QUESTION, stream=True)
        chunks = iter(stream)
        for _ in range(10):
            next(chunks)
        stream.close()
    (event,) = wait_until(site.events, "the event")
    assert event.outcome is Outcome.CLIENT_GONE
    assert event.charge_micro_won == event.prompt_tokens + 2 * event.completion_tokens >= 2 * 9
    assert settled(bank, pot) == event.charge_micro_won


@pytest.mark.parametrize("mode", ["status", "die_first"])
def test_what_was_not_served_costs_nothing(lab: Lab, site: LabSite, bank: Bank, city: LabTenant, mode: str) -> None:
    pot = fund(site, bank, bank.add("city"), RICH)
    lab.engines[0].mode = mode
    assert site.chat(city).status == 502
    assert settled(bank, pot) == 0
    lab.engines[0].mode, lab.engines[0].status = "status", 400
    assert site.chat(city).status == 400
    assert site.chat(city, n=2, stream=True).status == 400
    assert settled(bank, pot) == 0


def test_what_broke_in_the_middle_costs_what_was_produced(lab: Lab, site: LabSite, bank: Bank, city: LabTenant) -> None:
    pot = fund(site, bank, bank.add("city"), RICH)
    lab.engines[0].mode = "error_middle"
    with pytest.raises(openai.APIError), openai.OpenAI(base_url=f"{site.url}/v1", api_key=city.key) as client:
        list(client.chat.completions.create(model=CHAT, messages=QUESTION, stream=True))
    (event,) = wait_until(site.events, "the event")
    assert event.outcome is Outcome.UPSTREAM_FAILED
    assert settled(bank, pot) == event.charge_micro_won > 0


def test_a_retry_is_paid_once(lab: Lab, site: LabSite, bank: Bank, city: LabTenant) -> None:
    pot = fund(site, bank, bank.add("city"), RICH)
    site.add_replica(lab.engine(mode="die_first"))
    site.refresh()
    for _ in range(8):
        assert site.chat(city).status == 200
    assert len(lab.engines[1].requests) >= 1, "one attempt at least failed"
    assert settled(bank, pot) == 8 * CHARGE == sum(event.charge_micro_won for event in site.events())


class ShiftedClock(SystemClock):
    """A wall that stands where a test put it."""

    def __init__(self, now_s: float) -> None:
        super().__init__()
        self.now_s = now_s

    def wall_s(self) -> float:
        return self.now_s


def test_prices_and_days_turn_at_korean_midnight(lab: Lab, city: LabTenant) -> None:
    midnight_s = 1_796_050_800.0  # 2026-12-01 00:00 in Seoul
    assert kst_day_number(midnight_s) == kst_day_number(midnight_s - 1) + 1
    city.budget = Budget(day_micro_won=RICH)
    lab.tariffs = [tariff(day="2026-11-01"), tariff(factor=10, day="2026-12-01")]
    site, clock = lab.site(), ShiftedClock(midnight_s - 1)
    site.add_replica(lab.engine(mode="wait"))
    lab.start(site, clock=clock)
    with contextlib.closing(Bank(site.feed_dir)) as bank:
        old = bank.add("city", period=Period.DAY, starts_at_s=midnight_s - 86400, ends_at_s=midnight_s)
        new = bank.add("city", period=Period.DAY, starts_at_s=midnight_s, ends_at_s=midnight_s + 86400)
        fund(site, bank, old, RICH)
        fund(site, bank, new, RICH)
        answers: list[Answer] = []
        asking = threading.Thread(target=lambda: answers.append(site.chat(city)))
        asking.start()
        wait_until(lambda: lab.engines[0].requests, "the engine is asked")
        clock.now_s = midnight_s + 1
        lab.loop.call_soon_threadsafe(lab.engines[0].gate.set)
        asking.join(10)
        assert site.chat(city).status == 200
        assert (settled(bank, old), settled(bank, new)) == (CHARGE, 10 * CHARGE)
        assert [event.tariff_id[-10:] for event in site.events()] == ["2026-11-01", "2026-12-01"]


# --- class clinical


@pytest.fixture
def clinic(lab: Lab, city: LabTenant) -> LabTenant:
    """A tenant whose key is of class clinical, and may go beyond its budget."""
    tenant = LabTenant(
        "clinic",
        residency("region", "yeongnam"),
        budget=Budget(month_micro_won=RICH),
        priority=PriorityClass.CLINICAL,
        overdraw_micro_won=RICH,
    )
    lab.tenants.append(tenant)
    lab.tariffs.append(tariff(PriorityClass.CLINICAL))
    lab.key_policies = [policy("clinic", priority=PriorityClass.CLINICAL)]
    return tenant


def test_clinical_overdraws_and_says_so(clinic: LabTenant, site: LabSite, bank: Bank) -> None:
    pot = fund(site, bank, bank.add("clinic"), 10)
    over = fund(site, bank, bank.add("clinic", is_overdraw=True), 5000)
    assert site.chat(clinic, max_tokens=20).status == 200
    (event,) = site.events()
    assert (event.priority, event.charge_micro_won, event.overdraw_micro_won) == ("clinical", CHARGE, CHARGE - 10)
    assert (settled(bank, pot), settled(bank, over)) == (10, CHARGE - 10)
    assert metric(site, "overdraw_micro_won_total") == CHARGE - 10
    body = {"model": CHAT, "messages": QUESTION, "max_tokens": 20}
    lower = site.request(
        "POST", "/v1/chat/completions", body, key=clinic.key, headers={"x-madang-priority": "interactive"}
    )
    assert lower.status == 429, "only class clinical goes beyond"
    answer = site.chat(clinic, max_tokens=4000)
    assert (answer.status, "and what may be spent beyond it" in answer.error["message"]) == (429, True)


# --- other sites


@pytest.fixture
def pair(lab: Lab, city: LabTenant) -> tuple[LabSite, LabSite]:
    """An entry without engines, and a peer with one."""
    entry, peer = lab.site("daegu"), lab.site("gumi")
    peer.add_replica(lab.engine())
    entry.peers, peer.peers = ["gumi"], ["daegu"]
    lab.start(entry)
    lab.start(peer)
    return entry, peer


@pytest.fixture
def entry_bank(pair: tuple[LabSite, LabSite]) -> Iterator[Bank]:
    with contextlib.closing(Bank(pair[0].feed_dir)) as one:
        yield one


@pytest.mark.parametrize("is_stream", [False, True])
def test_the_entry_pays_what_the_peer_charged(
    lab: Lab, pair: tuple[LabSite, LabSite], entry_bank: Bank, city: LabTenant, is_stream: bool
) -> None:
    entry, peer = pair
    lab.tariffs = [tariff(factor=3)]
    peer.refresh()  # whose price book is newer than the entry's, as in the second of a change
    pot = fund(entry, entry_bank, entry_bank.add("city"), RICH)
    answer = entry.chat(city, stream=is_stream)
    assert (answer.status, answer.headers["x-madang-site"]) == (200, "gumi")
    assert "x-madang-charge" not in answer.headers
    (event,) = wait_until(peer.events, "the peer's event")
    assert event.charge_micro_won == 3 * CHARGE
    assert settled(entry_bank, pot) == 3 * CHARGE, "lease and ledger agree"
    assert entry.events() == []


def test_project_class_and_overdraw_travel(
    lab: Lab, clinic: LabTenant, pair: tuple[LabSite, LabSite], entry_bank: Bank
) -> None:
    entry, peer = pair
    lab.projects = [Project(project_id=ProjectId("er"), tenant_id=TenantId("clinic"), title="e")]
    lab.key_policies = [policy("clinic", priority=PriorityClass.CLINICAL, project_id=ProjectId("er"))]
    entry.refresh()
    pot = fund(entry, entry_bank, entry_bank.add("clinic"), 9)
    over = fund(entry, entry_bank, entry_bank.add("clinic", is_overdraw=True), RICH)
    assert entry.chat(clinic).status == 200
    (event,) = wait_until(peer.events, "the peer's event")
    assert (event.project_id, event.priority, event.overdraw_micro_won) == ("er", "clinical", CHARGE - 9)
    assert (settled(entry_bank, pot), settled(entry_bank, over)) == (9, CHARGE - 9)


def test_a_client_that_leaves_a_peers_stream_is_charged_by_the_entry_too(
    lab: Lab, pair: tuple[LabSite, LabSite], entry_bank: Bank, city: LabTenant
) -> None:
    entry, peer = pair
    pot = fund(entry, entry_bank, entry_bank.add("city"), RICH)
    lab.engines[0].mode = "endless"
    with openai.OpenAI(base_url=f"{entry.url}/v1", api_key=city.key, max_retries=0) as client:
        stream = client.chat.completions.create(model=CHAT, messages=QUESTION, stream=True, max_tokens=1000)
        chunks = iter(stream)
        for _ in range(10):
            next(chunks)
        stream.close()
    (event,) = wait_until(peer.events, "the peer's event")
    spent = settled(entry_bank, pot)
    assert event.outcome is Outcome.CLIENT_GONE
    assert 2 * 9 <= spent < 2 * 1000, "for what was passed on, not for the worst case"


def test_a_whole_answer_whose_client_left_stays_paid(
    lab: Lab, pair: tuple[LabSite, LabSite], entry_bank: Bank, city: LabTenant
) -> None:
    entry, peer = pair
    pot = fund(entry, entry_bank, entry_bank.add("city"), RICH)
    lab.engines[0].mode = "wait"
    with entry.connect() as client:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {city.key}\r\n"
        client.sendall(head.encode() + b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY))
        wait_until(lambda: lab.engines[0].active == 1, "the engine is asked")
        reserved = bank_reserved = entry_bank.state(pot).reserved
        assert bank_reserved > 0
    wait_until(peer.events, "the peer's event")
    assert settled(entry_bank, pot) == reserved, "nobody here knows how far it was"


def test_what_an_entry_may_not_read_is_admitted_where_it_is_served(lab: Lab, city: LabTenant) -> None:
    city.residency = residency("site", "gumi", transit=True)
    lab.key_policies = [policy(requests_per_minute=2)]
    entry, peer = lab.site("national", "capital", is_entry_only=True), lab.site("gumi")
    peer.add_replica(lab.engine())
    entry.peers, peer.peers = ["gumi"], ["national"]
    lab.start(entry)
    lab.start(peer)
    with contextlib.closing(Bank(peer.feed_dir)) as bank:
        answer = entry.chat(city)
        assert (answer.status, answer.error["code"]) == (429, "quota_exceeded")
        pot = fund(peer, bank, bank.add("city"), RICH)
        for left in ("1", "0"):
            answer = entry.chat(city)
            assert (answer.status, answer.headers["x-ratelimit-remaining-requests"]) == (200, left)
        answer = entry.chat(city)
        assert (answer.status, "2 requests a minute" in answer.error["message"]) == (429, True)
        assert settled(bank, pot) == 2 * CHARGE
        assert len(peer.events()) == 2


# --- lines of batches


def ask_line(site: LabSite, number: int) -> Answer:
    now_s = time.time()
    value = Pass(
        request_id=make_request_id(SiteId("daegu"), number, b"0123456789"),
        attempt=1,
        tenant_id=TenantId("city"),
        key_id=KeyId("city"),
        service=ServiceName(""),
        residency=residency("nation", "kr"),
        data_class="sensitive",
        entry_site=SiteId("daegu"),
        serving_site=SiteId("daegu"),
        hops=0,
        issued_at_s=now_s,
        deadline_s=now_s + 10,
        path="/v1/chat/completions",
        is_stream=False,
        body_sha256=hashlib.sha256(BODY).digest(),
        kid=OWN.kid,
        is_admitted=True,
    )
    headers = {"content-type": "application/json", PASS_HEADER: seal_pass(value, OWN.key)}
    url = f"http://127.0.0.1:{site.ports['peer']}/v1/chat/completions"
    answer = loopback.post(url, content=BODY, headers=headers, timeout=10, trust_env=False)
    return Answer(answer.status_code, dict(answer.headers), answer.content)


def test_lines_of_batches_are_admitted_like_requests(lab: Lab, site: LabSite, bank: Bank, city: LabTenant) -> None:
    lab.tariffs = [tariff(), tariff(PriorityClass.BATCH, factor=2)]
    lab.projects = [Project(project_id=ProjectId("maps"), tenant_id=TenantId("city"), title="m")]
    lab.key_policies = [policy(project_id=ProjectId("maps"), requests_per_minute=1)]
    site.refresh()
    refused = ask_line(site, 1)
    assert (refused.status, refused.error["code"]) == (429, "quota_exceeded")
    pot = fund(site, bank, bank.add("city"), RICH)
    assert ask_line(site, 2).status == 200
    (event,) = site.events()
    assert (event.project_id, event.priority, event.charge_micro_won) == ("maps", "batch", 2 * CHARGE)
    assert settled(bank, pot) == 2 * CHARGE
    limited = ask_line(site, 3)
    assert (limited.status, "1 requests a minute" in limited.error["message"]) == (429, True)
    lab.key_policies = [policy(sites=(SiteId("gumi"),))]
    site.refresh()
    assert ask_line(site, 4).error["code"] == "residency_violation"


# --- what both ends of a spill agree on


GOLDEN_PASS = (
    "3gARqnJlcXVlc3RfaWTZJmRhZWd1LWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhp2F0dGVtcHQBqXRlbmFudF9pZKRj"
    "aXR5pmtleV9pZKRjaXR5p3NlcnZpY2WkcXdlbqlyZXNpZGVuY3mDpXNjb3Blo2FueaZwbGFjZXOQsmlzX3RyYW5zaXRfZ3JhbnRl"
    "ZMKqZGF0YV9jbGFzc6RvcGVuqmVudHJ5X3NpdGWlZGFlZ3Wsc2VydmluZ19zaXRlpGd1bWmkaG9wcwGraXNzdWVkX2F0X3PLQS6E"
    "gAAAAACqZGVhZGxpbmVfc8tBLoSUAAAAAKRwYXRotC92MS9jaGF0L2NvbXBsZXRpb25zqWlzX3N0cmVhbcKrYm9keV9zaGEyNTbE"
    "IHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4o2tpZKVlMS9lMqd2ZXJzaW9uAQ.ouGBqmYVg8baQZBm7NXq-"
    "W0yq1s1nM6dBTYi02I5b8w"
)
"""As the release before budgets sealed it, under a key of 32 k."""


def test_a_pass_of_before_there_was_money_is_admitted_and_interactive() -> None:
    found = open_pass(GOLDEN_PASS, {"e1/e2": b"k" * 32}, now_s=1_000_001.0)
    assert (found.request_id, found.service, found.hops) == ("daegu-" + "a" * 32, CHAT, 1)
    assert (found.priority, found.project_id) == ("interactive", "")
    assert (found.charge_day, found.covered_micro_won, found.is_admitted) == (0, -1, True)


def test_a_release_of_before_there_was_money_reads_todays_pass() -> None:
    names = Pass.__struct_fields__[: Pass.__struct_fields__.index("project_id")]
    former = msgspec.defstruct("Pass", [(name, object) for name in names], kw_only=True)
    header = seal_pass(open_pass(GOLDEN_PASS, {"e1/e2": b"k" * 32}, now_s=1_000_001.0), b"k" * 32)
    payload = header.partition(".")[0]
    read = msgspec.msgpack.decode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)), type=former)
    assert read.request_id == "daegu-" + "a" * 32  # type: ignore[attr-defined]


class Till:
    """A reservation that remembers."""

    covered = None

    def __init__(self) -> None:
        self.settled: list[int] = []

    def settle(self, charge: int) -> None:
        self.settled.append(charge)


@pytest.mark.parametrize(
    ("said", "status", "pieces", "events", "charge"),
    [
        (b"12345 10", 200, [], 3, 12345),
        (b"", 200, [b'{"usage":{"prompt_tokens":7,', b'"completion_tokens":3}}'], 0, CHARGE),
        (b"", 200, [], 5, 100 + 2 * 5),
        (b"", 503, [b"{}"], 0, 0),
        (b"-1 x", 200, [b"nonsense"], 0, 0),
        (b"", 200, [], 5000, 1000),
    ],
)
def test_an_account_is_closed_by_what_a_peer_says_or_else_by_what_was_seen(
    said: bytes, status: int, pieces: list[bytes], events: int, charge: int
) -> None:
    till = Till()
    account = Account(None, tariff(), prompt_tokens_max=100, reservation=till, worst=1000)  # type: ignore[arg-type]
    account.close_as_told(said, status, pieces, events)
    account.close(77, 77)
    assert till.settled == [charge]
    assert CHARGE_FIELD == b"x-madang-charge"


@pytest.mark.parametrize(
    "body", [BODY, b'{"model":"qwen","messages":[{"role":"user","content":"' + b"x" * 9000 + b'"}]}']
)
def test_no_request_reads_or_writes_more_than_its_context(body: bytes) -> None:
    service = Service(name=ServiceName(CHAT), model="m", context_tokens=512)

    class Head:
        fields: dict[bytes, bytes] = {}  # noqa: RUF012

    request = read_request(Endpoint.CHAT, body, Head())  # type: ignore[arg-type]
    read, written = worst_tokens(request, service, len(body))
    assert read == min(512, len(body) + 256)
    assert written == (20 if body is BODY else 512)


def test_a_picture_may_cost_the_whole_context() -> None:
    """Of one colour it is a few bytes, and as many tokens as any other of its size."""
    service = Service(name=ServiceName(CHAT), model="m", context_tokens=8192)
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    body = json.dumps({"model": CHAT, "messages": [{"role": "user", "content": [part]}], "n": 2}).encode()

    class Head:
        fields: dict[bytes, bytes] = {}  # noqa: RUF012

    request = read_request(Endpoint.CHAT, body, Head())  # type: ignore[arg-type]
    assert worst_tokens(request, service, len(body)) == (2 * 8192, 2 * 8192)


def test_events_of_one_request_name_one_charge(site: LabSite, bank: Bank, city: LabTenant) -> None:
    fund(site, bank, bank.add("city"), RICH)
    assert site.chat(city).status == 200
    event: UsageEvent = site.events()[0]
    assert event.priority is PriorityClass.INTERACTIVE
    assert event.project_id == ""
