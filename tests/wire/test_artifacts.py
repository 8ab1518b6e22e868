"""Manifests: golden bytes, round trips, and that nothing changed, foreign or malformed is believed."""

import itertools
import json

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from madang.core import Rejected
from madang.model import ArtifactKey
from madang.runtime.signing import is_signed_by
from madang.wire.artifacts import (
    CHUNK_BYTES,
    CHUNK_BYTES_MIN,
    MANIFEST_BYTES_MAX,
    FileChunks,
    Manifest,
    chunks_in,
    find_file,
    open_manifest,
    read_kid,
    sign_manifest,
)
from madang.wire.receipts import make_kid

PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = PRIVATE.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
KEY = ArtifactKey(
    model="qwen2.5-7b", revision="3", chip_kind="rngd", sdk="furiosa-2026.3", parallelism="tp4", context_tokens_max=8192
)
FILE = FileChunks(
    name="model.fxb",
    size_bytes=CHUNK_BYTES + 5,
    sha256="ab" * 32,
    chunk_bytes=CHUNK_BYTES,
    chunk_sha256s=("01" * 32, "02" * 32),
)
MANIFEST = Manifest(key=KEY, files=(FILE,), made_at_us=1_780_000_000_000_000)
GOLDEN = (
    b'{"alg":"ed25519","kid":"56475aa75463474c","kind":"madang.artifact-manifest","manifest":'
    b'{"files":[{"chunk_bytes":4194304,"chunk_sha256s":["' + b"01" * 32 + b'","' + b"02" * 32 + b'"],'
    b'"name":"model.fxb","sha256":"' + b"ab" * 32 + b'","size_bytes":4194309}],'
    b'"key":{"chip_kind":"rngd","context_tokens_max":8192,"model":"qwen2.5-7b","parallelism":"tp4","revision":"3",'
    b'"sdk":"furiosa-2026.3"},"made_at_us":1780000000000000},"signature":"@","version":1}'
)


def signed(manifest=MANIFEST):
    return sign_manifest(manifest, PUBLIC, PRIVATE.sign)


def opened(data, keys=(PUBLIC,)):
    return open_manifest(data, keys, is_signed_by)


def resigned(change):
    """Return a document whose manifest was changed and signed again, as a publisher with a bug would."""
    document = json.loads(signed())
    change(document["manifest"])
    message = (
        b"madang-artifact-manifest-v1\n"
        + json.dumps(document["manifest"], sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    )
    document["signature"] = PRIVATE.sign(message).hex()
    return json.dumps(document).encode()


def test_a_document_is_these_bytes():
    data = signed()
    signature = json.loads(data)["signature"].encode()
    assert data == GOLDEN.replace(b"@", signature)
    assert opened(GOLDEN.replace(b"@", signature)) == MANIFEST


def test_the_signature_covers_the_canonical_manifest_whatever_the_layout():
    document = json.loads(signed())
    assert opened(json.dumps(document, indent=4, sort_keys=False).encode()) == MANIFEST


def test_what_a_newer_release_adds_is_signed_too_and_ignored():
    def add(manifest):
        manifest["colour"] = "청색"

    data = resigned(add)
    assert opened(data) == MANIFEST
    changed = data.replace(b"\\uccad\\uc0c9", b"red")
    assert changed != data
    with pytest.raises(Rejected, match="was changed"):
        opened(changed)


def test_only_a_believed_key_counts():
    with pytest.raises(Rejected, match="not believed here"):
        opened(signed(), [OTHER])
    assert opened(signed(), [OTHER, PUBLIC]) == MANIFEST
    forged = json.loads(signed())
    forged["kid"] = make_kid(OTHER)
    with pytest.raises(Rejected, match="was changed"):
        opened(json.dumps(forged).encode(), [OTHER, PUBLIC])


@given(st.data())
def test_no_flipped_bit_is_believed(data):
    document = bytearray(signed())
    index = data.draw(st.integers(0, len(document) - 1))
    document[index] ^= 1 << data.draw(st.integers(0, 7))
    try:
        manifest = opened(bytes(document))
    except Rejected:
        return
    # JSON allows some letters two ways; what is believed must be what was signed.
    assert manifest == MANIFEST


@given(st.binary(max_size=2000))
def test_arbitrary_bytes_are_refused_and_nothing_else(data):
    with pytest.raises(Rejected):
        opened(data)


def test_a_document_over_the_bound_is_not_parsed():
    with pytest.raises(Rejected, match="over"):
        opened(b" " * (MANIFEST_BYTES_MAX + 1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m["files"][0].update(size_bytes=CHUNK_BYTES * 3), "3 chunks"),
        (lambda m: m["files"][0].update(size_bytes=0), "0 bytes"),
        (lambda m: m["files"][0].update(chunk_bytes=1), "chunks have 1 bytes"),
        (lambda m: m["files"][0].update(name="../../etc/passwd"), "plain name"),
        (lambda m: m["files"][0].update(name=".."), "plain name"),
        (lambda m: m["files"][0].update(sha256="AB" * 32), "lower-case hex"),
        (lambda m: m["files"].append(m["files"][0]), "twice"),
        (lambda m: m["files"].clear(), "0 files"),
    ],
)
def test_a_signed_manifest_must_still_fit_itself(change, words):
    with pytest.raises(Rejected, match=words):
        opened(resigned(change))


def test_a_malformed_manifest_is_not_signed():
    with pytest.raises(Rejected, match="listed"):
        signed(Manifest(files=(msgspec.structs.replace(FILE, size_bytes=CHUNK_BYTES),)))


@given(st.integers(1, 5 * CHUNK_BYTES_MIN))
def test_spans_cover_a_file_without_gap_or_overlap(size_bytes):
    count = chunks_in(size_bytes, CHUNK_BYTES_MIN)
    file = msgspec.structs.replace(
        FILE, size_bytes=size_bytes, chunk_bytes=CHUNK_BYTES_MIN, chunk_sha256s=("01" * 32,) * count
    )
    assert opened(signed(Manifest(files=(file,)))).files == (file,)
    spans = [file.span_of(index) for index in range(count)]
    assert spans[0][0] == 0
    assert all(start + size == following for (start, size), (following, _) in itertools.pairwise(spans))
    assert sum(spans[-1]) == size_bytes
    assert all(size > 0 for _, size in spans)


def test_a_document_says_whose_key_signed_it():
    assert read_kid(signed()) == make_kid(PUBLIC)
    assert read_kid(b"{") == read_kid(b'{"kid": 3}') == read_kid(b"\xff") == ""


def test_a_file_is_found_by_its_hash():
    assert find_file(MANIFEST, "ab" * 32) is MANIFEST.files[0]
    assert find_file(MANIFEST, "cd" * 32) is None


def test_keys_that_differ_in_one_field_have_other_names():
    variants = [
        KEY,
        *(
            msgspec.structs.replace(KEY, **{name: 4096 if name == "context_tokens_max" else "x"})
            for name in ("model", "revision", "chip_kind", "sdk", "parallelism", "context_tokens_max")
        ),
    ]
    assert len({key.key_id for key in variants}) == len(variants)
    assert str(KEY) == "qwen2.5-7b / 3 / rngd / furiosa-2026.3 / tp4 / 8192 tokens"
