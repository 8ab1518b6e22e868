"""Makes the state of the embedded federation, every step idempotent, so that an interrupted first day is resumed.

Owns folders, settings files, tokens and the enrolment of sites. Refuses to start processes and to write any
program's own state but through that program's bootstrap or API. Called by `madang up`.
"""

import hashlib
import secrets
from collections.abc import Callable
from pathlib import Path

import msgspec

from madang.core import Unavailable
from madang.federation.enrolment import enrol_site
from madang.federation.layout import (
    Layout,
    SiteLayout,
    folders,
    gateway_settings,
    hub_settings,
    node_settings,
    relay_settings,
    site_settings,
)
from madang.federation.plant import PLANT_FILE, plant_settings, with_facility, write_facility
from madang.federation.programs import plan_federation_programs
from madang.federation.state import (
    Credentials,
    FederationState,
    SiteCredentials,
    read_credentials,
    read_state,
    write_credentials,
    write_state,
)
from madang.federation.supervise import PROGRAMS_FILE
from madang.federation.toml_text import render_toml
from madang.hub.bootstrap import prepare_hub
from madang.node.bootstrap import prepare_node
from madang.runtime.admin_client import AdminClient
from madang.runtime.files import replace_file
from madang.runtime.nats import nats_server_path
from madang.runtime.supervision import ProcessSpec, encode_specs
from madang.site.bootstrap import prepare_site

_TOKEN_BYTES = 32
_COMMENT = "Written by `madang up` on each start: changes here do not last. docs/settings.md explains every key."


def prepare(layout: Layout) -> tuple[Credentials, tuple[ProcessSpec, ...]]:
    """Make all that must be on disk before any process starts; return credentials and processes.

    Raises:
        Rejected: the state is damaged or newer than this release.
        Unavailable: naming the path that cannot be written.
    """
    _make_folders(layout)
    _remember(layout)
    credentials = _make_credentials(layout)
    hub = hub_settings(layout, _digest(credentials.admin_token))
    _write_settings(layout.hub_dir / "hub.toml", hub)
    _write_settings(layout.state_dir / "relay.toml", relay_settings(layout))
    _write_settings(layout.state_dir / PLANT_FILE, plant_settings(layout))
    prepared = prepare_hub(hub)
    site_nats_configs: dict[str, Path] = {}
    for site in layout.sites:
        site_nats_configs[site.name] = _prepare_site(layout, site, credentials, prepared.artifact_key)
    specs = plan_federation_programs(
        layout,
        nats_server=nats_server_path(),
        hub_nats_config=prepared.nats_config,
        site_nats_configs=site_nats_configs,
    )
    replace_file(layout.run_dir / PROGRAMS_FILE, encode_specs(specs), mode=0o600)
    return credentials, specs


def _make_folders(layout: Layout) -> None:
    for folder in (*folders(layout), layout.cache_dir):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable(
                f"cannot make the folder {folder}: {error.strerror}",
                next_step="mend the permission, or choose another place with --state or MADANG_CACHE",
            ) from error


def _remember(layout: Layout) -> None:
    known = read_state(layout.state_dir) or FederationState()
    state = msgspec.structs.replace(known, base_port=layout.base_port, cache_dir=str(layout.cache_dir))
    if known.base_port != layout.base_port:
        # Sites announce URLs with ports in them: the hub has to hear the new ones.
        state = msgspec.structs.replace(state, is_enrolled=False)
    write_state(layout.state_dir, state)


def _make_credentials(layout: Layout) -> Credentials:
    known = read_credentials(layout.credentials_path)
    tokens = {site.name: known.token_of(site.name) if known else _make_token() for site in layout.sites}
    national, *boxes = layout.sites
    credentials = Credentials(
        hub_url=layout.hub_url,
        national_url=national.tenant_url,
        admin_token=known.admin_token if known else _make_token(),
        sites=tuple(
            SiteCredentials(
                name=site.name, url=site.tenant_url, admin_url=site.admin_url, admin_token=tokens[site.name]
            )
            for site in boxes
        ),
        tenants=known.tenants if known else (),
        national_admin_url=national.admin_url,
        national_admin_token=tokens[national.name],
    )
    if credentials != known:
        write_credentials(layout.credentials_path, credentials)
    return credentials


def _make_token() -> str:
    return secrets.token_urlsafe(_TOKEN_BYTES)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _write_settings(path: Path, settings: msgspec.Struct) -> None:
    replace_file(path, render_toml(settings, _COMMENT).encode(), mode=0o600)


def _prepare_site(layout: Layout, site: SiteLayout, credentials: Credentials, artifact_key: str) -> Path:
    settings = with_facility(site_settings(layout, site, _digest(credentials.token_of(site.name))), site)
    write_facility(site)
    _write_settings(site.folder / "site.toml", settings)
    _write_settings(site.folder / "gateway.toml", gateway_settings(site))
    if not site.is_entry_only:
        node = msgspec.structs.replace(node_settings(layout, site), artifact_keys=(artifact_key,))
        _write_settings(site.folder / "node.toml", node)
        prepare_node(node)
    return prepare_site(settings).nats_config


def enrol(layout: Layout, hub: AdminClient, credentials: Credentials, tell: Callable[[str, str], None]) -> None:
    """Enrol every site at the hub and install its credentials.

    Args:
        layout: the map.
        hub: the hub's API.
        credentials: for the sites' settings.
        tell: told (site, what happens).
    """
    for site in layout.sites:
        tell(site.name, "enrols at the hub")
        enrol_site(site_settings(layout, site, _digest(credentials.token_of(site.name))), hub)
    state = read_state(layout.state_dir)
    assert state is not None
    write_state(layout.state_dir, msgspec.structs.replace(state, is_enrolled=True))
