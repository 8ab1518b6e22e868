"""Every engine and every twin keeps the engine contract, as real processes."""

import contextlib
import json

import pytest
from tests.engine.engine_replicas import CHAT, EMBEDDING, SPEECH, weights_of

from madang.engine.contract import Verdict
from madang.engine.embed import driver as embed
from madang.engine.llama_cpp import driver as llama_cpp
from madang.engine.whisper import driver as whisper
from madang.testing.engine_contract import EngineDriverContract, run_engine

CHAT_BODIES = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "안녕하세요"}], "max_tokens": 4},
    "/v1/completions": {"prompt": "대한민국의 수도는", "max_tokens": 4},
}
EMBED_BODIES = {"/v1/embeddings": {"input": ["서버실 온도가 높습니다", "query: 온도"], "model": "x"}}
SPEECH_BODIES = {"/v1/audio/transcriptions": {"model": "x", "audio": bytes(64_000)}}

pytestmark = pytest.mark.peer


@contextlib.contextmanager
def ready_engine(cls, folder):
    weights = folder / "weights"
    if cls.is_simulated:
        weights.write_text("{}", encoding="utf-8")
    else:
        weights = weights_of(cls.spec)
    with run_engine(cls.driver, cls.spec, weights, folder) as engine:
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


@pytest.mark.model
class TestLlama(EngineDriverContract):
    driver = llama_cpp.LlamaCppDriver()
    spec = CHAT
    is_simulated = False
    bodies = CHAT_BODIES


@pytest.mark.model
class TestEmbed(EngineDriverContract):
    driver = embed.EmbedDriver()
    spec = EMBEDDING
    is_simulated = False
    bodies = EMBED_BODIES
