"""What is told of transfers: rows with rate and rest, counts by source, bounded labels, and the metrics of both."""

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from tests.node.artifact_sources import file_of

from madang.model import TransferState
from madang.runtime.artifacts.book import OTHER, ROWS_MAX, SOURCES_MAX, TransferBook, label_of
from madang.runtime.artifacts.cache import ArtifactCache
from madang.runtime.artifacts.metrics import collect_room, collect_served, collect_transfers
from madang.runtime.artifacts.room import ArtifactRoom
from madang.runtime.artifacts.serving import ServedCounts

FILE = file_of(b"x" * 1000)


class FakeClock:
    """Time that stands still until it is moved."""

    def __init__(self):
        self.s = 100.0

    def monotonic_ns(self):
        return round(self.s * 1e9)

    def wall_s(self):
        return self.s


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def book(clock):
    return TransferBook(clock)


def test_a_file_is_told_from_its_wait_to_its_end(book, clock):
    book.wait(FILE, 10)
    (row,) = book.rows()
    assert (row.state, row.done_bytes, row.rate_bytes_s) == (TransferState.WAITING, 10, 0.0)
    book.see(FILE, "store a", 200)
    clock.s += 2
    book.see(FILE, "store a", 600)
    (row,) = book.rows()
    assert (row.state, row.kept_bytes, row.done_bytes) == (TransferState.FETCHING, 200, 600)
    assert (row.rate_bytes_s, row.source) == (200.0, "store a")
    clock.s += 1
    book.end(FILE)
    assert book.rows() == ()
    counts = book.counts()
    assert counts.ended == {"done": 1, "failed": 0, "cancelled": 0}
    assert (counts.resumed, counts.resumed_bytes, counts.seconds) == (1, 200, 3.0)


def test_a_transfer_that_stalls_has_no_rate(book, clock):
    book.see(FILE, "store a", 0)
    clock.s += 1
    book.see(FILE, "store a", 500)
    assert book.rows()[0].rate_bytes_s == 500.0
    clock.s += 3
    assert book.rows()[0].rate_bytes_s == 125.0
    clock.s += 30
    assert book.rows()[0].rate_bytes_s == 0.0


def test_a_failure_stays_to_be_seen_until_it_is_tried_again_or_not_wanted(book):
    book.see(FILE, "store a", 300)
    book.end(FILE, reason="store a: answers with 503")
    (row,) = book.rows()
    assert (row.state, row.done_bytes, row.reason) == (TransferState.FAILED, 300, "store a: answers with 503")
    book.keep_only({FILE.sha256})
    assert book.rows() == (row,)
    book.see(FILE, "store a", 300)
    assert (book.rows()[0].state, book.rows()[0].reason) == (TransferState.FETCHING, "")
    book.keep_only(set())
    assert len(book.rows()) == 1, "what is being fetched ends by itself"
    book.end(FILE, reason="again")
    book.keep_only(set())
    assert book.rows() == ()


def test_a_cancelled_one_is_counted_and_not_shown(book):
    book.see(FILE, "store a", 1)
    book.end(FILE, reason="the fetch was cancelled", is_cancelled=True)
    assert book.rows() == ()
    assert book.counts().ended == {"done": 0, "failed": 0, "cancelled": 1}


def test_what_another_program_brought_is_no_transfer_of_ours(book):
    book.wait(FILE)
    book.end(FILE)
    assert (book.rows(), book.counts().ended["done"]) == ((), 0)


def test_whoever_gave_the_last_chunk_is_shown_and_bad_ones_are_counted(book):
    book.see(FILE, "site gumi + site pohang", 0)
    book.judged(FILE.sha256, "site gumi", 100, is_right=False)
    book.judged(FILE.sha256, "site pohang", 100, is_right=True)
    book.broke("site gumi")
    book.see(FILE, "site gumi + site pohang", 100)
    (row,) = book.rows()
    assert (row.source, row.wrong_chunks) == ("site pohang", 1)
    sources = book.counts().sources
    assert vars(sources["site gumi"]) == {"fetched_bytes": 0, "right_chunks": 0, "wrong_chunks": 1, "breaks": 1}
    assert vars(sources["site pohang"]) == {"fetched_bytes": 100, "right_chunks": 1, "wrong_chunks": 0, "breaks": 0}


@pytest.mark.parametrize(
    ("source", "label"),
    [
        ("site gumi", "site gumi"),
        ("site cache", "site cache"),
        ("store https://hub:7700", "store https://hub:7700"),
        ("folder /mnt/stick", "folder /mnt/stick"),
        ("disk", "disk"),
        ("https://huggingface.example/a/b?token=x", "publisher"),
        ("package magika 1.0", "package"),
        ("system package tesseract-ocr-kor", "package"),
        ("22 wheels", "index"),
        ("recipe solar-cells", "recipe"),
        ("something new", OTHER),
    ],
)
def test_a_source_is_counted_by_name_where_there_are_few(source, label):
    assert label_of(source) == label


def test_neither_labels_nor_rows_grow_for_ever(book):
    for number in range(SOURCES_MAX + 50):
        book.came_whole(f"site s{number}", 1)
    sources = book.counts().sources
    assert len(sources) == SOURCES_MAX + 1
    assert sources[OTHER].fetched_bytes == 50
    for number in range(ROWS_MAX + 50):
        book.see(file_of(str(number).encode()), "store a", 0)
    assert len(book.rows()) == ROWS_MAX


def scrape(*collects):
    class Collector:
        def collect(self):
            for collect in collects:
                yield from collect()

    registry = CollectorRegistry()
    registry.register(Collector())
    lines = generate_latest(registry).decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def test_the_metrics_say_what_the_book_has(book, clock):
    book.see(FILE, "site gumi", 400)
    book.judged(FILE.sha256, "site gumi", 300, is_right=True)
    book.judged(FILE.sha256, "site gumi", 300, is_right=False)
    clock.s += 1
    book.see(FILE, "site gumi", 700)
    found = scrape(lambda: collect_transfers("madang_site", book))
    assert found['madang_site_artifact_fetched_bytes_total{source="site gumi"}'] == 300
    assert found['madang_site_artifact_chunks_total{source="site gumi"}'] == 1
    assert found['madang_site_artifact_chunks_refused_total{source="site gumi"}'] == 1
    assert found['madang_site_artifact_source_breaks_total{source="site gumi"}'] == 0
    assert found['madang_site_artifact_transfers{state="fetching"}'] == 1
    assert found["madang_site_artifact_fetch_bytes_per_second"] == 300
    assert found["madang_site_artifact_resumed_bytes_total"] == 400
    assert found["madang_site_artifact_transfers_resumed_total"] == 1
    book.end(FILE)
    found = scrape(lambda: collect_transfers("madang_site", book))
    assert found['madang_site_artifact_transfers_ended_total{result="done"}'] == 1
    assert found["madang_site_artifact_transfer_seconds_total"] == 1
    assert found['madang_site_artifact_transfers{state="fetching"}'] == 0


def test_the_metrics_say_what_the_cache_holds_and_what_left_it(tmp_path):
    cache = ArtifactCache(tmp_path)
    files = [file_of(bytes([number]) * 200_000) for number in range(3)]
    for number, file in enumerate(files):
        cache.partial_folder.mkdir(exist_ok=True)
        cache.part_of(file).write_bytes(bytes([number]) * 200_000)
        cache.admit(cache.part_of(file), file, "test")
    room = ArtifactRoom(cache, quota_bytes=700_000)
    assert "madang_node_artifact_cache_files" not in scrape(lambda: collect_room("madang_node", room))
    room.pin("node-daegu-1", {files[0].sha256})
    held = room.measure()
    found = scrape(lambda: collect_room("madang_node", room))
    assert found["madang_node_artifact_cache_files"] == 3
    assert found['madang_node_artifact_cache_bytes{need="pinned"}'] == held.pinned_bytes >= 200_000
    assert found['madang_node_artifact_cache_bytes{need="loose"}'] == held.loose_bytes >= 400_000
    assert found["madang_node_artifact_cache_quota_bytes"] == 700_000
    room.make_room("ff" * 32, 200_000)
    found = scrape(lambda: collect_room("madang_node", room))
    assert found["madang_node_artifact_evicted_files_total"] == 1
    assert found["madang_node_artifact_evicted_bytes_total"] >= 200_000


def test_the_metrics_say_who_asked_and_what_went_out():
    counts = ServedCounts()
    counts.answered("site", "range")
    counts.answered("anybody", "invalid_token")
    counts.sent("site", 7)
    found = scrape(lambda: collect_served("madang_site", counts))
    assert found['madang_site_artifact_requests_total{answer="range",asker="site"}'] == 1
    assert found['madang_site_artifact_requests_total{answer="invalid_token",asker="anybody"}'] == 1
    assert found['madang_site_artifact_served_bytes_total{asker="site"}'] == 7
