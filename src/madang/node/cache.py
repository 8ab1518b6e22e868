"""Taking a file that somebody brought into the cache, and the cache under the name that node code uses.

Owns the identification of a file by the catalog. Refuses to keep files: `madang.runtime.artifacts.cache` does. Called
by `madang model import`.
"""

from collections.abc import Iterable
from pathlib import Path

from madang.core import Rejected, Unavailable
from madang.model import ArtifactFile, CatalogEntry
from madang.runtime.artifacts.cache import (
    CHUNK_BYTES,
    ArtifactCache,
    Report,
    copy_to_part,
    default_cache_dir,
    hash_file,
    size_under,
)

__all__ = [
    "CHUNK_BYTES",
    "ArtifactCache",
    "copy_to_part",
    "default_cache_dir",
    "hash_file",
    "import_file",
    "size_under",
]


def import_file(
    path: Path, cache: ArtifactCache, entries: Iterable[CatalogEntry], report: Report | None = None
) -> tuple[CatalogEntry, ArtifactFile, Path]:
    """Copy a file that somebody brought into the cache, identified by its hash alone.

    Returns:
        The catalog entry and file that it is, and its path in the cache.

    Raises:
        Rejected: when it cannot be read or no catalog entry names its hash.
        Unavailable: when the disk is full.
    """
    try:
        size_bytes = path.stat().st_size
        found = hash_file(path, report)
    except OSError as error:
        raise Rejected(f"cannot read {path}: {error.strerror}") from error
    known = [(entry, file) for entry in entries for artifact in entry.artifacts for file in artifact.files]
    for entry, file in known:
        if file.sha256 != found or file.size_bytes != size_bytes:
            continue
        done = cache.find(file)
        if done is None:
            cache.check_space(size_bytes)
            with cache.lock(file, _refuse_wait):
                # A copy, not a hard link: the owner may change or unplug the original.
                copy_to_part(path, cache.part_of(file))
                done = cache.admit(cache.part_of(file), file, f"file {path}")
        return entry, file, done
    names = ", ".join(f"{file.name} ({file.size_bytes} bytes, sha256 {file.sha256})" for _, file in known)
    raise Rejected(
        f"{path} is no file of the catalog: found {size_bytes} bytes, sha256 {found}; "
        f"expected one of {names or 'none'}",
        next_step="check that the copy is whole, or add a catalog entry for it first",
    )


def _refuse_wait() -> None:
    raise Unavailable("another process is fetching this file just now", retry_after_s=10.0)
