"""Merkle trees as RFC 9162 section 2.1 defines them, with SHA-256: root, inclusion proof, its verification.

Owns the hashing. Refuses to know what leaves mean, to sign and to store. Called by the site process, which builds a
tree over each batch of usage events, and by whoever verifies a receipt.
"""

import hashlib
from collections.abc import Sequence

HASH_BYTES = 32
_LEAF, _NODE = b"\x00", b"\x01"


def hash_leaf(data: bytes) -> bytes:
    """Return the hash of a leaf."""
    return hashlib.sha256(_LEAF + data).digest()


def _hash_node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(_NODE + left + right).digest()


def _raise_level(level: Sequence[bytes]) -> list[bytes]:
    """Return the level above: pairs are joined, a last one alone goes up as it is.

    That gives the RFC's tree: there a tree is split at the largest power of two below its size, so that all but the
    last subtree of a level are full.
    """
    above = [_hash_node(level[index], level[index + 1]) for index in range(0, len(level) - 1, 2)]
    if len(level) % 2:
        above.append(level[-1])
    return above


def make_root(leaves: Sequence[bytes]) -> bytes:
    """Return the root over the hashes of leaves; linear in their number."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    level: Sequence[bytes] = leaves
    while len(level) > 1:
        level = _raise_level(level)
    return level[0]


def make_proof(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """Return the inclusion proof of one leaf, lowest level first; linear in the number of leaves."""
    assert 0 <= index < len(leaves)
    proof: list[bytes] = []
    level: Sequence[bytes] = leaves
    while len(level) > 1:
        sibling = index ^ 1
        if sibling < len(level):
            proof.append(level[sibling])
        level, index = _raise_level(level), index // 2
    return tuple(proof)


def root_of_proof(leaf: bytes, index: int, size: int, proof: Sequence[bytes]) -> bytes | None:
    """Return the root that an inclusion proof leads to, as RFC 9162 section 2.1.3.2; None when it has a wrong shape.

    Args:
        leaf: the leaf's hash.
        index: its place among the leaves, from 0.
        size: number of leaves of the tree.
        proof: as `make_proof` gives it.
    """
    if not 0 <= index < size:
        return None
    place, last, root = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            return None
        if place % 2 or place == last:
            root = _hash_node(sibling, root)
            while place % 2 == 0 and place:
                place, last = place >> 1, last >> 1
        else:
            root = _hash_node(root, sibling)
        place, last = place >> 1, last >> 1
    return root if last == 0 else None
