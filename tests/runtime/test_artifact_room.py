"""Room in a cache: the least recently used leaves, and never what somebody pinned or is fetching."""

import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.node.artifact_sources import file_of

from madang.core import Rejected, Unavailable
from madang.policy.eviction import Held, choose_evictions
from madang.runtime.artifacts.cache import ArtifactCache
from madang.runtime.artifacts.room import ArtifactRoom

held_items = st.lists(
    st.builds(
        Held,
        sha256=st.text("0123456789abcdef", min_size=4, max_size=4),
        size_bytes=st.integers(0, 1000),
        used_at_s=st.floats(0, 10),
        is_pinned=st.booleans(),
    ),
    max_size=12,
    unique_by=lambda item: item.sha256,
)


@given(held_items, st.integers(0, 3000), st.integers(0, 5000), st.integers(0, 3000), st.integers(0, 100))
def test_what_is_pinned_never_leaves_and_what_leaves_is_enough_and_not_more(held, needed, quota, free, margin):
    found = choose_evictions(held, needed_bytes=needed, quota_bytes=quota, free_bytes=free, margin_bytes=margin)
    by_name = {item.sha256: item for item in held}
    leaving = [by_name[sha256] for sha256 in found.leaving]
    assert not any(item.is_pinned for item in leaving)

    def is_enough(items):
        freed = sum(item.size_bytes for item in items)
        stays = sum(item.size_bytes for item in held) - freed
        return free + freed >= needed + margin and (not quota or stays + needed <= quota)

    if found.short_bytes:
        assert not leaving
        assert not is_enough([item for item in held if not item.is_pinned])
    else:
        assert is_enough(leaving)
        assert not leaving or not is_enough(leaving[:-1])
        oldest_staying = [item for item in held if not item.is_pinned and item not in leaving]
        assert all(gone.used_at_s <= stays.used_at_s for gone in leaving for stays in oldest_staying)
    assert found == choose_evictions(
        reversed(held), needed_bytes=needed, quota_bytes=quota, free_bytes=free, margin_bytes=margin
    )


@pytest.fixture
def cache(tmp_path):
    return ArtifactCache(tmp_path / "cache")


def put(cache, number, used_at_s):
    data = bytes([number]) * 100_000
    file = file_of(data, f"file-{number}")
    cache.partial_folder.mkdir(parents=True, exist_ok=True)
    cache.part_of(file).write_bytes(data)
    path = cache.admit(cache.part_of(file), file, "test")
    os.utime(path.with_name(path.name + ".ok"), (used_at_s, used_at_s))
    os.utime(path, (used_at_s, used_at_s))
    # The marker vouches for the time of the file, so it is written anew.
    cache.move_in(path, file.sha256)
    os.utime(path.with_name(path.name + ".ok"), (used_at_s, used_at_s))
    return file


def test_the_least_recently_used_leaves_and_use_counts(cache):
    old, older, pinned = put(cache, 1, 300), put(cache, 2, 200), put(cache, 3, 100)
    room = ArtifactRoom(cache, quota_bytes=320_000)
    room.pin("node-daegu-1", {pinned.sha256})
    assert cache.find(older) is not None  # it is the newest now
    assert room.make_room("f" * 64, 90_000) == (old.sha256,)
    assert cache.find(old) is None
    assert cache.find(older) is not None
    assert cache.find(pinned) is not None


def test_nothing_leaves_when_it_would_not_be_enough(cache):
    files = [put(cache, number, number) for number in (1, 2)]
    room = ArtifactRoom(cache, quota_bytes=250_000)
    room.pin("node-a", {files[0].sha256})
    with pytest.raises(Unavailable, match="are in use") as caught:
        room.make_room("f" * 64, 200_000)
    assert "raise the quota" in caught.value.next_step
    assert all(cache.find(file) is not None for file in files)


def test_what_is_being_fetched_does_not_leave(cache):
    file = put(cache, 1, 100)
    room = ArtifactRoom(cache, quota_bytes=150_000)
    with cache.lock(file, lambda: None), pytest.raises(Unavailable):
        room.make_room("f" * 64, 100_000)
    assert room.make_room("f" * 64, 100_000) == (file.sha256,)


def test_unfinished_files_count_and_leave_too(cache):
    cache.partial_folder.mkdir(parents=True)
    left = cache.partial_folder / f"{'a' * 64}.data"
    left.write_bytes(b"x" * 200_000)
    room = ArtifactRoom(cache, quota_bytes=250_000)
    assert [item.sha256 for item in room.list_held()] == ["a" * 64]
    assert room.make_room("f" * 64, 100_000) == ("a" * 64,)
    assert not left.exists()


def test_every_owner_counts_and_an_owner_replaces_its_own_pins(cache):
    file = put(cache, 1, 100)
    room = ArtifactRoom(cache, quota_bytes=110_000)
    room.pin("node-a", {file.sha256})
    room.pin("node-b", {file.sha256})
    room.pin("node-a", ())
    with pytest.raises(Unavailable):
        room.make_room("f" * 64, 100_000)
    assert room.unpin("node-b")
    assert not room.unpin("node-b")
    assert room.make_room("f" * 64, 100_000) == (file.sha256,)


def test_pins_that_cannot_be_read_stop_all_removing(cache):
    put(cache, 1, 100)
    room = ArtifactRoom(cache, quota_bytes=110_000)
    room.pin("node-a", ())
    (cache.folder / ".pins" / "node-b.json").write_text("{")
    with pytest.raises(Unavailable, match=r"node-b\.json cannot be read"):
        room.make_room("f" * 64, 100_000)
    with pytest.raises(Rejected, match="no owner"):
        room.pin("../x", ())


def test_pinning_and_removing_at_once_never_loses_what_is_pinned(cache):
    files = [put(cache, number, number) for number in range(8)]
    room = ArtifactRoom(cache, quota_bytes=10)
    wrong = []

    def pin_and_look(file):
        own = ArtifactRoom(cache)
        own.pin(f"owner-{file.sha256[:8]}", {file.sha256})
        first = cache.find(file) is not None
        wrong.extend(file.sha256 for _ in range(20) if (cache.find(file) is not None) is not first)

    threads = [threading.Thread(target=pin_and_look, args=(file,)) for file in files[:4]]
    for thread in threads:
        thread.start()
    for _ in range(10):
        try:
            room.make_room("f" * 64, 0)
        except Unavailable:
            continue
    for thread in threads:
        thread.join()
    assert wrong == []
