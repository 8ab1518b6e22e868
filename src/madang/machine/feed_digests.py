"""What this site last heard from each other site.

Owns which digest is the newest and how old it is. Refuses to verify offers, to know sites' facts and to judge
staleness: that is the gateway's, by the age. Called by the site process with every digest that comes.

| event                                   | effect                                              |
|-----------------------------------------|-----------------------------------------------------|
| digest of the same boot, greater seq    | kept                                                |
| digest of the same boot, otherwise      | refused: out of order                               |
| digest of a boot not heard before       | kept: the site process was restarted                |
| digest of a boot that came before       | refused: it was under way when the process restarted|

Invariants: at most SITES_MAX sites and BOOTS_MAX former boots each are kept; time never makes a digest newer.
"""

from collections import deque

from madang.core import ns_to_s
from madang.wire.bus import Digest

SITES_MAX = 1024
BOOTS_MAX = 8


class _Heard:
    """The newest digest of one site."""

    def __init__(self, digest: Digest, received_ns: int) -> None:
        self.digest = digest
        self.received_ns = received_ns
        self.former_boots: deque[str] = deque(maxlen=BOOTS_MAX)


class DigestBook:
    """The newest digest of every site heard of."""

    def __init__(self) -> None:
        self._heard: dict[str, _Heard] = {}

    def hear(self, digest: Digest, now_ns: int) -> bool:
        """Take a digest; return whether it is the newest of its site."""
        known = self._heard.get(digest.site)
        if known is None:
            if len(self._heard) >= SITES_MAX:
                return False
            self._heard[digest.site] = _Heard(digest, now_ns)
            return True
        if digest.boot_id == known.digest.boot_id:
            if digest.seq <= known.digest.seq:
                return False
        elif digest.boot_id in known.former_boots:
            return False
        else:
            known.former_boots.append(known.digest.boot_id)
        known.digest = digest
        known.received_ns = now_ns
        return True

    def newest(self, site: str) -> Digest | None:
        """Return the newest digest of a site, or None when none came yet."""
        known = self._heard.get(site)
        return None if known is None else known.digest

    def age_s(self, site: str, now_ns: int) -> float:
        """Return the age of that digest in seconds, or -1 when none came yet."""
        known = self._heard.get(site)
        return -1.0 if known is None else max(0.0, ns_to_s(now_ns - known.received_ns))

    def keep_only(self, sites: frozenset[str]) -> None:
        """Forget every site that is not in `sites`."""
        for site in [site for site in self._heard if site not in sites]:
            del self._heard[site]
