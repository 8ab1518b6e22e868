"""A node as a real pilot has it: four RNGD and four ATOM CA22 in one server, discovered, scheduled and drained.

The cards are fakes; the node program, the shims and the engines' processes are real, the engines are played by their
twin. The site's part is its own policy, called with what the node observed.
"""

import threading

import pytest
from tests.node.fake_npus import Card, find_engines, write_states
from tests.node.npu_lab import NpuLab

from madang.core import NodeId, ServiceName
from madang.model import Artifact, Assignment, CatalogEntry, ReplicaPhase, Service, Task
from madang.policy.placement import NodeView, plan_placement

pytestmark = pytest.mark.peer
GIB = 1024**3
RNGD_SETS = ((0, 1), (2, 3), (4, 5), (6, 7), (0, 1, 2, 3), (4, 5, 6, 7))
CARDS = [
    *(
        Card(f"rngd-{n}", "furiosa", "RNGD", 48 * GIB, 8, RNGD_SETS, "", n // 2, f"0000:{0x10 + n:02x}:00.0")
        for n in range(4)
    ),
    *(
        Card(f"ca22-{n}", "rebellions", "RBLN-CA22", 16 * GIB, 1, (), f"sid{n}", n // 2, f"0000:{0x80 + n:02x}:00.0")
        for n in range(4)
    ),
]


class Site:
    """What a site does: reads the node, plans by policy, hands the plan over."""

    def __init__(self, lab):
        self.lab = lab
        self.models, self.services, self.assignments, self.plans = {}, {}, {}, {}

    def want(self, name, replicas, kind, *, chips=1, cores=0, memory_bytes=GIB, **behaviour):
        spec = self.lab.spec(name, **behaviour)
        artifact = Artifact(
            artifact_id="a",
            engine="llama_cpp",
            chip_kinds=(kind,),
            files=spec.artifact.files,
            memory_bytes=memory_bytes,
            chips=chips,
            cores=cores,
        )
        self.models[name] = CatalogEntry(name=name, task=Task.CHAT, title=name, licence="x", artifacts=(artifact,))
        self.services[name] = Service(name=ServiceName(name), model=name, slots=2, context_tokens=1024)
        self.assignments[name] = Assignment(service=ServiceName(name), replicas=replicas)

    def plan(self, **view):
        seen = self.lab.observed()
        node = NodeView(node=NodeId("daegu-1"), chips=seen.chips, leases=seen.leases, cordons=seen.cordons, **view)
        placement = plan_placement(self.assignments.values(), self.services, self.models, [node], self.plans)
        self.plans = placement.replicas
        assert self.lab.plan(*placement.replicas[node.node]).status_code == 200
        return placement

    def wait_ready(self, count):
        def look():
            ready = [r for r in self.lab.observed().replicas if r.phase is ReplicaPhase.READY]
            return ready if len(ready) == count else None

        return {replica.replica_id: replica for replica in self.lab.wait(look, f"{count} replicas are ready")}


@pytest.fixture
def lab(tmp_path):
    lab = NpuLab(tmp_path, *CARDS)
    lab.engines_max = 4  # four core sets of one RNGD
    try:
        yield lab.start()
    finally:
        lab.close()
        assert lab.crowded == []


def test_a_mixed_node_is_discovered_scheduled_and_drained(lab):
    site = Site(lab)
    assert {chip.chip_id: chip.kind for chip in lab.observed().chips} == {card.chip_id: card.kind for card in CARDS}
    site.want("small", 3, "furiosa", cores=2, memory_bytes=10 * GIB)
    site.want("large", 1, "furiosa", chips=2, memory_bytes=90 * GIB)
    site.want("chat", 1, "rebellions", chips=2, memory_bytes=20 * GIB, token_period_s=0.05, answer_tokens=40)
    site.want("embed", 3, "rebellions")
    placement = site.plan()
    assert [(item.replica_id, item.service) for item in placement.unplaced] == [("embed-3", "embed")]
    assert "needs 1 chip of kind rebellions, 0 can be given" in placement.unplaced[0].reason
    assert "ca22-0 leased to chat-1" in placement.unplaced[0].reason
    ready = site.wait_ready(7)
    given = {spec.replica_id: (spec.chip_ids, spec.cores) for spec in site.plans["daegu-1"]}
    # Two cards of one NUMA node each for those that need two; the small ones share one card.
    assert given["large-1"] in {(("rngd-0", "rngd-1"), ()), (("rngd-2", "rngd-3"), ())}
    assert given["chat-1"] in {(("ca22-0", "ca22-1"), ()), (("ca22-2", "ca22-3"), ())}
    (card,) = {given[f"small-{n}"][0] for n in (1, 2, 3)}
    assert {given[f"small-{n}"][1] for n in (1, 2, 3)} == {(0, 1), (2, 3), (4, 5)}
    on_cards = find_engines(lab.folder)
    assert len(on_cards[card[0]]) == 3
    for chip_id in given["large-1"][0]:
        assert on_cards[chip_id] == {ready["large-1"].pid}

    answers = []
    asking = threading.Thread(target=lambda: answers.append(lab.ask(ready["chat-1"]).text))
    asking.start()
    lab.wait(lambda: lab.requests_running(ready["chat-1"]), "a request runs")
    drained = site.plan(is_cordoned=True, is_draining=True)
    assert site.plans["daegu-1"] == ()
    assert all("is cordoned and drains" in item.reason for item in drained.unplaced)
    asking.join(30)
    assert answers[0].endswith("data: [DONE]\n\n"), "what ran was served to its end"
    lab.wait(lambda: lab.observed().replicas == (), "it is empty")
    lab.wait(lambda: lab.observed().leases == (), "and every card is back")
    assert find_engines(lab.folder) == {}
    assert lab.observed().cordons == ()


def test_a_bad_card_is_left_and_what_is_not_back_is_not_given(lab):
    site = Site(lab)
    site.want("one", 1, "furiosa")
    first = site.plan().replicas["daegu-1"][0].chip_ids
    site.wait_ready(1)
    # The card fails: its replica moves, and the memory that it keeps is not given to another.
    write_states(lab.folder, **{first[0]: {"health": "failed", "reason": "link down", "left_bytes": 40 * GIB}})
    lab.wait(lambda: any(chip.health == "failed" for chip in lab.observed().chips), "it is seen")
    second = site.plan().replicas["daegu-1"][0].chip_ids
    assert second != first
    lab.wait(lambda: {r.chip_ids: r.phase for r in lab.observed().replicas} == {second: ReplicaPhase.READY}, "moved")
    site.want("all", 1, "furiosa", chips=3)
    (refused,) = site.plan().unplaced
    assert "2 can be given" in refused.reason
    assert f"{second[0]} leased to one-1" in refused.reason
    assert f"{first[0]} " in refused.reason
