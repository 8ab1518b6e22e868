"""The artifact cache: nothing unverified gets in, nothing altered stays in."""

import multiprocessing
import os

import pytest
from tests.node.artifact_sources import file_of

from madang.core import Rejected, Unavailable
from madang.model import Artifact, CatalogEntry, Task
from madang.node.cache import ArtifactCache, default_cache_dir, import_file

DATA = bytes(range(256)) * 64
FILE = file_of(DATA)


@pytest.fixture
def cache(tmp_path):
    return ArtifactCache(tmp_path / "cache")


def admit(cache, data, file=FILE):
    part = cache.part_of(file)
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(data)
    return cache.admit(part, file, "source S")


def test_a_good_file_enters_read_only_under_its_hash(cache):
    path = admit(cache, DATA)
    assert path == cache.folder / FILE.sha256[:2] / FILE.sha256
    assert path.read_bytes() == DATA
    assert path.stat().st_mode & 0o777 == 0o444
    assert cache.find(FILE) == path
    assert not cache.part_of(FILE).exists()


def test_a_wrong_hash_names_source_expected_and_found(cache):
    wrong = b"x" * len(DATA)
    with pytest.raises(Rejected) as caught:
        admit(cache, wrong)
    for text in ("source S", FILE.sha256, file_of(wrong).sha256, FILE.name):
        assert text in caught.value.message
    assert cache.find(FILE) is None
    assert not cache.part_of(FILE).exists()


def test_a_wrong_size_names_both(cache):
    with pytest.raises(Rejected, match=f"source S: expected {len(DATA)} bytes of weights.bin, found 3"):
        admit(cache, b"abc")


def test_an_altered_file_is_found_out_and_removed(cache):
    path = admit(cache, DATA)
    path.chmod(0o644)
    path.write_bytes(b"y" * len(DATA))
    assert cache.find(FILE) is None
    assert not path.exists()


def test_a_lost_marker_costs_one_hash_and_is_written_again(cache):
    path = admit(cache, DATA)
    marker = path.with_name(path.name + ".ok")
    marker.write_bytes(b"{torn")
    assert cache.find(FILE) == path
    assert marker.read_bytes() != b"{torn"


def test_a_cut_file_is_not_taken(cache):
    path = cache.path_of(FILE.sha256)
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA[:-1])
    assert cache.find(FILE) is None


def test_a_hash_is_never_a_path(cache):
    with pytest.raises(Rejected):
        cache.path_of("../../etc/passwd")


def test_space_is_checked_before(cache):
    with pytest.raises(Unavailable, match="MiB free"):
        cache.check_space(1 << 60)


def test_a_folder_that_cannot_be_made_names_itself(tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(Unavailable, match="file/cache"):
        ArtifactCache(tmp_path / "file" / "cache").check_space(1)


def test_the_default_folder():
    assert str(default_cache_dir({"MADANG_CACHE": "/m"})) == "/m/artifacts"
    assert str(default_cache_dir({"HOME": "/h"})) == "/h/.cache/madang/artifacts"


def hold_lock(folder, is_held, may_go):
    with ArtifactCache(folder).lock(FILE, lambda: None):
        is_held.set()
        may_go.wait(20)


def test_the_lock_excludes_other_processes_and_dies_with_its_holder(cache):
    context = multiprocessing.get_context("spawn")
    is_held, may_go = context.Event(), context.Event()
    holder = context.Process(target=hold_lock, args=(cache.folder, is_held, may_go))
    holder.start()
    try:
        assert is_held.wait(20)
        waits = []

        def on_wait():
            waits.append(1)
            if len(waits) == 2:
                os.kill(holder.pid, 9)
                holder.join(10)
            assert len(waits) < 1000

        with cache.lock(FILE, on_wait):
            assert len(waits) >= 2
    finally:
        holder.kill()
        holder.join(10)


ENTRY = CatalogEntry(
    name="m",
    task=Task.CHAT,
    title="M",
    licence="MIT",
    artifacts=(Artifact(artifact_id="a", engine="e", chip_kinds=("cpu",), files=(FILE,), memory_bytes=1),),
)


def test_an_imported_file_is_known_by_its_hash_alone(cache, tmp_path):
    brought = tmp_path / "any name.tmp"
    brought.write_bytes(DATA)
    seen = []
    entry, file, path = import_file(brought, cache, [ENTRY], seen.append)
    assert (entry, file, path) == (ENTRY, FILE, cache.find(FILE))
    assert seen[-1] == len(DATA)
    brought.write_bytes(b"changed afterwards")
    assert path.read_bytes() == DATA
    assert import_file(path, cache, [ENTRY])[2] == path  # again is harmless


def test_an_unknown_file_is_refused_with_what_was_expected(cache, tmp_path):
    brought = tmp_path / "b"
    brought.write_bytes(b"other")
    with pytest.raises(Rejected) as caught:
        import_file(brought, cache, [ENTRY])
    for text in (str(brought), FILE.sha256, file_of(b"other").sha256):
        assert text in caught.value.message
    with pytest.raises(Rejected, match="No such file"):
        import_file(tmp_path / "absent", cache, [ENTRY])
