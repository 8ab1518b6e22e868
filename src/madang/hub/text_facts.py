"""Which tokenizer and chat template the artifacts of a model bring, read from the files in the hub's store.

Owns their entry into the catalog. Refuses to judge (`madang.policy.equivalence`) and to read formats
(`madang.wire.text_facts`). Called by the route that judges comparisons: what an artifact is said to bring does not
count where its own files can be asked.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from madang.core import Rejected
from madang.model import Artifact, CatalogEntry
from madang.runtime.artifacts.text_files import read_text_files
from madang.wire.text_facts import TextFacts, has_text_facts

Hashes = tuple[str, ...]
"""Of an artifact's files, in order: what it consists of."""


def read_texts(entry: CatalogEntry, find: Callable[[str], Path | None]) -> dict[Hashes, TextFacts]:
    """Return what each artifact's files say, of those whose files are here; blocks.

    Args:
        entry: the model.
        find: returns the path of a file that is here, by its hash.

    Raises:
        Rejected: a file is damaged, or the catalog says of an artifact what its files do not.
    """
    return {hashes_of(artifact): _read(entry.name, artifact, find) for artifact in entry.artifacts if artifact.files}


def enter_texts(entry: CatalogEntry, texts: Mapping[Hashes, TextFacts]) -> CatalogEntry:
    """Return the entry with what its artifacts' files say; artifacts of other files stay as they are."""
    artifacts = tuple(
        msgspec.structs.replace(
            one,
            tokenizer_sha256=texts[hashes_of(one)].tokenizer_sha256 or one.tokenizer_sha256,
            template_sha256=texts[hashes_of(one)].template_sha256 or one.template_sha256,
        )
        if hashes_of(one) in texts
        else one
        for one in entry.artifacts
    )
    return msgspec.structs.replace(entry, artifacts=artifacts)


def hashes_of(artifact: Artifact) -> Hashes:
    """Return what an artifact consists of."""
    return tuple(file.sha256 for file in artifact.files)


def _read(model: str, artifact: Artifact, find: Callable[[str], Path | None]) -> TextFacts:
    paths = {file.name: find(file.sha256) for file in artifact.files if has_text_facts(file.name)}
    found = read_text_files({name: path for name, path in paths.items() if path is not None})
    pairs = (
        ("tokenizer", found.tokenizer_sha256, artifact.tokenizer_sha256),
        ("chat template", found.template_sha256, artifact.template_sha256),
    )
    for what, read, stated in pairs:
        if read and stated and read != stated:
            raise Rejected(
                f"model {model}, artifact {artifact.artifact_id}: the catalog says {what} {stated}, "
                f"its files have {read}",
                next_step="correct or leave out what the catalog says: madang model inspect FILE",
            )
    return found
