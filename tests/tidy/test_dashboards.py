"""Grafana's dashboards and the metrics of gateways and of sites' facilities: neither may be without the other."""

import json
import re
from pathlib import Path

import pytest
from tests.tidy.exported import facility_families, gateway_families

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "grafana" / "dashboards"
DASHBOARDS = sorted(FOLDER.glob("*.json"))
SCRAPED = {"instance", "job"}
"""Labels that Prometheus adds."""
NAME = re.compile(r"(madang_[a-z_]+)(?:\{([^}]*)\})?")
LABEL = re.compile(r"([a-z_]+)\s*(?:=~|!~|!=|=)")
GROUP = re.compile(r"by \(([^)]*)\)")


@pytest.fixture(scope="module")
def series() -> dict[str, set[str]]:
    """Labels of every series of a worker that has counted everything once and of a whole facility, by name."""
    families = [*gateway_families(), *facility_families()]
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


def expressions(path: Path) -> list[str]:
    """Every query of a dashboard, those of its variables included."""
    board = json.loads(path.read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    return queries + [one["definition"] for one in board["templating"]["list"] if "definition" in one]


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_asks_for_what_there_is(path: Path, series: dict[str, set[str]]) -> None:
    asked = expressions(path)
    assert len(asked) > 5
    for expression in asked:
        names = NAME.findall(expression)
        assert names, expression
        for name, matchers in names:
            assert name in series, f"{name} is no metric: {expression}"
            unknown = set(LABEL.findall(matchers)) - series[name] - SCRAPED
            assert not unknown, f"{name} has no label {unknown}"
            for group in GROUP.findall(expression):
                missing = {label.strip() for label in group.split(",")} - series[name] - SCRAPED
                assert not missing, f"{name} has no label {missing}: {expression}"


def test_every_metric_is_on_a_dashboard(series: dict[str, set[str]]) -> None:
    asked = " ".join(expression for path in DASHBOARDS for expression in expressions(path))
    shown = {name for name, _ in NAME.findall(asked)}
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in series if not name.endswith("_created")}
    assert families == {re.sub(r"_bucket$", "", name) for name in shown}


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_have_numbers_places_and_one_source(path: Path) -> None:
    board = json.loads(path.read_text(encoding="utf-8"))
    assert board["uid"] == path.stem
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(set(places)) == len(places)
    for panel in board["panels"]:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == "${datasource}"


def test_there_are_dashboards() -> None:
    assert [path.stem for path in DASHBOARDS] == ["madang-facility", "madang-gateway-workers", "madang-gateway"]
