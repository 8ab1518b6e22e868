"""Receipts: what they state, that an implementation apart agrees, and that no changed one is believed."""

import json
import math
import re

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.site.usage_files import make_event as usage_event
from tests.wire.receipt_documents import (
    PUBLIC_KEY,
    SIGNED_AT_S,
    canonical,
    check_independently,
    make_document,
    site_key,
)

from madang.core import Rejected
from madang.model import UsageEvent
from madang.runtime.signing import is_signed_by
from madang.wire.receipts import (
    RECEIPT_BYTES_MAX,
    ReceiptEvent,
    TreeRoot,
    decode_keys,
    encode_event,
    make_event,
    make_keys,
    verify_receipt,
)

EVENTS = [
    usage_event(number, service='대화 \u2028\x7f\n"\\/', ttft_s=0.25, duration_s=1.5, charge_micro_won=123_456)
    for number in range(5)
]


def verify(text, *keys):
    return verify_receipt(text, keys or (site_key(),), is_signed_by)


def test_a_receipt_holds_and_states_what_was_used():
    verdict = verify(make_document(EVENTS, 3))
    assert verdict.event.completion_tokens == 3
    assert (verdict.event.ttft_us, verdict.event.duration_us) == (250_000, 1_500_000)
    assert verdict.key.site == "daegu"


@pytest.mark.parametrize("index", range(5))
def test_an_implementation_apart_agrees(index):
    event = check_independently(make_document(EVENTS, index), PUBLIC_KEY.hex())
    assert event["completion_tokens"] == index


def test_fields_stand_in_the_order_of_their_names():
    """What is written without sorting is canonical only because of this."""
    for kind in (ReceiptEvent, TreeRoot):
        names = [field.name for field in msgspec.structs.fields(kind)]
        assert names == sorted(names)


def test_a_receipt_states_every_field_of_a_usage_event():
    """A field that a release adds to usage is added to receipts, or named here with the reason why not."""
    known = {field.name for field in msgspec.structs.fields(ReceiptEvent)}
    renamed = {"started_at_s": "started_at_us", "ttft_s": "ttft_us", "duration_s": "duration_us"}
    for field in msgspec.structs.fields(UsageEvent):
        assert renamed.get(field.name, field.name) in known, f"{field.name} is not in receipts"


TEXT = st.text(st.characters(blacklist_categories=("Cs",)), max_size=20)


@given(service=TEXT, model=TEXT, charge=st.integers(0, 2**53 - 1), start_s=st.floats(), is_streamed=st.booleans())
def test_canonical_bytes_are_those_of_another_writer(service, model, charge, start_s, is_streamed):
    made = make_event(
        usage_event(
            1, service=service, model=model, charge_micro_won=charge, started_at_s=start_s, is_streamed=is_streamed
        )
    )
    text = encode_event(made)
    assert text == canonical(json.loads(text))
    assert b"\n" not in text
    assert made.started_at_us == 0 or math.isclose(made.started_at_us / 1e6, start_s, abs_tol=1e-6)


def leaves_of(value, path=()):
    """Yield the path of every value in a document that is not a container."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield path
        return
    for name, item in items:
        yield from leaves_of(item, (*path, name))


def flipped(value):
    """Return other values of the same kind, and of another."""
    if isinstance(value, bool):
        return [not value, int(value), None]
    if isinstance(value, int):
        return [value + 1, -value - 1, float(value), str(value), value ^ (1 << 40), None]
    if value is None:
        return [0, "", False]
    others = [value + "0", value[:-1] if value else "x", "", None, 1]
    if value:
        others += [chr(ord(value[0]) ^ 1) + value[1:], value[:-1] + chr(ord(value[-1]) ^ 1), value.upper() + " "]
    if re.search("[a-f]", value) and value.upper() != value:
        others.append(value.upper())
    return [other for other in others if other != value]


DOCUMENT = make_document(EVENTS, 2)

GOLDEN = (
    b'{"kind":"madang.receipt","version":1,"event":{"artifact_sha256":"","attempt":1,"audio_ms":0,"charge_micro_won"'
    b':0,"chip_kind":"","completion_tokens":1,"duration_us":0,"endpoint":"/v1/chat/completions","entry_site":"daegu"'
    b',"event_id":"daegu-00000000000000000000000000000001.1","hops":0,"is_estimated":false,"is_streamed":false,"key_'
    b'id":"k1","model":"m","outcome":"completed","overdraw_micro_won":0,"priority":"interactive","project_id":"","pr'
    b'ompt_tokens":10,"replica_id":"","request_id":"daegu-00000000000000000000000000000001","service":"chat","site":'
    b'"daegu","started_at_us":1728000000000000,"tariff_id":"","tenant_id":"t1","ttft_us":null},"proof":{"leaf_index"'
    b':0,"hashes":["a8aa4175f4c802bbf5acb1dbf490a7af6af7cd4de3acb77f0a1872aa74469890"]},"root":{"alg":"ed25519","kid'
    b'":"56475aa75463474c","root_sha256":"a1f6d4d639f9f1cd87dd1e77e59d2ecf5eb953663a490333d0e619be135200dc","signed_'
    b'at_us":1790000000000000,"site":"daegu","size":2,"tree_id":7,"version":1},"public_key":"03a107bff3ce10be1d70dd1'
    b'8e74bc09967e4d6309ba50d5f1ddc8664125531b8","signature":"5c70a824ba075fe30b9e577406fc0bc734491afb75851389ff4615'
    b'3e18f8fd3e2b1690b2d8418668f1c67494271a063349b8e71bc864e219b89e561927f20b09"}'
)


@pytest.mark.parametrize("path", list(leaves_of(json.loads(DOCUMENT))), ids=lambda path: ".".join(map(str, path)))
def test_every_changed_value_is_caught(path):
    for other in flipped(_at(json.loads(DOCUMENT), path)):
        document = json.loads(DOCUMENT)
        _at(document, path[:-1])[path[-1]] = other
        with pytest.raises(Rejected):
            verify(json.dumps(document).encode())


def _at(value, path):
    for name in path:
        value = value[name]
    return value


@pytest.mark.parametrize("place", ["", "event", "proof", "root"])
def test_added_and_missing_members_are_caught(place):
    for name in [*_at(json.loads(DOCUMENT), [place] if place else []), "more"]:
        document = json.loads(DOCUMENT)
        part = _at(document, [place] if place else [])
        if name == "more":
            part["more"] = 1
        else:
            del part[name]
        with pytest.raises(Rejected):
            verify(json.dumps(document).encode())


@settings(max_examples=300)
@given(st.integers(0, len(DOCUMENT) - 1), st.integers(1, 255))
def test_no_changed_byte_makes_another_statement(place, change):
    data = bytearray(DOCUMENT)
    data[place] ^= change
    try:
        verdict = verify(bytes(data))
    except Rejected:
        return
    # A byte outside of all values may be another white space, never another fact.
    assert verdict == verify(DOCUMENT)


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_and_never_break_the_reader(data):
    for reader in (verify, decode_keys):
        with pytest.raises(Rejected):
            reader(data)


def test_a_document_without_bound_is_refused_unread():
    with pytest.raises(Rejected, match="over"):
        verify(DOCUMENT + b" " * RECEIPT_BYTES_MAX)


def test_a_number_that_readers_take_differently_is_refused():
    document = json.loads(DOCUMENT)
    document["event"]["charge_micro_won"] = 2**53
    with pytest.raises(Rejected, match="whole number"):
        verify(json.dumps(document).encode())


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ((site_key(site="gumi"),), "not site daegu's: it belongs to gumi"),
        ((site_key(public_key="00" * 32),), "none of the federation's sites"),
        ((site_key(revoked_at_s=SIGNED_AT_S - 400),), "after key .* was revoked"),
        ((site_key(valid_from_s=SIGNED_AT_S + 400),), "before site daegu was enrolled"),
    ],
)
def test_a_key_that_is_not_the_sites_is_refused(keys, reason):
    with pytest.raises(Rejected, match=reason):
        verify(DOCUMENT, *keys)


def test_a_key_that_was_revoked_later_still_vouches_for_what_it_signed():
    assert verify(DOCUMENT, site_key(revoked_at_s=SIGNED_AT_S + 1000)).key.revoked_at_s == SIGNED_AT_S + 1000


def test_a_site_cannot_sign_for_another():
    """A stranger's key, or another site's, signs a tree that names daegu."""
    stranger = Ed25519PrivateKey.generate()
    with pytest.raises(Rejected, match="is not site daegu's"):
        verify(make_document(EVENTS, 0, stranger))
    with pytest.raises(Rejected, match="names site daegu, and site gumi signed"):
        verify(make_document(EVENTS, 0, site="gumi"), site_key(site="gumi"))


def test_another_algorithm_is_refused_by_name():
    with pytest.raises(Rejected, match="'none'"):
        verify(make_document(EVENTS, 0, alg="none"))


def test_keys_travel_as_a_file():
    found = make_keys(1.0, [site_key()])
    assert decode_keys(msgspec.json.format(msgspec.json.encode(found))) == found


def test_a_receipt_of_the_first_release_verifies_for_ever():
    """Receipts in tenants' hands must hold with every later release."""
    verdict = verify(GOLDEN)
    assert verdict.event.request_id == "daegu-00000000000000000000000000000001"
