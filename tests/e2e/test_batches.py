"""Files and batches through the official client, against real sites with the real model."""

import json

import openai
import pytest
from tests.e2e.embedded import wait_for

pytestmark = [pytest.mark.federation, pytest.mark.model]

SECRET = "협력사 견적 단가 81,500원"


def make_input(count, max_tokens=3):
    rows = (
        {
            "custom_id": f"line-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": "madang-chat",
                "messages": [{"role": "user", "content": f"{SECRET}. 숫자 {number}을 영어로?"}],
                "max_tokens": max_tokens,
                "temperature": 0,
            },
        }
        for number in range(count)
    )
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def start_batch(client, content):
    uploaded = client.files.create(file=("questions.jsonl", content), purpose="batch")
    batch = client.batches.create(
        input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"by": "test"}
    )
    return uploaded, batch


def wait_over(client, batch, within_s=60):
    def look():
        shown = client.batches.retrieve(batch.id)
        return shown if shown.status in ("completed", "failed", "expired", "cancelled") else None

    return wait_for("the batch is over", look, within_s, every_s=0.2)


def results_of(client, file_id):
    found = {}
    for line in client.files.content(file_id).text.splitlines():
        row = json.loads(line)
        assert row["custom_id"] not in found, "a line stands twice in the results"
        found[row["custom_id"]] = row
    return found


def files_with(folder, text):
    needles = [text.encode(), json.dumps(text)[1:-1].encode()]
    return [path for path in folder.rglob("*") if path.is_file() and any(one in path.read_bytes() for one in needles)]


def test_a_batch_is_uploaded_run_fetched_and_destroyed(federation):
    client = federation.openai("gumi", "gumi-parts")
    folder = federation.state_dir / "sites" / "gumi"
    uploaded, batch = start_batch(client, make_input(2))
    assert [one.id for one in client.files.list(purpose="batch")] == [uploaded.id]
    assert batch.metadata == {"by": "test"}
    with pytest.raises(openai.NotFoundError):
        federation.openai("gumi", "gwangju-city").files.retrieve(uploaded.id)
    over = wait_over(client, batch)
    assert over.status == "completed", over
    assert (over.request_counts.total, over.request_counts.completed) == (2, 2)
    results = results_of(client, over.output_file_id)
    assert set(results) == {f"line-{number}" for number in range(2)}
    first = results["line-0"]["response"]
    assert (first["status_code"], first["body"]["model"]) == (200, "madang-chat")
    assert first["body"]["usage"]["completion_tokens"] >= 1
    assert first["request_id"].startswith("gumi-")
    assert files_with(folder, SECRET) == [], "what a tenant uploaded can be read on the disk"
    assert client.files.delete(over.output_file_id).deleted
    assert client.files.delete(uploaded.id).deleted
    assert list((folder / "files").iterdir()) == []
    assert [one.id for one in client.batches.list(limit=1)] == [batch.id]


def test_files_go_only_where_the_tenant_may_and_only_to_a_site_with_chips(federation):
    content = make_input(1)
    with pytest.raises(openai.PermissionDeniedError) as refused:
        federation.openai("gwangju", "daegu-clinic").files.create(file=("x.jsonl", content), purpose="batch")
    assert refused.value.body["madang"]["sites"][0]["url"] == federation.url("daegu")
    with pytest.raises(openai.BadRequestError) as entry:
        federation.openai("national", "gwangju-city").files.create(file=("x.jsonl", content), purpose="batch")
    assert {site["name"] for site in entry.value.body["madang"]["sites"]} == {"daegu", "gumi", "gwangju"}
    assert files_with(federation.state_dir, SECRET) == []


@pytest.mark.deep
def test_a_batch_outlives_killed_programs_and_each_line_is_billed_once(healthy):
    client = healthy.openai("gwangju", "gwangju-city")

    before = healthy.ledger()["totals"]["requests"]
    _, batch = start_batch(client, make_input(16, max_tokens=12))
    for done, victims in ((2, ["site"]), (5, ["gateway"]), (8, ["site", "gateway"]), (12, ["site"])):
        wait_for(
            f"{done} lines are done",
            lambda done=done: client.batches.retrieve(batch.id).request_counts.completed >= done,
            60,
            every_s=0.1,
        )
        healthy.kill(*(f"gwangju-{victim}" for victim in victims))
        wait_for(f"{victims} answer again", lambda: is_up(client), 60)
    over = wait_over(client, batch, within_s=120)
    assert over.status == "completed", over
    assert over.request_counts.completed == 16
    assert len(results_of(client, over.output_file_id)) == 16
    wait_for("the ledger has them", lambda: healthy.ledger()["totals"]["requests"] >= before + 16, 60, every_s=0.3)
    wait_for(
        "nothing waits for the hub",
        lambda: healthy.admin("GET", "/api/v1/status", site="gwangju")["outbox_depth"] == 0,
        30,
    )
    assert healthy.ledger()["totals"]["requests"] == before + 16, "a line that ran again is billed once"


def is_up(client):
    try:
        client.batches.list(limit=1)
    except openai.APIError:
        return False
    return True
