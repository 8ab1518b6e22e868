"""Real node programs, shims and engines on fake cards and on the real processor: whatever is killed, in any order.

`/proc` is asked all the while which processes are on which card: never two engines on one. After each murder the card
is in use again, or free for another.
"""

import itertools

import pytest
from tests.node.fake_npus import Card, find_engines, write_states
from tests.node.node_lab import NodeLab, is_running, kill
from tests.node.npu_lab import NpuLab

from madang.model import ChipLeaseState, CordonCause, ReplicaPhase

pytestmark = pytest.mark.peer
GIB = 1024**3


@pytest.fixture
def make_lab(tmp_path):
    labs = []

    def make(*cards):
        labs.append(NpuLab(tmp_path, *(cards or (Card("n0", "npu"), Card("n1", "npu")))))
        return labs[-1].start()

    yield make
    for lab in labs:
        lab.close()
        assert lab.crowded == [], "two engines were on one card"


def murder(lab, victims, replica):
    """Kill engine, shim and node program in the order given, and start the node again if it was among them."""
    shim = lab.record("chat").shim.pid
    for victim in victims:
        if victim == "node":
            lab.kill()
        else:
            kill(replica.pid if victim == "engine" else shim)
    if "node" in victims:
        lab.start()


ORDERS = [
    order
    for count in (1, 2, 3)
    for order in itertools.permutations(("engine", "shim", "node"), count)
    if not ("engine" in order and "shim" in order and order.index("shim") < order.index("engine"))
]
"""The engine dies with its shim: killing it thereafter is nothing new."""


QUICK_ORDERS = [("node",), ("shim",), ("node", "engine", "shim")]


@pytest.mark.parametrize("orders", [QUICK_ORDERS, pytest.param(ORDERS, marks=pytest.mark.deep)], ids=["few", "all"])
def test_any_order_of_deaths_leaves_one_engine_on_its_card_and_none_on_a_card_of_nobody(make_lab, orders):
    lab = make_lab()
    lab.plan(lab.on("chat", "n0"))
    for order in orders:
        before = lab.wait_ready()
        murder(lab, order, before)
        is_kept = order == ("node",)
        after = lab.wait_ready(is_right=lambda r, b=before, k=is_kept: (r.pid == b.pid) is k)
        assert find_engines(lab.folder) == {"n0": {after.pid}}, order
        assert lab.leases()["chat"].state is ChipLeaseState.LEASED
    lab.plan(lab.on("next", "n0"))
    lab.wait_ready("next")
    assert set(lab.leases()) == {"next"}
    assert lab.cordons() == {}


@pytest.mark.parametrize(
    "victims",
    [
        pytest.param(("node",), marks=pytest.mark.deep),
        ("node", "engine"),
        pytest.param(("engine", "node"), marks=pytest.mark.deep),
    ],
    ids="-".join,
)
def test_a_card_of_a_replica_that_is_not_wanted_any_more_is_free_after_deaths(make_lab, victims):
    lab = make_lab()
    lab.plan(lab.on("chat", "n0", token_period_s=0.05))
    before = lab.wait_ready()
    lab.plan(lab.on("next", "n0"))
    for victim in victims:
        lab.kill() if victim == "node" else kill(before.pid)
    lab.start()
    after = lab.wait_ready("next")
    assert not is_running(before.pid)
    assert find_engines(lab.folder) == {"n0": {after.pid}}
    assert set(lab.leases()) == {"next"}


def test_a_card_is_given_on_only_when_its_memory_is_free(make_lab):
    lab = make_lab()
    lab.plan(lab.on("chat", "n0"))
    before = lab.wait_ready()
    write_states(lab.folder, n0={"left_bytes": 30 * GIB})
    lab.plan(lab.on("next", "n0"))
    lab.wait(lambda: not is_running(before.pid), "the engine ended")
    waiting = lab.wait_phase(ReplicaPhase.BACKOFF, "next", lambda r: "memory was not seen" in r.reason)
    assert "leased to daegu-chat-0" in waiting.reason
    assert lab.leases()["chat"].state is ChipLeaseState.CLEARING
    lab.kill()  # what is waited for is known to the next life as well
    lab.start()
    lab.wait_phase(ReplicaPhase.BACKOFF, "next", lambda r: "memory was not seen" in r.reason)
    assert find_engines(lab.folder) == {}
    write_states(lab.folder, n0={})
    lab.wait_ready("next")


def test_a_card_that_somebody_else_uses_gets_no_engine(make_lab):
    lab = make_lab()
    write_states(lab.folder, n0={"left_bytes": 30 * GIB})
    lab.wait(lambda: lab.observed().chips[0].memory_free_bytes == 18 * GIB, "it is seen")
    lab.plan(lab.on("chat", "n0"))
    lab.wait_phase(ReplicaPhase.BACKOFF, "chat", lambda r: "somebody else" in r.reason)


def test_two_replicas_that_are_told_to_share_a_card_do_not(make_lab):
    lab = make_lab()
    lab.plan(lab.on("chat", "n0"), lab.on("other", "n0"))
    lab.wait(lambda: {r.phase for r in lab.observed().replicas} == {ReplicaPhase.READY, ReplicaPhase.BACKOFF}, "one")
    (winner,) = [r for r in lab.observed().replicas if r.phase is ReplicaPhase.READY]
    (loser,) = [r for r in lab.observed().replicas if r.phase is not ReplicaPhase.READY]
    assert loser.reason.startswith(f"leased to {winner.replica_id}")
    lab.plan(lab.on(loser.service, "n0"))
    lab.wait_ready(loser.service)


def test_lost_records_let_no_second_engine_in(make_lab):
    """Leases and plan are lost and the engine lives: it is found by its own record and ended first."""
    lab = make_lab()
    lab.plan(lab.on("chat", "n0"))
    lab.wait_ready()
    lab.kill()
    for path in (lab.settings.state_dir / "chips.json", lab.settings.state_dir / "plan.json"):
        path.unlink()
    lab.start()
    lab.plan(lab.on("next", "n0"), generation=7)
    after = lab.wait_ready("next")
    assert find_engines(lab.folder) == {"n0": {after.pid}}


def test_damaged_records_are_put_aside(make_lab):
    lab = make_lab()
    lab.plan(lab.on("chat", "n0"))
    before = lab.wait_ready()
    lab.kill()
    (lab.settings.state_dir / "chips.json").write_text("{torn", encoding="utf-8")
    lab.start()
    assert lab.wait_ready().pid == before.pid
    assert set(lab.leases()) == {"chat"}
    assert "chip_records_damaged" in lab.events()


def test_a_bad_card_is_condemned_through_restarts_until_somebody_says_otherwise(make_lab):
    lab = make_lab()
    write_states(lab.folder, n0={"health": "failed", "reason": "link down"})
    cordon = lab.wait(lambda: lab.cordons().get("n0"), "n0 is cordoned")
    assert (cordon.cause, cordon.by) == (CordonCause.FAILED, "node")
    assert cordon.reason.endswith("link down")
    write_states(lab.folder, n0={})
    lab.kill()
    lab.start()
    assert set(lab.cordons()) == {"n0"}
    assert 'madang_node_chip_cordoned{cause="failed",chip="n0"} 1.0' in lab.client.get("/metrics").text
    assert lab.client.post("/api/v1/chips/n0/uncordon").json() == {"chip_id": "n0", "lifted": 1}
    assert lab.cordons() == {}
    assert lab.client.post("/api/v1/chips/nobody/uncordon").status_code == 404


@pytest.mark.deep
def test_engines_that_die_on_one_card_condemn_it(make_lab):
    lab = make_lab()
    lab.plan(lab.on("chat", "n0"))
    for _ in range(5):
        before = lab.wait_ready()
        kill(before.pid)
        lab.wait(lambda b=before: lab.replica().pid != b.pid, "its end was noticed")
    cordon = lab.wait(lambda: lab.cordons().get("n0"), "n0 is cordoned")
    assert (cordon.cause, cordon.by) == (CordonCause.ENGINE_DEATHS, "node")


def test_the_real_processor_is_shared_and_given_back_at_once(tmp_path):
    lab = NodeLab(tmp_path)
    try:
        lab.start()
        lab.plan(lab.spec("chat"), lab.spec("other"))
        replicas = [lab.wait_ready("chat"), lab.wait_ready("other")]
        assert [lease.chip_ids for lease in lab.observed().leases] == [("cpu0",)] * 2
        lab.kill()
        kill(replicas[0].pid)
        lab.start()
        after = lab.wait_ready("chat", lambda r: r.pid != replicas[0].pid)
        assert lab.wait_ready("other").pid == replicas[1].pid
        assert len(lab.live_engines()) == 2
        assert is_running(after.pid)
        lab.plan()
        lab.wait_gone("chat")
        lab.wait_gone("other")
        lab.wait(lambda: lab.observed().leases == (), "nothing is leased")
        assert lab.observed().cordons == ()
    finally:
        lab.close()
