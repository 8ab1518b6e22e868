"""A worker against a real hub without NATS: it compiles, uploads, fails with its log, and stops when it lost."""

import asyncio
import hashlib
import io
import sys
import threading

import pytest
from tests.hub.test_hub_builds import MODEL, REQUEST, WORKER

from madang.cli.build_work import WorkApi, work_once
from madang.core import Unavailable
from madang.hub.app import MIGRATIONS, make_app
from madang.hub.bootstrap import prepare_hub
from madang.hub.parts import make_parts
from madang.hub.settings import HubSettings
from madang.runtime.admin_client import AdminClient
from madang.runtime.admin_http import AdminServer
from madang.runtime.clock import SystemClock, SystemEntropy
from madang.runtime.store import upgrade_schema
from madang.runtime.telemetry import EventLog

TOKEN = "admin"
COMPILER = """
import json, os, pathlib
build = json.load(open(os.environ["MADANG_BUILD"]))
out = pathlib.Path(os.environ["MADANG_BUILD_OUT"])
(out / "model.fxb").write_bytes(build["request"]["inputs"]["a"].encode() * 3_000_000)
(out / "config.json").write_text(json.dumps(build["request"]["key"]))
print("compiled")
"""


@pytest.fixture
def hub(tmp_path):
    settings = HubSettings(
        state_dir=tmp_path / "hub",
        admin_token_sha256=hashlib.sha256(TOKEN.encode()).hexdigest(),
        artifact_dir=tmp_path / "artifacts",
    )
    prepare_hub(settings)
    parts = make_parts(settings, SystemClock(), SystemEntropy(), EventLog(SystemClock(), io.StringIO()))
    upgrade_schema(parts.store.engine, MIGRATIONS)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(20)

    server = AdminServer(make_app(parts), "127.0.0.1", 0)
    port = run(server.start())
    client = AdminClient(f"http://127.0.0.1:{port}", TOKEN, name="the hub")
    client.url = f"http://127.0.0.1:{port}"
    yield client
    client.close()
    run(server.stop())
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    parts.store.close()


@pytest.fixture
def api(hub):
    hub.call("POST", "/api/v1/models", MODEL)
    made = WorkApi(hub.url, hub.call("POST", "/api/v1/build-workers", WORKER)["token"])
    yield made
    made.close()


def work(api, tmp_path, script):
    return work_once(api, [sys.executable, "-c", script], tmp_path / "work", lambda _s: None)


def test_what_the_command_leaves_is_in_the_store_and_in_the_catalog(hub, api, tmp_path):
    assert work(api, tmp_path, COMPILER) is None
    build_id = hub.call("POST", "/api/v1/builds", REQUEST)["build_id"]
    assert work(api, tmp_path, COMPILER) == f"build {build_id} is done"
    (artifact,) = hub.get("/api/v1/models/qwen")["artifacts"]
    assert [file["name"] for file in artifact["files"]] == ["config.json", "model.fxb"]
    model = artifact["files"][1]
    assert model["size_bytes"] == 3_000_000
    stored = tmp_path / "artifacts" / model["sha256"][:2] / model["sha256"]
    assert stored.read_bytes() == b"b" * 3_000_000
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize(
    ("script", "state", "log"),
    [
        ("print('no memory'); raise SystemExit(1)", "queued", "no memory"),
        ("print('no such model'); raise SystemExit(65)", "failed", "no such model"),
        ("", "queued", "left no file"),
    ],
)
def test_a_failure_comes_with_its_log(hub, api, tmp_path, script, state, log):
    build_id = hub.call("POST", "/api/v1/builds", REQUEST)["build_id"]
    assert "failed" in work(api, tmp_path, script)
    build = hub.get(f"/api/v1/builds/{build_id}")
    assert (build["state"], build["attempt"]) == (state, 1)
    assert log in build["log"]


def test_a_build_that_was_cancelled_meanwhile_is_left(hub, api, tmp_path):
    build_id = hub.call("POST", "/api/v1/builds", REQUEST)["build_id"]
    cancel = f"""
import urllib.request
request = urllib.request.Request(
    "{hub.url}/api/v1/builds/{build_id}/cancel", method="POST", headers={{"authorization": "Bearer {TOKEN}"}}
)
urllib.request.build_opener(urllib.request.ProxyHandler({{}})).open(request).read()
"""
    assert "is another's" in work(api, tmp_path, cancel + COMPILER)
    assert hub.get(f"/api/v1/builds/{build_id}")["state"] == "cancelled"
    assert hub.get("/api/v1/models/qwen").get("artifacts", []) == []


def test_a_hub_that_is_away_is_said():
    api = WorkApi("http://127.0.0.1:9", "mdb_x")
    with pytest.raises(Unavailable):
        api.take()
    api.close()
