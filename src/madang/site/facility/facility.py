"""A site's facility as a whole: made from its file, run beside the other parts of the site program.

Owns the wiring of poller, listeners, alarms, authority and meters. Refuses to do their work. A site without a file has
none.
"""

from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

from madang.core import Clock, NodeId, Rejected, SiteId
from madang.facility.contract import Listener
from madang.facility.roster import make_listener
from madang.facility.site_file import SiteFile, load_site_file
from madang.facility.tariff_files import make_tariff_book, read_tables
from madang.machine.alarm_defaults import default_rules
from madang.machine.alarm_overrides import override_rules
from madang.machine.alarm_plan import plan_alarms
from madang.machine.sample_book import SampleBook
from madang.model import Sample
from madang.runtime.bus import Bus
from madang.runtime.device_secrets import find_secret
from madang.runtime.telemetry import EventLog
from madang.site.facility.alarm_desk import AlarmDesk
from madang.site.facility.allowed import Allowed
from madang.site.facility.hints import make_hints
from madang.site.facility.meter_sender import MeterSender
from madang.site.facility.meters import MeterLog, SiteTerms
from madang.site.facility.mind import Mind
from madang.site.facility.notifications import Notifications
from madang.site.facility.notify import Notifier, NotifySettings, load_notify
from madang.site.facility.poller import Poller
from madang.site.facility.world import NodeUse, World
from madang.site.guard import GuardedStore
from madang.site.settings import SiteSettings
from madang.wire.bus import TABLES_BYTES_MAX

PORT_MAX = 65535


class Facility:
    """Everything of one site's power, cooling and security."""

    def __init__(
        self,
        *,
        file: SiteFile,
        settings: SiteSettings,
        allowed: Allowed,
        find_use: Callable[[NodeId], NodeUse],
        list_peers: Callable[[], tuple[SiteId, ...]],
        on_change: Callable[[], None],
        bus: Bus,
        store: GuardedStore,
        clock: Clock,
        log: EventLog,
    ) -> None:
        """Wire the parts; see each for its arguments. Raises as `Poller` and `load_notify` do."""
        site = SiteId(settings.name)
        self.file = file
        self.now_s = clock.wall_s
        self.allowed = allowed
        listeners = make_listeners(file, settings, clock)
        hints = make_hints(file.devices, listeners, file.model.points)
        self.book = SampleBook((*file.model.points, *hints.points))
        rules = override_rules(file.model, default_rules(file.model, file.point_devices), file.plan.alarms)
        notify = load_notify(settings.facility_notify_file) if settings.facility_notify_file else NotifySettings()
        self.alarms = AlarmDesk(
            plan=plan_alarms(file.model, rules),
            store=store,
            send=Notifier(notify, title=file.title or settings.name).send,
            clock=clock,
            log=log,
        )
        self.poller = Poller(
            devices=file.devices,
            profiles=file.profiles,
            find_secret=partial(find_secret, find_secrets_dir(settings)),
            take=self._take,
            clock=clock,
            log=log,
            hints=hints,
        )
        self.notifications = Notifications(listeners, tell=self.poller.take_hint, log=log)
        terms = find_terms(file, settings.facility_file)
        self.meters = MeterLog(book=self.book, store=store, clock=clock, terms=terms)
        self.meter_sender = MeterSender(site=site, bus=bus, store=store, log=log)
        self.mind = Mind(
            site=site,
            world=World(file.model, file.plan, self.book),
            poller=self.poller,
            point_devices=file.point_devices,
            armed=settings.facility_armed,
            allowed=allowed,
            find_use=find_use,
            list_alarms=self.alarms.list_alarms,
            list_peers=list_peers,
            on_change=on_change,
            store=store,
            clock=clock,
            log=log,
        )

    def _take(self, samples: tuple[Sample, ...]) -> None:
        self.book.take(samples)
        self.alarms.feed(samples)

    async def load(self) -> None:
        """Take what an earlier life stored."""
        await self.alarms.load()
        await self.mind.load()

    def loops(self) -> dict[str, Coroutine[Any, Any, None]]:
        """Return every loop by name; all of them run until cancelled."""
        return {
            **self.poller.loops(),
            **self.notifications.loops(),
            "alarms": self.alarms.run(),
            "authority": self.mind.run(),
            "meters": self.meters.run(self.meter_sender.written.rise),
            "meter_sender": self.meter_sender.run(),
        }

    async def close(self) -> None:
        """End what is still under way."""
        await self.mind.stop()
        await self.alarms.stop()


def find_secrets_dir(settings: SiteSettings) -> Path:
    """Return where what devices want to know is kept."""
    return settings.facility_secrets_dir or settings.state_dir / "secrets"


def make_listeners(file: SiteFile, settings: SiteSettings, clock: Clock) -> dict[str, Listener]:
    """Return what hears devices by themselves, by driver; empty where no port is configured.

    Raises Rejected for a port that is none, or a device whose secret has no words for its notifications.
    """
    port = settings.facility_trap_port
    if not port:
        return {}
    if not 0 < port <= PORT_MAX:
        raise Rejected(
            f"facility_trap_port = {port} is no port", next_step=f"expected are 1 to {PORT_MAX}, or 0 for none"
        )
    secrets_dir = find_secrets_dir(settings)
    heard = [device for device in file.devices if device.driver == "snmp"]
    secrets = {device.device_id: find_secret(secrets_dir, device.secret) for device in heard if device.secret}
    return {"snmp": make_listener("snmp", settings.facility_trap_host, port, heard, secrets, clock)}


def find_terms(file: SiteFile, path: Path | None) -> SiteTerms | None:
    """Return the contract of a site file with its own tariff tables; None without one.

    Raises Rejected where a table cannot be read, or all of them are too long to be sent.
    """
    contract = file.plan.contract
    if contract is None:
        return None
    folder = Path() if path is None else path.parent
    texts = read_tables(folder / name for name in contract.tariff_files)
    tables = {name: texts[str(folder / name)] for name in contract.tariff_files}
    if sum(len(text.encode()) for text in tables.values()) > TABLES_BYTES_MAX:
        raise Rejected(f"{path}: [contract] tariff_files are longer than {TABLES_BYTES_MAX} bytes together")
    make_tariff_book(tables)
    return SiteTerms(contract=contract, tables=tables)


def make_facility(settings: SiteSettings, **parts: Any) -> Facility | None:
    """Return a site's facility; None without a site file. Raises Rejected naming what is wrong in the file."""
    if settings.facility_file is None:
        return None
    return Facility(file=load_site_file(settings.facility_file), settings=settings, **parts)
