"""The built-in catalog: which models `madang up` offers, and reading catalog entries from TOML.

Owns `catalog.toml` and its checks. Refuses to fetch anything. Called by `madang up`, which enters the entries at
the hub, and by `madang model`, which also takes a file of the same shape.
"""

import importlib.resources
import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from madang.core import Rejected, check_entity_id
from madang.model import UNITS_OF_TASK, Artifact, CatalogEntry

CHAT_MODEL = "qwen2.5-coder-0.5b-instruct"
EMBEDDING_MODEL = "multilingual-e5-small"
SPEECH_MODEL = "whisper-base"
VOICE_MODEL = "silero-vad"
FILES_MODEL = "magika"
LARGER_CHAT_MODEL = "qwen2.5-coder-1.5b-instruct"
MEDICAL_MODEL = "brain-mri-demo"
OCR_MODEL = "tesseract-korean"
INDUSTRIAL_MODEL = "solar-cell-defects"
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


class _Catalog(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: tuple[CatalogEntry, ...]


def builtin_catalog() -> tuple[CatalogEntry, ...]:
    """Return the entries that ship with this release, in their order."""
    text = importlib.resources.files("madang.federation").joinpath("catalog.toml").read_text(encoding="utf-8")
    return parse_catalog(text, "catalog.toml")


def load_catalog(path: Path) -> tuple[CatalogEntry, ...]:
    """Return the entries of a TOML file of the same shape; raises Rejected naming file, key and expectation."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise Rejected(f"catalog {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Rejected(f"catalog {path} is not UTF-8 text") from error
    return parse_catalog(text, str(path))


def parse_catalog(text: str, where: str) -> tuple[CatalogEntry, ...]:
    """Return the entries in TOML text; raises Rejected naming `where`, the key and what was expected."""
    try:
        raw: dict[str, Any] = tomllib.loads(text)
        entries = msgspec.convert(raw, _Catalog).model
    except tomllib.TOMLDecodeError as error:
        raise Rejected(f"{where} is not TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise Rejected(f"{where}: {error}") from error
    check_catalog(entries, where)
    return entries


def check_catalog(entries: tuple[CatalogEntry, ...], where: str) -> None:
    """Raise Rejected, naming `where` and the key, for entries that could never be served."""
    names = [entry.name for entry in entries]
    for entry in entries:
        if names.count(entry.name) > 1:
            raise Rejected(f"{where}: model {entry.name!r} stands there twice")
        check_entity_id("model", entry.name)
        units = UNITS_OF_TASK[entry.task]
        if entry.counted_in not in units:
            raise Rejected(f"{where}: model {entry.name}: unit of task {entry.task}: expected {' or '.join(units)}")
        for artifact in entry.artifacts:
            _check_artifact(artifact, f"{where}: model {entry.name}, artifact {artifact.artifact_id}")


def find_entry(entries: tuple[CatalogEntry, ...], name: str) -> CatalogEntry:
    """Return the entry with that name; raises Rejected listing the known names."""
    for entry in entries:
        if entry.name == name:
            return entry
    known = ", ".join(entry.name for entry in entries)
    raise Rejected(f"no model {name!r} in the catalog", next_step=f"known models: {known}")


def _check_artifact(artifact: Artifact, where: str) -> None:
    if not artifact.files and artifact.engine != "external":  # others keep the files of theirs
        raise Rejected(f"{where}: expected at least one file")
    for file in artifact.files:
        if not _SHA256.match(file.sha256):
            raise Rejected(f"{where}: sha256 of {file.name}: expected 64 lower-case hex digits")
        if file.size_bytes <= 0:
            raise Rejected(f"{where}: size_bytes of {file.name}: expected a positive number")
        if not file.name or "/" in file.name or file.name.startswith("."):
            raise Rejected(f"{where}: file name {file.name!r}: expected a plain name without folders")
