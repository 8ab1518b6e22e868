"""The site's parts, made and wired once.

Owns the wiring. Refuses to run anything: `madang.site.app` does. The admin API takes what it needs from here, so
that no part is global.
"""

import ssl
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from prometheus_client import CollectorRegistry

from madang.core import Clock, Entropy, NodeId, SiteId
from madang.runtime.audit_watch import AuditWatch
from madang.runtime.bus import Bus, BusLogin
from madang.runtime.files import read_secret
from madang.runtime.machine_boot import read_boot
from madang.runtime.roots import load_roots
from madang.runtime.store import Store, sqlite_url
from madang.runtime.telemetry import EventLog
from madang.site.access_archive import AccessArchive
from madang.site.agent import DesiredAgent
from madang.site.artifacts import SiteArtifacts
from madang.site.audit import AUDIT_LOG
from madang.site.bootstrap import SITE_USER, access_folder, identity_file, password_file
from madang.site.cordons import Cordons
from madang.site.desired import DesiredView
from madang.site.facility.allowed import Allowed
from madang.site.facility.facility import Facility, make_facility
from madang.site.facility.use import find_use, list_open_peers
from madang.site.feed import FeedWriter, Replicas
from madang.site.forwarder import Forwarder
from madang.site.guard import GuardedStore
from madang.site.intake import Importer, OutboxGauge
from madang.site.kex import load_identity
from madang.site.leases.keeper import LeaseKeeper
from madang.site.leases.talk import LeaseTalk
from madang.site.link import HubLink
from madang.site.metrics import MetricSources, make_registry
from madang.site.node_link import NodeClient
from madang.site.nodes import NodeBook
from madang.site.peers import Peers
from madang.site.planner import Planner
from madang.site.pulse import Pulse
from madang.site.receipt_api import ReceiptApi
from madang.site.receipt_book import ReceiptBook
from madang.site.receipt_peers import PeerReceipts
from madang.site.segments import SegmentFolder
from madang.site.sessions import SessionBook
from madang.site.settings import SiteSettings
from madang.site.signal import Signal
from madang.site.tenant_data import TenantData, make_tenant_data


@dataclass(frozen=True)
class SiteParts:
    """Everything that lives as long as the program."""

    settings: SiteSettings
    boot_id: str
    clock: Clock
    log: EventLog
    database: Store
    store: GuardedStore
    bus: Bus
    link: HubLink
    view: DesiredView
    desired_changed: Signal
    agent: DesiredAgent
    gauge: OutboxGauge
    importer: Importer
    access: AccessArchive
    receipts: ReceiptBook
    receipt_api: ReceiptApi
    forwarder: Forwarder
    book: NodeBook
    clients: dict[NodeId, NodeClient]
    cordons: Cordons
    planner: Planner
    peers: Peers
    replicas: Replicas
    feed: FeedWriter
    pulse: Pulse
    leases: LeaseTalk
    tenant_data: TenantData
    artifacts: SiteArtifacts
    allowed: Allowed
    facility: Facility | None
    entropy: Entropy
    registry: CollectorRegistry
    audit_watch: AuditWatch


def make_bus(settings: SiteSettings, clock: Clock, entropy: Entropy, log: EventLog) -> Bus:
    """Return the connection to the site's own NATS server."""

    def login() -> BusLogin:
        password = read_secret(password_file(settings, SITE_USER)).decode()
        return BusLogin(user=SITE_USER, password=password)

    return Bus(
        url=f"nats://{settings.nats_host}:{settings.nats_port}",
        name=f"site-{settings.name}",
        inbox_prefix=f"_INBOX.{settings.name}",
        login=login,
        clock=clock,
        entropy=entropy,
        log=log,
    )


def find_closed_reason(
    settings: SiteSettings, gauge: OutboxGauge, store: GuardedStore, access: AccessArchive | None = None
) -> str:
    """Return why the gateway must take no new requests, empty when it may."""
    if gauge.rows >= settings.outbox_rows_max:
        return f"{gauge.rows} usage events wait for the hub, and {settings.outbox_rows_max} are the most allowed"
    if access is not None and access.closed_reason:
        return access.closed_reason
    return store.trouble


@dataclass(frozen=True)
class _Kit:
    """What nearly every part takes."""

    settings: SiteSettings
    boot_id: str
    clock: Clock
    entropy: Entropy
    log: EventLog
    store: GuardedStore
    bus: Bus
    link: HubLink
    view: DesiredView
    changed: Signal
    gauge: OutboxGauge
    book: NodeBook
    roots: ssl.SSLContext | None
    allowed: Allowed
    audit_watch: AuditWatch


def _make_kit(settings: SiteSettings, database: Store, clock: Clock, entropy: Entropy, log: EventLog) -> _Kit:
    allowed = Allowed(clock, is_expected=settings.facility_file is not None)
    store = GuardedStore(database, log)
    return _Kit(
        settings=settings,
        boot_id=entropy.token_bytes(8).hex(),
        clock=clock,
        entropy=entropy,
        log=log,
        store=store,
        bus=make_bus(settings, clock, entropy, log),
        link=HubLink(clock, log),
        view=DesiredView(),
        changed=Signal(),
        gauge=OutboxGauge(),
        book=NodeBook(tuple(node.name for node in settings.nodes), clock, allowed),
        allowed=allowed,
        audit_watch=AuditWatch(AUDIT_LOG, store, clock, log),
        roots=None if settings.peer_ca_file is None else load_roots("peer_ca_file", settings.peer_ca_file),
    )


def make_parts(settings: SiteSettings, clock: Clock, entropy: Entropy, log: EventLog) -> SiteParts:
    """Make all parts.

    Raises:
        Unavailable: the identity is missing or open to others, naming the file; or Linux does not name its boot.
        Rejected: it is damaged, or the file of roots cannot be used.
    """
    identity = load_identity(read_secret(identity_file(settings)))
    database = Store(sqlite_url(settings.state_dir / "site.db"))
    kit = _make_kit(settings, database, clock, entropy, log)
    receipts, access = _make_receipts(kit, identity), _make_access(kit, identity)
    clients = _make_clients(kit)
    cordons = _make_cordons(kit, clients)
    agent, importer, forwarder = _make_agent(kit, cordons), _make_importer(kit, receipts), _make_forwarder(kit)
    replicas = Replicas(book=kit.book, feed_dir=settings.feed_dir, store=kit.store)
    peers = _make_peers(kit, identity, replicas)
    tenant_data, leases = _make_tenant_data(kit, replicas, peers), _make_leases(kit)
    artifacts, facility = _make_artifacts(kit, peers), _make_facility(kit, peers)
    sources = _make_sources(
        kit,
        agent=agent,
        importer=importer,
        forwarder=forwarder,
        peers=peers,
        tenant_data=tenant_data,
        access=access,
        receipts=receipts,
        leases=leases,
        artifacts=artifacts,
        facility=facility,
    )
    return SiteParts(
        settings=settings,
        boot_id=kit.boot_id,
        clock=clock,
        log=log,
        database=database,
        store=kit.store,
        bus=kit.bus,
        link=kit.link,
        view=kit.view,
        desired_changed=kit.changed,
        agent=agent,
        gauge=kit.gauge,
        importer=importer,
        access=access,
        receipts=receipts,
        receipt_api=_make_receipt_api(kit, receipts, importer, peers),
        forwarder=forwarder,
        book=kit.book,
        clients=clients,
        cordons=cordons,
        planner=_make_planner(kit),
        peers=peers,
        replicas=replicas,
        feed=_make_feed(kit, replicas, access, peers),
        pulse=_make_pulse(kit, artifacts),
        leases=leases,
        tenant_data=tenant_data,
        artifacts=artifacts,
        allowed=kit.allowed,
        facility=facility,
        entropy=entropy,
        registry=make_registry(sources),
        audit_watch=kit.audit_watch,
    )


def _make_sources(kit: _Kit, **parts: Any) -> MetricSources:
    return MetricSources(
        bus=kit.bus,
        link=kit.link,
        view=kit.view,
        store=kit.store,
        gauge=kit.gauge,
        nodes=kit.book,
        clock=kit.clock,
        audit=kit.audit_watch,
        **parts,
    )


def _make_cordons(kit: _Kit, clients: dict[NodeId, NodeClient]) -> Cordons:
    return Cordons(
        site=kit.settings.name, book=kit.book, clients=clients, store=kit.store, clock=kit.clock, log=kit.log
    )


def _make_agent(kit: _Kit, cordons: Cordons) -> DesiredAgent:
    return DesiredAgent(
        site=kit.settings.name,
        bus=kit.bus,
        store=kit.store,
        view=kit.view,
        changed=kit.changed,
        cordons=cordons,
        link=kit.link,
        clock=kit.clock,
        entropy=kit.entropy,
        log=kit.log,
    )


def _make_receipts(kit: _Kit, identity: Ed25519PrivateKey) -> ReceiptBook:
    return ReceiptBook(
        site=kit.settings.name,
        identity=identity,
        store=kit.store,
        retention_s=kit.settings.receipt_days * 86_400,
        clock=kit.clock,
        log=kit.log,
    )


def _make_receipt_api(kit: _Kit, receipts: ReceiptBook, importer: Importer, peers: Peers) -> ReceiptApi:
    others = PeerReceipts(
        site=kit.settings.name,
        list_peers=peers.list_peers,
        sites=kit.view.sites,
        keys=kit.view.keys,
        clock=kit.clock,
        log=kit.log,
        roots=kit.roots,
    )
    return ReceiptApi(kit.settings.name, receipts, kit.clock, lambda: importer.is_behind, others)


def _make_access(kit: _Kit, identity: Ed25519PrivateKey) -> AccessArchive:
    return AccessArchive(
        site=kit.settings.name,
        folder=access_folder(kit.settings),
        identity=identity,
        store=kit.store,
        retention_days=kit.settings.access_days,
        bytes_max=kit.settings.access_bytes_max,
        clock=kit.clock,
        log=kit.log,
    )


def _make_importer(kit: _Kit, receipts: ReceiptBook) -> Importer:
    return Importer(
        folder=SegmentFolder(kit.settings.usage_dir),
        store=kit.store,
        gauge=kit.gauge,
        clock=kit.clock,
        entropy=kit.entropy,
        log=kit.log,
        on_added=receipts.add,
    )


def _make_forwarder(kit: _Kit) -> Forwarder:
    return Forwarder(
        site=kit.settings.name,
        bus=kit.bus,
        store=kit.store,
        gauge=kit.gauge,
        link=kit.link,
        clock=kit.clock,
        entropy=kit.entropy,
        log=kit.log,
    )


def _make_peers(kit: _Kit, identity: Ed25519PrivateKey, replicas: Replicas) -> Peers:
    sessions = SessionBook(
        site=kit.settings.name,
        path=kit.settings.state_dir / "kex.json",
        identity=identity,
        boot_id=kit.boot_id,
        clock=kit.clock,
        entropy=kit.entropy,
        log=kit.log,
    )
    return Peers(
        site=kit.settings.name,
        boot_id=kit.boot_id,
        bus=kit.bus,
        view=kit.view,
        sessions=sessions,
        overrides=kit.settings.peer_overrides,
        encrypted_links=kit.settings.encrypted_links,
        find_loads=lambda: replicas.list_loads(set(kit.view.assignments)),
        clock=kit.clock,
        log=kit.log,
        roots=kit.roots,
        find_limits=kit.allowed.limits,
    )


def _make_facility(kit: _Kit, peers: Peers) -> Facility | None:
    return make_facility(
        kit.settings,
        allowed=kit.allowed,
        find_use=lambda node: find_use(kit.book, kit.view, node, SiteId(kit.settings.name)),
        list_peers=lambda: list_open_peers(peers.list_peers()),
        on_change=kit.book.changed.rise,
        bus=kit.bus,
        store=kit.store,
        clock=kit.clock,
        log=kit.log,
    )


def _make_tenant_data(kit: _Kit, replicas: Replicas, peers: Peers) -> TenantData:
    return make_tenant_data(
        settings=kit.settings,
        store=kit.store,
        view=kit.view,
        peers=peers,
        find_loads=lambda: replicas.list_loads(set(kit.view.assignments)),
        clock=kit.clock,
        entropy=kit.entropy,
        log=kit.log,
    )


def _make_artifacts(kit: _Kit, peers: Peers) -> SiteArtifacts:
    return SiteArtifacts(
        settings=kit.settings,
        view=kit.view,
        book=kit.book,
        peers=peers,
        clock=kit.clock,
        entropy=kit.entropy,
        log=kit.log,
    )


def _make_clients(kit: _Kit) -> dict[NodeId, NodeClient]:
    return {
        NodeId(link.name): NodeClient(link=link, book=kit.book, entropy=kit.entropy, log=kit.log)
        for link in kit.settings.nodes
    }


def _make_planner(kit: _Kit) -> Planner:
    return Planner(
        site=kit.settings.name,
        view=kit.view,
        link=kit.link,
        book=kit.book,
        store=kit.store,
        clock=kit.clock,
        log=kit.log,
    )


def _make_feed(kit: _Kit, replicas: Replicas, access: AccessArchive, peers: Peers) -> FeedWriter:
    return FeedWriter(
        site=kit.settings.name,
        boot_id=kit.boot_id,
        feed_dir=kit.settings.feed_dir,
        view=kit.view,
        desired_changed=kit.changed,
        replicas=replicas,
        nodes=kit.book,
        peers=peers,
        find_closed_reason=lambda: find_closed_reason(kit.settings, kit.gauge, kit.store, access),
        clock=kit.clock,
        log=kit.log,
        find_limits=kit.allowed.limits,
    )


def _make_pulse(kit: _Kit, artifacts: SiteArtifacts) -> Pulse:
    return Pulse(
        site=kit.settings.name,
        boot_id=kit.boot_id,
        bus=kit.bus,
        view=kit.view,
        desired_changed=kit.changed,
        gauge=kit.gauge,
        nodes=kit.book,
        list_transfers=artifacts.list_transfers,
        clock=kit.clock,
    )


def _make_leases(kit: _Kit) -> LeaseTalk:
    keeper = LeaseKeeper(
        site=kit.settings.name,
        feed_dir=kit.settings.feed_dir,
        boot=read_boot(),
        store=kit.store,
        view=kit.view,
        is_linked=kit.link.check,
        clock=kit.clock,
        entropy=kit.entropy,
        log=kit.log,
    )
    return LeaseTalk(site=kit.settings.name, keeper=keeper, bus=kit.bus, link=kit.link, log=kit.log)
