"""Which peers are reached in clear, and that somebody is told.

Owns the words of the warning. Refuses to judge links (`madang.policy.links` does, when the feed is read) and to keep
requests back (`madang.policy.routing` does). Looked at once a second by the worker, and whenever readiness is asked.
"""

from madang.core import SiteId
from madang.gateway.feed import FeedWatcher
from madang.model import DataClass
from madang.runtime.telemetry import EventLog


class LinkWatch:
    """The links of one worker's site."""

    def __init__(self, feed: FeedWatcher, log: EventLog) -> None:
        self._feed = feed
        self._log = log
        self._told: tuple[SiteId, ...] = ()

    def list_clear(self) -> tuple[SiteId, ...]:
        """Return the peers to which the way is in clear, by name."""
        live = self._feed.live
        if live is None:
            return ()
        return tuple(sorted(site for site, most in live.links.items() if most is DataClass.OPEN))

    def look(self) -> None:
        """Say in the log which links are in clear, when that is news."""
        clear = self.list_clear()
        if clear == self._told or self._feed.live is None:
            return
        self._told = clear
        if clear:
            self._log.warning("gateway_links_in_clear", sites=clear, reason=self.warning())
        else:
            self._log.info("gateway_links_private")

    def warning(self) -> str:
        """Return what is kept from whom; empty when every link is private."""
        clear = self.list_clear()
        if not clear:
            return ""
        return (
            f"only data of class open is sent to {', '.join(clear)}: the peer's URL is http:// and not this machine's; "
            "use https:// (peer_tls_port there), or encrypted_links in site.toml where a VPN encrypts the way"
        )
