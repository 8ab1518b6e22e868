"""Every engine and every twin keeps the engine contract, as real processes."""

import contextlib
import importlib.util
import json
import struct
from pathlib import Path

import pytest
from tests import loopback
from tests.engine.engine_replicas import CHAT, EMBEDDING, FILES, SPEECH, fetched, weights_of
from tests.engine.vendor_replicas import (
    CUDA,
    EMBED,
    EXTERNAL,
    FURIOSA,
    FURIOSA_HERE,
    FURIOSA_OLD,
    OCR,
    RBLN,
    VLLM_HERE,
    make_files,
)

from madang.engine.contract import Verdict
from madang.engine.embed import driver as embed
from madang.engine.external import driver as external
from madang.engine.furiosa_llm import driver as furiosa_llm
from madang.engine.llama_cpp import driver as llama_cpp
from madang.engine.onnx import driver as onnx
from madang.engine.settings import EngineRuntime, ExternalEndpoint
from madang.engine.tesseract import driver as tesseract
from madang.engine.vllm import driver as vllm
from madang.engine.whisper import driver as whisper
from madang.testing.engine_contract import EngineDriverContract, run_engine

CHAT_BODIES = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "안녕하세요"}], "max_tokens": 4},
    "/v1/completions": {"prompt": "대한민국의 수도는", "max_tokens": 4},
}
EMBED_BODIES = {"/v1/embeddings": {"input": ["서버실 온도가 높습니다", "query: 온도"], "model": "x"}}
SPEECH_BODIES = {"/v1/audio/transcriptions": {"model": "x", "audio": bytes(64_000)}}
INFER_PATH = "/v2/models/{model}/infer"
NUMBERS = {"name": "numbers", "shape": [1, 4], "datatype": "FP32", "data": [1.5, 2, 3, 4]}
TEXT = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["가", "b"]}
FILE_BYTES = {"name": "bytes", "shape": [1, 2048], "datatype": "INT32", "data": [256] * 2048}
ECHO_BODIES = {INFER_PATH: {"inputs": [NUMBERS, TEXT]}}
FILE_BODIES = {INFER_PATH: {"inputs": [FILE_BYTES]}}

pytestmark = pytest.mark.peer


@contextlib.contextmanager
def ready_engine(cls, folder):
    weights = cls().make_weights(folder)
    if isinstance(weights, Path):
        weights.write_text("{}", encoding="utf-8")
    if not cls.is_simulated:
        weights = fetched(cls.spec.artifact.files[0]) if cls.spec is FILES else weights_of(cls.spec)
    with run_engine(cls.driver, cls.spec, weights, folder, cls.devices) as engine:
        engine.wait_for(Verdict.READY, 60)
        yield engine


@pytest.fixture(scope="class")
def engine(request, tmp_path_factory):
    with ready_engine(request.cls, tmp_path_factory.mktemp("engine")) as engine:
        yield engine


@pytest.fixture
def fresh_engine(request, tmp_path):
    with ready_engine(request.cls, tmp_path) as engine:
        yield engine


class TestLlamaTwin(EngineDriverContract):
    driver = llama_cpp.LlamaCppDriver(llama_cpp.TWIN_PROGRAM)
    spec = CHAT
    is_simulated = True
    bodies = CHAT_BODIES


class TestEmbedTwin(EngineDriverContract):
    driver = embed.EmbedDriver(embed.TWIN_PROGRAM)
    spec = EMBEDDING
    is_simulated = True
    bodies = EMBED_BODIES


class TestWhisperTwin(EngineDriverContract):
    driver = whisper.WhisperDriver(whisper.TWIN_PROGRAM)
    spec = SPEECH
    is_simulated = True
    bodies = SPEECH_BODIES

    def content(self, body):
        return {"data": {"model": body["model"]}, "files": {"file": ("a.wav", body["audio"])}}

    def check_usage(self, usage):
        assert usage == {"type": "duration", "seconds": 2}

    def test_a_stream_says_the_same_as_the_whole(self, engine):
        sound = {"file": ("a.wav", bytes(64_000))}
        whole = engine.client.post("/v1/audio/transcriptions", data={"model": "x"}, files=sound).json()["text"]
        streamed = engine.client.post("/v1/audio/transcriptions", data={"model": "x", "stream": "true"}, files=sound)
        events = [json.loads(line.removeprefix("data: ")) for line in streamed.text.split("\n\n") if line]
        assert "".join(event["delta"] for event in events[:-1]).strip() == events[-1]["text"] == whole
        assert events[-1]["duration_s"] == 2.0


class InferContract(EngineDriverContract):
    """The contract in the words of the Open Inference Protocol."""

    def path(self, endpoint):
        return endpoint.replace("{model}", self.spec.service)

    def check_answer(self, answer):
        assert answer["model_name"] == self.spec.service
        assert all(one["data"] for one in answer["outputs"])

    def complaint(self, answer):
        return answer["error"]

    def test_it_says_what_its_model_takes_and_gives(self, engine):
        found = engine.client.get(self.path("/v2/models/{model}")).json()
        assert found["name"] == self.spec.service
        assert all({"name", "datatype", "shape"} == set(one) for one in (*found["inputs"], *found["outputs"]))
        (body,) = self.bodies.values()
        assert {one["name"] for one in body["inputs"]} == {one["name"] for one in found["inputs"]}

    def test_health_in_the_protocols_words(self, engine):
        for path in ("/v2/health/live", "/v2/health/ready", "/v2", self.path("/v2/models/{model}/ready")):
            assert engine.client.get(path).status_code == 200, path


class TestOnnxTwin(InferContract):
    driver = onnx.OnnxDriver(onnx.TWIN_PROGRAM)
    spec = FILES
    is_simulated = True
    bodies = ECHO_BODIES

    def test_tensors_come_back_in_the_form_that_was_asked_for(self, engine):
        asked = {"inputs": [NUMBERS, TEXT], "outputs": [{"name": "text", "parameters": {"binary_data": True}}]}
        answer = engine.client.post(self.path(INFER_PATH), json=asked)
        length = int(answer.headers["inference-header-content-length"])
        assert answer.content[length:] == b"\x03\0\0\0" + "가".encode() + b"\x01\0\0\0b"
        assert [one["name"] for one in json.loads(answer.content[:length])["outputs"]] == ["text"]


class VendorContract(EngineDriverContract):
    """The contract for engines whose twins are started through `vendor_start`."""

    is_simulated = True
    bodies = CHAT_BODIES

    def make_weights(self, folder):
        return make_files(folder, self.spec)

    def test_without_its_key_it_still_tells_health_and_load(self, engine):
        assert loopback.get(engine.endpoint + "/health", trust_env=False).status_code == 200
        assert engine.driver.manifest.metrics.running[0] in loopback.get(engine.endpoint + "/metrics").text

    def test_another_name_than_the_services_is_refused(self, engine):
        for path, body in self.bodies.items():
            if "input" not in body:
                assert engine.client.post(path, json=body | {"model": "other"}).status_code == 404


class TestVllmTwin(VendorContract):
    driver = vllm.VllmDriver(VLLM_HERE, vllm.TWIN_PROGRAM)
    spec = CUDA

    def test_several_answers_to_one_request(self, engine):
        body = CHAT_BODIES["/v1/chat/completions"] | {"n": 3}
        assert len(engine.client.post("/v1/chat/completions", json=body).json()["choices"]) == 3


class TestVllmEmbeddingTwin(VendorContract):
    driver = vllm.VllmDriver(VLLM_HERE, vllm.TWIN_PROGRAM)
    spec = EMBED
    bodies = EMBED_BODIES


class TestVllmRebellionsTwin(VendorContract):
    driver = vllm.VllmDriver(VLLM_HERE, vllm.TWIN_PROGRAM)
    spec = RBLN
    devices = ("rbln0", "rbln1")


class TestFuriosaTwin(VendorContract):
    driver = furiosa_llm.FuriosaLlmDriver(FURIOSA_HERE, furiosa_llm.TWIN_PROGRAM)
    spec = FURIOSA
    devices = ("npu:0",)

    def complaint(self, answer):
        return answer["message"]

    def test_n_must_be_one(self, engine):
        body = CHAT_BODIES["/v1/chat/completions"] | {"n": 2}
        assert engine.client.post("/v1/chat/completions", json=body).status_code == 400


class TestFuriosaOldTwin(TestFuriosaTwin):
    driver = furiosa_llm.FuriosaLlmDriver(EngineRuntime(version="2026.2.0"), furiosa_llm.TWIN_PROGRAM)
    spec = FURIOSA_OLD
    devices = ("npu:1:0-3",)


PICTURE = b"\x89PNG\r\n\x1a\n and so on"
PICTURE_TENSOR = {
    "name": "image",
    "shape": [1],
    "datatype": "BYTES",
    "parameters": {"binary_data_size": 4 + len(PICTURE)},
}

OCR_BODIES = {INFER_PATH: {"inputs": [PICTURE_TENSOR]}}


class TestTesseractTwin(InferContract):
    driver = tesseract.TesseractDriver(None, tesseract.TWIN_PROGRAM)
    spec = OCR
    is_simulated = True
    bodies = OCR_BODIES

    def content(self, body):
        header = json.dumps(body).encode()
        tail = struct.pack("<I", len(PICTURE)) + PICTURE
        return {"content": header + tail, "headers": {"inference-header-content-length": str(len(header))}}

    def make_weights(self, folder):
        return make_files(folder, self.spec)


class TestExternalTwin(EngineDriverContract):
    driver = external.ExternalDriver(
        {"a": ExternalEndpoint(url="https://llm.example:8443", is_at_site=True)}, external.TWIN_PROGRAM
    )
    spec = EXTERNAL
    is_simulated = True
    bodies = CHAT_BODIES

    def make_weights(self, folder):
        return {}


@pytest.mark.model
@pytest.mark.timeout(300)
@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="the extra `onnx` is not installed")
class TestOnnx(InferContract):
    driver = onnx.OnnxDriver()
    spec = FILES
    is_simulated = False
    bodies = FILE_BODIES


@pytest.mark.model
class TestLlama(EngineDriverContract):
    driver = llama_cpp.LlamaCppDriver()
    spec = CHAT
    is_simulated = False
    bodies = CHAT_BODIES

    @pytest.mark.deep  # the model is read once more for it
    def test_sigterm_ends_it_in_time(self, fresh_engine):
        super().test_sigterm_ends_it_in_time(fresh_engine)


@pytest.mark.model
class TestEmbed(EngineDriverContract):
    driver = embed.EmbedDriver()
    spec = EMBEDDING
    is_simulated = False
    bodies = EMBED_BODIES
