"""Any bytes, in any pieces: a connection is never desynchronised, and reads what it takes as h11 does."""

import itertools
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.gateway import upstream_bench
from tests.gateway.odd_requests import draw_stream
from tests.gateway.odd_responses import draw_answers
from tests.gateway.upstream_bench import check_answers
from tests.gateway.wire_bench import STRICTER, check, compare, read_h11, read_ours

from madang.gateway.upstream_connection import HEAD_BYTES_MAX

STREAMS, STREAMS_DEEP = 700, 150_000
ANSWERS, ANSWERS_DEEP = 1000, 200_000
FUZZ_S = 60
FUZZER = Path(__file__).with_name("fuzz_parsers.py")


def sweep(first: int, count: int) -> tuple[int, int]:
    """Check many drawn streams; return how many requests were taken and how many streams refused."""
    taken = refused = 0
    for seed in range(first, first + count):
        rng = random.Random(seed)
        data = draw_stream(rng)
        check(data, [rng.randrange(1 << 16) for _ in range(rng.randrange(6))])
        ours = read_ours([data])
        taken += len(ours.taken)
        refused += bool(ours.refusal)
    return taken, refused


def test_odd_requests_are_read_as_h11_reads_them_or_refused_for_a_stated_reason() -> None:
    taken, refused = sweep(0, STREAMS)
    assert taken > STREAMS / 2
    assert refused > STREAMS / 3


@pytest.mark.deep
@pytest.mark.timeout(1800)
def test_very_many_odd_requests() -> None:
    sweep(STREAMS, STREAMS_DEEP)


SOUP = st.lists(
    st.one_of(
        st.binary(max_size=30),
        st.sampled_from(
            (
                b"POST /a HTTP/1.1\r\n",
                b"GET / HTTP/1.0\r\n",
                b"host: x\r\n",
                b"content-length: 3\r\n",
                b"transfer-encoding: chunked\r\n",
                b"connection: close\r\n",
                b"\r\n",
                b"abc",
                b"3\r\nabc\r\n",
                b"0\r\n\r\n",
            )
        ),
    ),
    max_size=14,
).map(b"".join)
CUTS = st.lists(st.integers(0, 1 << 16), max_size=6)


@given(SOUP, CUTS)
def test_any_soup_of_bytes_in_any_pieces(data: bytes, cuts: list[int]) -> None:
    check(data, cuts)


@given(st.randoms(use_true_random=False), CUTS)
@settings(max_examples=40)
def test_a_whole_request_behind_anything_is_answered_or_the_connection_is_closed(
    rng: random.Random, cuts: list[int]
) -> None:
    """The marker request is either read as itself, or was part of a body that h11 reads as well, or is never seen."""
    marker = b"GET /marker HTTP/1.1\r\nhost: x\r\n\r\n"
    data = draw_stream(rng) + marker
    check(data, cuts)
    ours = read_ours([data])
    if ours.taken and ours.taken[-1].target == "/marker":
        assert ours.taken[-1].body == b""


def test_a_parser_that_believes_too_much_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison can fail: a length beside a coding, believed, is what smuggling is made of."""
    data = (
        b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 40\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + b"x" * 35
    )
    assert compare(data, read_ours([data])) == ""
    monkeypatch.setattr(
        "madang.wire.http1._framing", lambda fields, _: (int(fields.pop(b"content-length", b"0")), False)
    )
    assert "to h11" in compare(data, read_ours([data])) or "taken" in compare(data, read_ours([data]))


def test_every_stated_reason_is_met() -> None:
    """A reason that no stream meets would excuse what nobody has looked at."""
    met: set[str] = set()
    for seed in range(1500):
        ours = read_ours([draw_stream(random.Random(seed))])
        met |= {reason for reason in STRICTER if reason in ours.refusal}
    sizes = {"the request's head is over", "header fields; at most", "the request body is over"}
    assert set(STRICTER) - met == sizes, "sizes have tests of their own"


def test_h11_reads_what_it_should() -> None:
    """The reference itself: two requests in a row, one of them in chunks."""
    first = b"POST /a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
    seen, why = read_h11(first + b"GET /b HTTP/1.1\r\nhost: x\r\n\r\n")
    assert [(one.method, one.target, one.body) for one in seen] == [("POST", "/a", b"hi"), ("GET", "/b", b"")]
    assert why == ""


OK = b"HTTP/1.1 200 OK\r\n"
GIVEN_UP = {
    "a coding that is not ours to undo": OK + b"transfer-encoding: gzip, chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
    "a coding that is not ours, then ours": OK
    + b"transfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
    "both framings": OK + b"content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
    "two lengths": OK + b"content-length: 1\r\ncontent-length: 2\r\n\r\nab",
    "a status of no class": b"HTTP/1.1 000 x\r\ncontent-length: 0\r\n\r\n",
    "a status above all classes": b"HTTP/1.1 600 x\r\ncontent-length: 0\r\n\r\n",
    "an interim answer with a body": b"HTTP/1.1 199 x\r\ncontent-length: 3\r\n\r\nabc"
    + OK
    + b"content-length: 0\r\n\r\n",
    "another protocol": b"HTTP/1.1 101 x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\nabc",
    "an answer that nobody asked for": (OK + b"content-length: 1\r\n\r\na") * 2,
    "an end before the end": OK + b"content-length: 3\r\n\r\nab",
    "chunks without an end": OK + b"transfer-encoding: chunked\r\n\r\n1\r\na\r\n",
    "nothing": b"",
}


@pytest.mark.parametrize("name", GIVEN_UP)
def test_an_answer_in_doubt_is_given_up(name: str) -> None:
    answer, was_reusable = upstream_bench.read_ours([GIVEN_UP[name]])
    assert not answer.is_complete
    assert answer.failure
    assert not was_reusable
    assert answer.body in (b"", b"a", b"ab"), "nothing of what came out of turn"


CHUNKED_OK = OK + b"transfer-encoding: chunked\r\n\r\n"
SIZES = st.sampled_from([b"%x", b"%X", b"0%x", b"%x;a=b"])
EVENTS = st.lists(
    st.sampled_from([b"data: a\n\n", b"\n\n", b"a", b"\r\n", b"3\r\n", b"0\r\n\r\n"]), min_size=1, max_size=3
)


@given(st.lists(st.tuples(SIZES, EVENTS.map(b"".join)), max_size=6), st.lists(st.integers(0, 400), max_size=3))
def test_chunks_that_go_past_the_parser_are_those_that_it_would_have_read(
    chunks: list[tuple[bytes, bytes]], cuts: list[int]
) -> None:
    """Reads end mostly where chunks do, as engines write, and contents look like the ends and sizes of chunks."""
    framed = [b"%b\r\n%b\r\n" % (size % len(content), content) for size, content in chunks]
    reads = [CHUNKED_OK, *framed, b"0\r\n\r\n"]
    whole = b"".join(reads)
    places = {0, len(whole), *(cut % len(whole) for cut in cuts), *itertools.accumulate(map(len, reads))}
    pieces = [whole[start:end] for start, end in itertools.pairwise(sorted(places))]
    answer, was_reusable = upstream_bench.read_ours(pieces, takes_chunks=True)
    assert answer.is_complete, answer.failure
    assert answer.body == b"".join(content for _, content in chunks)
    assert was_reusable


def test_chunks_do_go_past_the_parser() -> None:
    chunk, seen = b"9\r\ndata: a\n\n\r\n", upstream_bench.Recorder.taken_in_all
    answer, _ = upstream_bench.read_ours([CHUNKED_OK, chunk, chunk, chunk, b"0\r\n\r\n"], takes_chunks=True)
    assert answer.body == 3 * b"data: a\n\n"
    assert upstream_bench.Recorder.taken_in_all - seen == 2, "the parser has seen the first, and where it ends"


@pytest.mark.parametrize(
    "reads",
    [
        # The size line of the next chunk has come: what follows is its content, and looks like a chunk.
        (b"9\r\ndata: a\n\n\r\n6\r\n", b"3\r\nabc\r\n"),
        # The read ends as a whole chunk of events does, inside of one.
        (b"12\r\ndata: a\n\n\r\n", b"4\r\naaaa\r\n"),
        # The same with a whole chunk in front.
        (b"1\r\na\r\n12\r\ndata: a\n\n\r\n", b"4\r\naaaa\r\n"),
    ],
)
def test_a_content_that_looks_like_a_chunk_is_none(reads: tuple[bytes, bytes]) -> None:
    seen = upstream_bench.Recorder.taken_in_all
    answer, _ = upstream_bench.read_ours([CHUNKED_OK, *reads, b"0\r\n\r\n"], takes_chunks=True)
    assert answer == upstream_bench.read_ours([CHUNKED_OK + b"".join(reads) + b"0\r\n\r\n"])[0]
    assert answer.is_complete
    assert upstream_bench.Recorder.taken_in_all == seen


def test_an_answer_that_comes_out_of_turn_is_not_kept_for_the_next_request() -> None:
    whole = OK + b"content-length: 1\r\n\r\na"
    answer, was_reusable = upstream_bench.read_ours([whole, whole])
    assert (answer.body, was_reusable) == (b"a", True), "and the bench sees to it that the connection is dropped then"


WITHOUT_END = {
    "a field": (OK + b"x-a: ", b"a" * 1000),
    "fields": (OK, b"x-a: %b\r\n" % (b"a" * 1000)),
    "a trailer": (CHUNKED_OK + b"1\r\na\r\n0\r\nx-a: ", b"a" * 1000),
    "an extension": (CHUNKED_OK + b"1;a=", b"a" * 1000),
}


@pytest.mark.parametrize("name", WITHOUT_END)
def test_what_surrounds_a_body_has_a_bound(name: str) -> None:
    begin, piece = WITHOUT_END[name]
    fed: list[bytes] = []

    def endless() -> Iterator[bytes]:
        yield begin
        while len(fed) < 1000:
            fed.append(piece)
            yield piece

    answer, was_reusable = upstream_bench.read_ours(endless())
    assert "bytes of a head or a trailer" in answer.failure
    assert not was_reusable
    assert HEAD_BYTES_MAX < sum(map(len, fed)) < HEAD_BYTES_MAX + 3000


def test_signs_of_life_and_long_bodies_have_none() -> None:
    signs = [b"HTTP/1.1 102 Processing\r\n\r\n"] * 4000
    body = [b"3e8\r\n%b\r\n" % (b"a" * 1000)] * 200
    answer, was_reusable = upstream_bench.read_ours([*signs, CHUNKED_OK, *body, b"0\r\n\r\n"])
    assert (answer.is_complete, len(answer.body), was_reusable) == (True, 200_000, True)


def sweep_answers(first: int, count: int) -> None:
    for seed in range(first, first + count):
        rng = random.Random(seed)
        data = draw_answers(rng)
        check_answers(data, [rng.randrange(1 << 16) for _ in range(rng.randrange(5))])


def test_odd_answers_of_upstreams_are_read_as_h11_reads_them_or_given_up() -> None:
    sweep_answers(0, ANSWERS)


@pytest.mark.deep
@pytest.mark.timeout(1800)
def test_very_many_odd_answers() -> None:
    sweep_answers(ANSWERS, ANSWERS_DEEP)


def test_what_was_wrong_first_is_what_is_told() -> None:
    """Found by the fuzzer: of a second answer that nobody asked for, its own fault was told."""
    second = OK + b"transfer-encoding: x\r\n\r\n"
    answer, _ = upstream_bench.read_ours([b"HTTP/1.1 204 ng\r\n\r\n" + second])
    assert "more than one answer" in answer.failure


@given(st.binary(max_size=200), CUTS)
def test_any_bytes_from_an_upstream(data: bytes, cuts: list[int]) -> None:
    check_answers(data, cuts)
    check_answers(b"HTTP/1.1 200 OK\r\n" + data, cuts)


@pytest.mark.deep
@pytest.mark.timeout(600)
@pytest.mark.parametrize("target", ["requests", "answers"])
def test_a_fuzzer_guided_by_coverage_finds_nothing(target: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris is not installed")
    done = subprocess.run(
        [
            sys.executable,
            str(FUZZER),
            target,
            f"-max_total_time={FUZZ_S}",
            f"-artifact_prefix={tmp_path}/",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        timeout=FUZZ_S + 240,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Done " in done.stderr, done.stderr[-1000:]
    print(done.stderr.strip().splitlines()[-1])
