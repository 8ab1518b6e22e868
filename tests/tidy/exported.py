"""What `/metrics` of hub, site, gateway and node export: asked of their own collectors, never written down here.

Parts that a collector reads are fakes; names and labels are the collectors' own.
"""

from types import SimpleNamespace
from typing import Any

from prometheus_client import Counter, Gauge
from prometheus_client.metrics_core import Metric

from madang.core import SiteId
from madang.gateway.metrics import Meter
from madang.hub.metrics import HubMetrics, StoreCollector
from madang.model import Envelope, EquipmentKind, Fact, Point, PointKind, Quality, Quantity, Sample
from madang.node.metrics import NodeCollector
from madang.policy.facility.signs import list_readings
from madang.runtime.artifacts.book import TransferBook
from madang.runtime.artifacts.serving import ServedCounts
from madang.runtime.audit_watch import AuditCollector
from madang.site.facility.allowed import Limits
from madang.site.facility.gauges import collect_facility
from madang.site.metrics import SiteCollector
from madang.wire.audit import ChainHead

_SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}


class FakeFacility:
    """A fake: one good reading of each quantity, every fact, a UPS, a device that is listened to, no alarm."""

    def __init__(self) -> None:
        fact = Fact(value=1.0, quality=Quality.GOOD)
        names = ("pue", "headroom_w", "runtime_s", "thermal_margin_k", "time_to_limit_s")
        points, samples = {}, {}
        for quantity in Quantity:
            name = f"unit.{quantity.value}"
            points[name] = Point(
                point_id=name, equipment_id="unit", name=quantity.value, kind=PointKind.SENSOR, quantity=quantity
            )
            samples[name] = Sample(point_id=name, value=1.0, observed_at_s=0.0, quality=Quality.GOOD)
        state = points["unit.state"]
        topology = SimpleNamespace(sign_points=((state, list_readings(state, EquipmentKind.UPS)),))
        facts = SimpleNamespace(**dict.fromkeys(names, fact))
        self.mind = SimpleNamespace(world=SimpleNamespace(facts=facts, topology=topology))
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


class FakeNothing:
    """A fake of whatever part a collector asks: it has every attribute, is empty, and counts as 0."""

    def __getattr__(self, name: str) -> "FakeNothing":
        return self

    def __call__(self, *_: object) -> "FakeNothing":
        return self

    def __iter__(self):
        return iter(())

    def __len__(self) -> int:
        return 0

    def __float__(self) -> float:
        return 0.0

    def __bool__(self) -> bool:
        return False

    def __gt__(self, other: object) -> bool:
        return False


class FakeClock:
    """Stands still."""

    def monotonic_ns(self) -> int:
        return 0

    def wall_s(self) -> float:
        return 0.0


def gateway_families() -> list[Metric]:
    """A worker that has counted everything once."""
    meter = Meter("daegu")
    meter.count_request("/v1/chat/completions", 200, "daegu", "s", "cpu", "interactive")
    meter.of("s", "cpu", "interactive").ttft.observe(0.1)
    meter.count_retry("s", "connect")
    meter.count_shed("s", "batch", "overloaded")
    meter.count_quota_refusal("budget")
    meter.count_reject(400)
    meter.count_peer_refusal("expired")
    meter.count_handshake("ok")
    return list(meter.collect())


def facility_families() -> list[Metric]:
    """A whole facility."""
    fake: Any = FakeFacility()
    return list(collect_facility(fake))


def _hub_families() -> list[Metric]:
    metrics = HubMetrics()
    for metric in vars(metrics).values():
        if isinstance(metric, Counter | Gauge) and metric._labelnames:
            metric.labels(*metric._labelnames)
    store: Any = SimpleNamespace(served=ServedCounts(), room=FakeNothing())
    audit = AuditCollector("madang_hub", _fake_watch())
    return [*metrics.registry.collect(), *StoreCollector(store).collect(), *audit.collect()]


def _fake_watch() -> Any:
    """A fake: a walk over nothing."""
    return SimpleNamespace(head=ChainHead(), broken_at_seq=0, checked_at_s=0.0)


def _site_families() -> list[Metric]:
    artifacts = SimpleNamespace(
        transfers=TransferBook(FakeClock()), room=FakeNothing(), served=ServedCounts(), certificate=FakeNothing()
    )
    parts = {
        name: FakeNothing() for name in ("bus", "link", "view", "agent", "store", "gauge", "importer", "forwarder")
    }
    parts |= {name: FakeNothing() for name in ("nodes", "peers", "tenant_data", "access", "receipts", "leases")}
    sources: Any = SimpleNamespace(
        **parts, artifacts=artifacts, facility=FakeFacility(), audit=_fake_watch(), clock=FakeClock()
    )
    return list(SiteCollector(sources).collect())


def _node_families() -> list[Metric]:
    board: Any = SimpleNamespace(generation=0, replicas=(), leases=(), cordons=(), chips=())
    fetcher: Any = SimpleNamespace(book=TransferBook(FakeClock()), room=FakeNothing())
    return list(NodeCollector(board, fetcher).collect())


def labels_of(families: list[Metric]) -> dict[str, set[str]]:
    """Return the labels of every series by its name; families without a series yet say theirs too."""
    found: dict[str, set[str]] = {}
    for family in families:
        names = {f"{family.name}{suffix}" for suffix in _SUFFIXES[family.type]}
        for name in names:
            found.setdefault(name, set()).update(getattr(family, "_labelnames", ()))
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def all_series() -> dict[str, set[str]]:
    """Return what all programs export, by name of the series."""
    return labels_of([*gateway_families(), *_hub_families(), *_site_families(), *_node_families()])
