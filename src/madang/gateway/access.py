"""Who is asking and whether this site may hear the question: from headers and the snapshot alone.

Owns authentication by key and residency at the entry. Refuses to see a body: both are settled before a byte of it
is parsed. Pure but for its arguments; the tenants' port calls it first of all.
"""

import hashlib
import re

import msgspec

from madang.core import KeyId, ProjectId, SiteId
from madang.gateway.feed import Caller, Desired
from madang.model import ApiKey, DataClass, Residency, ResidencyScope, Tenant
from madang.policy.residency import allowed_sites, is_allowed, may_pass_through, stricter
from madang.policy.routing import Refusal, legal_sites
from madang.wire.openai_errors import ApiError, ErrorCode

_USUAL = b"Bearer "
"""How all but the oddest clients begin; what begins otherwise is read by the grammar each time."""
_BEARER = re.compile(rb"(?i:bearer) +(\S+)\Z")
_KEY = re.compile(rb"mdg_[a-z0-9](?:[a-z0-9_.-]{0,62})_[A-Za-z0-9_-]{43}\Z")


def authenticate(desired: Desired, authorization: bytes | None, now_s: float) -> Caller:
    """Return who asks; raises ApiError 401 for a key that opens nothing and 403 where its data may not go."""
    caller = identify(desired, authorization, now_s)
    check_entry(desired, caller)
    return caller


def check_entry(desired: Desired, caller: Caller) -> None:
    """Raise ApiError 403 where a caller's data may not go, not even unread."""
    if caller.is_barred:
        raise residency_error(desired, caller.residency, caller.data_class)


def identify(desired: Desired, authorization: bytes | None, now_s: float) -> Caller:
    """Return who asks, wherever its data may go; raises ApiError 401 for a key that opens nothing.

    Args:
        desired: the site's snapshot.
        authorization: value of the Authorization field.
        now_s: wall time.
    """
    if authorization is None:
        raise _invalid("no API key: send 'Authorization: Bearer mdg_…'")
    if authorization.startswith(_USUAL):
        # The digest is of a secret of 256 bits, so a look-up by it tells nothing by its timing.
        known = desired.callers.get(hashlib.sha256(authorization[len(_USUAL) :]).digest())
        if known is not None and (known.expires_at_s is None or now_s < known.expires_at_s):
            return known
    match = _BEARER.match(authorization)
    if match is None:
        raise _invalid("the Authorization field is not 'Bearer' and a key")
    if not _KEY.match(match[1]):
        raise _invalid("the API key is malformed: keys look like mdg_<key id>_<43 characters>")
    digest = hashlib.sha256(match[1]).digest()
    key = desired.keys_by_sha256.get(digest)
    if key is None:
        raise _invalid("the API key is not known at this site")
    if key.is_revoked:
        raise _invalid(f"the API key {key.key_id} was revoked")
    if key.expires_at_s is not None and now_s >= key.expires_at_s:
        raise _invalid(f"the API key {key.key_id} has expired")
    found = desired.callers[digest] = _make_caller(desired, key)
    return found


def _make_caller(desired: Desired, key: ApiKey) -> Caller:
    """Return what a snapshot says of a key that opens something."""
    tenant = desired.tenants.get(key.tenant_id)
    data_class = class_of(key, tenant)
    residency = key.residency if tenant is None else _narrower(desired, key.residency, tenant.residency)
    policy = desired.key_policies.get(key.key_id)
    if policy is not None and policy.sites:
        residency = _within(desired, key.key_id, residency, policy.sites)
    site = desired.site
    is_legal = site is not None and is_allowed(residency, data_class, site)
    return Caller(
        key_id=key.key_id,
        tenant_id=key.tenant_id,
        residency=residency,
        data_class=data_class,
        is_transit=not is_legal,
        project_id=ProjectId("") if policy is None else policy.project_id,
        is_barred=not is_legal and (site is None or not may_pass_through(residency, data_class, site)),
        is_redirect_wanted=key.is_redirect_wanted or (tenant is not None and tenant.is_redirect_wanted),
        expires_at_s=key.expires_at_s,
    )


def owner_of(desired: Desired | None, authorization: bytes | None) -> tuple[str, str]:
    """Return tenant and key of a request that was refused, as far as its key tells; empty where it tells nothing."""
    match = None if authorization is None else _BEARER.match(authorization)
    if match is None or desired is None:
        return "", ""
    key = desired.keys_by_sha256.get(hashlib.sha256(match[1]).digest())
    return ("", "") if key is None else (key.tenant_id, key.key_id)


def class_of(key: ApiKey, tenant: Tenant | None) -> DataClass:
    """Return the class of a key's data: the higher of what key and tenant say, the strictest where neither does."""
    if tenant is None:
        return DataClass.CLASSIFIED if key.data_class is None else key.data_class
    return tenant.data_class if key.data_class is None else stricter(key.data_class, tenant.data_class)


def _narrower(desired: Desired, first: Residency, second: Residency) -> Residency:
    """Return what both allow. They differ only while a change is on its way; until then the stricter one holds."""
    if first == second:
        return first
    is_transit_granted = first.is_transit_granted and second.is_transit_granted
    if ResidencyScope.ANY in (first.scope, second.scope):
        other = second if first.scope is ResidencyScope.ANY else first
        return msgspec.structs.replace(other, is_transit_granted=is_transit_granted)
    if first.scope is second.scope:
        both = tuple(sorted(set(first.places) & set(second.places)))
        return Residency(scope=first.scope, places=both, is_transit_granted=is_transit_granted)
    # Two kinds of scope have only the names of sites in common, and names say no nation: a site that holds other facts
    # of itself than this one could not notice. So it is the last resort.
    # By scope alone, for which class `open` stands: whoever uses the result narrows it by the class.
    sites = desired.sites.values()
    places = allowed_sites(first, DataClass.OPEN, sites) & allowed_sites(second, DataClass.OPEN, sites)
    return Residency(
        scope=ResidencyScope.SITES,
        places=tuple(sorted(places)),
        is_transit_granted=is_transit_granted,
    )


def _within(desired: Desired, key_id: KeyId, residency: Residency, names: tuple[SiteId, ...]) -> Residency:
    """Return a residency narrowed to the sites that a key names; once for each key and snapshot."""
    found = desired.narrowed.get(key_id)
    if found is None:
        own = Residency(scope=ResidencyScope.SITES, places=names, is_transit_granted=residency.is_transit_granted)
        found = desired.narrowed[key_id] = _narrower(desired, residency, own)
    return found


def residency_error(desired: Desired, residency: Residency, data_class: DataClass) -> ApiError:
    """Return the 403 that says where the tenant may go instead."""
    sites = [
        {"name": site.name, "url": site.tenant_url}
        for site in legal_sites(residency, data_class, desired.sites.values())
        if site.tenant_url
    ]
    where = ", ".join(f"{site['name']} {site['url']}" for site in sites) or "no site of this federation"
    return ApiError(
        ErrorCode.RESIDENCY_VIOLATION,
        f"the tenant's residency ({describe(residency, data_class)}) forbids site {desired.site_name}; "
        f"allowed: {where}",
        details={"sites": sites},
    )


def clear_link_error(desired: Desired, service: str, data_class: DataClass, refusal: Refusal) -> ApiError:
    """Return the 503 for data that only sites could serve to which the way from here is in clear.

    It names them with the URLs of their own, at which a tenant may ask them without this site.
    """
    sites = [
        {"name": name, "url": site.tenant_url}
        for name in refusal.sites
        if (site := desired.sites.get(name)) is not None and site.tenant_url
    ]
    where = ", ".join(f"{site['name']} {site['url']}" for site in sites)
    return ApiError(
        ErrorCode.NO_REPLICA,
        f"{service or 'this request'} is served by {', '.join(refusal.sites)}, but data {data_class} may not go there "
        f"from site {desired.site_name}: that link is not encrypted (the peer's URL is http://, and the site's setting "
        f"encrypted_links does not name it)" + (f"; ask there: {where}" if where else ""),
        retry_after_s=refusal.retry_after_s,
        details={"sites": sites},
    )


def describe(residency: Residency, data_class: DataClass) -> str:
    """Return a residency as people read it."""
    return f"{residency.scope} {' '.join(residency.places)}".strip() + f", data {data_class}"


def _invalid(message: str) -> ApiError:
    return ApiError(ErrorCode.INVALID_KEY, message)
