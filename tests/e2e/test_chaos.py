"""Usage exactly once while everything breaks: cut, hole, kill -9 of each part in turn, under load.

The engines are their twins (simulated answers); NATS, databases, programs and faults are real.
"""

import os
import time

import httpx
import psutil
import pytest
from tests.e2e.chaos import Clients, SegmentKeeper, ledger_rows
from tests.e2e.conftest import free_base_port
from tests.e2e.embedded import Embedded, wait_for

from madang.federation.relay import send_command
from madang.federation.relay_settings import LinkMode, WanCommand

pytestmark = [pytest.mark.federation, pytest.mark.peer]

MODES = {"cut": LinkMode.CUT, "hole": LinkMode.HOLE, "heal": LinkMode.OK}
SITES = {"daegu": "daegu-clinic", "gumi": "gumi-parts", "gwangju": "gwangju-city", "national": "gwangju-city"}


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """A federation whose nodes start the engines' twins."""
    embedded = Embedded(tmp_path_factory.mktemp("chaos"), free_base_port())
    os.environ["MADANG_NODE_ENGINE_TWINS"] = '["llama_cpp", "embed"]'
    try:
        embedded.madang("up", "--base-port", str(embedded.base_port), timeout_s=300)
        yield embedded
    finally:
        del os.environ["MADANG_NODE_ENGINE_TWINS"]
        embedded.madang("down", is_ok=False)


def kill_engine(federation, site):
    for engine in federation.engines(site, "madang-chat"):
        if engine["pid"]:
            psutil.Process(engine["pid"]).kill()


def kill_if_alive(federation, *names):
    alive = federation.processes()
    federation.kill(*(name for name in names if name in alive))


def set_link(federation, site, mode):
    """Do what `madang wan` does, without half a second of its start while so much else wants the cores."""
    send_command(federation.state_dir / "run", WanCommand(verb="set", site=site, mode=mode))


def faults(federation):
    """Yield (name, what to do, seconds until the next)."""
    wan = lambda verb, site: lambda: set_link(federation, site, MODES[verb])  # noqa: E731
    kill = lambda *names: lambda: kill_if_alive(federation, *names)  # noqa: E731
    yield "cut daegu", wan("cut", "daegu"), 2.0
    yield "kill gumi's site program", kill("gumi-site"), 2.0
    yield "kill daegu's gateway, cut off", kill("daegu-gateway"), 1.5
    yield "heal daegu", wan("heal", "daegu"), 1.5
    yield "hole gwangju", wan("hole", "gwangju"), 2.0
    yield "kill the hub", kill("hub"), 2.0
    yield "heal gwangju", wan("heal", "gwangju"), 1.0
    yield "kill the hub's NATS", kill("hub-nats"), 2.0
    yield "kill gumi's NATS", kill("gumi-nats"), 1.5
    yield "kill an engine", lambda: kill_engine(federation, "gwangju"), 1.5
    yield "kill gwangju's node program", kill("gwangju-node"), 1.5
    yield "kill gumi's gateway", kill("gumi-gateway"), 1.5
    yield "cut gumi", wan("cut", "gumi"), 1.0
    yield "kill gumi's site program, cut off", kill("gumi-site"), 2.0
    yield "kill hub and its NATS", kill("hub", "hub-nats"), 2.0
    yield "heal gumi", wan("heal", "gumi"), 1.0
    yield "kill the relay", kill("relay"), 1.5
    yield (
        "kill all of daegu",
        kill("daegu-site", "daegu-gateway", "daegu-nats", "daegu-node"),
        2.5,
    )


def run_chaos(federation, archive, rounds, *, pause_s, haste):
    """Return the clients, the keeper, and the ids of the events that were in the ledger before.

    Clients wait `pause_s` between questions; a fault lasts as long as it says, divided by `haste`.
    """
    hub_db = federation.state_dir / "hub" / "hub.db"
    before = wait_for("the first question is in the ledger", lambda: ledger_rows(hub_db), 60, every_s=0.2)
    clients = Clients()
    folders = [federation.state_dir / "sites" / site / "usage" for site in SITES if site != "national"]
    keeper = SegmentKeeper([*folders, federation.state_dir / "national" / "usage"], archive)
    keeper.start()
    for site, tenant in SITES.items():
        clients.start(federation.url(site), tenant, federation.key(tenant), count=2, pause_s=pause_s)
    try:
        for _ in range(rounds):
            for _name, act, lasts_s in faults(federation):
                act()
                time.sleep(lasts_s / haste)  # not a wait for a result: this is how long the fault lasts under load
    finally:
        clients.stop()
    return clients, keeper, {row["event_id"] for row in before}


def is_drained(federation, keeper):
    """Return whether every event that was emitted has reached the ledger, or nothing more is on its way."""
    try:
        sites = federation.site_rows()
    except httpx.HTTPError:
        return False
    emitted = {event.event_id for event in keeper.emitted()}
    rows = {row["event_id"] for row in ledger_rows(federation.state_dir / "hub" / "hub.db")}
    return all(s["state"] == "connected" and s["outbox_depth"] == 0 for s in sites) and emitted <= rows


def check_books(federation, clients, keeper, before):
    wait_for("the ledger has what was emitted", lambda: is_drained(federation, keeper), 60, every_s=0.5)
    keeper.stop()
    emitted = {event.event_id: event for event in keeper.emitted()}
    rows = ledger_rows(federation.state_dir / "hub" / "hub.db")
    by_event = {row["event_id"]: row for row in rows}
    assert len(by_event) == len(rows), "the ledger holds an event twice"
    surplus = set(by_event) - set(emitted) - before
    assert not surplus, f"{len(surplus)} events in the ledger that nobody emitted"
    assert set(emitted) <= set(by_event), "events were lost"
    for kind in ("prompt_tokens", "completion_tokens"):
        in_ledger = sum(by_event[event_id][kind] for event_id in emitted)
        assert in_ledger == sum(getattr(event, kind) for event in emitted.values())

    billed = {}
    for row in rows:
        if not row["is_superseded"]:
            assert row["request_id"] not in billed, f"request {row['request_id']} is billed twice"
            billed[row["request_id"]] = row
    for request_id, answer in clients.answered.items():
        row = billed[request_id]
        assert (row["tenant_id"], row["prompt_tokens"], row["completion_tokens"]) == (
            answer.tenant,
            answer.prompt_tokens,
            answer.completion_tokens,
        )
    # Segments that were open when the keeper started also hold events from before it.
    return len(set(emitted) - before), len(set(by_event) - before)


@pytest.mark.deep
@pytest.mark.timeout(300)
def test_usage_is_exact_through_cuts_holes_and_kill_9_of_each_part(twins, tmp_path):
    clients, keeper, before = run_chaos(twins, tmp_path / "archive", rounds=1, pause_s=0.05, haste=3)
    emitted, rows = check_books(twins, clients, keeper, before)
    answered = len(clients.answered)
    print(f"{emitted} events emitted, {rows} in the ledger, {answered} answered; {clients.failures}")
    assert len(clients.answered) > 300, (len(clients.answered), clients.failures, clients.unclear)
    assert set(clients.failures) <= {"no_replica", "overloaded", "upstream_failed", "timeout"}, clients.failures


@pytest.mark.deep
@pytest.mark.timeout(900)
def test_usage_is_exact_through_five_rounds_of_it(twins, tmp_path):
    clients, keeper, before = run_chaos(twins, tmp_path / "archive", rounds=5, pause_s=0.01, haste=1)
    emitted, rows = check_books(twins, clients, keeper, before)
    print(f"{emitted} events emitted, {rows} in the ledger, {len(clients.answered)} answered")
    assert len(clients.answered) > 5000
