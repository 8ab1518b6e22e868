"""A node as a real pilot has it: four RNGD and four ATOM CA22 in one server, discovered, scheduled and drained.

The cards are vendors' twins that answer through the vendors' tools and sysfs; node program, shims and engine processes
are real, the engines are played by the twins of furiosa-llm and of vLLM with the RBLN plugin, which open the devices
that they are given. The site's part is its own policy, called with what the node observed.
"""

import threading

import pytest
from tests import loopback
from tests.node.twin_lab import GIB, NODE, TwinLab

from madang.model import ChipHealth, CordonCause, ReplicaPhase

pytestmark = pytest.mark.peer


@pytest.fixture
def lab(tmp_path):
    lab = TwinLab(tmp_path, rngd=4, atoms=4)
    try:
        yield lab.start()
    finally:
        lab.close()
    lab.assert_never_busy()


def is_asked(replica):
    text = loopback.get(f"{replica.endpoint}/metrics", trust_env=False).text
    return 'num_requests_running{engine="0",model_name="chat"} 1.0' in text


def test_a_mixed_node_is_discovered_scheduled_cordoned_and_drained(lab):
    chips = lab.observed().chips
    assert [chip.kind for chip in chips] == ["furiosa"] * 4 + ["rebellions"] * 4
    assert {(chip.health, chip.is_simulated) for chip in chips} == {(ChipHealth.OK, True)}
    rngd, atoms = [chip.chip_id for chip in chips[:4]], [chip.chip_id for chip in chips[4:]]

    lab.want("small", 2, "furiosa_llm", cores=2, memory_bytes=10 * GIB)
    lab.want("large", 1, "furiosa_llm", chips=2, memory_bytes=90 * GIB)
    lab.want("chat", 1, "vllm", chips=2, memory_bytes=20 * GIB, token_period_s=0.05, answer_tokens=30)
    lab.want("embed", 3, "vllm")
    (unplaced,) = lab.place().unplaced
    assert unplaced.replica_id == "embed-3"
    assert "needs 1 chip of kind rebellions, 0 can be given" in unplaced.reason
    ready = lab.wait_all_ready()
    assert {replica.is_simulated for replica in ready.values()} == {True}
    # Two cards of one NUMA node for what needs two; the small ones share one card, by PEs.
    assert set(lab.given["large-1"][0]) in (set(rngd[:2]), set(rngd[2:]))
    (card,) = {lab.given[f"small-{n}"][0][0] for n in (1, 2)}
    assert {lab.given[f"small-{n}"][1] for n in (1, 2)} == {(0, 1), (2, 3)}
    holders = lab.opened()
    for replica_id, (chip_ids, cores) in lab.given.items():
        pid = ready[replica_id].pid
        if chip_ids[0] in rngd:
            wanted = {(rngd.index(one), pe) for one in chip_ids for pe in cores or range(8)}
            assert lab.told_devices(pid) == {place for place, holder in holders.items() if holder == pid} == wanted
        else:
            assert lab.told_numbers(pid) == tuple(atoms.index(one) for one in chip_ids)
    free = {chip.chip_id for chip in chips} - {one for chip_ids, _ in lab.given.values() for one in chip_ids}
    assert len(free) == 1

    # One card of each vendor goes bad: each is cordoned alone with its reason, and what was there moves if it can.
    lab.atoms.fault(atoms.index(lab.given["embed-1"][0][0]))
    lab.rngd.kill(rngd.index(card))
    bad = {lab.given["embed-1"][0][0], card}
    lab.wait(lambda: {one.chip_id for one in lab.observed().cordons} == bad, "both are cordoned")
    reasons = {one.cause: one.reason for one in lab.observed().cordons}
    assert set(reasons) == {CordonCause.FAILED}
    assert {one.chip_id: one.reason.partition(": ")[2] for one in lab.observed().cordons} == {
        lab.given["embed-1"][0][0]: "rbln-smi says status 'fault'",
        card: "furiosa-smi status says liveness 'dead'",
    }
    before = lab.given
    unplaced = [one.replica_id for one in lab.place().unplaced]
    assert {one: lab.given[one] for one in ("large-1", "chat-1", "embed-2")} == {
        one: before[one] for one in ("large-1", "chat-1", "embed-2")
    }
    assert set(unplaced) == {"embed-1", "embed-3"}, "no other card of the kind is free"
    assert {lab.given[f"small-{n}"][0] for n in (1, 2)} == {(one,) for one in free}
    moved = lab.wait_all_ready("small-1", "small-2", after=(ready["small-1"], ready["small-2"]))
    wanted = {(rngd.index(next(iter(free))), pe) for pe in range(4)}
    assert lab.told_devices(moved["small-1"].pid) | lab.told_devices(moved["small-2"].pid) == wanted

    # Drained: what is asked is answered to its end, every card is back, and the cordons stay.
    lab.kill()
    lab.start()
    answers = []
    asking = threading.Thread(target=lambda: answers.append(lab.ask(ready["chat-1"], model="chat").text))
    asking.start()
    lab.wait(lambda: is_asked(ready["chat-1"]), "a request runs")
    drained = lab.place(is_cordoned=True, is_draining=True)
    assert lab.plans[NODE] == ()
    assert all("is cordoned and drains" in item.reason for item in drained.unplaced)
    asking.join(60)
    assert answers[0].endswith("data: [DONE]\n\n"), "what ran was served to its end"
    lab.wait(lambda: lab.observed().replicas == (), "it is empty")
    lab.wait(lambda: lab.observed().leases == (), "and every card is back")
    assert lab.opened() == {}
    assert {one.chip_id for one in lab.observed().cordons} == bad


def test_what_has_not_come_back_is_not_given(lab):
    lab.want("single", 1, "furiosa_llm")
    lab.place()
    lab.wait_all_ready()
    ((first,), _) = lab.given["single-1"]
    number = [chip.chip_id for chip in lab.observed().chips].index(first)
    lab.wait(lambda: lab.chip(number).cores_occupied, "it is seen to be in use")
    # It is not wanted any more, and its card keeps the memory of the engine that ended.
    lab.rngd.cards[number].pes_stuck = tuple(range(8))
    del lab.assignments["single"]
    lab.place()
    lab.wait(lambda: lab.observed().replicas == (), "its engine is gone")
    lab.want("all", 1, "furiosa_llm", chips=4)
    (refused,) = lab.place().unplaced
    assert "3 can be given" in refused.reason
    assert f"{first} leased to single-1" in refused.reason
    lab.rngd.cards[number].pes_stuck = ()
    lab.wait(lambda: lab.observed().leases == (), "it is back")
    assert lab.place().unplaced == ()
    lab.wait_all_ready()
    assert lab.phase("all-1") is ReplicaPhase.READY
