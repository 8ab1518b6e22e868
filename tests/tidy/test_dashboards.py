"""Grafana's dashboards and the metrics of gateways and of sites' facilities: neither may be without the other."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from madang.core import SiteId
from madang.gateway.metrics import Meter
from madang.model import Envelope, Fact, Point, PointKind, Quality, Quantity, Sample
from madang.site.facility.allowed import Limits
from madang.site.facility.gauges import collect_facility

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "grafana" / "dashboards"
DASHBOARDS = sorted(FOLDER.glob("*.json"))
SCRAPED = {"instance", "job"}
"""Labels that Prometheus adds."""
NAME = re.compile(r"(madang_[a-z_]+)(?:\{([^}]*)\})?")
LABEL = re.compile(r"([a-z_]+)\s*(?:=~|!~|!=|=)")
GROUP = re.compile(r"by \(([^)]*)\)")


class FakeFacility:
    """A fake: one good reading of each quantity, every fact known, one device, which is listened to, no alarm."""

    def __init__(self) -> None:
        fact = Fact(value=1.0, quality=Quality.GOOD)
        names = ("pue", "headroom_w", "runtime_s", "thermal_margin_k", "time_to_limit_s")
        self.mind = SimpleNamespace(world=SimpleNamespace(facts=SimpleNamespace(**dict.fromkeys(names, fact))))
        points, samples = {}, {}
        for quantity in Quantity:
            name = f"unit.{quantity.value}"
            points[name] = Point(
                point_id=name, equipment_id="unit", name=quantity.value, kind=PointKind.SENSOR, quantity=quantity
            )
            samples[name] = Sample(point_id=name, value=1.0, observed_at_s=0.0, quality=Quality.GOOD)
        self.book = SimpleNamespace(points=points, samples=lambda now_s: samples)
        self.poller = SimpleNamespace(states={"d": SimpleNamespace(is_answering=True)})
        self.notifications = SimpleNamespace(
            list_drivers=lambda: {"snmp": True}, count=lambda driver: {"woke": 1, "malformed": 0}
        )
        self.alarms = SimpleNamespace(list_alarms=lambda: ())
        envelope = Envelope(site=SiteId("daegu"), generation=1, issued_at_s=0.0, valid_until_s=1.0)
        self.allowed = SimpleNamespace(envelope=envelope, limits=Limits)

    def now_s(self) -> float:
        return 0.0


@pytest.fixture(scope="module")
def series() -> dict[str, set[str]]:
    """Labels of every series of a worker that has counted everything once and of a whole facility, by name."""
    meter = Meter("daegu")
    meter.count_request("/v1/chat/completions", 200, "daegu", "s", "cpu", "interactive")
    meter.of("s", "cpu", "interactive").ttft.observe(0.1)
    meter.count_retry("s", "connect")
    meter.count_shed("s", "batch", "overloaded")
    meter.count_quota_refusal("budget")
    meter.count_reject(400)
    meter.count_peer_refusal("expired")
    meter.count_handshake("ok")
    fake: Any = FakeFacility()
    families = [*meter.collect(), *collect_facility(fake)]
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
