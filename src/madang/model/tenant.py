"""Tenants, their projects and keys, what they may spend and where their data may go.

Refuses to hold a key itself: only its SHA-256.
"""

from enum import StrEnum

import msgspec

from madang.core import KeyId, ProjectId, ServiceName, SiteId, TenantId
from madang.model.priority import PriorityClass


class ResidencyScope(StrEnum):
    """How wide a tenant's data may travel."""

    __hash__ = str.__hash__  # Enum's own is a call of Python for each look-up

    SITE = "site"
    SITES = "sites"
    REGION = "region"
    NATION = "nation"
    ANY = "any"


class DataClass(StrEnum):
    """Korean N2SF grades: open, sensitive, classified; `policy.residency` says what each forbids."""

    __hash__ = str.__hash__  # Enum's own is a call of Python for each look-up

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


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """What may be spent in a day and in a month of Korean time, micro-won net of VAT; None means without limit."""

    day_micro_won: int | None = None
    month_micro_won: int | None = None


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    """One customer.

    Attributes:
        budget: for all of its projects together.
        priority: the highest class that its keys may have.
        overdraw_micro_won: what requests of class `clinical` may spend beyond a budget in each of its periods, over
            all sites together; flagged in usage and receipts.
        is_redirect_wanted: the national entry answers 307 with the nearest legal site instead of relaying.
    """

    tenant_id: TenantId
    title: str
    residency: Residency
    data_class: DataClass = DataClass.SENSITIVE
    budget: Budget = Budget()
    priority: PriorityClass = PriorityClass.INTERACTIVE
    overdraw_micro_won: int = 0
    is_redirect_wanted: bool = False


class Project(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a tenant with keys and a budget of its own; known where its tenant is."""

    project_id: ProjectId
    tenant_id: TenantId
    title: str
    budget: Budget = Budget()


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """What every gateway holds of a key: enough to refuse it anywhere, nothing that opens anything.

    Attributes:
        key_id: public name of the key.
        sha256: hex digest of the whole key string.
        tenant_id, residency, data_class: copied here so that a site the tenant's data may not touch can still say where
            to go. A class of None is that of a key of before classes narrowed: the tenant's own is asked, and where
            that is not known the strictest holds.
        is_redirect_wanted: copied likewise: most of those who want it may not be known at the entry that sends them on.
        has_policy: it has a KeyPolicy: whoever may know its tenant and not yet that serves nothing. A key of before
            there were policies has none, and no limits.
        expires_at_s: wall time, seconds; None means never.
        is_revoked: true from the moment the owner said so.
    """

    key_id: KeyId
    sha256: str
    tenant_id: TenantId
    residency: Residency
    expires_at_s: float | None = None
    is_revoked: bool = False
    data_class: DataClass | None = None
    is_redirect_wanted: bool = False
    has_policy: bool = False


class KeyPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What a key may do; known only where its tenant is, unlike `ApiKey`.

    Attributes:
        project_id: whose budget its requests use beside the tenant's; empty: the tenant's alone.
        services: what it may call; empty means all that its tenant may.
        sites: where it may be used and served, narrower than residency; empty means wherever residency allows.
        requests_per_minute, tokens_per_minute, streams_max: limits at each site; None means without limit. The worst
            case over the federation is that limit times the number of legal sites.
        priority: the class of its requests unless they ask for a lower one.
    """

    key_id: KeyId
    tenant_id: TenantId
    project_id: ProjectId
    services: tuple[ServiceName, ...] = ()
    sites: tuple[SiteId, ...] = ()
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    streams_max: int | None = None
    priority: PriorityClass = PriorityClass.INTERACTIVE
