"""What workers upload: declared files, their chunks, and the step from chunks into the store.

Owns the bytes until they are whole. Refuses to know builds: the routes judge who may upload. A chunk is verified before
it is written and finished chunks are kept, so a worker whose link breaks goes on where it was.
"""

import asyncio
import hashlib
from pathlib import Path

import msgspec

from madang.core import Conflict, Rejected
from madang.hub.artifact_store import ArtifactStore
from madang.model import ArtifactFile, ArtifactKey
from madang.runtime.admin_http import NotFound
from madang.runtime.artifacts.cache import ArtifactCache, hash_file
from madang.runtime.artifacts.chunk_file import ChunkFile, explained, read_finished
from madang.runtime.artifacts.room import ArtifactRoom
from madang.runtime.files import replace_file
from madang.wire.artifacts import FileChunks, Manifest, check_file


class BuildUploads:
    """Uploads into one store; one step at a time, since the disk is the bound."""

    def __init__(self, artifacts: ArtifactStore) -> None:
        self._artifacts = artifacts
        self._turn = asyncio.Lock()

    async def declare(self, file: FileChunks) -> list[int]:
        """Say what a file consists of; return the chunks that are missing, none when it is in the store.

        Raises:
            Rejected: its numbers do not fit each other.
            Unavailable: there is no room.
        """
        check_file(file)
        cache = self._cache()
        if self._artifacts.find(file.sha256) is not None:
            return []
        async with self._turn:
            await self._artifacts.pin_what_nobody_else_has()
            return await asyncio.to_thread(self._declare, cache, file)

    def _declare(self, cache: ArtifactCache, file: FileChunks) -> list[int]:
        finished = read_finished(cache.partial_folder, file)
        (self._artifacts.room or ArtifactRoom(cache)).make_room(
            file.sha256, file.size_bytes - len(finished) * file.chunk_bytes
        )
        with explained(cache.partial_folder):
            cache.partial_folder.mkdir(parents=True, exist_ok=True)
        replace_file(_declared_path(cache, file.sha256), msgspec.json.encode(file), is_durable=True)
        return sorted(set(range(file.chunks)) - finished)

    async def put_chunk(self, sha256: str, index: int, data: bytes) -> None:
        """Keep one chunk.

        Raises:
            NotFound: the file was not declared.
            Rejected: it is not what was declared, naming the chunk.
        """
        file = await asyncio.to_thread(_read_declared, self._cache(), sha256)
        if not 0 <= index < file.chunks:
            raise Rejected(f"{file.name} has {file.chunks} chunks; there is no {index}")
        if len(data) != file.span_of(index)[1] or hashlib.sha256(data).hexdigest() != file.chunk_sha256s[index]:
            raise Rejected(f"chunk {index} of {file.name} is not what was declared: {len(data)} bytes came")
        async with self._turn:
            await asyncio.to_thread(self._write, file, index, data)

    def _write(self, file: FileChunks, index: int, data: bytes) -> None:
        chunk_file = ChunkFile(self._cache().partial_folder, file)
        try:
            if index not in chunk_file.finished:
                chunk_file.write(index, memoryview(data))
                chunk_file.flush()
        finally:
            chunk_file.close()

    async def keep(self, files: tuple[ArtifactFile, ...], key: ArtifactKey) -> None:
        """Move whole files into the store, each with a manifest that names the key.

        Raises:
            Conflict: chunks of one are missing.
            Rejected: one is not what its hash says.
        """
        for file in files:
            if self._artifacts.find(file.sha256) is None:
                async with self._turn:
                    await asyncio.to_thread(self._keep, file, key)

    def _keep(self, file: ArtifactFile, key: ArtifactKey) -> None:
        cache = self._cache()
        declared = _read_declared(cache, file.sha256)
        if (declared.name, declared.size_bytes) != (file.name, file.size_bytes):
            raise Rejected(f"{file.name} was declared as {declared.name} of {declared.size_bytes} bytes")
        missing = declared.chunks - len(read_finished(cache.partial_folder, declared))
        if missing:
            raise Conflict(f"{missing} of {declared.chunks} chunks of {file.name} were not uploaded")
        chunk_file = ChunkFile(cache.partial_folder, declared)
        try:
            found = hash_file(chunk_file.data_path)
            if found != file.sha256:
                chunk_file.remove()
                raise Rejected(f"{file.name}: expected sha256 {file.sha256}, its chunks make {found}")
            self._artifacts.write_manifest(Manifest(files=(declared,), key=key), file.sha256)
            cache.move_in(chunk_file.data_path, file.sha256)
            chunk_file.remove()
            _declared_path(cache, file.sha256).unlink(missing_ok=True)
        finally:
            chunk_file.close()

    def _cache(self) -> ArtifactCache:
        if self._artifacts.cache is None:
            raise Rejected("this hub has no artifact store", next_step="set artifact_dir in its settings")
        return self._artifacts.cache


def _declared_path(cache: ArtifactCache, sha256: str) -> Path:
    return cache.partial_folder / f"{sha256}.declared"


def _read_declared(cache: ArtifactCache, sha256: str) -> FileChunks:
    cache.path_of(sha256)
    try:
        return msgspec.json.decode(_declared_path(cache, sha256).read_bytes(), type=FileChunks)
    except FileNotFoundError as error:
        raise NotFound(f"file {sha256} was not declared", next_step="POST it to /api/v1/work/BUILD/files") from error
