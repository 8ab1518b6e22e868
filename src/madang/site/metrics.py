"""The site's metrics: one catalogue, read from the parts when somebody asks.

Owns names and labels. Refuses request and tenant ids as labels: their number has no bound.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from madang.core import Clock
from madang.machine.forward import Trouble
from madang.model import ReplicaPhase
from madang.runtime.artifacts.metrics import collect_room, collect_served, collect_transfers
from madang.runtime.audit_watch import AuditCollector, AuditWatch
from madang.runtime.bus import Bus
from madang.site.access_archive import AccessArchive
from madang.site.agent import DesiredAgent
from madang.site.artifacts import SiteArtifacts
from madang.site.desired import DesiredView
from madang.site.facility.facility import Facility
from madang.site.facility.gauges import collect_facility
from madang.site.forwarder import Forwarder
from madang.site.guard import GuardedStore
from madang.site.intake import Importer, OutboxGauge
from madang.site.leases.talk import LeaseTalk
from madang.site.link import HubLink
from madang.site.nodes import NodeBook
from madang.site.peers import Peers
from madang.site.receipt_book import ReceiptBook
from madang.site.tenant_data import TenantData


@dataclass(frozen=True)
class MetricSources:
    """The parts that are read."""

    bus: Bus
    link: HubLink
    view: DesiredView
    agent: DesiredAgent
    store: GuardedStore
    gauge: OutboxGauge
    importer: Importer
    forwarder: Forwarder
    nodes: NodeBook
    peers: Peers
    tenant_data: TenantData
    access: AccessArchive
    receipts: ReceiptBook
    leases: LeaseTalk
    artifacts: SiteArtifacts
    facility: Facility | None
    audit: AuditWatch
    clock: Clock


Reader = Callable[[MetricSources], float]

GAUGES: tuple[tuple[str, str, Reader], ...] = (
    ("madang_site_bus_connected", "1 while the site's own NATS server is reached.", lambda s: s.bus.is_connected),
    ("madang_site_hub_linked", "1 while the hub answers.", lambda s: s.link.check()),
    ("madang_site_hub_contact_age_seconds", "Since the hub was last heard; -1 if never.", lambda s: _age(s.link)),
    ("madang_site_applied_generation", "Generation of desired state applied last.", lambda s: s.view.generation),
    ("madang_site_outbox_events", "Usage events that wait for the hub.", lambda s: max(0, s.gauge.rows)),
    (
        "madang_site_outbox_oldest_age_seconds",
        "How long the oldest usage event has waited for the hub.",
        lambda s: s.gauge.oldest_age_s(s.clock.wall_s()),
    ),
    ("madang_site_store_writable", "0 while the site's database cannot be written.", lambda s: not s.store.trouble),
    ("madang_site_replicas_unplaced", "Replicas wanted here without a place.", lambda s: len(s.nodes.unplaced)),
    ("madang_site_access_size_bytes", "Access records on disk.", lambda s: s.access.size_bytes),
    ("madang_site_access_used_ratio", "Share of access_bytes_max that is used.", lambda s: s.access.used_share),
    ("madang_site_files", "Tenants' files that are kept here.", lambda s: s.tenant_data.files.files),
    ("madang_site_files_size_bytes", "Their content together.", lambda s: s.tenant_data.files.size_bytes),
    ("madang_site_batches_unfinished", "Batches that are not over.", lambda s: s.tenant_data.runner.running),
    ("madang_site_batches_at_work", "Batches that have begun.", lambda s: s.tenant_data.runner.at_work),
    ("madang_site_lease_pots", "Budgets' periods that money is leased for.", lambda s: s.leases.keeper.pots),
    (
        "madang_site_lease_pots_short",
        "Of them, those in which a request lacks money.",
        lambda s: s.leases.keeper.pots_short,
    ),
    ("madang_site_lease_workers", "Gateway workers that are given money.", lambda s: s.leases.keeper.workers.count),
)

COUNTERS: tuple[tuple[str, str, Reader], ...] = (
    ("madang_site_bus_connections_total", "Connections made to its NATS server.", lambda s: s.bus.connections),
    ("madang_site_desired_applied_total", "Items of desired state applied.", lambda s: s.agent.applied_total),
    ("madang_site_desired_refused_total", "Items of desired state refused.", lambda s: s.agent.refused_total),
    ("madang_site_resyncs_total", "Snapshots of desired state applied.", lambda s: s.agent.resyncs_total),
    ("madang_site_usage_imported_total", "Usage events imported.", lambda s: s.importer.counts.imported),
    ("madang_site_usage_repeated_total", "Usage events that came before.", lambda s: s.importer.counts.repeated),
    ("madang_site_usage_damaged_total", "Damaged places in usage segments.", lambda s: s.importer.counts.damaged),
    ("madang_site_usage_tails_dropped_total", "Torn ends of usage segments.", lambda s: s.importer.counts.tails),
    (
        "madang_site_usage_segments_quarantined_total",
        "Usage segments kept for people to look at.",
        lambda s: s.importer.counts.quarantined,
    ),
    ("madang_site_usage_forwarded_total", "Usage events stored by the hub.", lambda s: s.forwarder.forwarded_total),
    ("madang_site_usage_batches_total", "Batches stored by the hub.", lambda s: s.forwarder.batches_total),
    ("madang_site_usage_send_failures_total", "Batches not stored.", lambda s: s.forwarder.failures_total),
    ("madang_site_digests_heard_total", "Digests of other sites taken.", lambda s: s.peers.heard_total),
    ("madang_site_digests_refused_total", "Digests of other sites refused.", lambda s: s.peers.refused_total),
    ("madang_site_receipts_total", "Usage events with a receipt.", lambda s: s.receipts.events_total),
    ("madang_site_receipt_trees_total", "Trees of receipts signed.", lambda s: s.receipts.trees_total),
    ("madang_site_access_records_sealed_total", "Access records sealed.", lambda s: s.access.counts.records),
    ("madang_site_access_segments_sealed_total", "Segments of them sealed.", lambda s: s.access.counts.segments),
    ("madang_site_access_tails_torn_total", "Segments of them with a torn end.", lambda s: s.access.counts.torn),
    ("madang_site_files_stored_total", "Files stored, results included.", lambda s: s.tenant_data.files.uploaded_total),
    ("madang_site_files_expired_total", "Files destroyed in time.", lambda s: s.tenant_data.files.purged_total),
    ("madang_site_batch_waits_total", "Times a line found no room.", lambda s: s.tenant_data.counts.waits),
    ("madang_site_lease_asks_total", "Messages about leases sent to the hub.", lambda s: s.leases.asks_total),
    ("madang_site_lease_asks_failed_total", "Those not granted.", lambda s: s.leases.asks_failed_total),
    ("madang_site_batch_retries_total", "Tries without a result.", lambda s: s.tenant_data.counts.again),
)


def _age(link: HubLink) -> float:
    age_s = link.contact_age_s()
    return -1.0 if age_s is None else age_s


class SiteCollector(Collector):
    """Reads all metrics at the moment they are asked for."""

    def __init__(self, sources: MetricSources) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        """Yield every metric."""
        for name, text, read in GAUGES:
            yield GaugeMetricFamily(name, text, value=float(read(self._sources)))
        for name, text, read in COUNTERS:
            yield CounterMetricFamily(name, text, value=float(read(self._sources)))
        yield from AuditCollector("madang_site", self._sources.audit).collect()
        yield from self._collect_labelled()
        yield from self._collect_artifacts()

    def _collect_artifacts(self) -> Iterator[Metric]:
        artifacts = self._sources.artifacts
        yield from collect_transfers("madang_site", artifacts.transfers)
        yield from collect_room("madang_site", artifacts.room)
        yield from collect_served("madang_site", artifacts.served)
        if artifacts.certificate is not None:
            yield GaugeMetricFamily(
                "madang_site_artifact_certificate_not_after_seconds",
                "Last second of the artifact port's certificate, wall clock.",
                value=artifacts.certificate.not_after_s,
            )

    def _collect_batches(self) -> Iterable[Metric]:
        counts = self._sources.tenant_data.counts
        yield _count_by("madang_site_batch_lines_total", "Lines of batches, by result.", "result", counts.lines)
        yield _count_by("madang_site_batches_ended_total", "Batches, by how they ended.", "status", counts.batches)

    def _collect_labelled(self) -> Iterable[Metric]:
        nodes = self._sources.nodes
        trouble = GaugeMetricFamily(
            "madang_site_usage_trouble", "1 for the reason why usage does not flow.", labels=["trouble"]
        )
        for value in Trouble:
            if value:
                trouble.add_metric([value], float(self._sources.forwarder.trouble is value))
        yield trouble
        phases = Counter(replica.phase for replica in nodes.replicas())
        replicas = GaugeMetricFamily("madang_site_replicas", "Replicas seen, by phase.", labels=["phase"])
        for phase in ReplicaPhase:
            replicas.add_metric([phase], phases[phase])
        yield replicas
        yield from self._collect_batches()
        silence = GaugeMetricFamily("madang_site_node_silence_seconds", "Since a node last answered.", labels=["node"])
        for node in nodes.nodes.values():
            silence.add_metric([node.name], nodes.silence_s(node))
        yield silence
        peers = GaugeMetricFamily(
            "madang_site_peer_digest_age_seconds", "Age of a peer's newest digest; -1 if none came.", labels=["peer"]
        )
        for peer in self._sources.peers.list_peers():
            peers.add_metric([peer.site], peer.digest_age_s)
        yield peers
        if self._sources.facility is not None:
            yield from collect_facility(self._sources.facility)


def _count_by(name: str, text: str, label: str, counts: dict[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in counts.items():
        family.add_metric([value], count)
    return family


def make_registry(sources: MetricSources) -> CollectorRegistry:
    """Return a registry that reads from the parts."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(SiteCollector(sources))
    return registry
