"""`madang model build` and its kin against a fake hub."""

import hashlib
import json

import pytest
from tests.cli.fake_hub import FakeHub
from tests.runtime.test_artifact_serving import DATA, fill
from tests.wire.gguf_bytes import model as gguf_model

from madang.model import Task
from madang.policy.pinned_set import prompts_of
from madang.runtime.artifacts.room import ArtifactRoom

ROW = {
    "site": "daegu",
    "chip_kind": "furiosa",
    "sdk_version": "2026.3",
    "chips": 4,
    "state": "no_artifact",
    "artifact_id": "",
    "text": "no artifact for furiosa 2026.3",
    "next_step": "madang model build qwen --chip furiosa",
}
TRANSFER = {
    "site": "daegu",
    "where": "node n1",
    "model": "qwen",
    "artifact_id": "q4",
    "name": "q4.gguf",
    "sha256": "aa" * 32,
    "size_bytes": 400 * 2**20,
    "done_bytes": 100 * 2**20,
    "kept_bytes": 50 * 2**20,
    "rate_bytes_s": 10.0 * 2**20,
    "state": "fetching",
    "source": "site gumi",
    "wrong_chunks": 2,
    "reason": "",
    "began_at_s": 1.0,
    "observed_age_s": 0.5,
}
BUILD = {
    "build_id": "ab" * 16,
    "request": {"key": {"model": "qwen", "chip_kind": "furiosa", "sdk": "furiosa-2026.3"}},
    "state": "failed",
    "attempt": 3,
    "worker": "w1",
    "log": "first\nlast words\n",
}


@pytest.mark.parametrize("noun", ["model", "service"])
def test_show_says_what_is_missing_where(ask, hub, noun):
    fact = {"name": "qwen", "title": "Qwen", "task": "chat", "licence": "Apache-2.0"}
    hub.answers = {
        ("GET", f"/api/v1/{noun}s/qwen"): (200, fact),
        ("GET", f"/api/v1/{noun}s/qwen/coverage"): (200, [ROW]),
    }
    shown = ask(noun, "show", "qwen")
    assert shown.exit_code == 0
    assert "no artifact for furiosa" in " ".join(shown.stdout.split())
    found = json.loads(ask(noun, "show", "qwen", "--json").stdout)
    # A hub of an older release tells neither transfers nor replicas without a place.
    assert found == {**fact, "coverage": [ROW], "transfers": [], **({"unplaced": []} if noun == "service" else {})}


@pytest.mark.parametrize("words", [("model", "show", "qwen"), ("service", "show", "chat"), ("model", "transfers")])
def test_a_transfer_is_shown_with_how_far_it_is_how_fast_and_from_whom(ask, hub, words):
    fact = {"name": "qwen", "title": "Qwen", "task": "chat", "licence": "Apache-2.0"}
    hub.answers = {
        ("GET", "/api/v1/models/qwen"): (200, fact),
        ("GET", "/api/v1/models/qwen/coverage"): (200, []),
        ("GET", "/api/v1/services/chat"): (200, {"name": "chat", "model": "qwen"}),
        ("GET", "/api/v1/services/chat/coverage"): (200, []),
        ("GET", "/api/v1/transfers"): (200, [TRANSFER]),
    }
    shown = " ".join(ask(*words).stdout.split())
    for part in ("100 MiB of 400 MiB (25%)", "10 MiB/s", "30s", "50 MiB", "site gumi", "node n1"):
        assert part in shown
    assert json.loads(ask(*words, "--json").stdout)["transfers"] == [TRANSFER]


def test_no_transfers_are_said_to_be_none(ask, hub):
    hub.answers = {("GET", "/api/v1/transfers"): (200, [])}
    assert ask("model", "transfers", "--model", "qwen").stdout == "transfers: none\n"
    assert hub.calls[-1][2] == "model=qwen"


def test_a_replica_without_a_place_is_shown_with_the_reason(ask, hub):
    hub.answers = {
        ("GET", "/api/v1/services/chat"): (200, {"name": "chat", "model": "qwen"}),
        ("GET", "/api/v1/services/chat/coverage"): (200, []),
        ("GET", "/api/v1/unplaced"): (
            200,
            [{"site": "daegu", "replica_id": "chat-1", "reason": "node n1 is cordoned"}],
        ),
    }
    assert "daegu chat-1 node n1 is cordoned" in " ".join(ask("service", "show", "chat").stdout.split())


READY = {**ROW, "site": "gumi", "state": "ready", "text": "", "next_step": "", "chip_kind": "cpu", "sdk_version": ""}


def test_a_service_that_cannot_run_somewhere_yet_says_so_when_it_is_made(ask, hub, tmp_path):
    hub.answers = {
        ("PUT", "/api/v1/services/chat"): (201, {"name": "chat"}),
        # At gumi its processors will do; at daegu there is nothing for its chips.
        ("GET", "/api/v1/services/chat/coverage"): (200, [{**ROW, "site": "gumi"}, ROW, READY]),
    }
    told = [
        "  chat cannot run at daegu yet (4 furiosa 2026.3): no artifact for furiosa 2026.3",
        "    try: madang model build qwen --chip furiosa",
    ]
    assert ask("service", "create", "chat", "--model", "qwen").stdout.splitlines()[1:] == told
    hub.answers |= {
        ("GET", "/api/v1/models"): (200, [{"name": "qwen", "title": "x", "task": "chat", "licence": "x"}]),
        ("GET", "/api/v1/services"): (200, []),
    }
    file = tmp_path / "services.toml"
    file.write_text('[[service]]\nname = "chat"\nmodel = "qwen"\n', encoding="utf-8")
    assert ask("service", "apply", "-f", str(file)).stdout.splitlines()[-2:] == told
    hub.answers["GET", "/api/v1/services/chat/coverage"] = 200, [READY]
    assert "cannot run" not in ask("service", "apply", "-f", str(file)).stdout


def test_a_build_is_asked_for_with_the_revision_of_the_catalog(ask, hub):
    hub.answers = {
        ("GET", "/api/v1/models/qwen"): (200, {"name": "qwen", "revision": "7"}),
        ("POST", "/api/v1/builds"): (201, {"build_id": "x", "state": "queued"}),
    }
    words = ["--chip", "furiosa", "--sdk", "furiosa-2026.3", "--engine", "furiosa_llm", "--memory-bytes", "5"]
    done = ask("model", "build", "qwen", *words, "--parallelism", "tp4", "--input", "weights=ab=c")
    assert done.exit_code == 0, done.output
    body = hub.calls[-1][3]
    assert (body["key"]["revision"], body["artifact_id"], body["inputs"]) == (
        "7",
        "furiosa-2026.3-tp4",
        {"weights": "ab=c"},
    )
    assert ask("model", "build", "qwen", *words, "--input", "weights").exit_code == 1


def test_builds_are_listed_with_the_last_line_of_their_log_and_acted_on(ask, hub):
    hub.answers = {
        ("GET", "/api/v1/builds"): (200, [BUILD]),
        ("POST", f"/api/v1/builds/{BUILD['build_id']}/retry"): (200, {**BUILD, "state": "queued"}),
    }
    listed = ask("model", "builds")
    assert "last words" in " ".join(listed.stdout.split())
    assert json.loads(ask("model", "builds", BUILD["build_id"], "--retry").stdout)["state"] == "queued"
    assert ask("model", "builds", "--retry").exit_code == 1


def test_a_worker_is_registered_and_its_token_printed_once(ask, hub):
    hub.answers = {("POST", "/api/v1/build-workers"): (201, {"worker": {}, "token": "mdb_x"})}
    assert ask("model", "worker", "w1", "--offer", "furiosa:furiosa-2026.3").stdout == "mdb_x\n"
    assert hub.calls[-1][3]["offers"] == [{"chip_kind": "furiosa", "sdk": "furiosa-2026.3"}]
    assert ask("model", "worker", "w1", "--offer", "furiosa").exit_code == 1


def test_the_cache_is_shown_with_who_needs_what(ask, tmp_path):
    cache = fill(tmp_path / "cache", DATA)
    ArtifactRoom(cache).pin("node-daegu-1", {path.name for path in (tmp_path / "cache").glob("??/*")})
    found = json.loads(ask("model", "cache", "--folder", str(cache.folder), "--json").stdout)["files"]
    assert [row["owners"] for row in found] == [["node-daegu-1"]]
    assert ask("model", "cache", "--folder", str(cache.folder), "--unpin", "node-daegu-1").exit_code == 0
    assert ask("model", "cache", "--folder", str(cache.folder), "--unpin", "node-daegu-1").exit_code == 1


def test_files_are_inspected_for_a_catalog_entry(ask, tmp_path):
    data = gguf_model(["a", "b"], template="x")
    (tmp_path / "m.gguf").write_bytes(data)
    found = json.loads(ask("model", "inspect", str(tmp_path / "m.gguf"), "--json").stdout)
    assert found["files"] == [{"name": "m.gguf", "size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}]
    assert found["template_sha256"] == hashlib.sha256(b"x").hexdigest()
    shown = ask("model", "inspect", str(tmp_path / "m.gguf")).stdout
    assert found["tokenizer_sha256"] in shown
    missing = ask("model", "inspect", str(tmp_path / "gone"))
    assert (missing.exit_code, "cannot read" in missing.output) == (1, True)


@pytest.fixture
def tenants():
    fake = FakeHub(token="mdg_key")
    yield fake
    fake.close()


def answer_chat(text):
    return 200, {"choices": [{"message": {"content": text}}], "usage": {"prompt_tokens": 9}}


@pytest.mark.parametrize(("reasons", "code"), [([], 0), (["the tokenizers differ"], 1)])
def test_a_comparison_asks_both_services_every_prompt_and_lets_the_hub_judge(ask, hub, tenants, reasons, code):
    verdict = {"reference": "npu", "candidate": "cpu", "mean": 1.0, "least": 1.0, "prompts": 16, "reasons": reasons}
    hub.answers = {
        ("GET", "/api/v1/models/qwen"): (200, {"name": "qwen", "task": "chat"}),
        ("POST", "/api/v1/models/qwen/equivalences"): (201, verdict),
    }
    tenants.answers = {("POST", "/v1/chat/completions"): answer_chat("서울입니다.")}
    words = ["--reference", "chat", "--candidate", "chat-cpu", "--url", tenants.url, "--key", "mdg_key"]
    done = ask("model", "compare", "qwen", *words)
    assert done.exit_code == code, done.output
    prompts = prompts_of(Task.CHAT)
    asked = [(call[3]["model"], call[3]["messages"][0]["content"]) for call in tenants.calls]
    assert asked == [(service, prompt) for prompt in prompts for service in ("chat", "chat-cpu")]
    measured = hub.calls[-1][3]["measured"]
    assert measured["scores"] == [1.0] * len(prompts)
    assert measured["prompt_tokens"] == [[9, 9]] * len(prompts)
    assert all(reason in done.output for reason in reasons)


def test_a_comparison_that_a_service_refuses_is_not_judged(ask, hub, tenants):
    hub.answers = {("GET", "/api/v1/models/qwen"): (200, {"name": "qwen", "task": "chat"})}
    words = ["--reference", "chat", "--candidate", "chat-cpu", "--url", tenants.url, "--key", "mdg_key"]
    done = ask("model", "compare", "qwen", *words)
    assert done.exit_code == 1
    assert "service chat answers with 404" in done.output
    hub.answers[("GET", "/api/v1/models/qwen")] = (200, {"name": "qwen", "task": "infer"})
    assert "are not compared" in ask("model", "compare", "qwen", *words).output
