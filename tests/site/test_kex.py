"""Key agreement: both sides derive the same, nobody else's offer is taken, and rotation never leaves a gap."""

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from madang.core import Rejected
from madang.site.kex import (
    EPOCH_LIFE_S,
    EPOCH_ROTATE_S,
    EPOCH_SETTLE_S,
    EPOCHS_MAX,
    KeyRing,
    check_offer,
    choose_order,
    decode_ring,
    derive_session,
    identity_hex,
    load_identity,
    make_offers,
    rotate,
)

DAEGU = Ed25519PrivateKey.from_private_bytes(b"d" * 32)
GUMI = Ed25519PrivateKey.from_private_bytes(b"g" * 32)


def make_ring(boot, now_s=1000.0, secret=b"s"):
    return rotate(KeyRing(), boot_id=boot, secret=(secret * 32)[:32], now_s=now_s)


def offer_of(ring, identity, site):
    return make_offers(ring, identity, site)[0]


def test_both_sides_derive_the_same_session():
    daegu, gumi = make_ring("bootd", secret=b"1"), make_ring("bootg", now_s=1005.0, secret=b"2")
    ours = derive_session("daegu", daegu.epochs[0], "gumi", offer_of(gumi, GUMI, "gumi"))
    theirs = derive_session("gumi", gumi.epochs[0], "daegu", offer_of(daegu, DAEGU, "daegu"))
    assert ours == theirs
    assert len(ours.key) == 32
    assert ours.kid == f"{daegu.epochs[0].name}/{gumi.epochs[0].name}"
    assert ours.expires_at_s == daegu.epochs[0].expires_at_s


def test_another_epoch_or_another_pair_has_another_key():
    gumi = make_ring("bootg", secret=b"2")
    offer = offer_of(gumi, GUMI, "gumi")
    epochs = [make_ring("b", secret=secret).epochs[0] for secret in (b"1", b"3")]
    keys = {derive_session(site, epoch, "gumi", offer).key for epoch in epochs for site in ("daegu", "gwangju")}
    assert len(keys) == 4


def test_a_good_offer_passes_and_every_altered_one_is_refused():
    offer = offer_of(make_ring("bootg"), GUMI, "gumi")
    check_offer(offer, "gumi", identity_hex(GUMI), now_s=1001.0)
    altered = [
        {"epoch": "other-0"},
        {"epoch": "b\nad"},
        {"x25519": "00" * 32},
        {"expires_at_s": offer.expires_at_s + 1},
        {"signature": "00" * 64},
        {"signature": "not hex"},
        {"alg": "none"},
    ]
    for change in altered:
        with pytest.raises(Rejected):
            check_offer(msgspec.structs.replace(offer, **change), "gumi", identity_hex(GUMI), now_s=1001.0)
    with pytest.raises(Rejected, match="identity"):
        check_offer(offer, "gumi", identity_hex(DAEGU), now_s=1001.0)
    with pytest.raises(Rejected, match="identity"):
        check_offer(offer, "gwangju", identity_hex(GUMI), now_s=1001.0)
    with pytest.raises(Rejected, match="no identity"):
        check_offer(offer, "gumi", "", now_s=1001.0)
    with pytest.raises(Rejected, match="expired"):
        check_offer(offer, "gumi", identity_hex(GUMI), now_s=offer.expires_at_s)


@pytest.mark.parametrize("public", ["00" * 32, "01" + "00" * 31, "zz", "00"])
def test_a_key_that_would_make_the_secret_public_is_refused(public):
    offer = msgspec.structs.replace(offer_of(make_ring("bootg"), GUMI, "gumi"), x25519=public)
    with pytest.raises(Rejected, match="X25519"):
        derive_session("daegu", make_ring("bootd").epochs[0], "gumi", offer)


@given(st.lists(st.floats(0, 3 * EPOCH_LIFE_S), max_size=20))
def test_there_is_always_a_live_epoch_and_names_never_come_again(steps):
    ring, now_s, names = KeyRing(), 1e9, {}
    for step_s in steps:
        now_s += step_s
        ring = rotate(ring, boot_id="b", secret=b"x" * 32, now_s=now_s)
        assert 1 <= len(ring.epochs) <= EPOCHS_MAX
        assert now_s - ring.epochs[0].created_at_s < EPOCH_ROTATE_S
        assert all(epoch.expires_at_s > now_s for epoch in ring.epochs)
        for epoch in ring.epochs:
            assert names.setdefault(epoch.name, epoch.created_at_s) == epoch.created_at_s


def test_a_peer_that_looks_once_an_hour_always_finds_an_epoch_it_knows():
    ring = make_ring("b", now_s=0.0)
    for hour in range(1, 30):
        after = rotate(ring, boot_id="b", secret=b"x" * 32, now_s=hour * EPOCH_ROTATE_S - 1)
        assert {epoch.name for epoch in ring.epochs} & {epoch.name for epoch in after.epochs}
        ring = after


def test_an_epoch_from_the_future_is_dropped_when_the_clock_is_set_back():
    wrong = make_ring("b", now_s=4e9)
    right = rotate(wrong, boot_id="b", secret=b"x" * 32, now_s=2e9)
    assert [epoch.created_at_s for epoch in right.epochs] == [2e9]


def test_nothing_changes_while_nothing_is_due():
    ring = make_ring("b", now_s=0.0)
    assert rotate(ring, boot_id="b", secret=b"y" * 32, now_s=EPOCH_ROTATE_S - 1) is ring


def test_a_new_epoch_signs_first_only_when_it_has_settled():
    old = make_ring("b", now_s=0.0)
    ring = rotate(old, boot_id="b", secret=b"y" * 32, now_s=EPOCH_ROTATE_S)
    offer = offer_of(make_ring("g", now_s=EPOCH_ROTATE_S), GUMI, "gumi")
    sessions = [(epoch, 0, derive_session("daegu", epoch, "gumi", offer)) for epoch in ring.epochs]
    fresh = choose_order(sessions, now_s=EPOCH_ROTATE_S + 1)
    settled = choose_order(sessions, now_s=EPOCH_ROTATE_S + EPOCH_SETTLE_S)
    assert fresh[0].kid.startswith(old.epochs[0].name)
    assert settled[0].kid.startswith(ring.epochs[0].name)
    assert len(fresh) == len(settled) == 2
    assert choose_order(sessions, now_s=1e9) == ()


def test_the_ring_survives_its_file_and_shows_no_secret():
    ring = make_ring("b")
    assert decode_ring(msgspec.json.encode(ring)) == ring
    assert ring.epochs[0].secret_hex not in repr(ring)
    for damaged in (b"", b"{}x", b'{"epochs":[{}]}', b'{"version":2}'):
        with pytest.raises(Rejected):
            decode_ring(damaged)


def test_an_identity_is_64_hex_digits():
    assert identity_hex(load_identity(b"64" * 32)) == identity_hex(DAEGU)
    for text in (b"", b"zz" * 32, b"64" * 31, "가".encode()):
        with pytest.raises(Rejected):
            load_identity(text)
