"""Whose files lie at a site: judged before they are taken, and destroyed when they may not lie there any more."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.site.tenant_data_bench import Bench, completion, lines, running_bench

from madang.model import DataClass, Residency, ResidencyScope

GRACE_S = 24 * 3600.0
HERE = Residency(scope=ResidencyScope.SITE, places=("daegu",))
ELSEWHERE = Residency(scope=ResidencyScope.SITES, places=("gumi",), is_transit_granted=True)


def run(folder: Path, play: Any, **settings: Any) -> None:
    async def main() -> None:
        async with running_bench(folder, **settings) as bench:
            bench.view.generation = 1
            await play(bench)

    asyncio.run(main())


def change(bench: Bench, **fields: Any) -> None:
    bench.view.tenants["clinic"] = msgspec.structs.replace(bench.view.tenants["clinic"], **fields)


def mark(bench: Bench, data_class: DataClass) -> None:
    bench.view.sites["daegu"] = msgspec.structs.replace(bench.view.sites["daegu"], data_class_max=data_class)


def blobs(folder: Path) -> int:
    return len(list((folder / "files").iterdir()))


@pytest.mark.parametrize(
    ("residency", "data_class", "most", "status"),
    [
        (HERE, DataClass.SENSITIVE, DataClass.SENSITIVE, 200),
        (HERE, DataClass.SENSITIVE, DataClass.OPEN, 403),
        (HERE, DataClass.CLASSIFIED, DataClass.SENSITIVE, 403),
        (HERE, DataClass.CLASSIFIED, DataClass.CLASSIFIED, 200),
        (ELSEWHERE, DataClass.OPEN, DataClass.CLASSIFIED, 403),
    ],
)
def test_a_file_is_taken_only_where_it_may_lie(
    tmp_path: Path, residency: Residency, data_class: DataClass, most: DataClass, status: int
) -> None:
    async def play(bench: Bench) -> None:
        change(bench, residency=residency, data_class=data_class)
        mark(bench, most)
        answer = await bench.upload(b"x")
        assert answer.status_code == status, answer.text
        assert blobs(tmp_path) == (status == 200)
        if status == 403:
            assert answer.json()["error"]["code"] == "residency_violation"
            body = {"input_file_id": "file-x", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
            assert (await bench.ask("POST", "/v1/batches", json=body)).status_code == 403
            assert (await bench.ask("GET", "/v1/files/file-x/content")).status_code == 403

    run(tmp_path, play)


def test_a_tenant_that_is_not_known_here_keeps_nothing_here(tmp_path: Path) -> None:
    async def play(bench: Bench) -> None:
        assert (await bench.upload(b"x", "stranger")).status_code == 403
        del bench.view.sites["daegu"]
        assert (await bench.upload(b"x")).status_code == 403, "nor does anybody where the site knows not what it is"

    run(tmp_path, play)


def test_what_may_not_lie_here_any_more_is_destroyed_after_its_grace(tmp_path: Path) -> None:
    async def play(bench: Bench) -> None:
        kept = (await bench.upload(b"x")).json()["id"]
        await bench.upload(b"y", "city")
        change(bench, data_class=DataClass.CLASSIFIED)
        await bench.data.withdrawal.sweep()
        assert (await bench.ask("GET", f"/v1/files/{kept}/content")).status_code == 403, "out of reach at once"
        bench.clock.shift_s = GRACE_S - 60
        await bench.restart()
        await bench.data.withdrawal.sweep()
        assert blobs(tmp_path) == 2, "a restart neither destroys nor begins the grace anew"
        bench.clock.shift_s = GRACE_S + 1
        await bench.data.withdrawal.sweep()
        assert blobs(tmp_path) == 1
        assert (await bench.ask("GET", "/v1/files", "city")).json()["data"][0]["bytes"] == 1, "another's is untouched"

    run(tmp_path, play)


def test_a_slip_that_is_taken_back_costs_nothing(tmp_path: Path) -> None:
    async def play(bench: Bench) -> None:
        kept = (await bench.upload(b"x")).json()["id"]
        tenant = bench.view.tenants.pop("clinic")
        await bench.data.withdrawal.sweep()
        bench.view.tenants["clinic"] = tenant
        bench.clock.shift_s = GRACE_S + 60
        await bench.data.withdrawal.sweep()
        assert (await bench.ask("GET", f"/v1/files/{kept}/content")).content == b"x"
        change(bench, residency=ELSEWHERE)
        await bench.data.withdrawal.sweep()
        assert blobs(tmp_path) == 1, "the grace begins anew"

    run(tmp_path, play)


def test_a_site_that_was_told_nothing_yet_destroys_nothing(tmp_path: Path) -> None:
    async def play(bench: Bench) -> None:
        await bench.upload(b"x")
        bench.view.generation = 0
        bench.view.tenants.clear()
        for shift_s in (0.0, GRACE_S + 1):
            bench.clock.shift_s = shift_s
            await bench.data.withdrawal.sweep()
        assert blobs(tmp_path) == 1

    run(tmp_path, play)


def test_an_input_that_a_batch_reads_goes_with_the_batch(tmp_path: Path) -> None:
    async def play(bench: Bench) -> None:
        gate = asyncio.Event()

        async def wait(body: dict[str, Any]) -> Any:
            await gate.wait()
            return completion(body)

        bench.gateway.answer = wait
        batch = await bench.batch(lines("a"))
        await bench.until(batch["id"], "in_progress")
        bench.view.tenants.pop("clinic")
        await bench.data.withdrawal.sweep()
        bench.clock.shift_s = GRACE_S + 1
        await bench.data.withdrawal.sweep()
        assert blobs(tmp_path) == 1
        gate.set()
        await bench.until(batch["id"], "completed", "failed", "expired")
        await bench.data.withdrawal.sweep()
        assert blobs(tmp_path) == 0

    run(tmp_path, play)
