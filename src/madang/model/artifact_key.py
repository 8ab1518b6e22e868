"""What makes two artifacts the same: model revision, chip, SDK, parallelism and the longest input.

Owns the key and its name. Refuses to know files and where they are. A compiled program fits exactly one key; weights
that every chip loads leave SDK and parallelism empty.
"""

import hashlib

import msgspec

from madang.model.artifact import Artifact, CatalogEntry

_encoder = msgspec.json.Encoder(order="sorted")


class ArtifactKey(msgspec.Struct, frozen=True, kw_only=True):
    """The identity of an artifact; two that differ in one field may never be taken for each other.

    Attributes:
        model: name in the catalog.
        revision: of the model's weights, as its publisher counts; empty where the catalog says none.
        chip_kind: chip driver that it runs on.
        sdk: vendor stack and version that it was compiled with, such as `furiosa-2026.3`; empty for plain weights.
        parallelism: how it is split, such as `tp4` or `tp2pp2`; empty for one chip.
        context_tokens_max: longest input and output together; 0 where the model has no such length.
    """

    model: str
    revision: str = ""
    chip_kind: str
    sdk: str = ""
    parallelism: str = ""
    context_tokens_max: int = 0

    @property
    def key_id(self) -> str:
        """Return a short name of the key: 32 hex digits of its SHA-256."""
        return hashlib.sha256(b"madang-artifact-key-v1\n" + _encoder.encode(self)).hexdigest()[:32]

    def __str__(self) -> str:
        parts = (self.model, self.revision, self.chip_kind, self.sdk, self.parallelism)
        length = f"{self.context_tokens_max} tokens" if self.context_tokens_max else ""
        return " / ".join(part for part in (*parts, length) if part)


def keys_of(entry: CatalogEntry, artifact: Artifact) -> tuple[ArtifactKey, ...]:
    """Return the keys that one artifact of a catalog entry answers: one for each kind of chip it runs on."""
    return tuple(
        ArtifactKey(
            model=entry.name,
            revision=entry.revision,
            chip_kind=kind,
            sdk=artifact.sdk,
            parallelism=artifact.parallelism,
            context_tokens_max=artifact.context_tokens_max,
        )
        for kind in artifact.chip_kinds
    )
