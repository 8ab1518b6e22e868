"""How a node gets its artifacts, as its settings say: stores and keys, rates, room, and the pins of what it needs.

Owns the wiring and the node's pins. Refuses to fetch by itself (`madang.node.artifacts` does). Called by the node
program.
"""

from collections.abc import Iterable, Mapping

from madang.core import Clock, Entropy, Unavailable
from madang.model import ReplicaSpec
from madang.node.artifacts import ArtifactFetcher
from madang.node.cache import ArtifactCache
from madang.node.settings import NodeSettings
from madang.runtime.artifacts.book import TransferBook
from madang.runtime.artifacts.fetching import ChunkFetcher, StoreLink, read_keys, read_roots
from madang.runtime.artifacts.limiter import RateLimiter
from madang.runtime.artifacts.room import ArtifactRoom
from madang.runtime.artifacts.transfer import BadChunk, TransferKit
from madang.runtime.files import read_secret
from madang.runtime.telemetry import EventLog


def make_fetcher(settings: NodeSettings, clock: Clock, entropy: Entropy, log: EventLog) -> ArtifactFetcher:
    """Return the fetcher of a node; raises Rejected naming a key that is malformed, or roots that cannot be read."""
    cache = ArtifactCache(settings.cache_dir)
    room = ArtifactRoom(cache, settings.cache_bytes_max)
    roots, book = read_roots(settings.artifact_ca_file), TransferBook(clock)
    stores = [StoreLink(f"store {url}", url, tls=roots) for url in settings.artifact_stores]
    if settings.site_store:
        stores.insert(0, StoreLink("site cache", settings.site_store, lambda _path: _prove(settings), roots))
    kit = make_kit(settings, clock, entropy, book, log)
    keys = read_keys(settings.artifact_keys)
    chunks = ChunkFetcher(cache, room, lambda: stores, keys, kit, log) if keys else None
    return ArtifactFetcher(cache, settings.artifact_stores, settings.artifact_dirs, chunks=chunks, room=room, book=book)


def make_kit(settings: NodeSettings, clock: Clock, entropy: Entropy, book: TransferBook, log: EventLog) -> TransferKit:
    """Return what all transfers of a node share."""

    def tell(bad: BadChunk) -> None:
        log.warning("artifact_chunk_wrong", file=bad.name, sha256=bad.sha256, chunk=bad.chunk, source=bad.source)

    limiter = RateLimiter(
        clock,
        line_bytes_s=settings.artifact_line_bytes_s_max,
        source_bytes_s=settings.artifact_source_bytes_s_max,
    )
    return TransferKit(
        clock=clock,
        entropy=entropy,
        limiter=limiter,
        at_once=settings.artifact_sources_at_once,
        on_bad=tell,
        watch=book,
    )


def _prove(settings: NodeSettings) -> Mapping[str, str]:
    return {"authorization": f"Bearer {read_secret(settings.token_file).decode()}"}


class NodePins:
    """What this node runs or wants, pinned in the cache that it may share with others."""

    def __init__(self, settings: NodeSettings, log: EventLog) -> None:
        self._room = ArtifactRoom(ArtifactCache(settings.cache_dir))
        self._owner = f"node-{settings.site}-{settings.name}"
        self._log = log
        self._held: frozenset[str] | None = None

    def hold(self, specs: Iterable[ReplicaSpec]) -> None:
        """Pin every file of `specs`; raises Unavailable when that cannot be written down."""
        wanted = frozenset(file.sha256 for spec in specs for file in spec.artifact.files)
        if wanted != self._held:
            self._room.pin(self._owner, wanted)
            self._held = wanted

    def let_go(self, specs: Iterable[ReplicaSpec]) -> None:
        """Pin only the files of `specs` from now on; where that fails, too much stays pinned until the next plan."""
        try:
            self.hold(specs)
        except Unavailable as error:
            self._log.warning("pins_not_written", reason=error.message)
