"""A real node program with engines played by their twins, and what tests do to it.

Node programs are forked from a process that has imported them already, for most of the cost of a start is imports;
each is a process of its own, that is killed as any other. `test_node_process` starts one from its command line too.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import httpx
import msgspec
from tests import loopback
from tests.node.artifact_sources import file_of

from madang.core import ChipId, NodeId, ReplicaId, ServiceName, SiteId
from madang.model import Artifact, ReplicaPhase, ReplicaSpec, Task
from madang.node.__main__ import main as run_node
from madang.node.bootstrap import list_engines, stop_engines
from madang.node.records import read_engine_record, replica_folder
from madang.node.settings import NodeSettings
from madang.testing.ports import free_port
from madang.wire.node_api import NodeObserved, NodePlan

WAIT_S = 60.0  # only ever reached by a failure, or on a machine that does much else
_LOOK_S = 0.02
_CHANGE_S = 0.25
QUICK = {"chip_read_period_s": 0.5, "chip_hurry_period_s": 0.1, "engine_probe_s": 0.3, "drain_settle_s": 0.2}
"""Shorter periods than a real node has, so that tests wait less; nothing else depends on them."""


def _become(program, config, log):
    """Run a node program in this process, with its output in a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.exit(program(Path(config)))


def _nursery():
    """Return what forks node programs from a process that has imported them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["madang.node.__main__", __name__])
    return context


class NodeLab:
    """One node under test.

    Attributes:
        program: what is run as the node program, with the path of its settings.
    """

    program = staticmethod(run_node)

    def __init__(self, folder, *, cache_dir=None, engine_twins=("llama_cpp", "embed"), **settings):
        self.folder = folder
        self.stick = folder / "stick"
        self.stick.mkdir()
        self.settings = NodeSettings(
            name="daegu-1",
            site="daegu",
            state_dir=folder / "state",
            port=free_port(),
            token_file=folder / "state" / "token",
            cache_dir=cache_dir or folder / "cache",
            artifact_dirs=(self.stick,),
            engine_twins=engine_twins,
            **{**QUICK, **settings},
        )
        self.process = None
        self.generation = 0
        self._seq = None
        self._is_waiting = self._has_looked = False
        # Nobody speaks TLS here, and to read the roots of trust takes longer than most of what a test asks.
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{self.settings.port}", timeout=30, trust_env=False, verify=False
        )

    def start(self):
        """Start the node program and wait until it answers."""
        config = self.folder / "node.toml"
        values = msgspec.to_builtins(self.settings, enc_hook=str)
        lines = [f"{key} = {toml_value(value)}" for key, value in values.items() if value is not None]
        config.write_text("\n".join(lines), encoding="utf-8")
        log = str(self.folder / "node.log")
        self.process = _nursery().Process(target=_become, args=(self.program, str(config), log), daemon=True)
        self.process.start()
        self.wait(lambda: self._answers(), "the node answers")
        token = self.settings.token_file.read_text(encoding="utf-8").strip()
        self.client.headers["authorization"] = f"Bearer {token}"
        return self

    def _answers(self):
        assert self.process.is_alive(), self.log()
        with contextlib.suppress(httpx.HTTPError):
            return self.client.get("/readyz").status_code == 200
        return False

    def kill(self):
        self.process.kill()
        self.process.join()

    def terminate(self):
        """Stop the node program in order; return its exit code."""
        self.process.terminate()
        self.process.join(WAIT_S)
        return self.process.exitcode

    def close(self):
        self.client.close()
        if self.process is not None and self.process.is_alive():
            self.kill()
        stop_engines(self.settings)

    def log(self):
        return (self.folder / "node.log").read_text(encoding="utf-8")[-4000:]

    def events(self):
        lines = (self.folder / "node.log").read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["event"] for line in lines if line.startswith("{")]

    def wait(self, is_done, what, wait_s=WAIT_S):
        """Return the first true value of `is_done`, looked at often; fails after `wait_s`."""
        deadline_s = time.monotonic() + wait_s
        try:
            while not (value := is_done()):
                assert time.monotonic() < deadline_s, f"not within {wait_s} s: {what}\n{self.log()}"
                if not self._has_looked:
                    time.sleep(_LOOK_S)
                self._is_waiting, self._has_looked = True, False
        finally:
            self._is_waiting = False
        return value

    # Plans

    def spec(self, name="chat", *, task=Task.CHAT, is_on_stick=True, slots=2, **behaviour):
        """Return a replica whose twin behaves so; its file lies on the stick."""
        data = json.dumps(behaviour or {"unique": name}).encode()
        file = file_of(data, name=f"{name}.json")
        if is_on_stick:
            (self.stick / file.name).write_bytes(data)
        artifact = Artifact(
            artifact_id="a",
            engine="llama_cpp" if task is Task.CHAT else "embed",
            chip_kinds=("cpu",),
            files=(file,),
            memory_bytes=1,
        )
        return ReplicaSpec(
            replica_id=ReplicaId(f"daegu-{name}-0"),
            service=ServiceName(name),
            model="m",
            task=task,
            artifact=artifact,
            chip_ids=(ChipId("cpu0"),),
            context_tokens=1024,
            slots=slots,
        )

    def plan(self, *specs, generation=None):
        """Send a plan with the next generation; return the answer."""
        self.generation = self.generation + 1 if generation is None else generation
        plan = NodePlan(site=SiteId("daegu"), node=NodeId("daegu-1"), generation=self.generation, replicas=tuple(specs))
        return self.client.put("/api/v1/plan", content=msgspec.json.encode(plan))

    # Observations

    def observed(self):
        """Return what the node observes; within a wait, once that has changed, or a moment later."""
        self._has_looked = True
        change = {"after": self._seq, "wait_s": _CHANGE_S} if self._is_waiting and self._seq is not None else None
        seen = msgspec.json.decode(self.client.get("/api/v1/observed", params=change).content, type=NodeObserved)
        self._seq = seen.seq
        return seen

    def replica(self, name="chat"):
        return next((r for r in self.observed().replicas if r.service == name), None)

    def wait_phase(self, phase, name="chat", is_right=lambda _replica: True):
        def look():
            replica = self.replica(name)
            return replica if replica is not None and replica.phase is phase and is_right(replica) else None

        return self.wait(look, f"{name} is {phase}")

    def wait_ready(self, name="chat", is_right=lambda _replica: True):
        return self.wait_phase(ReplicaPhase.READY, name, is_right)

    def wait_gone(self, name="chat"):
        self.wait(lambda: self.replica(name) is None, f"{name} is forgotten")

    def record(self, name="chat"):
        return read_engine_record(replica_folder(self.settings.state_dir, f"daegu-{name}-0"))

    def live_engines(self):
        return list_engines(self.settings)

    def ask(self, replica, **fields):
        body = {"messages": [{"role": "user", "content": "hi"}], "stream": True, **fields}
        headers = {"authorization": f"Bearer {replica.engine_key}"}
        return loopback.post(
            f"{replica.endpoint}/v1/chat/completions",
            json=body,
            headers=headers,
            trust_env=False,
            timeout=30,
        )

    def requests_running(self, replica):
        headers = {"authorization": f"Bearer {replica.engine_key}"}
        text = loopback.get(f"{replica.endpoint}/metrics", headers=headers, trust_env=False).text
        return "requests_processing 1" in text


def toml_value(value):
    """Return a value in TOML; what is None is left out of tables."""
    if isinstance(value, dict):
        inside = (f"{json.dumps(key)} = {toml_value(one)}" for key, one in value.items() if one is not None)
        return "{" + ", ".join(inside) + "}"
    return json.dumps(value)


def is_running(pid):
    """Return whether a process lives and is no zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except FileNotFoundError:
        return False


def kill(pid):
    os.kill(pid, signal.SIGKILL)
