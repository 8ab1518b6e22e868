"""The twins' faults, over their real protocol: what chaos tests rely on."""

import json
import time

import httpx
import pytest
from tests.engine.engine_replicas import CHAT

from madang.engine.contract import Verdict
from madang.engine.llama_cpp.driver import TWIN_PROGRAM, LlamaCppDriver
from madang.testing.engine_contract import run_engine

pytestmark = pytest.mark.peer
BODY = {"messages": [{"role": "user", "content": "hi"}], "stream": True}


@pytest.fixture
def start(tmp_path):
    def start(**behaviour):
        weights = tmp_path / "weights"
        weights.write_text(json.dumps(behaviour), encoding="utf-8")
        return run_engine(LlamaCppDriver(TWIN_PROGRAM), CHAT, weights, tmp_path)

    return start


def test_it_starts_fast_and_loads_as_slowly_as_it_is_told(start):
    with start(load_s=0.5) as engine:
        reading = engine.wait_for(Verdict.LOADING, 5)
        assert "Loading" in reading.reason
        assert engine.client.post("/v1/chat/completions", json=BODY).status_code == 503
        engine.wait_for(Verdict.READY, 5)


def test_it_dies_while_loading(start):
    with start(exit_on_load=3) as engine:
        assert engine.process.wait(5) == 3


def test_it_dies_in_the_middle_of_a_stream(start):
    with start(die_after_tokens=2) as engine:
        engine.wait_for(Verdict.READY, 5)
        with pytest.raises(httpx.RemoteProtocolError):
            engine.client.post("/v1/chat/completions", json=BODY)
        assert engine.process.wait(5) == 70


def test_faults_are_switched_while_it_runs(start):
    with start() as engine:
        engine.wait_for(Verdict.READY, 5)
        change = engine.client.post("/twin/behaviour", json={"fail_next": 1, "health": "sick"})
        assert change.json()["fail_next"] == 1
        assert engine.probe().verdict is Verdict.SICK
        assert engine.client.post("/v1/chat/completions", json=BODY).status_code == 500
        assert engine.client.post("/v1/chat/completions", json=BODY).status_code == 200
        wrong = engine.client.post("/twin/behaviour", json={"fail": 1})
        assert (wrong.status_code, "fail_next" in wrong.text) == (400, True)


@pytest.mark.parametrize("behaviour", [{"hang_next": 1}, {"stall_after_tokens": 1}])
def test_a_hanging_request_is_let_go_when_its_client_leaves(start, behaviour):
    with start(**behaviour) as engine:
        engine.wait_for(Verdict.READY, 5)
        with pytest.raises(httpx.ReadTimeout):
            engine.client.post("/v1/chat/completions", json=BODY, timeout=0.3)
        deadline_s = time.monotonic() + 60
        while not engine.probe().is_idle:
            assert time.monotonic() < deadline_s


def test_streams_are_paced_and_cancelled(start):
    with start(token_period_s=0.05, answer_tokens=10_000) as engine:
        engine.wait_for(Verdict.READY, 5)
        with engine.client.stream("POST", "/v1/chat/completions", json=BODY) as answer:
            lines = answer.iter_lines()
            for _ in range(6):
                next(lines)
            assert engine.probe().running == 1
        deadline_s = time.monotonic() + 60
        while not engine.probe().is_idle:
            assert time.monotonic() < deadline_s


def test_every_answer_says_that_it_is_simulated(start):
    with start() as engine:
        engine.wait_for(Verdict.READY, 5)
        for answer in (
            engine.client.get("/health"),
            engine.client.get("/v1/models"),
            engine.client.post("/v1/chat/completions", json=BODY),
            engine.client.post("/v1/chat/completions", content=b"{"),
        ):
            assert answer.headers["x-madang-simulated"] == "1"
        assert '"system_fingerprint": "simulated"' in engine.client.post("/v1/chat/completions", json=BODY).text
