"""The federation's artifact store: files by hash, each with a manifest that the hub signs.

Owns the making of manifests for files that are here. Refuses to fetch and to decide what is needed where. Called by the
store's routes, by the build queue, which adds files, and by the views, which ask what is here.

A manifest is made when somebody first asks for one: the file is read once, and the manifest kept. One is made at a
time, since two would only fight for the disk.
"""

import asyncio
import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec
import sqlalchemy as sa

from madang.core import Clock, Entropy, Fault, Unavailable
from madang.hub.artifact_key import ArtifactSigner, load_artifact_key
from madang.hub.desired_store import read_models
from madang.model import ArtifactFile, ArtifactKey, keys_of
from madang.runtime.artifacts.cache import ArtifactCache
from madang.runtime.artifacts.manifests import cut_file, read_manifest, write_manifest
from madang.runtime.artifacts.room import ArtifactRoom
from madang.runtime.artifacts.serving import ServedCounts
from madang.runtime.store import Store
from madang.runtime.telemetry import EventLog
from madang.wire.artifacts import Manifest, read_kid, sign_manifest
from madang.wire.receipts import make_kid

MEASURE_S = 15.0
_OWNER = "hub"


class ArtifactStore:
    """The store in one folder; None for a hub that has none."""

    def __init__(self, folder: Path | None, signer: ArtifactSigner, store: Store, clock: Clock, log: EventLog) -> None:
        self.folder = folder
        self.cache = None if folder is None else ArtifactCache(folder)
        self.room = None if self.cache is None else ArtifactRoom(self.cache)
        self.served = ServedCounts()
        self.signer = signer
        self._store = store
        self._clock = clock
        self._log = log
        self._turn = asyncio.Lock()

    async def run_measure(self) -> None:
        """Look through the store now and then, for metrics, until cancelled."""
        while True:
            if self.room is not None:
                # Unavailable: it cannot be read, which whoever asks for a file is told; the last numbers stay.
                with contextlib.suppress(Unavailable):
                    await asyncio.to_thread(self.room.measure)
            await asyncio.sleep(MEASURE_S)

    async def pin_what_nobody_else_has(self) -> None:
        """Pin the catalog's files that have no source: what was compiled once must not make room for what is next.

        Raises:
            Unavailable: the pins cannot be written.
        """
        if self.room is not None:
            models = await self._store.read(read_models)
            files = [file for entry in models for artifact in entry.artifacts for file in artifact.files]
            await asyncio.to_thread(self.room.pin, _OWNER, {file.sha256 for file in files if not file.sources})

    def find(self, sha256: str) -> Path | None:
        """Return the path of a file that is here whole, or None."""
        path = None if self.folder is None else self.folder / sha256[:2] / sha256
        return path if path is not None and path.is_file() else None

    def list_held(self, files: Iterable[ArtifactFile]) -> set[str]:
        """Return the hashes of those files that are here."""
        return {file.sha256 for file in files if self.find(file.sha256) is not None}

    async def find_manifest(self, sha256: str) -> bytes | None:
        """Return the signed manifest of a file that is here, or None.

        Raises:
            Fault: the file is not what its name says; it was removed.
            Unavailable: the manifest cannot be written.
        """
        if self.folder is None:
            return None
        known = await asyncio.to_thread(self._read_own, self.folder, sha256)
        path = self.find(sha256)
        if known is not None or path is None:
            return known
        async with self._turn:
            known = await asyncio.to_thread(self._read_own, self.folder, sha256)
            if known is not None:
                return known
            name, key = await self._store.read(lambda c: _name_file(c, sha256))
            document = await asyncio.to_thread(self._make, path, name, sha256, key)
        self._log.info("manifest_signed", sha256=sha256, kid=self.signer.public_hex[:16], file=name)
        return document

    def _read_own(self, folder: Path, sha256: str) -> bytes | None:
        """Return a manifest that this hub's key signed; one of a former key would be believed by nobody."""
        document = read_manifest(folder, sha256)
        if document is None or make_kid(self.signer.public_key) != read_kid(document):
            return None
        return document

    def _make(self, path: Path, name: str, sha256: str, key: ArtifactKey | None) -> bytes:
        assert self.folder is not None
        file = cut_file(path, name)
        if file.sha256 != sha256:
            # Served on, it would be refused by every node after half a gigabyte.
            os.unlink(path)
            raise Fault(f"artifact {sha256} in the store has become {file.sha256}; it was removed: check the disk")
        return self.write_manifest(Manifest(files=(file,), key=key), sha256)

    def write_manifest(self, manifest: Manifest, sha256: str) -> bytes:
        """Sign a manifest, dated now, and keep it as that of a file; return the document."""
        assert self.folder is not None
        dated = msgspec.structs.replace(manifest, made_at_us=round(self._clock.wall_s() * 1e6))
        document = sign_manifest(dated, self.signer.public_key, self.signer.sign)
        write_manifest(self.folder, sha256, document)
        return document


def make_artifact_store(
    folder: Path | None, key_path: Path, store: Store, clock: Clock, entropy: Entropy, log: EventLog
) -> ArtifactStore:
    """Return the store; raises Unavailable or Rejected naming the key's file."""
    return ArtifactStore(folder, load_artifact_key(key_path, entropy), store, clock, log)


def _name_file(connection: sa.Connection, sha256: str) -> tuple[str, ArtifactKey | None]:
    """Return what the catalog calls a file, and the key of the artifact that it belongs to."""
    for entry in read_models(connection):
        for artifact in entry.artifacts:
            for file in artifact.files:
                if file.sha256 == sha256:
                    return file.name, next(iter(keys_of(entry, artifact)), None)
    return sha256, None
