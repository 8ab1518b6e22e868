"""The site and a node: the node's real API over HTTP, with engines that are only claimed to run."""

import asyncio
import contextlib
import io

import pytest
from tests.hub.hub_harness import running_hub, until
from tests.site.site_harness import running_sites

from madang.core import ChipId, Conflict, NodeId
from madang.model import Chip, ChipCordon, ChipHealth, CordonCause, ReplicaObserved, ReplicaPhase
from madang.node.api import make_app
from madang.node.board import Board
from madang.runtime.admin_http import AdminServer
from madang.runtime.clock import SystemClock
from madang.runtime.store import open_engine, sqlite_url
from madang.runtime.telemetry import EventLog
from madang.site.audit import AUDIT_LOG
from madang.site.settings import NodeLink
from madang.testing.ports import free_port
from madang.wire.node_api import NodePlan

pytestmark = pytest.mark.peer

TOKEN = "node-token"
ENGINE_KEY = "engine-key-that-stays-here"
GIB = 1024**3
MODEL = {
    "name": "qwen",
    "task": "chat",
    "title": "Qwen",
    "licence": "Apache-2.0",
    "artifacts": [
        {
            "artifact_id": "q4",
            "engine": "llama_cpp",
            "chip_kinds": ["cpu"],
            "memory_bytes": GIB,
            "context_tokens_max": 8192,
            "files": [{"name": "m.gguf", "size_bytes": 1, "sha256": "0" * 64}],
        }
    ],
}


class FakeNode:
    """A node whose engines are ready as soon as they are planned."""

    def __init__(self, port, generation=0):
        self.port, self.plan, self.restarted, self.uncordoned = port, None, [], []
        self.board = Board(NodeId("n1"), f"boot{port}{generation}", SystemClock())
        self.board.see_chips(
            (
                Chip(
                    chip_id=ChipId("cpu0"),
                    node=NodeId("n1"),
                    kind="cpu",
                    model="x",
                    memory_bytes=8 * GIB,
                    engines_max=4,
                    health=ChipHealth.OK,
                ),
            )
        )
        self.board.accept(generation)
        self.server = None
        self.is_stopping = False

    def apply_plan(self, plan: NodePlan):
        if plan.generation < self.board.generation:
            raise Conflict("older")
        self.plan = plan
        for spec in plan.replicas:
            self.board.see_replica(
                ReplicaObserved(
                    replica_id=spec.replica_id,
                    node=NodeId("n1"),
                    service=spec.service,
                    phase=ReplicaPhase.READY,
                    endpoint="http://127.0.0.1:1",
                    engine_key=ENGINE_KEY,
                    chip_kind="cpu",
                    slots=spec.slots,
                )
            )
        for replica in self.board.replicas:
            if replica.replica_id not in {spec.replica_id for spec in plan.replicas}:
                self.board.forget_replica(replica.replica_id)
        self.board.accept(plan.generation)

    def restart_replica(self, replica_id):
        self.restarted.append(replica_id)
        return True

    def uncordon_chip(self, chip_id):
        self.uncordoned.append(chip_id)
        self.board.see_desk((), ())
        return 1

    def find_problems(self):
        return []

    def is_ending(self):
        return self.is_stopping

    async def start(self):
        app = make_app(self, self.board, TOKEN, EventLog(SystemClock(), io.StringIO()))
        self.server = AdminServer(app, "127.0.0.1", self.port)
        self.is_stopping = False
        await self.server.start()

    async def stop(self):
        self.is_stopping = True
        self.board.wake()
        await self.server.stop()


class Scene:
    """A hub, daegu with a node, and gumi without one."""

    def __init__(self, folder):
        self._runner = asyncio.Runner()
        self._stack = contextlib.AsyncExitStack()
        try:
            self.run(self._start(folder))
        except BaseException:
            self.close()
            raise

    async def _start(self, folder):
        self.port = free_port()
        self.node = FakeNode(self.port)
        await self.node.start()
        token_file = folder / "node.token"
        token_file.write_text(TOKEN)
        token_file.chmod(0o600)
        link = NodeLink(name="n1", url=f"http://127.0.0.1:{self.port}", token_file=token_file)
        self.hub = await self._stack.enter_async_context(running_hub(folder))
        (self.daegu,) = await self._stack.enter_async_context(running_sites(self.hub, "daegu", nodes=(link,)))
        (self.gumi,) = await self._stack.enter_async_context(running_sites(self.hub, "gumi"))
        await self.hub.call("POST", "/api/v1/models", MODEL)
        service = {"name": "chat", "model": "qwen", "replicas_per_site": 2, "sites": ["daegu"], "slots": 3}
        await self.hub.call("PUT", "/api/v1/services/chat", service)

    def run(self, coroutine):
        return self._runner.run(coroutine)

    def close(self):
        async def stop():
            await self._stack.aclose()
            await self.node.stop()

        self.run(stop())
        self._runner.close()

    def planned(self):
        return [] if self.node.plan is None else [spec.replica_id for spec in self.node.plan.replicas]

    async def post(self, path, expect=200):
        answer = await self.daegu.client.post(path)
        assert answer.status_code == expect, answer.text
        return answer.json()


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    made = Scene(tmp_path_factory.mktemp("nodes"))
    yield made
    made.close()


def test_assignments_become_a_plan_and_ready_engines_are_offered(scene):
    async def play():
        await until(lambda: scene.planned() == ["chat-1", "chat-2"], "the node has its plan")
        await until(lambda: len(scene.daegu.live().replicas) == 2, "the gateway is told")
        first, second = scene.daegu.live().replicas
        assert (first.replica_id, first.phase, first.slots) == ("chat-1", ReplicaPhase.READY, 3)
        assert first.engine_key == ENGINE_KEY
        assert first.slot != second.slot
        assert (scene.daegu.settings.feed_dir / "live.msgpack").stat().st_mode & 0o077 == 0
        status = await scene.daegu.status()
        assert status["replicas_ready"] == 2
        (row,) = await scene.daegu.get("/api/v1/nodes")
        assert row["state"] == "connected"
        assert row["plan_generation"] == row["accepted_generation"] == scene.node.plan.generation

    scene.run(play())


def test_peers_and_hub_learn_of_the_load_and_not_of_engine_keys(scene):
    async def play():
        def loads():
            return [load for peer in scene.gumi.live().peers for load in peer.services]

        await until(lambda: loads() and loads()[0].replicas_ready == 2, "gumi knows daegu's load")
        assert (loads()[0].service, loads()[0].slots, loads()[0].in_flight) == ("chat", 6, 0)

        async def hub_knows():
            rows = await scene.hub.call("GET", "/api/v1/replicas")
            return len(rows) == 2 and rows

        rows = await until(hub_knows, "the hub knows both replicas")
        assert ENGINE_KEY not in str(rows)
        assert ENGINE_KEY not in (await scene.daegu.client.get("/api/v1/replicas")).text
        (chip,) = await scene.daegu.get("/api/v1/chips")
        assert (chip["chip_id"], chip["site"], chip["health"]) == ("cpu0", "daegu", "ok")
        services = {row["name"]: row for row in await scene.daegu.get("/api/v1/services")}
        assert (services["chat"]["replicas_wanted"], services["chat"]["replicas_ready"]) == (2, 2)

    scene.run(play())


def test_a_drained_node_is_emptied_and_all_of_it_is_in_the_audit_log(scene):
    async def play():
        row = await scene.post("/api/v1/nodes/n1/drain")
        assert (row["is_cordoned"], row["is_draining"]) == (True, True)
        await until(lambda: scene.planned() == [], "the plan is empty")
        await until(lambda: scene.daegu.live().replicas == (), "nothing is offered")
        unplaced = (await scene.daegu.status())["unplaced"]
        assert {item["replica_id"] for item in unplaced} == {"chat-1", "chat-2"}
        assert "cordoned" in unplaced[0]["reason"]
        scene.daegu.kill()
        scene.daegu.start()
        await until(scene.daegu.is_linked, "daegu is back")
        assert (await scene.daegu.get("/api/v1/nodes"))[0]["is_draining"], "a restart forgets no drain"
        await scene.post("/api/v1/nodes/n1/cordon")
        assert scene.planned() == []
        await scene.post("/api/v1/nodes/n1/uncordon")
        await until(lambda: scene.planned() == ["chat-1", "chat-2"], "replicas are back")
        rows = await scene.daegu.get("/api/v1/audit")
        assert [row["action"] for row in rows] == ["node.drain", "node.cordon", "node.uncordon"]
        assert [row["seq"] for row in await scene.daegu.get("/api/v1/audit?after=1&limit=1")] == [2]
        engine = open_engine(sqlite_url(scene.daegu.folder / "site.db"), is_reader=True)
        with engine.begin() as connection:
            assert AUDIT_LOG.verify(connection).is_intact
        engine.dispose()

    scene.run(play())


def test_a_chip_is_cordoned_by_hand_here_and_through_the_hub(scene):
    async def play():
        await until(lambda: scene.planned() == ["chat-1", "chat-2"], "replicas are placed")
        path = "/api/v1/nodes/n1/chips/cpu0"
        await scene.post(f"{path}/cordon", 400)  # without a reason
        answer = await scene.daegu.client.post(f"{path}/cordon", json={"reason": "smells of smoke"})
        assert answer.json()["cordon_reason"] == "by_hand: smells of smoke"
        service = {"name": "chat", "model": "qwen", "replicas_per_site": 3, "sites": ["daegu"], "slots": 3}
        await scene.hub.call("PUT", "/api/v1/services/chat", service)

        async def is_refused():
            unplaced = (await scene.daegu.status())["unplaced"]
            return [item["reason"] for item in unplaced if item["replica_id"] == "chat-3"]

        (reason,) = await until(is_refused, "nothing new goes there")
        assert "cpu0 cordoned: by_hand: smells of smoke" in reason
        assert scene.planned() == ["chat-1", "chat-2"], "and what is there stays"

        async def hub_knows():
            (row,) = [row for row in await scene.hub.call("GET", "/api/v1/chips") if row["site"] == "daegu"]
            return row["is_cordoned"] and row["cordon_reason"] == "by_hand: smells of smoke"

        await until(hub_knows, "the hub shows it")
        scene.daegu.kill()
        scene.daegu.start()
        await until(scene.daegu.is_linked, "daegu is back")
        (chip,) = await scene.daegu.get("/api/v1/chips")
        assert chip["cordons"][0]["reason"] == "smells of smoke", "a restart forgets no cordon"
        through_hub = f"/api/v1/sites/daegu{path.removeprefix('/api/v1')}/uncordon"
        answer = await scene.hub.call("POST", through_hub, {"reason": "was the printer"})
        assert answer["chip_id"] == "cpu0"
        await until(lambda: scene.planned() == ["chat-1", "chat-2", "chat-3"], "it takes replicas again")
        rows = await scene.daegu.get("/api/v1/audit")
        assert [(row["action"], row["target"], row["actor"]) for row in rows][-2:] == [
            ("chip.cordon", "n1/cpu0", "admin"),
            ("chip.uncordon", "n1/cpu0", "hub:admin"),
        ]
        last = (await scene.hub.call("GET", "/api/v1/audit?limit=1000"))[-1]
        assert (last["action"], last["target"]) == ("chip.uncordon", "daegu/n1/cpu0")
        await scene.hub.call("PUT", "/api/v1/services/chat", {**service, "replicas_per_site": 2})
        await until(lambda: scene.planned() == ["chat-1", "chat-2"], "as before")

    scene.run(play())


def test_a_chip_that_the_node_cordoned_is_shown_and_uncordoned_at_the_node(scene):
    async def play():
        cordon = ChipCordon(chip_id=ChipId("cpu0"), cause=CordonCause.DEGRADED, reason="97 °C", by="node", since_s=1.0)
        scene.node.board.see_desk((), (cordon,))

        async def is_shown():
            (row,) = await scene.daegu.get("/api/v1/chips")
            return row["cordon_reason"] == "degraded: 97 °C"

        await until(is_shown, "the site shows it")
        assert scene.planned() == ["chat-1", "chat-2"]
        await scene.post("/api/v1/nodes/n1/chips/cpu0/uncordon")
        assert scene.node.uncordoned == ["cpu0"]
        answer = await scene.daegu.client.post("/api/v1/nodes/n1/chips/nothing/cordon", json={"reason": "x"})
        assert (answer.status_code, "it has cpu0" in answer.text) == (404, True)
        assert (await scene.daegu.client.post("/api/v1/nodes/n1/chips/cpu0/drain")).status_code == 400
        for path, status in (("nodes/n9/drain", 404), ("nodes/n1/explode", 400)):
            answer = await scene.hub.client.post(f"/api/v1/sites/daegu/{path}")
            assert answer.status_code == status, answer.text

    scene.run(play())


def test_a_node_is_drained_through_the_hub_with_a_reason(scene):
    async def play():
        await scene.hub.call("POST", "/api/v1/sites/daegu/nodes/n1/drain", {"reason": "new fans"})
        await until(lambda: scene.planned() == [], "the plan is empty")

        async def hub_knows():
            rows = await scene.hub.call("GET", "/api/v1/nodes")
            return [row for row in rows if (row["is_draining"], row["cordon_reason"]) == (True, "new fans")]

        await until(hub_knows, "the hub shows it")
        assert (await scene.daegu.get("/api/v1/nodes"))[0]["cordon_reason"] == "new fans"
        await scene.hub.call("POST", "/api/v1/sites/daegu/nodes/n1/uncordon")
        await until(lambda: scene.planned() == ["chat-1", "chat-2"], "replicas are back")

    scene.run(play())


def test_an_engine_is_restarted_through_its_node(scene):
    async def play():
        await until(lambda: len(scene.daegu.live().replicas) == 2, "replicas are known")
        answer = await scene.post("/api/v1/replicas/chat-2/restart", 202)
        assert answer["node"] == "n1"
        assert scene.node.restarted == ["chat-2"]
        await scene.post("/api/v1/replicas/nobody/restart", 404)

    scene.run(play())


def test_a_silent_node_is_said_to_be_and_its_engines_stay_offered(scene):
    async def play():
        await scene.node.stop()

        async def is_silent():
            return (await scene.daegu.get("/api/v1/nodes"))[0]["state"] == "silent"

        await until(is_silent, "it is seen to be silent")
        assert len(scene.daegu.live().replicas) == 2
        assert "n1" in (await scene.daegu.client.get("/readyz")).text
        await scene.node.start()
        await until(lambda: has_state(scene, "connected"), "it is back")

    scene.run(play())


async def has_state(scene, state):
    return (await scene.daegu.get("/api/v1/nodes"))[0]["state"] == state


def test_a_node_that_holds_a_newer_plan_gets_one_above_it(scene):
    async def play():
        await scene.node.stop()
        scene.node = FakeNode(scene.port, generation=57)
        await scene.node.start()
        await until(lambda: scene.planned() == ["chat-1", "chat-2"], "the plan was taken")
        assert scene.node.plan.generation == 58

    scene.run(play())


@pytest.mark.deep
def test_a_wiped_site_stops_nothing_that_runs(scene):
    async def play():
        scene.hub.nats.kill()
        plan = scene.node.plan
        scene.daegu.kill()
        for path in scene.daegu.folder.glob("site.db*"):
            path.unlink()
        scene.daegu.start()
        await until(lambda: knows_replicas(scene), "it sees what runs")
        assert scene.node.plan is plan, "and tells nobody to stop"
        await scene.hub.nats.start()
        await until(lambda: scene.node.plan.generation > plan.generation, "planned again", 30)
        assert scene.planned() == ["chat-1", "chat-2"]

    scene.run(play())


async def knows_replicas(scene):
    return await scene.daegu.is_serving() and (await scene.daegu.status())["replicas_ready"] == 2


def test_a_wrong_token_is_named(scene):
    async def play():
        path = scene.daegu.settings.nodes[0].token_file
        path.write_text("wrong")
        scene.daegu.kill()
        scene.daegu.start()
        await until(scene.daegu.is_serving, "daegu serves")

        async def says_401():
            return "401" in (await scene.daegu.get("/api/v1/nodes"))[0]["reason"]

        await until(says_401, "the refusal is shown")
        path.write_text(TOKEN)
        await until(lambda: has_state(scene, "connected"), "the right one is picked up")

    scene.run(play())
