"""The public keys of sites, for receipts: all that ever signed, with their time."""

import hashlib

from tests.hub.test_hub_api import SITE, api, ok  # noqa: F401 - a fixture

from madang.wire.receipts import decode_keys


def keys_of(call):
    return {key.public_key[:1]: key for key in decode_keys(call("GET", "/api/v1/site-keys").content).keys}


def test_keys_of_live_and_revoked_sites_are_there_with_their_time(api):  # noqa: F811
    assert decode_keys(api("GET", "/api/v1/site-keys").content).keys == ()
    ok(api("POST", "/api/v1/sites", SITE), 201)
    first = keys_of(api)["a"]
    assert (first.site, first.revoked_at_s) == ("daegu", None)
    assert first.kid == hashlib.sha256(bytes.fromhex("a" * 64)).hexdigest()[:16]
    # A change of address is no new key.
    ok(api("POST", "/api/v1/sites", {**SITE, "tenant_url": "http://127.0.0.1:1"}))
    assert keys_of(api)["a"] == first
    ok(api("POST", "/api/v1/sites/daegu/revoke"))
    ok(api("POST", "/api/v1/sites", {**SITE, "identity_ed25519": "b" * 64}), 201)
    found = keys_of(api)
    assert found["a"].valid_from_s == first.valid_from_s
    assert found["a"].revoked_at_s >= first.valid_from_s
    assert (found["b"].site, found["b"].revoked_at_s) == ("daegu", None)
    assert found["b"].valid_from_s >= found["a"].revoked_at_s


def test_the_keys_are_behind_the_token(api):  # noqa: F811
    assert api("GET", "/api/v1/site-keys", token="").status_code == 401
