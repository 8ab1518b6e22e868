"""The Open Inference Protocol through a gateway: the official client in front, the engine's twin as a real process."""

import contextlib
import hashlib
import json
import socket
import struct
import time
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.engine_replicas import FILES
from tests.gateway.lab import (
    CHAT,
    CITY,
    CLINIC,
    Answer,
    Lab,
    LabSite,
    LabTenant,
    residency,
    session_between,
    wait_until,
)
from tests.gateway.raw import RawClient
from tritonclient.utils import triton_to_np_dtype

from madang.core import KeyId, RequestId, ServiceName, SiteId, TenantId
from madang.engine.contract import Verdict
from madang.engine.onnx.driver import TWIN_PROGRAM, OnnxDriver
from madang.gateway.admission import worst_charge
from madang.gateway.rows import ROWS_MAX
from madang.model import CatalogEntry, Outcome, PriorityClass, ReplicaPhase, Service, Tariff, Task, Unit
from madang.testing.engine_contract import KEY, RunningEngine, run_engine
from madang.wire.access_log import decode_segment
from madang.wire.feed import LocalReplica
from madang.wire.oip import read_infer
from madang.wire.openai import ApiRequest, Endpoint
from madang.wire.passes import PASS_HEADER, Pass, seal_pass

pytestmark = pytest.mark.peer
MODEL = FILES.service
PATH = f"/v2/models/{MODEL}/infer"
X = {"name": "x", "shape": [2], "datatype": "FP32", "data": [1.5, 2.0]}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    folder = tmp_path_factory.mktemp("onnx")
    (folder / "weights").write_text("{}", encoding="utf-8")
    with run_engine(OnnxDriver(TWIN_PROGRAM), FILES, folder / "weights", folder) as running:
        running.wait_for(Verdict.READY, 30)
        yield running


@contextlib.contextmanager
def behaving(engine: RunningEngine, **behaviour: object) -> Iterator[None]:
    before = engine.client.get("/twin/behaviour").json()
    engine.client.post("/twin/behaviour", json=behaviour).raise_for_status()
    try:
        yield
    finally:
        engine.client.post("/twin/behaviour", json=before).raise_for_status()


def serve(site: LabSite, endpoint: str, key: str = KEY, phase: ReplicaPhase = ReplicaPhase.READY) -> None:
    number = len(site.replicas)
    site.replicas.append(
        LocalReplica(
            replica_id=f"{site.name}-infer-{number}",
            service=MODEL,
            phase=phase,
            endpoint=endpoint,
            engine_key=key,
            chip_kind="cpu",
            slots=4,
            slot=number,
        )
    )


@pytest.fixture
def known(lab: Lab) -> Lab:
    lab.services.append(Service(name=ServiceName(MODEL), model="files-model"))
    lab.models.append(CatalogEntry(name="files-model", task=Task.INFER, title="t", licence="l", version="3"))
    return lab


@pytest.fixture
def site(known: Lab, engine: RunningEngine) -> LabSite:
    site = known.site()
    serve(site, engine.endpoint)
    known.start(site)
    return site


def infer(site: LabSite, *inputs: dict, key: str = CITY.key, path: str = PATH, **fields: object) -> Answer:
    return site.request("POST", path, {"inputs": list(inputs), **fields}, key=key)


def binary(site: LabSite, value: dict, tail: bytes, key: str = CITY.key, **headers: str) -> Answer:
    text = json.dumps(value).encode()
    sent = {"Inference-Header-Content-Length": str(len(text)), **headers}
    return site.request("POST", PATH, text + tail, key=key, headers=sent)


def raw_infer() -> bytes:
    """Return a request as bytes."""
    body = json.dumps({"inputs": [X]}).encode()
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {CITY.key}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


@contextlib.contextmanager
def official(site: LabSite) -> Iterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(f"127.0.0.1:{site.ports['tenant']}", concurrency=4)
    try:
        yield client
    finally:
        client.close()


def auth() -> dict[str, str]:
    """Return fields of their own for each call: the client writes into what it is given."""
    return {"Authorization": f"Bearer {CITY.key}"}


# --- the official client


def test_the_official_client_asks_about_server_and_model(site: LabSite) -> None:
    with official(site) as client:
        assert client.is_server_live(headers=auth())
        assert client.is_server_ready(headers=auth())
        assert client.is_model_ready(MODEL, headers=auth())
        assert client.is_model_ready(MODEL, "3", headers=auth())
        assert not client.is_model_ready(MODEL, "1", headers=auth())
        assert not client.is_model_ready("nobody", headers=auth())
        assert not client.is_server_live()
        server = client.get_server_metadata(headers=auth())
        assert (server["name"], server["extensions"]) == ("madang", ["binary_tensor_data"])
        model = client.get_model_metadata(MODEL, headers=auth())
        assert (model["name"], model["versions"], model["platform"]) == (MODEL, ["3"], "onnxruntime_onnx")
        assert model["inputs"][0] == {"name": "numbers", "datatype": "FP32", "shape": [-1, 4]}
    assert site.events() == []


DATATYPES = ["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64"]


@pytest.mark.parametrize("is_binary_in", [True, False])
@pytest.mark.parametrize("is_binary_out", [True, False])
def test_the_official_client_gets_every_datatype_as_it_sent_it(
    site: LabSite, is_binary_in: bool, is_binary_out: bool
) -> None:
    if is_binary_in is not is_binary_out:
        names = ["BYTES"]  # the twin turns numbers into no other form
    else:
        names = [*DATATYPES, "BYTES"] if is_binary_in else [name for name in [*DATATYPES, "BYTES"] if name != "FP16"]
    arrays = {}
    for name in names:
        if name == "BYTES":
            arrays[name] = np.array(["가".encode(), b"b", b""], dtype=object).reshape(3, 1)
        else:
            arrays[name] = np.array([[0, 1], [1, 0]]).astype(triton_to_np_dtype(name))
    inputs, outputs = [], []
    for name, array in arrays.items():
        inputs.append(triton.InferInput(f"t{name}", array.shape, name))
        inputs[-1].set_data_from_numpy(array, binary_data=is_binary_in)
        outputs.append(triton.InferRequestedOutput(f"t{name}", binary_data=is_binary_out))
    with official(site) as client:
        found = client.infer(MODEL, inputs, outputs=outputs, request_id="요청-1", headers=auth())
        assert found.get_response()["id"] == "요청-1"
        assert found.get_response()["model_name"] == MODEL
        assert found.get_response()["model_version"] == "3"
        for name, array in arrays.items():
            got = found.as_numpy(f"t{name}")
            if name == "BYTES" and not is_binary_out:
                got = np.array([text.encode() if isinstance(text, str) else text for text in got.ravel()], dtype=object)
                got = got.reshape(array.shape)
            assert got.tolist() == array.tolist(), name
    (event,) = site.events()
    assert (event.endpoint, event.service, event.outcome) == ("/v2/models/{model}/infer", MODEL, Outcome.COMPLETED)
    assert (event.prompt_tokens, event.completion_tokens, event.hops) == (0, 0, 0)


def test_the_official_client_infers_without_waiting(site: LabSite) -> None:
    array = np.arange(8, dtype=np.float32).reshape(2, 4)
    tensor = triton.InferInput("numbers", array.shape, "FP32")
    tensor.set_data_from_numpy(array)
    with official(site) as client:
        pending = [client.async_infer(MODEL, [tensor], headers=auth()) for _ in range(8)]
        for one in pending:
            assert one.get_result().as_numpy("numbers").tolist() == array.tolist()
    wait_until(lambda: len(site.events()) == 8, "eight events")
    assert len({event.event_id for event in site.events()}) == 8


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression_is_refused_by_name(site: LabSite, algorithm: str) -> None:
    tensor = triton.InferInput("numbers", [1], "FP32")
    tensor.set_data_from_numpy(np.zeros(1, np.float32))
    with official(site) as client, pytest.raises(triton.InferenceServerException, match="compressed") as refused:
        client.infer(MODEL, [tensor], headers=auth(), request_compression_algorithm=algorithm)
    assert refused.value.status() == "400"
    with official(site) as client:
        plain = client.infer(MODEL, [tensor], headers=auth(), response_compression_algorithm=algorithm)
        assert plain.as_numpy("numbers").tolist() == [0.0]


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda client: client.get_model_repository_index(headers=auth()), "repository"),
        (lambda client: client.load_model(MODEL, headers=auth()), "repository"),
        (lambda client: client.get_system_shared_memory_status(headers=auth()), "shared memory"),
        (lambda client: client.get_cuda_shared_memory_status(headers=auth()), "shared memory"),
        (lambda client: client.get_inference_statistics(MODEL, headers=auth()), "statistics"),
        (lambda client: client.get_model_config(MODEL, headers=auth()), "configuration"),
        (lambda client: client.get_trace_settings(headers=auth()), "trace"),
        (lambda client: client.get_log_settings(headers=auth()), "logging"),
    ],
)
def test_extensions_that_are_not_offered_are_named(site: LabSite, call, named: str) -> None:
    with official(site) as client, pytest.raises(triton.InferenceServerException, match=named) as refused:
        call(client)
    assert refused.value.status() == "404"


def test_shared_memory_and_sequences_are_named(site: LabSite) -> None:
    shared = triton.InferInput("numbers", [1], "FP32")
    shared.set_shared_memory("region", 4)
    plain = triton.InferInput("numbers", [1], "FP32")
    plain.set_data_from_numpy(np.zeros(1, np.float32))
    with official(site) as client:
        with pytest.raises(triton.InferenceServerException, match="shared memory"):
            client.infer(MODEL, [shared], headers=auth())
        with pytest.raises(triton.InferenceServerException, match="sequence"):
            client.infer(MODEL, [plain], sequence_id=7, sequence_start=True, headers=auth())
        wanted = [triton.InferRequestedOutput("numbers", class_count=3)]
        with pytest.raises(triton.InferenceServerException, match="classification"):
            client.infer(MODEL, [plain], outputs=wanted, headers=auth())
    assert site.events() == []


# --- who may ask, and what


def test_every_path_wants_a_key_and_errors_have_the_protocols_shape(site: LabSite) -> None:
    for method, path in (
        ("GET", "/v2"),
        ("GET", "/v2/health/live"),
        ("GET", "/v2/health/ready"),
        ("GET", f"/v2/models/{MODEL}"),
        ("GET", f"/v2/models/{MODEL}/ready"),
        ("POST", PATH),
    ):
        answer = site.request(method, path, {} if method == "POST" else None)
        assert (answer.status, answer.json["code"]) == (401, "invalid_key"), path
        assert type(answer.json["error"]) is str
        assert answer.headers["www-authenticate"]


def test_residency_is_judged_before_the_body(site: LabSite, known: Lab) -> None:
    honam = LabTenant("honam", residency("region", "honam"))
    known.tenants.append(honam)
    known.site("gwangju", "honam")
    site.refresh()
    with site.connect() as sock:
        head = (
            f"POST {PATH} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {honam.key}\r\ncontent-length: 1000000\r\n\r\n"
        )
        sock.sendall(head.encode())
        answer = RawClient(sock).answer()
    said = json.loads(answer.body)
    assert (answer.status, said["code"]) == (403, "residency_violation")
    assert [one["name"] for one in said["madang"]["sites"]] == ["gwangju"]
    assert site.request("GET", f"/v2/models/{MODEL}", key=honam.key).status == 403


def test_anothers_service_does_not_exist(site: LabSite, known: Lab) -> None:
    known.services[-1] = msgspec.structs.replace(known.services[-1], tenants=(TenantId("clinic"),))
    site.refresh()
    for path in (PATH, f"/v2/models/{MODEL}", f"/v2/models/{MODEL}/ready"):
        method = "POST" if path == PATH else "GET"
        body = {"inputs": [X]} if path == PATH else None
        answer = site.request(method, path, body, key=CITY.key)
        assert (answer.status, answer.json["code"]) == (404, "model_not_found"), path
        assert site.request(method, path, body, key=CLINIC.key).status == 200, path


@pytest.mark.parametrize("verb", ["", "/ready", "/infer"])
def test_a_version_is_the_catalogs_or_unknown(site: LabSite, verb: str) -> None:
    method, body = ("POST", {"inputs": [X]}) if verb == "/infer" else ("GET", None)
    right = site.request(method, f"/v2/models/{MODEL}/versions/3{verb}", body, key=CITY.key)
    wrong = site.request(method, f"/v2/models/{MODEL}/versions/1{verb}", body, key=CITY.key)
    assert (right.status, wrong.status, wrong.json["code"]) == (200, 404, "model_not_found")
    assert "it has 3" in wrong.json["error"]


def test_a_chat_model_takes_no_tensors_and_a_tensor_model_no_chat(site: LabSite, known: Lab) -> None:
    site.add_replica(known.engine())
    site.refresh()
    answer = infer(site, X, path=f"/v2/models/{CHAT}/infer")
    assert (answer.status, answer.json["code"]) == (400, "invalid_request")
    assert site.request("GET", f"/v2/models/{CHAT}", key=CITY.key).status == 400
    assert site.request("GET", f"/v2/models/{CHAT}/ready", key=CITY.key).status == 200
    other = site.request("POST", "/v1/chat/completions", {"model": MODEL, "messages": []}, key=CITY.key)
    assert other.status == 400
    card = site.request("GET", f"/v1/models/{MODEL}", key=CITY.key).json["madang"]
    assert (card["task"], card["endpoints"]) == ("infer", ["/v2/models/{model}/infer", "/v2/models/{model}"])


@pytest.mark.parametrize(
    ("value", "code", "param"),
    [
        ({}, "invalid_request", None),
        ({"inputs": [{**X, "shape": [-2]}]}, "invalid_request", "inputs[0].shape"),
        ({"inputs": [X], "model_name": "x"}, "invalid_request", None),
        ({"inputs": [{**X, "parameters": {"shared_memory_region": "r"}}]}, "unsupported", "shared_memory_region"),
        ({"inputs": [X], "parameters": {"priority": 1}}, "unsupported", "priority"),
        ({"inputs": [{**X, "data": [1, 2, 3]}]}, "invalid_request", None),
    ],
)
def test_refusals_name_what_is_wrong(site: LabSite, value: dict, code: str, param: str | None) -> None:
    answer = site.request("POST", PATH, value, key=CITY.key)
    assert (answer.status, answer.json["code"], answer.json.get("param")) == (400, code, param)
    assert site.events() == []


def test_sizes_that_do_not_add_up_reach_no_engine(site: LabSite, engine: RunningEngine) -> None:
    sized = {"name": "x", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}
    with behaving(engine, fail_next=1):  # an engine that were asked would fail
        for value, tail in (
            ({"inputs": [sized]}, bytes(7)),
            ({"inputs": [sized]}, bytes(9)),
            ({"inputs": [{**sized, "shape": [3]}]}, bytes(8)),
            ({"inputs": [X]}, bytes(1)),
        ):
            answer = binary(site, value, tail)
            assert (answer.status, answer.json["code"]) == (400, "invalid_request")
        for length in ("x", "-1", "100000", "1, 1"):
            answer = binary(site, {"inputs": [X]}, b"", **{"Inference-Header-Content-Length": length})
            assert (answer.status, answer.json["param"]) == (400, "Inference-Header-Content-Length")
        assert engine.client.get("/twin/behaviour").json()["fail_next"] == 1


def test_bodies_have_the_limit_of_all_bodies(known: Lab, engine: RunningEngine) -> None:
    site = known.site()
    serve(site, engine.endpoint)
    known.start(site, body_bytes_max=1_000_000)
    sized = {"name": "x", "shape": [225_000], "datatype": "FP32", "parameters": {"binary_data_size": 900_000}}
    value = {"inputs": [sized]}
    tail = bytes(range(250)) * 3600
    answer = binary(site, {**value, "parameters": {"binary_data_output": True}}, tail)
    assert answer.status == 200
    assert answer.body[int(answer.headers["inference-header-content-length"]) :] == tail
    over = binary(site, value, bytes(1_000_000))
    assert (over.status, over.json["code"]) == (413, "request_too_large")
    assert type(over.json["error"]) is str


@settings(max_examples=30)
@given(body=st.binary(max_size=200), length=st.none() | st.integers(0, 220))
def test_no_bytes_are_answered_otherwise_than_400(shared_site: LabSite, body: bytes, length: int | None) -> None:
    headers = {} if length is None else {"Inference-Header-Content-Length": str(length)}
    answer = shared_site.request("POST", PATH, body, key=CITY.key, headers=headers)
    assert answer.status == 400
    assert answer.json["code"] in ("invalid_request", "unsupported")


@pytest.fixture(scope="module")
def shared_site(tmp_path_factory: pytest.TempPathFactory, engine: RunningEngine) -> Iterator[LabSite]:
    with Lab(tmp_path_factory.mktemp("lab")) as lab:
        lab.services.append(Service(name=ServiceName(MODEL), model="files-model"))
        site = lab.site()
        serve(site, engine.endpoint)
        lab.start(site)
        yield site


# --- what is written down


def test_an_answer_says_who_served_it_and_is_written_down_once(site: LabSite) -> None:
    answer = infer(site, X, id="k")
    assert answer.status == 200
    assert answer.json == {
        "model_name": MODEL,
        "model_version": "3",
        "id": "k",
        "outputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [1.5, 2.0]}],
    }
    assert (answer.headers["x-madang-site"], answer.headers["x-madang-chip"]) == ("daegu", "cpu")
    (event,) = site.events()
    assert answer.headers["x-madang-receipt"] == event.event_id
    assert (event.request_id, event.model, event.tenant_id) == (answer.headers["x-request-id"], "files-model", "city")
    assert event.ttft_s is None

    def records() -> list:
        found = []
        for path in (site.folder / "access").glob("*.acc"):
            found += decode_segment(path.read_bytes()).records
        return found

    infer(site, X)
    site.request("GET", f"/v2/models/{MODEL}", key=CITY.key)
    site.request("GET", f"/v2/models/{MODEL}/ready", key=CITY.key)
    asked = wait_until(lambda: len(records()) == 4 and records(), "four access records")
    assert [(one.endpoint, one.service, one.status) for one in asked] == [
        ("/v2/models/{model}/infer", MODEL, 200),
        ("/v2/models/{model}/infer", MODEL, 200),
        ("/v2/models/{model}", MODEL, 200),
        ("/v2/models/{model}/ready", MODEL, 200),
    ]
    metrics = site.request("GET", "/metrics", port="admin").body.decode()
    counted = [line for line in metrics.splitlines() if 'endpoint="/v2/models/{model}/infer"' in line]
    assert any(line.endswith(" 2.0") and f'service="{MODEL}"' in line for line in counted), counted


PRICED = Tariff(
    tariff_id="t",
    service=ServiceName(MODEL),
    priority=PriorityClass.INTERACTIVE,
    valid_from="2020-01-01",
    request_micro_won=7,
    image_micro_won=1_000,
    sample_micro_won=10,
)


def rows(count: int, name: str = "x") -> dict:
    return {"name": name, "shape": [count, 2], "datatype": "FP32", "data": [0.5, 1.5] * count}


@pytest.mark.parametrize(
    ("entry", "inputs", "counted", "charge"),
    [
        ({}, [rows(3)], (0, 1), 7 + 10),
        ({"unit_input": "x"}, [rows(3)], (0, 3), 7 + 30),
        ({"unit_input": "x"}, [rows(9, "state"), rows(3)], (0, 3), 7 + 30),
        ({"unit_input": "x", "unit": Unit.IMAGE}, [rows(2)], (2, 0), 7 + 2_000),
        ({"unit": Unit.IMAGE}, [rows(2)], (1, 0), 7 + 1_000),
        ({"unit_input": "other"}, [rows(2)], (0, 1), 7 + 10),
        (
            {"unit_input": "text", "unit": Unit.IMAGE},
            [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["one file", "another"]}],
            (2, 0),
            7 + 2_000,
        ),
        ({"unit_input": "x"}, [{**X, "shape": [], "data": 1.5}], None, None),
        ({"unit_input": "x"}, [{**X, "shape": [0], "data": []}], (0, 0), 7),
    ],
)
def test_rows_are_counted_and_charged_as_the_catalog_says(
    known: Lab, engine: RunningEngine, entry, inputs, counted, charge
) -> None:
    known.models[-1] = msgspec.structs.replace(known.models[-1], **entry)
    known.tariffs.append(PRICED)
    site = known.site()
    serve(site, engine.endpoint)
    known.start(site)
    answer = infer(site, *inputs)
    if counted is None:
        assert answer.status == 400, "the engine refuses it, so it is not counted"
        assert site.events() == []
        return
    assert answer.status == 200, answer.body
    (event,) = site.events()
    assert ((event.images, event.samples), event.charge_micro_won) == (counted, charge)


def test_more_rows_than_can_be_counted_are_refused(known: Lab, engine: RunningEngine) -> None:
    known.models[-1] = msgspec.structs.replace(known.models[-1], unit_input="x")
    site = known.site()
    serve(site, engine.endpoint)
    known.start(site)
    count = ROWS_MAX + 1
    tensor = {"name": "x", "shape": [count, 1], "datatype": "UINT8", "parameters": {"binary_data_size": count}}
    answer = binary(site, {"inputs": [tensor]}, bytes(count))
    assert (answer.status, answer.json["param"]) == (400, "x")
    assert str(ROWS_MAX) in answer.json["error"]
    # A shape that its values do not bear out is the engine's to refuse, whatever it says.
    assert infer(site, {**X, "shape": [2**62]}).status == 400
    assert site.events() == []


def test_the_most_that_tensors_can_cost_counts_every_row() -> None:
    model = CatalogEntry(name="m", task=Task.INFER, title="t", licence="l", unit_input="x")
    request = read_infer(json.dumps({"inputs": [rows(3)]}).encode(), None)
    asked = ApiRequest(endpoint=Endpoint.INFER, service=MODEL, fields={}, form=request)
    assert worst_charge(PRICED, asked, 0, 0, model) == 7 + 30


def test_a_key_of_idempotence_covers_the_path(site: LabSite) -> None:
    headers = {"Idempotency-Key": "one"}
    first = site.request("POST", PATH, {"inputs": [X]}, key=CITY.key, headers=headers)
    again = site.request("POST", PATH, {"inputs": [X]}, key=CITY.key, headers=headers)
    other = site.request("POST", f"/v2/models/{MODEL}/versions/3/infer", {"inputs": [X]}, key=CITY.key, headers=headers)
    assert (first.status, again.status, other.status) == (200, 409, 409)
    assert "was answered" in again.json["error"]
    assert "belongs to another request" in other.json["error"]
    assert len(site.events()) == 1


# --- what goes wrong


def test_a_failing_engine_is_tried_again_or_named(site: LabSite, engine: RunningEngine) -> None:
    with behaving(engine, fail_next=1):
        answer = infer(site, X)
    assert (answer.status, answer.json["code"]) == (502, "upstream_failed")
    with behaving(engine, fail_next=1):
        serve(site, engine.endpoint)
        site.refresh()
        assert infer(site, X).status == 200
    assert [event.attempt for event in site.events()] == [2]


def test_without_a_replica_it_says_when_to_come_back(known: Lab) -> None:
    site = known.site()
    known.start(site)
    for method, path, body in (
        ("POST", PATH, {"inputs": [X]}),
        ("GET", f"/v2/models/{MODEL}", None),
        ("GET", f"/v2/models/{MODEL}/ready", None),
    ):
        answer = site.request(method, path, body, key=CITY.key)
        assert (answer.status, answer.json["code"]) == (503, "no_replica"), path
        assert int(answer.headers["retry-after"]) >= 1
    assert site.request("GET", "/v2/health/ready", key=CITY.key).status == 200
    site.closed_reason = "the disk is full"
    site.refresh()
    closed = site.request("GET", "/v2/health/ready", key=CITY.key)
    assert (closed.status, closed.json["code"]) == (429, "overloaded")
    assert site.request("GET", "/v2/health/live", key=CITY.key).status == 200


def test_an_engine_that_wants_another_key_fails_the_attempt(known: Lab, engine: RunningEngine) -> None:
    site = known.site()
    serve(site, engine.endpoint, key="wrong")
    known.start(site)
    assert (infer(site, X).status, site.events()) == (502, [])


@pytest.mark.parametrize(
    "answer",
    [
        b"{",
        b"{}",
        b'{"outputs": [{"name": "x", "shape": [1], "datatype": "FP32", "parameters": {"binary_data_size": 4}}]}',
        b'{"outputs": [{"name": "x", "shape": [1], "datatype": "FP32"}]}',
    ],
)
def test_an_answer_that_is_none_is_the_engines_failure(known: Lab, answer: bytes) -> None:
    site = known.site()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serve(site, f"http://127.0.0.1:{listener.getsockname()[1]}")
        known.start(site)
        with site.connect() as client:
            client.sendall(raw_infer())
            listener.settimeout(10)
            upstream, _ = listener.accept()
            with upstream:
                upstream.settimeout(10)
                asked = b""
                while not asked.endswith(b"}]}"):
                    asked += upstream.recv(65536)
                assert asked.startswith(f"POST /v2/models/{MODEL}/infer HTTP/1.1\r\n".encode())
                upstream.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(answer), answer))
                said = RawClient(client).answer()
    assert (said.status, json.loads(said.body)["code"]) == (502, "upstream_failed")
    assert site.events() == []


def test_a_client_that_leaves_frees_the_engine_and_is_written_down(site: LabSite, engine: RunningEngine) -> None:
    with behaving(engine, hang_next=1):
        client = site.connect()
        client.sendall(raw_infer())
        assert site.worker is not None
        worker = site.worker
        wait_until(lambda: worker.meter.in_flight == 1, "the engine is asked")
        wait_until(lambda: engine.client.get("/twin/behaviour").json()["hang_next"] == 0, "the engine hangs")
        client.close()
        (event,) = wait_until(site.events, "the event is written")
        assert worker.meter.in_flight == 0
    assert (event.outcome, event.prompt_tokens) == (Outcome.CLIENT_GONE, 0)
    assert infer(site, X).status == 200


# --- other sites


@pytest.fixture
def entry(known: Lab, site: LabSite) -> LabSite:
    entry = known.site("gumi")
    entry.peers, site.peers = ["daegu"], ["gumi"]
    known.start(entry)
    site.refresh()
    return entry


def test_a_request_spills_to_a_peer_with_its_bytes(entry: LabSite, site: LabSite) -> None:
    array = np.linspace(0, 1, 1000, dtype=np.float32)
    tensor = triton.InferInput("numbers", array.shape, "FP32")
    tensor.set_data_from_numpy(array)
    with official(entry) as client:
        assert client.is_model_ready(MODEL, headers=auth())
        assert client.get_model_metadata(MODEL, "3", headers=auth())["versions"] == ["3"]
        found = client.infer(MODEL, [tensor], request_id="r", model_version="3", headers=auth())
        assert found.get_response()["id"] == "r"
        assert np.array_equal(found.as_numpy("numbers"), array)
    assert entry.events() == []
    (event,) = site.events()
    assert (event.entry_site, event.site, event.hops, event.outcome) == ("gumi", "daegu", 1, Outcome.COMPLETED)
    answer = infer(entry, X)
    assert (answer.headers["x-madang-site"], answer.json["model_name"]) == ("daegu", MODEL)
    assert answer.headers["x-madang-receipt"].startswith("gumi-")
    wrong = infer(entry, {**X, "data": [1, 2, 3]})
    assert (wrong.status, type(wrong.json["error"])) == (400, str)


def test_a_peer_believes_no_other_path_under_a_pass(entry: LabSite, site: LabSite) -> None:
    """The pass names the path with the model in it, so that nobody on the way asks another model in its name."""
    body = json.dumps({"inputs": [X]}).encode()
    session, now_s = session_between("gumi", "daegu"), time.time()
    sealed = seal_pass(
        Pass(
            request_id=RequestId("gumi-0190b6a0000000000000000000000001"),
            attempt=1,
            tenant_id=TenantId("city"),
            key_id=KeyId("city"),
            service=ServiceName(MODEL),
            residency=CITY.residency,
            data_class="open",
            entry_site=SiteId("gumi"),
            serving_site=SiteId("daegu"),
            hops=1,
            issued_at_s=now_s,
            deadline_s=now_s + 10,
            path=PATH,
            is_stream=False,
            body_sha256=hashlib.sha256(body).digest(),
            kid=session.kid,
        ),
        session.key,
    )
    answer = site.request("POST", "/v2/models/other/infer", body, port="peer", headers={PASS_HEADER: sealed})
    assert answer.status == 401
    assert type(answer.json["error"]) is str
    assert "x-madang-refused" in answer.headers
    assert site.events() == []


def test_a_peer_whose_engine_fails_refuses(entry: LabSite, site: LabSite, engine: RunningEngine) -> None:
    with behaving(engine, fail_next=1):
        answer = infer(entry, X)
    assert (answer.status, answer.json["code"]) == (503, "no_replica")
    assert (entry.events(), site.events()) == ([], [])


def test_a_peer_that_dies_after_it_took_a_request_is_superseded(entry: LabSite) -> None:
    """Only where something was used: what a model looks like is not metered, so nothing is to be superseded."""
    with socket.create_server(("127.0.0.1", 0)) as peer:
        peer.settimeout(10)
        entry.peer_urls["daegu"] = f"http://127.0.0.1:{peer.getsockname()[1]}"
        entry.refresh()
        for method, path in (("GET", f"/v2/models/{MODEL}"), ("POST", PATH)):
            with entry.connect() as client:
                head = f"{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {CITY.key}\r\n\r\n"
                client.sendall(raw_infer() if method == "POST" else head.encode())
                upstream, _ = peer.accept()
                with upstream:
                    assert upstream.recv(65536).startswith(f"{method} {path} ".encode())
                    upstream.sendall(b"HTTP/1.1 102 Processing\r\n\r\n")
                answer = RawClient(client).answer()
            assert answer.status == 502
            assert len(entry.events()) == (method == "POST")
    assert [(event.outcome, event.attempt) for event in entry.events()] == [(Outcome.ABANDONED, 2)]


def test_an_entry_that_may_not_read_passes_the_request_through(known: Lab, site: LabSite) -> None:
    passing = LabTenant("passing", residency("site", "daegu", transit=True))
    known.tenants.append(passing)
    entry = known.site("gumi")
    entry.peers, site.peers = ["daegu"], ["gumi"]
    known.start(entry)
    site.refresh()
    sized = {"name": "x", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}
    answer = binary(entry, {"inputs": [sized], "parameters": {"binary_data_output": True}}, b"12345678", passing.key)
    assert answer.status == 200
    assert answer.body.endswith(b"12345678")
    assert entry.request("GET", f"/v2/models/{MODEL}", key=passing.key).json["versions"] == ["3"]
    assert [event.entry_site for event in site.events()] == ["gumi"]


def test_two_requests_in_one_segment_are_both_answered(site: LabSite) -> None:
    sized = {"name": "x", "shape": [1], "datatype": "FP32", "parameters": {"binary_data_size": 4}}
    text = json.dumps({"inputs": [sized]})
    one = (
        f"POST {PATH} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {CITY.key}\r\ncontent-length: {len(text) + 4}\r\n"
        f"inference-header-content-length: {len(text)}\r\n\r\n{text}".encode()
    )
    with site.connect() as sock:
        sock.sendall(one + struct.pack("<f", 1.0) + one + struct.pack("<f", 2.0))
        client = RawClient(sock)
        assert (client.answer().status, client.answer().status) == (200, 200)
    assert len(site.events()) == 2
