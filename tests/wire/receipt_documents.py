"""Receipts for tests, and an implementation of their verification that shares nothing with ours.

It follows the record `docs/adr/0017-receipts.md`, with `hashlib`, `json` and the `cryptography` package alone.
"""

import hashlib
import json

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from madang.core import SiteId
from madang.wire.merkle import make_proof, make_root
from madang.wire.receipts import (
    SiteKey,
    encode_event,
    encode_receipt,
    leaf_of,
    make_event,
    make_kid,
    make_root_statement,
    root_bytes,
)

IDENTITY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC_KEY = IDENTITY.public_key().public_bytes_raw()
SIGNED_AT_S = 1_790_000_000.0


def site_key(**changes):
    values = {
        "site": SiteId("daegu"),
        "public_key": PUBLIC_KEY.hex(),
        "kid": make_kid(PUBLIC_KEY),
        "valid_from_s": SIGNED_AT_S - 1000,
    }
    return SiteKey(**{**values, **changes})


def make_document(events, index, identity=IDENTITY, **changes):
    """Return the receipt of one of several usage events, as bytes; `changes` are of the signed root."""
    leaves = [encode_event(make_event(event)) for event in events]
    hashes = [leaf_of(leaf) for leaf in leaves]
    public_key = identity.public_key().public_bytes_raw()
    root = make_root_statement(SiteId("daegu"), 7, len(leaves), make_root(hashes), round(SIGNED_AT_S * 1e6), public_key)
    root = msgspec.structs.replace(root, **changes)
    signature = identity.sign(root_bytes(root))
    return encode_receipt(leaves[index], index, make_proof(hashes, index), root, public_key, signature)


def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def check_independently(text, site_public_key_hex):
    """Return the event if a receipt holds; raises whatever goes wrong."""
    receipt = json.loads(text)
    assert (receipt["kind"], receipt["version"]) == ("madang.receipt", 1)
    node = hashlib.sha256(b"\x00madang-receipt-event-v1\n" + canonical(receipt["event"])).digest()
    # Walk down from the root to learn on which side each hash stands, then up.
    first, size, sides = receipt["proof"]["leaf_index"], receipt["root"]["size"], []
    while size > 1:
        split = 1 << ((size - 1).bit_length() - 1)
        sides.append("right" if first < split else "left")
        first, size = (first, split) if first < split else (first - split, size - split)
    hashes = [bytes.fromhex(one) for one in receipt["proof"]["hashes"]]
    assert len(hashes) == len(sides)
    for side, other in zip(reversed(sides), hashes, strict=True):
        pair = node + other if side == "right" else other + node
        node = hashlib.sha256(b"\x01" + pair).digest()
    assert node.hex() == receipt["root"]["root_sha256"]
    assert receipt["public_key"] == site_public_key_hex
    assert receipt["root"]["kid"] == hashlib.sha256(bytes.fromhex(site_public_key_hex)).hexdigest()[:16]
    assert receipt["root"]["site"] == receipt["event"]["site"]
    signed = b"madang-receipt-root-v1\n" + canonical(receipt["root"])
    Ed25519PublicKey.from_public_bytes(bytes.fromhex(site_public_key_hex)).verify(
        bytes.fromhex(receipt["signature"]), signed
    )
    return receipt["event"]
