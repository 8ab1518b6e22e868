"""`madang receipt` and `madang access-log`: fetch, verify without a network, refuse what was changed."""

import json

import msgspec
import pytest
from tests.cli.fake_hub import FakeHub
from tests.site.test_access_archive import Site, record
from tests.site.usage_files import make_event
from tests.wire.receipt_documents import make_document, site_key

from madang.wire.receipts import SiteKey, make_keys, make_kid

EVENT = make_event(5, charge_micro_won=1_500_000, tariff_id="chat-2026")
DOCUMENT = make_document([make_event(1), EVENT, make_event(2)], 1)
KEY = "mdg_k1_" + "A" * 43


@pytest.fixture
def files(tmp_path):
    receipt, keys = tmp_path / "receipt.json", tmp_path / "keys.json"
    receipt.write_bytes(DOCUMENT)
    keys.write_bytes(msgspec.json.encode(make_keys(1.0, [site_key()])))
    return receipt, keys


def test_a_receipt_verifies_with_the_keys_alone(madang, files):
    done = madang("receipt", "verify", str(files[0]), "--keys", str(files[1]))
    assert done.exit_code == 0, done.output
    assert "valid: signed by site daegu" in done.stdout
    assert "1.5 won, tariff chat-2026" in done.stdout
    as_json = json.loads(madang("receipt", "verify", str(files[0]), "--keys", str(files[1]), "--json").stdout)
    assert (as_json["is_valid"], as_json["site"], as_json["event"]["completion_tokens"]) == (True, "daegu", 5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text.replace(b'"completion_tokens":5', b'"completion_tokens":4'), "not in the signed tree"),
        (lambda text: text.replace(b'"tree_id":7', b'"tree_id":8'), "signature does not cover"),
        (lambda text: text.replace(b'"site":"daegu"', b'"site":"gumi"'), "error:"),
        (lambda text: text[:-1], "no receipt that this release knows"),
        (lambda _: b"{}", "no receipt that this release knows"),
    ],
)
def test_a_changed_receipt_fails_with_the_reason(madang, files, change, reason):
    files[0].write_bytes(change(DOCUMENT))
    done = madang("receipt", "verify", str(files[0]), "--keys", str(files[1]))
    assert done.exit_code == 1
    assert reason in done.output
    assert "valid:" not in done.stdout


def test_a_key_that_is_not_the_sites_fails(madang, files):
    files[1].write_bytes(msgspec.json.encode(make_keys(1.0, [site_key(site="gumi")])))
    done = madang("receipt", "verify", str(files[0]), "--keys", str(files[1]))
    assert (done.exit_code, "belongs to gumi" in done.output) == (1, True)


def test_missing_and_wrong_files_are_named(madang, files, tmp_path):
    for words in ((str(tmp_path / "none"), "--keys", str(files[1])), (str(files[0]), "--keys", str(tmp_path / "none"))):
        done = madang("receipt", "verify", *words)
        assert (done.exit_code, "none cannot be read" in done.output) == (1, True)
    done = madang("receipt", "verify", str(files[0]), "--keys", str(files[0]))
    assert (done.exit_code, "madang receipt keys" in done.output) == (1, True)


def test_keys_come_from_the_hub_and_serve_offline(madang, ask, hub, files, tmp_path):
    hub.answers["GET", "/api/v1/site-keys"] = (200, msgspec.json.decode(files[1].read_bytes()))
    out = tmp_path / "exported.json"
    assert "1 public keys" in ask("receipt", "keys", "--out", str(out)).stdout
    assert madang("receipt", "verify", str(files[0]), "--keys", str(out)).exit_code == 0
    assert ask("receipt", "verify", str(files[0])).exit_code == 0
    assert json.loads(ask("receipt", "keys").stdout)["keys"][0]["site"] == "daegu"


def test_without_keys_and_without_a_hub_nothing_is_called_valid(madang, files):
    done = madang("receipt", "verify", str(files[0]))
    assert done.exit_code == 1
    assert "valid:" not in done.stdout


def test_a_receipt_is_fetched_waited_for_and_written(madang, tmp_path):
    api = FakeHub(token=KEY)
    path = f"/v1/receipts/{EVENT.event_id}"
    try:
        api.answers["GET", path] = (404, FakeHub.error("not_yet", "no receipt yet"))
        words = ("receipt", "show", EVENT.event_id, "--url", api.url, "--key", KEY)
        done = madang(*words, "--wait", "0.6")
        assert (done.exit_code, "no receipt yet" in done.output) == (1, True)
        assert len(api.calls) >= 2
        api.answers["GET", path] = (200, DOCUMENT)
        out = tmp_path / "r.json"
        assert madang(*words, "--out", str(out)).exit_code == 0
        assert msgspec.json.decode(out.read_bytes()) == msgspec.json.decode(DOCUMENT)
        assert json.loads(madang(*words).stdout)["kind"] == "madang.receipt"
        api.answers["GET", path] = (404, FakeHub.error("invalid_request", "no receipt at site daegu"))
        count = len(api.calls)
        done = madang(*words)
        assert (done.exit_code, len(api.calls) - count) == (1, 1)
        assert "no receipt at site daegu" in done.output
        assert KEY not in done.output
    finally:
        api.close()
    done = madang(*words)
    assert (done.exit_code, "does not answer" in done.output) == (1, True)


def test_a_copy_of_access_records_is_verified_anywhere(madang, tmp_path):
    site = Site(tmp_path)
    public_key = site.identity.public_key().public_bytes_raw()
    keys = tmp_path / "keys.json"
    key = SiteKey(site="daegu", public_key=public_key.hex(), kid=make_kid(public_key), valid_from_s=0.0)
    keys.write_bytes(msgspec.json.encode(make_keys(1.0, [key])))
    for number in range(3):
        site.seal(record(number))
    site.store.close()
    words = ("access-log", "verify", "--site", "daegu", "--dir", str(site.folder), "--keys", str(keys))
    done = madang(*words)
    assert done.exit_code == 0, done.output
    assert "intact: 3 records under 3 seals" in done.stdout
    sealed = site.folder / "sealed" / "00000002.acc.z"
    sealed.write_bytes(sealed.read_bytes()[:-2])
    done = madang(*words, "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["problems"]
    keys.write_bytes(msgspec.json.encode(make_keys(1.0, [site_key()])))
    assert "which is not known here" in madang(*words).output
    assert madang("access-log", "verify", "--site", "daegu", "--dir", str(site.folder)).exit_code == 2
