"""The site's artifact cache: fetched once over the WAN, served to its nodes and to other sites.

Owns what the site wants, the loop that fetches it, and who may ask. Refuses to fetch by itself (`runtime.artifacts`
does), to choose whom to ask (`artifact_ways`) and to place anything. Called by the site process. A site without
`artifact_dir` has none, and its nodes ask the hub's store.

What is wanted are the files of every artifact that a chip of this site can run of a model that is assigned to it. They
are pinned before they are fetched, so none leaves while it is wanted.
"""

import asyncio
import contextlib
import hmac
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from madang.core import Clock, Entropy, MadangError, Rejected, SiteId, Unavailable
from madang.model import ArtifactFile, Assignment, CatalogEntry, Chip, FileTransfer, Service
from madang.runtime.artifacts.book import TransferBook
from madang.runtime.artifacts.cache import ArtifactCache
from madang.runtime.artifacts.fetching import ChunkFetcher, StoreLink, read_keys, read_roots
from madang.runtime.artifacts.limiter import RateLimiter
from madang.runtime.artifacts.room import ArtifactRoom
from madang.runtime.artifacts.serving import ArtifactServer, FindContext, ServedCounts
from madang.runtime.artifacts.transfer import BadChunk, TransferKit
from madang.runtime.files import read_secret
from madang.runtime.telemetry import EventLog
from madang.site.artifact_ways import ArtifactCertificate, choose_ways, find_urls
from madang.site.desired import DesiredView
from madang.site.nodes import NodeBook
from madang.site.peers import Peers
from madang.site.settings import SiteSettings
from madang.wire.artifact_pass import ARTIFACT_PASS_HEADER, ArtifactPass, open_artifact_pass, seal_artifact_pass
from madang.wire.artifacts import FileChunks
from madang.wire.feed import PeerSession

TICK_S = 2.0
MEASURE_S = 15.0
"""How often the cache is looked through for metrics: a few `stat` calls for each file."""
RETRY_S = 30.0
_WAIT_S = 0.2


def choose_wanted(
    assignments: Iterable[Assignment],
    services: Mapping[str, Service],
    models: Mapping[str, CatalogEntry],
    chips: Iterable[Chip],
) -> tuple[ArtifactFile, ...]:
    """Return the files that a site's chips can run of what is assigned to it, in the catalog's order, each once."""
    kinds = {chip.kind for chip in chips}
    found: dict[str, ArtifactFile] = {}
    for assignment in sorted(assignments, key=lambda one: one.service):
        service = services.get(assignment.service)
        entry = models.get(service.model) if service is not None and assignment.replicas > 0 else None
        for artifact in entry.artifacts if entry is not None else ():
            if kinds & set(artifact.chip_kinds):
                found.update({file.sha256: file for file in artifact.files})
    return tuple(found.values())


class SiteArtifacts:
    """The cache, its port and its loop; with no folder, all of it does nothing."""

    def __init__(
        self,
        *,
        settings: SiteSettings,
        view: DesiredView,
        book: NodeBook,
        peers: Peers,
        clock: Clock,
        entropy: Entropy,
        log: EventLog,
    ) -> None:
        """Prepare; raises Rejected naming a key of the settings that is malformed."""
        self._settings = settings
        self._site = SiteId(settings.name)
        self._view = view
        self._book = book
        self._peers = peers
        self._clock = clock
        self._log = log
        self._cache = ArtifactCache(settings.artifact_dir or Path("/nonexistent"))
        self.room = ArtifactRoom(self._cache, settings.artifact_bytes_max)
        self.transfers = TransferBook(clock)
        self.served = ServedCounts()
        self.certificate = ArtifactCertificate(settings, clock, log) if settings.artifact_tls_port else None
        self._roots = read_roots(settings.artifact_ca_file)
        self._ways: tuple[tuple[SiteId, str], ...] = ()
        self._sessions: dict[SiteId, tuple[PeerSession, ...]] = {}
        self._wanted: tuple[ArtifactFile, ...] = ()
        self._wishes_changed = asyncio.Event()
        self._fetched: ArtifactFile | None = None
        self._cancel = threading.Event()
        self._pinned: frozenset[str] | None = None
        self._known: dict[str, FileChunks] = {}
        self._retry_ns: dict[str, int] = {}
        self._fetcher = ChunkFetcher(
            self._cache,
            self.room,
            self._list_stores,
            read_keys(settings.artifact_keys),
            _make_kit(settings, clock, entropy, self.transfers, log),
            log,
        )

    async def run(self) -> None:
        """Serve and fetch until cancelled."""
        if self._settings.artifact_dir is None:
            await asyncio.Event().wait()
        servers = self._make_servers()
        for server in servers:
            server.start()
        self._log.info("artifacts_serving", ports=[server.port for server in servers])
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._run_wishes(), name="artifact_wishes")
                group.create_task(self._run_fetches(), name="artifact_fetches")
                group.create_task(self._run_measure(), name="artifact_measure")
        finally:
            for server in servers:
                await asyncio.to_thread(server.stop)

    def _make_servers(self) -> list[ArtifactServer]:
        """Return the plain port, and the one with TLS where the settings have it."""
        settings = self._settings
        ways: list[tuple[str, int, FindContext | None]] = [(settings.listen_host, settings.artifact_port, None)]
        if self.certificate is not None:
            host = settings.artifact_tls_host or settings.listen_host
            ways.append((host, settings.artifact_tls_port, self.certificate.context))
        return [
            ArtifactServer(
                self._cache.folder,
                self._authorise,
                self._known.get,
                host,
                port,
                counts=self.served,
                find_context=find_context,
            )
            for host, port, find_context in ways
        ]

    async def _run_measure(self) -> None:
        while True:
            # Unavailable: pins or folder cannot be read, which whoever fetches says; the last numbers stay.
            with contextlib.suppress(Unavailable):
                await asyncio.to_thread(self.room.measure)
            await asyncio.sleep(MEASURE_S)

    async def _run_wishes(self) -> None:
        while True:
            await self.follow()
            await asyncio.sleep(TICK_S)

    async def _run_fetches(self) -> None:
        while True:
            for file in self._wanted:
                if self._retry_ns.get(file.sha256, 0) <= self._clock.monotonic_ns():
                    await self._fetch(file)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._wishes_changed.wait()
            self._wishes_changed.clear()

    async def follow(self) -> None:
        """Take over sessions with other sites and what is wanted now; end a fetch that is not wanted any more."""
        peers, view = self._peers.list_peers(), self._view
        self._sessions = {peer.site: peer.sessions for peer in peers}
        self._ways = choose_ways(peers, find_urls(view.sites, self._settings.artifact_peers))
        # A site that has heard of nothing wants nothing yet, and must not let go of what it holds.
        if view.generation == 0:
            return
        chips = [
            chip for node in self._book.nodes.values() if node.observed is not None for chip in node.observed.chips
        ]
        wanted = choose_wanted(view.assignments.values(), view.services, view.models, chips)
        try:
            await self._pin(frozenset(file.sha256 for file in wanted), is_sure=self._is_every_node_heard())
        except Unavailable as error:
            self._log.warning("pins_not_written", reason=error.message)
            return
        if wanted != self._wanted:
            self._wanted = wanted
            self._wishes_changed.set()
        self.transfers.keep_only({file.sha256 for file in wanted})
        if self._fetched is not None and self._fetched not in wanted:
            self._cancel.set()

    def _is_every_node_heard(self) -> bool:
        return all(node.observed is not None for node in self._book.nodes.values())

    async def _pin(self, wanted: frozenset[str], *, is_sure: bool) -> None:
        owner = f"site-{self._site}"
        if not is_sure:
            # A node that was not heard yet may have chips that need what an earlier life pinned.
            pins = (await asyncio.to_thread(self.room.read_pins)).get(owner)
            wanted |= frozenset(pins.sha256s if pins is not None else ())
        if wanted == self._pinned:
            return
        await asyncio.to_thread(self.room.pin, owner, wanted)
        self._pinned = wanted
        self._retry_ns = {sha256: at_ns for sha256, at_ns in self._retry_ns.items() if sha256 in wanted}

    async def _fetch(self, file: ArtifactFile) -> None:
        if await asyncio.to_thread(self._cache.find, file) is not None:
            self._known.pop(file.sha256, None)
            self.transfers.end(file)
            return
        cancel = self._cancel = threading.Event()
        self._fetched = file
        work = asyncio.get_running_loop().run_in_executor(None, self._fetch_now, file, cancel)
        try:
            problem = await asyncio.shield(work)
        except asyncio.CancelledError:
            cancel.set()
            with contextlib.suppress(asyncio.CancelledError):
                await work
            raise
        finally:
            self._fetched = None
        if cancel.is_set():
            self.transfers.end(file, is_cancelled=True)
            return
        self.transfers.end(file, reason=problem)
        if problem:
            self._retry_ns[file.sha256] = self._clock.monotonic_ns() + round(RETRY_S * 1e9)
            self._log.warning("artifact_not_fetched", file=file.name, sha256=file.sha256, reason=problem)
        else:
            self._known.pop(file.sha256, None)
            self._log.info("artifact_fetched", file=file.name, sha256=file.sha256, bytes=file.size_bytes)

    def _fetch_now(self, file: ArtifactFile, cancel: threading.Event) -> str:
        """Return why the file is not here, empty when it is; runs in a thread."""

        def wait() -> None:
            self.transfers.wait(file, self._cache.bytes_so_far(file))
            if cancel.wait(_WAIT_S):
                raise Unavailable("the fetch was cancelled")

        try:
            with self._cache.lock(file, wait):
                if self._cache.find(file) is not None:
                    return ""  # whoever held the lock has fetched it
                chunks = self._fetcher.find_chunks(file)
                if chunks is None:
                    return "no store has a manifest of it that is believed here"
                # From now on, whoever asks gets what is finished of it.
                self._known[file.sha256] = chunks
                self._fetcher.fetch(file, cancel=cancel, report=lambda what, done: self.transfers.see(file, what, done))
        except MadangError as error:
            return error.message
        return ""

    def _list_stores(self) -> list[StoreLink]:
        """Return other sites that this one has a session with, then the hub's stores."""
        links = [
            StoreLink(f"site {site}", url, lambda path, site=site: self._prove(site, path), self._roots)  # type: ignore[misc]
            for site, url in self._ways
            if self._live_session(site) is not None
        ]
        return links + [StoreLink(f"store {url}", url, tls=self._roots) for url in self._settings.artifact_stores]

    def list_transfers(self) -> list[dict[str, Any]]:
        """Return what comes into the site's cache and into those of its nodes, with the model that it belongs to."""
        rows: list[tuple[str, FileTransfer]] = [("site cache", one) for one in self.transfers.rows()]
        for node in self._book.nodes.values():
            rows += [(f"node {node.name}", one) for one in (node.observed.transfers if node.observed else ())]
        owners = {
            file.sha256: (entry.name, artifact.artifact_id)
            for entry in self._view.models.values()
            for artifact in entry.artifacts
            for file in artifact.files
        }
        found = []
        for where, one in rows:
            model, artifact_id = owners.get(one.sha256, ("", ""))
            found.append({"where": where, "model": model, "artifact_id": artifact_id, **msgspec.to_builtins(one)})
        return found

    def _live_session(self, site: SiteId) -> PeerSession | None:
        now_s = self._clock.wall_s()
        return next((one for one in self._sessions.get(site, ()) if one.expires_at_s > now_s), None)

    def _prove(self, site: SiteId, path: str) -> Mapping[str, str]:
        session = self._live_session(site)
        if session is None:
            return {}
        value = ArtifactPass(
            asking_site=self._site, serving_site=site, path=path, issued_at_s=self._clock.wall_s(), kid=session.kid
        )
        return {ARTIFACT_PASS_HEADER: seal_artifact_pass(value, session.key)}

    def _authorise(self, path: str, headers: Mapping[str, str]) -> str:
        """Return what asks, a site of the federation or a node of this one; raises Rejected for anybody else.

        Runs in the server's threads.
        """
        header = headers.get(ARTIFACT_PASS_HEADER)
        if header is not None:
            sessions = self._sessions
            keys = {one.kid: one.key for found in sessions.values() for one in found}
            open_artifact_pass(header, keys, serving_site=self._site, path=path, now_s=self._clock.wall_s())
            return "site"
        token = headers.get("authorization", "").removeprefix("Bearer ").encode()
        for node in self._settings.nodes:
            with contextlib.suppress(Unavailable):
                if token and hmac.compare_digest(token, read_secret(node.token_file)):
                    return "node"
        raise Rejected(f"artifacts of site {self._site} are for its nodes and for sites of its federation")


def _make_kit(settings: SiteSettings, clock: Clock, entropy: Entropy, book: TransferBook, log: EventLog) -> TransferKit:
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
