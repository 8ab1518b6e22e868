"""Changes of keys and of what each of them may do.

Owns the tables `api_key` and `key_policy` and their rules. Refuses to know HTTP and NATS, and to enforce a limit:
gateways do. Every function that changes anything runs inside a Change.
"""

import base64
import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from madang.core import Conflict, Entropy, KeyId, ProjectId, Rejected, ServiceName, SiteId, check_entity_id
from madang.hub.change import Change
from madang.hub.desired_store import read_key_policies, read_services, read_sites
from madang.hub.tables import API_KEY, KEY_POLICY
from madang.hub.tenancy_admin import read_project, read_tenant
from madang.model import KeyPolicy, PriorityClass, Tenant
from madang.policy.desired import KIND_KEY, KIND_KEY_POLICY
from madang.runtime.admin_http import NotFound

NAMES_MAX = 256
RATE_MAX = 10**9
"""Largest limit a minute; no site comes near it."""
STREAMS_MAX = 10**6
_SECRET_BYTES = 32


class KeyLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a key may do; the fields are those of a KeyPolicy. An unknown one is refused: it may be a limit misspelt.

    Attributes:
        priority: None means interactive, or the tenant's class when that is lower.
    """

    project_id: str = ""
    services: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    streams_max: int | None = None
    priority: PriorityClass | None = None


class KeyRequest(KeyLimits, frozen=True, kw_only=True):
    """A key to make; without `key_id` one is chosen."""

    tenant_id: str
    key_id: str | None = None
    expires_at_s: float | None = None


class KeyExpiry(msgspec.Struct, frozen=True, kw_only=True):
    """A new end of a key's life; null means never."""

    expires_at_s: float | None


class KeyView(KeyLimits, frozen=True, kw_only=True):
    """What may be shown of a key; one without a policy was made before there were any, and has no limits."""

    key_id: str
    tenant_id: str
    expires_at_s: float | None
    is_revoked: bool
    created_at_s: float
    has_policy: bool


class KeyMade(KeyLimits, frozen=True, kw_only=True):
    """The answer to making a key: the only time that `api_key` is seen."""

    key_id: str
    tenant_id: str
    api_key: str
    expires_at_s: float | None
    created_at_s: float
    has_policy: bool = True


_LIMITS = tuple(field.name for field in msgspec.structs.fields(KeyLimits))


def create_key(change: Change, request: KeyRequest, entropy: Entropy) -> KeyMade:
    """Make a key; its text is in the answer and nowhere else.

    Raises:
        NotFound: no such tenant.
        Rejected: a field is malformed, names what is not there, or the key would be expired.
        Conflict: the id is taken.
    """
    tenant = read_tenant(change.connection, request.tenant_id)
    key_id = request.key_id if request.key_id is not None else f"k{entropy.token_bytes(6).hex()}"
    check_entity_id("key", key_id)
    if request.expires_at_s is not None and request.expires_at_s <= change.now_s:
        raise Rejected(f"key {key_id}: expires_at_s lies in the past; it is wall time in seconds since 1970")
    if change.connection.execute(sa.select(API_KEY.c.key_id).where(API_KEY.c.key_id == key_id)).first():
        raise Conflict(f"key {key_id} exists", next_step="choose another key_id, or leave it out")
    policy = _make_policy(change.connection, key_id, tenant, request)
    secret = base64.urlsafe_b64encode(entropy.token_bytes(_SECRET_BYTES)).rstrip(b"=").decode()
    api_key = f"mdg_{key_id}_{secret}"
    change.connection.execute(
        API_KEY.insert().values(
            key_id=key_id,
            tenant_id=tenant.tenant_id,
            sha256=hashlib.sha256(api_key.encode()).hexdigest(),
            expires_at_s=request.expires_at_s,
            is_revoked=False,
            created_at_s=change.now_s,
        )
    )
    change.touch(KIND_KEY, key_id)
    _write_policy(change, policy)
    change.audit("key.create", key_id, {"expires_at_s": request.expires_at_s, **msgspec.structs.asdict(policy)})
    return KeyMade(
        key_id=key_id,
        tenant_id=tenant.tenant_id,
        api_key=api_key,
        expires_at_s=request.expires_at_s,
        created_at_s=change.now_s,
        **_limits_of(policy),
    )


def _make_policy(connection: sa.Connection, key_id: str, tenant: Tenant, limits: KeyLimits) -> KeyPolicy:
    """Return the policy that limits ask for; raises Rejected for what is not there, not the tenant's or too high."""
    what = f"key {key_id}"
    _check_numbers(what, limits)
    _check_names(what, "services", limits.services, {service.name for service in read_services(connection)})
    _check_names(what, "sites", limits.sites, {site.name for site in read_sites(connection)})
    if limits.project_id and read_project(connection, limits.project_id).tenant_id != tenant.tenant_id:
        raise Rejected(f"{what}: project {limits.project_id} belongs to another tenant than {tenant.tenant_id}")
    priority = limits.priority or _lower(PriorityClass.INTERACTIVE, tenant.priority)
    if priority.rank < tenant.priority.rank:
        raise Rejected(
            f"{what}: priority {priority} is above the highest of tenant {tenant.tenant_id}, {tenant.priority}",
            next_step="choose a lower one, or raise the tenant's first",
        )
    return KeyPolicy(
        key_id=KeyId(key_id),
        tenant_id=tenant.tenant_id,
        project_id=ProjectId(limits.project_id),
        services=tuple(ServiceName(name) for name in limits.services),
        sites=tuple(SiteId(name) for name in limits.sites),
        requests_per_minute=limits.requests_per_minute,
        tokens_per_minute=limits.tokens_per_minute,
        streams_max=limits.streams_max,
        priority=priority,
    )


def _check_numbers(what: str, limits: KeyLimits) -> None:
    numbers = (
        ("requests_per_minute", limits.requests_per_minute, RATE_MAX),
        ("tokens_per_minute", limits.tokens_per_minute, RATE_MAX),
        ("streams_max", limits.streams_max, STREAMS_MAX),
    )
    for field, value, most in numbers:
        if value is not None and not 1 <= value <= most:
            raise Rejected(
                f"{what}: {field} is {value}, expected 1 to {most}, or null for no limit",
                next_step="revoke a key that shall do nothing",
            )


def _check_names(what: str, field: str, names: Sequence[str], known: set[Any]) -> None:
    if len(names) > NAMES_MAX or len(set(names)) != len(names):
        raise Rejected(f"{what}: {field} takes at most {NAMES_MAX} names, each once")
    unknown = set(names) - known
    if unknown:
        raise Rejected(
            f"{what}: {field} names {min(unknown)!r}, which does not exist", next_step=f"GET /api/v1/{field} lists them"
        )


def _lower(first: PriorityClass, second: PriorityClass) -> PriorityClass:
    return max(first, second, key=lambda one: one.rank)


def _write_policy(change: Change, policy: KeyPolicy) -> None:
    names = {"tenant_id": policy.tenant_id, "project_id": policy.project_id}
    change.write_fact(KEY_POLICY, KEY_POLICY.c.key_id, policy.key_id, policy, **names)
    change.touch(KIND_KEY_POLICY, policy.key_id)


def _limits_of(policy: KeyPolicy) -> dict[str, Any]:
    return {name: getattr(policy, name) for name in _LIMITS}


def set_key_policy(change: Change, key_id: str, limits: KeyLimits) -> KeyView:
    """Replace what a key may do, also of a key that had no limits.

    Raises:
        NotFound: no such key.
        Rejected: a field is malformed, or names what is not there.
        Conflict: the key is revoked.
    """
    view = read_key_view(change.connection, key_id)
    if view.is_revoked:
        raise Conflict(f"key {key_id} is revoked, for ever", next_step="make another key (POST /api/v1/keys)")
    tenant = read_tenant(change.connection, view.tenant_id)
    policy = _make_policy(change.connection, key_id, tenant, limits)
    old = next(iter(read_key_policies(change.connection, [key_id])), None)
    if old != policy:
        _write_policy(change, policy)
        if old is None:
            change.touch(KIND_KEY, key_id)
        change.audit("key.policy", key_id, policy)
    return msgspec.structs.replace(view, has_policy=True, **_limits_of(policy))


def lower_priorities(change: Change, tenant: Tenant) -> None:
    """Bring the keys of a tenant down to its class where they are above it."""
    ids = list(
        change.connection.scalars(sa.select(KEY_POLICY.c.key_id).where(KEY_POLICY.c.tenant_id == tenant.tenant_id))
    )
    for policy in read_key_policies(change.connection, ids):
        if policy.priority.rank < tenant.priority.rank:
            lowered = msgspec.structs.replace(policy, priority=tenant.priority)
            _write_policy(change, lowered)
            change.audit("key.policy", policy.key_id, lowered)


def set_key_expiry(change: Change, key_id: str, expiry: KeyExpiry) -> KeyView:
    """Change when a key expires; an instant in the past ends it now. Raises NotFound."""
    old = read_key_view(change.connection, key_id)
    if old.expires_at_s != expiry.expires_at_s:
        change.connection.execute(
            API_KEY.update().where(API_KEY.c.key_id == key_id).values(expires_at_s=expiry.expires_at_s)
        )
        change.touch(KIND_KEY, key_id)
        change.audit("key.expire", key_id, {"expires_at_s": expiry.expires_at_s, "was_s": old.expires_at_s})
    return msgspec.structs.replace(old, expires_at_s=expiry.expires_at_s)


def revoke_key(change: Change, key_id: str) -> KeyView:
    """End a key for ever; doing it again changes nothing. Raises NotFound."""
    old = read_key_view(change.connection, key_id)
    if not old.is_revoked:
        change.connection.execute(API_KEY.update().where(API_KEY.c.key_id == key_id).values(is_revoked=True))
        change.touch(KIND_KEY, key_id)
        change.audit("key.revoke", key_id, {"tenant_id": old.tenant_id})
    return msgspec.structs.replace(old, is_revoked=True)


_VIEWED = sa.select(API_KEY, KEY_POLICY.c.spec).outerjoin(KEY_POLICY, KEY_POLICY.c.key_id == API_KEY.c.key_id)


def list_keys(connection: sa.Connection, tenant_id: str | None) -> list[KeyView]:
    """Return keys by id, of one tenant or of all."""
    query = _VIEWED.order_by(API_KEY.c.key_id)
    if tenant_id is not None:
        query = query.where(API_KEY.c.tenant_id == tenant_id)
    return [_view_key(row) for row in connection.execute(query)]


def read_key_view(connection: sa.Connection, key_id: str) -> KeyView:
    """Return a key without anything secret; raises NotFound."""
    row = connection.execute(_VIEWED.where(API_KEY.c.key_id == key_id)).first()
    if row is None:
        raise NotFound(f"key {key_id!r} does not exist", next_step="GET /api/v1/keys lists those that do")
    return _view_key(row)


def _view_key(row: sa.Row[Any]) -> KeyView:
    limits = {} if row.spec is None else _limits_of(msgspec.json.decode(row.spec, type=KeyPolicy))
    return KeyView(
        key_id=row.key_id,
        tenant_id=row.tenant_id,
        expires_at_s=row.expires_at_s,
        is_revoked=row.is_revoked,
        created_at_s=row.created_at_s,
        has_policy=row.spec is not None,
        **limits,
    )
