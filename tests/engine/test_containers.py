"""Engines in containers, against a fake of the daemon's API: the contract, adoption, and every end in every order."""

import asyncio
import contextlib
import json
import signal
import subprocess
import threading
import time

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import loopback
from tests.engine.fake_container_daemon import FakeDaemon
from tests.engine.vendor_replicas import FURIOSA, make_files

from madang.core import Fault, Rejected
from madang.engine.container_api import ContainerClient, _take_frames
from madang.engine.container_plan import ContainerLaunch
from madang.engine.contract import Verdict
from madang.engine.furiosa_llm import driver as furiosa_llm
from madang.engine.settings import EngineRuntime, RuntimeKind
from madang.testing.engine_contract import HOST, KEY, RunningEngine, make_request, run_engine
from madang.testing.ports import free_port

IMAGE = "registry.example/furiosa-llm@sha256:" + "a" * 64
NPU = ("npu:0",)
BODY = {"messages": [{"role": "user", "content": "hi"}]}
pytestmark = pytest.mark.peer


class Machine:
    """A fake daemon in a thread of its own, and a driver whose engines run there."""

    def __init__(self, folder, **daemon):
        self.folder = folder
        # A unix socket's path is short.
        self.socket = folder / "d.sock"
        self.daemon = FakeDaemon(self.socket, folder, (IMAGE,), **daemon)
        runtime = EngineRuntime(
            kind=RuntimeKind.CONTAINER,
            socket=self.socket,
            image=IMAGE,
            version="2026.4.0",
            devices=(folder,),
            seccomp="unconfined",
            memory_bytes_max=1 << 34,
        )
        self.driver = furiosa_llm.FuriosaLlmDriver(runtime, furiosa_llm.TWIN_PROGRAM)

    def __enter__(self):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.call(self.daemon.__aenter__())
        return self

    def __exit__(self, *_):
        self.call(self.daemon.__aexit__())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def start(self, name="r", **behaviour):
        place = self.folder / name
        place.mkdir(exist_ok=True)
        return run_engine(self.driver, FURIOSA, make_files(place, FURIOSA, **behaviour), place, NPU)

    @property
    def running(self):
        return [one for one in list(self.daemon.containers.values()) if one.is_running]


@pytest.fixture
def machine(tmp_path):
    with Machine(tmp_path) as machine:
        yield machine


def until(is_right, wait_s=60):
    deadline_s = time.monotonic() + wait_s
    while not is_right():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_it_serves_and_ends_as_any_engine(machine):
    with machine.start() as engine:
        assert engine.wait_for(Verdict.READY, 30).is_simulated
        assert engine.client.post("/v1/chat/completions", json=BODY).json()["usage"]["completion_tokens"] == 12
        streamed = engine.client.post("/v1/chat/completions", json=BODY | {"stream": True})
        assert streamed.text.endswith("data: [DONE]\n\n")
        assert loopback.post(engine.endpoint + "/v1/chat/completions", json=BODY).status_code == 401
        engine.process.terminate()
        assert engine.process.wait(20) == 0
    assert machine.daemon.containers == {}
    asked = machine.daemon.asked
    assert not any("images/create" in one for one in asked), "an image was pulled"
    assert [one for one in asked if "/containers/create" in one] == ["POST /containers/create"]
    assert asked.index(f"GET /images/{IMAGE}/json") < asked.index("POST /containers/create")


def test_what_the_container_may(machine):
    with machine.start() as engine:
        engine.wait_for(Verdict.READY, 30)
        (container,) = machine.running
        host = container.body["HostConfig"]
        assert (host["NetworkMode"], host["Init"], host["CapDrop"]) == ("none", True, ["ALL"])
        assert host["SecurityOpt"] == ["no-new-privileges", "seccomp=unconfined"]
        assert (host["Memory"], host["MemorySwap"], host["NanoCpus"]) == (1 << 34, 1 << 34, 2_000_000_000)
        assert [one["PathOnHost"] for one in host["Devices"]] == [str(machine.folder)]
        writable = [one["Target"] for one in host["Mounts"] if not one["ReadOnly"]]
        assert writable == ["/madang/run"]
        assert host["RestartPolicy"] == {"Name": ""}
        assert KEY not in json.dumps(container.body)
        with open(f"/proc/{engine.process.pid}/cmdline", "rb") as file:
            assert KEY.encode() not in file.read()
        assert (machine.folder / "r" / "run").stat().st_mode & 0o077 == 0


def test_its_log_comes_to_ours_and_its_death_is_told(machine):
    with machine.start(fail_load="version") as engine:
        assert engine.process.wait(30) == 1
    said = (machine.folder / "r" / "engine.log").read_text(encoding="utf-8")
    assert "unknown variant" in said
    assert "the container ended with 1" in said
    assert machine.daemon.containers == {}


def test_an_image_that_is_not_there_is_never_pulled(machine):
    machine.daemon.images.clear()
    with machine.start() as engine:
        assert engine.process.wait(30) == 1
    assert "images are never pulled" in (machine.folder / "r" / "engine.log").read_text(encoding="utf-8")


@pytest.mark.deep
def test_without_a_daemon_it_says_so(tmp_path):
    machine = Machine(tmp_path)
    with machine.start() as engine:
        assert engine.process.wait(30) == 1
    assert "container daemon" in (tmp_path / "r" / "engine.log").read_text(encoding="utf-8")


@pytest.mark.deep
def test_a_daemon_that_fails_in_the_middle_leaves_nothing(machine):
    machine.daemon.faults = {"/containers/create": 500}
    with machine.start() as engine:
        assert engine.process.wait(30) == 1
    assert machine.daemon.containers == {}
    with machine.start() as engine:
        engine.wait_for(Verdict.READY, 30)


@pytest.mark.deep
def test_a_killed_keeper_takes_the_container_along(machine):
    with machine.start() as engine:
        engine.wait_for(Verdict.READY, 30)
        assert len(machine.running) == 1
        engine.process.kill()
        engine.process.wait()
        until(lambda: not machine.running)


def test_the_same_launch_takes_the_container_over(machine):
    with machine.start() as engine:
        engine.wait_for(Verdict.READY, 30)
        (before,) = machine.running
        engine.process.kill()
        engine.process.wait()
        # Within the seconds that it waits for its keeper.
        second = again(machine, engine)
        with contextlib.closing(second.client):
            second.wait_for(Verdict.READY, 30)
            assert [one.id for one in machine.running] == [before.id]
            assert second.client.post("/v1/chat/completions", json=BODY).status_code == 200
            second.process.terminate()
            assert second.process.wait(20) == 0
    assert machine.daemon.containers == {}


@pytest.mark.deep
def test_another_launch_removes_it_first(machine):
    with machine.start() as engine:
        engine.wait_for(Verdict.READY, 30)
        (before,) = machine.running
        engine.process.kill()
        engine.process.wait()
        (machine.folder / "r" / "key").write_text("another key", encoding="ascii")
        second = again(machine, engine)
        with contextlib.closing(second.client):
            second.wait_for(Verdict.READY, 30)
            assert [one.id for one in machine.running] != [before.id]
            assert len(machine.running) == 1
            second.process.kill()
            second.process.wait()
            until(lambda: not machine.running)


def again(machine, engine):
    """Start the very command line of an engine once more, as its shim would."""
    with (machine.folder / "r" / "second.log").open("wb") as log:
        process = subprocess.Popen(engine.process.args, cwd=machine.folder / "r", stdout=log, stderr=log)
    return RunningEngine(machine.driver, process, int(engine.endpoint.rpartition(":")[2]))


@pytest.mark.deep
def test_a_wedged_engine_in_a_container_is_killed_in_time(machine):
    launch = plan(machine.driver, machine.folder)
    assert 1 < launch.term_s < machine.driver.times.term_s_max
    # The daemon's own SIGKILL comes after term_s; here after one second.
    short = msgspec.structs.replace(launch, term_s=1.0)
    with machine.start() as engine:
        engine.wait_for(Verdict.READY, 30)
        engine.client.post("/twin/behaviour", json={"wedge": 1})
        assert engine.probe().verdict is Verdict.SILENT
        (container,) = machine.running
        machine.call(stop(machine, container, short.term_s))
        assert engine.process.wait(20) == 128 + signal.SIGKILL


async def stop(machine, container, term_s):
    async with ContainerClient(machine.socket) as client:
        await client.stop(container.id, term_s)


def plan(driver, folder):
    place = folder / "plan"
    place.mkdir()
    request = make_request(FURIOSA, make_files(place, FURIOSA), place / "key", free_port(), NPU)
    return msgspec.json.decode(driver.plan_launch(request).argv[-1], type=ContainerLaunch)


def test_a_client_that_leaves_is_seen_inside(machine):
    with machine.start(stall_after_tokens=1) as engine:
        engine.wait_for(Verdict.READY, 30)
        with pytest.raises(httpx.ReadTimeout):
            engine.client.post("/v1/chat/completions", json=BODY | {"stream": True}, timeout=0.5)
        until(lambda: engine.probe().is_idle)


@pytest.mark.parametrize("is_podman", [True, False])
def test_a_seccomp_profile_goes_as_a_path_or_as_its_text(tmp_path, is_podman):
    profile = tmp_path / "profile.json"
    profile.write_text('{"defaultAction": "SCMP_ACT_ALLOW"}', encoding="utf-8")
    with Machine(tmp_path, is_podman=is_podman) as machine:
        runtime = EngineRuntime(
            kind=RuntimeKind.CONTAINER,
            socket=machine.socket,
            image=IMAGE,
            version="2026.4.0",
            seccomp=str(profile),
        )
        machine.driver = furiosa_llm.FuriosaLlmDriver(runtime, furiosa_llm.TWIN_PROGRAM)
        with machine.start() as engine:
            engine.wait_for(Verdict.READY, 30)
            (container,) = machine.running
            shown = container.body["HostConfig"]["SecurityOpt"][1]
            assert shown == f"seccomp={profile if is_podman else profile.read_text()}"


def test_the_real_program_would_run_the_images_own_python(tmp_path):
    runtime = EngineRuntime(kind=RuntimeKind.CONTAINER, image=IMAGE, version="2026.4.0")
    launch = plan(furiosa_llm.FuriosaLlmDriver(runtime), tmp_path)
    assert launch.body["Entrypoint"] == ["python3", "-I", "/madang/vendor_start.py"]
    arguments = launch.body["Cmd"]
    split = arguments.index("--")
    assert "--script=furiosa-llm" in arguments[:split]
    assert "--link=config.json=/madang/files/config.json" in arguments[:split]
    assert arguments[split + 1 : split + 5] == ["serve", "/tmp/model", "--fxb", "/tmp/model/qwen.fxb"]
    assert (launch.host, arguments[arguments.index("--port") + 1]) == (HOST, "8000")
    assert launch.name.startswith("madang-r-1-")


@given(st.lists(st.binary(max_size=40), max_size=6), st.integers(1, 9))
def test_log_frames_are_put_together_however_they_are_cut(texts, step):
    whole = b"".join(bytes([1, 0, 0, 0]) + len(text).to_bytes(4, "big") + text for text in texts)
    buffer, found = bytearray(), []
    for at in range(0, len(whole), step):
        buffer += whole[at : at + step]
        found += _take_frames(buffer)
    assert (b"".join(found), bytes(buffer)) == (b"".join(texts), b"")


@given(st.binary(max_size=60))
def test_no_bytes_of_a_daemon_make_the_log_fail_otherwise(data):
    with contextlib.suppress(Fault):
        assert sum(map(len, _take_frames(bytearray(data)))) <= len(data)


def test_twins_of_other_engines_are_refused_a_container_without_an_image(tmp_path):
    with pytest.raises(Rejected, match="image"):
        plan(furiosa_llm.FuriosaLlmDriver(EngineRuntime(kind=RuntimeKind.CONTAINER, version="2026.4.0")), tmp_path)
