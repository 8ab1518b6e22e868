"""Pure parts of batches and files: what an input may be, what an answer means, how chunks are sealed."""

import itertools
import json
import os
from pathlib import Path

import pytest
from tests.site.tenant_data_bench import MODEL, lines

from madang.core import Fault, KeyId, ProjectId, TenantId
from madang.model import DataClass
from madang.runtime.clock import SystemEntropy
from madang.site.batches.calls import TRIES_MAX, TRIES_STRIDE, attempt_of
from madang.site.batches.lines import (
    LINE_BYTES_MAX,
    InputCheck,
    Line,
    LineCutter,
    LineTooLong,
    write_answer,
)
from madang.site.batches.results import Result, ResultLog
from madang.site.batches.runner import choose_active
from madang.site.batches.state import ERRORS_MAX, Batch, BatchStatus
from madang.site.batches.verdict import QUOTA_WAIT_S_MAX, SILENT, UNREACHED, Answer, Verdict, judge
from madang.site.files.crypt import CHUNK_BYTES, ChunkCipher, open_key, seal_key

CHAT = "/v1/chat/completions"


def check(content: bytes, lines_max: int = 5) -> InputCheck:
    judged = InputCheck(CHAT, lines_max)
    cutter = LineCutter()
    for data in (*cutter.feed(content), *cutter.end()):
        judged.take(data)
    judged.end()
    return judged


@pytest.mark.parametrize(
    ("content", "code", "line"),
    [
        (b"", "empty_file", None),
        (b"{\n", "invalid_json_line", 1),
        (b"[]\n", "invalid_json_line", 1),
        (b"\xff\n", "invalid_json_line", 1),
        (b"\n" + lines("a", method="GET"), "invalid_method", 2),
        (lines("a", url="/v1/embeddings"), "invalid_url", 1),
        (lines("a") + lines("b"), "duplicate_custom_id", 2),
        (lines("a", body={"messages": []}), "missing_required_parameter", 1),
        (lines("a", custom_id=""), "missing_required_parameter", 1),
        (lines("a", custom_id=7), "missing_required_parameter", 1),
        (lines("a", body=None), "missing_required_parameter", 1),
        (lines("a", body={"model": MODEL, "stream": True}), "invalid_parameter", 1),
        (lines("a", "b") + lines("c", custom_id="z", body={"model": "other"}), "mismatched_model", 3),
        (lines(*"abcdef"), "too_many_requests", 6),
    ],
)
def test_what_is_wrong_with_an_input_is_named_with_its_line(content: bytes, code: str, line: int | None) -> None:
    assert [(one.code, one.line) for one in check(content).errors] == [(code, line)]


def test_a_good_input_counts_its_requests() -> None:
    judged = check(b"\xef\xbb\xbf" + lines("a", "b").replace(b"\n", b"\r\n") + b"\n\n")
    assert (judged.errors, judged.total, judged.model) == ([], 2, MODEL)
    assert not check(lines(*"abcde").rstrip(b"\n")).errors
    hopeless = check(b"{\n" * 1000, lines_max=10_000)
    assert len(hopeless.errors) == ERRORS_MAX


def test_lines_are_cut_whatever_the_pieces_and_none_is_too_long() -> None:
    cutter = LineCutter()
    found = [
        line for piece in (b"\xef\xbb\xbfa", b"b\nc", b"\n", b"\n\nd") for line in cutter.feed(piece)
    ] + cutter.end()
    assert found == [b"ab", b"c", b"", b"", b"d"]
    with pytest.raises(LineTooLong):
        LineCutter().feed(b"x" * (LINE_BYTES_MAX + 1))


def test_a_result_is_one_line_of_json_even_if_the_answer_was_not() -> None:
    line = Line(number=1, custom_id="가", model=MODEL, body=b"{}")
    for body, shown in (
        (b'{\n "a": 1}', {"a": 1}),
        (b"<html>", {"error": {"message": "<html>", "type": "server_error"}}),
    ):
        text = write_answer(line, "daegu-1", 200, body)
        assert text.count(b"\n") == 1
        assert json.loads(text)["response"] == {"status_code": 200, "request_id": "daegu-1", "body": shown}


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (Answer(status=200), Verdict.DONE),
        (Answer(status=400, code="invalid_request"), Verdict.FAILED),
        (Answer(status=404, code="model_not_found"), Verdict.FAILED),
        (Answer(status=413), Verdict.FAILED),
        (Answer(status=401, code="invalid_key"), Verdict.WAIT),
        (Answer(status=401, code="invalid_key", is_owner_refused=True), Verdict.STOP),
        (Answer(status=403, code="residency_violation"), Verdict.STOP),
        (Answer(status=429, code="overloaded"), Verdict.WAIT),
        (Answer(status=429, code="quota_exceeded", retry_after_s=QUOTA_WAIT_S_MAX), Verdict.WAIT),
        (Answer(status=429, code="quota_exceeded", retry_after_s=QUOTA_WAIT_S_MAX + 1), Verdict.STOP),
        (Answer(status=429, code="quota_exceeded"), Verdict.STOP),
        (Answer(status=503, code="no_replica"), Verdict.WAIT),
        (Answer(status=502, code="upstream_failed"), Verdict.AGAIN),
        (Answer(status=504, code="timeout"), Verdict.AGAIN),
        (Answer(status=SILENT), Verdict.AGAIN),
        (Answer(status=UNREACHED), Verdict.WAIT),
    ],
)
def test_what_an_answer_means_for_its_line(answer: Answer, verdict: Verdict) -> None:
    assert judge(answer) is verdict


def test_a_try_never_shares_an_attempt_number_with_another() -> None:
    attempts = [attempt_of(tries) for tries in range(1, TRIES_MAX + 1)]
    assert attempts[0] == 1
    assert all(after - before == TRIES_STRIDE for before, after in itertools.pairwise(attempts))
    assert attempts[-1] + TRIES_STRIDE - 1 <= 99


def make_batch(tenant: str, number: int) -> tuple[Batch, bytes]:
    batch = Batch(
        batch_id=f"{tenant}{number}",
        tenant_id=TenantId(tenant),
        project_id=ProjectId(""),
        key_id=KeyId("k"),
        data_class=DataClass.OPEN,
        endpoint=CHAT,
        input_file_id="f",
        created_at_s=number,
        expires_at_s=99.0 if number == 2 else 1000.0,
    )
    return batch, b""


def test_tenants_take_turns_and_what_only_ends_waits_for_nobody() -> None:
    running = [*(make_batch("a", number) for number in range(5)), make_batch("b", 5), make_batch("c", 6)]

    def choose(at_work: set[str], now_s: float = 0.0, most: int = 4) -> list[str]:
        return [batch.batch_id for batch, _ in choose_active(running, frozenset(at_work), now_s, most)]

    assert choose(set()) == ["a0", "b5", "c6", "a1"]
    assert choose({"a0", "a1"}) == ["b5", "c6"]
    assert choose({"a0", "a1"}, most=2) == []
    running[4] = (running[4][0].become(BatchStatus.CANCELLING, 1.0), b"")
    assert choose({"a0", "a1"}, most=2) == ["a4"]
    assert choose({"a0", "a1"}, now_s=99.0, most=2) == ["a2", "a4"], "the window of a2 closed"


def test_a_key_opens_only_under_its_master_and_for_its_file() -> None:
    master, key = b"m" * 32, b"k" * 32
    sealed = seal_key(master, key, "file-1", b"n" * 12)
    assert open_key(master, sealed, "file-1") == key
    for wrong in (
        (b"x" * 32, sealed, "file-1"),
        (master, sealed, "file-2"),
        (master, sealed[:-1], "file-1"),
        (master, b"", "file-1"),
    ):
        with pytest.raises(Fault):
            open_key(*wrong)


def test_the_end_of_a_blob_is_sealed_too() -> None:
    sealer = ChunkCipher(b"k" * 32, b"p" * 7, "f")
    middle, end = sealer.seal(b"a" * CHUNK_BYTES, is_last=False), sealer.seal(b"", is_last=True)
    opener = ChunkCipher(b"k" * 32, b"p" * 7, "f")
    assert opener.open(middle, is_last=False) == b"a" * CHUNK_BYTES
    assert opener.open(end, is_last=True) == b""
    with pytest.raises(Fault):
        ChunkCipher(b"k" * 32, b"p" * 7, "f").open(middle, is_last=True)


def test_a_torn_result_is_cut_off_at_every_byte_and_a_damaged_one_is_said(tmp_path: Path) -> None:
    path = tmp_path / "log"

    def log() -> ResultLog:
        return ResultLog(path, b"k" * 32, "batch_1", SystemEntropy())

    first = log()
    assert first.open() == (set(), set())
    first.append([Result(1, False, b"one\n")])
    first.append([Result(2, True, b"two\n")])
    whole = path.read_bytes()
    end_of_first = 4 + 12 + 5 + 4 + 16
    for size in range(end_of_first, len(whole)):
        path.write_bytes(whole[:size])
        assert log().open() == ({1}, set())
        assert os.stat(path).st_size == end_of_first
    path.write_bytes(whole[:-3] + b"\0\0\0")  # its length reached the disk and its content did not
    assert log().open() == ({1}, set())
    path.write_bytes(whole)
    assert log().open() == ({1}, {2})
    assert [result.data for result in log().read()] == [b"one\n", b"two\n"]
    path.write_bytes(whole[:20] + bytes([whole[20] ^ 1]) + whole[21:])
    with pytest.raises(Fault, match="damaged"):
        log().open()
