"""The official JavaScript client, unchanged, against a site with real engines."""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from madang.node.cache import default_cache_dir

pytestmark = [pytest.mark.federation, pytest.mark.model, pytest.mark.deep]
SOURCES = Path(__file__).parent / "npm"


@pytest.fixture(scope="module")
def client_folder():
    """The client as its lock pins it, installed beside the models' cache; skips where that cannot be done."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are not installed")
    lock = (SOURCES / "package-lock.json").read_bytes()
    folder = default_cache_dir(os.environ) / "npm-clients" / hashlib.sha256(lock).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json", "ask.mjs"):
        shutil.copyfile(SOURCES / name, folder / name)
    if not (folder / "node_modules" / "openai").is_dir():
        words = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-timeout=20000"]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=180, check=False)
        if done.returncode:
            pytest.skip(f"npm could not install the client: {done.stderr.strip()[-300:]}")
    return folder


@pytest.mark.timeout(300)
def test_the_javascript_client(federation, client_folder):
    environ = {
        **os.environ,
        "MADANG_URL": f"{federation.url('gwangju')}/v1",
        "MADANG_KEY": federation.key("gwangju-city"),
    }
    done = subprocess.run(
        ["node", "ask.mjs"], cwd=client_folder, env=environ, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["models"] == ["madang-chat", "madang-embed"]
    assert "서울" in said["whole"]
    assert "서울" in said["stream"]
    assert said["usage"]["completion_tokens"] > 1
    assert said["call"]["name"] == "read_temperature"
    assert list(json.loads(said["call"]["arguments"])) == ["room"]
    assert said["finish"] == "tool_calls"
    assert "서울" in said["response"]
    assert said["events"][0] == "response.created"
    assert said["events"][-1] in ("response.completed", "response.incomplete")
    assert said["dimensions"] == [384, 384]
    assert said["error"] == {"isNotFound": True, "code": "model_not_found", "param": "model"}
