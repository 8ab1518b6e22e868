"""Every engine and every twin keeps the engine contract, as real processes."""

import contextlib

import pytest
from tests.engine.engine_replicas import CHAT, EMBEDDING, weights_of

from madang.engine.contract import Verdict
from madang.engine.embed import driver as embed
from madang.engine.llama_cpp import driver as llama_cpp
from madang.testing.engine_contract import EngineDriverContract, run_engine

CHAT_BODIES = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "안녕하세요"}], "max_tokens": 4},
    "/v1/completions": {"prompt": "대한민국의 수도는", "max_tokens": 4},
}
EMBED_BODIES = {"/v1/embeddings": {"input": ["서버실 온도가 높습니다", "query: 온도"], "model": "x"}}

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
