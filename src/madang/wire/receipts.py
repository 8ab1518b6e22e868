"""The receipt: a signed statement of where a request was served and what it cost, without its content.

Owns the shape of the document, the bytes that are hashed and signed, and the judgement of a document. Refuses to hold
private keys, to store and to know the time. The site process makes receipts; `madang receipt verify`, and whoever else
knows the federation's public keys, judges them offline.

A usage event becomes a `ReceiptEvent`, whose numbers are whole. Its canonical JSON (RFC 8785: members sorted by name,
no white space) is a leaf of a Merkle tree (RFC 9162 section 2.1). The site signs the tree's root, once for all its
leaves, with its identity key (Ed25519). Leaf and root are hashed and signed behind a tag each, so that neither can pass
for something else that the same key signed.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from madang.core import EventId, Rejected, RequestId, ServiceName, SiteId, TenantId
from madang.model import UsageEvent
from madang.wire.merkle import HASH_BYTES, hash_leaf, root_of_proof

ALG = "ed25519"
RECEIPT_BYTES_MAX = 64 * 1024
"""A receipt has some 1,500 bytes and 32 more for each doubling of its tree."""
CLOCK_SLACK_S = 300.0
"""How far the clocks of a site and of the hub may differ where a signature and a key's validity meet."""
_LEAF_TAG = b"madang-receipt-event-v1\n"
_ROOT_TAG = b"madang-receipt-root-v1\n"
_HEX = re.compile(r"(?:[0-9a-f]{2})+\Z")
_PROOF_MAX = 64
_WHOLE_MAX = 2**53 - 1
"""The largest whole number that every reader of JSON takes exactly (RFC 8785)."""

IsSignedBy = Callable[[bytes, bytes, bytes], bool]
"""Whether a public key (32 bytes) made a signature (64 bytes) over a message."""


class ReceiptEvent(msgspec.Struct, frozen=True, kw_only=True):
    """What a receipt states of a request; as `UsageEvent`, with times in whole microseconds.

    Fields stand in the order of their names: written as they stand, they are canonical. One that a later release adds
    has a default, so that older receipts can be read.
    """

    artifact_sha256: str
    attempt: int
    audio_ms: int
    charge_micro_won: int
    chip_kind: str
    completion_tokens: int
    duration_us: int
    endpoint: str
    entry_site: SiteId
    event_id: EventId
    hops: int
    images: int = 0
    is_estimated: bool
    is_streamed: bool
    key_id: str
    model: str
    outcome: str
    overdraw_micro_won: int
    priority: str
    project_id: str
    prompt_tokens: int
    replica_id: str
    request_id: RequestId
    samples: int = 0
    service: ServiceName
    site: SiteId
    started_at_us: int
    tariff_id: str
    tenant_id: TenantId
    ttft_us: int | None


class TreeRoot(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a site signs of a tree; fields in the order of their names.

    Attributes:
        kid: names the key: the first 16 hex digits of its SHA-256.
        root_sha256: hex.
        size: number of leaves.
        tree_id: counts the site's trees.
    """

    alg: str
    kid: str
    root_sha256: str
    signed_at_us: int
    site: SiteId
    size: int
    tree_id: int
    version: Literal[1]


class InclusionProof(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """That an event is a leaf of a tree; `hashes` in hex, lowest level first."""

    leaf_index: int
    hashes: tuple[str, ...]


class Receipt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The document. `event` stays as it was read, so that what a newer release adds to it is hashed too."""

    kind: Literal["madang.receipt"]
    version: Literal[1]
    event: dict[str, Any]
    proof: InclusionProof
    root: TreeRoot
    public_key: str
    signature: str


class SiteKey(msgspec.Struct, frozen=True, kw_only=True):
    """A site's public key and when it was valid, wall time; None while it is."""

    site: SiteId
    public_key: str
    kid: str
    valid_from_s: float
    revoked_at_s: float | None = None
    alg: str = ALG


class SiteKeys(msgspec.Struct, frozen=True, kw_only=True):
    """The federation's public keys, as a file."""

    kind: Literal["madang.site-keys"]
    version: Literal[1]
    exported_at_s: float
    keys: tuple[SiteKey, ...]


_encoder = msgspec.json.Encoder()
_canonical = msgspec.json.Encoder(order="sorted")


def make_kid(public_key: bytes) -> str:
    """Return the name of a public key."""
    return hashlib.sha256(public_key).hexdigest()[:16]


def make_event(event: UsageEvent) -> ReceiptEvent:
    """Return what a receipt states of a usage event."""
    return ReceiptEvent(
        artifact_sha256=event.artifact_sha256,
        attempt=event.attempt,
        audio_ms=event.audio_ms,
        charge_micro_won=event.charge_micro_won,
        chip_kind=event.chip_kind,
        completion_tokens=event.completion_tokens,
        duration_us=_whole_us(event.duration_s),
        endpoint=event.endpoint,
        entry_site=event.entry_site,
        event_id=event.event_id,
        hops=event.hops,
        images=event.images,
        is_estimated=event.is_estimated,
        is_streamed=event.is_streamed,
        key_id=event.key_id,
        model=event.model,
        outcome=event.outcome,
        overdraw_micro_won=event.overdraw_micro_won,
        priority=event.priority,
        project_id=event.project_id,
        prompt_tokens=event.prompt_tokens,
        replica_id=event.replica_id,
        request_id=event.request_id,
        samples=event.samples,
        service=event.service,
        site=event.site,
        started_at_us=_whole_us(event.started_at_s),
        tariff_id=event.tariff_id,
        tenant_id=event.tenant_id,
        ttft_us=None if event.ttft_s is None else _whole_us(event.ttft_s),
    )


def _whole_us(value_s: float) -> int:
    """Return seconds as microseconds; 0 for what no clock says, since one odd event must not cost its batch."""
    return round(value_s * 1e6) if abs(value_s) < 4e9 else 0


def encode_event(event: ReceiptEvent) -> bytes:
    """Return an event's canonical bytes."""
    return _encoder.encode(event)


def leaf_of(event_bytes: bytes) -> bytes:
    """Return the hash of an event's leaf from its canonical bytes."""
    return hash_leaf(_LEAF_TAG + event_bytes)


def root_bytes(root: TreeRoot) -> bytes:
    """Return what the signature of a tree covers."""
    return _ROOT_TAG + _encoder.encode(root)


def encode_receipt(
    event_bytes: bytes, index: int, proof: Sequence[bytes], root: TreeRoot, public_key: bytes, signature: bytes
) -> bytes:
    """Return the document, as JSON.

    Args:
        event_bytes: canonical bytes of the event.
        index: its place in the tree.
        proof: of that place.
        root: of the tree.
        public_key: of the site.
        signature: over `root_bytes(root)`.
    """
    return _encoder.encode(
        Receipt(
            kind="madang.receipt",
            version=1,
            event=msgspec.json.decode(event_bytes),
            proof=InclusionProof(leaf_index=index, hashes=tuple(one.hex() for one in proof)),
            root=root,
            public_key=public_key.hex(),
            signature=signature.hex(),
        )
    )


class Verdict(NamedTuple):
    """What a receipt that holds states, and under which key."""

    receipt: Receipt
    event: ReceiptEvent
    key: SiteKey


def make_root_statement(
    site: SiteId, tree_id: int, size: int, root_hash: bytes, signed_at_us: int, public_key: bytes
) -> TreeRoot:
    """Return what the holder of `public_key` signs of a tree."""
    return TreeRoot(
        alg=ALG,
        kid=make_kid(public_key),
        root_sha256=root_hash.hex(),
        signed_at_us=signed_at_us,
        site=site,
        size=size,
        tree_id=tree_id,
        version=1,
    )


def make_keys(exported_at_s: float, keys: Sequence[SiteKey]) -> SiteKeys:
    """Return public keys as a file has them."""
    return SiteKeys(kind="madang.site-keys", version=1, exported_at_s=exported_at_s, keys=tuple(keys))


def decode_keys(data: bytes) -> SiteKeys:
    """Return the public keys in a file; raises Rejected."""
    try:
        return msgspec.json.decode(data, type=SiteKeys)
    except msgspec.MsgspecError as error:
        raise Rejected(
            f"this is no file of site keys: {error}", next_step="export one with: madang receipt keys --out FILE"
        ) from error


def verify_receipt(data: bytes, keys: Sequence[SiteKey], is_signed_by: IsSignedBy) -> Verdict:
    """Return what a receipt states if all of it holds; raises Rejected with the reason otherwise.

    Args:
        data: the document, as JSON.
        keys: the federation's public keys, from a source that the caller believes.
        is_signed_by: verifies Ed25519.
    """
    receipt = _read(data)
    try:
        event = msgspec.convert(receipt.event, ReceiptEvent)
    except msgspec.ValidationError as error:
        raise Rejected(f"the receipt's event is malformed: {error}") from error
    _check_whole(receipt.event)
    _check_proof(receipt)
    key = _find_key(receipt, event, keys)
    public_key, signature = _unhex(receipt.public_key, "public_key"), _unhex(receipt.signature, "signature")
    if not is_signed_by(public_key, signature, root_bytes(receipt.root)):
        raise Rejected("the signature does not cover the tree's root: the receipt was changed, or never signed")
    return Verdict(receipt, event, key)


def _read(data: bytes) -> Receipt:
    if len(data) > RECEIPT_BYTES_MAX:
        raise Rejected(f"the receipt has {len(data)} bytes, over {RECEIPT_BYTES_MAX}")
    try:
        return msgspec.json.decode(data, type=Receipt)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Rejected(f"this is no receipt that this release knows: {error}") from error


def _check_whole(event: dict[str, Any]) -> None:
    """Refuse numbers that two readers of JSON may take differently; an event has none."""
    for name, value in event.items():
        is_plain = value is None or isinstance(value, bool | str)
        if not is_plain and not (isinstance(value, int) and abs(value) <= _WHOLE_MAX):
            raise Rejected(f"the receipt's event has {name} = {value!r}: expected text, a whole number, true or false")


def _check_proof(receipt: Receipt) -> None:
    root, proof = receipt.root, receipt.proof
    if len(proof.hashes) > _PROOF_MAX:
        raise Rejected(f"the proof has {len(proof.hashes)} hashes, over {_PROOF_MAX}")
    leaf = leaf_of(_canonical.encode(receipt.event))
    hashes = [_unhex(text, "proof.hashes") for text in proof.hashes]
    found = None
    if all(len(one) == HASH_BYTES for one in hashes):
        found = root_of_proof(leaf, proof.leaf_index, root.size, hashes)
    if found is None:
        raise Rejected(f"the proof does not fit leaf {proof.leaf_index} of a tree of {root.size}")
    if found.hex() != root.root_sha256:
        raise Rejected("the event is not in the signed tree: event, proof or root was changed")


def _find_key(receipt: Receipt, event: ReceiptEvent, keys: Sequence[SiteKey]) -> SiteKey:
    root, text = receipt.root, receipt.public_key
    if root.alg != ALG:
        raise Rejected(f"the receipt is signed with {root.alg!r}; this release knows {ALG}")
    if event.site != root.site:
        raise Rejected(f"the event names site {event.site}, and site {root.site} signed")
    if root.kid != make_kid(_unhex(text, "public_key")):
        raise Rejected("the receipt's public key is not the one that its root names")
    key = next((one for one in keys if one.public_key == text and one.site == root.site), None)
    if key is None:
        others = sorted({one.site for one in keys if one.public_key == text})
        whose = f"it belongs to {', '.join(others)}" if others else "none of the federation's sites has it"
        raise Rejected(f"the receipt's key {root.kid} is not site {root.site}'s: {whose}")
    signed_at_s = root.signed_at_us / 1e6
    if signed_at_s < key.valid_from_s - CLOCK_SLACK_S:
        raise Rejected(f"the receipt was signed before site {root.site} was enrolled with key {root.kid}")
    if key.revoked_at_s is not None and signed_at_s > key.revoked_at_s + CLOCK_SLACK_S:
        raise Rejected(f"the receipt was signed after key {root.kid} of site {root.site} was revoked")
    return key


def _unhex(text: str, what: str) -> bytes:
    if not _HEX.match(text):
        raise Rejected(f"the receipt's {what} is not lower-case hex")
    return bytes.fromhex(text)
