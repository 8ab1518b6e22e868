"""Which other sites are asked for artifacts, by which URL, and the certificate that this one shows.

Owns both. Refuses to fetch and to serve: `artifacts` does. A site is asked where it announced `artifact_url`, unless
the settings name another way; who it *is* stays with passes under session keys, and what it sends with hashes. TLS
hides what travels, and authenticates nobody here.
"""

import ssl
from collections.abc import Iterable, Mapping

from madang.core import Clock, Rejected, SiteId
from madang.model import Site
from madang.runtime.telemetry import EventLog
from madang.site.settings import SiteSettings
from madang.wire.feed import Peer

PEERS_ASKED_MAX = 8
"""Of one file, beside the stores. Those without it cost a question each."""
FRESH_S = 10.0
"""A site that was not heard for so long may be gone; it is asked after those that are there."""


def find_urls(sites: Mapping[str, Site], overrides: Mapping[str, str]) -> dict[str, str]:
    """Return where each site's artifacts are; an override that is empty means that a site is never asked."""
    announced = {str(name): site.artifact_url for name, site in sites.items()}
    return {name: url for name, url in {**announced, **overrides}.items() if url}


def choose_ways(peers: Iterable[Peer], urls: Mapping[str, str]) -> tuple[tuple[SiteId, str], ...]:
    """Return the sites to ask and their URLs, only those with which there is a session.

    Those that are there come before those that were not heard lately, then near ones before far ones; ties by name.
    """
    known = [peer for peer in peers if peer.sessions and peer.site in urls]

    def rank(peer: Peer) -> tuple[bool, bool, float, str]:
        is_stale = not 0.0 <= peer.digest_age_s <= FRESH_S
        return is_stale, peer.round_trip_s < 0.0, peer.round_trip_s, peer.site

    return tuple((peer.site, urls[peer.site]) for peer in sorted(known, key=rank)[:PEERS_ASKED_MAX])


class ArtifactCertificate:
    """What the artifact port shows; None of it is read where there is no such port."""

    def __init__(self, settings: SiteSettings, clock: Clock, log: EventLog) -> None:
        """Read the pair; raises Rejected when there is none that can be used."""
        from madang.runtime.tls_pair import PairFiles

        certificate, key = settings.artifact_tls_certificate_file, settings.artifact_tls_key_file
        if certificate is None or key is None:
            raise Rejected(
                "artifact_tls_port is set and its certificate is not",
                next_step="set artifact_tls_certificate_file and artifact_tls_key_file",
            )
        self._files = PairFiles(certificate, key, clock)
        self._log = log

    def context(self) -> ssl.SSLContext:
        """Return the context for a new connection, of a newer pair if the files have one; called in any thread."""
        try:
            if self._files.look():
                self._log.info("artifact_certificate_replaced", names=self._files.pair.names)
        except Rejected as error:
            self._log.warning("artifact_certificate_kept", reason=str(error))
        return self._files.pair.context

    @property
    def not_after_s(self) -> float:
        """The last second of the certificate in use, wall clock."""
        return self._files.pair.not_after_s
