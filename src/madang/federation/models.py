"""The models of the embedded federation's first day, fetched before anything starts.

Owns which they are. Refuses to fetch by itself: `madang.node.artifacts` tries sources and verifies. Called by
`madang up` and `madang model import`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from madang.core import Rejected
from madang.federation.catalog import CHAT_MODEL, EMBEDDING_MODEL, builtin_catalog, find_entry
from madang.federation.layout import Layout
from madang.model import ArtifactFile, CatalogEntry
from madang.node.artifacts import ArtifactFetcher, FetchProgress
from madang.node.cache import ArtifactCache, import_file

_MIB = 2**20


def default_files(catalog: tuple[CatalogEntry, ...]) -> list[tuple[str, ArtifactFile]]:
    """Return (model, file) of everything that the first day's services need."""
    entries = (find_entry(catalog, name) for name in (CHAT_MODEL, EMBEDDING_MODEL))
    return [(entry.name, file) for entry in entries for file in entry.artifacts[0].files]


def fetch_models(layout: Layout, say: Callable[[str, str], None], on_progress: Callable[[FetchProgress], None]) -> None:
    """Bring the default models into the cache.

    Args:
        layout: names the cache.
        say: told (part, text) at every step.
        on_progress: called several times a second during a fetch.

    Raises:
        Unavailable: naming every source that was tried and why it failed.
    """
    fetcher = ArtifactFetcher(ArtifactCache(layout.cache_dir))
    for model, file in default_files(builtin_catalog()):
        if fetcher.cache.find(file) is not None:
            say("models", f"{model} is here and verified ({file.size_bytes // _MIB} MiB)")
            continue
        say("models", f"fetches {file.name} of {model} ({file.size_bytes // _MIB} MiB)")
        fetcher.ensure(file, on_progress)
        say("models", f"{model} is verified: sha256 {file.sha256[:16]}…")


def import_model_file(path: Path, cache_dir: Path, catalog: tuple[CatalogEntry, ...], sha256: str | None) -> Any:
    """Take a file that somebody brought into the cache and return what it is.

    Raises:
        Rejected: no catalog entry names its hash, or it is not the one that was asked for.
        Unavailable: the disk is full.
    """
    if sha256 is not None:
        catalog = tuple(entry for entry in catalog if sha256 in _hashes(entry))
        if not catalog:
            raise Rejected(f"no catalog entry has a file with sha256 {sha256}", next_step="see: madang model list")
    entry, file, stored = import_file(path, ArtifactCache(cache_dir), catalog)
    return {
        "model": entry.name,
        "name": file.name,
        "size_bytes": file.size_bytes,
        "sha256": file.sha256,
        "path": str(stored),
    }


def _hashes(entry: CatalogEntry) -> set[str]:
    return {file.sha256 for artifact in entry.artifacts for file in artifact.files}
