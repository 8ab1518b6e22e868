"""A node runs the onnx engine: the twin, and a real model under the limits that a node sets."""

import importlib.util
import os

import pytest
from tests import loopback
from tests.engine.engine_replicas import fetched
from tests.node.node_lab import NodeLab

from madang.core import ChipId, ReplicaId, ServiceName
from madang.federation.catalog import FILES_MODEL, builtin_catalog, find_entry
from madang.model import ReplicaSpec
from madang.node.cache import default_cache_dir

pytestmark = [pytest.mark.peer, pytest.mark.model, pytest.mark.timeout(300)]
ENTRY = find_entry(builtin_catalog(), FILES_MODEL)
SPEC = ReplicaSpec(
    replica_id=ReplicaId("daegu-files-0"),
    service=ServiceName("files"),
    model=ENTRY.name,
    task=ENTRY.task,
    artifact=ENTRY.artifacts[0],
    chip_ids=(ChipId("cpu0"),),
    context_tokens=0,
    slots=4,
)
HAS_RUNTIME = importlib.util.find_spec("onnxruntime") is not None


@pytest.mark.parametrize(
    "is_twin",
    [True, pytest.param(False, marks=pytest.mark.skipif(not HAS_RUNTIME, reason="the extra `onnx` is not installed"))],
)
def test_a_model_is_fetched_started_and_answers(tmp_path, is_twin):
    fetched(SPEC.artifact.files[0])
    lab = NodeLab(tmp_path, cache_dir=default_cache_dir(os.environ), engine_twins=("onnx",) if is_twin else ())
    try:
        lab.start()
        assert lab.plan(SPEC).status_code == 200
        replica = lab.wait_ready("files")
        assert replica.is_simulated is is_twin
        tensor = {"name": "bytes", "shape": [1, 2048], "datatype": "INT32", "data": [256] * 2048}
        answer = loopback.post(
            f"{replica.endpoint}/v2/models/files/infer",
            json={"inputs": [tensor]},
            headers={"authorization": f"Bearer {replica.engine_key}"},
            trust_env=False,
            timeout=60,
        )
        assert answer.status_code == 200, answer.text
        assert answer.json()["outputs"][0]["shape"] == ([1, 2048] if is_twin else [1, 214])
        with open(f"/proc/{replica.pid}/smaps_rollup", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file.read().splitlines()[1:])
        assert int(fields["Pss_Anon"].split()[0]) * 1024 < SPEC.artifact.memory_bytes
    finally:
        lab.close()
