"""The examples as people run them: their services are applied by the command, their clients ask with a tenant's key."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests import loopback
from tests.e2e.embedded import wait_for
from tests.engine.test_tesseract import errors_share, faq, page_of

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
    rows = federation.ledger(tenant=tenant, group_by="service")["rows"]
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


def is_known(federation, tenant, service):
    """Return whether the national entry offers a service to a tenant."""
    headers = {"authorization": f"Bearer {federation.key(tenant)}"}
    listed = loopback.get(f"{federation.url('national')}/v1/models", headers=headers, timeout=10).json()["data"]
    return any(card["id"] == service for card in listed)


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


@pytest.fixture(scope="module")
def city_hall(federation):
    """The city hall's services, applied as its README says."""
    file = str(EXAMPLES / "city-hall" / "services.toml")
    try:
        said = federation.madang("service", "apply", "-f", file).stdout
        assert "+ service city-search" in said
        assert "apt-get install tesseract-ocr tesseract-ocr-kor" in said, (
            "a service that is new says what its model needs"
        )
        assert "nothing to apply" in federation.madang("service", "apply", "-f", file).stdout
        yield federation
    finally:
        for service in ("city-search", "city-print"):
            federation.madang("service", "delete", service, is_ok=False)


def test_the_city_hall_finds_what_a_citizen_means(healthy, city_hall):
    before = usage_of(city_hall, "gwangju-city", "city-search")
    wait_for("the search to be ready", lambda: is_ready(city_hall, "gwangju", "city-search"), 60, every_s=0.3)
    said = run_client(city_hall, "city-hall", "gwangju", "gwangju-city", "버리는 장롱은 어떻게 내놓나요?")
    first, _, rest = said.partition("by rerank")
    assert "대형 폐기물" in first
    assert "대형 폐기물" in rest.splitlines()[1]
    assert "gwangju" in rest.splitlines()[-1]
    row = wait_for_usage(city_hall, "gwangju-city", "city-search", before, 2)
    assert row["prompt_tokens"] > 100
    assert (row["images"], row["samples"], row["audio_s"]) == (0, 0, 0)


@pytest.mark.timeout(600)  # the first run fetches Debian's packages
def test_the_city_hall_reads_korean_print(healthy, tesseract, city_hall, tmp_path):
    """Words of Debian's Korean translators, drawn as a page, through the national entry."""
    text = "\n".join(faq().splitlines()[:2])
    (tmp_path / "notice.png").write_bytes(page_of(text, tmp_path, "page"))
    before = usage_of(city_hall, "gwangju-city", "city-print")
    wait_for("the print service to be ready", lambda: is_ready(city_hall, "gwangju", "city-print"), 60, every_s=0.3)
    wait_for("it to be known at the entry", lambda: is_known(city_hall, "gwangju-city", "city-print"), 60, every_s=0.3)
    said = run_client(
        city_hall, "city-hall", "national", "gwangju-city", "--picture", str(tmp_path / "notice.png"), timeout_s=200
    )
    assert errors_share(said, text) < 0.1
    row = wait_for_usage(city_hall, "gwangju-city", "city-print", before, 1)
    assert (row["images"], row["samples"], row["prompt_tokens"], row["audio_s"]) == (1, 0, 0, 0)
