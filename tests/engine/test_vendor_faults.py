"""Every fault of the vendors' twins, as processes: what a node sees of each."""

import json
import time

import httpx
import pytest
from tests import loopback
from tests.engine.vendor_replicas import CUDA, FURIOSA, FURIOSA_HERE, OCR, RBLN, VLLM_HERE, make_files

from madang.engine.contract import Verdict
from madang.engine.furiosa_llm import driver as furiosa_llm
from madang.engine.tesseract import driver as tesseract
from madang.engine.vllm import driver as vllm
from madang.testing.engine_contract import KEY, run_engine

pytestmark = pytest.mark.peer
BODY = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
VLLM = (vllm.VllmDriver(VLLM_HERE, vllm.TWIN_PROGRAM), CUDA, ("cpu0",))
ON_RBLN = (VLLM[0], RBLN, ("rbln0", "rbln1"))
ON_RNGD = (furiosa_llm.FuriosaLlmDriver(FURIOSA_HERE, furiosa_llm.TWIN_PROGRAM), FURIOSA, ("npu:0",))
OCR_TWIN = (tesseract.TesseractDriver(None, tesseract.TWIN_PROGRAM), OCR, ("cpu0",))
TEXT = pytest.mark.parametrize("who", [VLLM, ON_RNGD], ids=["vllm", "furiosa_llm"])


def start(who, folder, **behaviour):
    driver, spec, devices = who
    return run_engine(driver, spec, make_files(folder, spec, **behaviour), folder, devices)


@TEXT
def test_nothing_listens_while_it_loads_and_then_it_is_ready(tmp_path, who):
    with start(who, tmp_path, load_s=1.0) as engine:
        assert engine.probe().verdict is Verdict.SILENT
        assert engine.wait_for(Verdict.READY, 20).is_simulated


@pytest.mark.parametrize(
    ("who", "word", "code", "symptom"),
    [
        (VLLM, "oom", 1, "torch.OutOfMemoryError: CUDA out of memory"),
        (VLLM, "oom", 1, "RuntimeError: Engine core initialization failed. See root cause above."),
        (VLLM, "oom_kill", -9, None),
        (ON_RBLN, "version", 1, "rebel.core.exception.RBLNRuntimeError"),
        (ON_RNGD, "version", 1, "unknown variant"),
        (ON_RNGD, "busy", 1, "device or resource busy"),
        (ON_RNGD, "oom", 1, None),
        (ON_RNGD, "oom_kill", -9, None),
        (OCR_TWIN, "version", 1, "Failed loading language"),
        (OCR_TWIN, "oom", 1, None),
    ],
)
def test_it_dies_while_loading_with_the_vendors_words(tmp_path, who, word, code, symptom):
    with start(who, tmp_path, fail_load=word) as engine:
        assert engine.process.wait(20) == code
    said = (tmp_path / "engine.log").read_text(encoding="utf-8")
    assert said.strip()
    if symptom is not None:
        assert symptom in said
        assert symptom in [one.says for one in who[0].manifest.symptom]


@TEXT
@pytest.mark.parametrize(("fault", "code"), [("die_after_tokens", 70), ("kill_after_tokens", -9)])
def test_it_dies_in_the_middle_of_a_stream(tmp_path, who, fault, code):
    with start(who, tmp_path, **{fault: 2}) as engine:
        engine.wait_for(Verdict.READY, 20)
        with pytest.raises(httpx.RemoteProtocolError):
            engine.client.post("/v1/chat/completions", json=BODY)
        assert engine.process.wait(5) == code


@TEXT
def test_an_engine_whose_core_died_is_sick(tmp_path, who):
    with start(who, tmp_path) as engine:
        engine.wait_for(Verdict.READY, 20)
        engine.client.post("/twin/behaviour", json={"health": "sick"})
        reading = engine.probe()
        assert (reading.verdict, reading.reason) == (Verdict.SICK, "GET /health answered 503")


@TEXT
def test_a_wedged_engine_is_silent_and_only_sigkill_ends_it(tmp_path, who):
    with start(who, tmp_path) as engine:
        engine.wait_for(Verdict.READY, 20)
        engine.client.post("/twin/behaviour", json={"wedge": 1})
        assert engine.probe().verdict is Verdict.SILENT
        engine.process.terminate()
        # It goes on answering nobody: what ends it is the shim's SIGKILL, after the manifest's term_s_max.
        with pytest.raises(httpx.ReadTimeout):
            engine.client.get("/v1/models", timeout=1.0)
        assert engine.process.poll() is None


@TEXT
def test_a_client_that_leaves_frees_its_slot(tmp_path, who):
    with start(who, tmp_path, stall_after_tokens=1) as engine:
        engine.wait_for(Verdict.READY, 20)
        for is_stream in (True, False):
            with pytest.raises(httpx.ReadTimeout):
                engine.client.post("/v1/chat/completions", json=BODY | {"stream": is_stream}, timeout=0.5)
        deadline_s = time.monotonic() + 60
        while not engine.probe().is_idle:
            assert time.monotonic() < deadline_s


@TEXT
def test_requests_over_its_slots_wait_and_are_counted(tmp_path, who):
    with start(who, tmp_path, stall_after_tokens=1) as engine:
        engine.wait_for(Verdict.READY, 20)
        slots = who[1].slots
        clients = [
            httpx.Client(base_url=engine.endpoint, trust_env=False, verify=loopback.NOBODY) for _ in range(slots + 1)
        ]
        requests = [
            client.stream("POST", "/v1/chat/completions", json=BODY, headers={"authorization": f"Bearer {KEY}"})
            for client in clients
        ]
        for request in requests:
            request.__enter__()
        deadline_s = time.monotonic() + 60
        while True:
            reading = engine.probe()
            if (reading.running, reading.waiting) == (slots, 1):
                break
            assert time.monotonic() < deadline_s, reading
        for client in clients:
            client.close()


def test_the_plugin_refuses_another_shape_than_the_compiled_one(tmp_path):
    driver, spec, devices = ON_RBLN
    files = make_files(tmp_path, spec)
    with run_engine(driver, spec, files, tmp_path, devices) as engine:
        engine.wait_for(Verdict.READY, 20)
        # The artifact is exchanged under a running plan: what the plan says no longer fits.
        changed = {"batch_size": 1, "max_seq_len": 4096, "num_devices": 2}
    plan_files = dict(files)
    request_folder = tmp_path / "second"
    request_folder.mkdir()
    with run_engine(_Exchanging(driver, changed), spec, plan_files, request_folder, devices) as engine:
        assert engine.process.wait(20) == 1
    assert "must be those of rbln_config.json" in (request_folder / "engine.log").read_text(encoding="utf-8")


class _Exchanging:
    """A driver whose artifact changes between plan and start."""

    def __init__(self, driver, changed):
        self._driver = driver
        self._changed = changed

    def plan_launch(self, request):
        plan = self._driver.plan_launch(request)
        request.files["rbln_config.json"].write_text(json.dumps(self._changed), encoding="utf-8")
        return plan

    def __getattr__(self, name):
        return getattr(self._driver, name)


@TEXT
def test_the_machine_never_shows_its_key(tmp_path, who):
    with start(who, tmp_path) as engine:
        engine.wait_for(Verdict.READY, 20)
        for name in ("cmdline", "environ"):
            with open(f"/proc/{engine.process.pid}/{name}", "rb") as file:
                assert KEY.encode() not in file.read()
    assert KEY not in (tmp_path / "engine.log").read_text(encoding="utf-8")
