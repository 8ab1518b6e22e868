"""What a site needs on disk before anything of it runs: identity, NATS users and configuration, folders.

Owns those files. Refuses to start anything and to talk to anybody. Called by the embedded federation and by the
CLI's installation of a real site; repeating it changes nothing.
"""

from pathlib import Path

import msgspec

from madang.core import Entropy, Rejected, check_site_name
from madang.runtime.clock import SystemEntropy
from madang.runtime.files import make_private_folder, read_secret, write_secret
from madang.runtime.nats import SiteNats, render_site_conf, user_of_creds
from madang.site.kex import identity_hex, load_identity
from madang.site.settings import SiteSettings
from madang.wire.access_log import ACCESS_FOLDER
from madang.wire.site_leg import GATEWAY_TOKEN_FILE

SITE_USER = "site"
SYSTEM_USER = "system"
_PASSWORD_BYTES = 32


class SitePrepared(msgspec.Struct, frozen=True, kw_only=True):
    """What was prepared.

    Attributes:
        identity_ed25519: public identity key, 64 hex digits, to enrol with.
        nats_config: configuration of the site's NATS server; it starts once `leaf.creds` exists.
    """

    identity_ed25519: str
    nats_config: Path


def nats_folder(settings: SiteSettings) -> Path:
    """Return the folder of everything that belongs to the site's NATS server."""
    return settings.state_dir / "nats"


def creds_file(settings: SiteSettings) -> Path:
    """Return where the site keeps its credentials for the hub's leaf port."""
    return nats_folder(settings) / "leaf.creds"


def password_file(settings: SiteSettings, user: str) -> Path:
    """Return the file with the password of a local NATS user."""
    return nats_folder(settings) / f"{user}.password"


def gateway_token_file(settings: SiteSettings) -> Path:
    """Return the file with the token that the site's gateway shows to the site process."""
    return settings.state_dir / GATEWAY_TOKEN_FILE


def files_key_file(settings: SiteSettings) -> Path:
    """Return the file with the master key of the tenants' files, 64 hex digits; it is not kept among them."""
    return settings.state_dir / "files.key"


def files_folder(settings: SiteSettings) -> Path:
    """Return the folder of the tenants' encrypted files."""
    return settings.state_dir / "files"


def batches_folder(settings: SiteSettings) -> Path:
    """Return the folder of the encrypted results of batches that are not over."""
    return settings.state_dir / "batches"


def access_folder(settings: SiteSettings) -> Path:
    """Return the folder of access records: where the gateway's settings put it by default too."""
    return settings.access_dir or settings.usage_dir.parent / ACCESS_FOLDER


def identity_file(settings: SiteSettings) -> Path:
    """Return the file with the seed of the site's identity key, 64 hex digits."""
    return settings.state_dir / "identity.key"


def prepare_site(settings: SiteSettings, entropy: Entropy | None = None) -> SitePrepared:
    """Make what is missing; return the identity and the NATS configuration.

    Args:
        settings: of the site.
        entropy: where secrets come from; the operating system by default.

    Raises:
        Rejected: the name is not valid, or a file that exists is damaged.
        Unavailable: naming the path that cannot be written or is open to others.
    """
    for name in (settings.name, *settings.encrypted_links):
        check_site_name(name)
    entropy = entropy or SystemEntropy()
    make_private_folder(settings.state_dir, is_ours_alone=False)
    for folder in (
        nats_folder(settings),
        settings.feed_dir,
        settings.usage_dir,
        access_folder(settings),
        files_folder(settings),
        batches_folder(settings),
    ):
        make_private_folder(folder)
    seed = _keep_secret(identity_file(settings), entropy.token_bytes(32).hex().encode())
    for path in (gateway_token_file(settings), files_key_file(settings)):
        _keep_secret(path, entropy.token_bytes(32).hex().encode())
    passwords = {
        user: _keep_secret(password_file(settings, user), entropy.token_bytes(_PASSWORD_BYTES).hex().encode())
        for user in (SITE_USER, SYSTEM_USER)
    }
    config = nats_folder(settings) / "nats.conf"
    text = render_site_conf(
        SiteNats(
            site=settings.name,
            host=settings.nats_host,
            port=settings.nats_port,
            monitor_port=settings.nats_monitor_port,
            hub_leaf_urls=(settings.hub_leaf_url,),
            creds_file=creds_file(settings),
            users={SITE_USER: passwords[SITE_USER].decode()},
            system_users={SYSTEM_USER: passwords[SYSTEM_USER].decode()},
        )
    )
    if not config.exists() or config.read_text(encoding="utf-8") != text:
        write_secret(config, text.encode())
    return SitePrepared(identity_ed25519=identity_hex(load_identity(seed)), nats_config=config)


def install_creds(settings: SiteSettings, creds: str) -> None:
    """Store the credentials that enrolment returned.

    Raises:
        Rejected: the text is not a credentials file.
        Unavailable: it cannot be written.
    """
    try:
        user_of_creds(creds)
    except Rejected as error:
        raise Rejected(
            f"the credentials for site {settings.name} are not usable: {error.message}",
            next_step="enrol the site again at the hub",
        ) from error
    make_private_folder(nats_folder(settings))
    write_secret(creds_file(settings), creds.encode())


def _keep_secret(path: Path, fresh: bytes) -> bytes:
    """Return the secret in `path`, writing `fresh` there first when there is none."""
    if not path.exists():
        write_secret(path, fresh)
    return read_secret(path)
