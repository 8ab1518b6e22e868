"""Sites joining and leaving: rows, credentials, revocation, cordon.

Owns the tables `site` and `site_user`. Refuses to talk to NATS: credentials are minted offline, and a revocation
is carried out by `madang.hub.claims` after the commit.
"""

import re
from urllib.parse import urlsplit

import msgspec
import sqlalchemy as sa

from madang.core import Conflict, Entropy, Rejected, check_site_name
from madang.hub.change import Change
from madang.hub.claims import add_revocations
from madang.hub.seeds import HubSeeds
from madang.hub.tables import SITE, SITE_USER
from madang.model import DataClass, Site
from madang.runtime.admin_http import NotFound
from madang.runtime.nats import KeyRole, format_creds, make_seed, mint_scoped_user, public_key

USERS_PER_SITE_MAX = 20
"""Credentials of one site that are valid at a time; with one more, the oldest is revoked."""

_IDENTITY = re.compile(r"[0-9a-f]{64}\Z")
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"(?=.{{1,253}}\Z)(?:{_LABEL}\.)*{_LABEL}\.?\Z")
_REGION = re.compile(r"[a-z0-9_-]{1,32}\Z")
_NATION = re.compile(r"[a-z]{2}\Z")


class Enrolment(msgspec.Struct, frozen=True, kw_only=True):
    """What a site is enrolled with; the fields are those of a Site."""

    name: str
    region: str
    identity_ed25519: str
    nation: str = "kr"
    tenant_url: str = ""
    peer_url: str = ""
    artifact_url: str = ""
    is_entry_only: bool = False


class SiteGrade(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The highest class of data that a site may hold."""

    data_class_max: DataClass


class Enrolled(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to an enrolment; `creds` is a secret and is not kept."""

    site: Site
    creds: str
    is_new: bool


def enrol_site(change: Change, request: Enrolment, seeds: HubSeeds, entropy: Entropy) -> Enrolled:
    """Add a site, or issue further credentials to the one that has this identity.

    Raises:
        Rejected: a field is malformed.
        Conflict: another identity holds the name and is not revoked.
    """
    _check(request)
    row = change.connection.execute(sa.select(SITE).where(SITE.c.name == request.name)).first()
    live = row if row is not None and not row.is_revoked else None
    if live is not None and live.identity_ed25519 != request.identity_ed25519:
        raise Conflict(
            f"site {request.name} is enrolled with another identity key",
            next_step=f"revoke it first (POST /api/v1/sites/{request.name}/revoke), or choose another name",
        )
    if row is not None and row.is_revoked and row.identity_ed25519 == request.identity_ed25519:
        raise Conflict(
            f"site {request.name} was revoked with this identity key",
            next_step="make a new identity key at the site, then enrol again",
        )
    old = msgspec.json.decode(live.spec, type=Site) if live is not None else None
    fields = msgspec.structs.asdict(request)
    site = Site(**fields)
    if old is not None:
        # What the operator said of a site is not the site's to say anew.
        site = msgspec.structs.replace(site, is_cordoned=old.is_cordoned, data_class_max=old.data_class_max)
    if old != site:
        _write_site(change, site, is_known=row is not None)
        change.audit("site.enrol", site.name, site)
    return Enrolled(site=site, creds=_issue_user(change, site, seeds, entropy), is_new=live is None)


def _check(request: Enrolment) -> None:
    check_site_name(request.name)
    checks = (
        ("identity_ed25519", _IDENTITY, "64 lower-case hex digits"),
        ("region", _REGION, "1 to 32 of a-z, 0-9, '_' and '-'"),
        ("nation", _NATION, "a two-letter ISO 3166-1 code in lower case"),
    )
    for field, pattern, expected in checks:
        if not pattern.match(getattr(request, field)):
            raise Rejected(f"site {request.name}: {field} is {getattr(request, field)!r}, expected {expected}")
    for field in ("tenant_url", "peer_url", "artifact_url"):
        url = getattr(request, field)
        if url and not _is_origin(url):
            raise Rejected(f"site {request.name}: {field} is {url!r}, expected http(s)://host:port without a path")


def _is_origin(url: str) -> bool:
    """Return whether a URL is scheme, host and port, the host one that a resolver takes (RFC 1123 section 2.1)."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return False
    is_plain = url == f"{parts.scheme}://{parts.netloc}" and "@" not in parts.netloc and port != 0
    return parts.scheme in ("http", "https") and is_plain and (":" in host or _HOST.match(host) is not None)


def _write_site(change: Change, site: Site, *, is_known: bool) -> None:
    values = {
        "spec": msgspec.json.encode(site).decode(),
        "identity_ed25519": site.identity_ed25519,
        "is_revoked": False,
        "enrolled_at_s": change.now_s,
    }
    if is_known:
        change.connection.execute(SITE.update().where(SITE.c.name == site.name).values(**values))
    else:
        change.connection.execute(SITE.insert().values(name=site.name, **values))
    change.touch_all()


def _issue_user(change: Change, site: Site, seeds: HubSeeds, entropy: Entropy) -> str:
    seed = make_seed(KeyRole.USER, entropy.token_bytes(32))
    user, issued_at_s = public_key(seed), int(change.now_s)
    token = mint_scoped_user(seeds.role, seeds.account_key, user, site.name, issued_at_s=issued_at_s)
    change.connection.execute(
        SITE_USER.insert().values(user_key=user, site=site.name, issued_at_s=issued_at_s, is_revoked=False)
    )
    change.audit("site.issue_creds", site.name, {"user_key": user})
    live = _live_users(change.connection, site.name)
    if len(live) > USERS_PER_SITE_MAX:
        _revoke_users(change, seeds, [key for key in live if key != user][: len(live) - USERS_PER_SITE_MAX])
    return format_creds(token, seed)


def _live_users(connection: sa.Connection, site: str) -> list[str]:
    query = sa.select(SITE_USER.c.user_key).where(SITE_USER.c.site == site, SITE_USER.c.is_revoked.is_(False))
    return list(connection.scalars(query.order_by(SITE_USER.c.issued_at_s, SITE_USER.c.user_key)))


def _revoke_users(change: Change, seeds: HubSeeds, users: list[str]) -> None:
    change.connection.execute(SITE_USER.update().where(SITE_USER.c.user_key.in_(users)).values(is_revoked=True))
    add_revocations(change.connection, seeds, users, change.now_s)


def revoke_site(change: Change, name: str, seeds: HubSeeds) -> Site:
    """Shut a site out: all its credentials are revoked and nobody is told of it any more.

    It keeps serving its own clients from what it has; that is what autonomy means. Raises NotFound.
    """
    site = read_site(change.connection, name)
    _revoke_users(change, seeds, _live_users(change.connection, name))
    change.connection.execute(SITE.update().where(SITE.c.name == name).values(is_revoked=True))
    change.touch_all()
    change.audit("site.revoke", name, {"identity_ed25519": site.identity_ed25519})
    return site


def set_cordon(change: Change, name: str, *, is_cordoned: bool) -> Site:
    """Allow or refuse new placements at a site; what runs there stays. Raises NotFound."""
    old = read_site(change.connection, name)
    site = msgspec.structs.replace(old, is_cordoned=is_cordoned)
    if site != old:
        _rewrite_site(change, site)
        change.audit("site.cordon" if is_cordoned else "site.uncordon", name, {})
    return site


def set_data_class(change: Change, name: str, data_class_max: DataClass) -> Site:
    """Say which class of data a site may hold at most; tenants above it are withdrawn from it. Raises NotFound."""
    old = read_site(change.connection, name)
    site = msgspec.structs.replace(old, data_class_max=data_class_max)
    if site != old:
        _rewrite_site(change, site)
        change.audit("site.data_class", name, {"data_class_max": data_class_max, "was": old.data_class_max})
    return site


def _rewrite_site(change: Change, site: Site) -> None:
    spec = msgspec.json.encode(site).decode()
    change.connection.execute(SITE.update().where(SITE.c.name == site.name).values(spec=spec))
    # What every site holds, and where services run, may change: its own item alone would not do.
    change.touch_all()


def read_site(connection: sa.Connection, name: str) -> Site:
    """Return a live site; raises NotFound."""
    spec = connection.scalar(sa.select(SITE.c.spec).where(SITE.c.name == name, SITE.c.is_revoked.is_(False)))
    if spec is None:
        raise NotFound(f"site {name!r} is not enrolled", next_step="GET /api/v1/sites lists those that are")
    return msgspec.json.decode(spec, type=Site)
