"""Verdicts and coverage at the hub: who judged on what, what a changed file does to a verdict, and what is missing."""

import hashlib

import msgspec
import pytest
import sqlalchemy as sa
from tests.hub.test_hub_api import api, hub_without_nats, refused  # noqa: F401 (fixture)
from tests.wire.gguf_bytes import model as gguf_model

from madang.core import Conflict, Rejected
from madang.hub import facts_admin
from madang.hub.audit import AUDIT_LOG
from madang.hub.equivalences import Comparison, Running, judge, list_verdicts
from madang.hub.tables import DESIRED_ITEM
from madang.hub.text_facts import enter_texts, read_texts
from madang.model import Artifact, ArtifactFile, CatalogEntry, Service, Task
from madang.policy.equivalence import Measured, judge_pair


def artifact(name, sha256, kind):
    return Artifact(
        artifact_id=name,
        engine="llama_cpp",
        chip_kinds=(kind,),
        files=(ArtifactFile(name=name, size_bytes=1, sha256=sha256 * 64),),
        memory_bytes=1,
        tokenizer_sha256="e" * 64,
        template_sha256="f" * 64,
    )


ENTRY = CatalogEntry(
    name="qwen",
    task=Task.CHAT,
    title="x",
    licence="x",
    artifacts=(artifact("npu", "a", "furiosa"), artifact("cpu", "b", "cpu")),
)
GOOD = Comparison(
    reference_service="chat",
    candidate_service="chat-cpu",
    measured=Measured(set_sha256="s", scores=(1.0,) * 16, prompt_tokens=((9, 9),) * 16),
)
RUNNING = [
    Running(service="chat", artifact_sha256="a" * 64),
    Running(service="chat-cpu", artifact_sha256="b" * 64),
]


@pytest.fixture
def services(change):
    change(lambda c: facts_admin.put_model(c, ENTRY))
    change(lambda c: facts_admin.put_service(c, Service(name="chat", model="qwen")))
    change(lambda c: facts_admin.put_service(c, Service(name="chat-cpu", model="qwen", artifact="cpu")))


def compare(change, comparison=GOOD, running=RUNNING):
    def act(c):
        verdict = judge(c, "qwen", comparison, running)
        facts_admin.put_model(c, facts_admin.read_model(c.connection, "qwen"))
        return verdict

    return change(act)


def pairs(store):
    return store.write_now(lambda c: facts_admin.read_model(c, "qwen")).equivalents


@pytest.mark.usefixtures("services")
def test_a_verdict_is_kept_audited_and_reaches_the_catalog(change, store):
    verdict = compare(change)
    assert (verdict.reference, verdict.candidate, verdict.reasons) == ("npu", "cpu", ())
    assert pairs(store) == (("npu", "cpu"),)
    assert store.write_now(lambda c: list_verdicts(c, "qwen")) == [verdict]
    rows = store.write_now(lambda c: AUDIT_LOG.read(c))
    assert any(row.action == "model.compare" for row in rows)
    assert verdict.judged_by


@pytest.mark.usefixtures("services")
def test_a_bad_agreement_takes_a_good_one_back(change, store):
    compare(change)
    bad = msgspec.structs.replace(GOOD, measured=msgspec.structs.replace(GOOD.measured, scores=(0.1,) * 16))
    assert compare(change, bad).reasons
    assert pairs(store) == ()


@pytest.mark.usefixtures("services")
def test_other_files_have_no_verdict_and_nobody_writes_one_by_hand(change, store):
    compare(change)
    other = msgspec.structs.replace(ENTRY, artifacts=(ENTRY.artifacts[0], artifact("cpu", "c", "cpu")))
    change(lambda c: facts_admin.put_model(c, msgspec.structs.replace(other, equivalents=(("npu", "cpu"),))))
    assert pairs(store) == ()
    change(lambda c: facts_admin.put_model(c, ENTRY))
    assert pairs(store) == (("npu", "cpu"),)


@pytest.mark.usefixtures("services")
@pytest.mark.parametrize(
    "running",
    [
        [],
        RUNNING[:1],
        [*RUNNING, Running(service="chat", artifact_sha256="b" * 64)],
        [RUNNING[0], Running(service="chat-cpu", artifact_sha256="a" * 64)],
    ],
)
def test_only_what_runs_can_have_been_measured(change, store, running):
    with pytest.raises(Conflict):
        compare(change, running=running)
    assert pairs(store) == ()


@pytest.mark.usefixtures("services")
def test_one_artifact_is_not_compared_with_itself_and_an_unknown_one_is_refused(change):
    with pytest.raises(Rejected, match="both services run"):
        compare(change, msgspec.structs.replace(GOOD, candidate_service="chat"))
    with pytest.raises(Rejected, match="no artifact 'gone'"):
        change(lambda c: facts_admin.put_service(c, Service(name="x", model="qwen", artifact="gone")))


def test_the_api_tells_coverage_and_refuses_a_comparison_of_what_does_not_run(api):  # noqa: F811 (the fixture)
    assert api("POST", "/api/v1/models", msgspec.to_builtins(ENTRY)).status_code == 201
    assert api("GET", "/api/v1/models/qwen/coverage").json() == []
    site = {"name": "daegu", "region": "yeongnam", "identity_ed25519": "a" * 64}
    assert api("POST", "/api/v1/sites", site).status_code == 201
    for name, artifact_id in (("chat", ""), ("chat-cpu", "cpu")):
        body = {"name": name, "model": "qwen", "artifact": artifact_id}
        assert api("PUT", f"/api/v1/services/{name}", body).status_code == 201
    (row,) = api("GET", "/api/v1/services/chat/coverage").json()
    assert (row["site"], row["state"]) == ("daegu", "no_chip")
    answer = api("POST", "/api/v1/models/qwen/equivalences", msgspec.to_builtins(GOOD))
    refused(answer, 409, "conflict")
    assert api("GET", "/api/v1/models/qwen/equivalences").json() == []
    refused(api("GET", "/api/v1/models/none/coverage"), 404, "not_found")


@pytest.mark.usefixtures("services")
def test_a_verdict_reaches_the_sites_desired_state(change, store, identity, seeds):
    from madang.hub.enrolment import Enrolment, enrol_site
    from madang.runtime.clock import SystemEntropy

    request = Enrolment(name="daegu", region="yeongnam", identity_ed25519=identity("daegu"))
    change(lambda c: enrol_site(c, request, seeds, SystemEntropy()))
    compare(change)
    query = sa.select(DESIRED_ITEM.c.spec).where(DESIRED_ITEM.c.kind == "model")
    (spec,) = store.write_now(lambda c: list(c.scalars(query)))
    assert msgspec.json.decode(spec, type=CatalogEntry).equivalents == (("npu", "cpu"),)


FILES = {
    "npu": gguf_model(["a", "b"], template="one"),
    "same": gguf_model(["a", "b", "[PAD2]"], types=[1, 1, 5], template="one"),
    "other": gguf_model(["b", "a"], template="two"),
}


def held(folder, *names, **stated):
    """Return an entry with artifacts of files that lie in a store, and the store's `find`."""
    artifacts = []
    for name in names:
        sha256 = hashlib.sha256(FILES[name]).hexdigest()
        (folder / sha256).write_bytes(FILES[name])
        file = ArtifactFile(name=f"{name}.gguf", size_bytes=len(FILES[name]), sha256=sha256)
        bare = msgspec.structs.replace(ENTRY.artifacts[0], artifact_id=name, files=(file,))
        artifacts.append(msgspec.structs.replace(bare, **{"tokenizer_sha256": "", "template_sha256": "", **stated}))
    entry = msgspec.structs.replace(ENTRY, artifacts=tuple(artifacts))
    return entry, lambda sha256: path if (path := folder / sha256).exists() else None


def test_tokenizer_and_template_are_read_in_the_files_that_are_here(tmp_path):
    entry, find = held(tmp_path, "npu", "same", "other")
    npu, same, other = enter_texts(entry, read_texts(entry, find)).artifacts
    assert judge_pair(Task.CHAT, npu, same, GOOD.measured) == ()
    assert judge_pair(Task.CHAT, npu, other, GOOD.measured) == ("the tokenizers differ", "the chat templates differ")


def test_what_the_catalog_says_counts_only_where_the_files_are_elsewhere(tmp_path):
    stated = {"tokenizer_sha256": "e" * 64, "template_sha256": "f" * 64}
    entry, find = held(tmp_path, "npu", **stated)
    with pytest.raises(Rejected, match=f"artifact npu: the catalog says tokenizer {'e' * 64}, its files have"):
        read_texts(entry, find)
    assert enter_texts(entry, read_texts(entry, lambda sha256: None)) == entry
    other = msgspec.structs.replace(entry, artifacts=ENTRY.artifacts)
    assert enter_texts(other, read_texts(held(tmp_path, "npu")[0], find)) == other, "verdicts bind to files"


def test_a_damaged_file_in_the_store_is_named(tmp_path):
    entry, find = held(tmp_path, "npu")
    find(entry.artifacts[0].files[0].sha256).write_bytes(b"GGUF")
    with pytest.raises(Rejected, match=r"npu\.gguf: expected tokenizer"):
        read_texts(entry, find)
