"""The hub's parts, made and wired once.

Owns the wiring. Refuses to run anything: `madang.hub.app` does. The admin API's routes take what they need from
here, so that no part is global.
"""

from dataclasses import dataclass

from madang.core import Clock, Entropy
from madang.hub.artifact_store import ArtifactStore, make_artifact_store
from madang.hub.audit import AUDIT_LOG
from madang.hub.bootstrap import HubPaths, hub_paths
from madang.hub.change import Changer
from madang.hub.claims import ClaimsKeeper
from madang.hub.heartbeats import Heartbeats
from madang.hub.ingest import Ingest
from madang.hub.jetstream import JetStream
from madang.hub.leases import Leases
from madang.hub.metrics import HubMetrics, StoreCollector
from madang.hub.observed import ObservedSites
from madang.hub.publisher import Publisher
from madang.hub.seeds import HubSeeds, load_seeds
from madang.hub.settings import HubSettings
from madang.hub.site_caller import SiteCaller
from madang.hub.statuses import Statuses
from madang.runtime.audit_watch import AuditCollector, AuditWatch
from madang.runtime.bus import Bus, BusLogin
from madang.runtime.nats import HUB_INBOX
from madang.runtime.store import Store, sqlite_url
from madang.runtime.telemetry import EventLog


@dataclass(frozen=True)
class HubParts:
    """Everything that lives as long as the program."""

    settings: HubSettings
    paths: HubPaths
    seeds: HubSeeds
    clock: Clock
    entropy: Entropy
    log: EventLog
    store: Store
    bus: Bus
    system_bus: Bus
    metrics: HubMetrics
    observed: ObservedSites
    changer: Changer
    publisher: Publisher
    claims: ClaimsKeeper
    caller: SiteCaller
    heartbeats: Heartbeats
    statuses: Statuses
    ingest: Ingest
    leases: Leases
    artifacts: ArtifactStore
    audit_watch: AuditWatch


def database_url(settings: HubSettings) -> str:
    """Return the URL of the hub's database."""
    return settings.database_url or sqlite_url(settings.state_dir / "hub.db")


def make_parts(settings: HubSettings, clock: Clock, entropy: Entropy, log: EventLog) -> HubParts:
    """Make all parts; raises Unavailable when seeds are missing, naming the file."""
    paths = hub_paths(settings)
    seeds = load_seeds(paths.keys)
    store = Store(database_url(settings))
    bus, system_bus = _make_buses(settings, clock, entropy, log)
    metrics = HubMetrics()
    metrics.bus_connected.set_function(lambda: float(bus.is_connected))
    jetstream = JetStream(bus)
    observed = ObservedSites(
        clock, stale_after_s=settings.heartbeat_stale_after_s, lost_after_s=settings.heartbeat_lost_after_s
    )
    publisher = Publisher(store=store, bus=bus, jetstream=jetstream, metrics=metrics, clock=clock, log=log)
    changer = Changer(store, clock, publisher.wake)
    caller = SiteCaller(bus, entropy)
    artifacts = make_artifact_store(settings.artifact_dir, paths.artifact_key, store, clock, entropy, log)
    metrics.registry.register(StoreCollector(artifacts))
    audit_watch = AuditWatch(AUDIT_LOG, store, clock, log)
    metrics.registry.register(AuditCollector("madang_hub", audit_watch))
    return HubParts(
        settings=settings,
        paths=paths,
        seeds=seeds,
        clock=clock,
        entropy=entropy,
        log=log,
        store=store,
        bus=bus,
        system_bus=system_bus,
        metrics=metrics,
        observed=observed,
        changer=changer,
        publisher=publisher,
        claims=ClaimsKeeper(store=store, bus=system_bus, seeds=seeds, paths=paths, clock=clock, log=log),
        caller=caller,
        heartbeats=Heartbeats(
            store=store,
            changer=changer,
            bus=bus,
            caller=caller,
            observed=observed,
            metrics=metrics,
            clock=clock,
            entropy=entropy,
            log=log,
        ),
        statuses=Statuses(bus=bus, jetstream=jetstream, observed=observed, clock=clock, log=log),
        ingest=Ingest(
            store=store,
            bus=bus,
            jetstream=jetstream,
            stream_bytes_max=settings.usage_stream_bytes_max,
            metrics=metrics,
            clock=clock,
            log=log,
        ),
        leases=Leases(store=store, bus=bus, metrics=metrics, clock=clock, log=log),
        artifacts=artifacts,
        audit_watch=audit_watch,
    )


def _make_buses(settings: HubSettings, clock: Clock, entropy: Entropy, log: EventLog) -> tuple[Bus, Bus]:
    """Return the connections in account FED, where everything travels, and in SYS, where claims are updated."""
    paths = hub_paths(settings)

    def make(name: str, creds: str, inbox: str) -> Bus:
        return Bus(
            url=f"nats://{settings.nats_host}:{settings.nats_port}",
            name=name,
            inbox_prefix=inbox,
            login=lambda: BusLogin(creds_path=creds),
            clock=clock,
            entropy=entropy,
            log=log.bind(bus=name),
        )

    return (
        make("hub", str(paths.hub_creds), HUB_INBOX),
        make("hub_system", str(paths.system_creds), "_INBOX.hub_system"),
    )
