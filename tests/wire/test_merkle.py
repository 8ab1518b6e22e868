"""Merkle trees against the RFC's definition written out, and against the vectors of its public implementations."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.wire.merkle import hash_leaf, make_proof, make_root, root_of_proof

# The inputs and roots that Certificate Transparency's own implementations are tested with.
INPUTS = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = (
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)


def oracle_root(data):
    """MTH of RFC 9162 section 2.1.1, as it is written there: by splitting, not by levels."""
    if not data:
        return hashlib.sha256().digest()
    if len(data) == 1:
        return hashlib.sha256(b"\x00" + data[0]).digest()
    split = 1
    while split * 2 < len(data):
        split *= 2
    return hashlib.sha256(b"\x01" + oracle_root(data[:split]) + oracle_root(data[split:])).digest()


def oracle_path(data, index):
    """PATH of RFC 9162 section 2.1.3.1."""
    if len(data) == 1:
        return []
    split = 1
    while split * 2 < len(data):
        split *= 2
    if index < split:
        return [*oracle_path(data[:split], index), oracle_root(data[split:])]
    return [*oracle_path(data[split:], index - split), oracle_root(data[:split])]


@pytest.mark.parametrize("size", range(9))
def test_roots_are_those_of_other_implementations(size):
    assert make_root([hash_leaf(data) for data in INPUTS[:size]]).hex() == ROOTS[size]


@given(st.lists(st.binary(max_size=8), min_size=1, max_size=70), st.data())
def test_root_and_proof_are_what_the_rfc_writes(data, draw):
    index = draw.draw(st.integers(0, len(data) - 1))
    leaves = [hash_leaf(one) for one in data]
    root, proof = make_root(leaves), make_proof(leaves, index)
    assert root == oracle_root(data)
    assert list(proof) == oracle_path(data, index)
    assert root_of_proof(leaves[index], index, len(leaves), proof) == root


@given(st.integers(1, 40), st.data())
def test_a_proof_holds_for_nothing_else(size, draw):
    leaves = [hash_leaf(bytes([number])) for number in range(size)]
    index = draw.draw(st.integers(0, size - 1))
    root, proof = make_root(leaves), list(make_proof(leaves, index))
    others = [
        root_of_proof(hash_leaf(b"other"), index, size, proof),
        root_of_proof(leaves[index], index, size, [*proof, hash_leaf(b"more")]),
        *(root_of_proof(leaves[index], place, size, proof) for place in range(-1, size + 2) if place != index),
    ]
    if proof:
        others.append(root_of_proof(leaves[index], index, size, proof[:-1]))
        place = draw.draw(st.integers(0, len(proof) - 1))
        others.append(root_of_proof(leaves[index], index, size, [*proof[:place], hash_leaf(b"x"), *proof[place + 1 :]]))
    assert root not in others


def test_a_leaf_cannot_pass_for_a_node():
    left, right = hash_leaf(b"a"), hash_leaf(b"b")
    assert hash_leaf(left + right) != make_root([left, right])
