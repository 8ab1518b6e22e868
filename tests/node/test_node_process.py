"""A real node process with real shims and twins: every part is killed in turn."""

import os
import signal
import subprocess
import sys
import threading

import msgspec
import pytest
from tests import loopback
from tests.node.node_lab import NodeLab, is_running, kill

from madang.model import ReplicaPhase, Task
from madang.node.bootstrap import stop_engines

pytestmark = pytest.mark.peer


@pytest.fixture
def lab(tmp_path):
    lab = NodeLab(tmp_path)
    try:
        yield lab.start()
    finally:
        lab.close()


def test_a_plan_becomes_engines_that_answer(lab):
    assert lab.plan(lab.spec(), lab.spec("embed", task=Task.EMBEDDING)).status_code == 200
    chat, embed = lab.wait_ready("chat"), lab.wait_ready("embed")
    assert "[DONE]" in lab.ask(chat).text
    assert chat.is_simulated
    assert embed.is_simulated
    assert (chat.chip_kind, chat.slots, chat.restarts, chat.reason) == ("cpu", 2, 0, "")
    assert chat.artifact_sha256 == lab.spec().artifact.files[0].sha256
    (chip,) = lab.observed().chips
    assert (chip.kind, chip.is_simulated) == ("cpu", False)
    # The key is nobody's who can list processes.
    with open(f"/proc/{chat.pid}/cmdline", "rb") as file:
        assert chat.engine_key.encode() not in file.read()
    with open(f"/proc/{chat.pid}/environ", "rb") as file:
        assert chat.engine_key.encode() not in file.read()


def test_engines_that_die_fall_sick_or_are_sent_away_are_replaced(lab):
    names = ("killed", "sick", "restarted")
    lab.plan(*(lab.spec(name) for name in names))
    before = {name: lab.wait_ready(name) for name in names}
    kill(before["killed"].pid)
    headers = {"authorization": f"Bearer {before['sick'].engine_key}"}
    loopback.post(
        f"{before['sick'].endpoint}/twin/behaviour", json={"health": "sick"}, headers=headers, trust_env=False
    )
    assert lab.client.post(f"/api/v1/replicas/{before['restarted'].replica_id}/restart").status_code == 202
    after = {name: lab.wait_ready(name, lambda one, b=old: one.pid != b.pid) for name, old in before.items()}
    assert {one.restarts for one in after.values()} == {1}
    assert not any(is_running(one.pid) for one in before.values())
    assert len(lab.live_engines()) == len(names)
    assert after["killed"].endpoint == before["killed"].endpoint
    assert after["killed"].engine_key != before["killed"].engine_key
    assert "[DONE]" in lab.ask(after["killed"]).text


@pytest.mark.deep
def test_a_stopped_engine_is_killed_and_replaced(lab):
    lab.plan(lab.spec())
    before = lab.wait_ready()
    os.kill(before.pid, signal.SIGSTOP)
    lab.wait_ready(is_right=lambda replica: replica.pid != before.pid)
    assert not is_running(before.pid)


def test_a_node_program_that_starts_takes_over_what_is_wanted_and_ends_the_rest(lab):
    lab.plan(lab.spec(), lab.spec("other"), lab.spec("changed", slots=4))
    kept, orphan, changed = lab.wait_ready("chat"), lab.wait_ready("other"), lab.wait_ready("changed")
    lab.kill()
    assert "[DONE]" in lab.ask(kept).text  # nobody needs the node program to be served
    # The plan on disk changed while the node was down, as after a restore from an older backup.
    plan = lab.settings.state_dir / "plan.json"
    told = plan.read_bytes().replace(b'"replica_id":"daegu-other-0"', b'"replica_id":"daegu-third-0"')
    plan.write_bytes(told.replace(b'"slots":4', b'"slots":3'))
    lab.start()
    lab.wait(lambda: not is_running(orphan.pid), "the orphan is ended")
    assert "orphan_ended" in lab.events()
    assert not (lab.settings.state_dir / "engines" / "daegu-other-0").exists()
    after = lab.wait_ready("chat")
    assert (after.pid, after.endpoint, after.engine_key, after.restarts) == (
        kept.pid,
        kept.endpoint,
        kept.engine_key,
        0,
    )
    replaced = lab.wait_ready("changed")
    assert (replaced.slots, replaced.pid != changed.pid, is_running(changed.pid)) == (3, True, False)
    # An adopted engine is kept as any other.
    kill(after.pid)
    assert lab.wait_ready("chat", lambda replica: replica.pid != kept.pid).restarts == 1


def test_a_record_that_names_a_stranger_harms_nobody(lab):
    lab.plan(lab.spec())
    before = lab.wait_ready()
    lab.kill()
    record = lab.settings.state_dir / "engines" / "daegu-chat-0" / "record.json"
    real = record.read_text(encoding="utf-8")
    # The pid is used again by another program (here: this test), as after a reboot.
    forged = real.replace(f'"pid": {before.pid}', f'"pid": {os.getpid()}')
    assert forged != real
    record.write_text(forged, encoding="utf-8")
    assert stop_engines(lab.settings) == 1  # its shim is real
    lab.wait(lambda: not is_running(before.pid), "the engine ended with its shim")


def test_leaving_the_plan_lets_requests_finish(lab):
    spec = lab.spec(token_period_s=0.05, answer_tokens=60)
    lab.plan(spec)
    replica = lab.wait_ready()
    answers = []
    asking = threading.Thread(target=lambda: answers.append(lab.ask(replica).text))
    asking.start()
    lab.wait(lambda: lab.requests_running(replica), "the request runs")
    lab.plan()
    lab.wait_phase(ReplicaPhase.DRAINING)
    asking.join(20)
    assert answers[0].endswith("data: [DONE]\n\n")
    lab.wait_gone()
    assert not is_running(replica.pid)
    assert lab.live_engines() == []


def test_planned_again_while_being_forgotten(lab):
    for _ in range(3):
        lab.plan(lab.spec())
        lab.wait(lambda: lab.replica() is not None, "planned")
        lab.plan()
    lab.plan(lab.spec())
    lab.wait_ready()
    assert len(lab.live_engines()) == 1


def test_an_orderly_stop_leaves_engines_and_down_ends_them(lab):
    lab.plan(lab.spec(), lab.spec("other"))
    replicas = [lab.wait_ready("chat"), lab.wait_ready("other")]
    assert lab.terminate() == 0
    assert all(is_running(replica.pid) for replica in replicas)
    assert stop_engines(lab.settings) == 2
    assert not any(is_running(replica.pid) for replica in replicas)
    assert stop_engines(lab.settings) == 0


@pytest.mark.parametrize("is_started_again", [pytest.param(False, marks=pytest.mark.deep), True])
def test_a_shim_without_a_record_yet_is_found(lab, is_started_again):
    lab.plan(lab.spec())
    before = lab.wait_ready()
    shim = lab.record().shim.pid
    lab.kill()
    # As if the node program had been killed in the moment between the shim's start and its record.
    (lab.settings.state_dir / "engines" / "daegu-chat-0" / "record.json").unlink()
    if is_started_again:
        lab.start()
        assert lab.wait_ready().pid != before.pid
        assert "strays_ended" in lab.events()
    else:
        assert stop_engines(lab.settings) == 1
    lab.wait(lambda: not is_running(shim) and not is_running(before.pid), "the stray is ended")


def test_an_engine_that_dies_while_loading_is_tried_again_with_its_reason(lab):
    lab.plan(lab.spec(exit_on_load=3))
    replica = lab.wait_phase(ReplicaPhase.BACKOFF)
    assert replica.reason.startswith("exit 3")
    assert (replica.pid, replica.endpoint) == (0, "")
    lab.wait(lambda: lab.replica().restarts >= 1, "tried again")


def test_a_missing_artifact_is_named_and_its_arrival_ends_the_wait(lab):
    spec = lab.spec("late", is_on_stick=False)
    lab.plan(spec)
    waiting = lab.wait_phase(ReplicaPhase.BACKOFF, "late")
    assert f"folder {lab.stick}: has no late.json" in waiting.reason
    lab.spec("late")
    lab.client.post(f"/api/v1/replicas/{spec.replica_id}/restart")
    lab.wait_ready("late")


def test_a_replica_that_can_never_run_says_why(lab):
    lab.plan(msgspec.structs.replace(lab.spec("wrong"), task=Task.EMBEDDING))
    assert "serves chat models" in lab.wait_phase(ReplicaPhase.BACKOFF, "wrong").reason


# The admin API, of one node for all these tests


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    lab = NodeLab(tmp_path_factory.mktemp("node"))
    try:
        yield lab.start()
    finally:
        lab.close()


def test_a_second_node_on_the_same_port_names_the_holder(api):
    done = subprocess.run(
        [sys.executable, "-m", "madang.node", "--config", str(api.folder / "node.toml")],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert f"port {api.settings.port}" in done.stderr.decode()


def test_the_admin_api_refuses_what_is_wrong(api):
    client = api.client
    spec = api.spec()
    number = api.generation + 5
    assert api.plan(spec, generation=number).status_code == 200
    stale = api.plan(spec, generation=number - 1)
    assert (stale.status_code, stale.json()["error"]["code"]) == (409, "conflict")
    assert api.plan(spec, generation=number).status_code == 200
    assert api.plan(spec, spec, generation=number + 1).status_code == 400
    for body in (b"{", b"[]", b"{}", b'{"site":1}', b"\xff"):
        answer = client.put("/api/v1/plan", content=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")
    other = b'{"site":"gumi","node":"x","generation":9,"replicas":[]}'
    assert "this is daegu-1 of daegu" in client.put("/api/v1/plan", content=other).json()["error"]["message"]
    assert client.put("/api/v1/plan", content=b" " * 5_000_000).status_code == 400
    assert client.post("/api/v1/replicas/nobody/restart").status_code == 404
    assert client.get("/api/v1/observed?after=x").status_code == 400
    assert client.get("/api/v1/nothing").json()["error"]["code"] == "not_found"
    assert client.get("/api/v1/plan").status_code == 405


def test_only_operations_are_open(api):
    client = api.client
    api.plan(api.spec())
    api.wait_ready()
    for token in ("", "Bearer wrong"):
        headers = {"authorization": token}
        assert client.get("/api/v1/observed", headers=headers).status_code == 401
        assert client.put("/api/v1/plan", content=b"{}", headers=headers).status_code == 401
        assert client.post("/api/v1/replicas/x/restart", headers=headers).status_code == 401
        for path in ("/healthz", "/readyz", "/metrics"):
            assert client.get(path, headers=headers).status_code == 200
    metrics = client.get("/metrics").text
    assert 'madang_node_replicas{phase="ready"} 1.0' in metrics
    assert 'madang_node_chip_memory_bytes{chip="cpu0",kind="cpu"}' in metrics


def test_an_observer_waits_for_the_next_change(api):
    seq = api.observed().seq
    answers = []

    def wait():
        answers.append(api.client.get("/api/v1/observed", params={"after": seq, "wait_s": 20}).json())

    waiting = threading.Thread(target=wait)
    waiting.start()
    api.plan()
    waiting.join(60)
    assert answers[0]["seq"] > seq
    at_once = api.client.get("/api/v1/observed", params={"after": 10**9, "wait_s": 20}).json()
    assert at_once["boot_id"] == answers[0]["boot_id"]
