"""The artifact port: ranges, unfinished files, who may ask; and fetching through it with a signed manifest."""

import os
import threading

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests import loopback
from tests.node.artifact_sources import file_of
from tests.runtime.artifact_lab import CHUNK, cut, make_kit

from madang.core import Rejected, Unavailable
from madang.node.artifacts import ArtifactFetcher
from madang.runtime.artifacts.cache import ArtifactCache
from madang.runtime.artifacts.chunk_file import ChunkFile
from madang.runtime.artifacts.fetching import ChunkFetcher, StoreLink, read_keys
from madang.runtime.artifacts.manifests import cut_file, read_manifest, write_manifest
from madang.runtime.artifacts.room import ArtifactRoom
from madang.runtime.artifacts.serving import ArtifactServer
from madang.runtime.clock import SystemClock
from madang.runtime.telemetry import EventLog
from madang.wire.artifacts import Manifest, sign_manifest

DATA = os.urandom(6 * CHUNK + 77)
FILE = cut(DATA)
ARTIFACT = file_of(DATA)
PRIVATE = Ed25519PrivateKey.generate()
PUBLIC = PRIVATE.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
PATH = f"/artifacts/{FILE.sha256}"


def fill(folder, data=DATA):
    cache = ArtifactCache(folder)
    cache.partial_folder.mkdir(parents=True, exist_ok=True)
    part = cache.part_of(file_of(data))
    part.write_bytes(data)
    cache.admit(part, file_of(data), "test")
    write_manifest(folder, file_of(data).sha256, sign_manifest(Manifest(files=(cut(data),)), PUBLIC, PRIVATE.sign))
    return cache


@pytest.fixture
def serve():
    servers = []

    def run(folder, authorise=lambda path, headers: None, find_chunks=lambda sha256: None):
        server = ArtifactServer(folder, authorise, find_chunks, "127.0.0.1", 0)
        server.start()
        servers.append(server)
        return f"http://127.0.0.1:{server.port}"

    yield run
    for server in servers:
        server.stop()


@pytest.fixture
def log(tmp_path):
    with (tmp_path / "events.jsonl").open("w") as stream:
        yield EventLog(SystemClock(), stream)


def make_fetcher(folder, stores, log, **options):
    cache = ArtifactCache(folder)
    room = ArtifactRoom(cache)
    return ArtifactFetcher(
        cache, chunks=ChunkFetcher(cache, room, lambda: stores, [PUBLIC], make_kit(**options), log), room=room
    )


def test_whole_files_are_served_in_ranges(tmp_path, serve):
    fill(tmp_path)
    with httpx.Client(base_url=serve(tmp_path), trust_env=False, verify=loopback.NOBODY) as client:
        whole = client.get(PATH)
        assert (whole.status_code, whole.content) == (200, DATA)
        assert whole.headers["etag"] == f'"{FILE.sha256}"'
        part = client.get(PATH, headers={"range": "bytes=100-199"})
        assert (part.status_code, part.content) == (206, DATA[100:200])
        assert part.headers["content-range"] == f"bytes 100-199/{len(DATA)}"
        rest = client.get(PATH, headers={"range": "bytes=100-"})
        assert rest.content == DATA[100:]
        assert client.get(PATH, headers={"range": f"bytes={len(DATA)}-"}).status_code == 416
        assert client.get(PATH, headers={"range": "bytes=-5"}).status_code == 416
        head = client.head(PATH)
        assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(DATA)), b"")
        assert client.get(PATH + "/manifest").content == read_manifest(tmp_path, FILE.sha256)
        for wrong in ("/artifacts/" + "0" * 64, "/artifacts/../x", "/", f"{PATH}/../../x", PATH.upper()):
            assert client.get(wrong).status_code == 404


def test_of_an_unfinished_file_only_what_is_finished_is_served(tmp_path, serve):
    chunk_file = ChunkFile(tmp_path / ".partial", FILE)
    for index in (0, 1, 3):
        start, size_bytes = FILE.span_of(index)
        chunk_file.write(index, memoryview(DATA)[start : start + size_bytes])
    chunk_file.flush()
    chunk_file.close()
    with httpx.Client(
        base_url=serve(tmp_path, find_chunks={FILE.sha256: FILE}.get), trust_env=False, verify=loopback.NOBODY
    ) as client:
        first = client.get(PATH, headers={"range": f"bytes=10-{len(DATA) - 1}"})
        assert (first.status_code, first.content) == (206, DATA[10 : 2 * CHUNK])
        assert first.headers["content-range"] == f"bytes 10-{2 * CHUNK - 1}/{len(DATA)}"
        third = client.get(PATH, headers={"range": f"bytes={3 * CHUNK}-{3 * CHUNK + 9}"})
        assert third.content == DATA[3 * CHUNK : 3 * CHUNK + 10]
        missing = client.get(PATH, headers={"range": f"bytes={2 * CHUNK}-{3 * CHUNK}"})
        assert (missing.status_code, missing.headers["retry-after"]) == (503, "1")
        assert client.get(PATH).status_code == 503


def test_strangers_get_nothing(tmp_path, serve):
    fill(tmp_path)

    def authorise(path, headers):
        if headers.get("authorization") != "Bearer right":
            raise Rejected("not for you")

    with httpx.Client(base_url=serve(tmp_path, authorise), trust_env=False, verify=loopback.NOBODY) as client:
        for headers in ({}, {"authorization": "Bearer wrong"}):
            for path in (PATH, PATH + "/manifest"):
                answer = client.get(path, headers=headers)
                assert answer.status_code == 401
                assert DATA[:50] not in answer.content
        assert client.get(PATH, headers={"authorization": "Bearer right"}).content == DATA


def test_a_file_without_its_marker_is_not_served(tmp_path, serve):
    fill(tmp_path)
    (tmp_path / FILE.sha256[:2] / f"{FILE.sha256}.ok").unlink()
    with httpx.Client(base_url=serve(tmp_path), trust_env=False, verify=loopback.NOBODY) as client:
        assert client.get(PATH).status_code == 404


def test_hub_to_site_to_node_with_proof_at_each_step(tmp_path, serve, log):
    fill(tmp_path / "hub")
    hub = serve(tmp_path / "hub")

    def only_nodes(path, headers):
        if headers.get("authorization") != "Bearer node":
            raise Rejected("no node of this site")

    site = make_fetcher(tmp_path / "site", [StoreLink("hub", hub)], log)
    assert site.ensure(ARTIFACT).read_bytes() == DATA
    assert list((tmp_path / "site" / ".partial").iterdir()) == []
    site_url = serve(tmp_path / "site", only_nodes)
    link = StoreLink("site", site_url, lambda path: {"authorization": "Bearer node"})
    assert make_fetcher(tmp_path / "node", [link], log).ensure(ARTIFACT).read_bytes() == DATA
    with pytest.raises(Unavailable):
        make_fetcher(tmp_path / "stranger", [StoreLink("site", site_url)], log).ensure(ARTIFACT)


def test_a_node_follows_a_site_that_is_still_fetching(tmp_path, serve, log):
    site_folder = tmp_path / "site"
    write_manifest(site_folder, FILE.sha256, sign_manifest(Manifest(files=(FILE,)), PUBLIC, PRIVATE.sign))
    chunk_file = ChunkFile(site_folder / ".partial", FILE)
    url = serve(site_folder, find_chunks={FILE.sha256: FILE}.get)
    seen = threading.Event()

    def see(progress):
        if progress.bytes_done >= 3 * CHUNK:
            seen.set()

    def site_goes_on():
        for index in range(FILE.chunks):
            if index == 3:
                seen.wait(10)
            start, size_bytes = FILE.span_of(index)
            chunk_file.write(index, memoryview(DATA)[start : start + size_bytes])
            chunk_file.flush()

    thread = threading.Thread(target=site_goes_on)
    thread.start()
    path = make_fetcher(tmp_path / "node", [StoreLink("site", url)], log, patience_s=20).ensure(ARTIFACT, see)
    thread.join()
    chunk_file.close()
    assert path.read_bytes() == DATA
    assert seen.is_set()


def test_a_manifest_of_a_stranger_is_not_believed_and_named(tmp_path, serve, log):
    fill(tmp_path / "hub")
    other = Ed25519PrivateKey.generate()
    public = other.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    document = sign_manifest(Manifest(files=(FILE,)), public, other.sign)
    write_manifest(tmp_path / "hub", FILE.sha256, document)
    with pytest.raises(Unavailable):
        make_fetcher(tmp_path / "node", [StoreLink("hub", serve(tmp_path / "hub"))], log).ensure(ARTIFACT)
    assert "manifest_not_believed" in (tmp_path / "events.jsonl").read_text()


def test_a_flipped_byte_in_one_store_comes_from_the_other(tmp_path, serve, log):
    fill(tmp_path / "bad")
    fill(tmp_path / "good")
    path = tmp_path / "bad" / FILE.sha256[:2] / FILE.sha256
    path.chmod(0o644)
    with path.open("r+b") as opened:
        opened.seek(2 * CHUNK + 5)
        opened.write(bytes([DATA[2 * CHUNK + 5] ^ 1]))
    told = []
    stores = [StoreLink("site gumi", serve(tmp_path / "bad")), StoreLink("hub", serve(tmp_path / "good"))]
    fetcher = make_fetcher(tmp_path / "node", stores, log, on_bad=told.append)
    assert fetcher.ensure(ARTIFACT).read_bytes() == DATA
    assert [(one.chunk, one.source) for one in told] == [(2, "site gumi")]


def test_a_file_is_cut_as_its_manifest_says(tmp_path):
    (tmp_path / "x").write_bytes(DATA)
    assert cut_file(tmp_path / "x", "weights.bin", chunk_bytes=CHUNK) == FILE
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(Rejected, match="empty"):
        cut_file(tmp_path / "empty", "x")


def test_keys_of_settings_must_be_keys():
    assert read_keys([PUBLIC.hex()]) == (PUBLIC,)
    with pytest.raises(Rejected, match="64 lower-case"):
        read_keys(["AB" * 32])
