"""Manifests beside the files that they speak of, and the making of one from a file.

Owns `.manifests/<sha256>.json` of a cache, one document for each file. Refuses to believe a document: whoever uses one
opens it with the keys that it trusts. Called by hubs, which sign, by sites, which pass documents on unchanged, and by
fetchers.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

from madang.core import Rejected
from madang.runtime.artifacts.chunk_file import explained
from madang.runtime.files import replace_file
from madang.wire.artifacts import CHUNK_BYTES, MANIFEST_BYTES_MAX, FileChunks


def manifest_path(folder: Path, sha256: str) -> Path:
    """Return where the document of a file lies in the cache at `folder`."""
    return folder / ".manifests" / f"{sha256}.json"


def read_manifest(folder: Path, sha256: str) -> bytes | None:
    """Return the document of a file, or None."""
    try:
        with manifest_path(folder, sha256).open("rb") as opened:
            return opened.read(MANIFEST_BYTES_MAX + 1)
    except FileNotFoundError:
        return None


def write_manifest(folder: Path, sha256: str, document: bytes) -> None:
    """Keep a document; raises Unavailable naming the path."""
    path = manifest_path(folder, sha256)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, document, is_durable=True)


def cut_file(
    path: Path, name: str, *, chunk_bytes: int = CHUNK_BYTES, report: Callable[[int], None] = lambda _done_bytes: None
) -> FileChunks:
    """Return what a manifest says of a file; reads it once and hashes it twice, whole and in chunks.

    Raises:
        Rejected: it is empty or cannot be read.
    """
    whole = hashlib.sha256()
    chunks = []
    size_bytes = 0
    buffer = memoryview(bytearray(chunk_bytes))
    try:
        with path.open("rb", buffering=0) as opened:
            while filled := _fill(opened.readinto, buffer):
                piece = buffer[:filled]
                whole.update(piece)
                chunks.append(hashlib.sha256(piece).hexdigest())
                size_bytes += filled
                report(size_bytes)
    except OSError as error:
        raise Rejected(f"cannot read {path}: {error.strerror}") from error
    if not size_bytes:
        raise Rejected(f"{path} is empty: there is nothing to fetch in it")
    return FileChunks(
        name=name,
        size_bytes=size_bytes,
        sha256=whole.hexdigest(),
        chunk_bytes=chunk_bytes,
        chunk_sha256s=tuple(chunks),
    )


def _fill(readinto: Callable[[memoryview], int | None], buffer: memoryview) -> int:
    filled = 0
    while filled < len(buffer) and (got := readinto(buffer[filled:])):
        filled += got
    return filled
