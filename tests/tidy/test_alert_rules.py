"""The alert rules for Prometheus: on metrics that there are, each with a test, a runbook and both languages."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.tidy.exported import all_series

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "prometheus"
RULES_FILE, TESTS_FILE = FOLDER / "madang-alerts.yml", FOLDER / "madang-alerts-test.yml"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(RULES_FILE.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]
]
SCRAPED = {"instance", "job"}
"""Labels that Prometheus adds."""
SELECTOR = re.compile(r"\b((?:madang_[a-z0-9_]+)|up)\b(?!\s*\()(?:\{([^}]*)\})?")
MATCHER = re.compile(r"([a-z_]+)\s*(?:=~|!~|!=|=)")
GROUP = re.compile(r"by \(([^)]*)\)")
USED = re.compile(r"\$labels\.([a-z_]+)")
by_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])


@pytest.fixture(scope="module")
def series() -> dict[str, set[str]]:
    return all_series() | {"up": set()}


def test_every_program_is_asked_what_it_exports(series: dict[str, set[str]]) -> None:
    programs = {name.split("_")[1] for name in series if name.startswith("madang_")}
    assert programs == {"hub", "site", "gateway", "node", "facility"}


@by_rule
def test_a_rule_asks_for_what_there_is(rule: dict[str, Any], series: dict[str, set[str]]) -> None:
    asked = SELECTOR.findall(rule["expr"])
    assert asked
    assert set(re.findall(r"\bmadang_\w+", rule["expr"])) <= {name for name, _ in asked}
    for name, matchers in asked:
        assert name in series, f"{name} is no metric"
        unknown = set(MATCHER.findall(re.sub(r'"[^"]*"', "", matchers))) - series[name] - SCRAPED
        assert not unknown, f"{name} has no label {unknown}"
    known = set().union(*(series[name] for name, _ in asked)) | SCRAPED
    groups = GROUP.findall(rule["expr"])
    for group in groups:
        assert {label.strip() for label in group.split(",")} <= known, rule["expr"]
    assert set(USED.findall(str(rule["annotations"]))) <= known


@by_rule
def test_a_rule_says_how_urgent_it_is_what_it_is_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert set(rule["annotations"]) == {"summary", "summary_ko", "runbook_url"}
    assert re.search("[가-힣]", rule["annotations"]["summary_ko"])
    place, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    text = (ROOT / place).read_text(encoding="utf-8")
    found = re.findall("^#+ (.*)$", text, re.MULTILINE)
    headings = {re.sub(r"[^\w -]", "", one).strip().lower().replace(" ", "-") for one in found}
    assert anchor in headings
    assert f"`{rule['alert']}`" in text, "the runbook names it"


def test_names_are_unique_and_each_rule_has_a_test() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names)
    tests = yaml.safe_load(TESTS_FILE.read_text(encoding="utf-8"))["tests"]
    assert sorted(one["name"] for one in tests) == sorted(names)
    for one in tests:
        assert any(each["exp_samples"] for each in one["promql_expr_test"]), f"{one['name']} never fires"
        assert all(one["name"] in each["expr"] for each in one["promql_expr_test"])


@pytest.mark.peer
@pytest.mark.parametrize(
    "words", [("check", "rules", RULES_FILE.name), ("test", "rules", TESTS_FILE.name)], ids=" ".join
)
def test_promtool_agrees(words: tuple[str, ...]) -> None:
    promtool = os.environ.get("MADANG_PROMTOOL") or shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not there: it is in the package prometheus; MADANG_PROMTOOL may name it")
    done = subprocess.run([promtool, *words], cwd=FOLDER, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
