"""Chunked transfers over real sockets: cuts, flipped bytes, bad sources, limits, kills; and the whole is the file."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.runtime.artifact_lab import CHUNK, Origin, cut, make_kit, source

from madang.core import Unavailable
from madang.runtime.artifacts.chunk_file import ChunkFile, data_path, journal_path, read_finished
from madang.runtime.artifacts.limiter import RateLimiter
from madang.runtime.artifacts.transfer import fetch_chunks
from madang.runtime.clock import SystemClock

DATA = os.urandom(40 * CHUNK + 1234)
FILE = cut(DATA)


def fetch(folder, sources, file=FILE, **options):
    cancel = options.pop("cancel", None) or threading.Event()
    report = options.pop("report", lambda done_bytes: None)
    return fetch_chunks(file, sources, folder, make_kit(**options), cancel=cancel, report=report)


def test_a_file_arrives_whole_in_one_request_a_span(tmp_path):
    origin, seen = Origin(DATA), []
    with origin.running() as url:
        path = fetch(tmp_path, [source(url)], report=seen.append)
    assert path.read_bytes() == DATA
    assert seen[-1] == len(DATA)
    assert seen == sorted(seen)
    # Until it is moved away, a kill must not cost what is here.
    assert len(read_finished(tmp_path, FILE)) == FILE.chunks
    assert len(origin.ranges) == 2


@pytest.mark.parametrize("size_bytes", [1, CHUNK - 1, CHUNK, CHUNK + 1])
def test_small_files_arrive_too(tmp_path, size_bytes):
    data = DATA[:size_bytes]
    with Origin(data).running() as url:
        assert fetch(tmp_path, [source(url)], cut(data)).read_bytes() == data


def test_a_link_that_is_cut_three_times_costs_no_finished_chunk(tmp_path):
    origin = Origin(DATA, watch=tmp_path, file=FILE)
    origin.cuts = [7 * CHUNK + 11, 9 * CHUNK, 3 * CHUNK + 5]
    with origin.running() as url:
        assert fetch(tmp_path, [source(url)]).read_bytes() == DATA
    assert origin.again == set()
    # What is sent twice is at most the chunk that each cut broke.
    assert origin.sent_bytes <= len(DATA) + 3 * CHUNK
    assert len(origin.ranges) == 4


def test_a_flipped_byte_is_named_and_fetched_from_another_source(tmp_path):
    bad, good, told = Origin(DATA), Origin(DATA), []
    bad.flips = {5 * CHUNK + 17}
    with bad.running() as bad_url, good.running() as good_url:
        sources = [source(bad_url, "site gumi"), source(good_url, "hub")]
        assert fetch(tmp_path, sources, on_bad=told.append).read_bytes() == DATA
    assert [(one.name, one.sha256, one.chunk, one.source) for one in told] == [
        ("weights.bin", FILE.sha256, 5, "site gumi")
    ]
    assert any(first <= 5 * CHUNK <= last for first, last in good.ranges)
    # It went behind the other: no more was asked of it.
    assert len(bad.ranges) == 1


def test_a_lone_source_that_lies_is_given_up_by_name_and_what_is_right_stays(tmp_path):
    origin = Origin(DATA)
    origin.flips = {3 * CHUNK}
    with origin.running() as url, pytest.raises(Unavailable, match="origin: chunk 3 has another hash"):
        fetch(tmp_path, [source(url)])
    assert 3 not in read_finished(tmp_path, FILE)
    assert read_finished(tmp_path, FILE)


def test_a_source_without_the_file_is_left_for_the_next(tmp_path):
    empty, good = Origin(DATA), Origin(DATA)
    empty.status = 404
    with empty.running() as empty_url, good.running() as good_url:
        assert fetch(tmp_path, [source(empty_url), source(good_url)]).read_bytes() == DATA
    assert len(empty.ranges) == 1


def test_two_sources_at_once_share_the_file(tmp_path):
    first, second = Origin(DATA), Origin(DATA)
    with first.running() as first_url, second.running() as second_url:
        sources = [source(first_url, "one"), source(second_url, "two")]
        assert fetch(tmp_path, sources, at_once=2).read_bytes() == DATA
    assert first.sent_bytes > 0
    assert second.sent_bytes > 0
    assert first.sent_bytes + second.sent_bytes == len(DATA)


def test_nobody_answers(tmp_path):
    with pytest.raises(Unavailable, match=r"0 of .* bytes are here") as caught:
        fetch(tmp_path, [source("http://127.0.0.1:9/x", "away")], patience_s=0.5)
    assert "away: " in caught.value.message
    with pytest.raises(Unavailable, match="it has no source"):
        fetch(tmp_path, [])


def test_a_cancelled_fetch_ends_in_the_middle_of_a_stalled_answer_and_keeps_what_came(tmp_path):
    origin, cancel = Origin(DATA), threading.Event()
    origin.gate, origin.gate_after = threading.Event(), 10 * CHUNK

    def see(done_bytes):
        if done_bytes >= 10 * CHUNK:
            cancel.set()

    with origin.running() as url, pytest.raises(Unavailable, match="cancelled"):
        fetch(tmp_path, [source(url)], cancel=cancel, report=see)
    assert read_finished(tmp_path, FILE) == set(range(10))


def test_a_stalled_source_is_left_for_another(tmp_path):
    stalled, good = Origin(DATA), Origin(DATA)
    stalled.gate, stalled.gate_after = threading.Event(), 5 * CHUNK
    with stalled.running() as stalled_url, good.running() as good_url:
        sources = [source(stalled_url), source(good_url)]
        assert fetch(tmp_path, sources, read_timeout_s=0.3).read_bytes() == DATA
    assert good.ranges[0][0] == 5 * CHUNK


def test_a_rate_is_kept(tmp_path):
    rate = 2_000_000
    data = DATA[: 30 * CHUNK]
    limiter = RateLimiter(SystemClock(), line_bytes_s=rate)
    began = time.monotonic()
    with Origin(data).running() as url:
        fetch(tmp_path, [source(url)], cut(data), limiter=limiter)
    # The burst of 1 MiB and one piece come for nothing.
    assert time.monotonic() - began >= (len(data) - 2**20 - 128 * 1024) / rate


def test_bytes_that_the_disk_lost_are_found_named_and_fetched_again(tmp_path):
    origin, told = Origin(DATA), []
    origin.cuts = [20 * CHUNK]
    origin.status = None
    with origin.running() as url:
        with pytest.raises(Unavailable):
            fetch(tmp_path, [source(url)], patience_s=0.05)
        assert len(read_finished(tmp_path, FILE)) == 20
        path = data_path(tmp_path, FILE.sha256)
        with path.open("r+b") as opened:
            opened.seek(7 * CHUNK)
            opened.write(b"\0" * 100)
        assert fetch(tmp_path, [source(url)], on_bad=told.append).read_bytes() == DATA
    assert [(one.chunk, one.source) for one in told] == [(7, "disk")]


def test_a_manifest_that_does_not_fit_itself_is_said_so(tmp_path):
    import msgspec

    wrong = msgspec.structs.replace(FILE, sha256="0" * 64)
    with Origin(DATA).running() as url, pytest.raises(Unavailable, match="the whole is") as caught:
        fetch(tmp_path, [source(url)], wrong)
    assert "whoever signed it" in caught.value.next_step


# The journal


def write_some(folder, chunks):
    chunk_file = ChunkFile(folder, FILE)
    for index in chunks:
        start, size_bytes = FILE.span_of(index)
        chunk_file.write(index, memoryview(DATA)[start : start + size_bytes])
    return chunk_file


def test_a_chunk_is_finished_when_it_is_flushed_and_not_before(tmp_path):
    chunk_file = write_some(tmp_path, [3, 1])
    assert read_finished(tmp_path, FILE) == set()
    chunk_file.flush()
    assert read_finished(tmp_path, FILE) == {1, 3}
    chunk_file.close()


@pytest.mark.parametrize("torn_bytes", range(1, 8))
def test_a_torn_record_is_no_record_and_hides_none_that_follow(tmp_path, torn_bytes):
    chunk_file = write_some(tmp_path, [0, 1, 2])
    chunk_file.flush()
    chunk_file.close()
    journal = journal_path(tmp_path, FILE.sha256)
    journal.write_bytes(journal.read_bytes()[:-torn_bytes])
    assert read_finished(tmp_path, FILE) == {0, 1}
    chunk_file = write_some(tmp_path, [7])
    chunk_file.flush()
    chunk_file.close()
    assert read_finished(tmp_path, FILE) == {0, 1, 7}


def test_a_journal_of_another_manifest_counts_for_nothing(tmp_path):
    chunk_file = write_some(tmp_path, [0, 1])
    chunk_file.flush()
    chunk_file.close()
    other = cut(DATA, chunk_bytes=2 * CHUNK)
    assert read_finished(tmp_path, other) == set()
    with Origin(DATA).running() as url:
        assert fetch(tmp_path, [source(url)], other).read_bytes() == DATA


def test_a_journal_without_its_bytes_counts_for_nothing(tmp_path):
    write_some(tmp_path, [0, 1]).close()
    chunk_file = write_some(tmp_path, [2])
    chunk_file.flush()
    chunk_file.close()
    data_path(tmp_path, FILE.sha256).unlink()
    assert read_finished(tmp_path, FILE) == set()
    ChunkFile(tmp_path, FILE).close()
    assert read_finished(tmp_path, FILE) == set()


KILLS = 2
KILLED = """
import sys, threading
from pathlib import Path
import msgspec
from tests.runtime.artifact_lab import make_kit, source
from madang.runtime.artifacts.transfer import fetch_chunks
from madang.wire.artifacts import FileChunks
file = msgspec.json.decode(sys.stdin.buffer.read(), type=FileChunks)
print("begins", flush=True)
print(fetch_chunks(file, [source(sys.argv[1])], Path(sys.argv[2]), make_kit(), cancel=threading.Event()))
"""


@pytest.mark.peer
def test_killed_at_any_instant_it_goes_on_with_what_was_finished(tmp_path):
    import msgspec

    origin = Origin(DATA, watch=tmp_path, file=FILE)
    # Each life is held up after ten more chunks, so that it is killed with some finished and some not.
    origin.gate = threading.Event()
    root = Path(__file__).resolve().parents[2]
    kills = 0
    with origin.running() as url:
        for attempt in range(KILLS + 1):
            origin.gate_after = origin.sent_bytes + 10 * CHUNK
            if attempt == KILLS:
                origin.gate.set()
            run = subprocess.Popen(
                [sys.executable, "-c", KILLED, url, str(tmp_path)], stdin=-1, stdout=-1, cwd=root, text=False
            )
            run.stdin.write(msgspec.json.encode(FILE))
            run.stdin.close()
            assert run.stdout.readline() == b"begins\n"
            if attempt < KILLS:
                had = len(read_finished(tmp_path, FILE))
                end = time.monotonic() + 20
                while len(read_finished(tmp_path, FILE)) <= had and run.poll() is None and time.monotonic() < end:
                    time.sleep(0.001 * (attempt + 1))
                run.send_signal(signal.SIGKILL)
                kills += run.wait() == -signal.SIGKILL
                run.stdout.close()
                continue
            path = Path(run.stdout.read().decode().strip())
            assert run.wait() == 0
            run.stdout.close()
            break
    assert path.read_bytes() == DATA
    assert kills == KILLS
    assert origin.again == set()
