"""Files and batches of a site: what is kept, how it runs, and that nothing is lost, doubled or readable on the disk."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.responses import Response
from tests.site.tenant_data_bench import Bench, completion, lines, refusal, running_bench, until

from madang.wire.bus import ServiceLoad

SECRET = "환자 홍길동의 주민등록번호"


def grep(folder: Path, text: str) -> list[str]:
    """Names of files under `folder` that hold the text, as UTF-8 or as JSON escapes it."""
    needles = [text.encode(), json.dumps(text)[1:-1].encode()]
    return [
        str(path) for path in folder.rglob("*") if path.is_file() and any(one in path.read_bytes() for one in needles)
    ]


def run(folder: Path, play: Any, **settings: Any) -> None:
    async def main() -> None:
        async with running_bench(folder, **settings) as bench:
            await play(bench)

    asyncio.run(main())


def test_a_file_is_kept_shown_and_destroyed(tmp_path: Path) -> None:
    async def play(bench: Bench) -> None:
        content = lines(*[f"{SECRET} {number}" for number in range(3000)])
        assert len(content) > 300_000
        made = (
            await bench.upload(content, **{"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"})
        ).json()
        assert made["object"] == "file"
        assert (made["bytes"], made["filename"], made["purpose"]) == (len(content), "in.jsonl", "batch")
        assert made["expires_at"] - made["created_at"] in (3599, 3600, 3601)
        assert (await bench.ask("GET", f"/v1/files/{made['id']}")).json() == made
        assert (await bench.ask("GET", f"/v1/files/{made['id']}/content")).content == content
        assert grep(tmp_path, SECRET) == []
        await bench.restart()
        assert (await bench.ask("GET", f"/v1/files/{made['id']}/content")).content == content
        assert (await bench.ask("DELETE", f"/v1/files/{made['id']}")).json()["deleted"] is True
        assert (await bench.ask("GET", f"/v1/files/{made['id']}")).status_code == 404
        assert list((tmp_path / "files").iterdir()) == []

    run(tmp_path, play)


def test_a_tenant_sees_only_its_own(tmp_path: Path) -> None:
    async def play(bench: Bench) -> None:
        batch = await bench.batch(lines("a"))
        file_id = batch["input_file_id"]
        await bench.until(batch["id"], "completed")
        for path in (f"/v1/files/{file_id}", f"/v1/files/{file_id}/content", f"/v1/batches/{batch['id']}"):
            assert (await bench.ask("GET", path, "city")).status_code == 404
        assert (await bench.ask("DELETE", f"/v1/files/{file_id}", "city")).status_code == 404
        assert (await bench.ask("POST", f"/v1/batches/{batch['id']}/cancel", "city")).status_code == 404
        assert (await bench.ask("GET", "/v1/files", "city")).json()["data"] == []
        assert (await bench.ask("GET", "/v1/batches", "city")).json()["data"] == []
        body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        assert (await bench.ask("POST", "/v1/batches", "city", json=body)).status_code == 404

    run(tmp_path, play)


def test_lists_have_pages(tmp_path: Path) -> None:
    async def play(bench: Bench) -> None:
        ids = [(await bench.upload(b"x")).json()["id"] for _ in range(5)]
        first = (await bench.ask("GET", "/v1/files?limit=2&order=asc")).json()
        assert [row["id"] for row in first["data"]] == ids[:2]
        assert (first["has_more"], first["last_id"]) == (True, ids[1])
        rest = (await bench.ask("GET", f"/v1/files?limit=9&order=asc&after={ids[1]}")).json()
        assert ([row["id"] for row in rest["data"]], rest["has_more"]) == (ids[2:], False)
        newest = (await bench.ask("GET", "/v1/files?limit=1")).json()
        assert newest["data"][0]["id"] == ids[4]
        assert (await bench.ask("GET", "/v1/files?limit=0")).status_code == 400

    run(tmp_path, play)


def test_uploads_are_limited_and_leave_nothing_when_refused(tmp_path: Path) -> None:
    async def play(bench: Bench) -> None:
        assert (await bench.upload(b"x" * 2000)).status_code == 413
        assert (await bench.upload(b"x", purpose="fine-tune")).json()["error"]["code"] == "unsupported"
        assert (await bench.ask("POST", "/v1/files", json={})).status_code == 400
        assert (await bench.upload(b"x", **{"expires_after[anchor]": "created_at"})).status_code == 400
        for _ in range(2):
            assert (await bench.upload(b"x" * 900)).status_code == 200
        full = await bench.upload(b"x" * 900)
        assert (full.status_code, full.json()["error"]["code"]) == (429, "quota_exceeded")
        assert (await bench.upload(b"x" * 900, "city")).status_code == 200, "another tenant has room of its own"
        assert len(list((tmp_path / "files").iterdir())) == 3

    run(tmp_path, play, file_bytes_max=1000, tenant_file_bytes_max=2000)


def test_files_end_in_time_but_not_under_a_batch(tmp_path: Path) -> None:
    async def play(bench: Bench) -> None:
        gate = asyncio.Event()

        async def wait(body: dict[str, Any]) -> Response:
            await gate.wait()
            return completion(body)

        bench.gateway.answer = wait
        batch = await bench.batch(lines("a"))
        await bench.upload(b"x")
        await bench.until(batch["id"], "in_progress")
        busy = await bench.ask("DELETE", f"/v1/files/{batch['input_file_id']}")
        assert busy.status_code == 409
        bench.clock.shift_s = 10 * 3600.0
        await bench.data.files.purge()
        assert len(list((tmp_path / "files").iterdir())) == 1, "only the batch's input is still there"
        gate.set()
        await bench.until(batch["id"], "completed")
        await bench.data.files.purge()
        names = [path.stem for path in (tmp_path / "files").iterdir()]
        assert batch["input_file_id"] not in names

    run(tmp_path, play, file_lifetime_s=3600.0 * 5)


def test_a_damaged_file_is_not_given_out(tmp_path: Path) -> None:
    async def play(bench: Bench) -> None:
        row = (await bench.upload(b"y" * 200_000)).json()
        path = tmp_path / "files" / f"{row['id']}.blob"
        whole = path.read_bytes()
        flipped = whole[:100] + bytes([whole[100] ^ 1]) + whole[101:]
        swapped = whole[:15] + whole[15 + 65552 : 15 + 2 * 65552] + whole[15 : 15 + 65552] + whole[15 + 2 * 65552 :]
        without_last_chunk = whole[: 15 + 3 * 65552]
        for damaged in (whole[:-1], flipped, swapped, without_last_chunk, whole[:15], b""):
            path.write_bytes(damaged)
            answer = await bench.ask("GET", f"/v1/files/{row['id']}/content")
            assert (answer.status_code, b"yyy" in answer.content) == (500, False), len(damaged)
        path.write_bytes(whole)
        assert (await bench.ask("GET", f"/v1/files/{row['id']}/content")).content == b"y" * 200_000

    run(tmp_path, play)


def test_a_crash_leaves_no_orphans(tmp_path: Path) -> None:
    async def play(bench: Bench) -> None:
        kept = (await bench.upload(b"x")).json()["id"]
        (tmp_path / "files" / "file-0.blob").write_bytes(b"lost between blob and row")
        (tmp_path / "files" / "file-1.blob.new").write_bytes(b"half an upload")
        (tmp_path / "batches" / "batch_0.log").write_bytes(b"of a batch that is over")
        await bench.restart()
        assert [path.stem for path in (tmp_path / "files").iterdir()] == [kept]
        assert list((tmp_path / "batches").iterdir()) == []

    run(tmp_path, play)


def test_a_batch_runs_to_its_results(tmp_path: Path) -> None:
    async def play(bench: Bench) -> None:
        async def answer(body: dict[str, Any]) -> Response:
            if body["messages"][0]["content"] == "bad":
                return refusal(400, "invalid_request", "temperature: too hot")
            return completion(body)

        bench.gateway.answer = answer
        made = await bench.batch(lines(SECRET, "bad", "둘"), metadata={"job": "nightly"})
        assert (made["status"], made["object"], made["metadata"]) == ("validating", "batch", {"job": "nightly"})
        assert made["expires_at"] - made["created_at"] == 24 * 3600
        batch = await bench.until(made["id"], "completed", "failed")
        assert batch["status"] == "completed", batch
        assert batch["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
        assert batch["in_progress_at"]
        assert batch["completed_at"]
        output = await bench.results(batch["output_file_id"])
        assert set(output) == {"c0", "c2"}
        assert output["c0"]["response"]["body"]["choices"][0]["message"]["content"] == f"re: {SECRET}"
        assert (output["c0"]["response"]["status_code"], output["c0"]["error"]) == (200, None)
        errors = await bench.results(batch["error_file_id"])
        assert errors["c1"]["response"]["status_code"] == 400
        assert errors["c1"]["response"]["body"]["error"]["message"] == "temperature: too hot"
        assert grep(tmp_path, SECRET) == [], "something on the disk can be read"
        assert list((tmp_path / "batches").iterdir()) == []
        shown = (await bench.ask("GET", "/v1/batches")).json()
        assert [row["id"] for row in shown["data"]] == [made["id"]]
        for found, _ in bench.gateway.asked:
            assert (found.entry_site, found.serving_site, found.hops) == ("daegu", "daegu", 0)
            assert (found.tenant_id, found.key_id) == ("clinic", "clinic-key")
        assert bench.gateway.in_flight_max <= 2

    run(tmp_path, play)


def test_an_input_that_is_wrong_fails_before_a_line_runs(tmp_path: Path) -> None:
    async def play(bench: Bench) -> None:
        wrong = {
            "duplicate_custom_id": lines("a") + lines("b"),
            "empty_file": b"",
            "model_not_found": lines("a", body={"model": "nobody"}),
        }
        for code, content in wrong.items():
            batch = await bench.until((await bench.batch(content))["id"], "failed", "completed")
            assert batch["status"] == "failed"
            assert [one["code"] for one in batch["errors"]["data"]] == [code]
            assert (batch["output_file_id"], batch["error_file_id"]) == (None, None)
        assert bench.gateway.asked == []

    run(tmp_path, play)


def test_a_death_in_the_middle_runs_no_finished_line_again(tmp_path: Path) -> None:
    async def play(bench: Bench) -> None:
        held = asyncio.Event()

        async def answer(body: dict[str, Any]) -> Response:
            if len(bench.gateway.asked) > 6:
                await held.wait()
            return completion(body)

        bench.gateway.answer = answer
        made = await bench.batch(lines(*[f"q{number}" for number in range(12)]))

        async def stuck() -> bool:
            return bench.gateway.in_flight == 2 and len(bench.gateway.asked) == 8

        await until(stuck, "two lines hang and six are done")
        log = tmp_path / "batches" / f"{made['id']}.log"
        await bench.stop()
        with log.open("ab") as file:  # the death came in the middle of a write
            file.write(b"\x40\x00\x00\x00torn")
        bench.gateway.answer = None
        held.set()
        await bench.start()
        batch = await bench.until(made["id"], "completed")
        assert batch["request_counts"] == {"total": 12, "completed": 12, "failed": 0}
        output = await bench.results(batch["output_file_id"])
        assert {line["response"]["body"]["choices"][0]["message"]["content"] for line in output.values()} == {
            f"re: q{number}" for number in range(12)
        }
        asked: dict[str, list[int]] = {}
        for found, _ in bench.gateway.asked:
            asked.setdefault(found.request_id, []).append(found.attempt)
        again = [attempts for attempts in asked.values() if len(attempts) > 1]
        assert len(asked) == 12, "a line keeps its request id"
        assert again == [[1, 5], [1, 5]], "only the two in flight ran again, each with a higher attempt"

    run(tmp_path, play)


def test_what_has_no_room_waits_and_what_broke_is_tried_again(tmp_path: Path) -> None:
    async def play(bench: Bench) -> None:
        script = iter(
            [
                refusal(429, "overloaded"),
                refusal(401, "invalid_key", "pass is under a session that is not held"),
                refusal(503, "no_replica"),
                refusal(502, "upstream_failed"),
            ]
        )

        async def answer(body: dict[str, Any]) -> Response:
            return next(script, None) or completion(body)

        bench.gateway.answer = answer
        batch = await bench.batch(lines("a"))
        assert (await bench.until(batch["id"], "completed"))["request_counts"]["completed"] == 1
        assert [found.attempt for found, _ in bench.gateway.asked] == [1, 1, 1, 1, 5]

        async def broken(body: dict[str, Any]) -> Response:
            return refusal(502, "upstream_failed")

        bench.gateway.answer = broken
        second = await bench.batch(lines("a"))
        batch = await bench.until(second["id"], "completed")
        errors = await bench.results(batch["error_file_id"])
        assert errors["c0"]["response"]["status_code"] == 502

    run(tmp_path, play)


@pytest.mark.parametrize(
    ("status", "code", "madang"),
    [(401, "invalid_key", {"owner": "clinic-key"}), (429, "quota_exceeded", {}), (403, "residency_violation", {})],
)
def test_a_key_that_may_not_go_on_ends_the_batch_and_says_so(
    tmp_path: Path, status: int, code: str, madang: dict[str, str]
) -> None:
    async def play(bench: Bench) -> None:
        async def answer(body: dict[str, Any]) -> Response:
            if len(bench.gateway.asked) > 2:
                return refusal(status, code, "not any more", **madang)
            return completion(body)

        bench.gateway.answer = answer
        made = await bench.batch(lines("a", "b", "c", "d"))
        batch = await bench.until(made["id"], "failed", "completed")
        assert batch["status"] == "failed"
        assert batch["errors"]["data"][0]["code"] == code
        assert batch["request_counts"] == {"total": 4, "completed": 2, "failed": 2}
        assert len(await bench.results(batch["output_file_id"])) == 2
        errors = await bench.results(batch["error_file_id"])
        assert {line["error"]["code"] for line in errors.values()} == {code}

    run(tmp_path, play)


def test_a_cancelled_batch_keeps_what_was_answered(tmp_path: Path) -> None:
    async def play(bench: Bench) -> None:
        held = asyncio.Event()

        async def answer(body: dict[str, Any]) -> Response:
            if len(bench.gateway.asked) > 3:
                await held.wait()
            return completion(body)

        bench.gateway.answer = answer
        made = await bench.batch(lines(*"abcdefgh"))

        async def stuck() -> bool:
            return len(bench.gateway.asked) == 5

        await until(stuck, "three are done and two hang")
        cancelled = await bench.ask("POST", f"/v1/batches/{made['id']}/cancel")
        assert cancelled.json()["status"] == "cancelling"
        held.set()
        batch = await bench.until(made["id"], "cancelled")
        assert batch["cancelled_at"]
        assert batch["error_file_id"] is None
        assert len(await bench.results(batch["output_file_id"])) == 5
        assert len(bench.gateway.asked) == 5
        assert (await bench.ask("POST", f"/v1/batches/{made['id']}/cancel")).status_code == 409

    run(tmp_path, play)


def test_a_window_that_closes_leaves_partial_results(tmp_path: Path) -> None:
    async def play(bench: Bench) -> None:
        async def answer(body: dict[str, Any]) -> Response:
            if len(bench.gateway.asked) > 2:
                bench.clock.shift_s = 25 * 3600.0
            return completion(body)

        bench.gateway.answer = answer
        made = await bench.batch(lines(*"abcdef"))
        batch = await bench.until(made["id"], "expired")
        done = batch["request_counts"]["completed"]
        assert 0 < done < 6
        errors = await bench.results(batch["error_file_id"])
        assert len(errors) == 6 - done
        assert {line["error"]["code"] for line in errors.values()} == {"batch_expired"}

    run(tmp_path, play)


def test_a_busy_site_is_left_to_others(tmp_path: Path) -> None:
    async def play(bench: Bench) -> None:
        bench.loads = (ServiceLoad(service="qwen", replicas_ready=1, slots=2, in_flight=2),)
        made = await bench.batch(lines("a"))
        await bench.until(made["id"], "in_progress")
        assert bench.gateway.asked == []
        bench.loads = (msgspec.structs.replace(bench.loads[0], in_flight=1),)
        await bench.until(made["id"], "completed")

    run(tmp_path, play)


def test_secrets_are_the_owners_alone(tmp_path: Path) -> None:
    async def play(bench: Bench) -> None:
        await bench.upload(b"x")
        for name in ("files.key", "gateway.token"):
            assert os.stat(tmp_path / name).st_mode & 0o077 == 0
        assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "files").iterdir())

    run(tmp_path, play)


@pytest.mark.deep
def test_deaths_at_any_moment_double_and_lose_nothing(tmp_path: Path) -> None:
    async def play(bench: Bench) -> None:
        async def answer(body: dict[str, Any]) -> Response:
            await asyncio.sleep(0.004)
            return completion(body)

        bench.gateway.answer = answer
        made = await bench.batch(lines(*[f"q{number}" for number in range(40)]))
        deaths = 0
        while (await bench.show(made["id"]))["status"] != "completed":
            assert deaths < 200, "it never gets on"
            await asyncio.sleep(0.005 + 0.007 * (deaths % 11))
            await bench.restart()
            deaths += 1
        batch = await bench.show(made["id"])
        assert deaths > 5
        assert batch["request_counts"] == {"total": 40, "completed": 40, "failed": 0}
        output = await bench.results(batch["output_file_id"])
        assert {one["response"]["body"]["choices"][0]["message"]["content"] for one in output.values()} == {
            f"re: q{number}" for number in range(40)
        }
        attempts: dict[str, list[int]] = {}
        for found, _ in bench.gateway.asked:
            attempts.setdefault(found.request_id, []).append(found.attempt)
        assert len(attempts) == 40
        assert all(sorted(set(tries)) == tries for tries in attempts.values()), "a try replaces those before it"
        assert len(bench.gateway.asked) <= 40 + 2 * deaths, "only lines in flight ran again"
        kept = (await bench.ask("GET", "/v1/files")).json()["data"]
        assert len(list((tmp_path / "files").iterdir())) == len(kept) == 2
        assert list((tmp_path / "batches").iterdir()) == []

    run(tmp_path, play)
