"""A real model in ONNX Runtime behind a gateway: official and plain clients, files that nobody here wrote."""

import asyncio
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tests.engine.engine_replicas import FILES, fetched
from tests.engine.test_onnx import KINDS, TOMOGRAPHY, arrays_of, binary_request, file_tokens
from tests.engine.test_whisper import RECORDING
from tests.gateway.lab import Lab, LabSite
from tests.gateway.test_infer import MODEL, PATH, auth, official, serve

from madang.core import ServiceName
from madang.engine.contract import Verdict
from madang.engine.onnx.driver import OnnxDriver
from madang.federation.catalog import builtin_catalog, find_entry
from madang.model import Service
from madang.testing.engine_contract import RunningEngine, run_engine

pytestmark = [
    pytest.mark.peer,
    pytest.mark.model,
    pytest.mark.timeout(300),
    pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="the extra `onnx` is not installed"),
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    folder = tmp_path_factory.mktemp("onnx")
    with run_engine(OnnxDriver(), FILES, fetched(FILES.artifact.files[0]), folder) as running:
        running.wait_for(Verdict.READY, 60)
        yield running


@pytest.fixture(scope="module")
def kinds() -> list[str]:
    found: list[str] = json.loads(fetched(KINDS).read_bytes())["target_labels_space"]
    return found


@pytest.fixture(scope="module")
def files() -> dict[str, Any]:
    paths = {"dicom": fetched(TOMOGRAPHY), "wav": fetched(RECORDING), "python": Path(json.__file__)}
    return {kind: file_tokens(path.read_bytes()) for kind, path in paths.items()}


@pytest.fixture
def site(lab: Lab, engine: RunningEngine) -> LabSite:
    entry = find_entry(builtin_catalog(), FILES.model)
    lab.services.append(Service(name=ServiceName(MODEL), model=entry.name))
    lab.models.append(entry)
    site = lab.site()
    serve(site, engine.endpoint)
    lab.start(site)
    return site


def asked(tokens: Any, *, is_binary: bool = True) -> Any:
    tensor = triton.InferInput("bytes", tokens.shape, "INT32")
    tensor.set_data_from_numpy(tokens, binary_data=is_binary)
    return tensor


def test_the_official_client_reads_metadata_and_gets_answers(
    site: LabSite, files: dict[str, Any], kinds: list[str]
) -> None:
    with official(site) as client:
        model = client.get_model_metadata(MODEL, headers=auth())
        assert model == {
            "name": MODEL,
            "versions": ["1"],
            "platform": "onnxruntime_onnx",
            "inputs": [{"name": "bytes", "datatype": "INT32", "shape": [-1, 2048]}],
            "outputs": [{"name": "target_label", "datatype": "FP32", "shape": [-1, len(kinds)]}],
        }
        assert client.is_model_ready(MODEL, headers=auth())
        for kind, tokens in files.items():
            likely = {}
            for is_binary in (True, False):
                wanted = [triton.InferRequestedOutput("target_label", binary_data=is_binary)]
                answer = client.infer(
                    MODEL, [asked(tokens, is_binary=is_binary)], outputs=wanted, request_id=kind, headers=auth()
                )
                assert answer.get_response()["id"] == kind
                likely[is_binary] = answer.as_numpy("target_label")[0]
                assert kinds[int(likely[is_binary].argmax())] == kind
            assert abs(likely[True] - likely[False]).max() < 1e-5
        pending = [(kind, client.async_infer(MODEL, [asked(files[kind])], headers=auth())) for kind in files]
        for kind, one in pending:
            assert kinds[int(one.get_result().as_numpy("target_label")[0].argmax())] == kind
    events = site.events()
    assert len(events) == 9
    assert {(event.model, event.outcome, event.chip_kind) for event in events} == {("magika", "completed", "cpu")}


def test_many_at_once_each_get_their_own_answer(site: LabSite, files: dict[str, Any], kinds: list[str]) -> None:
    """More than a replica has slots at a time would be shed, so as many as it has."""

    async def ask() -> list[tuple[str, str]]:
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{site.ports['tenant']}") as client:

            async def one(kind: str) -> tuple[str, str]:
                answer = await client.infer(MODEL, [asked(files[kind])], headers=auth())
                return kind, kinds[int(answer.as_numpy("target_label")[0].argmax())]

            found = []
            for _ in range(10):
                found += await asyncio.gather(*(one(kind) for kind in files))
            return found

    found = asyncio.run(ask())
    assert len(found) == 30
    assert all(kind == said for kind, said in found), found
    assert len({event.event_id for event in site.events()}) == 30


def test_plain_http_in_json_and_in_binary(site: LabSite, files: dict[str, Any], kinds: list[str]) -> None:
    with httpx.Client(base_url=site.url, headers=auth(), trust_env=False, timeout=30) as client:
        tensor = {"name": "bytes", "shape": [1, 2048], "datatype": "INT32", "data": files["dicom"].tolist()}
        said = client.post(PATH, json={"inputs": [tensor]}).json()
        likely = said["outputs"][0]["data"]
        assert (kinds[likely.index(max(likely))], said["model_version"]) == ("dicom", "1")
        found = arrays_of(client.post(PATH, **binary_request({"bytes": files["wav"]})))["target_label"]
        assert kinds[int(found[0].argmax())] == "wav"
        wrong = client.post(PATH, json={"inputs": [{**tensor, "name": "picture"}]})
        assert (wrong.status_code, wrong.json()["code"]) == (400, "invalid_request")
        assert "the model's input 'bytes'" in wrong.json()["error"]
    assert len(site.events()) == 2
