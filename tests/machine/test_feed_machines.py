"""Slots and digests: the two small machines behind the gateway's feed."""

from hypothesis import given
from hypothesis import strategies as st

from madang.core import SiteId
from madang.machine.feed_digests import BOOTS_MAX, SITES_MAX, DigestBook
from madang.machine.feed_slots import SLOTS_MAX, SlotTable, assign_slots
from madang.wire.bus import Digest

replica_sets = st.lists(st.frozensets(st.integers(0, 40).map(lambda n: f"chat-{n}"), max_size=30), max_size=12)


@given(replica_sets)
def test_a_replica_keeps_its_slot_and_no_two_share_one(rounds):
    table = SlotTable()
    for wanted in rounds:
        after = assign_slots(table, wanted)
        assert set(after.slots) == wanted
        assert len(set(after.slots.values())) == len(after.slots)
        assert all(0 <= slot < SLOTS_MAX for slot in after.slots.values())
        for replica_id in wanted & set(table.slots):
            assert after.slots[replica_id] == table.slots[replica_id]
        assert assign_slots(after, wanted) == after
        table = after


def test_a_freed_slot_is_the_last_to_be_used_again():
    table = assign_slots(SlotTable(), ["a"])
    for number in range(SLOTS_MAX - 1):
        table = assign_slots(table, [f"b{number}"])
        assert table.slots[f"b{number}"] != 0
    assert assign_slots(table, ["c"]).slots["c"] == 0


def test_the_table_has_an_end():
    wanted = [f"r{number:03}" for number in range(SLOTS_MAX + 1)]
    table = assign_slots(SlotTable(), wanted)
    assert len(table.slots) == SLOTS_MAX
    assert wanted[-1] not in table.slots
    fewer = assign_slots(table, wanted[1:])
    assert fewer.slots[wanted[-1]] == table.slots[wanted[0]]


def make_digest(site="gumi", boot="b1", seq=1):
    return Digest(site=SiteId(site), boot_id=boot, seq=seq, sent_at_s=0.0, services=(), offers=())


def test_an_older_digest_of_the_same_boot_is_refused():
    book = DigestBook()
    assert book.hear(make_digest(seq=5), 0)
    assert not book.hear(make_digest(seq=5), 1)
    assert not book.hear(make_digest(seq=4), 2)
    assert book.hear(make_digest(seq=6), 3)
    assert book.newest("gumi").seq == 6


def test_a_restarted_site_is_heard_and_its_former_life_is_not():
    book = DigestBook()
    book.hear(make_digest(boot="b1", seq=900), 0)
    assert book.hear(make_digest(boot="b2", seq=1), 1)
    assert not book.hear(make_digest(boot="b1", seq=901), 2)
    assert book.newest("gumi").boot_id == "b2"


def test_the_age_grows_with_time_alone_and_is_negative_when_nothing_came():
    book = DigestBook()
    assert book.age_s("gumi", 5) == -1.0
    book.hear(make_digest(seq=2), 1_000_000_000)
    assert book.age_s("gumi", 3_500_000_000) == 2.5
    book.hear(make_digest(seq=1), 3_000_000_000)
    assert book.age_s("gumi", 3_500_000_000) == 2.5, "a refused digest makes nothing younger"


def test_sites_and_boots_are_bounded():
    book = DigestBook()
    for number in range(SITES_MAX):
        assert book.hear(make_digest(site=f"s{number}"), 0)
    assert not book.hear(make_digest(site="one_more"), 0)
    book.keep_only(frozenset({"s1"}))
    assert book.newest("s0") is None
    assert book.hear(make_digest(site="one_more"), 0)
    for number in range(BOOTS_MAX + 2):
        assert book.hear(make_digest(site="s1", boot=f"boot{number}"), 0)
    assert not book.hear(make_digest(site="s1", boot="boot2"), 0)
