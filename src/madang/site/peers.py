"""The other sites: our digest goes out several times a second, theirs come in.

Owns both loops and the list of peers in the gateway's feed. Refuses to choose among peers: the gateway does, by
age and load. Called by the site process.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Collection

from madang.core import Clock, Rejected, SiteId, Unavailable
from madang.machine.feed_digests import DigestBook
from madang.model import Site
from madang.runtime.bus import Bus, BusMessage
from madang.runtime.telemetry import EventLog
from madang.site.desired import DesiredView
from madang.site.facility.allowed import Limits
from madang.site.round_trips import RoundTrips
from madang.site.sessions import SessionBook
from madang.wire.bus import Digest, ServiceLoad, decode, digest_subject, encode, site_of_subject
from madang.wire.feed import Peer, PeerSession

_INBOX_MAX = 4096
_SWEEP_PERIOD_S = 30.0
_COMPLAINTS_MAX = 64


class Peers:
    """Digests out and in."""

    def __init__(
        self,
        *,
        site: str,
        boot_id: str,
        bus: Bus,
        view: DesiredView,
        sessions: SessionBook,
        overrides: dict[str, str],
        encrypted_links: Collection[str] = (),
        find_loads: Callable[[], tuple[ServiceLoad, ...]],
        clock: Clock,
        log: EventLog,
        roots: ssl.SSLContext | None = None,
        find_limits: Callable[[], Limits] = Limits,
    ) -> None:
        """Prepare the loops.

        Args:
            site: our name.
            boot_id: of this life.
            bus: not yet running, since the listener subscribes on it.
            view: which sites there are, with their identities and addresses.
            sessions: our offers, and sessions with theirs.
            overrides: addresses to dial instead of those that sites announce.
            encrypted_links: sites to which the way is encrypted below HTTP.
            find_loads: how busy our services are now.
            clock: for ages and `sent_at_s`.
            log: gets refused digests, once per site and reason.
            roots: who vouches for peers that are dialled with TLS; None for the system's.
            find_limits: what our envelope allows now.
        """
        self._site = SiteId(site)
        self._boot_id = boot_id
        self._bus = bus
        self._view = view
        self._sessions = sessions
        self._overrides = overrides
        self._encrypted_links = frozenset(encrypted_links)
        self._find_loads = find_loads
        self._find_limits = find_limits
        self._clock = clock
        self._log = log
        self._book = DigestBook()
        self.round_trips = RoundTrips(self._urls, clock, roots)
        self._inbox = bus.listen(digest_subject("*"), pending_max=_INBOX_MAX)
        self._seq = 0
        self._complaints: set[tuple[str, str]] = set()
        self.heard_total = 0
        self.refused_total = 0

    async def run_digests(self, period_s: float) -> None:
        """Send our digest every `period_s`; without a connection nobody misses it."""
        while True:
            self._seq += 1
            limits = self._find_limits()
            digest = Digest(
                site=self._site,
                boot_id=self._boot_id,
                seq=self._seq,
                sent_at_s=self._clock.wall_s(),
                services=self._find_loads(),
                offers=self._sessions.offers(),
                shed_from=limits.shed_from,
                is_spilling=limits.is_spilling,
            )
            if self._bus.is_connected:
                # Unavailable: the connection went this moment; the bus says so itself.
                with contextlib.suppress(Unavailable):
                    await self._bus.publish(digest_subject(self._site), encode(digest))
            await asyncio.sleep(period_s)

    async def run_listener(self) -> None:
        """Take digests for ever."""
        while True:
            self.take(await self._inbox.next())

    def take(self, message: BusMessage) -> None:
        """Take one digest; what is malformed, forged or out of order changes nothing."""
        try:
            sender = site_of_subject(message.subject)
            if sender == self._site:
                return
            digest = decode(message.data, Digest)
            if digest.site != sender:
                raise Rejected(f"digest on {message.subject} says it is of site {digest.site!r}")
        except Rejected as error:
            self._refuse(message.subject, error)
            return
        # A site that the hub does not know of is nobody: what it says is not kept.
        if digest.site in self._view.sites and self._book.hear(digest, self._clock.monotonic_ns()):
            self.heard_total += 1

    def _refuse(self, subject: str, error: Rejected) -> None:
        self.refused_total += 1
        complaint = (subject, error.message)
        if complaint not in self._complaints and len(self._complaints) < _COMPLAINTS_MAX:
            self._complaints.add(complaint)
            self._log.warning("digest_refused", subject=subject, reason=error.message)

    async def run_sweep(self) -> None:
        """Forget sites that are gone and offers that were replaced."""
        while True:
            await asyncio.sleep(_SWEEP_PERIOD_S)
            self._book.keep_only(frozenset(self._view.sites))
            newest = {name: self._book.newest(name) for name in self._view.sites}
            self._sessions.keep_only({name: digest.offers for name, digest in newest.items() if digest is not None})

    def list_peers(self) -> tuple[Peer, ...]:
        """Return every other site that the hub knows of, by name, however long ago it was heard."""
        now_ns = self._clock.monotonic_ns()
        peers = []
        for name, fact in sorted(self._view.sites.items()):
            if name == self._site:
                continue
            digest = self._book.newest(name)
            peers.append(
                Peer(
                    site=fact.name,
                    url=self._url_of(fact),
                    is_link_encrypted=name in self._encrypted_links,
                    round_trip_s=self.round_trips.round_trip_s(name),
                    digest_age_s=self._book.age_s(name, now_ns),
                    services=digest.services if digest is not None else (),
                    sessions=self._sessions.sessions(fact, digest.offers) if digest is not None else (),
                    shed_from=digest.shed_from if digest is not None else None,
                    is_spilling=digest is not None and digest.is_spilling,
                )
            )
        return tuple(peers)

    def _url_of(self, fact: Site) -> str:
        return self._overrides.get(fact.name) or fact.peer_url

    def _urls(self) -> dict[str, str]:
        return {name: self._url_of(fact) for name, fact in self._view.sites.items() if name != self._site}

    def own_sessions(self) -> tuple[PeerSession, ...]:
        """Return our sessions with ourselves, the one to sign with first."""
        return self._sessions.own_sessions()

    @property
    def is_complete(self) -> bool:
        """Return whether every other site was heard in this life."""
        return all(name == self._site or self._book.newest(name) is not None for name in self._view.sites)
