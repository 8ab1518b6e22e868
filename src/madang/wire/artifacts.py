"""Manifests: what an artifact's files consist of, chunk by chunk, and who vouches for it.

Owns the document, its signed bytes and its checks. Refuses to know keys' files and where bytes come from: signing and
`is_signed_by` come in from outside. Called by the hub, which signs, by sites and nodes, which fetch, and by workers
that build artifacts.

A document is JSON: `{"kind", "version", "alg", "kid", "signature", "manifest"}`. The signature covers a tag and the
manifest's canonical bytes (JSON, members sorted by name, no spaces), so that what a newer release adds to a manifest
is signed too and nothing depends on how the document was laid out.

Chunks are cut at multiples of `chunk_bytes` from the file's beginning; only the last may be shorter. 4 MiB: a chunk is
what a cut link costs at most, 250 µs of a 128 Gbit/s link and 3 s of a thin one of 10 Mbit/s, and 100 GB of weights
make a manifest of 1.6 MB.
"""

import re
from collections.abc import Callable, Collection
from typing import Any, Literal

import msgspec

from madang.core import Rejected
from madang.model.artifact_key import ArtifactKey
from madang.wire.receipts import IsSignedBy, make_kid

ALG = "ed25519"
CHUNK_BYTES = 4 * 1024 * 1024
CHUNK_BYTES_MIN, CHUNK_BYTES_MAX = 64 * 1024, 16 * 1024 * 1024
CHUNKS_MAX = 262_144
"""Of one file: 1 TiB in chunks of 4 MiB."""
FILES_MAX = 1024
MANIFEST_BYTES_MAX = 24 * 1024 * 1024
"""A document with 262,144 chunk hashes in hex has 17.6 MB."""
_TAG = b"madang-artifact-manifest-v1\n"
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_NAME = re.compile(r"[^/\x00-\x1f\x7f]{1,255}\Z")

Sign = Callable[[bytes], bytes]
"""Signs a message with Ed25519 and returns the signature."""


class FileChunks(msgspec.Struct, frozen=True, kw_only=True):
    """One file: its hash, and the hashes of its chunks in order, all SHA-256 in lower-case hex."""

    name: str
    size_bytes: int
    sha256: str
    chunk_bytes: int
    chunk_sha256s: tuple[str, ...]

    @property
    def chunks(self) -> int:
        """Return how many chunks the file has."""
        return len(self.chunk_sha256s)

    def span_of(self, index: int) -> tuple[int, int]:
        """Return where a chunk begins and how long it is, in bytes."""
        start = index * self.chunk_bytes
        return start, min(self.chunk_bytes, self.size_bytes - start)


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Every file of one artifact.

    Attributes:
        key: what it is; None where a file is vouched for that no catalog entry names.
        made_at_us: wall time at which it was made, microseconds.
    """

    files: tuple[FileChunks, ...]
    key: ArtifactKey | None = None
    made_at_us: int = 0


class _Document(msgspec.Struct, frozen=True, kw_only=True):
    kind: Literal["madang.artifact-manifest"]
    version: Literal[1]
    alg: str
    kid: str
    signature: str
    manifest: dict[str, Any]


_canonical = msgspec.json.Encoder(order="sorted")
_decoder = msgspec.json.Decoder(_Document)


class _Signed(msgspec.Struct, frozen=True, kw_only=True):
    kid: str


_kid_decoder = msgspec.json.Decoder(_Signed)


def chunks_in(size_bytes: int, chunk_bytes: int) -> int:
    """Return how many chunks a file of `size_bytes` has."""
    return -(-size_bytes // chunk_bytes)


def sign_manifest(manifest: Manifest, public_key: bytes, sign: Sign) -> bytes:
    """Return the document of a manifest, signed by the holder of `public_key`; raises Rejected when it is malformed."""
    check_manifest(manifest)
    fields = msgspec.to_builtins(manifest)
    signature = sign(_TAG + _canonical.encode(fields))
    return _canonical.encode(
        _Document(
            kind="madang.artifact-manifest",
            version=1,
            alg=ALG,
            kid=make_kid(public_key),
            signature=signature.hex(),
            manifest=fields,
        )
    )


def open_manifest(data: bytes, public_keys: Collection[bytes], is_signed_by: IsSignedBy) -> Manifest:
    """Return the manifest in a document if one of `public_keys` signed it; raises Rejected with the reason otherwise.

    Args:
        data: the document, as JSON.
        public_keys: keys that are believed; nobody else's signature counts.
        is_signed_by: verifies Ed25519.
    """
    if len(data) > MANIFEST_BYTES_MAX:
        raise Rejected(f"the manifest has {len(data)} bytes, over {MANIFEST_BYTES_MAX}")
    try:
        document = _decoder.decode(data)
        manifest = msgspec.convert(document.manifest, Manifest)
        message = _TAG + _canonical.encode(document.manifest)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise Rejected(f"this is no manifest that this release knows: {error}") from error
    if document.alg != ALG:
        raise Rejected(f"the manifest is signed with {document.alg[:40]!r}; this release knows {ALG}")
    key = next((key for key in public_keys if make_kid(key) == document.kid), None)
    if key is None:
        known = ", ".join(sorted(make_kid(key) for key in public_keys)) or "none"
        raise Rejected(
            f"the manifest is signed with key {document.kid[:40]!r}, which is not believed here (known: {known})",
            next_step="add the publisher's public key to artifact_keys, if you trust it",
        )
    if not re.fullmatch(r"[0-9a-f]{128}", document.signature):
        raise Rejected("the manifest's signature is not 128 lower-case hex digits")
    if not is_signed_by(key, bytes.fromhex(document.signature), message):
        raise Rejected("the signature does not cover the manifest: it was changed, or never signed")
    check_manifest(manifest)
    return manifest


def read_kid(data: bytes) -> str:
    """Return which key a document says that it is signed with; empty when it is no document."""
    try:
        return _kid_decoder.decode(data).kid
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return ""


def find_file(manifest: Manifest, sha256: str) -> FileChunks | None:
    """Return the file with that hash."""
    return next((file for file in manifest.files if file.sha256 == sha256), None)


def check_manifest(manifest: Manifest) -> None:
    """Raise Rejected unless every file's numbers fit each other and names are plain and differ."""
    if not 0 < len(manifest.files) <= FILES_MAX:
        raise Rejected(f"the manifest has {len(manifest.files)} files, expected 1 to {FILES_MAX}")
    names = [file.name for file in manifest.files]
    if len(set(names)) != len(names):
        raise Rejected("the manifest names one file twice")
    for file in manifest.files:
        check_file(file)


def check_file(file: FileChunks) -> None:
    """Raise Rejected unless size, chunk size and the number of hashes fit each other."""
    if not _NAME.match(file.name) or file.name in (".", ".."):
        raise Rejected(f"the manifest names a file {file.name[:80]!r}: expected a plain name without slashes")
    if not CHUNK_BYTES_MIN <= file.chunk_bytes <= CHUNK_BYTES_MAX:
        raise Rejected(
            f"{file.name}: chunks have {file.chunk_bytes} bytes, expected {CHUNK_BYTES_MIN} to {CHUNK_BYTES_MAX}"
        )
    if file.size_bytes <= 0 or file.chunks > CHUNKS_MAX:
        raise Rejected(f"{file.name}: {file.size_bytes} bytes in {file.chunks} chunks; at most {CHUNKS_MAX} chunks")
    if file.chunks != chunks_in(file.size_bytes, file.chunk_bytes):
        raise Rejected(
            f"{file.name}: {file.size_bytes} bytes are {chunks_in(file.size_bytes, file.chunk_bytes)} chunks of "
            f"{file.chunk_bytes}, and {file.chunks} are listed"
        )
    if not all(_SHA256.match(text) for text in (file.sha256, *file.chunk_sha256s)):
        raise Rejected(f"{file.name}: every hash must be 64 lower-case hex digits")
