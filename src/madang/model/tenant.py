"""Tenants, their keys and where their data may go. Refuses to hold a key itself: only its SHA-256."""

from enum import StrEnum

import msgspec

from madang.core import KeyId, TenantId


class ResidencyScope(StrEnum):
    """How wide a tenant's data may travel."""

    SITE = "site"
    SITES = "sites"
    REGION = "region"
    NATION = "nation"
    ANY = "any"


class DataClass(StrEnum):
    """Korean N2SF grades: open, sensitive, classified."""

    OPEN = "open"
    SENSITIVE = "sensitive"
    CLASSIFIED = "classified"


class Residency(msgspec.Struct, frozen=True, kw_only=True):
    """Where a tenant's requests may be served.

    Attributes:
        scope: how `places` is read.
        places: site names for `site` (exactly one) and `sites`, region names for `region`, nation codes for
            `nation`; empty for `any`.
        is_transit_granted: whether a site that may not serve may pass the body through, unread, to one that may.
    """

    scope: ResidencyScope
    places: tuple[str, ...] = ()
    is_transit_granted: bool = False


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    """One customer."""

    tenant_id: TenantId
    title: str
    residency: Residency
    data_class: DataClass = DataClass.SENSITIVE


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """What every gateway holds of a key: enough to refuse it anywhere, nothing that opens anything.

    Attributes:
        key_id: public name of the key.
        sha256: hex digest of the whole key string.
        tenant_id, residency: copied here so that a site the tenant's data may not touch can still say where to go.
        expires_at_s: wall time, seconds; None means never.
        is_revoked: true from the moment the owner said so.
    """

    key_id: KeyId
    sha256: str
    tenant_id: TenantId
    residency: Residency
    expires_at_s: float | None = None
    is_revoked: bool = False
