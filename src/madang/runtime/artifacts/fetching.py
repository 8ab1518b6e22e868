"""Fetches files by manifest: the hub's store, the site's cache and peers, chunk by chunk, into a cache.

Owns the order manifest, room, chunks, cache. Refuses sources that have no manifest from a key that is believed: those
are for `madang.node.artifacts`, which hashes whole files. Called by nodes and by sites.
"""

import re
import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from madang.core import Rejected, Unavailable
from madang.machine.transfer import SOURCES_MAX
from madang.model import ArtifactFile, HttpSource
from madang.runtime.artifacts.cache import ArtifactCache
from madang.runtime.artifacts.chunk_file import journal_path
from madang.runtime.artifacts.manifests import read_manifest, write_manifest
from madang.runtime.artifacts.ranges import ChunkSource, MakeHeaders, RangeClient, no_headers
from madang.runtime.artifacts.room import ArtifactRoom
from madang.runtime.artifacts.transfer import TransferKit, fetch_chunks
from madang.runtime.signing import is_signed_by
from madang.runtime.telemetry import EventLog
from madang.wire.artifacts import MANIFEST_BYTES_MAX, FileChunks, find_file, open_manifest

_KEY = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True)
class StoreLink:
    """A store that serves `/artifacts/<sha256>` and `/artifacts/<sha256>/manifest`.

    Attributes:
        name: what people and logs call it.
        url: base URL.
        make_headers: proof of who asks.
        tls: how its certificate is judged, as in ChunkSource.
    """

    name: str
    url: str
    make_headers: MakeHeaders = no_headers
    tls: ssl.SSLContext | None = None

    def source_of(self, path: str) -> ChunkSource:
        """Return a path of the store as a source."""
        return ChunkSource(self.name, self.url.rstrip("/") + path, self.make_headers, self.tls)


def read_keys(texts: Sequence[str]) -> tuple[bytes, ...]:
    """Return Ed25519 public keys from settings; raises Rejected naming one that is malformed."""
    for text in texts:
        if not _KEY.match(text):
            raise Rejected(f"artifact key {text[:80]!r} is not 64 lower-case hex digits", next_step="madang model keys")
    return tuple(bytes.fromhex(text) for text in texts)


def read_roots(ca_file: Path | None) -> ssl.SSLContext | None:
    """Return how certificates are judged by a file's roots, None for the system's; raises Rejected naming the file."""
    if ca_file is None:
        return None
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise Rejected(f"artifact_ca_file {ca_file} cannot be used: {error}") from error


class ChunkFetcher:
    """Fetches files whose manifest can be had.

    Args:
        cache: where they go.
        room: of that cache.
        list_stores: where they can be had now, the preferred one first.
        public_keys: whose manifests are believed; with none, nothing is fetched this way.
        kit: what transfers share.
        log: told of manifests that are not believed, and of what leaves the cache.
    """

    def __init__(
        self,
        cache: ArtifactCache,
        room: ArtifactRoom,
        list_stores: Callable[[], Sequence[StoreLink]],
        public_keys: Sequence[bytes],
        kit: TransferKit,
        log: EventLog,
    ) -> None:
        self._cache = cache
        self._room = room
        self._list_stores = list_stores
        self._public_keys = tuple(public_keys)
        self._kit = kit
        self._log = log

    def find_chunks(self, file: ArtifactFile) -> FileChunks | None:
        """Return what a believed manifest says of a file: one that is here, else the first that a store has."""
        if not self._public_keys:
            return None
        known = read_manifest(self._cache.folder, file.sha256)
        if known is not None and (found := self._believe(known, file, "cache")) is not None:
            return found
        for store in self._list_stores():
            client = RangeClient(store.source_of(f"/artifacts/{file.sha256}/manifest"))
            try:
                document = client.get_small(MANIFEST_BYTES_MAX)
            except (Rejected, Unavailable):
                # The transfer, or the other way of fetching, says what became of this source.
                self._kit.watch.broke(store.name)
                continue
            finally:
                client.close()
            if (found := self._believe(document, file, store.name)) is not None:
                write_manifest(self._cache.folder, file.sha256, document)
                return found
        return None

    def fetch(
        self,
        file: ArtifactFile,
        *,
        cancel: threading.Event,
        report: Callable[[str, int], None] = lambda _what, _done_bytes: None,
    ) -> Path | None:
        """Return the path of the verified file, or None when no believed manifest can be had; blocks.

        The caller holds the cache's lock of the file.

        Args:
            file: what is wanted.
            cancel: set it to give up within about a second.
            report: told what goes on, and the bytes that are there.

        Raises:
            Unavailable: as `fetch_chunks`, and when there is no room.
        """
        chunks = self.find_chunks(file)
        if chunks is None:
            return None
        for left in self._room.make_room(file.sha256, file.size_bytes - self._cache.bytes_so_far(file)):
            self._log.info("artifact_left_cache", sha256=left, reason="room")
        stores = self._list_stores()
        sources = [store.source_of(f"/artifacts/{file.sha256}") for store in stores]
        sources += [ChunkSource(one.url, one.url) for one in file.sources if isinstance(one, HttpSource)]
        del sources[SOURCES_MAX:]
        what = " + ".join(source.name for source in sources[: self._kit.at_once])
        part = fetch_chunks(
            chunks,
            sources,
            self._cache.partial_folder,
            self._kit,
            cancel=cancel,
            report=lambda done_bytes: report(what, done_bytes),
        )
        path = self._cache.move_in(part, file.sha256)
        journal_path(self._cache.partial_folder, file.sha256).unlink(missing_ok=True)
        return path

    def _believe(self, document: bytes, file: ArtifactFile, source: str) -> FileChunks | None:
        try:
            found = find_file(open_manifest(document, self._public_keys, is_signed_by), file.sha256)
            if found is None or found.size_bytes != file.size_bytes:
                raise Rejected(f"it does not speak of {file.name} of {file.size_bytes} bytes")
        except Rejected as error:
            self._log.warning("manifest_not_believed", sha256=file.sha256, source=source, reason=error.message)
            return None
        return found
