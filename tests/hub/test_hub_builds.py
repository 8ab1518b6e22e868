"""The build queue through its API: a worker that takes, uploads in chunks, finishes; and one that fails."""

import hashlib
import os

import msgspec
import pytest
from tests.hub.test_hub_api import api, hub_without_nats, refused  # noqa: F401 (fixture)

from madang.model import ArtifactFile
from madang.runtime.artifacts.room import ArtifactRoom
from madang.runtime.signing import is_signed_by
from madang.wire.artifacts import CHUNK_BYTES_MIN, FileChunks, open_manifest

CHUNK = CHUNK_BYTES_MIN
DATA = os.urandom(3 * CHUNK + 5)
MODEL = {"name": "qwen", "task": "chat", "title": "Qwen", "licence": "Apache-2.0", "revision": "7"}
KEY = {
    "model": "qwen",
    "revision": "7",
    "chip_kind": "furiosa",
    "sdk": "furiosa-2026.3",
    "parallelism": "tp4",
    "context_tokens_max": 8192,
}
REQUEST = {"key": KEY, "artifact_id": "fxb", "engine": "furiosa_llm", "memory_bytes": 2**30, "inputs": {"a": "b"}}
WORKER = {"name": "builder-1", "offers": [{"chip_kind": "furiosa", "sdk": "furiosa-2026.3"}]}


def chunked(data):
    pieces = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
    return FileChunks(
        name="model.fxb",
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        chunk_bytes=CHUNK,
        chunk_sha256s=tuple(hashlib.sha256(piece).hexdigest() for piece in pieces),
    ), pieces


FILE, PIECES = chunked(DATA)
RESULT = {"files": [{"name": FILE.name, "size_bytes": FILE.size_bytes, "sha256": FILE.sha256}]}


@pytest.fixture
def worker(api):  # noqa: F811 (the fixture)
    assert api("POST", "/api/v1/models", MODEL).status_code == 201
    assert api("POST", "/api/v1/builds", REQUEST).status_code == 201
    made = api("POST", "/api/v1/build-workers", WORKER)
    assert made.status_code == 201
    token = made.json()["token"]

    def call(method, path, body=None, **options):
        return api(method, f"/api/v1/work{path}", body, token=token, **options)

    return call


def declare(worker, build):
    return worker("POST", f"/{build['build_id']}/files?attempt={build['attempt']}", msgspec.to_builtins(FILE))


def upload(worker, build, index, data=None):
    path = f"/{build['build_id']}/files/{FILE.sha256}/chunks/{index}?attempt={build['attempt']}"
    return worker("PUT", path, content=PIECES[index] if data is None else data)


def test_a_build_ends_in_the_store_and_in_the_catalog(api, worker):  # noqa: F811 (the fixture)
    build = worker("POST", "/take").json()
    assert (build["state"], build["attempt"], build["worker"]) == ("building", 1, "builder-1")
    assert worker("POST", "/take").status_code == 204
    assert worker("POST", f"/{build['build_id']}/hold?attempt=1").status_code == 200
    assert declare(worker, build).json() == {"missing": [0, 1, 2, 3]}
    for index in (2, 0):
        assert upload(worker, build, index).status_code == 204
    # A worker that starts anew goes on with what is missing.
    assert declare(worker, build).json() == {"missing": [1, 3]}
    refused(worker("POST", f"/{build['build_id']}/finish?attempt=1", RESULT), 409, "conflict")
    flipped = bytearray(PIECES[1])
    flipped[7] ^= 1
    answer = upload(worker, build, 1, bytes(flipped))
    assert "chunk 1 of model.fxb is not what was declared" in answer.text
    for index in (1, 3, 3):
        assert upload(worker, build, index).status_code == 204
    for _ in range(2):
        done = worker("POST", f"/{build['build_id']}/finish?attempt=1", RESULT)
        assert (done.status_code, done.json()["state"]) == (200, "done")
    assert api("GET", f"/artifacts/{FILE.sha256}", token=None).content == DATA
    key = bytes.fromhex(api("GET", "/api/v1/artifact-keys").json()[0]["public_key"])
    document = api("GET", f"/artifacts/{FILE.sha256}/manifest", token=None).content
    manifest = open_manifest(document, [key], is_signed_by)
    assert manifest.files == (FILE,)
    assert msgspec.to_builtins(manifest.key) == KEY
    (artifact,) = api("GET", "/api/v1/models/qwen").json()["artifacts"]
    assert (artifact["artifact_id"], artifact["sdk"], artifact["chip_kinds"]) == ("fxb", "furiosa-2026.3", ["furiosa"])
    assert [ArtifactFile(**{**one, "sources": ()}) for one in artifact["files"]] == [
        ArtifactFile(name=FILE.name, size_bytes=FILE.size_bytes, sha256=FILE.sha256)
    ]
    actions = {row["action"] for row in api("GET", "/api/v1/audit").json()}
    assert {"build.request", "build_worker.put", "build.finish", "model.put"} <= actions


def test_a_failure_is_kept_with_its_log_and_can_be_tried_again(api, worker):  # noqa: F811 (the fixture)
    build = worker("POST", "/take").json()
    failed = worker("POST", f"/{build['build_id']}/fail?attempt=1", {"log": "no memory", "is_final": True})
    assert failed.json()["state"] == "failed"
    shown = api("GET", f"/api/v1/builds/{build['build_id']}").json()
    assert (shown["state"], shown["log"]) == ("failed", "no memory")
    assert api("POST", f"/api/v1/builds/{build['build_id']}/retry").json()["state"] == "queued"
    assert worker("POST", "/take").json()["attempt"] == 2
    refused(worker("POST", f"/{build['build_id']}/hold?attempt=1"), 409, "conflict")
    refused(upload(worker, {**build, "attempt": 1}, 0), 409, "conflict")


def test_strangers_and_removed_workers_are_refused(api, worker):  # noqa: F811 (the fixture)
    for token in (None, "mdb_wrong", "test-admin-token"):
        refused(api("POST", "/api/v1/work/take", token=token), 401, "invalid_token")
    assert api("DELETE", "/api/v1/build-workers/builder-1").status_code == 200
    refused(worker("POST", "/take"), 401, "invalid_token")


def test_what_cannot_be_built_is_refused(api, worker):  # noqa: F811 (the fixture)
    other = {**REQUEST, "key": {**KEY, "revision": "8"}}
    refused(api("POST", "/api/v1/builds", other), 400, "invalid_request")
    refused(api("POST", "/api/v1/builds", {**REQUEST, "key": {**KEY, "model": "none"}}), 404, "not_found")
    refused(api("POST", "/api/v1/builds", {**REQUEST, "inputs": {"a": "c"}}), 409, "conflict")
    assert api("POST", "/api/v1/builds", REQUEST).status_code == 200
    build = worker("POST", "/take").json()
    wrong = {**msgspec.to_builtins(FILE), "name": "../x"}
    refused(worker("POST", f"/{build['build_id']}/files?attempt=1", wrong), 400, "invalid_request")
    refused(upload(worker, build, 0), 404, "not_found")


def test_a_manifest_is_made_once_for_a_file_in_the_store_and_a_spoilt_file_is_removed(api, tmp_path):  # noqa: F811
    folder = tmp_path / "artifacts" / FILE.sha256[:2]
    folder.mkdir(parents=True)
    (folder / FILE.sha256).write_bytes(DATA)
    key = bytes.fromhex(api("GET", "/api/v1/artifact-keys").json()[0]["public_key"])
    first = api("GET", f"/artifacts/{FILE.sha256}/manifest", token=None)
    manifest = open_manifest(first.content, [key], is_signed_by)
    assert (manifest.files[0].sha256, manifest.files[0].size_bytes) == (FILE.sha256, len(DATA))
    assert api("GET", f"/artifacts/{FILE.sha256}/manifest", token=None).content == first.content
    # One that a former key signed is made anew.
    former = first.content.replace(b'"kid":"', b'"kid":"00')
    (tmp_path / "artifacts" / ".manifests" / f"{FILE.sha256}.json").write_bytes(former)
    assert open_manifest(api("GET", f"/artifacts/{FILE.sha256}/manifest", token=None).content, [key], is_signed_by)
    spoilt = tmp_path / "artifacts" / "ee" / ("ee" * 32)
    spoilt.parent.mkdir()
    spoilt.write_bytes(DATA)
    refused(api("GET", f"/artifacts/{'ee' * 32}/manifest", token=None), 500, "fault")
    assert not spoilt.exists()


def test_what_was_compiled_leaves_the_store_for_nothing(api, worker):  # noqa: F811 (the fixture)
    build = worker("POST", "/take").json()
    declare(worker, build)
    for index in range(FILE.chunks):
        upload(worker, build, index)
    assert worker("POST", f"/{build['build_id']}/finish?attempt=1", RESULT).status_code == 200
    store = api.parts.artifacts
    store.room = ArtifactRoom(store.cache, quota_bytes=FILE.size_bytes + CHUNK)
    other = {**REQUEST, "key": {**KEY, "parallelism": "tp8"}, "artifact_id": "tp8"}
    assert api("POST", "/api/v1/builds", other).status_code == 201
    second = worker("POST", "/take").json()
    bigger = {**msgspec.to_builtins(chunked(DATA[::-1])[0]), "name": "tp8.fxb"}
    answer = worker("POST", f"/{second['build_id']}/files?attempt=1", bigger)
    assert "do not fit into" in answer.text
    refused(answer, 503, "unavailable")
    assert api("GET", f"/artifacts/{FILE.sha256}", token=None).content == DATA
