"""Parts of one RNGD, end to end: a core set becomes the device that an engine opens, and whatever dies, no two overlap.

The kernel says which process has which PE open, whatever the node program believes.
"""

import pytest
from tests.node.node_lab import is_running, kill
from tests.node.twin_lab import TwinLab

from madang.model import ChipLeaseState, ReplicaPhase

pytestmark = pytest.mark.peer
ALL = tuple(range(8))


@pytest.fixture
def lab(tmp_path):
    lab = TwinLab(tmp_path, rngd=1)
    try:
        yield lab.start()
    finally:
        lab.close()
    lab.assert_never_busy()


def opened_by(lab, replica):
    """Return which PEs of the only card the engine of a replica has open."""
    return tuple(sorted(pe for (_, pe), pid in lab.opened().items() if pid == replica.pid))


def test_parts_of_a_card_are_given_opened_kept_and_given_back_apart(lab):
    lab.want("left", 1, "furiosa_llm", cores=4)
    lab.want("pair", 1, "furiosa_llm", cores=2)
    lab.want("single", 2, "furiosa_llm", cores=1)
    assert lab.place().unplaced == ()
    ready = lab.wait_all_ready()
    parts = {replica_id: cores for replica_id, (_, cores) in lab.given.items()}
    assert sorted(core for cores in parts.values() for core in cores) == list(ALL)
    for replica_id, replica in ready.items():
        assert lab.told_devices(replica.pid) == {(0, core) for core in parts[replica_id]}
        assert opened_by(lab, replica) == parts[replica_id]
    assert lab.ask(ready["left-1"], model="left").text.endswith("data: [DONE]\n\n")
    lab.want("whole", 1, "furiosa_llm")
    (refused,) = lab.place().unplaced
    assert "leased to left-1, pair-1, single-1, single-2" in refused.reason

    # The node program dies with one engine, whose PEs stay occupied: nobody gets them, and the others keep theirs.
    lab.wait(lambda: lab.chip(0).cores_occupied == ALL, "all PEs are seen to be occupied")
    lab.rngd.cards[0].pes_stuck = parts["left-1"]
    lab.kill()
    kill(ready["left-1"].pid)
    lab.start()
    lab.wait(lambda: lab.phase("left-1") is ReplicaPhase.BACKOFF, "it waits for its own PEs")
    (waiting,) = [lease for lease in lab.observed().leases if lease.state is ChipLeaseState.CLEARING]
    assert (waiting.holder, waiting.cores) == ("left-1", parts["left-1"])
    assert (lab.chip(0).cores_occupied, opened_by(lab, ready["left-1"])) == (ALL, ())
    kept = lab.wait_all_ready("pair-1", "single-1", "single-2")
    assert all(kept[one].pid == ready[one].pid for one in ("pair-1", "single-1", "single-2"))
    lab.rngd.cards[0].pes_stuck = ()
    again = lab.wait_all_ready("left-1")["left-1"]
    assert again.pid != ready["left-1"].pid
    assert (opened_by(lab, again), opened_by(lab, kept["pair-1"])) == (parts["left-1"], parts["pair-1"])

    # When all parts are back the card can be given whole.
    for name in ("left", "pair", "single"):
        del lab.assignments[name]
    lab.place()
    lab.wait(lambda: lab.observed().leases == (), "every part is back")
    assert not is_running(again.pid)
    assert lab.place().unplaced == ()
    whole = lab.wait_all_ready()["whole-1"]
    assert lab.told_devices(whole.pid) == {(0, pe) for pe in ALL}
    assert lab.observed().cordons == ()
