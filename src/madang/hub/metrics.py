"""The hub's metrics: one catalogue, on a registry of its own.

Owns names and labels, but those of artifacts. Refuses request and tenant ids as labels: their number has no bound.
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from madang.hub.artifact_store import ArtifactStore
from madang.runtime.artifacts.metrics import collect_room, collect_served


class StoreCollector(Collector):
    """Reads the artifact store at the moment it is asked for."""

    def __init__(self, artifacts: ArtifactStore) -> None:
        self._artifacts = artifacts

    def collect(self) -> Iterator[Metric]:
        """Yield what the store holds and served."""
        yield from collect_served("madang_hub", self._artifacts.served)
        if self._artifacts.room is not None:
            yield from collect_room("madang_hub", self._artifacts.room)


class HubMetrics:
    """What the hub counts."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self.registry = registry
        self.ledger_events = Counter(
            "madang_hub_ledger_events_total",
            "Usage events by what became of them: inserted, duplicate or refused.",
            ["result"],
            registry=registry,
        )
        self.usage_stream_fill = Gauge(
            "madang_hub_usage_stream_fill_ratio",
            "Used part of the usage stream's bytes; at 1 sites keep their events.",
            registry=registry,
        )
        self.desired_generation = Gauge(
            "madang_hub_desired_generation",
            "Generation of a site's desired state as published.",
            ["site"],
            registry=registry,
        )
        self.applied_generation = Gauge(
            "madang_hub_applied_generation",
            "Generation that a site says it applied.",
            ["site"],
            registry=registry,
        )
        self.outbox_depth = Gauge(
            "madang_hub_site_outbox_events",
            "Usage events that a site says it has not delivered.",
            ["site"],
            registry=registry,
        )
        self.items_published = Counter(
            "madang_hub_desired_items_published_total",
            "Items of desired state sent to the bucket.",
            registry=registry,
        )
        self.heartbeats = Counter(
            "madang_hub_heartbeats_total",
            "Heartbeats by verdict: in_sync, wait, resync, jump, absurd, refused or unknown_site.",
            ["verdict"],
            registry=registry,
        )
        self.resyncs = Counter(
            "madang_hub_resyncs_total",
            "Resyncs ordered, by result: applied or failed.",
            ["result"],
            registry=registry,
        )
        self.lease_asks = Counter(
            "madang_hub_lease_asks_total",
            "Asks of sites for money, by result: answered or refused.",
            ["result"],
            registry=registry,
        )
        self.sites = Gauge("madang_hub_sites", "Enrolled sites by state.", ["state"], registry=registry)
        self.bus_connected = Gauge(
            "madang_hub_bus_connected", "1 while the hub's NATS server is reached.", registry=registry
        )
