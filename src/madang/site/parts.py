"""The site's parts, made and wired once.

Owns the wiring. Refuses to run anything: `madang.site.app` does. The admin API takes what it needs from here, so
that no part is global.
"""

from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from madang.core import Clock, Entropy, NodeId
from madang.runtime.bus import Bus, BusLogin
from madang.runtime.files import read_secret
from madang.runtime.store import Store, sqlite_url
from madang.runtime.telemetry import EventLog
from madang.site.agent import DesiredAgent
from madang.site.bootstrap import SITE_USER, identity_file, password_file
from madang.site.desired import DesiredView
from madang.site.feed import FeedWriter, Replicas
from madang.site.forwarder import Forwarder
from madang.site.guard import GuardedStore
from madang.site.intake import Importer, OutboxGauge
from madang.site.kex import load_identity
from madang.site.link import HubLink
from madang.site.metrics import MetricSources, make_registry
from madang.site.node_link import NodeClient
from madang.site.nodes import NodeBook
from madang.site.peers import Peers
from madang.site.planner import Planner
from madang.site.pulse import Pulse
from madang.site.segments import SegmentFolder
from madang.site.sessions import SessionBook
from madang.site.settings import SiteSettings
from madang.site.signal import Signal


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
    forwarder: Forwarder
    book: NodeBook
    clients: dict[NodeId, NodeClient]
    planner: Planner
    peers: Peers
    replicas: Replicas
    feed: FeedWriter
    pulse: Pulse
    registry: CollectorRegistry


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


def find_closed_reason(settings: SiteSettings, gauge: OutboxGauge, store: GuardedStore) -> str:
    """Return why the gateway must take no new requests, empty when it may."""
    if gauge.rows >= settings.outbox_rows_max:
        return f"{gauge.rows} usage events wait for the hub, and {settings.outbox_rows_max} are the most allowed"
    return store.trouble


def make_parts(settings: SiteSettings, clock: Clock, entropy: Entropy, log: EventLog) -> SiteParts:
    """Make all parts.

    Raises:
        Unavailable: the identity is missing or open to others, naming the file.
        Rejected: it is damaged.
    """
    site = settings.name
    boot_id = entropy.token_bytes(8).hex()
    identity = load_identity(read_secret(identity_file(settings)))
    database = Store(sqlite_url(settings.state_dir / "site.db"))
    store = GuardedStore(database, log)
    bus = make_bus(settings, clock, entropy, log)
    link = HubLink(clock, log)
    view, desired_changed, gauge = DesiredView(), Signal(), OutboxGauge()
    agent = DesiredAgent(
        site=site,
        bus=bus,
        store=store,
        view=view,
        changed=desired_changed,
        link=link,
        clock=clock,
        entropy=entropy,
        log=log,
    )
    importer = Importer(
        folder=SegmentFolder(settings.usage_dir), store=store, gauge=gauge, clock=clock, entropy=entropy, log=log
    )
    forwarder = Forwarder(
        site=site, bus=bus, store=store, gauge=gauge, link=link, clock=clock, entropy=entropy, log=log
    )
    book = NodeBook(tuple(node.name for node in settings.nodes), clock)
    replicas = Replicas(book=book, feed_dir=settings.feed_dir, store=store)
    sessions = SessionBook(
        site=site,
        path=settings.state_dir / "kex.json",
        identity=identity,
        boot_id=boot_id,
        clock=clock,
        entropy=entropy,
        log=log,
    )
    peers = Peers(
        site=site,
        boot_id=boot_id,
        bus=bus,
        view=view,
        sessions=sessions,
        overrides=settings.peer_overrides,
        find_loads=lambda: replicas.list_loads(set(view.assignments)),
        clock=clock,
        log=log,
    )
    sources = MetricSources(
        bus=bus,
        link=link,
        view=view,
        agent=agent,
        store=store,
        gauge=gauge,
        importer=importer,
        forwarder=forwarder,
        nodes=book,
        peers=peers,
        clock=clock,
    )
    return SiteParts(
        settings=settings,
        boot_id=boot_id,
        clock=clock,
        log=log,
        database=database,
        store=store,
        bus=bus,
        link=link,
        view=view,
        desired_changed=desired_changed,
        agent=agent,
        gauge=gauge,
        importer=importer,
        forwarder=forwarder,
        book=book,
        clients={
            NodeId(node.name): NodeClient(link=node, book=book, entropy=entropy, log=log) for node in settings.nodes
        },
        planner=Planner(site=site, view=view, link=link, book=book, store=store, clock=clock, log=log),
        peers=peers,
        replicas=replicas,
        feed=FeedWriter(
            site=site,
            boot_id=boot_id,
            feed_dir=settings.feed_dir,
            view=view,
            desired_changed=desired_changed,
            replicas=replicas,
            nodes=book,
            peers=peers,
            find_closed_reason=lambda: find_closed_reason(settings, gauge, store),
            clock=clock,
            log=log,
        ),
        pulse=Pulse(
            site=site,
            boot_id=boot_id,
            bus=bus,
            view=view,
            desired_changed=desired_changed,
            gauge=gauge,
            nodes=book,
            clock=clock,
        ),
        registry=make_registry(sources),
    )
