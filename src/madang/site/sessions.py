"""The site's key ring on disk, and its sessions with every peer.

Owns `kex.json` and the caches of what was verified and derived, so that each costs its curve operations once.
Refuses to send offers. Called by the peers' part of the site process.

The ring is stored so that a restarted site process goes on with the epochs that its peers already know.
"""

from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from madang.core import Clock, Entropy, Rejected, Unavailable
from madang.model import Site
from madang.runtime.files import read_secret, write_secret
from madang.runtime.telemetry import EventLog
from madang.site.kex import (
    OFFERS_MAX,
    KeyRing,
    check_offer,
    choose_order,
    decode_ring,
    derive_own_session,
    derive_session,
    make_offers,
    rotate,
)
from madang.wire.bus import KexOffer
from madang.wire.feed import PeerSession

_COMPLAINTS_MAX = 256


class SessionBook:
    """Our epochs, and what follows from them and from the peers' offers."""

    def __init__(
        self,
        *,
        site: str,
        path: Path,
        identity: Ed25519PrivateKey,
        boot_id: str,
        clock: Clock,
        entropy: Entropy,
        log: EventLog,
    ) -> None:
        """Load the ring that an earlier life left in `path`, if it can be read."""
        self._site = site
        self._path = path
        self._identity = identity
        self._boot_id = boot_id
        self._clock = clock
        self._entropy = entropy
        self._log = log
        self._offers: tuple[KexOffer, ...] = ()
        self._verified: dict[tuple[str, str, KexOffer], str] = {}
        self._sessions: dict[tuple[str, str, KexOffer], PeerSession] = {}
        self._own: dict[str, PeerSession] = {}
        self._complaints: set[tuple[str, str]] = set()
        self._ring = self._load()

    def _load(self) -> KeyRing:
        if not self._path.exists():
            return KeyRing()
        try:
            return decode_ring(read_secret(self._path))
        except (Rejected, Unavailable) as error:
            # New epochs are offered within a digest period; until then peers retry elsewhere.
            self._log.warning("key_ring_lost", path=str(self._path), reason=error.message)
            return KeyRing()

    def offers(self) -> tuple[KexOffer, ...]:
        """Return our live offers, newest first, after making a new epoch when one is due."""
        ring = rotate(
            self._ring,
            boot_id=self._boot_id,
            secret=self._entropy.token_bytes(32),
            now_s=self._clock.wall_s(),
        )
        if ring is not self._ring or not self._offers:
            self._ring = ring
            self._offers = make_offers(ring, self._identity, self._site)
            self._store(ring)
        return self._offers

    def _store(self, ring: KeyRing) -> None:
        try:
            write_secret(self._path, msgspec.json.encode(ring))
        except Unavailable as error:
            # It works from memory; only a restart before the next rotation would notice.
            self._log.warning("key_ring_not_stored", path=str(self._path), reason=error.message)

    def sessions(self, peer: Site, offers: tuple[KexOffer, ...]) -> tuple[PeerSession, ...]:
        """Return the live sessions with a peer, the one to sign with first.

        Args:
            peer: as the hub describes it; its identity key decides which offers count.
            offers: from its newest digest, newest first.
        """
        found = []
        for rank, offer in enumerate(offers[:OFFERS_MAX]):
            if not self._is_good(peer, offer):
                continue
            for epoch in self._ring.epochs:
                key = (epoch.name, peer.name, offer)
                session = self._sessions.get(key)
                if session is None:
                    try:
                        session = derive_session(self._site, epoch, peer.name, offer)
                    except Rejected as error:
                        self._complain(peer.name, error)
                        continue
                    self._sessions[key] = session
                found.append((epoch, rank, session))
        return choose_order(found, now_s=self._clock.wall_s())

    def own_sessions(self) -> tuple[PeerSession, ...]:
        """Return our live sessions with ourselves, the one to sign with first; none before the first offer was made."""
        found = []
        for epoch in self._ring.epochs:
            session = self._own.get(epoch.name)
            if session is None:
                session = self._own[epoch.name] = derive_own_session(self._site, epoch)
            found.append((epoch, 0, session))
        return choose_order(found, now_s=self._clock.wall_s())

    def _is_good(self, peer: Site, offer: KexOffer) -> bool:
        now_s = self._clock.wall_s()
        if offer.expires_at_s <= now_s:
            return False
        key = (peer.name, peer.identity_ed25519, offer)
        verdict = self._verified.get(key)
        if verdict is None:
            verdict = ""
            try:
                check_offer(offer, peer.name, peer.identity_ed25519, now_s=now_s)
            except Rejected as error:
                verdict = error.message
                self._complain(peer.name, error)
            self._verified[key] = verdict
        return verdict == ""

    def _complain(self, peer: str, error: Rejected) -> None:
        complaint = (peer, error.message)
        if complaint not in self._complaints and len(self._complaints) < _COMPLAINTS_MAX:
            self._complaints.add(complaint)
            self._log.error("kex_offer_refused", peer=peer, reason=error.message)

    def keep_only(self, offers: dict[str, tuple[KexOffer, ...]]) -> None:
        """Forget what was derived from offers that are no longer among the newest, by peer, or from old epochs."""
        live = {(peer, offer) for peer, made in offers.items() for offer in made}
        epochs = {epoch.name for epoch in self._ring.epochs}
        for key in [key for key in self._verified if (key[0], key[2]) not in live]:
            del self._verified[key]
        for name in [name for name in self._own if name not in epochs]:
            del self._own[name]
        for key in [key for key in self._sessions if key[0] not in epochs or (key[1], key[2]) not in live]:
            del self._sessions[key]
