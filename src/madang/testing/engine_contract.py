"""The contract that every engine driver keeps, as tests to inherit, and how a test runs an engine.

Owns what `madang.engine.contract` promises, checked against real child processes on loopback: engines and their
twins alike. Refuses to know any engine: a subclass gives driver, replica and weights.
"""

# ruff: noqa: D102  the name of a test is its sentence

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from madang.engine.contract import EngineDriver, EngineReading, LaunchRequest, Verdict
from madang.model import ReplicaSpec
from madang.runtime.http_trust import trust_for
from madang.testing.ports import free_port

HOST = "127.0.0.1"
KEY = "engine-key-of-a-test"
_POLL_S = 0.02


class RunningEngine:
    """An engine that a test started."""

    def __init__(self, driver: EngineDriver, process: subprocess.Popen[bytes], port: int) -> None:
        self.driver = driver
        self.process = process
        self.endpoint = f"http://{HOST}:{port}"
        # No kept connections: llama.cpp closes an idle one after five seconds, which a slow test runs into.
        self.client = httpx.Client(
            base_url=self.endpoint,
            headers={"authorization": f"Bearer {KEY}"},
            timeout=60,
            limits=httpx.Limits(max_keepalive_connections=0),
            trust_env=False,
            verify=trust_for(self.endpoint),
        )

    def probe(self) -> EngineReading:
        """Return what the driver's probe says now."""
        return asyncio.run(self.driver.probe(self.endpoint, KEY))

    def wait_for(self, verdict: Verdict, wait_s: float) -> EngineReading:
        """Return the first reading with `verdict`; raises AssertionError after `wait_s` or when the engine ends."""
        deadline_s = time.monotonic() + wait_s
        while True:
            reading = self.probe()
            if reading.verdict is verdict:
                return reading
            assert time.monotonic() < deadline_s, f"still {reading} after {wait_s} s"
            assert self.process.poll() is None or verdict is Verdict.SILENT, f"ended: {self.process.returncode}"
            time.sleep(_POLL_S)


def make_request(
    spec: ReplicaSpec,
    weights: Path | dict[str, Path],
    key_file: Path,
    port: int,
    devices: tuple[str, ...] = ("cpu0",),
) -> LaunchRequest:
    """Return a launch request for two threads; one path of weights stands for every file."""
    return LaunchRequest(
        spec=spec,
        files=weights if isinstance(weights, dict) else {file.name: weights for file in spec.artifact.files},
        host=HOST,
        port=port,
        key_file=key_file,
        devices=devices,
        threads=2,
        prefill_threads=2,
        private_bytes_max=4 * 1024**3,
    )


@contextlib.contextmanager
def run_engine(
    driver: EngineDriver,
    spec: ReplicaSpec,
    weights: Path | dict[str, Path],
    folder: Path,
    devices: tuple[str, ...] = ("cpu0",),
) -> Iterator[RunningEngine]:
    """Start an engine as its driver says, and end it however the test goes."""
    key_file = folder / "key"
    key_file.write_text(KEY, encoding="ascii")
    port = free_port()
    plan = driver.plan_launch(make_request(spec, weights, key_file, port, devices))
    with (folder / "engine.log").open("wb") as log:
        process = subprocess.Popen(plan.argv, env=os.environ | plan.env, cwd=folder, stdout=log, stderr=log)
    engine = RunningEngine(driver, process, port)
    try:
        yield engine
    finally:
        engine.client.close()
        process.kill()
        process.wait()


class EngineDriverContract:
    """Inherit, give the four facts below, and fixtures `engine` and `fresh_engine` that yield a ready RunningEngine.

    The tests of a class may share `engine`; `fresh_engine` is ended by its test.
    """

    driver: EngineDriver
    spec: ReplicaSpec
    is_simulated: bool
    bodies: dict[str, dict[str, Any]]
    """A good request body for each endpoint of the capabilities."""
    devices: tuple[str, ...] = ("cpu0",)
    """What a chip driver would grant."""

    def content(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return how a body is sent, as httpx calls it; an engine that takes forms overrides it."""
        return {"json": body}

    def make_weights(self, folder: Path) -> Path | dict[str, Path]:
        """Return files for a launch plan; an engine that reads them to plan overrides it."""
        return folder / "weights"

    def path(self, endpoint: str) -> str:
        """Return where an endpoint is; an engine whose paths name the model overrides it."""
        return endpoint

    def check_usage(self, usage: dict[str, Any]) -> None:
        """Fail when an answer's usage is none; an engine that counts no tokens overrides it."""
        assert usage["prompt_tokens"] > 0

    def check_answer(self, answer: Any) -> None:
        """Fail when a decoded answer is none; an engine of another protocol than OpenAI's overrides it."""
        self.check_usage(answer["usage"])
        assert answer["model"] == self.spec.service

    def complaint(self, answer: Any) -> str:
        """Return the words of a decoded refusal; an engine of another protocol than OpenAI's overrides it."""
        return str(answer["error"]["message"])

    def test_no_secret_stands_in_the_command_line(self, tmp_path: Path) -> None:
        weights = self.make_weights(tmp_path)
        request = make_request(self.spec, weights, tmp_path / "key", 1, self.devices)
        (tmp_path / "key").write_text(KEY, encoding="ascii")
        plan = self.driver.plan_launch(request)
        assert not any(KEY in text for text in (*plan.argv, *plan.env.values()))
        assert self.driver.plan_launch(request) == plan

    def test_the_specification_is_accepted(self) -> None:
        self.driver.check(self.spec)

    def test_nothing_there_is_silent(self) -> None:
        reading = asyncio.run(self.driver.probe(f"http://{HOST}:{free_port()}", KEY))
        assert reading.verdict is Verdict.SILENT
        assert reading.reason

    def test_it_says_that_it_is_ready_idle_and_whether_it_is_simulated(self, engine: RunningEngine) -> None:
        reading = engine.probe()
        assert reading.verdict is Verdict.READY
        assert reading.is_idle
        assert reading.is_simulated is self.is_simulated

    def test_every_endpoint_of_its_capabilities_answers(self, engine: RunningEngine) -> None:
        assert set(self.bodies) == set(self.driver.capabilities_for(self.spec).endpoints)
        for path, body in self.bodies.items():
            answer = engine.client.post(self.path(path), **self.content(body))
            assert answer.status_code == 200, answer.text
            self.check_answer(answer.json())

    def test_streams_end_with_usage_and_done(self, engine: RunningEngine) -> None:
        for path, body in self.bodies.items() if self.driver.capabilities_for(self.spec).has_streaming else ():
            streamed = body | {"stream": True, "stream_options": {"include_usage": True}}
            answer = engine.client.post(self.path(path), **self.content(streamed))
            events = [line for line in answer.text.split("\n\n") if line.startswith("data: ")]
            assert events[-1] == "data: [DONE]"
            assert '"usage"' in events[-2]
            assert len(events) >= 4

    def test_without_its_key_it_refuses(self, engine: RunningEngine) -> None:
        for path, body in self.bodies.items():
            for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Bearer {KEY}x"}):
                content = self.content(body)
                content["headers"] = content.get("headers", {}) | headers
                answer = httpx.post(
                    engine.endpoint + self.path(path), **content, trust_env=False, verify=trust_for(engine.endpoint)
                )
                assert answer.status_code == 401

    def test_bad_requests_are_the_callers_fault(self, engine: RunningEngine) -> None:
        for path in self.bodies:
            for content in (b"{", b"[]", b"{}", b'"x"'):
                answer = engine.client.post(
                    self.path(path), content=content, headers={"content-type": "application/json"}
                )
                assert 400 <= answer.status_code < 500, (content, answer.text)
                assert self.complaint(answer.json())
        assert engine.client.get("/v1/no-such-path").status_code == 404

    def test_introspection_of_others_requests_is_off(self, engine: RunningEngine) -> None:
        assert engine.client.get("/slots").status_code in (404, 501)

    def test_sigterm_ends_it_in_time(self, fresh_engine: RunningEngine) -> None:
        fresh_engine.process.send_signal(signal.SIGTERM)
        fresh_engine.process.wait(self.driver.times.term_s_max)
        assert fresh_engine.probe().verdict is Verdict.SILENT
