"""The examples as people run them: their services are applied by the command, their clients ask with a tenant's key."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.e2e.embedded import wait_for

pytestmark = [pytest.mark.federation]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FOLDERS = sorted(path.parent for path in EXAMPLES.glob("*/services.toml"))


def run_client(federation, example, site, tenant, *words, timeout_s=60):
    """Run an example's client as its README says; return what it printed."""
    environ = {**os.environ, "MADANG_URL": federation.url(site), "MADANG_KEY": federation.key(tenant)}
    argv = [sys.executable, str(EXAMPLES / example / "ask.py"), *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, env=environ, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


COUNTED = ("requests", "prompt_tokens", "completion_tokens", "audio_s", "images", "samples", "charge_micro_won")


def usage_of(federation, tenant, service):
    """Return what the ledger counts of a tenant's use of a service."""
    rows = federation.madang_json("usage", "--tenant", tenant, "--group-by", "service")["rows"]
    found = next((row for row in rows if row["service"] == service), {})
    return {name: found.get(name, 0) for name in COUNTED}


def wait_for_usage(federation, tenant, service, before, requests):
    """Return what the ledger counts beyond `before`, once that is so many requests."""

    def find():
        now = usage_of(federation, tenant, service)
        return now if now["requests"] >= before["requests"] + requests else None

    now = wait_for(f"{requests} requests to {service} in the ledger", find, 60, every_s=0.5)
    assert now["requests"] == before["requests"] + requests
    return {name: now[name] - before[name] for name in COUNTED}


def is_ready(federation, site, service):
    return any(one["phase"] == "ready" for one in federation.engines(site, service))


def test_there_are_three_neighbours():
    assert [path.name for path in FOLDERS] == ["city-hall", "clinic", "factory"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_an_example_would_apply_and_a_dry_run_changes_nothing(federation, folder):
    before = federation.admin("GET", "/api/v1/services")
    found = federation.madang_json("service", "apply", "-f", str(folder / "services.toml"), "--dry-run")
    assert found["is_applied"] is False
    assert {one["action"] for one in found["changes"] if one["kind"] == "service"} == {"add"}
    assert federation.admin("GET", "/api/v1/services") == before
    for readme in (folder / "README.md").read_text(encoding="utf-8"), (EXAMPLES / "README.md").read_text("utf-8"):
        assert f"examples/{folder.name}/services.toml" in readme or f"({folder.name}/README.md)" in readme


def test_the_city_hall_finds_what_a_citizen_means(healthy):
    federation, file = healthy, str(EXAMPLES / "city-hall" / "services.toml")
    before = usage_of(federation, "gwangju-city", "city-search")
    try:
        assert "+ service city-search" in federation.madang("service", "apply", "-f", file).stdout
        assert "nothing to apply" in federation.madang("service", "apply", "-f", file).stdout
        wait_for("the search to be ready", lambda: is_ready(federation, "gwangju", "city-search"), 60, every_s=0.3)
        said = run_client(federation, "city-hall", "gwangju", "gwangju-city", "버리는 장롱은 어떻게 내놓나요?")
        first, _, rest = said.partition("by rerank")
        assert "대형 폐기물" in first
        assert "대형 폐기물" in rest.splitlines()[1]
        assert "gwangju" in rest.splitlines()[-1]
        row = wait_for_usage(federation, "gwangju-city", "city-search", before, 2)
        assert row["prompt_tokens"] > 100
        assert (row["images"], row["samples"], row["audio_s"]) == (0, 0, 0)
    finally:
        for service in ("city-search", "city-print"):
            federation.madang("service", "delete", service, is_ok=False)
