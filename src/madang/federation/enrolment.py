"""Enrols one site at a hub, embedded or real.

Owns the exchange: identity and URLs out, credentials in. Refuses to know where the site's settings come from.
"""

from madang.runtime.admin_client import AdminClient
from madang.site.bootstrap import creds_file, install_creds, prepare_site
from madang.site.settings import SiteSettings


def enrol_site(settings: SiteSettings, hub: AdminClient) -> None:
    """Enrol a site; repeating it is harmless and leaves credentials that exist as they are.

    Raises:
        Conflict: a live site of that name has another identity.
    """
    answer = hub.call(
        "POST",
        "/api/v1/sites",
        {
            "name": settings.name,
            "region": settings.region,
            "nation": settings.nation,
            "tenant_url": settings.tenant_url,
            "peer_url": settings.peer_url,
            "artifact_url": settings.artifact_url,
            "identity_ed25519": prepare_site(settings).identity_ed25519,
            "is_entry_only": settings.is_entry_only,
        },
    )
    if not creds_file(settings).exists():
        install_creds(settings, answer["creds"])
