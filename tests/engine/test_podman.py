"""Engines in containers of a real Podman, with a twin for the engine: what the fake daemon of `test_containers` claims.

Everything that a keeper does to a daemon is done to one here, and the container is looked at from outside. A kernel
that lets nobody raise limits gets the ones that it has; nothing else of a launch is changed.
"""

import contextlib
import json
import resource
import subprocess
import time

import msgspec
import pytest
from tests import loopback
from tests.engine.podman_here import PYTHON, running_podman
from tests.engine.vendor_replicas import FURIOSA, make_files

from madang.engine.container_plan import ContainerLaunch
from madang.engine.contract import Verdict
from madang.engine.furiosa_llm import driver as furiosa_llm
from madang.engine.settings import EngineRuntime, RuntimeKind
from madang.testing.engine_contract import HOST, KEY, RunningEngine, make_request
from madang.testing.ports import free_port

NPU = ("npu:0",)
BODY = {"messages": [{"role": "user", "content": "hi"}]}
WAIT_S = 60
pytestmark = [pytest.mark.peer, pytest.mark.deep, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def podman():
    with running_podman() as podman:
        yield podman


@pytest.fixture
def place(podman, tmp_path):
    yield Place(podman, tmp_path)
    podman.remove_all()


class Place:
    """A driver whose engines run in Podman, and the folder of one replica."""

    def __init__(self, podman, folder, **runtime):
        self.podman, self.folder = podman, folder
        runtime = {"image": podman.image, "seccomp": "unconfined", **runtime}
        settings = EngineRuntime(
            kind=RuntimeKind.CONTAINER,
            socket=podman.socket,
            python=PYTHON,
            version="2026.4.0",
            memory_bytes_max=1 << 29,
            **runtime,
        )
        self.driver = furiosa_llm.FuriosaLlmDriver(settings, furiosa_llm.TWIN_PROGRAM)
        (folder / "key").write_text(KEY, encoding="ascii")
        self.port = free_port()

    def argv(self, **behaviour):
        request = make_request(
            FURIOSA, make_files(self.folder, FURIOSA, **behaviour), self.folder / "key", self.port, NPU
        )
        argv = list(self.driver.plan_launch(request).argv)
        launch = msgspec.json.decode(argv[-1], type=ContainerLaunch)
        launch.body["HostConfig"]["Ulimits"] = allowed_limits(launch.body["HostConfig"]["Ulimits"])
        argv[-1] = msgspec.json.encode(launch, order="deterministic").decode()
        return argv

    @contextlib.contextmanager
    def engine(self, **behaviour):
        with (self.folder / "engine.log").open("ab") as log:
            process = subprocess.Popen(self.argv(**behaviour), cwd=self.folder, stdout=log, stderr=log)
        engine = RunningEngine(self.driver, process, self.port)
        try:
            yield engine
        finally:
            engine.client.close()
            process.kill()
            process.wait()

    def said(self):
        return (self.folder / "engine.log").read_text(encoding="utf-8")

    def container(self):
        (found,) = self.podman.containers()
        return self.podman.ask("GET", f"/containers/{found['Id']}/json")


def allowed_limits(wanted):
    """Return limits no higher than this machine's, where it lets nobody raise them.

    Processes are among them, since Podman asks for four millions where nobody says otherwise.
    """
    names = {"memlock": resource.RLIMIT_MEMLOCK, "nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
    limits = []
    for one in [*wanted, {"Name": "nproc", "Soft": 4096, "Hard": 4096}]:
        soft, hard = resource.getrlimit(names[one["Name"]])
        try:
            resource.setrlimit(names[one["Name"]], (soft, resource.RLIM_INFINITY))
            resource.setrlimit(names[one["Name"]], (soft, hard))
        except (ValueError, OSError):
            most = hard if one["Hard"] == -1 else min(one["Hard"], hard)
            one = {**one, "Soft": most, "Hard": most}
        limits.append(one)
    return limits


def until(is_right):
    deadline_s = time.monotonic() + WAIT_S
    while not is_right():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_it_serves_as_any_engine_may_nothing_else_and_leaves_nothing(place):
    with place.engine() as engine:
        assert engine.wait_for(Verdict.READY, WAIT_S).is_simulated
        assert engine.client.post("/v1/chat/completions", json=BODY).json()["usage"]["completion_tokens"] == 12
        streamed = engine.client.post("/v1/chat/completions", json=BODY | {"stream": True})
        assert streamed.text.endswith("data: [DONE]\n\n")
        refused = loopback.post(engine.endpoint + "/v1/chat/completions", json=BODY, trust_env=False)
        assert refused.status_code == 401
        found = place.container()
        check_from_outside(found)
        check_from_inside(found["State"]["Pid"])
        assert KEY not in json.dumps(found)
        engine.process.terminate()
        assert engine.process.wait(WAIT_S) == 0
    assert place.podman.containers() == []


def check_from_outside(found):
    """What Podman says of the container is what was asked for."""
    host = found["HostConfig"]
    assert (host["NetworkMode"], host["Init"], host["AutoRemove"]) == ("none", True, False)
    assert host["Memory"] == host["MemorySwap"] == 1 << 29
    assert host["NanoCpus"] == 2_000_000_000
    assert host["PidsLimit"] == 4096
    assert host["OomScoreAdj"] == 500
    assert host["ShmSize"] == 1 << 30
    assert host["RestartPolicy"]["Name"] in ("no", "")
    assert "no-new-privileges" in host["SecurityOpt"]
    assert [one["Destination"] for one in found["Mounts"] if one["RW"] and one["Type"] == "bind"] == ["/madang/run"]
    assert found["Config"]["StopSignal"] in ("SIGTERM", "15", 15)


def check_from_inside(pid):
    """What the kernel says of its first process: a loopback for a network, at most one capability."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        status = dict(line.split(":", 1) for line in file)
    ipc_lock = 1 << 14
    assert int(status["CapBnd"], 16) in (ipc_lock, 0)
    assert int(status["CapEff"], 16) in (ipc_lock, 0)
    assert status["NoNewPrivs"].strip() == "1"
    with open(f"/proc/{pid}/net/dev", encoding="ascii") as file:
        names = [line.split(":")[0].strip() for line in file if ":" in line]
    assert names == ["lo"]


def test_its_log_comes_to_ours_and_its_death_is_told(place):
    with place.engine(fail_load="version") as engine:
        assert engine.process.wait(WAIT_S) == 1
    assert "unknown variant" in place.said()
    assert "the container ended with 1" in place.said()
    assert place.podman.containers() == []


def test_a_killed_keeper_takes_the_container_along(place):
    with place.engine() as engine:
        engine.wait_for(Verdict.READY, WAIT_S)
        pid = place.container()["State"]["Pid"]
        engine.process.kill()
        engine.process.wait()
        until(lambda: place.container()["State"]["Status"] != "running")
        assert not is_alive(pid)
    # The next launch finds what is left of it, removes it and starts anew.
    with place.engine() as engine:
        engine.wait_for(Verdict.READY, WAIT_S)
        assert len(place.podman.containers()) == 1


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_same_launch_takes_the_container_over(place):
    with place.engine() as engine:
        engine.wait_for(Verdict.READY, WAIT_S)
        before = place.container()["Id"]
        engine.process.kill()
        engine.process.wait()
        with place.engine() as second:
            second.wait_for(Verdict.READY, WAIT_S)
            assert place.container()["Id"] == before
            assert "took over container" in place.said()
            assert second.client.post("/v1/chat/completions", json=BODY).status_code == 200
            second.process.terminate()
            assert second.process.wait(WAIT_S) == 0
    assert place.podman.containers() == []


def test_a_wedged_engine_is_killed(place):
    with place.engine() as engine:
        engine.wait_for(Verdict.READY, WAIT_S)
        engine.client.post("/twin/behaviour", json={"wedge": 1})
        assert engine.probe().verdict is Verdict.SILENT
        found = place.container()["Id"]
        place.podman.ask("POST", f"/containers/{found}/stop", params={"t": "1"})
        assert engine.process.wait(WAIT_S) == 137
    assert place.podman.containers() == []


def test_an_image_that_is_not_there_is_never_pulled(podman, tmp_path):
    place = Place(podman, tmp_path, image="registry.example/absent@sha256:" + "a" * 64)
    with place.engine() as engine:
        assert engine.process.wait(WAIT_S) == 1
    assert "images are never pulled" in place.said()
    assert podman.containers() == []


def test_a_seccomp_profile_is_taken(podman, tmp_path):
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}), encoding="utf-8")
    place = Place(podman, tmp_path, seccomp=str(profile))
    with place.engine() as engine:
        engine.wait_for(Verdict.READY, WAIT_S)
        found = place.container()
        assert f"seccomp={profile}" in found["HostConfig"]["SecurityOpt"]
        with open(f"/proc/{found['State']['Pid']}/status", encoding="ascii") as file:
            assert dict(line.split(":", 1) for line in file)["Seccomp"].strip() == "2"
        engine.process.terminate()
        assert engine.process.wait(WAIT_S) == 0


def test_nothing_listens_at_the_port_of_another_host(place):
    with place.engine() as engine:
        engine.wait_for(Verdict.READY, WAIT_S)
        pid = place.container()["State"]["Pid"]
        with open(f"/proc/{pid}/net/tcp", encoding="ascii") as file:
            listening = [line.split()[1] for line in file if " 0A " in line]
        assert listening == [f"0100007F:{8000:04X}"], f"inside, it listens elsewhere than on {HOST}"
