"""A node runs vendors' engines (their twins) and doors to others' endpoints; no death leaves anything behind."""

import os
import signal

import msgspec
import pytest
from tests import loopback
from tests.engine.vendor_replicas import CPU, EXTERNAL, VLLM_HERE, make_files
from tests.node.artifact_sources import file_of
from tests.node.node_lab import NodeLab, is_running

from madang.core import ChipId, ReplicaId
from madang.engine.contract import Verdict
from madang.engine.settings import ExternalEndpoint
from madang.engine.vllm import driver as vllm
from madang.model import DataClass, EngineFeature
from madang.testing.engine_contract import KEY, run_engine

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]
BODY = {"messages": [{"role": "user", "content": "hi"}], "model": "a-service"}


def on_cpu(lab, spec, **behaviour):
    """Return a replica for the lab's node, with its files on the stick."""
    files = []
    for file in spec.artifact.files:
        data = msgspec.json.encode(behaviour) if file.name == "config.json" else file.name.encode()
        files.append(file_of(data, name=file.name))
        (lab.stick / file.name).write_bytes(data)
    artifact = msgspec.structs.replace(spec.artifact, files=tuple(files))
    return msgspec.structs.replace(
        spec, replica_id=ReplicaId("daegu-a-0"), artifact=artifact, chip_ids=(ChipId("cpu0"),)
    )


def ask(replica):
    headers = {"authorization": f"Bearer {replica.engine_key}"}
    url = f"{replica.endpoint}/v1/chat/completions"
    return loopback.post(url, json=BODY, headers=headers, trust_env=False, timeout=30)


def test_a_vendors_engine_lives_dies_and_goes(tmp_path):
    lab = NodeLab(tmp_path, engine_twins=("vllm",), engine_runtimes={"vllm": VLLM_HERE})
    try:
        lab.start()
        spec = on_cpu(lab, CPU)
        assert lab.plan(spec).status_code == 200
        first = lab.wait_ready("a-service")
        assert first.is_simulated
        assert EngineFeature.UNSTREAMED_ABORT in first.features
        assert ask(first).status_code == 200
        with open(f"/proc/{first.pid}/cmdline", "rb") as file:
            assert first.engine_key.encode() not in file.read()
        os.kill(first.pid, signal.SIGKILL)
        second = lab.wait_ready("a-service", lambda replica: replica.pid not in (0, first.pid))
        lab.kill()
        assert is_running(second.pid)
        lab.start()
        assert lab.wait_ready("a-service").pid == second.pid
        lab.plan()
        lab.wait_gone("a-service")
        assert not is_running(second.pid)
        assert lab.live_engines() == []
    finally:
        lab.close()


def test_a_vendors_engine_that_cannot_load_says_why(tmp_path):
    lab = NodeLab(tmp_path, engine_twins=("vllm",), engine_runtimes={"vllm": VLLM_HERE})
    try:
        lab.start()
        lab.plan(on_cpu(lab, CPU, fail_load="oom"))
        lab.wait(
            lambda: "Engine core initialization failed" in (lab.replica("a-service") or first_of(lab)).reason,
            "the reason is the vendor's last words",
        )
    finally:
        lab.close()


def first_of(lab):
    return lab.wait(lambda: lab.replica("a-service"), "the replica is seen")


def test_an_engine_without_its_stack_says_what_to_set(tmp_path):
    lab = NodeLab(tmp_path, engine_twins=())
    try:
        lab.start()
        lab.plan(on_cpu(lab, CPU))
        lab.wait(lambda: "engine_runtimes.vllm" in first_of(lab).reason, "the reason names the setting")
    finally:
        lab.close()


def test_an_endpoint_of_others_is_offered_watched_and_outlives_us(tmp_path):
    place = tmp_path / "endpoint"
    place.mkdir()
    auth = tmp_path / "auth"
    auth.write_text(f"Bearer {KEY}", encoding="ascii")
    auth.chmod(0o600)
    twin = vllm.VllmDriver(VLLM_HERE, vllm.TWIN_PROGRAM)
    with run_engine(twin, CPU, make_files(place, CPU), place) as remote:
        remote.wait_for(Verdict.READY, 30)
        registered = ExternalEndpoint(
            url=remote.endpoint, is_at_site=True, auth_file=auth, data_class_max=DataClass.SENSITIVE
        )
        lab = NodeLab(tmp_path, engine_twins=(), external_endpoints={"a": registered})
        try:
            lab.start()
            spec = on_cpu(lab, EXTERNAL)
            assert lab.plan(spec).status_code == 200
            replica = lab.wait_ready("a-service")
            assert not replica.is_simulated
            assert (replica.data_class_max, replica.artifact_sha256) == (DataClass.SENSITIVE, "")
            assert replica.engine_key != KEY
            assert ask(replica).status_code == 200
            lab.kill()
            assert ask(replica).status_code == 200, "the door stands while the node program is down"
            lab.start()
            assert lab.wait_ready("a-service").pid == replica.pid
            # For other data than before, the door is another one.
            lab.kill()
            changed = msgspec.structs.replace(registered, data_class_max=DataClass.OPEN)
            lab.settings = msgspec.structs.replace(lab.settings, external_endpoints={"a": changed})
            lab.start()
            other = lab.wait_ready("a-service", lambda found: found.data_class_max is DataClass.OPEN)
            assert other.pid != replica.pid
            lab.plan()
            lab.wait_gone("a-service")
            assert not is_running(other.pid)
            assert not is_running(replica.pid)
            assert remote.probe().verdict is Verdict.READY
        finally:
            lab.close()


def test_what_may_not_be_registered_keeps_the_node_from_starting(tmp_path):
    registered = ExternalEndpoint(url="https://llm.example", is_at_site=False)
    lab = NodeLab(tmp_path, external_endpoints={"a": registered})
    try:
        with pytest.raises(AssertionError, match="does not stand at this site"):
            lab.start()
    finally:
        lab.close()
